// SPDX-License-Identifier: GPL-2.0

//! `memfd-extents-v3`, the layout of this implementation.
//!
//! One page begins with a header, and a chain of [`Block`]s holds the [extents](super::extent).
//!
//! ```text
//!  header, 336 bytes
//!     0  u64  position
//!     8  u64  size
//!    16  u64  number of extents
//!    24  u64  number of pages in them
//!    32  u64  first block, or 0
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
//! Each block has its own checksum, see [`Record::SUMMED`](super::block::Record::SUMMED). Version 2
//! has neither that nor the one of the header.

use core::ffi::CStr;

use zerocopy::IntoBytes;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    block::Block,
    check::Crc32c,
    memfd::{
        check_common,
        file_pages,
        MemfdError, //
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
        page.head()
    }

    /// Sees the beginning of a page as a memfd that can be changed.
    pub fn of_mut(page: &mut Block) -> Option<&mut Self> {
        page.head_mut()
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
