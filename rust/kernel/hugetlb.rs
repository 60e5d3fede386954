// SPDX-License-Identifier: GPL-2.0

//! Files of huge pages that `memfd_create(MFD_HUGETLB)` makes: their pages, and how they are made
//! anew.
//!
//! - [`HugeMemfd`] is such a file; what all memfds have is in [`memfd`](crate::memfd).
//! - [`FrozenFile`] keeps the size and the pages of a file as they are until it is dropped, lists
//!   the pages that are inserted into holes meanwhile, and pins those that are there, in memory
//!   where they may stay for long.
//! - [`NewHugeMemfd`] is a file to which nobody else has a reference yet; [`HugeFilling`] inserts
//!   restored pages, which count as allocated from the pool of their size.
//! - [`expect`] has the pools know early what the previous kernel handed over.
//!
//! Without `CONFIG_LIVEUPDATE_HUGETLB` no file is such a file, and none can be made: all of these
//! types are there, and all but what is needed to free preserved pages, or to leave them for the next
//! kernel, fails.
//!
//! All functions here may sleep, and take no lock beyond their own call.
//!
//! C header: [`include/linux/hugetlb_preserve.h`](srctree/include/linux/hugetlb_preserve.h).

use crate::{
    bindings,
    fs::File,
    kho::PhysAddr,
    memfd::{
        InMemory,
        MemoryFile,
        NewFile, //
    },
    page::PAGE_SHIFT,
    sync::aref::AlwaysRefCounted, //
};
use core::{
    ops::{
        Deref,
        Range, //
    },
    ptr::NonNull, //
};

#[cfg(not(CONFIG_LIVEUPDATE_HUGETLB))]
mod absent;
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
mod frozen;
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
mod pool;
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
mod record;
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
mod restore;

#[cfg(not(CONFIG_LIVEUPDATE_HUGETLB))]
pub use self::absent::{
    discard,
    expect,
    FrozenFile,
    HugeFilling, //
};
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
pub use self::{
    frozen::FrozenFile,
    pool::{
        discard,
        expect, //
    },
    restore::HugeFilling, //
};

/// A memfd of huge pages to which nobody else has a reference yet.
pub type NewHugeMemfd = NewFile<HugeMemfd>;

/// Huge pages of a file for which the pool keeps free ones: the index of the first one, in huge
/// pages, and that behind the last.
pub type Reserved = Range<u64>;

/// An open file that `memfd_create(MFD_HUGETLB)` made.
///
/// # Invariants
///
/// The file belongs to the mount of hugetlbfs that the kernel made for such files.
#[repr(transparent)]
pub struct HugeMemfd(MemoryFile);

// SAFETY: A `HugeMemfd` is a `File` in all respects.
unsafe impl AlwaysRefCounted for HugeMemfd {
    fn inc_ref(&self) {
        self.0.inc_ref();
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the requirements of this function; the layout is that of a `File`.
        unsafe { File::dec_ref(obj.cast()) };
    }
}

impl Deref for HugeMemfd {
    type Target = MemoryFile;

    fn deref(&self) -> &MemoryFile {
        &self.0
    }
}

// SAFETY: A `HugeMemfd` has the layout of a `File`, and its mount has made its inode.
unsafe impl InMemory for HugeMemfd {}

#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
impl HugeMemfd {
    /// Sees `file` as one of huge pages, if it is one and has no name in a file system.
    pub fn from_file(file: &File) -> Option<&Self> {
        // SAFETY: The file is valid.
        let huge = unsafe { bindings::hugetlb_memfd(file.as_ptr()) };

        // INVARIANT: The file belongs to that mount.
        // SAFETY: The layout of a `HugeMemfd` is that of a `File`.
        huge.then(|| unsafe { &*core::ptr::from_ref(file).cast() })
    }

    /// The order of its pages: each has 2^order pages of the ordinary size.
    pub fn order(&self) -> u32 {
        // SAFETY: By the type invariant the inode belongs to hugetlbfs.
        unsafe { bindings::hugetlb_inode_order(self.inode()) }
    }
}

/// The node of the memory that is at `at`, if there is some.
pub fn node(at: PhysAddr) -> Option<u32> {
    let pfn = usize::try_from(at.get() >> PAGE_SHIFT).ok()?;

    // SAFETY: The first function takes any number. If it says so, there is a page.
    unsafe { bindings::pfn_valid(pfn).then(|| bindings::pfn_nid(pfn)) }
}
