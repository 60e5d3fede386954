// SPDX-License-Identifier: GPL-2.0

//! Descriptors: which are open, what they refer to, and their limits.

use super::memfd;
use crate::harness::Outcome;
use nix::{
    errno::Errno,
    fcntl::{
        fcntl,
        FcntlArg,
        OFlag, //
    },
    libc,
    sys::resource::{
        getrlimit,
        setrlimit,
        Resource, //
    },
    unistd::{
        seteuid,
        Uid, //
    }, //
};
use std::{
    fs,
    os::fd::{
        AsFd,
        AsRawFd,
        BorrowedFd,
        IntoRawFd,
        OwnedFd, //
    }, //
};

/// Numbers of the open descriptors.
pub fn open_fds() -> Outcome<Vec<String>> {
    let own = fs::read_dir("/proc/self/fd")?;
    let mut fds = Vec::new();

    for fd in own {
        let name = fd?.file_name().to_string_lossy().into_owned();
        // The one of the directory is gone by now.
        if fs::read_link(format!("/proc/self/fd/{name}")).is_ok() {
            fds.push(name);
        }
    }
    fds.sort();
    Ok(fds)
}

/// What the kernel calls an open file.
pub fn link_of(fd: &impl AsFd) -> Outcome<String> {
    let link = fs::read_link(proc_path(fd))?;

    Ok(link.to_string_lossy().into_owned())
}

/// The path by which a file of this process can be opened again.
pub fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Raises the limit of open descriptors.
pub fn allow_fds(number: u64) -> Outcome {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;

    setrlimit(Resource::RLIMIT_NOFILE, soft.max(number), hard.max(number))?;
    Ok(())
}

/// Runs `f` while no further descriptor can be opened.
pub fn without_free_fds<T>(f: impl FnOnce() -> T) -> Outcome<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;

    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let result = f();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(result)
}

/// Runs `f` as somebody who gets no new file from the kernel (`ENFILE`).
///
/// Only privileged processes exceed the limit of the system, so for a while this one is not.
pub fn without_free_files<T>(f: impl FnOnce() -> T) -> Outcome<T> {
    let path = "/proc/sys/fs/file-max";
    let limit = fs::read_to_string(path)?;

    fs::write(path, "0")?;
    seteuid(Uid::from_raw(1000))?;
    let result = f();
    seteuid(Uid::from_raw(0))?;
    fs::write(path, limit.trim_end())?;
    Ok(result)
}

/// Marks an open file, which all of its descriptors then show.
pub fn set_nonblocking(file: &impl AsFd) -> Outcome {
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether an open file has that mark.
pub fn is_nonblocking(file: &impl AsFd) -> Outcome<bool> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);

    Ok(flags.contains(OFlag::O_NONBLOCK))
}

/// Closes a descriptor and says whether that worked.
pub fn close(fd: impl Into<OwnedFd>) -> nix::Result<()> {
    let fd = fd.into().into_raw_fd();
    // SAFETY: We have just given up the ownership.
    Errno::result(unsafe { libc::close(fd) }).map(drop)
}

/// A descriptor of this process that is not open.
pub fn closed_fd() -> Outcome<i32> {
    let fd = memfd("closed")?;

    Ok(fd.as_raw_fd())
}

/// A descriptor for a number, without ownership.
pub fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: Its owner is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
