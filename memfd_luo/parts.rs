// SPDX-License-Identifier: GPL-2.0

//! The parts of the content of an incoming memfd: folios, and single pages.
//!
//! Single pages that follow each other in memory were preserved as one range, wherever they are in the
//! file, and are claimed as one.

use kernel::{
    kho::{
        self,
        PhysAddr,
        RestoredFolio,
        RestoredPages, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    shmem::Filling, //
};

use super::{
    abi::{
        memfd::{
            Extent,
            ExtentKind, //
        },
        Memory, //
    },
    layout::Layout,
    report::{
        address,
        malformed,
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
    /// They were preserved as one folio. Else they are single pages: of [`Singles`], or one that
    /// was preserved together with those of other files.
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

    /// Whether this is a folio that need not be taken apart, as one is that has a poisoned page: that
    /// must never come to the page allocator, not even as a part of something.
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

/// Single pages of a file that follow each other in memory.
pub(super) struct Single {
    start: PhysAddr,
    index: u64,
    pages: u32,
    /// The place among all of them, in the order of the file.
    place: u32,
}

impl Single {
    fn pages(&self) -> usize {
        self.pages as usize
    }

    fn end(&self) -> Option<u64> {
        let size = u64::from(self.pages).checked_mul(PAGE_SIZE as u64)?;
        self.start.get().checked_add(size)
    }

    /// Whether `next` is behind these pages in memory.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.end() == Some(next.start.get())
    }
}

/// The parts of a file that are single pages, in the order of memory.
///
/// What follows each other there was preserved as one, wherever it is in the file, and is claimed
/// as one.
pub(super) struct Singles {
    all: KVVec<Single>,
    /// Places for them, in the order of the file, for when they are claimed: nothing may fail then.
    claimed: KVVec<(u64, RestoredPages)>,
}

impl Singles {
    /// Takes them out of a list. What else there is, is for `visit`.
    pub(super) fn of<L: Layout, M: Memory<Error = Error>>(
        mem: &M,
        list: &L::List,
        mut visit: impl FnMut(&Part) -> Result,
    ) -> Result<Self> {
        let mut all = KVVec::new();

        L::walk(mem, list, |part| match part.folio {
            true => visit(part),
            false => {
                let single = Single {
                    start: part.start,
                    index: part.index,
                    pages: u32::try_from(part.pages)?,
                    place: u32::try_from(all.len())?,
                };
                Ok(all.push(single, GFP_KERNEL)?)
            }
        })?;
        all.sort_unstable_by_key(|single| single.start);
        Ok(Self {
            all,
            claimed: KVVec::new(),
        })
    }

    /// Those that follow each other, and how many pages they have.
    fn runs(all: &[Single]) -> impl Iterator<Item = (&[Single], PhysAddr, usize)> {
        all.chunk_by(Single::is_followed_by)
            .filter_map(|run| Some((run, run.first()?.start, run.iter().map(Single::pages).sum())))
    }

    /// How many pages there are, if no page is there twice.
    pub(super) fn pages(&self) -> usize {
        self.all.iter().map(Single::pages).sum()
    }

    /// Checks that all pages are there, no page twice, and leaves them there. Makes places for them.
    pub(super) fn find(&mut self) -> Result {
        let twice = |(one, next): (&Single, &Single)| one.end() > Some(next.start.get());
        if self.all.iter().zip(self.all.iter().skip(1)).any(twice) {
            return Err(malformed("memfd: a page is used twice"));
        }
        for (_, start, pages) in Self::runs(&self.all) {
            kho::check_pages(start, pages).map_err(|e| not_there(e, start))?;
        }

        for _ in &self.all {
            self.claimed.push((0, RestoredPages::none()), GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Puts all pages into `file`, which has `file_pages` pages. Whatever happens, they are claimed.
    pub(super) fn fill(self, file: &mut Filling, file_pages: u64) -> Result {
        let Self { all, mut claimed } = self;
        let mut result = Ok(());

        for (run, start, pages) in Self::runs(&all) {
            let mut pages = match RestoredPages::claim(start, pages) {
                Ok(pages) => pages,
                Err(e) => {
                    result = result.and(Err(e));
                    continue;
                }
            };
            for single in run {
                let pages = pages.split(single.pages());
                if let Some(place) = claimed.get_mut(single.place as usize) {
                    *place = (single.index, pages);
                }
            }
        }

        // After an error, what was claimed is of no use to anybody.
        result?;
        let claimed = claimed.into_iter();
        file.insert_all(
            claimed.map(|(index, pages)| (index, within(pages, index, file_pages))),
            true,
        )
    }

    /// Frees all pages.
    pub(super) fn free(&self) -> Result {
        let mut result = Ok(());

        for (_, start, pages) in Self::runs(&self.all) {
            result = result.and(RestoredPages::claim(start, pages).map(drop));
        }
        result
    }
}

/// Frees of pages, which begin at `index` of a file, what lies behind the file's end.
pub(super) fn within(mut pages: RestoredPages, index: u64, file_pages: u64) -> RestoredPages {
    let most = usize::try_from(file_pages.saturating_sub(index)).unwrap_or(usize::MAX);
    if most < pages.len() {
        pages.truncate(most);
    }
    pages
}
