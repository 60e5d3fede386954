// SPDX-License-Identifier: GPL-2.0

//! Huge pages of other sizes: files of 1 GiB pages, and another default.

use super::{
    check,
    fill,
    memfd_of_holes,
    Pool,
    HUGE, //
};
use crate::{
    harness::{
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
use nix::sys::memfd::MFdFlags;
use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    sync::atomic::Ordering, //
};

/// Size of the larger huge pages.
const GIGANTIC: usize = 1 << 30;
/// Every so many bytes a word is written.
const STEP: usize = 1 << 16;
/// How many pages the file has, of which the second is there.
const PAGES: usize = 2;

/// A file of 1 GiB pages.
pub fn before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB | MFdFlags::MFD_ALLOW_SEALING;
    let file = sys::memfd_with("gigantic", flags)?;

    Pool::large().expect(2, 2, 0, 0)?;
    file.set_len((PAGES * GIGANTIC) as u64)?;
    let mut memory = SharedWords::unreserved(&file, PAGES * GIGANTIC)?;
    for at in (GIGANTIC..PAGES * GIGANTIC).step_by(STEP) {
        memory.write(at, at as u64);
    }
    Pool::large().expect(2, 1, 0, 0)?;
    session.preserve(&file, 1)?;
    stage.keep(session);
    Ok(())
}

/// See [`before`].
pub fn after(stage: &mut Stage) -> Outcome {
    let pool = Pool::large();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(2, 1, 0, 0)?;
    let file: File = session.retrieve(1)?.into();
    pool.expect(2, 1, 0, 0)?;
    ensure_eq!(file.metadata()?.len(), (PAGES * GIGANTIC) as u64);
    ensure_eq!(file.metadata()?.blocks(), GIGANTIC as u64 / 512);
    let memory = SharedWords::unreserved(&file, PAGES * GIGANTIC)?;
    for at in (GIGANTIC..PAGES * GIGANTIC).step_by(STEP) {
        ensure_eq!(memory.word(at).load(Ordering::Relaxed), at as u64);
    }
    session.finish()?;
    drop((session, memory, file));
    pool.expect(2, 2, 0, 0)
}

/// A file that is not retrieved goes back to the pool.
pub fn discarded_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    session.finish()?;
    Pool::large().expect(2, 2, 0, 0)
}

/// The next kernel has no pages of that size, and says so. The file waits.
pub fn missing_before(stage: &mut Stage) -> Outcome {
    stage.next_boot("clearcpuid=pdpe1gb");
    before(stage)
}

/// See [`missing_before`].
pub fn missing_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    ensure_errno!(session.retrieve(1), ENODEV);
    super::log_has("hugetlb_luo: this kernel has no huge pages of 1048576 KiB")?;
    // It is still there, until it is given up.
    ensure_errno!(session.retrieve(1), ENODEV);
    session.finish()?;
    Ok(())
}

/// It goes to a third kernel, which has such pages.
pub fn crossing_between(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    ensure_errno!(session.retrieve(1), ENODEV);
    stage.keep(session);
    Ok(())
}

/// A file of pages that are the default here, and not in the next kernel.
pub fn default_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let file = memfd_of_holes("small", 4)?;

    Pool::small().resize(4)?;
    fill(&mut SharedWords::unreserved(&file, 4 * HUGE)?, 1, &[1, 2]);
    session.preserve(&file, 1)?;
    stage.keep(session);
    stage.next_boot("default_hugepagesz=1G");
    Ok(())
}

/// See [`default_before`].
pub fn default_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    ensure_eq!(sys::meminfo("Hugepagesize")?, 1 << 20);
    let file: File = session.retrieve(1)?.into();
    Pool::small().expect(2, 0, 0, 2)?;
    check(&file, 1, &[1, 2])?;
    Ok(session.finish()?)
}
