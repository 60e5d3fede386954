// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/liveupdate/`: what it shows in each state, and what it takes.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys,
    tests::reboot, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    poll::{
        poll,
        PollFd,
        PollFlags, //
    },
    unistd::{
        seteuid,
        Uid, //
    }, //
};
use std::{
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read,
        Seek,
        Write, //
    },
    os::{
        fd::AsFd,
        unix::fs::PermissionsExt, //
    },
    path::PathBuf,
    thread,
    time::Duration, //
};

/// A file of the directory.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/liveupdate").join(name)
}

/// What a file says.
pub fn show(name: &str) -> Outcome<String> {
    Ok(fs::read_to_string(path(name))?)
}

/// Writes to a file.
pub fn store(name: &str, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path(name))?;

    file.write_all(text.as_bytes())
}

/// Fails unless a side of the kexec has that many sessions, files and subsystems.
#[track_caller]
pub fn counts(name: &str, sessions: usize, files: usize, subsystems: usize) -> Outcome {
    let expected = format!("sessions {sessions}\nfiles {files}\nsubsystems {subsystems}\n");

    ensure_eq!(show(name)?, expected, "{name}");
    Ok(())
}

/// The state, watched.
struct State {
    file: File,
}

impl State {
    fn open() -> Outcome<Self> {
        let mut state = Self {
            file: File::open(path("state"))?,
        };
        state.read()?;
        Ok(state)
    }

    fn read(&mut self) -> Outcome<String> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        Ok(text.trim_end().to_owned())
    }

    /// Whether there was news since it was read.
    fn woken(&self) -> Outcome<bool> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLPRI)];

        Ok(poll(&mut fds, 0_u8)? == 1)
    }

    /// Fails unless there was news, and it is this.
    #[track_caller]
    fn becomes(&mut self, state: &str) -> Outcome {
        ensure!(self.woken()?, "nobody said that it is {state}");
        ensure_eq!(self.read()?, state);
        Ok(())
    }

    /// Fails unless it is still the same, and nobody was told of a change.
    #[track_caller]
    fn stays(&mut self, state: &str) -> Outcome {
        ensure!(!self.woken()?);
        ensure_eq!(self.read()?, state);
        Ok(())
    }
}

/// A session that is closed while a kexec is being refused is gone afterwards, and that is told.
pub fn refused(stage: &mut Stage) -> Outcome {
    const SLOW: usize = 400;

    match reboot::load_without_handover() {
        Ok(()) => {}
        Err(Errno::ENOSYS) => return Err(Failure::skip("no kexec_load")),
        Err(errno) => return Err(errno.into()),
    }
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    // Half a millisecond each to freeze: there is a hole, and somebody could write to it.
    let mut mappings = Vec::new();
    for token in 0..SLOW {
        let memory = sys::memfd("slow")?;
        memory.set_len(sys::PAGE as u64)?;
        mappings.push(sys::SharedWords::of(&memory, sys::PAGE)?);
        session.preserve(&memory, token as u64)?;
    }

    let mut state = State::open()?;
    let closer = thread::spawn(|| {
        thread::sleep(Duration::from_millis(50));
        drop(session);
    });
    let err = kexec::jump();
    ensure!(closer.join().is_ok());
    ensure_eq!(err.errno(), Errno::EOPNOTSUPP);
    state.becomes("normal")?;
    counts("outgoing", 0, 0, 0)?;
    reboot::unload_without_handover()?;
    Ok(())
}

/// What can only be read, only be written, and both.
const READABLE: [&str; 10] = [
    "enabled",
    "formats",
    "state",
    "number",
    "abi",
    "incoming",
    "outgoing",
    "blackout_us",
    "lost_sessions",
    "refused",
];
const WRITABLE: [&str; 2] = ["prepare", "finish"];
const BOTH: [&str; 1] = ["image_format"];

/// Fails unless all files say what they should in this state. Of the counts only the form is known.
fn all_say(state: &str, number: u64, came_as: &str) -> Outcome {
    ensure_eq!(show("enabled")?, "1\n");
    ensure_eq!(show("state")?, format!("{state}\n"));
    ensure_eq!(show("number")?, format!("{number}\n"));
    ensure_eq!(show("abi")?, format!("outgoing fdt\nincoming {came_as}\n"));
    for name in ["incoming", "outgoing"] {
        let text = show(name)?;
        let keys: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .collect();
        ensure_eq!(text.lines().count(), 3, "{text}");
        for ((key, value), wanted) in keys.iter().zip(["sessions", "files", "subsystems"]) {
            ensure_eq!(*key, wanted);
            ensure!(value.parse::<usize>().is_ok(), "{text}");
        }
    }
    let blackout = show("blackout_us")?;
    ensure!(
        blackout.is_empty() || blackout.trim_end().parse::<u64>().is_ok(),
        "{blackout}"
    );
    ensure_eq!(show("lost_sessions")?, "0\n");
    ensure_eq!(show("refused")?, "");
    for name in WRITABLE {
        ensure_errno!(fs::read_to_string(path(name)), EACCES);
    }
    Ok(())
}

/// What may not be written in any state.
fn wrong_values() -> Outcome {
    for text in ["2", "-1", "x", "01", "1 1", "1\n1", "on", "\n"] {
        for name in WRITABLE {
            ensure_errno!(store(name, text), EINVAL);
        }
    }
    ensure_errno!(store("finish", "0"), EINVAL);
    for name in READABLE {
        ensure_errno!(store(name, "1"), EACCES);
    }
    Ok(())
}

/// All files are there, for those who should have them.
pub fn files(_: &mut Stage) -> Outcome {
    let mut names = Vec::new();
    for entry in fs::read_dir(path(""))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let mode = entry.metadata()?.permissions().mode() & 0o7777;
        let wanted = match &*name {
            name if READABLE.contains(&name) => 0o444,
            name if WRITABLE.contains(&name) => 0o200,
            _ => 0o644,
        };
        ensure_eq!(mode, wanted, "{name}");
        names.push(name);
    }
    names.sort();
    let mut wanted = [&READABLE[..], &WRITABLE[..], &BOTH[..]].concat();
    wanted.sort_unstable();
    ensure_eq!(names, wanted);

    // Nobody in particular may read, and not write.
    seteuid(Uid::from_raw(1000))?;
    for name in READABLE.into_iter().chain(BOTH) {
        show(name)?;
        ensure_errno!(store(name, "1"), EACCES);
    }
    for name in WRITABLE {
        ensure_errno!(File::open(path(name)), EACCES);
        ensure_errno!(store(name, "1"), EACCES);
    }
    seteuid(Uid::from_raw(0))?;
    Ok(())
}

/// A machine that has seen no live update yet.
pub fn cold(_: &mut Stage) -> Outcome {
    all_say("normal", 0, "none")?;
    counts("incoming", 0, 0, 0)?;
    counts("outgoing", 0, 0, 0)?;

    let mut state = State::open()?;
    state.stays("normal")?;
    let device = Device::open()?;
    ensure_eq!(show("blackout_us")?, "");

    // Sessions alone make it prepared, the first one, until the last one.
    let one = device.create_session("one")?;
    state.becomes("prepared")?;
    let other = device.create_session("other")?;
    for token in 0..3 {
        other.preserve(&sys::memfd_of("m", b"x")?, token)?;
    }
    ensure_errno!(other.preserve(&sys::memfd_of("m", b"x")?, 0), EEXIST);
    counts("outgoing", 2, 3, 0)?;
    drop(one);
    counts("outgoing", 1, 3, 0)?;
    state.stays("prepared")?;
    drop(other);
    state.becomes("normal")?;
    counts("outgoing", 0, 0, 0)?;
    Ok(())
}

/// What may be written, and when.
pub fn writes(_: &mut Stage) -> Outcome {
    wrong_values()?;
    let mut state = State::open()?;
    for newline in ["", "\n"] {
        ensure_errno!(store("finish", "1"), EINVAL);
        ensure_errno!(store("prepare", "0"), EINVAL);
        state.stays("normal")?;

        store("prepare", &format!("1{newline}"))?;
        state.becomes("prepared")?;
        ensure_errno!(store("prepare", "1"), EINVAL);
        ensure_errno!(store("finish", "1"), EINVAL);
        wrong_values()?;
        state.stays("prepared")?;

        // What sessions do is another matter, but the state is that of both.
        let device = Device::open()?;
        let session = device.create_session("session")?;
        store("prepare", &format!("0{newline}"))?;
        ensure_eq!(state.read()?, "prepared");
        drop(session);
        state.becomes("normal")?;
    }
    Ok(())
}

/// Leaves two sessions with three files.
pub fn update_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    for (name, files) in [("one", 1), ("other", 2)] {
        let session = device.create_session(&format!("{}-{name}", stage.name))?;
        for token in 0..files {
            session.preserve(&sys::memfd_of("m", b"x")?, token)?;
        }
        stage.keep(session);
    }
    all_say("prepared", 0, "none")?;
    counts("outgoing", 2, 3, 0)?;
    Ok(())
}

/// Finishes them, one after the other.
pub fn update_after(stage: &mut Stage) -> Outcome {
    all_say("updated", 1, "fdt")?;
    wrong_values()?;
    ensure_errno!(store("prepare", "0"), EINVAL);
    counts("incoming", 2, 3, 0)?;
    counts("outgoing", 0, 0, 0)?;
    let mut state = State::open()?;
    state.stays("updated")?;
    // Until then there is no end of the blackout.
    ensure_eq!(show("blackout_us")?, "");
    let device = Device::open()?;
    let blackout = show("blackout_us")?;
    stage.note(format!("blackout_us: '{}'", blackout.trim_end()));
    // As the log of the old kernel had it.
    let log = luo_guest::kernel_log(0)?;
    let bytes = 2 * 80 + 3 * 64;
    let said = format!(
        "luo: incoming: 2 sessions with 3 files, 0 subsystems, {bytes} bytes of records, read in "
    );
    let line = log.iter().find(|line| line.text.starts_with(&said));
    let line = line.ok_or_else(|| Failure::here("the log does not say so"))?;
    ensure!(line.text.ends_with(" us, liveupdate number: 1"));
    if !blackout.is_empty() {
        let micros: u64 = blackout.trim_end().parse().map_err(Failure::here)?;
        ensure!((1_000..100_000_000).contains(&micros), "{micros}");
    }

    let one = device.retrieve_session(&format!("{}-one", stage.name))?;
    let other = device.retrieve_session(&format!("{}-other", stage.name))?;
    drop(one.retrieve(0)?);
    counts("incoming", 2, 3, 0)?;
    one.finish()?;
    counts("incoming", 1, 2, 0)?;
    // Once more, and closed: it does not count again.
    one.finish()?;
    drop(one);
    counts("incoming", 1, 2, 0)?;
    state.stays("updated")?;

    // New ones do not make it prepared before the old ones are finished.
    let new = device.create_session("new")?;
    ensure_eq!(state.read()?, "updated");
    drop(other);
    state.becomes("prepared")?;
    drop(new);
    state.becomes("normal")?;
    all_say("normal", 1, "fdt")?;
    counts("incoming", 0, 0, 0)?;
    ensure_errno!(store("finish", "1"), EINVAL);
    drop(device);

    // The time is that of the first time.
    drop(Device::open()?);
    ensure_eq!(show("blackout_us")?, blackout);
    Ok(())
}

/// With live update off there is one file, which says so.
pub fn off(_: &mut Stage) -> Outcome {
    let names = fs::read_dir(path(""))?.count();

    ensure_eq!(names, 1);
    ensure_eq!(show("enabled")?, "0\n");
    Ok(())
}
