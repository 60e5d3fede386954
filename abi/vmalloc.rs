// SPDX-License-Identifier: GPL-2.0

//! KHO's description of a virtually contiguous area.
//!
//! Where an area is described, 16 bytes say where the list of its pages begins; the list is a chain
//! of pages:
//!
//! ```text
//!  descriptor                              list
//!     0  u64  first page of the list          0  u64       next page of the list, or 0
//!     8  u32  number of pages                 8  u64[511]  addresses of runs of 2^order pages,
//!    12  u16  flags                                        ended by 0 if there are fewer
//!    14  u16  order
//! ```
//!
//! The last page of the list may be empty: the C implementation adds a page as soon as one is full.
//! The list and the runs are all preserved, each run as one range of pages.

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
        Full, //
    },
    chain::Memory,
    phys::{
        pages_for,
        Phys, //
    },
    BLOCK_SIZE, //
};

/// The area was allocated, not mapped: it is to be freed with the mapping.
pub const FLAG_ALLOC: u16 = 1 << 0;

/// The area may be mapped by huge pages.
pub const FLAG_HUGE: u16 = 1 << 1;

/// All flags that are known.
const FLAGS: u16 = FLAG_ALLOC | FLAG_HUGE;

/// The largest order that is plausible: that of the largest page x86 can map, 1 GiB.
const MAX_ORDER: u16 = 18;

/// The descriptor of an area.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Vmalloc {
    first: u64,
    total_pages: u32,
    flags: u16,
    order: u16,
}

/// An area whose descriptor was validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First page of the list.
    pub first: Phys,
    /// Number of pages of the area.
    pub pages: u32,
    /// [`FLAG_ALLOC`], [`FLAG_HUGE`].
    pub flags: u16,
    /// Each address in the list is that of `1 << order` pages.
    pub order: u16,
}

impl Vmalloc {
    /// The descriptor of `area`.
    pub fn new(area: &Area) -> Self {
        Self {
            first: area.first.get(),
            total_pages: area.pages,
            flags: area.flags,
            order: area.order,
        }
    }

    /// Whether all of it is 0, as where no area is described.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Validates the descriptor of an area of at least `bytes` bytes, and not a page more.
    ///
    /// # Errors
    ///
    /// Any [`VmallocError`] except those about the list.
    pub fn parse(&self, bytes: u64) -> Result<Area, VmallocError> {
        let first = Phys::new(self.first).ok_or(VmallocError::NoList)?;
        if !first.page_aligned() {
            return Err(VmallocError::Misaligned { at: first });
        }
        if self.flags & !FLAGS != 0 {
            return Err(VmallocError::Flags { flags: self.flags });
        }
        let run = run_pages(self.order).ok_or(VmallocError::Order { order: self.order })?;
        let expected = pages_for(bytes)
            .checked_next_multiple_of(run)
            .unwrap_or(u64::MAX);
        if u64::from(self.total_pages) != expected {
            return Err(VmallocError::Pages {
                pages: self.total_pages,
                expected,
            });
        }
        Ok(Area {
            first,
            pages: self.total_pages,
            flags: self.flags,
            order: self.order,
        })
    }
}

/// How many pages a run of `order` has, [`None`] if the order is not plausible.
fn run_pages(order: u16) -> Option<u64> {
    if order > MAX_ORDER {
        return None;
    }
    1_u64.checked_shl(order.into())
}

/// How many addresses a page of the list holds.
pub const CHUNK_CAPACITY: usize = BLOCK_SIZE / size_of::<u64>() - 1;

/// A page of the list.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Chunk {
    next: u64,
    pages: [u64; CHUNK_CAPACITY],
}

impl Chunk {
    /// Sees a page as one of a list.
    pub fn of(page: &Block) -> Option<&Self> {
        Self::ref_from_bytes(page.as_bytes()).ok()
    }

    /// Sees a page as one of a list that can be changed.
    pub fn of_mut(page: &mut Block) -> Option<&mut Self> {
        Self::mut_from_bytes(page.as_mut_bytes()).ok()
    }

    /// Empties the page.
    pub fn clear(&mut self) {
        self.zero();
    }

    /// The address of the next page of the list as it stands there.
    pub const fn next(&self) -> Option<Phys> {
        Phys::new(self.next)
    }

    /// Sets the address of the next page of the list.
    pub fn set_next(&mut self, next: Option<Phys>) {
        self.next = Phys::raw(next);
    }

    /// The addresses up to the end or the first 0, as they stand there.
    pub fn runs(&self) -> impl Iterator<Item = Phys> + '_ {
        self.pages.iter().map_while(|raw| Phys::new(*raw))
    }

    /// Appends an address.
    ///
    /// # Errors
    ///
    /// [`Full`] if no place is left.
    pub fn push(&mut self, at: Phys) -> Result<(), Full> {
        let slot = self.pages.iter_mut().find(|raw| **raw == 0).ok_or(Full)?;
        *slot = at.get();
        Ok(())
    }
}

/// Visits the runs of pages of an area, in order.
///
/// The visitor gets the address of each run of `1 << area.order` pages.
///
/// # Errors
///
/// The first thing that is wrong with the list, or what `mem` or the visitor returned. It has seen
/// all runs before.
pub fn walk<M: Memory>(
    mem: &M,
    area: &Area,
    mut visit: impl FnMut(Phys) -> Result<(), M::Error>,
) -> Result<(), ListError<M::Error>> {
    let run = run_pages(area.order)
        .ok_or(ListError::Format(VmallocError::Order { order: area.order }))?;
    let expected = u64::from(area.pages);
    let mut pages = 0_u64;
    let mut next = Some(area.first);
    while let Some(at) = next {
        if !at.page_aligned() {
            return Err(ListError::Format(VmallocError::Misaligned { at }));
        }
        let page = mem
            .page(at)
            .map_err(|cause| ListError::Memory { at, cause })?;
        let chunk = Chunk::of(&page).ok_or(ListError::Format(VmallocError::NoList))?;
        let before = pages;
        for at in chunk.runs() {
            if !at.page_aligned() || at.pfn() & run.wrapping_sub(1) != 0 {
                return Err(ListError::Format(VmallocError::Misaligned { at }));
            }
            pages = pages.saturating_add(run);
            if pages > expected {
                return Err(ListError::Format(VmallocError::TooMany {
                    pages: area.pages,
                }));
            }
            visit(at).map_err(|cause| ListError::Memory { at, cause })?;
        }
        next = chunk.next();
        // Only the last page of the list may be empty, so that the list ends if the area does.
        if pages == before && next.is_some() {
            return Err(ListError::Format(VmallocError::EmptyChunk { at }));
        }
    }
    if pages == expected {
        Ok(())
    } else {
        Err(ListError::Format(VmallocError::TooFew {
            found: pages,
            pages: area.pages,
        }))
    }
}

/// Why an area is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmallocError {
    /// There is no list of pages.
    NoList,
    /// An address is not that of a page, or of a run of pages of the order.
    Misaligned {
        /// The address.
        at: Phys,
    },
    /// There are unknown flags.
    Flags {
        /// The flags.
        flags: u16,
    },
    /// The order is not plausible.
    Order {
        /// The order.
        order: u16,
    },
    /// The number of pages does not fit to what is in them.
    Pages {
        /// The number of pages.
        pages: u32,
        /// The number that would fit.
        expected: u64,
    },
    /// A page of the list is empty and not the last.
    EmptyChunk {
        /// Its address.
        at: Phys,
    },
    /// The list has more pages than the descriptor says.
    TooMany {
        /// The number in the descriptor.
        pages: u32,
    },
    /// The list has fewer pages than the descriptor says.
    TooFew {
        /// How many it has.
        found: u64,
        /// The number in the descriptor.
        pages: u32,
    },
}

impl fmt::Display for VmallocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoList => f.write_str("vmalloc area without pages"),
            Self::Misaligned { at } => write!(f, "vmalloc address {at} is not aligned"),
            Self::Flags { flags } => write!(f, "vmalloc flags {flags:#x} are not known"),
            Self::Order { order } => write!(f, "vmalloc order {order} is too large"),
            Self::Pages { pages, expected } => {
                write!(
                    f,
                    "vmalloc area of {pages} pages where {expected} are needed"
                )
            }
            Self::EmptyChunk { at } => write!(f, "vmalloc list is empty at {at} but goes on"),
            Self::TooMany { pages } => write!(f, "vmalloc list is longer than {pages} pages"),
            Self::TooFew { found, pages } => {
                write!(f, "vmalloc list has {found} of {pages} pages")
            }
        }
    }
}

/// Why the list of an area could not be walked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError<E> {
    /// The list contradicts itself or its descriptor.
    Format(VmallocError),
    /// There is no such preserved page, or it was met before, or the visitor gave up.
    Memory {
        /// The address of the page.
        at: Phys,
        /// Why.
        cause: E,
    },
}

impl<E: fmt::Debug> fmt::Display for ListError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(cause) => cause.fmt(f),
            Self::Memory { at, cause } => write!(f, "vmalloc page at {at}: {cause:?}"),
        }
    }
}

impl<E: fmt::Debug> core::error::Error for ListError<E> {}
