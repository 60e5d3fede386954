// SPDX-License-Identifier: GPL-2.0

//! Memfds and the memory of the system: swap, overcommit, large files and their release.

use super::{
    retrieve,
    start_swapping, //
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
        PAGE, //
    }, //
};
use liveupdate::Device;
use std::{
    io::{
        Read,
        Seek,
        Write, //
    },
    os::unix::fs::MetadataExt,
    time::{
        Duration,
        Instant, //
    }, //
};

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
