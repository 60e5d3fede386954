// SPDX-License-Identifier: GPL-2.0

//! `memfd-small-v3`, for memfds of at most one page: many of them share a page of descriptions.
//!
//! What is handed over for a file is the address of its slot. The contents of files whose slots are
//! in one page are preserved together: one block of KHO may have pages of several files.
//!
//! ```text
//!  page                                 slot, 128 bytes
//!     0  u32  bit n: slot n is in use      0  u64  position
//!     4  u32  CRC-32C of the numbers       8  u64  size
//!             before and behind           16  u64  number of the page; this, number of pages,
//!     8  u64  list of late folios, or 0            kind and order are 0 for a hole
//!   128  31 slots                         24  u32  CRC-32C of the slot, this number taken as 0
//!                                         28  u32  0
//!                                         32  u32  number of pages
//!                                         36  u16  kind, as in memfd-extents-v3
//!                                         38  u16  order
//!                                         40  u32  flags: bit 1, the page is poisoned
//!                                         44  u32  seals
//!                                         48  u32  open flags
//!                                         52  u32  mode, permissions only
//!                                         56  u32  user
//!                                         60  u32  group
//!                                         64  u8[64]  name, may be empty
//! ```
//!
//! Version 2 has 0 where the checksums are. A slot is verified by itself: what is corrupt costs the
//! file that it describes, and a corrupt beginning of the page only those whose page may be late.

use core::{
    ffi::CStr,
    fmt, //
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
    extent::{
        Extent,
        ExtentError,
        ExtentKind,
        ExtentRecord, //
    },
    memfd::{
        check_common,
        file_pages,
        MemfdError, //
    },
    memfd_extents::{
        check_rights,
        OpenFlags,
        FLAG_POISONED, //
    },
    name::{
        Name,
        NameError, //
    },
    phys::{
        Phys,
        PAGE_SIZE, //
    },
};

/// The compatible string.
pub const COMPATIBLE_SMALL: &CStr = c"memfd-small-v3";

/// The compatible string of the version before. It is the same without checksums.
pub const COMPATIBLE_SMALL_V2: &CStr = c"memfd-small-v2";

/// The compatible string of the first version. Beside the checksums, it cannot have late folios and
/// poisoned pages.
pub const COMPATIBLE_SMALL_V1: &CStr = c"memfd-small-v1";

/// Size of the field of the name, terminating NUL included.
pub const SMALL_NAME_LEN: usize = 64;

/// How many slots a page has.
pub const SLOTS: usize = 31;

/// The bits of the slots that there are.
pub const ALL_SLOTS: u32 = u32::MAX >> 1;

/// Size of a slot, and of what is before the first.
const SLOT: u64 = 128;

/// The largest file, in pages.
pub const SMALL_PAGES: u64 = 1;

/// A memfd as it stands in its slot.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmallRecord {
    pos: u64,
    size: u64,
    pfn: u64,
    sum: u32,
    zero: u32,
    pages: u32,
    kind: u16,
    order: u16,
    flags: u32,
    seals: u32,
    open: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    name: [u8; SMALL_NAME_LEN],
}

/// A memfd that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Small {
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
    pub name: Option<Name<SMALL_NAME_LEN>>,
    /// The page, or the folio that begins with it; none for a hole.
    pub extent: Option<Extent>,
    /// Whether the page is poisoned.
    pub poisoned: bool,
}

impl SmallRecord {
    /// The description of `memfd`.
    pub fn new(memfd: &Small) -> Self {
        let extent = memfd
            .extent
            .as_ref()
            .map_or(ExtentRecord::NONE, ExtentRecord::new);
        Self {
            pos: memfd.pos,
            size: memfd.size,
            pfn: extent.pfn,
            sum: 0,
            zero: 0,
            pages: extent.pages,
            kind: extent.kind,
            order: extent.order,
            flags: if memfd.poisoned { FLAG_POISONED } else { 0 },
            seals: memfd.seals,
            open: memfd.open.bits(),
            mode: memfd.mode,
            uid: memfd.uid,
            gid: memfd.gid,
            name: match &memfd.name {
                Some(name) => name.to_bytes_padded(),
                None => [0; SMALL_NAME_LEN],
            },
        }
    }

    /// The same, with its checksum.
    pub fn summed(mut self, crc: Crc32c) -> Self {
        self.sum = 0;
        self.sum = crc(0, self.as_bytes());
        self
    }

    /// The same without its checksum, which was found to match. Versions 1 and 2 have none.
    ///
    /// # Errors
    ///
    /// [`MemfdError::Checksum`].
    pub fn verified(&self, crc: Crc32c) -> Result<Self, SmallError> {
        match self.summed(crc).sum == self.sum {
            true => Ok(Self { sum: 0, ..*self }),
            false => Err(MemfdError::Checksum.into()),
        }
    }

    /// Reads and validates the description, which has no checksum, or has none any more.
    ///
    /// # Errors
    ///
    /// Any [`SmallError`].
    pub fn parse(&self) -> Result<Small, SmallError> {
        check_common(self.pos, self.size, self.seals)?;
        let poisoned = self.flags & FLAG_POISONED;
        if self.flags != poisoned {
            return Err(MemfdError::Flags { flags: self.flags }.into());
        }
        let open = check_rights(self.open, self.mode, self.uid, self.gid)?;
        let name = match Name::from_bytes(&self.name) {
            Ok(name) => Some(name),
            Err(NameError::Empty) => None,
            Err(_) => return Err(MemfdError::Name.into()),
        };
        if file_pages(self.size) > SMALL_PAGES {
            return Err(MemfdError::Size { size: self.size }.into());
        }
        Ok(Small {
            pos: self.pos,
            size: self.size,
            seals: self.seals,
            open,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            name,
            extent: self.extent()?,
            poisoned: poisoned != 0,
        })
    }

    /// Whether the page of the file may be in the list of late folios.
    pub fn may_be_late(&self) -> bool {
        self.pages == 0 && self.size > 0
    }

    /// Reads the extent alone, whatever else the file has.
    ///
    /// # Errors
    ///
    /// [`ExtentError`].
    pub fn extent(&self) -> Result<Option<Extent>, ExtentError> {
        let record = ExtentRecord {
            pfn: self.pfn,
            // In version 2, the index of the page, which is 0.
            index: u64::from(self.sum | self.zero),
            pages: self.pages,
            kind: self.kind,
            order: self.order,
        };
        if record.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let extent = record.parse()?;
        let inside = match extent.kind {
            ExtentKind::Pages => u64::from(extent.pages) <= SMALL_PAGES,
            ExtentKind::Folios { .. } => extent.pages == extent.piece_pages(),
        };
        if extent.index != 0 || self.size == 0 || !inside {
            return Err(ExtentError::Outside {
                index: extent.index,
                pages: extent.pages,
                file: file_pages(self.size),
            });
        }
        Ok(Some(extent))
    }
}

/// Why the description of a small memfd is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallError {
    /// What is wrong with the file.
    Memfd(MemfdError),
    /// What is wrong with its page.
    Extent(ExtentError),
}

impl From<MemfdError> for SmallError {
    fn from(error: MemfdError) -> Self {
        Self::Memfd(error)
    }
}

impl From<ExtentError> for SmallError {
    fn from(error: ExtentError) -> Self {
        Self::Extent(error)
    }
}

impl fmt::Display for SmallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memfd(error) => error.fmt(f),
            Self::Extent(error) => error.fmt(f),
        }
    }
}

/// A page of descriptions.
///
/// Its bytes may be anything: a slot that is not in use is not given out.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmallPage {
    used: u32,
    sum: u32,
    late: u64,
    unused: [u64; 14],
    slots: [SmallRecord; SLOTS],
}

impl SmallPage {
    /// Which slots are in use: bit n for slot n.
    pub const fn used(&self) -> u32 {
        self.used & ALL_SLOTS
    }

    /// First page of the list of late folios, which were inserted into a hole after the freeze.
    pub const fn late(&self) -> Option<Phys> {
        Phys::new(self.late)
    }

    /// Says where the list of late folios is.
    pub fn set_late(&mut self, at: Phys) {
        self.late = at.get();
    }

    /// Writes the checksum of what comes before the slots.
    pub fn set_sum(&mut self, crc: Crc32c) {
        self.sum = self.sum(crc);
    }

    /// Whether what comes before the slots is as it was written. Versions 1 and 2 have nothing to
    /// tell by.
    pub fn sum_matches(&self, crc: Crc32c) -> bool {
        self.sum == self.sum(crc)
    }

    fn sum(&self, crc: Crc32c) -> u32 {
        crc(crc(0, &self.used.to_ne_bytes()), &self.late.to_ne_bytes())
    }

    /// Takes a free slot and returns its number; [`None`] if there is none. What it describes is to
    /// be written yet.
    pub fn add(&mut self) -> Option<usize> {
        let index = usize::try_from(self.used.trailing_ones()).ok()?;
        self.used |= bit(index);
        (index < SLOTS).then_some(index)
    }

    /// Frees a slot.
    pub fn remove(&mut self, index: usize) {
        self.used &= !bit(index);
    }

    /// The description in a slot, whether it is in use or not; [`None`] if there is no such slot.
    pub fn slot(&self, index: usize) -> Option<&SmallRecord> {
        self.slots.get(index)
    }

    /// The description in a slot; [`None`] if the slot is not in use.
    pub fn get(&self, index: usize) -> Option<&SmallRecord> {
        if self.used() & bit(index) == 0 {
            return None;
        }
        self.slots.get(index)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut SmallRecord> {
        if self.used() & bit(index) == 0 {
            return None;
        }
        self.slots.get_mut(index)
    }
}

/// The bit of a slot; 0 if there is no such slot.
pub fn bit(index: usize) -> u32 {
    u32::try_from(index)
        .ok()
        .and_then(|index| 1_u32.checked_shl(index))
        .unwrap_or(0)
        & ALL_SLOTS
}

/// The address of a slot in the page at `page`.
pub fn slot_address(page: Phys, index: usize) -> Option<u64> {
    let offset = SLOT.checked_mul(u64::try_from(index).ok()?)?;
    page.get().checked_add(offset)?.checked_add(SLOT)
}

/// The page and the number of the slot at an address; [`None`] if no slot can be there.
pub fn slot_at(address: u64) -> Option<(Phys, usize)> {
    let offset = address.checked_rem(PAGE_SIZE)?;
    let page = Phys::new(address.checked_sub(offset)?)?;
    if offset.checked_rem(SLOT)? != 0 {
        return None;
    }
    let index = offset.checked_div(SLOT)?.checked_sub(1)?;
    Some((page, usize::try_from(index).ok()?))
}
