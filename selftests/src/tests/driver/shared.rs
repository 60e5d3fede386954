// SPDX-License-Identifier: GPL-2.0

//! The state that the files of drivers share: made with the first, finished with the last.

use super::{
    retrieved_key, //
    Driver,
    Event,
    Kind,
};
use crate::harness::{
    ensure,
    ensure_eq,
    ensure_errno,
    Outcome,
    Stage, //
};
use liveupdate::{
    Device,
    Session, //
};
use nix::errno::Errno;

/// State that 100 files of two handlers share, until the last of them is not preserved any more.
pub fn shared_undone(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let (one, other) = preserve_hundred(&driver, &device, stage.name)?;

    let calls = driver.log()?;
    let flbs = |calls: &[String]| -> Vec<String> {
        let lines = calls.iter().filter(|line| line.starts_with("flb"));
        lines.cloned().collect()
    };
    ensure_eq!(
        flbs(&calls),
        ["flb-1 preserve", "flb-2 preserve", "flb-3 preserve"]
    );
    ensure_eq!(calls.len(), 103);

    drop(one);
    let calls = driver.log()?;
    ensure_eq!(flbs(&calls), [""; 0]);
    // In reverse order.
    ensure_eq!(calls.len(), 50);
    ensure_eq!(calls[0], "handler-2 unpreserve 98");
    ensure_eq!(calls[49], "handler-1 unpreserve 0");

    drop(other);
    ensure_eq!(
        flbs(&driver.log()?),
        ["flb-3 unpreserve", "flb-2 unpreserve", "flb-1 unpreserve"]
    );
    driver.unload()
}

type Sessions = (Session<liveupdate::Outgoing>, Session<liveupdate::Outgoing>);

/// Preserves 100 files of both handlers in two sessions: even keys in the first, odd ones in the
/// other, the first handler's and the second's in turn.
fn preserve_hundred(driver: &Driver, device: &Device, name: &str) -> Outcome<Sessions> {
    let one = device.create_session(&format!("{name}-one"))?;
    let other = device.create_session(&format!("{name}-other"))?;

    for key in 0..100 {
        let kind = if key % 4 < 2 {
            Kind::First
        } else {
            Kind::Second
        };
        let session = if key % 2 == 0 { &one } else { &other };
        session.preserve(&driver.toy(kind, key)?, u64::from(key))?;
    }
    Ok((one, other))
}

/// Half of what shares the state is undone, the other half crosses.
pub fn shared_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let (one, other) = preserve_hundred(&driver, &device, stage.name)?;

    drop(one);
    // References of drivers do not cross, files do.
    for which in [1, 1, 2] {
        driver.fetch_outgoing(which)?;
    }
    let last = device.create_session("shared-last")?;
    last.preserve(&driver.toy(Kind::Any, 1000)?, 1)?;
    for session in [other, last] {
        stage.keep(session);
    }
    stage.keep(driver.device);
    Ok(())
}

/// One FLB is fetched often, one once, and one never; each is finished once, with the last file.
pub fn shared_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    ensure_errno!(
        device.retrieve_session(&format!("{}-one", stage.name)),
        ENOENT
    );
    let session = device.retrieve_session(&format!("{}-other", stage.name))?;

    let other = Driver::open()?;
    for _ in 0..3 {
        ensure_eq!(other.fetch_incoming(1)?, 100);
    }
    ensure_eq!(driver.fetch_incoming(2)?, 200);
    ensure_errno!(driver.fetch_outgoing(1), ENOENT);
    ensure_eq!(driver.log()?, ["flb-1 retrieve", "flb-2 retrieve"]);

    for key in (1..50).step_by(2) {
        ensure_eq!(retrieved_key(&session, key)?, key as i32);
    }
    session.finish()?;
    let calls = driver.log()?;
    ensure!(!calls.iter().any(|line| line.starts_with("flb")));
    let count = |what: &str| calls.iter().filter(|line| line.contains(what)).count();
    ensure_eq!(count("finish-retrieved"), 25);
    ensure_eq!(count("finish-never-asked"), 25);

    // A driver that has the object keeps it alive.
    device.retrieve_session("shared-last")?.finish()?;
    let calls = driver.log()?;
    let flbs = |calls: Vec<String>| -> Vec<String> {
        let lines = calls.into_iter().filter(|line| line.starts_with("flb"));
        lines.collect()
    };
    ensure_eq!(flbs(calls), ["flb-3 retrieve", "flb-3 finish"]);
    drop(other);
    ensure_eq!(flbs(driver.log()?), ["flb-1 finish"]);
    ensure_errno!(driver.fetch_incoming(1), ENODATA);
    drop(driver);
    let driver = Driver::open()?;
    ensure_eq!(flbs(driver.log()?), ["flb-2 finish"]);
    driver.unload()?;

    // It stays finished for handlers that ask later.
    let driver = Driver::load()?;
    for which in 1..=3 {
        ensure_errno!(driver.fetch_incoming(which), ENODATA);
    }
    driver.unload()
}

/// See [`shared_fails_after`].
pub fn shared_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    stage.keep(session);
    Ok(())
}

/// Shared state that cannot be made is asked for once, and costs nothing else.
pub fn shared_fails_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    driver.fail(Event::FlbRetrieve, 1, Errno::EDOM)?;
    for _ in 0..3 {
        ensure_errno!(driver.fetch_incoming(1), EDOM);
    }
    ensure_eq!(driver.log()?, ["flb-1 retrieve"]);
    ensure_eq!(driver.fetch_incoming(2)?, 200);
    ensure_eq!(retrieved_key(&session, 1)?, 1);
    session.finish()?;
    drop(driver);
    let driver = Driver::open()?;
    let calls = driver.log()?;
    ensure!(!calls.iter().any(|line| line == "flb-1 finish"));
    ensure!(calls.iter().any(|line| line == "flb-2 finish"));
    ensure!(calls.iter().any(|line| line == "flb-3 finish"));
    driver.unload()
}
