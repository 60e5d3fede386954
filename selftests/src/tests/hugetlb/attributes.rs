// SPDX-License-Identifier: GPL-2.0

//! What a memfd of huge pages has beside its content: seals, rights, owner, access mode and name.

use super::{
    check,
    fill,
    memfd_of_holes,
    Pool,
    HUGE, //
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
        SharedWords, //
    }, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        fcntl,
        FallocateFlags,
        FcntlArg,
        OFlag,
        SealFlag, //
    },
    sys::{
        memfd::MFdFlags,
        mman::MapFlags, //
    },
    unistd::{
        fchown,
        Gid,
        Uid, //
    }, //
};
use std::{
    fs::{
        File,
        OpenOptions,
        Permissions, //
    },
    io::{
        Seek,
        SeekFrom, //
    },
    os::unix::fs::{
        MetadataExt,
        PermissionsExt, //
    }, //
};

const FUTURE_WRITE: SealFlag = SealFlag::from_bits_retain(0x10);

/// Sets of seals, each of which is set before the file is preserved.
const SEALS: [SealFlag; 7] = [
    SealFlag::empty(),
    SealFlag::F_SEAL_SEAL,
    SealFlag::F_SEAL_SHRINK,
    SealFlag::F_SEAL_GROW,
    SealFlag::F_SEAL_WRITE,
    FUTURE_WRITE,
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_SEAL),
];

/// A file that is not open for writing, and one whose mode and owner change when it is preserved.
const READ_ONLY: u64 = 100;
const OWNED: u64 = 101;

/// All of it.
pub fn before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    Pool::small().resize(16)?;
    for (token, seals) in (0..).zip(SEALS) {
        let file = memfd_of_holes(&format!("sealed {token}"), 2)?;
        fill(&mut SharedWords::of(&file, 2 * HUGE)?, token, &[1]);
        sys::add_seals(&file, seals)?;
        session.preserve(&file, token)?;
    }
    let unsealable = sys::memfd_with("no seals", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?;
    session.preserve(&unsealable, 99)?;

    let file = memfd_of_holes("read", 2)?;
    let mut again = File::open(sys::proc_path(&file))?;
    again.seek(SeekFrom::Start(77))?;
    session.preserve(&again, READ_ONLY)?;

    let file = memfd_of_holes(&"x".repeat(249), 1)?;
    session.preserve(&file, OWNED)?;
    fchown(&file, Some(Uid::from_raw(12)), Some(Gid::from_raw(70_000)))?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    sys::add_seals(&file, SealFlag::F_SEAL_GROW)?;
    stage.keep(session);
    Ok(())
}

/// See [`before`].
pub fn after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let access = |file: &File| -> Outcome<OFlag> {
        Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE)
    };

    Pool::small().resize(16)?;
    for (token, seals) in (0..).zip(SEALS) {
        let file: File = session.retrieve(token)?.into();
        ensure_eq!(
            sys::link_of(&file)?,
            format!("/memfd:sealed {token} (deleted)")
        );
        ensure_eq!(sys::seals(&file)?, seals);
        check(&file, token, &[1])?;
        check_seals(&file, seals)?;
    }
    let file: File = session.retrieve(99)?.into();
    ensure_eq!(sys::seals(&file)?, SealFlag::F_SEAL_SEAL);

    let file: File = session.retrieve(READ_ONLY)?.into();
    ensure_eq!(access(&file)?, OFlag::O_RDONLY);
    ensure_eq!(sys::position(&file)?, 77);
    let writable = SharedWords::mapped(&file, HUGE, MapFlags::empty());
    ensure!(matches!(writable, Err(Errno::EACCES)));
    let again = OpenOptions::new().write(true).open(sys::proc_path(&file))?;
    again.set_len(0)?;

    let file: File = session.retrieve(OWNED)?.into();
    let meta = file.metadata()?;
    let owner = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    ensure_eq!(owner, (0o640, 12, 70_000));
    ensure_eq!(sys::seals(&file)?, SealFlag::F_SEAL_GROW);
    ensure_eq!(access(&file)?, OFlag::O_RDWR);
    ensure_eq!(
        sys::link_of(&file)?,
        format!("/memfd:{} (deleted)", "x".repeat(249))
    );
    session.finish()?;
    Ok(())
}

/// Whether a file of two pages behaves as its seals say.
fn check_seals(file: &File, seals: SealFlag) -> Outcome {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let writes = SealFlag::F_SEAL_WRITE | FUTURE_WRITE;

    match seals.intersects(writes) {
        true => {
            let mapped = SharedWords::mapped(file, HUGE, MapFlags::empty());
            ensure!(matches!(mapped, Err(Errno::EPERM)), "{seals:?}");
            ensure_errno!(fallocate(file, punch, 0, HUGE as i64), EPERM);
        }
        false => {
            fill(&mut SharedWords::of(file, 2 * HUGE)?, 9, &[0]);
            fallocate(file, punch, 0, HUGE as i64)?;
        }
    }
    match seals.contains(SealFlag::F_SEAL_GROW) {
        true => ensure_errno!(file.set_len(3 * HUGE as u64), EPERM),
        false => file.set_len(3 * HUGE as u64)?,
    }
    match seals.contains(SealFlag::F_SEAL_SHRINK) {
        true => ensure_errno!(file.set_len(HUGE as u64), EPERM),
        false => file.set_len(HUGE as u64)?,
    }
    match seals.contains(SealFlag::F_SEAL_SEAL) {
        true => ensure_errno!(
            fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)),
            EPERM
        ),
        false => sys::add_seals(file, SealFlag::F_SEAL_SEAL)?,
    }
    Ok(())
}
