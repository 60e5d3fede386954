// SPDX-License-Identifier: GPL-2.0

//! `/dev/liveupdate` itself: who may open it, and how it takes requests of every shape.

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
        Arena,
        PAGE, //
    },
};
use liveupdate::{
    cmdline::CommandLine,
    uapi::{
        self,
        Request, //
    },
    Device,
    DEVICE_PATH, //
};
use nix::{
    sys::{
        epoll::{
            Epoll,
            EpollCreateFlags,
            EpollEvent,
            EpollFlags, //
        },
        mman::ProtFlags,
        wait::waitpid,
    },
    unistd::{
        dup,
        fork,
        read,
        write,
        ForkResult, //
    },
};
use std::{
    fs::{
        self,
        File, //
    },
    mem::size_of,
    os::unix::fs::{
        FileTypeExt,
        MetadataExt, //
    },
};
use zerocopy::IntoBytes;

const SIZE: usize = size_of::<uapi::CreateSession>();
const CREATE: u32 = uapi::CreateSession::COMMAND;

/// Only root may use the device.
pub fn node(_: &mut Stage) -> Outcome {
    let meta = fs::metadata(DEVICE_PATH)?;

    ensure!(meta.file_type().is_char_device());
    ensure_eq!(meta.mode() & 0o7777, 0o600);
    ensure_eq!((meta.uid(), meta.gid()), (0, 0));
    Ok(())
}

/// One opener at a time, however it came to have the device open.
pub fn exclusive(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    ensure_errno!(Device::open(), EBUSY);
    ensure_errno!(File::open(DEVICE_PATH), EBUSY);

    // A refused opener takes nothing with it.
    ensure_errno!(Device::open(), EBUSY);

    // It is the open file that counts, not the descriptor.
    let copy = dup(&device)?;
    drop(device);
    ensure_errno!(Device::open(), EBUSY);
    drop(copy);

    for _ in 0..100 {
        drop(Device::open()?);
    }
    drop(File::open(DEVICE_PATH)?);
    drop(Device::open()?);
    Ok(())
}

/// A child that has inherited the device keeps it busy, until it ends.
pub fn inherited(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let (reader, writer) = nix::unistd::pipe()?;

    // SAFETY: This process has one thread.
    let child = match unsafe { fork()? } {
        ForkResult::Child => {
            drop(writer);
            let _ = read(&reader, &mut [0]);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => child,
    };
    drop(device);
    ensure_errno!(Device::open(), EBUSY);
    drop((reader, writer));
    waitpid(child, None)?;
    drop(Device::open()?);
    Ok(())
}

/// Sessions outlive the device that made them.
pub fn sessions_stay(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    ensure_eq!(session.ask_name()?.as_bytes(), stage.name.as_bytes());
    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;
    ensure_errno!(Device::open()?.create_session(stage.name), EEXIST);
    Ok(())
}

/// Numbers that are not the device's, the sessions' own among them.
pub fn unknown_requests(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for nr in [0x02, 0x10, 0x3f, 0x40, 0x41, 0x42, 0x43, 0x44, 0x80, 0xff] {
        let arena = Arena::with(1, 0, sys::create_session(b"unknown").as_bytes())?;
        ensure_errno!(arena.request(&device, sys::command(nr)), EINVAL);
        // The number is looked at before the argument is.
        ensure_errno!(
            sys::request_from_nowhere(&device, sys::command(nr), 0),
            EINVAL
        );
    }
    Ok(())
}

/// The right number with the wrong direction, size or type bits.
pub fn mangled_requests(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let sized = (SIZE as u32) << 16;

    for wrong in [
        CREATE | (1 << 30),
        CREATE | (2 << 30),
        CREATE | (3 << 30) | sized,
        CREATE | sized,
        (CREATE & !0xff00) | 0x5400,
        uapi::RetrieveSession::COMMAND | (3 << 30) | sized,
        uapi::RetrieveSession::COMMAND & !0xff00,
    ] {
        let arena = Arena::with(1, 0, sys::create_session(b"mangled").as_bytes())?;
        ensure_errno!(arena.request(&device, wrong), ENOTTY);
    }
    drop(device.create_session("mangled")?);
    Ok(())
}

/// Structures that are smaller or larger than the kernel's.
pub fn sizes(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let name = stage.name.as_bytes();
    let with_size = |size: u32| -> Outcome<Arena> {
        let mut request = sys::create_session(name);
        request.size = size;
        Arena::with(2, 0, request.as_bytes())
    };

    for size in [0, 1, 4, 8, SIZE as u32 - 1] {
        ensure_errno!(with_size(size)?.request(&device, CREATE), EINVAL);
    }

    // A tail of zeros is fine, and stays as it is.
    for size in [SIZE, SIZE + 1, SIZE + 8, 1024, PAGE, 2 * PAGE] {
        let arena = with_size(size as u32)?;
        arena.request(&device, CREATE)?;
        let answer = arena.read(0, SIZE + 8);
        ensure_eq!(answer[..4], (size as u32).to_ne_bytes());
        ensure_eq!(answer[8..8 + name.len()], *name);
        ensure_eq!(answer[SIZE..], [0; 8]);
        close_answered(&answer)?;
    }

    // What is behind the size does not matter.
    let mut arena = with_size(SIZE as u32)?;
    arena.write(SIZE, &[0xff; 8]);
    arena.request(&device, CREATE)?;
    close_answered(&arena.read(0, SIZE))?;

    // A tail of anything else is refused, wherever in it that is.
    for (size, at) in [
        (SIZE + 1, SIZE),
        (SIZE + 8, SIZE + 7),
        (2 * PAGE, 2 * PAGE - 1),
    ] {
        let mut arena = with_size(size as u32)?;
        arena.write(at, &[1]);
        ensure_errno!(arena.request(&device, CREATE), E2BIG);
        ensure_eq!(arena.read(4, 4), [0xff; 4]);
    }

    // A tail that is not there.
    for size in [2 * PAGE as u32, u32::MAX] {
        let mut request = sys::create_session(name);
        request.size = size;
        let arena = Arena::with(2, 0, request.as_bytes())?;
        arena.protect(1, ProtFlags::PROT_NONE)?;
        ensure_errno!(arena.request(&device, CREATE), EFAULT);
    }

    // None of those that failed has taken the name.
    drop(device.create_session(stage.name)?);
    Ok(())
}

/// Closes the session that a successful answer names.
fn close_answered(answer: &[u8]) -> Outcome {
    use std::os::fd::FromRawFd;

    let fd = i32::from_ne_bytes(answer[4..8].try_into().expect("four bytes"));
    ensure!(fd >= 0, "the answer names descriptor {fd}");
    // SAFETY: The kernel has just made this descriptor for us.
    drop(unsafe { File::from_raw_fd(fd) });
    Ok(())
}

/// Arguments that cannot be read, as a whole or in part.
pub fn unreadable(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for address in [0, 8, usize::MAX - 3, usize::MAX - PAGE + 1, 1 << 63] {
        ensure_errno!(sys::request_from_nowhere(&device, CREATE, address), EFAULT);
    }

    let request = sys::create_session(stage.name.as_bytes());
    for at in [PAGE - 2, PAGE - 4, PAGE - 8, PAGE - 40, PAGE - SIZE + 1] {
        let arena = Arena::with(2, at, request.as_bytes())?;
        arena.protect(1, ProtFlags::PROT_NONE)?;
        ensure_errno!(arena.request(&device, CREATE), EFAULT);
    }

    // As close to the edge as it gets.
    let arena = Arena::with(2, PAGE - SIZE, request.as_bytes())?;
    arena.protect(1, ProtFlags::PROT_NONE)?;
    arena.request(&device, CREATE)?;
    close_answered(&arena.read(PAGE - SIZE, SIZE))?;

    // Alignment is nobody's business.
    let arena = Arena::with(1, 13, request.as_bytes())?;
    arena.request(&device, CREATE)?;
    close_answered(&arena.read(13, SIZE))?;
    Ok(())
}

/// Without a free descriptor nothing is attempted.
pub fn no_descriptor(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session("taken")?;

    ensure_errno!(
        sys::without_free_fds(|| device.create_session(stage.name))?,
        EMFILE
    );
    ensure_errno!(
        sys::without_free_fds(|| device.create_session("taken"))?,
        EMFILE
    );
    ensure_errno!(
        sys::without_free_fds(|| sys::request(&device, sys::create_session(b"")))?,
        EMFILE
    );
    ensure_errno!(
        sys::without_free_fds(|| device.retrieve_session("nobody"))?,
        EMFILE
    );

    drop(device.create_session(stage.name)?);
    drop(session);
    Ok(())
}

/// The device is for ioctls and nothing else.
pub fn other_calls(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(read(&device, &mut [0; 8]), EINVAL);
    ensure_errno!(write(&device, &[0; 8]), EINVAL);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    ensure_errno!(
        epoll.add(&device, EpollEvent::new(EpollFlags::EPOLLIN, 0)),
        EPERM
    );
    Ok(())
}

/// In a kernel that was told to leave live updates alone there is no device.
pub fn switched_off(_: &mut Stage) -> Outcome {
    ensure_errno!(Device::open(), ENOENT);
    if CommandLine::read()?.get("luo.core") != Some("c") {
        let warning = "live update is off in this one";
        let log = luo_guest::kernel_log(0)?;
        ensure!(log.iter().any(|record| record.text.contains(warning)));
    }
    Ok(())
}

/// Preserves something for a kernel that will not want it.
pub fn leave_for_nobody(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&sys::memfd_of("m", &sys::pattern(1, 1 << 20))?, 1)?;
    stage.keep(session);
    Ok(())
}
