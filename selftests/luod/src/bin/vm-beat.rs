// SPDX-License-Identifier: GPL-2.0

//! The only program of a small virtual machine that lives through updates of its host
//! (`scripts/lib/vm_tests.py`).
//!
//! As the first process it fills memory with numbers that follow from each other, and then says ten times a
//! second, or as often as it is told, on the console:
//!
//! ```text
//! beat N UPTIME BOOT_ID CHECKS
//! ```
//!
//! `N` counts up and `CHECKS` is how often all memory was found as it should be. Anything else is a line
//! that begins with `wrong`, after which there are no more. With each beat it writes to a page that it
//! has never touched before. Its environment, which is the kernel's command line, says more:
//!
//! | variable | what |
//! |---|---|
//! | `BEAT_EVERY` | milliseconds between beats |
//! | `BEAT_MEMORY` | MiB of memory that are filled and checked |
//! | `BEAT_FILL` | MiB of memory of which each page is written once |
//! | `BEAT_LOAD` | MiB of memory that a thread writes all the time, and checks |
//! | `BEAT_DISK` | if set, /dev/vda is written and read back, past all caches |

use nix::{
    libc::O_DIRECT,
    mount::{
        mount,
        MsFlags, //
    },
    unistd::Pid,
};
use std::{
    env,
    fs::{
        self,
        File,
        OpenOptions, //
    },
    os::unix::fs::{
        FileExt,
        OpenOptionsExt, //
    },
    process,
    str::FromStr,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
    thread,
    time::Duration, //
};

/// Numbers in a page, and pages in a MiB.
const NUMBERS: usize = 512;
const PAGES: usize = 256;

/// What the thread that writes all the time has done.
static PASSES: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page([u64; NUMBERS]);

fn main() {
    if Pid::this().as_raw() == 1 {
        let none: Option<&str> = None;
        for (kind, path) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
            if let Err(err) = mount(Some(kind), path, Some(kind), MsFlags::empty(), none) {
                wrong(&format!("{path} cannot be mounted: {err}"));
            }
        }
    }
    let boot = read("/proc/sys/kernel/random/boot_id");
    let memory = Memory::new(number("BEAT_MEMORY").unwrap_or(8));
    let _filled: Vec<Page> = (1..=number("BEAT_FILL").unwrap_or(0) * PAGES)
        .map(|page| Page([page as u64; NUMBERS]))
        .collect();
    if let Some(size) = number("BEAT_LOAD") {
        thread::spawn(move || write_all_the_time(size));
    }
    let every = Duration::from_millis(number("BEAT_EVERY").unwrap_or(100));
    let mut disk = env::var_os("BEAT_DISK").map(|_| Disk::new());
    // A page that is zero takes no memory until it is written.
    let mut fresh = vec![0_u8; 64 * PAGES * 4096];
    let mut checks = 0;

    for beat in 1_u64.. {
        let page = usize::try_from(beat).map_or(0, |beat| beat % (64 * PAGES));
        fresh[page * 4096..][..8].copy_from_slice(&beat.to_le_bytes());
        if beat % 10 == 0 {
            memory.check();
            for page in 1..=page {
                if fresh[page * 4096..][..8] == [0; 8] {
                    wrong(&format!("fresh page {page} is empty again"));
                }
            }
            if let Some(disk) = &mut disk {
                disk.check(beat / 10);
            }
            checks += 1;
        }
        let uptime = read("/proc/uptime");
        let uptime = uptime.split(' ').next().unwrap_or_default();
        println!(
            "beat {beat} {uptime} {boot} {checks} {}",
            PASSES.load(Ordering::Relaxed)
        );
        thread::sleep(every);
    }
}

/// Says what is wrong, and stops.
fn wrong(what: &str) -> ! {
    println!("wrong {what}");
    if Pid::this().as_raw() != 1 {
        process::exit(1);
    }
    // The first process must not end.
    loop {
        thread::park();
    }
}

fn read(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(err) => wrong(&format!("{path} cannot be read: {err}")),
    }
}

fn number<T: FromStr>(variable: &str) -> Option<T> {
    env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// The number that follows another one (xorshift).
fn next(mut number: u64) -> u64 {
    number ^= number << 13;
    number ^= number >> 7;
    number ^ (number << 17)
}

/// Memory with numbers that follow from each other.
struct Memory(Vec<Page>);

impl Memory {
    fn new(size: usize) -> Self {
        let mut number = 1;
        let mut pages = vec![Page([0; NUMBERS]); size * PAGES];
        for page in &mut pages {
            for place in &mut page.0 {
                number = next(number);
                *place = number;
            }
        }
        Self(pages)
    }

    fn check(&self) {
        let mut number = 1;
        for (at, page) in self.0.iter().enumerate() {
            for place in &page.0 {
                number = next(number);
                if *place != number {
                    wrong(&format!("page {at} has {place:#x}, not {number:#x}"));
                }
            }
        }
    }
}

/// Writes all of some memory, again and again, and looks whether what it wrote last is there.
fn write_all_the_time(size: usize) {
    let mut pages = vec![Page([0; NUMBERS]); size * PAGES];
    for pass in 1_u64.. {
        for (at, page) in pages.iter_mut().enumerate() {
            if page.0 != [pass - 1; NUMBERS] {
                wrong(&format!("page {at} was lost in pass {pass}"));
            }
            page.0 = [pass; NUMBERS];
        }
        PASSES.store(pass, Ordering::Relaxed);
    }
}

/// A disk of which each block says when it was written.
struct Disk {
    file: File,
    written: Vec<u64>,
}

/// How many blocks of it are used.
const BLOCKS: usize = 64;

impl Disk {
    fn new() -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_DIRECT)
            .open("/dev/vda");
        match file {
            Ok(file) => Self {
                file,
                written: vec![0; BLOCKS],
            },
            Err(err) => wrong(&format!("/dev/vda cannot be opened: {err}")),
        }
    }

    /// Writes the next block, and reads another one.
    fn check(&mut self, round: u64) {
        let place = |block: usize| block as u64 * 4096;
        let block = usize::try_from(round).map_or(0, |round| round % BLOCKS);
        let page = Page([round; NUMBERS]);
        let mut buffer = Aligned([0; 4096]);
        for (place, number) in buffer.0.chunks_mut(8).zip(page.0) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        if let Err(err) = self.file.write_all_at(&buffer.0, place(block)) {
            wrong(&format!("block {block} cannot be written: {err}"));
        }
        self.written[block] = round;

        let other = (block + BLOCKS / 2) % BLOCKS;
        if self.written[other] == 0 {
            return;
        }
        if let Err(err) = self.file.read_exact_at(&mut buffer.0, place(other)) {
            wrong(&format!("block {other} cannot be read: {err}"));
        }
        let wanted = self.written[other].to_le_bytes();
        if buffer.0.chunks(8).any(|number| number != wanted) {
            wrong(&format!("block {other} is not as it was written"));
        }
    }
}

/// What O_DIRECT reads into.
#[repr(align(4096))]
struct Aligned([u8; 4096]);
