// SPDX-License-Identifier: GPL-2.0

//! For tests: what the memfd handlers left, for [`corrupt`](super::corrupt).
//!
//! The pieces have fixed sizes, so that a test can tell from an offset which file it hit: the
//! header of each file in `memfd-extents-v3`, and of its list the first extent with what comes
//! before; of each file in `memfd-small-v3` the slot, and of each page of slots the beginning; of each
//! file in `hugetlb-memfd-v1` the header.

use kernel::{
    kho::{
        self,
        PhysAddr, //
    },
    prelude::*, //
};

use super::corrupt::Region;
use crate::abi::{
    hugetlb::{
        HugetlbHeader,
        COMPATIBLE_HUGETLB, //
    },
    memfd_extents::{
        MemfdHeader,
        COMPATIBLE_EXTENTS, //
    },
    memfd_small::{
        slot_at,
        COMPATIBLE_SMALL, //
    },
    session::FileRecord,
    Block,
    Phys, //
};

/// The numbers before the slots of a page.
const SLOT_PAGE: usize = 16;
const SLOT: usize = 128;
/// The header of a block, and an extent.
const EXTENT: usize = 16 + 24;

/// The pieces, looked for while nothing is corrupt.
pub(super) struct Memfds(KVec<(Region, PhysAddr, usize)>);

impl Memfds {
    pub(super) fn new() -> Self {
        Self(KVec::new())
    }

    /// Adds those of the files in a block of records.
    pub(super) fn add(&mut self, block: &[u8]) -> Result {
        let records = block.get(16..).unwrap_or_default();

        for record in records.chunks_exact(size_of::<FileRecord>()) {
            let record = FileRecord::read_from_bytes(record).map_err(|_| EINVAL)?;
            let file = record.parse().map_err(|_| EINVAL)?;
            match file.compatible.as_cstr() {
                name if name == COMPATIBLE_EXTENTS => self.add_extents(file.data)?,
                name if name == COMPATIBLE_SMALL => self.add_slot(file.data)?,
                name if name == COMPATIBLE_HUGETLB => {
                    let at = PhysAddr::new(file.data).ok_or(EINVAL)?;
                    self.push(Region::Huge, at, size_of::<HugetlbHeader>())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_extents(&mut self, header: u64) -> Result {
        let at = PhysAddr::new(header).ok_or(EINVAL)?;
        let mut first = None;

        self.push(Region::Memfds, at, size_of::<MemfdHeader>())?;
        kho::change_outgoing(at, size_of::<Block>(), &mut |page| {
            let header = Block::ref_from_bytes(page).ok().and_then(MemfdHeader::of);
            first = header.and_then(|header| header.parse().ok()?.extents);
        })?;
        match first.map(Phys::get).and_then(PhysAddr::new) {
            Some(first) => self.push(Region::Extents, first, EXTENT),
            None => Ok(()),
        }
    }

    fn add_slot(&mut self, slot: u64) -> Result {
        let (page, _) = slot_at(slot).ok_or(EINVAL)?;
        let page = PhysAddr::new(page.get()).ok_or(EINVAL)?;

        self.push(Region::Slots, PhysAddr::new(slot).ok_or(EINVAL)?, SLOT)?;
        if !self.0.iter().any(|(_, at, _)| *at == page) {
            self.push(Region::SlotPages, page, SLOT_PAGE)?;
        }
        Ok(())
    }

    fn push(&mut self, region: Region, at: PhysAddr, size: usize) -> Result {
        Ok(self.0.push((region, at, size), GFP_KERNEL)?)
    }

    /// Passes each piece to a function that corrupts it, region by region.
    pub(super) fn each_used(&self, visit: &mut dyn FnMut(Region, &mut [u8])) {
        for wanted in [
            Region::Memfds,
            Region::Extents,
            Region::Slots,
            Region::SlotPages,
            Region::Huge,
        ] {
            for (region, at, size) in self.0.iter().filter(|piece| piece.0 == wanted) {
                let _ = kho::change_outgoing(*at, *size, &mut |bytes| visit(*region, bytes));
            }
        }
    }
}
