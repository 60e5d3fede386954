// SPDX-License-Identifier: GPL-2.0

//! Moves pages of a memfd together in memory, while those who use them go on.
//!
//! KHO's work in the next kernel, before it has any process, grows with the number of blocks that
//! are preserved, and with the square of the number that lie apart. A file whose pages lie apart
//! one by one is therefore better moved first: that takes longer, but nobody waits for it.
//!
//! In the same way those go that cannot stay for long where they are, as the next kernel wants to
//! begin there.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h).

use super::{
    pause,
    FrozenMapping,
    MemoryRun,
    PinnedExtent, //
};
use crate::{
    bindings,
    prelude::*, //
};
use core::{
    ops::Range,
    ptr, //
};

/// Runs of fewer pages than this are short.
const SHORT: usize = 64;

/// So many short runs are worth moving.
const MANY: usize = 64;

/// Fewer pages are better moved by whoever pins them.
const FEW: usize = 16;

/// The order of the blocks that pages are moved into, and of the smallest that do.
const ORDERS: (u32, u32) = (9, 4);

/// How many pages are moved in one go: as many as migration takes at once.
const BATCH: usize = 512;

/// Where in their file those of some extents are that lie apart in memory, in short runs, if there
/// are many of these. `extents` come in the order of memory, and have these `runs`. Large folios are
/// not among them.
///
/// # Errors
///
/// [`ENOMEM`].
pub(super) fn scattered(
    extents: &[&PinnedExtent],
    runs: &[MemoryRun<'_>],
) -> Result<Option<KVVec<Range<usize>>>> {
    let is_short = |run: &MemoryRun<'_>| run.first.order == 0 && run.pages < SHORT;
    if runs.iter().filter(|run| is_short(run)).count() < MANY {
        return Ok(None);
    }

    let mut ranges = KVVec::new();
    let mut rest = extents.iter();
    for run in runs {
        for extent in rest.by_ref().take(run.extents) {
            if is_short(run) {
                ranges.push(extent.index..extent.end_index(), GFP_KERNEL)?;
            }
        }
    }
    ranges.sort_unstable_by_key(|range| range.start);
    Ok(Some(ranges))
}

impl FrozenMapping {
    /// Moves the single pages in `ranges` of the file together in memory, as well as it goes: what
    /// somebody else has pinned stays where it is, and so does everything when there is no
    /// contiguous memory left.
    ///
    /// Of each node the pages stay in its memory.
    ///
    /// # Errors
    ///
    /// - [`EINTR`] if the task is being killed.
    /// - [`ENOMEM`] if there is no memory to remember what is to be moved.
    ///
    /// C counterpart: none; it is done by `migrate_pages()`.
    pub fn gather(&self, ranges: &[Range<usize>]) -> Result {
        let mut mover = Mover::new()?;
        let mut pages = ranges.iter().cloned().flatten();

        mover.targets.left = ranges.iter().map(Range::len).sum();
        loop {
            pause()?;
            mover.indices.clear();
            for index in pages.by_ref().take(BATCH) {
                mover.indices.push(index, GFP_KERNEL)?;
            }
            if mover.indices.is_empty() || !mover.migrate(self) {
                return Ok(());
            }
        }
    }
}

/// What it takes to move pages of a file.
pub(super) struct Mover {
    /// Which pages are to be moved next.
    indices: KVec<usize>,
    targets: Targets,
}

impl Mover {
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        // What was written to just now is not on the LRU list yet, and cannot move.
        // SAFETY: The current task may sleep, as all users of this module.
        unsafe { bindings::lru_add_drain_all() };
        Ok(Self {
            indices: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            targets: Targets {
                left: 0,
                largest: ORDERS.0,
                blocks: KVec::new(),
            },
        })
    }

    /// Moves those single pages in a range of the file that cannot stay for long where they are, if
    /// there are enough of them. Returns up to where it has looked.
    pub(super) fn move_away(&mut self, mapping: &FrozenMapping, range: Range<usize>) -> usize {
        self.indices.clear();
        let room = self.indices.spare_capacity_mut();

        // SAFETY: The mapping is valid, and belongs to shmem. There is that much room, of which
        // that much has been written to.
        unsafe {
            let found = bindings::shmem_find_unpinnable(
                mapping.memfd.mapping(),
                range.start,
                range.end,
                room.as_mut_ptr().cast(),
                room.len(),
            );
            self.indices.inc_len(found);
        }

        let until = match self.indices.last() {
            Some(last) if self.indices.len() == self.indices.capacity() => last + 1,
            _ => range.end,
        };
        if self.indices.len() >= FEW {
            self.targets.left = self.indices.len();
            self.migrate(mapping);
        }
        until
    }

    /// Moves the pages, as far as that is possible. False if there is no place left.
    fn migrate(&mut self, mapping: &FrozenMapping) -> bool {
        // SAFETY: The mapping is valid. `target` is called before this returns, with the address of
        // `targets`, which nobody else uses meanwhile.
        unsafe {
            bindings::shmem_migrate(
                mapping.memfd.mapping(),
                self.indices.as_ptr(),
                self.indices.len(),
                Some(target),
                (&raw mut self.targets).expose_provenance(),
            )
        }
    }
}

/// Where pages are moved to: a block for each node that has some.
struct Targets {
    /// How many pages are still to be moved, at most.
    left: usize,
    /// The order of the largest block that there may be.
    largest: u32,
    blocks: KVec<Block>,
}

impl Targets {
    /// The next free page on a node.
    fn next(&mut self, node: c_int) -> Option<usize> {
        let place = self.blocks.iter().position(|block| block.node == node);
        let block = match place {
            Some(place) => self.blocks.get_mut(place)?,
            None => {
                self.blocks.push(Block::none(node), GFP_KERNEL).ok()?;
                self.blocks.last_mut()?
            }
        };

        if block.pages.is_empty() {
            let wanted = self.left.checked_next_power_of_two()?.trailing_zeros();
            let wanted = wanted.min(self.largest);
            let orders = wanted.min(ORDERS.1)..=wanted;
            let (order, new) = orders
                .rev()
                .find_map(|order| Some((order, Block::new(node, order)?)))?;
            if order < wanted {
                self.largest = order;
            }
            *block = new;
        }

        self.left = self.left.saturating_sub(1);
        block.pages.next()
    }
}

/// A contiguous block of memory that pages are moved into, from its first page on.
///
/// # Invariants
///
/// At each number of `pages` is a page of its own, with one reference, which is ours.
struct Block {
    node: c_int,
    pages: Range<usize>,
}

impl Block {
    fn none(node: c_int) -> Self {
        // INVARIANT: There are no pages.
        Self { node, pages: 0..0 }
    }

    /// Allocates a block where pages may stay for long.
    fn new(node: c_int, order: u32) -> Option<Self> {
        let mut first = 0;

        // SAFETY: The current task may sleep, as all users of this module.
        if !unsafe { bindings::shmem_alloc_block(node, order, &mut first) } {
            return None;
        }
        // INVARIANT: That many pages were allocated, each by itself.
        Some(Self {
            node,
            pages: first..first + (1 << order),
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        for pfn in self.pages.clone() {
            // SAFETY: By the type invariant the page is ours.
            unsafe { bindings::__free_pages(bindings::pfn_to_page(pfn), 0) };
        }
    }
}

/// Where `folio`, a single page, is to be moved; null if there is no place. Migration frees what it
/// does not use of it.
///
/// # Safety
///
/// `folio` must be valid, and `targets` the address of [`Targets`] that nobody else uses.
unsafe extern "C" fn target(folio: *mut bindings::folio, targets: c_ulong) -> *mut bindings::folio {
    // SAFETY: By the requirements of this function.
    let (targets, node) = unsafe {
        let targets = ptr::with_exposed_provenance_mut::<Targets>(targets);
        (&mut *targets, bindings::page_to_nid(folio.cast()))
    };

    match targets.next(node) {
        // SAFETY: There is a page, whose reference goes over; a page of its own is a folio.
        Some(pfn) => unsafe { bindings::pfn_folio(pfn) },
        None => ptr::null_mut(),
    }
}
