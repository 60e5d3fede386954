// SPDX-License-Identifier: GPL-2.0

//! One block: a page that holds some records and the address of the next block.
//!
//! ```text
//!     0  u64  next    physical address of the next block, 0 at the end
//!     8  u64  count   how many records follow
//!    16       records, each of the size of its type, without gaps
//! ```
//!
//! Blocks of [summed](Record::SUMMED) records have in bits 32 to 63 of the second word the CRC-32C
//! of all that is used of the block, these bits taken as 0.

use core::{
    fmt,
    mem::size_of, //
};

use zerocopy::{
    FromBytes,
    FromZeros,
    Immutable,
    IntoBytes,
    KnownLayout, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

pub use super::phys::Phys;
use super::{
    check::Crc32c,
    BLOCK_SIZE, //
};

/// Size of the header of a block.
const HEADER_SIZE: usize = 2 * size_of::<u64>();

/// Bytes of a block that hold records.
pub const ENTRIES_SIZE: usize = BLOCK_SIZE - HEADER_SIZE;

/// A type of which blocks hold records: plain bytes, of any value, without padding.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout {
    /// What one record describes, as messages call it: "session", "file".
    const KIND: &'static str;

    /// Whether the [check](super::check) of a record says where those begin of what it leads to.
    const LINKED: bool = false;

    /// Whether a block of them has a checksum of its own.
    const SUMMED: bool = false;
}

/// Where in the second word of a block the checksum begins.
const SUM_SHIFT: u32 = u32::BITS;

/// The bits below, which are the count then.
const COUNT_MASK: u64 = !(u64::MAX << SUM_SHIFT);

/// One block.
///
/// Its bytes may be anything: every access checks what it relies on.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Block {
    next: u64,
    count: u64,
    entries: [u8; ENTRIES_SIZE],
}

impl Block {
    /// How many records of type `R` fit into a block.
    pub const fn capacity<R: Record>() -> usize {
        match ENTRIES_SIZE.checked_div(size_of::<R>()) {
            Some(capacity) => capacity,
            None => 0,
        }
    }

    /// Sees the beginning of the page as something else.
    pub(super) fn head<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<&T> {
        T::ref_from_prefix(self.as_bytes())
            .ok()
            .map(|(head, _)| head)
    }

    /// Sees the beginning of the page as something else that can be changed.
    pub(super) fn head_mut<T: FromBytes + IntoBytes + KnownLayout>(&mut self) -> Option<&mut T> {
        T::mut_from_prefix(self.as_mut_bytes())
            .ok()
            .map(|(head, _)| head)
    }

    /// Empties the block: no records, no successor, all bytes 0.
    pub fn clear(&mut self) {
        self.zero();
    }

    /// The count as it stands in the header, which may be too large.
    pub const fn raw_count(&self) -> u64 {
        self.count
    }

    /// The number of records.
    ///
    /// # Errors
    ///
    /// [`BlockError::CountTooLarge`] if that many do not fit.
    pub fn count<R: Record>(&self) -> Result<usize, BlockError> {
        let capacity = Self::capacity::<R>();
        let count = match R::SUMMED {
            true => self.count & COUNT_MASK,
            false => self.count,
        };
        match usize::try_from(count) {
            Ok(number) if number <= capacity => Ok(number),
            _ => Err(BlockError::CountTooLarge { count, capacity }),
        }
    }

    /// Writes the checksum of a block of [summed](Record::SUMMED) records, which is complete.
    pub fn set_sum<R: Record>(&mut self, crc: Crc32c) {
        self.count &= COUNT_MASK;
        self.count |= u64::from(self.sum::<R>(crc)) << SUM_SHIFT;
    }

    /// Whether such a block is as it was written.
    pub fn sum_matches<R: Record>(&self, crc: Crc32c) -> bool {
        self.count >> SUM_SHIFT == u64::from(self.sum::<R>(crc))
    }

    /// The checksum over what is used: everything, if the count is not valid.
    fn sum<R: Record>(&self, crc: Crc32c) -> u32 {
        let header = [self.next, self.count & COUNT_MASK];
        let records = match self.records::<R>() {
            Ok(records) => records.as_bytes(),
            Err(_) => &self.entries,
        };
        crc(crc(0, header.as_bytes()), records)
    }

    /// The records.
    ///
    /// # Errors
    ///
    /// [`BlockError::CountTooLarge`] if the header counts more than fit.
    pub fn records<R: Record>(&self) -> Result<&[R], BlockError> {
        let count = self.count::<R>()?;
        <[R]>::ref_from_prefix_with_elems(&self.entries, count)
            .map(|(records, _)| records)
            .map_err(|_| BlockError::Misplaced)
    }

    /// The first `count` records whatever the header says, fewer if not that many fit.
    pub fn first_records<R: Record>(&self, count: usize) -> &[R] {
        let count = count.min(Self::capacity::<R>());
        <[R]>::ref_from_prefix_with_elems(&self.entries, count)
            .map(|(records, _)| records)
            .unwrap_or_default()
    }

    /// The header as it stands.
    pub fn header_bytes(&self) -> &[u8] {
        self.as_bytes().get(..HEADER_SIZE).unwrap_or_default()
    }

    /// The records, to be changed in place.
    ///
    /// # Errors
    ///
    /// As [`Self::records`].
    pub fn records_mut<R: Record>(&mut self) -> Result<&mut [R], BlockError> {
        let count = self.count::<R>()?;
        <[R]>::mut_from_prefix_with_elems(&mut self.entries, count)
            .map(|(records, _)| records)
            .map_err(|_| BlockError::Misplaced)
    }

    /// Record `index`, to be changed in place; [`None`] if there is none.
    pub fn record_mut<R: Record>(&mut self, index: usize) -> Option<&mut R> {
        self.records_mut().ok()?.get_mut(index)
    }

    /// Appends a record and returns its index.
    ///
    /// # Errors
    ///
    /// [`Full`] if no place is left; the block is unchanged then.
    pub fn push<R: Record>(&mut self, record: &R) -> Result<usize, Full> {
        let index = self.count::<R>().map_err(|_| Full)?;
        let bytes = record.as_bytes();
        let at = index.checked_mul(bytes.len()).ok_or(Full)?;
        let end = at.checked_add(bytes.len()).ok_or(Full)?;
        let slot = self.entries.get_mut(at..end).ok_or(Full)?;
        for (to, from) in slot.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.count = self.count.checked_add(1).ok_or(Full)?;
        Ok(index)
    }

    /// Drops the records from index `count` on. Does nothing if there are not more than that.
    pub fn truncate(&mut self, count: usize) {
        if let Ok(count) = u64::try_from(count) {
            self.count = self.count.min(count);
        }
    }

    /// The address of the next block as it stands in the header, which need not be one.
    pub const fn next(&self) -> Option<Phys> {
        Phys::new(self.next)
    }

    /// Sets the address of the next block.
    pub fn set_next(&mut self, next: Option<Phys>) {
        self.next = Phys::raw(next);
    }
}

/// The block has no place for another record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("block is full")
    }
}

/// Why a block is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The header counts more records than fit into a block.
    CountTooLarge {
        /// The count in the header.
        count: u64,
        /// How many fit.
        capacity: usize,
    },
    /// The type of the records asks for more alignment than a block gives.
    Misplaced,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CountTooLarge { count, capacity } => {
                write!(f, "count {count} exceeds {capacity}")
            }
            Self::Misplaced => f.write_str("records do not fit the block's alignment"),
        }
    }
}
