// SPDX-License-Identifier: GPL-2.0

//! Sessions, requests and the state of subsystems, while the kexec is held up.

use super::{
    check_small, //
    for_a_moment,
    hold_up_from,
    release_after,
    small,
    was_held_up,
    OWN,
    SUBSYSTEM,
};
use crate::{
    agent::{
        await_death,
        Notes, //
    },
    harness::{
        ensure,
        ensure_eq,
        Failure,
        Outcome,
        Stage, //
    },
    module,
    sys,
    tests::{
        driver::Driver,
        faults::Faults,
        kexec::check_three,
        sysfs, //
    }, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    sys::signal::{
        kill,
        Signal, //
    },
    unistd::pause, //
};
use std::{
    fs::File,
    sync::atomic::Ordering, //
};

/// A session that is closed while others are being frozen takes nothing of theirs along.
///
/// At bd974ac the file of the first session was lost each time.
pub fn close_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    stage.keep(small(&device, "freeze-kept")?);
    hold_up_from(&device, &driver, stage)?;
    let ended = small(&device, "freeze-ended")?;
    release_after(&driver, &notes, move || Ok(sys::close(ended)?))
}

/// The same with one whose process dies, as all do when a machine goes down.
///
/// At bd974ac the file of the first session was lost each time.
pub fn die_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    stage.keep(small(&device, "freeze-kept")?);
    hold_up_from(&device, &driver, stage)?;
    let ended = small(&device, "freeze-ended")?;
    let holder = notes.child(move || {
        let _ended = ended;
        loop {
            pause();
        }
    })?;
    release_after(&driver, &notes, || {
        kill(holder, Signal::SIGKILL)?;
        await_death(holder)
    })
}

/// See [`close_before`] and [`die_before`].
pub fn ended_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    check_small(&device, "freeze-kept")?;
    match device.retrieve_session("freeze-ended") {
        // It came too late to go.
        Ok(session) => {
            let file = File::from(session.retrieve(1)?);
            ensure_eq!(sys::content(&file)?, b"freeze-ended");
            session.finish()?;
        }
        Err(err) => ensure_eq!(err.errno(), Errno::ENOENT),
    }
    was_held_up(&device, stage)?;
    Ok(())
}

/// A request that fails while other sessions are being frozen takes nothing of theirs along. It fails
/// as a kexec has begun, if nothing else is in the way.
///
/// At bd974ac the file of the first session was lost each time.
pub fn preserve_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    stage.keep(small(&device, "freeze-kept")?);
    hold_up_from(&device, &driver, stage)?;
    let session = device.create_session("freeze-failing")?;
    notes.child({
        let (driver, notes) = (&driver, &notes);
        move || {
            let faults = Faults::new()?;
            let file = sys::memfd_of("m", b"x")?;
            driver.await_gate()?;
            for nth in 1.. {
                match faults.hit(nth, || session.preserve(&file, 1)).0 {
                    Err(err) if err.errno() == Errno::EBUSY => break,
                    Err(_) => {}
                    Ok(()) => return Err(Failure::here("it was not too late")),
                }
            }
            notes.word(OWN).store(1, Ordering::Relaxed);
            Ok(())
        }
    })?;
    release_after(&driver, &notes, || {
        for_a_moment();
        Ok(())
    })
}

/// See [`preserve_fails_before`].
pub fn preserve_fails_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    check_small(&device, "freeze-kept")?;
    device.retrieve_session("freeze-failing")?.finish()?;
    let notes = was_held_up(&device, stage)?;
    ensure_eq!(notes[OWN], 1, "the request waited");
    Ok(())
}

/// A session that nobody retrieved is left out for the sake of a new one of its name only if that
/// one is handed over: not if it is closed while others are being frozen.
///
/// At bd974ac the session was lost each time.
pub fn same_name_middle(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    hold_up_from(&device, &driver, stage)?;
    // Of the name that `three_before` has taken.
    let new = device.create_session(stage.name)?;
    new.preserve(&sys::memfd_of("new", b"new")?, 1)?;
    release_after(&driver, &notes, move || Ok(sys::close(new)?))
}

/// See [`same_name_middle`].
pub fn same_name_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    // The old one is there, or the new one as it was before it was closed: something is.
    let session = device.retrieve_session(stage.name)?;
    match session.retrieve(1) {
        Ok(new) => {
            ensure_eq!(sys::content(&new.into())?, b"new");
            session.finish()?;
        }
        Err(err) => {
            ensure_eq!(err.errno(), Errno::ENOENT);
            check_three(&session)?;
        }
    }
    was_held_up(&device, stage)?;
    Ok(())
}

/// A subsystem that hands something over.
pub fn state_before(_: &mut Stage) -> Outcome {
    module::load(SUBSYSTEM, "number=7")
}

/// A reader of the state does not wait for a kexec. Here it is that of a live update that is not
/// finished.
///
/// At bd974ac the reader waited each time.
pub fn state_middle(stage: &mut Stage) -> Outcome {
    module::load(SUBSYSTEM, "number=8")?;
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    hold_up_from(&device, &driver, stage)?;
    notes.child(|| {
        driver.await_gate()?;
        let state = sysfs::show("state")?;
        ensure!(["updated\n", "prepared\n"].contains(&&*state), "{state}");
        notes.word(OWN).store(1, Ordering::Relaxed);
        Ok(())
    })?;
    release_after(&driver, &notes, || {
        for_a_moment();
        let done = notes.word(OWN).load(Ordering::Relaxed);
        notes.word(OWN + 1).store(done, Ordering::Relaxed);
        Ok(())
    })
}

/// See [`state_middle`].
pub fn state_after(stage: &mut Stage) -> Outcome {
    module::load(SUBSYSTEM, "number=9")?;
    let notes = was_held_up(&Device::open()?, stage)?;

    ensure_eq!(notes[OWN], 1, "the state could not be read");
    ensure_eq!(notes[OWN + 1], 1, "it was read after the kexec had gone on");
    Ok(())
}
