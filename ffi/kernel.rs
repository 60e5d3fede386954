// SPDX-License-Identifier: GPL-2.0

//! Functions of the kernel for which the `kernel` crate has no abstraction.

use kernel::{
    bindings,
    fs::{
        File,
        LocalFile, //
    },
    liveupdate::OutgoingAbi,
    prelude::*,
    sync::aref::ARef, //
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
    // SAFETY: The argument is a C string that lives forever.
    unsafe { bindings::__printk_ratelimit(c"luo".as_char_ptr()) != 0 }
}

// The signature is that of the function, which has no requirements.
unsafe extern "C" {
    /// In rust/kernel/liveupdate.rs; modules cannot call it.
    safe fn liveupdate_set_abi(luo_v5: bool, lossy: bool);
}

/// Sets in which layouts state is handed over, and whether properties of files may be left out.
pub(crate) fn set_outgoing_abi(abi: OutgoingAbi, lossy: bool) {
    liveupdate_set_abi(abi == OutgoingAbi::LuoV5, lossy);
}

/// Panics with the message `why`.
pub(crate) fn panic(why: &CStr) {
    // SAFETY: The format takes one C string, and there is one.
    unsafe { bindings::panic(c"%s".as_char_ptr(), why.as_char_ptr()) }
}

/// Reads the compatible string of a C structure.
pub(super) fn compatible_of(field: &[c_char; 48]) -> Result<Compatible> {
    Compatible::from_bytes(field).map_err(|_| EINVAL)
}
