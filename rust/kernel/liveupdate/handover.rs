// SPDX-License-Identifier: GPL-2.0

//! What crosses the kexec for one file or one FLB: 64 bits, with a type on either side.

use crate::{
    kho::{
        Address,
        PhysAddr,
        Preserved,
        Unclaimed, //
    },
    prelude::*, //
};

/// What a driver can hand over, and what it is in the next kernel.
///
/// - A [`u64`] is itself: the whole state, if that is a number. Input from outside, in the next
///   kernel; check it.
/// - A [`Preserved`] is memory whose ownership crosses; it arrives as the right to claim it.
/// - An [`Address`] is the same for memory that something else owns in this kernel.
pub trait Handover: Send + Sized {
    /// What it is in the next kernel.
    type Arrived;

    /// What crosses.
    fn to_bits(&self) -> u64;

    /// What arrived.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if no such bits can have been handed over.
    fn arrive(bits: u64) -> Result<Self::Arrived>;

    /// Leaves what arrived as it is, so that it can [arrive](Handover::arrive) again.
    fn leave(arrived: Self::Arrived);
}

impl Handover for u64 {
    type Arrived = u64;

    fn to_bits(&self) -> u64 {
        *self
    }

    fn arrive(bits: u64) -> Result<u64> {
        Ok(bits)
    }

    fn leave(_arrived: u64) {}
}

impl<T: FromBytes + IntoBytes + Send> Handover for Preserved<T> {
    type Arrived = Unclaimed<T>;

    fn to_bits(&self) -> u64 {
        self.phys().get()
    }

    fn arrive(bits: u64) -> Result<Unclaimed<T>> {
        PhysAddr::new(bits).map(Unclaimed::new).ok_or(EINVAL)
    }

    fn leave(arrived: Unclaimed<T>) {
        arrived.leave();
    }
}

impl<T: FromBytes + IntoBytes> Handover for Address<T> {
    type Arrived = Unclaimed<T>;

    fn to_bits(&self) -> u64 {
        self.phys().get()
    }

    fn arrive(bits: u64) -> Result<Unclaimed<T>> {
        PhysAddr::new(bits).map(Unclaimed::new).ok_or(EINVAL)
    }

    fn leave(arrived: Unclaimed<T>) {
        arrived.leave();
    }
}
