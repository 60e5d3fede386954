// SPDX-License-Identifier: GPL-2.0

//! Preserving a memfd: its pages are pinned and preserved, and described in a layout.

use core::{
    iter,
    ops::Range, //
};

use kernel::{
    kho::Preserved,
    liveupdate,
    page::PAGE_SIZE,
    prelude::*,
    shmem::{
        FrozenMapping,
        Memfd,
        PinnedExtent,
        PreservedExtents,
        RecordedMapping, //
    }, //
};

use super::{
    abi::Block,
    attributes::Attributes,
    late::FileJournal,
    layout::Layout, //
};

/// What the next kernel finds of a file beside the header, and what keeps it as it is. Dropping it
/// undoes all.
pub(super) struct MemfdState<L: Layout> {
    parts: L::Parts,
    /// In the order of the file.
    pub(super) extents: PreservedExtents,
    pub(super) mapping: RecordedMapping<FileJournal>,
}

impl<L: Layout> MemfdState<L> {
    /// Preserves a memfd. The first of the two is the header.
    pub(super) fn new(memfd: &Memfd) -> Result<(Preserved<Block>, Self)> {
        let mapping = RecordedMapping::new(memfd)?;
        let attributes = Attributes::of(memfd)?;
        L::check(&attributes)?;

        let extents = preserve_all::<L>(&mapping)?;
        expect_no_poison(&mapping)?;

        let parts = L::list(&extents)?;
        let mut header = Preserved::<Block>::new()?;
        L::write(&mut header, &attributes, &parts, None)?;

        let state = Self {
            parts,
            extents,
            mapping,
        };
        Ok((header, state))
    }

    pub(super) fn freeze(&mut self, header: &mut Preserved<Block>) -> Result {
        self.describe(header).inspect_err(|_| self.mapping.stop())
    }

    fn describe(&mut self, header: &mut Preserved<Block>) -> Result {
        let mut late = None;

        self.extents.preserve()?;
        if self.has_holes() {
            let journal = L::journal(header.phys().get())?;
            late = journal.list();
            self.mapping.start(journal)?;
            self.catch_up()?;
        }
        let attributes = Attributes {
            poisoned: self.mapping.has_poison(),
            ..Attributes::of(&self.mapping)?
        };
        L::check(&attributes)?;
        L::write(header, &attributes, &self.parts, late)
    }

    pub(super) fn unfreeze(&mut self) {
        self.mapping.stop();
    }

    fn has_holes(&self) -> bool {
        holes(&self.extents, pages_of(self.mapping.size()))
            .next()
            .is_some()
    }

    /// Pins and preserves the pages that were inserted before that was recorded.
    fn catch_up(&mut self) -> Result {
        if !self.mapping.has_changed() {
            return Ok(());
        }

        let found = pin_pages::<L>(&self.mapping, holes(&self.extents, u64::MAX))?;
        self.mapping.take_over(&found);
        if !found.is_empty() {
            self.extents.add(found)?;
        }

        // Not before they are listed, too: if that fails, it is done the next time.
        self.parts = L::list(&self.extents)?;
        self.mapping.caught_up();
        Ok(())
    }
}

/// Pins all pages and preserves them, but leaves that to the freeze if another handler preserves
/// them now.
fn preserve_all<L: Layout>(mapping: &FrozenMapping) -> Result<PreservedExtents> {
    let pin_all = || pin_pages::<L>(mapping, iter::once(0..u64::MAX));
    if mapping.is_second() {
        return Ok(PreservedExtents::pinned(L::RUNS, pin_all()?));
    }

    let mut extents = PreservedExtents::new(L::RUNS);
    if let Some(fragmented) = extents.add_unless_fragmented(pin_all()?)? {
        mapping.migrate(&fragmented)?;
        extents.add(pin_all()?)?;
    }
    Ok(extents)
}

/// Refuses a file with a poisoned page. At the reboot, when no user can do anything about it, such
/// pages are handed over as poisoned.
///
/// # Errors
///
/// [`EHWPOISON`].
pub(super) fn expect_no_poison(mapping: &FrozenMapping) -> Result {
    match mapping.has_poison() && !liveupdate::is_rebooting() {
        true => Err(EHWPOISON),
        false => Ok(()),
    }
}

/// Where no extent is, up to the index `end`.
pub(super) fn holes(extents: &[PinnedExtent], end: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut extents = extents.iter();
    let mut next = Some(0);

    iter::from_fn(move || loop {
        let from = next?;
        let extent = extents.next();
        next = extent.map(end_of);

        let to = extent.map_or(end, |extent| extent.index());
        if from < to {
            return Some(from..to);
        }
    })
}

/// Pins the pages that are there in ranges of the file.
pub(super) fn pin_pages<L: Layout>(
    mapping: &FrozenMapping,
    ranges: impl Iterator<Item = Range<u64>>,
) -> Result<KVVec<PinnedExtent>> {
    let mut extents = KVVec::new();

    for range in ranges {
        mapping
            .pins(range, L::RUNS)?
            .for_reboot(liveupdate::is_rebooting())
            .collect(&mut extents)?;
    }
    Ok(extents)
}

/// How many pages a file has whose size is `size`.
pub(super) fn pages_of(size: u64) -> u64 {
    size.div_ceil(PAGE_SIZE as u64)
}

pub(super) fn end_of(extent: &PinnedExtent) -> u64 {
    extent.index().saturating_add(extent.pages().into())
}
