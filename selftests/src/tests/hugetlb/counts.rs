// SPDX-License-Identifier: GPL-2.0

//! What the pools of huge pages count: while a file is preserved, in the next kernel before and after
//! it is retrieved, and when it is closed.

use super::{
    check,
    fill,
    log_has,
    memfd_of_holes,
    Pool,
    HUGE, //
};
use crate::{
    harness::{
        ensure,
        ensure_errno,
        Failure,
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
        FallocateFlags, //
    },
    mount::{
        mount,
        MsFlags, //
    },
    sys::mman::MapFlags, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    path::Path, //
};

/// A file of four pages, all reserved, of which the first and the third are there.
fn half_filled(seed: u64) -> Outcome<File> {
    let file = memfd_of_holes("half", 4)?;

    fill(&mut SharedWords::of(&file, 4 * HUGE)?, seed, &[0, 2]);
    Ok(file)
}

/// A file that is preserved keeps its pages and its size, and is as before when it is not any more.
pub fn frozen(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.create_session(stage.name)?;

    pool.resize(8)?;
    pool.expect(8, 8, 0, 0)?;
    let file = half_filled(1)?;
    pool.expect(8, 6, 2, 0)?;
    session.preserve(&file, 1)?;
    pool.expect(8, 6, 2, 0)?;
    ensure_errno!(session.preserve(&file, 2), EEXIST | EBUSY);

    let huge = HUGE as i64;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    ensure_errno!(file.set_len(5 * HUGE as u64), EPERM);
    ensure_errno!(file.set_len(3 * HUGE as u64), EPERM);
    ensure_errno!(fallocate(&file, punch, 0, huge), EPERM);
    ensure_errno!(fallocate(&file, FallocateFlags::empty(), huge, huge), EPERM);
    let larger = SharedWords::mapped(&file, 5 * HUGE, MapFlags::empty());
    ensure!(matches!(larger, Err(Errno::EPERM)));
    check(&file, 1, &[0, 2])?;
    pool.expect(8, 6, 2, 0)?;

    // It can be written to, also into holes.
    let mut memory = SharedWords::of(&file, 4 * HUGE)?;
    fill(&mut memory, 1, &[1]);
    fill(&mut memory, 2, &[0]);
    drop(memory);
    pool.expect(8, 5, 1, 0)?;

    drop(session);
    fallocate(&file, punch, 0, huge)?;
    check(&file, 1, &[1, 2])?;
    pool.expect(8, 6, 1, 0)?;
    file.set_len(5 * HUGE as u64)?;
    file.set_len(0)?;
    drop(file);
    pool.expect(8, 8, 0, 0)
}

/// Files of a hugetlbfs that was mounted are not preserved, whether they have a name or not.
pub fn mounted(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let folder = Path::new("/huge");

    fs::create_dir_all(folder)?;
    mount(
        None::<&str>,
        folder,
        Some("hugetlbfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(folder.join("file"))?;
    ensure_errno!(session.preserve(&file, 1), ENOENT);
    fs::remove_file(folder.join("file"))?;
    ensure_errno!(session.preserve(&file, 1), ENOENT);
    session.preserve(&memfd_of_holes("unnamed", 1)?, 1)?;
    Ok(())
}

/// The file is handed over with its reservation.
pub fn before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    Pool::small().resize(8)?;
    session.preserve(&half_filled(3)?, 1)?;
    stage.keep(session);
    Ok(())
}

/// The same, and the pool of the next kernel has as many pages.
pub fn sized_before(stage: &mut Stage) -> Outcome {
    stage.next_boot("hugepages=8");
    before(stage)
}

/// What is handed over is taken from the pool.
pub fn sized_after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(8, 6, 0, 0)?;
    let file: File = session.retrieve(1)?.into();
    pool.expect(8, 6, 2, 0)?;
    check(&file, 3, &[0, 2])?;
    session.finish()?;
    drop(session);
    pool.expect(8, 6, 2, 0)?;

    // The other half comes from what was reserved.
    fill(&mut SharedWords::of(&file, 4 * HUGE)?, 3, &[1, 3]);
    pool.expect(8, 4, 0, 0)?;
    check(&file, 3, &[0, 1, 2, 3])?;
    file.set_len(HUGE as u64)?;
    pool.expect(8, 7, 0, 0)?;
    drop(file);
    pool.expect(8, 8, 0, 0)
}

/// A file that is not retrieved goes back to the pool.
pub fn discarded_after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(8, 6, 0, 0)?;
    session.finish()?;
    pool.expect(8, 8, 0, 0)?;
    // All of them are good.
    let file = memfd_of_holes("all", 8)?;
    let all: Vec<_> = (0..8).collect();
    fill(&mut SharedWords::of(&file, 8 * HUGE)?, 4, &all);
    check(&file, 4, &all)
}

/// The pool of the next kernel is empty, and so has nothing that could be reserved.
pub fn exhausted_after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(2, 0, 0, 2)?;
    ensure_errno!(session.retrieve(1), ENOMEM);
    log_has("hugetlb_luo: the pool has no 1 huge pages for a reservation")?;
    pool.expect(2, 0, 0, 2)?;
    // Room for one of the two.
    pool.overcommit(3)?;
    ensure_errno!(session.retrieve(1), ENOMEM);
    pool.expect(2, 0, 0, 2)?;
    pool.overcommit(0)?;

    // Later there is one. Pages that were beyond its size are counted as its own first.
    pool.resize(3)?;
    ensure_errno!(session.retrieve(1), ENOMEM);
    pool.expect(3, 1, 0, 0)?;
    pool.resize(4)?;
    let file: File = session.retrieve(1)?.into();
    pool.expect(4, 2, 2, 0)?;
    check(&file, 3, &[0, 2])?;
    session.finish()?;
    drop(session);
    drop(file);
    pool.expect(4, 4, 0, 0)
}

/// Nothing is reserved, and the pool of the next kernel is empty: the pages are beyond its size, and
/// go to the page allocator.
pub fn surplus_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let file = memfd_of_holes("surplus", 4)?;

    Pool::small().resize(8)?;
    fill(&mut SharedWords::unreserved(&file, 4 * HUGE)?, 5, &[1, 3]);
    session.preserve(&file, 1)?;
    stage.keep(session);
    Ok(())
}

/// See [`surplus_before`].
pub fn surplus_after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(2, 0, 0, 2)?;
    let file: File = session.retrieve(1)?.into();
    pool.expect(2, 0, 0, 2)?;
    check(&file, 5, &[1, 3])?;
    session.finish()?;
    drop(session);
    pool.expect(2, 0, 0, 2)?;
    file.set_len(2 * HUGE as u64)?;
    pool.expect(1, 0, 0, 1)?;
    let before = sys::free_memory()?;
    drop(file);
    pool.expect(0, 0, 0, 0)?;
    let freed = sys::free_memory()? as i64 - before as i64;
    match freed >= 2000 {
        true => Ok(()),
        false => Err(Failure::here(format_args!("{freed} KiB were freed"))),
    }
}
