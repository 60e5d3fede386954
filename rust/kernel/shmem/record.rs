// SPDX-License-Identifier: GPL-2.0

//! Folios that are inserted into a frozen mapping late: [`RecordedMapping`].
//!
//! A frozen mapping loses no pages, but pages still appear in holes, by page faults, `write(2)`,
//! `UFFDIO_COPY`, or for devices. From [`RecordedMapping::start`] on, the task that inserts a folio
//! pins and preserves it, and has it listed in a [`Journal`], before user space can write to it. So
//! nothing is missing in the next kernel whenever the processors stop, and no task waits for that.
//!
//! C header: [`include/linux/shmem_preserve.h`](srctree/include/linux/shmem_preserve.h).

use super::{
    FrozenMapping,
    Memfd,
    PinnedExtent, //
};
use crate::{
    bindings,
    kho::Preservation,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::Opaque, //
};
use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr, //
};

/// A list, for the next kernel, of the folios that are inserted into a mapping late.
pub trait Journal: Send + Sync + 'static {
    /// The place of a folio in the list. Dropping it takes the folio off the list; it may sleep.
    type Entry: Send + Sync + 'static;

    /// Reserves the place of a folio. The folio is not listed yet. May sleep.
    ///
    /// # Errors
    ///
    /// Any. The task that inserts the folio gets [`EBUSY`] then, or `SIGBUS`.
    fn reserve(&self, folio: &PinnedExtent) -> Result<Self::Entry>;

    /// Lists a folio in its place.
    ///
    /// Called under a spinlock and with interrupts disabled, so it must not sleep.
    fn commit(entry: &Self::Entry);
}

/// A folio on its way into a mapping, or in it since. Dropped, it is forgotten: first by the
/// journal, then by KHO; and then it is no longer pinned.
struct Late<J: Journal> {
    entry: J::Entry,
    _preserved: Preservation,
    extent: PinnedExtent,
}

/// The recorder of a mapping.
#[pin_data]
#[repr(C)]
struct Recorder<J: Journal> {
    /// The beginning, by which mm/ knows it.
    recorder: Opaque<bindings::shmem_recorder>,
    journal: J,
    /// All that were prepared and not aborted.
    #[pin]
    late: Mutex<KVVec<Arc<Late<J>>>>,
}

// SAFETY: What C sees of it is constant.
unsafe impl<J: Journal> Send for Recorder<J> {}
// SAFETY: As above; all else is `Sync`.
unsafe impl<J: Journal> Sync for Recorder<J> {}

impl<J: Journal> Recorder<J> {
    const OPS: &'static bindings::shmem_recorder_ops = &bindings::shmem_recorder_ops {
        get: Some(Self::get),
        put: Some(Self::put),
        prepare: Some(Self::prepare),
        commit: Some(Self::commit),
        abort: Some(Self::abort),
        forget: Some(Self::forget),
    };

    fn new(journal: J) -> Result<Arc<Self>> {
        let recorder = bindings::shmem_recorder { ops: Self::OPS };

        Arc::pin_init(
            pin_init!(Self {
                recorder: Opaque::new(recorder),
                journal,
                late <- new_mutex!(KVVec::new(), "shmem::Recorder"),
            }),
            GFP_KERNEL,
        )
    }

    fn as_raw(&self) -> *mut bindings::shmem_recorder {
        self.recorder.get()
    }

    /// # Safety
    ///
    /// `recorder` must be one of a `Recorder<J>` in an [`Arc`] that lives for `'a`.
    unsafe fn borrow<'a>(recorder: *mut bindings::shmem_recorder) -> ArcBorrow<'a, Self> {
        // SAFETY: By the requirement of this function `recorder` is one of a `Recorder<J>` in an `Arc`
        // that lives for `'a`. It is the first field of that, so both have the same address.
        unsafe { ArcBorrow::from_raw(recorder.cast::<Self>()) }
    }

    /// Forgets folios.
    fn retain(&self, mut keep: impl FnMut(&Late<J>) -> bool) {
        let mut late = self.late.lock();
        let mut at = late.len();

        // Backwards, since it is mostly about the last one.
        while let Some(before) = at.checked_sub(1) {
            at = before;
            if late.get(at).is_some_and(|entry| !keep(entry)) {
                let _ = late.remove(at);
            }
        }
    }

    /// # Safety
    ///
    /// `recorder` must be that of a mapping, whose page cache is locked.
    unsafe extern "C" fn get(recorder: *mut bindings::shmem_recorder) {
        // SAFETY: Before `RecordedMapping` drops its reference, it takes the recorder away from the
        // mapping, under that lock.
        let this = unsafe { Self::borrow(recorder) };
        let _ = ManuallyDrop::new(Arc::from(this));
    }

    /// # Safety
    ///
    /// The caller must own a reference that [`Self::get`] took.
    unsafe extern "C" fn put(recorder: *mut bindings::shmem_recorder) {
        // SAFETY: By the requirement of this function the reference is ours.
        drop(unsafe { Arc::from_raw(recorder.cast::<Self>()) });
    }

    /// # Safety
    ///
    /// The caller must own a reference to the recorder, and a pin on `folio`, which is transferred.
    unsafe extern "C" fn prepare(
        recorder: *mut bindings::shmem_recorder,
        folio: *mut bindings::folio,
        index: usize,
    ) -> *mut c_void {
        // SAFETY: The caller has a reference. The folio is valid, the pin on it is ours, and it is
        // for a mapping that is frozen while it has a recorder: there it stays at the index.
        let (this, extent) =
            unsafe { (Self::borrow(recorder), PinnedExtent::of_folio(folio, index)) };

        match this.prepare_folio(extent) {
            Ok(late) => Arc::into_raw(late).cast_mut().cast(),
            Err(_) => ptr::null_mut(),
        }
    }

    fn prepare_folio(&self, extent: PinnedExtent) -> Result<Arc<Late<J>>> {
        let preserved = Preservation::new(extent.pfn, extent.pages as usize, extent.order)?;
        let new = Arc::new(
            Late {
                entry: self.journal.reserve(&extent)?,
                _preserved: preserved,
                extent,
            },
            GFP_KERNEL,
        )?;

        self.late.lock().push(new.clone(), GFP_KERNEL)?;
        Ok(new)
    }

    /// # Safety
    ///
    /// The recorder must be that of a mapping, whose page cache is locked; `token` must come from
    /// [`Self::prepare`] and not be used again.
    unsafe extern "C" fn commit(_recorder: *mut bindings::shmem_recorder, token: *mut c_void) {
        // SAFETY: By the requirement of this function the reference is ours.
        let late = unsafe { Arc::<Late<J>>::from_raw(token.cast()) };

        J::commit(&late.entry);
        // It is not the last reference, which could not be dropped here: the recorder drops its own
        // one only when the page cache has been locked once more, or the insertion is undone.
    }

    /// # Safety
    ///
    /// The caller must own a reference to the recorder; `token` must come from [`Self::prepare`]
    /// and not be used again.
    unsafe extern "C" fn abort(recorder: *mut bindings::shmem_recorder, token: *mut c_void) {
        // SAFETY: By the requirement of this function there is a reference to the recorder, and
        // `token` is what `Arc::into_raw` returned in `prepare`, turned back once.
        let (this, late) = unsafe {
            (
                Self::borrow(recorder),
                Arc::<Late<J>>::from_raw(token.cast()),
            )
        };

        this.retain(|other| !ptr::eq(other, &*late));
    }

    /// # Safety
    ///
    /// The caller must own a reference to the recorder; `folio` must be valid.
    unsafe extern "C" fn forget(
        recorder: *mut bindings::shmem_recorder,
        folio: *mut bindings::folio,
    ) {
        // SAFETY: By the requirement of this function there is a reference to the recorder, and
        // `folio` is valid.
        let (this, pfn) = unsafe { (Self::borrow(recorder), bindings::folio_pfn(folio)) };

        this.retain(|other| other.extent.pfn != pfn);
    }
}

/// A [`FrozenMapping`] that can have the folios recorded that are inserted into it.
///
/// # Invariants
///
/// `recorder` is the recorder of the mapping, or the mapping has none.
pub struct RecordedMapping<J: Journal> {
    recorder: Option<Arc<Recorder<J>>>,
    /// Whether folios were inserted since the last search for them.
    inserted: bool,
    mapping: FrozenMapping,
}

impl<J: Journal> RecordedMapping<J> {
    /// Freezes the mapping of `memfd`. Nothing is recorded yet. It must have no recorder.
    ///
    /// # Errors
    ///
    /// Those of [`FrozenMapping::new`].
    pub fn new(memfd: &Memfd) -> Result<Self> {
        let mapping = FrozenMapping::new(memfd)?;

        // INVARIANT: A mapping that was not frozen has no recorder; else the caller knows it.
        let mut this = Self {
            recorder: None,
            inserted: false,
            mapping,
        };
        // The first one has yet to learn of what was inserted; then this one searches in vain.
        if !this.mapping.is_second() {
            this.set(None);
            // A search for pages from now on finds all that were inserted before.
            this.inserted = false;
        }
        Ok(this)
    }

    /// Sets the recorder of the mapping, and returns the one before. Notes if folios were inserted.
    fn set(&mut self, recorder: Option<Arc<Recorder<J>>>) -> Option<Arc<Recorder<J>>> {
        let raw = recorder
            .as_ref()
            .map_or(ptr::null_mut(), |new| new.as_raw());

        // INVARIANT: It becomes the recorder of the mapping.
        // SAFETY: The inode belongs to shmem, and its mapping is frozen. The recorder lives until
        // it is taken away again, which `drop` does at the latest.
        self.inserted |= unsafe { bindings::shmem_record(self.mapping.memfd.inode(), raw) };
        core::mem::replace(&mut self.recorder, recorder)
    }

    /// Begins to record the folios that are inserted.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing is recorded then.
    pub fn start(&mut self, journal: J) -> Result {
        let recorder = Recorder::new(journal)?;

        drop(self.set(Some(recorder)));
        Ok(())
    }

    /// Ends that. What was recorded is taken off the journal, and is neither preserved nor pinned
    /// any more.
    pub fn stop(&mut self) {
        if self.recorder.is_none() {
            return;
        }

        // An insertion that is committed has been since before this took the lock of the page
        // cache; one that is prepared will notice.
        if let Some(recorder) = self.set(None) {
            let late = core::mem::take(&mut *recorder.late.lock());
            drop(late);
        }
    }

    /// Whether folios may have been inserted that neither the journal lists nor the last call of
    /// [`RecordedMapping::caught_up`] was about.
    pub fn has_changed(&self) -> bool {
        self.inserted
    }

    /// Everything that was inserted before recording began has been found and preserved.
    pub fn caught_up(&mut self) {
        self.inserted = false;
    }

    /// These `extents`, in the order of the file, were found after recording began. If the journal
    /// lists some of them, it forgets them, so that they can be preserved as what they are part of.
    pub fn take_over(&self, extents: &[PinnedExtent]) {
        if let Some(recorder) = &self.recorder {
            // SAFETY: The inode belongs to shmem.
            unsafe { bindings::shmem_record_barrier(self.mapping.memfd.inode()) };
            // Each of `extents` was committed by the task that inserted it.
            recorder.retain(|late| !contains(extents, &late.extent));
        }
    }
}

/// Whether one of `extents`, which come in the order of the file, has the pages of `late`.
fn contains(extents: &[PinnedExtent], late: &PinnedExtent) -> bool {
    let after = extents.partition_point(|extent| extent.index <= late.index);

    after
        .checked_sub(1)
        .and_then(|at| extents.get(at))
        .is_some_and(|extent| {
            let offset = late.index - extent.index;
            offset < extent.pages as usize && extent.pfn + offset == late.pfn
        })
}

impl<J: Journal> Deref for RecordedMapping<J> {
    type Target = FrozenMapping;

    fn deref(&self) -> &FrozenMapping {
        &self.mapping
    }
}

impl<J: Journal> Drop for RecordedMapping<J> {
    fn drop(&mut self) {
        self.stop();
    }
}
