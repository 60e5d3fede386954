// SPDX-License-Identifier: GPL-2.0

//! A part of the content of an incoming memfd: a folio, or single pages that are contiguous.

use kernel::{
    kho::{
        self,
        PhysAddr,
        RestoredFolio,
        RestoredPages, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    shmem::Filling, //
};

use super::{
    abi::memfd::{
        Extent,
        ExtentKind, //
    },
    report::{
        address,
        not_there, //
    }, //
};

/// A part of the content of an incoming memfd.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) start: PhysAddr,
    pub(super) index: u64,
    /// How many pages.
    pub(super) pages: usize,
    /// They were preserved as one folio. Else they are single pages: of
    /// [`Singles`](super::singles::Singles), or one that was preserved together with those of other
    /// files.
    pub(super) folio: bool,
    /// They have content; else they read as zeros.
    pub(super) uptodate: bool,
}

impl Part {
    /// The pages of an extent.
    pub(super) fn of(extent: &Extent) -> Result<Self> {
        Ok(Self {
            start: address(extent.start)?,
            index: extent.index,
            pages: usize::try_from(extent.pages)?,
            folio: extent.kind != ExtentKind::Pages,
            uptodate: true,
        })
    }

    /// Checks that the pages are there, leaves them there, and reports if they are not.
    pub(super) fn find(&self) -> Result {
        self.check().map_err(|e| not_there(e, self.start))
    }

    /// Checks that the pages are there, and leaves them there.
    fn check(&self) -> Result {
        match self.folio {
            true if kho::preserved_size(self.start)? != self.pages << PAGE_SHIFT => Err(EINVAL),
            true => Ok(()),
            false => kho::check_shared(self.start),
        }
    }

    /// Puts a folio into `file`, which has `file_pages` pages.
    ///
    /// Whatever happens, it is claimed.
    pub(super) fn fill(&self, file: &mut Filling, file_pages: u64) -> Result {
        if self.stays_whole() && self.pages <= 1 << file.max_order() {
            return file.insert(RestoredFolio::claim(self.start)?, self.index, self.uptodate);
        }

        let pages = within(self.claim_pages()?, self.index, file_pages);
        file.insert_pages(pages, self.index, self.uptodate)
    }

    /// Whether this is a folio that need not be taken apart, as one is that has a poisoned page:
    /// that must never come to the page allocator, not even as a part of something.
    fn stays_whole(&self) -> bool {
        self.folio && !kho::is_poisoned(self.start, self.pages << PAGE_SHIFT)
    }

    /// Claims the pages, each by itself.
    fn claim_pages(&self) -> Result<RestoredPages> {
        match self.folio {
            true => RestoredPages::claim(self.start, self.pages),
            false => RestoredPages::claim_shared(self.start),
        }
    }

    /// Frees the pages.
    pub(super) fn free(&self) -> Result {
        match self.stays_whole() {
            true => RestoredFolio::claim(self.start).map(drop),
            false => self.claim_pages().map(drop),
        }
    }
}

/// Frees those pages, of some that begin at `index`, that are beyond the end of the file.
pub(super) fn within(mut pages: RestoredPages, index: u64, file_pages: u64) -> RestoredPages {
    let most = usize::try_from(file_pages.saturating_sub(index)).unwrap_or(usize::MAX);
    if most < pages.len() {
        pages.truncate(most);
    }
    pages
}
