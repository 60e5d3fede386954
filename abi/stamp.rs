// SPDX-License-Identifier: GPL-2.0

//! A reading of the clocks that run on across a kexec, to measure how long it took.
//!
//! The root carries one, taken when the old kernel begins to go. A cycle counter measures well, but
//! nothing says that nobody stopped or set it on the way; the machine's clock of whole seconds is
//! independent of it. So an interval is only told where both agree.
//!
//! Beside it are other figures that are only shown.

use core::mem::size_of;

use zerocopy::FromBytes;

use super::{
    root::ROOT_PATH,
    tree::Tree, //
};

/// Property of the root node: the reading, as three numbers.
pub const STAMP_PROPERTY: &core::ffi::CStr = c"luo-reboot-stamp";

/// Property of the root node: how long the phases in the old kernel took, as two numbers.
pub const TIMES_PROPERTY: &core::ffi::CStr = c"luo-phase-times";

/// How many seconds two readings of the clock of seconds may be wrong by.
const SLACK: u64 = 2;

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The cycle counter.
    pub cycles: u64,
    /// How many thousand cycles a second has.
    pub khz: u64,
    /// The clock of seconds.
    pub seconds: u64,
}

impl Stamp {
    /// Reads the stamp of a root. One that cannot be read is none: nothing but a time is lost.
    pub fn from_tree(tree: &impl Tree) -> Option<Self> {
        let bytes = tree.property(ROOT_PATH, STAMP_PROPERTY)?;
        let numbers = <[[u8; size_of::<u64>()]; 3]>::read_from_bytes(bytes).ok()?;
        let [cycles, khz, seconds] = numbers.map(u64::from_ne_bytes);

        Some(Self {
            cycles,
            khz,
            seconds,
        })
    }

    /// The value of the property.
    pub fn to_bytes(self) -> [[u8; size_of::<u64>()]; 3] {
        [self.cycles, self.khz, self.seconds].map(u64::to_ne_bytes)
    }

    /// Microseconds from an earlier reading to this one; [`None`] if they cannot be told for sure.
    pub fn micros_since(self, earlier: Self) -> Option<u64> {
        // A counter that another kernel finds to run at another speed is not the same counter.
        let drift = self.khz.abs_diff(earlier.khz);
        if drift > self.khz.checked_div(128)? {
            return None;
        }
        let cycles = self.cycles.checked_sub(earlier.cycles)?;
        // Good for weeks; there is no wider division in the kernel.
        let micros = cycles.checked_mul(1000)?.checked_div(self.khz)?;

        let seconds = self.seconds.checked_sub(earlier.seconds)?;
        let counted = micros.checked_div(1_000_000)?;
        (counted.abs_diff(seconds) <= SLACK).then_some(micros)
    }
}

/// How long the phases of a live update in the old kernel took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTimes {
    /// To freeze all files.
    pub freeze: u64,
    /// To write the rest down.
    pub serialize: u64,
}

impl PhaseTimes {
    /// Reads the times of a root. Those that cannot be read are none.
    pub fn from_tree(tree: &impl Tree) -> Option<Self> {
        let bytes = tree.property(ROOT_PATH, TIMES_PROPERTY)?;
        let numbers = <[[u8; size_of::<u64>()]; 2]>::read_from_bytes(bytes).ok()?;
        let [freeze, serialize] = numbers.map(u64::from_ne_bytes);

        Some(Self { freeze, serialize })
    }

    /// The value of the property.
    pub fn to_bytes(self) -> [[u8; size_of::<u64>()]; 2] {
        [self.freeze, self.serialize].map(u64::to_ne_bytes)
    }
}
