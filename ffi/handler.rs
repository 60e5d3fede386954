// SPDX-License-Identifier: GPL-2.0

//! File handlers of C drivers.
//!
//! What a driver has registered is a [`RegisteredHandler`], valid while it is registered. To call
//! it, its module is pinned ([`PinnedHandler`]). What a handler saved of a file is owned by a
//! [`Saved`], whose drop is the callback that gives it back.

use core::ptr::{
    null_mut,
    NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    fs::File,
    liveupdate::{
        Outcome,
        RetrieveError,
        RETRIEVE_AGAIN, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

use super::{
    kernel::compatible_of,
    module::ModuleRef, //
};
use crate::abi::Compatible;

/// What is known of a file handler.
struct HandlerInfo {
    ptr: NonNull<bindings::liveupdate_file_handler>,
    compatible: Compatible,
    description: *const bindings::liveupdate_file_description,
}

// SAFETY: The C structure and its callbacks may be used from any thread.
unsafe impl Send for HandlerInfo {}
// SAFETY: The C structure and its callbacks may be used from several threads at once.
unsafe impl Sync for HandlerInfo {}

impl HandlerInfo {
    /// # Safety
    ///
    /// `ptr` must be valid, and its `ops`.
    unsafe fn ops(&self) -> &bindings::liveupdate_file_ops {
        // SAFETY: By the requirement of this function the handler and its `ops` are valid.
        unsafe { &*(*self.ptr.as_ptr()).ops }
    }
}

/// A file handler that a driver has registered.
///
/// # Invariants
///
/// `ptr` is valid, its `ops` too, and all callbacks that must be there are. So is `description`, if
/// it is not null. All of it stays so as long as the value exists, and as long as there is any
/// reference to the module that owns the handler.
pub(crate) struct RegisteredHandler(Arc<HandlerInfo>);

impl RegisteredHandler {
    /// Takes a handler in.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if a callback that must be there is not, or the compatible string is empty or
    ///   does not end.
    /// - [`ENOMEM`].
    ///
    /// # Safety
    ///
    /// `ptr` must be a valid handler, and stay so as long as the value exists, and as long as there
    /// is any reference to the module that owns it; so must `description`, if it is not null.
    pub(crate) unsafe fn new(
        ptr: NonNull<bindings::liveupdate_file_handler>,
        description: *const bindings::liveupdate_file_description,
    ) -> Result<Self> {
        // SAFETY: By the requirement of this function `ptr` is a valid handler.
        let handler = unsafe { ptr.as_ref() };
        // SAFETY: By the requirement of this function, `ops` is null or valid.
        let ops = unsafe { handler.ops.as_ref() }.ok_or(EINVAL)?;

        if ops.can_preserve.is_none()
            || ops.preserve.is_none()
            || ops.unpreserve.is_none()
            || ops.retrieve.is_none()
            || ops.finish.is_none()
        {
            return Err(EINVAL);
        }

        // INVARIANT: As just checked, and by the requirement of this function.
        Ok(Self(Arc::new(
            HandlerInfo {
                ptr,
                compatible: compatible_of(&handler.compatible)?,
                description,
            },
            GFP_KERNEL,
        )?))
    }

    pub(crate) fn compatible(&self) -> &Compatible {
        &self.0.compatible
    }

    /// Whether this is the handler at `ptr`.
    pub(crate) fn is(&self, ptr: NonNull<bindings::liveupdate_file_handler>) -> bool {
        self.0.ptr == ptr
    }

    /// Whether the handler wants the file.
    pub(crate) fn can_preserve(&self, file: &File) -> bool {
        let Some(can_preserve) = self.ops().can_preserve else {
            return false;
        };
        // SAFETY: By the type invariant; the file is valid for the call.
        unsafe { can_preserve(self.0.ptr.as_ptr(), file.as_ptr()) }
    }

    /// Keeps the handler in memory; [`None`] if its module is about to go.
    pub(crate) fn pin(&self) -> Option<PinnedHandler> {
        // SAFETY: By the type invariant the handler is valid, so its module is there.
        let module = unsafe { ModuleRef::get(self.ops().owner) }?;

        // INVARIANT: All is valid, and stays so with the reference to the module, which we own.
        Some(PinnedHandler {
            info: self.0.clone(),
            _module: module,
        })
    }

    fn ops(&self) -> &bindings::liveupdate_file_ops {
        // SAFETY: By the type invariant.
        unsafe { self.0.ops() }
    }
}

/// A file handler that can be called: the module that owns it cannot go.
///
/// # Invariants
///
/// What `info` tells is valid as in [`RegisteredHandler`], and stays so as long as the value
/// exists.
#[derive(Clone)]
pub(crate) struct PinnedHandler {
    info: Arc<HandlerInfo>,
    _module: ModuleRef,
}

// SAFETY: A reference to a module may be put by any thread.
unsafe impl Send for PinnedHandler {}
// SAFETY: Nothing is done with the module through a shared reference but to take more of them.
unsafe impl Sync for PinnedHandler {}

impl PinnedHandler {
    pub(crate) fn compatible(&self) -> &Compatible {
        &self.info.compatible
    }

    /// The number that tells whether two files are the same.
    pub(crate) fn id(&self, file: &File) -> usize {
        match self.ops().get_id {
            // SAFETY: By the type invariants; the file is valid for the call.
            Some(get_id) => unsafe { get_id(file.as_ptr()) },
            None => file.as_ptr().addr(),
        }
    }

    /// Whether freezing does anything.
    pub(crate) fn has_freeze(&self) -> bool {
        self.ops().freeze.is_some()
    }

    /// Has the handler preserve a file.
    ///
    /// # Errors
    ///
    /// What the handler returns.
    pub(crate) fn preserve(&self, file: &ARef<File>) -> Result<Saved> {
        let mut args = self.args(Some(file), 0, 0);

        if let Some(preserve) = self.ops().preserve {
            // SAFETY: By the type invariants; `args` and the file are valid for the call.
            to_result(unsafe { preserve(&mut args) })?;
        }

        // INVARIANT: The callback succeeded.
        Ok(Saved {
            data: args.serialized_data,
            private_data: args.private_data,
            handler: self.clone(),
            file: file.clone(),
        })
    }

    /// Has the handler make the file that `data` stands for, out of `target` if there is one.
    ///
    /// # Errors
    ///
    /// What the handler returns; [`EOPNOTSUPP`] if it knows nothing of targets, and one may try again.
    pub(crate) fn retrieve(
        &self,
        data: u64,
        target: Option<&File>,
    ) -> Result<ARef<File>, RetrieveError<()>> {
        let mut args = self.args(target, data, 0);
        let retrieve = match target {
            None => self.ops().retrieve,
            Some(_) => {
                let into = self.description().and_then(|d| d.retrieve_into);
                Some(into.ok_or(RetrieveError::Again(EOPNOTSUPP, ()))?)
            }
        };

        if let Some(retrieve) = retrieve {
            // SAFETY: By the type invariants; `args` and the file are valid for the call.
            to_result(unsafe { retrieve(&mut args) }).map_err(|e| {
                if args.retrieve_status == RETRIEVE_AGAIN {
                    RetrieveError::Again(e, ())
                } else {
                    RetrieveError::Final(e)
                }
            })?;
        }

        let file = NonNull::new(args.file).ok_or(RetrieveError::Final(EINVAL))?;
        // SAFETY: A callback that succeeds hands over a reference to a file, which no descriptor
        // refers to yet, so no `fdget_pos()` region can be active on it.
        Ok(unsafe { ARef::from_raw(file.cast()) })
    }

    /// Whether the handler is ready to finish the file.
    pub(crate) fn can_finish(&self, outcome: Outcome<'_, ()>, data: u64) -> bool {
        let Some(can_finish) = self.ops().can_finish else {
            return true;
        };
        let mut args = self.args_of(outcome, data);

        // SAFETY: By the type invariants; `args` and the file are valid for the call.
        unsafe { can_finish(&mut args) }
    }

    /// Has the handler finish the file.
    pub(crate) fn finish(&self, outcome: Outcome<'_, ()>, data: u64) {
        let mut args = self.args_of(outcome, data);

        if let Some(finish) = self.ops().finish {
            // SAFETY: By the type invariants; `args` and the file are valid for the call.
            unsafe { finish(&mut args) };
        }
    }

    /// How the handler describes an incoming file, if it does.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn summary(&self, outcome: Outcome<'_, ()>, data: u64) -> Result<KVec<u8>> {
        // SAFETY: As for the other callbacks: `data` is what the handler of this name left for the
        // file, and what belongs to a file is used under the lock of its session.
        unsafe { self.summary_by(self.args_of(outcome, data)) }
    }

    /// # Safety
    ///
    /// `args` must be those of a file of the handler, for which no other callback runs.
    unsafe fn summary_by(&self, mut args: bindings::liveupdate_file_op_args) -> Result<KVec<u8>> {
        /// How long a summary may be.
        const MAX: usize = 96;

        let Some(summarize) = self.description().and_then(|d| d.summarize) else {
            return Ok(KVec::new());
        };
        let mut text = KVec::from_elem(0, MAX, GFP_KERNEL)?;
        // SAFETY: By the type invariants and the requirement of this function. `args` and the
        // buffer, which has `MAX` bytes, are valid for the call.
        let written = unsafe { summarize(&mut args, text.as_mut_ptr().cast(), MAX) };
        text.truncate(written);
        Ok(text)
    }

    fn description(&self) -> Option<&bindings::liveupdate_file_description> {
        // SAFETY: By the type invariants it is null or valid.
        unsafe { self.info.description.as_ref() }
    }

    /// What C is told of an outcome.
    fn args_of(&self, outcome: Outcome<'_, ()>, data: u64) -> bindings::liveupdate_file_op_args {
        match outcome {
            Outcome::NotRetrieved(()) => self.args(None, data, 0),
            Outcome::Retrieved(file) => self.args(Some(file), data, 1),
            Outcome::Failed { error, .. } => self.args(None, data, error.to_errno()),
        }
    }

    fn args(
        &self,
        file: Option<&File>,
        data: u64,
        status: c_int,
    ) -> bindings::liveupdate_file_op_args {
        bindings::liveupdate_file_op_args {
            handler: self.info.ptr.as_ptr(),
            retrieve_status: status,
            file: file.map_or(null_mut(), |file| file.as_ptr()),
            serialized_data: data,
            private_data: null_mut(),
        }
    }

    fn ops(&self) -> &bindings::liveupdate_file_ops {
        // SAFETY: By the type invariants.
        unsafe { self.info.ops() }
    }
}

/// What a handler saved of a file. Dropping it has the handler undo that.
///
/// # Invariants
///
/// `data` and `private_data` are what the handler's `preserve`, and `freeze` since, left for
/// `file`; `unpreserve` has not been called.
pub(crate) struct Saved {
    data: u64,
    private_data: *mut c_void,
    handler: PinnedHandler,
    file: ARef<File>,
}

// SAFETY: What a handler saved may be used from any thread.
unsafe impl Send for Saved {}

impl Saved {
    pub(crate) fn handler(&self) -> &PinnedHandler {
        &self.handler
    }

    pub(crate) fn file(&self) -> &ARef<File> {
        &self.file
    }

    /// What is handed over for this file.
    pub(crate) fn data(&self) -> u64 {
        self.data
    }

    /// Has the handler freeze the file.
    ///
    /// # Errors
    ///
    /// What the handler returns.
    pub(crate) fn freeze(&mut self) -> Result {
        if let Some(freeze) = self.handler.ops().freeze {
            let mut args = self.args();
            // SAFETY: By the type invariants; exclusive access means that nothing else runs for
            // the file.
            to_result(unsafe { freeze(&mut args) })?;
            self.data = args.serialized_data;
        }
        Ok(())
    }

    /// Has the handler undo a freeze.
    pub(crate) fn unfreeze(&mut self) {
        if let Some(unfreeze) = self.handler.ops().unfreeze {
            // SAFETY: By the type invariants; exclusive access means that nothing else runs for
            // the file.
            unsafe { unfreeze(&mut self.args()) };
        }
    }

    /// What the handler says of the file, if anything.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn summary(&self) -> Result<KVec<u8>> {
        // SAFETY: By the type invariants. This value is not `Sync`, so that nothing else runs for
        // the file while somebody has it.
        unsafe { self.handler.summary_by(self.args()) }
    }

    fn args(&self) -> bindings::liveupdate_file_op_args {
        let mut args = self.handler.args(Some(&self.file), self.data, 0);
        args.private_data = self.private_data;
        args
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(unpreserve) = self.handler.ops().unpreserve {
            // SAFETY: By the type invariants, and this is the only call for this `preserve`.
            unsafe { unpreserve(&mut self.args()) };
        }
    }
}
