// SPDX-License-Identifier: GPL-2.0

//! Pre-flight: whether an update can succeed, looked at before any client is told.
//!
//! What an image can take is the client library's to know ([`liveupdate::preflight`]); `luoctl check`
//! says the same.

use crate::protocol::{
    Finding,
    Level, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    preflight::{
        check_files,
        Level as LibraryLevel, //
    },
    status::Support, //
};
use std::fs::File;

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

/// Looks, and changes nothing. Without an image, it is about the one that is loaded.
///
/// The clients have preserved nothing yet, so what matters to what they are going to preserve counts.
pub fn look(image: Option<&Image>) -> Vec<Finding> {
    match image {
        Some(image) => look_at_image(image),
        None => {
            let mut found = Vec::new();
            found.extend(this_kernel());
            found.push(loaded_kernel());
            found
        }
    }
}

fn look_at_image(image: &Image) -> Vec<Finding> {
    let cmdline = CommandLine::new(image.cmdline.as_str());
    let report = check_files(&image.kernel, image.initrd.as_ref(), &cmdline, true);

    report
        .findings
        .iter()
        .map(|finding| Finding {
            level: match finding.level {
                LibraryLevel::Note => Level::Note,
                LibraryLevel::Warning => Level::Warning,
                LibraryLevel::Error => Level::Error,
            },
            text: finding.to_string(),
        })
        .collect()
}

/// Whether this kernel can hand over.
fn this_kernel() -> Option<Finding> {
    let (level, text) = match Support::read() {
        Ok(Support::Absent | Support::Off) => {
            (Level::Error, "live update is off in this kernel".to_owned())
        }
        Ok(_) => return None,
        Err(err) => (Level::Warning, err.to_string()),
    };
    Some(Finding { level, text })
}

fn loaded_kernel() -> Finding {
    let (level, text) = match kexec::is_loaded() {
        Ok(true) => (
            Level::Note,
            "the image that is loaded is not known, nor is its command line".to_owned(),
        ),
        Ok(false) => (Level::Error, "no next kernel is loaded".to_owned()),
        Err(err) => (Level::Error, err.to_string()),
    };
    Finding { level, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel() {
        let image = Image {
            kernel: File::open("/proc/self/exe").unwrap(),
            initrd: None,
            cmdline: "liveupdate=on".into(),
        };
        let found = look(Some(&image));
        assert!(found.iter().any(|found| found.level == Level::Error));
        assert!(found.iter().all(|found| !found.text.contains('\n')));
    }
}
