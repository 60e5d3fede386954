// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/dev/liveupdate`.

use crate::{
    error::{
        Context,
        Operation,
        Result, //
    },
    request::{
        request,
        size_field, //
    },
    session::{
        Incoming,
        Outgoing,
        Session, //
    },
    uapi,
    SessionName, //
};
use std::{
    fs::OpenOptions,
    os::fd::{
        AsFd,
        BorrowedFd,
        FromRawFd,
        OwnedFd, //
    },
    path::Path, //
};

/// Where the device is.
pub const DEVICE_PATH: &str = "/dev/liveupdate";

/// `/dev/liveupdate`, held open.
///
/// One process at a time may do so, and others want it, too: systemd at the very end of a shutdown.
/// Sessions do not need it once they exist, so drop it soon.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: the kernel has no LUO, or it is not enabled (`liveupdate=on`);
    /// - `EBUSY`: another process has it open;
    /// - `EACCES`: the caller is not root;
    /// - `EIO`: what the previous kernel handed over cannot be read.
    pub fn open() -> Result<Self> {
        Self::open_at(Path::new(DEVICE_PATH))
    }

    /// Opens the device under another path.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_at(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .during(|| Operation::OpenDevice(path.into()))?;

        Ok(Self { fd: file.into() })
    }

    /// Makes a new session.
    ///
    /// It disappears, with all that is preserved in it, when it is dropped before the reboot.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the name is not one, see [`SessionName::new`];
    /// - `EEXIST`: there is an outgoing session of this name;
    /// - `EBUSY`: a kexec is under way;
    /// - `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn create_session(&self, name: &(impl AsRef<[u8]> + ?Sized)) -> Result<Session<Outgoing>> {
        let name = SessionName::new(name)?;
        let mut args = uapi::CreateSession {
            size: size_field::<uapi::CreateSession>(),
            fd: -1,
            name: name.to_field(),
        };

        request(self.fd.as_fd(), &mut args).during(|| Operation::Create(name))?;
        // SAFETY: The request succeeded, so the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(args.fd) };
        Ok(Session::new(fd, name))
    }

    /// Takes over a session that the previous kernel preserved.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: there is no incoming session of this name, or it is finished;
    /// - `EINVAL`: a process has it open, or the name is not one;
    /// - `EUCLEAN`: there is none of this name, but some of the incoming state is corrupt;
    /// - `EBUSY`: a kexec is under way;
    /// - `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn retrieve_session(
        &self,
        name: &(impl AsRef<[u8]> + ?Sized),
    ) -> Result<Session<Incoming>> {
        let name = SessionName::new(name)?;
        let mut args = uapi::RetrieveSession {
            size: size_field::<uapi::RetrieveSession>(),
            fd: -1,
            name: name.to_field(),
        };

        request(self.fd.as_fd(), &mut args).during(|| Operation::RetrieveSession(name))?;
        // SAFETY: The request succeeded, so the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(args.fd) };
        Ok(Session::new(fd, name))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.fd
    }
}
