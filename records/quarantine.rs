// SPDX-License-Identifier: GPL-2.0

//! The quarantine: which incoming sessions, files or FLBs are corrupt, and why.
//!
//! A corrupt record is reported and left out; its memory stays reserved.

use core::fmt::{
    Formatter,
    Result as FmtResult, //
};

use kernel::{
    fmt,
    prelude::*,
    str::CString, //
};

use crate::{
    abi::SessionName,
    luo_core::trace, //
};

/// How many reasons are kept. Corruption that is everywhere has one cause.
const MAX: usize = 16;

/// What is quarantined of one container.
pub(crate) struct Quarantine {
    count: usize,
    reasons: KVec<CString>,
}

impl Quarantine {
    pub(crate) const fn new() -> Self {
        Self {
            count: 0,
            reasons: KVec::new(),
        }
    }

    /// Whether nothing is.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes something in, of `session` if that is known. `why` says what it is, and what is wrong
    /// with it.
    pub(crate) fn add(&mut self, session: Option<&SessionName>, why: fmt::Arguments<'_>) {
        pr_err!("incoming {}\n", why);
        trace::quarantined(session, EUCLEAN);

        self.count = self.count.saturating_add(1);
        if self.reasons.len() < MAX {
            // Without memory for it the reason is in the log only.
            let _ = CString::try_from_fmt(why)
                .and_then(|why| Ok(self.reasons.push(why, GFP_KERNEL)?));
        }
    }

    /// Shows all of it, a line each.
    pub(crate) fn show(&self, f: &mut Formatter<'_>) -> FmtResult {
        for why in &self.reasons {
            writeln!(f, "quarantined: {}", why.to_str().unwrap_or("?"))?;
        }
        match self.count.saturating_sub(self.reasons.len()) {
            0 => Ok(()),
            more => writeln!(f, "quarantined: {more} more, see the log"),
        }
    }
}
