// SPDX-License-Identifier: GPL-2.0

//! What goes on between the first frozen file and the jump. User space runs then: it closes sessions,
//! dies, writes to memory that is frozen. Nothing of that may cost what is handed over, nobody may wait
//! for it, and nothing may hold the machine up.
//!
//! The kexec itself is held up, where it matters, by the test driver: it waits at a gate when it
//! freezes one of the files. See [`hold_up`].

pub mod memory;
pub mod sessions;

use crate::{
    agent::Notes,
    harness::{
        ensure,
        ensure_eq,
        Failure,
        Outcome,
        Stage, //
    },
    sys,
    tests::driver::{
        Driver,
        Event,
        Kind, //
    }, //
};
use liveupdate::{
    Device,
    Outgoing,
    Session, //
};
use std::{
    fs::File,
    sync::atomic::Ordering,
    thread,
    time::Duration, //
};

/// The note that says whether the kexec was held up all the time.
const HELD_UP: usize = 0;
/// The module of a subsystem.
const SUBSYSTEM: &str = "luo_test_subsystem";
/// From here on, notes are those of each test.
pub const OWN: usize = 8;

/// Preserves a file that holds the kexec up when it is frozen: until `meanwhile` is done, in a process
/// of its own, which says so in the notes.
///
/// Sessions that are older are frozen by then, those that are younger are not.
pub fn hold_up(
    device: &Device,
    driver: &Driver,
    notes: &Notes,
    stage: &mut Stage,
    meanwhile: impl FnOnce() -> Outcome,
) -> Outcome {
    hold_up_from(device, driver, stage)?;
    release_after(driver, notes, meanwhile)
}

/// The first half of [`hold_up`].
fn hold_up_from(device: &Device, driver: &Driver, stage: &mut Stage) -> Outcome {
    let session = device.create_session(&format!("{}-gate", stage.name))?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    driver.close_gate(Event::Freeze)?;
    stage.keep(session);
    Ok(())
}

/// The second half of [`hold_up`].
fn release_after(driver: &Driver, notes: &Notes, meanwhile: impl FnOnce() -> Outcome) -> Outcome {
    notes.child(|| {
        driver.await_gate()?;
        let result = meanwhile();
        let waited = driver.open_gate()?;
        notes.word(HELD_UP).store(waited.into(), Ordering::Relaxed);
        result
    })?;
    Ok(())
}

/// In the next kernel: reads the notes of a kexec that was held up, and ends what did that.
pub fn was_held_up(device: &Device, stage: &Stage) -> Outcome<Vec<u64>> {
    let notes = Notes::read(device, stage)?;
    let driver = Driver::load()?;
    let session = device.retrieve_session(&format!("{}-gate", stage.name))?;

    drop(session.retrieve(1)?);
    session.finish()?;
    drop(session);
    driver.unload()?;
    ensure_eq!(notes[HELD_UP], 1, "the kexec did not wait");
    Ok(notes)
}

/// Holds the kexec up as [`hold_up`] does, and notes how far the processes that go on writing have come
/// until it goes on. The notes of the process `n` are `OWN + n`, which it counts itself, and
/// `2 * OWN + n`.
pub fn hold_up_writers(
    device: &Device,
    driver: &Driver,
    notes: &Notes,
    stage: &mut Stage,
    writers: usize,
) -> Outcome {
    hold_up(device, driver, notes, stage, || {
        for_a_moment();
        for writer in 0..writers {
            let done = notes.word(OWN + writer).load(Ordering::Acquire);
            notes.word(2 * OWN + writer).store(done, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// In the next kernel: whether none of these processes waited for the kexec, and what each has written
/// it has written.
pub fn writers_went_on(
    stage: &mut Stage,
    names: &[&str],
    check: impl Fn(&Device, &str, u64) -> Outcome,
) -> Outcome {
    let device = Device::open()?;
    let notes = was_held_up(&device, stage)?;
    let mut wrong = Vec::new();

    for (writer, name) in names.iter().enumerate() {
        let (during, done) = (notes[2 * OWN + writer], notes[OWN + writer]);
        stage.note(format!("{name}: {during} pages, then {done}"));
        if during == 0 {
            wrong.push(format!("{name} waited for the kexec"));
        }
        if let Err(Failure::Failed(why)) = check(&device, name, done) {
            wrong.push(why);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// A while in which others get on with what they do.
pub fn for_a_moment() {
    thread::sleep(Duration::from_millis(500));
}

/// A session with a memfd of less than a page, which shares what is handed over with others.
fn small(device: &Device, name: &str) -> Outcome<Session<Outgoing>> {
    let session = device.create_session(name)?;

    session.preserve(&sys::memfd_of(name, name.as_bytes())?, 1)?;
    Ok(session)
}

/// Checks such a session in the next kernel, and finishes it.
fn check_small(device: &Device, name: &str) -> Outcome {
    let session = device.retrieve_session(name)?;
    let file = File::from(session.retrieve(1)?);

    ensure_eq!(sys::content(&file)?, name.as_bytes(), "{name}");
    Ok(session.finish()?)
}
