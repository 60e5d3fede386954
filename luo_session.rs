// SPDX-License-Identifier: GPL-2.0

//! Sessions: named containers of files, and the descriptors by which user space holds them.
//!
//! Above files, below the device. A session is outgoing, made in this kernel for the next one, or
//! incoming, handed over by the previous one: two types with different operations, in two tables.
//!
//! ```text
//!  outgoing    made by user space, preserves files; lives as long as its descriptor is open
//!  incoming    waits until it is retrieved; closing its descriptor finishes it
//!  serialize   at the kexec: holds, freezes and writes down the sessions of both tables
//!  names       sessions by their names
//! ```
//!
//! # Locks
//!
//! The table of incoming sessions, one incoming session, the table of outgoing sessions, one
//! outgoing session. Callbacks of drivers run under the lock of their session, at the kexec also
//! under that of its table.

use core::fmt::{
    Formatter,
    Result as FmtResult, //
};

use kernel::{
    anon_inode::{
        self,
        AnonFile, //
    },
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        Mutex, //
    }, //
};

use crate::{
    abi::{
        name::SESSION_NAME_LEN,
        session::{
            FileRecord,
            SessionRecord, //
        },
        SessionName, //
    },
    luo_core::ioctl::{
        self,
        Argument,
        RawArgument, //
    },
    luo_file::FileInfo,
    uapi, //
};

mod incoming;
mod names;
mod outgoing;
mod serialize;

pub(crate) use incoming::IncomingSessions;
pub(crate) use outgoing::OutgoingSessions;
pub(crate) use serialize::Serialized;

use names::{
    HashedName,
    Named, //
};

/// What debugfs shows of a session.
pub(crate) trait SessionInfo {
    /// Its name, its state, and how many files it has.
    fn summary(&self) -> (SessionName, &'static str, usize);

    /// Adds some of its files to `to`, from that at `first` on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn files(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result;

    /// Shows which of its files are quarantined, and why.
    fn show_quarantine(&self, f: &mut Formatter<'_>) -> FmtResult;
}

/// How many sessions and files there are.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) sessions: u64,
    pub(crate) files: u64,
    /// Whether there were more, which are corrupt.
    pub(crate) corrupt: bool,
}

impl Totals {
    /// Counts a session with `files` files.
    fn add(&mut self, files: u64) {
        self.sessions = self.sessions.saturating_add(1);
        self.files = self.files.saturating_add(files);
    }

    /// How many bytes their records have.
    pub(crate) fn records(&self) -> u64 {
        // Lossless: no kernel has wider sizes.
        const SESSION: u64 = size_of::<SessionRecord>() as u64;
        const FILE: u64 = size_of::<FileRecord>() as u64;

        let sessions = self.sessions.saturating_mul(SESSION);
        sessions.saturating_add(self.files.saturating_mul(FILE))
    }
}

/// `O_CLOEXEC` for descriptors that are handed out.
pub(crate) const CLOEXEC: u32 = kernel::fs::file::flags::O_CLOEXEC;

/// One side of the kexec: what the state of a session is there, and the table of such sessions.
pub(crate) trait Side: Sized {
    type Sessions: 'static;
}

/// A session, on the side `S` of the kexec.
#[pin_data]
pub(crate) struct Session<S: Side> {
    name: HashedName,
    sessions: &'static S::Sessions,
    #[pin]
    state: Mutex<S>,
}

impl<S: Side> Named for Session<S> {
    fn name(&self) -> &HashedName {
        &self.name
    }
}

impl<S: Side> Session<S> {
    /// Makes the file by which user space holds the session.
    fn new_file<T: AnonFile>(&self, data: T::Ptr) -> Result<ARef<File>> {
        const PREFIX: &[u8] = b"[luo_session] ";

        let mut name = [0; PREFIX.len() + SESSION_NAME_LEN];
        let (prefix, rest) = name.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        rest.copy_from_slice(&self.name.to_bytes_padded());

        anon_inode::new_file::<T>(CStr::from_bytes_until_nul(&name).map_err(|_| EINVAL)?, data)
    }

    fn get_name(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::GetName> = arg.read()?;
        if arg.reserved != 0 {
            return Err(EINVAL);
        }

        let mut response = *arg;
        response.name = self.name.to_bytes_padded();
        arg.write(&response)
    }
}

/// Checks that a command is in the table of session commands.
///
/// # Errors
///
/// [`EINVAL`] if not.
fn check_number(cmd: u32) -> Result {
    match ioctl::number(cmd) {
        uapi::CMD_SESSION_BASE..=uapi::CMD_SESSION_GET_NAME => Ok(()),
        _ => Err(EINVAL),
    }
}
