// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! User space interface of `/dev/liveupdate` and of the session file descriptors it hands out.
//!
//! This file is the single description of that interface in Rust. The kernel compiles it as a
//! module of the LUO crate, user space as the crate `liveupdate-uapi`; `liveupdate.h` beside it
//! says the same to C. It holds numbers and plain layouts only: nothing here has behaviour that
//! one side could rely on and the other not.
//!
//! # How a request is made
//!
//! Every request is an `ioctl(2)` whose argument points to one of the structures below. Its first
//! field is always the size of the structure as the caller knows it, so either side may be newer
//! than the other:
//!
//! - smaller than [`Request::MIN_SIZE`]: `EINVAL`;
//! - smaller than the kernel's structure: the missing fields are taken as zero;
//! - larger: accepted if everything behind what the kernel knows is zero, else `E2BIG`.
//!
//! The answer is written into the same structure, never beyond the size that the caller gave.
//! A request that fails has changed nothing, in the kernel or in the structure.
//!
//! # Errors
//!
//! Common to all requests:
//!
//! | errno | meaning |
//! |---|---|
//! | `EINVAL` | the number lies outside the table of this descriptor, the size is too small, a reserved field is not zero, or the request does not fit the session's direction |
//! | `ENOTTY` | the number is in the table but the direction or size bits of the command are not those of the request |
//! | `E2BIG` | the structure carries data that this kernel does not know |
//! | `EFAULT` | the structure cannot be read or the answer cannot be written |
//! | `EBUSY` | the machine is on its way into the next kernel, and the request would change what goes there |
//! | `ENOMEM` | out of memory |

#![cfg_attr(not(CONFIG_LIVEUPDATE), no_std)]

use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// The ioctl type byte of all requests, device and session alike.
pub const IOCTL_TYPE: u8 = 0xBA;

/// Room for a session name: 63 bytes and the NUL that ends it.
pub const SESSION_NAME_LENGTH: usize = 64;

/// First request number of the device.
pub const CMD_BASE: u8 = 0x00;
/// Request number of [`CreateSession`], on the device.
pub const CMD_CREATE_SESSION: u8 = CMD_BASE;
/// Request number of [`RetrieveSession`], on the device.
pub const CMD_RETRIEVE_SESSION: u8 = 0x01;

/// First request number of a session.
pub const CMD_SESSION_BASE: u8 = 0x40;
/// Request number of [`PreserveFd`], on an outgoing session.
pub const CMD_SESSION_PRESERVE_FD: u8 = CMD_SESSION_BASE;
/// Request number of [`RetrieveFd`], on an incoming session.
pub const CMD_SESSION_RETRIEVE_FD: u8 = 0x41;
/// Request number of [`Finish`], on an incoming session.
pub const CMD_SESSION_FINISH: u8 = 0x42;
/// Request number of [`GetName`], on any session.
pub const CMD_SESSION_GET_NAME: u8 = 0x43;

/// The ioctl command of a request number.
///
/// This is `_IO()` of C: the requests carry their own size, so the command has neither direction
/// nor size bits. (Architectures on which "no direction" is not zero have no Kexec Handover.)
const fn io(nr: u8) -> u32 {
    ((IOCTL_TYPE as u32) << 8) | nr as u32
}

/// Command of [`CreateSession`].
pub const IOCTL_CREATE_SESSION: u32 = io(CMD_CREATE_SESSION);
/// Command of [`RetrieveSession`].
pub const IOCTL_RETRIEVE_SESSION: u32 = io(CMD_RETRIEVE_SESSION);
/// Command of [`PreserveFd`].
pub const SESSION_PRESERVE_FD: u32 = io(CMD_SESSION_PRESERVE_FD);
/// Command of [`RetrieveFd`].
pub const SESSION_RETRIEVE_FD: u32 = io(CMD_SESSION_RETRIEVE_FD);
/// Command of [`Finish`].
pub const SESSION_FINISH: u32 = io(CMD_SESSION_FINISH);
/// Command of [`GetName`].
pub const SESSION_GET_NAME: u32 = io(CMD_SESSION_GET_NAME);

/// A structure that is the argument of one ioctl.
pub trait Request {
    /// The ioctl command.
    const COMMAND: u32;

    /// The smallest size that a caller may give: up to the last field that every caller has.
    const MIN_SIZE: usize;
}

/// Makes a new, empty outgoing session; on the device.
///
/// # Errors
///
/// - `EINVAL`: the name is empty or does not end within its 64 bytes;
/// - `EEXIST`: an outgoing session of this name is open;
/// - `EMFILE`, `ENFILE`: no descriptor is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateSession {
    /// In: size of this structure.
    pub size: u32,
    /// Out: descriptor of the session, close-on-exec. The session lives as long as it is open.
    pub fd: i32,
    /// In: name of the session, ended by a NUL.
    pub name: [u8; SESSION_NAME_LENGTH],
}

impl Request for CreateSession {
    const COMMAND: u32 = IOCTL_CREATE_SESSION;
    const MIN_SIZE: usize = core::mem::size_of::<Self>();
}

/// Takes over a session of the previous kernel; on the device.
///
/// # Errors
///
/// - `ENOENT`: there is no such incoming session, or it is finished and closed;
/// - `EINVAL`: somebody has taken it already;
/// - `EMFILE`, `ENFILE`: no descriptor is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RetrieveSession {
    /// In: size of this structure.
    pub size: u32,
    /// Out: descriptor of the session, close-on-exec. Closing it finishes the session; if a handler
    /// refuses that, the session can be retrieved again.
    pub fd: i32,
    /// In: name of the session, ended by a NUL.
    pub name: [u8; SESSION_NAME_LENGTH],
}

impl Request for RetrieveSession {
    const COMMAND: u32 = IOCTL_RETRIEVE_SESSION;
    const MIN_SIZE: usize = core::mem::size_of::<Self>();
}

/// Preserves an open file in an outgoing session.
///
/// The kernel keeps its own reference: the caller may close the descriptor.
///
/// # Errors
///
/// - `EBADF`: `fd` is not open;
/// - `ENOENT`: no handler can preserve such a file;
/// - `EEXIST`: the session has a file under this token;
/// - `EBUSY`: the file is preserved already, here or in another session;
/// - `EINVAL`: the session is an incoming one;
/// - whatever the file's handler reports.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PreserveFd {
    /// In: size of this structure.
    pub size: u32,
    /// In: the file to preserve.
    pub fd: i32,
    /// In: the number under which the file is retrieved later, any value, unique in the session.
    pub token: u64,
}

impl Request for PreserveFd {
    const COMMAND: u32 = SESSION_PRESERVE_FD;
    const MIN_SIZE: usize = core::mem::size_of::<Self>();
}

/// In [`RetrieveFd::flags`]: `target` is a file that becomes the retrieved one.
pub const RETRIEVE_INTO: u32 = 1;

/// Gives back a file of an incoming session.
///
/// Files may be asked for in any order, and more than once: each time it is the same open file.
///
/// With [`RETRIEVE_INTO`] the file is not a new one, but `target`, an empty regular file of a tmpfs or
/// a memfd, open for reading and writing. It gets content and size. Name, owner, mode, open flags and
/// position stay as they are, and `fd` is another descriptor of the same open file.
///
/// # Errors
///
/// - `ENOENT`: the session has no file under this token, or no handler for it;
/// - `EINVAL`: the session is an outgoing one, there is a target without the flag, or one that is no
///   file of shared memory;
/// - `EOPNOTSUPP`: a flag is not known, or this type of file knows nothing of targets;
/// - `EBADF`: the target is not open, or not for reading and writing;
/// - `EEXIST`: there is a target, and the file has been retrieved already;
/// - `ENOTEMPTY`: there is something in the target;
/// - `EPERM`: the target must not change, or lacks a seal that the file has;
/// - `EBUSY`: the target is being preserved, or written to;
/// - `ENOSPC`, `EDQUOT`, `EFBIG`: the file does not fit where the target is;
/// - `EMFILE`, `ENFILE`: no descriptor is free;
/// - whatever the file's handler reports.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RetrieveFd {
    /// In: size of this structure.
    pub size: u32,
    /// Out: descriptor of the file, close-on-exec.
    pub fd: i32,
    /// In: the token under which the file was preserved.
    pub token: u64,
    /// In: zero, or [`RETRIEVE_INTO`].
    pub flags: u32,
    /// In: zero, or with that flag a descriptor.
    pub target: i32,
}

impl Request for RetrieveFd {
    const COMMAND: u32 = SESSION_RETRIEVE_FD;
    const MIN_SIZE: usize = core::mem::offset_of!(Self, flags);
}

/// Ends an incoming session: what was not retrieved is given up.
///
/// # Errors
///
/// - `EINVAL`: the session is an outgoing one, or `reserved` is not zero;
/// - `EBUSY`: a handler cannot let go of a file yet; nothing has changed, try again.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Finish {
    /// In: size of this structure.
    pub size: u32,
    /// In: zero.
    pub reserved: u32,
}

impl Request for Finish {
    const COMMAND: u32 = SESSION_FINISH;
    const MIN_SIZE: usize = core::mem::size_of::<Self>();
}

/// Tells the name of a session, of either direction.
///
/// # Errors
///
/// - `EINVAL`: `reserved` is not zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetName {
    /// In: size of this structure.
    pub size: u32,
    /// In: zero.
    pub reserved: u32,
    /// Out: name of the session, ended by a NUL.
    pub name: [u8; SESSION_NAME_LENGTH],
}

impl Request for GetName {
    const COMMAND: u32 = SESSION_GET_NAME;
    const MIN_SIZE: usize = core::mem::size_of::<Self>();
}

#[cfg(all(test, not(CONFIG_LIVEUPDATE)))]
mod tests {
    use super::*;
    use core::mem::{
        align_of,
        offset_of,
        size_of, //
    };

    #[test]
    fn command_numbers() {
        assert_eq!(IOCTL_CREATE_SESSION, 0xBA00);
        assert_eq!(IOCTL_RETRIEVE_SESSION, 0xBA01);
        assert_eq!(SESSION_PRESERVE_FD, 0xBA40);
        assert_eq!(SESSION_RETRIEVE_FD, 0xBA41);
        assert_eq!(SESSION_FINISH, 0xBA42);
        assert_eq!(SESSION_GET_NAME, 0xBA43);
    }

    #[test]
    fn layouts() {
        assert_eq!(
            (size_of::<CreateSession>(), align_of::<CreateSession>()),
            (72, 4)
        );
        assert_eq!(offset_of!(CreateSession, size), 0);
        assert_eq!(offset_of!(CreateSession, fd), 4);
        assert_eq!(offset_of!(CreateSession, name), 8);

        assert_eq!(
            (size_of::<RetrieveSession>(), align_of::<RetrieveSession>()),
            (72, 4)
        );
        assert_eq!(offset_of!(RetrieveSession, size), 0);
        assert_eq!(offset_of!(RetrieveSession, fd), 4);
        assert_eq!(offset_of!(RetrieveSession, name), 8);

        assert_eq!((size_of::<PreserveFd>(), align_of::<PreserveFd>()), (16, 8));
        assert_eq!(offset_of!(PreserveFd, size), 0);
        assert_eq!(offset_of!(PreserveFd, fd), 4);
        assert_eq!(offset_of!(PreserveFd, token), 8);

        assert_eq!((size_of::<RetrieveFd>(), align_of::<RetrieveFd>()), (24, 8));
        assert_eq!(offset_of!(RetrieveFd, size), 0);
        assert_eq!(offset_of!(RetrieveFd, fd), 4);
        assert_eq!(offset_of!(RetrieveFd, token), 8);
        assert_eq!(offset_of!(RetrieveFd, flags), 16);
        assert_eq!(offset_of!(RetrieveFd, target), 20);

        assert_eq!((size_of::<Finish>(), align_of::<Finish>()), (8, 4));
        assert_eq!(offset_of!(Finish, size), 0);
        assert_eq!(offset_of!(Finish, reserved), 4);

        assert_eq!((size_of::<GetName>(), align_of::<GetName>()), (72, 4));
        assert_eq!(offset_of!(GetName, size), 0);
        assert_eq!(offset_of!(GetName, reserved), 4);
        assert_eq!(offset_of!(GetName, name), 8);
    }

    #[test]
    fn minimum_is_the_first_version() {
        assert_eq!(CreateSession::MIN_SIZE, 72);
        assert_eq!(RetrieveSession::MIN_SIZE, 72);
        assert_eq!(PreserveFd::MIN_SIZE, 16);
        assert_eq!(RetrieveFd::MIN_SIZE, 16);
        assert_eq!(Finish::MIN_SIZE, 8);
        assert_eq!(GetName::MIN_SIZE, 72);
    }
}
