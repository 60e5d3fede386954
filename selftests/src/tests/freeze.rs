// SPDX-License-Identifier: GPL-2.0

//! What goes on between the first frozen file and the jump. User space runs then: it closes sessions,
//! dies, writes to memory that is frozen. Nothing of that may cost what is handed over, nobody may wait
//! for it, and nothing may hold the machine up.
//!
//! The kexec itself is held up, where it matters, by the test driver: it waits at a gate when it
//! freezes one of the files. See [`hold_up`].

use crate::{
    agent::{
        await_death,
        Notes, //
    },
    harness::{
        ensure,
        ensure_eq,
        Failure,
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
        driver::{
            Driver,
            Event,
            Kind, //
        },
        faults::Faults,
        kexec::check_three,
        sample,
        sysfs, //
    }, //
};
use liveupdate::{
    Device,
    Outgoing,
    Session, //
};
use nix::{
    errno::Errno,
    libc,
    sys::signal::{
        kill,
        Signal, //
    },
    unistd::pause, //
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

/// The note that says whether the kexec was held up all the time.
const HELD_UP: usize = 0;
/// The module of a subsystem.
const SUBSYSTEM: &str = "luo_test_subsystem";
/// From here on, notes are those of each test.
const OWN: usize = 8;

/// Preserves a file that holds the kexec up when it is frozen: until `meanwhile` is done, in a process
/// of its own, which says so in the notes.
///
/// Sessions that are older are frozen by then, those that are younger are not.
fn hold_up(
    device: &Device,
    driver: &Driver,
    notes: &Notes,
    stage: &mut Stage,
    meanwhile: impl FnOnce() -> Outcome,
) -> Outcome {
    hold_up_from(device, driver, stage)?;
    release_after(driver, notes, meanwhile)
}

/// The first half of [`hold_up`].
fn hold_up_from(device: &Device, driver: &Driver, stage: &mut Stage) -> Outcome {
    let session = device.create_session(&format!("{}-gate", stage.name))?;

    session.preserve(&driver.toy(Kind::First, 1)?, 1)?;
    driver.close_gate(Event::Freeze)?;
    stage.keep(session);
    Ok(())
}

/// The second half of [`hold_up`].
fn release_after(driver: &Driver, notes: &Notes, meanwhile: impl FnOnce() -> Outcome) -> Outcome {
    notes.child(|| {
        driver.await_gate()?;
        let result = meanwhile();
        let waited = driver.open_gate()?;
        notes.word(HELD_UP).store(waited.into(), Ordering::Relaxed);
        result
    })?;
    Ok(())
}

/// In the next kernel: reads the notes of a kexec that was held up, and ends what did that.
fn was_held_up(device: &Device, stage: &Stage) -> Outcome<Vec<u64>> {
    let notes = Notes::read(device, stage)?;
    let driver = Driver::load()?;
    let session = device.retrieve_session(&format!("{}-gate", stage.name))?;

    drop(session.retrieve(1)?);
    session.finish()?;
    drop(session);
    driver.unload()?;
    ensure_eq!(notes[HELD_UP], 1, "the kexec did not wait");
    Ok(notes)
}

/// A while in which others get on with what they do.
fn for_a_moment() {
    thread::sleep(Duration::from_millis(500));
}

/// A session with a memfd of less than a page, which shares what is handed over with others.
fn small(device: &Device, name: &str) -> Outcome<Session<Outgoing>> {
    let session = device.create_session(name)?;

    session.preserve(&sys::memfd_of(name, name.as_bytes())?, 1)?;
    Ok(session)
}

/// Checks such a session in the next kernel, and finishes it.
fn check_small(device: &Device, name: &str) -> Outcome {
    let session = device.retrieve_session(name)?;
    let file = File::from(session.retrieve(1)?);

    ensure_eq!(sys::content(&file)?, name.as_bytes(), "{name}");
    Ok(session.finish()?)
}

/// A session that is closed while others are being frozen takes nothing of theirs along.
///
/// At bd974ac the file of the first session was lost each time.
pub fn close_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    stage.keep(small(&device, "freeze-kept")?);
    hold_up_from(&device, &driver, stage)?;
    let ended = small(&device, "freeze-ended")?;
    release_after(&driver, &notes, move || Ok(sys::close(ended)?))
}

/// The same with one whose process dies, as all do when a machine goes down.
///
/// At bd974ac the file of the first session was lost each time.
pub fn die_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    stage.keep(small(&device, "freeze-kept")?);
    hold_up_from(&device, &driver, stage)?;
    let ended = small(&device, "freeze-ended")?;
    let holder = notes.child(move || {
        let _ended = ended;
        loop {
            pause();
        }
    })?;
    release_after(&driver, &notes, || {
        kill(holder, Signal::SIGKILL)?;
        await_death(holder)
    })
}

/// See [`close_before`] and [`die_before`].
pub fn ended_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    check_small(&device, "freeze-kept")?;
    match device.retrieve_session("freeze-ended") {
        // It came too late to go.
        Ok(session) => {
            let file = File::from(session.retrieve(1)?);
            ensure_eq!(sys::content(&file)?, b"freeze-ended");
            session.finish()?;
        }
        Err(err) => ensure_eq!(err.errno(), Errno::ENOENT),
    }
    was_held_up(&device, stage)?;
    Ok(())
}

/// A request that fails while other sessions are being frozen takes nothing of theirs along. It fails
/// as a kexec has begun, if nothing else is in the way.
///
/// At bd974ac the file of the first session was lost each time.
pub fn preserve_fails_before(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    stage.keep(small(&device, "freeze-kept")?);
    hold_up_from(&device, &driver, stage)?;
    let session = device.create_session("freeze-failing")?;
    notes.child({
        let (driver, notes) = (&driver, &notes);
        move || {
            let faults = Faults::new()?;
            let file = sys::memfd_of("m", b"x")?;
            driver.await_gate()?;
            for nth in 1.. {
                match faults.hit(nth, || session.preserve(&file, 1)).0 {
                    Err(err) if err.errno() == Errno::EBUSY => break,
                    Err(_) => {}
                    Ok(()) => return Err(Failure::here("it was not too late")),
                }
            }
            notes.word(OWN).store(1, Ordering::Relaxed);
            Ok(())
        }
    })?;
    release_after(&driver, &notes, || {
        for_a_moment();
        Ok(())
    })
}

/// See [`preserve_fails_before`].
pub fn preserve_fails_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    check_small(&device, "freeze-kept")?;
    device.retrieve_session("freeze-failing")?.finish()?;
    let notes = was_held_up(&device, stage)?;
    ensure_eq!(notes[OWN], 1, "the request waited");
    Ok(())
}

/// A session that nobody retrieved is left out for the sake of a new one of its name only if that
/// one is handed over: not if it is closed while others are being frozen.
///
/// At bd974ac the session was lost each time.
pub fn same_name_middle(stage: &mut Stage) -> Outcome {
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    hold_up_from(&device, &driver, stage)?;
    // Of the name that `three_before` has taken.
    let new = device.create_session(stage.name)?;
    new.preserve(&sys::memfd_of("new", b"new")?, 1)?;
    release_after(&driver, &notes, move || Ok(sys::close(new)?))
}

/// See [`same_name_middle`].
pub fn same_name_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    // The old one is there, or the new one as it was before it was closed: something is.
    let session = device.retrieve_session(stage.name)?;
    match session.retrieve(1) {
        Ok(new) => {
            ensure_eq!(sys::content(&new.into())?, b"new");
            session.finish()?;
        }
        Err(err) => {
            ensure_eq!(err.errno(), Errno::ENOENT);
            check_three(&session)?;
        }
    }
    was_held_up(&device, stage)?;
    Ok(())
}

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
    hold_up(&device, &driver, &notes, stage, || {
        for_a_moment();
        for way in 0..WAYS.len() {
            let done = notes.word(OWN + way).load(Ordering::Acquire);
            notes.word(2 * OWN + way).store(done, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// See [`touch_before`].
pub fn touch_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = was_held_up(&device, stage)?;
    let mut wrong = Vec::new();

    for (way, name) in WAYS.iter().enumerate() {
        let (during, done) = (notes[2 * OWN + way], notes[OWN + way]);
        stage.note(format!("{name}: {during} pages, then {done}"));
        if during == 0 {
            wrong.push(format!("{name} waited for the kexec"));
        }
        if let Err(Failure::Failed(why)) = check_markers(&device, name, done) {
            wrong.push(why);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
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

/// A subsystem that hands something over.
pub fn state_before(_: &mut Stage) -> Outcome {
    module::load(SUBSYSTEM, "number=7")
}

/// Who reads the state does not wait for a kexec. Here it is that of a live update that nobody has
/// said to be over.
///
/// At bd974ac the reader waited each time.
pub fn state_middle(stage: &mut Stage) -> Outcome {
    module::load(SUBSYSTEM, "number=8")?;
    let driver = Driver::load()?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;

    hold_up_from(&device, &driver, stage)?;
    notes.child(|| {
        driver.await_gate()?;
        let state = sysfs::show("state")?;
        ensure!(["updated\n", "prepared\n"].contains(&&*state), "{state}");
        notes.word(OWN).store(1, Ordering::Relaxed);
        Ok(())
    })?;
    release_after(&driver, &notes, || {
        for_a_moment();
        let done = notes.word(OWN).load(Ordering::Relaxed);
        notes.word(OWN + 1).store(done, Ordering::Relaxed);
        Ok(())
    })
}

/// See [`state_middle`].
pub fn state_after(stage: &mut Stage) -> Outcome {
    module::load(SUBSYSTEM, "number=9")?;
    let notes = was_held_up(&Device::open()?, stage)?;

    ensure_eq!(notes[OWN], 1, "the state could not be read");
    ensure_eq!(notes[OWN + 1], 1, "it was read after the kexec had gone on");
    Ok(())
}
