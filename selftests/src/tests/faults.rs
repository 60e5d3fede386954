// SPDX-License-Identifier: GPL-2.0

//! Each allocation and each copy from or to user space fails once: the first of an operation, then
//! the second, and so on, until it succeeds. A failure changes nothing.
//!
//! For kernels with fault injection (`configs/debug.config`).

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
    sys, //
};
use liveupdate::{
    guest::CommandLine,
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    fcntl::OFlag, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        ErrorKind,
        Read,
        Seek,
        Write, //
    },
    os::unix::fs::OpenOptionsExt, //
};

/// The faults of this thread.
struct Faults {
    nth: File,
}

impl Faults {
    fn new() -> Outcome<Self> {
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
                // Not all faults have all of them.
                fs::write(path, value).or_else(|e| match e.kind() {
                    ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                })
            };
            // Quietly, and also those who could wait.
            set("verbose", "0")?;
            set("ignore-gfp-wait", "0")?;
            set("min-order", "0")?;
        }
        Ok(Self { nth })
    }

    fn set(&mut self, nth: u32) {
        // What is still armed may hit this as well, and is gone then.
        while self.nth.rewind().is_err() || write!(self.nth, "{nth}").is_err() {}
    }

    /// Runs `f` with its `nth` allocation or copy failing, and says whether there was one.
    fn hit<T>(&mut self, nth: u32, f: impl FnOnce() -> T) -> (T, bool) {
        let mut left = [0; 16];

        self.set(nth);
        let result = f();
        // Reading what is left is a copy, too: if that is hit, then `f` was not.
        let hit = self.nth.rewind().is_ok()
            && matches!(self.nth.read(&mut left), Ok(len) if left[..len].trim_ascii() == b"0");
        self.set(0);
        (result, hit)
    }
}

/// The number of failures that an operation can have. More than that is an endless loop.
const MANY: u32 = 2000;

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
    let mut faults = Faults::new()?;
    let fds = sys::open_fds()?;

    for nth in 1..MANY {
        let (device, hit) = faults.hit(nth, || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_CLOEXEC.bits())
                .open("/dev/liveupdate")
        });
        ensure!(hit || device.is_ok());
        drop(device);
        ensure_eq!(sys::open_fds()?, fds);
        // Nobody has it, whatever happened.
        drop(Device::open()?);
        if !hit {
            stage.note(format!("{} failures", nth - 1));
            return Ok(());
        }
    }
    Err(Failure::here("no end of failures"))
}

/// Making a session.
pub fn create(stage: &mut Stage) -> Outcome {
    let mut faults = Faults::new()?;
    let device = Device::open()?;
    let fds = sys::open_fds()?;

    for nth in 1..MANY {
        let (session, hit) = faults.hit(nth, || device.create_session(stage.name));
        ensure!(hit || session.is_ok());
        if session.is_ok() {
            ensure_errno!(device.create_session(stage.name), EEXIST);
        }
        drop(session);
        ensure_eq!(sys::open_fds()?, fds);
        drop(device.create_session(stage.name)?);
        if !hit {
            stage.note(format!("{} failures", nth - 1));
            return Ok(());
        }
    }
    Err(Failure::here("no end of failures"))
}

/// Preserving a file, asking for the session's name, and closing it.
pub fn preserve(stage: &mut Stage) -> Outcome {
    let mut faults = Faults::new()?;
    let device = Device::open()?;
    let memory = memory()?;
    let mut failures = 0;

    for nth in 1..MANY {
        let session = device.create_session(stage.name)?;
        let (preserved, hit) = faults.hit(nth, || session.preserve(&memory, 1));
        ensure!(hit || preserved.is_ok());
        match preserved {
            Ok(()) => {
                ensure_errno!(session.preserve(&sys::memfd("other")?, 1), EEXIST);
                ensure_errno!(memory.set_len(0), EPERM);
            }
            Err(_) => {
                failures += 1;
                // Token and file are free, and the file can be changed.
                memory.set_len(2 << 20)?;
                memory.set_len(1 << 20)?;
                session.preserve(&memory, 1)?;
            }
        }
        let (name, _) = faults.hit(nth, || session.ask_name());
        ensure!(name.map_or(true, |name| name.to_string() == stage.name));
        // Closing cannot fail.
        let ((), _) = faults.hit(nth, || drop(session));
        memory.set_len(2 << 20)?;
        memory.set_len(1 << 20)?;
        ensure!(sys::content(&memory)? == expected());
        if !hit {
            stage.note(format!("{failures} failures"));
            return Ok(());
        }
    }
    Err(Failure::here("no end of failures"))
}

/// The kexec, until it happens.
pub fn kexec_before(stage: &mut Stage) -> Outcome {
    let mut faults = Faults::new()?;
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = memory()?;
    session.preserve(&memory, 1)?;
    session.preserve(&sys::memfd_of("small", b"content")?, 2)?;
    let empty = device.create_session("faults-empty")?;

    let mut cmdline = CommandLine::read()?;
    cmdline.set("luo.stage", &(stage.number + 1).to_string());
    init::load(init::kernel_of(&cmdline, stage.number + 1), &cmdline)?;
    for nth in 1..MANY {
        let (error, hit) = faults.hit(nth, kexec::jump);
        ensure!(hit, "{error} without a cause");
        // All is as it was: sessions and files come and go, pages appear in holes.
        let extra = sys::memfd_of("extra", b"x")?;
        ensure_errno!(session.preserve(&memory, 3), EBUSY);
        ensure_errno!(memory.set_len(0), EPERM);
        sys::write_at(&memory, 500_000 + u64::from(nth % 4) * 8192, b"x")?;
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
    let mut faults = Faults::new()?;
    let device = Device::open()?;
    let fds = sys::open_fds()?;
    let mut notes = Vec::new();

    ensure_errno!(device.retrieve_session("faults-other"), ENOENT);
    device.retrieve_session("faults-empty")?.finish()?;

    let mut session = None;
    for nth in 1..MANY {
        let (retrieved, hit) = faults.hit(nth, || device.retrieve_session(stage.name));
        ensure!(hit || retrieved.is_ok());
        // One that came back in spite of a failure is there.
        if let Ok(retrieved) = retrieved {
            notes.push(format!("{} for the session", nth - 1));
            session = Some(retrieved);
            break;
        }
        ensure_eq!(sys::open_fds()?, fds);
    }
    let session = session.ok_or_else(|| Failure::here("no end of failures"))?;

    for token in [1, 2] {
        let fds = sys::open_fds()?;
        let mut file = None;
        for nth in 1..MANY {
            let (retrieved, hit) = faults.hit(nth, || session.retrieve(token));
            ensure!(hit || retrieved.is_ok());
            if let Ok(retrieved) = retrieved {
                notes.push(format!("{} for token {token}", nth - 1));
                file = Some(File::from(retrieved));
                break;
            }
            ensure_eq!(sys::open_fds()?, fds);
        }
        let file = file.ok_or_else(|| Failure::here("no end of failures"))?;
        let content = sys::content(&file)?;
        match token {
            1 => ensure!(
                content[..100_000] == expected()[..100_000]
                    && content[900_000..] == expected()[900_000..]
            ),
            _ => ensure_eq!(content, b"content"),
        }
    }

    for nth in 1..MANY {
        let (finished, hit) = faults.hit(nth, || session.finish());
        ensure!(hit || finished.is_ok());
        if finished.is_ok() {
            notes.push(format!("{} for the end", nth - 1));
            break;
        }
    }
    ensure!(session
        .retrieve(1)
        .is_err_and(|e| e.errno() != Errno::EBUSY));
    stage.note(format!("failures: {}", notes.join(", ")));
    Ok(())
}
