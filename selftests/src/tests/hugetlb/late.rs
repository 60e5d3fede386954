// SPDX-License-Identifier: GPL-2.0

//! Huge pages that are inserted into holes after their file was preserved, and after it was frozen.

use super::{
    check,
    fill,
    memfd_of_holes,
    Pool,
    HUGE, //
};
use crate::{
    agent::Notes,
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Outcome,
        Stage, //
    },
    sys::{
        Postcopy,
        SharedWords,
        PAGE, //
    },
    tests::{
        driver::{
            Driver,
            Event,
            Kind, //
        },
        freeze::{
            hold_up_writers,
            writers_went_on,
            OWN, //
        },
        subsystem::next_kernel_is_loaded, //
    }, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::errno::Errno;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
    thread,
    time::Duration, //
};

/// How many pages each file has. Each process comes to the last one only if the kexec takes long.
const PAGES: usize = 20;

/// The ways by which pages come into holes: the name of a session, and what inserts a page.
const WAYS: [&str; 4] = ["huge-store", "huge-read", "huge-pinned", "huge-copied"];

/// What the first word of a page is set to.
fn marker(page: usize) -> u64 {
    (page as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// Pages that come between the preservation and the freeze, next to others and apart from them.
pub fn preserved_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let file = memfd_of_holes("late", 9)?;

    Pool::small().resize(9)?;
    stage.next_boot("hugepages=9");
    let mut memory = SharedWords::of(&file, 9 * HUGE)?;
    fill(&mut memory, 1, &[1, 5]);
    session.preserve(&file, 1)?;
    fill(&mut memory, 1, &[0, 3, 6]);
    stage.keep(session);
    Ok(())
}

/// See [`preserved_before`].
pub fn preserved_after(stage: &mut Stage) -> Outcome {
    let pool = Pool::small();
    let session = Device::open()?.retrieve_session(stage.name)?;

    pool.expect(9, 4, 0, 0)?;
    let file: File = session.retrieve(1)?.into();
    pool.expect(9, 4, 4, 0)?;
    check(&file, 1, &[0, 1, 3, 5, 6])?;
    Ok(session.finish()?)
}

/// Has a page inserted in one of the ways.
fn insert(way: &str, memory: &SharedWords, zero: &File, page: usize) -> nix::Result<()> {
    let at = page * HUGE;
    let bytes = marker(page).to_ne_bytes();
    let all = |done: usize, len: usize| match done == len {
        true => Ok(()),
        false => Err(Errno::EFAULT),
    };

    match way {
        // The page comes as the kernel copies into it.
        "huge-read" => all(memory.read_from(at, PAGE, zero)?, PAGE)?,
        "huge-pinned" => return all(memory.write_pinned(at, &bytes)?, bytes.len()),
        _ => {}
    }
    memory.word(at).store(marker(page), Ordering::Release);
    Ok(())
}

/// Processes that go on touching holes of files that are frozen, each in its way, up to the moment at
/// which the processors stop. None waits, and what each has written it has written.
pub fn frozen_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let zero = File::open("/dev/zero")?;

    let all = WAYS.len() * PAGES;
    Pool::small().resize(all as u64)?;
    stage.next_boot(format!("hugepages={all}"));
    for (way, name) in WAYS.iter().enumerate() {
        let session = device.create_session(name)?;
        let file = memfd_of_holes(name, PAGES)?;
        let mut memory = SharedWords::of(&file, PAGES * HUGE)?;
        memory.write(0, marker(0));
        session.preserve(&file, 1)?;
        stage.keep(session);

        notes.child(|| {
            let postcopy = match *name {
                "huge-copied" => Some(Postcopy::of(&memory)?),
                _ => None,
            };
            driver.await_gate()?;
            for page in 1..PAGES {
                match &postcopy {
                    Some(postcopy) => {
                        let mut bytes = vec![0; HUGE];
                        bytes[..8].copy_from_slice(&marker(page).to_ne_bytes());
                        postcopy.copy(&memory, page * HUGE, &bytes)?;
                    }
                    None => insert(name, &memory, &zero, page)?,
                }
                notes.word(OWN + way).store(page as u64, Ordering::Release);
                thread::sleep(Duration::from_millis(60));
            }
            Ok(())
        })?;
    }
    hold_up_writers(&device, &driver, &notes, stage, WAYS.len())
}

/// See [`frozen_before`].
pub fn frozen_after(stage: &mut Stage) -> Outcome {
    writers_went_on(stage, &WAYS, check_markers)
}

/// Checks that the first pages of a file have what they were given, and nothing else. The one behind
/// them may have been inserted, and written or not.
fn check_markers(device: &Device, name: &str, done: u64) -> Outcome {
    let session = device.retrieve_session(name)?;
    let file = File::from(session.retrieve(1)?);
    let mut bytes = vec![0; HUGE];

    for page in 0..PAGES {
        file.read_exact_at(&mut bytes, (page * HUGE) as u64)?;
        let (word, rest) = bytes.split_at(8);
        let word = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        match page.cmp(&(done as usize + 1)) {
            std::cmp::Ordering::Less => ensure_eq!(word, marker(page), "{name}, page {page}"),
            std::cmp::Ordering::Equal => ensure!(word == 0 || word == marker(page)),
            std::cmp::Ordering::Greater => ensure_eq!(word, 0, "{name}, page {page}"),
        }
        ensure!(
            rest.iter().all(|&byte| byte == 0),
            "{name}, behind page {page}"
        );
    }
    Ok(session.finish()?)
}

/// The kexec is called off when holes were filled, and comes later.
pub fn called_off_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let pool = Pool::small();
    let session = device.create_session(stage.name)?;
    let file = memfd_of_holes("late", 6)?;

    pool.resize(6)?;
    stage.next_boot("hugepages=6");
    let mut memory = SharedWords::of(&file, 6 * HUGE)?;
    fill(&mut memory, 1, &[1]);
    session.preserve(&file, 1)?;
    fill(&mut memory, 1, &[2]);

    // The file is frozen before that of the driver, which refuses twice.
    let refusing = device.create_session("refusing")?;
    refusing.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    next_kernel_is_loaded()?;
    for filled in [0, 4] {
        driver.fail(Event::Freeze, 1, Errno::EDOM)?;
        ensure_eq!(kexec::jump().errno(), Errno::EDOM);
        fill(&mut memory, 1, &[filled]);
    }
    drop(refusing);
    driver.unload()?;

    fill(&mut memory, 1, &[5]);
    pool.expect(6, 1, 1, 0)?;
    ensure_errno!(file.set_len(0), EPERM);
    stage.keep(session);
    Ok(())
}

/// See [`called_off_before`].
pub fn called_off_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file: File = session.retrieve(1)?.into();

    check(&file, 1, &[0, 1, 2, 4, 5])?;
    Ok(session.finish()?)
}
