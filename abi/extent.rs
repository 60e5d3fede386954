// SPDX-License-Identifier: GPL-2.0

//! The extents of a memfd: runs of pages that follow each other both in the file and in physical
//! memory. Where no extent is, there is a hole.
//!
//! ```text
//!  extent, 24 bytes
//!     0  u64  number of the first physical page
//!     8  u64  index in the file, in pages
//!    16  u32  number of pages
//!    20  u16  kind: 1 pages, 2 folios
//!    22  u16  order of the folios, else 0
//! ```
//!
//! Extents of pages are preserved as single pages: those that follow each other in memory as one
//! range, wherever they are in the file. An extent of folios, of one order, was preserved and is
//! restored folio by folio; the last one begins in the file but may reach beyond its end.
//!
//! A [header](super::memfd_extents) tells where the extents of a file are, or a
//! [slot](super::memfd_small) has the only one.

use core::fmt;

use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    block::Record,
    memfd::{
        file_pages,
        Run,
        MAX_ORDER, //
    },
    memfd_extents::Memfd,
    phys::Phys, //
};

/// How the pages of an extent were preserved, and so how they are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// As a range of single pages.
    Pages,
    /// Folio by folio.
    Folios {
        /// The order of each: it has `1 << order` pages.
        order: u16,
    },
}

/// [`ExtentKind::Pages`].
const KIND_PAGES: u16 = 1;
/// [`ExtentKind::Folios`].
const KIND_FOLIOS: u16 = 2;

/// An extent as it stands in a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtentRecord {
    pub(super) pfn: u64,
    pub(super) index: u64,
    pub(super) pages: u32,
    pub(super) kind: u16,
    pub(super) order: u16,
}

impl Record for ExtentRecord {
    const KIND: &'static str = "memfd extent";
}

/// The same, in a block that has a checksum.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SummedExtentRecord(pub ExtentRecord);

impl Record for SummedExtentRecord {
    const KIND: &'static str = ExtentRecord::KIND;
    const SUMMED: bool = true;
}

/// An extent that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Address of its first page.
    pub start: Phys,
    /// Its index in the file, in pages.
    pub index: u64,
    /// How many pages it has.
    pub pages: u32,
    /// How they were preserved.
    pub kind: ExtentKind,
}

impl Extent {
    /// An extent that is one folio; [`None`] if there can be none of that order.
    pub fn folio(start: Phys, index: u64, order: u16) -> Option<Self> {
        Some(Self {
            start,
            index,
            pages: folio_pages(order)?,
            kind: ExtentKind::Folios { order },
        })
    }

    /// What is restored in one go, in the order of the file: all single pages, or each folio.
    pub fn pieces(self) -> impl Iterator<Item = Self> {
        let pages = self.piece_pages();
        let mut next = Some(self);

        core::iter::from_fn(move || {
            let rest = next?;
            next = rest.without_first(pages);
            Some(Self { pages, ..rest })
        })
    }

    /// How many pages are restored in one go.
    pub(super) fn piece_pages(&self) -> u32 {
        match self.kind {
            ExtentKind::Pages => self.pages,
            ExtentKind::Folios { order } => folio_pages(order).unwrap_or(self.pages),
        }
    }

    /// What is left of it without its first `pages` pages, if there is something.
    fn without_first(&self, pages: u32) -> Option<Self> {
        let left = self.pages.checked_sub(pages).filter(|left| *left > 0)?;

        Some(Self {
            start: Phys::from_pfn(self.start.pfn().checked_add(pages.into())?)?,
            index: self.index.checked_add(pages.into())?,
            pages: left,
            kind: self.kind,
        })
    }

    /// Where it lies in physical memory.
    pub fn run(&self) -> Run {
        Run {
            pfn: self.start.pfn(),
            pages: self.pages.into(),
        }
    }
}

impl ExtentRecord {
    /// No extent, where there may be one or none.
    pub const NONE: Self = Self {
        pfn: 0,
        index: 0,
        pages: 0,
        kind: 0,
        order: 0,
    };

    /// The record of `extent`.
    pub fn new(extent: &Extent) -> Self {
        let (kind, order) = match extent.kind {
            ExtentKind::Pages => (KIND_PAGES, 0),
            ExtentKind::Folios { order } => (KIND_FOLIOS, order),
        };
        Self {
            pfn: extent.start.pfn(),
            index: extent.index,
            pages: extent.pages,
            kind,
            order,
        }
    }

    /// Reads the record and validates what can be without the others.
    ///
    /// # Errors
    ///
    /// Any [`ExtentError`] about one extent.
    pub fn parse(&self) -> Result<Extent, ExtentError> {
        let index = self.index;
        let address = ExtentError::Address {
            index,
            pfn: self.pfn,
            pages: self.pages,
        };
        let start = Phys::from_pfn(self.pfn).ok_or(address)?;
        let kind = match (self.kind, self.order) {
            (KIND_PAGES, 0) => ExtentKind::Pages,
            (KIND_FOLIOS, order) => ExtentKind::Folios { order },
            (kind, order) => return Err(ExtentError::Kind { index, kind, order }),
        };
        let extent = Extent {
            start,
            index,
            pages: self.pages,
            kind,
        };
        if self.pages == 0 || extent.run().end().is_none() {
            return Err(address);
        }
        if let ExtentKind::Folios { order } = kind {
            let whole = |pages: &u32| self.pages.checked_rem(*pages) == Some(0);
            let Some(pages) = folio_pages(order).filter(whole) else {
                return Err(ExtentError::Kind {
                    index,
                    kind: self.kind,
                    order,
                });
            };
            let inside = u64::from(pages).wrapping_sub(1);
            if (self.pfn | index) & inside != 0 {
                return Err(ExtentError::Misaligned {
                    index,
                    pfn: self.pfn,
                    order,
                });
            }
        }
        Ok(extent)
    }
}

/// How many pages a folio of `order` has, [`None`] if the order is not plausible.
fn folio_pages(order: u16) -> Option<u32> {
    if order > MAX_ORDER {
        return None;
    }
    1_u32.checked_shl(order.into())
}

/// Validates the extents of a file, one after the other.
#[derive(Clone, Debug)]
pub struct ExtentCheck {
    file_pages: u64,
    free_from: u64,
    extents: u64,
    pages: u64,
    expected_extents: u64,
    expected_pages: u64,
}

impl ExtentCheck {
    /// Starts with the first extent of `memfd`.
    pub const fn new(memfd: &Memfd) -> Self {
        Self::of(memfd.size, memfd.nr_extents, memfd.nr_pages)
    }

    /// Starts with the first extent of a file that has `size` bytes, and `extents` extents with
    /// `pages` pages.
    pub(super) const fn of(size: u64, extents: u64, pages: u64) -> Self {
        Self {
            file_pages: file_pages(size),
            free_from: 0,
            extents: 0,
            pages: 0,
            expected_extents: extents,
            expected_pages: pages,
        }
    }

    /// Validates the next extent: by itself, against the one before it and against the file.
    ///
    /// # Errors
    ///
    /// Any [`ExtentError`].
    pub fn check(&mut self, record: &ExtentRecord) -> Result<Extent, ExtentError> {
        let extent = record.parse()?;
        let index = extent.index;
        let pages = u64::from(extent.pages);
        let outside = ExtentError::Outside {
            index,
            pages: extent.pages,
            file: self.file_pages,
        };
        let end = index.checked_add(pages).ok_or(outside)?;
        let last = match extent.kind {
            ExtentKind::Pages => end,
            // The last folio may be larger than what is left of the file.
            ExtentKind::Folios { .. } => end
                .saturating_sub(extent.piece_pages().into())
                .saturating_add(1),
        };
        if last > self.file_pages {
            return Err(outside);
        }
        if index < self.free_from {
            return Err(ExtentError::Order {
                index,
                free_from: self.free_from,
            });
        }
        self.free_from = end;
        self.extents = self.extents.saturating_add(1);
        self.pages = self.pages.saturating_add(pages);
        if self.extents > self.expected_extents || self.pages > self.expected_pages {
            return Err(self.totals());
        }
        Ok(extent)
    }

    /// Ends the file: whether there were as many extents, and pages, as the header says.
    ///
    /// # Errors
    ///
    /// [`ExtentError::Totals`].
    pub fn finish(self) -> Result<(), ExtentError> {
        if self.extents == self.expected_extents && self.pages == self.expected_pages {
            Ok(())
        } else {
            Err(self.totals())
        }
    }

    const fn totals(&self) -> ExtentError {
        ExtentError::Totals {
            extents: self.extents,
            pages: self.pages,
            expected_extents: self.expected_extents,
            expected_pages: self.expected_pages,
        }
    }
}

/// Why an extent, or all of them together, are not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentError {
    /// There can be no such pages.
    Address {
        /// Index of the extent in the file.
        index: u64,
        /// Number of its first page.
        pfn: u64,
        /// Number of its pages.
        pages: u32,
    },
    /// Kind, order and number of pages are not known, or contradict each other.
    Kind {
        /// Index of the extent in the file.
        index: u64,
        /// The kind.
        kind: u16,
        /// The order.
        order: u16,
    },
    /// A folio of this order cannot stand here.
    Misaligned {
        /// Index of the extent in the file.
        index: u64,
        /// Number of its first page.
        pfn: u64,
        /// The order.
        order: u16,
    },
    /// It lies behind the end of the file.
    Outside {
        /// Index of the extent in the file.
        index: u64,
        /// Number of its pages.
        pages: u32,
        /// Size of the file in pages.
        file: u64,
    },
    /// It does not lie behind the extent before it.
    Order {
        /// Index of the extent in the file.
        index: u64,
        /// Index behind the extent before it.
        free_from: u64,
    },
    /// The header counts otherwise.
    Totals {
        /// Number of extents up to here.
        extents: u64,
        /// Number of pages in them.
        pages: u64,
        /// Number of extents in the header.
        expected_extents: u64,
        /// Number of pages in the header.
        expected_pages: u64,
    },
}

impl fmt::Display for ExtentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { index, pfn, pages } => write!(
                f,
                "memfd extent {index:#x}: no such pages, {pages:#x} from {pfn:#x}"
            ),
            Self::Kind { index, kind, order } => {
                write!(
                    f,
                    "memfd extent {index:#x}: kind {kind}, order {order} is not valid"
                )
            }
            Self::Misaligned { index, pfn, order } => write!(
                f,
                "memfd extent {index:#x}: page {pfn:#x} is not aligned for order {order}"
            ),
            Self::Outside { index, pages, file } => write!(
                f,
                "memfd extent {index:#x} of {pages:#x} pages is not among the file's {file:#x}"
            ),
            Self::Order { index, free_from } => {
                write!(f, "memfd extent {index:#x} begins before {free_from:#x}")
            }
            Self::Totals {
                extents,
                pages,
                expected_extents,
                expected_pages,
            } => write!(
                f,
                "memfd: {extents} extents of {pages} pages where there should be \
                 {expected_extents} of {expected_pages}"
            ),
        }
    }
}
