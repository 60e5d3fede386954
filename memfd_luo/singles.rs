// SPDX-License-Identifier: GPL-2.0

//! All single pages of an incoming memfd: [`Singles`].
//!
//! Single pages that are contiguous in memory were preserved as one range, wherever they are in the
//! file. They are checked and claimed as one range as well.

use kernel::{
    kho::{
        self,
        PhysAddr,
        RestoredPages, //
    },
    page::PAGE_SIZE,
    prelude::*,
    shmem::Filling, //
};

use super::{
    abi::Memory,
    layout::Layout,
    parts::{
        within,
        Part, //
    },
    report::{
        malformed,
        not_there, //
    }, //
};

/// A part of single pages, which are contiguous in memory and in the file.
struct Single {
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

    /// Whether `next` follows these pages in memory.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.end() == Some(next.start.get())
    }
}

/// The parts of a file that are single pages, in the order of memory.
pub(super) struct Singles {
    all: KVVec<Single>,
    /// Room for the claimed pages, in the order of the file: once they are claimed nothing may
    /// fail.
    claimed: KVVec<(u64, RestoredPages)>,
}

impl Singles {
    /// Collects them from a list. `visit` is called for all other parts.
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

    /// The runs of parts that are contiguous in memory: the parts, the first page, how many pages.
    fn runs(all: &[Single]) -> impl Iterator<Item = (&[Single], PhysAddr, usize)> {
        all.chunk_by(Single::is_followed_by)
            .filter_map(|run| Some((run, run.first()?.start, run.iter().map(Single::pages).sum())))
    }

    /// How many pages there are, if no page is there twice.
    pub(super) fn pages(&self) -> usize {
        self.all.iter().map(Single::pages).sum()
    }

    /// Checks that all pages are there and none is listed twice, and makes room to claim them.
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

    /// Claims all pages, whatever happens, and inserts them into `file`, which has `file_pages`
    /// pages.
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

        // After an error the file is not complete, and the claimed pages are freed.
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
