// SPDX-License-Identifier: GPL-2.0

//! The folder with a program's files, and how it crosses the kexec.
//!
//! Large files are memfds that the program inherits; a link `NAME -> /proc/self/fd/N` leads to each. Whatever
//! else is in the folder when the program has ended is small, and copied into memfds of its own.
//! The manifest, token 1, has the names.

use crate::{
    second::Second,
    Outcome, //
};
use liveupdate::{
    Incoming,
    Outgoing,
    Session, //
};
use nix::sys::memfd::{
    memfd_create,
    MFdFlags, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        self,
        Write, //
    },
    os::unix::fs::{
        symlink,
        FileExt,
        MetadataExt,
        OpenOptionsExt, //
    },
    path::{
        Path,
        PathBuf, //
    },
};

/// The first descriptor that a program inherits.
pub const FIRST_FD: i32 = 3;

/// The token of the manifest. Files follow it.
const MANIFEST: u64 = 1;

/// The version of the manifest.
const VERSION: u32 = 1;

/// More than any manifest has.
const MAX: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    /// The memfds, in the order of their descriptors.
    memory: Vec<String>,
    /// Copies of other files, and their modes.
    others: Vec<(String, u32)>,
    /// When the program ended.
    ended: Option<Second>,
}

/// The folder of a program.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The memfds, by name.
    pub memory: Vec<(String, File)>,
    /// When the program ended last, of which it is.
    pub ended: Option<Second>,
}

fn memfd(name: &str) -> Outcome<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

impl Folder {
    /// A folder with empty files.
    pub fn new(path: PathBuf, files: &[(String, u64)]) -> Outcome<Self> {
        let memory = files.iter().map(|(name, size)| {
            let file = memfd(name)?;
            file.set_len(*size)?;
            Ok((name.clone(), file))
        });
        let folder = Self {
            path,
            memory: memory.collect::<Outcome<_>>()?,
            ended: None,
        };
        folder.link()?;
        Ok(folder)
    }

    /// Makes the folder anew, with the links in it.
    fn link(&self) -> Outcome {
        match fs::remove_dir_all(&self.path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err.into()),
            _ => {}
        }
        fs::create_dir_all(&self.path)?;
        for ((name, _), fd) in self.memory.iter().zip(FIRST_FD..) {
            symlink(format!("/proc/self/fd/{fd}"), self.path.join(name))?;
        }
        Ok(())
    }

    /// Preserves everything. The program has ended.
    pub fn preserve(&self, session: &Session<Outgoing>) -> Outcome {
        let mut manifest = Manifest {
            version: VERSION,
            memory: self.memory.iter().map(|(name, _)| name.clone()).collect(),
            others: Vec::new(),
            ended: self.ended,
        };
        let mut tokens = MANIFEST + 1..;
        let mut token = || tokens.next().ok_or("there are no tokens left");
        for (_, file) in &self.memory {
            session.preserve(file, token()?)?;
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            let name = entry.file_name();
            let name = name
                .to_str()
                .ok_or_else(|| format!("{name:?} is not UTF-8"))?;
            let mut copy = memfd(name)?;
            io::copy(&mut File::open(entry.path())?, &mut copy)?;
            session.preserve(&copy, token()?)?;
            manifest
                .others
                .push((name.to_owned(), entry.metadata()?.mode() & 0o7777));
        }
        let mut file = memfd("luo-run:manifest")?;
        file.write_all(&serde_json::to_vec(&manifest)?)?;
        session.preserve(&file, MANIFEST)?;
        Ok(())
    }

    /// Makes the folder again as it was.
    pub fn retrieve(path: PathBuf, session: &Session<Incoming>) -> Outcome<Self> {
        let file = File::from(session.retrieve(MANIFEST)?);
        let len = file.metadata()?.len();
        if len > MAX {
            return Err("the manifest is too long".into());
        }
        let mut bytes = vec![0; usize::try_from(len)?];
        file.read_exact_at(&mut bytes, 0)?;
        let manifest = read(&bytes)?;

        let mut tokens = MANIFEST + 1..;
        let mut next = || -> Outcome<File> {
            let token = tokens.next().ok_or("there are no tokens left")?;
            Ok(File::from(session.retrieve(token)?))
        };
        let memory = manifest.memory.into_iter().map(|name| Ok((name, next()?)));
        let folder = Self {
            path,
            memory: memory.collect::<Outcome<_>>()?,
            ended: manifest.ended,
        };
        folder.link()?;
        for (name, mode) in &manifest.others {
            let mut target = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(*mode)
                .open(folder.path.join(name))?;
            // It has a position, of where its writer was.
            let source = next()?;
            io::copy(&mut File::open(inherited(&source))?, &mut target)?;
        }
        Ok(folder)
    }
}

/// A path that opens the file anew, at its beginning.
fn inherited(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

/// Reads a manifest, which comes from another kernel.
fn read(bytes: &[u8]) -> Outcome<Manifest> {
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|err| format!("the manifest cannot be read: {err}"))?;
    if manifest.version != VERSION {
        return Err(format!(
            "the manifest has version {}, this luo-run reads {VERSION}",
            manifest.version
        )
        .into());
    }
    let others = manifest.others.iter().map(|(name, _)| name);
    let bad =
        |name: &&String| name.is_empty() || name.contains('/') || *name == "." || *name == "..";
    match manifest.memory.iter().chain(others).find(bad) {
        Some(name) => Err(format!("the manifest names a file '{name}'").into()),
        None => Ok(manifest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let folder = Folder::new(path.clone(), &[("m".into(), 4096), ("n".into(), 8192)]).unwrap();
        assert_eq!(
            fs::read_link(path.join("n")).unwrap(),
            Path::new("/proc/self/fd/4")
        );
        assert_eq!(folder.memory[1].1.metadata().unwrap().len(), 8192);
        // A new start begins with an empty folder.
        fs::write(path.join("old"), "x").unwrap();
        Folder::new(path.clone(), &[]).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }

    #[test]
    fn manifests_of_others() {
        let text = |version: u32, name: &str| {
            format!(r#"{{"version":{version},"memory":["m"],"others":[["{name}",420]]}}"#)
        };
        assert!(read(text(VERSION, "m.meta").as_bytes()).is_ok());
        for bad in [
            "",
            "{}",
            &text(VERSION + 1, "a"),
            &text(VERSION, "../a"),
            &text(VERSION, ".."),
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
