// SPDX-License-Identifier: GPL-2.0

//! The C interface of LUO: what boot, the kexec code and C drivers call.
//!
//! Each function has the name and the meaning that `<linux/liveupdate.h>` gives it. All that is
//! done here is to turn pointers of C into what the safe code above understands.
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h).

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_result,
    kho::KexecLock,
    prelude::*, //
};

use super::{
    flb::{
        FlbRef,
        RegisteredFlb, //
    },
    handler::RegisteredHandler,
    subsystem::RegisteredSubsystem, //
};
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
use crate::luo_core::corrupt;
use crate::luo_core::{
    boot,
    orchestrator::{
        luo,
        Luo, //
    },
    outgoing_format::{
        self,
        Choice, //
    },
    params,
    reboot,
    subsystems::UpdatePhase, //
};

kernel::early_param!(c"liveupdate", luo_early_param);

/// # Safety
///
/// `value` must be null or a C string.
unsafe extern "C" fn luo_early_param(value: *mut c_char) -> c_int {
    from_result(|| {
        let value = NonNull::new(value).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function `value` is null or a C string, and it is not null.
        params::parse_enabled(unsafe { CStr::from_char_ptr(value.as_ptr()) })?;
        Ok(0)
    })
}

/// Chooses the format of what is handed over, for the parameter `liveupdate.abi=`.
///
/// Returns 0, or a negative errno as [`outgoing_format::choose`] has it.
#[no_mangle]
extern "C" fn luo_choose_abi(choice: c_uint) -> c_int {
    from_result(|| outgoing_format::choose(Choice::from_number(choice)?).map(|()| 0))
}

/// What was chosen.
#[no_mangle]
extern "C" fn luo_chosen_abi() -> c_uint {
    outgoing_format::chosen() as c_uint
}

kernel::early_param!(c"liveupdate.panic", luo_panic_param);

/// # Safety
///
/// `value` must be null or a C string.
unsafe extern "C" fn luo_panic_param(value: *mut c_char) -> c_int {
    from_result(|| {
        let value = NonNull::new(value).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function `value` is null or a C string, and it is not null.
        params::parse_panic(unsafe { CStr::from_char_ptr(value.as_ptr()) })?;
        Ok(0)
    })
}

#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
kernel::early_param!(c"liveupdate.corrupt", luo_corrupt_param);

/// # Safety
///
/// `value` must be null or a C string.
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
unsafe extern "C" fn luo_corrupt_param(value: *mut c_char) -> c_int {
    from_result(|| {
        let value = NonNull::new(value).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function `value` is null or a C string, and it is not null.
        corrupt::parse_parameter(unsafe { CStr::from_char_ptr(value.as_ptr()) })?;
        Ok(0)
    })
}

kernel::early_initcall!(luo_early_init);

#[no_mangle]
extern "C" fn luo_early_init() -> c_int {
    from_result(|| boot::early_init().map(|()| 0))
}

/// Whether live update is enabled on this machine.
///
/// Context: any.
///
/// # Safety
///
/// None; it is unsafe as all functions are that C declares.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_enabled() -> bool {
    luo().is_some()
}

/// Writes the state for the next kernel. An error calls the kexec off, with nothing changed.
///
/// Context: process, with the kexec lock held, before anything of the machine is shut down.
///
/// # Safety
///
/// The current task must hold the kexec lock.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_reboot() -> c_int {
    from_result(|| {
        // SAFETY: By the requirement of this function the current task holds the kexec lock.
        let lock = unsafe { KexecLock::assume_held() };
        reboot::reboot(&lock).map(|()| 0)
    })
}

extern "C" {
    /// The hook of `lib/tests/liveupdate.c` into each registration.
    #[cfg(CONFIG_LIVEUPDATE_TEST)]
    fn liveupdate_test_register(handler: *mut c_void);
}

/// Registers a file handler.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, `-EINVAL` if a callback is missing or the
/// compatible string is none, `-EEXIST` if there is a handler with it, or `-ENOMEM`.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `handler` must be valid, and stay so until it is unregistered and its module is not referred
/// to any more.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_register_file_handler(
    handler: *mut bindings::liveupdate_file_handler,
) -> c_int {
    // SAFETY: By the requirement of this function `handler` is valid for as long as it must be; a
    // null description is allowed.
    unsafe { liveupdate_register_described_handler(handler, core::ptr::null()) }
}

/// Registers a file handler that can describe its files, if `description` is not null.
///
/// Returns and context as for [`liveupdate_register_file_handler`].
///
/// # Safety
///
/// As for [`liveupdate_register_file_handler`], and likewise for `description`, if it is not null.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_register_described_handler(
    handler: *mut bindings::liveupdate_file_handler,
    description: *const bindings::liveupdate_file_description,
) -> c_int {
    from_result(|| {
        let luo = luo().ok_or(EOPNOTSUPP)?;
        let ptr = NonNull::new(handler).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function handler and description are valid until the
        // handler is unregistered and no reference to its module is left.
        let registered = unsafe { RegisteredHandler::new(ptr, description) }?;
        luo.context.handlers.register(registered)?;

        #[cfg(CONFIG_LIVEUPDATE_TEST)]
        // SAFETY: The handler is valid and registered, which is when the test wants to be told.
        unsafe {
            liveupdate_test_register(handler.cast());
        }
        Ok(0)
    })
}

/// Unregisters a file handler, and its dependencies on FLBs.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `handler` must be a pointer that was registered, or any other.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_unregister_file_handler(
    handler: *mut bindings::liveupdate_file_handler,
) {
    if let (Some(luo), Some(handler)) = (luo(), NonNull::new(handler)) {
        luo.context.handlers.unregister(handler, &luo.flbs);
    }
}

/// Makes a file handler depend on an FLB.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, `-EINVAL` if a callback is missing or the
/// handler is not registered, `-EEXIST` if it depends on the FLB already or another FLB has the
/// same compatible string, `-ENOSPC` if there are too many FLBs, or `-ENOMEM`.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `handler` must be valid. `flb` must be valid, and stay so until it is unregistered and its
/// module is not referred to any more.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_register_flb(
    handler: *mut bindings::liveupdate_file_handler,
    flb: *mut bindings::liveupdate_flb,
) -> c_int {
    from_result(|| {
        // SAFETY: By the requirement of this function `flb` is valid.
        let (luo, _) = unsafe { luo_and_flb(flb) }?;
        // SAFETY: By the requirement of this function `flb` is valid until it is unregistered and
        // no reference to its module is left.
        let flb = unsafe { RegisteredFlb::new(NonNull::new(flb).ok_or(EINVAL)?) }?;

        luo.context
            .handlers
            .link(NonNull::new(handler).ok_or(EINVAL)?, flb, &luo.flbs)?;
        Ok(0)
    })
}

/// Ends the dependency of a file handler on an FLB.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `handler` and `flb` must be valid.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_unregister_flb(
    handler: *mut bindings::liveupdate_file_handler,
    flb: *mut bindings::liveupdate_flb,
) {
    // SAFETY: By the requirement of this function `flb` is valid.
    let (Ok((luo, flb)), Some(handler)) = (unsafe { luo_and_flb(flb) }, NonNull::new(handler))
    else {
        return;
    };

    if luo
        .context
        .handlers
        .unlink(handler, flb.id(), &luo.flbs)
        .is_err()
    {
        pr_warn!(
            "FLB '{}': the handler to unregister it from does not depend on it\n",
            flb.compatible(),
        );
    }
}

/// Gets the object of an incoming FLB.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, `-ENODATA` if nothing was handed over or the
/// object is finished, `-ENOENT` if the previous kernel did not preserve it, `-EUCLEAN` if it left
/// corrupt ones of which this may be one, `-ENODEV` if the module of the FLB is about to go,
/// `-EEXIST` if another FLB of that name made the object, or what its `retrieve` callback returned.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `flb` must be valid, and stay so until the object is put; `object` must be valid for a write.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_flb_get_incoming(
    flb: *mut bindings::liveupdate_flb,
    object: *mut *mut c_void,
) -> c_int {
    from_result(|| {
        // SAFETY: By the requirement of this function `flb` is valid until the object is put.
        let (luo, flb) = unsafe { luo_and_flb(flb) }?;
        let got = luo.flbs.get_incoming(flb)?;
        // SAFETY: By the requirement of this function `object` is valid for a write.
        unsafe { object.write(got) };
        Ok(0)
    })
}

/// Gives back what [`liveupdate_flb_get_incoming`] gave.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `flb` must be valid.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_flb_put_incoming(flb: *mut bindings::liveupdate_flb) {
    // SAFETY: By the requirement of this function `flb` is valid.
    if let Ok((luo, flb)) = unsafe { luo_and_flb(flb) } {
        luo.flbs.put_incoming(flb);
    }
}

/// Gets the object of an FLB that goes to the next kernel.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, or `-ENOENT` if no file that depends on the FLB
/// is preserved.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// As for [`liveupdate_flb_get_incoming`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_flb_get_outgoing(
    flb: *mut bindings::liveupdate_flb,
    object: *mut *mut c_void,
) -> c_int {
    from_result(|| {
        // SAFETY: By the requirement of this function `flb` is valid until the object is put.
        let (luo, flb) = unsafe { luo_and_flb(flb) }?;
        let got = luo.flbs.get_outgoing(flb)?;
        // SAFETY: By the requirement of this function `object` is valid for a write.
        unsafe { object.write(got) };
        Ok(0)
    })
}

/// Gives back what [`liveupdate_flb_get_outgoing`] gave.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// `flb` must be valid.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_flb_put_outgoing(flb: *mut bindings::liveupdate_flb) {
    // SAFETY: By the requirement of this function `flb` is valid.
    if let Ok((luo, flb)) = unsafe { luo_and_flb(flb) } {
        luo.flbs.put_outgoing(flb);
    }
}

/// # Safety
///
/// `flb` must be null, or for `'a` as [`FlbRef::new`] asks for.
unsafe fn luo_and_flb<'a>(
    flb: *mut bindings::liveupdate_flb,
) -> Result<(&'static Luo, FlbRef<'a>)> {
    let luo = luo().ok_or(EOPNOTSUPP)?;
    let flb = NonNull::new(flb).ok_or(EINVAL)?;

    // SAFETY: By the requirement of this function `flb` is valid for `'a`.
    Ok((luo, unsafe { FlbRef::new(flb) }?))
}

/// Registers a notifier of the events of a live update.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, `-EINVAL` if it has no callback, `-EEXIST` if it
/// is registered, or `-ENOMEM`.
///
/// Context: process, may sleep; not while reading the state, and not from a callback.
///
/// # Safety
///
/// `notifier` must be valid, and stay so until it is unregistered.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_register_notifier(
    notifier: *mut bindings::notifier_block,
) -> c_int {
    from_result(|| {
        let luo = luo().ok_or(EOPNOTSUPP)?;
        let notifier = NonNull::new(notifier).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function `notifier` is valid until it is unregistered.
        let subsystem = unsafe { RegisteredSubsystem::notifier(notifier) }?;
        luo.context.subsystems.register(subsystem)?;
        Ok(0)
    })
}

/// Unregisters a notifier. It hears nothing more, not even that what it prepared is cancelled.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, or `-ENOENT` if it is not registered.
///
/// Context: as for [`liveupdate_register_notifier`].
///
/// # Safety
///
/// As for [`liveupdate_enabled`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_unregister_notifier(
    notifier: *mut bindings::notifier_block,
) -> c_int {
    from_result(|| {
        let luo = luo().ok_or(EOPNOTSUPP)?;
        let notifier = NonNull::new(notifier).ok_or(EINVAL)?;
        luo.context
            .subsystems
            .unregister(|registered| registered.is_notifier(notifier))?;
        Ok(0)
    })
}

/// Registers a subsystem, and gives it what the previous kernel's left.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, `-EINVAL` if a callback is missing or the
/// compatible string is none, `-EEXIST` if there is a subsystem with it, `-ENOSPC` if there are too
/// many, or `-ENOMEM`.
///
/// Context: as for [`liveupdate_register_notifier`].
///
/// # Safety
///
/// `subsystem` must be valid, and stay so until it is unregistered.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_register_subsystem(
    subsystem: *mut bindings::liveupdate_subsystem,
) -> c_int {
    from_result(|| {
        let luo = luo().ok_or(EOPNOTSUPP)?;
        let subsystem = NonNull::new(subsystem).ok_or(EINVAL)?;
        // SAFETY: By the requirement of this function `subsystem` is valid until it is
        // unregistered.
        let subsystem = unsafe { RegisteredSubsystem::subsystem(subsystem) }?;
        luo.context.subsystems.register(subsystem)?;
        Ok(0)
    })
}

/// Unregisters a subsystem. If it is prepared, it is cancelled first.
///
/// Returns 0, `-EOPNOTSUPP` if live update is off, or `-ENOENT` if it is not registered.
///
/// Context: as for [`liveupdate_register_notifier`].
///
/// # Safety
///
/// As for [`liveupdate_enabled`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_unregister_subsystem(
    subsystem: *mut bindings::liveupdate_subsystem,
) -> c_int {
    from_result(|| {
        let luo = luo().ok_or(EOPNOTSUPP)?;
        let subsystem = NonNull::new(subsystem).ok_or(EINVAL)?;
        luo.context
            .subsystems
            .unregister(|registered| registered.is_subsystem(subsystem))?;
        Ok(0)
    })
}

/// Whether no event of a live update is pending.
///
/// Context: any; it stays so only while the state is read.
///
/// # Safety
///
/// As for [`liveupdate_enabled`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_state_normal() -> bool {
    luo().is_none_or(|luo| luo.context.subsystems.phase() == UpdatePhase::Normal)
}

/// Whether this boot is a live update that is not over.
///
/// Context: any; it stays so only while the state is read.
///
/// # Safety
///
/// As for [`liveupdate_enabled`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_state_updated() -> bool {
    luo().is_some_and(|luo| luo.context.subsystems.phase() == UpdatePhase::Updated)
}

/// Begins to read the state: until [`liveupdate_read_state_exit`] it does not change.
///
/// Context: process, may sleep.
///
/// # Safety
///
/// As for [`liveupdate_enabled`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_read_state_enter() {
    if let Some(luo) = luo() {
        core::mem::forget(luo.context.subsystems.lock().read());
    }
}

/// As [`liveupdate_read_state_enter`], but gives up if the task is killed.
///
/// Returns 0, or `-EINTR`.
///
/// # Safety
///
/// As for [`liveupdate_enabled`].
#[export]
pub(crate) unsafe extern "C" fn liveupdate_read_state_enter_killable() -> c_int {
    from_result(|| {
        if let Some(luo) = luo() {
            core::mem::forget(luo.context.subsystems.lock().read_killable()?);
        }
        Ok(0)
    })
}

/// Ends what [`liveupdate_read_state_enter`] began.
///
/// # Safety
///
/// The caller must have begun to read, on this thread.
#[export]
pub(crate) unsafe extern "C" fn liveupdate_read_state_exit() {
    if let Some(luo) = luo() {
        // SAFETY: By the requirement of this function this thread has begun to read, in
        // `liveupdate_read_state_enter`, which forgot the guard.
        unsafe { luo.context.subsystems.lock().end_read() };
    }
}
