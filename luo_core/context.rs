// SPDX-License-Identifier: GPL-2.0

//! What sessions and files need of the rest of the orchestrator.

use kernel::{
    new_rw_semaphore,
    prelude::*,
    sync::RwSemaphore, //
};

use super::{
    refusal::Refusal,
    status::Status,
    subsystems::Subsystems, //
};
use crate::luo_file::{
    handlers::Handlers,
    registry::Registry, //
};

/// The context of all sessions. There is one.
#[pin_data]
pub(crate) struct Context {
    #[pin]
    pub(crate) handlers: Handlers,
    #[pin]
    pub(crate) registry: Registry,
    #[pin]
    pub(crate) subsystems: Subsystems,
    #[pin]
    pub(crate) refusal: Refusal,
    /// Held while a file is preserved, and for writing while the format changes.
    #[pin]
    pub(crate) format: RwSemaphore<()>,
    pub(crate) status: Status,
}

impl Context {
    pub(crate) fn new(status: Status, subsystems: impl PinInit<Subsystems>) -> impl PinInit<Self> {
        pin_init!(Self {
            handlers <- Handlers::new(),
            registry <- Registry::new(),
            subsystems <- subsystems,
            refusal <- Refusal::new(),
            format <- new_rw_semaphore!((), "luo::format"),
            status,
        })
    }

    /// The last session may have been finished or closed.
    pub(crate) fn sessions_ended(&self) {
        self.end_if_unattended();
        self.status.changed();
    }

    /// Ends an update that is over: no session is left to be finished, and no subsystem to be told.
    pub(crate) fn end_if_unattended(&self) {
        if self.status.incoming.sessions() == 0 && self.subsystems.end_if_unattended() {
            self.status.changed();
        }
    }
}
