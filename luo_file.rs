// SPDX-License-Identifier: GPL-2.0

//! Files: the life of one preserved file, and the files of one session.
//!
//! Below sessions, above the drivers' callbacks and FLBs. A file is either outgoing or incoming;
//! the files of a session are owned by it and protected by its lock.
//!
//! ```text
//!  outgoing    preserved, frozen, described for the next kernel
//!  incoming    handed over by the previous kernel, retrieved, finished
//!  handlers    the file handlers that drivers have registered
//!  registry    which files are preserved or retrieved, so that none is preserved twice
//!  tokens      files by their tokens
//!  id_set      a set of numbers, for the registry
//! ```

use kernel::prelude::*;

use crate::abi::Compatible;

pub(crate) mod handlers;
mod id_set;
mod incoming;
mod outgoing;
pub(crate) mod registry;
mod tokens;

pub(crate) use incoming::IncomingFiles;
pub(crate) use outgoing::{
    FilesAnew,
    PreservedFiles, //
};

/// What debugfs shows of a file.
pub(crate) struct FileInfo {
    pub(crate) token: u64,
    pub(crate) handler: Compatible,
    pub(crate) state: &'static str,
    /// Why it is in that state, if it failed.
    pub(crate) error: Option<Error>,
    /// What its handler says about it, if anything.
    pub(crate) summary: KVec<u8>,
}
