// SPDX-License-Identifier: GPL-2.0

//! Pages that are preserved where they are, whoever owns them: [`Preservation`].

use crate::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Pages that KHO preserves. Dropping this unpreserves them.
///
/// # Invariants
///
/// The pages are preserved by KHO: as folios of the order `order` if that is not 0, else as a
/// range.
pub(crate) struct Preservation {
    pfn: usize,
    pages: usize,
    order: u32,
}

impl Preservation {
    /// C counterparts: `kho_preserve_pages()`, `kho_preserve_folio()`.
    pub(crate) fn new(pfn: usize, pages: usize, order: u32) -> Result<Self> {
        // INVARIANT: Nothing is preserved yet.
        let mut preserved = Self {
            pfn,
            pages: 0,
            order,
        };
        let step = match order {
            0 => pages,
            _ => 1 << order,
        };

        while preserved.pages < pages {
            let next = pfn + preserved.pages;
            // SAFETY: KHO only records where the pages are. There are pages: each caller has pins on
            // them, or has looked up that the previous kernel preserved them.
            to_result(unsafe {
                match order {
                    0 => bindings::kho_preserve_pages(bindings::pfn_to_page(next), pages),
                    _ => bindings::kho_preserve_folio(bindings::pfn_folio(next)),
                }
            })?;
            // INVARIANT: The pages have just been preserved.
            preserved.pages += step;
        }
        Ok(preserved)
    }
}

impl Drop for Preservation {
    fn drop(&mut self) {
        if self.order == 0 && self.pages > 0 {
            // SAFETY: By the type invariant this range was preserved.
            unsafe {
                bindings::kho_unpreserve_pages(bindings::pfn_to_page(self.pfn), self.pages);
            }
            return;
        }
        for pfn in (self.pfn..self.pfn + self.pages).step_by(1 << self.order) {
            // SAFETY: By the type invariant this folio was preserved.
            unsafe { bindings::kho_unpreserve_folio(bindings::pfn_folio(pfn)) };
        }
    }
}
