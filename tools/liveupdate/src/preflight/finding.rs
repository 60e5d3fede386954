// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a check can find: [`Finding`].

use crate::{
    image::Compression,
    SessionName,
    Token, //
};
use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum Level {
    /// To be known.
    Note,
    /// Something may be lost, or cannot be known.
    Warning,
    /// Something would be lost, or the update would fail.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that was found. [`Display`](fmt::Display) says it in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What it is.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Finding {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let mut finding = to.serialize_struct("Finding", 3)?;
        finding.serialize_field("level", &self.level)?;
        finding.serialize_field("code", self.problem.code())?;
        finding.serialize_field("text", &self.to_string())?;
        finding.end()
    }
}

/// What can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The image cannot be looked into. With the reason.
    Image(String),
    /// The initrd cannot be read. With the reason.
    Initrd(String),
    /// The kernel cannot unpack the initrd.
    InitrdCompression(Compression),
    /// The image is for another machine.
    OtherMachine {
        /// For which one.
        image: String,
        /// Which one this is.
        here: String,
    },
    /// The image has no LUO.
    NoLuo,
    /// The image does not read the root that this kernel writes.
    Root {
        /// What this kernel writes.
        written: String,
        /// What the image reads.
        read: Vec<String>,
    },
    /// This kernel is going to hand over as something else, which the image reads.
    FormatChanges(String),
    /// The image does not read a part of that.
    Record(String),
    /// The image does not read the Kexec Handover of this kernel.
    Kho {
        /// What this kernel writes.
        written: String,
    },
    /// The image has no file handler for a file.
    Handler {
        /// The session.
        session: SessionName,
        /// The file.
        token: Token,
        /// The compatible strings, one of which is needed.
        handlers: Vec<String>,
        /// Whether it comes from a module here, so that it may do so there.
        module: bool,
    },
    /// The command line does not switch live update on.
    LiveUpdateOff,
    /// The command line switches Kexec Handover off, or nothing switches it on.
    KhoOff,
    /// Nothing in the command line switches Kexec Handover on, and it is not known whether the image
    /// does so itself.
    KhoUnknown,
    /// The command line hides memory that may hold what is preserved.
    MemoryLimit {
        /// The parameter.
        parameter: String,
        /// Where the memory of this machine ends.
        end: u64,
    },
    /// The command line changes the map of the memory.
    MemoryMap(String),
    /// The command line limits addresses to 4 levels of page tables, and this machine has memory
    /// beyond those.
    FourLevels,
    /// A part of the next kernel does not fit into what Kexec Handover keeps free for it.
    Scratch {
        /// What does not fit.
        part: &'static str,
        /// How many bytes it needs.
        needed: u64,
        /// How many there are in one piece.
        largest: u64,
    },
    /// The next kernel and its initrd leave little of that for the early boot.
    ScratchTight {
        /// How many bytes are left.
        left: u64,
    },
    /// Kernels cannot be loaded (`kernel.kexec_load_disabled`).
    LoadDisabled,
    /// Live update is not on here.
    NotOnHere,
    /// This kernel's LUO does not tell what is preserved.
    UnknownContents,
    /// This kernel's LUO drops incoming sessions that are not finished.
    DropsIncoming,
    /// An incoming session or file is corrupt and cannot be handed over again. With the kernel's
    /// words.
    Quarantined(String),
    /// The next kernel writes its messages to a serial console, while whoever is preserved waits. With
    /// the parameter that says so.
    SlowConsole(String),
    /// The formats of the image are derived.
    Derived,
    /// What is preserved now.
    Preserved {
        /// How many sessions.
        sessions: u64,
        /// How many files.
        files: u64,
    },
}

impl Problem {
    /// A short name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Initrd(_) => "initrd",
            Self::InitrdCompression(_) => "initrd-compression",
            Self::OtherMachine { .. } => "other-machine",
            Self::NoLuo => "no-luo",
            Self::Root { .. } => "root",
            Self::FormatChanges(_) => "format-changes",
            Self::Record(_) => "record",
            Self::Kho { .. } => "kho",
            Self::Handler { .. } => "handler",
            Self::LiveUpdateOff => "liveupdate-off",
            Self::KhoOff => "kho-off",
            Self::KhoUnknown => "kho-unknown",
            Self::MemoryLimit { .. } => "memory-limit",
            Self::MemoryMap(_) => "memory-map",
            Self::FourLevels => "four-levels",
            Self::Scratch { .. } => "scratch",
            Self::ScratchTight { .. } => "scratch-tight",
            Self::LoadDisabled => "load-disabled",
            Self::NotOnHere => "not-on-here",
            Self::UnknownContents => "unknown-contents",
            Self::DropsIncoming => "drops-incoming",
            Self::Quarantined(_) => "quarantined",
            Self::SlowConsole(_) => "slow-console",
            Self::Derived => "derived",
            Self::Preserved { .. } => "preserved",
        }
    }
}

/// A number of bytes in whole MiB, rounded up.
struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(why) => write!(f, "the image {why}"),
            Self::Initrd(why) => write!(f, "the initrd cannot be read: {why}"),
            Self::InitrdCompression(how) => write!(
                f,
                "the initrd is compressed by {how}, which the image cannot unpack"
            ),
            Self::OtherMachine { image, here } => {
                write!(f, "the image is for {image}, and this machine is {here}")
            }
            Self::NoLuo => f.write_str(
                "the image has no Live Update Orchestrator: what is preserved is lost in it",
            ),
            Self::Root { written, read } => {
                let read = read.join(", ");
                write!(f, "this kernel hands over as {written}, but the image reads {read} only")?;
                if read.contains("luo-v5") {
                    f.write_str("; write luo-v5 to /sys/module/liveupdate/parameters/abi first")?;
                }
                Ok(())
            }
            Self::FormatChanges(root) => write!(
                f,
                "what is preserved is described anew as {root}, which the image reads, when luoctl or \
                 luod has loaded it"
            ),
            Self::Record(name) => write!(f, "the image does not read {name}"),
            Self::Kho { written } => write!(
                f,
                "the image does not read {written}, this kernel's Kexec Handover"
            ),
            Self::Handler {
                session,
                token,
                handlers,
                module,
            } => {
                let handlers = handlers.join(" or ");
                write!(f, "session '{session}': token {token}: ")?;
                match module {
                    true => write!(
                        f,
                        "{handlers} is not built into the image; its module must be loaded there"
                    ),
                    false => write!(f, "the image has no file handler {handlers}"),
                }
            }
            Self::LiveUpdateOff => {
                f.write_str("liveupdate=on is missing on the command line: live update would be off")
            }
            Self::KhoOff => f.write_str("Kexec Handover would be off; put kho=on on the command line"),
            Self::KhoUnknown => {
                f.write_str("kho=on is missing on the command line, and may be needed by the image")
            }
            Self::MemoryLimit { parameter, end } => write!(
                f,
                "{parameter} hides memory of this machine, which ends at {end:#x}: what is preserved \
                 there is lost"
            ),
            Self::MemoryMap(parameter) => write!(
                f,
                "{parameter} changes the map of the memory; what is preserved may lie outside of it"
            ),
            Self::FourLevels => {
                f.write_str("no5lvl puts memory of this machine out of reach (above 64 TiB)")
            }
            Self::Scratch {
                part,
                needed,
                largest,
            } => write!(
                f,
                "the {part} needs {}, and Kexec Handover has {} in one piece for it; it cannot be \
                 loaded (see kho_scratch=, which counts at a cold boot)",
                Mib(*needed),
                Mib(*largest)
            ),
            Self::ScratchTight { left } => write!(
                f,
                "kernel and initrd leave {} of Kexec Handover's scratch memory to the early boot",
                Mib(*left)
            ),
            Self::LoadDisabled => f.write_str(
                "kernel.kexec_load_disabled is 1: no kernel can be loaded until the next boot",
            ),
            Self::NotOnHere => {
                f.write_str("live update is not on in this kernel: nothing can be handed over")
            }
            Self::UnknownContents => {
                f.write_str("this kernel does not tell which files are preserved (is debugfs mounted?)")
            }
            Self::DropsIncoming => f.write_str(
                "this kernel drops incoming sessions that are not finished at the kexec",
            ),
            Self::Quarantined(what) => write!(f, "corrupt, and cannot be handed over again: {what}"),
            Self::SlowConsole(console) => write!(
                f,
                "the next kernel writes its messages to {console}, and what is preserved waits meanwhile; \
                 quiet on the command line makes that shorter"
            ),
            Self::Derived => f.write_str(
                "the image does not say what it reads: derived from its strings and configuration",
            ),
            Self::Preserved { sessions, files } => {
                write!(f, "to be handed over now: sessions {sessions}, files {files}")
            }
        }
    }
}
