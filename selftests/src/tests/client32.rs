// SPDX-License-Identifier: GPL-2.0

//! A client of 32 bits: `client32.c`.

use crate::harness::{
    ensure_eq,
    Failure,
    Outcome,
    Stage, //
};
use std::{
    io::{
        BufRead,
        BufReader, //
    },
    process::{
        Command,
        Stdio, //
    },
};

/// Starts it, and waits for its word.
fn start(how: &str, stage: &Stage) -> Outcome {
    let mut client = Command::new("/boot/client32")
        .args([how, stage.name])
        .stdout(Stdio::piped())
        .spawn()?;
    let out = client.stdout.take();
    let out = out.ok_or_else(|| Failure::here("it has no output"))?;
    let mut word = String::new();

    BufReader::new(out).read_line(&mut word)?;
    ensure_eq!(word, "ok\n");
    // Where there is a kexec to come, it stays until then.
    std::mem::forget(client);
    Ok(())
}

/// It leaves a session.
pub fn before(stage: &mut Stage) -> Outcome {
    start("before", stage)
}

/// It takes the session over.
pub fn after(stage: &mut Stage) -> Outcome {
    start("after", stage)
}
