// SPDX-License-Identifier: GPL-2.0

//! Pinned extents that KHO preserves: [`PreservedExtents`] of one file, [`SharedExtents`] of
//! several.

use super::{
    migrate::fragmented,
    PinnedExtent, //
};
use crate::{
    kho::Preservation,
    page::PAGE_SIZE,
    prelude::*, //
};
use core::ops::{
    Deref,
    Range, //
};

/// Extents in the order in which they are in memory.
fn in_memory_order<'a>(
    extents: impl Iterator<Item = &'a PinnedExtent>,
) -> Result<KVVec<&'a PinnedExtent>> {
    let most = extents.size_hint().1.unwrap_or_default();
    let mut sorted = KVVec::with_capacity(most, GFP_KERNEL)?;

    for extent in extents {
        sorted.push_within_capacity(extent)?;
    }
    sorted.sort_unstable_by_key(|extent| extent.pfn);
    Ok(sorted)
}

/// Extents that follow each other in memory.
pub(super) struct MemoryRun<'a> {
    pub(super) first: &'a PinnedExtent,
    pub(super) extents: usize,
    /// How many pages they all have.
    pub(super) pages: usize,
}

impl MemoryRun<'_> {
    /// Counts an extent in, if it is what follows.
    fn append(&mut self, next: &PinnedExtent) -> bool {
        let follows = self.first.is_followed_by(self.pages, next);

        if follows {
            self.extents += 1;
            self.pages += next.pages as usize;
        }
        follows
    }
}

/// The runs of extents that come in the order of memory. If not `merge`, each is one by itself.
fn runs<'a>(extents: &[&'a PinnedExtent], merge: bool) -> Result<KVVec<MemoryRun<'a>>> {
    let mut runs = KVVec::<MemoryRun<'a>>::new();

    for first in extents {
        if !merge || !runs.last_mut().is_some_and(|run| run.append(first)) {
            let run = MemoryRun {
                first,
                extents: 1,
                pages: first.pages as usize,
            };
            runs.push(run, GFP_KERNEL)?;
        }
    }
    Ok(runs)
}

/// Preserves runs of pinned extents.
fn preserve(runs: &[MemoryRun<'_>]) -> Result<KVVec<Preservation>> {
    let mut preserved = KVVec::with_capacity(runs.len(), GFP_KERNEL_ACCOUNT)?;

    for run in runs {
        let pages = Preservation::new(run.first.pfn, run.pages, run.first.order)?;
        preserved.push(pages, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(preserved)
}

/// Gives memory for more elements back, unless that is less than a page.
fn without_spare<T>(all: KVVec<T>) -> KVVec<T> {
    let spare = all.capacity() - all.len();
    if spare < PAGE_SIZE / size_of::<T>().max(1) {
        return all;
    }
    let Ok(mut exact) = KVVec::with_capacity(all.len(), GFP_KERNEL_ACCOUNT) else {
        return all;
    };

    for element in all {
        // There is room.
        let _ = exact.push_within_capacity(element);
    }
    exact
}

/// The preserved extents of one file, in the order of the file.
///
/// Extents that are contiguous in memory are preserved as one range, wherever they are in the file:
/// KHO's work in the next kernel grows faster than the number of ranges. A next kernel that
/// restores each extent by itself, as the C implementation does, cannot read such ranges.
pub struct PreservedExtents {
    /// Whether contiguous extents are preserved as one range.
    runs: bool,
    preserved: KVVec<Preservation>,
    extents: KVVec<PinnedExtent>,
    /// Whether the extents are only pinned yet.
    pinned_only: bool,
}

impl PreservedExtents {
    /// None yet. `runs` says whether extents that are contiguous in memory are preserved as one.
    pub fn new(runs: bool) -> Self {
        Self {
            runs,
            preserved: KVVec::new(),
            extents: KVVec::new(),
            pinned_only: false,
        }
    }

    /// These extents, which [`PreservedExtents::preserve`] is to preserve: now they are in somebody
    /// else's name, and KHO does not count how often a page is preserved.
    pub fn pinned(runs: bool, extents: KVVec<PinnedExtent>) -> Self {
        Self {
            runs,
            preserved: KVVec::new(),
            extents: without_spare(extents),
            pinned_only: true,
        }
    }

    /// Preserves the extents that are only pinned.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing has changed then.
    pub fn preserve(&mut self) -> Result {
        if self.pinned_only {
            let order = in_memory_order(self.extents.iter())?;
            self.preserved = preserve(&runs(&order, self.runs)?)?;
            self.pinned_only = false;
        }
        Ok(())
    }

    /// Preserves more extents, unless they are fragmented in memory: in many short runs. Then they
    /// are unpinned, and their ranges of the file are returned, to be
    /// [migrated](super::FrozenMapping::migrate).
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing has been added then.
    pub fn add_unless_fragmented(
        &mut self,
        more: KVVec<PinnedExtent>,
    ) -> Result<Option<KVVec<Range<usize>>>> {
        let order = in_memory_order(more.iter())?;
        let runs = runs(&order, self.runs)?;
        // Extents that are preserved one by one may be anywhere.
        let fragmented = self.runs.then(|| fragmented(&order, &runs));
        if let Some(ranges) = fragmented.transpose()?.flatten() {
            return Ok(Some(ranges));
        }

        let preserved = preserve(&runs)?;
        drop((order, runs));
        self.push(more, preserved)?;
        Ok(None)
    }

    /// Preserves more extents.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing has been added then.
    pub fn add(&mut self, more: KVVec<PinnedExtent>) -> Result {
        let preserved = preserve(&runs(&in_memory_order(more.iter())?, self.runs)?)?;

        self.push(more, preserved)
    }

    fn push(&mut self, more: KVVec<PinnedExtent>, preserved: KVVec<Preservation>) -> Result {
        if self.extents.is_empty() {
            self.extents = without_spare(more);
            self.preserved = preserved;
            return Ok(());
        }

        self.preserved
            .reserve(preserved.len(), GFP_KERNEL_ACCOUNT)?;
        self.extents.reserve(more.len(), GFP_KERNEL_ACCOUNT)?;
        // From here on there is room.
        for pages in preserved {
            self.preserved.push(pages, GFP_KERNEL_ACCOUNT)?;
        }
        for extent in more {
            self.extents.push(extent, GFP_KERNEL_ACCOUNT)?;
        }
        self.extents.sort_unstable_by_key(|extent| extent.index);
        Ok(())
    }
}

impl Deref for PreservedExtents {
    type Target = [PinnedExtent];

    fn deref(&self) -> &[PinnedExtent] {
        &self.extents
    }
}

/// Extents of several files that are preserved together, so that extents which are contiguous in
/// memory are one range whatever file they belong to. The next kernel restores the pages one by
/// one, see [`RestoredPages::claim_shared`](crate::kho::RestoredPages::claim_shared).
///
/// Each extent has a place, counted from 0.
pub struct SharedExtents {
    /// Of all extents, or of none. Declared before `places`, so dropped before they are unpinned.
    preserved: KVVec<Preservation>,
    complete: bool,
    places: KVec<Option<PinnedExtent>>,
}

impl SharedExtents {
    /// Makes `places` places without an extent.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn new(places: usize) -> Result<Self> {
        let mut all = KVec::with_capacity(places, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..places {
            all.push(None, GFP_KERNEL_ACCOUNT)?;
        }

        Ok(Self {
            preserved: KVVec::new(),
            complete: false,
            places: all,
        })
    }

    /// The extent in a place.
    pub fn get(&self, place: usize) -> Option<&PinnedExtent> {
        self.places.get(place)?.as_ref()
    }

    /// Puts another extent, or none, into a place. All extents are unpreserved.
    pub fn set(&mut self, place: usize, extent: Option<PinnedExtent>) {
        // First: pages that are not pinned must not be preserved.
        self.preserved.clear();
        self.complete = false;
        if let Some(at) = self.places.get_mut(place) {
            *at = extent;
        }
    }

    /// Preserves all extents, unless that has been done.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing is preserved then.
    pub fn preserve(&mut self) -> Result {
        if self.complete {
            return Ok(());
        }

        let order = in_memory_order(self.places.iter().filter_map(Option::as_ref))?;
        self.preserved = preserve(&runs(&order, true)?)?;
        self.complete = true;
        Ok(())
    }
}
