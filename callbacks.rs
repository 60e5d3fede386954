// SPDX-License-Identifier: GPL-2.0

//! Safe views of what drivers register: file handlers and FLBs with their C callbacks.
//!
//! Below LUO's safe code, beside [`capi`](super::capi): there C calls into LUO, here LUO calls
//! into C. What a driver registered is a [`RegisteredHandler`] or [`RegisteredFlb`], valid while
//! it is registered. Whoever wants to call it pins the module that owns it first and has a
//! [`Handler`] or [`PinnedFlb`] then. What a callback gave us to keep is owned by a
//! value whose drop gives it back by the callback for that: [`Saved`], [`LiveFlb`].

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
    fs::{
        File,
        LocalFile, //
    },
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

use crate::abi::Compatible;

/// Gets the file behind a descriptor of the current task.
///
/// # Errors
///
/// [`EBADF`] if there is none.
pub(crate) fn fget(fd: i32) -> Result<ARef<File>> {
    let file = LocalFile::fget(u32::try_from(fd).map_err(|_| EBADF)?)?;

    // SAFETY: LUO runs in ioctls, whose light reference to the file of the session is no
    // `fdget_pos()` region, and no other is active on this thread.
    Ok(unsafe { LocalFile::assume_no_fdget_pos(file) })
}

/// Whether a message that user space can provoke may be printed now.
pub(crate) fn may_print() -> bool {
    // SAFETY: The argument is a C string that lives for ever.
    unsafe { bindings::__printk_ratelimit(c"luo".as_char_ptr()) != 0 }
}

/// Ends it all: the kernel panics with `why`.
pub(crate) fn panic(why: &CStr) {
    // SAFETY: The format takes one C string, and there is one.
    unsafe { bindings::panic(c"%s".as_char_ptr(), why.as_char_ptr()) }
}

/// Reads the compatible string of a C structure.
fn compatible_of(field: &[c_char; 48]) -> Result<Compatible> {
    Compatible::from_bytes(field).map_err(|_| EINVAL)
}

/// A reference to the module that owns some callbacks, which keeps them in memory.
///
/// # Invariants
///
/// `module` is null, for built-in code, or we own a reference to it.
struct ModuleRef {
    module: *mut bindings::module,
}

impl ModuleRef {
    /// [`None`] if the module is about to go.
    ///
    /// # Safety
    ///
    /// `module` must be null, or a module that has not been freed.
    unsafe fn get(module: *mut bindings::module) -> Option<Self> {
        // SAFETY: By the requirement of this function.
        if !unsafe { bindings::try_module_get(module) } {
            return None;
        }

        // INVARIANT: The call took the reference.
        Some(Self { module })
    }
}

impl Clone for ModuleRef {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the module is null or cannot go, as we own a reference.
        unsafe { bindings::__module_get(self.module) };

        // INVARIANT: The call took a reference.
        Self {
            module: self.module,
        }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own a reference.
        unsafe { bindings::module_put(self.module) };
    }
}

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
        // SAFETY: By the requirement of this function.
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
        // SAFETY: By the requirement of this function.
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
    pub(crate) fn pin(&self) -> Option<Handler> {
        // SAFETY: By the type invariant the handler is valid, so its module is there.
        let module = unsafe { ModuleRef::get(self.ops().owner) }?;

        // INVARIANT: All is valid, and stays so with the reference to the module, which we own.
        Some(Handler {
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
/// What `info` tells is valid as in [`RegisteredHandler`], and stays so as long as the value exists.
#[derive(Clone)]
pub(crate) struct Handler {
    info: Arc<HandlerInfo>,
    _module: ModuleRef,
}

// SAFETY: A reference to a module may be put by any thread.
unsafe impl Send for Handler {}
// SAFETY: Nothing is done with the module through a shared reference but to take more of them.
unsafe impl Sync for Handler {}

impl Handler {
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

    /// Has the handler make the file that `data` stands for.
    ///
    /// # Errors
    ///
    /// What the handler returns.
    pub(crate) fn retrieve(&self, data: u64) -> Result<ARef<File>, RetrieveError<()>> {
        let mut args = self.args(None, data, 0);

        if let Some(retrieve) = self.ops().retrieve {
            // SAFETY: By the type invariants; `args` is valid for the call.
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

    /// What the handler says of a file that came in, if anything.
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
        // SAFETY: By the type invariants and the requirement of this function. `args` and the buffer,
        // which has `MAX` bytes, are valid for the call.
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
            Outcome::NeverAsked(()) => self.args(None, data, 0),
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
    handler: Handler,
    file: ARef<File>,
}

// SAFETY: What a handler saved may be used from any thread.
unsafe impl Send for Saved {}

impl Saved {
    pub(crate) fn handler(&self) -> &Handler {
        &self.handler
    }

    /// What crosses for this file.
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
        // SAFETY: By the type invariants. This value is not `Sync`, so that nothing else runs for the
        // file while somebody has it.
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
        // INVARIANT: By the requirement of this function.
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
            // SAFETY: The callback is one of the FLB, which is valid by the type invariant; `args` is
            // valid for the call.
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
    /// What crosses for this FLB.
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

/// A notifier that a driver has registered.
///
/// # Invariants
///
/// The notifier is valid, and so is its callback, as long as this value exists.
struct Notifier(NonNull<bindings::notifier_block>);

impl Notifier {
    // CAST: Lossless, as numbers of events are small.
    const PREPARE: c_ulong = bindings::liveupdate_event_LIVEUPDATE_PREPARE as c_ulong;
    const REBOOT: c_ulong = bindings::liveupdate_event_LIVEUPDATE_REBOOT as c_ulong;
    const FINISH: c_ulong = bindings::liveupdate_event_LIVEUPDATE_FINISH as c_ulong;
    const CANCEL: c_ulong = bindings::liveupdate_event_LIVEUPDATE_CANCEL as c_ulong;

    /// Tells it of an event. That it wants nobody else to be called does not matter.
    fn tell(&self, event: c_ulong) -> Result {
        const STOP: c_int = bindings::NOTIFY_STOP_MASK as c_int;
        const OK: c_int = bindings::NOTIFY_OK as c_int;

        // SAFETY: The notifier is valid by the type invariant.
        let Some(call) = (unsafe { self.0.as_ref() }).notifier_call else {
            return Ok(());
        };
        // SAFETY: The notifier and its callback are valid by the type invariant.
        let answer = unsafe { call(self.0.as_ptr(), event, null_mut()) } & !STOP;
        if answer > OK {
            return Err(Error::from_errno(OK - answer));
        }
        Ok(())
    }
}

/// A subsystem that has been registered.
///
/// # Invariants
///
/// The structure is valid, and so are its `ops` and its callbacks, of which those that must be there
/// are, as long as this value exists.
struct Subsystem {
    ptr: NonNull<bindings::liveupdate_subsystem>,
    name: Compatible,
}

impl Subsystem {
    fn ops(&self) -> &bindings::liveupdate_subsystem_ops {
        // SAFETY: Both are valid by the type invariant.
        unsafe { &*(*self.ptr.as_ptr()).ops }
    }
}

/// Who is told of the events of a live update: a notifier, or a subsystem with state.
pub(crate) struct Participant {
    kind: Kind,
    priority: i64,
}

enum Kind {
    Notifier(Notifier),
    Subsystem(Subsystem),
}

// SAFETY: The C structures and their callbacks may be used from any thread.
unsafe impl Send for Participant {}
// SAFETY: LUO calls them under a lock of its own.
unsafe impl Sync for Participant {}

impl Participant {
    /// Takes a notifier in.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it has no callback.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid, and stay so as long as the value exists.
    pub(crate) unsafe fn notifier(ptr: NonNull<bindings::notifier_block>) -> Result<Self> {
        // SAFETY: By the requirement of this function.
        let notifier = unsafe { ptr.as_ref() };
        notifier.notifier_call.ok_or(EINVAL)?;

        Ok(Self {
            // INVARIANT: As just checked, and by the requirement of this function.
            kind: Kind::Notifier(Notifier(ptr)),
            priority: notifier.priority.into(),
        })
    }

    /// Takes a subsystem in.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if a callback that must be there is not, or the compatible string is empty or
    /// does not end.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid, and stay so as long as the value exists.
    pub(crate) unsafe fn subsystem(ptr: NonNull<bindings::liveupdate_subsystem>) -> Result<Self> {
        // SAFETY: By the requirement of this function.
        let subsystem = unsafe { ptr.as_ref() };
        // SAFETY: By the requirement of this function, `ops` is null or valid.
        let ops = unsafe { subsystem.ops.as_ref() }.ok_or(EINVAL)?;

        if ops.prepare.is_none() || ops.cancel.is_none() || ops.restore.is_none() {
            return Err(EINVAL);
        }

        Ok(Self {
            // INVARIANT: As just checked, and by the requirement of this function.
            kind: Kind::Subsystem(Subsystem {
                ptr,
                name: compatible_of(&subsystem.compatible)?,
            }),
            priority: subsystem.priority.into(),
        })
    }

    /// Those with lower ones are told first.
    pub(crate) fn priority(&self) -> i64 {
        self.priority
    }

    /// The compatible string of a subsystem.
    pub(crate) fn name(&self) -> Option<&Compatible> {
        match &self.kind {
            Kind::Notifier(_) => None,
            Kind::Subsystem(subsystem) => Some(&subsystem.name),
        }
    }

    /// Whether it is that notifier.
    pub(crate) fn is_notifier(&self, ptr: NonNull<bindings::notifier_block>) -> bool {
        matches!(&self.kind, Kind::Notifier(own) if own.0 == ptr)
    }

    /// Whether it is that subsystem.
    pub(crate) fn is_subsystem(&self, ptr: NonNull<bindings::liveupdate_subsystem>) -> bool {
        matches!(&self.kind, Kind::Subsystem(own) if own.ptr == ptr)
    }

    /// Whether there cannot be both.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match &other.kind {
            Kind::Notifier(other) => self.is_notifier(other.0),
            Kind::Subsystem(other) => self.name() == Some(&other.name),
        }
    }

    /// Has it prepare, and returns what it hands over.
    ///
    /// # Errors
    ///
    /// What it returns.
    pub(crate) fn prepare(&self) -> Result<u64> {
        let mut data = 0;

        match &self.kind {
            Kind::Notifier(notifier) => notifier.tell(Notifier::PREPARE)?,
            Kind::Subsystem(subsystem) => {
                if let Some(prepare) = subsystem.ops().prepare {
                    // SAFETY: By the invariant of `Subsystem`; `data` is ours to write.
                    to_result(unsafe { prepare(subsystem.ptr.as_ptr(), &mut data) })?;
                }
            }
        }
        Ok(data)
    }

    /// Tells it that the kexec is near.
    ///
    /// # Errors
    ///
    /// What it returns.
    pub(crate) fn reboot(&self, data: &mut u64) -> Result {
        match &self.kind {
            Kind::Notifier(notifier) => notifier.tell(Notifier::REBOOT),
            Kind::Subsystem(subsystem) => match subsystem.ops().reboot {
                // SAFETY: By the invariant of `Subsystem`; `data` is ours to write.
                Some(reboot) => to_result(unsafe { reboot(subsystem.ptr.as_ptr(), data) }),
                None => Ok(()),
            },
        }
    }

    /// Tells it that what it prepared does not happen.
    pub(crate) fn cancel(&self, data: u64) {
        match &self.kind {
            Kind::Notifier(notifier) => {
                self.must_succeed(notifier.tell(Notifier::CANCEL), "cancel");
            }
            Kind::Subsystem(subsystem) => {
                if let Some(cancel) = subsystem.ops().cancel {
                    // SAFETY: By the invariant of `Subsystem`.
                    unsafe { cancel(subsystem.ptr.as_ptr(), data) };
                }
            }
        }
    }

    /// Gives it what the previous kernel's left.
    ///
    /// # Errors
    ///
    /// What it returns.
    pub(crate) fn restore(&self, data: u64) -> Result {
        match &self.kind {
            Kind::Notifier(_) => Ok(()),
            Kind::Subsystem(subsystem) => match subsystem.ops().restore {
                // SAFETY: By the invariant of `Subsystem`.
                Some(restore) => to_result(unsafe { restore(subsystem.ptr.as_ptr(), data) }),
                None => Ok(()),
            },
        }
    }

    /// Tells it that the update is over.
    pub(crate) fn finish(&self) {
        match &self.kind {
            Kind::Notifier(notifier) => {
                self.must_succeed(notifier.tell(Notifier::FINISH), "finish");
            }
            Kind::Subsystem(subsystem) => {
                if let Some(finish) = subsystem.ops().finish {
                    // SAFETY: By the invariant of `Subsystem`.
                    unsafe { finish(subsystem.ptr.as_ptr()) };
                }
            }
        }
    }

    fn must_succeed(&self, result: Result, what: &str) {
        if let Err(e) = result {
            pr_warn!("subsystem {}: {} must not fail: {:?}\n", self, what, e);
        }
    }
}

impl kernel::fmt::Display for Participant {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        match &self.kind {
            Kind::Notifier(_) => f.write_str("(a notifier)"),
            Kind::Subsystem(subsystem) => write!(f, "'{}'", subsystem.name),
        }
    }
}

/// A tracepoint. What it means is said in `include/trace/events/liveupdate.h`.
pub(crate) trait Tracepoint {
    /// Whether somebody wants to know.
    fn is_on() -> bool;

    /// Tells whoever wants to know.
    fn emit(session: &CStr, token: u64, handler: &CStr, nanos: u64, result: c_int);
}

macro_rules! tracepoints {
    ($($type:ident => $name:ident),* $(,)?) => {
        kernel::declare_trace! {
            $(
                /// # Safety
                ///
                /// Both strings must be valid.
                unsafe fn $name(
                    session: *const c_char,
                    token: u64,
                    handler: *const c_char,
                    nanos: u64,
                    result: c_int,
                );
            )*
        }

        $(
            pub(crate) struct $type;

            impl Tracepoint for $type {
                #[inline(always)]
                fn is_on() -> bool {
                    #[cfg(CONFIG_TRACEPOINTS)]
                    kernel::macros::paste! {
                        // SAFETY: It is always possible to ask for the key of a tracepoint.
                        return unsafe {
                            kernel::jump_label::static_branch_unlikely!(
                                bindings::[< __tracepoint_ $name >],
                                bindings::tracepoint,
                                key
                            )
                        };
                    }
                    #[cfg(not(CONFIG_TRACEPOINTS))]
                    false
                }

                fn emit(session: &CStr, token: u64, handler: &CStr, nanos: u64, result: c_int) {
                    // SAFETY: The strings are valid, and copied.
                    unsafe {
                        $name(session.as_char_ptr(), token, handler.as_char_ptr(), nanos, result)
                    }
                }
            }
        )*
    };
}

/// The tracepoints of LUO.
pub(crate) mod tracepoint {
    use super::*;

    tracepoints! {
        Create => liveupdate_create,
        Preserve => liveupdate_preserve,
        Unpreserve => liveupdate_unpreserve,
        Freeze => liveupdate_freeze,
        Serialize => liveupdate_serialize,
        Validate => liveupdate_validate,
        Quarantine => liveupdate_quarantine,
        Retrieve => liveupdate_retrieve,
        Finish => liveupdate_finish,
    }
}
