// SPDX-License-Identifier: GPL-2.0

//! Many live updates in a row on one machine, with sets of sessions and files that grow and shrink:
//! nothing is lost, and nothing accumulates.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Part,
        Stage, //
    },
    sys, //
};
use liveupdate::Device;
use std::fs::File;

/// A part for each kernel, of 12 live updates and of 100.
pub const SHORT: [Part; 13] = [part::<13>; 13];
/// See [`SHORT`].
pub const LONG: [Part; 101] = [part::<101>; 101];

/// The update with which later ones are compared.
const SETTLED: u64 = 5;

/// By how much memory may differ from one boot to the next, in pages.
const NOISE: u64 = 256;

/// Memory as the kernel counts it when nothing is preserved, in KiB.
#[derive(Debug)]
struct Memory {
    total: u64,
    free: u64,
    slab: u64,
}

impl Memory {
    fn now() -> Outcome<Self> {
        sys::shrink_caches()?;
        Ok(Self {
            total: sys::meminfo("MemTotal")?,
            free: sys::free_memory()?,
            slab: sys::meminfo("Slab")?,
        })
    }

    fn to_text(&self) -> String {
        format!("{} {} {}", self.total, self.free, self.slab)
    }

    fn from_text(text: &[u8]) -> Outcome<Self> {
        let text = String::from_utf8_lossy(text);
        let mut numbers = text.split(' ').map(|word| word.parse::<u64>());
        let mut next = || match numbers.next() {
            Some(Ok(number)) => Ok(number),
            _ => Err(Failure::here(format_args!("no three numbers: {text}"))),
        };

        Ok(Self {
            total: next()?,
            free: next()?,
            slab: next()?,
        })
    }
}

/// How many sessions the update `n` carries.
fn sessions(n: u64) -> u64 {
    // Up and down, none included.
    [1, 4, 9, 60, 130, 40, 3, 0][n as usize % 8]
}

/// How many files its session `i` has.
fn files(n: u64, i: u64) -> u64 {
    [0, 1, 5, 70, 2][(n + i) as usize % 5]
}

/// What the file under a token has in it. A third of them is all there is of a larger file.
fn content(n: u64, i: u64, token: u64) -> Vec<u8> {
    let seed = n * 1_000_000 + i * 1000 + token;

    sys::pattern(seed, [10, 5000, 40_000][seed as usize % 3])
}

fn name(n: u64, i: u64) -> String {
    format!("endurance-{n}-{i}")
}

fn part<const PARTS: usize>(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    sys::allow_fds(10_000)?;
    // How many updates this kernel has behind it.
    let n = stage.number as u64 - 1;
    ensure_eq!(luo_guest::live_update_number()?, n);

    let mut settled = None;
    if n > 0 {
        let log = device.retrieve_session(stage.name)?;
        if n > SETTLED {
            let text = sys::content(&log.retrieve(SETTLED)?.into())?;
            settled = Some(Memory::from_text(&text)?);
        }
        log.finish()?;
        // Sometimes a part of them is left to the kernel after this one.
        let left = |n, i| n % 5 == 3 && i % 7 == 3 && stage.number < PARTS;
        check(&device, n - 1, |i| left(n - 1, i))?;
        check(&device, n, |i| !left(n, i))?;
        ensure_errno!(device.retrieve_session(&name(n, sessions(n))), ENOENT);
    }

    let memory = Memory::now()?;
    stage.note(format!("update {n}: {memory:?}"));
    if let Some(settled) = settled
        .as_ref()
        .filter(|_| n % 5 != 3 || stage.number == PARTS)
    {
        let noise = NOISE * sys::page_size()? / 1024;
        ensure!(
            memory.total + noise > settled.total && memory.free + noise > settled.free,
            "{memory:?}, but {settled:?} after update {SETTLED}"
        );
        ensure!(
            memory.slab < settled.slab + noise,
            "{memory:?}, but {settled:?} after update {SETTLED}"
        );
    }
    if stage.number == PARTS {
        return Ok(());
    }

    let next = n + 1;
    for i in 0..sessions(next) {
        let session = device.create_session(&name(next, i))?;
        for token in 0..files(next, i) {
            let file = sys::memfd_of("m", &content(next, i, token))?;
            session.preserve(&file, token)?;
        }
        stage.keep(session);
    }
    let log = device.create_session(stage.name)?;
    let settled = match n {
        SETTLED => Some(memory),
        _ => settled,
    };
    if let Some(settled) = settled {
        log.preserve(
            &sys::memfd_of("log", settled.to_text().as_bytes())?,
            SETTLED,
        )?;
    }
    stage.keep(log);
    Ok(())
}

/// Takes those sessions that the update `n` carried and `which` picks.
fn check(device: &Device, n: u64, which: impl Fn(u64) -> bool) -> Outcome {
    for i in (0..sessions(n)).filter(|i| which(*i)) {
        let session = device.retrieve_session(&name(n, i))?;
        for token in 0..files(n, i) {
            let file = File::from(session.retrieve(token)?);
            ensure!(
                sys::content(&file)? == content(n, i, token),
                "update {n}, session {i}, token {token}"
            );
        }
        ensure_errno!(session.retrieve(files(n, i)), ENOENT);
        session.finish()?;
    }
    Ok(())
}
