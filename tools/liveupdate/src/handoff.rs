// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sessions on their way between processes.
//!
//! | way | function |
//! |---|---|
//! | a UNIX socket (`SCM_RIGHTS`) | [`send`], [`receive`] |
//! | inherited from the parent (`LISTEN_FDS`) | [`inherited`] |
//! | into the service manager's store, and back by `LISTEN_FDS` | [`store`], [`unstore`], [`barrier`] |
//!
//! Each descriptor is looked at: one that is a session is received as an [`AnySession`], so that
//! an early return does not destroy it.

use crate::{
    error::{
        Context,
        Errno,
        Error,
        Result, //
    },
    AnySession,
    SessionName, //
};
use nix::{
    cmsg_space,
    fcntl::{
        fcntl,
        FcntlArg,
        FdFlag,
        OFlag, //
    },
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::socket::{
        recvmsg,
        sendmsg,
        socket,
        AddressFamily,
        ControlMessage,
        ControlMessageOwned,
        MsgFlags,
        SockFlag,
        SockType,
        UnixAddr, //
    },
    unistd::pipe2,
};
use std::{
    env,
    ffi::OsStr,
    fmt::Write,
    io::{
        IoSlice,
        IoSliceMut, //
    },
    os::{
        fd::{
            AsFd,
            AsRawFd,
            BorrowedFd,
            FromRawFd,
            OwnedFd,
            RawFd, //
        },
        unix::ffi::OsStrExt, //
    },
    path::Path,
    process,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    time::Duration,
};

/// A descriptor that was received.
#[derive(Debug)]
pub enum ReceivedFd {
    /// It is a session.
    Session(AnySession),
    /// It is something else.
    Other(OwnedFd),
}

impl ReceivedFd {
    /// The session; [`None`] closes what is not one.
    pub fn into_session(self) -> Option<AnySession> {
        match self {
            Self::Session(session) => Some(session),
            Self::Other(_) => None,
        }
    }
}

impl From<OwnedFd> for ReceivedFd {
    fn from(fd: OwnedFd) -> Self {
        match AnySession::recognize(fd) {
            Ok(session) => Self::Session(session),
            Err(fd) => Self::Other(fd),
        }
    }
}

impl From<ReceivedFd> for OwnedFd {
    fn from(received: ReceivedFd) -> Self {
        match received {
            ReceivedFd::Session(session) => session.into(),
            ReceivedFd::Other(fd) => fd,
        }
    }
}

/// What [`receive`] got.
#[derive(Debug)]
pub struct Received {
    /// How many bytes are in the buffer; 0 at the end of a stream.
    pub len: usize,
    /// The descriptors that came with them.
    pub fds: Vec<ReceivedFd>,
    /// Whether the kernel could not make all descriptors, as the process has too many.
    pub incomplete: bool,
}

/// The most descriptors that the kernel takes in one message (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Sends bytes and descriptors over a UNIX socket. Returns how many of the bytes were sent; the
/// descriptors go with the first.
///
/// # Errors
///
/// - `EINVAL`: descriptors without a byte, or more than [`MAX_FDS`];
/// - what `sendmsg(2)` returns; `SIGPIPE` is not raised.
pub fn send(socket: &impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    let what = || "send to a socket";

    if fds.len() > MAX_FDS || bytes.is_empty() && !fds.is_empty() {
        return Err(Error::new(what(), Errno::EINVAL));
    }
    send_to(socket.as_fd(), None, bytes, fds).context(what)
}

fn send_to(
    socket: BorrowedFd<'_>,
    address: Option<&UnixAddr>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> nix::Result<usize> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };

    loop {
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            address,
        );
        if sent != Err(Errno::EINTR) {
            return sent;
        }
    }
}

/// Receives bytes and descriptors from a UNIX socket. The descriptors are close-on-exec.
///
/// # Errors
///
/// What `recvmsg(2)` returns.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> Result<Received> {
    let what = || "receive from a socket";
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let mut buffers = [IoSliceMut::new(buffer)];

    let message = loop {
        let message = recvmsg::<UnixAddr>(
            socket.as_fd().as_raw_fd(),
            &mut buffers,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        match message {
            Err(Errno::EINTR) => {}
            message => break message.context(what)?,
        }
    };

    let mut fds = Vec::new();
    // There is room for the largest message, so this can only fail for one of another kind.
    for part in message.cmsgs().context(what)? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            fds.extend(numbers.into_iter().map(|number| {
                // SAFETY: The kernel has just made this descriptor for us.
                ReceivedFd::from(unsafe { OwnedFd::from_raw_fd(number) })
            }));
        }
    }
    Ok(Received {
        len: message.bytes,
        fds,
        incomplete: message.flags.contains(MsgFlags::MSG_CTRUNC),
    })
}

/// A descriptor that the process was started with.
#[derive(Debug)]
pub struct Inherited {
    /// Its name in `LISTEN_FDNAMES`, if there is one.
    pub name: Option<String>,
    /// The descriptor.
    pub fd: ReceivedFd,
}

/// The first descriptor of `LISTEN_FDS`.
const FIRST: RawFd = 3;

/// Takes the descriptors that the parent passed by `LISTEN_FDS`, once; later calls return none. They
/// are made close-on-exec. The environment stays as it is.
///
/// A service gets here what it has put into the service manager's store, and its sockets.
///
/// # Errors
///
/// - `EINVAL`: `LISTEN_PID` is this process, and `LISTEN_FDS` is no number;
/// - `EBADF`: one of the descriptors does not exist.
pub fn inherited() -> Result<Vec<Inherited>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);

    let variable = |name| env::var(name).ok();
    let mine = variable("LISTEN_PID").is_some_and(|pid| pid == process::id().to_string());
    if !mine || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let what = || "take the descriptors of LISTEN_FDS";
    let count: RawFd = variable("LISTEN_FDS")
        .and_then(|count| count.parse().ok())
        .filter(|count| (0..=65536).contains(count))
        .ok_or_else(|| Error::new(what(), Errno::EINVAL))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);

    // All of them are there before one is taken.
    for number in FIRST..FIRST + count {
        // SAFETY: Only for this call, which fails if there is no such descriptor.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context(what)?;
    }
    Ok((FIRST..FIRST + count)
        .map(|number| Inherited {
            name: names.next().filter(|name| !name.is_empty()),
            // SAFETY: The descriptor was there a moment ago, it belongs to this process by the
            // protocol of LISTEN_FDS, and `TAKEN` sees to it that it is taken once.
            fd: ReceivedFd::from(unsafe { OwnedFd::from_raw_fd(number) }),
        })
        .collect())
}

/// The name under which the keeper puts a session into the service manager's store.
///
/// Such names are short and plain: what else is in the session's name is escaped, so that
/// [`SessionName::unescape`] can read it.
pub fn store_name(session: &SessionName) -> String {
    let mut name = String::new();

    for &byte in session.as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                name.push(char::from(byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(name, "\\x{byte:02x}")),
        }
    }
    name
}

/// Puts a descriptor into the service manager's store, which returns it to the next start of the
/// service. With `FileDescriptorStorePreserve=yes` on systemd 261 or later, a session in it survives
/// the reboot.
///
/// The manager does not answer. If the store is full it closes what it got, so keep the descriptor
/// open where that matters, or set `FileDescriptorStoreMax=` high enough.
///
/// # Errors
///
/// - `EOPNOTSUPP`: there is no store: no service manager, or `$FDSTORE` does not say how many
///   descriptors it takes (systemd 254 or later);
/// - what `sendmsg(2)` returns.
pub fn store(fd: BorrowedFd<'_>, name: &str) -> Result {
    let what = || format!("store a descriptor as '{name}'");
    let room = env::var("FDSTORE").ok().and_then(|max| max.parse().ok());

    match room {
        None | Some(0) => Err(Error::new(what(), Errno::EOPNOTSUPP)),
        Some(1_u32..) => tell_manager(&format!("FDSTORE=1\nFDNAME={name}"), &[fd]).context(what),
    }
}

/// Has the service manager close what is in its store under `name`.
///
/// # Errors
///
/// As [`store`].
pub fn unstore(name: &str) -> Result {
    tell_manager(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
        .context(|| format!("remove the stored descriptors '{name}'"))
}

/// Tells the service manager the state of the service (`READY=1`, `STATUS=...`), a variable a line,
/// as `sd_notify(3)`.
///
/// # Errors
///
/// - `EOPNOTSUPP`: there is no service manager that wants to know (`$NOTIFY_SOCKET`);
/// - what `sendmsg(2)` returns.
pub fn notify(state: &str) -> Result {
    tell_manager(state, &[]).context(|| "notify the service manager")
}

/// Waits until the service manager has taken in everything that it was told and sent before.
///
/// # Errors
///
/// - `EOPNOTSUPP`: there is no service manager;
/// - `ETIMEDOUT`: it did not get so far in time;
/// - what `sendmsg(2)` and `poll(2)` return.
pub fn barrier(timeout: Duration) -> Result {
    let what = || "wait for the service manager";
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).context(what)?;

    tell_manager("BARRIER=1", &[theirs.as_fd()]).context(what)?;
    drop(theirs);
    // It closes the other end when it gets there.
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut waiting = [PollFd::new(ours.as_fd(), PollFlags::empty())];
    match poll(&mut waiting, timeout).context(what)? {
        0 => Err(Error::new(what(), Errno::ETIMEDOUT)),
        _ => Ok(()),
    }
}

fn tell_manager(state: &str, fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let path = env::var_os("NOTIFY_SOCKET").ok_or(Errno::EOPNOTSUPP)?;
    let address = match path.as_bytes().split_first() {
        Some((b'@', name)) => UnixAddr::new_abstract(name)?,
        Some((b'/', _)) => UnixAddr::new(Path::new(OsStr::from_bytes(path.as_bytes())))?,
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;

    send_to(socket.as_fd(), Some(&address), state.as_bytes(), fds).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_crosses_a_socket() {
        let (here, there) = UnixStream::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();

        assert_eq!(send(&here, b"hello", &[writer.as_fd()]), Ok(5));
        drop(writer);
        let mut buffer = [0; 16];
        let mut received = receive(&there, &mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"hello");
        assert!(!received.incomplete);
        let Some(ReceivedFd::Other(fd)) = received.fds.pop() else {
            panic!("no descriptor, or a session");
        };
        nix::unistd::write(&fd, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&reader, &mut byte), Ok(1));
        assert!(received.fds.is_empty());

        drop(here);
        let end = receive(&there, &mut buffer).unwrap();
        assert_eq!((end.len, end.fds.len()), (0, 0));
        let refused = send(&there, b"x", &[]).unwrap_err();
        assert_eq!(refused.errno(), Errno::EPIPE);
    }

    #[test]
    fn what_cannot_be_sent() {
        let (here, _there) = UnixStream::pair().unwrap();
        let fd = here.as_fd();

        for refused in [send(&here, b"", &[fd]), send(&here, b"x", &[fd; 254])] {
            assert_eq!(refused.unwrap_err().errno(), Errno::EINVAL);
        }
        assert_eq!(send(&here, b"x", &[fd; 253]), Ok(1));
    }

    #[test]
    fn names_in_the_store() {
        let name = |bytes: &[u8]| store_name(&SessionName::new(bytes).unwrap());

        assert_eq!(name(b"vm-0_a.B"), "vm-0_a.B");
        assert_eq!(name(b"a:b c\xff"), "a\\x3ab\\x20c\\xff");
        assert!(name(&[b':'; 63]).len() <= 255);
        let back = SessionName::unescape(&name(b"a:b\\"));
        assert_eq!(back, SessionName::new(b"a:b\\"));
    }
}
