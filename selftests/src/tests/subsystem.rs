// SPDX-License-Identifier: GPL-2.0

//! Subsystems: the sample modules `luo_note_rust` and `luo_note_c`, which keep a note over live
//! updates, and fail when they are told to.

use super::sysfs::{
    counts,
    show,
    store, //
};
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
    init,
    module,
    sys, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device, //
};
use nix::errno::Errno;
use std::{
    fs,
    path::Path, //
};

/// One of the two modules.
struct Note {
    module: &'static str,
    home: &'static str,
}

const RUST: Note = Note {
    module: "luo_note_rust",
    home: "/sys/kernel/luo_note_rust",
};
const C: Note = Note {
    module: "luo_note_c",
    home: "/sys/module/luo_note_c/parameters",
};
const BOTH: [&Note; 2] = [&RUST, &C];

impl Note {
    fn load(&self) -> Outcome {
        module::load(self.module, "")
    }

    fn get(&self, name: &str) -> Outcome<String> {
        let text = fs::read_to_string(Path::new(self.home).join(name))?;

        Ok(text.trim_end().to_owned())
    }

    fn set(&self, name: &str, text: &str) -> Outcome {
        Ok(fs::write(Path::new(self.home).join(name), text)?)
    }

    /// Fails unless this is what it was told, a letter an event.
    #[track_caller]
    fn told(&self, events: &str) -> Outcome {
        ensure_eq!(self.get("events")?, events, "{}", self.module);
        Ok(())
    }
}

/// Loads the next kernel, so that a kexec can be tried.
pub fn next_kernel_is_loaded() -> Outcome {
    let cmdline = CommandLine::read()?;

    Ok(init::load(init::kernel_of(&cmdline, 2), &cmdline)?)
}

/// Which event each subsystem is told of, and when.
pub fn events(_: &mut Stage) -> Outcome {
    for note in BOTH {
        note.load()?;
        ensure_errno!(module::try_load(note.module, "")?, EEXIST);
        note.told("")?;
    }
    counts("outgoing", 0, 0, 0)?;

    store("prepare", "1")?;
    counts("outgoing", 0, 0, 2)?;
    ensure_eq!(show("state")?, "prepared\n");
    for note in BOTH {
        note.told("p")?;
    }
    store("prepare", "0")?;
    counts("outgoing", 0, 0, 0)?;
    for note in BOTH {
        note.told("pc")?;
    }

    // The one in Rust comes first, as its priority says, and so is cancelled if the other refuses.
    C.set("fail", "0")?;
    ensure_errno!(store("prepare", "1"), ENXIO);
    RUST.told("pcpc")?;
    C.told("pcp")?;
    ensure_eq!(show("state")?, "normal\n");
    C.set("fail", "-1")?;

    // If it refuses itself, nobody else hears of it.
    RUST.set("fail", "0")?;
    ensure_errno!(store("prepare", "1"), ENXIO);
    RUST.told("pcpcp")?;
    C.told("pcp")?;
    RUST.set("fail", "-1")?;

    // A subsystem that is unregistered is not told any more, and is cancelled.
    store("prepare", "1")?;
    for note in BOTH {
        module::unload(note.module)?;
    }
    counts("outgoing", 0, 0, 0)?;
    store("prepare", "0")?;
    ensure_eq!(show("state")?, "normal\n");
    Ok(())
}

/// Cancels that fail are reported, and that is all.
pub fn cancel_fails(_: &mut Stage) -> Outcome {
    for note in BOTH {
        note.load()?;
        note.set("fail", "3")?;
    }
    let first = luo_guest::kernel_log(0)?
        .last()
        .map_or(0, |last| last.sequence + 1);

    store("prepare", "1")?;
    store("prepare", "0")?;
    for note in BOTH {
        note.told("pc")?;
    }
    let log = luo_guest::kernel_log(first)?;
    ensure!(log
        .iter()
        .any(|line| line.text.contains("cancel must not fail: ENXIO")));
    ensure_eq!(show("state")?, "normal\n");
    Ok(())
}

/// Has a kexec refused once all sessions have been written down.
pub fn refuse_kexec() -> Outcome {
    RUST.load()?;
    RUST.set("fail", "1")?;
    next_kernel_is_loaded()?;
    ensure_eq!(kexec::jump().errno(), Errno::ENXIO);
    Ok(module::unload(RUST.module)?)
}

/// Each refuses the kexec in turn; what is left is as before. Then it goes well.
pub fn refuse_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"content")?;
    session.preserve(&memory, 1)?;
    for note in BOTH {
        note.load()?;
        note.set("text", note.module)?;
    }
    next_kernel_is_loaded()?;

    let mut events = [String::new(), String::new()];
    // Prepared by hand, and by the kexec itself.
    for by_hand in [true, false] {
        for (event, who, [rust, c]) in [
            (0, &RUST, ["p", ""]),
            (0, &C, ["pc", "p"]),
            (1, &RUST, ["prc", "pc"]),
            (1, &C, ["prc", "prc"]),
        ] {
            who.set("fail", &event.to_string())?;
            if by_hand {
                match event {
                    0 => ensure_errno!(store("prepare", "1"), ENXIO),
                    _ => store("prepare", "1")?,
                }
            }
            if !by_hand || event == 1 {
                ensure_eq!(kexec::jump().errno(), Errno::ENXIO);
            }
            who.set("fail", "-1")?;
            events[0] += rust;
            events[1] += c;
            RUST.told(&events[0])?;
            C.told(&events[1])?;
            counts("outgoing", 1, 1, 0)?;
            // The session can be used.
            ensure_errno!(session.preserve(&memory, 2), EBUSY);
        }
    }
    stage.keep(session);
    Ok(())
}

/// The state of both is handed over, and both are told of the end.
pub fn refuse_after(stage: &mut Stage) -> Outcome {
    counts("incoming", 1, 1, 1)?;
    ensure_eq!(show("state")?, "updated\n");
    for note in BOTH {
        note.load()?;
        ensure_eq!(note.get("text")?, note.module);
        ensure_eq!(note.get("updates")?, "1");
        note.told("")?;
    }
    // Sessions and subsystems are finished apart, and both have to be.
    ensure_errno!(store("prepare", "1"), EINVAL);
    // That they fail at the end is reported, and that is all.
    for note in BOTH {
        note.set("fail", "2")?;
    }
    store("finish", "1")?;
    for note in BOTH {
        note.told("f")?;
        note.set("fail", "-1")?;
    }
    let log = luo_guest::kernel_log(0)?;
    ensure!(log
        .iter()
        .any(|line| line.text.contains("finish must not fail: ENXIO")));
    ensure_errno!(store("finish", "1"), EINVAL);
    ensure_eq!(show("state")?, "updated\n");
    counts("incoming", 1, 1, 0)?;
    Device::open()?.retrieve_session(stage.name)?.finish()?;
    ensure_eq!(show("state")?, "normal\n");
    store("prepare", "1")?;
    store("prepare", "0")?;
    Ok(())
}

/// Five updates; the notes gain a letter in each, before the kexec.
pub const CHAIN: [Part; 6] = [chain, chain, chain, chain, chain, chain];

fn chain(stage: &mut Stage) -> Outcome {
    let update = stage.number - 1;

    for note in BOTH {
        note.load()?;
        ensure_eq!(note.get("text")?, "x".repeat(update));
        ensure_eq!(note.get("updates")?, update.to_string());
    }
    if update > 0 {
        ensure_eq!(show("state")?, "updated\n");
        ensure_eq!(show("number")?, format!("{update}\n"));
        if update % 2 == 1 {
            store("finish", "1")?;
            ensure_eq!(show("state")?, "normal\n");
        }
    }
    // With and without preparing; what is written later counts as well.
    if update % 4 == 1 {
        store("prepare", "1")?;
        ensure_eq!(show("state")?, "prepared\n");
    }
    for note in BOTH {
        note.set("text", &"x".repeat(stage.number))?;
    }
    Ok(())
}

/// Only the notes are handed over.
pub fn late_before(_: &mut Stage) -> Outcome {
    for note in BOTH {
        note.load()?;
        note.set("text", "late")?;
    }
    Ok(())
}

/// One that is not there costs itself, and may come late.
pub fn late_after(_: &mut Stage) -> Outcome {
    counts("incoming", 0, 0, 1)?;
    ensure_eq!(show("state")?, "updated\n");
    C.load()?;
    ensure_eq!(C.get("text")?, "late");
    store("finish", "1")?;
    C.told("f")?;
    ensure_eq!(show("state")?, "normal\n");
    let log = luo_guest::kernel_log(0)?;
    ensure!(log.iter().any(|line| line
        .text
        .contains("subsystem 'luo-note-v1' did not register: its state is dropped")));

    // It gets its state nevertheless, once, and hears at once that it is over.
    RUST.load()?;
    ensure_eq!(RUST.get("text")?, "late");
    RUST.told("f")?;
    module::unload(RUST.module)?;
    RUST.load()?;
    ensure_eq!(RUST.get("text")?, "");
    RUST.told("")?;
    Ok(())
}

/// A notifier keeps its state by itself, and nothing else takes part.
pub fn notifier_before(_: &mut Stage) -> Outcome {
    C.load()?;
    C.set("text", "alone")
}

/// It is an update nevertheless: the notifier, which is there before anybody looks, is told of its end.
pub fn notifier_after(_: &mut Stage) -> Outcome {
    C.load()?;
    ensure_eq!(show("number")?, "1\n");
    ensure_eq!(show("state")?, "updated\n");
    ensure_eq!(C.get("text")?, "alone");
    store("finish", "1")?;
    C.told("f")?;
    ensure_eq!(show("state")?, "normal\n");
    Ok(())
}

/// Nothing was handed over and no subsystem is there: the update is over at once.
pub fn nothing_before(_: &mut Stage) -> Outcome {
    Ok(())
}

/// See [`nothing_before`].
pub fn nothing_after(_: &mut Stage) -> Outcome {
    ensure_eq!(show("number")?, "0\n");
    ensure_eq!(show("state")?, "normal\n");
    ensure_errno!(store("finish", "1"), EINVAL);

    // A subsystem that registers now is too late to be told.
    C.load()?;
    ensure_eq!(show("state")?, "normal\n");
    C.told("")?;
    Ok(())
}

const OTHER: &str = "luo_test_subsystem";

/// The incoming state of the test's own subsystem.
fn other_got() -> Outcome<String> {
    let text = fs::read_to_string(format!("/sys/module/{OTHER}/parameters/got"))?;

    Ok(text.trim_end().to_owned())
}

/// A session, the notes, and a subsystem of a newer version than the next kernel knows.
pub fn version_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    session.preserve(&sys::memfd_of("m", b"content")?, 1)?;
    for note in BOTH {
        note.load()?;
        note.set("text", note.module)?;
    }
    module::load(OTHER, "name=luo-test-subsystem-v2 number=7")?;
    stage.keep(session);
    Ok(())
}

/// The version that is not known costs that subsystem, and nobody else; and it is said.
pub fn version_after(stage: &mut Stage) -> Outcome {
    counts("incoming", 1, 1, 2)?;
    module::load(OTHER, "name=luo-test-subsystem-v1")?;
    ensure_eq!(other_got()?, "0");
    for note in BOTH {
        note.load()?;
        ensure_eq!(note.get("text")?, note.module);
    }
    let session = Device::open()?.retrieve_session(stage.name)?;
    ensure_eq!(sys::content(&session.retrieve(1)?.into())?, b"content");
    session.finish()?;

    store("finish", "1")?;
    ensure_eq!(show("state")?, "normal\n");
    let log = luo_guest::kernel_log(0)?;
    let said = "subsystem 'luo-test-subsystem-v2' did not register: its state is dropped";
    ensure!(log.iter().any(|line| line.text.contains(said)));
    ensure!(!log
        .iter()
        .any(|line| line.text.contains("luo-note") && line.text.contains("nobody")));

    // A subsystem that understands it still gets it.
    module::unload(OTHER)?;
    module::load(OTHER, "name=luo-test-subsystem-v2")?;
    ensure_eq!(other_got()?, "7");
    Ok(())
}

/// As [`version_after`], if the subsystem is of that name and refuses the incoming state.
pub fn refused_after(stage: &mut Stage) -> Outcome {
    module::load(OTHER, "name=luo-test-subsystem-v2 refuse=1")?;
    ensure_eq!(other_got()?, "7");
    let log = luo_guest::kernel_log(0)?;
    let said = "restore failed: EPROTO";
    ensure!(log
        .iter()
        .any(|line| line.text.contains("luo-test-subsystem-v2") && line.text.contains(said)));
    for note in BOTH {
        note.load()?;
        ensure_eq!(note.get("text")?, note.module);
    }
    Device::open()?.retrieve_session(stage.name)?.finish()?;
    store("finish", "1")?;
    ensure_eq!(show("state")?, "normal\n");

    // It was given once.
    module::unload(OTHER)?;
    module::load(OTHER, "name=luo-test-subsystem-v2")?;
    ensure_eq!(other_got()?, "0");
    Ok(())
}

/// Loading and unloading the sample in Rust takes no memory.
pub fn unload(_: &mut Stage) -> Outcome {
    const TIMES: u64 = 200;

    let cycle = || {
        RUST.load()?;
        RUST.set("text", &"x".repeat(4080))?;
        store("prepare", "1")?;
        store("prepare", "0")?;
        module::unload(RUST.module).map_err(Failure::from)
    };
    for _ in 0..20 {
        cycle()?;
    }
    // Not all memory: code of modules is kept in pieces of 2 MiB.
    let used = || -> Outcome<u64> {
        sys::shrink_caches()?;
        sys::meminfo("SUnreclaim")
    };
    let before = used()?;
    for _ in 0..TIMES {
        cycle()?;
    }
    let lost = used()?.saturating_sub(before);
    // A note each time, of four KiB, would be twice as much.
    ensure!(lost < TIMES * 2, "{lost} KiB");
    Ok(())
}
