// SPDX-License-Identifier: GPL-2.0

//! Preserved pages that hold records: [`RecordPages`].

use kernel::{
    kho::Preserved,
    prelude::*, //
};

use super::{
    abi::{
        Block,
        Phys, //
    },
    report::phys_of, //
};

/// Preserved pages that hold records.
pub(super) struct RecordPages(KVVec<Preserved<Block>>);

impl RecordPages {
    pub(super) fn new() -> Self {
        Self(KVVec::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Where the first page is, if there is one.
    pub(super) fn first(&self) -> Result<Option<Phys>> {
        self.0.first().map(|page| phys_of(page.phys())).transpose()
    }

    /// Has something put into the last page, or into a new one behind it, to which `link` leads.
    ///
    /// `put` says whether there was place.
    pub(super) fn put(
        &mut self,
        put: impl Fn(&mut Block) -> bool,
        link: impl FnOnce(&mut Block, Phys),
    ) -> Result {
        if self.last().is_some_and(&put) {
            return Ok(());
        }

        let page = Preserved::<Block>::new()?;
        let phys = phys_of(page.phys())?;
        self.0.reserve(1, GFP_KERNEL_ACCOUNT)?;
        if let Some(last) = self.last() {
            link(last, phys);
        }
        self.0.push(page, GFP_KERNEL_ACCOUNT)?;

        match self.last().is_some_and(put) {
            true => Ok(()),
            false => Err(EINVAL),
        }
    }

    /// Adds an empty page behind the last.
    pub(super) fn add(&mut self) -> Result<Phys> {
        let page = Preserved::<Block>::new()?;
        let phys = phys_of(page.phys())?;

        self.0.push(page, GFP_KERNEL_ACCOUNT)?;
        Ok(phys)
    }

    /// All pages, in order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Block> {
        self.0.iter_mut().map(|page| &mut **page)
    }

    pub(super) fn last(&mut self) -> Option<&mut Block> {
        self.0.last_mut().map(|page| &mut **page)
    }
}
