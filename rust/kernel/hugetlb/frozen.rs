// SPDX-License-Identifier: GPL-2.0

//! A file of huge pages that does not change: [`FrozenFile`].

use super::{
    record::Recorder,
    HugeMemfd,
    Reserved, //
};
use crate::{
    bindings,
    error::to_result,
    memfd::MemoryFile,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    shmem::{
        pause,
        Journal,
        PinnedExtent, //
    },
    sync::{
        aref::ARef,
        Arc, //
    }, //
};
use core::{
    ops::{
        Deref,
        Range, //
    },
    ptr::{
        self,
        addr_of, //
    }, //
};

/// How many folios are pinned in one go.
const AT_ONCE: usize = 64;

/// How many ranges are looked up in one go.
const RANGES: usize = 64;

/// A file of huge pages that can neither grow nor shrink nor lose pages, until this is dropped.
///
/// It can still be mapped, read and written to, and pages can still appear in holes.
///
/// # Invariants
///
/// The file is frozen, by us. `recorder` is its recorder, or it has none.
pub struct FrozenFile<J: Journal> {
    recorder: Option<Arc<Recorder<J>>>,
    file: ARef<HugeMemfd>,
}

impl<J: Journal> FrozenFile<J> {
    /// Freezes `file`. Nothing is recorded yet.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is frozen already.
    pub fn new(file: &HugeMemfd) -> Result<Self> {
        // SAFETY: By the type invariant of `HugeMemfd` the inode belongs to hugetlbfs.
        to_result(unsafe { bindings::hugetlb_freeze(file.inode()) })?;

        // INVARIANT: It is frozen, and no one else has set a recorder before.
        Ok(Self {
            recorder: None,
            file: file.into(),
        })
    }

    /// Begins to record the folios that are inserted, until [`FrozenFile::stop`].
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing is recorded then.
    pub fn start(&mut self, journal: J) -> Result {
        let recorder = Recorder::new(journal)?;

        self.set(Some(recorder));
        Ok(())
    }

    /// Ends that. What was recorded is taken off the journal, and is neither preserved nor pinned
    /// any more.
    pub fn stop(&mut self) {
        self.set(None);
    }

    /// Replaces the recorder of the file.
    fn set(&mut self, recorder: Option<Arc<Recorder<J>>>) {
        let raw = recorder
            .as_ref()
            .map_or(ptr::null_mut(), |new| new.as_raw());

        // INVARIANT: It becomes the recorder of the file.
        // SAFETY: The inode belongs to hugetlbfs, and by the type invariant the file is frozen. The
        // recorder lives until it is taken away again, which `drop` does at the latest.
        unsafe { bindings::hugetlb_record(self.file.inode(), raw) };
        if let Some(before) = core::mem::replace(&mut self.recorder, recorder) {
            before.forget_all();
        }
    }

    /// The order of the pages of the file.
    pub fn order(&self) -> u32 {
        self.file.order()
    }

    /// How many pages of the ordinary size are there. Those that are inserted at the same time may
    /// be counted or not.
    pub fn populated_pages(&self) -> u64 {
        // SAFETY: The mapping is valid. This is meant as a `READ_ONCE()`.
        unsafe { addr_of!((*self.file.mapping()).nrpages).read_volatile() as u64 }
    }

    /// Whether a page of the file is known to be poisoned.
    pub fn has_poison(&self) -> bool {
        // SAFETY: The mapping is valid. The function is for files of huge pages as well.
        unsafe { bindings::shmem_has_poison(self.file.mapping()) }
    }

    /// Pins all folios that are there and in none of `known`, which come in the order of the file.
    /// They are moved to where they may stay, if need be.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`] if one cannot be moved, or there is no memory for the list.
    /// - [`EHWPOISON`] if one is poisoned.
    /// - [`EINTR`] if the task is being killed.
    pub fn pin_others(&self, known: &[PinnedExtent]) -> Result<KVVec<PinnedExtent>> {
        let mut extents = KVVec::new();
        let mut at = 0;

        for extent in known {
            self.pin_range(at..usize::try_from(extent.index())?, &mut extents)?;
            at = extent.end_index();
        }
        let pages = self.file.size().div_ceil(PAGE_SIZE as u64);
        self.pin_range(at..usize::try_from(pages)?, &mut extents)?;
        Ok(extents)
    }

    /// Pins the folios of a range.
    fn pin_range(&self, range: Range<usize>, extents: &mut KVVec<PinnedExtent>) -> Result {
        let mut at = range.start;

        while let Some(present) = self.present(at..range.end) {
            pause()?;
            at = present.end;
            self.pin_present(present, extents)?;
        }
        Ok(())
    }

    /// The next folios in a range that follow each other in the file, at most [`AT_ONCE`].
    fn present(&self, range: Range<usize>) -> Option<Range<usize>> {
        let pages = 1_usize << self.file.order();
        let start = self.find(range.clone())?;
        let mut end = start.saturating_add(pages);

        while end < range.end
            && (end - start) / pages < AT_ONCE
            && self.find(end..end.saturating_add(1)).is_some()
        {
            end = end.saturating_add(pages);
        }
        Some(start..end)
    }

    /// The index of the first folio in a range.
    fn find(&self, range: Range<usize>) -> Option<usize> {
        let mut index = range.start;

        if range.is_empty() {
            return None;
        }
        // SAFETY: The mapping is valid. What is found is not followed.
        let entry = unsafe {
            bindings::xa_find(
                &raw mut (*self.file.mapping()).i_pages,
                &mut index,
                range.end - 1,
                bindings::XA_PRESENT,
            )
        };
        (!entry.is_null()).then_some(index.max(range.start))
    }

    /// Pins folios that are all there.
    fn pin_present(&self, range: Range<usize>, extents: &mut KVVec<PinnedExtent>) -> Result {
        let mut folios = [ptr::null_mut(); AT_ONCE];
        let mut offset = 0;
        let pages = 1_usize << self.file.order();
        let length = range.len();
        let end = ((range.end << PAGE_SHIFT) as u64).min(self.file.size());

        extents.reserve(AT_ONCE, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: The file is valid. There is room for that many folios. As none of them goes away
        // while the file is frozen, the function allocates none.
        let count = unsafe {
            bindings::memfd_pin_folios(
                self.file.as_ptr(),
                (range.start << PAGE_SHIFT) as bindings::loff_t,
                end as bindings::loff_t - 1,
                folios.as_mut_ptr(),
                AT_ONCE as c_uint,
                &mut offset,
            )
        };
        let count = usize::try_from(count).map_err(|_| Error::from_errno(count as c_int))?;

        let mut poisoned = false;
        for (folio, index) in folios.iter().take(count).zip(range.step_by(pages)) {
            // SAFETY: The folio is pinned, and that is ours. In a frozen file it stays where it is:
            // `memfd_pin_folios()` returns those of a range in their order.
            let extent = unsafe {
                poisoned |= bindings::folio_has_poison(*folio);
                PinnedExtent::of_folio(*folio, index)
            };
            let rest = match extents.last_mut() {
                Some(last) => last.append(extent).err(),
                None => Some(extent),
            };
            if let Some(extent) = rest {
                // There is room.
                let _ = extents.push_within_capacity(extent);
            }
        }
        match poisoned {
            true => Err(EHWPOISON),
            false if count * pages < length => Err(EBUSY),
            false => Ok(()),
        }
    }

    /// Goes through what is reserved, in the order of the file. Pages that are there are, too.
    ///
    /// # Errors
    ///
    /// What `visit` returns.
    pub fn reserved(&self, mut visit: impl FnMut(Reserved) -> Result) -> Result {
        let mut ranges = [bindings::hugetlb_range { from: 0, to: 0 }; RANGES];
        let mut at = 0;

        loop {
            // SAFETY: The inode belongs to hugetlbfs, and there is room for that many ranges.
            let count = unsafe {
                bindings::hugetlb_reserved_ranges(
                    self.file.inode(),
                    at,
                    ranges.as_mut_ptr(),
                    RANGES,
                )
            };
            for range in ranges.iter().take(count) {
                at = range.to;
                visit(range.from as u64..range.to as u64)?;
            }
            if count < RANGES {
                return Ok(());
            }
        }
    }
}

impl<J: Journal> Deref for FrozenFile<J> {
    type Target = MemoryFile;

    fn deref(&self) -> &MemoryFile {
        &self.file
    }
}

impl<J: Journal> Drop for FrozenFile<J> {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: The inode belongs to hugetlbfs. By the type invariant we froze the file.
        unsafe { bindings::hugetlb_thaw(self.file.inode()) };
    }
}
