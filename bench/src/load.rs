// SPDX-License-Identifier: GPL-2.0

//! What is taken across the kexec: sessions, in each of them files, in each of these pages.

use liveupdate::cmdline::CommandLine;
use nix::sys::{
    memfd::{
        memfd_create,
        MFdFlags, //
    },
    mman::{
        mmap,
        MapFlags,
        ProtFlags, //
    }, //
};
use std::{
    ffi::c_void,
    fs::{
        self,
        File, //
    },
    io,
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    ptr::NonNull, //
};

/// Size of a page.
pub const PAGE: usize = 4096;

/// How many pages a huge page has, and where the pool of these is.
const HUGE: u64 = 512;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// How many pages are read or written at once.
const CHUNK: u64 = 256;

/// How the pages of a file come into being.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// One after the other.
    Order,
    /// In random order.
    Random,
    /// In turn with those of a file that stays behind, so that no two are neighbours in memory.
    Fragmented,
    /// There are only the first and the last one.
    Holes,
    /// The same, and the file is mapped for writing.
    Mapped,
    /// One after the other, when the file is preserved already.
    Late,
    /// One after the other, through a mapping: the file is one of huge pages (HugeTLB).
    Hugetlb,
}

/// A load.
pub struct Load {
    /// How many sessions.
    pub sessions: usize,
    /// How many files each of them has.
    pub files: usize,
    /// How many pages each of those has.
    pub pages: u64,
    /// How these are made.
    pub fill: Fill,
}

impl Load {
    /// The load that the kernel's command line asks for.
    pub fn of(cmdline: &CommandLine) -> Result<Self, String> {
        let number = |key| {
            let text = cmdline.get(key).unwrap_or("0");
            text.parse::<u32>()
                .map_err(|_| format!("{key} is no number"))
        };

        Ok(Self {
            sessions: number("bench.sessions")? as usize,
            files: number("bench.files")? as usize,
            pages: number("bench.pages")?.into(),
            fill: match cmdline.get("bench.fill") {
                None | Some("order") => Fill::Order,
                Some("random") => Fill::Random,
                Some("fragmented") => Fill::Fragmented,
                Some("holes") => Fill::Holes,
                Some("mapped") => Fill::Mapped,
                Some("late") => Fill::Late,
                Some("hugetlb") => Fill::Hugetlb,
                Some(other) => return Err(format!("nobody knows how to fill '{other}'")),
            },
        })
    }

    /// The names of the sessions.
    pub fn names(&self) -> Vec<String> {
        (0..self.sessions).map(|n| format!("session-{n}")).collect()
    }

    /// Makes all files, in the order in which they are to be preserved, and what stays behind.
    pub fn make(&self) -> io::Result<(Vec<File>, File)> {
        let decoy = new_file(MFdFlags::empty())?;
        let mut files = Vec::new();
        let count = self.sessions * self.files;
        let mut flags = MFdFlags::empty();

        if self.fill == Fill::Hugetlb {
            let pages = count as u64 * self.pages / HUGE;
            fs::write(POOL, pages.to_string())?;
            flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        for _ in 0..count {
            let file = new_file(flags)?;
            self.fill(&file, &decoy)?;
            files.push(file);
        }
        Ok((files, decoy))
    }

    /// Fills a file that is preserved, if it is not filled yet.
    pub fn fill_late(&self, file: &File) -> io::Result<()> {
        match self.fill {
            Fill::Late => self.fill_in_order(file),
            _ => Ok(()),
        }
    }

    fn fill_in_order(&self, file: &File) -> io::Result<()> {
        for first in (0..self.pages).step_by(CHUNK as usize) {
            write(file, first, CHUNK.min(self.pages - first))?;
        }
        Ok(())
    }

    fn fill(&self, file: &File, decoy: &File) -> io::Result<()> {
        file.set_len(self.pages * PAGE as u64)?;

        match self.fill {
            Fill::Order => self.fill_in_order(file)?,
            Fill::Late => {}
            Fill::Random => {
                for index in shuffled(self.pages) {
                    write(file, index, 1)?;
                }
            }
            Fill::Fragmented => {
                for index in 0..self.pages {
                    write(file, index, 1)?;
                    write(decoy, index, 1)?;
                }
            }
            Fill::Holes => {
                write(file, 0, 1)?;
                write(file, self.pages - 1, 1)?;
            }
            Fill::Mapped => {
                write(file, 0, 1)?;
                write(file, self.pages - 1, 1)?;
                map(file, self.pages * PAGE as u64)?;
            }
            Fill::Hugetlb => {
                let memory = map(file, self.pages * PAGE as u64)?.cast::<[u8; PAGE]>();
                for index in 0..self.pages {
                    // SAFETY: The mapping has that many pages, and nobody else uses it.
                    unsafe { memory.add(index as usize).cast().write(stamp(index)) };
                }
            }
        }
        Ok(())
    }

    /// Reads all of a file.
    ///
    /// # Errors
    ///
    /// If a page is not what it was.
    pub fn read(&self, file: &File) -> Result<(), String> {
        let mut buffer = vec![0; CHUNK as usize * PAGE];

        for first in (0..self.pages).step_by(CHUNK as usize) {
            let len = CHUNK.min(self.pages - first) as usize * PAGE;
            let buffer = &mut buffer[..len];

            file.read_exact_at(buffer, first * PAGE as u64)
                .map_err(|err| err.to_string())?;
            for (index, page) in (first..).zip(buffer.chunks_exact(PAGE)) {
                if page[..8] != self.stamp(index) {
                    return Err(format!("page {index} is not what it was"));
                }
            }
        }
        Ok(())
    }

    /// What a page begins with.
    fn stamp(&self, index: u64) -> [u8; 8] {
        match self.fill {
            Fill::Holes | Fill::Mapped if index != 0 && index != self.pages - 1 => [0; 8],
            _ => stamp(index),
        }
    }
}

fn stamp(index: u64) -> [u8; 8] {
    (index + 1).to_le_bytes()
}

fn new_file(flags: MFdFlags) -> io::Result<File> {
    Ok(memfd_create("bench", flags | MFdFlags::MFD_CLOEXEC)?.into())
}

/// Maps a file for writing, until the process ends.
fn map(file: &File, size: u64) -> io::Result<NonNull<c_void>> {
    let size = usize::try_from(size)
        .ok()
        .and_then(NonZeroUsize::new)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let (prot, flags) = (
        ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        MapFlags::MAP_SHARED,
    );

    // SAFETY: The kernel chooses where, so nothing that is used is replaced.
    Ok(unsafe { mmap(None, size, prot, flags, file, 0) }?)
}

/// Writes some pages, each of which begins with a stamp.
fn write(file: &File, first: u64, count: u64) -> io::Result<()> {
    let mut buffer = vec![0; count as usize * PAGE];

    for (index, page) in (first..).zip(buffer.chunks_exact_mut(PAGE)) {
        page[..8].copy_from_slice(&stamp(index));
    }
    file.write_all_at(&buffer, first * PAGE as u64)
}

/// The numbers below `count` in an order that looks random and is always the same.
fn shuffled(count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;

    for last in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(last, (state % (last as u64 + 1)) as usize);
    }
    numbers
}
