// SPDX-License-Identifier: GPL-2.0

//! The clock: the processor's own counter, which runs on across a kexec.

use nix::time::{
    clock_gettime,
    ClockId, //
};
use std::{
    fs::OpenOptions,
    io::{
        self,
        Write, //
    },
};

/// What the counter says.
pub fn now() -> u64 {
    // SAFETY: Reading the counter has no effect on anything, and every x86-64 has one.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Runs a step and says what it took.
pub fn time<T>(step: impl FnOnce() -> T) -> (u64, T) {
    let begin = now();
    let result = step();

    (now() - begin, result)
}

/// Leaves a message on the console which says what the counter is, so that the times at which the
/// kernel says things can be told in it.
pub fn mark() -> io::Result<()> {
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;

    log.write_all(format!("<5>bench: clock {}", now()).as_bytes())
}

/// Waits for a round value of the counter, and returns it: so whatever depends on the time of day,
/// such as timers, is the same for all loads.
pub fn wait_for_round(announce: impl FnOnce(u64) -> io::Result<()>) -> io::Result<u64> {
    // Many ticks of the timer.
    const ROUND: u64 = 100_000_000;
    const MARGIN: u64 = 20_000_000;

    let then = (now() + MARGIN).next_multiple_of(ROUND);
    announce(then)?;
    while now() < then {}
    Ok(then)
}

/// Waits for the timer's next tick, and says how long. What is short and follows has no other tick
/// in it, as it else would have with some kernels and not with others, nor the work that was left for
/// a tick, such as printing.
pub fn wait_for_tick() -> nix::Result<u64> {
    let ticks = || clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    let (begin, before) = (now(), ticks()?);

    while ticks()? == before {}
    Ok(now() - begin)
}
