// SPDX-License-Identifier: GPL-2.0

//! What is handed over for one file or one FLB: 64 bits, which have a type in either kernel.

use crate::{
    kho::{
        Address,
        PhysAddr,
        Preserved,
        Unclaimed, //
    },
    prelude::*, //
};

/// A handle: what a driver hands over, and its counterpart in the next kernel.
///
/// - A [`u64`] is handed over as it is. The next kernel must not trust it, as another kernel wrote
///   it.
/// - A [`Preserved`] is memory whose ownership is handed over. In the next kernel it is an
///   [`Unclaimed`], the right to claim that memory.
/// - An [`Address`] is the same for memory that something else owns in this kernel.
pub trait Handover: Send + Sized {
    /// The handle in the next kernel.
    type Incoming;

    /// What is handed over.
    fn to_bits(&self) -> u64;

    /// The incoming handle for what the previous kernel handed over.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if no handle has these bits.
    fn from_bits(bits: u64) -> Result<Self::Incoming>;

    /// Drops an incoming handle and keeps what it stands for, so that [`Handover::from_bits`] can
    /// make the handle again.
    fn keep(incoming: Self::Incoming);
}

impl Handover for u64 {
    type Incoming = u64;

    fn to_bits(&self) -> u64 {
        *self
    }

    fn from_bits(bits: u64) -> Result<u64> {
        Ok(bits)
    }

    fn keep(_incoming: u64) {}
}

impl<T: FromBytes + IntoBytes + Send> Handover for Preserved<T> {
    type Incoming = Unclaimed<T>;

    fn to_bits(&self) -> u64 {
        self.phys().get()
    }

    fn from_bits(bits: u64) -> Result<Unclaimed<T>> {
        PhysAddr::new(bits).map(Unclaimed::new).ok_or(EINVAL)
    }

    fn keep(incoming: Unclaimed<T>) {
        incoming.into_phys();
    }
}

impl<T: FromBytes + IntoBytes> Handover for Address<T> {
    type Incoming = Unclaimed<T>;

    fn to_bits(&self) -> u64 {
        self.phys().get()
    }

    fn from_bits(bits: u64) -> Result<Unclaimed<T>> {
        PhysAddr::new(bits).map(Unclaimed::new).ok_or(EINVAL)
    }

    fn keep(incoming: Unclaimed<T>) {
        incoming.into_phys();
    }
}
