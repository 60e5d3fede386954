// SPDX-License-Identifier: GPL-2.0

//! Puts single pages into a new memfd, many at a time.
//!
//! One walk through the page cache, one lock and one update of each counter are enough for pages
//! that follow each other in the file, wherever they are in memory.

use super::Filling;
use crate::{
    bindings,
    error::to_result,
    kho::RestoredPages,
    prelude::*, //
};
use core::{
    iter,
    mem::MaybeUninit, //
};

/// How many pages are put into a file in one go.
const AT_ONCE: usize = 128;

impl Filling {
    /// Puts single pages into the file, from the index `index` on: [`Filling::insert`] for many.
    ///
    /// # Errors
    ///
    /// As those of [`Filling::insert`]. What is not in the file then is given to the page allocator.
    pub fn insert_pages(&mut self, pages: RestoredPages, index: u64, uptodate: bool) -> Result {
        self.insert_all(iter::once((index, pages)), uptodate)
    }

    /// Puts single pages into the file: all `pieces`, each from its index on. They had better come in
    /// the order of the file.
    ///
    /// # Errors
    ///
    /// Those of [`Filling::insert_pages`].
    pub fn insert_all(
        &mut self,
        pieces: impl Iterator<Item = (u64, RestoredPages)>,
        uptodate: bool,
    ) -> Result {
        let mut batch = Batch::new();

        for (index, mut pages) in pieces {
            let mut index = usize::try_from(index)?;
            while pages.len() > 0 {
                if !batch.take(&mut index, &mut pages) {
                    self.insert_batch(&mut batch, uptodate)?;
                }
            }
        }
        self.insert_batch(&mut batch, uptodate)
    }

    /// Puts all pages of a batch into the file. The batch is empty then, unless there was an error.
    fn insert_batch(&mut self, batch: &mut Batch, uptodate: bool) -> Result {
        if batch.len == 0 {
            return Ok(());
        }
        self.take(batch.len)?;

        let mut done = 0;
        // SAFETY: The current task may sleep, as all users of this module. The mapping is valid,
        // belongs to shmem, and nobody else has the file. Of the pages we own the only references.
        let result = to_result(unsafe {
            bindings::cond_resched();
            bindings::shmem_insert_pages(
                self.memfd.0.mapping(),
                batch.index,
                batch.pfns.as_ptr().cast(),
                batch.len,
                uptodate,
                &mut done,
            )
        });
        batch.give(done);
        result
    }
}

/// Single pages that are to follow each other in a file. Dropping it gives them to the page
/// allocator.
///
/// # Invariants
///
/// The numbers from `given` to `len`, without `len`, are initialized, and the only references to
/// these pages are ours.
struct Batch {
    /// Where in the file the first one is to be, if none was given.
    index: usize,
    pfns: [MaybeUninit<usize>; AT_ONCE],
    given: usize,
    len: usize,
}

impl Batch {
    fn new() -> Self {
        // INVARIANT: There are no pages.
        Self {
            index: 0,
            pfns: [const { MaybeUninit::uninit() }; AT_ONCE],
            given: 0,
            len: 0,
        }
    }

    /// Takes pages that begin at `index`, as many as there is place for. False if that is none: it is
    /// full, or they are not what follows.
    fn take(&mut self, index: &mut usize, pages: &mut RestoredPages) -> bool {
        match self.len {
            0 => self.index = *index,
            AT_ONCE => return false,
            len if index.wrapping_sub(self.index) != len => return false,
            _ => {}
        }

        let first = pages.pfn();
        let count = pages.len().min(AT_ONCE - self.len);
        let places = self.pfns.iter_mut().skip(self.len).take(count);
        for (place, pfn) in places.zip(first..) {
            place.write(pfn);
        }
        // INVARIANT: That many numbers were written, and the references go over.
        self.len += count;
        pages.give(count);
        *index += count;
        true
    }

    /// Gives the references to the first `count` pages away.
    fn give(&mut self, count: usize) {
        // INVARIANT: There are fewer pages.
        self.given = count;
        if count == self.len {
            self.given = 0;
            self.len = 0;
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for pfn in self.pfns.iter().take(self.len).skip(self.given) {
            // SAFETY: By the type invariant there is such a page, and the reference to it is ours.
            unsafe { bindings::folio_put(bindings::pfn_folio(pfn.assume_init_read())) };
        }
    }
}
