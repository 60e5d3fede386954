// SPDX-License-Identifier: GPL-2.0

//! The sample drivers in `samples/`, either before a kexec and either after it.

use crate::{
    harness::{
        ensure_eq,
        ensure_errno,
        Outcome,
        Stage, //
    },
    module, //
};
use liveupdate::{
    Device,
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    libc,
    unistd::write, //
};
use std::{
    fs::{
        File,
        OpenOptions, //
    },
    io::{
        Read,
        Write, //
    },
    os::fd::{
        AsRawFd,
        FromRawFd, //
    }, //
};

const RUST: &str = "luo_pad_rust";
const C: &str = "luo_pad_c";

const CREATE: u64 = 0xbb00;
const GET_NUMBER: u64 = 0x8008_bb01;
const MAX: usize = 4080;

/// Makes a pad with a text.
pub fn pad(text: &[u8]) -> Outcome<File> {
    let device = OpenOptions::new().read(true).open("/dev/luo-pad")?;
    // SAFETY: The request has no argument.
    let fd = Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), CREATE, 0) })?;
    // SAFETY: The driver has just made it for us.
    let mut pad = unsafe { File::from_raw_fd(fd) };

    ensure_eq!(pad.write(text)?, text.len());
    Ok(pad)
}

fn number(pad: &File) -> Outcome<u64> {
    let mut number = 0_u64;
    // SAFETY: The driver writes one number.
    Errno::result(unsafe { libc::ioctl(pad.as_raw_fd(), GET_NUMBER, &mut number) })?;
    Ok(number)
}

/// What is on a pad.
pub fn text(mut pad: &File) -> Outcome<Vec<u8>> {
    let mut text = Vec::new();
    pad.read_to_end(&mut text)?;
    Ok(text)
}

/// Loads the one in Rust.
pub fn load_rust() -> Outcome {
    load(RUST)
}

/// Loads one of the two. The other is refused while it is there.
fn load(name: &str) -> Outcome {
    let other = if name == RUST { C } else { RUST };

    module::load(name, "")?;
    // The module's EEXIST, as the module loader tells it.
    ensure_errno!(module::try_load(other, "")?, EBUSY);
    Ok(())
}

fn before(stage: &mut Stage, driver: &str) -> Outcome {
    load(driver)?;
    let session = Device::open()?.create_session(stage.name)?;

    let mut late = pad(b"early")?;
    let pads = [pad(b"")?, pad(&[b'x'; MAX])?];
    ensure_eq!(number(&late)?, 1);
    ensure_errno!(write(&pads[0], &[0; MAX + 1]), EFBIG);
    session.preserve(&late, 1)?;
    session.preserve(&pads[0], 2)?;
    session.preserve(&pads[1], 3)?;
    ensure_errno!(session.preserve(&pads[1], 4), EBUSY);
    // What is written and made now counts as well.
    late.write_all(b"late")?;
    ensure_eq!(number(&pad(b"gone")?)?, 4);

    stage.keep(session);
    Ok(())
}

fn take(stage: &Stage) -> Outcome<(Session<Incoming>, [File; 3])> {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let mut pads = Vec::new();

    for (token, expected) in [(1, b"late".to_vec()), (2, Vec::new()), (3, vec![b'x'; MAX])] {
        let pad = File::from(session.retrieve(token)?);
        ensure_eq!(text(&pad)?, expected);
        ensure_eq!(number(&pad)?, token);
        pads.push(pad);
    }
    Ok((session, pads.try_into().expect("there are three")))
}

fn between(stage: &mut Stage, driver: &str) -> Outcome {
    load(driver)?;
    let (session, pads) = take(stage)?;
    session.finish()?;
    drop(session);

    let session = Device::open()?.create_session(stage.name)?;
    for (token, pad) in (1..).zip(&pads) {
        session.preserve(pad, token)?;
    }
    stage.keep(session);
    Ok(())
}

fn after(stage: &mut Stage, driver: &str) -> Outcome {
    load(driver)?;
    // Numbers go on, before any pad was asked for.
    let new = pad(b"new")?;
    ensure_eq!(number(&new)?, 5);

    let (session, pads) = take(stage)?;
    session.finish()?;
    // They are files like all others now.
    for mut pad in &pads {
        pad.write_all(b"again")?;
        ensure_eq!(text(pad)?, b"again");
    }
    drop(pads);
    drop(new);
    module::unload(driver)?;
    Ok(())
}

/// In Rust, in the first kernel.
pub fn rust_before(stage: &mut Stage) -> Outcome {
    before(stage, RUST)
}

/// In C, in the first kernel.
pub fn c_before(stage: &mut Stage) -> Outcome {
    before(stage, C)
}

/// In Rust, on the way.
pub fn rust_between(stage: &mut Stage) -> Outcome {
    between(stage, RUST)
}

/// In C, on the way.
pub fn c_between(stage: &mut Stage) -> Outcome {
    between(stage, C)
}

/// In Rust, in the last kernel.
pub fn rust_after(stage: &mut Stage) -> Outcome {
    after(stage, RUST)
}

/// In C, in the last kernel.
pub fn c_after(stage: &mut Stage) -> Outcome {
    after(stage, C)
}

/// Nobody asks for the pads.
pub fn discarded_after(stage: &mut Stage) -> Outcome {
    load(RUST)?;
    Device::open()?.retrieve_session(stage.name)?.finish()?;
    module::unload(RUST)?;
    Ok(())
}
