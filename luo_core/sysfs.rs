// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/liveupdate/`.
//!
//! [`EnabledAttribute`] is always there, so that off can be told from absent; the others only while live
//! update is on.

use core::fmt;

use kernel::{
    kho::{
        ImageFormat,
        KexecGuard, //
    },
    liveupdate::note,
    prelude::*,
    sysfs::{
        Attribute,
        Attributes,
        Directory, //
    }, //
};

use super::{
    orchestrator::{
        luo,
        Luo, //
    },
    outgoing_format,
    status::{
        self,
        Counters, //
    }, //
};
use crate::{
    abi::RootFormat,
    records::format, //
};

static ALWAYS: Attributes<1> = Attributes::new().with::<EnabledAttribute>(0);

static WHILE_ON: Attributes<12> = Attributes::new()
    .with::<StateAttribute>(0)
    .with::<NumberAttribute>(1)
    .with::<AbiAttribute>(2)
    .with::<IncomingAttribute>(3)
    .with::<OutgoingAttribute>(4)
    .with::<BlackoutUsAttribute>(5)
    .with::<PrepareAttribute>(6)
    .with::<FinishAttribute>(7)
    .with::<LostSessionsAttribute>(8)
    .with::<RefusedAttribute>(9)
    .with::<FormatsAttribute>(10)
    .with::<ImageFormatAttribute>(11);

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
struct EnabledAttribute;

#[vtable]
impl Attribute for EnabledAttribute {
    const NAME: &'static CStr = c"enabled";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", u8::from(luo().is_some()))?)
    }
}

/// The state of the machine. It can be polled.
struct StateAttribute;

#[vtable]
impl Attribute for StateAttribute {
    const NAME: &'static CStr = status::STATE_ATTRIBUTE;

    fn show(to: &mut dyn fmt::Write) -> Result {
        let luo = on()?;
        // Every subsystem that registers late had its chance by now.
        luo.context.end_if_unattended();
        let state = luo.context.status.watch(&luo.context.subsystems);

        Ok(writeln!(to, "{}", state.name())?)
    }
}

/// How many live updates this machine has seen.
struct NumberAttribute;

#[vtable]
impl Attribute for NumberAttribute {
    const NAME: &'static CStr = c"number";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", on()?.number)?)
    }
}

/// The layout of what is handed over, and of what was handed over to this kernel.
struct AbiAttribute;

#[vtable]
impl Attribute for AbiAttribute {
    const NAME: &'static CStr = c"abi";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let outgoing = format::outgoing().name;
        let incoming = match on()?.context.status.incoming_format {
            Some(RootFormat::Fdt) => "fdt",
            Some(RootFormat::V5) => "luo-v5",
            None => "none",
        };

        Ok(writeln!(to, "outgoing {outgoing}\nincoming {incoming}")?)
    }
}

fn show_counts(to: &mut dyn fmt::Write, counters: &Counters, subsystems: usize) -> Result {
    let (sessions, files) = (counters.sessions(), counters.files());

    Ok(writeln!(
        to,
        "sessions {sessions}\nfiles {files}\nsubsystems {subsystems}"
    )?)
}

/// How much was handed over to this kernel and is not finished.
struct IncomingAttribute;

#[vtable]
impl Attribute for IncomingAttribute {
    const NAME: &'static CStr = c"incoming";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let luo = on()?;

        show_counts(
            to,
            &luo.context.status.incoming,
            luo.context.subsystems.incoming(),
        )
    }
}

/// How much is preserved for the next kernel.
struct OutgoingAttribute;

#[vtable]
impl Attribute for OutgoingAttribute {
    const NAME: &'static CStr = c"outgoing";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let luo = on()?;

        show_counts(
            to,
            &luo.context.status.outgoing,
            luo.context.subsystems.outgoing(),
        )
    }
}

/// The time from the reboot in the old kernel to the first open of the device in this one.
struct BlackoutUsAttribute;

#[vtable]
impl Attribute for BlackoutUsAttribute {
    const NAME: &'static CStr = c"blackout_us";

    fn show(to: &mut dyn fmt::Write) -> Result {
        match on()?.context.status.blackout() {
            Some(micros) => Ok(writeln!(to, "{micros}")?),
            None => Ok(()),
        }
    }
}

/// Prepares the subsystems, or cancels that.
struct PrepareAttribute;

#[vtable]
impl Attribute for PrepareAttribute {
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
struct FinishAttribute;

#[vtable]
impl Attribute for FinishAttribute {
    const NAME: &'static CStr = c"finish";

    fn store(text: &[u8]) -> Result {
        match text.trim_ascii() {
            b"1" => on()?.finish(),
            _ => Err(EINVAL),
        }
    }
}

/// How many sessions with files were dropped because their holder was killed before the kexec.
struct LostSessionsAttribute;

#[vtable]
impl Attribute for LostSessionsAttribute {
    const NAME: &'static CStr = c"lost_sessions";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", on()?.context.status.lost_sessions())?)
    }
}

/// Why the last kexec was refused; nothing if none was.
struct RefusedAttribute;

#[vtable]
impl Attribute for RefusedAttribute {
    const NAME: &'static CStr = c"refused";

    fn show(to: &mut dyn fmt::Write) -> Result {
        on()?.context.refusal.show(to)
    }
}

/// What this kernel can read, a line each: the notes of its image.
struct FormatsAttribute;

#[vtable]
impl Attribute for FormatsAttribute {
    const NAME: &'static CStr = c"formats";

    fn show(to: &mut dyn fmt::Write) -> Result {
        note::for_each(|text| {
            let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
            Ok(writeln!(to, "{text}")?)
        })
    }
}

/// Which format the loaded image reads, as user space has found and written. It is forgotten when
/// another image is loaded.
struct ImageFormatAttribute;

#[vtable]
impl Attribute for ImageFormatAttribute {
    const NAME: &'static CStr = c"image_format";

    fn show(to: &mut dyn fmt::Write) -> Result {
        let kexec = KexecGuard::try_new().ok_or(EBUSY)?;
        let format = match kexec.image_format() {
            Some(ImageFormat::Fdt) => "fdt",
            Some(ImageFormat::LuoV5) => "luo-v5",
            None => "unknown",
        };

        Ok(writeln!(to, "{format}")?)
    }

    fn store(text: &[u8]) -> Result {
        let format = match text.trim_ascii() {
            b"fdt" => Some(ImageFormat::Fdt),
            b"luo-v5" => Some(ImageFormat::LuoV5),
            b"unknown" => None,
            _ => return Err(EINVAL),
        };

        outgoing_format::image_reads(on()?, format)
    }
}
