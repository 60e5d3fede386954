// SPDX-License-Identifier: GPL-2.0

//! Drivers: what LUO asks of them and when, what happens when they fail, come late, or go.
//!
//! The driver is `modules/luo_test_driver.rs`. It makes toys, files with a kind and a key, for which
//! there are two handlers with three FLBs, and tells which callbacks came.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    init,
    module,
    sys, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device,
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    libc, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::Read,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

const DRIVER: &str = "luo_test_driver";

/// Which handlers take a toy.
#[derive(Clone, Copy)]
pub enum Kind {
    Any = 0,
    First = 1,
    Second = 2,
}

/// What can fail. The numbers are those of the driver's events.
#[derive(Clone, Copy)]
pub enum Event {
    Preserve = 0,
    Freeze = 1,
    Retrieve = 4,
    RetrieveAgain = 5,
    CanFinish = 6,
    FlbPreserve = 10,
    FlbRetrieve = 12,
}

/// `/dev/luo-test`. While it is open, it keeps the shared state that was fetched by it.
pub struct Driver {
    device: File,
}

fn ioctl(file: &impl AsRawFd, number: u64, argument: u64) -> nix::Result<i32> {
    // SAFETY: The driver takes the argument for a number.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), 0xbc00 | number, argument) })
}

impl Driver {
    pub fn load() -> Outcome<Self> {
        Self::load_with("")
    }

    fn load_with(parameters: &str) -> Outcome<Self> {
        module::load(DRIVER, parameters)?;
        Self::open()
    }

    fn open() -> Outcome<Self> {
        Ok(Self {
            device: OpenOptions::new().read(true).open("/dev/luo-test")?,
        })
    }

    /// Makes a toy.
    pub fn toy(&self, kind: Kind, key: u32) -> Outcome<OwnedFd> {
        let fd = ioctl(&self.device, 0, (u64::from(key) << 8) | kind as u64)?;
        // SAFETY: The driver has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Has the `count`th call from now on fail.
    pub fn fail(&self, event: Event, count: u64, errno: Errno) -> Outcome {
        let argument = (count << 24) | ((errno as u64) << 8) | event as u64;
        ioctl(&self.device, 1, argument)?;
        Ok(())
    }

    /// Fetches one of the three shared numbers, as it came in.
    fn fetch_incoming(&self, which: u64) -> nix::Result<i32> {
        ioctl(&self.device, 2, which)
    }

    /// The same, as it goes out.
    fn fetch_outgoing(&self, which: u64) -> nix::Result<i32> {
        ioctl(&self.device, 2, 10 + which)
    }

    /// Has the next such event wait at the gate.
    pub fn close_gate(&self, event: Event) -> Outcome {
        ioctl(&self.device, 3, event as u64)?;
        Ok(())
    }

    /// Lets it go on. Returns whether something waited.
    pub fn open_gate(&self) -> Outcome<bool> {
        Ok(ioctl(&self.device, 4, 0)? == 1)
    }

    /// Whether something waits at the gate.
    pub fn waits(&self) -> Outcome<bool> {
        Ok(ioctl(&self.device, 5, 0)? == 1)
    }

    /// Waits until something waits at the gate.
    pub fn await_gate(&self) -> Outcome {
        let end = Instant::now() + Duration::from_secs(60);

        while !self.waits()? {
            ensure!(Instant::now() < end, "nobody comes to the gate");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What happened since it was asked last.
    pub fn log(&self) -> Outcome<Vec<String>> {
        let mut text = vec![0; 1 << 16];
        let len = (&self.device).read(&mut text)?;
        let text = String::from_utf8_lossy(&text[..len]);

        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Unloads the driver, which must be possible.
    pub fn unload(self) -> Outcome {
        drop(self);
        module::unload(DRIVER)?;
        Ok(())
    }

    /// Checks that it cannot be unloaded, even though nobody has it open.
    fn cannot_unload(self) -> Outcome<Self> {
        drop(self);
        ensure_errno!(module::unload(DRIVER), EWOULDBLOCK);
        Self::open()
    }
}

fn key(toy: &impl AsRawFd) -> Outcome<i32> {
    Ok(ioctl(toy, 0x10, 0)?)
}

fn retrieved_key(session: &Session<Incoming>, token: u64) -> Outcome<i32> {
    key(&session.retrieve(token)?)
}

fn is_c() -> Outcome<bool> {
    Ok(CommandLine::read()?.get("luo.core") == Some("c"))
}

/// Where in the kernel's log the next message will be.
fn next_record() -> Outcome<u64> {
    Ok(luo_guest::kernel_log(0)?
        .last()
        .map_or(0, |last| last.sequence + 1))
}

/// The kernel's log from now on.
pub struct Log {
    first: u64,
    _unlimited: Option<sys::Sysctl>,
}

impl Log {
    /// Until this is dropped, the kernel says all that there is to be said, however much others in the
    /// same boot have made it say.
    pub fn from_now() -> Outcome<Self> {
        Ok(Self {
            _unlimited: Some(sys::Sysctl::set("kernel/printk_ratelimit", "0")?),
            first: next_record()?,
        })
    }

    /// The kernel says as much as it usually does.
    pub fn next() -> Outcome<Self> {
        Ok(Self {
            _unlimited: None,
            first: next_record()?,
        })
    }

    /// The first line that has a text.
    pub fn find(&self, text: &str) -> Outcome<Option<String>> {
        let log = luo_guest::kernel_log(self.first)?;
        let found = log.into_iter().find(|record| record.text.contains(text));

        Ok(found.map(|record| record.text))
    }

    /// How many lines have a text.
    pub fn count(&self, text: &str) -> Outcome<usize> {
        let log = luo_guest::kernel_log(self.first)?;
        let found = log.iter().filter(|record| record.text.contains(text));

        Ok(found.count())
    }

    /// Checks that the kernel has said something since (the C core has words of its own).
    fn says(&self, text: &str) -> Outcome {
        ensure!(is_c()? || self.find(text)?.is_some(), "no word of: {text}");
        Ok(())
    }
}

/// The checks of `modules/luo_test_capi.c`.
pub fn interface(_: &mut Stage) -> Outcome {
    let parameters = if is_c()? { "strict=0" } else { "" };

    for _ in 0..2 {
        module::load("luo_test_capi", parameters)?;
        module::unload("luo_test_capi")?;
    }
    Ok(())
}

/// A module goes exactly when nothing of it is preserved.
pub fn unload(stage: &mut Stage) -> Outcome {
    for round in 0..3 {
        let driver = Driver::load()?;
        let toy = driver.toy(Kind::First, 1)?;
        ensure_eq!(key(&toy)?, 1);
        ensure_eq!(sys::link_of(&toy)?, "anon_inode:[luo_test]");

        let session = Device::open()?.create_session(&format!("{}-{round}", stage.name))?;
        session.preserve(&toy, 1)?;
        drop(toy);
        let driver = driver.cannot_unload()?;
        drop(session);
        driver.unload()?;
    }

    // Nor while a file of it is open.
    let driver = Driver::load()?;
    let toy = driver.toy(Kind::First, 1)?;
    let driver = driver.cannot_unload()?;
    drop(toy);
    driver.unload()
}

/// Of several handlers that accept a file, the one that was registered first gets it.
pub fn choice(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for (parameters, winner) in [("", 1), ("swapped=1", 2)] {
        let driver = Driver::load_with(parameters)?;
        for (kind, handler) in [(Kind::Any, winner), (Kind::First, 1), (Kind::Second, 2)] {
            let session = device.create_session(stage.name)?;
            session.preserve(&driver.toy(kind, 5)?, 1)?;
            drop(session);

            let calls = driver.log()?;
            let own: Vec<_> = calls.iter().filter(|line| !line.contains("flb")).collect();
            ensure_eq!(
                own,
                [
                    &format!("handler-{handler} preserve 5"),
                    &format!("handler-{handler} unpreserve 5")
                ]
            );
        }
        driver.unload()?;
    }
    Ok(())
}

/// What counts as one file, its handler says.
pub fn same_file(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let other = device.create_session("same-file-other")?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    ensure_errno!(session.preserve(&driver.toy(Kind::First, 1)?, 2), EBUSY);
    ensure_errno!(other.preserve(&driver.toy(Kind::Second, 1)?, 1), EBUSY);
    other.preserve(&driver.toy(Kind::First, 2)?, 1)?;
    drop(session);
    other.preserve(&driver.toy(Kind::Second, 1)?, 2)?;
    drop(other);
    driver.unload()
}

/// A driver that fails to preserve leaves nothing behind.
pub fn preserve_fails(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    let all = ["flb-1 preserve", "flb-2 preserve", "flb-3 preserve"];
    let undone = ["flb-3 unpreserve", "flb-2 unpreserve", "flb-1 unpreserve"];

    let log = Log::from_now()?;
    driver.fail(Event::Preserve, 1, Errno::EDOM)?;
    ensure_errno!(session.preserve(&toy, 1), EDOM);
    log.says(
        "session 'driver-preserve-fails': token 0x1: handler 'luo-test-first-v1': preserve failed",
    )?;
    let own: &[&str] = &["handler-1 preserve 1"];
    ensure_eq!(driver.log()?, [&all, own, &undone].concat());
    for which in 1..=3 {
        ensure_errno!(driver.fetch_outgoing(which), ENOENT);
    }

    for nth in 1..=3 {
        driver.fail(Event::FlbPreserve, nth as u64, Errno::EXDEV)?;
        ensure_errno!(session.preserve(&toy, 1), EXDEV);
        ensure_eq!(driver.log()?, [&all[..nth], &undone[4 - nth..]].concat());
    }

    // The token is free, and so is the file.
    session.preserve(&toy, 1)?;
    ensure_eq!(driver.log()?, [&all[..], own].concat());
    // With a second file the first one's state stays whatever happens.
    driver.fail(Event::Preserve, 1, Errno::EDOM)?;
    ensure_errno!(session.preserve(&driver.toy(Kind::Second, 2)?, 2), EDOM);
    ensure_eq!(driver.log()?, ["handler-2 preserve 2"]);
    ensure_eq!(driver.fetch_outgoing(2)?, 2);
    drop(session);
    drop(toy);
    driver.unload()
}

/// A driver's `EAGAIN` is an error like any other: it is asked once, and the caller has the answer.
pub fn preserve_again(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    session.preserve(&driver.toy(Kind::First, 2)?, 2)?;
    driver.log()?;

    driver.fail(Event::Preserve, 1, Errno::EAGAIN)?;
    ensure_errno!(session.preserve(&toy, 1), EAGAIN);
    ensure_eq!(driver.log()?, ["handler-1 preserve 1"]);
    session.preserve(&toy, 1)?;
    drop(session);
    drop(toy);
    driver.unload()
}

/// Of several handlers that accept a file, one that is being unloaded is passed over.
pub fn choice_unloading(stage: &mut Stage) -> Outcome {
    const GREEDY: &str = "luo_test_greedy";

    module::load(GREEDY, "milliseconds=2000")?;
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    ensure_errno!(session.preserve(&toy, 1), EXDEV);

    let unloading = thread::spawn(|| module::unload(GREEDY));
    let state = format!("/sys/module/{GREEDY}/initstate");
    while fs::read_to_string(&state)? != "going\n" {
        thread::sleep(Duration::from_millis(1));
    }
    session.preserve(&toy, 1)?;
    ensure_eq!(fs::read_to_string(&state)?, "going\n");
    let unloaded = unloading.join();
    unloaded.map_err(|_| Failure::here("a thread panicked"))??;
    drop(session);
    drop(toy);
    driver.unload()
}

/// Whoever fails at will does not fill the log.
pub fn quiet(stage: &mut Stage) -> Outcome {
    // Not more than the log holds of what others say to it, too.
    const FAILURES: usize = 100;

    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;
    let toy = driver.toy(Kind::First, 1)?;
    let log = Log::next()?;
    for _ in 0..FAILURES {
        driver.fail(Event::Preserve, 1, Errno::EDOM)?;
        ensure_errno!(session.preserve(&toy, 1), EDOM);
    }
    let lines = log.count("luo: ")?;
    stage.note(format!("{lines} lines for {FAILURES} failures"));
    ensure!(lines > 0 && lines < FAILURES / 2, "{lines} lines");
    drop(session);
    drop(toy);
    driver.unload()
}

/// State that 100 files of two handlers share, until the last of them is not preserved any more.
pub fn shared_undone(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let (one, other) = preserve_hundred(&driver, &device, stage.name)?;

    let calls = driver.log()?;
    let flbs = |calls: &[String]| -> Vec<String> {
        let lines = calls.iter().filter(|line| line.starts_with("flb"));
        lines.cloned().collect()
    };
    ensure_eq!(
        flbs(&calls),
        ["flb-1 preserve", "flb-2 preserve", "flb-3 preserve"]
    );
    ensure_eq!(calls.len(), 103);

    drop(one);
    let calls = driver.log()?;
    ensure_eq!(flbs(&calls), [""; 0]);
    // In reverse order.
    ensure_eq!(calls.len(), 50);
    ensure_eq!(calls[0], "handler-2 unpreserve 98");
    ensure_eq!(calls[49], "handler-1 unpreserve 0");

    drop(other);
    ensure_eq!(
        flbs(&driver.log()?),
        ["flb-3 unpreserve", "flb-2 unpreserve", "flb-1 unpreserve"]
    );
    driver.unload()
}

type Sessions = (Session<liveupdate::Outgoing>, Session<liveupdate::Outgoing>);

/// Preserves 100 files of both handlers in two sessions: even keys in the first, odd ones in the
/// other, the first handler's and the second's in turn.
fn preserve_hundred(driver: &Driver, device: &Device, name: &str) -> Outcome<Sessions> {
    let one = device.create_session(&format!("{name}-one"))?;
    let other = device.create_session(&format!("{name}-other"))?;

    for key in 0..100 {
        let kind = if key % 4 < 2 {
            Kind::First
        } else {
            Kind::Second
        };
        let session = if key % 2 == 0 { &one } else { &other };
        session.preserve(&driver.toy(kind, key)?, u64::from(key))?;
    }
    Ok((one, other))
}

/// Half of what shares the state is undone, the other half crosses.
pub fn shared_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let (one, other) = preserve_hundred(&driver, &device, stage.name)?;

    drop(one);
    // References of drivers do not cross, files do.
    for which in [1, 1, 2] {
        driver.fetch_outgoing(which)?;
    }
    let last = device.create_session("shared-last")?;
    last.preserve(&driver.toy(Kind::Any, 1000)?, 1)?;
    for session in [other, last] {
        stage.keep(session);
    }
    stage.keep(driver.device);
    Ok(())
}

/// One FLB is fetched often, one once, and one never; each is finished once, with the last file.
pub fn shared_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    ensure_errno!(
        device.retrieve_session(&format!("{}-one", stage.name)),
        ENOENT
    );
    let session = device.retrieve_session(&format!("{}-other", stage.name))?;

    let other = Driver::open()?;
    for _ in 0..3 {
        ensure_eq!(other.fetch_incoming(1)?, 100);
    }
    ensure_eq!(driver.fetch_incoming(2)?, 200);
    ensure_errno!(driver.fetch_outgoing(1), ENOENT);
    ensure_eq!(driver.log()?, ["flb-1 retrieve", "flb-2 retrieve"]);

    for key in (1..50).step_by(2) {
        ensure_eq!(retrieved_key(&session, key)?, key as i32);
    }
    session.finish()?;
    let calls = driver.log()?;
    ensure!(!calls.iter().any(|line| line.starts_with("flb")));
    let count = |what: &str| calls.iter().filter(|line| line.contains(what)).count();
    ensure_eq!(count("finish-retrieved"), 25);
    ensure_eq!(count("finish-never-asked"), 25);

    // A driver that has the object keeps it alive.
    device.retrieve_session("shared-last")?.finish()?;
    let calls = driver.log()?;
    let flbs = |calls: Vec<String>| -> Vec<String> {
        let lines = calls.into_iter().filter(|line| line.starts_with("flb"));
        lines.collect()
    };
    ensure_eq!(flbs(calls), ["flb-3 retrieve", "flb-3 finish"]);
    drop(other);
    ensure_eq!(flbs(driver.log()?), ["flb-1 finish"]);
    ensure_errno!(driver.fetch_incoming(1), ENODATA);
    drop(driver);
    let driver = Driver::open()?;
    ensure_eq!(flbs(driver.log()?), ["flb-2 finish"]);
    driver.unload()?;

    // Finished is finished, whoever asks later.
    let driver = Driver::load()?;
    for which in 1..=3 {
        ensure_errno!(driver.fetch_incoming(which), ENODATA);
    }
    driver.unload()
}

/// See [`shared_fails_after`].
pub fn shared_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    stage.keep(session);
    Ok(())
}

/// Shared state that cannot be made is asked for once, and costs nothing else.
pub fn shared_fails_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    driver.fail(Event::FlbRetrieve, 1, Errno::EDOM)?;
    for _ in 0..3 {
        ensure_errno!(driver.fetch_incoming(1), EDOM);
    }
    ensure_eq!(driver.log()?, ["flb-1 retrieve"]);
    ensure_eq!(driver.fetch_incoming(2)?, 200);
    ensure_eq!(retrieved_key(&session, 1)?, 1);
    session.finish()?;
    drop(driver);
    let driver = Driver::open()?;
    let calls = driver.log()?;
    ensure!(!calls.iter().any(|line| line == "flb-1 finish"));
    ensure!(calls.iter().any(|line| line == "flb-2 finish"));
    ensure!(calls.iter().any(|line| line == "flb-3 finish"));
    driver.unload()
}

/// A file that cannot be frozen calls the kexec off, wherever it is; all others thaw.
pub fn freeze_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let mut sessions = Vec::new();
    let mut token = 0;

    for name in ["freeze-a", "freeze-b", "freeze-c"] {
        let session = device.create_session(name)?;
        for _ in 0..3 {
            session.preserve(&driver.toy(Kind::First, token)?, u64::from(token))?;
            token += 1;
        }
        sessions.push(session);
    }
    driver.log()?;

    let mut cmdline = CommandLine::read()?;
    cmdline.set("luo.stage", &(stage.number + 1).to_string());
    init::load(init::kernel_of(&cmdline, stage.number + 1), &cmdline)?;
    let log = Log::from_now()?;
    for nth in 1..=9 {
        driver.fail(Event::Freeze, nth, Errno::EDOM)?;
        ensure_eq!(kexec::jump().errno(), Errno::EDOM);

        let calls = driver.log()?;
        let nth = nth as usize;
        let (frozen, thawed) = calls.split_at(nth);
        ensure_eq!(thawed.len(), nth - 1);
        for (freeze, unfreeze) in frozen.iter().zip(thawed.iter().rev()) {
            ensure_eq!(freeze.replace("freeze", "unfreeze"), *unfreeze);
        }
        // All is as it was: files come and go.
        let extra = sessions[0].preserve(&driver.toy(Kind::Second, 100 + nth as u32)?, 100);
        ensure!(extra.is_ok() == (nth == 1));
        ensure_errno!(
            sessions[1].preserve(&driver.toy(Kind::First, 1)?, 200),
            EBUSY
        );
        drop(device.create_session("freeze-more")?);
        driver.log()?;
    }
    log.says("session 'freeze-b': token 0x4: handler 'luo-test-first-v1': freeze failed")?;

    for session in sessions {
        stage.keep(session);
    }
    Ok(())
}

/// In the end it works, and everything is there.
pub fn freeze_fails_after(_: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;

    for (name, tokens) in [
        ("freeze-a", &[0, 1, 2, 100][..]),
        ("freeze-b", &[3, 4, 5]),
        ("freeze-c", &[6, 7, 8]),
    ] {
        let session = device.retrieve_session(name)?;
        for token in tokens {
            let expected = if *token == 100 { 101 } else { *token };
            ensure_eq!(retrieved_key(&session, *token)?, expected as i32);
        }
        session.finish()?;
    }
    driver.unload()
}

/// See [`late_after`].
pub fn late_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    session.preserve(&driver.toy(Kind::First, 7)?, 1)?;
    session.preserve(&sys::memfd_of("m", b"content")?, 2)?;
    let other = device.create_session("late-other")?;
    other.preserve(&sys::memfd_of("o", b"other")?, 1)?;

    stage.keep(session);
    stage.keep(other);
    Ok(())
}

/// A driver that comes when the agent has long been there still gets its files. Until then they
/// cost nothing but themselves.
pub fn late_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    for _ in 0..2 {
        ensure_errno!(session.retrieve(1), ENOENT);
    }
    ensure_eq!(sys::content(&session.retrieve(2)?.into())?, b"content");
    ensure_errno!(session.finish(), EBUSY);
    let other = device.retrieve_session("late-other")?;
    ensure_eq!(sys::content(&other.retrieve(1)?.into())?, b"other");
    other.finish()?;

    let driver = Driver::load()?;
    ensure_eq!(driver.log()?, [""; 0]);
    ensure_eq!(retrieved_key(&session, 1)?, 7);
    ensure_eq!(retrieved_key(&session, 1)?, 7);
    ensure_eq!(sys::content(&session.retrieve(2)?.into())?, b"content");
    session.finish()?;
    let calls = driver.log()?;
    let count = |what: &str| calls.iter().filter(|line| line.contains(what)).count();
    ensure_eq!(count("retrieve 7"), 1);
    ensure_eq!(count("finish-retrieved 7"), 1);
    driver.unload()
}

/// See [`unload_incoming_after`].
pub fn unload_incoming_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    session.preserve(&driver.toy(Kind::First, 2)?, 2)?;
    stage.keep(session);
    Ok(())
}

/// A module for which files came in stays until they are finished, even if nobody asked for them.
pub fn unload_incoming_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?.cannot_unload()?;
    let session = Device::open()?.retrieve_session(stage.name)?;
    let driver = driver.cannot_unload()?;
    ensure_eq!(retrieved_key(&session, 2)?, 2);
    let driver = driver.cannot_unload()?;
    driver.log()?;

    session.finish()?;
    let mut calls = driver.log()?;
    calls.retain(|line| line.contains(" finish-"));
    calls.sort();
    ensure_eq!(
        calls,
        [
            "handler-1 finish-never-asked 1",
            "handler-1 finish-retrieved 2"
        ]
    );
    driver.unload()?;
    Driver::load()?.unload()
}

/// See [`retrieve_fails_after`].
pub fn retrieve_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.create_session(stage.name)?;

    for key in 1..=3 {
        session.preserve(&driver.toy(Kind::First, key)?, u64::from(key))?;
    }
    stage.keep(session);
    Ok(())
}

/// A file that could not be made stays lost, with the same error, and costs nothing else. A driver
/// that is not ready to finish holds all of them.
pub fn retrieve_fails_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    let log = Log::from_now()?;
    driver.fail(Event::Retrieve, 1, Errno::EDOM)?;
    for _ in 0..3 {
        ensure_errno!(session.retrieve(1), EDOM);
    }
    log.says(
        "session 'driver-retrieve-fails': token 0x1: handler 'luo-test-first-v1': retrieve failed",
    )?;
    ensure_eq!(retrieved_key(&session, 2)?, 2);
    let calls = driver.log()?;
    ensure_eq!(
        calls
            .iter()
            .filter(|line| line.ends_with("retrieve 1"))
            .count(),
        1
    );

    for nth in 1..=3 {
        driver.fail(Event::CanFinish, nth, Errno::EDOM)?;
        ensure_errno!(session.finish(), EBUSY);
        ensure!(!driver.log()?.iter().any(|line| line.contains(" finish-")));
        ensure_eq!(retrieved_key(&session, 2)?, 2);
    }

    session.finish()?;
    let mut calls = driver.log()?;
    calls.retain(|line| line.contains(" finish-"));
    calls.sort();
    ensure_eq!(
        calls,
        [
            "handler-1 finish-failed 1",
            "handler-1 finish-never-asked 3",
            "handler-1 finish-retrieved 2",
        ]
    );
    driver.unload()
}

/// See [`refused_after`].
pub fn refused_before(stage: &mut Stage) -> Outcome {
    retrieve_fails_before(stage)
}

/// A session that is closed while a driver is not ready to finish is there for the next one who asks.
pub fn refused_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;

    for round in 0..3 {
        let session = device.retrieve_session(stage.name)?;
        ensure_errno!(device.retrieve_session(stage.name), EINVAL);
        ensure_eq!(retrieved_key(&session, 1)?, 1);
        ensure_eq!(
            retrieved_key(&session, 2 + round % 2)?,
            2 + round as i32 % 2
        );
        driver.fail(Event::CanFinish, 1 + round, Errno::EDOM)?;
        drop(session);
    }
    let mut calls = driver.log()?;
    ensure!(!calls.iter().any(|line| line.contains(" finish-")));
    calls.retain(|line| line.contains(" retrieve "));
    ensure_eq!(calls.len(), 3);

    // Nobody objects any more: closing it finishes it.
    drop(device.retrieve_session(stage.name)?);
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    driver.unload()
}

/// See [`try_again_after`].
pub fn try_again_before(stage: &mut Stage) -> Outcome {
    shared_fails_before(stage)
}

/// Where nothing was consumed, asking again works.
pub fn try_again_after(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let session = Device::open()?.retrieve_session(stage.name)?;

    for errno in [Errno::ENOMEM, Errno::ENFILE] {
        driver.fail(Event::RetrieveAgain, 1, errno)?;
        match session.retrieve(1) {
            Err(e) => ensure_eq!(e.errno(), errno),
            Ok(_) => return Err(Failure::here("it worked")),
        }
    }
    ensure_eq!(retrieved_key(&session, 1)?, 1);
    session.finish()?;
    driver.unload()
}
