// SPDX-License-Identifier: GPL-2.0

//! The next kernel: checking, loading and starting it.

use crate::{
    cli::{
        Arguments,
        KernelOptions,
        NextKernel,
        OptionalKernel, //
    },
    exit::{
        Exit,
        Failure,
        Outcome, //
    },
    luod::{
        ended,
        Luod, //
    },
    output::{
        Output,
        BAD,
        GOOD,
        WARN, //
    },
};
use liveupdate::{
    cmdline::CommandLine,
    image::Image,
    kexec,
    preflight::{
        self,
        Level,
        Next,
        Report, //
    },
};
use nix::unistd::sync;
use serde_json::json;
use std::{
    fs::File,
    io::{
        self,
        Write, //
    },
    os::fd::AsFd,
    path::Path,
    process::Command, //
};

impl KernelOptions {
    /// The command line that they ask for.
    fn command_line(&self) -> Outcome<CommandLine> {
        let mut line = match &self.cmdline {
            Some(text) => CommandLine::new(text.as_str()),
            // What else could be meant?
            None => CommandLine::read()?,
        };
        if let Some(more) = &self.append {
            line.append(more);
        }
        Ok(line)
    }
}

fn open(path: &Path) -> Outcome<File> {
    File::open(path).map_err(|err| Failure::io(format_args!("open {}", path.display()), &err))
}

fn run_check(kernel: &Path, with: &KernelOptions, will_preserve: bool) -> Outcome<Report> {
    let cmdline = with.command_line()?;

    Ok(preflight::check(&Next {
        kernel,
        initrd: with.initrd.as_deref(),
        cmdline: &cmdline,
        will_preserve,
    }))
}

/// How `check` ends.
fn verdict(report: &Report) -> Exit {
    match report.level() {
        Level::Note => Exit::Success,
        Level::Warning => Exit::Failure,
        Level::Error => Exit::Invalid,
    }
}

/// `luoctl check`
pub fn check(output: Output, next: &NextKernel) -> Outcome<Exit> {
    // That it could not be done must not look like a mere warning.
    let report = run_check(&next.kernel, &next.with, false).map_err(|failure| Failure {
        exit: Exit::Invalid,
        ..failure
    })?;

    output.result(&report, |out| show_report(&report, out))?;
    Ok(verdict(&report))
}

fn show_report(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    if let Some(image) = &report.image {
        writeln!(out, "{}", describe(image))?;
    }
    for finding in &report.findings {
        let level = finding.level;
        match level {
            Level::Note => write!(out, "{level}: ")?,
            Level::Warning => write!(out, "{WARN}{level}{WARN:#}: ")?,
            Level::Error => write!(out, "{BAD}{level}{BAD:#}: ")?,
        }
        writeln!(out, "{finding}")?;
    }
    match report.level() {
        Level::Note => writeln!(
            out,
            "{GOOD}fine{GOOD:#}: nothing speaks against this kernel"
        ),
        Level::Warning => writeln!(out, "{WARN}warnings{WARN:#}: see above"),
        Level::Error => writeln!(out, "{BAD}not good{BAD:#}: something would be lost"),
    }
}

/// An image in one line.
fn describe(image: &Image) -> String {
    let mut text = image.kind.to_string();
    if let Some(release) = &image.release {
        text = format!("Linux {release}, {text}");
    }
    if let Some(machine) = image.machine {
        text += &format!(" for {machine}");
    }
    let formats: Vec<_> = image
        .formats
        .entries
        .iter()
        .map(ToString::to_string)
        .collect();
    match formats.is_empty() {
        true => text + ", no live update",
        false => format!(
            "{text}; reads {} ({})",
            formats.join(", "),
            image.formats.source
        ),
    }
}

/// Loads a kernel; the command line that it gets.
fn load_kernel(output: Output, next: &NextKernel) -> Outcome<CommandLine> {
    let kernel = open(&next.kernel)?;
    let initrd = next.with.initrd.as_deref().map(open).transpose()?;
    let cmdline = next.with.command_line()?;

    kexec::load(
        kernel.as_fd(),
        initrd.as_ref().map(AsFd::as_fd),
        cmdline.as_str(),
    )?;
    if let Err(err) = kexec::tell_format(&kernel) {
        output.note(format_args!(
            "luoctl: {WARN}warning{WARN:#}: this kernel cannot hand over as the next one reads: {err}; \
             see its log for the file, and `luoctl check`"
        ));
    }
    if cmdline.flag("liveupdate") != Some(true) {
        output.note(format_args!(
            "luoctl: {WARN}warning{WARN:#}: liveupdate=on is missing on the command line; what is \
             preserved would be lost"
        ));
    }
    Ok(cmdline)
}

/// `luoctl load`
pub fn load(output: Output, next: &NextKernel) -> Outcome {
    let cmdline = load_kernel(output, next)?;

    output.result(
        &json!({"loaded": true, "cmdline": cmdline.as_str()}),
        |out| writeln!(out, "loaded {}", next.kernel.display()),
    )
}

/// `luoctl unload`
pub fn unload(output: Output) -> Outcome {
    kexec::unload()?;
    output.result(&json!({"loaded": false}), |_| Ok(()))
}

/// `luoctl kexec`
pub fn kexec(output: Output, systemd: bool) -> Outcome {
    require_loaded()?;
    if systemd {
        let status = Command::new("systemctl")
            .arg("kexec")
            .status()
            .map_err(|err| Failure::io("run systemctl kexec", &err))?;
        return match status.success() {
            true => output.result(&json!({"kexec": "systemctl"}), |_| Ok(())),
            false => Err(Failure::new(
                Exit::Failure,
                format_args!("systemctl kexec: {status}"),
            )),
        };
    }
    jump(output)
}

fn require_loaded() -> Outcome {
    match kexec::is_loaded()? {
        true => Ok(()),
        false => Err(Failure::new(Exit::NotRunning, "no next kernel is loaded")
            .hint("`luoctl load KERNEL` loads one")),
    }
}

/// Starts the next kernel. Returns if that is refused.
fn jump(output: Output) -> Outcome {
    output.note(format_args!(
        "luoctl: syncing file systems, then starting the next kernel"
    ));
    sync();
    Err(kexec::jump().into())
}

/// `luoctl update`
pub fn update(
    arguments: &Arguments,
    output: Output,
    next: &OptionalKernel,
    dry_run: bool,
) -> Outcome<Exit> {
    let OptionalKernel { kernel, with } = next;
    let luod = Luod::connect(&arguments.socket)?;
    if let Some(kernel) = kernel {
        let report = run_check(kernel, with, luod.is_some())?;
        if dry_run && luod.is_none() {
            output.result(&report, |out| show_report(&report, out))?;
            return Ok(verdict(&report));
        }
        // With the agent its own check counts, which knows the same and its policy.
        if luod.is_none() && report.level() == Level::Error {
            output.result(&report, |out| show_report(&report, out))?;
            return Err(Failure::new(
                Exit::Failure,
                "not updated, nothing has changed",
            ));
        }
    } else {
        require_loaded()?;
    }

    if let Some(luod) = luod {
        return by_agent(luod, output, kernel.as_deref(), with, dry_run);
    }
    let Some(kernel) = kernel else {
        if dry_run {
            return Err(Failure::new(
                Exit::Failure,
                "nothing can be said about a kernel that is loaded already",
            )
            .hint("name the image: luoctl update --dry-run KERNEL"));
        }
        return jump(output).map(|()| Exit::Success);
    };
    let next = NextKernel {
        kernel: kernel.clone(),
        with: with.clone(),
    };
    load_kernel(output, &next)?;
    jump(output).map(|()| Exit::Success)
}

/// Has the agent do it.
fn by_agent(
    mut luod: Luod,
    output: Output,
    kernel: Option<&Path>,
    with: &KernelOptions,
    dry_run: bool,
) -> Outcome<Exit> {
    let mut command = json!({"cmd": "UPDATE", "dry-run": dry_run});
    let mut files = Vec::new();
    if let Some(kernel) = kernel {
        files.push(open(kernel)?);
        if let Some(initrd) = &with.initrd {
            files.push(open(initrd)?);
        }
        command["cmdline"] = json!(with.command_line()?.as_str());
        command["initrd"] = json!(with.initrd.is_some());
    }
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    luod.ask(command, &fds)?;

    while let Some(event) = luod.next()? {
        output.event(
            &event.value,
            format_args!("{}", super::wait::describe(&event)),
        )?;
        if event.kind() != "UPDATE" {
            continue;
        }
        let findings = event.value["findings"].as_array();
        let mut worst = Exit::Success;
        for finding in findings.into_iter().flatten() {
            let level = finding["level"].as_str().unwrap_or_default();
            worst = match (level, worst) {
                ("error", _) => Exit::Invalid,
                ("warning", Exit::Success) => Exit::Failure,
                (_, worst) => worst,
            };
            let text = finding["text"].as_str().unwrap_or_default();
            output.note(format_args!("{level}: {text}"));
        }
        match event.text("outcome") {
            "checked" => return Ok(worst),
            "aborted" => {
                let reason = event.text("reason");
                return Err(Failure::new(
                    Exit::Failure,
                    format_args!("not updated, everybody goes on: {reason}"),
                ));
            }
            // The machine goes down now, and the connection with it.
            _ => return Ok(Exit::Success),
        }
    }
    Err(ended())
}
