// SPDX-License-Identifier: GPL-2.0

//! Sessions across kexecs: what is handed over, what is not, and what the new kernel lets one do
//! with it.

pub mod agents;
pub mod repeated;
pub mod retrieve;
pub mod sets;
pub mod shown;

use crate::{
    harness::{
        ensure_eq,
        Outcome,
        Stage, //
    },
    sys, //
};
use liveupdate::{
    Device,
    Incoming,
    Session, //
};
use std::fs::File;

fn retrieve(session: &Session<Incoming>, token: u64) -> Outcome<File> {
    Ok(session.retrieve(token)?.into())
}

/// Three files, for what follows.
pub fn three_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for token in [0, 7, u64::MAX] {
        session.preserve(&three(token)?, token)?;
    }
    stage.keep(session);
    Ok(())
}

fn three(token: u64) -> Outcome<File> {
    sys::memfd_of("three", &three_content(token))
}

fn three_content(token: u64) -> Vec<u8> {
    sys::pattern(token, 5000)
}

/// A session for [`three_before`]'s files, whichever kernel they come from.
pub fn three_after(stage: &mut Stage) -> Outcome {
    check_three(&Device::open()?.retrieve_session(stage.name)?)
}

/// Retrieves [`three_before`]'s files, and finishes their session.
pub fn check_three(session: &Session<Incoming>) -> Outcome {
    for token in [0, 7, u64::MAX] {
        ensure_eq!(
            sys::content(&retrieve(session, token)?)?,
            three_content(token)
        );
    }
    session.finish()?;
    Ok(())
}
