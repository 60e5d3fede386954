// SPDX-License-Identifier: GPL-2.0

//! What is in a memfd: its bytes, size and position, and writes while it is preserved.

use super::{
    marker,
    retrieve, //
};
use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        PAGE, //
    },
    tests::lifetime::wait_forever, //
};
use liveupdate::Device;
use nix::{
    fcntl::{
        fallocate,
        fcntl,
        FallocateFlags,
        FcntlArg,
        OFlag, //
    },
    unistd::{
        fork,
        ForkResult, //
    }, //
};
use std::{
    fs,
    io::{
        Seek,
        SeekFrom,
        Write, //
    },
    os::unix::fs::{
        FileExt,
        MetadataExt, //
    },
    time::{
        Duration,
        Instant, //
    }, //
};

/// Sizes around every boundary, each with a position of its own.
const SHAPES: [(usize, u64); 12] = [
    (0, 0),
    (0, 123),
    (1, 1),
    (1, 0),
    (PAGE - 1, 17),
    (PAGE, PAGE as u64),
    (PAGE + 1, 1 << 33),
    (2 * PAGE, 0),
    (65_536 + 123, 65_536),
    (511 * PAGE + 1, 1),
    (512 * PAGE, 0),
    (5 << 20, 3 << 20),
];

/// Content, size and position.
pub fn content_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, (size, position)) in (0..).zip(SHAPES) {
        let mut memory = sys::memfd_of("content", &sys::pattern(token, size))?;
        memory.seek(SeekFrom::Start(position))?;
        session.preserve(&memory, token)?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`content_before`].
pub fn content_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let mut files = Vec::new();

    for (token, (size, position)) in (0..).zip(SHAPES) {
        let file = retrieve(&session, token)?;
        ensure_eq!(file.metadata()?.len(), size as u64, "token {token}");
        ensure_eq!(sys::position(&file)?, position, "token {token}");
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        ensure_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDWR);
        files.push(file);
    }
    // What the kernel takes for a cache it may drop.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    for (token, (size, _)) in (0..).zip(SHAPES) {
        let file = &files[token as usize];
        ensure!(
            sys::content(file)? == sys::pattern(token, size),
            "token {token} came back with other content"
        );
    }
    session.finish()?;

    // The files are good for all that a memfd is.
    for (token, (size, _)) in (0..).zip(SHAPES) {
        let mut file = &files[token as usize];
        file.set_len(size as u64 + 10)?;
        ensure_eq!(
            sys::content(file)?[size..],
            [0; 10],
            "beyond the end of token {token}"
        );
        file.seek(SeekFrom::End(0))?;
        file.write_all(&[7; PAGE])?;
        ensure_eq!(file.metadata()?.len(), (size + 10 + PAGE) as u64);
        file.set_len(0)?;
        ensure_eq!(file.metadata()?.blocks(), 0);
    }
    Ok(())
}

/// Changes between `PRESERVE_FD` and the reboot, by every way there is.
pub fn late_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    // Data over data.
    let mut memory = sys::memfd_of("data", &sys::pattern(1, 3 * PAGE))?;
    session.preserve(&memory, 1)?;
    sys::write_at(&memory, 10, b"written")?;
    sys::poke(&memory, PAGE as u64 + 5, 0x5a)?;
    memory.seek(SeekFrom::Start(77))?;

    // Data into holes.
    let memory = sys::memfd("holes")?;
    memory.set_len(16 * PAGE as u64)?;
    session.preserve(&memory, 2)?;
    sys::write_at(&memory, 3 * PAGE as u64 + 100, b"into a hole")?;
    sys::poke(&memory, 9 * PAGE as u64, 0x5b)?;

    // Data into what was allocated but never written.
    let memory = sys::memfd("allocated")?;
    fallocate(&memory, FallocateFlags::empty(), 0, 16 * PAGE as i64)?;
    session.preserve(&memory, 3)?;
    sys::write_at(&memory, 5 * PAGE as u64 - 3, b"across")?;
    sys::poke(&memory, 12 * PAGE as u64 + 1, 0x5c)?;

    // Reading from a hole is not writing to it.
    let memory = sys::memfd("read")?;
    memory.set_len(4 * PAGE as u64)?;
    session.preserve(&memory, 4)?;
    ensure_eq!(sys::content(&memory)?, [0; 4 * PAGE]);

    stage.keep(session);
    Ok(())
}

/// See [`late_before`].
pub fn late_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let put = |content: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        content[at..at + bytes.len()].copy_from_slice(bytes);
    };

    let mut expected = sys::pattern(1, 3 * PAGE);
    put(&mut expected, 10, b"written");
    put(&mut expected, PAGE + 5, &[0x5a]);
    let file = retrieve(&session, 1)?;
    ensure_eq!(sys::position(&file)?, 77);
    ensure!(sys::content(&file)? == expected, "data over data is lost");

    let mut expected = vec![0; 16 * PAGE];
    put(&mut expected, 3 * PAGE + 100, b"into a hole");
    put(&mut expected, 9 * PAGE, &[0x5b]);
    let file = retrieve(&session, 2)?;
    ensure!(sys::content(&file)? == expected, "data in holes is lost");

    let mut expected = vec![0; 16 * PAGE];
    put(&mut expected, 5 * PAGE - 3, b"across");
    put(&mut expected, 12 * PAGE + 1, &[0x5c]);
    let file = retrieve(&session, 3)?;
    ensure!(
        sys::content(&file)? == expected,
        "data in allocated pages is lost"
    );

    let file = retrieve(&session, 4)?;
    ensure_eq!(sys::content(&file)?, [0; 4 * PAGE]);
    session.finish()?;
    Ok(())
}

/// Pages that a guest touches one after the other while the machine reboots.
const LIVE_PAGES: usize = (128 << 20) / PAGE;

/// A guest that does not stop: it goes through its memory page by page, and notes in the first
/// one how far it has come.
pub fn live_before(stage: &mut Stage) -> Outcome {
    start_guest(stage, 1)
}

/// As above when every other page is a hole that the guest fills on its way.
pub fn live_holes_before(stage: &mut Stage) -> Outcome {
    start_guest(stage, 2)
}

fn start_guest(stage: &mut Stage, step: usize) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd("live")?;

    memory.set_len((LIVE_PAGES * PAGE) as u64)?;
    for page in (0..LIVE_PAGES).step_by(step) {
        sys::write_at(&memory, (page * PAGE) as u64, &[1])?;
    }
    session.preserve(&memory, 1)?;
    stage.keep(session);

    // SAFETY: This process has one thread.
    if let ForkResult::Child = unsafe { fork()? } {
        let mut guest = sys::SharedWords::of(&memory, LIVE_PAGES * PAGE)?;
        for page in 1..LIVE_PAGES {
            guest.write(page * PAGE, marker(page));
            guest.write(0, page as u64);
            if page % 8 == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        wait_forever();
    }
    // Let it get going.
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

/// See [`live_before`].
pub fn live_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;
    let file = retrieve(&session, 1)?;
    let word = |page: usize| -> Outcome<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    };

    let last = word(0)? as usize;
    stage.note(format!("caught at page {last} of {LIVE_PAGES}"));
    ensure!(last > 1);
    for page in 1..=last {
        ensure!(
            word(page)? == marker(page),
            "page {page} is lost, while the first page knows of {last}"
        );
    }
    session.finish()?;
    Ok(())
}

/// Threads that change a memfd in every way while it is preserved and released over and over.
pub fn raced(stage: &mut Stage) -> Outcome {
    const SIZE: u64 = 64 * PAGE as u64;

    let device = Device::open()?;
    let memory = sys::memfd("raced")?;
    memory.set_len(SIZE)?;
    let deadline = Instant::now() + Duration::from_secs(4);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let memory = &memory;

    let changer = |seed: u64| -> Outcome {
        let mut round = seed;
        while Instant::now() < deadline {
            round = round
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (round >> 33) % (SIZE - 8);
            let result = match round >> 60 {
                0 => memory.set_len(at),
                1 => memory.set_len(SIZE),
                2 => memory.set_len(4 * SIZE),
                3..6 => fallocate(memory, punch, at as i64, 4 * PAGE as i64).map_err(Into::into),
                6..9 => fallocate(memory, FallocateFlags::empty(), at as i64, 3 * PAGE as i64)
                    .map_err(Into::into),
                _ => memory.write_all_at(&round.to_ne_bytes(), at),
            };
            if let Err(err) = result {
                ensure_errno!(Err::<(), _>(err), EPERM);
            }
        }
        Ok(())
    };
    let preserver = || -> Outcome<usize> {
        let mut rounds = 0;
        while Instant::now() < deadline {
            let session = device.create_session(stage.name)?;
            session.preserve(memory, 1)?;
            // Its size is settled now, and what is written stays.
            let size = memory.metadata()?.len();
            if size > 8 {
                sys::write_at(memory, size - 8, b"SETTLED!")?;
            }
            std::thread::yield_now();
            ensure_eq!(memory.metadata()?.len(), size);
            rounds += 1;
        }
        Ok(rounds)
    };
    let changer = &changer;
    let rounds = std::thread::scope(|scope| {
        let changers: Vec<_> = (1..4).map(|i| scope.spawn(move || changer(i))).collect();
        let rounds = preserver();
        for changer in changers {
            changer
                .join()
                .unwrap_or_else(|_| Err(Failure::here("a thread panicked")))?;
        }
        rounds
    })?;
    stage.note(format!("{rounds} rounds"));
    memory.set_len(0)?;
    ensure_eq!(memory.metadata()?.blocks(), 0);
    Ok(())
}
