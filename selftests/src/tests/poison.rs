// SPDX-License-Identifier: GPL-2.0

//! Pages with hardware errors: in the next kernel they are still what they are, and all else is good.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Outcome,
        Stage, //
    },
    init,
    sys::{
        self,
        PAGE, //
    },
    tests::{
        memfd::use_huge_pages,
        sysfs, //
    },
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device,
    Incoming,
    Outgoing,
    Session, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fallocate,
        FallocateFlags, //
    }, //
};
use std::{
    fs::{
        self,
        File, //
    },
    io,
    os::unix::fs::FileExt, //
};

/// Files by how many pages they have, and which of them is poisoned: a small one, one of single pages,
/// and one whose pages are in huge pages, if there are such.
const FILES: [(usize, usize); 3] = [(1, 0), (300, 100), (1024, 700)];

/// The content of one of [`FILES`].
fn content(token: usize) -> Vec<u8> {
    sys::pattern(token as u64, FILES[token].0 * PAGE)
}

/// How many KiB the kernel knows to be poisoned.
fn corrupted() -> Outcome<u64> {
    sys::meminfo("HardwareCorrupted")
}

fn read_page(file: &File, page: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PAGE];

    file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
    Ok(bytes)
}

/// Poisons a page, in a process that may be killed by it.
fn poison(file: &File, page: usize) -> Outcome {
    sys::survives(|| sys::poison(file, page))?;
    ensure_errno!(read_page(file, page), EIO);
    Ok(())
}

/// Preserves all of [`FILES`], and has a page of each poisoned.
fn preserve_then_poison(session: &Session<Outgoing>) -> Outcome {
    for (token, (_, bad)) in FILES.into_iter().enumerate() {
        let file = sys::memfd_of("poisoned", &content(token))?;
        session.preserve(&file, token as u64)?;
        poison(&file, bad)?;
    }
    Ok(())
}

/// Checks one of [`FILES`]: of the poisoned page neither reading nor a mapping shows anything, nor can it
/// be written.
fn check(file: &File, token: usize) -> Outcome {
    let (pages, bad) = FILES[token];
    let expected = content(token);

    for page in (0..pages).filter(|page| *page != bad) {
        ensure!(
            read_page(file, page)? == expected[page * PAGE..][..PAGE],
            "file {token}: page {page} is not what it was"
        );
    }
    ensure_errno!(read_page(file, bad), EIO);
    ensure_errno!(file.write_all_at(b"x", (bad * PAGE) as u64), EIO);
    ensure!(
        !sys::survives(|| sys::poke(file, (bad * PAGE) as u64, 1))?,
        "file {token}: the poisoned page can be touched"
    );
    Ok(())
}

fn check_all(session: &Session<Incoming>) -> Outcome<Vec<File>> {
    let mut files = Vec::new();

    for token in 0..FILES.len() {
        let file = File::from(session.retrieve(token as u64)?);
        check(&file, token)?;
        files.push(file);
    }
    Ok(files)
}

/// Writes to most of the memory that is free.
fn use_free_memory() -> Outcome {
    let part = (sys::meminfo("MemAvailable")? << 10) / 4 * 3;
    let survived = sys::survives(|| {
        let mut memory = vec![0_u8; part as usize];
        for byte in memory.iter_mut().step_by(PAGE) {
            *byte = 1;
        }
        Ok(())
    })?;

    ensure!(survived);
    Ok(())
}

fn names(stage: &Stage) -> [String; 2] {
    [
        format!("{}-asked", stage.name),
        format!("{}-waits", stage.name),
    ]
}

/// Pages that are poisoned when their files are preserved already.
pub fn before(stage: &mut Stage) -> Outcome {
    use_huge_pages()?;
    let device = Device::open()?;

    for name in names(stage) {
        let session = device.create_session(&name)?;
        preserve_then_poison(&session)?;
        stage.keep(session);
    }
    ensure!(corrupted()? >= (2 * 3 * PAGE as u64) >> 10);
    Ok(())
}

/// One of the sessions is retrieved, and not finished; nobody asks for the other.
pub fn middle(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let known = corrupted()?;
    ensure!(known >= (2 * 3 * PAGE as u64) >> 10, "{known} KiB");

    let [asked, _] = names(stage);
    let session = device.retrieve_session(&asked)?;
    let files = check_all(&session)?;
    // What is known to be bad is not preserved.
    let own = device.create_session(stage.name)?;
    for (token, file) in files.iter().enumerate() {
        ensure_errno!(own.preserve(file, token as u64), EBUSY);
    }
    stage.keep(session);
    ensure_eq!(corrupted()?, known);
    Ok(())
}

/// Both are there in the kernel after that, and nothing bad comes to the page allocator with them.
pub fn after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let known = corrupted()?;
    ensure!(known >= (2 * 3 * PAGE as u64) >> 10, "{known} KiB");

    let [asked, waits] = names(stage);
    let session = device.retrieve_session(&asked)?;
    let files = check_all(&session)?;
    session.finish()?;
    drop(session);
    // Now that they are nobody's but ours.
    let own = device.create_session(stage.name)?;
    for (token, file) in files.iter().enumerate() {
        ensure_errno!(own.preserve(file, token as u64), EHWPOISON);
    }
    drop(files);

    // Freed without being asked for.
    device.retrieve_session(&waits)?.finish()?;
    ensure_eq!(corrupted()?, known);
    // A process that gets a bad page again would find out.
    use_free_memory()?;
    ensure_eq!(corrupted()?, known);
    Ok(())
}

/// A layout that cannot say that a page is poisoned is not used: the kexec is refused, by name.
pub fn told_before(stage: &mut Stage) -> Outcome {
    fs::write("/sys/module/liveupdate/parameters/abi", "luo-v5")?;
    let device = Device::open()?;
    let session = device.create_session("poisoned")?;
    preserve_then_poison(&session)?;

    let cmdline = CommandLine::read()?;
    init::load(init::kernel_of(&cmdline, stage.number + 1), &cmdline)?;
    ensure_eq!(kexec::jump().errno(), Errno::EHWPOISON);
    let reason = sysfs::show("refused")?;
    ensure!(reason.contains("poisoned"), "{reason}");
    drop(session);

    let session = device.create_session(stage.name)?;
    session.preserve(&sys::memfd_of("good", b"good")?, 1)?;
    stage.keep(session);
    Ok(())
}

/// See [`told_before`].
pub fn told_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    ensure_eq!(sys::content(&session.retrieve(1)?.into())?, b"good");
    Ok(session.finish()?)
}

/// A file with a poisoned page is not preserved, as long as it has that page.
pub fn refused(stage: &mut Stage) -> Outcome {
    use_huge_pages()?;
    let session = Device::open()?.create_session(stage.name)?;

    for (token, (pages, bad)) in FILES.into_iter().enumerate() {
        let file = sys::memfd_of("poisoned", &content(token))?;
        poison(&file, bad)?;
        ensure_errno!(session.preserve(&file, token as u64), EHWPOISON);
        // It is as it was, and the page can be taken out.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, (bad * PAGE) as i64, PAGE as i64)?;
        session.preserve(&file, token as u64)?;
        let hole = read_page(&file, bad)?;
        ensure!(hole.iter().all(|byte| *byte == 0), "of {pages} pages");
    }
    Ok(())
}
