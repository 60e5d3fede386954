// SPDX-License-Identifier: GPL-2.0

//! How the tool ends: exit codes, and failures with a message and what to do next.

use liveupdate::{
    Errno,
    Error,
    Operation, //
};
use std::{
    fmt,
    io, //
};

/// The exit codes, as far as possible those of `systemctl`. They are documented in the manual page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done. Of `check`: nothing speaks against the update.
    Success = 0,
    /// Failed. Of `check`: there are warnings.
    Failure = 1,
    /// Used wrongly. Of `check`: something would be lost, or nothing can be said.
    Invalid = 2,
    /// Live update is off, the agent does not run, no kernel is loaded.
    NotRunning = 3,
    /// There is no such session or client.
    NoSuch = 4,
}

/// Why a verb failed.
#[derive(Debug)]
pub struct Failure {
    /// In one line.
    pub message: String,
    /// What to do next, if that is known.
    pub hint: Option<String>,
    /// How to end.
    pub exit: Exit,
}

/// What a verb returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without further advice.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            exit,
        }
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failure of an operation on a file, in words that follow "cannot".
    pub fn io(operation: impl fmt::Display, err: &io::Error) -> Self {
        Self::new(Exit::Failure, format_args!("cannot {operation}: {err}"))
    }
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        let exit = match (err.operation(), err.errno()) {
            (Operation::OpenDevice(_), Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => {
                Exit::NotRunning
            }
            (Operation::RetrieveSession(_), Errno::ENOENT) => Exit::NoSuch,
            (Operation::Jump, Errno::EINVAL) => Exit::NotRunning,
            (Operation::Name(_), _) => Exit::Invalid,
            _ => Exit::Failure,
        };

        Self {
            message: err.to_string(),
            hint: err.advice().map(str::to_owned),
            exit,
        }
    }
}
