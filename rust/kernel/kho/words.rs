// SPDX-License-Identifier: GPL-2.0

//! A preserved page that several tasks write at once: [`PreservedWords`].

use super::{
    PhysAddr,
    Preserved, //
};
use crate::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::Atomic, //
};

/// How many words a page has.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// A page of 64-bit words that the next kernel will find where it is now; each word is written and
/// read atomically.
///
/// It starts out zeroed. The next kernel reads what was stored by the time at which the processors
/// stopped.
///
/// # Invariants
///
/// The page is accessed by atomic operations only.
pub struct PreservedWords {
    page: Preserved<[u64; WORDS]>,
}

impl PreservedWords {
    /// Allocates a page of zeros and marks it as preserved. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn new() -> Result<Self> {
        // INVARIANT: Nobody else knows the page yet.
        Ok(Self {
            page: Preserved::new()?,
        })
    }

    /// Where the next kernel finds the page.
    pub fn phys(&self) -> PhysAddr {
        self.page.phys()
    }

    /// A word; [`None`] if the page does not have so many.
    pub fn get(&self, word: usize) -> Option<&Atomic<u64>> {
        if word >= WORDS {
            return None;
        }

        // SAFETY: The page has that word, which is aligned, and lives as long as `self`. By the
        // type invariant nobody accesses it but by atomic operations.
        Some(unsafe { Atomic::from_ptr(self.page.ptr.as_ptr().cast::<u64>().add(word)) })
    }
}
