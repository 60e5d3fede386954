// SPDX-License-Identifier: GPL-2.0

//! Pins the pages of a frozen mapping where they may stay for long: [`Pins`].

use super::{
    migrate::Migration,
    FrozenMapping,
    PinnedExtent, //
};
use crate::{
    bindings,
    error::to_result,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use core::mem::MaybeUninit;

/// How many pages are made fit at once that need it.
const BATCH: usize = 512;

/// How many pages are looked at in one go.
const SCAN: usize = 1 << 16;

/// Among how many pages those are looked for that must be moved.
const MOVED: usize = 1 << 13;

/// How many pages are pinned in one go.
pub(super) const MAX_RUN: usize = 1 << 12;

/// How often pinning is retried for pages that must be migrated, but are in use.
const MOVES: usize = 20;

/// Longer than a task that copies to or from a page holds its reference, usually.
const USE_TIME: Delta = Delta::from_micros(2_000);

/// Lets others run.
///
/// # Errors
///
/// [`EINTR`] if the task is being killed.
pub(crate) fn pause() -> Result {
    // SAFETY: Both are about the current task, which may sleep.
    unsafe {
        if bindings::fatal_signal_pending(bindings::get_current()) != 0 {
            return Err(EINTR);
        }
        bindings::cond_resched();
    }
    Ok(())
}

/// Goes through the pages that are there in a range of a memfd, and pins them.
///
/// Each folio is first brought into a state in which the next kernel can take it over: what is on
/// swap is read, what lies in memory from which it must go is moved, what was allocated but never
/// written is cleared, and all of it counts as dirty, so that no kernel takes it for something
/// that can be read again from elsewhere. Holes stay holes.
///
/// Memory for this is allocated without the OOM killer: a shortage is an error.
///
/// C counterparts: `shmem_pin_runs()`, `shmem_make_pinnable()`.
pub struct Pins<'a> {
    mapping: &'a FrozenMapping,
    /// An extent that has so many pages takes no more.
    max: usize,
    at: usize,
    end: usize,
    /// Pages are kept even if that leaves the kernel short of memory.
    reboot: bool,
    /// Up to here there were pages without a hole when we looked.
    present_until: usize,
    /// Few files ever need it.
    migration: Option<KBox<Migration>>,
    /// Up to here, pages that cannot stay have been migrated as far as possible.
    migrated_until: usize,
}

impl<'a> Pins<'a> {
    /// Begins with the page at `at`, and ends before that at `end`. With `runs`, contiguous folios
    /// of one order may come as one extent.
    pub(super) fn new(mapping: &'a FrozenMapping, at: usize, end: usize, runs: bool) -> Self {
        Self {
            mapping,
            max: if runs { MAX_RUN } else { 1 },
            at,
            end,
            reboot: false,
            present_until: 0,
            migration: None,
            migrated_until: 0,
        }
    }

    /// If `reboot` is set, the machine reboots: then what can be kept is, even if that leaves the
    /// kernel short of memory. At other times pages are not moved to where it needs the rest itself.
    pub fn for_reboot(self, reboot: bool) -> Self {
        Self { reboot, ..self }
    }

    /// The next pages, [`None`] at the end of the range.
    ///
    /// # Errors
    ///
    /// - [`EINTR`] if the task is being killed.
    /// - [`ENOMEM`] and others, if a page cannot be read from swap, or not be moved.
    #[expect(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<PinnedExtent>> {
        let mut next = None;

        while self.pin::<1>(|extent| next = Some(extent))? && next.is_none() {}
        Ok(next)
    }

    /// Adds all pages to `extents`, with those that follow each other, in the file as in memory, as
    /// one.
    ///
    /// This is where long work can be interrupted, and where it lets others run.
    ///
    /// # Errors
    ///
    /// Those of [`Pins::next`].
    pub fn collect(mut self, extents: &mut KVVec<PinnedExtent>) -> Result {
        const AT_ONCE: usize = 64;

        let (first, before) = (self.at, extents.len());
        loop {
            if extents.capacity() - extents.len() < AT_ONCE {
                // As many as there will be if they go on as they began, but that says little yet.
                let runs = extents.len() - before;
                let pages = (self.at - first).checked_div(runs).unwrap_or(usize::MAX);
                let left = usize::try_from(self.mapping.populated_pages())?;
                let left = left.min(self.end.saturating_sub(self.at));
                let more = (left / pages.max(1)).min(32 * runs) + AT_ONCE;
                extents.reserve(more, GFP_KERNEL_ACCOUNT)?;
            }

            let mut merge = self.max > 1;
            let more = self.pin::<AT_ONCE>(|mut extent| {
                // Those that come together have been merged.
                if let (true, Some(last)) = (core::mem::take(&mut merge), extents.last_mut()) {
                    match last.append(extent) {
                        Ok(()) => return,
                        Err(other) => extent = other,
                    }
                }
                // There is room.
                let _ = extents.push_within_capacity(extent);
            })?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Pins some pages, and gives them out in at most `N` extents. False at the end of the range.
    fn pin<const N: usize>(&mut self, mut give: impl FnMut(PinnedExtent)) -> Result<bool> {
        pause()?;
        if self.pin_runs::<N>(&mut give) {
            return Ok(true);
        }
        self.advance()
    }

    /// Pins pages at `at` that are fit for the next kernel as they are, as nearly all are. False if
    /// there are none.
    fn pin_runs<const N: usize>(&mut self, give: &mut impl FnMut(PinnedExtent)) -> bool {
        let mut runs = [const { MaybeUninit::<bindings::shmem_run>::uninit() }; N];
        let max = MAX_RUN.min(self.end.saturating_sub(self.at));

        // SAFETY: The mapping is valid, and belongs to shmem. There is room for `N` runs.
        let count = unsafe {
            bindings::shmem_pin_runs(
                self.mapping.memfd.mapping(),
                self.at,
                max,
                self.max,
                runs.as_mut_ptr().cast(),
                N,
            )
        };

        for run in runs.iter().take(count) {
            // SAFETY: The function has written the first `count` of them.
            let run = unsafe { run.assume_init_read() };
            // INVARIANT: Folios of that order were pinned, which have that many pages and follow
            // each other, in one zone. In a frozen mapping they stay at their index.
            let extent = PinnedExtent {
                pfn: run.pfn,
                index: self.at,
                // Lossless: fewer than `MAX_RUN`, and one more folio.
                pages: run.count as u32,
                order: run.order as u32,
            };
            self.at = extent.end_index();
            give(extent);
        }
        count > 0
    }

    /// Skips a hole, or else makes some pages from `at` on fit to be pinned. False at the end of
    /// the range.
    fn advance(&mut self) -> Result<bool> {
        if self.at >= self.present_until {
            return Ok(self.find());
        }
        // For a few pages it does not pay to look for more of their kind.
        if self.at >= self.migrated_until && self.end.saturating_sub(self.at) > BATCH {
            self.migrate()?;
            return Ok(true);
        }

        for _ in 0..MOVES {
            match self.make_pinnable() {
                Err(EAGAIN) => {
                    pause()?;
                    fsleep(USE_TIME);
                }
                result => return result.map(|()| true),
            }
        }
        Err(ENOMEM)
    }

    /// Makes pages from `at` on fit to be pinned.
    fn make_pinnable(&self) -> Result {
        let end = self.end.min(self.present_until);
        let pages = BATCH.min(end.saturating_sub(self.at));

        // SAFETY: The mapping is valid, belongs to shmem, and is frozen: so there is still no hole
        // before `present_until`. The current task may sleep, as all users of this module.
        to_result(unsafe {
            bindings::shmem_make_pinnable(self.mapping.memfd.mapping(), self.at, pages, self.reboot)
        })
    }

    /// Migrates pages from `at` on that cannot stay where they are.
    fn migrate(&mut self) -> Result {
        let migration = match &mut self.migration {
            Some(migration) => migration,
            none => none.insert(KBox::new(Migration::new()?, GFP_KERNEL)?),
        };
        let end = self.end.min(self.at.saturating_add(MOVED));

        self.migrated_until = migration.migrate_unpinnable(self.mapping, self.at..end);
        Ok(())
    }

    /// Finds the next pages that are there, from `at` on. False if there are none.
    fn find(&mut self) -> bool {
        let mapping = self.mapping.memfd.mapping();
        let mut index = self.at;

        if index >= self.end {
            return false;
        }

        // SAFETY: The mapping is valid. What is found is not followed.
        let entry = unsafe {
            bindings::xa_find(
                &raw mut (*mapping).i_pages,
                &mut index,
                self.end - 1,
                bindings::XA_PRESENT,
            )
        };
        if entry.is_null() {
            return false;
        }

        // SAFETY: The mapping is valid, and belongs to shmem.
        let present =
            unsafe { bindings::shmem_count_present(mapping, index, SCAN.min(self.end - index)) };

        self.at = index;
        self.present_until = index + present.max(1);
        true
    }
}
