// SPDX-License-Identifier: GPL-2.0

//! Sessions across kexecs: what comes over, what does not, and what the new kernel lets one do
//! with it.

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
    sys::{
        self,
        Arena,
        PAGE, //
    },
    tests::{
        lifetime::wait_forever,
        sysfs, //
    },
};
use liveupdate::{
    kexec,
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
        FdFlag,
        SealFlag, //
    },
    sys::{
        epoll::{
            Epoll,
            EpollCreateFlags,
            EpollEvent,
            EpollFlags, //
        },
        eventfd::EventFd,
        mman::ProtFlags,
        signal::{
            kill,
            Signal, //
        },
        wait::waitpid,
    },
    unistd::{
        fork,
        ForkResult, //
    },
};
use std::{
    fs::{
        self,
        File, //
    },
    io::{
        Read,
        Seek,
        SeekFrom,
        Write, //
    },
    mem::size_of,
    os::fd::{
        AsRawFd,
        OwnedFd, //
    },
    path::{
        Path,
        PathBuf, //
    },
    sync::atomic::{
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::Instant,
};
use zerocopy::IntoBytes;

fn retrieve(session: &Session<Incoming>, token: u64) -> Outcome<File> {
    Ok(session.retrieve(token)?.into())
}

/// What is preserved, and given up again, leaves no trace.
pub fn nothing_before(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session("nothing")?;

    session.preserve(&sys::memfd_of("nothing", b"content")?, 1)?;
    drop(session);
    // Nor does an attempt that fails.
    ensure_eq!(kexec::jump().errno(), Errno::EINVAL);
    Ok(())
}

/// Any kernel starts after a kexec that hands nothing over, and live update works there. One in Rust
/// finds nothing at all.
///
/// At bd974ac a kernel with the C implementation panicked before it said a word, each time.
pub fn nothing_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("nothing"), ENOENT);
    if let Ok(number) = sysfs::show("number") {
        ensure_eq!(number, "0\n");
        ensure_eq!(sysfs::show("abi")?, "outgoing fdt\nincoming none\n");
    }
    device
        .create_session("nothing")?
        .preserve(&sys::memfd_of("nothing", b"content")?, 1)?;
    Ok(())
}

/// A session with nothing in it is something nevertheless, and its name comes back byte by byte.
pub fn empty_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in empty_names() {
        stage.keep(sys::request_fd(&device, sys::create_session(&name))?);
    }
    // These do not wait for the reboot.
    drop(device.create_session("empty-closed")?);
    Ok(())
}

/// See [`empty_before`].
pub fn empty_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("empty-closed"), ENOENT);
    for name in empty_names() {
        let session = sys::request_fd(&device, sys::retrieve_session(&name))?;
        let session = Session::<Incoming>::adopt(session)?;
        ensure_eq!(session.name().as_bytes(), name);
        let mut link = b"anon_inode:[luo_session] ".to_vec();
        link.extend_from_slice(&name);
        ensure_eq!(sys::link_of(&session)?, String::from_utf8_lossy(&link));
        ensure_errno!(session.retrieve(0), ENOENT);
        session.finish()?;
    }
    Ok(())
}

fn empty_names() -> Vec<Vec<u8>> {
    vec![
        b"e".to_vec(),
        b"empty-1".to_vec(),
        vec![b'E'; 63],
        vec![b'E'; 62],
        b"empty \xc3\xa9\xff\x7f /:%".to_vec(),
    ]
}

const MANY_SESSIONS: u64 = 2000;
const MANY_FILES: u64 = 5000;

/// Thousands of sessions with a file each.
pub fn sessions_before(stage: &mut Stage) -> Outcome {
    sys::allow_fds(2 * MANY_SESSIONS + 100)?;
    let device = Device::open()?;

    for i in 0..MANY_SESSIONS {
        let session = device.create_session(&format!("{}-{i}", stage.name))?;
        session.preserve(&sys::memfd_of("m", &content_of(i))?, i)?;
        stage.keep(session);
    }
    Ok(())
}

/// See [`sessions_before`].
pub fn sessions_after(stage: &mut Stage) -> Outcome {
    sys::allow_fds(2 * MANY_SESSIONS + 100)?;
    let device = Device::open()?;
    let start = Instant::now();
    let mut sessions = Vec::new();

    // In another order than they were made.
    for i in (0..MANY_SESSIONS).map(|i| i * 1009 % MANY_SESSIONS) {
        let session = device.retrieve_session(&format!("{}-{i}", stage.name))?;
        ensure_eq!(sys::content(&retrieve(&session, i)?)?, content_of(i));
        ensure_errno!(session.retrieve(i + 1), ENOENT);
        sessions.push(session);
    }
    for session in sessions {
        session.finish()?;
    }
    stage.note(format!(
        "{MANY_SESSIONS} sessions in {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn content_of(i: u64) -> Vec<u8> {
    sys::pattern(i, 1 + (i % 300) as usize)
}

/// Thousands of files in a session.
pub fn files_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for i in 0..MANY_FILES {
        session.preserve(&sys::memfd_of("m", &content_of(i))?, token_of(i))?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`files_before`].
pub fn files_after(stage: &mut Stage) -> Outcome {
    let free = || -> Outcome<u64> {
        sys::settle_memory()?;
        sys::free_memory()
    };
    let device = Device::open()?;
    let before = free()?;
    let session = device.retrieve_session(stage.name)?;
    let start = Instant::now();

    for i in (0..MANY_FILES).rev() {
        let file = retrieve(&session, token_of(i))?;
        ensure_eq!(sys::content(&file)?, content_of(i));
    }
    session.finish()?;
    stage.note(format!(
        "{MANY_FILES} files in {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    drop(session);

    // At least the page of each file.
    let freed = free()?.saturating_sub(before);
    stage.note(format!("{freed} KiB freed"));
    ensure!(freed > MANY_FILES * 4, "only {freed} KiB freed");
    Ok(())
}

fn token_of(i: u64) -> u64 {
    i.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Three files, for what follows.
pub fn three_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for token in [0, 7, u64::MAX] {
        session.preserve(&three(token)?, token)?;
    }
    stage.keep(session);
    Ok(())
}

fn three(token: u64) -> Outcome<File> {
    sys::memfd_of("three", &three_content(token))
}

fn three_content(token: u64) -> Vec<u8> {
    sys::pattern(token, 5000)
}

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

    // What has come over and is not finished cannot go out again yet.
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
        ensure_eq!(arena.read(0, 16), request.as_bytes());
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
            ensure_eq!(arena.read(PAGE - 8, 16), request.as_bytes());
            ensure_eq!(sys::open_fds()?, before);
        }
    }
    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, three_content(7));
    session.finish()?;
    Ok(())
}

/// Sessions of agents that died, files of sessions that were closed: none of it comes over.
pub fn gone_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let memory = sys::memfd_of("m", &sys::pattern(3, 9000))?;

    let session = device.create_session("gone-closed")?;
    session.preserve(&memory, 1)?;
    drop(session);

    // SAFETY: This process has one thread.
    match unsafe { fork()? } {
        ForkResult::Child => {
            let session = device.create_session("gone-killed");
            let preserved = session.as_ref().map(|it| it.preserve(&memory, 1));
            if let Ok(Ok(())) = preserved {
                let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
            }
            std::process::exit(1);
        }
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
        }
    }

    let session = device.create_session(stage.name)?;
    ensure_errno!(session.preserve(&File::open("/dev/null")?, 1), ENOENT);
    session.preserve(&memory, 1)?;
    stage.keep(session);
    Ok(())
}

/// See [`gone_before`].
pub fn gone_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("gone-closed"), ENOENT);
    ensure_errno!(device.retrieve_session("gone-killed"), ENOENT);
    let session = device.retrieve_session(stage.name)?;
    ensure_eq!(
        sys::content(&retrieve(&session, 1)?)?,
        sys::pattern(3, 9000)
    );
    session.finish()?;
    Ok(())
}

/// What a service manager does: its own state under token 0, descriptors of services under
/// numbers that follow, sessions of services beside it, and no device held at the jump.
pub fn manager_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_errno!(device.retrieve_session("manager"), ENOENT);
    let session = device.create_session("manager")?;
    let service = device.create_session("manager-service")?;
    service.preserve(
        &sys::memfd_of("guest memory", &sys::pattern(5, 1 << 20))?,
        0,
    )?;

    // It asks every anonymous inode whether it is a session.
    ensure_eq!(service.ask_name()?.as_bytes(), b"manager-service");
    ensure_errno!(sys::request(&EventFd::new()?, sys::get_name()), ENOTTY);

    // What cannot be preserved gives its number to the next.
    let mut token = 1;
    for i in 0..20u8 {
        let file: OwnedFd = match i % 3 {
            0 => File::open("/dev/null")?.into(),
            _ => sys::memfd_of("stored", &[i; 100])?.into(),
        };
        match session.preserve(&file, token) {
            Ok(()) => token += 1,
            Err(err) => ensure_eq!(err.errno(), Errno::ENOENT),
        }
    }

    let mut state = sys::memfd("state")?;
    writeln!(state, "{{\"descriptors\": {}}}", token - 1)?;
    state.rewind()?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    sys::add_seals(&state, seals)?;
    session.preserve(&state, 0)?;

    stage.keep(session);
    stage.keep(service);
    Ok(())
}

/// See [`manager_before`].
pub fn manager_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session("manager")?;

    let mut state = retrieve(&session, 0)?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    ensure_eq!(sys::seals(&state)?, seals);
    let mut text = String::new();
    state.read_to_string(&mut text)?;
    ensure_eq!(text, "{\"descriptors\": 13}\n");

    let mut stored = (0..20u8).filter(|i| i % 3 != 0);
    for token in 1..=13 {
        let i = stored.next().ok_or_else(|| Failure::here("too few"))?;
        ensure_eq!(sys::content(&retrieve(&session, token)?)?, [i; 100]);
    }
    ensure_errno!(session.retrieve(14), ENOENT);

    // The manager takes the sessions of its services while its own is open.
    let service = device.retrieve_session("manager-service")?;
    session.finish()?;
    drop(session);
    let memory = retrieve(&service, 0)?;
    ensure_eq!(sys::content(&memory)?, sys::pattern(5, 1 << 20));
    service.finish()?;
    Ok(())
}

/// How many live updates the chain has.
const UPDATES: usize = 20;

/// The chain, a part for each kernel.
pub const CHAIN: [Part; UPDATES + 1] = [chain; UPDATES + 1];

/// One part of a chain: take over, check, change, pass on.
fn chain(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let mut expected = sys::pattern(42, 3 * PAGE + 17);

    ensure_eq!(luo_guest::live_update_number()?, stage.number as u64 - 1);
    // Each stage appends and overwrites.
    let apply = |content: &mut Vec<u8>, number: usize| {
        content[number * 100] = number as u8;
        content.extend_from_slice(&sys::pattern(number as u64, 5000));
    };

    let (fresh, kept) = match stage.number {
        1 => (
            sys::memfd_of("fresh", &expected)?,
            sys::memfd_of("kept", &expected)?,
        ),
        number => {
            for earlier in 1..number {
                apply(&mut expected, earlier);
            }
            let session = device.retrieve_session(stage.name)?;
            let fresh = retrieve(&session, number as u64 - 1)?;
            let kept = retrieve(&session, 0)?;
            ensure_eq!(sys::content(&fresh)?, expected);
            ensure_eq!(sys::content(&kept)?, expected);
            session.finish()?;
            // One is copied in each kernel, the other is the same file all along.
            (sys::memfd_of("fresh", &expected)?, kept)
        }
    };
    if stage.number > UPDATES {
        return Ok(());
    }

    for mut file in [&fresh, &kept] {
        let mut content = expected.clone();
        apply(&mut content, stage.number);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&content)?;
    }
    let session = device.create_session(stage.name)?;
    session.preserve(&fresh, stage.number as u64)?;
    session.preserve(&kept, 0)?;
    stage.keep(session);
    Ok(())
}

/// What nobody asks for in one kernel is there in the next.
pub fn unclaimed_middle(_: &mut Stage) -> Outcome {
    // Not even the device is opened.
    Ok(())
}

/// A session that was retrieved but not finished when the next kexec came.
pub fn unfinished_middle(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    // Nothing of it is retrieved.
    stage.keep(device.retrieve_session(stage.name)?);
    Ok(())
}

/// As above, with a file retrieved, changed and held.
pub fn held_middle(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 7)?;

    ensure_eq!(sys::content(&file)?, three_content(7));
    sys::write_at(&file, 0, b"CHANGED")?;
    stage.keep(file);
    stage.keep(session);
    Ok(())
}

/// See [`held_middle`].
pub fn held_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for token in [0, 7, u64::MAX] {
        let mut expected = three_content(token);
        if token == 7 {
            expected[..7].copy_from_slice(b"CHANGED");
        }
        ensure_eq!(sys::content(&retrieve(&session, token)?)?, expected);
    }
    session.finish()?;
    Ok(())
}

/// A new session of the name of one that nobody has claimed.
pub fn same_name_middle(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&sys::memfd_of("new", b"the new one")?, 7)?;
    stage.keep(session);
    Ok(())
}

/// The agent that made a session expects to find it: the older one gives way.
pub fn same_name_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, b"the new one");
    ensure_errno!(session.retrieve(0), ENOENT);
    session.finish()?;
    drop(session);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    Ok(())
}

/// A session that is finished does not come back, whoever holds on to it.
pub fn finished_middle(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = session.retrieve(7)?;

    session.finish()?;
    stage.keep(file);
    stage.keep(session);
    Ok(())
}

/// See [`finished_middle`].
pub fn finished_after(stage: &mut Stage) -> Outcome {
    ensure_errno!(Device::open()?.retrieve_session(stage.name), ENOENT);
    Ok(())
}

/// A session for [`three_before`]'s files, whichever kernel they come from.
pub fn three_after(stage: &mut Stage) -> Outcome {
    check_three(&Device::open()?.retrieve_session(stage.name)?)
}

/// Retrieves [`three_before`]'s files, and finishes their session.
pub fn check_three(session: &Session<Incoming>) -> Outcome {
    for token in [0, 7, u64::MAX] {
        ensure_eq!(
            sys::content(&retrieve(session, token)?)?,
            three_content(token)
        );
    }
    session.finish()?;
    Ok(())
}

/// Names with all that a name may have. They are shown in `/proc`, too.
const NAMES: [&[u8]; 6] = [
    b"with a blank",
    b"%s%n",
    b"]",
    b"two\nlines",
    b"\xff\xfe/..",
    &[b'x'; 63],
];

/// Sessions of these names.
pub fn names_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in NAMES {
        let session = sys::request_fd(&device, sys::create_session(name))?;
        let memory = sys::memfd_of("m", name)?;
        sys::request(&session, sys::preserve_fd(memory.as_raw_fd(), 1))?;
        stage.keep(session);
    }
    Ok(())
}

/// See [`NAMES`].
pub fn names_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for name in NAMES {
        let session = sys::request_fd(&device, sys::retrieve_session(name))?;
        ensure!(sys::link_of(&session)?.starts_with("anon_inode:"));
        let session = Session::<Incoming>::adopt(session)?;
        ensure_eq!(session.name().as_bytes(), name);
        ensure_eq!(sys::content(&retrieve(&session, 1)?)?, name);
        session.finish()?;
    }
    Ok(())
}

/// What was retrieved is preserved once more, in a session of its own.
pub fn once_more_middle(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let old = device.retrieve_session(stage.name)?;
    let file = retrieve(&old, 7)?;

    old.finish()?;
    drop(old);
    let new = device.create_session(stage.name)?;
    new.preserve(&file, 8)?;
    stage.keep(new);
    Ok(())
}

/// And discarded without a look, in the kernel after that.
pub fn once_more_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    session.finish()?;
    ensure_errno!(session.retrieve(8), ENOENT);
    drop(session);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    Ok(())
}

/// Blocks of sessions that are full to the last entry, after failures that may have asked for one
/// more.
pub fn full_blocks_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    // A block of a page has room for 51.
    for i in 0..102 {
        let name = format!("full-{i}");
        stage.keep(device.create_session(&name)?);
        if i % 51 == 50 {
            ensure_errno!(device.create_session(&name), EEXIST);
        }
    }
    Ok(())
}

/// See [`full_blocks_before`].
pub fn full_blocks_after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for i in 0..102 {
        device.retrieve_session(&format!("full-{i}"))?.finish()?;
    }
    ensure_errno!(device.retrieve_session("full-102"), ENOENT);
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

/// What the kernel shows of the handover can be read, before and after.
pub fn shown(_: &mut Stage) -> Outcome {
    let mut folders = vec![PathBuf::from("/sys/kernel/debug")];

    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            let name = path.to_string_lossy();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                // Elsewhere in debugfs reading may have effects.
                if folder != Path::new("/sys/kernel/debug")
                    || ["kho", "luo", "liveupdate"]
                        .iter()
                        .any(|it| name.contains(it))
                {
                    folders.push(path);
                }
            } else if meta.is_file() && folder != Path::new("/sys/kernel/debug") {
                let mut bytes = Vec::new();
                // Whether there is anything in it is not the question.
                let _ =
                    File::open(&path).and_then(|file| file.take(1 << 20).read_to_end(&mut bytes));
            }
        }
    }
    Ok(())
}

/// As [`three_before`], with a look at what the kernel shows.
pub fn shown_before(stage: &mut Stage) -> Outcome {
    three_before(stage)?;
    shown(stage)
}

/// As [`three_after`], with a look at what the kernel shows at every step.
pub fn shown_after(stage: &mut Stage) -> Outcome {
    // Memory that is given back must not be shown as the old kernel's any more.
    let root = || fs::read("/sys/kernel/debug/kho/in/sub_fdts/LUO");
    let first = root()?;
    shown(stage)?;
    let session = Device::open()?.retrieve_session(stage.name)?;
    shown(stage)?;
    let file = retrieve(&session, 7)?;
    shown(stage)?;
    session.finish()?;
    drop(session);
    shown(stage)?;
    // Whatever was freed is somebody else's now.
    drop(sys::memfd_of("m", &sys::pattern(1, 16 << 20))?);
    ensure!(root()? == first);
    ensure_eq!(sys::content(&file)?, three_content(7));
    Ok(())
}

/// Agents that do not stop when the machine reboots.
///
/// One session is left in peace; around it others come and go at the very moment of the kexec.
pub fn busy_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    session.preserve(&three(7)?, 7)?;
    stage.keep(session);

    // A process of its own, since it does not return.
    // SAFETY: This process has one thread.
    if let ForkResult::Child = unsafe { fork()? } {
        for worker in 0..3 {
            thread::spawn(move || loop {
                let _ = busy_round(worker);
            });
        }
        wait_forever();
    }
    Ok(())
}

fn busy_round(worker: u64) -> Outcome {
    // The others want the device as well.
    let device = Device::open()?;

    for i in 0..50 {
        let session = device.create_session(&format!("busy-{worker}-{}", i % 3))?;
        for token in 0..5 {
            session.preserve(&sys::memfd_of("m", &sys::pattern(token, 3000))?, token)?;
        }
        session.ask_name()?;
    }
    Ok(())
}

/// See [`busy_before`].
pub fn busy_after(stage: &mut Stage) -> Outcome {
    // The children of this boot are other processes; the device is free.
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;
    ensure_eq!(sys::content(&retrieve(&session, 7)?)?, three_content(7));
    session.finish()?;

    // Whatever else came over is whole.
    let mut found = 0;
    for worker in 0..3 {
        for i in 0..3 {
            let session = match device.retrieve_session(&format!("busy-{worker}-{i}")) {
                Ok(session) => session,
                Err(err) => {
                    ensure_eq!(err.errno(), Errno::ENOENT);
                    continue;
                }
            };
            found += 1;
            let mut ended = false;
            for token in 0..5 {
                match session.retrieve(token) {
                    Ok(file) => {
                        ensure!(!ended, "token {token} came over, one before it did not");
                        let content = sys::content(&file.into())?;
                        ensure_eq!(content, sys::pattern(token, 3000));
                    }
                    Err(err) => {
                        ensure_eq!(err.errno(), Errno::ENOENT);
                        ended = true;
                    }
                }
            }
            session.finish()?;
        }
    }
    stage.note(format!("{found} sessions were caught in the act"));
    Ok(())
}
