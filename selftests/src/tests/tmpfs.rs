// SPDX-License-Identifier: GPL-2.0

//! Files of a tmpfs across a kexec: they come back as files without a name.

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
    }, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    mount::{
        mount,
        umount,
        umount2,
        MntFlags,
        MsFlags, //
    },
    unistd::{
        fchown,
        truncate,
        Gid,
        Uid, //
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
    os::unix::fs::{
        FileExt,
        MetadataExt,
        PermissionsExt, //
    },
    path::{
        Path,
        PathBuf, //
    }, //
};

/// Token, name and size: less than a page, a huge page and a hole, and none.
const FILES: [(u64, &str, usize); 3] = [
    (1, "small", 100),
    (2, "large", (5 << 20) + 7),
    (3, "empty", 0),
];

/// The token of a file that was open for reading only, of one that lost its name when it was preserved,
/// and of one that got another name then.
const READ_ONLY: u64 = 11;
const REMOVED: u64 = 12;
const RENAMED: u64 = 13;

/// A name that is longer than what the layout of small files holds.
const LONG: &str = "renamed-to-what-is-much-longer-than-any-name-that-a-small-file-has-room-for";

/// Mounts a tmpfs at the root, under a name.
pub fn mounted(name: &str, options: &str) -> Outcome<PathBuf> {
    let folder = PathBuf::from(format!("/{name}"));

    fs::create_dir(&folder)?;
    mount(
        Some("tmpfs"),
        &folder,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )?;
    Ok(folder)
}

fn made(folder: &Path, name: &str, content: &[u8]) -> Outcome<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(folder.join(name))?;

    sys::write_at(&file, 0, content)?;
    Ok(file)
}

/// Files that have names, which others use meanwhile.
pub fn before(stage: &mut Stage) -> Outcome {
    let folder = mounted(stage.name, "size=64M")?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;

    for (token, name, size) in FILES {
        let mut file = made(&folder, name, &sys::pattern(token, size))?;
        // A hole at the end.
        file.set_len((size + 3 * PAGE) as u64)?;
        file.set_permissions(Permissions::from_mode(0o640))?;
        fchown(&file, Some(Uid::from_raw(7)), Some(Gid::from_raw(8)))?;
        file.seek(SeekFrom::Start(token))?;
        session.preserve(&file, token)?;

        // Its other names are the same file, and that cannot change its size.
        let path = folder.join(name);
        fs::hard_link(&path, folder.join(format!("{name}-too")))?;
        let again = OpenOptions::new()
            .write(true)
            .open(folder.join(format!("{name}-too")))?;
        ensure_errno!(session.preserve(&again, 100 + token), EBUSY);
        ensure_eq!(truncate(&path, 1), Err(Errno::EPERM));
        // But it can be written to, also into the hole.
        again.write_all_at(b"LATE", size as u64)?;
    }

    made(&folder, "read-only", b"data")?;
    session.preserve(&File::open(folder.join("read-only"))?, READ_ONLY)?;
    session.preserve(&made(&folder, "removed", b"data")?, REMOVED)?;
    fs::remove_file(folder.join("removed"))?;
    session.preserve(&made(&folder, "short", b"data")?, RENAMED)?;
    fs::rename(folder.join("short"), folder.join(LONG))?;

    // The file system goes on without what is given up.
    let other = device.create_session("tmpfs-given-up")?;
    let file = made(&folder, "given-up", &[1; 3 * PAGE])?;
    other.preserve(&file, 1)?;
    drop(other);
    file.set_len(1)?;
    ensure_eq!(fs::read(folder.join("given-up"))?, [1]);

    // Nobody needs to reach it any more.
    ensure_eq!(umount(&folder), Err(Errno::EBUSY));
    umount2(&folder, MntFlags::MNT_DETACH)?;
    stage.keep(session);
    Ok(())
}

/// See [`before`].
pub fn after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let retrieve = |token| Outcome::Ok(File::from(session.retrieve(token)?));

    for (token, name, size) in FILES {
        let file = retrieve(token)?;
        let mut expected = sys::pattern(token, size);
        expected.extend(b"LATE");
        expected.resize(size + 3 * PAGE, 0);
        let meta = file.metadata()?;

        ensure_eq!(sys::position(&file)?, token);
        ensure!(
            sys::content(&file)? == expected,
            "{name} came back with other content"
        );
        ensure_eq!(
            (meta.nlink(), meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0, 0o640, 7, 8),
            "{name}"
        );
        ensure_eq!(sys::link_of(&file)?, format!("/{name} (deleted)"));
        // It is a file like any other.
        file.set_len(1 << 20)?;
        sys::write_at(&file, (1 << 20) - 1, b"x")?;
    }

    for (token, name) in [
        (READ_ONLY, "read-only"),
        (REMOVED, "removed"),
        (RENAMED, LONG),
    ] {
        let file = retrieve(token)?;
        ensure_eq!(sys::content(&file)?, b"data");
        ensure_eq!(sys::link_of(&file)?, format!("/{name} (deleted)"));
        let write = file.write_all_at(b"DATA", 0).map_err(|e| e.raw_os_error());
        let expected = match token {
            READ_ONLY => Err(Some(Errno::EBADF as i32)),
            _ => Ok(()),
        };
        ensure_eq!(write, expected, "{name}");
    }
    session.finish()?;
    Ok(())
}

/// In the layout of the C handler, which knows no names.
pub fn v2_before(stage: &mut Stage) -> Outcome {
    let folder = mounted(stage.name, "size=64M")?;
    let session = Device::open()?.create_session(stage.name)?;
    let file = made(&folder, "file", &sys::pattern(1, 5 * PAGE + 7))?;

    session.preserve(&file, 1)?;
    sys::write_at(&file, 3, b"LATE")?;
    stage.keep(session);
    Ok(())
}

/// See [`v2_before`].
pub fn v2_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = File::from(session.retrieve(1)?);
    let mut expected = sys::pattern(1, 5 * PAGE + 7);

    expected[3..][..4].copy_from_slice(b"LATE");
    ensure!(
        sys::content(&file)? == expected,
        "it came back with other content"
    );
    ensure_eq!(file.metadata()?.nlink(), 0);
    session.finish()?;
    Ok(())
}
