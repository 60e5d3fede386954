// SPDX-License-Identifier: MIT OR Apache-2.0

//! What there is to know about this machine: [`Machine`]; and about an initrd.

use crate::{
    image::{
        Compression,
        FormatKind,
        Formats,
        Image, //
    },
    listing::Listing,
    status::Support,
    DirectionKind, //
};
use nix::sys::utsname::uname;
use std::{
    fs::{
        self,
        File, //
    },
    io,
    os::unix::fs::FileExt, //
};

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
    /// Whether this kernel will write what the loaded image reads (`liveupdate.abi=auto`).
    pub auto_format: bool,
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
            auto_format: text("/sys/module/liveupdate/parameters/abi").trim() == "auto",
            load_disabled: text("/proc/sys/kernel/kexec_load_disabled").trim() == "1",
        }
    }

    /// How much is to be handed over: sessions and files; [`None`] if that is not known.
    pub(super) fn preserved(&self) -> Option<(u64, u64)> {
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

    /// The name of the root that this kernel will write for `image`, and whether it has to describe
    /// anew for it what is preserved.
    pub(super) fn root_for(&self, image: &Image) -> (Option<String>, bool) {
        let written = self.root();
        let formats = self.formats.as_ref().filter(|_| self.auto_format);
        let wanted = formats.and_then(|here| image.formats.outgoing_for(here));
        let now = written.as_deref().map(|root| match root {
            "luo-v5" => "luo-v5",
            _ => "fdt",
        });

        match wanted.filter(|wanted| now.is_some_and(|now| now != *wanted)) {
            None => (written, false),
            Some("fdt") => (self.tree(), true),
            Some(other) => (Some(other.to_owned()), true),
        }
    }

    /// The name of the device tree that this kernel can write.
    fn tree(&self) -> Option<String> {
        let formats = self.formats.as_ref();
        let roots = formats.into_iter().flat_map(|all| all.of(FormatKind::Root));
        let tree = roots.filter(|root| *root != "luo-v5").last();

        Some(tree.unwrap_or("luo-v1").to_owned())
    }

    /// The name of the root that this kernel writes.
    pub(super) fn root(&self) -> Option<String> {
        match &self.support {
            // The implementation in C: its one format is that of its time.
            Support::DeviceOnly => Some("luo-v5".into()),
            Support::On(status) => match status.outgoing_format.as_deref()? {
                // The kernel's word for the device tree.
                "fdt" => self.tree(),
                other => Some(other.to_owned()),
            },
            Support::Off | Support::Absent => None,
        }
    }
}

/// The end of the memory in `/proc/iomem`; [`None`] if it hides addresses.
pub(super) fn memory_end(iomem: &str) -> Option<u64> {
    let ends = iomem.lines().filter_map(|line| {
        let range = line.strip_suffix(" : System RAM")?.trim();
        let (_, last) = range.split_once('-')?;
        u64::from_str_radix(last, 16).ok()?.checked_add(1)
    });
    ends.max().filter(|end| *end > 1)
}

/// Numbers, in hexadecimal after `0x`.
pub(super) fn numbers(text: &str) -> Vec<u64> {
    let words = text.split_ascii_whitespace();
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    words.filter_map(number).collect()
}

/// A size as the kernel's `memparse()` reads it, at the beginning of a text.
pub(super) fn size(text: &str) -> Option<u64> {
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
