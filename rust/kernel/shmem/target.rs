// SPDX-License-Identifier: GPL-2.0

//! An empty file of somebody's that preserved pages are put into: [`Target`].

use super::{
    Filling,
    Memfd, //
};
use crate::{
    bindings,
    error::to_result,
    fs::{
        file::flags,
        File, //
    },
    prelude::*,
    sync::aref::ARef,
    types::NotThreadSafe, //
};

/// An empty file into which nobody else puts pages, while others may have it open and mapped. To them
/// its holes are what is beyond the end of a file: mapped, an access is `SIGBUS`.
///
/// Its inode is locked. Unless it is [finished](Filling::into_file), the file is empty again when this
/// is dropped.
///
/// # Invariants
///
/// The file is claimed by `shmem_target_claim()`, by this task, which so holds the lock of the inode.
pub struct Target {
    memfd: ARef<Memfd>,
    pub(super) finished: bool,
    // The task that takes the lock gives it back.
    _not_thread_safe: NotThreadSafe,
}

impl Target {
    /// Claims a file.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if it is no file of shmem.
    /// - [`EBADF`] if it is not open for reading and writing.
    /// - [`EPERM`] if it must not be written to, or grow.
    /// - [`EBUSY`] if it is being preserved, or written to.
    /// - [`ENOTEMPTY`] if there is anything in it.
    pub fn new(file: &File) -> Result<Self> {
        let memfd: ARef<Memfd> = Memfd::from_file(file).ok_or(EINVAL)?.into();
        if memfd.flags() & flags::O_ACCMODE != flags::O_RDWR {
            return Err(EBADF);
        }

        // SAFETY: The inode is valid and belongs to shmem.
        to_result(unsafe { bindings::shmem_target_claim(memfd.inode()) })?;
        // INVARIANT: It has just been claimed, and so locked.
        Ok(Self {
            memfd,
            finished: false,
            _not_thread_safe: NotThreadSafe,
        })
    }

    pub(super) fn memfd(&self) -> &ARef<Memfd> {
        &self.memfd
    }

    /// The seals of the file.
    pub fn seals(&self) -> u32 {
        self.memfd.seals()
    }

    /// Sets the size in bytes. All of it is a hole.
    ///
    /// # Errors
    ///
    /// [`EFBIG`] if no file can have this size.
    pub fn set_size(&mut self, size: u64) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;

        // SAFETY: The inode is valid, and by the type invariant it is locked.
        unsafe { bindings::i_size_write(self.memfd.inode(), size) };
        Ok(())
    }

    /// Begins to put pages into the file, and accounts for `pages` of them.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the limits of the system or of the file's tmpfs are exceeded, `EDQUOT` if its
    /// owner's are.
    pub fn fill(self, pages: usize) -> Result<Filling> {
        Filling::new(self.into(), pages)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the file is claimed.
        unsafe {
            if self.finished {
                bindings::shmem_target_complete(self.memfd.inode());
            } else {
                bindings::shmem_target_empty(self.memfd.inode());
            }
            bindings::shmem_target_release(self.memfd.inode());
        }
    }
}
