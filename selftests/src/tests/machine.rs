// SPDX-License-Identifier: GPL-2.0

//! What real machines have: memory that is poisoned, comes later, goes, lies on several nodes, or is not
//! there in the next kernel; processors that come and go; crash kernels; a next kernel that is told
//! otherwise.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Part,
        Stage, //
    },
    init,
    sys::{
        self,
        SharedWords,
        PAGE, //
    },
    tests::{
        kexec::{
            three_after,
            three_before, //
        },
        reboot,
        sysfs, //
    }, //
};
use liveupdate::{
    kexec,
    Device,
    Incoming,
    Outgoing,
    Session, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        FallocateFlags, //
    },
};
use std::{
    fs::{
        self,
        File, //
    },
    io::Read,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::atomic::Ordering,
    thread, //
};

/// Reboots, if the kernel does not refuse that. If it does, it says why, and the test is over.
fn jump_if_it_may(stage: &mut Stage) -> Outcome {
    let refused = match init::load_next(stage) {
        Ok(()) => kexec::jump().to_string(),
        Err(Failure::Failed(why)) => why,
        Err(other) => return Err(other),
    };
    let reason = sysfs::show("refused")?;

    stage.note(format!("{refused}: {reason}"));
    ensure!(!reason.trim().is_empty(), "{refused}, and nobody knows why");
    Err(Failure::over())
}

/// A file of some MiB.
fn file_of(seed: u64, mib: usize) -> Outcome<File> {
    let file = sys::memfd("m")?;

    for part in 0..mib {
        let bytes = sys::pattern(seed + part as u64, 1 << 20);
        sys::write_at(&file, (part << 20) as u64, &bytes)?;
    }
    Ok(file)
}

/// Checks such a file.
fn check_file(file: &File, seed: u64, mib: usize) -> Outcome {
    let mut bytes = vec![0; 1 << 20];

    ensure_eq!(file.metadata()?.len(), (mib as u64) << 20);
    for part in 0..mib {
        file.read_exact_at(&mut bytes, (part << 20) as u64)?;
        ensure!(
            bytes == sys::pattern(seed + part as u64, 1 << 20),
            "MiB {part} is not what it was"
        );
    }
    Ok(())
}

/// The directories of the blocks of memory that can come and go.
fn memory_blocks() -> Outcome<Vec<PathBuf>> {
    let mut blocks = Vec::new();

    for entry in fs::read_dir("/sys/devices/system/memory")? {
        let path = entry?.path();
        if path.join("state").exists() {
            blocks.push(path);
        }
    }
    Ok(blocks)
}

/// The size of [`later_before`]'s file, in MiB: more than the machine began with.
const LATER: usize = 700;

/// Memory that was plugged in later, and that the next kernel is not told of: what is in it is moved
/// before it is too late, or the update is refused.
///
/// At bd974ac the next kernel died before it said a word, each time.
pub fn later_before(stage: &mut Stage) -> Outcome {
    let mut count = 0;
    for block in memory_blocks()? {
        let state = block.join("state");
        if fs::read_to_string(&state)?.trim() == "offline" {
            fs::write(&state, "online_kernel")?;
            count += 1;
        }
    }
    ensure!(count > 0, "no memory came later");

    let session = Device::open()?.create_session(stage.name)?;
    let file = file_of(1, LATER)?;
    match session.preserve(&file, 1) {
        Ok(()) => {}
        Err(err) => {
            stage.note(format!("{err}"));
            ensure!(
                matches!(err.errno(), Errno::ENOMEM | Errno::EADDRNOTAVAIL),
                "{err}"
            );
            check_file(&file, 1, LATER)?;
            return Err(Failure::over());
        }
    }
    jump_if_it_may(stage)
}

/// See [`later_before`].
pub fn later_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    check_file(&session.retrieve(1)?.into(), 1, LATER)?;
    Ok(session.finish()?)
}

/// How many sessions [`records_before`] leaves.
const RECORDS: usize = 1000;

/// Much to read when the next kernel knows little of its memory yet.
///
/// At bd974ac the page allocator warned, each time.
pub fn records_before(stage: &mut Stage) -> Outcome {
    sys::allow_fds(2 * RECORDS as u64)?;
    let device = Device::open()?;

    for number in 0..RECORDS {
        let session = device.create_session(&format!("records-{number}"))?;
        if number % 10 == 0 {
            session.preserve(&sys::memfd_of("m", &sys::pattern(number as u64, 3000))?, 1)?;
        }
        stage.keep(session);
    }
    Ok(())
}

/// See [`records_before`].
pub fn records_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for number in 0..RECORDS {
        let session = device.retrieve_session(&format!("records-{number}"))?;
        if number % 10 == 0 {
            let file = session.retrieve(1)?.into();
            ensure!(sys::content(&file)? == sys::pattern(number as u64, 3000));
        }
        session.finish()?;
    }
    Ok(())
}

/// How much [`movable`] preserves, in MiB.
const MOVABLE: usize = 600;

/// More memory than there is where it could stay: the caller is told so, nobody is killed for it.
///
/// At bd974ac the kernel killed, and said that the system is deadlocked on memory, each time. At
/// 7dc7e6f it had nothing left for itself when the caller was told, and killed now and then.
pub fn movable(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let file = file_of(1, MOVABLE)?;

    ensure_errno!(session.preserve(&file, 1), ENOMEM);
    for zone in ["DMA32", "Normal"] {
        let room = sys::zone_room(zone)?;
        stage.note(format!("{zone}: {room} pages above the low watermark"));
        ensure!(room > 0);
    }
    check_file(&file, 1, MOVABLE)?;
    file.set_len(1 << 20)?;
    session.preserve(&file, 1)?;
    Ok(())
}

/// In [`zones`], more than there is above 4 GiB, and how much is asked for at once, in bytes.
const ZONES: i64 = 5 << 29;
const ZONES_STEP: i64 = 4 << 20;
/// How far above its low watermark the zone is left there, in pages: below the high one.
const ZONES_ROOM: i64 = 10_000;

/// Pages are moved to another zone when theirs has no room, long before the page allocator goes there
/// by itself.
///
/// At 54251ba this was ENOMEM.
pub fn zones(stage: &mut Stage) -> Outcome {
    // Between the watermarks lies a tenth of the zone then.
    fs::write("/proc/sys/vm/watermark_scale_factor", "1000")?;
    let session = Device::open()?.create_session(stage.name)?;
    let file = sys::memfd("zones")?;
    let mut size = 0;
    while sys::zone_room("Normal")? > ZONES_ROOM {
        ensure!(size < ZONES, "the zone is not full with {size} bytes");
        fallocate(&file, FallocateFlags::empty(), size, ZONES_STEP)?;
        size += ZONES_STEP;
    }
    let (before, room) = (sys::vmstat("pgmigrate_success")?, sys::zone_room("Normal")?);

    session.preserve(&file, 1)?;
    let moved = sys::vmstat("pgmigrate_success")? - before;
    stage.note(format!(
        "{moved} pages were moved, Normal: {room} pages above the low watermark before"
    ));
    ensure!(moved > 0);
    // Else the page allocator goes to the other zone by itself.
    ensure!(room > 0, "{room}");
    Ok(())
}

/// KHO's areas as somebody wants them: live update works with them, or is off.
pub fn scratch_before(stage: &mut Stage) -> Outcome {
    if sysfs::show("enabled").is_err() || sysfs::show("enabled")? == "0\n" {
        ensure_errno!(Device::open(), ENOENT);
        stage.note("live update is off");
        return Ok(());
    }
    three_before(stage)
}

/// See [`scratch_before`].
pub fn scratch_after(stage: &mut Stage) -> Outcome {
    if sysfs::show("enabled").is_err() || sysfs::show("enabled")? == "0\n" {
        ensure_errno!(Device::open(), ENOENT);
        stage.note("live update is off");
        return Ok(());
    }
    three_after(stage)
}

/// How many pages [`nodes_before`] has.
const SPREAD: usize = 4096;

/// The node of each page of a mapping.
fn nodes(mapping: &SharedWords, pages: usize) -> Outcome<Vec<i32>> {
    (0..pages)
        .map(|page| Ok(mapping.node(page * PAGE)?))
        .collect()
}

/// Pages that lie on two nodes in turn, also when they are moved together.
pub fn nodes_before(stage: &mut Stage) -> Outcome {
    const MPOL_INTERLEAVE: i32 = 3;

    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd("spread")?;
    memory.set_len((SPREAD * PAGE) as u64)?;
    let mapping = SharedWords::of(&memory, SPREAD * PAGE)?;
    mapping.set_policy(MPOL_INTERLEAVE, 0b11)?;
    for page in 0..SPREAD {
        mapping
            .word(page * PAGE)
            .store(page as u64 + 1, Ordering::Relaxed);
    }
    let before = nodes(&mapping, SPREAD)?;
    ensure!(before.contains(&0) && before.contains(&1));
    session.preserve(&memory, 1)?;
    ensure!(
        nodes(&mapping, SPREAD)? == before,
        "pages changed their node"
    );
    let list: Vec<u8> = before.iter().map(|node| *node as u8).collect();
    session.preserve(&sys::memfd_of("nodes", &list)?, 2)?;
    stage.keep(session);
    Ok(())
}

fn check_spread(session: &Session<Incoming>) -> Outcome<(Vec<i32>, Vec<u8>)> {
    let file = File::from(session.retrieve(1)?);
    let before = sys::content(&session.retrieve(2)?.into())?;
    let mapping = SharedWords::of(&file, SPREAD * PAGE)?;

    for page in 0..SPREAD {
        let found = mapping.word(page * PAGE).load(Ordering::Relaxed);
        ensure_eq!(found, page as u64 + 1);
    }
    Ok((nodes(&mapping, SPREAD)?, before))
}

/// They are where they were.
pub fn nodes_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let (after, before) = check_spread(&session)?;

    ensure!(after
        .iter()
        .zip(&before)
        .all(|(is, was)| *is == i32::from(*was)));
    Ok(session.finish()?)
}

/// The next kernel does not know of nodes.
pub fn nodes_off_before(stage: &mut Stage) -> Outcome {
    stage.next_boot("numa=off");
    nodes_before(stage)
}

/// See [`nodes_off_before`].
pub fn nodes_off_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let (after, _) = check_spread(&session)?;

    ensure!(after.iter().all(|node| *node == 0));
    Ok(session.finish()?)
}

/// The kernel crashes with sessions there.
pub fn crash_before(stage: &mut Stage) -> Outcome {
    three_before(stage)?;
    init::load_for_crash(stage)?;
    fs::write("/proc/sys/kernel/sysrq", "1")?;
    fs::write("/proc/sysrq-trigger", "c")?;
    Err(Failure::here("it did not crash"))
}

/// The crash kernel has no live update, and can read the memory of the one that crashed.
pub fn crash_after(_: &mut Stage) -> Outcome {
    let mut dump = File::open("/proc/vmcore")?;
    let mut start = [0; 4096];

    dump.read_exact(&mut start)?;
    ensure_eq!(start[..4], *b"\x7fELF");
    let mut chunk = vec![0; 1 << 20];
    let mut read = 0;
    while read < 256 << 20 {
        match dump.read(&mut chunk)? {
            0 => break,
            len => read += len,
        }
    }
    ensure!(read > 64 << 20, "{read} bytes");
    ensure_errno!(Device::open(), ENOENT);
    Ok(())
}

/// A kexec that comes back: nothing is handed over, and all goes on.
pub fn comes_back(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd_of("m", &sys::pattern(1, 10_000))?;
    session.preserve(&memory, 1)?;

    for round in 0..2 {
        reboot::go_and_return()?;
        ensure_errno!(memory.set_len(0), EPERM);
        session.preserve(&sys::memfd_of("n", b"x")?, 10 + round)?;
        ensure_eq!(session.ask_name()?.to_string(), stage.name);
        drop(device.create_session("another")?);
    }
    ensure!(sys::content(&memory)? == sys::pattern(1, 10_000));
    drop(session);
    memory.set_len(0)?;
    Ok(())
}

/// Processors and memory that go and come, and a machine that sleeps, while files are preserved.
pub fn unplugged_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let processor = "/sys/devices/system/cpu/cpu1/online";

    fs::write(processor, "0")?;
    session.preserve(&file_of(1, 32)?, 1)?;
    fs::write(processor, "1")?;
    session.preserve(&file_of(2, 8)?, 2)?;

    // What is preserved does not go with its memory, nor is it moved.
    let (mut gone, mut kept) = (0, 0);
    for block in memory_blocks()? {
        match fs::write(block.join("state"), "offline") {
            Ok(()) => {
                gone += 1;
                fs::write(block.join("state"), "online")?;
            }
            Err(_) => kept += 1,
        }
    }
    stage.note(format!(
        "{gone} blocks of memory went and came, {kept} could not"
    ));
    ensure!(kept > 0);

    for (level, state) in [("freezer", "mem"), ("devices", "mem"), ("devices", "disk")] {
        fs::write("/sys/power/pm_test", level)?;
        fs::write("/sys/power/state", state)?;
    }
    fs::write("/sys/power/pm_test", "none")?;
    stage.keep(session);
    Ok(())
}

/// See [`unplugged_before`].
pub fn unplugged_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    check_file(&session.retrieve(1)?.into(), 1, 32)?;
    check_file(&session.retrieve(2)?.into(), 2, 8)?;
    Ok(session.finish()?)
}

/// What the next kernel is told, one after the other.
const NEXT: [&str; 9] = [
    "maxcpus=1",
    "nr_cpus=1",
    "acpi=off",
    "hugepages=16",
    "kernelcore=50%",
    "cma=64M",
    "swiotlb=16384",
    "transparent_hugepage=never nokaslr",
    "iommu=soft mitigations=off",
];

/// A kernel for each of [`NEXT`], and the first.
pub const TOLD: [Part; NEXT.len() + 1] = [told; NEXT.len() + 1];

fn told(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let file = match stage.number {
        1 => file_of(1, 8)?,
        _ => {
            let session = device.retrieve_session(stage.name)?;
            let file = session.retrieve(1)?.into();
            check_file(&file, 1, 8)?;
            session.finish()?;
            file
        }
    };

    if let Some(parameters) = NEXT.get(stage.number - 1) {
        let session = device.create_session(stage.name)?;
        session.preserve(&file, 1)?;
        stage.next_boot(*parameters);
        stage.keep(session);
    }
    Ok(())
}

/// A kernel without live update is between: what was left for it is out of reach, and no harm is done.
pub fn off_before(stage: &mut Stage) -> Outcome {
    stage.next_boot("liveupdate=off");
    three_before(stage)
}

/// The same with one that takes nothing over at all.
pub fn no_handover_before(stage: &mut Stage) -> Outcome {
    stage.next_boot("kho=off");
    three_before(stage)
}

/// See [`off_before`].
pub fn off_between(_: &mut Stage) -> Outcome {
    ensure_errno!(Device::open(), ENOENT);
    Ok(())
}

/// See [`off_before`].
pub fn off_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    let session: Session<Outgoing> = device.create_session(stage.name)?;
    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;
    Ok(())
}

/// With five levels of page tables, then four, then five.
pub fn levels_before(stage: &mut Stage) -> Outcome {
    if !has_five_levels()? {
        return Err(Failure::skip("no page tables of five levels"));
    }
    stage.next_boot("no5lvl");
    three_before(stage)
}

fn has_five_levels() -> Outcome<bool> {
    Ok(fs::read_to_string("/proc/cpuinfo")?.contains(" la57 "))
}

/// See [`levels_before`].
pub fn levels_between(_: &mut Stage) -> Outcome {
    // Nobody asks for the session here.
    ensure!(!has_five_levels()?);
    Ok(())
}

/// See [`levels_before`].
pub fn levels_after(stage: &mut Stage) -> Outcome {
    ensure!(has_five_levels()?);
    three_after(stage)
}

/// How many files [`early_before`] has, and of how many MiB.
const EARLY: (u64, usize) = (4, 256);

/// Much memory, for processes that want it as soon as there are any.
pub fn early_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for number in 0..EARLY.0 {
        let session = device.create_session(&format!("early-{number}"))?;
        session.preserve(&file_of(number * 1000, EARLY.1)?, 1)?;
        stage.keep(session);
    }
    Ok(())
}

/// Half of it is retrieved, half is freed, all at once.
pub fn early_after(_: &mut Stage) -> Outcome {
    let device = &Device::open()?;

    thread::scope(|scope| {
        let threads: Vec<_> = (0..EARLY.0)
            .map(|number| {
                scope.spawn(move || -> Outcome {
                    let session = device.retrieve_session(&format!("early-{number}"))?;
                    if number % 2 == 0 {
                        check_file(&session.retrieve(1)?.into(), number * 1000, EARLY.1)?;
                    }
                    Ok(session.finish()?)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))
        })
    })?;
    Ok(())
}
