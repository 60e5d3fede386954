// SPDX-License-Identifier: GPL-2.0

//! Serialization: at the kexec, the sessions of both tables are written down for the next kernel.
//!
//! First, all sessions are held, each under its own lock: a request or a close that has begun
//! finishes before, and a later one changes nothing. That covers sessions that are not serialized
//! yet, too, as files of different sessions may have memory in the same preserved pages.
//!
//! Then the files are serialized and the records written: of the outgoing sessions first, then of
//! the incoming sessions that are not finished, whose retrieved files are preserved again.
//!
//! If the kexec does not happen, all of that is undone, and deferred closes take effect.

use kernel::prelude::*;

use super::{
    incoming::IncomingSessions,
    outgoing::OutgoingSessions,
    Totals, //
};
use crate::{
    luo_core::refusal::Refusal,
    records::checksums::OutgoingChecks, //
};

/// All sessions, serialized. Dropping it undoes that: the kexec does not happen.
pub(crate) struct Serialized {
    outgoing: &'static OutgoingSessions,
    incoming: &'static IncomingSessions,
    totals: Totals,
}

impl Serialized {
    /// Freezes all sessions and writes their records.
    ///
    /// # Errors
    ///
    /// What a driver returns, [`ENOMEM`], or [`E2BIG`] if there are more than the next kernel
    /// reads; nothing has changed then.
    pub(crate) fn new(
        outgoing: &'static OutgoingSessions,
        incoming: &'static IncomingSessions,
        refusal: &Refusal,
    ) -> Result<Self> {
        // On error its drop undoes what was done so far.
        let mut this = Self {
            outgoing,
            incoming,
            totals: Totals::default(),
        };

        // An earlier kexec may have come as far as [`Serialized::commit`], and failed later.
        this.undo();
        incoming.hold();
        outgoing.hold();
        this.totals = outgoing.serialize()?;
        incoming.serialize(outgoing, &mut this.totals)?;
        outgoing.check_length(refusal)?;
        Ok(this)
    }

    /// How many there are.
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Passes all records to functions that corrupt them: those of the sessions, then those of
    /// their files.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(crate) fn each_used(
        &self,
        sessions: impl FnMut(&mut [u8]),
        mut files: impl FnMut(&mut [u8]),
    ) {
        self.outgoing.each_session(sessions);
        self.outgoing.each_file(&mut files);
        self.incoming.each_file(&mut files);
    }

    /// Calculates the checksums of everything that is serialized.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`ENOSPC`] if there are more than a root can list.
    pub(crate) fn checks(&self) -> Result<OutgoingChecks> {
        let mut checks = OutgoingChecks::new();

        self.outgoing.check_files(&mut checks)?;
        self.incoming.check_files(&mut checks)?;
        self.outgoing.check(&mut checks)?;
        Ok(checks)
    }

    /// The kexec happens: the sessions stay serialized.
    pub(crate) fn commit(self) {
        core::mem::forget(self);
    }

    fn undo(&self) {
        self.incoming.release();
        self.outgoing.release();
    }
}

impl Drop for Serialized {
    fn drop(&mut self) {
        self.undo();
    }
}
