// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a kernel image can take over what is preserved now, told before anything is stopped.
//!
//! [`check`] looks at the image, at what goes with it, and at this machine. [`judge`] is the same
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

use crate::{
    cmdline::CommandLine,
    image::{
        Compression,
        FormatKind,
        Formats,
        Image,
        ImageError,
        Source, //
    },
    listing::Listing,
    status::Support,
    DirectionKind,
    SessionName,
    Token, //
};
use nix::sys::utsname::uname;
use std::{
    fmt,
    fs::{
        self,
        File, //
    },
    io,
    os::unix::fs::FileExt,
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
    /// An incoming session or file is damaged and cannot be handed over again. With the kernel's words.
    Quarantined(String),
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
            Self::Quarantined(what) => write!(f, "damaged, and cannot be handed over again: {what}"),
            Self::Derived => f.write_str(
                "the image does not say what it reads: derived from its strings and configuration",
            ),
            Self::Preserved { sessions, files } => {
                write!(f, "to be handed over now: sessions {sessions}, files {files}")
            }
        }
    }
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

/// What there is to know about this machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Machine {
    /// `uname -m`.
    pub machine: String,
    /// The state of live updates.
    pub support: Support,
    /// What is to go to the next kernel, if the kernel lists it.
    pub outgoing: Option<Listing>,
    /// The incoming sessions, if the kernel lists them.
    pub incoming: Option<Listing>,
    /// The formats of this kernel, if it shows them.
    pub formats: Option<Formats>,
    /// Where its memory ends.
    pub memory_end: Option<u64>,
    /// The sizes of Kexec Handover's scratch areas, if they are known.
    pub scratch: Vec<u64>,
    /// Whether no kernel can be loaded.
    pub load_disabled: bool,
}

impl Machine {
    /// Looks at this machine. What cannot be read is unknown.
    pub fn here() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let uname = uname().map(|name| name.machine().to_string_lossy().into_owned());

        Self {
            machine: uname.unwrap_or_default(),
            support: Support::read().unwrap_or(Support::Absent),
            outgoing: Listing::read(DirectionKind::Outgoing).ok(),
            incoming: Listing::read(DirectionKind::Incoming).ok(),
            formats: Formats::running().ok().flatten(),
            memory_end: memory_end(&text("/proc/iomem")),
            scratch: numbers(&text("/sys/kernel/debug/kho/out/scratch_len")),
            load_disabled: text("/proc/sys/kernel/kexec_load_disabled").trim() == "1",
        }
    }

    /// How much is to be handed over: sessions and files; [`None`] if that is not known.
    fn preserved(&self) -> Option<(u64, u64)> {
        match &self.support {
            Support::On(status) => Some((
                status
                    .outgoing
                    .sessions
                    .saturating_add(status.incoming.sessions),
                status.outgoing.files.saturating_add(status.incoming.files),
            )),
            Support::DeviceOnly => None,
            Support::Off | Support::Absent => Some((0, 0)),
        }
    }

    /// The name of the root that this kernel writes.
    fn root(&self) -> Option<String> {
        match &self.support {
            // The implementation in C: its one format is that of its time.
            Support::DeviceOnly => Some("luo-v5".into()),
            Support::On(status) => match status.outgoing_format.as_deref()? {
                // The kernel's word for the device tree.
                "fdt" => {
                    let formats = self.formats.as_ref();
                    let roots = formats.into_iter().flat_map(|all| all.of(FormatKind::Root));
                    let tree = roots.filter(|root| *root != "luo-v5").last();
                    Some(tree.unwrap_or("luo-v1").to_owned())
                }
                other => Some(other.to_owned()),
            },
            Support::Off | Support::Absent => None,
        }
    }
}

/// The end of the memory in `/proc/iomem`; [`None`] if it hides addresses.
fn memory_end(iomem: &str) -> Option<u64> {
    let ends = iomem.lines().filter_map(|line| {
        let range = line.strip_suffix(" : System RAM")?.trim();
        let (_, last) = range.split_once('-')?;
        u64::from_str_radix(last, 16).ok()?.checked_add(1)
    });
    ends.max().filter(|end| *end > 1)
}

/// Numbers, in hexadecimal after `0x`.
fn numbers(text: &str) -> Vec<u64> {
    let words = text.split_ascii_whitespace();
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    words.filter_map(number).collect()
}

/// A size as the kernel's `memparse()` reads it, at the beginning of a text.
fn size(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let end = digits.find(|char: char| !char.is_digit(radix));
    let (number, rest) = digits.split_at(end.unwrap_or(digits.len()));
    let number = u64::from_str_radix(number, radix).ok()?;
    let shift = match rest.chars().next().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        Some('P') => 50,
        _ => 0,
    };
    number.checked_mul(1 << shift)
}

/// What is known of the initrd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Initrd {
    /// Its size in bytes.
    pub size: u64,
    /// How it is compressed; the first part of it, if it has several.
    pub compression: Option<Compression>,
}

impl Initrd {
    /// Looks at an open file, wherever its position is, which stays there.
    ///
    /// # Errors
    ///
    /// What reading returns.
    pub fn read_file(file: &File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut begin = [0; 16];
        let len = file.read_at(&mut begin, 0)?;

        Ok(Self {
            size,
            compression: Compression::detect(&begin[..len]),
        })
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
    let mut findings = Findings {
        all: Vec::new(),
        loss: Level::Error,
    };
    let initrd = initrd.transpose().unwrap_or_else(|err| {
        findings.add(Level::Error, Problem::Initrd(err.to_string()));
        None
    });
    let image = match image {
        Ok(image) => {
            let machine = Machine::here();
            findings
                .all
                .extend(judge(&image, initrd, cmdline, &machine, will_preserve));
            Some(image)
        }
        Err(err) => {
            findings.add(Level::Error, Problem::Image(err.to_string()));
            None
        }
    };
    let mut findings = findings.all;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Report { image, findings }
}

/// What is left of the scratch memory for the early boot, at least, in bytes.
const EARLY_BOOT: u64 = 16 << 20;

/// Judges what is known of an image and of a machine. `will_preserve` is as in [`Next`].
pub fn judge(
    image: &Image,
    initrd: Option<Initrd>,
    cmdline: &CommandLine,
    machine: &Machine,
    will_preserve: bool,
) -> Vec<Finding> {
    let preserved = machine.preserved();
    let matters = will_preserve || preserved.is_none_or(|counts| counts != (0, 0));
    let mut findings = Findings {
        all: Vec::new(),
        // What would lose something is a warning as long as there is nothing.
        loss: if matters {
            Level::Error
        } else {
            Level::Warning
        },
    };

    findings.of_image(image, machine);
    findings.of_files(image, machine);
    findings.of_command_line(image, cmdline, machine);
    findings.of_room(image, initrd, machine);
    findings.of_here(machine, preserved);
    if let (Some(config), Some(compression)) =
        (&image.config, initrd.and_then(|initrd| initrd.compression))
    {
        let option = format!("RD_{}", compression.to_string().to_uppercase());
        if !config.is_yes(&option) {
            findings.add(Level::Error, Problem::InitrdCompression(compression));
        }
    }
    findings.all
}

struct Findings {
    all: Vec<Finding>,
    loss: Level,
}

impl Findings {
    fn add(&mut self, level: Level, problem: Problem) {
        self.all.push(Finding { level, problem });
    }

    fn of_image(&mut self, image: &Image, machine: &Machine) {
        if let Some(arch) = image.machine.filter(|arch| *arch != machine.machine) {
            let problem = Problem::OtherMachine {
                image: arch.into(),
                here: machine.machine.clone(),
            };
            self.add(Level::Error, problem);
        }
        if image.formats.source == Source::Derived {
            self.add(Level::Note, Problem::Derived);
        }
        let roots: Vec<_> = image.formats.of(FormatKind::Root).collect();
        if roots.is_empty() {
            self.add(self.loss, Problem::NoLuo);
            return;
        }
        let written = machine.root();
        if let Some(written) = written.as_deref().filter(|root| !roots.contains(root)) {
            let problem = Problem::Root {
                written: written.into(),
                read: roots.iter().map(|root| (*root).to_owned()).collect(),
            };
            self.add(self.loss, problem);
        }
        let Some(formats) = &machine.formats else {
            return;
        };
        for kho in formats.of(FormatKind::Kho) {
            let mut known = image.formats.of(FormatKind::Kho).peekable();
            if known.peek().is_some() && !known.any(|name| name == kho) {
                let written = kho.to_owned();
                self.add(self.loss, Problem::Kho { written });
            }
        }
        // Only our own root has parts with versions. If it is not read, that was said.
        let ours = written
            .as_deref()
            .is_some_and(|root| root != "luo-v5" && roots.contains(&root));
        if ours && image.formats.source == Source::Note {
            for record in formats.of(FormatKind::Record) {
                if !image.formats.has(FormatKind::Record, record) {
                    self.add(self.loss, Problem::Record(record.into()));
                }
            }
        }
    }

    fn of_files(&mut self, image: &Image, machine: &Machine) {
        if image.formats.of(FormatKind::Root).next().is_none() {
            // Said already, and for all of them.
            return;
        }
        let v5 = machine.root().as_deref() == Some("luo-v5");
        let sides = [(&machine.outgoing, false), (&machine.incoming, true)];
        let sides = sides
            .iter()
            .filter_map(|(listing, anew)| Some((listing.as_ref()?, *anew)));
        for (listing, anew) in sides {
            let sessions = listing
                .sessions
                .iter()
                .filter(|session| !session.is_finished());
            for (session, file) in
                sessions.flat_map(|it| it.files.iter().map(move |file| (it, file)))
            {
                let handlers = needed(&file.handler, anew, v5);
                let there = |name: &String| image.formats.has(FormatKind::Handler, name);
                if handlers.iter().any(there) {
                    continue;
                }
                let built_in = machine.formats.as_ref().is_none_or(|formats| {
                    let here = |name: &String| formats.has(FormatKind::Handler, name);
                    handlers.iter().any(here)
                });
                let level = match built_in {
                    true => self.loss,
                    false => Level::Warning,
                };
                let problem = Problem::Handler {
                    session: session.name,
                    token: file.token,
                    handlers,
                    module: !built_in,
                };
                self.add(level, problem);
            }
        }
        for what in machine
            .incoming
            .iter()
            .flat_map(|listing| &listing.quarantined)
        {
            self.add(Level::Warning, Problem::Quarantined(what.clone()));
        }
    }

    fn of_command_line(&mut self, image: &Image, cmdline: &CommandLine, machine: &Machine) {
        if cmdline.flag("liveupdate") != Some(true) {
            self.add(self.loss, Problem::LiveUpdateOff);
        }
        match (cmdline.flag("kho"), image.kho_by_default()) {
            (Some(true), _) | (None, Some(true)) => {}
            (None, None) => self.add(Level::Warning, Problem::KhoUnknown),
            (Some(false), _) | (None, Some(false)) => self.add(self.loss, Problem::KhoOff),
        }
        for parameter in cmdline.parameters() {
            let text = || match parameter.value {
                Some(value) => format!("{}={value}", parameter.name),
                None => parameter.name.to_owned(),
            };
            let limit = parameter.value.and_then(size);
            let end = machine.memory_end;
            if parameter.is("mem") && parameter.value != Some("nopentium") {
                match (limit, end) {
                    (Some(limit), Some(end)) if limit >= end => {}
                    (_, end) => {
                        let problem = Problem::MemoryLimit {
                            parameter: text(),
                            end: end.unwrap_or(0),
                        };
                        self.add(self.loss, problem);
                    }
                }
            } else if parameter.is("memmap") {
                self.add(Level::Warning, Problem::MemoryMap(text()));
            } else if parameter.is("no5lvl") && end.is_some_and(|end| end > 1 << 46) {
                self.add(self.loss, Problem::FourLevels);
            }
        }
    }

    fn of_room(&mut self, image: &Image, initrd: Option<Initrd>, machine: &Machine) {
        let Some(largest) = machine.scratch.iter().copied().max() else {
            return;
        };
        let total = machine
            .scratch
            .iter()
            .fold(0, |sum: u64, len| sum.saturating_add(*len));
        let kernel = image.boot_size.unwrap_or(0);
        let initrd = initrd.map_or(0, |initrd| initrd.size);
        for (part, needed) in [("kernel", kernel), ("initrd", initrd)] {
            if needed > largest {
                let problem = Problem::Scratch {
                    part,
                    needed,
                    largest,
                };
                self.add(Level::Error, problem);
                return;
            }
        }
        let left = total.saturating_sub(kernel).saturating_sub(initrd);
        if left < EARLY_BOOT {
            self.add(Level::Warning, Problem::ScratchTight { left });
        }
    }

    fn of_here(&mut self, machine: &Machine, preserved: Option<(u64, u64)>) {
        if machine.load_disabled {
            self.add(Level::Error, Problem::LoadDisabled);
        }
        match &machine.support {
            Support::Off | Support::Absent => self.add(Level::Warning, Problem::NotOnHere),
            Support::DeviceOnly => {
                self.add(Level::Warning, Problem::UnknownContents);
                self.add(Level::Warning, Problem::DropsIncoming);
            }
            Support::On(_) => {}
        }
        let Some((sessions, files)) = preserved.filter(|counts| *counts != (0, 0)) else {
            return;
        };
        if machine.outgoing.is_none() {
            self.add(Level::Warning, Problem::UnknownContents);
        }
        self.add(Level::Note, Problem::Preserved { sessions, files });
    }
}

/// The file handlers one of which the next kernel needs for a file. An incoming file is preserved
/// anew, by the handler of the outgoing format.
fn needed(handler: &str, anew: bool, v5: bool) -> Vec<String> {
    let names: &[&str] = match (handler.starts_with("memfd-"), anew, v5) {
        (true, true, true) => &["memfd-v2"],
        (true, true, false) => &["memfd-extents-v2", "memfd-small-v2"],
        _ => &[handler],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Kind;
    use proptest::prelude::*;

    const OURS: &str = "kho kho-v4\nroot luo-v1\nroot luo-v5\nrecord luo-session-v2\n\
        record luo-flb-v1\nhandler memfd-extents-v2\nhandler memfd-small-v2\nhandler memfd-v2\n\
        default kho=on\n";

    fn image(formats: &str) -> Image {
        Image {
            kind: Kind::BzImage,
            machine: Some("x86_64"),
            compression: Some(Compression::Gzip),
            release: Some("7.3.4".into()),
            boot_size: Some(64 << 20),
            formats: Formats::parse(formats),
            config: None,
        }
    }

    /// A stock kernel.
    fn stock() -> Image {
        let mut stock = image("kho kho-v4\nroot luo-v5\nhandler memfd-v2\n");
        stock.formats.source = Source::Derived;
        stock
    }

    /// This machine, with a session of one file and others.
    fn machine(format: &str, handlers: &[&str]) -> Machine {
        let mut text = format!("session 'vm-0' open, {} files\n", handlers.len());
        for (number, handler) in handlers.iter().enumerate() {
            text += &format!("  token {number:#x} handler '{handler}' preserved\n");
        }
        let directory = tempfile::tempdir().unwrap();
        let sessions = u8::from(!handlers.is_empty());
        for (name, text) in [
            ("enabled", "1".into()),
            ("state", "prepared".into()),
            ("number", "0".into()),
            ("abi", format!("outgoing {format}\nincoming none\n")),
            (
                "outgoing",
                format!("sessions {sessions}\nfiles 1\nsubsystems 0\n"),
            ),
            ("incoming", "sessions 0\nfiles 0\nsubsystems 0\n".into()),
            ("blackout_us", String::new()),
        ] {
            let text = match (name, sessions) {
                ("outgoing", 0) => "sessions 0\nfiles 0\nsubsystems 0\n".into(),
                _ => text,
            };
            fs::write(directory.path().join(name), text).unwrap();
        }
        Machine {
            machine: "x86_64".into(),
            support: Support::read_at(directory.path(), Path::new("/")).unwrap(),
            outgoing: Some(Listing::parse(&text)),
            incoming: Some(Listing::default()),
            formats: Some(Formats::parse(OURS)),
            memory_end: Some(4 << 30),
            scratch: vec![16 << 20, 256 << 20],
            load_disabled: false,
        }
    }

    const GOOD: &str = "console=ttyS0 liveupdate=on";

    fn codes(image: &Image, cmdline: &str, machine: &Machine) -> Vec<(Level, &'static str)> {
        let found = judge(image, None, &CommandLine::new(cmdline), machine, false);
        let of = |finding: &Finding| (finding.level, finding.problem.code());
        let found = found.iter().map(of);
        found.filter(|(_, code)| *code != "preserved").collect()
    }

    #[test]
    fn ours_takes_ours() {
        let handlers = ["memfd-extents-v2", "memfd-small-v2"];
        assert_eq!(codes(&image(OURS), GOOD, &machine("fdt", &handlers)), []);
    }

    #[test]
    fn stock_takes_what_is_written_for_it() {
        let with_kho = "liveupdate=on kho=on";
        let derived = (Level::Note, "derived");

        let v5 = machine("luo-v5", &["memfd-v2"]);
        assert_eq!(codes(&stock(), with_kho, &v5), [derived]);
        let fdt = machine("fdt", &["memfd-extents-v2"]);
        let found = codes(&stock(), with_kho, &fdt);
        assert_eq!(
            found,
            [derived, (Level::Error, "root"), (Level::Error, "handler")]
        );
        let empty = machine("fdt", &[]);
        let found = codes(&stock(), with_kho, &empty);
        assert_eq!(found, [derived, (Level::Warning, "root")]);
        assert!(codes(&stock(), GOOD, &v5).contains(&(Level::Warning, "kho-unknown")));
    }

    #[test]
    fn more_is_going_to_be_preserved() {
        let cmdline = CommandLine::new("liveupdate=off");
        let found = judge(&image(OURS), None, &cmdline, &machine("fdt", &[]), true);

        assert_eq!(found[0].problem, Problem::LiveUpdateOff);
        assert_eq!(found[0].level, Level::Error);
    }

    #[test]
    fn no_luo_at_all() {
        let found = codes(
            &image("kho kho-v4\n"),
            GOOD,
            &machine("fdt", &["memfd-extents-v2"]),
        );
        assert!(found.contains(&(Level::Error, "no-luo")));
        assert!(!found.iter().any(|(_, code)| *code == "handler"));
    }

    #[test]
    fn handlers_of_modules() {
        let here = machine("fdt", &["vfio-v1"]);
        assert_eq!(
            codes(&image(OURS), GOOD, &here),
            [(Level::Warning, "handler")]
        );
        let mut built_in = here;
        built_in.formats = Some(Formats::parse(&format!("{OURS}handler vfio-v1\n")));
        assert_eq!(
            codes(&image(OURS), GOOD, &built_in),
            [(Level::Error, "handler")]
        );
    }

    #[test]
    fn incoming_files_are_preserved_anew() {
        let mut back = machine("luo-v5", &[]);
        back.incoming = Some(Listing::parse(
            "session 'a' waiting, 1 files\n token 0x1 handler 'memfd-extents-v2' waiting\n\
             session 'b' finished, 1 files\n token 0x1 handler 'gone-v1' retrieved\n",
        ));
        assert_eq!(
            codes(&stock(), "liveupdate=on kho=on", &back),
            [(Level::Note, "derived")]
        );
    }

    #[test]
    fn command_lines() {
        let here = machine("fdt", &["memfd-extents-v2"]);
        let image = image(OURS);
        let has = |cmdline: &str, code| {
            let found = codes(&image, cmdline, &here);
            found
                .iter()
                .find(|(_, found)| *found == code)
                .map(|(level, _)| *level)
        };

        assert_eq!(has("", "liveupdate-off"), Some(Level::Error));
        assert_eq!(has("liveupdate=off", "liveupdate-off"), Some(Level::Error));
        assert_eq!(
            has("-- liveupdate=on", "liveupdate-off"),
            Some(Level::Error)
        );
        assert_eq!(has("liveupdate=on kho=off", "kho-off"), Some(Level::Error));
        assert_eq!(
            has("liveupdate=on mem=1G", "memory-limit"),
            Some(Level::Error)
        );
        assert_eq!(has("liveupdate=on mem=4G", "memory-limit"), None);
        assert_eq!(
            has("liveupdate=on memmap=1M$1G", "memory-map"),
            Some(Level::Warning)
        );
        assert_eq!(has("liveupdate=on no5lvl", "four-levels"), None);
    }

    #[test]
    fn room() {
        let here = machine("fdt", &[]);
        let judge = |size| {
            let initrd = Initrd {
                size,
                compression: None,
            };
            let cmdline = CommandLine::new(GOOD);
            let found = judge(&image(OURS), Some(initrd), &cmdline, &here, false);
            found.first().map(|finding| finding.problem.code())
        };

        assert_eq!(judge(1 << 20), None);
        assert_eq!(judge(200 << 20), Some("scratch-tight"));
        assert_eq!(judge(257 << 20), Some("scratch"));
    }

    #[test]
    fn texts() {
        let iomem = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n\
             100000000-17fffffff : System RAM\n  11a000000-11aefffff : Kernel code\n";
        assert_eq!(memory_end(iomem), Some(0x1_8000_0000));
        assert_eq!(memory_end("00000000-00000000 : System RAM\n"), None);
        assert_eq!(numbers("0x1000\n0x20\n"), [0x1000, 0x20]);
        assert_eq!(size("1G"), Some(1 << 30));
        assert_eq!(size("0x10k"), Some(16 << 10));
        assert_eq!(size("99999999999P"), None);
        assert_eq!(size("x"), None);
    }

    proptest! {
        #[test]
        fn one_line_each(name in proptest::collection::vec(1..=u8::MAX, 1..=63), text in "[ -~]*") {
            let problem = Problem::Handler {
                session: SessionName::new(name).unwrap(),
                token: Token(1),
                handlers: vec![text],
                module: false,
            };
            prop_assert!(!problem.to_string().contains(char::is_control));
        }

        #[test]
        fn nothing_panics(text in ".*") {
            size(&text);
            memory_end(&text);
            numbers(&text);
        }
    }
}
