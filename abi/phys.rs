// SPDX-License-Identifier: GPL-2.0

//! Physical addresses as they stand in the handover.
//!
//! Nothing here dereferences one: that is for the implementor of [`Memory`](super::chain::Memory).

use core::{
    fmt,
    num::NonZeroU64, //
};

/// Number of bits of an address that lie inside a page.
pub const PAGE_SHIFT: u32 = if cfg!(CONFIG_PAGE_SIZE_64KB) {
    16
} else if cfg!(CONFIG_PAGE_SIZE_16KB) {
    14
} else {
    12
};

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Number of bits of a page frame number.
pub const PFN_BITS: u32 = u64::BITS - PAGE_SHIFT;

/// The first number that is no page frame number.
pub const PFN_LIMIT: u64 = 1 << PFN_BITS;

/// A physical address other than 0.
///
/// The handover writes 0 for "none", which is [`None`] here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phys(NonZeroU64);

impl Phys {
    /// The address `addr`, [`None`] if that is 0.
    pub const fn new(addr: u64) -> Option<Self> {
        match NonZeroU64::new(addr) {
            Some(addr) => Some(Self(addr)),
            None => None,
        }
    }

    /// The address of the first byte of a page, [`None`] if the page is page 0 or cannot exist.
    pub const fn from_pfn(pfn: u64) -> Option<Self> {
        if pfn >= PFN_LIMIT {
            return None;
        }
        Self::new(pfn << PAGE_SHIFT)
    }

    /// The address as a number; never 0.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The number of the page that holds the address.
    pub const fn pfn(self) -> u64 {
        self.get() >> PAGE_SHIFT
    }

    /// Whether this is the address of the first byte of a page.
    pub const fn page_aligned(self) -> bool {
        self.get() % PAGE_SIZE == 0
    }

    /// The number to write for an optional address.
    pub const fn raw(addr: Option<Self>) -> u64 {
        match addr {
            Some(addr) => addr.get(),
            None => 0,
        }
    }
}

impl fmt::Debug for Phys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

impl fmt::Display for Phys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

/// How many pages `bytes` bytes take.
pub const fn pages_for(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}
