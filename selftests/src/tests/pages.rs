// SPDX-License-Identifier: GPL-2.0

//! From a kernel to one whose pages have another size, and back.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    init,
    sys,
    tests::{
        kexec::three_before,
        reboot,
        sysfs, //
    }, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    fcntl::SealFlag, //
};
use std::fs;

/// The parameter that tells the page size of the first kernel.
const FIRST: &str = "luo.first_page_size";

/// The size of the large file: most of its pages are apart from each other.
const LARGE: u64 = 24 << 20;

/// Files of all kinds: small, large, with holes, sealed.
pub fn before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session("pages")?;

    session.preserve(&sys::memfd_of("small", b"content")?, 1)?;
    let large = sys::memfd_of("large", &sys::pattern(7, LARGE as usize))?;
    session.preserve(&large, 2)?;
    let holes = sys::memfd("holes")?;
    holes.set_len(LARGE)?;
    for at in (0..LARGE).step_by(1 << 20) {
        sys::write_at(&holes, at + 12_345, &at.to_ne_bytes())?;
    }
    session.preserve(&holes, 3)?;
    let sealed = sys::memfd_of("sealed", &sys::pattern(9, 100_000))?;
    sys::add_seals(&sealed, SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK)?;
    session.preserve(&sealed, 4)?;

    stage.keep(session);
    stage.next_boot(format!("{FIRST}={}", sys::page_size()?));
    Ok(())
}

/// Nothing of it can be used here, and nothing can be preserved; a kexec that would lose it is refused.
/// Where pages have the size of before, all is as usual, and nobody claims the session.
pub fn middle(stage: &mut Stage) -> Outcome {
    let first = CommandLine::read()?.get(FIRST).map(str::to_owned);

    if first == Some(sys::page_size()?.to_string()) {
        Device::open()?;
        return Ok(());
    }
    stage.note(format!("pages of {} bytes", sys::page_size()?));
    ensure_errno!(Device::open(), EOPNOTSUPP);

    // What is kept is not given to anybody.
    sys::write_to_half_of_memory()?;

    reboot::load_without_handover()?;
    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    reboot::unload_without_handover()?;
    Ok(())
}

/// In a kernel like the first one everything is there.
pub fn after(_: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session("pages")?;

    ensure_eq!(sys::content(&session.retrieve(1)?.into())?, b"content");
    let large = sys::content(&session.retrieve(2)?.into())?;
    ensure!(large == sys::pattern(7, LARGE as usize));
    let holes = sys::content(&session.retrieve(3)?.into())?;
    let mut expected = vec![0; LARGE as usize];
    for at in (0..LARGE as usize).step_by(1 << 20) {
        expected[at + 12_345..][..8].copy_from_slice(&at.to_ne_bytes());
    }
    ensure!(holes == expected);
    let sealed = session.retrieve(4)?.into();
    ensure!(sys::content(&sealed)? == sys::pattern(9, 100_000));
    ensure!(sys::seals(&sealed)?.contains(SealFlag::F_SEAL_WRITE));
    session.finish()?;
    Ok(())
}

/// Where the flags are in the header of an Image for arm64, and the bits of the page size there.
const FLAGS: usize = 24;
const PAGE_SIZE_SHIFT: u32 = 1;
/// Pages of 4 KiB and of 64 KiB, as these bits say it.
const SMALL: u8 = 1;
const LARGEST: u8 = 3;

/// A kernel with another page size that does not know what to do with what it would get: it is refused
/// while there is something to lose.
pub fn refused_before(stage: &mut Stage) -> Outcome {
    const COPY: &str = "/image";

    three_before(stage)?;
    let cmdline = CommandLine::read()?;
    let mut image = fs::read(init::kernel_of(&cmdline, 1))?;
    let flags = image
        .get_mut(FLAGS)
        .ok_or_else(|| Failure::here("no Image"))?;
    let size = (*flags >> PAGE_SIZE_SHIFT) & 3;
    ensure!(size != 0, "the Image does not tell its page size");
    let other = if size == SMALL { LARGEST } else { SMALL };
    *flags = *flags & !(3 << PAGE_SIZE_SHIFT) | (other << PAGE_SIZE_SHIFT);
    // The text is there twice: in the note, and where the kernel looks for it.
    let note = b"keeps other-page-size\0";
    let places: Vec<_> = (0..image.len())
        .filter(|&at| image[at..].starts_with(note))
        .collect();
    ensure!(!places.is_empty(), "the Image has no note of page sizes");
    for at in places {
        image[at] ^= 1;
    }

    fs::write(COPY, &image)?;
    init::load(COPY, &cmdline)?;
    fs::remove_file(COPY)?;
    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    let reason = sysfs::show("refused")?;
    ensure!(reason.contains("page size"), "{reason}");
    Ok(())
}
