// SPDX-License-Identifier: GPL-2.0

//! `memfd-v2`, the layout of the C handler in Linux 7.2 and 7.3.
//!
//! ```text
//!  memfd, 48 bytes                      folio, 16 bytes
//!     0  u64  position                     0  u64:52  number of its first page, 0 for none
//!     8  u64  size                            u64:12  flags
//!    16  u32  seals                        8  u64     index in the file, in pages
//!    20  u32  flags, 0
//!    24  u64  number of folios
//!    32       vmalloc area with the folios, all 0 if there are none
//! ```
//!
//! The order of a folio does not stand there: it shows when the folio is restored. The folios stand
//! in the order of their index.

use core::{
    ffi::CStr,
    fmt,
    mem::size_of, //
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
    block::Block,
    memfd::{
        check_common,
        file_pages,
        MemfdError,
        SEAL_EXEC,
        SEAL_FUTURE_WRITE,
        SEAL_GROW,
        SEAL_SHRINK,
        SEAL_WRITE, //
    },
    phys::{
        Phys,
        PFN_BITS,
        PFN_LIMIT, //
    },
    vmalloc::{
        Area,
        Vmalloc, //
    },
    BLOCK_SIZE, //
};

/// The compatible string.
pub const COMPATIBLE_V2: &CStr = c"memfd-v2";

/// How many folios stand in a page of their area. None lies across the border of two.
pub const FOLIOS_PER_PAGE: usize = BLOCK_SIZE / size_of::<FolioV2>();

/// A memfd as it stands in its page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemfdV2 {
    pos: u64,
    size: u64,
    seals: u32,
    flags: u32,
    nr_folios: u64,
    folios: Vmalloc,
}

/// A memfd that was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundV2 {
    /// Position.
    pub pos: u64,
    /// Size in bytes.
    pub size: u64,
    /// Seals.
    pub seals: u32,
    /// Number of folios.
    pub nr_folios: u64,
    /// Where they are described.
    pub folios: Option<Area>,
}

impl FoundV2 {
    /// The mode that the file must have had, as far as the seals tell; the layout has none.
    ///
    /// A file that was executable when [`SEAL_EXEC`] was set got the seals against writing with
    /// it. So one that lacks any of them was not executable, and must not become so.
    pub const fn implied_mode(&self) -> u32 {
        const W_X: u32 = SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE;

        if self.seals & SEAL_EXEC != 0 && self.seals & W_X != W_X {
            0o666
        } else {
            0o777
        }
    }
}

impl MemfdV2 {
    /// The description of `memfd`.
    pub fn new(memfd: &FoundV2) -> Self {
        Self {
            pos: memfd.pos,
            size: memfd.size,
            seals: memfd.seals,
            flags: 0,
            nr_folios: memfd.nr_folios,
            folios: memfd.folios.as_ref().map(Vmalloc::new).unwrap_or_default(),
        }
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

    /// Reads and validates the description.
    ///
    /// # Errors
    ///
    /// Any [`MemfdError`] about what this layout has.
    pub fn parse(&self) -> Result<FoundV2, MemfdError> {
        check_common(self.pos, self.size, self.seals)?;
        if self.flags != 0 {
            return Err(MemfdError::Flags { flags: self.flags });
        }
        let pages = file_pages(self.size);
        let bytes = u64::try_from(size_of::<FolioV2>())
            .ok()
            .and_then(|each| each.checked_mul(self.nr_folios));
        let (Some(bytes), true) = (bytes, self.nr_folios <= pages) else {
            return Err(MemfdError::Count {
                count: self.nr_folios,
                pages,
                at: None,
            });
        };
        let folios = match self.nr_folios {
            0 => None,
            _ => Some(self.folios.parse(bytes).map_err(MemfdError::List)?),
        };
        Ok(FoundV2 {
            pos: self.pos,
            size: self.size,
            seals: self.seals,
            nr_folios: self.nr_folios,
            folios,
        })
    }
}

/// The state of a folio's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FolioFlags {
    /// It was written to.
    pub dirty: bool,
    /// It has content: it is not one that was only allocated.
    pub uptodate: bool,
}

/// [`FolioFlags::dirty`].
const DIRTY: u64 = 1 << 0;
/// [`FolioFlags::uptodate`].
const UPTODATE: u64 = 1 << 1;

/// A folio as it stands in the area.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FolioV2 {
    pfn_flags: u64,
    index: u64,
}

impl FolioV2 {
    /// The description of a folio; [`None`] if there is no page with the number `pfn`.
    pub fn new(pfn: u64, flags: FolioFlags, index: u64) -> Option<Self> {
        if pfn == 0 || pfn >= PFN_LIMIT {
            return None;
        }
        let dirty = if flags.dirty { DIRTY } else { 0 };
        let uptodate = if flags.uptodate { UPTODATE } else { 0 };
        Some(Self {
            pfn_flags: pfn | ((dirty | uptodate) << PFN_BITS),
            index,
        })
    }

    /// Number of its first page.
    pub const fn pfn(&self) -> u64 {
        self.pfn_flags & (PFN_LIMIT - 1)
    }

    /// Its flags, all bits.
    pub const fn flags(&self) -> u64 {
        self.pfn_flags >> PFN_BITS
    }

    /// Its index in the file, in pages.
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Sees a page of the area as folios.
    pub fn in_page(page: &Block) -> &[Self] {
        <[Self]>::ref_from_bytes(page.as_bytes()).unwrap_or_default()
    }

    /// Sees a page of the area as folios that can be changed.
    pub fn in_page_mut(page: &mut Block) -> &mut [Self] {
        <[Self]>::mut_from_bytes(page.as_mut_bytes()).unwrap_or_default()
    }
}

/// A folio that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folio {
    /// Address of its first page.
    pub start: Phys,
    /// Its flags.
    pub flags: FolioFlags,
    /// Its index in the file, in pages.
    pub index: u64,
}

/// Validates the folios of a file, one after the other.
#[derive(Clone, Debug)]
pub struct FolioCheckV2 {
    file_pages: u64,
    free_from: u64,
}

impl FolioCheckV2 {
    /// Starts with the first folio of `memfd`.
    pub const fn new(memfd: &FoundV2) -> Self {
        Self {
            file_pages: file_pages(memfd.size),
            free_from: 0,
        }
    }

    /// Validates the next folio. [`None`] stands for a record that describes no folio.
    ///
    /// # Errors
    ///
    /// Any [`FolioError`].
    pub fn check(&mut self, folio: &FolioV2) -> Result<Option<Folio>, FolioError> {
        let Some(start) = Phys::from_pfn(folio.pfn()) else {
            return Ok(None);
        };
        let index = folio.index();
        let flags = folio.flags();
        if flags & !(DIRTY | UPTODATE) != 0 {
            return Err(FolioError::Flags { index, flags });
        }
        if index >= self.file_pages {
            return Err(FolioError::Outside {
                index,
                pages: self.file_pages,
            });
        }
        if index < self.free_from {
            return Err(FolioError::Order {
                index,
                free_from: self.free_from,
            });
        }
        self.free_from = index.saturating_add(1);
        Ok(Some(Folio {
            start,
            flags: FolioFlags {
                dirty: flags & DIRTY != 0,
                uptodate: flags & UPTODATE != 0,
            },
            index,
        }))
    }

    /// Says how large the folio was that was checked last, once that is known, so that the next
    /// must lie behind it.
    ///
    /// # Errors
    ///
    /// [`FolioError::Misaligned`] if a folio of that size cannot stand at that index.
    pub fn restored(&mut self, folio: &Folio, pages: u64) -> Result<(), FolioError> {
        let aligned = folio.index.checked_rem(pages) == Some(0);
        match folio.index.checked_add(pages) {
            Some(end) if aligned => {
                self.free_from = end;
                Ok(())
            }
            _ => Err(FolioError::Misaligned {
                index: folio.index,
                pages,
            }),
        }
    }
}

/// Why a folio is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolioError {
    /// There are unknown flags.
    Flags {
        /// Index of the folio.
        index: u64,
        /// The flags.
        flags: u64,
    },
    /// It lies behind the end of the file.
    Outside {
        /// Index of the folio.
        index: u64,
        /// Size of the file.
        pages: u64,
    },
    /// It does not lie behind the folio before it.
    Order {
        /// Index of the folio.
        index: u64,
        /// Index behind the folio before it.
        free_from: u64,
    },
    /// A folio of its size cannot stand at its index.
    Misaligned {
        /// Index of the folio.
        index: u64,
        /// Size of the folio.
        pages: u64,
    },
}

impl fmt::Display for FolioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags { index, flags } => {
                write!(f, "folio {index:#x}: flags {flags:#x} are not known")
            }
            Self::Outside { index, pages } => {
                write!(
                    f,
                    "folio {index:#x} is not among the file's {pages:#x} pages"
                )
            }
            Self::Order { index, free_from } => {
                write!(f, "folio {index:#x} begins before {free_from:#x}")
            }
            Self::Misaligned { index, pages } => {
                write!(f, "folio {index:#x} of {pages:#x} pages is not aligned")
            }
        }
    }
}
