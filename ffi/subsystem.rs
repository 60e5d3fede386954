// SPDX-License-Identifier: GPL-2.0

//! Subsystems and notifiers that C code has registered.

use core::ptr::{
    null_mut,
    NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

use super::kernel::compatible_of;
use crate::abi::Compatible;

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
/// The structure is valid, and so are its `ops` and its callbacks, of which those that must be
/// there are, as long as this value exists.
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

/// A subsystem with state, or a notifier: it is told of the events of a live update.
pub(crate) struct RegisteredSubsystem {
    kind: Kind,
    priority: i64,
}

enum Kind {
    Notifier(Notifier),
    Subsystem(Subsystem),
}

// SAFETY: The C structures and their callbacks may be used from any thread.
unsafe impl Send for RegisteredSubsystem {}
// SAFETY: LUO calls them under a lock of its own.
unsafe impl Sync for RegisteredSubsystem {}

impl RegisteredSubsystem {
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
        // SAFETY: By the requirement of this function `ptr` is valid.
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
        // SAFETY: By the requirement of this function `ptr` is valid.
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
                    // SAFETY: By the invariant of `Subsystem` its pointer is valid, and the
                    // callback takes it.
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
                // SAFETY: By the invariant of `Subsystem` its pointer is valid, and the callback
                // takes it.
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
                    // SAFETY: By the invariant of `Subsystem` its pointer is valid, and the
                    // callback takes it.
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

impl kernel::fmt::Display for RegisteredSubsystem {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        match &self.kind {
            Kind::Notifier(_) => f.write_str("(a notifier)"),
            Kind::Subsystem(subsystem) => write!(f, "'{}'", subsystem.name),
        }
    }
}
