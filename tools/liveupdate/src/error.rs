// SPDX-License-Identifier: MIT OR Apache-2.0

//! Errors of the library: what was attempted, what the kernel said, and what to do next.

use crate::{
    NameError,
    SessionName,
    Token, //
};
use std::{
    fmt,
    io,
    path::PathBuf, //
};

pub use nix::errno::Errno;

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    operation: Operation,
    errno: Errno,
}

/// The result of an operation.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// What was attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// To open the device.
    OpenDevice(PathBuf),
    /// To name a session.
    Name(NameError),
    /// To create a session.
    Create(SessionName),
    /// To take over a session of the previous kernel.
    RetrieveSession(SessionName),
    /// To use a descriptor as a session.
    Adopt,
    /// To preserve a file.
    Preserve(SessionName, Token),
    /// To retrieve a file.
    Retrieve(SessionName, Token),
    /// To finish a session.
    Finish(SessionName),
    /// To load the next kernel.
    Load,
    /// To unload the next kernel.
    Unload,
    /// To start the next kernel.
    Jump,
    /// Something else, in words that follow "cannot".
    Other(String),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenDevice(path) => write!(f, "open {}", path.display()),
            Self::Name(why) => write!(f, "name the session ({why})"),
            Self::Create(name) => write!(f, "create session '{name}'"),
            Self::RetrieveSession(name) => write!(f, "retrieve session '{name}'"),
            Self::Adopt => f.write_str("use the descriptor as a session"),
            Self::Preserve(name, token) => {
                write!(
                    f,
                    "preserve the file in session '{name}' under token {token}"
                )
            }
            Self::Retrieve(name, token) => {
                write!(f, "retrieve token {token} of session '{name}'")
            }
            Self::Finish(name) => write!(f, "finish session '{name}'"),
            Self::Load => f.write_str("load the next kernel"),
            Self::Unload => f.write_str("unload the next kernel"),
            Self::Jump => f.write_str("start the next kernel"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl Error {
    /// An error of an operation that has no name of its own; the words follow "cannot".
    pub fn new(operation: impl Into<String>, errno: Errno) -> Self {
        Self::of(Operation::Other(operation.into()), errno)
    }

    /// An error of an operation.
    pub fn of(operation: Operation, errno: Errno) -> Self {
        Self { operation, errno }
    }

    /// What was attempted.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// The errno that the kernel returned.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// What to do next, where the errno has one likely cause.
    pub fn advice(&self) -> Option<&'static str> {
        use Operation as Op;

        Some(match (&self.operation, self.errno) {
            (Op::OpenDevice(_), Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => {
                "boot with liveupdate=on and kho=on; `dmesg | grep -E 'luo|KHO'` tells why it is off"
            }
            (Op::OpenDevice(_), Errno::EBUSY) => {
                "one process at a time has the device open; `fuser /dev/liveupdate` names it"
            }
            (Op::OpenDevice(_), Errno::EACCES | Errno::EPERM) => "only root may open the device",
            (Op::OpenDevice(_), Errno::EIO) => {
                "the previous kernel's state cannot be read; the kernel log says why, keep the \
                 machine as it is if the state matters"
            }
            (Op::Create(_), Errno::EEXIST) => {
                "an outgoing session has this name; close it or choose another name"
            }
            (Op::RetrieveSession(_), Errno::ENOENT) => {
                "there is no incoming session of this name, or it is finished"
            }
            (Op::RetrieveSession(_), Errno::EINVAL) => {
                "a process has the session open; take it over from there, or end that process's use"
            }
            (Op::RetrieveSession(_) | Op::Retrieve(..), Errno::EUCLEAN) => {
                "its record was corrupted on the way; the kernel log says what was found, and \
                 trying again does not help"
            }
            (Op::Preserve(..), Errno::ENOENT) => {
                "no file handler of this kernel can preserve such a file"
            }
            (Op::Preserve(..), Errno::EBUSY) => {
                "the file is preserved already, is part of an unfinished session, or a kexec is under \
                 way"
            }
            (Op::Preserve(..), Errno::EEXIST) => "the token is in use; choose another one",
            (Op::Preserve(..), Errno::EOPNOTSUPP) => {
                "the file has a property that cannot be handed over in the outgoing format, see \
                 /sys/kernel/liveupdate/abi"
            }
            (Op::Preserve(..), Errno::EINVAL) => "the session is an incoming one",
            (Op::Retrieve(..), Errno::ENOENT) => {
                "the session has no such token, or the module of its file handler is not loaded"
            }
            (Op::Retrieve(..), Errno::EINVAL) => "the session is an outgoing one",
            (
                Op::Retrieve(..),
                Errno::ENOMEM | Errno::ENOSPC | Errno::EMFILE | Errno::ENFILE,
            ) => "nothing is lost: free the resource and try again",
            (Op::Finish(_), Errno::EBUSY) => {
                "a file handler cannot let go yet, or is not loaded; nothing has changed, try again"
            }
            (Op::Create(_) | Op::RetrieveSession(_) | Op::Retrieve(..), Errno::EBUSY) => {
                "a kexec is under way"
            }
            (Op::Adopt, Errno::ENOTTY) => "it is not a session of the Live Update Orchestrator",
            (Op::Load, Errno::ENOEXEC) => "the image is not a kernel of this architecture",
            (Op::Load, Errno::EKEYREJECTED | Errno::ENOKEY) => {
                "the kernel wants a signed image (kexec_file_load with signature check)"
            }
            (Op::Load | Op::Unload | Op::Jump, Errno::EBUSY) => {
                "another kexec or load is under way; try again"
            }
            (Op::Load | Op::Unload | Op::Jump, Errno::EPERM | Errno::EACCES) => {
                "CAP_SYS_BOOT is needed, and kernel.kexec_load_disabled must be 0"
            }
            (Op::Jump, Errno::EINVAL) => "no next kernel is loaded; load one first",
            (Op::Jump, Errno::EOPNOTSUPP) => {
                "the loaded image cannot find what is preserved; load it by kexec_file_load \
                 (`luoctl load`, `kexec -s`)"
            }
            (Op::Jump, _) => {
                "nothing has changed; the kernel log says which file or driver refused"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.errno)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.errno)
    }
}

impl From<Error> for io::Error {
    fn from(err: Error) -> Self {
        Self::new(io::Error::from(err.errno).kind(), err)
    }
}

impl From<NameError> for Error {
    fn from(why: NameError) -> Self {
        Self::of(Operation::Name(why), Errno::EINVAL)
    }
}

/// Says what failed.
pub trait Context<T> {
    /// Names the operation, in words that follow "cannot".
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T>;

    /// Names the operation.
    fn during(self, operation: impl FnOnce() -> Operation) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.during(|| Operation::Other(operation().into()))
    }

    fn during(self, operation: impl FnOnce() -> Operation) -> Result<T> {
        self.map_err(|errno| Error::of(operation(), errno))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.during(|| Operation::Other(operation().into()))
    }

    fn during(self, operation: impl FnOnce() -> Operation) -> Result<T> {
        self.map_err(|err| {
            // What std reports without an errno (an early end of a file) is broken input.
            let errno = err.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Error::of(operation(), errno)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let name = SessionName::new("a\nb").unwrap();
        let errors = [
            Error::of(Operation::Preserve(name, Token(1)), Errno::EBUSY),
            Error::of(
                Operation::OpenDevice("/dev/liveupdate".into()),
                Errno::ENOENT,
            ),
            Error::of(Operation::Jump, Errno::EOPNOTSUPP),
            NameError::Empty.into(),
        ];

        for err in errors {
            assert!(!err.to_string().contains('\n'), "{err}");
            assert!(err.advice().is_none_or(|advice| !advice.contains('\n')));
        }
    }

    #[test]
    fn what_users_meet_has_advice() {
        let name = SessionName::new("a").unwrap();
        let (preserve, retrieve) = (
            || Operation::Preserve(name, Token(1)),
            || Operation::Retrieve(name, Token(1)),
        );
        let mut told = Vec::new();

        for (operation, errno) in [
            (preserve(), Errno::EOPNOTSUPP),
            (Operation::Jump, Errno::EOPNOTSUPP),
            (preserve(), Errno::EBUSY),
            (preserve(), Errno::ENOENT),
            (Operation::RetrieveSession(name), Errno::ENOENT),
            (retrieve(), Errno::ENOENT),
            (retrieve(), Errno::EUCLEAN),
            (Operation::OpenDevice("x".into()), Errno::EACCES),
            (Operation::Load, Errno::EACCES),
        ] {
            let err = Error::of(operation, errno);
            let advice = err.advice();
            assert!(
                advice.is_some() && !told.contains(&advice),
                "{err}: {advice:?}"
            );
            told.push(advice);
        }
    }

    #[test]
    fn the_same_errno_has_several_causes() {
        let advice = |operation| Error::of(operation, Errno::EBUSY).advice();
        let name = SessionName::new("a").unwrap();

        let told = [
            advice(Operation::OpenDevice("x".into())),
            advice(Operation::Finish(name)),
            advice(Operation::Preserve(name, Token(0))),
            advice(Operation::Load),
            advice(Operation::Create(name)),
        ];
        for (number, one) in told.iter().enumerate() {
            assert!(one.is_some());
            assert!(!told[..number].contains(one));
        }
    }
}
