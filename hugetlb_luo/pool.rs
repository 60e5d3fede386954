// SPDX-License-Identifier: GPL-2.0

//! `hugetlb-pool-v1`: how many huge pages are handed over, for the pools of the next kernel.
//!
//! An FLB of all files of huge pages. Each adds its pages as a [`Share`]. The next kernel reads the
//! sum before HugeTLB makes its pools ([`announce`]).
//!
//! # Locks
//!
//! One mutex, innermost: it is only held inside the functions of this module.

use kernel::{
    crc32c::crc32c,
    hugetlb,
    kho::{
        Address,
        PhysAddr,
        Preserved,
        Unclaimed, //
    },
    liveupdate::{
        AnyFlb,
        Flb,
        FlbCell, //
    },
    prelude::*,
    sync::{
        static_mutex,
        StaticMutex, //
    }, //
};

use super::{
    abi::{
        hugetlb_pool::{
            Handed,
            PoolPage,
            COMPATIBLE_POOL, //
        },
        memfd::Extent, //
    },
    report::{
        address,
        phys_of, //
    }, //
};

/// The state of the pools.
struct Pool;

/// Where it lives.
static POOL: FlbCell<Pool> = FlbCell::new();

/// The FLBs of a file.
pub(super) fn flbs() -> &'static [&'static dyn AnyFlb] {
    static FLBS: [&dyn AnyFlb; 1] = [&POOL];
    &FLBS
}

/// What is handed over, while there is a file.
static OUTGOING: StaticMutex<Option<Outgoing>> = static_mutex!(None, "hugetlb_luo::pool::OUTGOING");

struct Outgoing {
    page: Preserved<PoolPage>,
    counts: KVec<Count>,
}

/// Huge pages of one size in one node.
#[derive(Clone, Copy)]
struct Count {
    node: u32,
    order: u16,
    at: PhysAddr,
    folios: u64,
}

impl Outgoing {
    /// Adds a count to that of the same node and size, or takes it away there.
    fn change(&mut self, by: &Count, add: bool) -> Result {
        let same = |count: &&mut Count| count.node == by.node && count.order == by.order;

        match self.counts.iter_mut().find(same) {
            Some(count) if add => count.folios = count.folios.saturating_add(by.folios),
            Some(count) => count.folios = count.folios.saturating_sub(by.folios),
            None => self.counts.push(*by, GFP_KERNEL)?,
        }
        Ok(())
    }

    /// Writes all counts.
    fn write(&mut self) {
        let counts = self.counts.iter().filter(|count| count.folios > 0);
        let handed = counts.filter_map(|count| {
            Some(Handed {
                at: phys_of(count.at).ok()?,
                order: count.order,
                folios: count.folios,
            })
        });

        self.page.write(handed, crc32c);
    }
}

/// The pages that a file adds to the sum. Dropping it takes them away.
pub(super) struct Share(KVec<Count>);

impl Share {
    /// Counts the folios of `order` in `extents`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing is counted then.
    pub(super) fn new(order: u16, extents: impl Iterator<Item = Result<Extent>>) -> Result<Self> {
        let mut share = Self(KVec::new());

        for extent in extents {
            let extent = extent?;
            let at = address(extent.start)?;
            let folios = u64::from(extent.pages)
                .checked_shr(order.into())
                .unwrap_or(0);
            let node = hugetlb::node(at).ok_or(EINVAL)?;
            let same = |count: &&mut Count| count.node == node && count.order == order;

            match share.0.iter_mut().find(same) {
                Some(count) => count.folios = count.folios.saturating_add(folios),
                None => share.0.push(
                    Count {
                        node,
                        order,
                        at,
                        folios,
                    },
                    GFP_KERNEL_ACCOUNT,
                )?,
            }
        }

        let mut outgoing = OUTGOING.lock();
        let all = outgoing.as_mut().ok_or(EINVAL)?;
        all.counts.reserve(share.0.len(), GFP_KERNEL)?;
        for count in &share.0 {
            // There is room.
            all.change(count, true)?;
        }
        all.write();
        drop(outgoing);
        Ok(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut outgoing = OUTGOING.lock();

        if let (Some(all), false) = (outgoing.as_mut(), self.0.is_empty()) {
            for count in &self.0 {
                // It is there since it was added.
                let _ = all.change(count, false);
            }
            all.write();
        }
    }
}

kernel::liveupdate_note!("flb", COMPATIBLE_POOL);

#[vtable]
impl Flb for Pool {
    const COMPATIBLE: &'static CStr = COMPATIBLE_POOL;
    type Handle = Address<PoolPage>;
    type Outgoing = ();
    type Incoming = Unclaimed<PoolPage>;

    fn preserve() -> Result<(Address<PoolPage>, ())> {
        let mut outgoing = Outgoing {
            page: Preserved::new()?,
            counts: KVec::new(),
        };

        outgoing.write();
        let address = outgoing.page.address();
        *OUTGOING.lock() = Some(outgoing);
        Ok((address, ()))
    }

    fn unpreserve(_object: (), _address: Address<PoolPage>) {
        let outgoing = OUTGOING.lock().take();
        drop(outgoing);
    }

    fn retrieve(incoming: Unclaimed<PoolPage>) -> Result<Unclaimed<PoolPage>> {
        Ok(incoming)
    }

    fn finish(incoming: Unclaimed<PoolPage>) {
        drop(incoming);
    }
}

/// Announces what the previous kernel handed over, if it did.
///
/// Where that cannot be read, the pools become larger than they should, and nothing is lost.
pub(super) fn announce() {
    let announced = match POOL.incoming() {
        Ok(page) => page.copy().and_then(|page| {
            for handed in page.read(crc32c).map_err(|_| EUCLEAN)? {
                let handed = handed.map_err(|_| EUCLEAN)?;
                let at = address(handed.at)?;
                if !hugetlb::expect(handed.order.into(), at, handed.folios) {
                    return Err(EINVAL);
                }
            }
            Ok(())
        }),
        Err(ENOENT | ENODATA) => Ok(()),
        Err(e) => Err(e),
    };

    if let Err(e) = announced {
        pr_err!(
            "the pools of huge pages do not know what is handed over: {:?}\n",
            e
        );
    }
}
