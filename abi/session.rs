// SPDX-License-Identifier: GPL-2.0

//! The records of sessions and of their files.
//!
//! ```text
//!  session, 80 bytes                    file, 64 bytes
//!     0  u8[64]  name                      0  u8[48]  compatible
//!    64  u64     address of the files      48  u64     data of the handler
//!    72  u64     number of files           56  u64     token
//! ```

use core::fmt;

use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    block::Record,
    name::{
        Compatible,
        NameError,
        SessionName,
        COMPATIBLE_LEN,
        SESSION_NAME_LEN, //
    },
    phys::Phys, //
};

/// A session as it stands in a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SessionRecord {
    name: [u8; SESSION_NAME_LEN],
    files: u64,
    count: u64,
}

impl Record for SessionRecord {
    const KIND: &'static str = "session";
    const LINKED: bool = true;
}

/// A session that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub name: SessionName,
    /// The first block of its files.
    pub files: Option<Phys>,
    /// The number of its files.
    pub count: u64,
}

impl SessionRecord {
    /// The record of `session`.
    pub fn new(session: &Session) -> Self {
        Self {
            name: session.name.to_bytes_padded(),
            files: Phys::raw(session.files),
            count: session.count,
        }
    }

    /// Sets where the files are, and how many.
    pub fn set_files(&mut self, files: Option<Phys>, count: u64) {
        self.files = Phys::raw(files);
        self.count = count;
    }

    /// Reads and validates the record.
    ///
    /// # Errors
    ///
    /// [`RecordError::Name`], [`RecordError::Misaligned`], or [`RecordError::Files`] if there are
    /// files but no address of them, or the other way round.
    pub fn parse(&self) -> Result<Session, RecordError> {
        let name = SessionName::from_bytes(&self.name).map_err(RecordError::Name)?;
        let files = Phys::new(self.files);
        if files.is_some() != (self.count != 0) {
            return Err(RecordError::Files {
                files,
                count: self.count,
            });
        }
        match files {
            Some(at) if !at.page_aligned() => Err(RecordError::Misaligned { at }),
            _ => Ok(Session {
                name,
                files,
                count: self.count,
            }),
        }
    }

    /// The field of the name as it is, for messages about a record that could not be parsed.
    pub const fn raw_name(&self) -> &[u8; SESSION_NAME_LEN] {
        &self.name
    }
}

impl Session {
    /// Compares the number of files that were found with the one in the session's record.
    ///
    /// # Errors
    ///
    /// [`RecordError::Total`].
    pub fn check_total(&self, found: u64) -> Result<(), RecordError> {
        if found == self.count {
            Ok(())
        } else {
            Err(RecordError::Total {
                found,
                count: self.count,
            })
        }
    }
}

/// A preserved file as it stands in a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileRecord {
    compatible: [u8; COMPATIBLE_LEN],
    data: u64,
    token: u64,
}

impl Record for FileRecord {
    const KIND: &'static str = "file";
}

/// A preserved file that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Which handler it belongs to.
    pub compatible: Compatible,
    /// What the handler left; only it knows what that means.
    pub data: u64,
    /// The number under which user space asks for it.
    pub token: u64,
}

impl FileRecord {
    /// The record of `file`.
    pub fn new(file: &File) -> Self {
        Self {
            compatible: file.compatible.to_bytes_padded(),
            data: file.data,
            token: file.token,
        }
    }

    /// Replaces the handler's data.
    pub fn set_data(&mut self, data: u64) {
        self.data = data;
    }

    /// Reads and validates the record.
    ///
    /// # Errors
    ///
    /// [`RecordError::Name`].
    pub fn parse(&self) -> Result<File, RecordError> {
        Ok(File {
            compatible: Compatible::from_bytes(&self.compatible).map_err(RecordError::Name)?,
            data: self.data,
            token: self.token,
        })
    }
}

/// Why a record of a session or of a file is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The name or compatible string is none.
    Name(NameError),
    /// The address of the files and their number contradict each other.
    Files {
        /// The address of the first block of files.
        files: Option<Phys>,
        /// The number of files.
        count: u64,
    },
    /// The address of the files is not that of a page.
    Misaligned {
        /// The address.
        at: Phys,
    },
    /// There are not as many files as the session's record says.
    Total {
        /// How many there are.
        found: u64,
        /// How many there should be.
        count: u64,
    },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(cause) => cause.fmt(f),
            Self::Files {
                files: Some(at),
                count,
            } => write!(f, "files at {at} but a count of {count}"),
            Self::Files { files: None, count } => {
                write!(f, "count {count} but no address of files")
            }
            Self::Misaligned { at } => write!(f, "address {at} of files is not that of a page"),
            Self::Total { found, count } => write!(f, "{found} files where {count} are counted"),
        }
    }
}
