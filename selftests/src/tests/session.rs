// SPDX-License-Identifier: GPL-2.0

//! Sessions in one kernel: making them, their names, what their descriptors can and cannot do.

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
    uapi::{
        self,
        Request, //
    },
    Device,
    Outgoing,
    Session, //
};
use nix::{
    fcntl::{
        fcntl,
        FcntlArg,
        FdFlag,
        OFlag, //
    },
    sys::{
        epoll::{
            Epoll,
            EpollCreateFlags,
            EpollEvent,
            EpollFlags, //
        },
        mman::ProtFlags,
    },
    unistd::{
        read,
        write, //
    },
};
use std::{
    fs::File,
    mem::size_of,
    os::fd::{
        AsRawFd,
        OwnedFd, //
    },
    time::Instant, //
};
use zerocopy::IntoBytes;

const CREATE: u32 = uapi::CreateSession::COMMAND;
const SIZE: usize = size_of::<uapi::CreateSession>();

/// What is a name and what is not.
pub fn names(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let create = |name: &[u8]| sys::request_fd(&device, sys::create_session(name));

    ensure_errno!(create(b""), EINVAL);
    ensure_errno!(create(b"\0hidden"), EINVAL);
    ensure_errno!(create(&[b'x'; 64]), EINVAL);

    let longest = create(&[b'x'; 63])?;
    // They differ in the last byte only.
    let shorter = create(&[b'x'; 62])?;
    let mut other = [b'x'; 63];
    other[62] = b'y';
    let other = create(&other)?;
    // Any byte but NUL will do.
    let odd = create(b"\xff\x01/ %s\n\"")?;
    drop((longest, shorter, other, odd));

    // What comes after the NUL is not part of the name.
    let plain = create(b"plain")?;
    ensure_errno!(create(b"plain\0tail"), EEXIST);
    drop(plain);
    let tailed = create(b"plain\0tail")?;
    let tailed = Session::<Outgoing>::adopt(tailed)?;
    ensure_eq!(tailed.ask_name()?.as_bytes(), b"plain");
    Ok(())
}

/// A name belongs to one session at a time.
pub fn duplicates(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;

    // Often enough to fill blocks, if a failure were to take room.
    for _ in 0..500 {
        ensure_errno!(device.create_session(stage.name), EEXIST);
    }
    let other = device.create_session("other")?;
    drop(session);
    drop(device.create_session(stage.name)?);
    ensure_errno!(device.create_session("other"), EEXIST);
    drop(other);
    for _ in 0..500 {
        drop(device.create_session(stage.name)?);
    }
    Ok(())
}

/// A new session whose descriptor cannot be returned is not created.
pub fn answer_unwritable(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let before = sys::open_fds()?;
    let request = sys::create_session(stage.name.as_bytes());

    for _ in 0..100 {
        let arena = Arena::with(1, 0, request.as_bytes())?;
        arena.protect(0, ProtFlags::PROT_READ)?;
        ensure_errno!(arena.request(&device, CREATE), EFAULT);
        ensure_eq!(arena.read(0, SIZE), request.as_bytes());
    }
    // The size can be written, the number not.
    let arena = Arena::with(2, PAGE - 4, request.as_bytes())?;
    arena.protect(1, ProtFlags::PROT_READ)?;
    ensure_errno!(arena.request(&device, CREATE), EFAULT);
    ensure_eq!(arena.read(PAGE - 4, SIZE), request.as_bytes());

    ensure_eq!(sys::open_fds()?, before);
    drop(device.create_session(stage.name)?);
    Ok(())
}

/// A new session for which the kernel has no file is not created.
pub fn no_file(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let before = sys::open_fds()?;

    for _ in 0..10 {
        ensure_errno!(
            sys::without_free_files(|| device.create_session(stage.name))?,
            ENFILE
        );
    }
    ensure_eq!(sys::open_fds()?, before);
    drop(device.create_session(stage.name)?);
    Ok(())
}

/// An answer of which only what follows the number cannot be written: all or nothing.
pub fn answer_half_writable(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let before = sys::open_fds()?;
    let request = sys::create_session(stage.name.as_bytes());

    for at in [PAGE - 8, PAGE - 9, PAGE - SIZE + 1] {
        let arena = Arena::with(2, at, request.as_bytes())?;
        arena.protect(1, ProtFlags::PROT_READ)?;
        match arena.request(&device, CREATE) {
            // There was no need to write more than the number.
            Ok(()) => {
                let answer = arena.read(at, SIZE);
                let fd = i32::from_ne_bytes(answer[4..8].try_into().expect("four bytes"));
                ensure!(fd >= 0);
                // SAFETY: The kernel has just made this descriptor for us.
                drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
            }
            failed => {
                ensure_errno!(failed, EFAULT);
                ensure_eq!(arena.read(at, SIZE), request.as_bytes());
            }
        }
        ensure_eq!(sys::open_fds()?, before);
    }
    drop(device.create_session(stage.name)?);
    Ok(())
}

/// Ten thousand sessions at a time; their descriptors can be closed in any order.
pub fn many(stage: &mut Stage) -> Outcome {
    const MANY: usize = 10_000;

    sys::allow_fds(MANY as u64 + 100)?;
    let device = Device::open()?;
    let start = Instant::now();
    let mut sessions: Vec<Option<Session<Outgoing>>> = (0..MANY)
        .map(|i| device.create_session(&format!("many-{i}")).map(Some))
        .collect::<Result<_, _>>()?;
    stage.note(format!(
        "{MANY} sessions created in {:.2} s",
        start.elapsed().as_secs_f64()
    ));

    ensure_errno!(device.create_session("many-0"), EEXIST);
    ensure_errno!(device.create_session("many-9999"), EEXIST);

    // A stride that has no factor in common with their number visits each of them.
    let start = Instant::now();
    for i in 0..MANY {
        sessions[i * 7919 % MANY] = None;
    }
    stage.note(format!("closed in {:.2} s", start.elapsed().as_secs_f64()));
    ensure!(sessions.iter().all(Option::is_none));

    drop(device.create_session("many-0")?);
    drop(device.create_session("many-9999")?);
    Ok(())
}

/// What a session looks like in `/proc` and to `fcntl(2)`.
pub fn descriptor(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;

    ensure_eq!(
        sys::link_of(&session)?,
        format!("anon_inode:[luo_session] {}", stage.name)
    );
    let flags = FdFlag::from_bits_retain(fcntl(&session, FcntlArg::F_GETFD)?);
    ensure_eq!(flags, FdFlag::FD_CLOEXEC);
    let flags = OFlag::from_bits_retain(fcntl(&session, FcntlArg::F_GETFL)?);
    ensure_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDWR);

    let long = "n".repeat(63);
    let session = device.create_session(&long)?;
    ensure_eq!(
        sys::link_of(&session)?,
        format!("anon_inode:[luo_session] {long}")
    );
    Ok(())
}

/// A session is for ioctls and nothing else.
pub fn other_calls(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    ensure_errno!(read(&session, &mut [0; 8]), EINVAL);
    ensure_errno!(write(&session, &[0; 8]), EINVAL);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    ensure_errno!(
        epoll.add(&session, EpollEvent::new(EpollFlags::EPOLLIN, 0)),
        EPERM
    );
    ensure_errno!(File::open(sys::proc_path(&session)), ENXIO | EACCES);
    Ok(())
}

/// Asking for the name, in good ways and bad.
pub fn get_name(stage: &mut Stage) -> Outcome {
    const GET_NAME: u32 = uapi::GetName::COMMAND;

    let device = Device::open()?;
    for name in [stage.name.as_bytes(), &[b'z'; 63], b"a"] {
        let session = sys::request_fd(&device, sys::create_session(name))?;
        let mut request = sys::get_name();
        liveupdate::request(sys::borrow(&session), &mut request)?;
        let mut expected = [0; 64];
        expected[..name.len()].copy_from_slice(name);
        // All of the field is defined, nothing of the kernel's memory shows in it.
        ensure_eq!(request.name[..=name.len()], expected[..=name.len()]);
        ensure!(!request.name[name.len()..]
            .iter()
            .any(|&b| b != 0 && b != 0xff));
    }

    let session = device.create_session(stage.name)?;
    for reserved in [1, 0x8000_0000, u32::MAX] {
        let mut request = sys::get_name();
        request.reserved = reserved;
        ensure_errno!(sys::request(&session, request), EINVAL);
    }

    for size in [0, 4, 8, 71] {
        let mut request = sys::get_name();
        request.size = size;
        ensure_errno!(sys::request(&session, request), EINVAL);
    }

    let mut request = sys::get_name();
    request.size = 80;
    let mut arena = Arena::with(1, 0, request.as_bytes())?;
    arena.request(&session, GET_NAME)?;
    ensure_eq!(arena.read(8, stage.name.len()), stage.name.as_bytes());
    arena.write(0, request.as_bytes());
    arena.write(79, &[1]);
    ensure_errno!(arena.request(&session, GET_NAME), E2BIG);

    let request = sys::get_name();
    let arena = Arena::with(1, 0, request.as_bytes())?;
    arena.protect(0, ProtFlags::PROT_READ)?;
    ensure_errno!(arena.request(&session, GET_NAME), EFAULT);

    // Not a session: the device does not know the number, anything else not the type.
    ensure_errno!(sys::request(&device, sys::get_name()), EINVAL);
    ensure_errno!(
        sys::request(&File::open("/dev/null")?, sys::get_name()),
        ENOTTY
    );
    Ok(())
}

/// What only a session from the previous kernel can do, this one cannot.
pub fn not_incoming(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    ensure_errno!(sys::request(&session, sys::retrieve_fd(1)), EINVAL);
    ensure_errno!(sys::request(&session, sys::finish()), EINVAL);
    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;
    ensure_errno!(sys::request(&session, sys::retrieve_fd(1)), EINVAL);
    ensure_errno!(sys::request(&session, sys::finish()), EINVAL);
    // It goes on being what it was.
    session.preserve(&sys::memfd_of("n", b"y")?, 2)?;
    Ok(())
}

/// Requests that are not a session's, or not quite.
pub fn unknown_requests(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for nr in [0x00, 0x01, 0x02, 0x3f, 0x44, 0x7f, 0xff] {
        let arena = Arena::with(1, 0, sys::get_name().as_bytes())?;
        ensure_errno!(arena.request(&session, sys::command(nr)), EINVAL);
        ensure_errno!(
            sys::request_from_nowhere(&session, sys::command(nr), 0),
            EINVAL
        );
    }
    for nr in [0x40, 0x41, 0x42, 0x43] {
        let arena = Arena::with(1, 0, sys::get_name().as_bytes())?;
        for wrong in [1 << 30, 2 << 30, 3 << 30, 72 << 16] {
            ensure_errno!(arena.request(&session, sys::command(nr) | wrong), ENOTTY);
        }
        ensure_errno!(arena.request(&session, u32::from(nr)), ENOTTY);
    }
    Ok(())
}

/// Structures of the wrong size, and arguments that are not there.
pub fn sizes(stage: &mut Stage) -> Outcome {
    const PRESERVE: u32 = uapi::PreserveFd::COMMAND;

    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"x")?;
    let request = |size: u32| {
        let mut request = sys::preserve_fd(memory.as_raw_fd(), 1);
        request.size = size;
        request
    };

    for size in [0, 4, 8, 12, 15] {
        ensure_errno!(sys::request(&session, request(size)), EINVAL);
    }
    let mut arena = Arena::with(1, 0, request(17).as_bytes())?;
    arena.write(16, &[1]);
    ensure_errno!(arena.request(&session, PRESERVE), E2BIG);

    for address in [0, usize::MAX - 3, 1 << 63] {
        for nr in [0x40, 0x43] {
            ensure_errno!(
                sys::request_from_nowhere(&session, sys::command(nr), address),
                EFAULT
            );
        }
    }
    let arena = Arena::with(2, PAGE - 8, request(16).as_bytes())?;
    arena.protect(1, ProtFlags::PROT_NONE)?;
    ensure_errno!(arena.request(&session, PRESERVE), EFAULT);

    // None of these has taken the token or the file.
    let arena = Arena::with(1, 0, request(32).as_bytes())?;
    arena.request(&session, PRESERVE)?;
    Ok(())
}

/// Sessions of the previous kernel that there are not.
pub fn retrieve_unknown(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let retrieve = |name: &[u8]| sys::request(&device, sys::retrieve_session(name));

    ensure_errno!(retrieve(b"nobody"), ENOENT);
    ensure_errno!(retrieve(b""), ENOENT);
    ensure_errno!(retrieve(&[b'x'; 64]), ENOENT);
    ensure_errno!(retrieve(&[b'x'; 63]), ENOENT);
    // One of this kernel is not one of the previous.
    ensure_errno!(retrieve(stage.name.as_bytes()), ENOENT);
    drop(session);
    Ok(())
}
