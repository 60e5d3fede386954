// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a kernel image can take over what is preserved now, told before anything is stopped.
//!
//! [`check`] looks at the image, at what goes with it, and at this machine. [`judge()`] is the same
//! with all of that given. The kernel has the last word at the kexec itself.
//!
//! ```no_run
//! use liveupdate::{
//!     cmdline::CommandLine,
//!     preflight::{check, Level, Next},
//! };
//!
//! let report = check(&Next {
//!     kernel: "/boot/vmlinuz".as_ref(),
//!     initrd: Some("/boot/initrd.img".as_ref()),
//!     cmdline: &CommandLine::new("root=/dev/vda1 liveupdate=on kho=on"),
//!     will_preserve: true,
//! });
//! for finding in &report.findings {
//!     println!("{}: {finding}", finding.level);
//! }
//! if report.level() == Level::Error {
//!     println!("something would be lost");
//! }
//! ```

mod advice;
mod finding;
mod judge;
mod machine;

pub use self::{
    finding::{
        Finding,
        Level,
        Problem, //
    },
    judge::judge,
    machine::{
        Initrd,
        Machine, //
    },
};

use crate::{
    cmdline::CommandLine,
    image::{
        Image,
        ImageError, //
    }, //
};
use std::{
    fs::File,
    io,
    path::Path, //
};

/// A kernel that is to come next.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The image.
    pub kernel: &'a Path,
    /// The initrd.
    pub initrd: Option<&'a Path>,
    /// The command line.
    pub cmdline: &'a CommandLine,
    /// Whether more is going to be preserved before the kexec, so that what does not matter to what
    /// is preserved now may matter then.
    pub will_preserve: bool,
}

/// What a check says.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// The image, if it could be looked into.
    pub image: Option<Image>,
    /// What was found, what matters most first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The level of what matters most; a note if nothing was found.
    pub fn level(&self) -> Level {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.max().unwrap_or(Level::Note)
    }
}

/// Checks whether `next` can follow this kernel.
pub fn check(next: &Next<'_>) -> Report {
    let kernel = File::open(next.kernel).map_err(ImageError::Io);
    let initrd = next.initrd.map(File::open);
    let image = kernel.and_then(|kernel| Image::read_file(&kernel));
    let initrd = initrd.map(|initrd| initrd.and_then(|initrd| Initrd::read_file(&initrd)));

    report(image, initrd, next.cmdline, next.will_preserve)
}

/// As [`check`], of files that are open.
pub fn check_files(
    kernel: &File,
    initrd: Option<&File>,
    cmdline: &CommandLine,
    will_preserve: bool,
) -> Report {
    let image = Image::read_file(kernel);

    report(image, initrd.map(Initrd::read_file), cmdline, will_preserve)
}

fn report(
    image: Result<Image, ImageError>,
    initrd: Option<io::Result<Initrd>>,
    cmdline: &CommandLine,
    will_preserve: bool,
) -> Report {
    let error = |problem| Finding {
        level: Level::Error,
        problem,
    };
    let mut findings = Vec::new();
    let initrd = initrd.transpose().unwrap_or_else(|err| {
        findings.push(error(Problem::Initrd(err.to_string())));
        None
    });
    let image = match image {
        Ok(image) => {
            let machine = Machine::here();
            findings.extend(judge(&image, initrd, cmdline, &machine, will_preserve));
            findings.extend(advice::of(cmdline));
            Some(image)
        }
        Err(err) => {
            findings.push(error(Problem::Image(err.to_string())));
            None
        }
    };
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Report { image, findings }
}

#[cfg(test)]
mod tests;
