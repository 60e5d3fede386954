// SPDX-License-Identifier: GPL-2.0

//! The format in which the next kernel gets what is preserved: `liveupdate.abi=`.
//!
//! The choice may change until the kexec. If another format follows from it, what is preserved is
//! described anew, or everything stays as it was.

use kernel::{
    kho::{
        ImageFormat,
        KexecGuard,
        KexecLock, //
    },
    liveupdate::{
        outgoing_abi,
        OutgoingAbi, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use super::orchestrator::{
    luo,
    Luo, //
};
use crate::{
    abi::RootFormat,
    ffi::kernel::set_outgoing_abi,
    records::format, //
};

/// What `liveupdate.abi=` can be. The numbers are those of ffi/param.c.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The format that holds most.
    Fdt,
    /// The one that the C implementation reads. Files that it cannot hold are refused.
    LuoV5,
    /// Likewise, but properties are left out for which a file would be refused.
    LuoV5Lossy,
    /// What the loaded image reads, if that is known; else what the previous kernel wrote; else
    /// the format that holds most.
    Auto,
}

impl Choice {
    const ALL: [Self; 4] = [Self::Fdt, Self::LuoV5, Self::LuoV5Lossy, Self::Auto];

    /// # Errors
    ///
    /// [`EINVAL`] if there is none of that number.
    pub(crate) fn from_number(number: u32) -> Result<Self> {
        let index = usize::try_from(number)?;

        Self::ALL.get(index).copied().ok_or(EINVAL)
    }

    /// What it comes to while no image is loaded.
    fn without_image(self, incoming: Option<RootFormat>) -> Format {
        let abi = match (self, incoming) {
            (Self::Fdt, _) | (Self::Auto, None | Some(RootFormat::Fdt)) => OutgoingAbi::Fdt,
            (Self::LuoV5 | Self::LuoV5Lossy, _) | (Self::Auto, Some(RootFormat::V5)) => {
                OutgoingAbi::LuoV5
            }
        };
        Format {
            abi,
            lossy: self == Self::LuoV5Lossy,
        }
    }

    fn format(self, luo: &Luo, kexec: &KexecLock<'_>) -> Format {
        let incoming = luo.context.status.incoming_format;
        let reads = match self {
            Self::Auto => kexec.image_format(),
            _ => None,
        };

        match reads {
            Some(ImageFormat::Fdt) => Self::Fdt.without_image(incoming),
            Some(ImageFormat::LuoV5) => Self::LuoV5.without_image(incoming),
            None => self.without_image(incoming),
        }
    }
}

/// A format, and whether it may lose properties of files.
#[derive(Copy, Clone, PartialEq, Eq)]
struct Format {
    abi: OutgoingAbi,
    lossy: bool,
}

impl Format {
    fn current() -> Self {
        Self {
            abi: outgoing_abi(),
            lossy: kernel::liveupdate::may_lose_properties(),
        }
    }

    fn set(self) {
        set_outgoing_abi(self.abi, self.lossy);
    }
}

static CHOICE: Atomic<u32> = Atomic::new(Choice::Auto as u32);

/// What was chosen.
pub(crate) fn chosen() -> Choice {
    Choice::from_number(CHOICE.load(Relaxed)).unwrap_or(Choice::Auto)
}

/// Chooses, at boot or later.
///
/// # Errors
///
/// - [`EBUSY`] if an image is being loaded, or a kexec has begun.
/// - What a handler returns, if it cannot describe a file in the format that follows. Nothing has
///   changed then.
pub(crate) fn choose(choice: Choice) -> Result {
    let Some(luo) = luo() else {
        CHOICE.store(choice as u32, Relaxed);
        choice.without_image(None).set();
        return Ok(());
    };
    let kexec = KexecGuard::try_new().ok_or(EBUSY)?;

    switch(luo, choice.format(luo, &kexec))?;
    CHOICE.store(choice as u32, Relaxed);
    Ok(())
}

/// The previous kernel wrote this format: begins with what was chosen on the command line.
pub(super) fn begin(incoming: Option<RootFormat>) {
    chosen().without_image(incoming).set();
}

/// User space has found which format the loaded image reads; [`None`] if that is not known.
///
/// # Errors
///
/// [`ENOENT`] if no image is loaded; those of [`choose`].
pub(super) fn image_reads(luo: &Luo, format: Option<ImageFormat>) -> Result {
    let kexec = KexecGuard::try_new().ok_or(EBUSY)?;
    let former = kexec.image_format();

    kexec.set_image_format(format)?;
    follow_image(luo, &kexec).inspect_err(|_| {
        // There is an image.
        let _ = kexec.set_image_format(former);
    })
}

/// Changes to the format for the image that is loaded now.
///
/// # Errors
///
/// Those of [`choose`].
pub(super) fn follow_image(luo: &Luo, kexec: &KexecLock<'_>) -> Result {
    switch(luo, chosen().format(luo, kexec))
}

/// Describes what is preserved in another format.
fn switch(luo: &Luo, to: Format) -> Result {
    let from = Format::current();
    if to == from {
        return Ok(());
    }
    // No file is preserved meanwhile, which might be described in either.
    let _format = luo.context.format.write();

    to.set();
    luo.outgoing
        // What was left out has to be refused now.
        .describe_anew(from.lossy && !to.lossy)
        .inspect(|()| pr_info!("handing over as {} from now on\n", format::of(to.abi).name))
        .inspect_err(|e| {
            from.set();
            pr_warn!(
                "handing over as {} still: {:?}\n",
                format::of(from.abi).name,
                e
            );
        })
}
