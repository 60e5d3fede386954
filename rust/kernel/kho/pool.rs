// SPDX-License-Identifier: GPL-2.0

//! Preserved pages that lie beside each other.
//!
//! Below [`Preserved`](super::Preserved). The next kernel reserves each preserved page in memblock,
//! whose list of regions is an array: the more of them lie apart, the longer each takes, before
//! anything else can run. Between pages that are allocated one by one lies what was allocated
//! meanwhile. So several are allocated at once, the more are in use the more of them.

use super::{
    lock_late,
    LateMutex,
    PhysAddr, //
};
use crate::{
    alloc::Flags,
    bindings,
    error::to_result,
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        MutexGuard,
        SetOnce, //
    }, //
};

/// At most 2^n pages are allocated at once.
const MAX_ORDER: u32 = 4;

/// Pages that were allocated, and are not in use yet.
///
/// # Invariants
///
/// The `left` pages from the number `next` on are zeroed, in the direct map, and each is a folio of
/// its own to which the only reference is ours.
struct Pool {
    next: usize,
    left: usize,
    /// How many are in use.
    used: usize,
}

static POOL: LateMutex<Pool> = SetOnce::new();

/// # Errors
///
/// [`ENOMEM`], if it is asked for first.
fn pool() -> Result<MutexGuard<'static, Pool>> {
    lock_late(&POOL, || {
        // INVARIANT: There is no page.
        let pool = Pool {
            next: 0,
            left: 0,
            used: 0,
        };
        new_mutex!(pool, "kho::POOL")
    })
}

impl Pool {
    /// Allocates pages: one, or a quarter of those in use.
    fn refill(&mut self) -> Result {
        let order = (self.used / 4 + 1).ilog2().min(MAX_ORDER);

        // Several only if they are to be had for nothing.
        match order {
            0 => self.allocate(0, GFP_KERNEL),
            _ => self
                .allocate(order, GFP_NOWAIT | __GFP_NOWARN)
                .or_else(|_| self.allocate(0, GFP_KERNEL)),
        }
    }

    /// Puts 2^order pages into the pool, in which there is none.
    fn allocate(&mut self, order: u32, flags: Flags) -> Result {
        // SAFETY: The function has no requirements on its arguments.
        let page = unsafe { bindings::alloc_pages((flags | __GFP_ZERO).as_raw(), order) };
        if page.is_null() {
            return Err(ENOMEM);
        }

        // INVARIANT: They are zeroed, and in the direct map as there is no `__GFP_HIGHMEM`. Split,
        // they are single pages, with one reference to each.
        // SAFETY: We have just allocated 2^order pages, not as one folio, and nobody knows them.
        self.next = unsafe {
            bindings::split_page(page, order);
            bindings::page_to_pfn(page)
        };
        self.left = 1 << order;
        Ok(())
    }

    /// Gives the first page away.
    fn skip(&mut self) {
        // INVARIANT: There is one less.
        self.next += 1;
        self.left -= 1;
    }

    /// Frees what is left.
    fn drain(&mut self) {
        for pfn in self.next..self.next + self.left {
            // SAFETY: By the type invariant the reference to this page is ours.
            unsafe { bindings::folio_put(bindings::pfn_folio(pfn)) };
        }
        // INVARIANT: There is none any more.
        self.left = 0;
    }
}

/// A page that is zeroed and preserved, to be given to [`put`].
///
/// # Errors
///
/// [`ENOMEM`].
pub(super) fn take() -> Result<PhysAddr> {
    let mut pool = pool()?;

    let phys = loop {
        if pool.left == 0 {
            pool.refill()?;
        }
        if let Some(phys) = PhysAddr::new((pool.next as u64) << PAGE_SHIFT) {
            break phys;
        }
        // Memory at address zero could not be told from none by the next kernel. It is kept for
        // good, so that it does not come again.
        pool.skip();
    };
    // SAFETY: By the type invariant the page is a folio, and ours.
    to_result(unsafe { bindings::kho_preserve_folio(bindings::pfn_folio(pool.next)) })?;

    // The reference goes to the caller.
    pool.skip();
    pool.used += 1;
    Ok(phys)
}

/// Takes the mark of a page away and frees it.
///
/// # Safety
///
/// `phys` comes from [`take`], and nobody uses the page any more.
pub(super) unsafe fn put(phys: PhysAddr) {
    // SAFETY: The page is in the direct map, it is preserved, and the caller gives the only reference
    // to it to us.
    unsafe { bindings::kho_unpreserve_free(bindings::phys_to_virt(phys.get())) };

    if let Ok(mut pool) = pool() {
        pool.used -= 1;
        if pool.left > pool.used {
            pool.drain();
        }
    }
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

    #[test]
    fn pages_lie_beside_each_other() -> Result {
        const PAGES: usize = 200;
        let mut preserved = KVec::new();
        let mut others = KVec::new();

        for _ in 0..PAGES {
            preserved.push(Preserved::<[u8; PAGE_SIZE]>::new()?, GFP_KERNEL)?;
            others.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let mut near = 0;
        let mut end = None;
        for page in &preserved {
            let at = page.phys().get();
            near += usize::from(end == Some(at));
            end = Some(at + PAGE_SIZE as u64);
            assert!(page.iter().all(|byte| *byte == 0));
        }
        assert!(near > PAGES / 4 * 3);

        // As many as there can be are left over, and go with those that are in use.
        while pool()?.left + 1 < 1 << MAX_ORDER {
            preserved.push(Preserved::new()?, GFP_KERNEL)?;
        }
        let (used, count) = (pool()?.used, preserved.len());
        while preserved.pop().is_some() {
            let pool = pool()?;
            assert!(pool.left <= pool.used);
        }
        assert!(pool()?.used == used - count);
        Ok(())
    }
}
