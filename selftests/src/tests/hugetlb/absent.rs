// SPDX-License-Identifier: GPL-2.0

//! Memfds of huge pages that come to a kernel that was built without them.

use super::{
    log_has,
    repeated,
    Pool, //
};
use crate::{
    harness::{
        ensure,
        ensure_errno,
        Outcome,
        Stage, //
    },
    sys, //
};
use liveupdate::{
    cmdline::CommandLine,
    Device, //
};
use std::fs;

/// Whether they are absent, as they have to be where the next kernel is another one.
fn are_absent() -> Outcome<bool> {
    let absent = !fs::read_to_string("/proc/filesystems")?.contains("hugetlbfs");

    ensure!(absent == CommandLine::read()?.get("luo.kernels").is_some());
    Ok(absent)
}

/// Nobody can retrieve such a file, and it is still there when somebody has tried.
pub fn between(stage: &mut Stage) -> Outcome {
    if !are_absent()? {
        return repeated::unclaimed_between(stage);
    }
    let session = Device::open()?.retrieve_session(stage.name)?;

    ensure_errno!(session.retrieve(1), ENODEV);
    log_has("hugetlb_luo: this kernel has no huge pages of 2048 KiB")?;
    ensure_errno!(session.retrieve(1), ENODEV);
    // What is kept is not given to anybody.
    sys::write_to_half_of_memory()?;
    stage.keep(session);
    stage.next_boot("hugepages=7");
    Ok(())
}

/// It can be given up: its pages are free then.
pub fn discarded(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let before = sys::free_memory()?;

    session.finish()?;
    drop(session);
    if !are_absent()? {
        return Pool::small().expect(8, 8, 0, 0);
    }
    // Those of five huge pages.
    let freed = sys::free_memory()?.saturating_sub(before);
    ensure!(freed > 9 << 10, "{freed} KiB were freed");
    Ok(())
}
