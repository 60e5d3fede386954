// SPDX-License-Identifier: GPL-2.0

//! Holders of sessions that are killed, or crash. They have not decided to discard anything:
//! incoming sessions wait again, and the loss of outgoing ones is reported.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys,
    tests::{
        driver::Log,
        lifetime::Waiting,
        sysfs, //
    }, //
};
use liveupdate::{
    Device,
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{
            raise,
            signal,
            SigHandler,
            Signal, //
        },
        wait::{
            waitpid,
            WaitStatus, //
        },
    },
    unistd::{
        fork,
        ForkResult, //
    }, //
};
use std::{
    fs::File,
    thread, //
};

/// How many outgoing sessions were lost as their holders were killed.
fn lost() -> Outcome<u64> {
    sysfs::show("lost_sessions")?
        .trim_end()
        .parse()
        .map_err(Failure::here)
}

/// Runs something in a child that ends as it likes.
fn in_child(f: impl FnOnce() -> Outcome) -> Outcome<WaitStatus> {
    // SAFETY: This process has one thread.
    match unsafe { fork()? } {
        ForkResult::Child => {
            let code = match f() {
                Ok(()) => 0,
                Err(_) => 1,
            };
            // SAFETY: Ends the process. What it has inherited is closed, not dropped.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None)?),
    }
}

/// Dies by a signal.
fn die(by: Signal) -> Outcome {
    // The runtime has a handler for some, which returns.
    // SAFETY: The default one is always sound.
    unsafe { signal(by, SigHandler::SigDfl)? };
    raise(by)?;
    Err(Failure::here("still alive"))
}

/// A session that is lost with its holder is counted, and the log tells which, of how many files, and
/// the holder. A session that its holder closes is not reported.
pub fn outgoing(stage: &mut Stage) -> Outcome {
    const HOLDER: &std::ffi::CStr = c"doomed-holder";

    let device = Device::open()?;
    let hold = |name: &str| -> Outcome {
        prctl::set_name(HOLDER)?;
        let session = device.create_session(name)?;
        for token in 0..3 {
            session.preserve(&sys::memfd_of("m", b"x")?, token)?;
        }
        std::mem::forget(session);
        Ok(())
    };

    let before = lost()?;
    for (number, name) in (1..).zip(["killed-one", "killed-other"]) {
        let log = Log::from_now()?;
        if number == 1 {
            Waiting::fork(|| hold(name))?.kill()?;
        } else {
            let status = in_child(|| hold(name).and_then(|()| die(Signal::SIGSEGV)))?;
            ensure!(matches!(
                status,
                WaitStatus::Signaled(_, Signal::SIGSEGV, _)
            ));
        }
        ensure_eq!(lost()?, before + number);
        let line = log
            .find(&format!("session '{name}'"))?
            .ok_or_else(|| Failure::here("the log has no line about it"))?;
        for word in ["holder", "doomed-holder", " 3 "] {
            ensure!(line.contains(word), "no {word} in: {line}");
        }
    }

    let session = device.create_session(stage.name)?;
    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;
    sys::close(session)?;
    // Nor is one that another process has, too.
    let session = device.create_session(stage.name)?;
    Waiting::fork(|| Ok(()))?.kill()?;
    sys::close(session)?;
    ensure_eq!(lost()?, before + 2);

    // Many holders that are killed do not fill the log.
    const TIMES: u64 = 60;
    let log = Log::next()?;
    for _ in 0..TIMES {
        Waiting::fork(|| hold("killed-again"))?.kill()?;
    }
    ensure_eq!(lost()?, before + 2 + TIMES);
    let lines = log.count("session 'killed-again'")?;
    ensure!(lines > 0 && lines < TIMES as usize / 2, "{lines} lines");
    Ok(())
}

/// The sessions of [`incoming_before`], by what becomes of their holders.
const SESSIONS: [&str; 9] = [
    "killed-by-signal",
    "killed-by-fault",
    "killed-twice",
    "killed-shared",
    "killed-left",
    "killed-finished",
    "ended-closed",
    "ended-by-itself",
    "ended-of-threads",
];

/// How many files each has.
const FILES: u64 = 4;

fn content(token: u64) -> Vec<u8> {
    sys::pattern(token, [10, 5000, 40_000, 300_000][token as usize])
}

/// Sessions whose holders will be killed in the next kernel.
pub fn incoming_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in SESSIONS {
        let session = device.create_session(name)?;
        for token in 0..FILES {
            session.preserve(&sys::memfd_of("m", &content(token))?, token)?;
        }
        stage.keep(session);
    }
    Ok(())
}

/// Takes a session and one of its files.
fn take(device: &Device, name: &str) -> Outcome<(Session<Incoming>, File)> {
    let session = device.retrieve_session(name)?;
    let file = File::from(session.retrieve(1)?);

    ensure!(sys::content(&file)? == content(1));
    Ok((session, file))
}

/// Takes a session, and checks that all is in it that was not taken before.
fn check_rest(device: &Device, name: &str) -> Outcome<Session<Incoming>> {
    let session = device.retrieve_session(name)?;

    for token in 0..FILES {
        match session.retrieve(token) {
            Ok(file) => ensure!(
                sys::content(&file.into())? == content(token),
                "{name}: token {token} came back with other content"
            ),
            // What was taken went with the one who took it.
            Err(err) if token == 1 && err.errno() == Errno::ENOENT => {}
            Err(err) => return Err(Failure::here(format!("{name}: {err}"))),
        }
    }
    Ok(session)
}

/// What was not retrieved by a holder that is killed waits for the next one.
///
/// At bd974ac it was freed each time.
pub fn incoming_middle(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let hold = |name: &str| -> Outcome {
        std::mem::forget(take(&device, name)?);
        Ok(())
    };
    let signalled = |status: WaitStatus| matches!(status, WaitStatus::Signaled(..));

    Waiting::fork(|| hold("killed-by-signal"))?.kill()?;
    check_rest(&device, "killed-by-signal")?.finish()?;

    ensure!(signalled(in_child(
        || hold("killed-by-fault").and_then(|()| die(Signal::SIGSEGV))
    )?));
    check_rest(&device, "killed-by-fault")?.finish()?;

    for _ in 0..2 {
        Waiting::fork(|| {
            std::mem::forget(device.retrieve_session("killed-twice")?);
            Ok(())
        })?
        .kill()?;
    }
    check_rest(&device, "killed-twice")?.finish()?;

    // As long as somebody has it, it is that one's.
    let (session, file) = take(&device, "killed-shared")?;
    let other = Waiting::fork(|| Ok(()))?;
    Waiting::fork(|| Ok(()))?.kill()?;
    ensure_errno!(device.retrieve_session("killed-shared"), EINVAL);
    drop((session, file));
    ensure_errno!(device.retrieve_session("killed-shared"), EINVAL);
    other.kill()?;
    check_rest(&device, "killed-shared")?.finish()?;

    Waiting::fork(|| hold("killed-left"))?.kill()?;

    // A holder that finishes the session, or exits, has decided.
    Waiting::fork(|| {
        let (session, file) = take(&device, "killed-finished")?;
        session.finish()?;
        std::mem::forget((session, file));
        Ok(())
    })?
    .kill()?;
    drop(take(&device, "ended-closed")?);
    let status = in_child(|| hold("ended-by-itself"))?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    // Its other threads are killed when one ends the process, which is no matter of a signal.
    let status = in_child(|| {
        hold("ended-of-threads")?;
        for _ in 0..3 {
            thread::spawn(|| loop {
                thread::yield_now();
            });
        }
        Ok(())
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    for name in [
        "killed-finished",
        "ended-closed",
        "ended-by-itself",
        "ended-of-threads",
    ] {
        match device.retrieve_session(name) {
            Err(err) => ensure_eq!(err.errno(), Errno::ENOENT, "{name}"),
            Ok(_) => return Err(Failure::here(format!("{name} is still there"))),
        }
    }
    Ok(())
}

/// It is handed over again, too.
pub fn incoming_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    check_rest(&device, "killed-left")?.finish()?;
    for name in SESSIONS.iter().filter(|name| **name != "killed-left") {
        ensure_errno!(device.retrieve_session(name), ENOENT);
    }
    Ok(())
}
