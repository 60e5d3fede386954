// SPDX-License-Identifier: GPL-2.0

//! Live update: what a driver does so that its files survive a kexec.
//!
//! A user-space agent collects open files in named sessions and reboots into a new kernel by
//! kexec; there it gets the files back. The Live Update Orchestrator (LUO) does the book-keeping;
//! what a file consists of, only its driver knows. So a driver implements
//!
//! - [`FileHandler`] for each type of file of its that can survive, and registers it by a
//!   [`Registration`];
//! - [`Flb`] for state that several files share (file-lifecycle-bound state): preserved with the
//!   first file that needs it, finished with the last. It lives in a [`FlbCell`].
//!
//! This module stands on the C interface and on nothing else, so a driver written with it works
//! under any implementation of LUO.
//!
//! # The life of a file
//!
//! ```text
//!  old kernel                                      new kernel
//!
//!  can_preserve ─ preserve ─┬─ freeze ─── kexec ───┬─ retrieve ─ can_finish ─ finish
//!                           │     │                │                  │
//!                           │  unfreeze            └── (never asked) ─┘
//!                           └─ unpreserve
//! ```
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     fs::File,
//!     liveupdate::{
//!         FileHandler,
//!         Handle,
//!         Outcome,
//!         RetrieveError, //
//!     },
//!     sync::aref::ARef, //
//! };
//!
//! struct Counter;
//!
//! # fn value_of(_: &File) -> u64 { 7 }
//! # fn is_ours(_: &File) -> bool { false }
//! # fn file_with(_: u64) -> Result<ARef<File>> { Err(ENODEV) }
//! #[vtable]
//! impl FileHandler for Counter {
//!     const COMPATIBLE: &'static CStr = c"example-counter-v1";
//!     type State = ();
//!
//!     fn can_preserve(file: &File) -> bool {
//!         is_ours(file)
//!     }
//!
//!     // The whole state is one number, so the handle itself carries it.
//!     fn preserve(file: &File) -> Result<(Handle, ())> {
//!         Ok((Handle::new(value_of(file)), ()))
//!     }
//!
//!     fn unpreserve(_file: &File, _state: (), _handle: Handle) {}
//!
//!     fn retrieve(handle: Handle) -> Result<ARef<File>, RetrieveError> {
//!         Ok(file_with(handle.get())?)
//!     }
//!
//!     fn finish(_file: Option<&File>, _outcome: Outcome, _handle: Handle) {}
//! }
//! # assert!(!Counter::HAS_FREEZE);
//! ```
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h).

use crate::{
    bindings,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    fs::File,
    kho::PhysAddr,
    module::this_module,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    },
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    pin::Pin,
    ptr::NonNull, //
};

/// Whether live update is enabled on this machine (`liveupdate=` on the command line).
///
/// C counterpart: `liveupdate_enabled()`.
pub fn is_enabled() -> bool {
    // SAFETY: The function only reads a flag and has no requirements.
    unsafe { bindings::liveupdate_enabled() }
}

/// In which layouts state is handed over, for handlers that know several
/// (`liveupdate.abi=` on the command line).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum OutgoingAbi {
    /// In those that hold most (`liveupdate.abi=fdt`, the default).
    Fdt,
    /// In those that the C implementation of Linux 7.2 and 7.3 reads (`liveupdate.abi=luo-v5`).
    LuoV5,
}

static WRITES_LUO_V5: Atomic<bool> = Atomic::new(false);

/// In which layouts this kernel hands state over.
///
/// What comes in is not concerned: a handler goes on reading all layouts that it knows.
pub fn outgoing_abi() -> OutgoingAbi {
    if WRITES_LUO_V5.load(Relaxed) {
        OutgoingAbi::LuoV5
    } else {
        OutgoingAbi::Fdt
    }
}

crate::early_param!(c"liveupdate.abi", liveupdate_abi_param);

/// # Safety
///
/// `value` must be null or a C string.
unsafe extern "C" fn liveupdate_abi_param(value: *mut c_char) -> c_int {
    from_result(|| {
        let value = NonNull::new(value).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function, and it is not null.
        let value = unsafe { CStr::from_char_ptr(value.as_ptr()) };

        match value.to_bytes() {
            b"fdt" => WRITES_LUO_V5.store(false, Relaxed),
            b"luo-v5" => WRITES_LUO_V5.store(true, Relaxed),
            _ => return Err(EINVAL),
        }
        Ok(0)
    })
}

/// What crosses the kexec for one file or one FLB: 64 bits whose meaning is its handler's.
///
/// Mostly the address of [preserved memory](crate::kho::Preserved), sometimes the state itself.
/// In the new kernel it is input from outside: check it before you follow it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Handle(u64);

impl Handle {
    /// A handle with the given bits.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of the handle.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The handle as the address that it is where it was made of one; [`None`] if it is zero.
    pub const fn phys(self) -> Option<PhysAddr> {
        PhysAddr::new(self.0)
    }
}

impl From<PhysAddr> for Handle {
    fn from(address: PhysAddr) -> Self {
        Self(address.get())
    }
}

/// What became of a file's retrieval, as `can_finish` and `finish` are told.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody asked for the file: what was handed over is still where it was.
    NeverAsked,
    /// [`FileHandler::retrieve`] succeeded.
    Retrieved,
    /// [`FileHandler::retrieve`] failed for good, by this error.
    Failed(Error),
}

impl Outcome {
    fn from_raw(status: c_int) -> Self {
        match status {
            0 => Self::NeverAsked,
            1.. => Self::Retrieved,
            ..0 => Self::Failed(Error::from_errno(status)),
        }
    }
}

/// Why [`FileHandler::retrieve`] failed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RetrieveError {
    /// Nothing of what was handed over has been consumed: asking again may succeed.
    ///
    /// For shortages that pass, such as [`ENFILE`] or [`ENOMEM`]. LUO implementations that do not
    /// know of it treat it like [`RetrieveError::Final`]; then `finish` is told
    /// [`Outcome::Failed`] although nothing was consumed.
    Again(Error),
    /// The handler has cleaned up what it could; the file is lost.
    Final(Error),
}

impl From<Error> for RetrieveError {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// In `struct liveupdate_file_op_args::retrieve_status`, set by a failing `retrieve` callback:
/// [`RetrieveError::Again`]. The field has no other meaning there, and is zero on entry.
pub const RETRIEVE_AGAIN: c_int = 1;

/// A type of file that survives a live update.
///
/// All methods may sleep. Those that get a `file` are called with a reference to it held; which
/// locks are held besides is up to LUO, so a method must not call back into it, except for
/// [`FlbCell::outgoing`] and [`FlbCell::incoming`]. For one file no two methods run at once.
///
/// C counterpart: `struct liveupdate_file_ops`.
#[vtable]
pub trait FileHandler: Sized {
    /// Names the type of file together with the version of its handed-over layout; at most 47
    /// bytes. A file is given to the handler with the same string in the next kernel, whoever
    /// wrote it.
    const COMPATIBLE: &'static CStr;

    /// What the handler remembers of a file between `preserve` and `unpreserve`. It stays in this
    /// kernel; what crosses is the [`Handle`].
    type State: Send;

    /// Shared state that must be preserved whenever a file of this type is, in the order in which
    /// it is preserved; it is undone and finished in the reverse order. Asked for once, at
    /// registration. By default there is none.
    ///
    /// ```
    /// # use kernel::liveupdate::{AnyFlb, Flb, FlbCell, Handle};
    /// # struct Generation;
    /// # #[vtable]
    /// # impl Flb for Generation {
    /// #     const COMPATIBLE: &'static CStr = c"example-generation-v1";
    /// #     type Object = ();
    /// #     fn preserve() -> Result<(Handle, ())> { Ok((Handle::new(1), ())) }
    /// #     fn unpreserve(_object: (), _handle: Handle) {}
    /// #     fn retrieve(_handle: Handle) -> Result<()> { Ok(()) }
    /// #     fn finish(_object: ()) {}
    /// # }
    /// static GENERATION: FlbCell<Generation> = FlbCell::new();
    ///
    /// fn flbs() -> &'static [&'static dyn AnyFlb] {
    ///     static FLBS: [&dyn AnyFlb; 1] = [&GENERATION];
    ///     &FLBS
    /// }
    /// # assert!(flbs().len() == 1);
    /// ```
    fn flbs() -> &'static [&'static dyn AnyFlb] {
        &[]
    }

    /// Whether `file` is of this type. Quick: LUO asks every handler in turn, in the order of
    /// registration, and takes the first that agrees.
    fn can_preserve(file: &File) -> bool;

    /// A number equal for two files exactly if they are the same object, so that preserving it
    /// twice can be refused. By default the address of the open file description.
    fn id(_file: &File) -> usize {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Saves what the next kernel needs. The workload goes on using the file, so long work
    /// belongs here, not in `freeze`. Called from an ioctl of the agent; and at the kexec, for a
    /// file that was retrieved but never finished.
    ///
    /// # Errors
    ///
    /// Any; the agent gets it. Nothing must remain then of what the method did.
    fn preserve(file: &File) -> Result<(Handle, Self::State)>;

    /// The last chance to update what was saved: user space does not run any more. Called in the
    /// blackout, so be quick.
    ///
    /// # Errors
    ///
    /// Any; it calls the kexec off. Files frozen before are unfrozen, this one is not.
    fn freeze(_file: &File, _state: &mut Self::State, _handle: &mut Handle) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Undoes `freeze`: the kexec was called off.
    fn unfreeze(_file: &File, _state: &mut Self::State, _handle: Handle) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Undoes `preserve`: the session was closed before a kexec.
    fn unpreserve(file: &File, state: Self::State, handle: Handle);

    /// Makes the file anew from what was handed over. LUO keeps a reference to it until `finish`.
    ///
    /// # Errors
    ///
    /// Any, with [`RetrieveError`] telling whether asking again makes sense. `?` on an [`Error`]
    /// means that it does not.
    fn retrieve(handle: Handle) -> Result<ARef<File>, RetrieveError>;

    /// Whether `finish` may be called now. By default yes. If any file of a session says no, none
    /// of them is finished, and the agent gets [`EBUSY`].
    fn can_finish(_file: Option<&File>, _outcome: Outcome, _handle: Handle) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Ends LUO's part: after this the file is an ordinary one. Where nobody retrieved it
    /// ([`Outcome::NeverAsked`]) the handler disposes of what was handed over.
    fn finish(file: Option<&File>, outcome: Outcome, handle: Handle);
}

/// A registered [`FileHandler`]. Dropping it unregisters.
///
/// A module that owns one cannot be unloaded while a file of this type is preserved, nor from the
/// first request for an incoming one until that is finished.
///
/// # Invariants
///
/// `handler` is registered with LUO, or `registered` is false.
#[pin_data(PinnedDrop)]
pub struct Registration<T: FileHandler> {
    #[pin]
    handler: Opaque<bindings::liveupdate_file_handler>,
    _handler: PhantomData<T>,
}

// SAFETY: Handlers may be unregistered from any thread.
unsafe impl<T: FileHandler> Send for Registration<T> {}
// SAFETY: There are no methods on `&Registration`.
unsafe impl<T: FileHandler> Sync for Registration<T> {}

impl<T: FileHandler + 'static> Registration<T> {
    /// Registers the handler, and its dependency on each of [`FileHandler::flbs`].
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if live update is not enabled.
    /// - [`EEXIST`] if another handler has the same compatible string, or another FLB has that of
    ///   one of ours, or one is named twice.
    /// - [`ENOSPC`] if there are too many different FLBs on this machine.
    /// - [`ENOMEM`] if memory is short.
    ///
    /// C counterparts: `liveupdate_register_file_handler()`, `liveupdate_register_flb()`.
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            handler <- Opaque::try_ffi_init(|slot: *mut bindings::liveupdate_file_handler| {
                let mut handler: bindings::liveupdate_file_handler = pin_init::zeroed();
                handler.ops = &FileHandlerVtable::<T>::OPS;
                handler.compatible = const { compatible(T::COMPATIBLE) };
                // SAFETY: The initializer may write to `slot`.
                unsafe { slot.write(handler) };

                // SAFETY: `slot` is a handler, pinned until it is unregistered: below, or on drop.
                to_result(unsafe { bindings::liveupdate_register_file_handler(slot) })?;

                for flb in T::flbs() {
                    // SAFETY: The handler is registered, and the FLB is a static.
                    let ret = to_result(unsafe {
                        bindings::liveupdate_register_flb(slot, flb.as_raw(private::Token))
                    });
                    if let Err(e) = ret {
                        // SAFETY: It was registered above. This unlinks its FLBs, too.
                        unsafe { bindings::liveupdate_unregister_file_handler(slot) };
                        return Err(e);
                    }
                }

                // INVARIANT: The handler is registered.
                Ok(())
            }),
            _handler: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: FileHandler> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the handler is registered.
        unsafe { bindings::liveupdate_unregister_file_handler(self.handler.get()) };
    }
}

/// Makes the array that the C structures hold of a compatible string, at compile time.
const fn compatible<const N: usize>(name: &CStr) -> [c_char; N] {
    let bytes = name.to_bytes();
    assert!(!bytes.is_empty() && bytes.len() < N);

    let mut array = [0; N];
    let mut i = 0;
    while i < bytes.len() {
        array[i] = bytes[i];
        i += 1;
    }
    array
}

/// The C callbacks of a [`FileHandler`].
struct FileHandlerVtable<T: FileHandler>(PhantomData<T>);

impl<T: FileHandler + 'static> FileHandlerVtable<T> {
    const OPS: bindings::liveupdate_file_ops = bindings::liveupdate_file_ops {
        can_preserve: Some(Self::can_preserve),
        preserve: Some(Self::preserve),
        unpreserve: Some(Self::unpreserve),
        freeze: if T::HAS_FREEZE {
            Some(Self::freeze)
        } else {
            None
        },
        unfreeze: if T::HAS_UNFREEZE {
            Some(Self::unfreeze)
        } else {
            None
        },
        retrieve: Some(Self::retrieve),
        can_finish: if T::HAS_CAN_FINISH {
            Some(Self::can_finish)
        } else {
            None
        },
        finish: Some(Self::finish),
        get_id: if T::HAS_ID { Some(Self::get_id) } else { None },
        owner: this_module::<T::OwnerModule>().as_ptr(),
    };

    /// # Safety
    ///
    /// `file` must be a valid file for the duration of the call.
    unsafe extern "C" fn can_preserve(
        _handler: *mut bindings::liveupdate_file_handler,
        file: *mut bindings::file,
    ) -> bool {
        // SAFETY: By the requirement of this function. LUO runs in an ioctl or without a file
        // descriptor at all, so no `fdget_pos()` region is active.
        T::can_preserve(unsafe { File::from_raw_file(file) })
    }

    /// # Safety
    ///
    /// `file` must be a valid file for the duration of the call.
    unsafe extern "C" fn get_id(file: *mut bindings::file) -> c_ulong {
        // SAFETY: As in `can_preserve`.
        T::id(unsafe { File::from_raw_file(file) })
    }

    /// # Safety
    ///
    /// `args` must be valid, and its `file` set.
    unsafe extern "C" fn preserve(args: *mut bindings::liveupdate_file_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: As in `can_preserve`.
        let file = unsafe { File::from_raw_file(args.file) };

        from_result(|| {
            // First, so that nothing can fail once the file is preserved.
            let slot = KBox::<T::State>::new_uninit(GFP_KERNEL)?;
            let (handle, state) = T::preserve(file)?;

            args.serialized_data = handle.get();
            args.private_data = KBox::into_raw(slot.write(state)).cast();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `args` must be as `preserve` left it, with `file` set; called once for each `preserve`.
    unsafe extern "C" fn unpreserve(args: *mut bindings::liveupdate_file_op_args) {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: As in `can_preserve`.
        let file = unsafe { File::from_raw_file(args.file) };
        // SAFETY: `preserve` put a box there, and this is the only call that takes it.
        let state = unsafe { KBox::<T::State>::from_raw(args.private_data.cast()) };

        T::unpreserve(file, KBox::into_inner(state), Handle(args.serialized_data));
    }

    /// # Safety
    ///
    /// `args` must be as `preserve` left it, with `file` set; nothing else may run for the file.
    unsafe extern "C" fn freeze(args: *mut bindings::liveupdate_file_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: As in `can_preserve`.
        let file = unsafe { File::from_raw_file(args.file) };
        // SAFETY: `preserve` put a box there, which is alive until `unpreserve`, and no other
        // callback uses it now.
        let state = unsafe { &mut *args.private_data.cast::<T::State>() };
        let mut handle = Handle(args.serialized_data);

        from_result(|| {
            T::freeze(file, state, &mut handle)?;
            args.serialized_data = handle.get();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for `freeze`.
    unsafe extern "C" fn unfreeze(args: *mut bindings::liveupdate_file_op_args) {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: As in `can_preserve`.
        let file = unsafe { File::from_raw_file(args.file) };
        // SAFETY: As in `freeze`.
        let state = unsafe { &mut *args.private_data.cast::<T::State>() };

        T::unfreeze(file, state, Handle(args.serialized_data));
    }

    /// # Safety
    ///
    /// `args` must be valid.
    unsafe extern "C" fn retrieve(args: *mut bindings::liveupdate_file_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };

        match T::retrieve(Handle(args.serialized_data)) {
            Ok(file) => {
                // The reference goes to the caller.
                args.file = ARef::into_raw(file).as_ptr().cast();
                0
            }
            Err(RetrieveError::Again(e)) => {
                args.retrieve_status = RETRIEVE_AGAIN;
                e.to_errno()
            }
            Err(RetrieveError::Final(e)) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// `args` must be valid, and its `file` valid or null.
    unsafe extern "C" fn can_finish(args: *mut bindings::liveupdate_file_op_args) -> bool {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: By the requirement of this function; for `fdget_pos()` see `can_preserve`.
        let file = unsafe { optional_file(args.file) };

        T::can_finish(
            file,
            Outcome::from_raw(args.retrieve_status),
            Handle(args.serialized_data),
        )
    }

    /// # Safety
    ///
    /// `args` must be valid, and its `file` valid or null.
    unsafe extern "C" fn finish(args: *mut bindings::liveupdate_file_op_args) {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: By the requirement of this function; for `fdget_pos()` see `can_preserve`.
        let file = unsafe { optional_file(args.file) };

        T::finish(
            file,
            Outcome::from_raw(args.retrieve_status),
            Handle(args.serialized_data),
        );
    }
}

/// # Safety
///
/// `file` must be null, or a file as [`File::from_raw_file`] asks for.
unsafe fn optional_file<'a>(file: *mut bindings::file) -> Option<&'a File> {
    // SAFETY: By the requirement of this function.
    NonNull::new(file).map(|file| unsafe { File::from_raw_file(file.as_ptr()) })
}

/// State that several preserved files share.
///
/// All methods may sleep. LUO serializes them for one FLB.
///
/// C counterpart: `struct liveupdate_flb_ops`.
#[vtable]
pub trait Flb: Sized {
    /// Names the state together with the version of its handed-over layout; at most 47 bytes.
    const COMPATIBLE: &'static CStr;

    /// The live object: what drivers get from [`FlbCell::outgoing`] and [`FlbCell::incoming`].
    type Object: Send + Sync;

    /// Saves the state: a first file that needs it is about to be preserved.
    ///
    /// # Errors
    ///
    /// Any; it fails the preservation of that file.
    fn preserve() -> Result<(Handle, Self::Object)>;

    /// Undoes `preserve`: the last file that needs the state is not preserved any more.
    fn unpreserve(object: Self::Object, handle: Handle);

    /// Makes the live object from what was handed over, when it is asked for first, or finished.
    ///
    /// # Errors
    ///
    /// Any; whoever asks for the object gets it, now and later. There is no second try.
    fn retrieve(handle: Handle) -> Result<Self::Object>;

    /// The last file that needs the state is finished, and so is the last user of the object.
    fn finish(object: Self::Object);
}

mod private {
    /// Keeps [`super::AnyFlb`] from being implemented or called elsewhere.
    pub struct Token;
}

/// Any [`FlbCell`], for a list of them.
pub trait AnyFlb: Sync {
    #[doc(hidden)]
    fn as_raw(&self, _: private::Token) -> *mut bindings::liveupdate_flb;
}

/// Where the state of an [`Flb`] lives. Meant for a `static`:
///
/// ```
/// use kernel::liveupdate::{
///     Flb,
///     FlbCell,
///     Handle, //
/// };
///
/// struct Generation;
///
/// #[vtable]
/// impl Flb for Generation {
///     const COMPATIBLE: &'static CStr = c"example-generation-v1";
///     type Object = u64;
///
///     fn preserve() -> Result<(Handle, u64)> {
///         Ok((Handle::new(1), 1))
///     }
///
///     fn unpreserve(_object: u64, _handle: Handle) {}
///
///     fn retrieve(handle: Handle) -> Result<u64> {
///         Ok(handle.get() + 1)
///     }
///
///     fn finish(_object: u64) {}
/// }
///
/// static GENERATION: FlbCell<Generation> = FlbCell::new();
///
/// // Nothing is preserved, so there is no object to get.
/// assert!(GENERATION.outgoing().is_err());
/// ```
pub struct FlbCell<T: Flb> {
    flb: Opaque<bindings::liveupdate_flb>,
    _flb: PhantomData<T>,
}

// SAFETY: The C structure is protected by locks of LUO, and the objects that a cell gives out are
// `Send` and `Sync`.
unsafe impl<T: Flb> Sync for FlbCell<T> {}

impl<T: Flb + 'static> FlbCell<T> {
    /// Makes a cell for a `static`.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        let mut flb: bindings::liveupdate_flb = pin_init::zeroed();
        flb.ops = &FlbVtable::<T>::OPS;
        flb.compatible = const { compatible(T::COMPATIBLE) };

        Self {
            flb: Opaque::new(flb),
            _flb: PhantomData,
        }
    }

    /// The live object of this kernel, which goes to the next one.
    ///
    /// # Errors
    ///
    /// - [`ENOENT`] if no file that needs it is preserved.
    /// - [`EOPNOTSUPP`] if live update is not enabled.
    ///
    /// C counterpart: `liveupdate_flb_get_outgoing()`.
    pub fn outgoing(&'static self) -> Result<FlbRef<T>> {
        self.get(
            bindings::liveupdate_flb_get_outgoing,
            bindings::liveupdate_flb_put_outgoing,
        )
    }

    /// The live object that came from the previous kernel. The first call makes it.
    ///
    /// # Errors
    ///
    /// - [`ENODATA`] if there is no incoming live update, or the object is finished.
    /// - [`ENOENT`] if the previous kernel did not preserve it.
    /// - Any that [`Flb::retrieve`] returns, again and again.
    /// - [`ENODEV`] if the module that owns the FLB is going away.
    /// - [`EOPNOTSUPP`] if live update is not enabled.
    ///
    /// C counterpart: `liveupdate_flb_get_incoming()`.
    pub fn incoming(&'static self) -> Result<FlbRef<T>> {
        self.get(
            bindings::liveupdate_flb_get_incoming,
            bindings::liveupdate_flb_put_incoming,
        )
    }

    fn get(
        &'static self,
        get: unsafe extern "C" fn(*mut bindings::liveupdate_flb, *mut *mut c_void) -> c_int,
        put: unsafe extern "C" fn(*mut bindings::liveupdate_flb),
    ) -> Result<FlbRef<T>> {
        let mut object: *mut c_void = core::ptr::null_mut();
        // SAFETY: The cell is a static with the FLB initialized; `object` is ours to write.
        to_result(unsafe { get(self.flb.get(), &mut object) })?;

        // INVARIANT: The call took a reference, which `put` gives back.
        Ok(FlbRef {
            flb: self.flb.get(),
            object: NonNull::new(object.cast()).ok_or(ENOENT)?,
            put,
        })
    }
}

impl<T: Flb> AnyFlb for FlbCell<T> {
    fn as_raw(&self, _: private::Token) -> *mut bindings::liveupdate_flb {
        self.flb.get()
    }
}

/// A reference to the live object of an [`Flb`], which stays until the reference is dropped.
///
/// # Invariants
///
/// `object` is the object of the static `flb`, and we own a reference that `put` gives back.
pub struct FlbRef<T: Flb> {
    flb: *mut bindings::liveupdate_flb,
    object: NonNull<T::Object>,
    put: unsafe extern "C" fn(*mut bindings::liveupdate_flb),
}

// SAFETY: The object is `Sync`, and a reference may be given back by any thread.
unsafe impl<T: Flb> Send for FlbRef<T> {}
// SAFETY: The object is `Sync`, and a shared reference gives out nothing else.
unsafe impl<T: Flb> Sync for FlbRef<T> {}

impl<T: Flb> Deref for FlbRef<T> {
    type Target = T::Object;

    fn deref(&self) -> &T::Object {
        // SAFETY: By the type invariant the object is alive, and LUO gives it out shared only.
        unsafe { self.object.as_ref() }
    }
}

impl<T: Flb> Drop for FlbRef<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own a reference.
        unsafe { (self.put)(self.flb) };
    }
}

/// The C callbacks of an [`Flb`].
struct FlbVtable<T: Flb>(PhantomData<T>);

impl<T: Flb + 'static> FlbVtable<T> {
    const OPS: bindings::liveupdate_flb_ops = bindings::liveupdate_flb_ops {
        preserve: Some(Self::preserve),
        unpreserve: Some(Self::unpreserve),
        retrieve: Some(Self::retrieve),
        finish: Some(Self::finish),
        owner: this_module::<T::OwnerModule>().as_ptr(),
    };

    /// # Safety
    ///
    /// `args` must be valid.
    unsafe extern "C" fn preserve(args: *mut bindings::liveupdate_flb_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };

        from_result(|| {
            // First, so that nothing can fail once the state is preserved.
            let slot = KBox::<T::Object>::new_uninit(GFP_KERNEL)?;
            let (handle, object) = T::preserve()?;

            args.data = handle.get();
            args.obj = KBox::into_raw(slot.write(object)).cast();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `args` must be as `preserve` left it; called once for each `preserve`.
    unsafe extern "C" fn unpreserve(args: *mut bindings::liveupdate_flb_op_args) {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: `preserve` put a box there, and nobody has a reference to it any more.
        let object = unsafe { KBox::<T::Object>::from_raw(args.obj.cast()) };

        T::unpreserve(KBox::into_inner(object), Handle(args.data));
    }

    /// # Safety
    ///
    /// `args` must be valid.
    unsafe extern "C" fn retrieve(args: *mut bindings::liveupdate_flb_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };

        from_result(|| {
            let slot = KBox::<T::Object>::new_uninit(GFP_KERNEL)?;
            args.obj = KBox::into_raw(slot.write(T::retrieve(Handle(args.data))?)).cast();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `args` must hold the object of `retrieve`; called once for each `retrieve`.
    unsafe extern "C" fn finish(args: *mut bindings::liveupdate_flb_op_args) {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: `retrieve` put a box there, and nobody has a reference to it any more.
        let object = unsafe { KBox::<T::Object>::from_raw(args.obj.cast()) };

        T::finish(KBox::into_inner(object));
    }
}
