// SPDX-License-Identifier: GPL-2.0

//! Drivers at the kexec and behind it: freezing, retrieving and finishing, and what fails there.

use super::{
    retrieved_key,
    shared::shared_fails_before, //
    Driver,
    Event,
    Kind,
    Log,
};
use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    init,
    sys, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device, //
};
use nix::errno::Errno;

/// A file that cannot be frozen calls the kexec off, wherever it is; all others thaw.
pub fn freeze_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let mut sessions = Vec::new();
    let mut token = 0;

    for name in ["freeze-a", "freeze-b", "freeze-c"] {
        let session = device.create_session(name)?;
        for _ in 0..3 {
            session.preserve(&driver.toy(Kind::First, token)?, u64::from(token))?;
            token += 1;
        }
        sessions.push(session);
    }
    driver.log()?;

    let mut cmdline = CommandLine::read()?;
    cmdline.set("luo.stage", &(stage.number + 1).to_string());
    init::load(init::kernel_of(&cmdline, stage.number + 1), &cmdline)?;
    let log = Log::from_now()?;
    for nth in 1..=9 {
        driver.fail(Event::Freeze, nth, Errno::EDOM)?;
        ensure_eq!(kexec::jump().errno(), Errno::EDOM);

        let calls = driver.log()?;
        let nth = nth as usize;
        let (frozen, thawed) = calls.split_at(nth);
        ensure_eq!(thawed.len(), nth - 1);
        for (freeze, unfreeze) in frozen.iter().zip(thawed.iter().rev()) {
            ensure_eq!(freeze.replace("freeze", "unfreeze"), *unfreeze);
        }
        // All is as it was: files come and go.
        let extra = sessions[0].preserve(&driver.toy(Kind::Second, 100 + nth as u32)?, 100);
        ensure!(extra.is_ok() == (nth == 1));
        ensure_errno!(
            sessions[1].preserve(&driver.toy(Kind::First, 1)?, 200),
            EBUSY
        );
        drop(device.create_session("freeze-more")?);
        driver.log()?;
    }
    log.says("session 'freeze-b': token 0x4: handler 'luo-test-first-v1': freeze failed")?;

    for session in sessions {
        stage.keep(session);
    }
    Ok(())
}

/// In the end it works, and everything is there.
pub fn freeze_fails_after(_: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;

    for (name, tokens) in [
        ("freeze-a", &[0, 1, 2, 100][..]),
        ("freeze-b", &[3, 4, 5]),
        ("freeze-c", &[6, 7, 8]),
    ] {
        let session = device.retrieve_session(name)?;
        for token in tokens {
            let expected = if *token == 100 { 101 } else { *token };
            ensure_eq!(retrieved_key(&session, *token)?, expected as i32);
        }
        session.finish()?;
    }
    driver.unload()
}

/// See [`late_after`].
pub fn late_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    session.preserve(&driver.toy(Kind::First, 7)?, 1)?;
    session.preserve(&sys::memfd_of("m", b"content")?, 2)?;
    let other = device.create_session("late-other")?;
    other.preserve(&sys::memfd_of("o", b"other")?, 1)?;

    stage.keep(session);
    stage.keep(other);
    Ok(())
}

/// A driver that comes when the agent has long been there still gets its files. Until then they
/// cost nothing but themselves.
pub fn late_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    for _ in 0..2 {
        ensure_errno!(session.retrieve(1), ENOENT);
    }
    ensure_eq!(sys::content(&session.retrieve(2)?.into())?, b"content");
    ensure_errno!(session.finish(), EBUSY);
    let other = device.retrieve_session("late-other")?;
    ensure_eq!(sys::content(&other.retrieve(1)?.into())?, b"other");
    other.finish()?;

    let driver = Driver::load()?;
    ensure_eq!(driver.log()?, [""; 0]);
    ensure_eq!(retrieved_key(&session, 1)?, 7);
    ensure_eq!(retrieved_key(&session, 1)?, 7);
    ensure_eq!(sys::content(&session.retrieve(2)?.into())?, b"content");
    session.finish()?;
    let calls = driver.log()?;
    let count = |what: &str| calls.iter().filter(|line| line.contains(what)).count();
    ensure_eq!(count("retrieve 7"), 1);
    ensure_eq!(count("finish-retrieved 7"), 1);
    driver.unload()
}

/// See [`unload_incoming_after`].
pub fn unload_incoming_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    session.preserve(&driver.toy(Kind::First, 2)?, 2)?;
    stage.keep(session);
    Ok(())
}

/// The module of incoming files stays until they are finished, even if they are not retrieved.
pub fn unload_incoming_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?.cannot_unload()?;
    let session = Device::open()?.retrieve_session(stage.name)?;
    let driver = driver.cannot_unload()?;
    ensure_eq!(retrieved_key(&session, 2)?, 2);
    let driver = driver.cannot_unload()?;
    driver.log()?;

    session.finish()?;
    let mut calls = driver.log()?;
    calls.retain(|line| line.contains(" finish-"));
    calls.sort();
    ensure_eq!(
        calls,
        [
            "handler-1 finish-never-asked 1",
            "handler-1 finish-retrieved 2"
        ]
    );
    driver.unload()?;
    Driver::load()?.unload()
}

/// See [`retrieve_fails_after`].
pub fn retrieve_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    for key in 1..=3 {
        session.preserve(&driver.toy(Kind::First, key)?, u64::from(key))?;
    }
    stage.keep(session);
    Ok(())
}

/// A file that could not be made stays lost, with the same error, and costs nothing else. A driver
/// that is not ready to finish holds all of them.
pub fn retrieve_fails_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    let log = Log::from_now()?;
    driver.fail(Event::Retrieve, 1, Errno::EDOM)?;
    for _ in 0..3 {
        ensure_errno!(session.retrieve(1), EDOM);
    }
    log.says(
        "session 'driver-retrieve-fails': token 0x1: handler 'luo-test-first-v1': retrieve failed",
    )?;
    ensure_eq!(retrieved_key(&session, 2)?, 2);
    let calls = driver.log()?;
    ensure_eq!(
        calls
            .iter()
            .filter(|line| line.ends_with("retrieve 1"))
            .count(),
        1
    );

    for nth in 1..=3 {
        driver.fail(Event::CanFinish, nth, Errno::EDOM)?;
        ensure_errno!(session.finish(), EBUSY);
        ensure!(!driver.log()?.iter().any(|line| line.contains(" finish-")));
        ensure_eq!(retrieved_key(&session, 2)?, 2);
    }

    session.finish()?;
    let mut calls = driver.log()?;
    calls.retain(|line| line.contains(" finish-"));
    calls.sort();
    ensure_eq!(
        calls,
        [
            "handler-1 finish-failed 1",
            "handler-1 finish-never-asked 3",
            "handler-1 finish-retrieved 2",
        ]
    );
    driver.unload()
}

/// See [`refused_after`].
pub fn refused_before(stage: &mut Stage) -> Outcome {
    retrieve_fails_before(stage)
}

/// A session that is closed while a driver is not ready to finish is there for the next one who asks.
pub fn refused_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;

    for round in 0..3 {
        let session = device.retrieve_session(stage.name)?;
        ensure_errno!(device.retrieve_session(stage.name), EINVAL);
        ensure_eq!(retrieved_key(&session, 1)?, 1);
        ensure_eq!(
            retrieved_key(&session, 2 + round % 2)?,
            2 + round as i32 % 2
        );
        driver.fail(Event::CanFinish, 1 + round, Errno::EDOM)?;
        drop(session);
    }
    let mut calls = driver.log()?;
    ensure!(!calls.iter().any(|line| line.contains(" finish-")));
    calls.retain(|line| line.contains(" retrieve "));
    ensure_eq!(calls.len(), 3);

    // Nobody objects any more: closing it finishes it.
    drop(device.retrieve_session(stage.name)?);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    driver.unload()
}

/// See [`try_again_after`].
pub fn try_again_before(stage: &mut Stage) -> Outcome {
    shared_fails_before(stage)
}

/// Where nothing was consumed, asking again works.
pub fn try_again_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    for errno in [Errno::ENOMEM, Errno::ENFILE] {
        driver.fail(Event::RetrieveAgain, 1, errno)?;
        match session.retrieve(1) {
            Err(e) => ensure_eq!(e.errno(), errno),
            Ok(_) => return Err(Failure::here("it worked")),
        }
    }
    ensure_eq!(retrieved_key(&session, 1)?, 1);
    session.finish()?;
    driver.unload()
}
