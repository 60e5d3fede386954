// SPDX-License-Identifier: GPL-2.0

//! A machine's memory on the host, and what a new kernel sees of it.

use luo_abi::{
    block::Block,
    chain::Memory,
    memfd::Run,
    Phys, //
};
use std::{
    cell::RefCell,
    collections::{
        BTreeMap,
        BTreeSet, //
    }, //
};
use zerocopy::{
    FromZeros,
    IntoBytes, //
};

/// The most blocks that [`read`] follows in a chain.
pub const MAX_BLOCKS: usize = 1000;

/// Preserved pages.
#[derive(Default)]
pub struct PhysMem {
    /// Pages with metadata, by address.
    pub pages: BTreeMap<u64, Box<Block>>,
    /// Pages with data, by number; what is in them matters to no one.
    pub data: BTreeSet<u64>,
    last: u64,
}

impl PhysMem {
    /// A new page of metadata.
    pub fn page(&mut self) -> Phys {
        let at = Phys::from_pfn(self.take(1, 1)).unwrap();
        self.pages.insert(at.get(), Box::new(Block::new_zeroed()));
        at
    }

    /// New pages of data, aligned to a power of two; returns the number of the first.
    pub fn data(&mut self, pages: u64, align: u64) -> u64 {
        let pfn = self.take(pages, align);
        self.data.extend(pfn..pfn + pages);
        pfn
    }

    fn take(&mut self, pages: u64, align: u64) -> u64 {
        let pfn = self.last.max(0x100).next_multiple_of(align);
        // Leaves a gap, so that a run that is too long meets nothing.
        self.last = pfn + pages + 1;
        pfn
    }

    /// A page of metadata to be written.
    pub fn block(&mut self, at: Phys) -> &mut Block {
        self.pages.get_mut(&at.get()).unwrap()
    }

    /// A page of metadata as bytes.
    pub fn bytes(&mut self, at: Phys) -> &mut [u8] {
        self.block(at).as_mut_bytes()
    }
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPage {
    /// Nothing is preserved there.
    Absent,
    /// It was claimed before.
    Claimed,
    /// A visitor has seen enough.
    Refused,
}

/// What the new kernel sees: each page can be claimed once.
pub struct Claims<'m> {
    mem: &'m PhysMem,
    claimed: RefCell<BTreeSet<u64>>,
}

impl<'m> Claims<'m> {
    pub fn new(mem: &'m PhysMem) -> Self {
        Self {
            mem,
            claimed: RefCell::default(),
        }
    }

    /// Claims pages of data.
    pub fn data(&self, run: Run) -> Result<(), NoPage> {
        // The first bad page decides, so a run of 2^32 pages is no problem.
        for pfn in run.pfn..run.end().ok_or(NoPage::Absent)? {
            if !self.mem.data.contains(&pfn) {
                return Err(NoPage::Absent);
            }
            if !self.claimed.borrow_mut().insert(pfn) {
                return Err(NoPage::Claimed);
            }
        }
        Ok(())
    }

    /// How many pages were claimed.
    pub fn count(&self) -> usize {
        self.claimed.borrow().len()
    }
}

impl<'m> Memory for Claims<'m> {
    type Page = &'m Block;
    type Error = NoPage;

    fn page(&self, at: Phys) -> Result<&'m Block, NoPage> {
        assert!(at.page_aligned(), "{at} was to be followed");
        let page = self.mem.pages.get(&at.get()).ok_or(NoPage::Absent)?;
        if self.claimed.borrow_mut().insert(at.pfn()) {
            Ok(page)
        } else {
            Err(NoPage::Claimed)
        }
    }
}

/// Memory in which a page can be had any number of times.
pub struct Shared<'m>(pub &'m PhysMem);

impl<'m> Memory for Shared<'m> {
    type Page = &'m Block;
    type Error = NoPage;

    fn page(&self, at: Phys) -> Result<&'m Block, NoPage> {
        self.0
            .pages
            .get(&at.get())
            .map(|page| &**page)
            .ok_or(NoPage::Absent)
    }
}
