// SPDX-License-Identifier: GPL-2.0

//! Memfds across a kexec: content, size, position, seals, holes, and all else that makes one.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        PAGE, //
    },
    tests::{
        lifetime::wait_forever,
        reboot, //
    },
};
use liveupdate::{
    kexec,
    Device,
    Incoming,
    Session, //
};
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
    libc,
    sys::memfd::MFdFlags,
    unistd::{
        fchown,
        fork,
        pipe,
        ForkResult,
        Gid,
        Uid, //
    },
};
use std::{
    fs::{
        self,
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
    },
    path::Path,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    time::{
        Duration,
        Instant, //
    },
};

fn retrieve(session: &Session<Incoming>, token: u64) -> Outcome<File> {
    Ok(session.retrieve(token)?.into())
}

/// Sizes around every boundary, each with a position of its own.
const SHAPES: [(usize, u64); 12] = [
    (0, 0),
    (0, 123),
    (1, 1),
    (1, 0),
    (PAGE - 1, 17),
    (PAGE, PAGE as u64),
    (PAGE + 1, 1 << 33),
    (2 * PAGE, 0),
    (65_536 + 123, 65_536),
    (511 * PAGE + 1, 1),
    (512 * PAGE, 0),
    (5 << 20, 3 << 20),
];

/// Content, size and position.
pub fn content_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, (size, position)) in (0..).zip(SHAPES) {
        let mut memory = sys::memfd_of("content", &sys::pattern(token, size))?;
        memory.seek(SeekFrom::Start(position))?;
        session.preserve(&memory, token)?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`content_before`].
pub fn content_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let mut files = Vec::new();

    for (token, (size, position)) in (0..).zip(SHAPES) {
        let file = retrieve(&session, token)?;
        ensure_eq!(file.metadata()?.len(), size as u64, "token {token}");
        ensure_eq!(sys::position(&file)?, position, "token {token}");
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        ensure_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDWR);
        files.push(file);
    }
    // What the kernel takes for a cache it may drop.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    for (token, (size, _)) in (0..).zip(SHAPES) {
        let file = &files[token as usize];
        ensure!(
            sys::content(file)? == sys::pattern(token, size),
            "token {token} came back with other content"
        );
    }
    session.finish()?;

    // The files are good for all that a memfd is.
    for (token, (size, _)) in (0..).zip(SHAPES) {
        let mut file = &files[token as usize];
        file.set_len(size as u64 + 10)?;
        ensure_eq!(
            sys::content(file)?[size..],
            [0; 10],
            "beyond the end of token {token}"
        );
        file.seek(SeekFrom::End(0))?;
        file.write_all(&[7; PAGE])?;
        ensure_eq!(file.metadata()?.len(), (size + 10 + PAGE) as u64);
        file.set_len(0)?;
        ensure_eq!(file.metadata()?.blocks(), 0);
    }
    Ok(())
}

/// Changes between `PRESERVE_FD` and the reboot, by every way there is.
pub fn late_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    // Data over data.
    let mut memory = sys::memfd_of("data", &sys::pattern(1, 3 * PAGE))?;
    session.preserve(&memory, 1)?;
    sys::write_at(&memory, 10, b"written")?;
    sys::poke(&memory, PAGE as u64 + 5, 0x5a)?;
    memory.seek(SeekFrom::Start(77))?;

    // Data into holes.
    let memory = sys::memfd("holes")?;
    memory.set_len(16 * PAGE as u64)?;
    session.preserve(&memory, 2)?;
    sys::write_at(&memory, 3 * PAGE as u64 + 100, b"into a hole")?;
    sys::poke(&memory, 9 * PAGE as u64, 0x5b)?;

    // Data into what was allocated but never written.
    let memory = sys::memfd("allocated")?;
    fallocate(&memory, FallocateFlags::empty(), 0, 16 * PAGE as i64)?;
    session.preserve(&memory, 3)?;
    sys::write_at(&memory, 5 * PAGE as u64 - 3, b"across")?;
    sys::poke(&memory, 12 * PAGE as u64 + 1, 0x5c)?;

    // Reading from a hole is not writing to it.
    let memory = sys::memfd("read")?;
    memory.set_len(4 * PAGE as u64)?;
    session.preserve(&memory, 4)?;
    ensure_eq!(sys::content(&memory)?, [0; 4 * PAGE]);

    stage.keep(session);
    Ok(())
}

/// See [`late_before`].
pub fn late_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let put = |content: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        content[at..at + bytes.len()].copy_from_slice(bytes);
    };

    let mut expected = sys::pattern(1, 3 * PAGE);
    put(&mut expected, 10, b"written");
    put(&mut expected, PAGE + 5, &[0x5a]);
    let file = retrieve(&session, 1)?;
    ensure_eq!(sys::position(&file)?, 77);
    ensure!(sys::content(&file)? == expected, "data over data is lost");

    let mut expected = vec![0; 16 * PAGE];
    put(&mut expected, 3 * PAGE + 100, b"into a hole");
    put(&mut expected, 9 * PAGE, &[0x5b]);
    let file = retrieve(&session, 2)?;
    ensure!(sys::content(&file)? == expected, "data in holes is lost");

    let mut expected = vec![0; 16 * PAGE];
    put(&mut expected, 5 * PAGE - 3, b"across");
    put(&mut expected, 12 * PAGE + 1, &[0x5c]);
    let file = retrieve(&session, 3)?;
    ensure!(
        sys::content(&file)? == expected,
        "data in allocated pages is lost"
    );

    let file = retrieve(&session, 4)?;
    ensure_eq!(sys::content(&file)?, [0; 4 * PAGE]);
    session.finish()?;
    Ok(())
}

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

/// Where the data of a sparse file is.
const ISLANDS: [(u64, usize); 5] = [
    (0, 1),
    (5 * PAGE as u64, PAGE),
    (100 * PAGE as u64 - 1, 2),
    (1 << 20, 10 * PAGE),
    ((64 << 20) - 10, 10),
];

fn sparse(seed: u64, islands: &[(u64, usize)], size: u64) -> Outcome<File> {
    let memory = sys::memfd("sparse")?;

    memory.set_len(size)?;
    for (at, len) in islands {
        sys::write_at(&memory, *at, &sys::pattern(seed + at, *len))?;
    }
    Ok(memory)
}

fn check_islands(file: &File, seed: u64, islands: &[(u64, usize)]) -> Outcome {
    for (at, len) in islands {
        let mut bytes = vec![0; *len];
        file.read_exact_at(&mut bytes, *at)?;
        ensure!(
            bytes == sys::pattern(seed + at, *len),
            "the data at {at:#x} is lost"
        );
    }
    Ok(())
}

/// The content of a sparse file, whatever becomes of its holes.
pub fn sparse_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&sparse(1, &ISLANDS, 64 << 20)?, 1)?;
    stage.keep(session);
    Ok(())
}

/// See [`sparse_before`].
pub fn sparse_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;

    ensure_eq!(file.metadata()?.len(), 64 << 20);
    check_islands(&file, 1, &ISLANDS)?;
    let expected = sparse(1, &ISLANDS, 64 << 20)?;
    ensure!(
        sys::content(&file)? == sys::content(&expected)?,
        "something else than zeros in the holes"
    );
    session.finish()?;
    Ok(())
}

/// A sparse file stays sparse, the same holes in the same places.
pub fn holes_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;
    let expected = sparse(1, &ISLANDS, 64 << 20)?;

    ensure_eq!(sys::extents(&file)?, sys::extents(&expected)?);
    ensure_eq!(file.metadata()?.blocks(), expected.metadata()?.blocks());
    check_islands(&file, 1, &ISLANDS)?;
    // Holes can be filled still.
    sys::write_at(&file, 2 << 20, b"late")?;
    session.finish()?;
    Ok(())
}

/// Files larger than the machine's memory, with little in them.
const HUGE: [(u64, [(u64, usize); 4]); 2] = [
    (
        (6 << 30) + 5,
        [
            (0, 10),
            ((4 << 30) - 5, 10),
            (5 << 30, 10),
            ((6 << 30) - 5, 10),
        ],
    ),
    (
        1 << 40,
        [
            (4096, 10),
            (1 << 32, 10),
            ((1 << 39) + 77, 10),
            ((1 << 40) - 10, 10),
        ],
    ),
];

/// See [`HUGE`].
pub fn huge_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, (size, islands)) in (0..).zip(&HUGE) {
        let mut memory = sparse(token, islands, *size)?;
        memory.seek(SeekFrom::Start(*size - 1))?;
        session.preserve(&memory, token)?;
        sys::write_at(&memory, 3 << 30, b"late")?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`HUGE`].
pub fn huge_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for (token, (size, islands)) in (0..).zip(&HUGE) {
        let file = retrieve(&session, token)?;
        ensure_eq!(file.metadata()?.len(), *size);
        ensure_eq!(sys::position(&file)?, *size - 1);
        check_islands(&file, token, islands)?;
        let mut late = [0; 4];
        file.read_exact_at(&mut late, 3 << 30)?;
        ensure_eq!(late, *b"late");
        ensure!(file.metadata()?.blocks() < 1000);
        let mut zeros = [1; 100];
        file.read_exact_at(&mut zeros, 2 << 30)?;
        ensure_eq!(zeros, [0; 100]);
    }
    session.finish()?;
    Ok(())
}

/// Pages that were allocated and never written, before and after the preservation.
pub fn allocated_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    // Within the size, in part.
    let memory = sys::memfd("allocated")?;
    fallocate(&memory, FallocateFlags::empty(), 0, 8 * PAGE as i64)?;
    sys::write_at(&memory, 2 * PAGE as u64, b"written")?;
    session.preserve(&memory, 1)?;

    // Beyond the size.
    let memory = sys::memfd("beyond")?;
    sys::write_at(&memory, 0, b"small")?;
    fallocate(
        &memory,
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
        0,
        8 * PAGE as i64,
    )?;
    session.preserve(&memory, 2)?;
    stage.keep(session);
    Ok(())
}

/// See [`allocated_before`].
pub fn allocated_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    let file = retrieve(&session, 1)?;
    let mut expected = vec![0; 8 * PAGE];
    expected[2 * PAGE..2 * PAGE + 7].copy_from_slice(b"written");
    ensure_eq!(file.metadata()?.len(), 8 * PAGE as u64);
    ensure!(sys::content(&file)? == expected, "the content is lost");
    // And it stays, now that it is written.
    sys::write_at(&file, 6 * PAGE as u64, b"late")?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    expected[6 * PAGE..6 * PAGE + 4].copy_from_slice(b"late");
    ensure!(sys::content(&file)? == expected, "a late write is lost");

    let file = retrieve(&session, 2)?;
    ensure_eq!(sys::content(&file)?, b"small");
    file.set_len(8 * PAGE as u64)?;
    ensure!(
        sys::content(&file)?[5..].iter().all(|&byte| byte == 0),
        "something else than zeros beyond the end"
    );
    session.finish()?;
    Ok(())
}

/// Sizes that end within a huge page, at its end, and just behind it.
const FOLIO_SIZES: [usize; 4] = [8 << 20, (5 << 20) + 100, (2 << 20) + 1, 64 << 10];

/// The token of the file that says how much of them is in huge pages.
const HUGE_NOTE: u64 = 200;

/// Has files made of folios as large as the kernel makes them. False if it has small ones only.
pub fn use_huge_pages() -> Outcome<bool> {
    let settings = Path::new("/sys/kernel/mm/transparent_hugepage");

    if !settings.exists() {
        return Ok(false);
    }
    fs::write(settings.join("shmem_enabled"), "always")?;
    for entry in fs::read_dir(settings)? {
        // Each size has a switch of its own.
        let switch = entry?.path().join("shmem_enabled");
        if switch.exists() {
            fs::write(switch, "inherit")?;
        }
    }
    Ok(true)
}

/// Memory in folios as large as the kernel makes them.
pub fn folios_before(stage: &mut Stage) -> Outcome {
    if !use_huge_pages()? {
        return Err(Failure::skip("no huge pages"));
    }
    let session = Device::open()?.create_session(stage.name)?;

    for (token, size) in (0..).zip(FOLIO_SIZES) {
        let memory = sys::memfd_of("folios", &sys::pattern(token, size))?;
        if token == 0 {
            // One that is split, with a hole in it.
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&memory, punch, 4 << 20, 3 * PAGE as i64)?;
        }
        session.preserve(&memory, token)?;
        sys::write_at(&memory, size as u64 - 3, b"END")?;
    }
    // A huge page of which a few bytes are written.
    let memory = sys::memfd("sparse")?;
    memory.set_len(16 << 20)?;
    sys::write_at(&memory, 7 << 20, b"alone")?;
    session.preserve(&memory, 100)?;
    // How much is in huge pages, for the other side.
    let note = sys::memfd_of("note", &[0; 8])?;
    session.preserve(&note, HUGE_NOTE)?;
    let [_, huge] = shared()?;
    ensure!(huge > 0);
    sys::write_at(&note, 0, &huge.to_le_bytes())?;
    stage.keep(session);
    Ok(())
}

/// How many KiB of shared memory there are, and how many of it in huge pages. What processors have
/// not yet added up, this brings together.
fn shared() -> Outcome<[i64; 2]> {
    fs::write("/proc/sys/vm/stat_refresh", "1")?;
    Ok([
        sys::meminfo("Shmem")? as i64,
        sys::meminfo("ShmemHugePages")? as i64,
    ])
}

/// See [`folios_before`].
pub fn folios_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let mut files = Vec::new();
    let before = shared()?;

    for (token, size) in (0..).zip(FOLIO_SIZES) {
        let file = retrieve(&session, token)?;
        let mut expected = sys::pattern(token, size);
        expected[size - 3..].copy_from_slice(b"END");
        if token == 0 {
            expected[4 << 20..][..3 * PAGE].fill(0);
        }
        ensure_eq!(file.metadata()?.len(), size as u64);
        ensure!(
            sys::content(&file)? == expected,
            "token {token} came back with other content"
        );
        files.push((file, expected));
    }
    let file = retrieve(&session, 100)?;
    let mut expected = vec![0; 16 << 20];
    expected[7 << 20..][..5].copy_from_slice(b"alone");
    ensure!(
        sys::content(&file)? == expected,
        "the sparse file came back with other content"
    );
    let note = retrieve(&session, HUGE_NOTE)?;
    let mut huge = [0; 8];
    note.read_exact_at(&mut huge, 0)?;
    let huge = i64::from_le_bytes(huge);
    session.finish()?;

    // All is counted as what it is.
    let mut all = 0;
    for file in files.iter().map(|(file, _)| file).chain([&file, &note]) {
        all += file.metadata()?.blocks() as i64 / 2;
    }
    ensure_eq!(shared()?, [before[0] + all, before[1] + huge]);
    drop((file, note));

    // Large folios can be mapped, written, split and freed.
    for (file, mut expected) in files {
        sys::poke(&file, 12345, 0x77)?;
        expected[12345] = 0x77;
        let half = expected.len() / 2 + 5;
        file.set_len(half as u64)?;
        ensure!(
            sys::content(&file)? == expected[..half],
            "the content changed when the file shrank"
        );
        file.set_len(0)?;
        ensure_eq!(file.metadata()?.blocks(), 0);
    }
    ensure_eq!(shared()?, before);
    Ok(())
}

/// Pages that a guest touches one after the other while the machine reboots.
const LIVE_PAGES: usize = 1 << 15;

/// A guest that does not stop: it goes through its memory page by page, and notes in the first
/// one how far it has come.
pub fn live_before(stage: &mut Stage) -> Outcome {
    start_guest(stage, 1)
}

/// As above when every other page is a hole that the guest fills on its way.
pub fn live_holes_before(stage: &mut Stage) -> Outcome {
    start_guest(stage, 2)
}

fn start_guest(stage: &mut Stage, step: usize) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd("live")?;

    memory.set_len((LIVE_PAGES * PAGE) as u64)?;
    for page in (0..LIVE_PAGES).step_by(step) {
        sys::write_at(&memory, (page * PAGE) as u64, &[1])?;
    }
    session.preserve(&memory, 1)?;
    stage.keep(session);

    // SAFETY: This process has one thread.
    if let ForkResult::Child = unsafe { fork()? } {
        let mut guest = sys::SharedWords::of(&memory, LIVE_PAGES * PAGE)?;
        for page in 1..LIVE_PAGES {
            guest.write(page * PAGE, marker(page));
            guest.write(0, page as u64);
            if page % 8 == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        wait_forever();
    }
    // Let it get going.
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

fn marker(page: usize) -> u64 {
    (page as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// See [`live_before`].
pub fn live_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;
    let word = |page: usize| -> Outcome<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    };

    let last = word(0)? as usize;
    stage.note(format!("caught at page {last} of {LIVE_PAGES}"));
    ensure!(last > 1);
    for page in 1..=last {
        ensure!(
            word(page)? == marker(page),
            "page {page} is lost, while the first page knows of {last}"
        );
    }
    session.finish()?;
    Ok(())
}

/// Threads that change a memfd in every way while it is preserved and released over and over.
pub fn raced(stage: &mut Stage) -> Outcome {
    const SIZE: u64 = 64 * PAGE as u64;

    let device = Device::open()?;
    let memory = sys::memfd("raced")?;
    memory.set_len(SIZE)?;
    let deadline = Instant::now() + Duration::from_secs(4);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let memory = &memory;

    let changer = |seed: u64| -> Outcome {
        let mut round = seed;
        while Instant::now() < deadline {
            round = round
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (round >> 33) % (SIZE - 8);
            let result = match round >> 60 {
                0 => memory.set_len(at),
                1 => memory.set_len(SIZE),
                2 => memory.set_len(4 * SIZE),
                3..6 => fallocate(memory, punch, at as i64, 4 * PAGE as i64).map_err(Into::into),
                6..9 => fallocate(memory, FallocateFlags::empty(), at as i64, 3 * PAGE as i64)
                    .map_err(Into::into),
                _ => memory.write_all_at(&round.to_ne_bytes(), at),
            };
            if let Err(err) = result {
                ensure_errno!(Err::<(), _>(err), EPERM);
            }
        }
        Ok(())
    };
    let preserver = || -> Outcome<usize> {
        let mut rounds = 0;
        while Instant::now() < deadline {
            let session = device.create_session(stage.name)?;
            session.preserve(memory, 1)?;
            // Its size is settled now, and what is written stays.
            let size = memory.metadata()?.len();
            if size > 8 {
                sys::write_at(memory, size - 8, b"SETTLED!")?;
            }
            std::thread::yield_now();
            ensure_eq!(memory.metadata()?.len(), size);
            rounds += 1;
        }
        Ok(rounds)
    };
    let changer = &changer;
    let rounds = std::thread::scope(|scope| {
        let changers: Vec<_> = (1..4).map(|i| scope.spawn(move || changer(i))).collect();
        let rounds = preserver();
        for changer in changers {
            changer
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))?;
        }
        rounds
    })?;
    stage.note(format!("{rounds} rounds"));
    memory.set_len(0)?;
    ensure_eq!(memory.metadata()?.blocks(), 0);
    Ok(())
}

/// How many pages [`fragmented_before`] has.
const FRAGMENTED: usize = 2048;

/// How many runs of pages there are in memory.
fn runs(frames: &[u64]) -> usize {
    let mut frames = frames.to_vec();
    frames.sort_unstable();
    frames.chunk_by(|one, next| one + 1 == *next).count()
}

/// How many pages are elsewhere in memory now.
fn moved(before: &[u64], after: &[u64]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(was, is)| was != is)
        .count()
}

/// How many pages are written when the file is preserved already.
const LATE: usize = 8192;

/// Pages that are written late come from where they can stay: the kexec need not move them.
pub fn late_in_place_before(stage: &mut Stage) -> Outcome {
    match reboot::load_without_handover() {
        Ok(()) => {}
        Err(Errno::ENOSYS) => return Err(Failure::skip("no kexec_load")),
        Err(errno) => return Err(errno.into()),
    }
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd("late")?;
    memory.set_len((LATE * PAGE) as u64)?;
    session.preserve(&memory, 1)?;

    sys::write_at(&memory, 0, &sys::pattern(1, LATE * PAGE))?;
    let written = sys::frames(&memory, LATE)?;
    ensure_eq!(written.len(), LATE);
    // It comes as far as having frozen all.
    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    ensure_eq!(moved(&written, &sys::frames(&memory, LATE)?), 0);

    reboot::unload_without_handover()?;
    stage.keep(session);
    Ok(())
}

/// See [`late_in_place_before`].
pub fn late_in_place_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;

    ensure!(sys::content(&file)? == sys::pattern(1, LATE * PAGE));
    session.finish()?;
    Ok(())
}

/// A file that was given up takes its pages from anywhere again: some have to be moved when it is
/// preserved once more, as with a file that never was.
pub fn given_up(stage: &mut Stage) -> Outcome {
    const CHUNK: usize = 4096;

    let device = Device::open()?;
    let moved_by_preserving = |memory: &File| -> Outcome<usize> {
        sys::write_at(memory, 0, &sys::pattern(1, LATE * PAGE))?;
        let written = sys::frames(memory, LATE)?;
        let session = device.create_session("once more")?;
        session.preserve(memory, 1)?;
        Ok(moved(&written, &sys::frames(memory, LATE)?))
    };
    let memory = sys::memfd("given up")?;
    let session = device.create_session(stage.name)?;
    session.preserve(&memory, 1)?;
    drop(session);

    // KHO's areas are not used before they are half of what is free. This is not from there.
    let session = device.create_session(stage.name)?;
    let ballast = sys::memfd("ballast")?;
    ballast.set_len(sys::meminfo("MemTotal")? << 10)?;
    session.preserve(&ballast, 1)?;
    let mut at = 0;
    while sys::meminfo("MemFree")? > 2 * sys::meminfo("CmaFree")? {
        sys::write_at(&ballast, at, &sys::pattern(2, CHUNK * PAGE))?;
        at += (CHUNK * PAGE) as u64;
    }

    let new = moved_by_preserving(&sys::memfd("new")?)?;
    let given_up = moved_by_preserving(&memory)?;
    stage.note(format!("{new} pages moved, and {given_up}"));
    ensure!(new > 0, "nothing is in KHO's areas");
    ensure!(given_up > 0, "it still takes no movable memory");
    Ok(())
}

/// What lies apart in memory is moved together while somebody writes to it; what is in use by a
/// device, or by a pipe as here, is left where it is.
pub fn fragmented_before(stage: &mut Stage) -> Outcome {
    const HELD: usize = 700;

    let session = Device::open()?.create_session(stage.name)?;
    let (memory, decoy) = (sys::memfd("fragmented")?, sys::memfd("decoy")?);
    for (at, page) in (0..)
        .step_by(PAGE)
        .zip(sys::pattern(1, FRAGMENTED * PAGE).chunks(PAGE))
    {
        sys::write_at(&memory, at, page)?;
        sys::write_at(&decoy, at, page)?;
    }
    let before = sys::frames(&memory, FRAGMENTED)?;
    ensure_eq!(before.len(), FRAGMENTED);
    ensure!(
        runs(&before) > FRAGMENTED / 2,
        "only {} runs",
        runs(&before)
    );

    let (reader, writer) = pipe()?;
    sys::splice_page(
        &sys::SharedWords::of(&memory, FRAGMENTED * PAGE)?,
        HELD * PAGE,
        &writer,
    )?;

    // Each page has the number of the round in which it was last written.
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let busy = scope.spawn(|| -> Outcome<Vec<u64>> {
            let mut words = sys::SharedWords::of(&memory, FRAGMENTED * PAGE)?;
            let mut written = vec![0; FRAGMENTED];
            for round in 1_u64.. {
                for (page, last) in written.iter_mut().enumerate() {
                    words.write(page * PAGE, round);
                    *last = round;
                    if done.load(Ordering::Relaxed) {
                        return Ok(written);
                    }
                }
            }
            Ok(written)
        });
        let result = session.preserve(&memory, 1);
        done.store(true, Ordering::Relaxed);
        let written = busy
            .join()
            .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))?;
        result?;
        Ok::<_, Failure>(written)
    })?;

    let after = sys::frames(&memory, FRAGMENTED)?;
    stage.note(format!("{} runs, then {}", runs(&before), runs(&after)));
    ensure_eq!(after.len(), FRAGMENTED);
    ensure!(runs(&after) < 40);
    ensure_eq!(after[HELD], before[HELD]);

    let mut expected = sys::pattern(1, FRAGMENTED * PAGE);
    for (page, round) in expected.chunks_mut(PAGE).zip(written) {
        if round != 0 {
            page[..8].copy_from_slice(&round.to_ne_bytes());
        }
    }
    ensure!(sys::content(&memory)? == expected, "it has other content");
    // The pipe and the file still have the same page.
    sys::write_at(&memory, (HELD * PAGE) as u64, &0_u64.to_ne_bytes())?;
    let mut held = vec![0; PAGE];
    File::from(reader).read_exact(&mut held)?;
    expected[HELD * PAGE..][..8].fill(0);
    ensure!(
        held == expected[HELD * PAGE..][..PAGE],
        "the page in the pipe is another"
    );

    // What the next kernel is to find.
    for page in 0..FRAGMENTED {
        sys::write_at(&memory, (page * PAGE) as u64, &marker(page).to_ne_bytes())?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`fragmented_before`].
pub fn fragmented_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;
    let mut expected = sys::pattern(1, FRAGMENTED * PAGE);

    for (number, page) in expected.chunks_mut(PAGE).enumerate() {
        page[..8].copy_from_slice(&marker(number).to_ne_bytes());
    }
    ensure!(
        sys::content(&file)? == expected,
        "it came back with other content"
    );
    session.finish()?;
    Ok(())
}

/// Puts a swap area onto a RAM disk.
pub fn start_swapping() -> Outcome {
    start_swapping_on("/dev/ram0")
}

/// Puts a swap area onto a disk.
pub fn start_swapping_on(disk: &str) -> Outcome {
    let Ok(mut disk_file) = OpenOptions::new().write(true).open(disk) else {
        return Err(Failure::skip(format!("no {disk} to swap to")));
    };
    let pages = match disk_file.seek(SeekFrom::End(0)) {
        Ok(size) => u32::try_from(size / PAGE as u64).expect("a small disk"),
        Err(e) => return Err(e.into()),
    };
    let mut header = vec![0; PAGE];

    // Version, last page, number of bad pages.
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&(pages - 1).to_ne_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    disk_file.write_all_at(&header, 0)?;
    let path = std::ffi::CString::new(disk).expect("has no NUL");
    // SAFETY: The path ends with a NUL.
    Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) })?;
    Ok(())
}

/// Memory that has gone to swap.
pub fn swapped_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    start_swapping()?;

    for (token, size) in [(1, 4 << 20), (2, (1 << 20) + 5)] {
        let memory = sys::memfd_of("swapped", &sys::pattern(token, size))?;
        sys::page_out(&memory, size)?;
        let before = sys::extents(&memory)?;
        session.preserve(&memory, token)?;
        ensure_eq!(sys::extents(&memory)?, before);
        // What is preserved does not leave any more.
        sys::page_out(&memory, size)?;
        sys::write_at(&memory, 100, b"late")?;
    }
    let out = sys::vmstat("pswpout")?;
    ensure!(out > 0);
    stage.note(format!(
        "{} KiB went to swap, {} KiB of it are back",
        out * 4,
        sys::vmstat("pswpin")? * 4
    ));
    stage.keep(session);
    Ok(())
}

/// See [`swapped_before`].
pub fn swapped_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    start_swapping()?;

    for (token, size) in [(1, 4 << 20), (2, (1 << 20) + 5)] {
        let file = retrieve(&session, token)?;
        let mut expected = sys::pattern(token, size);
        expected[100..104].copy_from_slice(b"late");
        // It can leave for swap here as well.
        sys::page_out(&file, size)?;
        ensure!(
            sys::content(&file)? == expected,
            "token {token} came back with other content"
        );
    }
    let out = sys::vmstat("pswpout")?;
    ensure!(out > 0);
    stage.note(format!("{} KiB went to swap", out * 4));
    session.finish()?;
    Ok(())
}

/// Memfds that come back where the system, for a while, lets nobody have more memory.
pub fn overcommit_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, size) in OVERCOMMIT {
        session.preserve(
            &sys::memfd_of("overcommit", &sys::pattern(token, size))?,
            token,
        )?;
    }
    stage.keep(session);
    Ok(())
}

const OVERCOMMIT: [(u64, usize); 2] = [(1, 3 << 20), (2, 2000)];

/// See [`overcommit_before`].
pub fn overcommit_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for (token, size) in OVERCOMMIT {
        let refused = {
            let _limits = [
                sys::Sysctl::set("vm/overcommit_memory", "2")?,
                sys::Sysctl::set("vm/overcommit_ratio", "0")?,
            ];
            session.retrieve(token)
        };
        ensure_errno!(refused, ENOSPC);

        let file = retrieve(&session, token)?;
        ensure!(
            sys::content(&file)? == sys::pattern(token, size),
            "token {token} came back with other content"
        );
        // What was put on its account is what is there.
        let pages = size.div_ceil(PAGE) as u64;
        ensure_eq!(file.metadata()?.blocks(), pages * PAGE as u64 / 512);
    }
    session.finish()?;
    Ok(())
}

const LARGE: usize = 160 << 20;

/// A file of some size, as a guest's memory would be.
pub fn large_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let mut memory = sys::memfd("large")?;

    for chunk in 0..LARGE as u64 >> 20 {
        memory.write_all(&sys::pattern(chunk, 1 << 20))?;
    }
    let start = Instant::now();
    session.preserve(&memory, 1)?;
    stage.note(format!(
        "{} MiB preserved in {:.3} s",
        LARGE >> 20,
        start.elapsed().as_secs_f64()
    ));
    stage.keep(session);
    Ok(())
}

/// See [`large_before`].
pub fn large_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let start = Instant::now();
    let mut file = retrieve(&session, 1)?;

    stage.note(format!(
        "{} MiB retrieved in {:.3} s",
        LARGE >> 20,
        start.elapsed().as_secs_f64()
    ));
    session.finish()?;
    drop(session);
    file.rewind()?;
    let mut bytes = vec![0; 1 << 20];
    for chunk in 0..LARGE as u64 >> 20 {
        file.read_exact(&mut bytes)?;
        ensure!(
            bytes == sys::pattern(chunk, 1 << 20),
            "MiB {chunk} is not what it was"
        );
    }
    // The memory is the new kernel's to give back.
    let before = sys::free_memory()?;
    drop(file);
    std::thread::sleep(Duration::from_millis(500));
    let freed = sys::free_memory()?.saturating_sub(before);
    ensure!(
        freed > (LARGE as u64 >> 10) * 9 / 10,
        "{freed} KiB freed of {}",
        LARGE >> 10
    );
    Ok(())
}

/// What nobody retrieves is freed when the session is finished.
pub fn discarded_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let before = sys::free_memory()?;

    session.finish()?;
    std::thread::sleep(Duration::from_millis(500));
    let freed = sys::free_memory()?.saturating_sub(before);
    ensure!(
        freed > (LARGE as u64 >> 10) * 9 / 10,
        "{freed} KiB freed of {}",
        LARGE >> 10
    );
    Ok(())
}
