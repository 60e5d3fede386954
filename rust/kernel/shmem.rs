// SPDX-License-Identifier: GPL-2.0

//! Files of shared memory (memfd): their attributes, their pages, and how they are made anew.
//!
//! - [`Memfd`] is an open file of shmem.
//! - [`FrozenMapping`] keeps the size and the pages of such a file as they are until it is dropped.
//!   [`RecordedMapping`] lists the pages that are inserted into holes meanwhile. [`Pins`] pins the
//!   pages that are present, in memory where they may stay for long. The resulting
//!   [`PinnedExtent`]s are preserved by [`PreservedExtents`] and [`SharedExtents`]. Dropping any of
//!   these undoes it.
//! - [`FrozenMapping::migrate`] migrates fragmented pages to contiguous memory.
//! - [`NewMemfd`] is a file to which nobody else has a reference yet, [`Target`] an empty one that
//!   somebody has; [`Filling`] inserts pages.
//!
//! All functions here may sleep, and take no lock beyond their own call.
//!
//! C headers: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h),
//! [`include/linux/memfd.h`](srctree/include/linux/memfd.h).

use crate::{
    bindings,
    fs::File,
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    }, //
};
use core::{
    mem::MaybeUninit,
    ops::{
        Deref,
        Range, //
    },
    ptr::{
        addr_of,
        NonNull, //
    },
    slice, //
};

mod extent;
mod insert;
mod migrate;
mod pins;
mod preserve;
mod record;
mod restore;
mod target;

pub use extent::PinnedExtent;
pub use pins::Pins;
pub use preserve::{
    PreservedExtents,
    SharedExtents, //
};
pub use record::{
    Journal,
    RecordedMapping, //
};
pub use restore::{
    Filling,
    NewMemfd, //
};
pub use target::Target;

/// The largest size of, and position in, a file.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// A number that two open files have in common exactly if they are the same file underneath.
pub fn inode_id(file: &File) -> usize {
    // SAFETY: The file is valid. Its inode never changes.
    unsafe { (*file.as_ptr()).f_inode as usize }
}

/// An open file of shared memory: one that `memfd_create()` made, or a regular file of a tmpfs.
///
/// # Invariants
///
/// The file belongs to shmem.
#[repr(transparent)]
pub struct Memfd(File);

// SAFETY: A `Memfd` is a `File` in all respects.
unsafe impl AlwaysRefCounted for Memfd {
    fn inc_ref(&self) {
        self.0.inc_ref();
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the requirements of this function; the layout is that of a `File`.
        unsafe { File::dec_ref(obj.cast()) };
    }
}

impl Deref for Memfd {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Memfd {
    /// Sees `file` as one of shared memory, if it is one. Those on huge pages of `hugetlbfs` are
    /// none.
    ///
    /// It may have names in a tmpfs, by which others can open it as well.
    pub fn from_file(file: &File) -> Option<&Self> {
        // SAFETY: The file is valid.
        let shmem = unsafe { bindings::shmem_file(file.as_ptr()) };

        // INVARIANT: The file belongs to shmem.
        // SAFETY: The layout of a `Memfd` is that of a `File`.
        shmem.then(|| unsafe { &*core::ptr::from_ref(file).cast() })
    }

    /// Whether the file has a name in a tmpfs at the moment.
    pub fn is_linked(&self) -> bool {
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`.
        unsafe { addr_of!((*self.inode()).__bindgen_anon_1.i_nlink).read_volatile() != 0 }
    }

    fn inode(&self) -> *mut bindings::inode {
        // SAFETY: The file is valid. Its inode never changes.
        unsafe { (*self.as_ptr()).f_inode }
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid. The mapping of an inode of shmem never changes.
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
        // SAFETY: The file is valid and belongs to shmem. This is meant as a `READ_ONCE()`.
        unsafe { addr_of!((*bindings::SHMEM_I(self.inode())).seals).read_volatile() }
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
        // Shmem keeps it there; an odd number stands for one that is elsewhere.
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
struct InodeLock<'a>(&'a Memfd);

impl<'a> InodeLock<'a> {
    fn new(memfd: &'a Memfd) -> Self {
        // SAFETY: The inode is valid.
        unsafe { bindings::inode_lock(memfd.inode()) };
        // INVARIANT: The lock was just taken.
        Self(memfd)
    }
}

impl Drop for InodeLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we hold the lock.
        unsafe { bindings::inode_unlock(self.0.inode()) };
    }
}

/// A memfd that can neither grow nor shrink nor lose pages, until this is dropped.
///
/// There can be a second one for the same file, as long as the file passes from one that preserves
/// it to another. The mapping thaws with the last.
///
/// It can still be written to within its size, and so pages can still appear in holes. They come
/// from where they can stay for long, as with somebody who pins memory for a device: not from KHO's
/// areas, from which they would have to be moved at the kexec.
///
/// # Invariants
///
/// The mapping is frozen, by us; `frozen_twice` of the inode says if by another one, too.
pub struct FrozenMapping {
    memfd: ARef<Memfd>,
    second: bool,
}

impl FrozenMapping {
    /// Freezes the mapping of `memfd`.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if two have frozen it already.
    pub fn new(memfd: &Memfd) -> Result<Self> {
        let _lock = InodeLock::new(memfd);

        // SAFETY: The inode belongs to shmem, and its lock is held.
        let second = unsafe {
            let info = bindings::SHMEM_I(memfd.inode());
            let frozen = bindings::shmem_frozen(memfd.inode());
            if (*info).frozen_twice {
                return Err(EBUSY);
            }
            bindings::shmem_freeze(memfd.inode(), true);
            (*info).frozen_twice = frozen;
            frozen
        };

        // INVARIANT: It is frozen, and the inode says if it was so before.
        Ok(Self {
            memfd: memfd.into(),
            second,
        })
    }

    /// Whether another one had frozen the mapping when this one did.
    pub fn is_second(&self) -> bool {
        self.second
    }

    /// How many pages there are: of the file, of what lies behind its end, and on swap.
    ///
    /// While user space runs, the number may have changed by the time it is returned.
    pub fn populated_pages(&self) -> u64 {
        // SAFETY: Inode and mapping are valid. These are meant as `READ_ONCE()`s.
        let (present, swapped) = unsafe {
            (
                addr_of!((*self.memfd.mapping()).nrpages).read_volatile(),
                addr_of!((*bindings::SHMEM_I(self.memfd.inode())).swapped).read_volatile(),
            )
        };
        present.saturating_add(swapped) as u64
    }

    /// Whether a page of the file is known to be poisoned. All that are there must be pinned.
    pub fn has_poison(&self) -> bool {
        // SAFETY: The mapping is valid, and belongs to shmem.
        unsafe { bindings::shmem_has_poison(self.memfd.mapping()) }
    }

    /// Goes through the pages that are there in a range of the file; see [`Pins`].
    ///
    /// What lies behind the end of the file is left out. A folio that lies only partly in the range
    /// counts as lying in it. Folios of one order that follow each other come as one extent if
    /// `runs` is set; else each single page and each folio comes alone.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there can be no such range.
    pub fn pins(&self, range: Range<u64>, runs: bool) -> Result<Pins<'_>> {
        let end = range.end.min(self.memfd.size().div_ceil(1 << PAGE_SHIFT));

        Ok(Pins::new(
            self,
            usize::try_from(range.start)?,
            usize::try_from(end)?,
            runs,
        ))
    }
}

impl Deref for FrozenMapping {
    type Target = Memfd;

    fn deref(&self) -> &Memfd {
        &self.memfd
    }
}

impl Drop for FrozenMapping {
    fn drop(&mut self) {
        let _lock = InodeLock::new(&self.memfd);
        // SAFETY: The inode belongs to shmem, and its lock is held. By the type invariant we froze
        // the mapping; if another one did, too, it stays frozen for that one.
        unsafe {
            let info = bindings::SHMEM_I(self.memfd.inode());
            let twice = core::mem::replace(&mut (*info).frozen_twice, false);
            bindings::shmem_freeze(self.memfd.inode(), twice);
        }
    }
}
