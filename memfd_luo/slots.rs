// SPDX-License-Identifier: GPL-2.0

//! Slots for small memfds: each describes one, and many of them share a page.
//!
//! At the freeze, the contents of all files that share such a page are preserved together. A file
//! that gets a slot there later is frozen as well, and all are preserved anew.
//!
//! - [`Slot`] is one for the next kernel, with the content of the file. Dropping it frees the slot,
//!   and the page after its last slot.
//! - [`IncomingSlot`] is one of the previous kernel. Its page is restored when the first of its
//!   slots is read, and freed after the last one. A slot can be freed only once, so that two files
//!   cannot have the same.
//!
//! # Locks
//!
//! One mutex, innermost: it is only held inside the functions of this module.

use kernel::{
    crc32c::crc32c,
    kho::{
        PhysAddr,
        Preserved,
        Restored, //
    },
    liveupdate::Handover,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    shmem::{
        PinnedExtent,
        SharedExtents, //
    },
    sync::{
        static_mutex,
        StaticMutex, //
    }, //
};

use super::{
    abi::{
        check::Crc32c,
        memfd_small::{
            bit,
            slot_address,
            slot_at,
            SmallPage,
            SmallRecord,
            ALL_SLOTS,
            SLOTS, //
        },
        Phys, //
    },
    report::{
        address,
        not_there,
        phys_of, //
    },
    version::crc_of, //
};

/// All pages, by their physical address.
struct Pages {
    outgoing: RBTree<u64, OutgoingPage>,
    /// The address of the outgoing page that is most likely to have a free slot.
    open: u64,
    incoming: RBTree<u64, IncomingPage>,
}

/// A page for the next kernel.
struct OutgoingPage {
    page: Preserved<SmallPage>,
    /// The content of each file that has a slot in the page, in the order of the slots.
    contents: SharedExtents,
}

/// A page of the previous kernel.
struct IncomingPage {
    page: Restored<SmallPage>,
    /// The slots that are still in use.
    left: u32,
    /// Whether what comes before the slots is as it was written.
    intact: bool,
}

static PAGES: StaticMutex<Pages> = static_mutex!(
    Pages {
        outgoing: RBTree::new(),
        open: 0,
        incoming: RBTree::new(),
    },
    "memfd_luo::slots::PAGES"
);

impl OutgoingPage {
    fn new() -> Result<Self> {
        Ok(Self {
            contents: SharedExtents::new(SLOTS)?,
            page: Preserved::new()?,
        })
    }

    /// Puts a file's content into a free slot and returns the slot's address; [`None`] if there is
    /// none, and then the content stays where it is.
    fn add(&mut self, content: &mut Option<PinnedExtent>) -> Option<u64> {
        let index = self.page.add()?;
        self.page.set_sum(crc32c);
        let slot = slot_address(phys_of(self.page.phys()).ok()?, index)?;

        self.contents.set(index, content.take());
        Some(slot)
    }
}

impl Pages {
    /// Puts a file's content into a slot and returns the slot's address.
    fn add(&mut self, mut content: Option<PinnedExtent>) -> Result<u64> {
        if let Some(open) = self.outgoing.get_mut(&self.open) {
            if let Some(slot) = open.add(&mut content) {
                return Ok(slot);
            }
        }

        let mut new = OutgoingPage::new()?;
        let at = new.page.phys().get();
        let slot = new.add(&mut content).ok_or(ENOMEM)?;
        self.outgoing.try_create_and_insert(at, new, GFP_KERNEL)?;
        self.open = at;
        Ok(slot)
    }

    /// The page of a slot, and the number of the slot there.
    fn find(&mut self, slot: u64) -> Option<(&mut OutgoingPage, usize)> {
        let (at, index) = slot_at(slot)?;

        Some((self.outgoing.get_mut(&at.get())?, index))
    }

    fn remove(&mut self, slot: u64) {
        let Some((page, index)) = self.find(slot) else {
            return;
        };

        page.contents.set(index, None);
        page.page.remove(index);
        page.page.set_sum(crc32c);
        let (at, empty) = (page.page.phys().get(), page.page.used() == 0);
        if empty {
            self.outgoing.remove(&at);
        } else {
            self.open = at;
        }
    }

    /// The record of an incoming slot, and the list of late folios that its page names. The page is
    /// claimed now, if that has not been done.
    fn read(&mut self, slot: u64, crc: Option<Crc32c>) -> Result<(SmallRecord, Option<Phys>)> {
        let (phys, index) = slot_at(slot).ok_or(EINVAL)?;
        let at = phys.get();

        if self.incoming.get(&at).is_none() {
            let place = address(phys)?;
            // First: a page that was claimed and then has no place here would be lost.
            let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
            let page = Restored::<SmallPage>::claim(place).map_err(|e| not_there(e, place))?;
            let intact = crc.is_none_or(|crc| page.sum_matches(crc));
            if !intact {
                pr_err!(
                    "memfd slots at {:?}: checksum of the page does not match\n",
                    place
                );
            }
            // Else it is not known which are in use, and so when the page can be freed.
            let left = if intact { page.used() } else { ALL_SLOTS };
            self.incoming
                .insert(node.into_node(at, IncomingPage { page, left, intact }));
        }

        let claimed = self.incoming.get(&at).ok_or(EINVAL)?;
        let record = match claimed.page.slot(index) {
            Some(record) if claimed.left & bit(index) != 0 => record,
            _ => return Err(not_there(ENOENT, PhysAddr::new(slot).ok_or(EINVAL)?)),
        };
        let record = match crc {
            Some(crc) => record.verified(crc).map_err(|_| EUCLEAN)?,
            None => *record,
        };
        if !claimed.intact && record.may_be_late() {
            return Err(EUCLEAN);
        }
        Ok((record, claimed.page.late()))
    }

    fn release(&mut self, slot: u64) {
        let Some((at, index)) = slot_at(slot) else {
            return;
        };
        let at = at.get();
        let Some(claimed) = self.incoming.get_mut(&at) else {
            return;
        };

        claimed.left &= !bit(index);
        if claimed.left == 0 {
            self.incoming.remove(&at);
        }
    }
}

/// A description, and the content described, that the next kernel will find.
pub(super) struct Slot {
    at: u64,
}

impl Slot {
    /// Allocates a slot for a file. [`Slot::preserve`] describes the file in it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(content: Option<PinnedExtent>) -> Result<Self> {
        Ok(Self {
            at: PAGES.lock().add(content)?,
        })
    }

    /// Adds content to a file that had none.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such slot, which is a bug.
    pub(super) fn fill(&mut self, content: PinnedExtent) -> Result {
        let mut pages = PAGES.lock();
        let (page, index) = pages.find(self.at).ok_or(EINVAL)?;

        page.contents.set(index, Some(content));
        Ok(())
    }

    /// Calls `act` with the content.
    ///
    /// # Errors
    ///
    /// Those of `act`.
    pub(super) fn with_content(&self, act: impl FnOnce(Option<&PinnedExtent>) -> Result) -> Result {
        let mut pages = PAGES.lock();
        let (page, index) = pages.find(self.at).ok_or(EINVAL)?;

        act(page.contents.get(index))
    }

    /// Describes the file, and preserves its content together with that of the other files of the
    /// page. `late` is the list of late folios, if the content may be inserted late.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of `describe`.
    pub(super) fn preserve(
        &mut self,
        late: Option<Phys>,
        describe: impl FnOnce(Option<&PinnedExtent>) -> Result<SmallRecord>,
    ) -> Result {
        let mut pages = PAGES.lock();
        let (page, index) = pages.find(self.at).ok_or(EINVAL)?;

        let record = describe(page.contents.get(index))?;
        *page.page.get_mut(index).ok_or(EINVAL)? = record;
        if let Some(late) = late {
            // There is one list at a time, and so it is that of all slots.
            page.page.set_late(late);
        }
        page.page.set_sum(crc32c);
        page.contents.preserve()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        PAGES.lock().remove(self.at);
    }
}

impl Handover for Slot {
    type Incoming = IncomingSlot;

    fn to_bits(&self) -> u64 {
        self.at
    }

    fn from_bits(bits: u64) -> Result<IncomingSlot> {
        slot_at(bits).ok_or(EINVAL)?;
        Ok(IncomingSlot { at: bits })
    }

    fn keep(incoming: IncomingSlot) {
        incoming.keep();
    }
}

/// A description that the previous kernel left. Dropping it frees the slot.
pub(super) struct IncomingSlot {
    at: u64,
}

impl IncomingSlot {
    /// Its address.
    pub(super) fn to_bits(&self) -> u64 {
        self.at
    }

    /// What stands in the slot, and the list of late folios, if there is one.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is none, or it is free.
    /// - [`ENOMEM`].
    /// - [`EUCLEAN`] if it is not as it was written.
    pub(super) fn read<const VERSION: u32>(&self) -> Result<(SmallRecord, Option<Phys>)> {
        PAGES.lock().read(self.at, crc_of(VERSION))
    }

    /// Keeps the slot in use.
    pub(super) fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for IncomingSlot {
    fn drop(&mut self) {
        PAGES.lock().release(self.at);
    }
}
