// SPDX-License-Identifier: GPL-2.0

//! Retrieving sessions and files in the next kernel, and finishing them: in every order, under
//! shortage, and by many at once.

use super::{
    retrieve,
    three,
    three_content, //
};
use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        Arena,
        PAGE, //
    }, //
};
use liveupdate::{
    uapi::{
        self,
        Request, //
    },
    Device,
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fcntl,
        FcntlArg,
        FdFlag, //
    },
    sys::{
        epoll::{
            Epoll,
            EpollCreateFlags,
            EpollEvent,
            EpollFlags, //
        },
        mman::ProtFlags, //
    }, //
};
use std::{
    io::{
        Seek,
        SeekFrom, //
    },
    mem::size_of,
    os::fd::AsRawFd,
    sync::atomic::{
        AtomicUsize,
        Ordering, //
    },
    thread, //
};
use zerocopy::IntoBytes;

/// Files come back in any order, as often as one asks, and each time it is the same file.
pub fn again_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for token in [u64::MAX, 0, 7] {
        let mut first = retrieve(&session, token)?;
        let second = retrieve(&session, token)?;
        ensure_eq!(sys::content(&second)?, three_content(token));
        // One open file: the position is common.
        first.seek(SeekFrom::Start(1234))?;
        ensure_eq!(sys::position(&second)?, 1234);
        drop(first);
        drop(second);
        // Even when nobody else has it.
        let third = retrieve(&session, token)?;
        ensure_eq!(sys::position(&third)?, 1234);
        ensure_eq!(sys::content(&third)?, three_content(token));
        let flags = FdFlag::from_bits_retain(fcntl(&third, FcntlArg::F_GETFD)?);
        ensure_eq!(flags, FdFlag::FD_CLOEXEC);
    }
    for token in [1, 6, 8, u64::MAX - 1, 1 << 63] {
        ensure_errno!(session.retrieve(token), ENOENT);
    }
    session.finish()?;
    Ok(())
}

/// After the end of a session its files belong to those who have them, and to nobody else.
pub fn finish_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    let file = retrieve(&session, 7)?;

    for reserved in [1, u32::MAX] {
        let mut request = sys::finish();
        request.reserved = reserved;
        ensure_errno!(sys::request(&session, request), EINVAL);
    }
    let mut request = sys::finish();
    request.size = 4;
    ensure_errno!(sys::request(&session, request), EINVAL);
    // It is not finished by a request that was refused.
    drop(retrieve(&session, 0)?);

    session.finish()?;
    for token in [0, 7, u64::MAX] {
        ensure_errno!(session.retrieve(token), ENOENT);
    }
    session.finish()?;
    ensure_eq!(session.ask_name()?.as_bytes(), stage.name.as_bytes());
    ensure_errno!(device.retrieve_session(stage.name), EINVAL);
    ensure_errno!(sys::request(&session, sys::preserve_fd(-1, 1)), EINVAL);
    drop(session);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);

    ensure_eq!(sys::content(&file)?, three_content(7));
    // It is an ordinary memfd now.
    file.set_len(100_000)?;
    file.set_len(10)?;
    ensure_eq!(sys::content(&file)?, three_content(7)[..10]);
    let session = device.create_session(stage.name)?;
    session.preserve(&file, 7)?;
    Ok(())
}

/// A session belongs to the one who retrieved it.
pub fn taken_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    ensure_errno!(device.retrieve_session(stage.name), EINVAL);
    drop(device);
    let device = Device::open()?;
    ensure_errno!(device.retrieve_session(stage.name), EINVAL);
    // Sessions of this kernel have names of their own.
    let own = device.create_session(stage.name)?;
    ensure_errno!(sys::request(&own, sys::retrieve_fd(7)), EINVAL);
    drop(own);
    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, three_content(7));
    session.finish()?;
    Ok(())
}

/// Closing a session finishes it; what was retrieved stays.
pub fn closed_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    let file = retrieve(&session, 0)?;

    sys::close(session)?;
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    ensure_eq!(sys::content(&file)?, three_content(0));
    device.create_session(stage.name)?.preserve(&file, 1)?;
    Ok(())
}

/// A session from the previous kernel takes no more files.
pub fn incoming_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    let memory = sys::memfd_of("m", b"x")?;

    let preserve = |fd: i32, token| sys::request(&session, sys::preserve_fd(fd, token));
    ensure_errno!(preserve(memory.as_raw_fd(), 1), EINVAL);
    ensure_errno!(preserve(memory.as_raw_fd(), 7), EINVAL);
    ensure_errno!(preserve(-1, 1), EINVAL);
    ensure_eq!(session.ask_name()?.as_bytes(), stage.name.as_bytes());
    for nr in [0x00, 0x01, 0x44] {
        let arena = Arena::with(1, 0, sys::get_name().as_bytes())?;
        ensure_errno!(arena.request(&session, sys::command(nr)), EINVAL);
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    ensure_errno!(
        epoll.add(&session, EpollEvent::new(EpollFlags::EPOLLIN, 0)),
        EPERM
    );

    // A file of an incoming session cannot be preserved before that is finished.
    let file = retrieve(&session, 7)?;
    let next = device.create_session(stage.name)?;
    ensure_errno!(next.preserve(&file, 1), EBUSY);
    session.finish()?;
    next.preserve(&file, 1)?;
    Ok(())
}

/// A session whose number cannot be told has not been retrieved.
pub fn unwritable_session_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let before = sys::open_fds()?;
    let request = sys::retrieve_session(stage.name.as_bytes());
    let size = size_of::<uapi::RetrieveSession>();

    for at in [0, PAGE - 4] {
        let arena = Arena::with(2, at, request.as_bytes())?;
        arena.protect(if at == 0 { 0 } else { 1 }, ProtFlags::PROT_READ)?;
        for _ in 0..10 {
            ensure_errno!(
                arena.request(&device, uapi::RetrieveSession::COMMAND),
                EFAULT
            );
        }
        ensure_eq!(arena.read(at, size), request.as_bytes());
    }
    ensure_eq!(sys::open_fds()?, before);
    ensure_errno!(
        sys::without_free_fds(|| device.retrieve_session(stage.name))?,
        EMFILE
    );

    let session = device.retrieve_session(stage.name)?;
    for token in [0, 7, u64::MAX] {
        ensure_eq!(
            sys::content(&retrieve(&session, token)?)?,
            three_content(token)
        );
    }
    session.finish()?;
    Ok(())
}

/// A file whose number cannot be told can be asked for again.
pub fn unwritable_file_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    let before = sys::open_fds()?;

    for token in [0, 7, u64::MAX] {
        let request = sys::retrieve_fd(token);
        let arena = Arena::with(1, 0, request.as_bytes())?;
        arena.protect(0, ProtFlags::PROT_READ)?;
        for _ in 0..10 {
            ensure_errno!(arena.request(&session, uapi::RetrieveFd::COMMAND), EFAULT);
        }
        ensure_errno!(sys::without_free_fds(|| session.retrieve(token))?, EMFILE);
        ensure_eq!(arena.read(0, request.as_bytes().len()), request.as_bytes());
        ensure_eq!(sys::open_fds()?, before);
        let file = retrieve(&session, token)?;
        ensure_eq!(sys::position(&file)?, 5000);
        ensure_eq!(sys::content(&file)?, three_content(token));
    }
    session.finish()?;
    Ok(())
}

/// A passing shortage of files loses neither session nor file.
pub fn no_file_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let before = sys::open_fds()?;

    for _ in 0..3 {
        ensure_errno!(
            sys::without_free_files(|| device.retrieve_session(stage.name))?,
            ENFILE
        );
    }
    ensure_eq!(sys::open_fds()?, before);

    let session = device.retrieve_session(stage.name)?;
    for token in [0, 7, u64::MAX] {
        for _ in 0..3 {
            ensure_errno!(sys::without_free_files(|| session.retrieve(token))?, ENFILE);
        }
        ensure_eq!(
            sys::content(&retrieve(&session, token)?)?,
            three_content(token)
        );
    }
    session.finish()?;
    Ok(())
}

/// As above when what follows the number of the file cannot be written: all or nothing.
pub fn half_writable_file_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    let before = sys::open_fds()?;
    let request = sys::retrieve_fd(7);

    let arena = Arena::with(2, PAGE - 8, request.as_bytes())?;
    arena.protect(1, ProtFlags::PROT_READ)?;
    match arena.request(&session, uapi::RetrieveFd::COMMAND) {
        Ok(()) => {}
        failed => {
            ensure_errno!(failed, EFAULT);
            ensure_eq!(
                arena.read(PAGE - 8, request.as_bytes().len()),
                request.as_bytes()
            );
            ensure_eq!(sys::open_fds()?, before);
        }
    }
    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, three_content(7));
    session.finish()?;
    Ok(())
}

/// Sessions for [`race_after`].
pub fn race_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for i in 0..RACES {
        let session = device.create_session(&format!("race-{i}"))?;
        session.preserve(&three(7)?, 7)?;
        session.preserve(&three(0)?, 0)?;
        stage.keep(session);
    }
    Ok(())
}

const RACES: usize = 100;

/// Threads that want the same session at once: one gets it, the others are told so, also when the
/// winner finishes and closes it at that moment.
pub fn race_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let won = [const { AtomicUsize::new(0) }; RACES];

    let worker = || -> Outcome {
        for (i, won) in won.iter().enumerate() {
            for _ in 0..5 {
                match device.retrieve_session(&format!("race-{i}")) {
                    Ok(session) => {
                        won.fetch_add(1, Ordering::Relaxed);
                        use_together(session)?;
                    }
                    Err(err) => ensure!(matches!(err.errno(), Errno::EINVAL | Errno::ENOENT)),
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))
        })
    })?;
    for won in won {
        ensure_eq!(won.into_inner(), 1);
    }
    Ok(())
}

/// Threads that ask for the same files while another finishes the session.
fn use_together(session: Session<Incoming>) -> Outcome {
    thread::scope(|scope| {
        let readers: Vec<_> = [0, 7]
            .map(|token| {
                let session = &session;
                scope.spawn(move || -> Outcome {
                    match session.retrieve(token) {
                        Ok(file) => {
                            ensure_eq!(sys::content(&file.into())?, three_content(token));
                        }
                        Err(err) => ensure_eq!(err.errno(), Errno::ENOENT),
                    }
                    Ok(())
                })
            })
            .into();
        let finished = session.finish();
        for reader in readers {
            reader
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))?;
        }
        Ok(finished?)
    })
}
