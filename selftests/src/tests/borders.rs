// SPDX-License-Identifier: GPL-2.0

//! Lists that end at the border of a block, just before it and just behind it: 51 sessions and 63 files
//! fill one.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Part,
        Stage, //
    },
    init,
    sys,
    tests::{
        driver::{
            Driver,
            Kind, //
        },
        sysfs, //
    }, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::errno::Errno;

/// How many sessions there are in each update, and how many files the first of them has.
const COUNTS: [(u64, u64); 7] = [
    (1, 62),
    (50, 63),
    (51, 64),
    (52, 125),
    (102, 126),
    (103, 127),
    (153, 189),
];

/// A kernel for each of them, and the last.
pub const CHAIN: [Part; COUNTS.len() + 1] = [part; COUNTS.len() + 1];

fn name(session: u64) -> String {
    format!("borders-{session}")
}

fn content(session: u64, file: u64) -> Vec<u8> {
    format!("file {file} of session {session}").into_bytes()
}

/// How many files a session has.
fn files(session: u64, of_first: u64) -> u64 {
    if session == 0 {
        of_first
    } else {
        session % 2
    }
}

fn part(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    sys::allow_fds(2000)?;
    if let Some((sessions, of_first)) = COUNTS.get(stage.number.wrapping_sub(2)).copied() {
        for session in 0..sessions {
            let taken = device.retrieve_session(&name(session))?;
            for file in 0..files(session, of_first) {
                let found = sys::content(&taken.retrieve(file)?.into())?;
                ensure_eq!(found, content(session, file));
            }
            ensure_errno!(taken.retrieve(files(session, of_first)), ENOENT);
            taken.finish()?;
        }
        ensure_errno!(device.retrieve_session(&name(sessions)), ENOENT);
    }

    if let Some((sessions, of_first)) = COUNTS.get(stage.number - 1).copied() {
        for session in 0..sessions {
            let made = device.create_session(&name(session))?;
            for file in 0..files(session, of_first) {
                made.preserve(&sys::memfd_of("m", &content(session, file))?, file)?;
            }
            stage.keep(made);
        }
    }
    Ok(())
}

/// One file more than fits into the longest list that the C implementation reads.
const TOO_MANY: u64 = 63 * 10_000 + 1;

/// A list that the next kernel would not read is not handed over to it: `luo-v5` is for C kernels, too.
///
/// At bd974ac it was.
pub fn too_long_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    for token in 0..TOO_MANY {
        session.preserve(&driver.toy(Kind::First, token as u32)?, token)?;
    }
    init::load_next(stage)?;
    ensure_eq!(kexec::jump().errno(), Errno::E2BIG);
    stage.note(sysfs::show("refused")?);
    ensure!(sysfs::show("refused")?.contains("luo-v5"));
    Err(Failure::over())
}

/// See [`too_long_before`].
pub fn too_long_after(_: &mut Stage) -> Outcome {
    Err(Failure::here("all was handed over"))
}
