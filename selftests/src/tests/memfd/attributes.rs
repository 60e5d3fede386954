// SPDX-License-Identifier: GPL-2.0

//! What a memfd has beside its content: seals, rights, owner, access mode and name.

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
    }, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    fcntl::{
        fcntl,
        FcntlArg,
        OFlag,
        SealFlag, //
    },
    sys::memfd::MFdFlags,
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
        Read,
        Seek,
        SeekFrom,
        Write, //
    },
    os::unix::fs::{
        FileExt,
        MetadataExt,
        PermissionsExt, //
    }, //
};

/// Sets of seals, as they may be added one after another.
fn seal_sets() -> Vec<SealFlag> {
    let future_write = SealFlag::from_bits_retain(0x10);

    vec![
        SealFlag::empty(),
        SealFlag::F_SEAL_SEAL,
        SealFlag::F_SEAL_SHRINK,
        SealFlag::F_SEAL_GROW,
        SealFlag::F_SEAL_WRITE,
        future_write,
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW,
        SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE,
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL,
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE,
        SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SEAL,
    ]
}

/// Seals.
pub fn seals_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, seals) in (0..).zip(seal_sets()) {
        let memory = sys::memfd_of("sealed", &sys::pattern(token, 5000))?;
        sys::add_seals(&memory, seals)?;
        session.preserve(&memory, token)?;
    }
    // One that was never open to seals.
    let memory = sys::memfd_with("unsealable", MFdFlags::empty())?;
    session.preserve(&memory, 100)?;
    stage.keep(session);
    Ok(())
}

/// See [`seals_before`].
pub fn seals_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for (token, seals) in (0..).zip(seal_sets()) {
        let file = retrieve(&session, token)?;
        ensure_eq!(sys::seals(&file)?, seals, "token {token}");
        ensure_eq!(sys::content(&file)?, sys::pattern(token, 5000));
        check_seals(&file, seals)?;
    }
    let file = retrieve(&session, 100)?;
    ensure_eq!(sys::seals(&file)?, SealFlag::F_SEAL_SEAL);
    session.finish()?;
    Ok(())
}

/// Whether a file of 5000 bytes behaves as its seals say.
fn check_seals(file: &File, seals: SealFlag) -> Outcome {
    let refused = |result: std::io::Result<()>, seals_against: SealFlag, what: &str| -> Outcome {
        let should_be = seals.intersects(seals_against);
        match result {
            Ok(()) => ensure!(!should_be, "{what} in spite of {seals:?}"),
            Err(err) => {
                ensure!(should_be, "{what} refused without a seal: {err}");
                ensure_errno!(Err::<(), _>(err), EPERM);
            }
        }
        Ok(())
    };
    let future_write = SealFlag::from_bits_retain(0x10);

    refused(
        file.write_all_at(b"x", 0),
        SealFlag::F_SEAL_WRITE | future_write,
        "writing",
    )?;
    refused(file.set_len(4000), SealFlag::F_SEAL_SHRINK, "shrinking")?;
    refused(file.set_len(6000), SealFlag::F_SEAL_GROW, "growing")?;
    let add = sys_add_seals(file);
    match seals.contains(SealFlag::F_SEAL_SEAL) {
        true => ensure_errno!(add, EPERM),
        false => add?,
    }
    Ok(())
}

fn sys_add_seals(file: &File) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).map(drop)
}

/// Where [`late_seals_before`] notes which seals the kernel has let it add.
const NOTES: u64 = 1000;

/// Seals added to a file that is preserved already.
///
/// A kernel may refuse to seal against writing as long as it holds the pages itself.
pub fn late_seals_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let mut notes = sys::memfd("notes")?;

    for (token, seals) in (0..).zip(seal_sets()) {
        let memory = sys::memfd_of("sealed", &sys::pattern(token, 5000))?;
        session.preserve(&memory, token)?;
        match fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)) {
            Ok(_) => {}
            Err(errno) => {
                ensure_eq!(errno, Errno::EBUSY);
                ensure!(seals.contains(SealFlag::F_SEAL_WRITE));
                sys::add_seals(&memory, seals - SealFlag::F_SEAL_WRITE)?;
            }
        }
        notes.write_all(&sys::seals(&memory)?.bits().to_ne_bytes())?;
    }
    session.preserve(&notes, NOTES)?;
    stage.keep(session);
    Ok(())
}

/// See [`late_seals_before`].
pub fn late_seals_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let notes = sys::content(&retrieve(&session, NOTES)?)?;
    let sets: Vec<_> = notes
        .chunks_exact(4)
        .map(|bits| i32::from_ne_bytes(bits.try_into().expect("four bytes")))
        .map(SealFlag::from_bits_retain)
        .collect();

    ensure_eq!(sets.len(), seal_sets().len());
    for (token, seals) in (0..).zip(sets) {
        let file = retrieve(&session, token)?;
        ensure_eq!(sys::seals(&file)?, seals, "token {token}");
        ensure_eq!(sys::content(&file)?, sys::pattern(token, 5000));
        check_seals(&file, seals)?;
    }
    session.finish()?;
    Ok(())
}

/// Memory that must not be executed.
pub fn noexec_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    let memory = sys::memfd_with("noexec", MFdFlags::from_bits_retain(0x8))?;
    sys::write_at(&memory, 0, b"data")?;
    session.preserve(&memory, 1)?;
    let memory = sys::memfd_of("made so", b"data")?;
    memory.set_permissions(Permissions::from_mode(0o640))?;
    sys::add_seals(&memory, SealFlag::from_bits_retain(0x20))?;
    session.preserve(&memory, 2)?;
    stage.keep(session);
    Ok(())
}

/// See [`noexec_before`].
pub fn noexec_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let seal_exec = SealFlag::from_bits_retain(0x20);

    for (token, mode) in [(1, 0o666), (2, 0o640)] {
        let file = retrieve(&session, token)?;
        ensure_eq!(sys::content(&file)?, b"data");
        ensure_eq!(file.metadata()?.mode() & 0o7777, mode, "token {token}");
        ensure_eq!(sys::seals(&file)?, seal_exec, "token {token}");
        // Not to be executed, but to be written.
        sys::write_at(&file, 0, b"DATA")?;
        file.set_len(10_000)?;
        ensure_errno!(file.set_permissions(Permissions::from_mode(0o755)), EPERM);
    }
    session.finish()?;
    Ok(())
}

/// Mode and owner.
const OWNERS: [(u32, u32, u32); 5] = [
    (0o777, 0, 0),
    (0o600, 0, 0),
    (0o400, 1000, 1000),
    (0o640, 7, 70_000),
    (0o000, 65_534, 65_534),
];

/// Nobody gains rights by an update.
pub fn owner_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, (mode, uid, gid)) in (0..).zip(OWNERS) {
        let memory = sys::memfd_of("owned", b"data")?;
        fchown(&memory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        memory.set_permissions(Permissions::from_mode(mode))?;
        session.preserve(&memory, token)?;
    }
    // Changed when it is preserved already.
    let memory = sys::memfd_of("owned", b"data")?;
    session.preserve(&memory, 100)?;
    memory.set_permissions(Permissions::from_mode(0o600))?;
    fchown(&memory, Some(Uid::from_raw(12)), Some(Gid::from_raw(34)))?;
    stage.keep(session);
    Ok(())
}

/// See [`owner_before`].
pub fn owner_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let owners = (0..).zip(OWNERS).chain([(100, (0o600, 12, 34))]);

    for (token, owner) in owners {
        let file = retrieve(&session, token)?;
        let meta = file.metadata()?;
        ensure_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            owner,
            "token {token}"
        );
        ensure_eq!(sys::content(&file)?, b"data");
    }
    session.finish()?;
    Ok(())
}

/// Descriptors that were for reading or for writing only.
pub fn access_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, (read, write)) in [(true, false), (false, true), (true, true)]
        .into_iter()
        .enumerate()
    {
        let memory = sys::memfd_of("access", b"data")?;
        let mut again = OpenOptions::new()
            .read(read)
            .write(write)
            .open(sys::proc_path(&memory))?;
        again.seek(SeekFrom::Start(2))?;
        session.preserve(&again, token as u64)?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`access_before`].
pub fn access_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let access = |file: &File| -> Outcome<OFlag> {
        Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE)
    };

    let mut file = retrieve(&session, 0)?;
    ensure_eq!(access(&file)?, OFlag::O_RDONLY);
    ensure_eq!(sys::position(&file)?, 2);
    ensure_eq!(sys::content(&file)?, b"data");
    ensure_errno!(file.write_all(b"x"), EBADF);
    ensure_errno!(file.set_len(0), EINVAL);
    ensure_errno!(sys_poke(&file), EACCES);

    let mut file = retrieve(&session, 1)?;
    ensure_eq!(access(&file)?, OFlag::O_WRONLY);
    ensure_errno!(file.read_exact(&mut [0; 4]), EBADF);
    file.write_all(b"TA")?;
    // By another descriptor it can be read, as before.
    let again = File::open(sys::proc_path(&file))?;
    ensure_eq!(sys::content(&again)?, b"daTA");

    let mut file = retrieve(&session, 2)?;
    ensure_eq!(access(&file)?, OFlag::O_RDWR);
    file.write_all(b"TA")?;
    ensure_eq!(sys::content(&file)?, b"daTA");
    session.finish()?;
    Ok(())
}

/// A shared, writable mapping.
fn sys_poke(file: &File) -> nix::Result<()> {
    use nix::sys::mman::{
        mmap,
        munmap,
        MapFlags,
        ProtFlags, //
    };
    let len = std::num::NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;

    // SAFETY: A new mapping that is never touched.
    unsafe {
        let start = mmap(None, len, protection, MapFlags::MAP_SHARED, file, 0)?;
        munmap(start, PAGE)
    }
}

/// The longest name that a memfd may have is 249 bytes.
fn memfd_names() -> Vec<String> {
    vec![
        "n".into(),
        "guest memory/0: \"main\"".into(),
        String::new(),
        "x".repeat(249),
    ]
}

/// The name in `/proc/PID/maps` and in `/proc/PID/fd`.
pub fn name_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, name) in (0..).zip(memfd_names()) {
        session.preserve(&sys::memfd_of(&name, b"data")?, token)?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`name_before`].
pub fn name_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for (token, name) in (0..).zip(memfd_names()) {
        let file = retrieve(&session, token)?;
        ensure_eq!(sys::link_of(&file)?, format!("/memfd:{name} (deleted)"));
    }
    session.finish()?;
    Ok(())
}
