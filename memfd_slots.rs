// SPDX-License-Identifier: GPL-2.0

//! Where the descriptions of small memfds are: slots in pages that many of them share. The contents
//! of those that share such a page are promised to the next kernel together, at the freeze. Should
//! one join them after that, then it is frozen as well, and all are promised anew.
//!
//! - [`Slot`] is one that the next kernel will find, and the content of the file. Dropping it frees
//!   it, and with the last one of a page the page.
//! - [`Arrived`] is one of the previous kernel. Its page is claimed when somebody looks at any slot
//!   of it, and freed with the last of them. Each slot can be freed once, so no two files can have
//!   the same.
//!
//! There is one lock, which is held only inside of the functions here.

use kernel::{
    kho::{
        PhysAddr,
        Preserved,
        Restored, //
    },
    liveupdate::Handover,
    new_mutex,
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
        Mutex,
        MutexGuard,
        SetOnce, //
    }, //
};

use super::abi::{
    memfd_small::{
        bit,
        slot_address,
        slot_at,
        SmallPage,
        SmallRecord,
        SLOTS, //
    },
    Phys, //
};

use super::{
    address,
    not_there,
    phys_of, //
};

/// All pages, by their physical address.
struct Pages {
    outgoing: RBTree<u64, OutgoingPage>,
    /// The outgoing page that is most likely to have room.
    open: u64,
    incoming: RBTree<u64, ClaimedPage>,
}

/// A page for the next kernel.
struct OutgoingPage {
    page: Preserved<SmallPage>,
    /// What the files have that are described there, in the same order.
    contents: SharedExtents,
}

/// A page of the previous kernel.
struct ClaimedPage {
    page: Restored<SmallPage>,
    /// The slots that are still in use.
    left: u32,
}

static PAGES: SetOnce<Pin<KBox<Mutex<Pages>>>> = SetOnce::new();

/// Makes what all functions here need, once.
pub(super) fn init() -> Result {
    let pages = Pages {
        outgoing: RBTree::new(),
        open: 0,
        incoming: RBTree::new(),
    };
    PAGES.populate(KBox::pin_init(
        new_mutex!(pages, "memfd_slots::PAGES"),
        GFP_KERNEL,
    )?);
    Ok(())
}

fn pages() -> Result<MutexGuard<'static, Pages>> {
    Ok(PAGES.as_ref().ok_or(ENODEV)?.lock())
}

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
        let (at, empty) = (page.page.phys().get(), page.page.used() == 0);
        if empty {
            self.outgoing.remove(&at);
        } else {
            self.open = at;
        }
    }

    /// The record of an incoming slot, and the list of late folios that its page names. The page is
    /// claimed now, if that has not been done.
    fn read(&mut self, slot: u64) -> Result<(SmallRecord, Option<Phys>)> {
        let (phys, index) = slot_at(slot).ok_or(EINVAL)?;
        let at = phys.get();

        if self.incoming.get(&at).is_none() {
            let place = address(phys)?;
            // First: a page that was claimed and then has no place here would be lost.
            let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
            let page = Restored::<SmallPage>::claim(place).map_err(|e| not_there(e, place))?;
            let left = page.used();
            self.incoming
                .insert(node.into_node(at, ClaimedPage { page, left }));
        }

        let claimed = self.incoming.get(&at).ok_or(EINVAL)?;
        match claimed.page.get(index) {
            Some(record) if claimed.left & bit(index) != 0 => Ok((*record, claimed.page.late())),
            _ => Err(not_there(ENOENT, PhysAddr::new(slot).ok_or(EINVAL)?)),
        }
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
    /// Finds a slot for a file. By [`Slot::promise`] it is described, and its content promised to the
    /// next kernel.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(content: Option<PinnedExtent>) -> Result<Self> {
        Ok(Self {
            at: pages()?.add(content)?,
        })
    }

    /// Adds content to a file that had none.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such slot, which cannot be.
    pub(super) fn fill(&mut self, content: PinnedExtent) -> Result {
        let mut pages = pages()?;
        let (page, index) = pages.find(self.at).ok_or(EINVAL)?;

        page.contents.set(index, Some(content));
        Ok(())
    }

    /// Looks at the content.
    ///
    /// # Errors
    ///
    /// Those of `look`.
    pub(super) fn with_content(
        &self,
        look: impl FnOnce(Option<&PinnedExtent>) -> Result,
    ) -> Result {
        let mut pages = pages()?;
        let (page, index) = pages.find(self.at).ok_or(EINVAL)?;

        look(page.contents.get(index))
    }

    /// Describes the file, and promises the content, together with that of others. If the content may
    /// come late, `late` is the list of late folios.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of `describe`.
    pub(super) fn promise(
        &mut self,
        late: Option<Phys>,
        describe: impl FnOnce(Option<&PinnedExtent>) -> Result<SmallRecord>,
    ) -> Result {
        let mut pages = pages()?;
        let (page, index) = pages.find(self.at).ok_or(EINVAL)?;

        let record = describe(page.contents.get(index))?;
        *page.page.get_mut(index).ok_or(EINVAL)? = record;
        if let Some(late) = late {
            // There is one list at a time, so that of all slots.
            page.page.set_late(late);
        }
        page.contents.promise()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Ok(mut pages) = pages() {
            pages.remove(self.at);
        }
    }
}

impl Handover for Slot {
    type Arrived = Arrived;

    fn to_bits(&self) -> u64 {
        self.at
    }

    fn arrive(bits: u64) -> Result<Arrived> {
        slot_at(bits).ok_or(EINVAL)?;
        Ok(Arrived { at: bits })
    }

    fn leave(arrived: Arrived) {
        arrived.leave();
    }
}

/// A description that the previous kernel left. Dropping it frees the slot.
pub(super) struct Arrived {
    at: u64,
}

impl Arrived {
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
    pub(super) fn read(&self) -> Result<(SmallRecord, Option<Phys>)> {
        pages()?.read(self.at)
    }

    /// Leaves the slot in use.
    pub(super) fn leave(self) {
        core::mem::forget(self);
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Ok(mut pages) = pages() {
            pages.release(self.at);
        }
    }
}
