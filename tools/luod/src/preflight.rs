// SPDX-License-Identifier: GPL-2.0

//! Pre-flight: whether an update can succeed, looked at before any client is told.

use crate::protocol::{
    Finding,
    Level, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    status::Support, //
};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt, //
};

/// The next kernel, as it is given with the command.
#[derive(Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: File,
    /// Its initrd.
    pub initrd: Option<File>,
    /// Its command line.
    pub cmdline: String,
}

/// A check.
pub trait Check {
    /// Looks, and changes nothing. Without an image, it is about the one that is loaded.
    fn look(&self, image: Option<&Image>, found: &mut Vec<Finding>);
}

/// All checks, in order.
pub fn checks() -> [&'static dyn Check; 3] {
    [&ThisKernel, &NextKernel, &NextCommandLine]
}

fn tell(found: &mut Vec<Finding>, level: Level, text: impl Into<String>) {
    found.push(Finding {
        level,
        text: text.into(),
    });
}

/// Whether this kernel can hand over.
struct ThisKernel;

impl Check for ThisKernel {
    fn look(&self, _: Option<&Image>, found: &mut Vec<Finding>) {
        match Support::read() {
            Ok(Support::Absent | Support::Off) => {
                tell(found, Level::Error, "live update is off in this kernel");
            }
            Ok(_) => {}
            Err(err) => tell(found, Level::Warning, err.to_string()),
        }
    }
}

/// Whether there is a kernel to go to.
struct NextKernel;

impl Check for NextKernel {
    fn look(&self, image: Option<&Image>, found: &mut Vec<Finding>) {
        let Some(image) = image else {
            match kexec::is_loaded() {
                Ok(true) => tell(
                    found,
                    Level::Note,
                    "the image that is loaded is not known, nor is its command line",
                ),
                Ok(false) => tell(found, Level::Error, "no next kernel is loaded"),
                Err(err) => tell(found, Level::Error, err.to_string()),
            }
            return;
        };
        match is_kernel(&image.kernel) {
            Ok(true) => {}
            Ok(false) => tell(
                found,
                Level::Error,
                "the image is no kernel that kexec_file_load takes",
            ),
            Err(err) => tell(
                found,
                Level::Error,
                format!("the image cannot be read: {err}"),
            ),
        }
    }
}

/// Whether a file begins as a kernel: a bzImage with its boot protocol, or an arm64 Image.
fn is_kernel(file: &File) -> io::Result<bool> {
    let mut header = [0; 0x206];

    match file.read_exact_at(&mut header, 0) {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        result => result?,
    }
    Ok(&header[0x202..0x206] == b"HdrS"
        || &header[0x38..0x3c] == b"ARM\x64"
        || &header[4..8] == b"zimg")
}

/// Whether the next kernel will take over what is handed over.
struct NextCommandLine;

impl Check for NextCommandLine {
    fn look(&self, image: Option<&Image>, found: &mut Vec<Finding>) {
        let Some(image) = image else {
            return;
        };
        let cmdline = CommandLine::new(image.cmdline.as_str());

        if cmdline.flag("liveupdate") != Some(true) {
            tell(
                found,
                Level::Error,
                "the next kernel would lose everything: its command line has no liveupdate=on",
            );
        }
        match cmdline.flag("kho") {
            Some(false) => tell(
                found,
                Level::Error,
                "the next kernel would lose everything: its command line has kho=off",
            ),
            None if cmdline.has("kho") => {
                tell(
                    found,
                    Level::Warning,
                    "kho= on the command line is no boolean",
                );
            }
            Some(true) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn look(kernel: &[u8], cmdline: &str) -> Vec<Finding> {
        let path = std::env::temp_dir().join(format!("luod-test-{}", std::process::id()));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(kernel).unwrap();
        let image = Image {
            kernel: file,
            initrd: None,
            cmdline: cmdline.into(),
        };
        let mut found = Vec::new();
        NextKernel.look(Some(&image), &mut found);
        NextCommandLine.look(Some(&image), &mut found);
        found
    }

    #[test]
    fn images_and_command_lines() {
        let mut kernel = vec![0; 4096];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");

        assert_eq!(look(&kernel, "quiet liveupdate=on"), []);
        assert_eq!(look(&kernel[..0x204], "liveupdate=on").len(), 1);
        assert_eq!(look(&[1; 4096], "liveupdate=1 kho=1").len(), 1);
        for bad in [
            "",
            "liveupdate=off",
            "liveupdate=on kho=off",
            "-- liveupdate=on",
        ] {
            let found = look(&kernel, bad);
            assert_eq!(found.len(), 1, "{bad}");
            assert_eq!(found[0].level, Level::Error, "{bad}");
        }
    }
}
