// SPDX-License-Identifier: GPL-2.0

//! Migrates pages of a memfd, while user space goes on using them.
//!
//! - Fragmented pages are migrated to contiguous memory. Before the next kernel has any process,
//!   KHO's work there grows with the number of preserved ranges, in memblock with the square of
//!   those that are not adjacent. Migration takes longer than that, but happens while the workload
//!   runs.
//! - Pages in memory that is needed to start the next kernel are migrated out of it.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h).

use super::{
    pins::pause,
    preserve::MemoryRun,
    FrozenMapping,
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

/// A file with so many short runs is fragmented.
const MANY: usize = 64;

/// Fewer pages are left to [`Pins`](super::Pins), which migrates them one by one.
const FEW: usize = 16;

/// The largest and the smallest order of the blocks that pages are migrated to.
const ORDERS: (u32, u32) = (9, 4);

/// How many pages are migrated at once: as many as `migrate_pages()` batches.
const BATCH: usize = 512;

/// The ranges of the file whose pages are in short runs, or [`None`] if there are few of these.
///
/// `extents` are in the order of memory, and make up `runs`. Large folios are not counted.
///
/// # Errors
///
/// [`ENOMEM`].
pub(super) fn fragmented(
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
    /// Migrates the single pages in `ranges` of the file to contiguous memory, as far as possible.
    ///
    /// Pages that are pinned stay where they are, and so do all when there is no contiguous memory.
    /// A page stays on its node. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINTR`] if the task is being killed.
    /// - [`ENOMEM`].
    ///
    /// C counterpart: none; it is done by `migrate_pages()`.
    pub fn migrate(&self, ranges: &[Range<usize>]) -> Result {
        let mut migration = Migration::new()?;
        let mut pages = ranges.iter().cloned().flatten();

        migration.targets.left = ranges.iter().map(Range::len).sum();
        loop {
            pause()?;
            migration.indices.clear();
            for index in pages.by_ref().take(BATCH) {
                migration.indices.push(index, GFP_KERNEL)?;
            }
            if migration.indices.is_empty() || !migration.run(self) {
                return Ok(());
            }
        }
    }
}

/// A migration of pages of a file.
pub(super) struct Migration {
    /// The indices of the next pages.
    indices: KVec<usize>,
    targets: Targets,
}

impl Migration {
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        // Pages in per-CPU batches are not on the LRU list yet, and cannot be isolated.
        // SAFETY: The current task may sleep.
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

    /// Migrates the single pages in a range of the file that cannot be pinned for long, if there
    /// are enough of them. Returns the index up to which the range was searched.
    pub(super) fn migrate_unpinnable(
        &mut self,
        mapping: &FrozenMapping,
        range: Range<usize>,
    ) -> usize {
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
            self.run(mapping);
        }
        until
    }

    /// Migrates the pages at `indices`, as far as possible. False if there is no memory left.
    fn run(&mut self, mapping: &FrozenMapping) -> bool {
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

/// Free pages to migrate to: a block for each node that has some.
struct Targets {
    /// How many pages are still to be migrated, at most.
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

/// A contiguous block of memory to migrate to, used from its first page on.
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

/// The page that `folio`, a single page, is to be migrated to; null if there is none. Migration
/// frees the page if it does not use it.
///
/// # Safety
///
/// `folio` must be valid, and `targets` the address of [`Targets`] that nobody else uses.
unsafe extern "C" fn target(folio: *mut bindings::folio, targets: c_ulong) -> *mut bindings::folio {
    // SAFETY: By the requirements of this function `folio` is valid, and `targets` is the address
    // of a `Targets` that nobody else uses.
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
