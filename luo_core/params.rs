// SPDX-License-Identifier: GPL-2.0

//! Parameters of the command line: `liveupdate=` and `liveupdate.panic=`.

use kernel::{
    prelude::*,
    str::kstrtobool,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// `liveupdate=`.
static ENABLED: Atomic<bool> = Atomic::new(false);

/// `liveupdate.panic=`.
static PANIC: Atomic<bool> = Atomic::new(false);

/// Reads the parameter `liveupdate=`.
///
/// # Errors
///
/// [`EINVAL`] if the value is no boolean.
pub(crate) fn parse_enabled(value: &CStr) -> Result {
    ENABLED.store(kstrtobool(value)?, Relaxed);
    Ok(())
}

/// Reads the parameter `liveupdate.panic=`.
///
/// # Errors
///
/// [`EINVAL`] if the value is no boolean.
pub(crate) fn parse_panic(value: &CStr) -> Result {
    PANIC.store(kstrtobool(value)?, Relaxed);
    Ok(())
}

/// Whether the command line enables live update.
pub(super) fn enabled() -> bool {
    ENABLED.load(Relaxed)
}

/// Whether corrupt incoming state is to panic.
pub(super) fn panic_on_corruption() -> bool {
    PANIC.load(Relaxed)
}
