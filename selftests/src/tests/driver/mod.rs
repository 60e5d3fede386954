// SPDX-License-Identifier: GPL-2.0

//! Drivers: what LUO asks of them and when, what happens when they fail, come late, or go.
//!
//! The driver is `modules/luo_test_driver.rs`. It makes toys, files with a kind and a key, for which
//! there are two handlers with three FLBs, and tells which callbacks came.

pub mod incoming;
pub mod outgoing;
pub mod shared;

use crate::{
    harness::{
        ensure,
        ensure_errno,
        Outcome, //
    },
    module,
    sys, //
};
use liveupdate::{
    cmdline::CommandLine,
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    libc, //
};
use std::{
    fs::{
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

    /// Fetches one of the three incoming shared numbers.
    fn fetch_incoming(&self, which: u64) -> nix::Result<i32> {
        ioctl(&self.device, 2, which)
    }

    /// The same of the outgoing ones.
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
