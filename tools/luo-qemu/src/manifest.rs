// SPDX-License-Identifier: GPL-2.0

//! What is to be known of a guest in the next kernel, as JSON in a memfd.

use crate::Outcome;
use nix::sys::memfd::{
    memfd_create,
    MFdFlags, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::PathBuf, //
};

/// Tokens of the session.
pub const MANIFEST: u64 = 1;
/// The guest's RAM.
pub const RAM: u64 = 2;
/// The state of the devices.
pub const STATE: u64 = 3;

/// The version of the layout below.
const VERSION: u32 = 1;

/// More than any command line has.
const MAX: u64 = 1 << 20;

/// What is to be known of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this layout.
    version: u32,
    /// QEMU and its arguments, as the operator gave them.
    pub command: Vec<String>,
    /// Where QEMU was started.
    pub directory: PathBuf,
    /// The size of the RAM in bytes.
    pub memory: u64,
    /// The machine type without aliases, so that a newer QEMU builds the same machine.
    pub machine: String,
    /// Whether the guest ran when it was stopped.
    pub running: bool,
    /// When it was stopped, in nanoseconds since 1970.
    pub stopped: u64,
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(command: Vec<String>, directory: PathBuf, memory: u64, machine: String) -> Self {
        Self {
            version: VERSION,
            command,
            directory,
            memory,
            machine,
            running: true,
            stopped: 0,
        }
    }

    /// Writes it into a new memfd.
    pub fn write(&self) -> Outcome<File> {
        let mut file = File::from(memfd_create("luo-qemu:manifest", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file)
    }

    /// Reads it.
    pub fn read(file: &File) -> Outcome<Self> {
        let len = file.metadata()?.len();
        if len > MAX {
            return Err("the guest's manifest is too long".into());
        }
        let mut bytes = vec![0; usize::try_from(len)?];
        file.read_exact_at(&mut bytes, 0)?;
        let found: Self = serde_json::from_slice(&bytes)
            .map_err(|err| format!("the guest's manifest cannot be read: {err}"))?;
        if found.version != VERSION {
            return Err(format!(
                "the guest's manifest has version {}, this luo-qemu reads {VERSION}",
                found.version
            )
            .into());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let command = vec!["qemu-system-x86_64".to_owned(), "-S".to_owned()];
        let mut manifest = Manifest::new(command, "/".into(), 1 << 28, "pc-q35-10.0".to_owned());
        manifest.stopped = 1_795_000_000_000_000_000;
        let file = manifest.write().unwrap();
        assert_eq!(Manifest::read(&file).unwrap(), manifest);
    }

    #[test]
    fn corrupt_and_foreign() {
        let write = |text: &str| {
            let mut file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let mut next = Manifest::new(Vec::new(), "/".into(), 1, String::new());
        next.version = VERSION + 1;
        let text = serde_json::to_string(&next).unwrap();
        for text in ["", "{}", "[]", &text] {
            assert!(Manifest::read(&write(text)).is_err(), "{text}");
        }
        let file = write("");
        file.set_len(MAX + 1).unwrap();
        assert!(Manifest::read(&file).is_err());
    }
}
