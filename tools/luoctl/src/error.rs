// SPDX-License-Identifier: GPL-2.0

//! Errors of the client: what was attempted, and the errno that came of it.

use nix::errno::Errno;
use std::{
    fmt,
    io, //
};

/// A failed operation.
#[derive(Clone, Debug)]
pub struct Error {
    operation: String,
    errno: Errno,
}

/// The result of an operation.
pub type Result<T = ()> = std::result::Result<T, Error>;

impl Error {
    /// An error of `operation`.
    pub fn new(operation: impl Into<String>, errno: Errno) -> Self {
        Self {
            operation: operation.into(),
            errno,
        }
    }

    /// The errno that the kernel returned.
    pub fn errno(&self) -> Errno {
        self.errno
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

/// Says what failed.
pub trait Context<T> {
    /// Names the operation, in words that follow "cannot".
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|errno| Error::new(operation(), errno))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|err| {
            // What std reports without an errno (an early end of a file) is broken input.
            let errno = err.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Error::new(operation(), errno)
        })
    }
}
