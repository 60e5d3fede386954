// SPDX-License-Identifier: GPL-2.0

//! Preserved pages that lie beside each other.
//!
//! Below [`Preserved`](super::Preserved). The next kernel reserves each preserved page in memblock,
//! whose list of regions is an array: the more of them lie apart, the longer each takes, before
//! anything else can run. Between pages that are allocated one by one lies what was allocated
//! meanwhile. So pages are allocated in blocks, the larger the more pages are in use, and a block
//! is freed as what it was allocated as, when none of its pages is in use: pages that are freed one
//! by one pile up in the page allocator's per-CPU lists.

use super::PhysAddr;
use crate::{
    alloc::Flags,
    bindings,
    error::to_result,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        static_mutex,
        StaticMutex, //
    }, //
};

/// At most 2^n pages are allocated at once. The per-CPU lists have no blocks of this order.
const MAX_ORDER: u32 = 4;

/// Some pages that were allocated together.
///
/// # Invariants
///
/// The 2^`order` pages from the number `first` on are in the direct map, were allocated as one
/// block, and are ours. Those whose bit in `free` is set are not in use; no other bits are set.
struct Block {
    first: usize,
    order: u32,
    free: u16,
}

impl Block {
    /// Allocates a block.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn new(order: u32, flags: Flags) -> Result<Self> {
        // SAFETY: The function has no requirements on its arguments.
        let page = unsafe { bindings::kho_alloc_pages(flags.as_raw(), order) };
        if page.is_null() {
            return Err(ENOMEM);
        }

        // INVARIANT: They are in the direct map as there is no `__GFP_HIGHMEM`. None is in use.
        Ok(Self {
            // SAFETY: The page was allocated.
            first: unsafe { bindings::page_to_pfn(page) },
            order,
            free: Self::all(order),
        })
    }

    /// The bits of all pages of a block.
    fn all(order: u32) -> u16 {
        u16::MAX >> (u16::BITS - (1 << order))
    }

    /// How many pages there are.
    fn pages(&self) -> usize {
        1 << self.order
    }

    fn is_unused(&self) -> bool {
        self.free == Self::all(self.order)
    }

    /// Takes a page that is not in use, and returns its number.
    fn take(&mut self) -> Option<usize> {
        let bit = self.free.checked_ilog2()?;

        // INVARIANT: The page is in use from here on.
        self.free &= !(1 << bit);
        Some(self.first + bit as usize)
    }

    /// Takes a page back, by its number.
    ///
    /// # Safety
    ///
    /// The page comes from [`Block::take`] of this block, and is not in use.
    unsafe fn put(&mut self, pfn: usize) {
        // INVARIANT: By the requirement of this function the page is one of this block.
        self.free |= 1 << (pfn - self.first);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.is_unused() {
            // SAFETY: By the type invariant the block was allocated like this, and no page is in
            // use.
            unsafe { bindings::__free_pages(bindings::pfn_to_page(self.first), self.order) };
        }
    }
}

struct Pool {
    /// In the order of their addresses.
    blocks: KVVec<Block>,
    /// How many pages are not in use.
    free: usize,
    /// How many are.
    used: usize,
    /// Near this page there is probably one that is not in use.
    near: usize,
}

static POOL: StaticMutex<Pool> = static_mutex!(
    Pool {
        blocks: KVVec::new(),
        free: 0,
        used: 0,
        near: 0,
    },
    "kho::POOL"
);

impl Pool {
    /// How many blocks begin before, or at, the page with this number.
    fn blocks_up_to(&self, pfn: usize) -> usize {
        self.blocks.partition_point(|block| block.first <= pfn)
    }

    /// Allocates a block: of one page, or of a quarter as many as are in use.
    fn refill(&mut self) -> Result {
        let order = (self.used / 4 + 1).ilog2().min(MAX_ORDER);

        self.blocks.reserve(1, GFP_KERNEL)?;
        // Several pages only if they are to be had for nothing.
        let block = match order {
            0 => Block::new(0, GFP_KERNEL),
            _ => {
                Block::new(order, GFP_NOWAIT | __GFP_NOWARN).or_else(|_| Block::new(0, GFP_KERNEL))
            }
        }?;

        self.near = block.first;
        self.free += block.pages();
        let place = self.blocks_up_to(block.first);
        // There is room.
        self.blocks
            .insert_within_capacity(place, block)
            .map_err(|_| ENOMEM)
    }

    /// Takes a page that is not in use, and returns its number.
    fn take(&mut self) -> Result<usize> {
        if self.free == 0 {
            self.refill()?;
        }

        // Few blocks have free pages and are not near.
        let near = self.blocks_up_to(self.near);
        let (before, behind) = self.blocks.split_at_mut(near);
        let mut blocks = Iterator::chain(before.iter_mut().rev(), behind);
        let pfn = blocks.find_map(Block::take).ok_or(ENOMEM)?;
        self.near = pfn;
        self.free -= 1;
        self.used += 1;
        Ok(pfn)
    }

    /// Takes a page back, by its number.
    ///
    /// # Safety
    ///
    /// The page comes from [`Pool::take`], and is not in use.
    unsafe fn put(&mut self, pfn: usize) {
        let Some(place) = self.blocks_up_to(pfn).checked_sub(1) else {
            return;
        };
        let Some(block) = self.blocks.get_mut(place) else {
            return;
        };

        // SAFETY: By the requirement of this function the page is in some block, and so in the last
        // that does not begin behind it.
        unsafe { block.put(pfn) };
        self.near = pfn;
        self.free += 1;
        self.used -= 1;
        if block.is_unused() {
            self.free -= block.pages();
            drop(self.blocks.remove(place));
        }
    }
}

/// A page that is zeroed and preserved, to be given to [`put`].
///
/// # Errors
///
/// [`ENOMEM`].
pub(super) fn take() -> Result<PhysAddr> {
    let mut pool = POOL.lock();

    let (pfn, phys) = loop {
        let pfn = pool.take()?;
        // Memory at address zero could not be told from none by the next kernel. It is kept for
        // good, so that it does not come again.
        if let Some(phys) = PhysAddr::new((pfn as u64) << PAGE_SHIFT) {
            break (pfn, phys);
        }
    };

    // SAFETY: The page is ours, in the direct map, and not in use.
    let result = to_result(unsafe {
        let page: *mut u8 = bindings::phys_to_virt(phys.get()).cast();
        page.write_bytes(0, PAGE_SIZE);
        bindings::kho_preserve_pages(bindings::pfn_to_page(pfn), 1)
    });
    if result.is_err() {
        // SAFETY: It was just taken.
        unsafe { pool.put(pfn) };
    }
    result.map(|()| phys)
}

/// Takes the mark of a page away and frees it.
///
/// # Safety
///
/// `phys` comes from [`take`], and the page is not in use.
pub(super) unsafe fn put(phys: PhysAddr) {
    let pfn = (phys.get() >> PAGE_SHIFT) as usize;

    // SAFETY: By the requirement of this function the page comes from `take`, which preserved it.
    unsafe { bindings::kho_unpreserve_pages(bindings::pfn_to_page(pfn), 1) };
    // SAFETY: By the requirement of this function the page comes from `take`, and is not in use.
    unsafe { POOL.lock().put(pfn) };
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(rust_kho_pool)]
mod tests {
    use super::*;
    use crate::{
        kho::Preserved,
        page::{
            Page,
            PAGE_SIZE, //
        }, //
    };

    type OnePage = Preserved<[u8; PAGE_SIZE]>;

    #[test]
    fn pages_lie_beside_each_other() -> Result {
        const PAGES: usize = 200;
        let mut preserved = KVec::new();
        let mut others = KVec::new();

        for _ in 0..PAGES {
            preserved.push(OnePage::new()?, GFP_KERNEL)?;
            others.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let mut at: KVec<u64> = KVec::with_capacity(PAGES, GFP_KERNEL)?;
        for page in &preserved {
            at.push(page.phys().get(), GFP_KERNEL)?;
            assert!(page.iter().all(|byte| *byte == 0));
        }
        at.sort_unstable();
        let near = at.iter().zip(at.iter().skip(1));
        let near = near.filter(|(one, next)| **one + PAGE_SIZE as u64 == **next);
        assert!(near.count() > PAGES / 4 * 3);
        Ok(())
    }

    #[test]
    fn blocks_go_with_their_pages() -> Result {
        const PAGES: usize = 200;
        let (used, free, blocks) = {
            let pool = POOL.lock();
            (pool.used, pool.free, pool.blocks.len())
        };

        let mut preserved = KVec::new();
        for _ in 0..PAGES {
            let mut page = OnePage::new()?;
            page.fill(1);
            preserved.push(Some(page), GFP_KERNEL)?;
        }
        assert!(POOL.lock().used == used + PAGES);

        // Of what is freed, pages are taken before new ones are allocated.
        for page in preserved.iter_mut().step_by(2) {
            *page = None;
        }
        let many = POOL.lock().blocks.len();
        for page in preserved.iter_mut().step_by(2) {
            let page = page.insert(OnePage::new()?);
            assert!(page.iter().all(|byte| *byte == 0));
        }
        assert!(POOL.lock().blocks.len() <= many + 1);

        drop(preserved);
        let pool = POOL.lock();
        assert!(pool.used == used);
        assert!(pool.free < free + (1 << MAX_ORDER));
        assert!(pool.blocks.len() <= blocks + 1);
        Ok(())
    }
}
