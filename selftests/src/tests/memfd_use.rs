// SPDX-License-Identifier: GPL-2.0

//! What is done to memfds by those who use them, while they are being preserved and afterwards: advice,
//! huge pages, devices and rings that hold pages, swap.

use crate::{
    agent::Agent,
    harness::{
        ensure,
        ensure_eq,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        SharedWords,
        PAGE, //
    },
    tests::{
        limits::Group,
        memfd::start_swapping_on, //
    }, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        FallocateFlags, //
    },
    libc, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    os::unix::fs::OpenOptionsExt,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread, //
};

/// How many pages the files here have.
const PAGES: usize = (8 << 20) / PAGE;

/// A word of each page of a file.
fn word(seed: u64, page: usize) -> u64 {
    ((seed << 32) | page as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// Gives each page of a mapping its word.
fn fill(mapping: &SharedWords, seed: u64) {
    for page in 0..PAGES {
        mapping
            .word(page * PAGE)
            .store(word(seed, page), Ordering::Relaxed);
    }
}

/// Fails unless each page of a file has its word, but for those without any.
fn check(file: &File, seed: u64, holes: impl Fn(usize) -> bool) -> Outcome {
    let mapping = SharedWords::of(file, PAGES * PAGE)?;

    for page in 0..PAGES {
        let found = mapping.word(page * PAGE).load(Ordering::Relaxed);
        let expected = if holes(page) { 0 } else { word(seed, page) };
        ensure_eq!(found, expected, "file {seed}, page {page}");
    }
    Ok(())
}

/// A file for these tests, and a mapping of it.
fn memory(name: &str) -> Outcome<(File, SharedWords)> {
    let file = sys::memfd(name)?;

    file.set_len((PAGES * PAGE) as u64)?;
    let mapping = SharedWords::of(&file, PAGES * PAGE)?;
    Ok((file, mapping))
}

/// Advice about memory that is preserved, and mappings that move: none of it changes what is handed
/// over.
pub fn advised_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let (file, mapping) = memory("advised")?;
    let len = PAGES * PAGE;

    fill(&mapping, 0);
    session.preserve(&file, 1)?;
    for advice in [
        libc::MADV_DONTNEED,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_RANDOM,
        libc::MADV_WILLNEED,
        libc::MADV_DONTFORK,
    ] {
        mapping.advise(0, len, advice)?;
    }
    // Not for memory of a file that must not lose its pages.
    ensure_eq!(mapping.advise(0, len, libc::MADV_REMOVE), Err(Errno::EPERM));
    let mapping = mapping.moved()?;
    fill(&mapping, 1);
    stage.keep(session);
    Ok(())
}

/// See [`advised_before`].
pub fn advised_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    check(&session.retrieve(1)?.into(), 1, |_| false)?;
    Ok(session.finish()?)
}

/// Pages that the kernel makes one huge page of, or is asked to, before the file is preserved and
/// after that; and huge pages that were split.
pub fn collapsed_before(stage: &mut Stage) -> Outcome {
    const COLLAPSE: i32 = 25;

    let session = Device::open()?.create_session(stage.name)?;
    let len = PAGES * PAGE;
    let (late, late_mapping) = memory("collapsed late")?;
    fill(&late_mapping, 1);
    session.preserve(&late, 1)?;
    // The kernel may collapse it, or refuse.
    let collapsed = late_mapping.advise(0, len, COLLAPSE);
    stage.note(format!("when it is preserved: {collapsed:?}"));
    let _ = late_mapping.advise(0, len, libc::MADV_HUGEPAGE);

    let (early, early_mapping) = memory("collapsed early")?;
    fill(&early_mapping, 2);
    let collapsed = early_mapping.advise(0, len, COLLAPSE);
    stage.note(format!("before that: {collapsed:?}"));
    session.preserve(&early, 2)?;

    let (split, split_mapping) = memory("split")?;
    fill(&split_mapping, 3);
    let _ = split_mapping.advise(0, len, COLLAPSE);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for page in (0..PAGES).filter(|page| is_hole(*page)) {
        fallocate(&split, punch, (page * PAGE) as i64, PAGE as i64)?;
    }
    session.preserve(&split, 3)?;
    stage.keep(session);
    Ok(())
}

fn is_hole(page: usize) -> bool {
    page % 700 == 5
}

/// See [`collapsed_before`].
pub fn collapsed_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    check(&session.retrieve(1)?.into(), 1, |_| false)?;
    check(&session.retrieve(2)?.into(), 2, |_| false)?;
    check(&session.retrieve(3)?.into(), 3, is_hole)?;
    Ok(session.finish()?)
}

/// Pages that are in use while they are to be moved: a device reads into them, a ring has them
/// registered, pipes hold them. Each file lies apart in memory, so that moving it is worth while.
pub fn used_before(stage: &mut Stage) -> Outcome {
    const DISK: u64 = 7;

    let session = Device::open()?.create_session(stage.name)?;
    // The disk has the words of a file of its own.
    let disk = OpenOptions::new().write(true).open("/dev/ram0")?;
    for page in 0..PAGES {
        let mut bytes = [0; PAGE];
        bytes[..8].copy_from_slice(&word(DISK, page).to_ne_bytes());
        sys::write_at(&disk, (page * PAGE) as u64, &bytes)?;
    }
    disk.sync_all()?;

    let files = [
        memory("read into")?,
        memory("registered")?,
        memory("spliced")?,
    ];
    let decoys = [memory("decoy")?, memory("decoy")?, memory("decoy")?];
    for page in 0..PAGES {
        for (seed, (_, mapping)) in (0..).zip(files.iter().chain(&decoys)) {
            mapping
                .word(page * PAGE)
                .store(word(seed, page), Ordering::Relaxed);
        }
    }
    let ring = sys::Ring::with_buffer(&files[1].1, 0, 64 * PAGE)?;

    let done = AtomicBool::new(false);
    let [into, registered, spliced] = &files.map(|(file, _)| file);
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Outcome<usize> {
            let mapping = SharedWords::of(into, PAGES * PAGE)?;
            let disk = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open("/dev/ram0")?;
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                for page in (0..PAGES).step_by(16) {
                    let at = page * PAGE;
                    let read = mapping.read_from_at(at, 16 * PAGE, &disk, at as u64)?;
                    ensure_eq!(read, 16 * PAGE);
                }
                rounds += 1;
            }
            Ok(rounds)
        });
        let splicer = scope.spawn(|| -> Outcome {
            let mapping = SharedWords::of(spliced, PAGES * PAGE)?;
            let (reader, writer) = nix::unistd::pipe()?;
            let mut page = 0;
            while !done.load(Ordering::Relaxed) {
                sys::splice_page(&mapping, page * PAGE, &writer)?;
                let mut bytes = [0; PAGE];
                nix::unistd::read(&reader, &mut bytes)?;
                ensure_eq!(bytes[..8], word(2, page).to_ne_bytes());
                page = (page + 1) % PAGES;
            }
            Ok(())
        });
        let mut result = Ok(());
        for (token, file) in (0..).zip([into, registered, spliced]) {
            result = result.and(session.preserve(file, token).map_err(Failure::from));
        }
        done.store(true, Ordering::Relaxed);
        let join = |_| Failure::here("a thread panicked");
        let rounds = reader.join().map_err(join)??;
        splicer.join().map_err(join)??;
        stage.note(format!("the disk was read {rounds} times"));
        result
    })?;
    drop(ring);
    check(registered, 1, |_| false)?;
    check(spliced, 2, |_| false)?;
    stage.keep(session);
    Ok(())
}

/// See [`used_before`].
pub fn used_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    // What the disk had, as far as it had been read; all of it, once.
    let file = File::from(session.retrieve(0)?);
    let mapping = SharedWords::of(&file, PAGES * PAGE)?;
    for page in 0..PAGES {
        let found = mapping.word(page * PAGE).load(Ordering::Relaxed);
        ensure!(
            [word(0, page), word(7, page)].contains(&found),
            "page {page}"
        );
    }
    check(&session.retrieve(1)?.into(), 1, |_| false)?;
    check(&session.retrieve(2)?.into(), 2, |_| false)?;
    Ok(session.finish()?)
}

/// Memory of a limited group, a part of it in compressed swap.
pub fn compressed_before(stage: &mut Stage) -> Outcome {
    fs::write("/sys/block/zram0/disksize", "128M")?;
    start_swapping_on("/dev/zram0")?;
    let group = Group::new("compressed")?;
    group.set("memory.max", 48 << 20)?;
    let session = Device::open()?.create_session(stage.name)?;

    Agent::start(|| {
        group.enter()?;
        for token in 0..4 {
            let (file, mapping) = memory("compressed")?;
            fill(&mapping, token);
            mapping.advise(0, PAGES * PAGE, libc::MADV_PAGEOUT)?;
            session.preserve(&file, token)?;
        }
        Ok(())
    })?
    .join()?;
    let out = sys::vmstat("pswpout")?;
    stage.note(format!("{out} pages went to swap"));
    ensure!(out as usize > PAGES);
    stage.keep(session);
    Ok(())
}

/// See [`compressed_before`].
pub fn compressed_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for token in 0..4 {
        check(&session.retrieve(token)?.into(), token, |_| false)?;
    }
    Ok(session.finish()?)
}
