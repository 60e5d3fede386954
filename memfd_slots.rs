// SPDX-License-Identifier: GPL-2.0

//! Where the descriptions of small memfds are: slots in pages that many of them share.
//!
//! - [`Slot`] is one that the next kernel will find. Dropping it frees it, and with the last one of
//!   a page the page.
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
    sync::{
        Mutex,
        MutexGuard,
        SetOnce, //
    }, //
};

use super::abi::memfd_small::{
    bit,
    slot_address,
    slot_at,
    SmallPage,
    SmallRecord, //
};

use super::{
    address,
    not_there,
    phys_of, //
};

/// All pages, by their physical address.
struct Pages {
    outgoing: RBTree<u64, Preserved<SmallPage>>,
    /// The outgoing page that is most likely to have room.
    open: u64,
    incoming: RBTree<u64, ClaimedPage>,
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

fn address_of(page: &Preserved<SmallPage>, index: usize) -> Result<u64> {
    slot_address(phys_of(page.phys())?, index).ok_or(EINVAL)
}

impl Pages {
    /// Puts a record into a slot and returns the slot's address.
    fn add(&mut self, record: &SmallRecord) -> Result<u64> {
        if let Some(page) = self.outgoing.get_mut(&self.open) {
            if let Some(index) = page.add(record) {
                return address_of(page, index);
            }
        }

        let mut page = Preserved::<SmallPage>::new()?;
        let at = page.phys().get();
        let slot = page
            .add(record)
            .ok_or(ENOMEM)
            .and_then(|index| address_of(&page, index))?;
        self.outgoing.try_create_and_insert(at, page, GFP_KERNEL)?;
        self.open = at;
        Ok(slot)
    }

    fn remove(&mut self, slot: u64) {
        let Some((at, index)) = slot_at(slot) else {
            return;
        };
        let at = at.get();
        let Some(page) = self.outgoing.get_mut(&at) else {
            return;
        };

        page.remove(index);
        if page.used() == 0 {
            self.outgoing.remove(&at);
        } else {
            self.open = at;
        }
    }

    /// The record of an incoming slot. Its page is claimed now, if that has not been done.
    fn read(&mut self, slot: u64) -> Result<SmallRecord> {
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
            Some(record) if claimed.left & bit(index) != 0 => Ok(*record),
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

/// A description that the next kernel will find.
pub(super) struct Slot {
    at: u64,
}

impl Slot {
    /// Finds a slot for a record.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(record: &SmallRecord) -> Result<Self> {
        Ok(Self {
            at: pages()?.add(record)?,
        })
    }

    /// Describes the file anew.
    pub(super) fn set(&mut self, record: &SmallRecord) -> Result {
        let (page, index) = slot_at(self.at).ok_or(EINVAL)?;
        let mut pages = pages()?;
        let page = pages.outgoing.get_mut(&page.get()).ok_or(EINVAL)?;

        *page.get_mut(index).ok_or(EINVAL)? = *record;
        Ok(())
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
    /// What stands in the slot.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is none, or it is free.
    /// - [`ENOMEM`].
    pub(super) fn read(&self) -> Result<SmallRecord> {
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
