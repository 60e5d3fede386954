// SPDX-License-Identifier: GPL-2.0

//! Safe, typed requests to `/dev/liveupdate` and to sessions.

use crate::{
    error::{
        Context,
        Error,
        Result, //
    },
    uapi::{
        self,
        Request, //
    },
};
use nix::errno::Errno;
use std::{
    fmt,
    fs::OpenOptions,
    marker::PhantomData,
    mem::size_of,
    os::fd::{
        AsFd,
        AsRawFd,
        BorrowedFd,
        FromRawFd,
        OwnedFd, //
    },
    path::Path,
    ptr,
    str::FromStr, //
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

/// Where the device is.
pub const DEVICE_PATH: &str = "/dev/liveupdate";

/// Makes one request.
///
/// The caller fills in the `size` field, which need not be the size of `R`, but not more.
///
/// # Panics
///
/// If the size field claims more than `R` has.
pub fn request<R>(fd: BorrowedFd<'_>, request: &mut R) -> nix::Result<()>
where
    R: Request + IntoBytes + FromBytes + zerocopy::Immutable,
{
    let (size, _) = u32::read_from_prefix(request.as_bytes()).expect("a size comes first");
    assert!(size as usize <= size_of::<R>());

    // SAFETY: The kernel reads and writes at most `size` bytes at the pointer, which are part of
    // `request`; `R` takes any bytes that it may write.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), R::COMMAND.into(), ptr::from_mut(request)) };
    Errno::result(ret).map(drop)
}

/// The size field of a request.
fn size_of_request<R>() -> u32 {
    // No request comes near the limit.
    size_of::<R>() as u32
}

/// The name of a session: 1 to 63 bytes without a NUL.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionName([u8; uapi::SESSION_NAME_LENGTH]);

impl SessionName {
    /// The bytes before the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0);
        &self.0[..end.unwrap_or(self.0.len())]
    }
}

impl FromStr for SessionName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let invalid = |why| Error::new(format!("name a session '{name}' ({why})"), Errno::EINVAL);
        let mut bytes = [0; uapi::SESSION_NAME_LENGTH];

        if name.is_empty() {
            return Err(invalid("empty"));
        }
        if name.len() >= bytes.len() {
            return Err(invalid("longer than 63 bytes"));
        }
        if name.bytes().any(|byte| byte == 0) {
            return Err(invalid("contains a NUL"));
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.as_bytes()).fmt(f)
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// `/dev/liveupdate`, held open.
///
/// One process at a time may do so. Sessions do not need it once they exist.
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
    /// - `EBUSY`: another agent has it open.
    pub fn open() -> Result<Self> {
        Self::open_at(Path::new(DEVICE_PATH))
    }

    /// Opens the device under another path.
    pub fn open_at(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .context(|| format!("open {}", path.display()))?;

        Ok(Self { fd: file.into() })
    }

    /// Makes a new session.
    ///
    /// It disappears, with all that is preserved in it, when it is dropped.
    pub fn create_session(&self, name: &str) -> Result<Session<Outgoing>> {
        let name = SessionName::from_str(name)?;
        let mut args = uapi::CreateSession {
            size: size_of_request::<uapi::CreateSession>(),
            fd: -1,
            name: name.0,
        };

        request(self.fd.as_fd(), &mut args).context(|| format!("create session '{name}'"))?;
        // SAFETY: The kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(args.fd) };
        Ok(Session::new(fd, name))
    }

    /// Takes over a session that the previous kernel preserved.
    ///
    /// Dropping it finishes it.
    pub fn retrieve_session(&self, name: &str) -> Result<Session<Incoming>> {
        let name = SessionName::from_str(name)?;
        let mut args = uapi::RetrieveSession {
            size: size_of_request::<uapi::RetrieveSession>(),
            fd: -1,
            name: name.0,
        };

        request(self.fd.as_fd(), &mut args).context(|| format!("retrieve session '{name}'"))?;
        // SAFETY: The kernel has just made this descriptor for us.
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

/// On which side of the reboot a session is.
pub trait Direction: sealed::Sealed {}

/// A session that waits for the reboot.
#[derive(Debug)]
pub enum Outgoing {}

/// A session that came over from the previous kernel.
#[derive(Debug)]
pub enum Incoming {}

impl Direction for Outgoing {}
impl Direction for Incoming {}

mod sealed {
    /// Keeps [`Direction`](super::Direction) to its two sides.
    pub trait Sealed {}
    impl Sealed for super::Outgoing {}
    impl Sealed for super::Incoming {}
}

/// An open session.
#[derive(Debug)]
pub struct Session<D: Direction> {
    fd: OwnedFd,
    name: SessionName,
    direction: PhantomData<D>,
}

impl<D: Direction> Session<D> {
    fn new(fd: OwnedFd, name: SessionName) -> Self {
        Self {
            fd,
            name,
            direction: PhantomData,
        }
    }

    /// Takes over a session descriptor received from elsewhere, such as a service manager's store.
    ///
    /// The caller knows on which side of the reboot it is.
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the descriptor is not a session.
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        let name = ask_name(fd.as_fd()).context(|| "get the name of a session")?;
        Ok(Self::new(fd, name))
    }

    /// The name by which the session was made or retrieved.
    pub fn name(&self) -> &SessionName {
        &self.name
    }

    /// Asks the kernel for the session's name.
    pub fn ask_name(&self) -> Result<SessionName> {
        ask_name(self.fd.as_fd()).context(|| format!("get the name of session '{}'", self.name))
    }
}

fn ask_name(fd: BorrowedFd<'_>) -> nix::Result<SessionName> {
    let mut args = uapi::GetName {
        size: size_of_request::<uapi::GetName>(),
        reserved: 0,
        name: [0; uapi::SESSION_NAME_LENGTH],
    };

    request(fd, &mut args)?;
    Ok(SessionName(args.name))
}

impl Session<Outgoing> {
    /// Preserves an open file under a token of the caller's choice.
    pub fn preserve(&self, file: &impl AsFd, token: u64) -> Result {
        let mut args = uapi::PreserveFd {
            size: size_of_request::<uapi::PreserveFd>(),
            fd: file.as_fd().as_raw_fd(),
            token,
        };

        request(self.fd.as_fd(), &mut args).context(|| {
            format!(
                "preserve a file in session '{}' under token {token:#x}",
                self.name
            )
        })
    }
}

impl Session<Incoming> {
    /// Gives back the file that was preserved under `token`.
    pub fn retrieve(&self, token: u64) -> Result<OwnedFd> {
        let mut args = uapi::RetrieveFd {
            size: size_of_request::<uapi::RetrieveFd>(),
            fd: -1,
            token,
        };

        request(self.fd.as_fd(), &mut args)
            .context(|| format!("retrieve token {token:#x} from session '{}'", self.name))?;
        // SAFETY: The kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(args.fd) })
    }

    /// Ends the session: files that were not retrieved are freed.
    pub fn finish(&self) -> Result {
        let mut args = uapi::Finish {
            size: size_of_request::<uapi::Finish>(),
            reserved: 0,
        };

        request(self.fd.as_fd(), &mut args).context(|| format!("finish session '{}'", self.name))
    }
}

impl<D: Direction> AsFd for Session<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<D: Direction> From<Session<D>> for OwnedFd {
    fn from(session: Session<D>) -> Self {
        session.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(SessionName::from_str("a").unwrap().as_bytes(), b"a");
        let longest = "x".repeat(63);
        assert_eq!(
            SessionName::from_str(&longest).unwrap().to_string(),
            longest
        );
        for bad in ["", "a\0b", &"x".repeat(64)] {
            let err = SessionName::from_str(bad).unwrap_err();
            assert_eq!(err.errno(), Errno::EINVAL);
        }
    }

    #[test]
    fn not_a_session() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let err = Session::<Outgoing>::adopt(null.into()).unwrap_err();
        assert_eq!(err.errno(), Errno::ENOTTY);
    }
}
