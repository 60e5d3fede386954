// SPDX-License-Identifier: GPL-2.0

//! A file of huge pages that is made from preserved ones: [`NewHugeMemfd`](super::NewHugeMemfd) and
//! [`HugeFilling`].

use super::{
    discard,
    HugeMemfd,
    NewHugeMemfd,
    Reserved, //
};
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    kho::{
        PhysAddr,
        RestoredFolio, //
    },
    memfd::NewFile,
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::ARef, //
};

impl NewFile<HugeMemfd> {
    /// Makes a memfd of pages of `order`. The `name` is taken as it is, so it should begin with
    /// `memfd:`.
    ///
    /// It is as `memfd_create()` makes it with `MFD_ALLOW_SEALING | MFD_HUGETLB`: empty, without
    /// seals, open for reading and writing, with all permissions for everybody.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if this kernel has no such pages.
    /// - [`ENFILE`] if the system has too many open files.
    /// - [`ENOMEM`] if memory is short, or [`ENOSPC`] if it is for an inode.
    ///
    /// C counterpart: `memfd_alloc_file()`.
    pub fn new(name: &CStr, order: u32) -> Result<Self> {
        let size = (order + PAGE_SHIFT as u32) << bindings::MFD_HUGE_SHIFT;
        let flags = bindings::MFD_ALLOW_SEALING | bindings::MFD_HUGETLB | size;

        // SAFETY: `name` is a C string that the function copies.
        let file = from_err_ptr(unsafe { bindings::memfd_alloc_file(name.as_char_ptr(), flags) })
            .map_err(|e| match e {
            ENOENT => ENODEV,
            e => e,
        })?;

        // SAFETY: The function made a file of that mount, and a reference to it that is ours.
        unsafe { Self::from_raw(file) }
    }

    /// Reserves pages in holes of the file.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the pool has not so many that are free, or the control group of the task may
    /// not have so many.
    pub fn reserve(&mut self, pages: Reserved) -> Result {
        let range = bindings::hugetlb_range {
            from: usize::try_from(pages.start)?,
            to: usize::try_from(pages.end)?,
        };

        if range.from > range.to || isize::try_from(range.to).is_err() {
            return Err(EINVAL);
        }
        // SAFETY: The inode is valid and belongs to hugetlbfs. The range is valid.
        to_result(unsafe { bindings::hugetlb_restore_reserve(self.0.inode(), range) })
    }

    /// Begins to put pages into the file, and charges for `folios` of them.
    ///
    /// With `charge` false they belong to no control group.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the control group of the task may not have so many.
    pub fn fill(self, folios: usize, charge: bool) -> Result<HugeFilling> {
        let mut charges = bindings::hugetlb_charge::default();

        // SAFETY: The inode is valid and belongs to hugetlbfs.
        to_result(unsafe {
            bindings::hugetlb_restore_begin(self.0.inode(), folios, charge, &mut charges)
        })?;
        // INVARIANT: It has just begun.
        Ok(HugeFilling {
            order: self.0.order(),
            file: self,
            charges,
        })
    }
}

/// A [`NewHugeMemfd`] that pages are put into.
///
/// # Invariants
///
/// `hugetlb_restore_begin()` has made `charges`.
pub struct HugeFilling {
    file: NewHugeMemfd,
    order: u32,
    charges: bindings::hugetlb_charge,
}

// SAFETY: The control groups that the charges name have references, or are those of the task that
// fills the file, which is the only one to use them.
unsafe impl Send for HugeFilling {}

impl HugeFilling {
    /// Claims the preserved folio at `at`, and puts it at `index`, which is counted in huge pages.
    ///
    /// It counts as allocated from the pool of its size. A shortage of memory is no error, as the
    /// folio is there already, and what is in it would be lost.
    ///
    /// # Errors
    ///
    /// - [`ENOENT`] or [`EMSGSIZE`] if no folio of the file's order is preserved at `at`.
    /// - [`EEXIST`] if there is one already at the index. The folio goes to the pool.
    /// - [`ENOSPC`] if there are more than were charged for; likewise.
    pub fn insert(&mut self, at: PhysAddr, index: u64) -> Result {
        // SAFETY: The current task may sleep, as all users of this module.
        unsafe { bindings::cond_resched() };

        let index = usize::try_from(index)?;
        if self.charges.left == 0 {
            discard(at, self.order)?;
            return Err(ENOSPC);
        }
        let folio = RestoredFolio::claim_of(at, self.order)?;
        // SAFETY: By the type invariant of `NewFile` the file is open nowhere else, and by ours it
        // was begun. The only reference to the folio, of the order of the file, goes over.
        to_result(unsafe {
            bindings::hugetlb_restore_folio(
                self.file.0.inode(),
                index,
                folio.as_ptr(),
                &mut self.charges,
            )
        })
    }

    /// The finished file.
    pub fn into_file(self) -> ARef<File> {
        let file = self.file.0.clone();

        drop(self);
        // SAFETY: The layout of a `HugeMemfd` is that of a `File`, and the reference goes over.
        unsafe { ARef::from_raw(ARef::into_raw(file).cast()) }
    }
}

impl Drop for HugeFilling {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it was begun with these.
        unsafe { bindings::hugetlb_restore_end(self.file.0.inode(), &mut self.charges) };
    }
}
