// SPDX-License-Identifier: GPL-2.0

//! Drivers whose files are preserved: which handler gets one, and what a failure leaves.

use super::{
    is_c,
    key,
    Driver,
    Event,
    Kind,
    Log, //
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
    module,
    sys, //
};
use liveupdate::Device;
use nix::errno::Errno;
use std::{
    fs,
    thread,
    time::Duration, //
};

/// The checks of `modules/luo_test_capi.c`.
pub fn interface(_: &mut Stage) -> Outcome {
    let parameters = if is_c()? { "strict=0" } else { "" };

    for _ in 0..2 {
        module::load("luo_test_capi", parameters)?;
        module::unload("luo_test_capi")?;
    }
    Ok(())
}

/// A module goes exactly when nothing of it is preserved.
pub fn unload(stage: &mut Stage) -> Outcome {
    for round in 0..3 {
        let driver = Driver::load()?;
        let toy = driver.toy(Kind::First, 1)?;
        ensure_eq!(key(&toy)?, 1);
        ensure_eq!(sys::link_of(&toy)?, "anon_inode:[luo_test]");

        let session = Device::open()?.create_session(&format!("{}-{round}", stage.name))?;
        session.preserve(&toy, 1)?;
        drop(toy);
        let driver = driver.cannot_unload()?;
        drop(session);
        driver.unload()?;
    }

    // Nor while a file of it is open.
    let driver = Driver::load()?;
    let toy = driver.toy(Kind::First, 1)?;
    let driver = driver.cannot_unload()?;
    drop(toy);
    driver.unload()
}

/// Of several handlers that accept a file, the one that was registered first gets it.
pub fn choice(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for (parameters, winner) in [("", 1), ("swapped=1", 2)] {
        let driver = Driver::load_with(parameters)?;
        for (kind, handler) in [(Kind::Any, winner), (Kind::First, 1), (Kind::Second, 2)] {
            let session = device.create_session(stage.name)?;
            session.preserve(&driver.toy(kind, 5)?, 1)?;
            drop(session);

            let calls = driver.log()?;
            let own: Vec<_> = calls.iter().filter(|line| !line.contains("flb")).collect();
            ensure_eq!(
                own,
                [
                    &format!("handler-{handler} preserve 5"),
                    &format!("handler-{handler} unpreserve 5")
                ]
            );
        }
        driver.unload()?;
    }
    Ok(())
}

/// What counts as one file, its handler says.
pub fn same_file(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let other = device.create_session("same-file-other")?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    ensure_errno!(session.preserve(&driver.toy(Kind::First, 1)?, 2), EBUSY);
    ensure_errno!(other.preserve(&driver.toy(Kind::Second, 1)?, 1), EBUSY);
    other.preserve(&driver.toy(Kind::First, 2)?, 1)?;
    drop(session);
    other.preserve(&driver.toy(Kind::Second, 1)?, 2)?;
    drop(other);
    driver.unload()
}

/// A driver that fails to preserve leaves nothing behind.
pub fn preserve_fails(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    let all = ["flb-1 preserve", "flb-2 preserve", "flb-3 preserve"];
    let undone = ["flb-3 unpreserve", "flb-2 unpreserve", "flb-1 unpreserve"];

    let log = Log::from_now()?;
    driver.fail(Event::Preserve, 1, Errno::EDOM)?;
    ensure_errno!(session.preserve(&toy, 1), EDOM);
    log.says(
        "session 'driver-preserve-fails': token 0x1: handler 'luo-test-first-v1': preserve failed",
    )?;
    let own: &[&str] = &["handler-1 preserve 1"];
    ensure_eq!(driver.log()?, [&all, own, &undone].concat());
    for which in 1..=3 {
        ensure_errno!(driver.fetch_outgoing(which), ENOENT);
    }

    for nth in 1..=3 {
        driver.fail(Event::FlbPreserve, nth as u64, Errno::EXDEV)?;
        ensure_errno!(session.preserve(&toy, 1), EXDEV);
        ensure_eq!(driver.log()?, [&all[..nth], &undone[4 - nth..]].concat());
    }

    // The token is free, and so is the file.
    session.preserve(&toy, 1)?;
    ensure_eq!(driver.log()?, [&all[..], own].concat());
    // With a second file the first one's state stays whatever happens.
    driver.fail(Event::Preserve, 1, Errno::EDOM)?;
    ensure_errno!(session.preserve(&driver.toy(Kind::Second, 2)?, 2), EDOM);
    ensure_eq!(driver.log()?, ["handler-2 preserve 2"]);
    ensure_eq!(driver.fetch_outgoing(2)?, 2);
    drop(session);
    drop(toy);
    driver.unload()
}

/// A driver's `EAGAIN` is an error like any other: it is asked once, and the caller has the answer.
pub fn preserve_again(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    session.preserve(&driver.toy(Kind::First, 2)?, 2)?;
    driver.log()?;

    driver.fail(Event::Preserve, 1, Errno::EAGAIN)?;
    ensure_errno!(session.preserve(&toy, 1), EAGAIN);
    ensure_eq!(driver.log()?, ["handler-1 preserve 1"]);
    session.preserve(&toy, 1)?;
    drop(session);
    drop(toy);
    driver.unload()
}

/// Of several handlers that accept a file, one that is being unloaded is passed over.
pub fn choice_unloading(stage: &mut Stage) -> Outcome {
    const GREEDY: &str = "luo_test_greedy";

    module::load(GREEDY, "milliseconds=2000")?;
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    ensure_errno!(session.preserve(&toy, 1), EXDEV);

    let unloading = thread::spawn(|| module::unload(GREEDY));
    let state = format!("/sys/module/{GREEDY}/initstate");
    while fs::read_to_string(&state)? != "going\n" {
        thread::sleep(Duration::from_millis(1));
    }
    session.preserve(&toy, 1)?;
    ensure_eq!(fs::read_to_string(&state)?, "going\n");
    let unloaded = unloading.join();
    unloaded.map_err(|_| Failure::here("a thread panicked"))??;
    drop(session);
    drop(toy);
    driver.unload()
}

/// A user that makes requests fail does not fill the log.
pub fn quiet(stage: &mut Stage) -> Outcome {
    // Not more than the log holds of what others say to it, too.
    const FAILURES: usize = 100;

    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    let log = Log::next()?;
    for _ in 0..FAILURES {
        driver.fail(Event::Preserve, 1, Errno::EDOM)?;
        ensure_errno!(session.preserve(&toy, 1), EDOM);
    }
    let lines = log.count("luo: ")?;
    stage.note(format!("{lines} lines for {FAILURES} failures"));
    ensure!(lines > 0 && lines < FAILURES / 2, "{lines} lines");
    drop(session);
    drop(toy);
    driver.unload()
}
