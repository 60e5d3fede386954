// SPDX-License-Identifier: GPL-2.0

//! State that survives a live update and belongs to no file.

use super::{
    compatible,
    Handover, //
};
use crate::{
    bindings,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Release, //
    },
    types::Opaque, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData, //
};

/// When a [`Subsystem`] is told of an event.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Before devices are.
    BeforeDevices,
    /// Together with devices.
    WithDevices,
    /// After devices are.
    AfterDevices,
}

impl Priority {
    const fn to_raw(self) -> bindings::liveupdate_cb_priority {
        match self {
            Self::BeforeDevices => {
                bindings::liveupdate_cb_priority_LIVEUPDATE_CB_PRIO_BEFORE_DEVICES
            }
            Self::WithDevices => bindings::liveupdate_cb_priority_LIVEUPDATE_CB_PRIO_WITH_DEVICES,
            Self::AfterDevices => bindings::liveupdate_cb_priority_LIVEUPDATE_CB_PRIO_AFTER_DEVICES,
        }
    }
}

/// A part of the kernel that hands over state which belongs to no file.
///
/// ```text
///  old kernel                               new kernel
///
///  prepare ─┬─ reboot ───── kexec ────────  restore ─── finish
///           │     │
///           └─────┴─ cancel
/// ```
///
/// All methods may sleep, and no two run at once. None may register or unregister a subsystem.
///
/// # Examples
///
/// ```
/// use kernel::liveupdate::{
///     Subsystem,
///     SubsystemCell, //
/// };
///
/// struct Boots;
///
/// #[vtable]
/// impl Subsystem for Boots {
///     const COMPATIBLE: &'static CStr = c"example-boots-v1";
///     type Saved = u64;
///
///     fn prepare() -> Result<u64> {
///         Ok(1)
///     }
///
///     fn cancel(_boots: u64) {}
///
///     fn restore(boots: u64) -> Result {
///         pr_info!("{} boots before this one\n", boots);
///         Ok(())
///     }
/// }
///
/// static BOOTS: SubsystemCell<Boots> = SubsystemCell::new();
///
/// // In a driver, the module's data keeps this.
/// let registration = BOOTS.register();
/// # assert!(registration.is_ok() || registration.err() == Some(EOPNOTSUPP));
/// ```
///
/// C counterpart: `struct liveupdate_subsystem`.
#[vtable]
pub trait Subsystem: Sized + 'static {
    /// Names the subsystem together with the version of its handed-over layout; at most 47 bytes.
    /// The state is given to the subsystem with the same string in the next kernel.
    const COMPATIBLE: &'static CStr;

    /// When it is told, compared with others.
    const PRIORITY: Priority = Priority::WithDevices;

    /// What is handed over.
    type Saved: Handover;

    /// A live update will be tried: saves what the next kernel needs. User space goes on, so long
    /// work belongs here. Called when somebody writes to `/sys/kernel/liveupdate/prepare`, else at
    /// the kexec.
    ///
    /// # Errors
    ///
    /// Any; it calls the live update off. Nothing must remain then of what the method did.
    fn prepare() -> Result<Self::Saved>;

    /// The kexec is about to happen: the last chance to change what was saved. Called in the
    /// blackout, so be quick.
    ///
    /// # Errors
    ///
    /// Any; it refuses the kexec, and all subsystems are cancelled, this one too.
    fn reboot(_saved: &mut Self::Saved) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Undoes `prepare`: the live update does not happen. Cannot fail.
    fn cancel(saved: Self::Saved);

    /// Restores what the previous kernel handed over. Called once, from
    /// [`SubsystemCell::register`], if there is something.
    ///
    /// # Errors
    ///
    /// Any; it is reported, and nothing else follows from it.
    fn restore(incoming: <Self::Saved as Handover>::Incoming) -> Result;

    /// The update is complete. Called when somebody writes to `/sys/kernel/liveupdate/finish`;
    /// or after `restore`, if that is late. Cannot fail.
    fn finish() {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Where a [`Subsystem`] is registered. Meant for a `static`.
///
/// # Invariants
///
/// `subsystem` is registered with LUO exactly if `registered` is true, except while that changes.
/// `saved` is only touched by its callbacks, of which LUO never runs two at once.
#[repr(C)]
pub struct SubsystemCell<T: Subsystem> {
    subsystem: Opaque<bindings::liveupdate_subsystem>,
    saved: UnsafeCell<Option<T::Saved>>,
    registered: Atomic<bool>,
}

// SAFETY: The C structure is only read; by the type invariant what was saved is not used by two at
// once, and it may move to another thread.
unsafe impl<T: Subsystem> Sync for SubsystemCell<T> {}

impl<T: Subsystem> SubsystemCell<T> {
    /// Makes a cell for a `static`.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        // INVARIANT: It is not registered.
        Self {
            subsystem: Opaque::new(bindings::liveupdate_subsystem {
                ops: &Vtable::<T>::OPS,
                compatible: const { compatible(T::COMPATIBLE) },
                priority: T::PRIORITY.to_raw(),
            }),
            saved: UnsafeCell::new(None),
            registered: Atomic::new(false),
        }
    }

    /// Registers the subsystem, and has it restore what was handed over for it.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if live update is not enabled.
    /// - [`EEXIST`] if it is registered, or another one has the same compatible string.
    /// - [`ENOSPC`] if there are too many subsystems on this machine.
    /// - [`ENOMEM`] if memory is short.
    ///
    /// C counterpart: `liveupdate_register_subsystem()`.
    pub fn register(&'static self) -> Result<SubsystemRegistration<T>> {
        self.registered
            .cmpxchg(false, true, Full)
            .map_err(|_registered| EEXIST)?;

        // SAFETY: The cell is a static with the subsystem initialized, and it is not registered.
        // The callbacks expect it to be part of a cell, as it is.
        to_result(unsafe { bindings::liveupdate_register_subsystem(self.subsystem.get()) })
            .inspect_err(|_| self.registered.store(false, Release))?;
        Ok(SubsystemRegistration { cell: self })
    }
}

/// A registered [`Subsystem`]. Dropping it unregisters; what is prepared is cancelled.
#[must_use]
pub struct SubsystemRegistration<T: Subsystem> {
    cell: &'static SubsystemCell<T>,
}

impl<T: Subsystem> Drop for SubsystemRegistration<T> {
    fn drop(&mut self) {
        // SAFETY: The subsystem is registered, since this is the only registration of the cell.
        unsafe { bindings::liveupdate_unregister_subsystem(self.cell.subsystem.get()) };
        self.cell.registered.store(false, Release);
    }
}

/// The C callbacks of a [`Subsystem`].
struct Vtable<T: Subsystem>(PhantomData<T>);

impl<T: Subsystem> Vtable<T> {
    const OPS: bindings::liveupdate_subsystem_ops = bindings::liveupdate_subsystem_ops {
        prepare: Some(Self::prepare),
        reboot: if T::HAS_REBOOT {
            Some(Self::reboot)
        } else {
            None
        },
        cancel: Some(Self::cancel),
        restore: Some(Self::restore),
        finish: if T::HAS_FINISH {
            Some(Self::finish)
        } else {
            None
        },
    };

    /// What is kept between `prepare` and `cancel`.
    ///
    /// # Safety
    ///
    /// `subsystem` must be part of a static `SubsystemCell<T>`, and no other callback may run as
    /// long as the result is used.
    unsafe fn saved<'a>(
        subsystem: *mut bindings::liveupdate_subsystem,
    ) -> &'a mut Option<T::Saved> {
        // CAST: It is the first field of the cell.
        let cell = subsystem.cast::<SubsystemCell<T>>();

        // SAFETY: By the requirement of this function the cell is there, and nobody else has access
        // to the field.
        unsafe { &mut *UnsafeCell::raw_get(&raw const (*cell).saved) }
    }

    /// # Safety
    ///
    /// As for [`Self::saved`], during the call; `data` must be valid for a write.
    unsafe extern "C" fn prepare(
        subsystem: *mut bindings::liveupdate_subsystem,
        data: *mut u64,
    ) -> c_int {
        from_result(|| {
            let value = T::prepare()?;
            // SAFETY: By the requirement of this function `data` is valid for a write.
            unsafe { data.write(value.to_bits()) };
            // SAFETY: By the requirement of this function `subsystem` is that of a cell, whose
            // value nobody else uses.
            *unsafe { Self::saved(subsystem) } = Some(value);
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for `prepare`.
    unsafe extern "C" fn reboot(
        subsystem: *mut bindings::liveupdate_subsystem,
        data: *mut u64,
    ) -> c_int {
        from_result(|| {
            // SAFETY: By the requirement of this function `subsystem` is that of a cell, whose
            // value nobody else uses.
            let value = unsafe { Self::saved(subsystem) }.as_mut().ok_or(EINVAL)?;
            T::reboot(value)?;
            // SAFETY: By the requirement of this function `data` is valid for a write.
            unsafe { data.write(value.to_bits()) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::saved`], during the call.
    unsafe extern "C" fn cancel(subsystem: *mut bindings::liveupdate_subsystem, _data: u64) {
        // SAFETY: By the requirement of this function `subsystem` is that of a cell, whose value
        // nobody else uses.
        if let Some(value) = unsafe { Self::saved(subsystem) }.take() {
            T::cancel(value);
        }
    }

    /// # Safety
    ///
    /// None; it is unsafe as the C type of callbacks is.
    unsafe extern "C" fn restore(
        _subsystem: *mut bindings::liveupdate_subsystem,
        data: u64,
    ) -> c_int {
        from_result(|| {
            T::restore(T::Saved::from_bits(data)?)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// None; it is unsafe as the C type of callbacks is.
    unsafe extern "C" fn finish(_subsystem: *mut bindings::liveupdate_subsystem) {
        T::finish();
    }
}
