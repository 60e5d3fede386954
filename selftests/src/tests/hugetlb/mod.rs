// SPDX-License-Identifier: GPL-2.0

//! Memfds of huge pages (`MFD_HUGETLB`) across a kexec, and what the pools count.

pub mod absent;
pub mod attributes;
pub mod content;
pub mod counts;
pub mod gigantic;
pub mod late;
pub mod limits;
pub mod repeated;

use crate::{
    harness::{
        ensure_eq,
        Failure,
        Outcome, //
    },
    sys::{
        self,
        SharedWords, //
    }, //
};
use nix::sys::memfd::MFdFlags;
use std::{
    fs::{
        self,
        File, //
    },
    path::PathBuf, //
};

/// Size of the smaller huge pages.
pub const HUGE: usize = 2 << 20;

/// The pool of huge pages of a size, in all nodes or in one.
pub struct Pool(PathBuf);

/// What a pool counts, in its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub total: u64,
    pub free: u64,
    pub reserved: u64,
    pub surplus: u64,
}

impl Pool {
    /// That of pages of 2 MiB.
    pub fn small() -> Self {
        Self("/sys/kernel/mm/hugepages/hugepages-2048kB".into())
    }

    /// That of pages of 1 GiB.
    pub fn large() -> Self {
        Self("/sys/kernel/mm/hugepages/hugepages-1048576kB".into())
    }

    /// That of pages of 2 MiB in a node of memory.
    pub fn small_in_node(node: u32) -> Self {
        let nodes = "/sys/devices/system/node";
        Self(format!("{nodes}/node{node}/hugepages/hugepages-2048kB").into())
    }

    fn read(&self, name: &str) -> Outcome<u64> {
        let text = fs::read_to_string(self.0.join(name))?;

        text.trim()
            .parse()
            .map_err(|e| Failure::here(format_args!("{name}: {text:?}: {e}")))
    }

    /// Sets how many pages there are.
    pub fn resize(&self, pages: u64) -> Outcome {
        fs::write(self.0.join("nr_hugepages"), pages.to_string())?;
        ensure_eq!(self.read("nr_hugepages")?, pages);
        Ok(())
    }

    /// Sets how many more may be allocated if the pool is empty.
    pub fn overcommit(&self, pages: u64) -> Outcome {
        fs::write(self.0.join("nr_overcommit_hugepages"), pages.to_string())?;
        Ok(())
    }

    pub fn counts(&self) -> Outcome<Counts> {
        Ok(Counts {
            total: self.read("nr_hugepages")?,
            free: self.read("free_hugepages")?,
            // Nodes have no reservations.
            reserved: self.read("resv_hugepages").unwrap_or(0),
            surplus: self.read("surplus_hugepages")?,
        })
    }

    /// Fails unless the pool, and `/proc/meminfo` as well, count these.
    #[track_caller]
    pub fn expect(&self, total: u64, free: u64, reserved: u64, surplus: u64) -> Outcome {
        let expected = Counts {
            total,
            free,
            reserved,
            surplus,
        };
        let counts = self.counts()?;

        if counts != expected {
            return Err(Failure::here(format_args!(
                "{counts:?}, should be {expected:?}"
            )));
        }
        Ok(())
    }
}

/// An empty memfd of huge pages.
pub fn memfd(name: &str) -> Outcome<File> {
    sys::memfd_with(
        name,
        MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB | MFdFlags::MFD_ALLOW_SEALING,
    )
}

/// A memfd of so many huge pages, all of them holes.
pub fn memfd_of_holes(name: &str, pages: usize) -> Outcome<File> {
    let file = memfd(name)?;

    file.set_len((pages * HUGE) as u64)?;
    Ok(file)
}

/// What [`fill`] writes at the beginning of each small page.
fn word_of(seed: u64, page: usize, at: usize) -> u64 {
    ((seed << 48) | ((page as u64) << 24) | at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// Has all of some huge pages written, which are allocated by that.
pub fn fill(memory: &mut SharedWords, seed: u64, pages: &[usize]) {
    for page in pages {
        for at in (0..HUGE).step_by(sys::PAGE) {
            memory.write(page * HUGE + at, word_of(seed, *page, at));
        }
    }
}

/// Fails unless a file has in these huge pages what [`fill`] wrote, and zeros elsewhere. Nothing is
/// allocated by that.
pub fn check(file: &File, seed: u64, pages: &[usize]) -> Outcome {
    let content = sys::content(file)?;

    for (page, bytes) in content.chunks(HUGE).enumerate() {
        for (at, small) in bytes.chunks(sys::PAGE).enumerate() {
            let at = at * sys::PAGE;
            let expected = match pages.contains(&page) {
                true => word_of(seed, page, at),
                false => 0,
            };
            let word = u64::from_ne_bytes(small[..8].try_into().expect("eight bytes"));
            ensure_eq!(word, expected, "huge page {page}, byte {at:#x}");
            if small[8..].iter().any(|byte| *byte != 0) {
                return Err(Failure::here(format_args!(
                    "huge page {page}, byte {at:#x}: not zero"
                )));
            }
        }
    }
    Ok(())
}

/// Fails unless the kernel log has a line.
#[track_caller]
pub fn log_has(line: &str) -> Outcome {
    let log = luo_guest::kernel_log(0)?;

    match log.iter().any(|record| record.text == line) {
        true => Ok(()),
        false => Err(Failure::here(format_args!("the log has no line {line:?}"))),
    }
}
