// SPDX-License-Identifier: GPL-2.0

//! Each allocation and each copy from or to user space fails once: the first of an operation, then
//! the second, and so on, until it succeeds. A failure changes nothing.
//!
//! For kernels with fault injection (`CONFIG_FAULT_INJECTION`).

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        HasErrno,
        Outcome,
        Stage, //
    },
    init, sys,
    tests::{
        driver::{
            Driver,
            Kind, //
        },
        reboot, //
    },
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    fcntl::OFlag, //
};
use std::{
    fmt::Display,
    fs::{
        File,
        OpenOptions, //
    },
    io::{
        ErrorKind,
        Write, //
    },
    os::unix::fs::{
        FileExt,
        OpenOptionsExt, //
    },
    thread,
    time::Duration, //
};

/// The faults of this thread.
pub struct Faults {
    nth: File,
}

impl Faults {
    pub fn new() -> Outcome<Self> {
        let path = "/proc/thread-self/fail-nth";
        let nth = match OpenOptions::new().read(true).write(true).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Failure::skip("no fault injection"))
            }
            other => other?,
        };

        for fault in ["failslab", "fail_page_alloc", "fail_usercopy"] {
            let set = |name: &str, value: &str| {
                let path = format!("/sys/kernel/debug/{fault}/{name}");
                // Not all faults have all of them, and none is made here.
                match OpenOptions::new().write(true).open(path) {
                    Ok(mut file) => file.write_all(value.as_bytes()),
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                    Err(e) => Err(e),
                }
            };
            // Quietly, and also those who could wait.
            set("verbose", "0")?;
            set("ignore-gfp-wait", "0")?;
            set("min-order", "0")?;
        }
        Ok(Self { nth })
    }

    fn set(&self, nth: u32) {
        let text = nth.to_string();
        // What is still armed may hit this as well, and is gone then.
        let set = (0..2).any(|_| self.nth.write_at(text.as_bytes(), 0).is_ok());
        assert!(set, "fail-nth cannot be set");
    }

    /// Runs `f` with its `nth` allocation or copy failing, and says whether there was one.
    pub fn hit<T>(&self, nth: u32, f: impl FnOnce() -> T) -> (T, bool) {
        let mut left = [0; 16];

        self.set(nth);
        let result = f();
        // Reading what is left is a copy, too: if that is hit, then `f` was not.
        let len = self.nth.read_at(&mut left, 0);
        let hit = matches!(len, Ok(len) if left[..len].trim_ascii() == b"0");
        self.set(0);
        (result, hit)
    }
}

/// The number of failures that an operation can have. More than that is an endless loop.
const MANY: u32 = 2000;

/// Runs `round` with the first failure, the second, and so on, until it says that there was none.
/// Returns how many there were.
fn each_failure(mut round: impl FnMut(u32) -> Outcome<bool>) -> Outcome<u32> {
    for nth in 1..MANY {
        if !round(nth)? {
            return Ok(nth - 1);
        }
    }
    Err(Failure::here("no end of failures"))
}

/// Does the same over and over, and checks that memory does not dwindle.
fn without_leak(stage: &mut Stage, mut failures: impl FnMut() -> Outcome<u32>) -> Outcome {
    const ROUNDS: u32 = 30;

    // Caches fill at first. A slow kernel has other ways to tell what leaks.
    for _ in 0..5 {
        failures()?;
        if init::is_slow()? {
            return Ok(());
        }
    }
    let before = sys::free_memory()?;
    let mut count = 0;
    for _ in 0..ROUNDS {
        count = failures()?;
    }
    // Freed memory comes back a moment later.
    thread::sleep(Duration::from_millis(300));
    let lost = before.saturating_sub(sys::free_memory()?);
    stage.note(format!(
        "{count} failures; {lost} KiB less free after {ROUNDS} times"
    ));
    ensure!(lost < 1024, "{lost} KiB lost");
    Ok(())
}

/// Checks that a failure has a cause, and is called what it is.
fn shortage(err: &(impl HasErrno + Display), hit: bool) -> Outcome {
    ensure!(hit, "failed without a fault: {err}");
    ensure!(
        matches!(
            err.errno(),
            Errno::ENOMEM | Errno::ENOSPC | Errno::EFAULT | Errno::ENFILE
        ),
        "{err}"
    );
    Ok(())
}

/// A memfd with some content, a hole, and more content.
fn memory() -> Outcome<File> {
    let memory = sys::memfd("faults")?;

    memory.set_len(1 << 20)?;
    sys::write_at(&memory, 0, &sys::pattern(1, 100_000))?;
    sys::write_at(&memory, 900_000, &sys::pattern(2, 100_000))?;
    Ok(memory)
}

fn expected() -> Vec<u8> {
    let mut content = vec![0; 1 << 20];

    content[..100_000].copy_from_slice(&sys::pattern(1, 100_000));
    content[900_000..1_000_000].copy_from_slice(&sys::pattern(2, 100_000));
    content
}

/// Opening the device.
pub fn open(stage: &mut Stage) -> Outcome {
    let faults = Faults::new()?;
    let fds = sys::open_fds()?;

    without_leak(stage, || {
        each_failure(|nth| {
            let (device, hit) = faults.hit(nth, || {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(OFlag::O_CLOEXEC.bits())
                    .open("/dev/liveupdate")
            });
            match device {
                Ok(device) => drop(device),
                Err(err) => shortage(&err, hit)?,
            }
            ensure_eq!(sys::open_fds()?, fds);
            // Nobody has it, whatever happened.
            drop(Device::open()?);
            Ok(hit)
        })
    })
}

/// Making a session, and closing it.
pub fn create(stage: &mut Stage) -> Outcome {
    let faults = Faults::new()?;
    let device = Device::open()?;
    let fds = sys::open_fds()?;
    let name = stage.name;

    without_leak(stage, || {
        each_failure(|nth| {
            let (session, hit) = faults.hit(nth, || device.create_session(name));
            match session {
                Ok(session) => {
                    ensure_errno!(device.create_session(name), EEXIST);
                    // Closing cannot fail.
                    faults.hit(nth, || drop(session));
                }
                Err(err) => shortage(&err, hit)?,
            }
            ensure_eq!(sys::open_fds()?, fds);
            drop(device.create_session(name)?);
            Ok(hit)
        })
    })
}

/// Preserving a file, asking for the session's name, and closing it.
pub fn preserve(stage: &mut Stage) -> Outcome {
    let faults = Faults::new()?;
    let device = Device::open()?;
    let memory = memory()?;
    let name = stage.name;

    without_leak(stage, || {
        each_failure(|nth| {
            let session = device.create_session(name)?;
            let (preserved, hit) = faults.hit(nth, || session.preserve(&memory, 1));
            match preserved {
                Ok(()) => {
                    ensure_errno!(session.preserve(&sys::memfd("other")?, 1), EEXIST);
                    ensure_errno!(memory.set_len(0), EPERM);
                }
                Err(err) => {
                    shortage(&err, hit)?;
                    // Token and file are free, and the file can be changed.
                    memory.set_len(2 << 20)?;
                    memory.set_len(1 << 20)?;
                    session.preserve(&memory, 1)?;
                }
            }
            let (asked, hit) = faults.hit(nth, || session.ask_name());
            match asked {
                Ok(found) => ensure_eq!(found.to_string(), name),
                Err(err) => shortage(&err, hit)?,
            }
            faults.hit(nth, || drop(session));
            memory.set_len(2 << 20)?;
            memory.set_len(1 << 20)?;
            ensure!(sys::content(&memory)? == expected());
            Ok(hit)
        })
    })
}

/// Preserving a file whose handler depends on state that files share.
pub fn driver(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let faults = Faults::new()?;
    let device = Device::open()?;
    let name = stage.name;
    let toy = driver.toy(Kind::First, 1)?;

    without_leak(stage, || {
        each_failure(|nth| {
            let session = device.create_session(name)?;
            driver.log()?;
            let (preserved, hit) = faults.hit(nth, || session.preserve(&toy, 1));
            if let Err(err) = preserved {
                shortage(&err, hit)?;
            }
            drop(session);
            // Whatever was done has been undone.
            let calls = driver.log()?;
            let count = |what: &str| calls.iter().filter(|line| line.contains(what)).count();
            ensure_eq!(count("preserve"), 2 * count("unpreserve"));
            Ok(hit)
        })
    })?;
    drop(toy);
    driver.unload()
}

/// The freeze of files into which something was written late. It fails for the first file at first,
/// for the second one later, and so on, and is done again when there is memory.
pub fn freeze_before(stage: &mut Stage) -> Outcome {
    let faults = Faults::new()?;
    let session = Device::open()?.create_session(stage.name)?;

    // The kexec goes ahead without what it can do without. One that would lose all is refused in
    // any case, when all is frozen.
    match reboot::load_without_handover() {
        Err(Errno::ENOSYS) => return Err(Failure::skip("no kexec_load")),
        loaded => loaded?,
    }
    let refused = |nth| {
        let (error, hit) = faults.hit(nth, kexec::jump);
        ensure_eq!(error.errno(), Errno::EOPNOTSUPP);
        Ok::<_, Failure>(hit)
    };
    let mut old = 0;
    let count = each_failure(|nth| {
        // As many failures are those of older files, into which nothing was written since.
        while refused(old + 1)? {
            old += 1;
        }
        let memory = memory()?;
        session.preserve(&memory, u64::from(nth))?;
        sys::write_at(&memory, LATE as u64, b"x")?;
        refused(old + nth)
    })?;
    stage.note(format!("{count} failures"));

    reboot::unload_without_handover()?;
    stage.keep(session);
    Ok(())
}

/// See [`freeze_before`].
pub fn freeze_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for token in 1.. {
        match session.retrieve(token) {
            Err(err) if err.errno() == Errno::ENOENT && token > 4 => break,
            file => ensure!(
                sys::content(&file?.into())? == expected_late(),
                "file {token}"
            ),
        }
    }
    session.finish()?;
    Ok(())
}

/// How many sessions are closed with the first failure, the second, and so on.
const CLOSED: u32 = 20;

/// Where something comes into the hole of [`memory`] when it is preserved.
const LATE: usize = 500_000;

/// Where more comes, after a failure.
fn later(nth: u32) -> usize {
    LATE + nth as usize % 4 * 8192
}

/// The content of [`memory`] with what is at [`LATE`].
fn expected_late() -> Vec<u8> {
    let mut content = expected();

    content[LATE] = b'x';
    content
}

/// The kexec, until it happens.
pub fn kexec_before(stage: &mut Stage) -> Outcome {
    let faults = Faults::new()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = memory()?;
    session.preserve(&memory, 1)?;
    sys::write_at(&memory, LATE as u64, b"x")?;
    session.preserve(&sys::memfd_of("small", b"content")?, 2)?;
    let empty = device.create_session("faults-empty")?;

    let mut cmdline = CommandLine::read()?;
    cmdline.set("luo.stage", &(stage.number + 1).to_string());
    init::load(init::kernel_of(&cmdline, stage.number + 1), &cmdline)?;
    for i in 0..CLOSED {
        let session = device.create_session(&format!("faults-closed-{i}"))?;
        session.preserve(&self::memory()?, 1)?;
        stage.keep(session);
    }
    for nth in 1..MANY {
        let (error, hit) = faults.hit(nth, kexec::jump);
        shortage(&error, hit)?;
        // All is as it was: sessions and files come and go, pages appear in holes.
        let extra = sys::memfd_of("extra", b"x")?;
        ensure_errno!(session.preserve(&memory, 3), EBUSY);
        ensure_errno!(memory.set_len(0), EPERM);
        sys::write_at(&memory, later(nth) as u64, b"x")?;
        let other = device.create_session("faults-other")?;
        other.preserve(&extra, 1)?;
        drop(other);
        extra.set_len(0)?;
    }
    drop((session, empty));
    Err(Failure::here("no end of failures"))
}

/// Getting sessions and files back, and finishing.
pub fn kexec_after(stage: &mut Stage) -> Outcome {
    let faults = Faults::new()?;
    let device = Device::open()?;
    let fds = sys::open_fds()?;
    let mut notes = Vec::new();

    ensure_errno!(device.retrieve_session("faults-other"), ENOENT);
    device.retrieve_session("faults-empty")?.finish()?;

    let mut session = None;
    let count = each_failure(|nth| {
        let (retrieved, hit) = faults.hit(nth, || device.retrieve_session(stage.name));
        match retrieved {
            // One that came back in spite of a failure is there.
            Ok(retrieved) => session = Some(retrieved),
            Err(err) => {
                shortage(&err, hit)?;
                ensure_eq!(sys::open_fds()?, fds);
            }
        }
        Ok(session.is_none())
    })?;
    notes.push(format!("{count} for the session"));
    let session = session.ok_or_else(|| Failure::here("no session"))?;

    for token in [1, 2] {
        let fds = sys::open_fds()?;
        let mut file = None;
        let count = each_failure(|nth| {
            let (retrieved, hit) = faults.hit(nth, || session.retrieve(token));
            match retrieved {
                Ok(retrieved) => file = Some(File::from(retrieved)),
                Err(err) => {
                    shortage(&err, hit)?;
                    ensure_eq!(sys::open_fds()?, fds);
                }
            }
            Ok(file.is_none())
        })?;
        notes.push(format!("{count} for token {token}"));
        let file = file.ok_or_else(|| Failure::here("no file"))?;
        let content = sys::content(&file)?;
        match token {
            1 => {
                // How far the old kernel came is not known.
                let mut expected = expected_late();
                (1..4).for_each(|nth| expected[later(nth)] = content[later(nth)]);
                ensure!(content == expected);
            }
            _ => ensure_eq!(content, b"content"),
        }
    }

    let count = each_failure(|nth| {
        let (finished, hit) = faults.hit(nth, || session.finish());
        if let Err(err) = &finished {
            shortage(err, hit)?;
        }
        Ok(finished.is_err())
    })?;
    notes.push(format!("{count} for the end"));
    ensure_errno!(session.retrieve(1), ENOENT);

    // Closing cannot fail: it finishes the session, and what nobody retrieved is freed.
    let free = sys::free_memory()?;
    for i in 0..CLOSED {
        let name = format!("faults-closed-{i}");
        let closed = device.retrieve_session(&name)?;
        faults.hit(i + 1, || drop(closed));
        ensure_errno!(device.retrieve_session(&name), ENOENT);
    }
    thread::sleep(Duration::from_millis(300));
    let freed = sys::free_memory()?.saturating_sub(free);
    notes.push(format!("{freed} KiB freed"));
    ensure!(freed > u64::from(CLOSED) * 190, "only {freed} KiB freed");
    stage.note(format!("failures: {}", notes.join(", ")));
    Ok(())
}
