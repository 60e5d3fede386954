// SPDX-License-Identifier: GPL-2.0

//! For KUnit tests: what callbacks were called, and in which order.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// The calls so far, a digit each, the first one leftmost. For one test at a time.
pub(crate) struct CallLog(Atomic<u64>);

impl CallLog {
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Notes a call.
    pub(crate) fn add(&self, digit: u64) {
        self.0.store(self.0.load(Relaxed) * 10 + digit, Relaxed);
    }

    /// The calls since this was asked last.
    pub(crate) fn take(&self) -> u64 {
        self.0.xchg(0, Relaxed)
    }
}
