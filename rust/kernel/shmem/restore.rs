// SPDX-License-Identifier: GPL-2.0

//! A file that is made from preserved pages: [`NewMemfd`] and [`Filling`].

use super::{
    Memfd,
    Target, //
};
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    kho::RestoredFolio,
    memfd::NewFile,
    prelude::*,
    sync::aref::ARef, //
};

/// A memfd of shmem to which nobody else has a reference yet.
pub type NewMemfd = NewFile<Memfd>;

impl NewFile<Memfd> {
    /// Makes a memfd. The `name` is taken as it is, so it should begin with `memfd:`.
    ///
    /// It is as `memfd_create()` makes it with `MFD_ALLOW_SEALING`: empty, without seals, open for
    /// reading and writing, with all permissions for everybody.
    ///
    /// # Errors
    ///
    /// - [`ENFILE`] if the system has too many open files.
    /// - [`ENOMEM`] if memory is short, or [`ENOSPC`] if it is for an inode.
    ///
    /// C counterpart: `memfd_alloc_file()`.
    pub fn new(name: &CStr) -> Result<Self> {
        // SAFETY: `name` is a C string that the function copies.
        let file = from_err_ptr(unsafe {
            bindings::memfd_alloc_file(name.as_char_ptr(), bindings::MFD_ALLOW_SEALING)
        })?;

        // SAFETY: The function made a file of shmem, and a reference to it that is ours.
        unsafe { Self::from_raw(file) }
    }

    /// Begins to put pages into the file, and accounts for `pages` of them.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the system's limits for memory are exceeded.
    pub fn fill(self, pages: usize) -> Result<Filling> {
        Filling::new(self.into(), pages)
    }
}

/// A file of which only we insert the pages.
pub(super) enum Ours {
    New(NewMemfd),
    Target(Target),
}

impl From<NewMemfd> for Ours {
    fn from(memfd: NewMemfd) -> Self {
        Self::New(memfd)
    }
}

impl From<Target> for Ours {
    fn from(target: Target) -> Self {
        Self::Target(target)
    }
}

/// A [`NewMemfd`] or a [`Target`] that pages are put into.
///
/// # Invariants
///
/// `shmem_restore_begin()` has accounted for `accounted` pages.
pub struct Filling {
    file: Ours,
    /// For how many pages the file's account was charged, and how many of them are not there yet.
    accounted: usize,
    left: usize,
}

impl Filling {
    pub(super) fn new(file: Ours, pages: usize) -> Result<Self> {
        // The function takes a signed number on its way.
        isize::try_from(pages)?;

        let mut filling = Self {
            file,
            accounted: 0,
            left: 0,
        };
        // SAFETY: The inode is valid and belongs to shmem, and nobody else inserts pages.
        to_result(unsafe { bindings::shmem_restore_begin(filling.memfd().inode(), pages) })?;
        // INVARIANT: The pages have just been accounted for.
        filling.accounted = pages;
        filling.left = pages;
        Ok(filling)
    }

    pub(super) fn memfd(&self) -> &ARef<Memfd> {
        match &self.file {
            Ours::New(NewFile(memfd)) => memfd,
            Ours::Target(target) => target.memfd(),
        }
    }

    /// Whether pages go on LRU lists as they come. Those of a target do so in the end.
    pub(super) fn lists(&self) -> bool {
        matches!(self.file, Ours::New(_))
    }

    /// The finished file.
    pub fn into_file(mut self) -> ARef<File> {
        let file = self.memfd().clone();
        if let Ours::Target(target) = &mut self.file {
            target.finished = true;
        }

        // Pages that were accounted for and not inserted are given back before the file is used.
        drop(self);
        // SAFETY: The layout of a `Memfd` is that of a `File`, and the reference goes over.
        unsafe { ARef::from_raw(ARef::into_raw(file).cast()) }
    }

    /// The largest order of a folio that the file can hold.
    pub fn max_order(&self) -> u32 {
        // SAFETY: The mapping is valid.
        unsafe { bindings::mapping_max_folio_order(self.memfd().mapping()) }
    }

    /// Puts `folio` at the index `index`, which is counted in pages. It then counts as dirty.
    ///
    /// With `uptodate` false its content is not used: it reads as zeros.
    ///
    /// # Errors
    ///
    /// On error the folio is given to the page allocator.
    ///
    /// - [`EINVAL`] if a folio of its order cannot be at that index, or not in the file at all.
    /// - [`EEXIST`] if there is one already.
    /// - [`ENOSPC`] if there are more pages than were accounted for.
    ///
    /// A shortage of memory is no error: the folio is there already, and what is in it would be
    /// lost. For the same reason it is charged without reclaim: to the current task's control
    /// group, or to the nearest one above it that has room.
    pub fn insert(&mut self, folio: RestoredFolio, index: u64, uptodate: bool) -> Result {
        // SAFETY: The current task may sleep, as all users of this module.
        unsafe { bindings::cond_resched() };

        let index = usize::try_from(index)?;
        let order = folio.order();
        let pages = 1_usize << order;
        if order > self.max_order() || index % pages != 0 {
            return Err(EINVAL);
        }
        self.take(pages)?;

        let folio = folio.into_raw();
        // SAFETY: Nobody else inserts pages: by their type invariants nobody else has a `NewMemfd`, and
        // a `Target` is claimed. By ours it was begun. By the type invariant of `RestoredFolio` the
        // only reference to the folio is ours, and its index suits its order.
        let result = to_result(unsafe {
            bindings::shmem_restore_folio(
                self.memfd().inode(),
                index,
                folio.as_ptr(),
                uptodate,
                self.lists(),
            )
        });
        if result.is_err() {
            // SAFETY: The reference is still ours.
            unsafe { bindings::folio_put(folio.as_ptr()) };
        }
        result
    }

    /// Takes some pages from the account.
    pub(super) fn take(&mut self, pages: usize) -> Result {
        self.left = self.left.checked_sub(pages).ok_or(ENOSPC)?;
        Ok(())
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it was begun with that number.
        unsafe { bindings::shmem_restore_end(self.memfd().inode(), self.accounted) };
    }
}
