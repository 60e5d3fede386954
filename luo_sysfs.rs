// SPDX-License-Identifier: GPL-2.0

//! What `/sys/kernel/liveupdate/` shows, and what is done when something is written there.
//!
//! Of the highest layer. [`Enabled`] is always there, so that off can be told from absent; the others
//! only while live update is on.

use core::fmt;

use kernel::{
    liveupdate::{
        outgoing_abi,
        OutgoingAbi, //
    },
    prelude::*,
    sysfs::{
        Attribute,
        Attributes,
        Directory, //
    }, //
};

use crate::{
    abi::RootFormat,
    luo,
    luo_state::Tally,
    Luo, //
};

static ALWAYS: Attributes<1> = Attributes::new().with::<Enabled>(0);

static WHILE_ON: Attributes<10> = Attributes::new()
    .with::<State>(0)
    .with::<Number>(1)
    .with::<Abi>(2)
    .with::<Incoming>(3)
    .with::<Outgoing>(4)
    .with::<BlackoutUs>(5)
    .with::<Prepare>(6)
    .with::<Finish>(7)
    .with::<LostSessions>(8)
    .with::<Refused>(9);

/// Makes the directory.
///
/// # Errors
///
/// [`ENOMEM`].
pub(crate) fn make() -> Result<Directory> {
    let directory = Directory::under_kernel(c"liveupdate")?;

    directory.add(&ALWAYS)?;
    if luo().is_some() {
        directory.add(&WHILE_ON)?;
    }
    Ok(directory)
}

/// # Errors
///
/// [`EOPNOTSUPP`] if live update is off, in which case nobody asks.
fn on() -> Result<&'static Luo> {
    luo().ok_or(EOPNOTSUPP)
}

/// Whether live update is on.
struct Enabled;

#[vtable]
impl Attribute for Enabled {
    const NAME: &'static CStr = c"enabled";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", u8::from(luo().is_some()))?)
    }
}

/// The state of the machine. It can be polled.
pub(crate) struct State;

#[vtable]
impl Attribute for State {
    const NAME: &'static CStr = c"state";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let luo = on()?;
        // Whoever could still come in order to be told has had the time.
        luo.settle();
        let state = luo.standing.watch(&luo.subsystems);

        Ok(writeln!(to, "{}", state.name())?)
    }
}

/// How many live updates this machine has seen.
struct Number;

#[vtable]
impl Attribute for Number {
    const NAME: &'static CStr = c"number";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", on()?.number)?)
    }
}

/// The layout of what goes out, and of what came in.
struct Abi;

#[vtable]
impl Attribute for Abi {
    const NAME: &'static CStr = c"abi";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let outgoing = match outgoing_abi() {
            OutgoingAbi::Fdt => "fdt",
            OutgoingAbi::LuoV5 => "luo-v5",
        };
        let incoming = match on()?.standing.came_as {
            Some(RootFormat::Fdt) => "fdt",
            Some(RootFormat::V5) => "luo-v5",
            None => "none",
        };

        Ok(writeln!(to, "outgoing {outgoing}\nincoming {incoming}")?)
    }
}

fn show_counts(to: &mut dyn fmt::Write, tally: &Tally, subsystems: usize) -> Result {
    let (sessions, files) = (tally.sessions(), tally.files());

    Ok(writeln!(
        to,
        "sessions {sessions}\nfiles {files}\nsubsystems {subsystems}"
    )?)
}

/// How much came in and is not finished.
struct Incoming;

#[vtable]
impl Attribute for Incoming {
    const NAME: &'static CStr = c"incoming";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let luo = on()?;

        show_counts(to, &luo.standing.incoming, luo.subsystems.incoming())
    }
}

/// How much is to go to the next kernel.
struct Outgoing;

#[vtable]
impl Attribute for Outgoing {
    const NAME: &'static CStr = c"outgoing";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let luo = on()?;

        show_counts(to, &luo.standing.outgoing, luo.subsystems.outgoing())
    }
}

/// The time from the reboot in the old kernel to the first open of the device in this one.
struct BlackoutUs;

#[vtable]
impl Attribute for BlackoutUs {
    const NAME: &'static CStr = c"blackout_us";

    fn show(to: &mut dyn fmt::Write) -> Result {
        match on()?.standing.blackout() {
            Some(micros) => Ok(writeln!(to, "{micros}")?),
            None => Ok(()),
        }
    }
}

/// Prepares the subsystems, or cancels that.
struct Prepare;

#[vtable]
impl Attribute for Prepare {
    const NAME: &'static CStr = c"prepare";

    fn store(text: &[u8]) -> Result {
        match text.trim_ascii() {
            b"1" => on()?.prepare(),
            b"0" => on()?.cancel(),
            _ => Err(EINVAL),
        }
    }
}

/// Tells the subsystems that the update is over.
struct Finish;

#[vtable]
impl Attribute for Finish {
    const NAME: &'static CStr = c"finish";

    fn store(text: &[u8]) -> Result {
        match text.trim_ascii() {
            b"1" => on()?.finish(),
            _ => Err(EINVAL),
        }
    }
}

/// How many sessions with files are gone because their holder was killed before the kexec.
struct LostSessions;

#[vtable]
impl Attribute for LostSessions {
    const NAME: &'static CStr = c"lost_sessions";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", on()?.standing.lost_sessions())?)
    }
}

/// Why the last kexec was refused; nothing if none was.
struct Refused;

#[vtable]
impl Attribute for Refused {
    const NAME: &'static CStr = c"refused";

    fn show(to: &mut dyn fmt::Write) -> Result {
        on()?.refusal.show(to)
    }
}
