// SPDX-License-Identifier: GPL-2.0

//! A kernel without `CONFIG_LIVEUPDATE_HUGETLB`: no file is one of huge pages, and none can be made.
//!
//! Its pools, if it has any, count nothing that was handed over.

use super::{
    HugeMemfd,
    NewHugeMemfd,
    Reserved, //
};
use crate::{
    fs::File,
    kho::{
        PhysAddr,
        RestoredPages, //
    },
    memfd::{
        MemoryFile,
        NewFile, //
    },
    prelude::*,
    shmem::{
        Journal,
        PinnedExtent, //
    },
    sync::aref::ARef, //
};
use core::{
    convert::Infallible,
    marker::PhantomData,
    ops::Deref, //
};

impl HugeMemfd {
    /// No file is one.
    pub fn from_file(_file: &File) -> Option<&Self> {
        None
    }
}

/// A file of huge pages that does not change. There is none.
pub struct FrozenFile<J: Journal> {
    never: Infallible,
    _journal: PhantomData<J>,
}

impl<J: Journal> FrozenFile<J> {
    /// Fails with [`EOPNOTSUPP`].
    pub fn new(_file: &HugeMemfd) -> Result<Self> {
        Err(EOPNOTSUPP)
    }

    /// Cannot be called, as all that follow.
    pub fn start(&mut self, _journal: J) -> Result {
        match self.never {}
    }

    /// See [`FrozenFile::start`].
    pub fn stop(&mut self) {
        match self.never {}
    }

    /// See [`FrozenFile::start`].
    pub fn order(&self) -> u32 {
        match self.never {}
    }

    /// See [`FrozenFile::start`].
    pub fn populated_pages(&self) -> u64 {
        match self.never {}
    }

    /// See [`FrozenFile::start`].
    pub fn has_poison(&self) -> bool {
        match self.never {}
    }

    /// See [`FrozenFile::start`].
    pub fn pin_others(&self, _known: &[PinnedExtent]) -> Result<KVVec<PinnedExtent>> {
        match self.never {}
    }

    /// See [`FrozenFile::start`].
    pub fn reserved(&self, _visit: impl FnMut(Reserved) -> Result) -> Result {
        match self.never {}
    }
}

impl<J: Journal> Deref for FrozenFile<J> {
    type Target = MemoryFile;

    fn deref(&self) -> &MemoryFile {
        match self.never {}
    }
}

impl NewFile<HugeMemfd> {
    /// Fails with [`ENODEV`]: this kernel has no such pages.
    pub fn new(_name: &CStr, _order: u32) -> Result<Self> {
        Err(ENODEV)
    }

    /// Fails with [`ENODEV`].
    pub fn reserve(&mut self, _pages: Reserved) -> Result {
        Err(ENODEV)
    }

    /// Fails with [`ENODEV`].
    pub fn fill(self, _folios: usize, _charge: bool) -> Result<HugeFilling> {
        Err(ENODEV)
    }
}

/// A [`NewHugeMemfd`] that pages are put into. There is none.
pub struct HugeFilling {
    never: Infallible,
    _file: NewHugeMemfd,
}

impl HugeFilling {
    /// Cannot be called, as what follows.
    pub fn insert(&mut self, _at: PhysAddr, _index: u64) -> Result {
        match self.never {}
    }

    /// See [`HugeFilling::insert`].
    pub fn into_file(self) -> ARef<File> {
        match self.never {}
    }
}

/// There is nothing to announce: no pool is to become smaller.
pub fn expect(_order: u32, _at: PhysAddr, _folios: u64) -> bool {
    true
}

/// Claims the preserved folio of `order` at `at` and frees it: it goes to the page allocator.
///
/// # Errors
///
/// [`ENOENT`] or [`EMSGSIZE`] if no folio of that order is preserved at `at`.
pub fn discard(at: PhysAddr, order: u32) -> Result {
    RestoredPages::claim(at, 1 << order).map(drop)
}
