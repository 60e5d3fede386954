// SPDX-License-Identifier: GPL-2.0

//! Where the pages of a memfd are in memory: in huge pages, fragmented, and migrated together.

use super::{
    marker,
    retrieve,
    use_huge_pages, //
};
use crate::{
    harness::{
        ensure,
        ensure_eq,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        PAGE, //
    },
    tests::reboot, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        FallocateFlags, //
    },
    unistd::pipe, //
};
use std::{
    fs::{
        self,
        File, //
    },
    io::Read,
    os::unix::fs::{
        FileExt,
        MetadataExt, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    }, //
};

/// Sizes that end within a huge page, at its end, and just behind it.
const FOLIO_SIZES: [usize; 4] = [8 << 20, (5 << 20) + 100, (2 << 20) + 1, 64 << 10];

/// The token of the file that says how much of them is in huge pages.
const HUGE_NOTE: u64 = 200;

/// Memory in folios as large as the kernel makes them.
pub fn folios_before(stage: &mut Stage) -> Outcome {
    if !use_huge_pages()? {
        return Err(Failure::skip("no huge pages"));
    }
    let session = Device::open()?.create_session(stage.name)?;

    for (token, size) in (0..).zip(FOLIO_SIZES) {
        let memory = sys::memfd_of("folios", &sys::pattern(token, size))?;
        if token == 0 {
            // One that is split, with a hole in it.
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&memory, punch, 4 << 20, 3 * PAGE as i64)?;
        }
        session.preserve(&memory, token)?;
        sys::write_at(&memory, size as u64 - 3, b"END")?;
    }
    // A huge page of which a few bytes are written.
    let memory = sys::memfd("sparse")?;
    memory.set_len(16 << 20)?;
    sys::write_at(&memory, 7 << 20, b"alone")?;
    session.preserve(&memory, 100)?;
    // How much is in huge pages, for the other side.
    let note = sys::memfd_of("note", &[0; 8])?;
    session.preserve(&note, HUGE_NOTE)?;
    let [_, huge] = shared()?;
    // Those that the kernel counts may be larger than these files, and so is what it makes for them, if
    // it finds the memory.
    ensure!(huge > 0 || sys::huge_page_size()? > FOLIO_SIZES[0]);
    sys::write_at(&note, 0, &huge.to_le_bytes())?;
    stage.keep(session);
    Ok(())
}

/// How many KiB of shared memory there are, and how many of it in huge pages. What processors have
/// not yet added up, this brings together.
fn shared() -> Outcome<[i64; 2]> {
    fs::write("/proc/sys/vm/stat_refresh", "1")?;
    Ok([
        sys::meminfo("Shmem")? as i64,
        sys::meminfo("ShmemHugePages")? as i64,
    ])
}

/// What the file [`HUGE_NOTE`] says, in KiB.
fn noted(note: &File) -> Outcome<i64> {
    let mut huge = [0; 8];
    note.read_exact_at(&mut huge, 0)?;
    Ok(i64::from_le_bytes(huge))
}

/// See [`folios_before`].
pub fn folios_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let mut files = Vec::new();
    let before = shared()?;

    for (token, size) in (0..).zip(FOLIO_SIZES) {
        let file = retrieve(&session, token)?;
        let mut expected = sys::pattern(token, size);
        expected[size - 3..].copy_from_slice(b"END");
        if token == 0 {
            expected[4 << 20..][..3 * PAGE].fill(0);
        }
        ensure_eq!(file.metadata()?.len(), size as u64);
        ensure!(
            sys::content(&file)? == expected,
            "token {token} came back with other content"
        );
        files.push((file, expected));
    }
    let file = retrieve(&session, 100)?;
    let mut expected = vec![0; 16 << 20];
    expected[7 << 20..][..5].copy_from_slice(b"alone");
    ensure!(
        sys::content(&file)? == expected,
        "the sparse file came back with other content"
    );
    let note = retrieve(&session, HUGE_NOTE)?;
    let huge = noted(&note)?;
    session.finish()?;

    // All is counted as what it is.
    let mut all = 0;
    for file in files.iter().map(|(file, _)| file).chain([&file, &note]) {
        all += file.metadata()?.blocks() as i64 / 2;
    }
    ensure_eq!(shared()?, [before[0] + all, before[1] + huge]);
    drop((file, note));

    // Large folios can be mapped, written, split and freed.
    for (file, mut expected) in files {
        sys::poke(&file, 12345, 0x77)?;
        expected[12345] = 0x77;
        let half = expected.len() / 2 + 5;
        file.set_len(half as u64)?;
        ensure!(
            sys::content(&file)? == expected[..half],
            "the content changed when the file shrank"
        );
        file.set_len(0)?;
        ensure_eq!(file.metadata()?.blocks(), 0);
    }
    ensure_eq!(shared()?, before);
    Ok(())
}

/// How much is written to a file that was preserved when it was empty.
const FILLED: usize = 32 << 20;

/// A file that is filled after it was preserved gets huge pages like any other.
pub fn filled_before(stage: &mut Stage) -> Outcome {
    if !use_huge_pages()? {
        return Err(Failure::skip("no huge pages"));
    }
    let session = Device::open()?.create_session(stage.name)?;
    let note = sys::memfd_of("note", &[0; 8])?;
    session.preserve(&note, HUGE_NOTE)?;
    let memory = sys::memfd("filled")?;
    memory.set_len(FILLED as u64)?;
    let [_, before] = shared()?;
    session.preserve(&memory, 1)?;

    sys::write_at(&memory, 0, &sys::pattern(1, FILLED))?;
    let [_, after] = shared()?;
    let huge = after - before;
    stage.note(format!("{huge} KiB of {} are in huge pages", FILLED >> 10));
    // At least half: the kernel falls back to small pages where it finds no huge one. If a huge page is more
    // than an eighth of the file, one of these counts too much.
    ensure!(huge >= FILLED as i64 >> 11 || sys::huge_page_size()? > FILLED / 8);
    sys::write_at(&note, 0, &huge.to_le_bytes())?;
    stage.keep(session);
    Ok(())
}

/// See [`filled_before`].
pub fn filled_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let huge = noted(&retrieve(&session, HUGE_NOTE)?)?;
    let [_, before] = shared()?;
    let file = retrieve(&session, 1)?;

    ensure!(
        sys::content(&file)? == sys::pattern(1, FILLED),
        "it came back with other content"
    );
    ensure_eq!(shared()?[1], before + huge);
    session.finish()?;
    Ok(())
}

/// How many pages [`fragmented_before`] has.
const FRAGMENTED: usize = 2048;

/// How many runs of pages there are in memory.
fn runs(frames: &[u64]) -> usize {
    let mut frames = frames.to_vec();
    frames.sort_unstable();
    frames.chunk_by(|one, next| one + 1 == *next).count()
}

/// How many pages are elsewhere in memory now.
fn moved(before: &[u64], after: &[u64]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(was, is)| was != is)
        .count()
}

/// How many pages are written when the file is preserved already.
const LATE: usize = (32 << 20) / PAGE;

/// Pages that are written late come from where they can stay: the kexec need not move them.
pub fn late_in_place_before(stage: &mut Stage) -> Outcome {
    match reboot::load_without_handover() {
        Ok(()) => {}
        Err(Errno::ENOSYS) => return Err(Failure::skip("no kexec_load")),
        Err(errno) => return Err(errno.into()),
    }
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd("late")?;
    memory.set_len((LATE * PAGE) as u64)?;
    session.preserve(&memory, 1)?;

    sys::write_at(&memory, 0, &sys::pattern(1, LATE * PAGE))?;
    let written = sys::frames(&memory, LATE)?;
    ensure_eq!(written.len(), LATE);
    // It comes as far as having frozen all.
    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    ensure_eq!(moved(&written, &sys::frames(&memory, LATE)?), 0);

    reboot::unload_without_handover()?;
    stage.keep(session);
    Ok(())
}

/// See [`late_in_place_before`].
pub fn late_in_place_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;

    ensure!(sys::content(&file)? == sys::pattern(1, LATE * PAGE));
    session.finish()?;
    Ok(())
}

/// A file that was given up takes its pages from anywhere again: some have to be moved when it is
/// preserved once more, as with a file that never was.
pub fn given_up(stage: &mut Stage) -> Outcome {
    const CHUNK: usize = 4096;

    let device = Device::open()?;
    let moved_by_preserving = |memory: &File| -> Outcome<usize> {
        sys::write_at(memory, 0, &sys::pattern(1, LATE * PAGE))?;
        let written = sys::frames(memory, LATE)?;
        let session = device.create_session("once more")?;
        session.preserve(memory, 1)?;
        Ok(moved(&written, &sys::frames(memory, LATE)?))
    };
    let memory = sys::memfd("given up")?;
    let session = device.create_session(stage.name)?;
    session.preserve(&memory, 1)?;
    drop(session);

    // KHO's areas are not used before they are half of what is free. This is not from there.
    let session = device.create_session(stage.name)?;
    let ballast = sys::memfd("ballast")?;
    ballast.set_len(sys::meminfo("MemTotal")? << 10)?;
    session.preserve(&ballast, 1)?;
    let mut at = 0;
    while sys::meminfo("MemFree")? > 2 * sys::meminfo("CmaFree")? {
        sys::write_at(&ballast, at, &sys::pattern(2, CHUNK * PAGE))?;
        at += (CHUNK * PAGE) as u64;
    }

    let new = moved_by_preserving(&sys::memfd("new")?)?;
    let given_up = moved_by_preserving(&memory)?;
    stage.note(format!("{new} pages moved, and {given_up}"));
    ensure!(new > 0, "nothing is in KHO's areas");
    ensure!(given_up > 0, "it still takes no movable memory");
    Ok(())
}

/// What lies apart in memory is moved together while somebody writes to it; what is in use by a
/// device, or by a pipe as here, is left where it is.
pub fn fragmented_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let (memory, decoy) = (sys::memfd("fragmented")?, sys::memfd("decoy")?);
    for (at, page) in (0..)
        .step_by(PAGE)
        .zip(sys::pattern(1, FRAGMENTED * PAGE).chunks(PAGE))
    {
        sys::write_at(&memory, at, page)?;
        sys::write_at(&decoy, at, page)?;
    }
    let before = sys::frames(&memory, FRAGMENTED)?;
    ensure_eq!(before.len(), FRAGMENTED);
    ensure!(
        runs(&before) > FRAGMENTED / 2,
        "only {} runs",
        runs(&before)
    );

    // What is in use in an area of KHO cannot be preserved.
    let areas = sys::kho_areas()?;
    let may_stay = |frame: u64| {
        let page = frame * PAGE as u64;
        !areas.iter().any(|area| area.contains(&page))
    };
    let held = (700..FRAGMENTED)
        .find(|&page| may_stay(before[page]))
        .ok_or_else(|| Failure::here("all is in KHO's areas"))?;
    let (reader, writer) = pipe()?;
    sys::splice_page(
        &sys::SharedWords::of(&memory, FRAGMENTED * PAGE)?,
        held * PAGE,
        &writer,
    )?;

    // Each page has the number of the round in which it was last written.
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let busy = scope.spawn(|| -> Outcome<Vec<u64>> {
            let mut words = sys::SharedWords::of(&memory, FRAGMENTED * PAGE)?;
            let mut written = vec![0; FRAGMENTED];
            for round in 1_u64.. {
                for (page, last) in written.iter_mut().enumerate() {
                    words.write(page * PAGE, round);
                    *last = round;
                    if done.load(Ordering::Relaxed) {
                        return Ok(written);
                    }
                }
            }
            Ok(written)
        });
        let result = session.preserve(&memory, 1);
        done.store(true, Ordering::Relaxed);
        let written = busy
            .join()
            .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))?;
        result?;
        Ok::<_, Failure>(written)
    })?;

    let after = sys::frames(&memory, FRAGMENTED)?;
    stage.note(format!("{} runs, then {}", runs(&before), runs(&after)));
    ensure_eq!(after.len(), FRAGMENTED);
    ensure!(runs(&after) < 40);
    ensure_eq!(after[held], before[held]);

    let mut expected = sys::pattern(1, FRAGMENTED * PAGE);
    for (page, round) in expected.chunks_mut(PAGE).zip(written) {
        if round != 0 {
            page[..8].copy_from_slice(&round.to_ne_bytes());
        }
    }
    ensure!(sys::content(&memory)? == expected, "it has other content");
    // The pipe and the file still have the same page.
    sys::write_at(&memory, (held * PAGE) as u64, &0_u64.to_ne_bytes())?;
    let mut piped = vec![0; PAGE];
    File::from(reader).read_exact(&mut piped)?;
    expected[held * PAGE..][..8].fill(0);
    ensure!(
        piped == expected[held * PAGE..][..PAGE],
        "the page in the pipe is another"
    );

    // What the next kernel is to find.
    for page in 0..FRAGMENTED {
        sys::write_at(&memory, (page * PAGE) as u64, &marker(page).to_ne_bytes())?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`fragmented_before`].
pub fn fragmented_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;
    let mut expected = sys::pattern(1, FRAGMENTED * PAGE);

    for (number, page) in expected.chunks_mut(PAGE).enumerate() {
        page[..8].copy_from_slice(&marker(number).to_ne_bytes());
    }
    ensure!(
        sys::content(&file)? == expected,
        "it came back with other content"
    );
    session.finish()?;
    Ok(())
}
