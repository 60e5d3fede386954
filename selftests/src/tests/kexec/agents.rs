// SPDX-License-Identifier: GPL-2.0

//! Sessions of agents as there are: one that dies, a service manager, and those that do not stop
//! at the kexec.

use super::{
    retrieve,
    three,
    three_content, //
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
    sys,
    tests::lifetime::wait_forever, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    fcntl::SealFlag,
    sys::{
        eventfd::EventFd,
        signal::{
            kill,
            Signal, //
        },
        wait::waitpid, //
    },
    unistd::{
        fork,
        ForkResult, //
    }, //
};
use std::{
    fs::File,
    io::{
        Read,
        Seek,
        Write, //
    },
    os::fd::OwnedFd,
    thread, //
};

/// Sessions of agents that died, files of sessions that were closed: none of it comes over.
pub fn gone_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let memory = sys::memfd_of("m", &sys::pattern(3, 9000))?;

    let session = device.create_session("gone-closed")?;
    session.preserve(&memory, 1)?;
    drop(session);

    // SAFETY: This process has one thread.
    match unsafe { fork()? } {
        ForkResult::Child => {
            let session = device.create_session("gone-killed");
            let preserved = session.as_ref().map(|it| it.preserve(&memory, 1));
            if let Ok(Ok(())) = preserved {
                let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
            }
            std::process::exit(1);
        }
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
        }
    }

    let session = device.create_session(stage.name)?;
    ensure_errno!(session.preserve(&File::open("/dev/null")?, 1), ENOENT);
    session.preserve(&memory, 1)?;
    stage.keep(session);
    Ok(())
}

/// See [`gone_before`].
pub fn gone_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("gone-closed"), ENOENT);
    ensure_errno!(device.retrieve_session("gone-killed"), ENOENT);
    let session = device.retrieve_session(stage.name)?;
    ensure_eq!(
        sys::content(&retrieve(&session, 1)?)?,
        sys::pattern(3, 9000)
    );
    session.finish()?;
    Ok(())
}

/// What a service manager does: its own state under token 0, descriptors of services under
/// numbers that follow, sessions of services beside it, and no device held at the jump.
pub fn manager_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("manager"), ENOENT);
    let session = device.create_session("manager")?;
    let service = device.create_session("manager-service")?;
    service.preserve(
        &sys::memfd_of("guest memory", &sys::pattern(5, 1 << 20))?,
        0,
    )?;

    // It asks every anonymous inode whether it is a session.
    ensure_eq!(service.ask_name()?.as_bytes(), b"manager-service");
    ensure_errno!(sys::request(&EventFd::new()?, sys::get_name()), ENOTTY);

    // What cannot be preserved gives its number to the next.
    let mut token = 1;
    for i in 0..20u8 {
        let file: OwnedFd = match i % 3 {
            0 => File::open("/dev/null")?.into(),
            _ => sys::memfd_of("stored", &[i; 100])?.into(),
        };
        match session.preserve(&file, token) {
            Ok(()) => token += 1,
            Err(err) => ensure_eq!(err.errno(), Errno::ENOENT),
        }
    }

    let mut state = sys::memfd("state")?;
    writeln!(state, "{{\"descriptors\": {}}}", token - 1)?;
    state.rewind()?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    sys::add_seals(&state, seals)?;
    session.preserve(&state, 0)?;

    stage.keep(session);
    stage.keep(service);
    Ok(())
}

/// See [`manager_before`].
pub fn manager_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session("manager")?;

    let mut state = retrieve(&session, 0)?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    ensure_eq!(sys::seals(&state)?, seals);
    let mut text = String::new();
    state.read_to_string(&mut text)?;
    ensure_eq!(text, "{\"descriptors\": 13}\n");

    let mut stored = (0..20u8).filter(|i| i % 3 != 0);
    for token in 1..=13 {
        let i = stored.next().ok_or_else(|| Failure::here("too few"))?;
        ensure_eq!(sys::content(&retrieve(&session, token)?)?, [i; 100]);
    }
    ensure_errno!(session.retrieve(14), ENOENT);

    // The manager takes the sessions of its services while its own is open.
    let service = device.retrieve_session("manager-service")?;
    session.finish()?;
    drop(session);
    let memory = retrieve(&service, 0)?;
    ensure_eq!(sys::content(&memory)?, sys::pattern(5, 1 << 20));
    service.finish()?;
    Ok(())
}

/// Agents that do not stop when the machine reboots.
///
/// One session is left in peace; around it others come and go at the very moment of the kexec.
pub fn busy_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    session.preserve(&three(7)?, 7)?;
    stage.keep(session);

    // A process of its own, since it does not return.
    // SAFETY: This process has one thread.
    if let ForkResult::Child = unsafe { fork()? } {
        for worker in 0..3 {
            thread::spawn(move || loop {
                let _ = busy_round(worker);
            });
        }
        wait_forever();
    }
    Ok(())
}

fn busy_round(worker: u64) -> Outcome {
    // The others want the device as well.
    let device = Device::open()?;

    for i in 0..50 {
        let session = device.create_session(&format!("busy-{worker}-{}", i % 3))?;
        for token in 0..5 {
            session.preserve(&sys::memfd_of("m", &sys::pattern(token, 3000))?, token)?;
        }
        session.ask_name()?;
    }
    Ok(())
}

/// See [`busy_before`].
pub fn busy_after(stage: &mut Stage) -> Outcome {
    // The children of this boot are other processes; the device is free.
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, three_content(7));
    session.finish()?;

    // Other sessions that were handed over are whole.
    let mut found = 0;
    for worker in 0..3 {
        for i in 0..3 {
            let session = match device.retrieve_session(&format!("busy-{worker}-{i}")) {
                Ok(session) => session,
                Err(err) => {
                    ensure_eq!(err.errno(), Errno::ENOENT);
                    continue;
                }
            };
            found += 1;
            let mut ended = false;
            for token in 0..5 {
                match session.retrieve(token) {
                    Ok(file) => {
                        ensure!(
                            !ended,
                            "token {token} was handed over, one before it was not"
                        );
                        let content = sys::content(&file.into())?;
                        ensure_eq!(content, sys::pattern(token, 3000));
                    }
                    Err(err) => {
                        ensure_eq!(err.errno(), Errno::ENOENT);
                        ended = true;
                    }
                }
            }
            session.finish()?;
        }
    }
    stage.note(format!("{found} sessions were caught in the act"));
    Ok(())
}
