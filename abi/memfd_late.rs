// SPDX-License-Identifier: GPL-2.0

//! The list of late folios: those inserted into holes of memfds after their files were frozen.
//!
//! It is a chain of pages that all frozen memfds of a kernel share. The old kernel appends to it
//! until its processors stop, so nothing that is written at the freeze counts the records. A record
//! is there once its last word says so, and that word is written last.
//!
//! ```text
//!  page                                 record, 32 bytes
//!     0  u64  MAGIC                        0  u64  file: what was handed over for it
//!     8  u64  next page, or 0              8  u64  number of the first physical page
//!    16  u64  files that refer here       16  u64  index in the file, in pages
//!    24  u64  0                           24  u64  state: 0 none; else bit 0, order in bits 8..16,
//!    32  127 records                               CRC-32C of the rest in bits 32..64
//! ```
//!
//! The number of files stands in the first page only. A folio of order 0 is preserved as one page,
//! a larger one as a folio.

use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    check::Crc32c,
    extent::{
        Extent,
        ExtentKind, //
    },
    phys::Phys, //
};

/// The first word of each page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LUO-late");

/// How many records a page has.
pub const RECORDS: usize = 127;

/// Where in a page, counted in words, the address of the next page stands.
pub const NEXT_WORD: usize = 1;

/// Where, likewise, the number of files stands.
pub const FILES_WORD: usize = 2;

/// How many words come before the first record.
const HEADER_WORDS: usize = 4;

/// How many words a record has.
pub const RECORD_WORDS: usize = 4;

/// The first word of a record in its page.
pub const fn record_word(record: usize) -> Option<usize> {
    match record.checked_mul(RECORD_WORDS) {
        Some(words) => words.checked_add(HEADER_WORDS),
        None => None,
    }
}

const PRESENT: u64 = 1;
const ORDER_SHIFT: u32 = 8;
const ORDER_MASK: u64 = 0xff;
const CRC_SHIFT: u32 = 32;

/// A late folio, as it stands in a page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LateRecord {
    file: u64,
    pfn: u64,
    index: u64,
    state: u64,
}

/// A late folio that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// What was handed over for the file that it is in.
    pub file: u64,
    /// Where it is.
    pub extent: Extent,
}

/// The record does not match its checksum, or is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl LateRecord {
    /// The record of a folio.
    pub fn new(late: &Late, crc: Crc32c) -> Self {
        let order = match late.extent.kind {
            ExtentKind::Pages => 0,
            ExtentKind::Folios { order } => u64::from(order),
        };
        let mut record = Self {
            file: late.file,
            pfn: late.extent.start.pfn(),
            index: late.extent.index,
            state: PRESENT | ((order & ORDER_MASK) << ORDER_SHIFT),
        };
        record.state |= u64::from(record.crc(crc)) << CRC_SHIFT;
        record
    }

    /// The words of the record, of which the last one is to be written last.
    pub fn words(&self) -> [u64; RECORD_WORDS] {
        [self.file, self.pfn, self.index, self.state]
    }

    fn crc(&self, crc: Crc32c) -> u32 {
        let state = self.state & !(u64::MAX << CRC_SHIFT);
        let mut bytes = [0; 32];
        let words = [self.file, self.pfn, self.index, state];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        crc(0, &bytes)
    }

    /// Reads a record; [`None`] if there is none.
    ///
    /// # Errors
    ///
    /// [`Corrupt`].
    pub fn parse(&self, crc: Crc32c) -> Result<Option<Late>, Corrupt> {
        if self.state == 0 {
            return Ok(None);
        }
        let known = PRESENT | (ORDER_MASK << ORDER_SHIFT) | (u64::MAX << CRC_SHIFT);
        if self.state & !known != 0
            || self.state & PRESENT == 0
            || self.state >> CRC_SHIFT != u64::from(self.crc(crc))
        {
            return Err(Corrupt);
        }

        let start = Phys::from_pfn(self.pfn).ok_or(Corrupt)?;
        let order = (self.state >> ORDER_SHIFT) & ORDER_MASK;
        let extent = match u16::try_from(order).map_err(|_| Corrupt)? {
            0 => Extent {
                start,
                index: self.index,
                pages: 1,
                kind: ExtentKind::Pages,
            },
            order => Extent::folio(start, self.index, order).ok_or(Corrupt)?,
        };
        Ok(Some(Late {
            file: self.file,
            extent,
        }))
    }
}

/// A page of records. Its bytes may be anything.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LatePage {
    magic: u64,
    next: u64,
    files: u64,
    unused: u64,
    records: [LateRecord; RECORDS],
}

impl LatePage {
    /// The next page; [`None`] if this is the last.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if this is no page of records.
    pub fn next(&self) -> Result<Option<Phys>, Corrupt> {
        match self.magic {
            MAGIC => Ok(Phys::new(self.next)),
            _ => Err(Corrupt),
        }
    }

    /// How many files refer to the list, if this is its first page.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// The records, those that are not there among them.
    pub fn records(&self) -> &[LateRecord] {
        &self.records
    }
}
