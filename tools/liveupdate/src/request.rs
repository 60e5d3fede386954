// SPDX-License-Identifier: MIT OR Apache-2.0

//! One request of the uAPI.

use crate::uapi::{
    PreserveFd,
    Request, //
};
use nix::errno::Errno;
use std::{
    mem::size_of,
    os::fd::{
        AsRawFd,
        BorrowedFd, //
    },
    ptr, //
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

/// Makes one request, for which [`Device`](crate::Device) and [`Session`](crate::Session) have
/// nothing better.
///
/// The caller fills in the `size` field, which may be less than the size of `R`.
///
/// # Errors
///
/// What the kernel returns; `E2BIG` if the size field claims more than `R` has.
pub fn request<R>(fd: BorrowedFd<'_>, request: &mut R) -> nix::Result<()>
where
    R: Request + IntoBytes + FromBytes + Immutable,
{
    // A request is longer than its size field.
    let (size, _) = u32::read_from_prefix(request.as_bytes()).map_err(|_| Errno::EINVAL)?;
    if usize::try_from(size).is_ok_and(|size| size > size_of::<R>()) {
        return Err(Errno::E2BIG);
    }

    // SAFETY: The kernel reads and writes at most `size` bytes at the pointer, which was just
    // checked to be within `request`. `R: FromBytes` is valid whatever it writes there.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), R::COMMAND.into(), ptr::from_mut(request)) };
    Errno::result(ret).map(drop)
}

/// What the size field of a request holds.
pub(crate) const fn size_field<R: Request>() -> u32 {
    // All requests are far smaller than 4 GiB.
    size_of::<R>() as u32
}

/// PRESERVE_FD with bytes behind it that no kernel knows.
///
/// A kernel refuses it, but looks at the session's direction before. So it is a question that never
/// does anything.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct DirectionQuestion {
    request: PreserveFd,
    /// More than the request may grow by in the time of this library.
    unknown: [u8; 240],
}

impl DirectionQuestion {
    pub(crate) fn new() -> Self {
        Self {
            request: PreserveFd {
                size: size_field::<Self>(),
                fd: -1,
                token: 0,
            },
            unknown: [u8::MAX; 240],
        }
    }
}

impl Request for DirectionQuestion {
    const COMMAND: u32 = PreserveFd::COMMAND;
    const MIN_SIZE: usize = PreserveFd::MIN_SIZE;
}
