// SPDX-License-Identifier: MIT OR Apache-2.0

//! Open sessions.
//!
//! Which requests a session understands depends on the side of the reboot that it is on, and so
//! does its type: files go into a `Session<Outgoing>` and come out of a `Session<Incoming>`.

use crate::{
    error::{
        Context,
        Errno,
        Error,
        Operation,
        Result, //
    },
    kept::Kept,
    request::{
        request,
        size_field,
        DirectionQuestion, //
    },
    uapi,
    SessionName,
    Token, //
};
use std::{
    fmt,
    marker::PhantomData,
    os::fd::{
        AsFd,
        AsRawFd,
        BorrowedFd,
        FromRawFd,
        OwnedFd,
        RawFd, //
    },
};

/// On which side of the reboot a session is, as a type.
pub trait Direction: sealed::Sealed {
    /// The same as a value.
    const KIND: DirectionKind;
}

/// A session that waits for the reboot.
#[derive(Debug)]
pub enum Outgoing {}

/// An incoming session: the previous kernel handed it over.
#[derive(Debug)]
pub enum Incoming {}

impl Direction for Outgoing {
    const KIND: DirectionKind = DirectionKind::Outgoing;
}

impl Direction for Incoming {
    const KIND: DirectionKind = DirectionKind::Incoming;
}

mod sealed {
    use super::{
        Kept,
        SessionName, //
    };
    use std::{
        fmt,
        os::fd::{
            AsFd,
            OwnedFd, //
        },
    };

    /// Keeps [`Direction`](super::Direction) to its two sides, and says what dropping does there.
    pub trait Sealed {
        /// The owner of the descriptor.
        type Owner: AsFd + Into<OwnedFd> + fmt::Debug;

        fn own(fd: OwnedFd, name: SessionName) -> Self::Owner;
    }

    impl Sealed for super::Outgoing {
        type Owner = OwnedFd;

        fn own(fd: OwnedFd, _: SessionName) -> OwnedFd {
            fd
        }
    }

    impl Sealed for super::Incoming {
        type Owner = Kept;

        fn own(fd: OwnedFd, name: SessionName) -> Kept {
            Kept::new(fd, name)
        }
    }
}

/// On which side of the reboot a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum DirectionKind {
    /// It waits for the reboot.
    Outgoing,
    /// The previous kernel handed it over.
    Incoming,
}

impl DirectionKind {
    /// Asks the kernel on which side a session is.
    ///
    /// That has no effect on the session, whatever the kernel answers.
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the descriptor is not a session;
    /// - `EPROTO`: the kernel answers unlike any that is known.
    pub fn of(session: BorrowedFd<'_>) -> Result<Self> {
        // Others may know the number of the request below, but none knows this one.
        ask_name(session).during(|| Operation::Adopt)?;

        // Of this request the kernel looks at the direction first, then at the size, which it
        // cannot accept; and there is no such descriptor.
        let mut question = DirectionQuestion::new();
        match request(session, &mut question) {
            Err(Errno::EINVAL) => Ok(Self::Incoming),
            Err(Errno::E2BIG) => Ok(Self::Outgoing),
            Err(_) | Ok(()) => Err(Error::of(Operation::Adopt, Errno::EPROTO)),
        }
    }
}

impl fmt::Display for DirectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Outgoing => "outgoing",
            Self::Incoming => "incoming",
        })
    }
}

/// An open session.
///
/// - Dropping a `Session<Outgoing>` closes its descriptor. The last close before the reboot removes
///   the session, and what is preserved in it is ordinary again.
/// - Dropping a `Session<Incoming>` that is not [finished](Session::finish) gives its descriptor to
///   the process's [keeper](crate::keeper).
pub struct Session<D: Direction> {
    owner: D::Owner,
    name: SessionName,
    direction: PhantomData<fn() -> D>,
}

impl<D: Direction> Session<D> {
    pub(crate) fn new(fd: OwnedFd, name: SessionName) -> Self {
        Self {
            owner: D::own(fd, name),
            name,
            direction: PhantomData,
        }
    }

    /// Takes over a session descriptor received from elsewhere, such as a service manager's store,
    /// of which the direction is known. [`AnySession::adopt`] finds it out.
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the descriptor is not a session. It is closed;
    /// - `EINVAL`: the session has the other direction. If it is an incoming one, the keeper has it
    ///   now;
    /// - `EPROTO`: as [`DirectionKind::of`]. The keeper has it.
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        let name = ask_name(fd.as_fd()).during(|| Operation::Adopt)?;
        // Whatever comes now, it is not lost.
        let kept = Kept::new(fd, name);

        let kind = DirectionKind::of(kept.as_fd())?;
        if kind != D::KIND {
            if kind == DirectionKind::Outgoing {
                drop(OwnedFd::from(kept));
            }
            return Err(Error::of(Operation::Adopt, Errno::EINVAL));
        }
        Ok(Self::new(kept.into(), name))
    }

    /// The name of the session.
    pub fn name(&self) -> &SessionName {
        &self.name
    }

    /// Asks the kernel for the session's name.
    ///
    /// # Errors
    ///
    /// `EFAULT` and the like, which do not happen.
    pub fn ask_name(&self) -> Result<SessionName> {
        ask_name(self.as_fd()).context(|| format!("get the name of session '{}'", self.name))
    }

    /// Gives up the type and what it protects from: closing the descriptor may end the session.
    pub fn into_fd(self) -> OwnedFd {
        self.owner.into()
    }
}

/// Asks for the name of a session; `ENOTTY` if it is none.
fn ask_name(fd: BorrowedFd<'_>) -> nix::Result<SessionName> {
    let mut args = uapi::GetName {
        size: size_field::<uapi::GetName>(),
        reserved: 0,
        name: [0; uapi::SESSION_NAME_LENGTH],
    };

    request(fd, &mut args).map_err(|errno| match errno {
        // Some files say so of requests that they do not know.
        Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => Errno::ENOTTY,
        other => other,
    })?;
    SessionName::from_field(&args.name).map_err(|_| Errno::ENOTTY)
}

impl Session<Outgoing> {
    /// Preserves an open file under a token of the caller's choice.
    ///
    /// The kernel keeps its own reference: `file` may be closed.
    ///
    /// # Errors
    ///
    /// - `EEXIST`: the session has a file under this token;
    /// - `EBADF`: `file` is not open;
    /// - `ENOENT`: no file handler can preserve such a file;
    /// - `EBUSY`: the file is preserved already, here or in another session, or a kexec is under
    ///   way;
    /// - `ENOMEM`, and whatever the file's handler reports.
    pub fn preserve(&self, file: &impl AsFd, token: impl Into<Token>) -> Result {
        let token = token.into();
        let mut args = uapi::PreserveFd {
            size: size_field::<uapi::PreserveFd>(),
            fd: file.as_fd().as_raw_fd(),
            token: token.into(),
        };

        request(self.as_fd(), &mut args).during(|| Operation::Preserve(self.name, token))
    }

    /// Ends the session: what is preserved in it stays with this kernel.
    ///
    /// Only if no other descriptor of the session is open.
    pub fn discard(self) {
        drop(self);
    }
}

impl Session<Incoming> {
    /// Returns the file that was preserved under `token`.
    ///
    /// Files may be asked for in any order, and more than once: each time it is the same open file.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: the session has no file under this token, or no file handler for it;
    /// - `EUCLEAN`: it has none, but some of its files are corrupt;
    /// - `EBUSY`: a kexec is under way;
    /// - `EMFILE`, `ENFILE`, `ENOMEM`: try again;
    /// - whatever the file's handler reports.
    pub fn retrieve(&self, token: impl Into<Token>) -> Result<OwnedFd> {
        self.retrieve_as(token.into(), 0, 0)
    }

    /// Makes `target` the file that was preserved under `token`, and returns another descriptor of
    /// it.
    ///
    /// It must be an empty regular file of a tmpfs, or a memfd, open for reading and writing. It gets
    /// content and size; name, owner, mode, open flags and position stay as they are. Nothing is
    /// copied.
    ///
    /// # Errors
    ///
    /// After any of these, and those of [`Self::retrieve`], the file can be retrieved otherwise:
    ///
    /// - `EOPNOTSUPP`: this type of file knows nothing of targets;
    /// - `E2BIG`: nor does the kernel;
    /// - `EINVAL`, `EBADF`: the target is no file of shared memory, or open the wrong way;
    /// - `EEXIST`: the file has been retrieved already;
    /// - `ENOTEMPTY`: there is something in the target;
    /// - `EPERM`: the target must not change, or lacks a seal that the file has;
    /// - `ENOSPC`, `EDQUOT`: the file does not fit where the target is.
    pub fn retrieve_into(&self, token: impl Into<Token>, target: impl AsFd) -> Result<OwnedFd> {
        let target = target.as_fd().as_raw_fd();
        self.retrieve_as(token.into(), uapi::RETRIEVE_INTO, target)
    }

    fn retrieve_as(&self, token: Token, flags: u32, target: RawFd) -> Result<OwnedFd> {
        let mut args = uapi::RetrieveFd {
            size: size_field::<uapi::RetrieveFd>(),
            fd: -1,
            token: token.into(),
            flags,
            target,
        };

        request(self.as_fd(), &mut args).during(|| Operation::Retrieve(self.name, token))?;
        // SAFETY: The request succeeded, so the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(args.fd) })
    }

    /// Ends the session. Files that were retrieved belong to their users alone from now on.
    ///
    /// **What was not retrieved is destroyed.** To say that this is intended, use
    /// [`Self::discard`].
    ///
    /// After it succeeded the session has no files and can be dropped.
    ///
    /// # Errors
    ///
    /// - `EBUSY`: a file cannot be finished yet, or a kexec is under way. Nothing has changed; try
    ///   again.
    pub fn finish(&self) -> Result {
        let mut args = uapi::Finish {
            size: size_field::<uapi::Finish>(),
            reserved: 0,
        };

        request(self.as_fd(), &mut args).during(|| Operation::Finish(self.name))?;
        self.owner.release();
        Ok(())
    }

    /// Destroys what was not retrieved, and ends the session.
    ///
    /// # Errors
    ///
    /// As [`Self::finish`]. The keeper has the session then.
    pub fn discard(self) -> Result {
        self.finish()
    }
}

impl<D: Direction> fmt::Debug for Session<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("direction", &D::KIND)
            .field("name", &self.name)
            .field("owner", &self.owner)
            .finish()
    }
}

impl<D: Direction> AsFd for Session<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owner.as_fd()
    }
}

impl<D: Direction> From<Session<D>> for OwnedFd {
    fn from(session: Session<D>) -> Self {
        session.into_fd()
    }
}

/// An open session of either direction.
#[derive(Debug)]
pub enum AnySession {
    /// It waits for the reboot.
    Outgoing(Session<Outgoing>),
    /// The previous kernel handed it over.
    Incoming(Session<Incoming>),
}

impl AnySession {
    /// Takes over a session descriptor received from elsewhere, and finds out its direction without
    /// an effect on it.
    ///
    /// To look at a descriptor without giving it away, ask [`DirectionKind::of`].
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the descriptor is not a session. It is closed;
    /// - `EPROTO`: as [`DirectionKind::of`]. The keeper has it.
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        let name = ask_name(fd.as_fd()).during(|| Operation::Adopt)?;
        // Whatever comes now, it is not lost.
        let kept = Kept::new(fd, name);

        Ok(match DirectionKind::of(kept.as_fd())? {
            DirectionKind::Outgoing => Self::Outgoing(Session::new(kept.into(), name)),
            DirectionKind::Incoming => Self::Incoming(Session::new(kept.into(), name)),
        })
    }

    /// Tells a session from another descriptor, which is returned.
    ///
    /// One that does not tell its direction is taken for an incoming one, which is the careful
    /// choice.
    pub(crate) fn recognize(fd: OwnedFd) -> std::result::Result<Self, OwnedFd> {
        let Ok(name) = ask_name(fd.as_fd()) else {
            return Err(fd);
        };

        Ok(match DirectionKind::of(fd.as_fd()) {
            Ok(DirectionKind::Outgoing) => Self::Outgoing(Session::new(fd, name)),
            Ok(DirectionKind::Incoming) | Err(_) => Self::Incoming(Session::new(fd, name)),
        })
    }

    /// The name of the session.
    pub fn name(&self) -> &SessionName {
        match self {
            Self::Outgoing(session) => session.name(),
            Self::Incoming(session) => session.name(),
        }
    }

    /// On which side of the reboot it is.
    pub fn direction(&self) -> DirectionKind {
        match self {
            Self::Outgoing(_) => DirectionKind::Outgoing,
            Self::Incoming(_) => DirectionKind::Incoming,
        }
    }

    /// Gives up the type and what it protects from: closing the descriptor may end the session.
    pub fn into_fd(self) -> OwnedFd {
        match self {
            Self::Outgoing(session) => session.into_fd(),
            Self::Incoming(session) => session.into_fd(),
        }
    }
}

impl AsFd for AnySession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Outgoing(session) => session.as_fd(),
            Self::Incoming(session) => session.as_fd(),
        }
    }
}

impl From<Session<Outgoing>> for AnySession {
    fn from(session: Session<Outgoing>) -> Self {
        Self::Outgoing(session)
    }
}

impl From<Session<Incoming>> for AnySession {
    fn from(session: Session<Incoming>) -> Self {
        Self::Incoming(session)
    }
}

impl From<AnySession> for OwnedFd {
    fn from(session: AnySession) -> Self {
        session.into_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_a_session() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());

        let adopted = Session::<Outgoing>::adopt(null());
        assert_eq!(adopted.unwrap_err().errno(), Errno::ENOTTY);
        let adopted = AnySession::adopt(null());
        assert_eq!(adopted.unwrap_err().errno(), Errno::ENOTTY);
        let kind = DirectionKind::of(null().as_fd());
        assert_eq!(kind.unwrap_err().errno(), Errno::ENOTTY);
    }
}
