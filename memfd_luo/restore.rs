// SPDX-License-Identifier: GPL-2.0

//! Restoring a memfd: its description is validated without a change, then its pages are claimed and
//! put into a new file.

use kernel::{
    fs::File,
    kho::Unclaimed,
    prelude::*,
    shmem::Filling,
    sync::aref::ARef, //
};

use super::{
    abi::{
        Block,
        Phys, //
    },
    attributes::Attributes,
    late,
    layout::Layout,
    memory::{
        ClaimMemory,
        CopyMemory, //
    },
    parts::Part,
    preserve::pages_of,
    report::not_there,
    singles::Singles, //
};

/// The validated description of an incoming memfd.
pub(super) struct Description<L: Layout> {
    pub(super) attributes: Attributes,
    list: L::List,
    singles: Singles,
    late: KVec<Part>,
    /// Of all folios and single pages.
    pub(super) pages: usize,
}

impl<L: Layout> Description<L> {
    /// Reads and validates the description, and claims nothing.
    pub(super) fn read(header: &Unclaimed<Block>) -> Result<Self> {
        let page = header.copy().map_err(|e| not_there(e, header.phys()))?;
        let (attributes, list) = L::read(&page)?;

        let mut pages = 0_usize;
        let mut singles = Singles::of::<L, _>(&CopyMemory, &list, |folio| {
            pages = pages.checked_add(folio.pages).ok_or(EINVAL)?;
            folio.find()
        })?;
        singles.find()?;
        pages = pages.checked_add(singles.pages()).ok_or(EINVAL)?;

        let late = late_parts(L::late(&list), header.phys().get())?;
        for part in &late {
            part.find()?;
            pages = pages.checked_add(part.pages).ok_or(EINVAL)?;
        }

        Ok(Self {
            attributes,
            list,
            singles,
            late,
            pages,
        })
    }

    /// Claims the pages and puts them into `file`. The description goes away.
    pub(super) fn fill(self, mut file: Filling, header: Unclaimed<Block>) -> Result<ARef<File>> {
        let file_pages = pages_of(self.attributes.size);
        let mut result = self.singles.fill(&mut file, file_pages);

        let walked = L::walk(&ClaimMemory, &self.list, |part| {
            match result {
                _ if !part.folio => {}
                Ok(()) => result = part.fill(&mut file, file_pages),
                // The file is not complete: the rest is freed.
                Err(_) => drop(part.free()),
            }
            Ok(())
        });
        for part in &self.late {
            match result {
                Ok(()) => result = part.fill(&mut file, file_pages),
                Err(_) => drop(part.free()),
            }
        }
        if let Some(list) = L::late(&self.list) {
            late::finished(list);
        }

        drop(header);
        result?;
        walked?;
        Ok(file.into_file())
    }
}

/// The late folios of the file for which `file` was handed over, as `list` has them.
pub(super) fn late_parts(list: Option<Phys>, file: u64) -> Result<KVec<Part>> {
    let mut parts = KVec::new();
    let Some(list) = list else {
        return Ok(parts);
    };

    for extent in &late::of_file(list, file)? {
        parts.push(Part::of(extent)?, GFP_KERNEL)?;
    }
    Ok(parts)
}

/// Frees them.
pub(super) fn free_late(list: Option<Phys>, file: u64) -> Result {
    let mut freed = Ok(());

    for part in &late_parts(list, file)? {
        freed = freed.and(part.free());
    }
    if let Some(list) = list {
        late::finished(list);
    }
    freed
}

/// Frees all that is left of an incoming memfd: nothing that its description lists, if that is
/// corrupt anywhere.
pub(super) fn discard<L: Layout>(header: Unclaimed<Block>) {
    let file = header.phys().get();
    let Ok(header) = header.claim() else {
        return;
    };

    let freed = L::read_list(&header).and_then(|list| {
        L::walk(&CopyMemory, &list, |_| Ok(()))?;
        let late = L::late(&list);
        let freed = free_late(late, file);
        let singles = Singles::of::<L, _>(&ClaimMemory, &list, Part::free)?;
        singles.free().and(freed)
    });
    if freed.is_err() {
        pr_warn!("memory of a memfd that was not retrieved stays reserved\n");
    }
}
