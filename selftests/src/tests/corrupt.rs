// SPDX-License-Identifier: GPL-2.0

//! What was corrupted on its way (`liveupdate.corrupt=`) does no harm to the rest.
//!
//! Which part was corrupted, only the first kernel's log knows. So what did not come back is noted
//! here, and the suite judges whether that is right (`scripts/lib/corrupt.py`). What is never
//! right fails the test: wrong content, or another errno than the one for corruption.

use super::look;
use crate::{
    harness::{
        ensure,
        ensure_eq,
        Outcome,
        Stage, //
    },
    sys,
};
use liveupdate::Device;
use nix::errno::Errno;

/// More than a block of them.
const SESSIONS: u64 = 60;
const FILES: u64 = 3;

fn name_of(session: u64) -> String {
    format!("corrupt-{session:055}")
}

/// The last file of a session has extents, the others have slots.
fn content_of(session: u64, token: u64) -> Vec<u8> {
    let size = if token == FILES - 1 { 9000 } else { 2000 };
    sys::pattern(session * FILES + token, size)
}

/// How many times the handlers of memfds found something corrupt.
fn found_by_handlers() -> Outcome<usize> {
    let found = |record: &&luo_guest::LogRecord| {
        record.text.starts_with("memfd_luo: ") && record.text.ends_with("checksum does not match")
    };
    Ok(luo_guest::kernel_log(0)?.iter().filter(found).count())
}

/// Sessions with files, the names as long as can be.
pub fn before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for number in 0..SESSIONS {
        let session = device.create_session(&name_of(number))?;
        for token in 0..FILES {
            let file = sys::memfd_of("m", &content_of(number, token))?;
            session.preserve(&file, token)?;
        }
        stage.keep(session);
    }
    Ok(())
}

/// See [`before`].
pub fn after(stage: &mut Stage) -> Outcome {
    let device = match Device::open() {
        Ok(device) => device,
        Err(err) => {
            ensure_eq!(err.errno(), Errno::EIO);
            stage.note("lost: all");
            return Ok(());
        }
    };

    let told = look::quarantined()?;
    let (mut lost, mut found) = (0_usize, 0);
    for number in 0..SESSIONS {
        let session = match device.retrieve_session(&name_of(number)) {
            Ok(session) => session,
            Err(err) => {
                ensure_eq!(err.errno(), Errno::EUCLEAN, "session {number}");
                stage.note(format!("lost: session {number}"));
                lost += 1;
                continue;
            }
        };
        let mut lost_here = false;
        for token in 0..FILES {
            match session.retrieve(token) {
                Ok(file) => {
                    let content = sys::content(&file.into())?;
                    ensure!(
                        content == content_of(number, token),
                        "session {number}: wrong content under token {token}"
                    );
                }
                Err(err) => {
                    ensure_eq!(err.errno(), Errno::EUCLEAN, "{number}, token {token}");
                    stage.note(format!("lost: file {number} {token}"));
                    lost_here = true;
                    // Records are quarantined, before anybody asks for them.
                    lost += usize::from(found_by_handlers()? == found);
                    found = found_by_handlers()?;
                }
            }
        }
        session.finish()?;
        if lost_here {
            // Those that could not be retrieved were looked at once more.
            found = found_by_handlers()?;
        }
    }
    was_told(&told, lost)?;

    // Freed memory is used again; what is reserved would show if it were not.
    let memory = sys::memfd_of("m", &sys::pattern(1, 64 << 20))?;
    ensure!(sys::content(&memory)? == sys::pattern(1, 64 << 20));
    Ok(())
}

/// Fails unless debugfs said why something was lost, if so, in the words of the log.
fn was_told(told: &[String], lost: usize) -> Outcome {
    ensure_eq!(told.is_empty(), lost == 0, "{told:?}, {lost} lost");
    ensure!(told.len() <= lost, "{told:?}, {lost} lost");

    let log = luo_guest::kernel_log(0)?;
    for why in told.iter().filter(|why| !why.ends_with(", see the log")) {
        let line = format!("luo: incoming {why}");
        ensure!(log.iter().any(|record| record.text == line), "{line}");
    }
    Ok(())
}

/// As [`after`], for handovers without checksums: what comes back may be anything that the records
/// say now, but the kernel lives.
pub fn survived(stage: &mut Stage) -> Outcome {
    let Ok(device) = Device::open() else {
        stage.note("lost: all");
        return Ok(());
    };

    for number in 0..SESSIONS {
        let Ok(session) = device.retrieve_session(&name_of(number)) else {
            stage.note(format!("lost: session {number}"));
            continue;
        };
        for token in 0..FILES {
            let content = session
                .retrieve(token)
                .ok()
                .and_then(|file| sys::content(&file.into()).ok());
            if content != Some(content_of(number, token)) {
                stage.note(format!("lost: file {number} {token}"));
            }
        }
        // A corrupt compatible string leaves a file without handler.
        let _ = session.finish();
    }
    let memory = sys::memfd_of("m", &sys::pattern(1, 64 << 20))?;
    ensure!(sys::content(&memory)? == sys::pattern(1, 64 << 20));
    Ok(())
}
