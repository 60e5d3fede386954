// SPDX-License-Identifier: GPL-2.0

//! `memfd-extents-v3`, the layout of this implementation.
//!
//! One page begins with a header, and a chain of [`Block`]s holds the extents: runs of pages that
//! follow each other both in the file and in physical memory. Where no extent is, there is a hole.
//!
//! ```text
//!  header, 336 bytes                    extent, 24 bytes
//!     0  u64  position                     0  u64  number of the first physical page
//!     8  u64  size                         8  u64  index in the file, in pages
//!    16  u64  number of extents           16  u32  number of pages
//!    24  u64  number of pages in them     20  u16  kind: 1 pages, 2 folios
//!    32  u64  first block, or 0           22  u16  order of the folios, else 0
//!    40  u32  flags: bit 0, there may be late folios; bit 1, pages are poisoned
//!    44  u32  seals
//!    48  u32  open flags, see OpenFlags
//!    52  u32  mode, permissions only
//!    56  u32  user
//!    60  u32  group
//!    64  u8[256]  name, may be empty
//!   320  u64  list of late folios, or 0; see memfd_late
//!   328  u32  CRC-32C of the header, this number taken as 0
//!   332  u32  0
//! ```
//!
//! Extents of pages are preserved as single pages: those that follow each other in memory as one
//! range, wherever they are in the file. An extent of folios, of one order, was preserved and is
//! restored folio by folio; the last one begins in the file but may reach beyond its end.
//!
//! Each block has its own checksum, see [`Record::SUMMED`]. Version 2 has neither that nor the one
//! of the header.

use core::{
    ffi::CStr,
    fmt, //
};

use zerocopy::{
    FromBytes,
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
    check::Crc32c,
    memfd::{
        check_common,
        file_pages,
        MemfdError,
        Run,
        MAX_ORDER, //
    },
    name::{
        Name,
        NameError, //
    },
    phys::Phys, //
};

/// The compatible string.
pub const COMPATIBLE_EXTENTS: &CStr = c"memfd-extents-v3";

/// The compatible string of the version before. It is the same without checksums.
pub const COMPATIBLE_EXTENTS_V2: &CStr = c"memfd-extents-v2";

/// The compatible string of the first version. Beside the checksums, it cannot have late folios,
/// poisoned pages, and extents of several folios.
pub const COMPATIBLE_EXTENTS_V1: &CStr = c"memfd-extents-v1";

/// Size of the field of the name, terminating NUL included: what a file system allows.
pub const FILE_NAME_LEN: usize = 256;

/// The name of a file as `/proc` shows it, `memfd:` included.
pub type FileName = Name<FILE_NAME_LEN>;

/// Bits of permission in a mode.
const PERMISSIONS: u32 = 0o7777;

/// The number that stands for no user and no group.
const NOBODY: u32 = u32::MAX;

/// How a file was opened, and what was set on it since.
///
/// The bits are those of the handover, not of any system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags(u32);

impl OpenFlags {
    /// Open for reading.
    pub const READ: u32 = 1 << 0;
    /// Open for writing.
    pub const WRITE: u32 = 1 << 1;
    /// `O_APPEND`.
    pub const APPEND: u32 = 1 << 2;
    /// `O_NONBLOCK`.
    pub const NONBLOCK: u32 = 1 << 3;
    /// `O_DIRECT`.
    pub const DIRECT: u32 = 1 << 4;
    /// `O_NOATIME`.
    pub const NOATIME: u32 = 1 << 5;
    /// `O_DSYNC`.
    pub const DSYNC: u32 = 1 << 6;
    /// `O_SYNC`, which comes with [`Self::DSYNC`].
    pub const SYNC: u32 = 1 << 7;

    const ACCESS: u32 = Self::READ | Self::WRITE;
    const KNOWN: u32 = Self::ACCESS
        | Self::APPEND
        | Self::NONBLOCK
        | Self::DIRECT
        | Self::NOATIME
        | Self::DSYNC
        | Self::SYNC;

    /// The flags `bits`, if all are known and there is reading or writing among them.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::KNOWN != 0 || bits & Self::ACCESS == 0 {
            return None;
        }
        Some(Self(bits))
    }

    /// The flags as a number.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether any of `bits` is set.
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

/// Checks how a file was opened, and who may do what with it.
pub(super) fn check_rights(
    open: u32,
    mode: u32,
    uid: u32,
    gid: u32,
) -> Result<OpenFlags, MemfdError> {
    let flags = OpenFlags::from_bits(open).ok_or(MemfdError::Open { open })?;
    if mode & !PERMISSIONS != 0 {
        return Err(MemfdError::Mode { mode });
    }
    if uid == NOBODY || gid == NOBODY {
        return Err(MemfdError::Owner { uid, gid });
    }
    Ok(flags)
}

/// A memfd as it stands at the beginning of its page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemfdHeader {
    pos: u64,
    size: u64,
    nr_extents: u64,
    nr_pages: u64,
    extents: u64,
    flags: u32,
    seals: u32,
    open: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    name: [u8; FILE_NAME_LEN],
    late: u64,
    sum: u32,
    zero: u32,
}

/// [`Memfd::late`] is there.
const FLAG_LATE: u32 = 1 << 0;

/// [`Memfd::poisoned`]. A kernel that does not know this flag would read what is in these pages.
pub(super) const FLAG_POISONED: u32 = 1 << 1;

/// A memfd that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memfd {
    /// Position.
    pub pos: u64,
    /// Size in bytes.
    pub size: u64,
    /// Seals.
    pub seals: u32,
    /// Access mode and status flags.
    pub open: OpenFlags,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name, if it has one.
    pub name: Option<FileName>,
    /// Number of extents.
    pub nr_extents: u64,
    /// Number of pages in all extents.
    pub nr_pages: u64,
    /// First block of extents.
    pub extents: Option<Phys>,
    /// First page of the list of late folios, if there may be some in this file.
    pub late: Option<Phys>,
    /// Whether some pages are poisoned. Which ones, KHO tells.
    pub poisoned: bool,
}

impl MemfdHeader {
    /// The description of `memfd`.
    pub fn new(memfd: &Memfd) -> Self {
        Self {
            pos: memfd.pos,
            size: memfd.size,
            nr_extents: memfd.nr_extents,
            nr_pages: memfd.nr_pages,
            extents: Phys::raw(memfd.extents),
            flags: if memfd.late.is_some() { FLAG_LATE } else { 0 }
                | if memfd.poisoned { FLAG_POISONED } else { 0 },
            seals: memfd.seals,
            open: memfd.open.bits(),
            mode: memfd.mode,
            uid: memfd.uid,
            gid: memfd.gid,
            name: match &memfd.name {
                Some(name) => name.to_bytes_padded(),
                None => [0; FILE_NAME_LEN],
            },
            late: Phys::raw(memfd.late),
            sum: 0,
            zero: 0,
        }
    }

    /// The same, with its checksum.
    pub fn summed(mut self, crc: Crc32c) -> Self {
        self.sum = self.sum(crc);
        self
    }

    /// Checks that the header is as it was written. Versions 1 and 2 have nothing to tell by.
    ///
    /// # Errors
    ///
    /// [`MemfdError::Checksum`].
    pub fn verify(&self, crc: Crc32c) -> Result<(), MemfdError> {
        match self.sum == self.sum(crc) {
            true => Ok(()),
            false => Err(MemfdError::Checksum),
        }
    }

    fn sum(&self, crc: Crc32c) -> u32 {
        crc(0, Self { sum: 0, ..*self }.as_bytes())
    }

    /// Sees the beginning of a page as a memfd.
    pub fn of(page: &Block) -> Option<&Self> {
        Self::ref_from_prefix(page.as_bytes())
            .ok()
            .map(|(memfd, _)| memfd)
    }

    /// Sees the beginning of a page as a memfd that can be changed.
    pub fn of_mut(page: &mut Block) -> Option<&mut Self> {
        Self::mut_from_prefix(page.as_mut_bytes())
            .ok()
            .map(|(memfd, _)| memfd)
    }

    /// Sets the position.
    pub fn set_pos(&mut self, pos: u64) {
        self.pos = pos;
    }

    /// Sets the seals.
    pub fn set_seals(&mut self, seals: u32) {
        self.seals = seals;
    }

    /// Sets access mode and status flags.
    pub fn set_open(&mut self, open: OpenFlags) {
        self.open = open.bits();
    }

    /// Sets permissions and owner.
    pub fn set_owner(&mut self, mode: u32, uid: u32, gid: u32) {
        self.mode = mode;
        self.uid = uid;
        self.gid = gid;
    }

    /// Reads and validates the description.
    ///
    /// # Errors
    ///
    /// Any [`MemfdError`] about what this layout has.
    pub fn parse(&self) -> Result<Memfd, MemfdError> {
        check_common(self.pos, self.size, self.seals)?;
        if self.flags & !(FLAG_LATE | FLAG_POISONED) != 0 {
            return Err(MemfdError::Flags { flags: self.flags });
        }
        let open = check_rights(self.open, self.mode, self.uid, self.gid)?;
        let name = match FileName::from_bytes(&self.name) {
            Ok(name) => Some(name),
            Err(NameError::Empty) => None,
            Err(_) => return Err(MemfdError::Name),
        };
        let late = Phys::new(self.late);
        if late.is_some() != (self.flags & FLAG_LATE != 0) {
            return Err(MemfdError::Late { at: late });
        }
        let extents = Phys::new(self.extents);
        let expected = self.nr_extents != 0;
        if extents.is_some() != expected
            || (self.nr_pages != 0) != expected
            || self.nr_extents > file_pages(self.size)
            || self.nr_pages < self.nr_extents
        {
            return Err(MemfdError::Count {
                count: self.nr_extents,
                pages: self.nr_pages,
                at: extents,
            });
        }
        let misaligned = |at: &Phys| !at.page_aligned();
        if let Some(at) = extents.filter(misaligned).or(late.filter(misaligned)) {
            return Err(MemfdError::Misaligned { at });
        }
        Ok(Memfd {
            pos: self.pos,
            size: self.size,
            seals: self.seals,
            open,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            name,
            nr_extents: self.nr_extents,
            nr_pages: self.nr_pages,
            extents,
            late,
            poisoned: self.flags & FLAG_POISONED != 0,
        })
    }
}

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
        Self {
            file_pages: file_pages(memfd.size),
            free_from: 0,
            extents: 0,
            pages: 0,
            expected_extents: memfd.nr_extents,
            expected_pages: memfd.nr_pages,
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
