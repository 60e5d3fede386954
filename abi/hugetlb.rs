// SPDX-License-Identifier: GPL-2.0

//! `hugetlb-memfd-v1`: a memfd of huge pages.
//!
//! One page begins with a header. A chain of [`Block`]s holds the [extents](super::extent), all of
//! folios of the order of the file, and another one the reservations.
//!
//! ```text
//!  header, 360 bytes                          reservation, 16 bytes
//!     0  u64  position                           0  u64  index of the first page
//!     8  u64  size                               8  u64  number of pages
//!    16  u64  number of extents
//!    24  u64  number of pages in them
//!    32  u64  first block of extents, or 0
//!    40  u32  flags: bit 0, there may be late folios
//!    44  u32  seals
//!    48  u32  open flags, see OpenFlags
//!    52  u32  mode, permissions only
//!    56  u32  user
//!    60  u32  group
//!    64  u8[256]  name, may be empty
//!   320  u64  list of late folios, or 0; see memfd_late
//!   328  u64  first block of reservations, or 0
//!   336  u64  number of reservations
//!   344  u32  order of the pages of the file
//!   348  u32  CRC-32C of the header, this number taken as 0
//!   352  u64  0
//! ```
//!
//! Numbers and indices of pages count pages of 4 KiB. A reservation is for pages that are not
//! there, but that the pool of the size must have when they are touched. The blocks of both chains
//! have a checksum, see [`Record::SUMMED`].

use core::ffi::CStr;

use zerocopy::IntoBytes;
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
    extent::{
        Extent,
        ExtentCheck,
        ExtentError,
        ExtentKind,
        ExtentRecord, //
    },
    memfd::{
        check_common,
        file_pages,
        MemfdError,
        MAX_ORDER, //
    },
    memfd_extents::{
        check_rights,
        FileName,
        OpenFlags,
        FILE_NAME_LEN, //
    },
    name::NameError,
    phys::Phys, //
};

/// The compatible string.
pub const COMPATIBLE_HUGETLB: &CStr = c"hugetlb-memfd-v1";

/// A memfd of huge pages, as it stands at the beginning of its page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HugetlbHeader {
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
    reserved: u64,
    nr_reserved: u64,
    order: u32,
    sum: u32,
    zero: u64,
}

/// [`HugetlbMemfd::late`] is there.
const FLAG_LATE: u32 = 1 << 0;

/// A memfd of huge pages that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugetlbMemfd {
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
    /// The order of its pages.
    pub order: u16,
    /// Number of extents.
    pub nr_extents: u64,
    /// Number of pages in all extents.
    pub nr_pages: u64,
    /// First block of extents.
    pub extents: Option<Phys>,
    /// Number of reservations.
    pub nr_reserved: u64,
    /// First block of reservations.
    pub reserved: Option<Phys>,
    /// First page of the list of late folios, if there may be some in this file.
    pub late: Option<Phys>,
}

impl HugetlbMemfd {
    /// Validates a late folio, and tells whether it is in none of the `extents`, which are all, in the
    /// order of the file. One that was inserted while the file was frozen may be in one as well.
    ///
    /// # Errors
    ///
    /// [`MemfdError::LateFolio`].
    pub fn is_missing(&self, folio: &Extent, extents: &[Extent]) -> Result<bool, MemfdError> {
        let wrong = MemfdError::LateFolio { index: folio.index };
        let end = folio.index.checked_add(folio.pages.into()).ok_or(wrong)?;
        if Extent::folio(folio.start, folio.index, self.order) != Some(*folio)
            || folio.index & inside(self.order) != 0
            || end > file_pages(self.size)
        {
            return Err(wrong);
        }

        let before = extents.partition_point(|extent| extent.index <= folio.index);
        let last = before.checked_sub(1).and_then(|at| extents.get(at));
        let Some((extent, offset)) = last.and_then(|extent| {
            let offset = folio.index.checked_sub(extent.index)?;
            (offset < extent.pages.into()).then_some((extent, offset))
        }) else {
            return Ok(true);
        };
        match extent.start.pfn().checked_add(offset) == Some(folio.start.pfn()) {
            true => Ok(false),
            false => Err(wrong),
        }
    }
}

impl HugetlbHeader {
    /// The description of `memfd`, with its checksum.
    pub fn new(memfd: &HugetlbMemfd, crc: Crc32c) -> Self {
        let mut header = Self {
            pos: memfd.pos,
            size: memfd.size,
            nr_extents: memfd.nr_extents,
            nr_pages: memfd.nr_pages,
            extents: Phys::raw(memfd.extents),
            flags: if memfd.late.is_some() { FLAG_LATE } else { 0 },
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
            reserved: Phys::raw(memfd.reserved),
            nr_reserved: memfd.nr_reserved,
            order: memfd.order.into(),
            sum: 0,
            zero: 0,
        };
        header.sum = header.sum(crc);
        header
    }

    fn sum(&self, crc: Crc32c) -> u32 {
        crc(0, Self { sum: 0, ..*self }.as_bytes())
    }

    /// Sees the beginning of a page as such a memfd.
    pub fn of(page: &Block) -> Option<&Self> {
        page.head()
    }

    /// Sees the beginning of a page as such a memfd that can be changed.
    pub fn of_mut(page: &mut Block) -> Option<&mut Self> {
        page.head_mut()
    }

    /// Reads and validates the description.
    ///
    /// # Errors
    ///
    /// Any [`MemfdError`] about what this layout has.
    pub fn parse(&self, crc: Crc32c) -> Result<HugetlbMemfd, MemfdError> {
        if self.sum != self.sum(crc) {
            return Err(MemfdError::Checksum);
        }
        check_common(self.pos, self.size, self.seals)?;
        if self.flags & !FLAG_LATE != 0 {
            return Err(MemfdError::Flags { flags: self.flags });
        }
        let open = check_rights(self.open, self.mode, self.uid, self.gid)?;
        let name = match FileName::from_bytes(&self.name) {
            Ok(name) => Some(name),
            Err(NameError::Empty) => None,
            Err(_) => return Err(MemfdError::Name),
        };
        let order = u16::try_from(self.order)
            .ok()
            .filter(|order| *order > 0 && *order <= MAX_ORDER)
            .ok_or(MemfdError::Order { order: self.order })?;
        let late = Phys::new(self.late);
        if late.is_some() != (self.flags & FLAG_LATE != 0) {
            return Err(MemfdError::Late { at: late });
        }
        let list = |at: u64, count: u64, pages: u64| {
            let at = Phys::new(at);
            match at.is_some() == (count != 0) && count <= file_pages(self.size) {
                true => Ok(at),
                false => Err(MemfdError::Count { count, pages, at }),
            }
        };
        let extents = list(self.extents, self.nr_extents, self.nr_pages)?;
        let reserved = list(self.reserved, self.nr_reserved, file_pages(self.size))?;
        let lists = [extents, reserved, late];
        if let Some(at) = lists.into_iter().flatten().find(|at| !at.page_aligned()) {
            return Err(MemfdError::Misaligned { at });
        }
        Ok(HugetlbMemfd {
            pos: self.pos,
            size: self.size,
            seals: self.seals,
            open,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            name,
            order,
            nr_extents: self.nr_extents,
            nr_pages: self.nr_pages,
            extents,
            nr_reserved: self.nr_reserved,
            reserved,
            late,
        })
    }
}

/// A reservation as it stands in a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReservedRecord {
    index: u64,
    pages: u64,
}

impl Record for ReservedRecord {
    const KIND: &'static str = "memfd reservation";
    const SUMMED: bool = true;
}

/// Pages of a file that are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRange {
    /// Index of the first one in the file.
    pub index: u64,
    /// How many.
    pub pages: u64,
}

impl ReservedRecord {
    /// The record of a reservation.
    pub const fn new(range: &ReservedRange) -> Self {
        Self {
            index: range.index,
            pages: range.pages,
        }
    }
}

/// Validates the reservations of a file, one after the other.
#[derive(Clone, Debug)]
pub struct ReservedCheck {
    mask: u64,
    free_from: u64,
    left: u64,
}

impl ReservedCheck {
    /// Starts with the first reservation of `memfd`.
    pub fn new(memfd: &HugetlbMemfd) -> Self {
        Self {
            mask: inside(memfd.order),
            free_from: 0,
            left: memfd.nr_reserved,
        }
    }

    /// Validates the next reservation: by itself and against the one before it.
    ///
    /// # Errors
    ///
    /// [`MemfdError::Reserved`].
    pub fn check(&mut self, record: &ReservedRecord) -> Result<ReservedRange, MemfdError> {
        let wrong = MemfdError::Reserved {
            index: record.index,
            pages: record.pages,
        };
        let end = record.index.checked_add(record.pages).ok_or(wrong)?;
        if record.pages == 0
            || (record.index | record.pages) & self.mask != 0
            || record.index < self.free_from
            || i64::try_from(end).is_err()
        {
            return Err(wrong);
        }
        self.left = self.left.checked_sub(1).ok_or(wrong)?;
        self.free_from = end;
        Ok(ReservedRange {
            index: record.index,
            pages: record.pages,
        })
    }

    /// Ends the file: whether there were as many as the header says.
    ///
    /// # Errors
    ///
    /// [`MemfdError::Count`].
    pub fn finish(self) -> Result<(), MemfdError> {
        match self.left {
            0 => Ok(()),
            left => Err(MemfdError::Count {
                count: left,
                pages: 0,
                at: None,
            }),
        }
    }
}

/// Validates the extents of such a file, one after the other.
#[derive(Clone, Debug)]
pub struct HugeExtentCheck {
    order: u16,
    check: ExtentCheck,
}

impl HugeExtentCheck {
    /// Starts with the first extent of `memfd`.
    pub const fn new(memfd: &HugetlbMemfd) -> Self {
        Self {
            order: memfd.order,
            check: ExtentCheck::of(memfd.size, memfd.nr_extents, memfd.nr_pages),
        }
    }

    /// Validates the next extent.
    ///
    /// # Errors
    ///
    /// Any [`ExtentError`]; [`ExtentError::Kind`] if it is not of folios of the file's order.
    pub fn check(&mut self, record: &ExtentRecord) -> Result<Extent, ExtentError> {
        let extent = self.check.check(record)?;
        match extent.kind {
            ExtentKind::Folios { order } if order == self.order => Ok(extent),
            _ => Err(ExtentError::Kind {
                index: extent.index,
                kind: record.kind,
                order: record.order,
            }),
        }
    }

    /// As [`ExtentCheck::finish`].
    ///
    /// # Errors
    ///
    /// [`ExtentError::Totals`].
    pub fn finish(self) -> Result<(), ExtentError> {
        self.check.finish()
    }
}

/// The bits of an index that are inside of a page of this order.
fn inside(order: u16) -> u64 {
    1_u64
        .checked_shl(order.into())
        .unwrap_or_default()
        .wrapping_sub(1)
}
