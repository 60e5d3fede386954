// SPDX-License-Identifier: GPL-2.0

//! Memfds of huge pages where there are limits, nodes of memory, and others who use the pages.

use super::{
    check,
    fill,
    log_has,
    memfd_of_holes,
    Pool,
    HUGE, //
};
use crate::{
    agent::Notes,
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        SharedWords,
        PAGE, //
    },
    tests::{
        limits::Group,
        subsystem::next_kernel_is_loaded, //
    }, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    libc,
    mount::{
        mount,
        MsFlags, //
    },
    unistd::pipe, //
};
use std::{
    fs::File,
    sync::atomic::Ordering,
    thread,
    time::Duration, //
};

/// Three pages, one of which is reserved only.
pub fn charged_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let file = memfd_of_holes("charged", 3)?;

    Pool::small().resize(4)?;
    fill(&mut SharedWords::of(&file, 3 * HUGE)?, 1, &[0, 1]);
    session.preserve(&file, 1)?;
    stage.keep(session);
    stage.next_boot("hugepages=4");
    Ok(())
}

/// The control group of the task that retrieves pays for them, and must be allowed to have so many.
pub fn charged_after(stage: &mut Stage) -> Outcome {
    const CURRENT: &str = "hugetlb.2MB.current";
    const RESERVED: &str = "hugetlb.2MB.rsvd.current";

    let pool = Pool::small();
    let group = Group::of("hugetlb", "agent")?;
    let session = Device::open()?.retrieve_session(stage.name)?;
    let expect = |used: u64, reserved: u64| -> Outcome {
        let pages = |name| -> Outcome<u64> { Ok(group.get(name)? / HUGE as u64) };
        ensure_eq!((pages(CURRENT)?, pages(RESERVED)?), (used, reserved));
        Ok(())
    };

    group.enter()?;
    group.set("hugetlb.2MB.max", HUGE as u64)?;
    ensure_errno!(session.retrieve(1), ENOSPC);
    log_has("hugetlb_luo: the control group may not have 2 huge pages")?;
    expect(0, 0)?;
    group.set("hugetlb.2MB.max", 2 * HUGE as u64)?;
    group.set("hugetlb.2MB.rsvd.max", 2 * HUGE as u64)?;
    ensure_errno!(session.retrieve(1), ENOSPC);
    expect(0, 0)?;
    pool.expect(4, 2, 0, 0)?;

    group.set("hugetlb.2MB.rsvd.max", 3 * HUGE as u64)?;
    let file: File = session.retrieve(1)?.into();
    expect(2, 3)?;
    check(&file, 1, &[0, 1])?;
    session.finish()?;
    drop(session);
    pool.expect(4, 2, 1, 0)?;
    file.set_len(HUGE as u64)?;
    expect(1, 1)?;
    drop(file);
    expect(0, 0)?;
    pool.expect(4, 4, 0, 0)
}

/// Where control groups count huge pages as memory, that of the task that retrieves does, until they are
/// freed.
pub fn counted_after(stage: &mut Stage) -> Outcome {
    let group = Group::new("agent")?;
    mount(
        None::<&str>,
        "/cgroup",
        None::<&str>,
        MsFlags::MS_REMOUNT,
        Some("memory_hugetlb_accounting"),
    )?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    group.enter()?;
    let file: File = session.retrieve(1)?.into();
    ensure_eq!(group.bytes("hugetlb")?, 2 * HUGE as u64);
    session.finish()?;
    drop((session, file));
    ensure_eq!(group.bytes("hugetlb")?, 0);
    Pool::small().expect(4, 4, 0, 0)
}

/// Pages of two nodes: the node of a page is where its memory is.
pub fn nodes_before(stage: &mut Stage) -> Outcome {
    const BIND: i32 = 2;

    let session = Device::open()?.create_session(stage.name)?;
    let file = memfd_of_holes("nodes", 4)?;

    for node in [0, 1] {
        Pool::small_in_node(node).resize(3)?;
    }
    let mut memory = SharedWords::unreserved(&file, 4 * HUGE)?;
    memory.set_policy(BIND, 1 << 1)?;
    fill(&mut memory, 1, &[0, 2]);
    memory.set_policy(BIND, 1 << 0)?;
    fill(&mut memory, 1, &[3]);
    ensure_eq!((memory.node(0)?, memory.node(3 * HUGE)?), (1, 0));
    expect_nodes([(3, 2), (3, 1)])?;
    session.preserve(&file, 1)?;
    expect_nodes([(3, 2), (3, 1)])?;
    stage.keep(session);
    stage.next_boot("hugepages=0:3,1:4");
    Ok(())
}

fn expect_nodes(counts: [(u64, u64); 2]) -> Outcome {
    for (node, (total, free)) in (0..).zip(counts) {
        Pool::small_in_node(node).expect(total, free, 0, 0)?;
    }
    Ok(())
}

/// See [`nodes_before`].
pub fn nodes_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    expect_nodes([(3, 2), (4, 2)])?;
    let file: File = session.retrieve(1)?.into();
    let memory = SharedWords::unreserved(&file, 4 * HUGE)?;
    check(&file, 1, &[0, 2, 3])?;
    let first = memory.word(0).load(Ordering::Relaxed);
    let last = memory.word(3 * HUGE).load(Ordering::Relaxed);
    ensure!(first != last);
    ensure_eq!((memory.node(0)?, memory.node(3 * HUGE)?), (1, 0));
    expect_nodes([(3, 2), (4, 2)])?;
    session.finish()?;
    drop((session, memory, file));
    expect_nodes([(3, 3), (4, 4)])
}

/// Two files, of which the description of one is corrupted on the way.
pub fn corrupt_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    Pool::small().resize(4)?;
    for token in [1, 2] {
        let file = memfd_of_holes("corrupt", 2)?;
        fill(&mut SharedWords::unreserved(&file, 2 * HUGE)?, token, &[1]);
        session.preserve(&file, token)?;
    }
    stage.keep(session);
    Ok(())
}

/// One is there. The page of the other stays reserved, and counts as in use.
pub fn corrupt_after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(2, 0, 0, 2)?;
    ensure_errno!(session.retrieve(1), EUCLEAN);
    log_has("hugetlb_luo: memfd description: checksum does not match")?;
    let file: File = session.retrieve(2)?.into();
    check(&file, 2, &[1])?;
    session.finish()?;
    drop((session, file));
    pool.expect(1, 0, 0, 1)
}

/// Pages that are mapped, and written to until the processors stop; and one that others hold.
pub fn used_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let notes = Notes::new(&device, stage)?;
    let file = memfd_of_holes("used", 4)?;

    Pool::small().resize(4)?;
    let memory = SharedWords::unreserved(&file, 4 * HUGE)?;
    let (reader, writer) = pipe()?;
    memory.word(HUGE).store(1, Ordering::Relaxed);
    memory.advise(0, HUGE, libc::MADV_POPULATE_WRITE)?;
    session.preserve(&file, 1)?;
    // Before that, it might have been where it could not stay, and could not have been moved.
    sys::splice_page(&memory, HUGE, &writer)?;
    stage.keep(session);
    stage.keep(reader);
    stage.keep(writer);

    notes.child(|| {
        for count in 1_u64.. {
            memory.word(0).store(count, Ordering::Relaxed);
            memory.word(HUGE - PAGE).store(count, Ordering::Relaxed);
            notes.word(0).store(count, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    })?;
    Ok(())
}

/// See [`used_before`].
pub fn used_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let noted = Notes::read(&device, stage)?[0];
    let session = device.retrieve_session(stage.name)?;
    let file: File = session.retrieve(1)?.into();
    let memory = SharedWords::unreserved(&file, 4 * HUGE)?;
    let word = |at| memory.word(at).load(Ordering::Relaxed);

    ensure!(noted > 0);
    ensure!(
        word(0) == noted || word(0) == noted + 1,
        "{}, {noted} noted",
        word(0)
    );
    ensure!(word(HUGE - PAGE) == noted || word(HUGE - PAGE) == noted + 1);
    ensure_eq!(word(HUGE), 1);
    Ok(session.finish()?)
}

/// A page with a hardware error is not handed over, whenever it is found.
pub fn poisoned(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let (bad, late) = (memfd_of_holes("bad", 2)?, memfd_of_holes("late", 2)?);
    let poison = |memory: &SharedWords| -> Outcome {
        match memory.advise(HUGE, PAGE, libc::MADV_HWPOISON) {
            // One that is pinned cannot be taken away: it is poisoned where it is.
            Ok(()) | Err(Errno::EBUSY | Errno::EHWPOISON) => Ok(()),
            Err(err) => Err(err.into()),
        }
    };

    Pool::small().resize(4)?;
    let mut memory = SharedWords::unreserved(&bad, 2 * HUGE)?;
    fill(&mut memory, 1, &[0, 1]);
    poison(&memory)?;
    ensure_errno!(session.preserve(&bad, 1), EHWPOISON);

    let mut memory = SharedWords::unreserved(&late, 2 * HUGE)?;
    fill(&mut memory, 1, &[0, 1]);
    session.preserve(&late, 1)?;
    poison(&memory)?;
    next_kernel_is_loaded()?;
    ensure_eq!(kexec::jump().errno(), Errno::EHWPOISON);
    Ok(())
}
