// SPDX-License-Identifier: GPL-2.0

//! File-lifecycle-bound state (FLB): what several files share in a live update.

use super::{
    compatible,
    Handover,
    Token, //
};
use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    module::this_module,
    prelude::*,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// State that several preserved files share.
///
/// All methods may sleep. LUO serializes them for one FLB. None of them may ask for the object of
/// any FLB, this one or another: that would deadlock.
///
/// C counterpart: `struct liveupdate_flb_ops`.
#[vtable]
pub trait Flb: Sized + 'static {
    /// Names the state together with the version of its handed-over layout; at most 47 bytes.
    const COMPATIBLE: &'static CStr;

    /// What is handed over.
    type Handle: Handover;

    /// The live object in this kernel: what drivers get from [`FlbCell::outgoing`].
    type Outgoing: Send + Sync;

    /// The live object in the next kernel: what drivers get from [`FlbCell::incoming`].
    type Incoming: Send + Sync;

    /// Saves the state: a first file that needs it is about to be preserved.
    ///
    /// # Errors
    ///
    /// Any; it fails the preservation of that file.
    fn preserve() -> Result<(Self::Handle, Self::Outgoing)>;

    /// Undoes `preserve`: the last file that needs the state is not preserved any more. Cannot
    /// fail.
    fn unpreserve(object: Self::Outgoing, handle: Self::Handle);

    /// Makes the live object from what was handed over, when it is asked for first, or finished.
    ///
    /// # Errors
    ///
    /// Any; [`FlbCell::incoming`] returns it, each time. There is no second try.
    fn retrieve(incoming: <Self::Handle as Handover>::Incoming) -> Result<Self::Incoming>;

    /// The last file that needs the state is finished, and so is the last user of the object.
    /// Cannot fail.
    fn finish(object: Self::Incoming);
}

/// Any [`FlbCell`], for a list of them.
pub trait AnyFlb: Sync {
    #[doc(hidden)]
    fn as_raw(&self, _: Token) -> *mut bindings::liveupdate_flb;
}

/// Where the state of an [`Flb`] lives. Meant for a `static`:
///
/// ```
/// use kernel::liveupdate::{
///     Flb,
///     FlbCell, //
/// };
///
/// struct Generation;
///
/// #[vtable]
/// impl Flb for Generation {
///     const COMPATIBLE: &'static CStr = c"example-generation-v1";
///     type Handle = u64;
///     type Outgoing = ();
///     type Incoming = u64;
///
///     fn preserve() -> Result<(u64, ())> {
///         Ok((1, ()))
///     }
///
///     fn unpreserve(_object: (), _handle: u64) {}
///
///     fn retrieve(handle: u64) -> Result<u64> {
///         Ok(handle.saturating_add(1))
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

impl<T: Flb> FlbCell<T> {
    /// Makes a cell for a `static`.
    #[expect(clippy::new_without_default)]
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
    pub fn outgoing(&'static self) -> Result<FlbRef<T::Outgoing>> {
        // SAFETY: What LUO gives out as the outgoing object is what `preserve` left.
        let kept: FlbRef<Kept<T>> = unsafe {
            self.get(
                bindings::liveupdate_flb_get_outgoing,
                bindings::liveupdate_flb_put_outgoing,
            )
        }?;

        Ok(kept.map(|kept| &kept.object))
    }

    /// The incoming object. The first call makes it.
    ///
    /// # Errors
    ///
    /// - [`ENODATA`] if there is no incoming live update, or the object is finished.
    /// - [`ENOENT`] if the previous kernel did not preserve it.
    /// - Any that [`Flb::retrieve`] returns, again and again.
    /// - [`ENODEV`] if the module that owns the FLB is going away.
    /// - [`EEXIST`] if another FLB of that name made the object.
    /// - [`EOPNOTSUPP`] if live update is not enabled.
    ///
    /// C counterpart: `liveupdate_flb_get_incoming()`.
    pub fn incoming(&'static self) -> Result<FlbRef<T::Incoming>> {
        // SAFETY: What LUO gives out as the incoming object is what `retrieve` left.
        unsafe {
            self.get(
                bindings::liveupdate_flb_get_incoming,
                bindings::liveupdate_flb_put_incoming,
            )
        }
    }

    /// # Safety
    ///
    /// `get` must be the function that gives out what the callbacks of this FLB leave as a box of
    /// an `O`, and `put` the one that gives it back.
    unsafe fn get<O>(
        &'static self,
        get: unsafe extern "C" fn(*mut bindings::liveupdate_flb, *mut *mut c_void) -> c_int,
        put: unsafe extern "C" fn(*mut bindings::liveupdate_flb),
    ) -> Result<FlbRef<O>> {
        let mut object: *mut c_void = core::ptr::null_mut();
        // SAFETY: The cell is a static with the FLB initialized; `object` is ours to write.
        to_result(unsafe { get(self.flb.get(), &mut object) })?;

        // INVARIANT: By the requirement of this function it is an `O`.
        let Some(object) = NonNull::new(object.cast()) else {
            // No FLB of ours is without an object.
            // SAFETY: The call took a reference.
            unsafe { put(self.flb.get()) };
            return Err(ENOENT);
        };

        // INVARIANT: The call took a reference, which `put` gives back.
        Ok(FlbRef {
            flb: self.flb.get(),
            object,
            put,
        })
    }
}

impl<T: Flb> AnyFlb for FlbCell<T> {
    fn as_raw(&self, _: Token) -> *mut bindings::liveupdate_flb {
        self.flb.get()
    }
}

/// A reference to the live object of an [`Flb`], which stays until the reference is dropped.
///
/// # Invariants
///
/// `object` is, or is part of, the object of the static `flb`, and we own a reference that `put`
/// gives back.
pub struct FlbRef<O> {
    flb: *mut bindings::liveupdate_flb,
    object: NonNull<O>,
    put: unsafe extern "C" fn(*mut bindings::liveupdate_flb),
}

// SAFETY: Several threads may share the object, and a reference may be given back by any.
unsafe impl<O: Sync> Send for FlbRef<O> {}
// SAFETY: A shared reference gives out nothing but `&O`.
unsafe impl<O: Sync> Sync for FlbRef<O> {}

impl<O> FlbRef<O> {
    /// A reference to a part of the object.
    fn map<P>(self, part: impl FnOnce(&O) -> &P) -> FlbRef<P> {
        let whole = ManuallyDrop::new(self);

        // INVARIANT: The reference that we own goes along.
        FlbRef {
            flb: whole.flb,
            object: NonNull::from(part(&whole)),
            put: whole.put,
        }
    }
}

impl<O> Deref for FlbRef<O> {
    type Target = O;

    fn deref(&self) -> &O {
        // SAFETY: By the type invariant the object is alive, and it is given out shared only.
        unsafe { self.object.as_ref() }
    }
}

impl<O> Drop for FlbRef<O> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own a reference.
        unsafe { (self.put)(self.flb) };
    }
}

/// What LUO keeps for an outgoing [`Flb`]. For an incoming one it keeps the object alone.
struct Kept<T: Flb> {
    object: T::Outgoing,
    handle: T::Handle,
}

/// The C callbacks of an [`Flb`].
struct FlbVtable<T: Flb>(PhantomData<T>);

impl<T: Flb> FlbVtable<T> {
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
            let slot = KBox::<Kept<T>>::new_uninit(GFP_KERNEL)?;
            let (handle, object) = T::preserve()?;

            args.data = handle.to_bits();
            args.obj = KBox::into_raw(slot.write(Kept { object, handle })).cast();
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
        let kept = unsafe { KBox::<Kept<T>>::from_raw(args.obj.cast()) };
        let Kept { object, handle } = KBox::into_inner(kept);

        T::unpreserve(object, handle);
    }

    /// # Safety
    ///
    /// `args` must be valid.
    unsafe extern "C" fn retrieve(args: *mut bindings::liveupdate_flb_op_args) -> c_int {
        // SAFETY: By the requirement of this function, `args` is ours for the call.
        let args = unsafe { &mut *args };

        from_result(|| {
            let slot = KBox::<T::Incoming>::new_uninit(GFP_KERNEL)?;
            let object = T::retrieve(T::Handle::from_bits(args.data)?)?;

            args.obj = KBox::into_raw(slot.write(object)).cast();
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
        let object = unsafe { KBox::<T::Incoming>::from_raw(args.obj.cast()) };

        T::finish(KBox::into_inner(object));
    }
}
