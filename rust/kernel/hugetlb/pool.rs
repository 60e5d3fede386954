// SPDX-License-Identifier: GPL-2.0

//! The pools of huge pages, and what the previous kernel has handed over of them: [`expect`] and
//! [`discard`].

use crate::{
    bindings,
    kho::{
        PhysAddr,
        RestoredFolio,
        RestoredPages, //
    },
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Announces that the previous kernel handed over `folios` huge pages of `order`, one of which is at
/// `at`, and all in the same node. To be called before HugeTLB allocates its pools, which then
/// allocate fewer.
///
/// False if that is not taken into account.
pub fn expect(order: u32, at: PhysAddr, folios: u64) -> bool {
    let (Ok(pfn), Ok(folios)) = (
        usize::try_from(at.get() >> PAGE_SHIFT),
        usize::try_from(folios),
    ) else {
        return false;
    };

    // SAFETY: The function takes any numbers.
    unsafe { bindings::hugetlb_expect(order, pfn, folios) }
}

/// Claims the preserved folio of `order` at `at` and frees it: it goes to the pool of its size,
/// which has counted it from the boot on; or, if there is no pool, to the page allocator.
///
/// # Errors
///
/// [`ENOENT`] or [`EMSGSIZE`] if no folio of that order is preserved at `at`.
pub fn discard(at: PhysAddr, order: u32) -> Result {
    // SAFETY: The function takes any number.
    let has_pool = unsafe { !bindings::size_to_hstate(1 << (order + PAGE_SHIFT as u32)).is_null() };

    if !has_pool || crate::kho::is_poisoned(at, 1 << (order + PAGE_SHIFT as u32)) {
        return RestoredPages::claim(at, 1 << order).map(drop);
    }
    let folio = RestoredFolio::claim_of(at, order)?;
    // SAFETY: The only reference to the folio is ours, and goes over.
    unsafe { bindings::hugetlb_discard_folio(folio.as_ptr()) };
    Ok(())
}
