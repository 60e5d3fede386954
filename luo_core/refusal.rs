// SPDX-License-Identifier: GPL-2.0

//! Why the last kexec was refused, for those who cannot look into the log.
//!
//! Below sessions and files, which say what has failed; above, the reboot hook begins and ends an
//! attempt, and sysfs shows the reason.

use core::fmt::Write;

use kernel::{
    fmt,
    new_mutex,
    prelude::*,
    str::CString,
    sync::Mutex, //
};

/// The reason of the last refusal.
#[pin_data]
pub(crate) struct Refusal {
    #[pin]
    reason: Mutex<Option<CString>>,
}

impl Refusal {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            reason <- new_mutex!(None, "luo::Refusal"),
        })
    }

    /// A kexec begins: there is no reason yet.
    pub(crate) fn clear(&self) {
        *self.reason.lock() = None;
    }

    /// Reports what has failed, and keeps it as the reason, unless there is one. What fails first
    /// is the cause of what fails later.
    pub(crate) fn report(&self, what: fmt::Arguments<'_>) {
        pr_warn!("{}\n", what);

        let mut reason = self.reason.lock();
        if reason.is_none() {
            // Without memory for it the reason is in the log only.
            *reason = CString::try_from_fmt(what).ok();
        }
    }

    /// Ends an attempt that has failed with `error`.
    pub(crate) fn refused(&self, error: Error) {
        pr_err!("kexec refused: {:?}\n", error);

        let mut reason = self.reason.lock();
        if reason.is_none() {
            *reason = CString::try_from_fmt(fmt!("{:?}", error)).ok();
        }
    }

    /// Writes the reason on a line; nothing if there is none.
    pub(crate) fn show(&self, to: &mut dyn Write) -> Result {
        if let Some(reason) = &*self.reason.lock() {
            writeln!(to, "{}", reason.to_str().unwrap_or("?"))?;
        }
        Ok(())
    }
}
