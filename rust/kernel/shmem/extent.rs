// SPDX-License-Identifier: GPL-2.0

//! Pages of a file that are pinned: [`PinnedExtent`].

use super::pins::MAX_RUN;
use crate::{
    bindings,
    kho::PhysAddr,
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Pages that follow each other in a file as they do in memory, and stay where they are.
///
/// They are any number of folios of one order and of one zone.
///
/// # Invariants
///
/// There are `pages` pages from the number `pfn` on. They are folios of the order `order`, all of
/// one zone. We own one pin on each folio.
pub struct PinnedExtent {
    pub(crate) pfn: usize,
    pub(super) index: usize,
    pub(super) pages: u32,
    pub(super) order: u32,
}

impl PinnedExtent {
    /// The pages of one folio.
    ///
    /// # Safety
    ///
    /// `folio` must be valid, with a pin that the caller owns and transfers. Its pages must stay
    /// in their file from `index` on.
    pub(crate) unsafe fn of_folio(folio: *mut bindings::folio, index: usize) -> Self {
        // SAFETY: The folio is valid, and is not split while it is pinned.
        let (pfn, order) = unsafe { (bindings::folio_pfn(folio), bindings::folio_order(folio)) };

        // INVARIANT: It is one folio, and the pin goes over.
        Self {
            pfn,
            index,
            pages: 1 << order,
            order,
        }
    }

    /// Where the first page is in memory.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if that is address zero, which could not be told from none.
    pub fn phys(&self) -> Result<PhysAddr> {
        PhysAddr::new((self.pfn as u64) << PAGE_SHIFT).ok_or(ENOMEM)
    }

    /// Where the first page is in the file.
    pub fn index(&self) -> u64 {
        self.index as u64
    }

    /// How many pages there are.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The order of each folio; 0 for single pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    pub(crate) fn end_index(&self) -> usize {
        self.index + self.pages as usize
    }

    /// Adds `next` behind our pages, or gives it back if it is not what follows them.
    pub fn append(&mut self, next: Self) -> Result<(), Self> {
        let Some(pages) = self.pages.checked_add(next.pages) else {
            return Err(next);
        };
        if self.end_index() != next.index || !self.is_followed_by(self.pages as usize, &next) {
            return Err(next);
        }

        // INVARIANT: The pages follow ours, are of our zone, and the pins on them go over.
        self.pages = pages;
        core::mem::forget(next);
        Ok(())
    }

    /// Whether `next` has folios of our order, which are in memory behind `pages` pages that begin
    /// with ours, in the same zone: KHO restores no range that lies in two.
    pub(super) fn is_followed_by(&self, pages: usize, next: &Self) -> bool {
        let follows = self.order == next.order && self.pfn + pages == next.pfn;

        // SAFETY: By the type invariants there are pages at these numbers.
        follows && unsafe { bindings::pfns_share_zone(self.pfn, next.pfn) }
    }
}

impl Drop for PinnedExtent {
    fn drop(&mut self) {
        // A large folio was pinned once.
        for pfn in (self.pfn..self.pfn + self.pages as usize).step_by(1 << self.order) {
            // SAFETY: By the type invariant there is a folio, and a pin on it is ours. The current
            // task may sleep, as all users of this module.
            unsafe {
                bindings::unpin_folio(bindings::pfn_folio(pfn));
                if pfn % MAX_RUN == 0 {
                    bindings::cond_resched();
                }
            }
        }
    }
}
