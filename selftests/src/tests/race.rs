// SPDX-License-Identifier: GPL-2.0

//! What happens at once: agents that are killed anywhere, descriptors that travel, requests beside
//! a reboot. Each race runs for a while, and a checker says whether what is left is right.

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
    init, sys,
    tests::driver::{
        Driver,
        Event,
        Kind, //
    },
};
use liveupdate::{
    kexec,
    Device,
    Outgoing,
    Session, //
};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
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
    unistd::dup, //
};
use std::{
    fs::File,
    io::{
        IoSlice,
        IoSliceMut, //
    },
    os::fd::{
        AsFd,
        AsRawFd,
        FromRawFd,
        OwnedFd,
        RawFd, //
    },
    sync::{
        atomic::{
            AtomicUsize,
            Ordering, //
        },
        Barrier, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// How long a race goes on.
fn for_a_while() -> impl Iterator<Item = u64> {
    let end = Instant::now() + Duration::from_secs(3);

    (0..).take_while(move |_| Instant::now() < end)
}

fn exists(device: &Device, name: &str) -> Outcome<bool> {
    match device.create_session(name) {
        Ok(_) => Ok(false),
        Err(err) if err.errno() == Errno::EEXIST => Ok(true),
        Err(err) => Err(err.into()),
    }
}

/// Lets threads run a function at the same time, each with its number.
fn together<const N: usize>(f: impl Fn(usize) -> Outcome + Sync) -> Outcome {
    let barrier = Barrier::new(N);

    thread::scope(|scope| {
        let threads: [_; N] = std::array::from_fn(|number| {
            let (f, barrier) = (&f, &barrier);
            scope.spawn(move || {
                barrier.wait();
                f(number)
            })
        });
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))
        })
    })
}

/// Of those that open the device at the same moment, one has it.
pub fn device(stage: &mut Stage) -> Outcome {
    let inside = AtomicUsize::new(0);
    let opened = AtomicUsize::new(0);

    together::<4>(|_| {
        for _ in for_a_while() {
            match Device::open() {
                Ok(device) => {
                    ensure_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    opened.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(device);
                }
                Err(err) => ensure_eq!(err.errno(), Errno::EBUSY),
            }
        }
        Ok(())
    })?;
    stage.note(format!("opened {} times", opened.into_inner()));
    drop(Device::open()?);
    Ok(())
}

/// An agent that is killed between any two system calls, or in one, leaves nothing behind.
pub fn killed(stage: &mut Stage) -> Outcome {
    let files = (0..3)
        .map(|i| sys::memfd_of("m", &sys::pattern(i, 20_000)))
        .collect::<Outcome<Vec<_>>>()?;
    let mut dice = Dice(2);
    let mut rounds = 0;

    for round in for_a_while() {
        let agent = Agent::start(|| loop {
            let device = Device::open()?;
            for i in 0..4 {
                let session = device.create_session(&format!("killed-{i}"))?;
                for (token, file) in files.iter().enumerate() {
                    session.preserve(file, token as u64)?;
                }
                session.preserve(&sys::memfd_of("own", &[i; 5000])?, 9)?;
                session.ask_name()?;
            }
        })?;
        thread::sleep(Duration::from_micros(dice.below(20_000)));
        agent.kill()?;

        let device = Device::open()?;
        for i in 0..4 {
            ensure!(!exists(&device, &format!("killed-{i}"))?, "round {round}");
        }
        let session = device.create_session(stage.name)?;
        for (i, file) in files.iter().enumerate() {
            file.set_len(1 << 20)?;
            file.set_len(20_000)?;
            ensure!(sys::content(file)? == sys::pattern(i as u64, 20_000));
            session.preserve(file, i as u64)?;
        }
        rounds = round;
    }
    stage.note(format!("{rounds} rounds"));
    Ok(())
}

const CLAIMED: u64 = 60;

/// Sessions for [`killed_after`].
pub fn killed_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for i in 0..CLAIMED {
        let session = device.create_session(&format!("claimed-{i}"))?;
        for token in 0..3 {
            session.preserve(&sys::memfd_of("m", &claimed(i, token))?, token)?;
        }
        stage.keep(session);
    }
    Ok(())
}

fn claimed(i: u64, token: u64) -> Vec<u8> {
    sys::pattern(i * 3 + token, 6000)
}

/// An agent in the new kernel that is killed anywhere loses at most what it has retrieved: all else of
/// its session is there for the next agent, unless it has finished it.
pub fn killed_after(stage: &mut Stage) -> Outcome {
    const FINISHED: u64 = 4;

    let done = sys::memfd_of("done", &[0; 8])?;
    let done = sys::SharedWords::of(&done, 8)?;
    let done = done.word(0);
    let mut dice = Dice(3);
    let mut ends = [0; FINISHED as usize + 1];

    for i in 0..CLAIMED {
        let name = format!("claimed-{i}");
        done.store(0, Ordering::Release);
        let agent = Agent::start(|| {
            let session = Device::open()?.retrieve_session(&name)?;
            for token in 0..3 {
                let file = File::from(session.retrieve(token)?);
                ensure!(sys::content(&file)? == claimed(i, token));
                done.store(token + 1, Ordering::Release);
            }
            session.finish()?;
            done.store(FINISHED, Ordering::Release);
            Ok(())
        })?;
        thread::sleep(Duration::from_micros(dice.below(4000)));
        agent.kill()?;

        let done = done.load(Ordering::Acquire);
        ends[done as usize] += 1;
        let device = Device::open()?;
        let session = match device.retrieve_session(&name) {
            Ok(session) => session,
            // It may have finished it, and had no time to say so.
            Err(err) if done >= 3 => {
                ensure_eq!(err.errno(), Errno::ENOENT);
                continue;
            }
            Err(err) => return Err(Failure::here(format!("{done} files were taken: {err}"))),
        };
        ensure!(done < FINISHED, "session {i} is finished, and still there");
        for token in 0..3 {
            match session.retrieve(token) {
                Ok(file) => ensure!(sys::content(&file.into())? == claimed(i, token)),
                // The same is true for a file that it has just got.
                Err(err) => ensure!(token <= done && err.errno() == Errno::ENOENT, "{err}"),
            }
        }
        session.finish()?;
    }
    stage.note(format!(
        "killed with 0, 1, 2, 3 files, and at the end: {ends:?}"
    ));
    Ok(())
}

/// A pair of sockets with sessions on their way.
struct Post {
    here: OwnedFd,
    there: OwnedFd,
    /// Which sessions, in order.
    waiting: Vec<usize>,
}

impl Post {
    fn new() -> Outcome<Self> {
        let kind = SockType::Datagram;
        match socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC) {
            Ok((here, there)) => Ok(Self {
                here,
                there,
                waiting: Vec::new(),
            }),
            Err(_) => Err(Failure::skip("no Unix sockets")),
        }
    }

    fn send(&mut self, which: usize, fd: &OwnedFd) -> Outcome {
        sendmsg::<()>(
            self.here.as_raw_fd(),
            &[IoSlice::new(b"s")],
            &[ControlMessage::ScmRights(&[fd.as_raw_fd()])],
            MsgFlags::empty(),
            None,
        )?;
        self.waiting.push(which);
        Ok(())
    }

    fn receive(&mut self) -> Outcome<(usize, OwnedFd)> {
        let mut space = cmsg_space!([RawFd; 1]);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(
            self.there.as_raw_fd(),
            &mut bytes,
            Some(&mut space),
            MsgFlags::empty(),
        )?;

        match message.cmsgs()?.next() {
            // SAFETY: The kernel has just made this descriptor for us.
            Some(ControlMessageOwned::ScmRights(fds)) => Ok((self.waiting.remove(0), unsafe {
                OwnedFd::from_raw_fd(fds[0])
            })),
            _ => Err(Failure::here("no descriptor came")),
        }
    }
}

/// Descriptors of sessions that are copied, sent, received and closed in any order: a session is
/// there exactly as long as one of its descriptors is, wherever that is.
pub fn passed(stage: &mut Stage) -> Outcome {
    const SESSIONS: usize = 5;

    let device = Device::open()?;
    let mut dice = Dice(4);
    let mut held: Vec<(usize, OwnedFd)> = Vec::new();
    let mut post = [Post::new()?, Post::new()?];
    let name = |which| format!("passed-{which}");
    let mut steps = 0;

    for step in for_a_while() {
        match dice.below(10) {
            0 | 1 => {
                let which = dice.below(SESSIONS as u64) as usize;
                if let Ok(session) = device.create_session(&name(which)) {
                    session.preserve(&sys::memfd_of("m", b"x")?, 1)?;
                    held.push((which, session.into()));
                }
            }
            2 | 3 if !held.is_empty() && held.len() < 50 => {
                let (which, fd) = &held[dice.below(held.len() as u64) as usize];
                held.push((*which, dup(fd)?));
            }
            4 | 5 if !held.is_empty() => {
                let (which, fd) = held.swap_remove(dice.below(held.len() as u64) as usize);
                let post = &mut post[dice.below(2) as usize];
                if post.waiting.len() < 8 {
                    post.send(which, &fd)?;
                }
            }
            6 => {
                let post = &mut post[dice.below(2) as usize];
                if !post.waiting.is_empty() {
                    held.push(post.receive()?);
                }
            }
            7 if dice.below(10) == 0 => post[dice.below(2) as usize] = Post::new()?,
            _ if !held.is_empty() => {
                held.swap_remove(dice.below(held.len() as u64) as usize);
            }
            _ => {}
        }

        for which in 0..SESSIONS {
            let alive = held.iter().any(|(it, _)| *it == which)
                || post.iter().any(|post| post.waiting.contains(&which));
            // What a socket held is closed a moment later.
            let patience = Instant::now() + Duration::from_secs(5);
            while exists(&device, &name(which))? != alive {
                ensure!(
                    !alive && Instant::now() < patience,
                    "step {step}: session {which} should be alive: {alive}"
                );
                thread::sleep(Duration::from_millis(1));
            }
        }
        steps = step;
    }
    stage.note(format!("{steps} steps"));
    Ok(())
}

/// What goes on beside the reboots of [`reboot_before`], until it is killed.
fn beside(device: &Device, worker: u64) -> Outcome {
    loop {
        let session = match device.create_session(&format!("beside-{worker}")) {
            Ok(session) => session,
            // EEXIST: closed while it was serialized, it is removed at the next attempt.
            Err(err) => {
                ensure!(matches!(err.errno(), Errno::EBUSY | Errno::EEXIST), "{err}");
                continue;
            }
        };
        for token in 0..4 {
            let file = sys::memfd_of("m", &sys::pattern(token, 3000))?;
            match session.preserve(&file, token) {
                Ok(()) => ensure_errno!(file.set_len(0), EPERM),
                Err(err) => {
                    ensure_eq!(err.errno(), Errno::EBUSY);
                    file.set_len(0)?;
                }
            }
        }
        ensure_eq!(session.ask_name()?.to_string(), format!("beside-{worker}"));
    }
}

/// Reboots that are called off when nearly all is frozen, while agents work, end, and come.
pub fn reboot_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let first = device.create_session("first")?;
    let holes = sys::memfd("holes")?;
    holes.set_len(1 << 20)?;
    first.preserve(&holes, 1)?;
    let toy = driver.toy(Kind::First, 1)?;
    // The youngest session is frozen last, when those of the agents are serialized.
    let newest = || -> Outcome<_> {
        let last = device.create_session("last")?;
        last.preserve(&toy, 1)?;
        driver.log()?;
        Ok(last)
    };
    let call_off = || -> Outcome {
        driver.fail(Event::Freeze, 1, Errno::EDOM)?;
        ensure_eq!(kexec::jump().errno(), Errno::EDOM);
        ensure_eq!(driver.log()?, ["handler-1 freeze 1"]);
        Ok(())
    };

    init::load_next(stage)?;

    let mut dice = Dice(5);
    let start = |worker| Agent::start(|| beside(&device, worker));
    let mut agents = (0..3).map(start).collect::<Outcome<Vec<_>>>()?;
    let mut rounds = 0;
    for round in for_a_while() {
        let last = newest()?;
        call_off()?;
        drop(last);
        sys::write_at(&holes, (round % 200) * 5000, &round.to_ne_bytes())?;
        ensure_errno!(holes.set_len(0), EPERM);
        ensure_errno!(first.preserve(&holes, 2), EBUSY);
        if dice.below(4) == 0 {
            let worker = dice.below(3);
            agents.swap_remove(worker as usize).kill()?;
            agents.push(start(3 + round)?);
        }
        rounds = round + 1;
    }
    for agent in agents {
        agent.kill()?;
    }
    // Sessions that were closed while they were serialized are removed now.
    let last = newest()?;
    call_off()?;
    for worker in 0..3 + rounds {
        ensure!(!exists(&device, &format!("beside-{worker}"))?);
    }
    first.preserve(&sys::memfd_of("rounds", &rounds.to_ne_bytes())?, 2)?;
    stage.note(format!("{rounds} reboots called off"));
    stage.keep(first);
    stage.keep(last);
    Ok(())
}

/// The one that is not called off brings over exactly what is preserved.
pub fn reboot_after(_: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let first = device.retrieve_session("first")?;
    let last = device.retrieve_session("last")?;

    let rounds = sys::content(&first.retrieve(2)?.into())?;
    let rounds = u64::from_ne_bytes(rounds.try_into().map_err(|_| Failure::here("no number"))?);
    let mut expected = vec![0; 1 << 20];
    for round in 0..rounds {
        let at = (round % 200) as usize * 5000;
        expected[at..at + 8].copy_from_slice(&round.to_ne_bytes());
    }
    ensure!(sys::content(&first.retrieve(1)?.into())? == expected);
    drop(last.retrieve(1)?);
    for worker in 0..3 + rounds {
        ensure_errno!(device.retrieve_session(&format!("beside-{worker}")), ENOENT);
    }
    first.finish()?;
    last.finish()?;
    drop((first, last));
    driver.unload()
}

const RACED: u32 = 16;
const TOYS: u32 = 4;

/// Toys for [`retrieve_after`].
pub fn retrieve_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;

    for i in 0..RACED {
        let session: Session<Outgoing> = device.create_session(&format!("raced-{i}"))?;
        for toy in 0..TOYS {
            let key = i * TOYS + toy;
            session.preserve(&driver.toy(Kind::First, key)?, u64::from(toy))?;
        }
        stage.keep(session);
    }
    Ok(())
}

/// Threads that ask for one token get one file, which its driver makes once; and if the session is
/// finished meanwhile, each file is finished once, as what it is.
pub fn retrieve_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let mut late = 0;

    for i in 0..RACED {
        let session = device.retrieve_session(&format!("raced-{i}"))?;
        let finishing = i % 2 == 1;
        let got = std::sync::Mutex::new(Vec::new());
        together::<4>(|number| {
            if finishing && number == 3 {
                return Ok(session.finish()?);
            }
            for step in 0..TOYS {
                // Some in the same order, some in another.
                let toy = (step + number as u32 / 2) % TOYS;
                match session.retrieve(u64::from(toy)) {
                    Ok(fd) => got
                        .lock()
                        .map_err(|_| Failure::here("poisoned"))?
                        .push((toy, fd)),
                    Err(err) => {
                        ensure!(finishing && err.errno() == Errno::ENOENT, "{err}");
                    }
                }
            }
            Ok(())
        })?;
        if !finishing {
            session.finish()?;
        }

        let calls = driver.log()?;
        let count = |what: String| calls.iter().filter(|line| **line == what).count();
        let got = got.into_inner().map_err(|_| Failure::here("poisoned"))?;
        for toy in 0..TOYS {
            let key = i * TOYS + toy;
            let own: Vec<_> = got.iter().filter(|(it, _)| *it == toy).collect();
            let made = usize::from(!own.is_empty());
            late += 1 - made;
            ensure!(finishing || own.len() == 4);
            ensure_eq!(count(format!("handler-1 retrieve {key}")), made);
            ensure_eq!(count(format!("handler-1 finish-retrieved {key}")), made);
            ensure_eq!(
                count(format!("handler-1 finish-never-asked {key}")),
                1 - made
            );
            if let Some((_, one)) = own.first() {
                sys::set_nonblocking(one)?;
            }
            for (_, each) in own {
                ensure!(sys::is_nonblocking(&each.as_fd())?, "another file");
            }
        }
    }
    stage.note(format!("{late} toys were asked for too late"));
    driver.unload()
}
