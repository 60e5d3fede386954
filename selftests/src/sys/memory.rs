// SPDX-License-Identifier: GPL-2.0

//! What the kernel tells about its memory, and its settings.

use crate::harness::{
    Failure,
    Outcome, //
};
use nix::unistd::{
    sysconf,
    SysconfVar, //
};
use std::{
    fs,
    ops::Range,
    thread,
    time::Duration, //
};

/// A counter of `/proc/vmstat`.
pub fn vmstat(key: &str) -> Outcome<u64> {
    fs::read_to_string("/proc/vmstat")?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| Failure::here(format_args!("/proc/vmstat has no {key}")))
}

/// How many pages of a zone the kernel can use above the low watermark, which CMA's are not; more
/// than any if there is no such zone.
pub fn zone_room(zone: &str) -> Outcome<i64> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let Some(section) = text
        .split("Node ")
        .find(|section| section.split_ascii_whitespace().nth(2) == Some(zone))
    else {
        return Ok(i64::MAX);
    };
    let number = |key: &str| -> Outcome<i64> {
        section
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix(' '))
            .find_map(|value| value.trim().parse().ok())
            .ok_or_else(|| Failure::here(format_args!("zone {zone} has no {key}")))
    };

    match number("present")? {
        0 => Ok(i64::MAX),
        _ => Ok(number("pages free")? - number("nr_free_cma")? - number("low")?),
    }
}

/// Where KHO's scratch areas are, in bytes. What is preserved cannot stay there.
pub fn kho_areas() -> Outcome<Vec<Range<u64>>> {
    let numbers = |name: &str| -> Outcome<Vec<u64>> {
        fs::read_to_string(format!("/sys/kernel/debug/kho/out/{name}"))?
            .split_ascii_whitespace()
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16))
            .collect::<Result<_, _>>()
            .map_err(Failure::here)
    };
    let areas = numbers("scratch_phys")?.into_iter();

    Ok(areas
        .zip(numbers("scratch_len")?)
        .map(|(start, len)| start..start + len)
        .collect())
}

/// How large pages are, for the kernel that runs.
pub fn page_size() -> Outcome<u64> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok());

    size.ok_or_else(|| Failure::here("the kernel does not know its page size"))
}

/// How large the huge pages are that the kernel counts as such in files of memory, in bytes.
pub fn huge_page_size() -> Outcome<usize> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")?;

    text.trim()
        .parse()
        .map_err(|e| Failure::here(format_args!("hpage_pmd_size: {text:?}: {e}")))
}

/// How much memory is free, in KiB: also what processors have set aside for their next
/// allocations.
pub fn free_memory() -> Outcome<u64> {
    let pages: u64 = fs::read_to_string("/proc/zoneinfo")?
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            line.strip_prefix("nr_free_pages")
                .or(line.strip_prefix("count:"))
        })
        .filter_map(|value| value.trim().parse::<u64>().ok())
        .sum();

    Ok(pages * (page_size()? >> 10))
}

/// Writes to half of the memory that is free, and gives it back.
pub fn write_to_half_of_memory() -> Outcome {
    let half = free_memory()? * 1024 / 2;
    let file = super::memfd("half of the memory")?;

    for at in (0..half).step_by(1 << 20) {
        super::write_at(&file, at, &[0x5a; 1 << 20])?;
    }
    Ok(())
}

/// Waits for freed memory, which comes back a moment later, and has the slab caches give back what
/// they have free, objects that KASAN holds back included.
pub fn shrink_caches() -> Outcome {
    thread::sleep(Duration::from_millis(300));
    for cache in fs::read_dir("/sys/kernel/slab")? {
        fs::write(cache?.path().join("shrink"), "1")?;
    }
    Ok(())
}

/// The value of a line of `/proc/meminfo`, in KiB.
pub fn meminfo(key: &str) -> Outcome<u64> {
    fs::read_to_string("/proc/meminfo")?
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| Failure::here(format_args!("/proc/meminfo has no {key}")))
}

/// A setting of the kernel, which is as before when this is dropped.
pub struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    /// Sets it; `name` is a path below `/proc/sys`.
    pub fn set(name: &str, value: &str) -> Outcome<Self> {
        let path = format!("/proc/sys/{name}");
        let before = fs::read_to_string(&path)?;

        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).expect("what it was can be set");
    }
}
