// SPDX-License-Identifier: GPL-2.0

//! Which sessions and files are handed over: none, an empty one, thousands, names of all kinds.

use super::retrieve;
use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        PAGE, //
    },
    tests::{
        reboot::ABI,
        sysfs, //
    }, //
};
use liveupdate::{
    kexec,
    Device,
    Incoming,
    Session, //
};
use nix::errno::Errno;
use std::{
    fs,
    os::fd::AsRawFd,
    time::Instant, //
};

/// What is preserved, and given up again, leaves no trace.
pub fn nothing_before(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session("nothing")?;

    session.preserve(&sys::memfd_of("nothing", b"content")?, 1)?;
    drop(session);
    // Nor does an attempt that fails.
    ensure_eq!(kexec::jump().errno(), Errno::EINVAL);
    Ok(())
}

/// Any kernel starts after a kexec that hands nothing over, and live update works there. One in Rust
/// finds nothing at all.
///
/// At bd974ac a kernel with the C implementation panicked before it said a word, each time.
pub fn nothing_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("nothing"), ENOENT);
    if let Ok(number) = sysfs::show("number") {
        ensure_eq!(number, "0\n");
        ensure_eq!(sysfs::show("abi")?, "outgoing fdt\nincoming none\n");
    }
    device
        .create_session("nothing")?
        .preserve(&sys::memfd_of("nothing", b"content")?, 1)?;
    Ok(())
}

/// A kernel with the C implementation gets what was preserved before anybody knew that it would come:
/// the format changes under small files, large ones, and ones with holes.
pub fn late_format_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&sys::memfd_of("small", b"small")?, 0)?;
    session.preserve(&sys::memfd_of("large", &sys::pattern(9, 300 * PAGE))?, 1)?;
    let sparse = sys::memfd_of("sparse", b"")?;
    sparse.set_len(64 * PAGE as u64)?;
    sys::write_at(&sparse, 3 * PAGE as u64, b"three")?;
    session.preserve(&sparse, 2)?;
    // The C implementation knows one format only.
    if let Ok(shown) = sysfs::show("abi") {
        ensure!(shown.starts_with("outgoing fdt\n"));
        fs::write(ABI, "luo-v5")?;
    }
    sys::write_at(&sparse, 5 * PAGE as u64, b"five")?;
    stage.keep(session);
    Ok(())
}

/// See [`late_format_before`].
pub fn late_format_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let content = |token| sys::content(&session.retrieve(token)?.into());
    let mut sparse = vec![0; 64 * PAGE];

    sparse[3 * PAGE..][..5].copy_from_slice(b"three");
    sparse[5 * PAGE..][..4].copy_from_slice(b"five");
    ensure_eq!(content(0)?, b"small");
    ensure!(content(1)? == sys::pattern(9, 300 * PAGE));
    ensure!(content(2)? == sparse);
    session.finish()?;
    Ok(())
}

/// A session with nothing in it is something nevertheless, and its name comes back byte by byte.
pub fn empty_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in empty_names() {
        stage.keep(sys::request_fd(&device, sys::create_session(&name))?);
    }
    // These do not wait for the reboot.
    drop(device.create_session("empty-closed")?);
    Ok(())
}

/// See [`empty_before`].
pub fn empty_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("empty-closed"), ENOENT);
    for name in empty_names() {
        let session = sys::request_fd(&device, sys::retrieve_session(&name))?;
        let session = Session::<Incoming>::adopt(session)?;
        ensure_eq!(session.name().as_bytes(), name);
        let mut link = b"anon_inode:[luo_session] ".to_vec();
        link.extend_from_slice(&name);
        ensure_eq!(sys::link_of(&session)?, String::from_utf8_lossy(&link));
        ensure_errno!(session.retrieve(0), ENOENT);
        session.finish()?;
    }
    Ok(())
}

fn empty_names() -> Vec<Vec<u8>> {
    vec![
        b"e".to_vec(),
        b"empty-1".to_vec(),
        vec![b'E'; 63],
        vec![b'E'; 62],
        b"empty \xc3\xa9\xff\x7f /:%".to_vec(),
    ]
}

const MANY_SESSIONS: u64 = 2000;
const MANY_FILES: u64 = 5000;

/// Thousands of sessions with a file each.
pub fn sessions_before(stage: &mut Stage) -> Outcome {
    sys::allow_fds(2 * MANY_SESSIONS + 100)?;
    let device = Device::open()?;

    for i in 0..MANY_SESSIONS {
        let session = device.create_session(&format!("{}-{i}", stage.name))?;
        session.preserve(&sys::memfd_of("m", &content_of(i))?, i)?;
        stage.keep(session);
    }
    Ok(())
}

/// See [`sessions_before`].
pub fn sessions_after(stage: &mut Stage) -> Outcome {
    sys::allow_fds(2 * MANY_SESSIONS + 100)?;
    let device = Device::open()?;
    let start = Instant::now();
    let mut sessions = Vec::new();

    // In another order than they were made.
    for i in (0..MANY_SESSIONS).map(|i| i * 1009 % MANY_SESSIONS) {
        let session = device.retrieve_session(&format!("{}-{i}", stage.name))?;
        ensure_eq!(sys::content(&retrieve(&session, i)?)?, content_of(i));
        ensure_errno!(session.retrieve(i + 1), ENOENT);
        sessions.push(session);
    }
    for session in sessions {
        session.finish()?;
    }
    stage.note(format!(
        "{MANY_SESSIONS} sessions in {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn content_of(i: u64) -> Vec<u8> {
    sys::pattern(i, 1 + (i % 300) as usize)
}

/// Thousands of files in a session.
pub fn files_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for i in 0..MANY_FILES {
        session.preserve(&sys::memfd_of("m", &content_of(i))?, token_of(i))?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`files_before`].
pub fn files_after(stage: &mut Stage) -> Outcome {
    let free = || -> Outcome<u64> {
        sys::shrink_caches()?;
        sys::free_memory()
    };
    let device = Device::open()?;
    let before = free()?;
    let session = device.retrieve_session(stage.name)?;
    let start = Instant::now();

    for i in (0..MANY_FILES).rev() {
        let file = retrieve(&session, token_of(i))?;
        ensure_eq!(sys::content(&file)?, content_of(i));
    }
    session.finish()?;
    stage.note(format!(
        "{MANY_FILES} files in {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    drop(session);

    // At least the page of each file.
    let freed = free()?.saturating_sub(before);
    stage.note(format!("{freed} KiB freed"));
    ensure!(freed > MANY_FILES * 4, "only {freed} KiB freed");
    Ok(())
}

fn token_of(i: u64) -> u64 {
    i.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Names with all that a name may have. They are shown in `/proc`, too.
const NAMES: [&[u8]; 6] = [
    b"with a blank",
    b"%s%n",
    b"]",
    b"two\nlines",
    b"\xff\xfe/..",
    &[b'x'; 63],
];

/// Sessions of these names.
pub fn names_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in NAMES {
        let session = sys::request_fd(&device, sys::create_session(name))?;
        let memory = sys::memfd_of("m", name)?;
        sys::request(&session, sys::preserve_fd(memory.as_raw_fd(), 1))?;
        stage.keep(session);
    }
    Ok(())
}

/// See [`NAMES`].
pub fn names_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in NAMES {
        let session = sys::request_fd(&device, sys::retrieve_session(name))?;
        ensure!(sys::link_of(&session)?.starts_with("anon_inode:"));
        let session = Session::<Incoming>::adopt(session)?;
        ensure_eq!(session.name().as_bytes(), name);
        ensure_eq!(sys::content(&retrieve(&session, 1)?)?, name);
        session.finish()?;
    }
    Ok(())
}

/// Blocks of sessions that are full to the last entry, after failures that may have asked for one
/// more.
pub fn full_blocks_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    // A block of a page has room for 51.
    for i in 0..102 {
        let name = format!("full-{i}");
        stage.keep(device.create_session(&name)?);
        if i % 51 == 50 {
            ensure_errno!(device.create_session(&name), EEXIST);
        }
    }
    Ok(())
}

/// See [`full_blocks_before`].
pub fn full_blocks_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for i in 0..102 {
        device.retrieve_session(&format!("full-{i}"))?.finish()?;
    }
    ensure_errno!(device.retrieve_session("full-102"), ENOENT);
    Ok(())
}
