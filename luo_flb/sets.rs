// SPDX-License-Identifier: GPL-2.0

//! Which FLBs a file handler depends on ([`FlbSet`]), and the use that a file makes of them
//! ([`FlbUse`]).

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc, //
    }, //
};

use super::Flb;
use crate::{
    abi::flb::FlbBlock,
    ffi::{
        flb::FlbId,
        kernel::may_print, //
    }, //
};

/// A file handler's dependency on an FLB.
struct Link {
    flb: Arc<Flb>,
    id: FlbId,
    /// Whether the dependency still exists. Ending it must not need memory, and sets are shared.
    ended: Atomic<bool>,
}

impl Link {
    fn is(&self, id: FlbId) -> bool {
        self.id == id && !self.ended.load(Acquire)
    }
}

/// The FLBs that a file handler depends on, in the order of their registration. A file goes on
/// with the set that it was preserved with.
pub(crate) struct FlbSet {
    links: KVec<Arc<Link>>,
}

impl FlbSet {
    /// The set of a handler that depends on nothing.
    pub(crate) fn empty() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { links: KVec::new() }, GFP_KERNEL)?)
    }

    pub(crate) fn contains(&self, id: FlbId) -> bool {
        self.links.iter().any(|link| link.is(id))
    }

    /// The set with one more FLB.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn with(&self, flb: Arc<Flb>, id: FlbId) -> Result<Arc<Self>> {
        let mut links = KVec::with_capacity(self.links.len() + 1, GFP_KERNEL)?;

        for link in self.links.iter().filter(|link| !link.ended.load(Acquire)) {
            links.push(link.clone(), GFP_KERNEL)?;
        }
        let link = Link {
            flb,
            id,
            ended: Atomic::new(false),
        };
        links.push(Arc::new(link, GFP_KERNEL)?, GFP_KERNEL)?;
        Ok(Arc::new(Self { links }, GFP_KERNEL)?)
    }

    /// Ends the dependency on an FLB. Files preserved with it go on using it.
    pub(crate) fn end(&self, id: FlbId) {
        for link in self.links.iter().filter(|link| link.is(id)) {
            link.ended.store(true, Release);
        }
    }

    /// All FLBs of the set.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FlbId> + '_ {
        self.links
            .iter()
            .filter(|link| !link.ended.load(Acquire))
            .map(|link| link.id)
    }

    /// A file is being preserved: preserves those FLBs for which it is the first.
    ///
    /// # Errors
    ///
    /// What a driver returns; nothing has changed then.
    pub(crate) fn preserve(self: Arc<Self>) -> Result<FlbUse> {
        let mut used = FlbUse {
            set: self,
            taken: 0,
        };

        for (bit, link) in bits().zip(&used.set.links) {
            if !link.ended.load(Acquire) {
                link.flb.preserve_file(link.id).inspect_err(|e| {
                    if may_print() {
                        pr_warn!("FLB '{}': preserve failed: {:?}\n", link.flb.name, e);
                    }
                })?;
                used.taken |= bit;
            }
        }
        Ok(used)
    }

    /// A file has been finished: finishes those FLBs for which it was the last.
    pub(crate) fn finish(&self) {
        for link in self.links.iter().rev() {
            if !link.ended.load(Acquire) {
                link.flb.finish_file(link.id);
            }
        }
    }
}

/// One bit for each link of a set: there are no more FLBs than bits.
fn bits() -> impl Iterator<Item = u64> {
    const { assert!(FlbBlock::MOST < 64 && FlbBlock::MOST <= FlbBlock::CAPACITY) };

    (0..u64::BITS).map(|n| 1 << n)
}

/// A preserved file's use of its FLBs. Dropping it ends the use, in reverse order.
pub(crate) struct FlbUse {
    set: Arc<FlbSet>,
    taken: u64,
}

impl Drop for FlbUse {
    fn drop(&mut self) {
        for (n, link) in self.set.links.iter().enumerate().rev() {
            if bits().nth(n).is_some_and(|bit| self.taken & bit != 0) {
                link.flb.unpreserve_file();
            }
        }
    }
}
