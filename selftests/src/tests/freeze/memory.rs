// SPDX-License-Identifier: GPL-2.0

//! Memory that is frozen: new pages are written, and read from drivers, until the processors stop.

use super::{
    for_a_moment, //
    hold_up,
    hold_up_from,
    hold_up_writers,
    release_after,
    was_held_up,
    writers_went_on,
    OWN,
};
use crate::{
    agent::Notes,
    harness::{
        ensure,
        ensure_eq,
        Outcome,
        Stage, //
    },
    module,
    sys::{
        self,
        Postcopy,
        SharedWords,
        PAGE, //
    },
    tests::{
        driver::Driver,
        sample, //
    }, //
};
use liveupdate::Device;
use nix::{
    errno::Errno,
    libc, //
};
use std::{
    fs::{
        File,
        OpenOptions, //
    },
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
    thread,
    time::Duration, //
};

/// How many pages a sparse file has here. No more of them are touched than there is memory.
const PAGES: usize = 1 << 14;

/// A sparse file, preserved in a session of its own, and mapped.
fn sparse(device: &Device, stage: &mut Stage, name: &str) -> Outcome<(File, SharedWords)> {
    let session = device.create_session(name)?;
    let file = sys::memfd(name)?;

    file.set_len((PAGES * PAGE) as u64)?;
    sys::write_at(&file, 0, &[1])?;
    session.preserve(&file, 1)?;
    stage.keep(session);
    let mapping = SharedWords::of(&file, PAGES * PAGE)?;
    Ok((file, mapping))
}

/// Does something with each page behind the first, while nobody waits for it for long, and notes in
/// `done` how many it was done with.
fn page_by_page(
    notes: &Notes,
    done: usize,
    mut f: impl FnMut(usize) -> nix::Result<()>,
) -> Outcome {
    for page in 1..PAGES / 4 {
        f(page)?;
        notes.word(done).store(page as u64, Ordering::Release);
        thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// What a page is given that is written when its file is frozen.
fn marker(page: usize) -> u64 {
    (page as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// Checks that the first pages of such a file have what they were given, and nothing else.
fn check_markers(device: &Device, name: &str, done: u64) -> Outcome {
    let session = device.retrieve_session(name)?;
    let file = File::from(session.retrieve(1)?);
    let mut bytes = [0; PAGE];
    let mut lost = Vec::new();

    for page in 1..=done as usize {
        let mut expected = [0; PAGE];
        expected[..8].copy_from_slice(&marker(page).to_ne_bytes());
        file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
        if bytes != expected {
            lost.push(page);
        }
    }
    ensure!(
        lost.is_empty(),
        "{name}: {} of {done} pages are lost, the first is {}",
        lost.len(),
        lost[0]
    );
    Ok(session.finish()?)
}

/// The ways by which pages come into the holes of a file that is frozen: the name of a session, and
/// what writes a page.
const WAYS: [&str; 6] = [
    "freeze-store",
    "freeze-write",
    "freeze-read",
    "freeze-pinned",
    "freeze-populate",
    "freeze-copied",
];

/// Writes a page in one of the ways.
fn write_page(
    way: usize,
    file: &File,
    mapping: &SharedWords,
    zero: &File,
    page: usize,
) -> nix::Result<()> {
    let at = page * PAGE;
    let bytes = marker(page).to_ne_bytes();
    let all = |done: usize, len: usize| match done == len {
        true => Ok(()),
        false => Err(Errno::EFAULT),
    };

    match WAYS[way] {
        "freeze-write" => file
            .write_all_at(&bytes, at as u64)
            .map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(0))),
        // The page comes as the kernel copies into it.
        "freeze-read" => {
            all(mapping.read_from(at, PAGE, zero)?, PAGE)?;
            mapping.word(at).store(marker(page), Ordering::Release);
            Ok(())
        }
        "freeze-pinned" => all(mapping.write_pinned(at, &bytes)?, bytes.len()),
        "freeze-populate" => {
            mapping.advise(at, PAGE, libc::MADV_POPULATE_WRITE)?;
            mapping.word(at).store(marker(page), Ordering::Release);
            Ok(())
        }
        _ => {
            mapping.word(at).store(marker(page), Ordering::Release);
            Ok(())
        }
    }
}

/// Processes that go on writing to new pages of files that are frozen, each in its way, up to the
/// moment at which the processors stop. None waits, and what each has written it has written.
///
/// At bd974ac all waited for the kexec, but `UFFDIO_COPY`, whose pages were lost.
pub fn touch_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let zero = File::open("/dev/zero")?;

    for (way, name) in WAYS.iter().enumerate() {
        let (file, mapping) = sparse(&device, stage, name)?;
        notes.child(|| {
            let postcopy = match *name {
                "freeze-copied" => Some(Postcopy::of(&mapping)?),
                _ => None,
            };
            driver.await_gate()?;
            page_by_page(&notes, OWN + way, |page| match &postcopy {
                Some(postcopy) => {
                    let mut bytes = [0; PAGE];
                    bytes[..8].copy_from_slice(&marker(page).to_ne_bytes());
                    postcopy.copy(&mapping, page * PAGE, &bytes)
                }
                None => write_page(way, &file, &mapping, &zero, page),
            })
        })?;
    }
    hold_up_writers(&device, &driver, &notes, stage, WAYS.len())
}

/// See [`touch_before`].
pub fn touch_after(stage: &mut Stage) -> Outcome {
    writers_went_on(stage, &WAYS, check_markers)
}

/// As [`touch_before`], when the new pages are huge ones.
pub fn touch_huge_before(stage: &mut Stage) -> Outcome {
    const HUGE: usize = 512;

    std::fs::write(
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "advise",
    )?;
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let (_, mapping) = sparse(&device, stage, "freeze-huge")?;
    mapping.advise(0, PAGES * PAGE, libc::MADV_HUGEPAGE)?;
    notes.child(|| {
        driver.await_gate()?;
        for number in 1..PAGES / HUGE {
            let page = number * HUGE;
            mapping
                .word(page * PAGE)
                .store(marker(page), Ordering::Release);
            notes.word(OWN).store(number as u64, Ordering::Release);
            thread::sleep(Duration::from_millis(25));
        }
        Ok(())
    })?;
    hold_up(&device, &driver, &notes, stage, || {
        for_a_moment();
        let done = notes.word(OWN).load(Ordering::Acquire);
        notes.word(OWN + 1).store(done, Ordering::Relaxed);
        let huge = sys::meminfo("ShmemHugePages")?;
        notes.word(OWN + 2).store(huge, Ordering::Relaxed);
        Ok(())
    })
}

/// See [`touch_huge_before`].
pub fn touch_huge_after(stage: &mut Stage) -> Outcome {
    const HUGE: usize = 512;

    let device = Device::open()?;
    let notes = was_held_up(&device, stage)?;
    let (done, during, huge) = (notes[OWN] as usize, notes[OWN + 1], notes[OWN + 2]);
    stage.note(format!(
        "{during} huge pages, then {done}; {huge} KiB were huge"
    ));
    ensure!(during > 0, "it waited for the kexec");
    let session = device.retrieve_session("freeze-huge")?;
    let file = File::from(session.retrieve(1)?);
    let mut bytes = vec![0; HUGE * PAGE];
    for page in (1..=done).map(|number| number * HUGE) {
        file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
        let (word, rest) = bytes.split_at(8);
        ensure_eq!(word, marker(page).to_ne_bytes(), "page {page} is lost");
        ensure!(rest.iter().all(|&byte| byte == 0), "behind page {page}");
    }
    Ok(session.finish()?)
}

/// A write to a preserved file from a hole of another one, when the one with the hole is frozen and
/// the other is about to be. (So does a virtual machine monitor that saves memory of a guest.)
///
/// At bd974ac `reboot(2)` hung each time.
pub fn write_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let (_, holes) = sparse(&device, stage, "freeze-holes")?;

    hold_up_from(&device, &driver, stage)?;
    let (file, _) = sparse(&device, stage, "freeze-written")?;
    notes.child(|| {
        driver.await_gate()?;
        page_by_page(&notes, OWN, |page| {
            let at = page * PAGE;
            holes.write_to(at, PAGE, &file, at as u64)?;
            file.write_all_at(&marker(page).to_ne_bytes(), at as u64)
                .map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(0)))
        })
    })?;
    release_after(&driver, &notes, || {
        for_a_moment();
        Ok(())
    })
}

/// See [`write_before`].
pub fn write_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = was_held_up(&device, stage)?;

    ensure!(notes[OWN] > 0, "no write came to its end");
    check_markers(&device, "freeze-written", notes[OWN])?;
    let session = device.retrieve_session("freeze-holes")?;
    let file = File::from(session.retrieve(1)?);
    let mut first = [0; 2 * PAGE];
    file.read_exact_at(&mut first, 0)?;
    ensure_eq!(first[0], 1);
    ensure!(first[1..].iter().all(|&byte| byte == 0));
    Ok(session.finish()?)
}

/// A read from a file of a driver into a hole, when the memory is frozen and the driver's file is
/// about to be: the driver may have a lock that it needs for both.
///
/// At bd974ac `reboot(2)` hung each time, with the sample driver.
pub fn driver_before(stage: &mut Stage) -> Outcome {
    sample::load_rust()?;
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let (_, holes) = sparse(&device, stage, "freeze-holes")?;

    hold_up_from(&device, &driver, stage)?;
    let session = device.create_session("freeze-pad")?;
    let pad = sample::pad(b"text")?;
    session.preserve(&pad, 1)?;
    stage.keep(session);
    notes.child(|| {
        driver.await_gate()?;
        page_by_page(&notes, OWN, |page| {
            match holes.read_from_at(page * PAGE, PAGE, &pad, 0)? {
                4 => Ok(()),
                _ => Err(Errno::EIO),
            }
        })
    })?;
    release_after(&driver, &notes, || {
        for_a_moment();
        Ok(())
    })
}

/// See [`driver_before`].
pub fn driver_after(stage: &mut Stage) -> Outcome {
    sample::load_rust()?;
    let device = Device::open()?;
    let notes = was_held_up(&device, stage)?;
    let session = device.retrieve_session("freeze-holes")?;
    let file = File::from(session.retrieve(1)?);

    ensure!(notes[OWN] > 0, "no read came to its end");
    let mut bytes = [0; 8];
    for page in 1..=notes[OWN] {
        file.read_exact_at(&mut bytes, page * PAGE as u64)?;
        ensure_eq!(bytes, *b"text\0\0\0\0", "page {page}");
    }
    session.finish()?;
    let session = device.retrieve_session("freeze-pad")?;
    ensure_eq!(sample::text(&session.retrieve(1)?.into())?, b"text");
    Ok(session.finish()?)
}

/// The same with a driver that takes its lock on the way down, when there is no way back any more, as
/// the shutdown of every device does.
///
/// At bd974ac the machine hung, half shut down, each time.
pub fn shutdown_before(stage: &mut Stage) -> Outcome {
    module::load("luo_test_linger", "milliseconds=1000")?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let (_, holes) = sparse(&device, stage, "freeze-holes")?;
    let linger = OpenOptions::new().read(true).open("/dev/luo-test-linger")?;

    notes.child(|| {
        page_by_page(&notes, OWN, |page| {
            match holes.read_from(page * PAGE, PAGE, &linger)? {
                PAGE => Ok(()),
                _ => Err(Errno::EIO),
            }
        })
    })?;
    Ok(())
}

/// See [`shutdown_before`].
pub fn shutdown_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = Notes::read(&device, stage)?;
    let session = device.retrieve_session("freeze-holes")?;
    let file = File::from(session.retrieve(1)?);

    stage.note(format!("{} pages", notes[OWN]));
    ensure!(notes[OWN] > 0);
    let mut bytes = [0; PAGE];
    for page in 1..=notes[OWN] {
        file.read_exact_at(&mut bytes, page * PAGE as u64)?;
        ensure!(bytes == [0x5a; PAGE], "page {page} is lost");
    }
    Ok(session.finish()?)
}
