// SPDX-License-Identifier: MIT OR Apache-2.0

//! All sessions and their files, from debugfs, without opening the device.
//!
//! The kernel makes these files for people and may change them. So what is not understood is left
//! out, and states are words.

use crate::{
    error::{
        Context,
        Result, //
    },
    DirectionKind,
    SessionName,
    Token, //
};
use std::{
    fs,
    path::Path, //
};

/// Where the kernel shows it.
pub const DEBUGFS_PATH: &str = "/sys/kernel/debug/liveupdate";

/// The sessions of one side of the reboot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Listing {
    /// The sessions.
    pub sessions: Vec<SessionEntry>,
    /// What is corrupt and left out, in the kernel's words.
    pub quarantined: Vec<String>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SessionEntry {
    /// Its name.
    pub name: SessionName,
    /// Its state: `open` and others on the way out; `waiting`, `retrieved`, `finished` and others
    /// on the way in.
    pub state: String,
    /// Its files.
    pub files: Vec<FileEntry>,
}

impl SessionEntry {
    /// Whether it is an incoming one that is over, so that nothing in it can be lost.
    pub fn is_finished(&self) -> bool {
        self.state == "finished"
    }

    /// Whether it is an incoming one that nobody has open.
    pub fn is_waiting(&self) -> bool {
        self.state == "waiting"
    }
}

/// A file of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FileEntry {
    /// The number that it is preserved under.
    pub token: Token,
    /// The compatible string of its file handler.
    pub handler: String,
    /// Its state: `preserved` on the way out; `waiting`, `retrieved` or `failed` on the way in,
    /// with the error.
    pub state: String,
    /// What the handler tells of it, such as its size. May be empty.
    pub details: String,
}

impl FileEntry {
    /// Whether it is an incoming one that nobody has retrieved.
    pub fn is_waiting(&self) -> bool {
        self.state == "waiting"
    }
}

impl Listing {
    /// Reads one side.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: debugfs is not mounted, live update is off, or the kernel's LUO is not the one in
    ///   Rust;
    /// - `EACCES`: the caller is not root.
    pub fn read(side: DirectionKind) -> Result<Self> {
        Self::read_at(Path::new(DEBUGFS_PATH), side)
    }

    /// The same, from another directory.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_at(directory: &Path, side: DirectionKind) -> Result<Self> {
        let path = directory.join(side.to_string());
        let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;

        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Reads what a file has.
    pub fn parse(text: &str) -> Self {
        let mut listing = Self::default();

        for line in text.lines() {
            let line = line.trim_start();
            if let Some(reason) = line.strip_prefix("quarantined: ") {
                listing.quarantined.push(reason.to_owned());
            } else if let Some(session) = SessionEntry::parse(line) {
                listing.sessions.push(session);
            } else if let (Some(file), Some(session)) =
                (FileEntry::parse(line), listing.sessions.last_mut())
            {
                session.files.push(file);
            }
        }
        listing
    }

    /// The session of a name.
    pub fn session(&self, name: &SessionName) -> Option<&SessionEntry> {
        self.sessions.iter().find(|session| session.name == *name)
    }
}

impl SessionEntry {
    /// Reads `session 'NAME' STATE, N files`. The name may have quotes.
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.strip_prefix("session '")?.rsplit_once("' ")?;
        let (state, count) = rest.split_once(", ")?;
        count.strip_suffix(" files")?.parse::<u64>().ok()?;

        Some(Self {
            name: SessionName::unescape(name).ok()?,
            state: state.to_owned(),
            files: Vec::new(),
        })
    }
}

impl FileEntry {
    /// Reads `token 0xN handler 'NAME' STATE[: DETAILS]`.
    fn parse(line: &str) -> Option<Self> {
        let (token, rest) = line.strip_prefix("token ")?.split_once(" handler '")?;
        let (handler, rest) = rest.split_once("' ")?;
        let (state, details) = rest.split_once(": ").unwrap_or((rest, ""));

        Some(Self {
            token: token.parse().ok()?,
            handler: handler.to_owned(),
            state: state.to_owned(),
            details: details.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_documented() {
        let listing = Listing::parse(
            "session 'vm-0' retrieved, 3 files\n\
             \x20 token 0x1 handler 'memfd-extents-v3' retrieved: size 1048576\n\
             \x20 token 0x2 handler 'vfio-v1' failed EIO\n\
             \x20 token 0xffffffffffffffff handler 'memfd-extents-v3' waiting: size 8192, 2 pages\n\
             quarantined: file 2: checksum does not match\n\
             session 'it's \\x5c' waiting, 0 files\n\
             quarantined: session 7: checksum does not match\n\
             no memory to show sessions\n",
        );

        assert_eq!(listing.sessions.len(), 2);
        let first = &listing.sessions[0];
        assert_eq!(
            (first.name.to_string(), first.state.as_str()),
            ("vm-0".into(), "retrieved")
        );
        let states: Vec<_> = first.files.iter().map(|file| file.state.as_str()).collect();
        assert_eq!(states, ["retrieved", "failed EIO", "waiting"]);
        assert_eq!(first.files[2].token, Token(u64::MAX));
        assert_eq!(first.files[2].details, "size 8192, 2 pages");
        assert_eq!(listing.sessions[1].name.as_bytes(), b"it's \\");
        assert!(listing.sessions[1].is_waiting());
        assert_eq!(listing.quarantined.len(), 2);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(session '|token |handler |' |, |[a-z0-9\\\\ ':\n])*") {
            Listing::parse(&text);
        }
    }
}
