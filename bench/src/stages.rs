// SPDX-License-Identifier: GPL-2.0

//! The steps of a live update, before the kexec and after it.

use crate::{
    clock,
    load::{
        Load,
        PAGE, //
    }, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device, //
};
use luo_guest::{
    initramfs::Archive,
    Port, //
};
use nix::sys::{
    memfd::{
        memfd_create,
        MFdFlags, //
    },
    resource::{
        setrlimit,
        Resource, //
    },
};
use std::{
    error::Error,
    fmt::Display,
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Write, //
    },
    os::{
        fd::AsFd,
        unix::fs::FileExt, //
    },
    path::Path,
    thread,
    time::Duration, //
};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// How many there are, nearly, when it is measured what one more takes.
const GROWTH: [usize; 4] = [0, 100, 1_000, 10_000];

/// How many operations one such measurement takes, the last ones before: the median of them counts.
const WINDOW: usize = 21;

/// Where figures go.
struct Report<'a>(&'a mut Port);

impl Report<'_> {
    fn say(&mut self, name: impl Display, value: u64) -> io::Result<()> {
        writeln!(self.0, "{name} {value}")
    }

    /// What one operation after the other has taken: all together, and each after so many others.
    fn series(&mut self, name: &str, costs: &[u64]) -> io::Result<()> {
        self.say(name, costs.iter().sum())?;
        for before in GROWTH {
            let first = before.saturating_sub(WINDOW);
            let Some(window) = costs.get(first..first + WINDOW) else {
                break;
            };
            let mut window = window.to_vec();
            window.sort_unstable();
            self.say(format_args!("{name}@{before}"), window[WINDOW / 2])?;
        }
        Ok(())
    }
}

/// Does one boot's share of the work; `start` is when the program began.
pub fn run(start: u64, report: &mut Port) -> Result {
    let cmdline = CommandLine::read()?;
    let load = Load::of(&cmdline)?;
    let mut report = Report(report);

    setrlimit(Resource::RLIMIT_NOFILE, 1 << 20, 1 << 20)?;
    match cmdline.get("bench.stage") {
        None => before(&load, cmdline, &mut report),
        Some(_) => after(&load, start, &mut report),
    }
}

/// Up to the kexec.
fn before(load: &Load, mut cmdline: CommandLine, report: &mut Report<'_>) -> Result {
    let names = load.names();
    let (files, _decoy) = load.make()?;
    let mut sessions = Vec::with_capacity(names.len());
    let mut costs = Vec::with_capacity(names.len().max(files.len()));
    let device = Device::open()?;
    let (free, slab) = (free_memory()?, slab_memory()?);
    let moved = moved_pages()?;

    for name in &names {
        let (cost, session) = clock::time(|| device.create_session(name));
        sessions.push(session?);
        costs.push(cost);
    }
    report.series("create", &costs)?;

    costs.clear();
    for (number, file) in files.iter().enumerate() {
        let session = &sessions[number / load.files];
        let (cost, result) = clock::time(|| session.preserve(file, number as u64));
        result?;
        costs.push(cost);
    }
    report.series("preserve", &costs)?;
    report.say("moved", moved_pages()?.saturating_sub(moved))?;
    let taken = free.saturating_sub(free_memory()?);
    report.say("memory", taken)?;
    // What crosses is in pages of its own, what this kernel alone remembers is in its slabs.
    let small = slab_memory()?.saturating_sub(slab);
    report.say("metadata", taken.saturating_sub(small))?;

    for file in &files {
        load.fill_late(file)?;
    }

    if cmdline.get("bench.undo").is_some() {
        let (cost, ()) = clock::time(|| drop(sessions));
        report.say("undo", cost)?;
        let (cost, ()) = clock::time(|| drop(files));
        report.say("free", cost)?;
        return Ok(());
    }

    cmdline.set("bench.stage", "2");
    let kernel = File::open("/boot/kernel")?;
    let initrd = pack()?;
    let (cost, loaded) =
        clock::time(|| kexec::load(kernel.as_fd(), Some(initrd.as_fd()), cmdline.as_str()));
    loaded?;
    report.say("load", cost)?;

    clock::mark()?;
    clock::wait_for_round(|then| report.say("reboot", then))?;
    Err(kexec::jump().into())
}

/// From the first process of the new kernel on.
fn after(load: &Load, start: u64, report: &mut Report<'_>) -> Result {
    let names = load.names();
    let mut sessions = Vec::with_capacity(names.len());
    let mut files = Vec::with_capacity(names.len() * load.files);
    let mut found = Vec::with_capacity(names.len());
    let mut made = Vec::with_capacity(files.capacity());
    let mut byte = [0];
    let waited = clock::wait_for_tick()?;

    if !names.is_empty() {
        let device = Device::open()?;
        for name in &names {
            let (cost, session) = clock::time(|| device.retrieve_session(name));
            sessions.push(session?);
            found.push(cost);
        }
    }
    for number in 0..files.capacity() {
        let session = &sessions[number / load.files];
        let (cost, file) = clock::time(|| session.retrieve(number as u64));
        files.push(File::from(file?));
        made.push(cost);
    }
    let retrieved = clock::now();
    for file in &files {
        file.read_exact_at(&mut byte, 0)?;
    }
    let end = clock::now();

    report.say("start", start)?;
    report.say("waited", waited)?;
    report.say("retrieved", retrieved)?;
    report.say("end", end)?;
    report.series("find", &found)?;
    report.series("retrieve", &made)?;

    let (cost, result) = clock::time(|| files.iter().try_for_each(|file| load.read(file)));
    result?;
    report.say("read", cost)?;

    let (cost, result) = clock::time(|| sessions.iter().try_for_each(|session| session.finish()));
    result?;
    report.say("finish", cost)?;
    drop(sessions);

    let (cost, ()) = clock::time(|| drop(files));
    report.say("free", cost)?;
    clock::mark()?;
    Ok(())
}

/// Packs what the next kernel needs: this program.
fn pack() -> Result<File> {
    let out = memfd_create("initramfs", MFdFlags::MFD_CLOEXEC)?;
    let mut archive = Archive::new(File::from(out));

    archive.directory("dev")?;
    archive.device("dev/console", 0o600, (5, 1))?;
    for name in ["proc", "sys"] {
        archive.directory(name)?;
    }
    archive.copy(Path::new("/init"))?;
    Ok(archive.finish()?)
}

/// How much memory is free, in bytes: also what processors have set aside for their next
/// allocations.
fn free_memory() -> io::Result<u64> {
    // What was freed comes back a moment later, slab caches keep what they have free, and processors
    // what they count.
    thread::sleep(Duration::from_millis(500));
    for cache in fs::read_dir("/sys/kernel/slab")? {
        fs::write(cache?.path().join("shrink"), "1")?;
    }
    fs::read("/proc/sys/vm/stat_refresh")?;
    let pages: u64 = fs::read_to_string("/proc/zoneinfo")?
        .lines()
        .map(str::trim)
        .filter_map(|line| {
            line.strip_prefix("nr_free_pages")
                .or(line.strip_prefix("count:"))
        })
        .filter_map(|value| value.trim().parse::<u64>().ok())
        .sum();

    Ok(pages * PAGE as u64)
}

/// How much memory the kernel's small objects take, in bytes.
fn slab_memory() -> io::Result<u64> {
    let kib: u64 = fs::read_to_string("/proc/meminfo")?
        .lines()
        .filter_map(|line| line.strip_prefix("Slab:"))
        .filter_map(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .sum();

    Ok(kib << 10)
}

/// How many pages were moved since boot, in all.
fn moved_pages() -> io::Result<u64> {
    let pages = fs::read_to_string("/proc/vmstat")?
        .lines()
        .filter_map(|line| line.strip_prefix("pgmigrate_success "))
        .filter_map(|value| value.parse::<u64>().ok())
        .sum();

    Ok(pages)
}
