// SPDX-License-Identifier: GPL-2.0

//! FLBs of C drivers.
//!
//! What a driver has registered is a [`RegisteredFlb`], valid while it is registered. To call it,
//! its module is pinned ([`PinnedFlb`]). The object that a callback made is owned by a [`LiveFlb`],
//! whose drop is the callback that ends its life.

use core::{
    marker::PhantomData,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

use super::{
    kernel::compatible_of,
    module::ModuleRef, //
};
use crate::abi::Compatible;

/// Tells the FLB of one driver from another. It says nothing about whether that is still there.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) struct FlbId(usize);

/// An FLB that is there for `'a`.
///
/// # Invariants
///
/// For `'a`, `ptr` is valid, its `ops` too, and all callbacks are there.
#[derive(Copy, Clone)]
pub(crate) struct FlbRef<'a> {
    ptr: NonNull<bindings::liveupdate_flb>,
    compatible: Compatible,
    _flb: PhantomData<&'a bindings::liveupdate_flb>,
}

// SAFETY: The C structure and its callbacks may be used from any thread.
unsafe impl Send for FlbRef<'_> {}
// SAFETY: LUO serializes the callbacks of one FLB by a lock of its own.
unsafe impl Sync for FlbRef<'_> {}

impl FlbRef<'_> {
    /// # Errors
    ///
    /// [`EINVAL`] if a callback is missing, or the compatible string is empty or does not end.
    ///
    /// # Safety
    ///
    /// For `'a`, `ptr` must be a valid FLB, whose `ops` are null or valid.
    pub(crate) unsafe fn new(ptr: NonNull<bindings::liveupdate_flb>) -> Result<Self> {
        // SAFETY: By the requirement of this function, `ptr` is valid.
        let flb = unsafe { ptr.as_ref() };
        // SAFETY: By the requirement of this function, `ops` is null or valid.
        let ops = unsafe { flb.ops.as_ref() }.ok_or(EINVAL)?;

        if ops.preserve.is_none()
            || ops.unpreserve.is_none()
            || ops.retrieve.is_none()
            || ops.finish.is_none()
        {
            return Err(EINVAL);
        }

        // INVARIANT: As just checked, and by the requirement of this function.
        Ok(Self {
            ptr,
            compatible: compatible_of(&flb.compatible)?,
            _flb: PhantomData,
        })
    }

    pub(crate) fn id(&self) -> FlbId {
        FlbId(self.ptr.as_ptr().addr())
    }

    pub(crate) fn compatible(&self) -> &Compatible {
        &self.compatible
    }

    /// Keeps the FLB in memory; [`None`] if its module is about to go.
    pub(crate) fn pin(&self) -> Option<PinnedFlb> {
        // SAFETY: By the type invariant the FLB and its `ops` are valid, so its module is there.
        let module = unsafe { ModuleRef::get((*(*self.ptr.as_ptr()).ops).owner) }?;

        // INVARIANT: It is valid by the type invariant, and stays so with the reference.
        Some(PinnedFlb {
            ptr: self.ptr,
            _module: module,
        })
    }
}

/// An FLB that a driver has registered.
///
/// # Invariants
///
/// It is there as long as this value exists.
pub(crate) struct RegisteredFlb(FlbRef<'static>);

impl RegisteredFlb {
    /// Takes an FLB in.
    ///
    /// # Errors
    ///
    /// Those of [`FlbRef::new`].
    ///
    /// # Safety
    ///
    /// `ptr` must be a valid FLB, whose `ops` are null or valid, and stay so as long as the value
    /// exists, and while there is any reference to the module that owns it.
    pub(crate) unsafe fn new(ptr: NonNull<bindings::liveupdate_flb>) -> Result<Self> {
        // INVARIANT: By the requirement of this function the FLB is valid for as long as the value
        // exists.
        // SAFETY: It is given out for as long as the value exists only.
        Ok(Self(unsafe { FlbRef::new(ptr) }?))
    }

    pub(crate) fn get(&self) -> FlbRef<'_> {
        self.0
    }

    /// The same once more, for a test whose FLB is never unregistered while the test runs.
    #[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
    pub(crate) fn another(&self) -> Self {
        Self(self.0)
    }
}

/// An FLB that can be called: the module that owns it cannot go.
///
/// # Invariants
///
/// As long as the value exists, `ptr` is valid, its `ops` too, and all callbacks are there.
pub(crate) struct PinnedFlb {
    ptr: NonNull<bindings::liveupdate_flb>,
    _module: ModuleRef,
}

impl PinnedFlb {
    /// Has the FLB preserve its state.
    ///
    /// # Errors
    ///
    /// What the callback returns.
    pub(crate) fn preserve(self) -> Result<LiveFlb<Preserved>> {
        let preserve = self.ops().preserve;
        self.bring_to_life(0, preserve)
    }

    /// Has the FLB make its object of what was handed over.
    ///
    /// # Errors
    ///
    /// What the callback returns.
    pub(crate) fn retrieve(self, data: u64) -> Result<LiveFlb<Retrieved>> {
        let retrieve = self.ops().retrieve;
        self.bring_to_life(data, retrieve)
    }

    fn bring_to_life<S: FlbSide>(
        self,
        data: u64,
        callback: Option<unsafe extern "C" fn(*mut bindings::liveupdate_flb_op_args) -> c_int>,
    ) -> Result<LiveFlb<S>> {
        let mut args = bindings::liveupdate_flb_op_args {
            flb: self.ptr.as_ptr(),
            data,
            obj: null_mut(),
        };

        if let Some(callback) = callback {
            // SAFETY: The callback is one of the FLB, which is valid by the type invariant; `args`
            // is valid for the call.
            to_result(unsafe { callback(&mut args) })?;
        }

        // INVARIANT: The callback succeeded.
        Ok(LiveFlb {
            flb: self,
            data: args.data,
            object: args.obj,
            _side: PhantomData,
        })
    }

    fn ops(&self) -> &bindings::liveupdate_flb_ops {
        // SAFETY: By the type invariant both are valid.
        unsafe { &*(*self.ptr.as_ptr()).ops }
    }
}

/// On which side of the kexec an FLB is alive: which callback ends its life.
pub(crate) trait FlbSide {
    #[doc(hidden)]
    fn end(
        ops: &bindings::liveupdate_flb_ops,
    ) -> Option<unsafe extern "C" fn(*mut bindings::liveupdate_flb_op_args)>;
}

/// In the old kernel: the life ends by `unpreserve`.
pub(crate) enum Preserved {}

/// In the new kernel: the life ends by `finish`.
pub(crate) enum Retrieved {}

impl FlbSide for Preserved {
    fn end(
        ops: &bindings::liveupdate_flb_ops,
    ) -> Option<unsafe extern "C" fn(*mut bindings::liveupdate_flb_op_args)> {
        ops.unpreserve
    }
}

impl FlbSide for Retrieved {
    fn end(
        ops: &bindings::liveupdate_flb_ops,
    ) -> Option<unsafe extern "C" fn(*mut bindings::liveupdate_flb_op_args)> {
        ops.finish
    }
}

/// An FLB with a live object. Dropping it ends the object's life by the callback for that.
///
/// # Invariants
///
/// `data` and `object` are what the callback that began this life left; the one that ends it has
/// not been called.
pub(crate) struct LiveFlb<S: FlbSide> {
    flb: PinnedFlb,
    data: u64,
    object: *mut c_void,
    _side: PhantomData<S>,
}

// SAFETY: The object may be used from any thread: drivers share it among files.
unsafe impl<S: FlbSide> Send for LiveFlb<S> {}

impl<S: FlbSide> LiveFlb<S> {
    /// What is handed over for this FLB.
    pub(crate) fn data(&self) -> u64 {
        self.data
    }

    /// The object, for the driver that made it; it means nothing to LUO. [`None`] for another
    /// driver, even if it calls its FLB the same.
    pub(crate) fn object(&self, of: FlbId) -> Option<*mut c_void> {
        (self.flb.ptr.as_ptr().addr() == of.0).then_some(self.object)
    }
}

impl<S: FlbSide> Drop for LiveFlb<S> {
    fn drop(&mut self) {
        let mut args = bindings::liveupdate_flb_op_args {
            flb: self.flb.ptr.as_ptr(),
            data: self.data,
            obj: self.object,
        };

        if let Some(end) = S::end(self.flb.ops()) {
            // SAFETY: By the type invariants, and this is the only call for this life.
            unsafe { end(&mut args) };
        }
    }
}
