// SPDX-License-Identifier: GPL-2.0

//! What the two layouts of a preserved memfd have in common.
//!
//! - [`MemfdV2`], the layout `memfd-v2` of the C handler: content, size, position, seals.
//! - [`MemfdHeader`] with [`ExtentRecord`]s, the layout `memfd-extents-v3` of this implementation,
//!   which adds holes, name, owner, mode and access mode, and describes runs of pages.
//!
//! A record of either says which physical page holds which part of the file. That such a page is
//! preserved memory, and not used twice, is for the kernel to find out by claiming it;
//! [`check_disjoint`] can tell the latter before anything was claimed.

use core::fmt;

use super::{
    phys::{
        pages_for,
        Phys,
        PFN_LIMIT, //
    },
    vmalloc::VmallocError, //
};

pub use super::{
    extent::{
        Extent,
        ExtentCheck,
        ExtentError,
        ExtentKind,
        ExtentRecord,
        SummedExtentRecord, //
    },
    memfd_extents::{
        FileName,
        Memfd,
        MemfdHeader,
        OpenFlags,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_EXTENTS_V1,
        COMPATIBLE_EXTENTS_V2, //
    },
    memfd_v2::{
        FolioCheckV2,
        FolioError,
        FolioFlags,
        FolioV2,
        FoundV2,
        MemfdV2,
        COMPATIBLE_V2, //
    }, //
};

/// `F_SEAL_SEAL`: no more seals.
pub const SEAL_SEAL: u32 = 1 << 0;
/// `F_SEAL_SHRINK`: the file cannot become smaller.
pub const SEAL_SHRINK: u32 = 1 << 1;
/// `F_SEAL_GROW`: the file cannot become larger.
pub const SEAL_GROW: u32 = 1 << 2;
/// `F_SEAL_WRITE`: no writes.
pub const SEAL_WRITE: u32 = 1 << 3;
/// `F_SEAL_FUTURE_WRITE`: no writes except through mappings that were there.
pub const SEAL_FUTURE_WRITE: u32 = 1 << 4;
/// `F_SEAL_EXEC`: the mode cannot become executable, or cease to be.
pub const SEAL_EXEC: u32 = 1 << 5;

/// The seals that can be carried over.
pub const SEALS_KNOWN: u32 =
    SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE | SEAL_EXEC;

/// The largest size of, and position in, a file.
pub const MAX_SIZE: u64 = i64::MAX.unsigned_abs();

/// The largest order of a folio that is plausible: that of the largest page x86 can map, 1 GiB.
pub const MAX_ORDER: u16 = 18;

/// Checks what both layouts have: position, size and seals.
pub(super) fn check_common(pos: u64, size: u64, seals: u32) -> Result<(), MemfdError> {
    if size > MAX_SIZE {
        return Err(MemfdError::Size { size });
    }
    if pos > MAX_SIZE {
        return Err(MemfdError::Position { pos });
    }
    if seals & !SEALS_KNOWN != 0 {
        return Err(MemfdError::Seals { seals });
    }
    Ok(())
}

/// Some pages that follow each other in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// Number of the first page.
    pub pfn: u64,
    /// How many pages.
    pub pages: u64,
}

impl Run {
    /// The number of the page behind the last, [`None`] if there can be no such run.
    pub fn end(&self) -> Option<u64> {
        self.pfn
            .checked_add(self.pages)
            .filter(|end| *end <= PFN_LIMIT)
    }
}

/// Checks that no page belongs to two runs. Sorts them to do so.
///
/// # Errors
///
/// [`Overlap`] for the lowest page that does, or that cannot exist.
pub fn check_disjoint(runs: &mut [Run]) -> Result<(), Overlap> {
    runs.sort_unstable();
    let mut free_from = 0;
    for run in runs {
        if run.pages == 0 {
            continue;
        }
        if run.pfn < free_from {
            return Err(Overlap { pfn: run.pfn });
        }
        free_from = run.end().ok_or(Overlap { pfn: run.pfn })?;
    }
    Ok(())
}

/// A page that is used twice, or that cannot exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Number of the page.
    pub pfn: u64,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x} is used twice", self.pfn)
    }
}

/// The size of a file in pages.
pub(super) const fn file_pages(size: u64) -> u64 {
    pages_for(size)
}

/// Why the description of a memfd is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemfdError {
    /// No file can have this size.
    Size {
        /// The size.
        size: u64,
    },
    /// No file can have this position.
    Position {
        /// The position.
        pos: u64,
    },
    /// There are unknown seals.
    Seals {
        /// The seals.
        seals: u32,
    },
    /// There are unknown flags.
    Flags {
        /// The flags.
        flags: u32,
    },
    /// There are more parts than the file has pages, or parts but no place of them, or the other
    /// way round.
    Count {
        /// How many parts there are.
        count: u64,
        /// How many pages they have, or are allowed.
        pages: u64,
        /// Where they are.
        at: Option<Phys>,
    },
    /// The address of the parts is not that of a page.
    Misaligned {
        /// The address.
        at: Phys,
    },
    /// The flags and the address of the list of late folios contradict each other.
    Late {
        /// The address.
        at: Option<Phys>,
    },
    /// A late folio does not fit the file, or the extents.
    LateFolio {
        /// Its index.
        index: u64,
    },
    /// The list of the folios is not usable.
    List(VmallocError),
    /// No page has this order.
    Order {
        /// The order.
        order: u32,
    },
    /// A reservation is for no pages of the file, or comes before the one before it.
    Reserved {
        /// Index of its first page.
        index: u64,
        /// How many pages it has.
        pages: u64,
    },
    /// The flags of the open file contain unknown ones, or neither reading nor writing.
    Open {
        /// The flags.
        open: u32,
    },
    /// The mode has other bits than those of permission.
    Mode {
        /// The mode.
        mode: u32,
    },
    /// There is no such owner.
    Owner {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The name has no end.
    Name,
    /// The description is not as it was written.
    Checksum,
}

impl fmt::Display for MemfdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { size } => write!(f, "memfd size {size:#x} is too large"),
            Self::Position { pos } => write!(f, "memfd position {pos:#x} is too large"),
            Self::Seals { seals } => write!(f, "memfd seals {seals:#x} are not known"),
            Self::Flags { flags } => write!(f, "memfd flags {flags:#x} are not known"),
            Self::Count {
                count,
                pages,
                at: Some(at),
            } => write!(f, "memfd: {count} parts for {pages} pages, listed at {at}"),
            Self::Count {
                count,
                pages,
                at: None,
            } => write!(f, "memfd: {count} parts for {pages} pages, but no list"),
            Self::Misaligned { at } => {
                write!(f, "memfd: address {at} of the parts is not that of a page")
            }
            Self::Late { at: Some(at) } => {
                write!(
                    f,
                    "memfd: late folios at {at}, but the flags say that there are none"
                )
            }
            Self::Late { at: None } => f.write_str("memfd: no list of late folios"),
            Self::LateFolio { index } => {
                write!(
                    f,
                    "memfd: the late folio with index {index:#x} does not fit"
                )
            }
            Self::Order { order } => write!(f, "memfd: no page has the order {order}"),
            Self::Reserved { index, pages } => write!(
                f,
                "memfd: {pages:#x} pages from {index:#x} on cannot be reserved"
            ),
            Self::List(cause) => write!(f, "memfd: {cause}"),
            Self::Open { open } => write!(f, "memfd: open flags {open:#x} are not valid"),
            Self::Mode { mode } => write!(f, "memfd mode {mode:#o} is not valid"),
            Self::Owner { uid, gid } => write!(f, "memfd owner {uid}:{gid} is not valid"),
            Self::Name => f.write_str("memfd name has no end"),
            Self::Checksum => f.write_str("memfd description: checksum does not match"),
        }
    }
}
