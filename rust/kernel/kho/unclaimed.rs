// SPDX-License-Identifier: GPL-2.0

//! Typed addresses that cross a kexec: what the old kernel hands over ([`Address`]), and what the
//! new one makes of it ([`Unclaimed`]). And blocks that cross another one unclaimed ([`HandedOn`]).

use super::{
    copy_of,
    preserved_order,
    PhysAddr,
    Preservation,
    Preserved,
    Restored, //
};
use crate::{
    page::PAGE_SHIFT,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop, //
};

/// Where the next kernel finds a `T`.
///
/// For memory that goes on being owned, and changed, by something else than what is handed over.
pub struct Address<T: FromBytes + IntoBytes> {
    phys: PhysAddr,
    _type: PhantomData<fn() -> T>,
}

impl<T: FromBytes + IntoBytes> Address<T> {
    pub(super) fn of(memory: &Preserved<T>) -> Self {
        Self {
            phys: memory.phys(),
            _type: PhantomData,
        }
    }

    /// The address without its type.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }
}

/// The right to claim memory in which the previous kernel left a `T`.
///
/// What the memory holds can be looked at without claiming it, so that nothing is lost if what is
/// to be made of it cannot be made now. Dropping the right claims the memory and frees it.
///
/// It is a right as far as this kernel knows: whether the memory is there is found out when it is
/// used.
pub struct Unclaimed<T: FromBytes + IntoBytes> {
    phys: PhysAddr,
    _type: PhantomData<fn() -> T>,
}

impl<T: FromBytes + IntoBytes> Unclaimed<T> {
    /// The right to claim what was handed over as `phys`.
    pub fn new(phys: PhysAddr) -> Self {
        Self {
            phys,
            _type: PhantomData,
        }
    }

    /// Where the memory is.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// A copy of what the memory holds. Nothing is known about it but that it is a valid `T`, as
    /// any bytes are.
    ///
    /// # Errors
    ///
    /// As those of [`copy_of`].
    pub fn copy(&self) -> Result<KBox<T>> {
        copy_of(self.phys)
    }

    /// Claims the memory.
    ///
    /// # Errors
    ///
    /// As those of [`Restored::claim`].
    pub fn claim(self) -> Result<Restored<T>> {
        Restored::claim(self.into_phys())
    }

    /// Gives up the right to claim the memory, which stays preserved, and returns its address.
    pub fn into_phys(self) -> PhysAddr {
        ManuallyDrop::new(self).phys
    }
}

impl<T: FromBytes + IntoBytes> Drop for Unclaimed<T> {
    fn drop(&mut self) {
        // If it is not there, there is nothing to free.
        drop(Restored::<T>::claim(self.phys));
    }
}

/// A preserved block of the previous kernel that nobody has claimed, and that the next kernel will
/// find as this one did. Nobody must claim it meanwhile. Dropping this ends that.
pub struct HandedOn {
    _preserved: Preservation,
}

impl HandedOn {
    /// Hands on the block at `phys`.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `phys` is not the start of a page.
    /// - [`ENOENT`] if no preserved block starts there, or somebody has claimed it.
    /// - [`ENOMEM`], and [`EADDRNOTAVAIL`] if the next kernel will not have that memory.
    ///
    /// C counterpart: `kho_preserve_pages()`.
    pub fn new(phys: PhysAddr) -> Result<Self> {
        let pages = 1_usize << preserved_order(phys)?;
        let pfn = usize::try_from(phys.get())? >> PAGE_SHIFT;

        // As one block again: it has their number, and is aligned to it.
        Ok(Self {
            _preserved: Preservation::new(pfn, pages, 0)?,
        })
    }
}
