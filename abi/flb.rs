// SPDX-License-Identifier: GPL-2.0

//! File-lifecycle-bound objects (FLBs): state that several preserved files share.
//!
//! ```text
//!     0  u64  number of pages, from this header on
//!     8  u64  number of records
//!    16       records of 64 bytes:
//!                0  u8[48]  name, the compatible string of the object
//!               48  u64     data of the object
//!               56  u64     number of files that use it
//! ```

use core::{
    fmt,
    mem::size_of, //
};

use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    block::{
        Block,
        Record, //
    },
    check::Span,
    name::{
        Compatible,
        NameError,
        COMPATIBLE_LEN, //
    },
    BLOCK_SIZE, //
};

/// Size of the header.
const HEADER_SIZE: usize = 2 * size_of::<u64>();

/// Bytes of a page that hold records.
const ENTRIES_SIZE: usize = BLOCK_SIZE - HEADER_SIZE;

/// An FLB as it stands in the page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlbRecord {
    name: [u8; COMPATIBLE_LEN],
    data: u64,
    count: u64,
}

impl Record for FlbRecord {
    const KIND: &'static str = "FLB";
}

/// An FLB that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flb {
    /// Its compatible string.
    pub name: Compatible,
    /// What its handler left; only it knows what that means.
    pub data: u64,
    /// How many preserved files use it, at least one.
    pub count: u64,
}

impl FlbRecord {
    /// The record of `flb`.
    pub fn new(flb: &Flb) -> Self {
        Self {
            name: flb.name.to_bytes_padded(),
            data: flb.data,
            count: flb.count,
        }
    }

    /// Reads and validates the record.
    ///
    /// # Errors
    ///
    /// [`FlbError::Name`], or [`FlbError::Unused`] if no file uses the object.
    pub fn parse(&self) -> Result<Flb, FlbError> {
        let name = Compatible::from_bytes(&self.name).map_err(FlbError::Name)?;
        if self.count == 0 {
            return Err(FlbError::Unused { name });
        }
        Ok(Flb {
            name,
            data: self.data,
            count: self.count,
        })
    }
}

/// The page with the FLBs, the first if there are several.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlbBlock {
    pages: u64,
    count: u64,
    entries: [u8; ENTRIES_SIZE],
}

impl FlbBlock {
    /// How many records fit into one page.
    pub const CAPACITY: usize = ENTRIES_SIZE / size_of::<FlbRecord>();

    /// How many are written at most: as many as fit into a page of 4 KiB, also where pages are larger.
    pub const MOST: usize = 63;

    /// Empties the page.
    pub fn clear(&mut self) {
        self.zero();
        self.pages = 1;
    }

    /// The number of pages, and of records in them.
    ///
    /// # Errors
    ///
    /// [`FlbError::NoPages`], or [`FlbError::CountTooLarge`] if that many records do not fit into
    /// that many pages.
    pub fn header(&self) -> Result<FlbHeader, FlbError> {
        if self.pages == 0 {
            return Err(FlbError::NoPages);
        }
        let too_large = FlbError::CountTooLarge {
            count: self.count,
            pages: self.pages,
        };
        let pages = usize::try_from(self.pages).map_err(|_| too_large)?;
        let count = usize::try_from(self.count).map_err(|_| too_large)?;
        let bytes = pages
            .checked_mul(BLOCK_SIZE)
            .and_then(|bytes| bytes.checked_sub(HEADER_SIZE))
            .ok_or(too_large)?;
        let used = count.checked_mul(size_of::<FlbRecord>()).ok_or(too_large)?;
        if used > bytes {
            return Err(too_large);
        }
        Ok(FlbHeader { pages, count })
    }

    /// The records, if all of them stand in this page.
    ///
    /// This is so in everything that is known to be written: more than one page needs
    /// [`records_in`].
    ///
    /// # Errors
    ///
    /// As [`Self::header`], and [`FlbError::CountTooLarge`] if there are more records than fit
    /// into this page.
    pub fn records(&self) -> Result<&[FlbRecord], FlbError> {
        self.header()?;
        records_in(self.as_bytes())
    }

    /// The records as [checks](super::check) count them, whatever the header says.
    pub fn records_of(&self, span: Span) -> &[FlbRecord] {
        self.as_block()
            .map(|block| span.records(0, block))
            .unwrap_or_default()
    }

    /// The page as a block, which has the same shape: two numbers, and records of 64 bytes.
    pub fn as_block(&self) -> Option<&Block> {
        Block::ref_from_bytes(self.as_bytes()).ok()
    }

    /// Appends a record and returns its index.
    ///
    /// # Errors
    ///
    /// [`FlbError::CountTooLarge`] if the page is full; it is unchanged then.
    pub fn push(&mut self, flb: &Flb) -> Result<usize, FlbError> {
        let too_large = FlbError::CountTooLarge {
            count: self.count.saturating_add(1),
            pages: 1,
        };
        let index = usize::try_from(self.count).map_err(|_| too_large)?;
        let count = self.count.checked_add(1).ok_or(too_large)?;
        let record = FlbRecord::new(flb);
        let at = index.checked_mul(size_of::<FlbRecord>()).ok_or(too_large)?;
        let end = at.checked_add(size_of::<FlbRecord>()).ok_or(too_large)?;
        let slot = self.entries.get_mut(at..end).ok_or(too_large)?;
        for (to, from) in slot.iter_mut().zip(record.as_bytes()) {
            *to = *from;
        }
        self.pages = 1;
        self.count = count;
        Ok(index)
    }
}

/// The header of the FLBs, validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlbHeader {
    /// How many pages there are.
    pub pages: usize,
    /// How many records are in them.
    pub count: usize,
}

/// The records in `bytes`, which are all pages of the FLBs with the header in front.
///
/// # Errors
///
/// [`FlbError::CountTooLarge`] if `bytes` do not hold what the header counts, and what
/// [`FlbBlock::header`] returns.
pub fn records_in(bytes: &[u8]) -> Result<&[FlbRecord], FlbError> {
    let (block, _) = <[u64; 2]>::read_from_prefix(bytes).map_err(|_| FlbError::NoPages)?;
    let [pages, count] = block;
    let too_large = FlbError::CountTooLarge { count, pages };
    let entries = bytes.get(HEADER_SIZE..).ok_or(too_large)?;
    let count = usize::try_from(count).map_err(|_| too_large)?;
    <[FlbRecord]>::ref_from_prefix_with_elems(entries, count)
        .map(|(records, _)| records)
        .map_err(|_| too_large)
}

/// Why the FLBs, or one of them, are not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlbError {
    /// The header counts no pages, not even its own.
    NoPages,
    /// There are more records than the pages hold.
    CountTooLarge {
        /// The number of records.
        count: u64,
        /// The number of pages.
        pages: u64,
    },
    /// The name is none.
    Name(NameError),
    /// No file uses the object.
    Unused {
        /// Its name.
        name: Compatible,
    },
}

impl fmt::Display for FlbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPages => f.write_str("FLB header counts no pages"),
            Self::CountTooLarge { count, pages } => {
                write!(f, "FLB count {count} does not fit into {pages} page(s)")
            }
            Self::Name(cause) => write!(f, "FLB: {cause}"),
            Self::Unused { name } => write!(f, "FLB {name}: no file uses it"),
        }
    }
}
