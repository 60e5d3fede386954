// SPDX-License-Identifier: GPL-2.0

//! Files of shared memory (memfd): their pages, and how they are made anew.
//!
//! - [`Memfd`] is an open file of shmem; what all memfds have is in [`memfd`](crate::memfd).
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
//! C header: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h).

use crate::{
    bindings,
    fs::File,
    memfd::{
        InMemory,
        InodeLock,
        MemoryFile, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    }, //
};
use core::{
    ops::{
        Deref,
        Range, //
    },
    ptr::{
        addr_of,
        NonNull, //
    }, //
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
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
pub(crate) use pins::pause;
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

pub use crate::memfd::{
    inode_id,
    MAX_SIZE, //
};

/// An open file of shared memory: one that `memfd_create()` made, or a regular file of a tmpfs.
///
/// # Invariants
///
/// The file belongs to shmem.
#[repr(transparent)]
pub struct Memfd(MemoryFile);

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
    type Target = MemoryFile;

    fn deref(&self) -> &MemoryFile {
        &self.0
    }
}

// SAFETY: A `Memfd` has the layout of a `File`, and shmem has made its inode.
unsafe impl InMemory for Memfd {}

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
