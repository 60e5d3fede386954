// SPDX-License-Identifier: GPL-2.0

//! The program as a kselftest: an ordinary process, on whatever kernel is running.
//!
//! It runs the tests that need no kexec and no machine for themselves, reports KTAP to standard
//! output, and ends with the exit status that the runner of kselftests expects.

use crate::{
    harness::{
        Failure,
        Outcome,
        Test, //
    },
    init::{
        self,
        Report, //
    },
    tests, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    unistd::Uid, //
};
use std::{
    io,
    path::Path,
    process::ExitCode,
    time::Duration, //
};

/// `KSFT_SKIP`: nothing could be tested.
const SKIP: u8 = 4;

/// Runs tests by name, or all that can share a machine with others.
pub fn run(names: &[&str]) -> ExitCode {
    let mut report = Report::new(Box::new(io::stdout()));

    init::close_means_close();
    report.line("KTAP version 1");
    if let Some(name) = names
        .iter()
        .find(|name| !tests::all().any(|test| test.name == **name))
    {
        report.line(&format!("Bail out! no test is called '{name}'"));
        return ExitCode::FAILURE;
    }
    if let Err(why) = ready() {
        report.line(&format!("1..0 # SKIP {why}"));
        return ExitCode::from(SKIP);
    }

    let wanted = |test: &&Test| match names {
        [] => test.group() == "@live",
        _ => names.contains(&test.name),
    };
    let selected: Vec<_> = tests::all().filter(wanted).collect();
    report.line(&format!("1..{}", selected.len()));
    init::keep_panics();
    for test in selected {
        let outcome = fits(test).and_then(|()| {
            let limit = Duration::from_secs(test.timeout);
            init::run_part(test, 1, limit, &mut report)
        });
        report.result(test.name, &outcome);
    }
    match report.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Whether anything can be tested here; else why not.
fn ready() -> Result<(), String> {
    if !Uid::effective().is_root() {
        return Err("must be run as root".into());
    }
    match Device::open() {
        Ok(_) => Ok(()),
        Err(err) if err.errno() == Errno::EBUSY => Err("an agent has /dev/liveupdate open".into()),
        Err(err) => Err(format!("{err} (live update is on with liveupdate=on)")),
    }
}

/// Whether a test can run as a part of a running system.
fn fits(test: &Test) -> Outcome {
    // Only the implementation in Rust tells its state there.
    let is_c = !Path::new("/sys/kernel/liveupdate").exists();

    if test.kexecs() > 0 {
        return Err(Failure::skip("it goes on after a kexec: see README.md"));
    }
    if is_c && (test.c_differs || test.rust_memfd) {
        return Err(Failure::skip("the C implementation is known to differ"));
    }
    Ok(())
}
