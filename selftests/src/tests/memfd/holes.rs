// SPDX-License-Identifier: GPL-2.0

//! Memfds with holes, and pages that were allocated and never written.

use super::retrieve;
use crate::{
    harness::{
        ensure,
        ensure_eq,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        PAGE, //
    }, //
};
use liveupdate::Device;
use nix::fcntl::{
    fallocate,
    FallocateFlags, //
};
use std::{
    fs::{
        self,
        File, //
    },
    io::{
        Seek,
        SeekFrom, //
    },
    os::unix::fs::{
        FileExt,
        MetadataExt, //
    }, //
};

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
