// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether an image can follow, with all given that matters: [`judge`].

use super::{
    machine::size,
    Finding,
    Initrd,
    Level,
    Machine,
    Problem, //
};
use crate::{
    cmdline::CommandLine,
    image::{
        FormatKind,
        Formats,
        Image,
        Source, //
    },
    status::Support, //
};

/// What is left of the scratch memory for the early boot, at least, in bytes.
const EARLY_BOOT: u64 = 16 << 20;

/// Judges what is known of an image and of a machine. `will_preserve` is as in
/// [`Next`](super::Next).
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

/// What was found so far.
struct Findings {
    all: Vec<Finding>,
    /// How much it matters that something would be lost.
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
        let (written, anew) = machine.root_for(image);
        if let Some(root) = written.clone().filter(|_| anew) {
            self.add(Level::Note, Problem::FormatChanges(root));
        }
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
        let (root, changes) = machine.root_for(image);
        let v5 = root.as_deref() == Some("luo-v5");
        let sides = [(&machine.outgoing, changes), (&machine.incoming, true)];
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
                let handlers = match anew {
                    true => described_anew(&file.handler, v5, machine.formats.as_ref()),
                    false => vec![file.handler.clone()],
                };
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

/// The file handlers one of which the next kernel needs for a file that is preserved anew, as those are
/// that came in, or all if the format changes.
fn described_anew(handler: &str, v5: bool, here: Option<&Formats>) -> Vec<String> {
    let of_memfds = |name: &&str| name.starts_with("memfd-") && *name != "memfd-v2";
    let names: Vec<_> = match (handler.starts_with("memfd-"), v5) {
        (true, true) => vec!["memfd-v2"],
        (true, false) => here
            .map(|here| here.newest_handlers().filter(of_memfds).collect())
            .unwrap_or_default(),
        (false, _) => vec![],
    };
    match names.is_empty() {
        true => vec![handler.to_owned()],
        false => names.into_iter().map(str::to_owned).collect(),
    }
}
