// SPDX-License-Identifier: GPL-2.0

//! Files that are retrieved into a file which there is already: one of a tmpfs, with its name.

use super::{
    driver::{
        Driver,
        Kind, //
    },
    tmpfs::mounted, //
};
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
        SharedWords,
        PAGE, //
    }, //
};
use liveupdate::{
    uapi,
    Device,
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        FallocateFlags,
        SealFlag, //
    },
    libc,
    sys::{
        memfd::MFdFlags,
        statvfs::statvfs, //
    }, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions,
        Permissions, //
    },
    io::{
        Seek,
        SeekFrom, //
    },
    os::{
        fd::AsRawFd,
        unix::fs::{
            FileExt,
            MetadataExt,
            PermissionsExt, //
        }, //
    },
    path::Path,
    sync::{
        atomic::{
            AtomicBool,
            Ordering, //
        },
        Barrier, //
    },
    thread, //
};

/// A file in huge pages with a hole, one of less than a page, an empty one, and a memfd that is sealed
/// against writing.
const LARGE: u64 = 1;
const SMALL: u64 = 2;
const EMPTY: u64 = 3;
const SEALED: u64 = 4;

/// Sizes of the first two; a hole follows.
const LARGE_SIZE: usize = (5 << 20) + 7;
const SMALL_SIZE: usize = 100;
const HOLE: usize = 3 * PAGE;

/// A position of files before and after.
const POSITION: u64 = 5;

fn opened(path: &Path) -> Outcome<File> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?)
}

fn seek(mut file: &File, position: u64) -> Outcome {
    file.seek(SeekFrom::Start(position))?;
    Ok(())
}

fn expected(token: u64) -> Vec<u8> {
    let size = match token {
        LARGE => LARGE_SIZE,
        SMALL => SMALL_SIZE,
        SEALED => 3 * PAGE,
        _ => 0,
    };
    let mut content = sys::pattern(token, size);
    if matches!(token, LARGE | SMALL) {
        content.resize(size + HOLE, 0);
    }
    content
}

/// How many pages of a file system are in use.
fn used(folder: &Path) -> Outcome<u64> {
    let stat = statvfs(folder)?;
    Ok(stat.blocks() - stat.blocks_free())
}

fn preserve(stage: &mut Stage, options: &str) -> Outcome {
    let folder = mounted(stage.name, options)?;
    let session = Device::open()?.create_session(stage.name)?;

    for token in [LARGE, SMALL, EMPTY] {
        let file = opened(&folder.join(format!("before-{token}")))?;
        let content = expected(token);
        let data = content.len().saturating_sub(HOLE);
        sys::write_at(&file, 0, &content[..data])?;
        file.set_len(content.len() as u64)?;
        session.preserve(&file, token)?;
    }
    let sealed = sys::memfd_with("sealed", MFdFlags::MFD_ALLOW_SEALING)?;
    sys::write_at(&sealed, 0, &expected(SEALED))?;
    sys::add_seals(&sealed, SealFlag::F_SEAL_WRITE)?;
    session.preserve(&sealed, SEALED)?;
    stage.keep(session);
    Ok(())
}

/// See [`after`].
pub fn before(stage: &mut Stage) -> Outcome {
    preserve(stage, "size=64M,huge=always")
}

/// See [`after`].
pub fn v2_before(stage: &mut Stage) -> Outcome {
    preserve(stage, "size=64M")
}

/// What does not do as a target is refused, and costs nothing.
fn refused(session: &Session<Incoming>, folder: &Path) -> Outcome {
    let into = |target: &File| session.retrieve_into(LARGE, target);
    let fds = sys::open_fds()?;

    ensure_errno!(into(&File::open("/dev/null")?), EINVAL);
    ensure_errno!(into(&File::open(folder)?), EINVAL);
    let path = folder.join("target");
    opened(&path)?;
    ensure_errno!(into(&File::open(&path)?), EBADF);
    ensure_errno!(into(&OpenOptions::new().write(true).open(&path)?), EBADF);

    // Not empty, as its size or what is behind its end says.
    let file = opened(&path)?;
    file.set_len(1)?;
    ensure_errno!(into(&file), ENOTEMPTY);
    file.set_len(0)?;
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1)?;
    ensure_errno!(into(&file), ENOTEMPTY);
    file.set_len(0)?;

    for seal in [
        SealFlag::F_SEAL_GROW,
        SealFlag::F_SEAL_WRITE,
        SealFlag::F_SEAL_FUTURE_WRITE,
    ] {
        let memfd = sys::memfd_with("sealed", MFdFlags::MFD_ALLOW_SEALING)?;
        sys::add_seals(&memfd, seal)?;
        ensure_errno!(into(&memfd), EPERM);
    }
    // Who may not write to it now must not be able to afterwards.
    ensure_errno!(session.retrieve_into(SEALED, &file), EPERM);
    ensure_eq!(file.metadata()?.len(), 0);

    // Its file system is too small for it, so the target is as it was.
    let small = mounted(&format!("{}-small", session.name()), "size=1M")?;
    let target = opened(&small.join("target"))?;
    let mapping = SharedWords::of(&target, PAGE)?;
    ensure_errno!(into(&target), ENOSPC);
    ensure_eq!((target.metadata()?.len(), used(&small)?), (0, 0));
    ensure_eq!(
        mapping.advise(0, PAGE, libc::MADV_POPULATE_WRITE),
        Err(Errno::EFAULT)
    );
    sys::write_at(&target, 0, b"as it was")?;
    drop((target, mapping));

    let preserving = Device::open()?.create_session("preserves-the-target")?;
    preserving.preserve(&file, 1)?;
    ensure_errno!(into(&file), EBUSY);
    drop(preserving);

    // In requests, what is not known, and what is not used.
    let request = |flags, target| {
        let request = uapi::RetrieveFd {
            flags,
            target,
            ..sys::retrieve_fd(LARGE)
        };
        sys::request(session, request)
    };
    ensure_eq!(request(2, 0), Err(Errno::EOPNOTSUPP));
    ensure_eq!(request(3, file.as_raw_fd()), Err(Errno::EOPNOTSUPP));
    ensure_eq!(request(0, file.as_raw_fd()), Err(Errno::EINVAL));
    ensure_eq!(request(uapi::RETRIEVE_INTO, -1), Err(Errno::EBADF));
    ensure_eq!(request(uapi::RETRIEVE_INTO, 1 << 20), Err(Errno::EBADF));

    drop(file);
    fs::remove_file(path)?;
    ensure_eq!(sys::open_fds()?, fds);
    Ok(())
}

/// Retrieves a file into one with a name, while others look at that.
fn retrieved(session: &Session<Incoming>, token: u64, folder: &Path) -> Outcome {
    let (path, content) = (folder.join(format!("after-{token}")), expected(token));
    let target = opened(&path)?;
    target.set_permissions(Permissions::from_mode(0o604))?;
    let before = used(folder)?;
    seek(&target, POSITION)?;

    // Whoever has it mapped puts pages into holes as soon as it has a size, one by one or as huge ones.
    let (mapped, over) = (Barrier::new(3), AtomicBool::new(false));
    let insert = |advice| -> Outcome {
        let mapping = SharedWords::of(&target, content.len().max(PAGE));
        mapped.wait();
        let mapping = mapping?;
        while !over.load(Ordering::Relaxed) {
            let _ = mapping.advise(0, content.len(), advice);
        }
        Ok(())
    };
    let file = thread::scope(|scope| -> Outcome<File> {
        scope.spawn(|| insert(libc::MADV_POPULATE_WRITE));
        scope.spawn(|| insert(libc::MADV_COLLAPSE));
        mapped.wait();
        let file = session.retrieve_into(token, &target);
        over.store(true, Ordering::Relaxed);
        Ok(File::from(file?))
    })?;

    ensure!(
        sys::content(&file)? == content,
        "token {token}: other content"
    );
    let (one, other) = (file.metadata()?, fs::metadata(&path)?);
    ensure_eq!(one.ino(), other.ino());
    ensure_eq!((one.nlink(), one.mode() & 0o7777), (1, 0o604));
    ensure_eq!(sys::link_of(&file)?, path.to_string_lossy());
    // It is the same open file.
    ensure_eq!(sys::position(&file)?, POSITION);
    seek(&file, POSITION + 1)?;
    ensure_eq!(sys::position(&target)?, POSITION + 1);

    ensure_errno!(session.retrieve_into(token, &target), EEXIST);
    let again = File::from(session.retrieve(token)?);
    ensure_eq!(sys::position(&again)?, POSITION + 1);

    // The file system knows of each page.
    ensure_eq!(used(folder)? - before, one.blocks() * 512 / PAGE as u64);
    Ok(())
}

/// A file becomes one that there is: it has its name, and content and size of what was preserved.
pub fn after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    // Where files are mapped so that there can be huge pages.
    let folder = mounted(stage.name, "size=64M,huge=advise")?;

    refused(&session, &folder)?;
    for token in [LARGE, SMALL, EMPTY] {
        retrieved(&session, token, &folder)?;
    }
    let sealed = File::from(session.retrieve(SEALED)?);
    ensure!(sys::content(&sealed)? == expected(SEALED));

    // It is a file like any other, and crosses again as one.
    let large = opened(&folder.join(format!("after-{LARGE}")))?;
    large.write_all_at(b"x", LARGE_SIZE as u64)?;
    stage.keep(session);
    Ok(())
}

/// What was retrieved into a file crosses again, and comes back without a name where no target is
/// given.
pub fn after_again(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let folder = mounted(stage.name, "size=64M")?;

    let large = File::from(session.retrieve(LARGE)?);
    let mut content = expected(LARGE);
    content[LARGE_SIZE] = b'x';
    ensure!(sys::content(&large)? == content, "it has other content");
    ensure_eq!(large.metadata()?.nlink(), 0);
    ensure_errno!(
        session.retrieve_into(LARGE, opened(&folder.join("target"))?),
        EEXIST
    );
    retrieved(&session, SMALL, &folder)?;
    session.finish()?;

    // Nothing is held any more: removed, a file is gone.
    fs::remove_file(folder.join(format!("after-{SMALL}")))?;
    ensure_eq!(used(&folder)?, 0);
    Ok(())
}

/// The same from the layout of the C handler.
pub fn v2_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let folder = mounted(stage.name, "size=64M,huge=advise")?;

    for token in [LARGE, SMALL, EMPTY] {
        retrieved(&session, token, &folder)?;
    }
    session.finish()?;
    Ok(())
}

/// See [`driver_after`].
pub fn driver_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    stage.keep(session);
    Ok(())
}

/// A driver that knows nothing of targets refuses one, and its file can be retrieved without.
pub fn driver_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    ensure_errno!(session.retrieve_into(1, sys::memfd("target")?), EOPNOTSUPP);
    ensure!(driver.log()?.iter().all(|line| !line.contains("retrieve")));
    session.retrieve(1)?;
    session.finish()?;
    driver.unload()
}
