// SPDX-License-Identifier: GPL-2.0

//! Preserving a file of huge pages: its folios are pinned and preserved, and described.

use kernel::{
    crc32c::crc32c,
    hugetlb::{
        FrozenFile,
        HugeMemfd, //
    },
    kho::Preserved,
    page::PAGE_SIZE,
    prelude::*,
    shmem::{
        PinnedExtent,
        PreservedExtents, //
    }, //
};

use super::{
    abi::{
        hugetlb::{
            HugetlbHeader,
            HugetlbMemfd, //
        },
        Block,
        Phys, //
    },
    attributes::Attributes,
    late::FileJournal,
    lists::{
        list_extents,
        list_reserved,
        Lists, //
    },
    pool::Share,
    report::extent_of, //
};

/// What the next kernel finds of a file beside the header, and what keeps it as it is. Dropping it
/// undoes all.
pub(super) struct HugeState {
    lists: Option<Lists>,
    /// Those that were there when the file was preserved.
    first: Folios,
    /// Those that were there when it was frozen, too. A thaw drops them, as the recorder may have
    /// preserved one of them as well.
    found: Folios,
    pub(super) file: FrozenFile<FileJournal>,
}

/// Folios that are pinned and preserved, and counted for the next kernel's pools.
struct Folios {
    _share: Option<Share>,
    extents: PreservedExtents,
}

impl Folios {
    fn none() -> Self {
        Self {
            _share: None,
            extents: PreservedExtents::new(true),
        }
    }

    /// Preserves extents of folios of `order`.
    fn new(order: u32, pinned: KVVec<PinnedExtent>) -> Result<Self> {
        let mut extents = PreservedExtents::new(true);

        extents.add(pinned)?;
        let share = Share::new(u16::try_from(order)?, extents.iter().map(extent_of))?;
        Ok(Self {
            _share: Some(share),
            extents,
        })
    }
}

impl HugeState {
    /// Preserves a file. The first of the two is the header.
    pub(super) fn new(file: &HugeMemfd) -> Result<(Preserved<Block>, Self)> {
        let file = FrozenFile::new(file)?;
        <Attributes>::check(&file)?;

        let mut state = Self {
            lists: None,
            first: Folios::new(file.order(), file.pin_others(&[])?)?,
            found: Folios::none(),
            file,
        };
        let mut header = Preserved::<Block>::new()?;
        state.describe(&mut header, None)?;
        Ok((header, state))
    }

    pub(super) fn freeze(&mut self, header: &mut Preserved<Block>) -> Result {
        let late = self.record(header.phys().get());

        late.and_then(|late| self.describe(header, late))
            .inspect_err(|_| self.unfreeze())
    }

    pub(super) fn unfreeze(&mut self) {
        self.file.stop();
        self.found = Folios::none();
    }

    /// Has the folios recorded that are inserted from now on, and preserves those that were before.
    ///
    /// # Errors
    ///
    /// [`EHWPOISON`] if one has a hardware error: the next kernel could not make it a huge page.
    fn record(&mut self, file: u64) -> Result<Option<Phys>> {
        if self.file.has_poison() {
            return Err(EHWPOISON);
        }
        if self.pages() >= self.file.size().div_ceil(PAGE_SIZE as u64) {
            return Ok(None);
        }

        let journal = FileJournal::new(file)?;
        let late = journal.list();
        self.file.start(journal)?;
        if self.file.populated_pages() != self.pages() {
            let others = self.file.pin_others(&self.first.extents)?;
            self.found = Folios::new(self.file.order(), others)?;
        }
        Ok(late)
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> u64 {
        self.extents().map(|extent| u64::from(extent.pages())).sum()
    }

    fn extents(&self) -> impl Iterator<Item = &PinnedExtent> {
        Iterator::chain(self.first.extents.iter(), self.found.extents.iter())
    }

    /// Lists all extents and reservations.
    fn list(&self) -> Result<Lists> {
        let mut extents = KVVec::new();

        for extent in self.extents() {
            extents.push(extent, GFP_KERNEL)?;
        }
        extents.sort_unstable_by_key(|extent| extent.index());
        Ok(Lists {
            extents: list_extents(extents.iter().map(|extent| extent_of(extent)))?,
            reserved: list_reserved(&self.file, &extents)?,
        })
    }

    /// Writes the lists and the header.
    fn describe(&mut self, header: &mut Block, late: Option<Phys>) -> Result {
        let lists = self.list()?;
        let attributes: Attributes = Attributes::of(&self.file)?;
        let (uid, gid) = attributes.owner.ok_or(EINVAL)?;

        let description = HugetlbMemfd {
            pos: attributes.position,
            size: attributes.size,
            seals: attributes.seals,
            open: attributes.open,
            mode: attributes.mode,
            uid,
            gid,
            name: attributes.name,
            order: u16::try_from(self.file.order())?,
            nr_extents: 0,
            nr_pages: self.pages(),
            extents: None,
            nr_reserved: 0,
            reserved: None,
            late,
        };
        let description = HugetlbHeader::new(&lists.describe(description)?, crc32c);
        *HugetlbHeader::of_mut(header).ok_or(EINVAL)? = description;
        self.lists = Some(lists);
        Ok(())
    }
}
