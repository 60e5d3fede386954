// SPDX-License-Identifier: GPL-2.0

//! `/dev/liveupdate`: creates outgoing sessions and retrieves incoming ones.

use kernel::{
    fs::{
        file::FileDescriptorReservation,
        File, //
    },
    kho,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
    sync::atomic::{
        Full,
        Release, //
    }, //
};

use super::{
    ioctl::{
        self,
        Argument,
        RawArgument, //
    },
    orchestrator::{
        luo,
        Luo, //
    }, //
};
use crate::{
    abi::SessionName,
    luo_session::CLOEXEC,
    uapi::{
        self,
        Request, //
    }, //
};

/// An open `/dev/liveupdate`. There is at most one, so that one agent is in control.
pub(crate) struct Device {
    luo: &'static Luo,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.luo.opened.store(false, Release);
    }
}

#[vtable]
impl MiscDevice for Device {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let luo = luo().ok_or(match kho::other_page_size() {
            Some(_) => EOPNOTSUPP,
            None => EIO,
        })?;
        luo.opened
            .cmpxchg(false, true, Full)
            .map_err(|_opened| EBUSY)?;
        luo.context.status.opened();

        // From here on a drop releases the device.
        Ok(KBox::new(Self { luo }, GFP_KERNEL_ACCOUNT)?)
    }

    fn ioctl(device: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if ioctl::number(cmd) > uapi::CMD_RETRIEVE_SESSION {
            return Err(EINVAL);
        }
        let arg = RawArgument::new(arg)?;

        match cmd {
            uapi::CreateSession::COMMAND => device.create_session(arg)?,
            uapi::RetrieveSession::COMMAND => device.retrieve_session(arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

impl Device {
    fn create_session(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::CreateSession> = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(CLOEXEC)?;
        let name = SessionName::from_bytes(&arg.name).map_err(|_| EINVAL)?;
        arg.check_writable()?;

        // Dropping the file drops the session.
        let file = self.luo.outgoing.create(name)?;
        arg.write_fd(fd.reserved_fd())?;
        fd.fd_install(file);
        Ok(())
    }

    fn retrieve_session(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::RetrieveSession> = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(CLOEXEC)?;
        // An empty or unterminated name matches no session.
        let name = SessionName::from_bytes(&arg.name).map_err(|_| ENOENT)?;
        arg.check_writable()?;

        let session = self.luo.incoming.retrieve(&name)?;
        arg.write_fd(fd.reserved_fd())?;
        session.install(fd);
        Ok(())
    }
}
