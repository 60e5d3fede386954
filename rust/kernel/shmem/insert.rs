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
    mem::MaybeUninit,
    ptr::NonNull, //
};

/// How many pages are put into a file in one go.
const AT_ONCE: usize = 128;

impl Filling {
    /// Puts single pages into the file, from the index `index` on: [`Filling::insert`] for many.
    ///
    /// # Errors
    ///
    /// As those of [`Filling::insert`]. What is not in the file then is given to the page
    /// allocator.
    pub fn insert_pages(&mut self, pages: RestoredPages, index: u64, uptodate: bool) -> Result {
        self.insert_all(iter::once((index, pages)), uptodate)
    }

    /// Puts single pages into the file: all `pieces`, each from its index on. They had better come
    /// in the order of the file.
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

        let mut restored = 0;
        // SAFETY: The current task may sleep, as all users of this module. Nobody else inserts pages
        // (see `insert`), and `Filling::new` has accounted for these. By the type invariant of `Batch`
        // there are that many folios, to which the only references are ours.
        let result = to_result(unsafe {
            bindings::cond_resched();
            bindings::shmem_restore_pages(
                self.memfd().inode(),
                batch.index,
                batch.folios.as_mut_ptr().cast(),
                // Lossless: there are at most `AT_ONCE`.
                batch.len as c_uint,
                uptodate,
                self.lists(),
                &mut restored,
            )
        });
        batch.give(restored as usize);
        result
    }
}

/// Single pages that are to follow each other in a file. Dropping it gives them to the page
/// allocator.
///
/// # Invariants
///
/// The pointers from `given` to `len`, without `len`, are initialized and point to folios of one
/// page each; the only references to these are ours.
struct Batch {
    /// Where in the file the first one is to be, if none was given.
    index: usize,
    folios: [MaybeUninit<NonNull<bindings::folio>>; AT_ONCE],
    given: usize,
    len: usize,
}

impl Batch {
    fn new() -> Self {
        // INVARIANT: There are no pages.
        Self {
            index: 0,
            folios: [const { MaybeUninit::uninit() }; AT_ONCE],
            given: 0,
            len: 0,
        }
    }

    /// Takes pages that begin at `index`, as many as there is place for. False if that is none: it
    /// is full, or they are not what follows.
    fn take(&mut self, index: &mut usize, pages: &mut RestoredPages) -> bool {
        match self.len {
            0 => self.index = *index,
            AT_ONCE => return false,
            len if index.wrapping_sub(self.index) != len => return false,
            _ => {}
        }

        let places = self.folios.iter_mut().skip(self.len);
        for (place, folio) in places.zip(pages) {
            place.write(folio.into_raw());
            // INVARIANT: The pointer was written, and the reference goes over.
            self.len += 1;
            *index += 1;
        }
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
        for folio in self.folios.iter().take(self.len).skip(self.given) {
            // SAFETY: By the type invariant it is initialized, and the reference to the folio is
            // ours.
            unsafe { bindings::folio_put(folio.assume_init().as_ptr()) };
        }
    }
}
