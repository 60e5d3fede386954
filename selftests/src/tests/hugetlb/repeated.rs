// SPDX-License-Identifier: GPL-2.0

//! Memfds of huge pages that go through two kexecs.

use super::{
    check,
    fill,
    memfd_of_holes,
    Pool,
    HUGE, //
};
use crate::{
    harness::{
        Outcome,
        Stage, //
    },
    sys::SharedWords, //
};
use liveupdate::Device;
use std::fs::File;

/// A file with a reservation, and one without.
pub fn before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let (one, other) = (memfd_of_holes("one", 3)?, memfd_of_holes("other", 6)?);

    Pool::small().resize(8)?;
    fill(&mut SharedWords::of(&one, 3 * HUGE)?, 1, &[0, 2]);
    fill(
        &mut SharedWords::unreserved(&other, 6 * HUGE)?,
        2,
        &[3, 4, 5],
    );
    session.preserve(&one, 1)?;
    session.preserve(&other, 2)?;
    stage.keep(session);
    stage.next_boot("hugepages=8");
    Ok(())
}

/// Nobody asks for the files: the kernel hands them over again.
pub fn unclaimed_between(stage: &mut Stage) -> Outcome {
    stage.next_boot("hugepages=7");
    Pool::small().expect(8, 3, 0, 0)
}

/// One of them is retrieved, written to, and handed over again as the session is not finished.
pub fn retrieved_between(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    let one: File = session.retrieve(1)?.into();
    pool.expect(8, 3, 1, 0)?;
    check(&one, 1, &[0, 2])?;
    fill(&mut SharedWords::of(&one, 3 * HUGE)?, 1, &[0]);
    stage.keep(session);
    stage.next_boot("hugepages=7");
    Ok(())
}

/// In the third kernel.
pub fn after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(7, 2, 0, 0)?;
    let one: File = session.retrieve(1)?.into();
    let other: File = session.retrieve(2)?.into();
    pool.expect(7, 2, 1, 0)?;
    check(&one, 1, &[0, 2])?;
    check(&other, 2, &[3, 4, 5])?;
    session.finish()?;
    drop(session);
    drop((one, other));
    pool.expect(7, 7, 0, 0)
}
