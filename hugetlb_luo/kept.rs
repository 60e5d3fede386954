// SPDX-License-Identifier: GPL-2.0

//! Files of a size of huge pages that this kernel does not have: [`Kept`].
//!
//! No such file can be made here. At a kexec, a file that nobody could retrieve is represented by an
//! anonymous one, and is handed over as it came: its folios stay where they are, and unclaimed.

use kernel::{
    anon_inode::{
        self,
        AnonFile, //
    },
    crc32c::crc32c,
    fs::File,
    kho::{
        HandedOn,
        PhysAddr,
        Preserved,
        Unclaimed, //
    },
    liveupdate::RetrieveError,
    prelude::*,
    sync::aref::ARef, //
};

use super::{
    abi::{
        hugetlb::HugetlbHeader,
        Block, //
    },
    lists::Lists,
    pool::Share,
    report::address,
    restore::{
        self,
        Description, //
    }, //
};

/// A file that is still as the previous kernel has left it.
pub(super) struct Kept {
    header: PhysAddr,
}

#[vtable]
impl AnonFile for Kept {
    type Ptr = KBox<Self>;
}

/// What hands such a file over again. Dropping it undoes that.
pub(super) struct KeptState {
    _lists: Lists,
    _share: Share,
    _folios: KVVec<HandedOn>,
}

impl Kept {
    /// A file in place of the one that has `header`.
    pub(super) fn file(
        header: Unclaimed<Block>,
    ) -> Result<ARef<File>, RetrieveError<Unclaimed<Block>>> {
        let at = header.into_phys();
        let file = KBox::new(Self { header: at }, GFP_KERNEL)
            .map_err(Error::from)
            .and_then(|kept| anon_inode::new_file::<Self>(c"[hugetlb_luo]", kept));

        file.map_err(|e| RetrieveError::Again(e, Unclaimed::new(at)))
    }

    /// The one that `file` stands for.
    pub(super) fn of(file: &File) -> Option<&Self> {
        anon_inode::data_of::<Self>(file)
    }

    /// Hands it over again, described anew.
    pub(super) fn preserve(&self) -> Result<(Preserved<Block>, KeptState)> {
        let header = Unclaimed::new(self.header);
        let read = Description::read(&header);
        header.into_phys();
        let description = read?;

        let lists = description.list()?;
        let memfd = lists.describe(description.without_late())?;
        let mut folios = KVVec::new();
        for folio in description.folios() {
            folios.push(HandedOn::new(address(folio.start)?)?, GFP_KERNEL)?;
        }
        let state = KeptState {
            _lists: lists,
            _share: Share::new(memfd.order, description.folios().map(Ok))?,
            _folios: folios,
        };

        let mut header = Preserved::<Block>::new()?;
        *HugetlbHeader::of_mut(&mut header).ok_or(EINVAL)? = HugetlbHeader::new(&memfd, crc32c);
        Ok((header, state))
    }

    /// Frees all that is left of it.
    pub(super) fn discard(&self) {
        restore::discard(Unclaimed::new(self.header));
    }
}
