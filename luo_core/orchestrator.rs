// SPDX-License-Identifier: GPL-2.0

//! The orchestrator: all of its state, as one value that exists if live update is enabled.
//!
//! Boot creates it ([`boot`](super::boot)), the kexec hands it over ([`reboot`](super::reboot));
//! the device, sysfs, debugfs and the C interface ask for it by [`luo`].

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::Atomic,
        Mutex,
        SetOnce, //
    }, //
};

use super::{
    context::Context,
    handover::Handover, //
};
use crate::{
    luo_flb::{
        Flbs,
        IncomingFlbs, //
    },
    luo_session::{
        IncomingSessions,
        OutgoingSessions, //
    }, //
};

/// The orchestrator, if live update is enabled and the incoming root is readable.
static LUO: SetOnce<Pin<KBox<Luo>>> = SetOnce::new();

/// The orchestrator.
#[pin_data]
pub(crate) struct Luo {
    pub(crate) context: &'static Context,
    #[pin]
    pub(crate) flbs: Flbs,
    #[pin]
    pub(crate) outgoing: OutgoingSessions,
    #[pin]
    pub(crate) incoming: IncomingSessions,
    /// How many live updates this machine has seen.
    pub(crate) number: u64,
    /// Whether the device is open.
    pub(crate) opened: Atomic<bool>,
    /// Where the state for the next kernel is written; [`None`] until late in boot.
    #[pin]
    pub(crate) handover: Mutex<Option<Handover>>,
}

/// The orchestrator; [`None`] if live update is not enabled.
pub(crate) fn luo() -> Option<&'static Luo> {
    LUO.as_ref().map(|luo| &**luo)
}

impl Luo {
    /// Creates the orchestrator, once, early in boot. `flbs` are those of the previous kernel, if
    /// there was one.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn create(
        context: impl PinInit<Context>,
        flbs: Option<IncomingFlbs>,
        number: u64,
    ) -> Result<&'static Self> {
        static CONTEXT: SetOnce<Pin<KBox<Context>>> = SetOnce::new();

        CONTEXT.populate(KBox::pin_init(context, GFP_KERNEL)?);
        let context = &**CONTEXT.as_ref().ok_or(ENOMEM)?;
        LUO.populate(KBox::pin_init(
            pin_init!(Self {
                context,
                flbs <- Flbs::new(flbs),
                outgoing <- OutgoingSessions::new(context),
                incoming <- IncomingSessions::new(context),
                number,
                opened: Atomic::new(false),
                handover <- new_mutex!(None, "luo::Handover"),
            }),
            GFP_KERNEL,
        )?);
        luo().ok_or(ENOMEM)
    }

    /// Prepares the subsystems for a live update.
    ///
    /// # Errors
    ///
    /// Those of [`Subsystems::prepare`](super::subsystems::Subsystems::prepare).
    pub(crate) fn prepare(&self) -> Result {
        self.context.end_if_unattended();
        self.context.subsystems.prepare()?;
        self.context.status.changed();
        Ok(())
    }

    /// Undoes [`Luo::prepare`].
    ///
    /// # Errors
    ///
    /// Those of [`Subsystems::cancel`](super::subsystems::Subsystems::cancel).
    pub(crate) fn cancel(&self) -> Result {
        self.context.subsystems.cancel()?;
        self.context.status.changed();
        Ok(())
    }

    /// Tells the subsystems that the live update is over.
    ///
    /// # Errors
    ///
    /// Those of [`Subsystems::finish`](super::subsystems::Subsystems::finish).
    pub(crate) fn finish(&self) -> Result {
        self.context.subsystems.finish()?;
        self.context.status.changed();
        Ok(())
    }
}
