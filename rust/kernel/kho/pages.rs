// SPDX-License-Identifier: GPL-2.0

//! Memory of the previous kernel that this one goes on using as pages, whatever is in them.
//!
//! Where KHO shall hand over a value of a known type, [`Restored`](super::Restored) is simpler.

use super::{
    block_size,
    is_poisoned,
    preserved_order,
    preserved_size,
    release,
    PhysAddr, //
    CLAIMS,
};
use crate::{
    bindings,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// A copy of the value that the previous kernel preserved at `phys`, which stays preserved.
///
/// # Errors
///
/// - [`EINVAL`] if `phys` is not the start of a page.
/// - [`ENOENT`] if no preserved block starts there, or somebody has claimed it.
/// - [`EMSGSIZE`] if the block that starts there is too small for a `T`.
/// - [`EHWPOISON`] if a page of it is poisoned.
/// - [`ENOMEM`] if there is no memory for the copy.
pub fn copy_of<T: FromBytes>(phys: PhysAddr) -> Result<KBox<T>> {
    let mut copy = KBox::<T>::new_uninit(GFP_KERNEL)?;
    let to = copy.as_mut_ptr().cast();

    // Nobody claims the block, and frees it, while it is copied.
    let _claiming = CLAIMS.lock();
    if preserved_size(phys)? < size_of::<T>() {
        return Err(EMSGSIZE);
    }
    if is_poisoned(phys, size_of::<T>()) {
        return Err(EHWPOISON);
    }

    // SAFETY: A preserved block of that size starts at `phys`, as just checked, and stays
    // preserved, since claims wait for each other and we are one of them. So it is in the direct
    // map, and nobody writes to it. The copy is ours and large enough; one of the size of a page is
    // a whole page, as `copy_page()` wants it, since memory of a size that is a power of two is
    // aligned to it.
    unsafe {
        let from = bindings::phys_to_virt(phys.get());
        if size_of::<T>() == PAGE_SIZE {
            bindings::copy_page(to, from);
        } else {
            bindings::memcpy(to, from, size_of::<T>());
        }
    }

    // SAFETY: All bytes are initialized, and any bytes are a valid `T`.
    Ok(unsafe { copy.assume_init() })
}

/// Whether `pages` pages from `phys` on could be claimed by [`RestoredPages::claim`].
///
/// # Errors
///
/// - [`EINVAL`] if `phys` is not the start of a page, or there can be no such range.
/// - [`ENOENT`] if they are not all of some preserved blocks, or somebody has claimed them.
pub fn check_pages(phys: PhysAddr, pages: usize) -> Result {
    blocks(phys, pages, |_, _| Ok(()))
}

/// Goes through the preserved blocks that a range consists of, each of 2^n pages.
fn blocks(phys: PhysAddr, pages: usize, mut visit: impl FnMut(PhysAddr, u32) -> Result) -> Result {
    let (mut pfn, end) = pfn_range(phys, pages)?;

    while pfn < end {
        let start = PhysAddr::new((pfn << PAGE_SHIFT) as u64).ok_or(EINVAL)?;
        let order = preserved_order(start)?;

        if order > pfn.trailing_zeros() || end - pfn < 1 << order {
            return Err(ENOENT);
        }
        visit(start, order)?;
        pfn += 1 << order;
    }
    Ok(())
}

/// The numbers of the first page of a range, and of the one behind its last.
fn pfn_range(phys: PhysAddr, pages: usize) -> Result<(usize, usize)> {
    let address = usize::try_from(phys.get())?;
    let pfn = address >> PAGE_SHIFT;
    let end = pfn.checked_add(pages).ok_or(EINVAL)?;

    if address % PAGE_SIZE != 0 || end > usize::MAX >> PAGE_SHIFT {
        return Err(EINVAL);
    }
    Ok((pfn, end))
}

/// The largest order of a block whose pages may be claimed one by one. A description that says by
/// mistaken claim of a page that is part of a larger one, such as of a guest's memory, does no
/// harm.
const SHARED_ORDER: u32 = 5;

/// Whether the page at `phys` could be claimed by [`RestoredPages::claim_shared`].
///
/// # Errors
///
/// - [`EINVAL`] if `phys` is not the start of a page.
/// - [`ENOENT`] if the page is in no preserved block, or in a large one, or somebody has claimed
///   it.
pub fn check_shared(phys: PhysAddr) -> Result {
    shared_block(phys).map(|_| ())
}

/// Where the preserved block begins that the page at `phys` is in.
fn shared_block(phys: PhysAddr) -> Result<PhysAddr> {
    let (pfn, _) = pfn_range(phys, 1)?;
    let mut first = pfn;

    // A block begins at a multiple of its size: without the lowest bit, it may be one of the next.
    while first != 0 && pfn - first < 1 << SHARED_ORDER {
        let start = PhysAddr::new((first << PAGE_SHIFT) as u64).ok_or(EINVAL)?;

        match preserved_order(start) {
            Ok(order) if order <= SHARED_ORDER && pfn - first < 1 << order => {
                return Ok(start);
            }
            Ok(_) | Err(ENOENT) => first &= first - 1,
            Err(e) => return Err(e),
        }
    }
    Err(ENOENT)
}

/// A folio that the previous kernel preserved, claimed by this one.
///
/// Dropping it gives it to the page allocator.
///
/// # Invariants
///
/// `folio` is the only reference to a folio that KHO restored.
pub struct RestoredFolio {
    folio: NonNull<bindings::folio>,
}

// SAFETY: Folios may be used and freed by any thread.
unsafe impl Send for RestoredFolio {}
// SAFETY: There is nothing that changes the folio through a shared reference.
unsafe impl Sync for RestoredFolio {}

impl RestoredFolio {
    /// Claims the folio at `phys`. A claim succeeds once.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `phys` is not the start of a page.
    /// - [`ENOENT`] if no preserved folio starts there, or somebody has claimed it.
    ///
    /// C counterpart: `kho_restore_folio()`.
    pub fn claim(phys: PhysAddr) -> Result<Self> {
        // INVARIANT: KHO made the folio for us, with one reference to it.
        Ok(Self {
            folio: Self::claim_raw(phys, |order| block_size(order).map(drop))?,
        })
    }

    /// Claims the folio at `phys`, if its order is right.
    fn claim_raw(
        phys: PhysAddr,
        check: impl FnOnce(u32) -> Result,
    ) -> Result<NonNull<bindings::folio>> {
        let _claiming = CLAIMS.lock();
        check(preserved_order(phys)?)?;

        // SAFETY: A preserved block starts at `phys`, as just checked, and nobody claims it in
        // between, as claims wait for each other.
        NonNull::new(unsafe { bindings::kho_restore_folio(phys.get()) }).ok_or(ENOENT)
    }

    /// Claims the folio of `order` at `phys`, which may be larger than any that the page allocator
    /// has, for a caller that knows how to free it. A claim succeeds once.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `phys` is not the start of a page.
    /// - [`ENOENT`] if no preserved folio starts there, or somebody has claimed it.
    /// - [`EMSGSIZE`] if it has another order.
    #[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
    pub(crate) fn claim_of(phys: PhysAddr, order: u32) -> Result<NonNull<bindings::folio>> {
        Self::claim_raw(phys, |found| match found == order {
            true => Ok(()),
            false => Err(EMSGSIZE),
        })
    }

    /// The order of the folio: it has 2^order pages.
    pub fn order(&self) -> u32 {
        // SAFETY: By the type invariant the folio is valid.
        unsafe { bindings::folio_order(self.folio.as_ptr()) }
    }

    /// The folio, together with the reference to it.
    pub(crate) fn into_raw(self) -> NonNull<bindings::folio> {
        ManuallyDrop::new(self).folio
    }
}

impl Drop for RestoredFolio {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own the only reference, and KHO restores nothing that is
        // not in the direct map.
        unsafe { release(self.folio) };
    }
}

/// Pages in a row that the previous kernel preserved, claimed by this one.
///
/// An iterator that gives them out one by one, each as a folio of its own. Dropping it gives the
/// rest to the page allocator.
///
/// # Invariants
///
/// The pages with the numbers from `next` to `end`, without `end`, were restored by KHO as single
/// pages, and the only reference to each of them is ours.
pub struct RestoredPages {
    next: usize,
    end: usize,
}

impl RestoredPages {
    /// No pages.
    pub const fn none() -> Self {
        // INVARIANT: There is none.
        Self { next: 0, end: 0 }
    }

    /// Claims `pages` pages from `phys` on, which must be all of some preserved blocks. A claim
    /// succeeds once. A folio counts as such a block, too, which then falls apart.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `phys` is not the start of a page, or there can be no such range.
    /// - [`ENOENT`] if they are not all of some preserved blocks, or somebody has claimed them.
    ///
    /// C counterpart: `kho_restore_pages()`.
    pub fn claim(phys: PhysAddr, pages: usize) -> Result<Self> {
        let _claiming = CLAIMS.lock();
        check_pages(phys, pages)?;
        let (next, end) = pfn_range(phys, pages)?;

        blocks(phys, pages, |start, order| {
            // SAFETY: The block is preserved, as just checked, and nobody claims it in between, as
            // claims wait for each other.
            let page = unsafe { bindings::kho_restore_pages(start.get(), 1 << order) };
            if page.is_null() {
                return Err(ENOENT);
            }
            Ok(())
        })?;

        // INVARIANT: KHO made the pages for us, with one reference to each of them.
        Ok(Self { next, end })
    }

    /// Claims the page at `phys`, which may be one of a preserved block of at most 32 pages; the
    /// others may still be claimed. A claim succeeds once.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `phys` is not the start of a page.
    /// - [`ENOENT`] if the page is in no preserved block, or in a larger one, or somebody has
    ///   claimed it.
    ///
    /// C counterpart: `kho_restore_page_of()`.
    pub fn claim_shared(phys: PhysAddr) -> Result<Self> {
        let _claiming = CLAIMS.lock();
        let (next, end) = pfn_range(phys, 1)?;
        let block = shared_block(phys)?;

        // SAFETY: The function takes any addresses. Nobody claims any of the block in between, as
        // claims wait for each other.
        let page = unsafe { bindings::kho_restore_page_of(block.get(), phys.get()) };
        if page.is_null() {
            return Err(ENOENT);
        }

        // INVARIANT: KHO made the page for us, with one reference to it.
        Ok(Self { next, end })
    }

    /// Takes the first `count` pages out, or all if there are not more.
    pub fn split(&mut self, count: usize) -> Self {
        let next = self.next;
        // INVARIANT: The range becomes shorter.
        self.next = self.end.min(next.saturating_add(count));

        // INVARIANT: The references to these pages, which the range has just lost, go over.
        Self {
            next,
            end: self.next,
        }
    }

    /// Gives all but the first `count` pages to the page allocator.
    pub fn truncate(&mut self, count: usize) {
        let keep = self.split(count);
        *self = keep;
    }
}

impl Iterator for RestoredPages {
    type Item = RestoredFolio;

    fn next(&mut self) -> Option<RestoredFolio> {
        if self.next == self.end {
            return None;
        }

        // SAFETY: By the type invariant there is a page of that number, which is its own folio.
        let folio = NonNull::new(unsafe { bindings::pfn_folio(self.next) })?;
        // INVARIANT: The range becomes shorter.
        self.next += 1;

        // INVARIANT: The reference, which the range has just lost, goes to the folio.
        Some(RestoredFolio { folio })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let pages = self.end - self.next;
        (pages, Some(pages))
    }
}

impl ExactSizeIterator for RestoredPages {}

impl Drop for RestoredPages {
    fn drop(&mut self) {
        for folio in self {
            drop(folio);
        }
    }
}
