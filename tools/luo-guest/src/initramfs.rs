// SPDX-License-Identifier: GPL-2.0

//! A writer of initramfs archives (cpio "newc").
//!
//! With it a running initramfs packs the one for the next kernel out of its own files, so a chain
//! of live updates needs no archive that contains the archive that contains the next one.

use std::{
    fs,
    io::{
        self,
        Write, //
    },
    os::unix::fs::{
        MetadataExt,
        PermissionsExt, //
    },
    path::Path, //
};

/// An archive in the making.
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, libc::S_IFDIR | 0o755, 0, (0, 0))
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) -> io::Result<()> {
        self.header(name, libc::S_IFCHR | mode, 0, number)
    }

    /// Adds a file with these bytes.
    pub fn bytes(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.file(name, mode, content.len() as u64, content)
    }

    /// Adds a copy of a file of this system, under the same path.
    pub fn copy(&mut self, path: &Path) -> io::Result<()> {
        let meta = fs::metadata(path)?;
        let name = path
            .to_str()
            .ok_or(io::ErrorKind::InvalidInput)?
            .trim_start_matches('/');

        self.file(
            name,
            meta.permissions().mode() & 0o7777,
            meta.size(),
            fs::File::open(path)?,
        )
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.header("TRAILER!!!", 0, 0, (0, 0))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn file(&mut self, name: &str, mode: u32, size: u64, content: impl io::Read) -> io::Result<()> {
        let field = u32::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;

        self.header(name, libc::S_IFREG | mode, field, (0, 0))?;
        let copied = io::copy(&mut content.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.written += size;
        self.pad()
    }

    fn header(&mut self, name: &str, mode: u32, size: u32, dev: (u32, u32)) -> io::Result<()> {
        self.inode += 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
            self.inode,
            0, // owner
            0, // group
            1, // links
            0, // time
            0, // device of the file system, major
            0, // and minor
            dev.0,
            dev.1,
            name.len() + 1,
            0, // checksum, unused in this format
        );

        self.out.write_all(header.as_bytes())?;
        self.written += header.len() as u64;
        self.pad()
    }

    /// Headers and contents start at multiples of four bytes.
    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.wrapping_neg() % 4;

        self.out.write_all(&[0; 3][..missing as usize])?;
        self.written += missing;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_and_trailer() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.bytes("a", 0o644, b"12345").unwrap();
        archive.device("dev/console", 0o600, (5, 1)).unwrap();
        let out = archive.finish().unwrap();

        assert_eq!(out.len() % 4, 0);
        let starts: Vec<_> = (0..out.len())
            .filter(|&at| out[at..].starts_with(b"070701"))
            .collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0));
        assert_eq!(&out[starts[1] + 54..][..8], b"00000005");
        assert_eq!(&out[starts[2] + 78..][..16], b"0000000500000001");
        assert_eq!(&out[starts[3] + 110..][..11], b"TRAILER!!!\0");
    }
}
