// SPDX-License-Identifier: GPL-2.0

//! Sessions across more than one kexec: not retrieved, not finished, or preserved once more.

use super::{
    retrieve,
    three_content, //
};
use crate::{
    harness::{
        ensure_eq,
        ensure_errno,
        Outcome,
        Part,
        Stage, //
    },
    sys::{
        self,
        PAGE, //
    }, //
};
use liveupdate::Device;
use std::io::{
    Seek,
    SeekFrom,
    Write, //
};

/// How many live updates the chain has.
const UPDATES: usize = 20;

/// The chain, a part for each kernel.
pub const CHAIN: [Part; UPDATES + 1] = [chain; UPDATES + 1];

/// One part of a chain: take over, check, change, pass on.
fn chain(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let mut expected = sys::pattern(42, 3 * PAGE + 17);

    ensure_eq!(luo_guest::live_update_number()?, stage.number as u64 - 1);
    // Each stage appends and overwrites.
    let apply = |content: &mut Vec<u8>, number: usize| {
        content[number * 100] = number as u8;
        content.extend_from_slice(&sys::pattern(number as u64, 5000));
    };

    let (fresh, kept) = match stage.number {
        1 => (
            sys::memfd_of("fresh", &expected)?,
            sys::memfd_of("kept", &expected)?,
        ),
        number => {
            for earlier in 1..number {
                apply(&mut expected, earlier);
            }
            let session = device.retrieve_session(stage.name)?;
            let fresh = retrieve(&session, number as u64 - 1)?;
            let kept = retrieve(&session, 0)?;
            ensure_eq!(sys::content(&fresh)?, expected);
            ensure_eq!(sys::content(&kept)?, expected);
            session.finish()?;
            // One is copied in each kernel, the other is the same file all along.
            (sys::memfd_of("fresh", &expected)?, kept)
        }
    };
    if stage.number > UPDATES {
        return Ok(());
    }

    for mut file in [&fresh, &kept] {
        let mut content = expected.clone();
        apply(&mut content, stage.number);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&content)?;
    }
    let session = device.create_session(stage.name)?;
    session.preserve(&fresh, stage.number as u64)?;
    session.preserve(&kept, 0)?;
    stage.keep(session);
    Ok(())
}

/// What nobody asks for in one kernel is there in the next.
pub fn unclaimed_middle(_: &mut Stage) -> Outcome {
    // Not even the device is opened.
    Ok(())
}

/// A session that was retrieved but not finished when the next kexec came.
pub fn unfinished_middle(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    // Nothing of it is retrieved.
    stage.keep(device.retrieve_session(stage.name)?);
    Ok(())
}

/// As above, with a file retrieved, changed and held.
pub fn held_middle(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 7)?;

    ensure_eq!(sys::content(&file)?, three_content(7));
    sys::write_at(&file, 0, b"CHANGED")?;
    stage.keep(file);
    stage.keep(session);
    Ok(())
}

/// See [`held_middle`].
pub fn held_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for token in [0, 7, u64::MAX] {
        let mut expected = three_content(token);
        if token == 7 {
            expected[..7].copy_from_slice(b"CHANGED");
        }
        ensure_eq!(sys::content(&retrieve(&session, token)?)?, expected);
    }
    session.finish()?;
    Ok(())
}

/// A new session of the name of one that nobody has claimed.
pub fn same_name_middle(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&sys::memfd_of("new", b"the new one")?, 7)?;
    stage.keep(session);
    Ok(())
}

/// The agent that made a session expects to find it: the older one gives way.
pub fn same_name_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, b"the new one");
    ensure_errno!(session.retrieve(0), ENOENT);
    session.finish()?;
    drop(session);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    Ok(())
}

/// A finished session is not handed over again, even if its descriptor is open.
pub fn finished_middle(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = session.retrieve(7)?;

    session.finish()?;
    stage.keep(file);
    stage.keep(session);
    Ok(())
}

/// See [`finished_middle`].
pub fn finished_after(stage: &mut Stage) -> Outcome {
    ensure_errno!(Device::open()?.retrieve_session(stage.name), ENOENT);
    Ok(())
}

/// What was retrieved is preserved once more, in a session of its own.
pub fn once_more_middle(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let old = device.retrieve_session(stage.name)?;
    let file = retrieve(&old, 7)?;

    old.finish()?;
    drop(old);
    let new = device.create_session(stage.name)?;
    new.preserve(&file, 8)?;
    stage.keep(new);
    Ok(())
}

/// And discarded without a look, in the kernel after that.
pub fn once_more_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    session.finish()?;
    ensure_errno!(session.retrieve(8), ENOENT);
    drop(session);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    Ok(())
}
