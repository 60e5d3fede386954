// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading the next kernel, and the jump into it.
//!
//! Only `kexec_file_load(2)` can carry state over: it is the kernel itself that puts the handover
//! beside the image.

use crate::error::{
    Context,
    Errno,
    Error,
    Operation,
    Result, //
};
#[cfg(feature = "image")]
use crate::image::{
    Formats,
    Image, //
};
use nix::sys::reboot::{
    reboot,
    RebootMode, //
};
use std::{
    ffi::CString,
    fs,
    io,
    os::fd::{
        AsRawFd,
        BorrowedFd, //
    },
    ptr, //
};

/// Loads a kernel for [`jump`]. It replaces the one that was loaded before, if any.
///
/// # Errors
///
/// - `EINVAL`: the command line has a NUL or is too long;
/// - `ENOEXEC`: the image is not a kernel of this architecture;
/// - `EBUSY`: another kexec or load is under way;
/// - `EPERM`: no `CAP_SYS_BOOT`, or loading is disabled;
/// - `EADDRNOTAVAIL`, `ENOMEM`: there is no room for the image;
/// - `EKEYREJECTED`, `ENOKEY` and others: the kernel wants a signature.
pub fn load(kernel: BorrowedFd<'_>, initrd: Option<BorrowedFd<'_>>, cmdline: &str) -> Result {
    let what = || Operation::Load;
    let cmdline = CString::new(cmdline).map_err(|_| Error::of(what(), Errno::EINVAL))?;
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
    Errno::result(ret).map(drop).during(what)
}

/// Tells the running kernel in which format the image can read that has just been loaded. With
/// `liveupdate.abi=auto` the kernel then describes in that format what is preserved. A kernel that
/// does not ask for this is told nothing.
///
/// # Errors
///
/// - What a handler returns that cannot describe a file in that format; the kernel's log says which.
///   The kernel goes on with the former format then.
/// - `EBUSY` while a kernel is being loaded.
/// - `InvalidData` if `kernel` is not an image.
#[cfg(feature = "image")]
pub fn tell_format(kernel: &fs::File) -> io::Result<()> {
    let told = fs::OpenOptions::new()
        .write(true)
        .open("/sys/kernel/liveupdate/image_format");
    let (Ok(mut told), Some(here)) = (told, Formats::running()?) else {
        return Ok(());
    };
    let image = Image::read_file(kernel)
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err.to_string()))?;

    match image.formats.outgoing_for(&here) {
        Some(format) => io::Write::write_all(&mut told, format.as_bytes()),
        None => Ok(()),
    }
}

/// Unloads the next kernel. It is no error if there is none.
///
/// # Errors
///
/// `EBUSY` and `EPERM`, as [`load`].
pub fn unload() -> Result {
    // SAFETY: With this flag the system call looks at none of its other arguments.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            -1,
            -1,
            0,
            ptr::null::<u8>(),
            libc::KEXEC_FILE_UNLOAD,
        )
    };
    Errno::result(ret).map(drop).during(|| Operation::Unload)
}

/// Where the kernel tells whether a next one is loaded: since 7.x in a directory, before without.
const LOADED: [&str; 2] = ["/sys/kernel/kexec/loaded", "/sys/kernel/kexec_loaded"];

/// Whether a next kernel is loaded, by [`load`] or by `kexec_load(2)`, which cannot be told apart.
///
/// # Errors
///
/// - `ENOENT`: this kernel has no kexec;
/// - what reading the file returns.
pub fn is_loaded() -> Result<bool> {
    let mut result = Err(io::Error::from(io::ErrorKind::NotFound));

    for path in LOADED {
        result = fs::read(path);
        if !matches!(&result, Err(err) if err.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    result
        .map(|text| text.trim_ascii() == b"1")
        .map_err(|err| err.raw_os_error().map_or(Errno::ENOENT, Errno::from_raw))
        .context(|| "find out whether a next kernel is loaded")
}

/// Starts the loaded kernel at once, as `reboot -f` does: nothing is stopped, unmounted or synced.
///
/// Returns only if the kernel refuses; nothing has changed then.
///
/// - `EINVAL`: no next kernel is loaded;
/// - `EOPNOTSUPP`: it cannot find what is preserved, as it was loaded by `kexec_load(2)`;
/// - `EBUSY`: another kexec or load is under way;
/// - `EPERM`: no `CAP_SYS_BOOT`;
/// - whatever a file handler or a driver reports.
pub fn jump() -> Error {
    match reboot(RebootMode::RB_KEXEC) {
        Ok(never) => match never {},
        Err(errno) => Error::of(Operation::Jump, errno),
    }
}
