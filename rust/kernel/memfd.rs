// SPDX-License-Identifier: GPL-2.0

//! Files that `memfd_create()` makes, whatever their memory comes from: what they have beside their
//! content, and how they are made anew.
//!
//! - [`MemoryFile`] is an open file of shmem or hugetlbfs. What only one of the two has is in
//!   [`shmem`](crate::shmem) and [`hugetlb`](crate::hugetlb).
//! - [`NewFile`] is such a file to which nobody else has a reference yet.
//!
//! All functions here may sleep, and take no lock beyond their own call.
//!
//! C header: [`include/linux/memfd.h`](srctree/include/linux/memfd.h).

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    }, //
};
use core::{
    mem::MaybeUninit,
    ops::Deref,
    ptr::{
        addr_of,
        NonNull, //
    },
    slice, //
};

/// The largest size of, and position in, a file.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// A number that two open files have in common exactly if they are the same file underneath.
pub fn inode_id(file: &File) -> usize {
    // SAFETY: The file is valid. Its inode never changes.
    unsafe { (*file.as_ptr()).f_inode as usize }
}

/// An open file of shmem or hugetlbfs.
///
/// # Invariants
///
/// The file belongs to shmem or hugetlbfs.
#[repr(transparent)]
pub struct MemoryFile(File);

/// A file of one of the two.
///
/// # Safety
///
/// The type must have the layout of a [`File`], and whether a file is one of it must depend on the
/// inode only.
pub unsafe trait InMemory: AlwaysRefCounted + Deref<Target = MemoryFile> {}

impl Deref for MemoryFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl MemoryFile {
    pub(crate) fn inode(&self) -> *mut bindings::inode {
        // SAFETY: The file is valid. Its inode never changes.
        unsafe { (*self.as_ptr()).f_inode }
    }

    pub(crate) fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid. The mapping of such an inode never changes.
        unsafe { (*self.inode()).i_mapping }
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        // SAFETY: The inode is valid.
        let size = unsafe { bindings::i_size_read(self.inode()) };
        u64::try_from(size).unwrap_or(0)
    }

    /// The position, which may change at any time.
    pub fn position(&self) -> u64 {
        // SAFETY: The file is valid. This is meant as a `READ_ONCE()`.
        let position = unsafe { addr_of!((*self.as_ptr()).f_pos).read_volatile() };
        u64::try_from(position).unwrap_or(0)
    }

    /// The seals: a set of `F_SEAL_*`, which may become larger at any time.
    pub fn seals(&self) -> u32 {
        // SAFETY: The file is valid.
        let seals = unsafe { bindings::memfd_get_seals(self.as_ptr()) };
        // A file of another kind has none. By the type invariant this is not one.
        u32::try_from(seals).unwrap_or(0)
    }

    /// The permissions, without the type of the file.
    pub fn mode(&self) -> u32 {
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`.
        let mode = unsafe { addr_of!((*self.inode()).i_mode).read_volatile() };
        u32::from(mode) & bindings::S_IALLUGO
    }

    /// User and group that own the file, as seen by the initial user namespace.
    pub fn owner(&self) -> (u32, u32) {
        let inode = self.inode();
        // SAFETY: The inode is valid. These are meant as `READ_ONCE()`s.
        unsafe {
            (
                addr_of!((*inode).i_uid.val).read_volatile(),
                addr_of!((*inode).i_gid.val).read_volatile(),
            )
        }
    }

    /// Whether something else than mode and seals says who may do what: an access control list, or
    /// that the file is immutable or for appending only.
    pub fn has_other_restrictions(&self) -> bool {
        let inode = self.inode();
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`.
        let flags = unsafe { addr_of!((*inode).i_flags).read_volatile() };

        #[cfg(CONFIG_FS_POSIX_ACL)]
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`; the list is not followed.
        // Shmem keeps it there, hugetlbfs has none; an odd number stands for one that is elsewhere.
        let acl = unsafe { addr_of!((*inode).i_acl).read_volatile() } as usize;
        #[cfg(not(CONFIG_FS_POSIX_ACL))]
        let acl = 0;

        flags & (bindings::S_IMMUTABLE | bindings::S_APPEND) != 0 || (acl != 0 && acl % 2 == 0)
    }

    /// How many bytes the name has at the moment.
    pub fn name_len(&self) -> usize {
        // SAFETY: The file is valid, and has had its dentry since it was opened.
        unsafe { bindings::dentry_name_len((*self.as_ptr()).__bindgen_anon_1.f_path.dentry) }
    }

    /// Does something with the name, which begins with `memfd:` if `memfd_create()` made the file.
    pub fn with_name<T>(&self, act: impl FnOnce(&CStr) -> T) -> T {
        let mut snapshot = MaybeUninit::<bindings::name_snapshot>::uninit();
        let snapshot = snapshot.as_mut_ptr();

        // SAFETY: The file is valid, and has had its dentry since it was opened. The snapshot,
        // which may point into itself, stays where it is; it is initialized by the first call, and
        // until the last holds a name of that length, which has no NUL but the one behind it.
        unsafe {
            let dentry = (*self.as_ptr()).__bindgen_anon_1.f_path.dentry;
            bindings::take_dentry_name_snapshot(snapshot, dentry);
            let name = &(*snapshot).name;
            let len = name.__bindgen_anon_1.__bindgen_anon_1.len as usize;
            let text = slice::from_raw_parts(name.name, len + 1);
            let result = act(CStr::from_bytes_with_nul_unchecked(text));
            bindings::release_dentry_name_snapshot(snapshot);
            result
        }
    }
}

/// The lock of an inode, held.
///
/// # Invariants
///
/// We hold the lock.
pub(crate) struct InodeLock<'a>(&'a MemoryFile);

impl<'a> InodeLock<'a> {
    pub(crate) fn new(file: &'a MemoryFile) -> Self {
        // SAFETY: The inode is valid.
        unsafe { bindings::inode_lock(file.inode()) };
        // INVARIANT: The lock was just taken.
        Self(file)
    }
}

impl Drop for InodeLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we hold the lock.
        unsafe { bindings::inode_unlock(self.0.inode()) };
    }
}

/// A file to which nobody else has a reference yet.
///
/// # Invariants
///
/// Nobody else has a reference to the file.
pub struct NewFile<T: InMemory>(pub(crate) ARef<T>);

impl<T: InMemory> NewFile<T> {
    /// # Safety
    ///
    /// `file` must be null, or a file of the kind `T` with one reference to it that nobody else has.
    pub(crate) unsafe fn from_raw(file: *mut bindings::file) -> Result<Self> {
        let file = NonNull::new(file).ok_or(ENOMEM)?;

        // INVARIANT: By the requirement of this function nobody else has a reference to the file.
        // SAFETY: The reference goes over. By the requirement of `InMemory`, a `T` has the layout of
        // a file.
        Ok(Self(unsafe { ARef::from_raw(file.cast()) }))
    }

    /// Sets the permissions.
    pub fn set_mode(&mut self, mode: u32) {
        const ALL: bindings::umode_t = bindings::S_IALLUGO as bindings::umode_t;

        let _lock = InodeLock::new(&self.0);
        let inode = self.0.inode();

        // SAFETY: The inode is valid, and locked.
        unsafe { (*inode).i_mode = ((*inode).i_mode & !ALL) | (mode as bindings::umode_t & ALL) };
    }

    /// Sets user and group that own the file, as seen by the initial user namespace.
    pub fn set_owner(&mut self, (uid, gid): (u32, u32)) {
        let _lock = InodeLock::new(&self.0);
        let inode = self.0.inode();

        // SAFETY: The inode is valid, and locked.
        unsafe {
            (*inode).i_uid.val = uid;
            (*inode).i_gid.val = gid;
        }
    }

    /// Sets the size in bytes. All of it is a hole.
    ///
    /// # Errors
    ///
    /// [`EFBIG`] if no file can have this size.
    pub fn set_size(&mut self, size: u64) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;
        let _lock = InodeLock::new(&self.0);

        // SAFETY: The inode is valid, and locked.
        unsafe { bindings::i_size_write(self.0.inode(), size) };
        Ok(())
    }

    /// Adds seals, a set of `F_SEAL_*`. They do not bind whoever fills the file next.
    ///
    /// With `F_SEAL_EXEC`, an executable file is sealed against all writing, too.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there are unknown seals.
    /// - [`EPERM`] if the file is sealed against more seals, or not open for writing.
    ///
    /// C counterpart: `memfd_add_seals()`.
    pub fn add_seals(&mut self, seals: u32) -> Result {
        // SAFETY: The file is valid.
        to_result(unsafe { bindings::memfd_add_seals(self.0.as_ptr(), seals) })
    }

    /// Opens the same memory anew, with other flags: access mode and `O_*` of open files.
    ///
    /// # Errors
    ///
    /// - [`ENFILE`] if the system has too many open files.
    /// - [`ENOMEM`] if memory is short.
    /// - Any of a security module.
    pub fn reopen(self, flags: u32) -> Result<Self> {
        let file = self.0.as_ptr();

        // SAFETY: The file is valid, and so are its path and its credentials.
        let file = from_err_ptr(unsafe {
            bindings::dentry_open(
                &raw const (*file).__bindgen_anon_1.f_path,
                (flags | bindings::O_LARGEFILE) as c_int,
                (*file).f_cred,
            )
        })?;

        // SAFETY: The function opened the same inode, and the reference is ours.
        unsafe { Self::from_raw(file) }
    }

    /// Sets the position.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if no file can have this position.
    pub fn set_position(&mut self, position: u64) -> Result {
        let position = bindings::loff_t::try_from(position).map_err(|_| EINVAL)?;
        // SAFETY: The file is valid, and used by nobody else.
        let set = unsafe {
            bindings::vfs_setpos(self.0.as_ptr(), position, MAX_SIZE as bindings::loff_t)
        };

        if set == position {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }
}
