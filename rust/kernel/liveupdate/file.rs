// SPDX-License-Identifier: GPL-2.0

//! Types of files that survive a live update.

use super::{
    compatible,
    AnyFlb,
    Handover,
    Token, //
};
#[cfg(CONFIG_LIVEUPDATE_RUST)]
use crate::str::RawFormatter;
use crate::{
    bindings,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    fs::File,
    module::this_module,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Release, //
        }, //
    },
    types::Opaque, //
};
use core::{
    fmt,
    marker::PhantomData,
    ptr::NonNull, //
};

/// How far a file was retrieved when it is finished.
///
/// `H` is the incoming handle.
pub enum Outcome<'a, H> {
    /// The file was not retrieved.
    NotRetrieved(H),
    /// [`FileHandler::retrieve`] made this file.
    Retrieved(&'a File),
    /// [`FileHandler::retrieve`] failed for good.
    Failed {
        /// By this error.
        error: Error,
        /// The handle, unless it is known to be consumed. Its memory may be claimed already, in
        /// part or in whole.
        left: Option<H>,
    },
}

/// Why [`FileHandler::retrieve`] failed.
#[derive(Debug)]
pub enum RetrieveError<H> {
    /// Nothing was claimed, and the handle is returned: another attempt may succeed.
    ///
    /// For shortages that pass, such as [`ENFILE`] or [`ENOMEM`]. The C implementation of LUO
    /// treats it like [`RetrieveError::Final`]; then `finish` gets [`Outcome::Failed`] although
    /// nothing was claimed.
    Again(Error, H),
    /// The handler has cleaned up what it could; the file is lost.
    Final(Error),
}

impl<H> From<Error> for RetrieveError<H> {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// A file that [`FileHandler::summarize`] is to describe.
pub enum FileState<'a, T: FileHandler> {
    /// It is preserved.
    Preserved {
        /// The file.
        file: &'a File,
        /// The state that the handler keeps of it.
        state: &'a T::State,
        /// What is to be handed over.
        handle: &'a T::Handle,
    },
    /// It is incoming, and not retrieved yet.
    Incoming(&'a IncomingHandle<T>),
    /// [`FileHandler::retrieve`] made this file.
    Retrieved(&'a File),
}

/// The handle of a [`FileHandler`] in the next kernel.
pub type IncomingHandle<T> = <<T as FileHandler>::Handle as Handover>::Incoming;

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
///
/// [`FlbCell::outgoing`]: super::FlbCell::outgoing
/// [`FlbCell::incoming`]: super::FlbCell::incoming
#[vtable]
pub trait FileHandler: Sized + 'static {
    /// Names the type of file together with the version of its handed-over layout; at most 47
    /// bytes. A file is given to the handler with the same string in the next kernel, also if
    /// another handler wrote it.
    const COMPATIBLE: &'static CStr;

    /// What is handed over for one file.
    type Handle: Handover;

    /// The state of a file between `preserve` and `unpreserve`. It stays in this kernel.
    type State: Send;

    /// Shared state that must be preserved whenever a file of this type is, in the order in which
    /// it is preserved; it is undone and finished in the reverse order. Asked for once, at
    /// registration. By default there is none.
    ///
    /// ```
    /// # use kernel::liveupdate::{AnyFlb, Flb, FlbCell};
    /// # struct Generation;
    /// # #[vtable]
    /// # impl Flb for Generation {
    /// #     const COMPATIBLE: &'static CStr = c"example-generation-v1";
    /// #     type Handle = u64;
    /// #     type Outgoing = ();
    /// #     type Incoming = ();
    /// #     fn preserve() -> Result<(u64, ())> { Ok((1, ())) }
    /// #     fn unpreserve(_object: (), _handle: u64) {}
    /// #     fn retrieve(_handle: u64) -> Result<()> { Ok(()) }
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
    /// file that was retrieved and not finished.
    ///
    /// If [`outgoing_abi`](super::outgoing_abi) changes, and a driver has another handler for the
    /// new layouts that accepts the file, that one preserves it, too, before this one unpreserves
    /// it; or fails, or unpreserves it again, and everything stays as it was.
    ///
    /// # Errors
    ///
    /// Any; the agent gets it. Nothing must remain then of what the method did. [`EAGAIN`] says
    /// that the file has changed since [`FileHandler::can_preserve`] and may be one for another
    /// handler: LUO in Rust asks them again, a few times.
    fn preserve(file: &File) -> Result<(Self::Handle, Self::State)>;

    /// The last chance to update what was saved. Called in the blackout, so be quick.
    ///
    /// User space still runs, and goes on using the file until the processors stop: what it may
    /// change meanwhile needs its lock here as anywhere, and what it changes afterwards must be
    /// handed over, or be refused. A lock that is taken here must not be held across a copy to or
    /// from user space, which may fault and wait for reclaim.
    ///
    /// # Errors
    ///
    /// Any; it calls the kexec off. Files frozen before are unfrozen, this one is not.
    fn freeze(_file: &File, _state: &mut Self::State, _handle: &mut Self::Handle) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Undoes `freeze`: the kexec was called off. Cannot fail.
    fn unfreeze(_file: &File, _state: &mut Self::State, _handle: &mut Self::Handle) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Undoes `preserve`: the session was closed before a kexec. Cannot fail.
    fn unpreserve(file: &File, state: Self::State, handle: Self::Handle);

    /// Makes the file anew from what was handed over. LUO keeps a reference to it until `finish`.
    ///
    /// # Errors
    ///
    /// Any, with [`RetrieveError`] telling whether asking again makes sense. `?` on an [`Error`]
    /// means that it does not.
    fn retrieve(
        incoming: IncomingHandle<Self>,
    ) -> Result<ARef<File>, RetrieveError<IncomingHandle<Self>>>;

    /// Makes what was handed over the content of `target`, a file that the agent gives, and returns
    /// that file. LUO keeps a reference to it until `finish`.
    ///
    /// Without this method a target is refused by [`EOPNOTSUPP`], and the file can be retrieved
    /// without one. Under the C implementation it is never called.
    ///
    /// # Errors
    ///
    /// Those of `retrieve`. For a target that does not do, [`RetrieveError::Again`]: nothing of it or
    /// of the file has changed then.
    fn retrieve_into(
        _incoming: IncomingHandle<Self>,
        _target: &File,
    ) -> Result<ARef<File>, RetrieveError<IncomingHandle<Self>>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Whether `finish` may be called now. By default yes. If any file of a session says no, none
    /// of them is finished, and the agent gets [`EBUSY`].
    fn can_finish(_outcome: Outcome<'_, ()>) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Describes a file for debugfs in a few words on one line, such as its size. Nothing may
    /// change by it. Under the C implementation it is never called.
    ///
    /// # Errors
    ///
    /// Any, if there is nothing to be said.
    fn summarize(_file: FileState<'_, Self>, _to: &mut dyn fmt::Write) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Ends LUO's part: after this the file is an ordinary one. Dropping the handle in `outcome`
    /// frees the memory that it stands for. Cannot fail.
    fn finish(outcome: Outcome<'_, IncomingHandle<Self>>);
}

/// Where a [`FileHandler`] is registered. Meant for a `static`, so that it outlives every file
/// that LUO knows it for: a module stays while one is preserved or incoming.
///
/// # Invariants
///
/// `handler` is registered with LUO exactly if `registered` is true, except while that changes.
pub struct HandlerCell<T: FileHandler> {
    handler: Opaque<bindings::liveupdate_file_handler>,
    registered: Atomic<bool>,
    _handler: PhantomData<T>,
}

// SAFETY: The C structure is protected by locks of LUO, and written only by the task that
// has set `registered`.
unsafe impl<T: FileHandler> Sync for HandlerCell<T> {}

impl<T: FileHandler> HandlerCell<T> {
    /// Makes a cell for a `static`.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        let mut handler: bindings::liveupdate_file_handler = pin_init::zeroed();
        handler.ops = &FileHandlerVtable::<T>::OPS;
        handler.compatible = const { compatible(T::COMPATIBLE) };

        // INVARIANT: It is not registered.
        Self {
            handler: Opaque::new(handler),
            registered: Atomic::new(false),
            _handler: PhantomData,
        }
    }

    /// Registers the handler, and its dependency on each of [`FileHandler::flbs`].
    ///
    /// May sleep. Files that the previous kernel handed over for the handler can be retrieved from
    /// now on, whenever that is.
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if live update is not enabled.
    /// - [`EEXIST`] if it is registered, or another handler has the same compatible string, or
    ///   another FLB has that of one of ours, or one is named twice.
    /// - [`ENOSPC`] if there are too many different FLBs on this machine.
    /// - [`ENOMEM`] if memory is short.
    ///
    /// C counterparts: `liveupdate_register_file_handler()`, `liveupdate_register_flb()`.
    pub fn register(&'static self) -> Result<Registration<T>> {
        self.registered
            .cmpxchg(false, true, Full)
            .map_err(|_registered| EEXIST)?;

        let handler = self.handler.get();
        // SAFETY: The cell is a static with the handler initialized, and it is not registered.
        to_result(unsafe { FileHandlerVtable::<T>::register(handler) })
            .inspect_err(|_| self.registered.store(false, Release))?;

        // From here on a drop takes it back, the FLBs included.
        let registration = Registration { cell: self };
        for flb in T::flbs() {
            // SAFETY: The handler is registered, and the FLB is a static.
            to_result(unsafe {
                bindings::liveupdate_register_flb(handler, flb.as_raw(Token(())))
            })?;
        }
        Ok(registration)
    }
}

/// A registered [`FileHandler`]. Dropping it unregisters.
///
/// A module that owns one cannot be unloaded while a file of this type is preserved, or incoming
/// and not finished.
pub struct Registration<T: FileHandler> {
    cell: &'static HandlerCell<T>,
}

impl<T: FileHandler> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: The handler is registered, since this is the only registration of the cell.
        unsafe { bindings::liveupdate_unregister_file_handler(self.cell.handler.get()) };
        self.cell.registered.store(false, Release);
    }
}

/// The C callbacks of a [`FileHandler`].
struct FileHandlerVtable<T: FileHandler>(PhantomData<T>);

/// What `preserve` leaves for the callbacks after it.
struct Kept<T: FileHandler> {
    handle: T::Handle,
    state: T::State,
}

impl<T: FileHandler> FileHandlerVtable<T> {
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

    #[cfg(CONFIG_LIVEUPDATE_RUST)]
    const DESCRIPTION: bindings::liveupdate_file_description =
        bindings::liveupdate_file_description {
            summarize: if T::HAS_SUMMARIZE {
                Some(Self::summarize)
            } else {
                None
            },
            retrieve_into: if T::HAS_RETRIEVE_INTO {
                Some(Self::retrieve_into)
            } else {
                None
            },
        };

    /// # Safety
    ///
    /// As for `liveupdate_register_file_handler()`; its callbacks must be [`Self::OPS`].
    unsafe fn register(handler: *mut bindings::liveupdate_file_handler) -> c_int {
        #[cfg(CONFIG_LIVEUPDATE_RUST)]
        if T::HAS_SUMMARIZE || T::HAS_RETRIEVE_INTO {
            // SAFETY: By the requirement of this function `handler` is as the C function wants it. The
            // description is a constant, so this reference is to a static.
            return unsafe {
                bindings::liveupdate_register_described_handler(handler, &Self::DESCRIPTION)
            };
        }
        // SAFETY: By the requirement of this function `handler` is as the C function wants it.
        unsafe { bindings::liveupdate_register_file_handler(handler) }
    }

    /// # Safety
    ///
    /// `file` must be a valid file for the duration of the call.
    unsafe extern "C" fn can_preserve(
        _handler: *mut bindings::liveupdate_file_handler,
        file: *mut bindings::file,
    ) -> bool {
        // SAFETY: By the requirement of this function `file` is valid for the call. LUO runs in an ioctl
        // or without a file descriptor at all, so no `fdget_pos()` region is active.
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
            let slot = KBox::<Kept<T>>::new_uninit(GFP_KERNEL_ACCOUNT)?;
            let (handle, state) = T::preserve(file)?;

            args.serialized_data = handle.to_bits();
            args.private_data = KBox::into_raw(slot.write(Kept { handle, state })).cast();
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
        let kept = unsafe { KBox::<Kept<T>>::from_raw(args.private_data.cast()) };
        let Kept { handle, state } = KBox::into_inner(kept);

        T::unpreserve(file, state, handle);
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
        let kept = unsafe { &mut *args.private_data.cast::<Kept<T>>() };

        from_result(|| {
            T::freeze(file, &mut kept.state, &mut kept.handle)?;
            args.serialized_data = kept.handle.to_bits();
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
        let kept = unsafe { &mut *args.private_data.cast::<Kept<T>>() };

        T::unfreeze(file, &mut kept.state, &mut kept.handle);
        args.serialized_data = kept.handle.to_bits();
    }

    /// # Safety
    ///
    /// `args` must be valid.
    unsafe extern "C" fn retrieve(args: *mut bindings::liveupdate_file_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };

        Self::retrieved(args, T::retrieve)
    }

    /// # Safety
    ///
    /// `args` must be valid, and its `file` set.
    #[cfg(CONFIG_LIVEUPDATE_RUST)]
    unsafe extern "C" fn retrieve_into(args: *mut bindings::liveupdate_file_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: As in `can_preserve`. The caller has a reference to it for the call.
        let target = unsafe { File::from_raw_file(args.file) };

        Self::retrieved(args, |incoming| T::retrieve_into(incoming, target))
    }

    /// Retrieves a file, and says in `args` which, or whether one may try again.
    fn retrieved(
        args: &mut bindings::liveupdate_file_op_args,
        retrieve: impl FnOnce(IncomingHandle<T>) -> Result<ARef<File>, RetrieveError<IncomingHandle<T>>>,
    ) -> c_int {
        from_result(|| {
            let incoming = T::Handle::from_bits(args.serialized_data)?;
            let file = retrieve(incoming).map_err(|why| match why {
                RetrieveError::Again(error, incoming) => {
                    T::Handle::keep(incoming);
                    args.retrieve_status = RETRIEVE_AGAIN;
                    error
                }
                RetrieveError::Final(error) => error,
            })?;

            // The reference goes to the caller.
            args.file = ARef::into_raw(file).as_ptr().cast();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `args` must be valid, and its `file` valid or null.
    unsafe extern "C" fn can_finish(args: *mut bindings::liveupdate_file_op_args) -> bool {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: By the requirement of this function `args` is valid, and its file valid or null.
        let outcome = unsafe { outcome(args, |_| Ok(())) };

        T::can_finish(outcome)
    }

    /// # Safety
    ///
    /// `args` must be valid, and its `file` valid or null.
    unsafe extern "C" fn finish(args: *mut bindings::liveupdate_file_op_args) {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: By the requirement of this function `args` is valid, and its file valid or null.
        let outcome = unsafe { outcome(args, T::Handle::from_bits) };

        T::finish(outcome);
    }

    /// # Safety
    ///
    /// `args` must be valid, with a reference to its file if there is one: as `preserve` left it if
    /// there is a file and the status is zero, else as for `finish`. No other callback may run for
    /// the file. `buffer` must be valid for a write of `size` bytes.
    #[cfg(CONFIG_LIVEUPDATE_RUST)]
    unsafe extern "C" fn summarize(
        args: *mut bindings::liveupdate_file_op_args,
        buffer: *mut c_char,
        size: usize,
    ) -> usize {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };
        // SAFETY: By the requirement of this function `buffer` is valid for a write of `size`
        // bytes.
        let mut text = unsafe { RawFormatter::from_buffer(buffer.cast(), size) };

        let file = NonNull::new(args.file).map(|file| {
            // SAFETY: `file` is valid for the call, as LUO has a reference to it. So another task that
            // has it and uses its position locks that.
            unsafe { File::from_raw_file(file.as_ptr()) }
        });
        let told = match (file, args.retrieve_status) {
            (Some(file), 0) => {
                // SAFETY: `preserve` put a box there, which is alive until `unpreserve`, and no
                // other callback uses it now.
                let Kept { handle, state } = unsafe { &*args.private_data.cast::<Kept<T>>() };
                let state = FileState::Preserved {
                    file,
                    state,
                    handle,
                };
                T::summarize(state, &mut text)
            }
            (Some(file), _) => T::summarize(FileState::Retrieved(file), &mut text),
            (None, _) => T::Handle::from_bits(args.serialized_data).and_then(|incoming| {
                let told = T::summarize(FileState::Incoming(&incoming), &mut text);
                T::Handle::keep(incoming);
                told
            }),
        };

        told.map_or(0, |()| text.bytes_written().min(size))
    }
}

/// What `args` say of the retrieval.
///
/// # Safety
///
/// The file in `args` must be null, or a file as [`File::from_raw_file`] asks for.
unsafe fn outcome<H>(
    args: &bindings::liveupdate_file_op_args,
    handle: impl FnOnce(u64) -> Result<H>,
) -> Outcome<'_, H> {
    match args.retrieve_status {
        0 => match handle(args.serialized_data) {
            Ok(incoming) => Outcome::NotRetrieved(incoming),
            Err(error) => Outcome::Failed { error, left: None },
        },
        ..0 => Outcome::Failed {
            error: Error::from_errno(args.retrieve_status),
            left: handle(args.serialized_data).ok(),
        },
        1.. => match NonNull::new(args.file) {
            // SAFETY: By the requirement of this function. As LUO runs in an ioctl or without a
            // file descriptor at all, no `fdget_pos()` region is active.
            Some(file) => Outcome::Retrieved(unsafe { File::from_raw_file(file.as_ptr()) }),
            // It was retrieved, but there is no file: LUO does not do that.
            None => Outcome::Failed {
                error: EINVAL,
                left: None,
            },
        },
    }
}
