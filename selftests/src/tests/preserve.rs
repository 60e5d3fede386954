// SPDX-License-Identifier: GPL-2.0

//! Files in a session of one kernel: which can be preserved, under which token, how often, and
//! what may be done to them meanwhile.

use crate::{
    agent::Agent,
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    init,
    sys::{
        self,
        Arena, //
    },
};
use liveupdate::{
    uapi::{
        self,
        Request, //
    },
    Device, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        open,
        FallocateFlags,
        OFlag,
        SealFlag, //
    },
    libc,
    sys::{
        epoll::{
            Epoll,
            EpollCreateFlags, //
        },
        eventfd::EventFd,
        inotify::{
            InitFlags,
            Inotify, //
        },
        memfd::MFdFlags,
        mman::ProtFlags,
        signal::SigSet,
        signalfd::SignalFd,
        socket::{
            socketpair,
            AddressFamily,
            SockFlag,
            SockType, //
        },
        stat::Mode,
        timerfd::{
            ClockId,
            TimerFd,
            TimerFlags, //
        },
    },
    unistd::{
        dup,
        pipe, //
    },
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        Seek,
        SeekFrom,
        Write, //
    },
    os::fd::{
        AsFd,
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    thread,
    time::Instant, //
};
use zerocopy::IntoBytes;

/// Descriptors that are none.
pub fn bad_descriptor(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for fd in [-1, i32::MIN, i32::MAX, 1000, sys::closed_fd()?] {
        ensure_errno!(sys::request(&session, sys::preserve_fd(fd, 1)), EBADF);
    }
    // A mere path is not an open file.
    let memory = sys::memfd_of("m", b"x")?;
    let path = open(
        sys::proc_path(&memory).as_str(),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    ensure_errno!(session.preserve(&path, 1), EBADF);

    session.preserve(&memory, 1)?;
    Ok(())
}

/// Files that nobody knows how to preserve leave their token to the next.
pub fn unsupported(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let other = device.create_session("unsupported-other")?;
    let mut files: Vec<(&str, OwnedFd)> = Vec::new();

    let (reader, writer) = pipe()?;
    files.push(("pipe", reader));
    files.push(("pipe", writer));
    files.push(("null", File::open("/dev/null")?.into()));
    files.push(("zero", File::open("/dev/zero")?.into()));
    files.push(("directory", File::open("/")?.into()));
    files.push(("proc", File::open("/proc/self/maps")?.into()));
    files.push(("sysfs", File::open("/sys/kernel/uevent_seqnum")?.into()));
    files.push(("session", other.into()));
    files.push(("device", device.into()));
    files.push(("epoll", Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.0));
    files.push(("eventfd", EventFd::new()?.into()));
    files.push(("inotify", Inotify::init(InitFlags::IN_CLOEXEC)?.into()));
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    files.push(("timerfd", dup(&timer)?));
    files.push(("signalfd", dup(&SignalFd::new(&SigSet::empty())?)?));
    let (socket, _) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    files.push(("socket", socket));
    // SAFETY: The system call takes flags only.
    let secret = Errno::result(unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) })?;
    // SAFETY: The kernel has just made this descriptor for us.
    let secret = unsafe { OwnedFd::from_raw_fd(secret as i32) };
    files.push(("secret memory", secret));

    for (token, (kind, file)) in (0..).zip(&files) {
        match session.preserve(file, token) {
            Err(err) if err.errno() == Errno::ENOENT => {}
            other => {
                return Err(Failure::here(format_args!(
                    "preserving a {kind}: {other:?}, should be ENOENT"
                )))
            }
        }
        session.preserve(&sys::memfd_of("m", b"x")?, token)?;
    }
    Ok(())
}

/// A token stands for one file of a session.
pub fn token_taken(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let first = sys::memfd_of("first", b"1")?;
    let second = sys::memfd_of("second", b"2")?;

    session.preserve(&first, 7)?;
    ensure_errno!(session.preserve(&second, 7), EEXIST);
    ensure_errno!(session.preserve(&first, 7), EEXIST);
    // The token is looked at first.
    ensure_errno!(sys::request(&session, sys::preserve_fd(-1, 7)), EEXIST);
    ensure_errno!(session.preserve(&File::open("/dev/null")?, 7), EEXIST);

    session.preserve(&second, 8)?;
    // Another session has tokens of its own.
    let other = device.create_session("token-other")?;
    other.preserve(&sys::memfd_of("third", b"3")?, 7)?;
    Ok(())
}

/// Any number will do as a token.
pub fn token_values(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let tokens = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32, 0xffff_ffff];

    for token in tokens {
        session.preserve(&sys::memfd_of("m", b"x")?, token)?;
    }
    for token in tokens {
        ensure_errno!(session.preserve(&sys::memfd_of("n", b"x")?, token), EEXIST);
    }
    Ok(())
}

/// A file is preserved once, by whichever way it is reached.
pub fn twice(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let other = device.create_session("twice-other")?;
    let memory = sys::memfd_of("m", b"content")?;
    let copy = dup(&memory)?;
    let again = File::open(sys::proc_path(&memory))?;

    session.preserve(&memory, 1)?;
    for file in [memory.as_fd(), copy.as_fd(), again.as_fd()] {
        ensure_errno!(session.preserve(&file, 2), EBUSY);
        ensure_errno!(other.preserve(&file, 1), EBUSY);
    }
    // The refused ones have left nothing behind.
    session.preserve(&sys::memfd_of("n", b"x")?, 2)?;
    other.preserve(&sys::memfd_of("o", b"x")?, 1)?;

    // Once the session is gone it may be preserved again, by another name even.
    drop(session);
    other.preserve(&again, 2)?;
    ensure_errno!(other.preserve(&memory, 3), EBUSY);
    drop(other);
    for _ in 0..100 {
        let session = device.create_session(stage.name)?;
        session.preserve(&memory, 1)?;
    }
    ensure_eq!(sys::content(&memory)?, b"content");
    Ok(())
}

/// A request that fails with its answer has not preserved anything.
pub fn answer_unwritable(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"content")?;
    let request = sys::preserve_fd(memory.as_raw_fd(), 1);

    for _ in 0..10 {
        let arena = Arena::with(1, 0, request.as_bytes())?;
        arena.protect(0, ProtFlags::PROT_READ)?;
        ensure_errno!(arena.request(&session, uapi::PreserveFd::COMMAND), EFAULT);
    }
    // Not frozen, the token free, the file free.
    memory.set_len(10000)?;
    device
        .create_session("unwritable-other")?
        .preserve(&memory, 1)?;
    session.preserve(&sys::memfd_of("n", b"x")?, 1)?;
    session.preserve(&memory, 2)?;
    Ok(())
}

/// A preserved memfd keeps its size and its pages, but not its content.
pub fn frozen(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let mut memory = sys::memfd_of("m", &sys::pattern(1, 10_000))?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;

    session.preserve(&memory, 1)?;
    ensure_errno!(memory.set_len(20_000), EPERM);
    ensure_errno!(memory.set_len(5_000), EPERM);
    ensure_errno!(memory.set_len(0), EPERM);
    memory.set_len(10_000)?;
    ensure_errno!(
        fallocate(&memory, FallocateFlags::empty(), 0, 20_000),
        EPERM
    );
    ensure_errno!(fallocate(&memory, punch, 0, 4096), EPERM);
    // Writing to what is there is fine, by write and by mapping.
    memory.rewind()?;
    memory.write_all(b"HEAD")?;
    sys::write_at(&memory, 9_996, b"TAIL")?;
    sys::poke(&memory, 5_000, 0xaa)?;
    // Beyond the end there is nothing.
    ensure_errno!(sys_write_at(&memory, 10_000), EPERM);
    ensure_errno!(sys_write_at(&memory, 1 << 40), EPERM);
    ensure_eq!(memory.metadata()?.len(), 10_000);

    let mut expected = sys::pattern(1, 10_000);
    expected[..4].copy_from_slice(b"HEAD");
    expected[9_996..].copy_from_slice(b"TAIL");
    expected[5_000] = 0xaa;
    ensure_eq!(sys::content(&memory)?, expected);

    // All of it is allowed again afterwards.
    drop(session);
    memory.set_len(20_000)?;
    fallocate(&memory, FallocateFlags::empty(), 0, 40_000)?;
    fallocate(&memory, punch, 0, 4096)?;
    sys_write_at(&memory, 50_000)?;
    ensure_eq!(memory.metadata()?.len(), 50_001);
    ensure_eq!(sys::content(&memory)?[4096..10_000], expected[4096..]);
    memory.set_len(0)?;
    ensure_eq!(memory.metadata()?.blocks_used(), 0);
    Ok(())
}

fn sys_write_at(file: &File, at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, b"x", at)
}

trait BlocksUsed {
    fn blocks_used(&self) -> u64;
}

impl BlocksUsed for fs::Metadata {
    fn blocks_used(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(self)
    }
}

/// Ten thousand files in one session, whose descriptors need not stay.
pub fn many(stage: &mut Stage) -> Outcome {
    const MANY: u64 = 10_000;

    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let start = Instant::now();
    for i in 0..MANY {
        // Tokens in no order.
        let token = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        session.preserve(&sys::memfd_of("m", &i.to_ne_bytes())?, token)?;
    }
    stage.note(format!(
        "{MANY} files preserved in {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    ensure_errno!(session.preserve(&sys::memfd_of("m", b"x")?, 0), EEXIST);

    let start = Instant::now();
    drop(session);
    stage.note(format!(
        "unpreserved in {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    device
        .create_session(stage.name)?
        .preserve(&sys::memfd_of("m", b"x")?, 0)?;
    Ok(())
}

/// The kernel's memory does not dwindle, whether requests succeed or fail.
pub fn no_leak(stage: &mut Stage) -> Outcome {
    const ROUNDS: usize = 200;

    let device = Device::open()?;
    let content = sys::pattern(1, 256 << 10);
    let round = || -> Outcome {
        let session = device.create_session(stage.name)?;
        let memory = sys::memfd_of("m", &content)?;
        session.preserve(&memory, 1)?;
        ensure_errno!(session.preserve(&memory, 2), EBUSY);
        ensure_errno!(session.preserve(&File::open("/dev/null")?, 3), ENOENT);
        ensure_errno!(device.create_session(stage.name), EEXIST);
        let mut empty = sys::memfd("empty")?;
        session.preserve(&empty, 4)?;
        ensure_errno!(empty.write_all(b"x"), EPERM);
        let sparse = sys::memfd("sparse")?;
        sparse.set_len(64 << 10)?;
        session.preserve(&sparse, 5)?;
        Ok(())
    };

    // Caches fill at first.
    for _ in 0..20 {
        round()?;
    }
    let before = sys::free_memory()?;
    for _ in 0..ROUNDS {
        round()?;
    }
    // Freed memory comes back a moment later.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let after = sys::free_memory()?;
    let lost = before.saturating_sub(after);
    stage.note(format!("{lost} KiB less free after {ROUNDS} rounds"));
    ensure!(lost < 8 << 10, "{lost} KiB lost in {ROUNDS} rounds");
    Ok(())
}

/// A small file is preserved and given up again, over and over: what is free stays so, and does not pile
/// up where a processor keeps it for itself.
///
/// At bd974ac up to a twelfth of memory did each time.
pub fn rounds(stage: &mut Stage) -> Outcome {
    const ROUNDS: usize = 50_000;

    let device = Device::open()?;
    let memory = sys::memfd_of("m", b"content")?;
    let round = || -> Outcome {
        device
            .create_session(stage.name)?
            .preserve(&memory, 1)
            .map_err(Into::into)
    };
    for _ in 0..100 {
        round()?;
    }
    let before = sys::meminfo("MemFree")?;
    let rounds = if init::is_slow()? {
        ROUNDS / 10
    } else {
        ROUNDS
    };
    for _ in 0..rounds {
        round()?;
    }
    let lost = before.saturating_sub(sys::meminfo("MemFree")?);
    stage.note(format!("{lost} KiB less free after {rounds} rounds"));
    ensure!(lost < 8 << 10, "{lost} KiB less are free");
    Ok(())
}

/// A process that preserves much can be killed, and has preserved nothing then.
pub fn killed(stage: &mut Stage) -> Outcome {
    const SIZE: usize = 200 << 20;

    let device = Device::open()?;
    let memory = sys::memfd("m")?;
    let chunk = sys::pattern(1, 1 << 20);
    for at in (0..SIZE).step_by(chunk.len()) {
        sys::write_at(&memory, at as u64, &chunk)?;
    }
    let session = device.create_session(stage.name)?;
    let start = Instant::now();
    session.preserve(&memory, 1)?;
    let whole = start.elapsed();
    drop(session);

    let mut best = whole;
    for part in 1..20 {
        let session = device.create_session(stage.name)?;
        let agent = Agent::start(|| Ok(session.preserve(&memory, 1)?))?;
        thread::sleep(whole * part / 40);
        let start = Instant::now();
        agent.kill()?;
        best = best.min(start.elapsed());
        // What it did not finish is not there, what it did is.
        match session.preserve(&sys::memfd_of("n", b"x")?, 1) {
            Ok(()) => memory.set_len(SIZE as u64)?,
            Err(err) => {
                ensure_eq!(err.errno(), Errno::EEXIST);
                ensure_errno!(memory.set_len(SIZE as u64 + 1), EPERM);
            }
        }
        drop(session);
        memory.set_len(SIZE as u64 + 1)?;
        memory.set_len(SIZE as u64)?;
    }
    device.create_session(stage.name)?.preserve(&memory, 1)?;
    stage.note(format!("{whole:?} in whole, {best:?} to be killed"));
    Ok(())
}

/// Seals do not stand in the way, nor does preservation in theirs.
pub fn sealed(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;

    let memory = sys::memfd_of("sealed", b"content")?;
    sys::add_seals(&memory, all | SealFlag::F_SEAL_SEAL)?;
    session.preserve(&memory, 1)?;

    let memory = sys::memfd_of("open", b"content")?;
    session.preserve(&memory, 2)?;
    sys::add_seals(&memory, SealFlag::F_SEAL_SHRINK)?;
    ensure_eq!(sys::seals(&memory)?, SealFlag::F_SEAL_SHRINK);

    // One that cannot be sealed.
    let memory = sys::memfd_with("unsealable", MFdFlags::empty())?;
    session.preserve(&memory, 3)?;
    ensure_eq!(sys::seals(&memory)?, SealFlag::F_SEAL_SEAL);
    Ok(())
}

/// Huge files that are mostly nothing cost next to nothing.
pub fn huge_sparse(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let mut memory = sys::memfd("huge")?;
    memory.set_len(1 << 40)?;
    sys::write_at(&memory, 0, b"head")?;
    sys::write_at(&memory, 1 << 39, b"middle")?;
    sys::write_at(&memory, (1 << 40) - 4, b"tail")?;

    let before = sys::free_memory()?;
    let start = Instant::now();
    session.preserve(&memory, 1)?;
    let used = before.saturating_sub(sys::free_memory()?);
    stage.note(format!(
        "1 TiB preserved in {:.3} s, {used} KiB",
        start.elapsed().as_secs_f64()
    ));
    ensure!(used < 64 << 10, "{used} KiB used");

    // In a hole that is preserved there is room still.
    sys::write_at(&memory, 1 << 38, b"late")?;
    ensure_eq!(memory.seek(SeekFrom::End(0))?, 1 << 40);
    drop(session);
    memory.set_len(4)?;
    ensure_eq!(sys::content(&memory)?, b"head");

    // Sizes at the limits: preserved, or refused for what they are.
    let device = Device::open()?;
    for size in [
        (1 << 44) - 4096,
        1 << 44,
        (1 << 44) + 1,
        1 << 62,
        i64::MAX as u64,
    ] {
        let session = device.create_session(stage.name)?;
        let memory = sys::memfd("huge")?;
        memory.set_len(size)?;
        sys::write_at(&memory, size - 4, b"tail")?;
        match session.preserve(&memory, 1) {
            Ok(()) => stage.note(format!("{size:#x} bytes preserved")),
            Err(err) => {
                ensure_eq!(err.errno(), Errno::EFBIG);
                stage.note(format!("{size:#x} bytes refused"));
                memory.set_len(4)?;
            }
        }
    }
    Ok(())
}

/// Whatever way a memfd was opened, the kernel can preserve it.
pub fn access_modes(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let modes = [(true, false), (false, true), (true, true)];

    for (token, (read, write)) in (1..).zip(modes) {
        let memory = sys::memfd_of("m", b"content")?;
        let again = OpenOptions::new()
            .read(read)
            .write(write)
            .open(sys::proc_path(&memory))?;
        drop(memory);
        session.preserve(&again, token)?;
    }
    Ok(())
}
