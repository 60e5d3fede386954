// SPDX-License-Identifier: GPL-2.0

//! Pages that are being faulted in at the moment at which their file is frozen, on processors that are
//! busy: a fault that is held up in its middle, for however long, loses nothing. What a process has
//! written is in the next kernel.
//!
//! Each process here writes to one page of its file after the other, and then notes how far it is. So
//! what is noted was written before.

use crate::{
    agent::Notes,
    harness::{
        ensure,
        Failure,
        Outcome,
        Stage, //
    },
    init,
    sys::{
        self,
        SharedWords,
        PAGE, //
    },
    tests::{
        limits::Group,
        memfd::start_swapping, //
    }, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    libc,
    sched::{
        sched_setaffinity,
        CpuSet, //
    },
    unistd::Pid, //
};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
    thread,
    time::{
        Duration,
        Instant,
        SystemTime,
        UNIX_EPOCH, //
    }, //
};

/// How many processes write: on each of three processors so many that one who is held up stays so for
/// some milliseconds.
const WRITERS: usize = 93;
/// How many pages each of their files has: there is memory for all of them. They do not come that far.
const PAGES: usize = (12 << 20) / PAGE;
/// The note that has the writers begin, and the one that counts who is where it has to be by then.
const BEGIN: usize = 500;
const READY: usize = 501;

/// Keeps this process on one of the processors behind the first, which the reboot has for itself.
pub fn on_processor(number: usize) -> Outcome {
    let others = thread::available_parallelism()?.get().saturating_sub(1);
    let mut set = CpuSet::new();

    ensure!(others > 0, "there is one processor only");
    set.set(1 + number % others)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Keeps this process on the first processor.
pub fn on_first_processor() -> Outcome {
    let mut set = CpuSet::new();

    set.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Asks for turns of a tenth of a millisecond: one who is held up stays so for a while.
fn take_short_turns() -> Outcome {
    // Size and policy, flags, nice value and priority, runtime, deadline, period.
    let attributes = [48_u64, 0, 0, 100_000, 0, 0];

    // SAFETY: The kernel reads the 48 bytes.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0) })?;
    Ok(())
}

/// Somebody with a right of way, as the thread of a network driver may be.
fn have_right_of_way() -> Outcome {
    let priority = libc::sched_param { sched_priority: 50 };
    // SAFETY: The kernel reads the priority.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) })?;

    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let turn = Instant::now() + Duration::from_millis(3);
        while Instant::now() < turn {}
        thread::sleep(Duration::from_micros(300));
    }
    Ok(())
}

/// A process that needs as much memory, again and again.
fn need_memory(len: usize) -> Outcome {
    let mut memory = vec![0_u8; len];

    loop {
        for byte in memory.iter_mut().step_by(PAGE) {
            *byte = byte.wrapping_add(1);
        }
    }
}

/// Files for some writers.
fn files(device: &Device, stage: &mut Stage, count: usize) -> Outcome<Vec<File>> {
    let session = device.create_session(stage.name)?;
    let files = (0..count as u64)
        .map(|token| {
            let file = sys::memfd("written")?;
            file.set_len((PAGES * PAGE) as u64)?;
            sys::write_at(&file, 0, &[1])?;
            session.preserve(&file, token)?;
            Ok(file)
        })
        .collect::<Outcome<_>>();

    stage.keep(session);
    files
}

/// Starts a process that writes to each page of a file.
fn start_writer(
    notes: &Notes,
    number: usize,
    file: &File,
    pause: Duration,
    group: Option<&Group>,
) -> Outcome {
    notes.child(|| {
        if let Some(group) = group {
            group.enter()?;
        }
        on_processor(number)?;
        take_short_turns()?;
        let mapping = SharedWords::of(file, PAGES * PAGE)?;
        notes.word(READY).fetch_add(1, Ordering::Release);
        while notes.word(BEGIN).load(Ordering::Acquire) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        for page in 1..PAGES {
            mapping
                .word(page * PAGE)
                .store(page as u64, Ordering::Release);
            notes.word(number).store(page as u64, Ordering::Release);
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Lets the writers begin once all `count` processes are ready, and reboots soon.
///
/// One who comes later may find no processor to go to: arm64 takes them offline on the way down.
fn jump(notes: &Notes, count: usize) -> Outcome {
    let end = Instant::now() + Duration::from_secs(60);

    on_first_processor()?;
    while notes.word(READY).load(Ordering::Acquire) < count as u64 {
        ensure!(
            Instant::now() < end,
            "not all of {count} processes are ready"
        );
        thread::sleep(Duration::from_millis(10));
    }
    notes.word(BEGIN).store(1, Ordering::Release);
    // At another moment each time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let jitter = now.map_or(0, |now| now.subsec_nanos() % 50);
    thread::sleep(Duration::from_millis(300 + u64::from(jitter)));
    Err(Failure::here(kexec::jump()))
}

/// More processes than processors, which the kernel takes turns with wherever they are.
///
/// At bd974ac pages were lost in 5 of 6 runs.
pub fn preempted_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let files = files(&device, stage, WRITERS)?;

    init::load_next(stage)?;
    for (number, file) in files.iter().enumerate() {
        start_writer(&notes, number, file, Duration::ZERO, None)?;
    }
    jump(&notes, WRITERS)
}

/// The same, with processes that have the right of way on each of these processors.
///
/// At bd974ac pages were lost in 4 of 6 runs.
pub fn outranked_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let files = files(&device, stage, WRITERS)?;

    init::load_next(stage)?;
    for (number, file) in files.iter().enumerate() {
        start_writer(&notes, number, file, Duration::ZERO, None)?;
    }
    let others = 1..thread::available_parallelism()?.get();
    for number in others.clone() {
        notes.child(|| {
            on_processor(number)?;
            notes.word(READY).fetch_add(1, Ordering::Release);
            have_right_of_way()
        })?;
    }
    jump(&notes, WRITERS + others.len())
}

/// Processes in a memory cgroup that is full: each page has to be waited for.
///
/// At bd974ac pages were lost in 1 of 6 runs.
pub fn throttled_before(stage: &mut Stage) -> Outcome {
    const FEW: usize = 6;
    const NEEDY: usize = 2;

    start_swapping()?;
    let group = Group::new("full")?;
    group.set("memory.max", 64 << 20)?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let files = files(&device, stage, FEW)?;

    init::load_next(stage)?;
    for number in 0..NEEDY {
        notes.child(|| {
            group.enter()?;
            on_processor(number)?;
            notes.word(READY).fetch_add(1, Ordering::Release);
            need_memory(60 << 20)
        })?;
    }
    thread::sleep(Duration::from_millis(1500));
    for (number, file) in files.iter().enumerate() {
        start_writer(&notes, number, file, Duration::from_millis(1), Some(&group))?;
    }
    jump(&notes, FEW + NEEDY)
}

/// Nothing that was written is missing.
pub fn after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = Notes::read(&device, stage)?;
    let session = device.retrieve_session(stage.name)?;
    let (mut written, mut lost) = (0, Vec::new());

    for (number, &last) in notes.iter().enumerate().take(WRITERS) {
        let file = match session.retrieve(number as u64) {
            Ok(file) => File::from(file),
            Err(err) if err.errno() == Errno::ENOENT && number > 0 => break,
            Err(err) => return Err(err.into()),
        };
        for page in 1..=last {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, page * PAGE as u64)?;
            if u64::from_ne_bytes(word) != page {
                lost.push(format!("page {page} of file {number}"));
            }
        }
        written += last;
    }
    stage.note(format!("{written} pages were written"));
    ensure!(written > 0);
    ensure!(
        lost.is_empty(),
        "{} of {written} pages are lost, the first is {}",
        lost.len(),
        lost[0]
    );
    Ok(session.finish()?)
}
