// SPDX-License-Identifier: GPL-2.0

//! The task that reboots the machine into the next kernel.
//!
//! What it does for that is the machine's work: nothing may refuse it that would only have been in
//! the way of the task itself.

use crate::{
    bindings,
    kho::KexecLock,
    memcg::RootCharges,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr, //
};

/// The task, or null.
static TASK: Atomic<*mut bindings::task_struct> = Atomic::new(ptr::null_mut());

/// As long as this lives, the current task is the one that reboots the machine: see
/// [`is_rebooting`]. What it allocates is charged to no group with a limit.
pub struct Rebooting<'a> {
    _charges: RootCharges,
    _lock: PhantomData<&'a KexecLock<'a>>,
}

impl<'a> Rebooting<'a> {
    /// Begins to reboot. The lock sees to it that there is one such task.
    pub fn begin(_lock: &'a KexecLock<'_>) -> Self {
        // SAFETY: The function has no requirements. The pointer is not followed.
        TASK.store(unsafe { bindings::get_current() }, Relaxed);
        Self {
            _charges: RootCharges::begin(),
            _lock: PhantomData,
        }
    }
}

impl Drop for Rebooting<'_> {
    fn drop(&mut self) {
        TASK.store(ptr::null_mut(), Relaxed);
    }
}

/// Whether the current task is rebooting the machine into the next kernel.
///
/// Files that were retrieved and not finished are preserved again then. Their handler should not
/// refuse them for a problem that no user can fix any more.
pub fn is_rebooting() -> bool {
    // SAFETY: The function has no requirements.
    TASK.load(Relaxed) == unsafe { bindings::get_current() }
}
