// SPDX-License-Identifier: GPL-2.0

//! Loading the next kernel and jumping into it.
//!
//! Only `kexec_file_load(2)` can carry state over: it is the kernel itself that puts the handover
//! beside the image.

use crate::error::{
    Context,
    Error,
    Result, //
};
use nix::{
    errno::Errno,
    sys::reboot::{
        reboot,
        RebootMode, //
    },
};
use std::{
    ffi::CString,
    os::fd::{
        AsRawFd,
        BorrowedFd, //
    },
};

/// Loads a kernel for [`jump`].
///
/// It replaces the one that was loaded before, if any.
pub fn load(kernel: BorrowedFd<'_>, initrd: Option<BorrowedFd<'_>>, cmdline: &str) -> Result {
    let what = || "load the next kernel";
    let cmdline = CString::new(cmdline).map_err(|_| Error::new(what(), Errno::EINVAL))?;
    let cmdline = cmdline.as_bytes_with_nul();
    let flags = match initrd {
        Some(_) => 0,
        None => libc::KEXEC_FILE_NO_INITRAMFS,
    };

    // SAFETY: The system call only reads from its arguments; the pointer is good for the length.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.map_or(-1, |fd| fd.as_raw_fd()),
            cmdline.len(),
            cmdline.as_ptr(),
            flags,
        )
    };
    Errno::result(ret).map(drop).context(what)
}

/// Takes the loaded kernel out again.
pub fn unload() -> Result {
    // SAFETY: With this flag the system call looks at none of its other arguments.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            -1,
            -1,
            0,
            std::ptr::null::<u8>(),
            libc::KEXEC_FILE_UNLOAD,
        )
    };
    Errno::result(ret)
        .map(drop)
        .context(|| "unload the next kernel")
}

/// Jumps into the loaded kernel.
///
/// Returns only if the kernel refuses.
pub fn jump() -> Error {
    match reboot(RebootMode::RB_KEXEC) {
        Ok(never) => match never {},
        Err(errno) => Error::new("reboot into the next kernel", errno),
    }
}
