// SPDX-License-Identifier: GPL-2.0

//! How long sessions live: descriptors that are shared, passed on, closed at a bad moment, and
//! agents that die.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys, //
};
use liveupdate::{
    Device,
    Outgoing,
    Session, //
};
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::{
        signal::{
            kill,
            Signal, //
        },
        socket::{
            recvmsg,
            sendmsg,
            socketpair,
            AddressFamily,
            ControlMessage,
            ControlMessageOwned,
            MsgFlags,
            SockFlag,
            SockType, //
        },
        wait::waitpid,
    },
    unistd::{
        dup,
        fork,
        pause,
        pipe,
        read,
        write,
        ForkResult,
        Pid, //
    },
};
use std::{
    fs::File,
    io::{
        IoSlice,
        IoSliceMut, //
    },
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd,
        RawFd, //
    },
    sync::atomic::{
        AtomicBool,
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// A child that waits until it is told to go on.
pub struct Waiting {
    process: Pid,
    go: Option<OwnedFd>,
}

impl Waiting {
    /// Forks a child that does `first`, says so, waits, and ends.
    pub fn fork(first: impl FnOnce() -> Outcome) -> Outcome<Self> {
        let (ready_reader, ready_writer) = pipe()?;
        let (go_reader, go_writer) = pipe()?;

        // SAFETY: This process has one thread.
        match unsafe { fork()? } {
            ForkResult::Child => {
                drop((ready_reader, go_writer));
                if first().is_ok() {
                    let _ = write(&ready_writer, b"r");
                    let _ = read(&go_reader, &mut [0]);
                }
                // Closes what it inherited, but runs nothing of the parent's.
                // SAFETY: Ends the process.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop((ready_writer, go_reader));
                let waiting = Self {
                    process: child,
                    go: Some(go_writer),
                };
                ensure_eq!(read(&ready_reader, &mut [0])?, 1);
                Ok(waiting)
            }
        }
    }

    /// Lets it end.
    pub fn finish(mut self) -> Outcome {
        self.go = None;
        waitpid(self.process, None)?;
        Ok(())
    }

    /// Kills it.
    pub fn kill(self) -> Outcome {
        kill(self.process, Signal::SIGKILL)?;
        waitpid(self.process, None)?;
        Ok(())
    }
}

fn exists(device: &Device, name: &str) -> Outcome<bool> {
    match device.create_session(name) {
        Ok(_) => Ok(false),
        Err(err) if err.errno() == Errno::EEXIST => Ok(true),
        Err(err) => Err(err.into()),
    }
}

/// A session lives until its last descriptor is closed, in whatever process that is.
pub fn shared(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let memory = sys::memfd_of("m", b"content")?;

    // The parent closes first.
    let session = device.create_session(stage.name)?;
    session.preserve(&memory, 1)?;
    let child = Waiting::fork(|| Ok(()))?;
    drop(session);
    ensure!(exists(&device, stage.name)?);
    ensure_errno!(memory.set_len(1 << 20), EPERM);
    child.finish()?;
    ensure!(!exists(&device, stage.name)?);
    memory.set_len(1 << 20)?;

    // The child closes first.
    let session = device.create_session(stage.name)?;
    session.preserve(&memory, 1)?;
    Waiting::fork(|| Ok(()))?.finish()?;
    ensure!(exists(&device, stage.name)?);
    // It is still good for everything.
    session.preserve(&sys::memfd_of("n", b"x")?, 2)?;

    // A copy of the descriptor.
    let copy = dup(&session)?;
    drop(session);
    ensure!(exists(&device, stage.name)?);
    ensure_eq!(
        Session::<Outgoing>::adopt(copy)?.name().as_bytes(),
        stage.name.as_bytes()
    );
    ensure!(!exists(&device, stage.name)?);
    Ok(())
}

/// A child may preserve what the parent has not, in the parent's session.
pub fn used_by_child(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"content")?;

    let child = Waiting::fork(|| {
        session.preserve(&memory, 1)?;
        session.preserve(&sys::memfd_of("its own", b"x")?, 2)?;
        Ok(())
    })?;
    ensure_errno!(session.preserve(&memory, 3), EBUSY);
    child.finish()?;
    // The child is gone, the session is not, and holds what the child gave it.
    ensure_errno!(session.preserve(&memory, 3), EBUSY);
    ensure_errno!(session.preserve(&sys::memfd_of("n", b"x")?, 2), EEXIST);
    drop(session);
    memory.set_len(0)?;
    Ok(())
}

/// When an agent is killed its sessions go with it.
pub fn killed(stage: &mut Stage) -> Outcome {
    let memory = sys::memfd_of("m", b"content")?;

    let agent = Waiting::fork(|| {
        let device = Device::open()?;
        for i in 0..20 {
            let session = device.create_session(&format!("killed-{i}"))?;
            session.preserve(&sys::memfd_of("n", b"x")?, 1)?;
            if i == 0 {
                session.preserve(&memory, 2)?;
            }
            std::mem::forget(session);
        }
        std::mem::forget(device);
        Ok(())
    })?;
    ensure_errno!(Device::open(), EBUSY);
    ensure_errno!(memory.set_len(0), EPERM);
    agent.kill()?;

    let device = Device::open()?;
    for i in 0..20 {
        ensure!(!exists(&device, &format!("killed-{i}"))?);
    }
    memory.set_len(0)?;
    device.create_session(stage.name)?.preserve(&memory, 1)?;
    Ok(())
}

/// A session sent over a socket is the same session.
pub fn passed(stage: &mut Stage) -> Outcome {
    let (here, there) = match socketpair(
        AddressFamily::Unix,
        SockType::Datagram,
        None,
        SockFlag::SOCK_CLOEXEC,
    ) {
        Ok(pair) => pair,
        Err(_) => return Err(Failure::skip("no Unix sockets")),
    };
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let send = |fd: RawFd| {
        sendmsg::<()>(
            here.as_raw_fd(),
            &[IoSlice::new(b"s")],
            &[ControlMessage::ScmRights(&[fd])],
            MsgFlags::empty(),
            None,
        )
    };

    send(session.as_raw())?;
    drop(session);
    // On its way it is alive.
    ensure!(exists(&device, stage.name)?);
    let mut space = cmsg_space!([RawFd; 1]);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        there.as_raw_fd(),
        &mut bytes,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let fd = match message.cmsgs()?.next() {
        // SAFETY: The kernel has just made this descriptor for us.
        Some(ControlMessageOwned::ScmRights(fds)) => unsafe { OwnedFd::from_raw_fd(fds[0]) },
        _ => return Err(Failure::here("no descriptor received")),
    };
    let session = Session::<Outgoing>::adopt(fd)?;
    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;

    // In a socket that nobody will ever read from it dies with the socket.
    send(session.as_raw())?;
    drop(session);
    ensure!(exists(&device, stage.name)?);
    drop((here, there));
    // Sockets that hold descriptors are taken apart in the background.
    let deadline = Instant::now() + Duration::from_secs(5);
    while exists(&device, stage.name)? {
        ensure!(Instant::now() < deadline, "the session outlives the socket");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

trait AsRaw {
    fn as_raw(&self) -> RawFd;
}

impl AsRaw for Session<Outgoing> {
    fn as_raw(&self) -> RawFd {
        use std::os::fd::AsFd;
        self.as_fd().as_raw_fd()
    }
}

/// A session taken from another process by `pidfd_getfd(2)`, the way supervisors do.
pub fn taken(stage: &mut Stage) -> Outcome {
    let (number_reader, number_writer) = pipe()?;
    let agent = Waiting::fork(|| {
        let session = Device::open()?.create_session(stage.name)?;
        write(&number_writer, &session.as_raw().to_ne_bytes())?;
        std::mem::forget(session);
        Ok(())
    })?;
    let mut number = [0; 4];
    read(&number_reader, &mut number)?;

    let take = || -> nix::Result<OwnedFd> {
        // SAFETY: The system calls take numbers only.
        let pidfd = Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_open, agent.process.as_raw(), 0)
        })?;
        // SAFETY: The kernel has just made this descriptor for us.
        let pidfd = unsafe { File::from_raw_fd(pidfd as RawFd) };
        let number = i32::from_ne_bytes(number);
        // SAFETY: As above.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
            Errno::result(fd).map(|fd| OwnedFd::from_raw_fd(fd as RawFd))
        }
    };
    let taken = take()?;
    agent.kill()?;

    let session = Session::<Outgoing>::adopt(taken)?;
    ensure_eq!(session.name().as_bytes(), stage.name.as_bytes());
    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;
    let device = Device::open()?;
    ensure!(exists(&device, stage.name)?);
    drop(session);
    ensure!(!exists(&device, stage.name)?);
    Ok(())
}

/// Threads that get in each other's way: every name and every file has one winner.
pub fn contended(stage: &mut Stage) -> Outcome {
    const THREADS: usize = 4;

    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"content")?;
    let deadline = Instant::now() + Duration::from_secs(3);
    let rounds = AtomicUsize::new(0);
    let inside = [const { AtomicBool::new(false) }; 3];

    let worker = |seed: usize| -> Outcome {
        while Instant::now() < deadline {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            let which = (seed + round) % inside.len();
            match device.create_session(&format!("contended-{which}")) {
                Ok(own) => {
                    // Only one has the name.
                    ensure!(!inside[which].swap(true, Ordering::SeqCst));
                    let _ = own.preserve(&memory, 1);
                    let _ = own.preserve(&sys::memfd_of("n", b"x")?, 1);
                    ensure_eq!(own.ask_name()?.as_bytes().len(), 11);
                    inside[which].store(false, Ordering::SeqCst);
                }
                Err(err) => ensure_eq!(err.errno(), Errno::EEXIST),
            }
            match session.preserve(&sys::memfd_of("o", b"x")?, round as u64 % 64) {
                Ok(()) => {}
                Err(err) => ensure_eq!(err.errno(), Errno::EEXIST),
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| scope.spawn(move || worker(seed)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))
        })
    })?;
    stage.note(format!("{} rounds", rounds.load(Ordering::Relaxed)));

    drop(session);
    device.create_session(stage.name)?.preserve(&memory, 1)?;
    Ok(())
}

/// Requests on a session that another thread is closing meanwhile. What they preserved, or had
/// begun to, is free afterwards.
pub fn closed_in_use(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let files = (0..8)
        .map(|_| sys::memfd_of("m", b"content"))
        .collect::<Outcome<Vec<_>>>()?;
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut rounds = 0;

    while Instant::now() < deadline {
        let session = device.create_session(stage.name)?;
        let fd = session.as_raw();
        thread::scope(|scope| {
            for half in files.chunks(4) {
                scope.spawn(move || {
                    for (token, file) in half.iter().enumerate() {
                        let request = sys::preserve_fd(file.as_raw_fd(), token as u64);
                        let mut bytes = [0; 16];
                        bytes.copy_from_slice(zerocopy::IntoBytes::as_bytes(&request));
                        // The number may be closed, or somebody else's by now: any errno will do.
                        // SAFETY: The kernel reads and writes no more than the 16 bytes.
                        unsafe {
                            libc::ioctl(fd, sys::command(0x40).into(), bytes.as_mut_ptr());
                        }
                    }
                });
            }
            scope.spawn(move || {
                thread::yield_now();
                drop(session);
            });
        });
        for file in &files {
            file.set_len(8000)?;
            file.set_len(7)?;
        }
        ensure!(!exists(&device, stage.name)?);
        rounds += 1;
    }
    stage.note(format!("{rounds} rounds"));
    Ok(())
}

/// Waits for the kexec, in a process that has work to do until then.
pub fn wait_forever() -> ! {
    loop {
        pause();
    }
}
