// SPDX-License-Identifier: GPL-2.0

//! Clocks that run on across a kexec.

use crate::bindings;

/// A reading of clocks that go on counting while one kernel follows another: a fast one, and a
/// coarse one that knows nothing of it, by which the fast one can be verified.
#[derive(Copy, Clone, Debug)]
pub struct Clocks {
    /// Cycles of the processor's counter.
    pub cycles: u64,
    /// How many thousand cycles a second has.
    pub khz: u64,
    /// Seconds, by the machine's own clock.
    pub seconds: u64,
}

impl Clocks {
    /// Reads the clocks; [`None`] if this machine does not have both, or its counter is known to be
    /// unsteady.
    ///
    /// May take some milliseconds, for the coarse clock.
    pub fn read() -> Option<Self> {
        let mut cycles = 0;
        let mut khz = 0;
        let mut seconds = 0;

        // SAFETY: The helper writes through its arguments, which are ours, and has no other
        // requirements.
        if !unsafe { bindings::kho_read_clocks(&mut cycles, &mut khz, &mut seconds) } {
            return None;
        }
        Some(Self {
            cycles,
            khz,
            seconds,
        })
    }
}
