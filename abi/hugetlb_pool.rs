// SPDX-License-Identifier: GPL-2.0

//! `hugetlb-pool-v1`: how many huge pages are handed over, in all files together.
//!
//! The next kernel needs to know before it allocates its own: what is handed over counts as
//! allocated from its pools. One page:
//!
//! ```text
//!  page                                 entry, 24 bytes
//!     0  u32  number of entries            0  u64  number of a physical page of one of them
//!     4  u32  CRC-32C of that number       8  u64  how many
//!             and of the entries          16  u32  their order
//!     8  u64  0                           20  u32  0
//!    16       entries
//! ```
//!
//! An entry is about the huge pages of one size in one node of the memory. Nodes have no numbers
//! here, as the next kernel may count them in another way: it looks where the physical page is.

use core::{
    ffi::CStr,
    mem::size_of, //
};

use zerocopy::IntoBytes;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    check::Crc32c,
    memfd::MAX_ORDER,
    phys::Phys,
    BLOCK_SIZE, //
};

/// The compatible string.
pub const COMPATIBLE_POOL: &CStr = c"hugetlb-pool-v1";

/// Size of what comes before the entries.
const HEADER_SIZE: usize = 16;

/// How many entries a page has.
const ENTRIES: usize = match BLOCK_SIZE
    .saturating_sub(HEADER_SIZE)
    .checked_div(size_of::<PoolEntry>())
{
    Some(entries) => entries,
    None => 0,
};

/// Huge pages of one size in one node, as they stand in the page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PoolEntry {
    pfn: u64,
    folios: u64,
    order: u32,
    zero: u32,
}

/// Huge pages of one size in one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Where one of them is.
    pub at: Phys,
    /// Their order.
    pub order: u16,
    /// How many.
    pub folios: u64,
}

/// The page. Its bytes may be anything.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PoolPage {
    count: u32,
    sum: u32,
    zero: u64,
    entries: [PoolEntry; ENTRIES],
}

/// The page is not as it was written, or is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl PoolPage {
    /// Writes all entries, as many as there is place for, and the checksum.
    pub fn write(&mut self, all: impl Iterator<Item = Handed>, crc: Crc32c) {
        self.count = 0;
        for (to, handed) in self.entries.iter_mut().zip(all) {
            *to = PoolEntry {
                pfn: handed.at.pfn(),
                folios: handed.folios,
                order: handed.order.into(),
                zero: 0,
            };
            self.count = self.count.saturating_add(1);
        }
        self.sum = self.sum(crc);
    }

    fn sum(&self, crc: Crc32c) -> u32 {
        let sum = crc(0, self.count.as_bytes());
        crc(sum, self.used().as_bytes())
    }

    /// The entries that are there; all if the number is too large.
    fn used(&self) -> &[PoolEntry] {
        usize::try_from(self.count)
            .ok()
            .and_then(|count| self.entries.get(..count))
            .unwrap_or(&self.entries)
    }

    /// Reads all entries.
    ///
    /// # Errors
    ///
    /// [`Corrupt`].
    pub fn read(
        &self,
        crc: Crc32c,
    ) -> Result<impl Iterator<Item = Result<Handed, Corrupt>> + '_, Corrupt> {
        if self.sum != self.sum(crc) {
            return Err(Corrupt);
        }
        Ok(self.used().iter().map(|entry| {
            let order = u16::try_from(entry.order).map_err(|_| Corrupt)?;
            if order == 0 || order > MAX_ORDER {
                return Err(Corrupt);
            }
            Ok(Handed {
                at: Phys::from_pfn(entry.pfn).ok_or(Corrupt)?,
                order,
                folios: entry.folios,
            })
        }))
    }
}
