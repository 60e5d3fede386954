// SPDX-License-Identifier: GPL-2.0

//! Folios that are inserted into a frozen file late: [`Recorder`].
//!
//! As in [`shmem`](crate::shmem), the task that inserts a folio pins and preserves it, and has it
//! listed in a [`Journal`], before user space can write to it.

use crate::{
    bindings,
    kho::Preservation,
    new_mutex,
    prelude::*,
    shmem::{
        Journal,
        PinnedExtent, //
    },
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::Opaque, //
};
use core::mem::ManuallyDrop;

/// A folio that was recorded. Dropped, it is forgotten: first by the journal, then by KHO; and then
/// it is no longer pinned.
struct Late<J: Journal> {
    _entry: J::Entry,
    _preserved: Preservation,
    extent: PinnedExtent,
}

/// The recorder of a file.
#[pin_data]
#[repr(C)]
pub(super) struct Recorder<J: Journal> {
    /// The beginning, by which mm/ knows it.
    recorder: Opaque<bindings::hugetlb_recorder>,
    journal: J,
    #[pin]
    late: Mutex<KVVec<Late<J>>>,
}

// SAFETY: What C sees of it is constant.
unsafe impl<J: Journal> Send for Recorder<J> {}
// SAFETY: As above; all else is `Sync`.
unsafe impl<J: Journal> Sync for Recorder<J> {}

impl<J: Journal> Recorder<J> {
    const OPS: &'static bindings::hugetlb_recorder_ops = &bindings::hugetlb_recorder_ops {
        get: Some(Self::get),
        put: Some(Self::put),
        record: Some(Self::record),
        forget: Some(Self::forget),
    };

    pub(super) fn new(journal: J) -> Result<Arc<Self>> {
        let recorder = bindings::hugetlb_recorder { ops: Self::OPS };

        Arc::pin_init(
            pin_init!(Self {
                recorder: Opaque::new(recorder),
                journal,
                late <- new_mutex!(KVVec::new(), "hugetlb::Recorder"),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn as_raw(&self) -> *mut bindings::hugetlb_recorder {
        self.recorder.get()
    }

    /// Forgets all folios.
    pub(super) fn forget_all(&self) {
        let late = core::mem::take(&mut *self.late.lock());
        drop(late);
    }

    /// # Safety
    ///
    /// `recorder` must be one of a `Recorder<J>` in an [`Arc`] that lives for `'a`.
    unsafe fn borrow<'a>(recorder: *mut bindings::hugetlb_recorder) -> ArcBorrow<'a, Self> {
        // SAFETY: By the requirement of this function `recorder` is one of a `Recorder<J>` in an
        // `Arc` that lives for `'a`. It is the first field of that, so both have the same address.
        unsafe { ArcBorrow::from_raw(recorder.cast::<Self>()) }
    }

    /// # Safety
    ///
    /// `recorder` must be that of a file, whose page cache is locked.
    unsafe extern "C" fn get(recorder: *mut bindings::hugetlb_recorder) {
        // SAFETY: Before `FrozenFile` drops its reference, it takes the recorder away from the
        // file, under that lock.
        let this = unsafe { Self::borrow(recorder) };
        let _ = ManuallyDrop::new(Arc::from(this));
    }

    /// # Safety
    ///
    /// The caller must own a reference that [`Self::get`] took.
    unsafe extern "C" fn put(recorder: *mut bindings::hugetlb_recorder) {
        // SAFETY: By the requirement of this function the reference is ours.
        drop(unsafe { Arc::from_raw(recorder.cast::<Self>()) });
    }

    /// # Safety
    ///
    /// The caller must own a reference to the recorder, and a pin on `folio`, which is transferred
    /// if the function returns 0.
    unsafe extern "C" fn record(
        recorder: *mut bindings::hugetlb_recorder,
        folio: *mut bindings::folio,
        index: usize,
    ) -> c_int {
        // SAFETY: The caller has a reference. The folio is valid and pinned, and it is for a file
        // that is frozen while it has a recorder: there it stays at the index.
        let (this, extent) = unsafe {
            (
                Self::borrow(recorder),
                ManuallyDrop::new(PinnedExtent::of_folio(folio, index)),
            )
        };

        match this.record_folio(extent) {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// Takes the pin over, unless there is an error.
    fn record_folio(&self, extent: ManuallyDrop<PinnedExtent>) -> Result {
        let preserved = Preservation::new(extent.pfn, 1 << extent.order(), extent.order())?;
        let entry = self.journal.reserve(&extent)?;
        let mut late = self.late.lock();

        late.reserve(1, GFP_KERNEL)?;
        J::commit(&entry);
        // There is room.
        let _ = late.push_within_capacity(Late {
            _entry: entry,
            _preserved: preserved,
            extent: ManuallyDrop::into_inner(extent),
        });
        Ok(())
    }

    /// # Safety
    ///
    /// The caller must own a reference to the recorder; `folio` must be valid.
    unsafe extern "C" fn forget(
        recorder: *mut bindings::hugetlb_recorder,
        folio: *mut bindings::folio,
    ) {
        // SAFETY: By the requirement of this function there is a reference to the recorder, and
        // `folio` is valid.
        let (this, pfn) = unsafe { (Self::borrow(recorder), bindings::folio_pfn(folio)) };
        let mut late = this.late.lock();

        if let Some(at) = late.iter().rposition(|late| late.extent.pfn == pfn) {
            let _ = late.remove(at);
        }
    }
}
