// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernel images: what live-update formats they read, without running them.
//!
//! A kernel with the Rust LUO carries ELF notes that list its formats, see [`note`]. For others the
//! list is derived from their strings and their embedded configuration, and [marked](Source) so.
//!
//! Understood are `vmlinux` (ELF), x86 `bzImage`, arm64 `Image`, EFI zboot images, and each of them
//! compressed as a whole.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use liveupdate::image::{FormatKind, Image};
//!
//! let image = Image::read(std::path::Path::new("/boot/vmlinuz"))?;
//! println!("{}", image.release.as_deref().unwrap_or("unknown release"));
//! if !image.formats.has(FormatKind::Root, "luo-v1") {
//!     println!("cannot take over what this kernel hands over");
//! }
//! # Ok(())
//! # }
//! ```

mod container;
mod derive;
pub mod note;
mod payload;

use container::Container;
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

/// The largest file that is looked into: a kernel with all its debug information is smaller.
const MAX_FILE: u64 = 4 << 30;

/// What is known of a kernel image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Image {
    /// What kind of file it is.
    pub kind: Kind,
    /// The architecture that it is for, as `uname -m` has it.
    pub machine: Option<&'static str>,
    /// How the kernel in it is compressed.
    pub compression: Option<Compression>,
    /// Its release, as `uname -r` has it.
    pub release: Option<String>,
    /// How much memory it needs to unpack itself, in bytes.
    pub boot_size: Option<u64>,
    /// What it reads.
    pub formats: Formats,
    /// Its configuration, if it is embedded (`CONFIG_IKCONFIG`).
    #[cfg_attr(feature = "serde", serde(skip))]
    pub config: Option<Config>,
}

/// What kind of file an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Kind {
    /// An ELF file.
    #[cfg_attr(feature = "serde", serde(rename = "vmlinux"))]
    Vmlinux,
    /// A bzImage.
    #[cfg_attr(feature = "serde", serde(rename = "bzImage"))]
    BzImage,
    /// An arm64 Image.
    #[cfg_attr(feature = "serde", serde(rename = "Image"))]
    Arm64Image,
    /// An EFI program that unpacks a compressed image.
    #[cfg_attr(feature = "serde", serde(rename = "zboot"))]
    Zboot,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vmlinux => "vmlinux",
            Self::BzImage => "bzImage",
            Self::Arm64Image => "Image",
            Self::Zboot => "zboot",
        })
    }
}

pub use payload::Compression;

/// The formats of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Formats {
    /// Where they are known from.
    pub source: Source,
    /// All of them.
    pub entries: Vec<Format>,
}

/// Where formats are known from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum Source {
    /// The kernel's own notes: complete for what is built in.
    Note,
    /// Its strings and configuration: what is there was seen, what is not may have been missed.
    #[default]
    Derived,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Derived => "derived",
        })
    }
}

/// A format that a kernel reads, or another property of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Format {
    /// What it is a format of.
    pub kind: FormatKind,
    /// Its compatible string.
    pub name: String,
}

/// What a format is of. Kinds that this library does not know are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum FormatKind {
    /// Kexec Handover.
    Kho,
    /// The root of what LUO hands over.
    Root,
    /// A part of that.
    Record,
    /// Files of one kind: the compatible string of a file handler.
    Handler,
    /// State that files share.
    Flb,
    /// State of a subsystem.
    Subsystem,
    /// Not a format: a parameter that is set without the command line's doing, as `kho=on`.
    Default,
    /// Not a format: what the kernel hands on unread, as what a kernel with another page size preserved.
    Keeps,
}

impl FormatKind {
    /// The word for it in a note.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kho => "kho",
            Self::Root => "root",
            Self::Record => "record",
            Self::Handler => "handler",
            Self::Flb => "flb",
            Self::Subsystem => "subsystem",
            Self::Default => "default",
            Self::Keeps => "keeps",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [
            Self::Kho,
            Self::Root,
            Self::Record,
            Self::Handler,
            Self::Flb,
            Self::Subsystem,
            Self::Default,
            Self::Keeps,
        ]
        .into_iter()
        .find(|kind| kind.word() == word)
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Where a running kernel shows its formats, a line each.
pub const FORMATS_PATH: &str = "/sys/kernel/liveupdate/formats";

impl Formats {
    /// Reads lines of a kind and a name, as the running kernel shows them. Others are left out.
    pub fn parse(text: &str) -> Self {
        let mut formats = Self {
            source: Source::Note,
            entries: text.lines().filter_map(Format::parse).collect(),
        };
        formats.tidy();
        formats
    }

    /// Those of the running kernel; [`None`] if it does not show them.
    ///
    /// # Errors
    ///
    /// What reading returns.
    pub fn running() -> io::Result<Option<Self>> {
        match fs::read(FORMATS_PATH) {
            Ok(text) => Ok(Some(Self::parse(&String::from_utf8_lossy(&text)))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Whether a format is there.
    pub fn has(&self, kind: FormatKind, name: &str) -> bool {
        self.of(kind).any(|format| format == name)
    }

    /// The names of a kind.
    pub fn of(&self, kind: FormatKind) -> impl Iterator<Item = &str> {
        let entries = self.entries.iter();
        entries.filter_map(move |format| (format.kind == kind).then_some(format.name.as_str()))
    }

    /// The handlers in their highest versions, in which they write: of `memfd-small-v1` and `-v2` the
    /// second.
    pub fn newest_handlers(&self) -> impl Iterator<Item = &str> {
        let newer = |than: &str| {
            let (name, version) = versioned(than);
            self.of(FormatKind::Handler)
                .map(versioned)
                .any(|other| other.0 == name && other.1 > version)
        };
        self.of(FormatKind::Handler)
            .filter(move |name| !newer(name))
    }

    /// The format in which the kernel that `here` tells of does best to hand over to this one, by its
    /// name in `/sys/kernel/liveupdate/`; [`None`] if there is none.
    ///
    /// That is `fdt`, if this one reads it. If it is older and reads only older versions of what
    /// stands in it, both know `luo-v5` better.
    pub fn outgoing_for(&self, here: &Self) -> Option<&'static str> {
        let (v5, ours): (Vec<_>, Vec<_>) = here
            .of(FormatKind::Root)
            .filter(|root| self.has(FormatKind::Root, root))
            .partition(|root| *root == "luo-v5");

        match (ours.is_empty(), v5.is_empty()) {
            (true, true) => None,
            (true, false) => Some("luo-v5"),
            (false, true) => Some("fdt"),
            (false, false) if self.is_older(here) => Some("luo-v5"),
            (false, false) => Some("fdt"),
        }
    }

    /// Whether something that `here` writes is known only in an older version.
    fn is_older(&self, here: &Self) -> bool {
        let has_older = |kind, new: &str| {
            let (name, _) = versioned(new);
            !self.has(kind, new) && self.of(kind).any(|other| versioned(other).0 == name)
        };
        here.of(FormatKind::Record)
            .any(|record| has_older(FormatKind::Record, record))
            || here
                .newest_handlers()
                .any(|handler| has_older(FormatKind::Handler, handler))
    }

    fn tidy(&mut self) {
        self.entries.sort();
        self.entries.dedup();
    }
}

/// A name and its version: `memfd-small` and 3 for `memfd-small-v3`. Without a version it is 0.
fn versioned(name: &str) -> (&str, u64) {
    name.rsplit_once("-v")
        .and_then(|(name, version)| Some((name, version.parse().ok()?)))
        .unwrap_or((name, 0))
}

impl Format {
    /// Reads a kind and a name.
    fn parse(line: &str) -> Option<Self> {
        let (kind, name) = line.split_once(' ')?;
        let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());

        Some(Self {
            kind: FormatKind::from_word(kind)?,
            name: plain.then(|| name.to_owned())?,
        })
    }
}

/// A kernel's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config(String);

impl Config {
    /// The value of an option, without `CONFIG_`; [`None`] if it is not set.
    pub fn get(&self, option: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            (name == option).then_some(value)
        })
    }

    /// Whether an option is built in.
    pub fn is_yes(&self, option: &str) -> bool {
        self.get(option) == Some("y")
    }
}

/// Why a file is no image that can be looked into.
#[derive(Debug)]
#[non_exhaustive]
pub enum ImageError {
    /// It cannot be read.
    Io(io::Error),
    /// It is not a kernel image of a kind that is known.
    Unknown,
    /// It ends before it is complete.
    Truncated,
    /// What it says about itself cannot be, or cannot be unpacked. With the reason.
    Corrupt(String),
    /// It is compressed in a way that is not known.
    Compression,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(err) => write!(f, "cannot be read: {err}"),
            Self::Unknown => f.write_str("is no kernel image"),
            Self::Truncated => f.write_str("is truncated"),
            Self::Corrupt(why) => write!(f, "is corrupt: {why}"),
            Self::Compression => f.write_str("is compressed in an unknown way"),
        }
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(err) => Some(err),
            _ => None,
        }
    }
}

impl From<io::Error> for ImageError {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

impl Image {
    /// Looks into the file at a path.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        Self::read_file(&File::open(path)?)
    }

    /// Looks into an open file, wherever its position is, which stays there.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn read_file(file: &File) -> Result<Self, ImageError> {
        let len = file.metadata()?.len();
        if len > MAX_FILE {
            return Err(ImageError::Unknown);
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| ImageError::Unknown)?];
        file.read_exact_at(&mut bytes, 0)?;
        Self::parse(&bytes)
    }

    /// Looks into a file's bytes.
    ///
    /// # Errors
    ///
    /// [`ImageError`], but not [`ImageError::Io`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let container = Container::open(bytes)?;
        let kernel = &container.kernel;
        let config = derive::config(kernel);
        let formats = match note::find(kernel) {
            notes if !notes.is_empty() => {
                let mut formats = Formats {
                    source: Source::Note,
                    entries: notes,
                };
                formats.tidy();
                formats
            }
            _ => derive::formats(kernel, config.as_ref()),
        };

        Ok(Self {
            kind: container.kind,
            machine: container.machine,
            compression: container.compression,
            release: derive::release(kernel),
            boot_size: container.boot_size,
            formats,
            config,
        })
    }

    /// Whether Kexec Handover is on without a parameter; [`None`] if that cannot be known.
    pub fn kho_by_default(&self) -> Option<bool> {
        if self.formats.source == Source::Note {
            return Some(self.formats.has(FormatKind::Default, "kho=on"));
        }
        let config = self.config.as_ref()?;
        Some(config.is_yes("KEXEC_HANDOVER_ENABLE_DEFAULT"))
    }
}
