// SPDX-License-Identifier: GPL-2.0

//! Memfds across a kexec: content, size, position, seals, holes, and all else that makes one.

pub mod attributes;
pub mod content;
pub mod folios;
pub mod holes;
pub mod memory;

use crate::{
    harness::{
        Failure,
        Outcome, //
    },
    sys::PAGE, //
};
use liveupdate::{
    Incoming,
    Session, //
};
use nix::{
    errno::Errno,
    libc, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        Seek,
        SeekFrom, //
    },
    os::unix::fs::FileExt,
    path::Path, //
};

fn retrieve(session: &Session<Incoming>, token: u64) -> Outcome<File> {
    Ok(session.retrieve(token)?.into())
}

/// Has files made of folios as large as the kernel makes them. False if it has small ones only.
pub fn use_huge_pages() -> Outcome<bool> {
    let settings = Path::new("/sys/kernel/mm/transparent_hugepage");

    if !settings.exists() {
        return Ok(false);
    }
    fs::write(settings.join("shmem_enabled"), "always")?;
    for entry in fs::read_dir(settings)? {
        // Each size has a switch of its own.
        let switch = entry?.path().join("shmem_enabled");
        if switch.exists() {
            fs::write(switch, "inherit")?;
        }
    }
    Ok(true)
}

fn marker(page: usize) -> u64 {
    (page as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// Puts a swap area onto a RAM disk.
pub fn start_swapping() -> Outcome {
    start_swapping_on("/dev/ram0")
}

/// Puts a swap area onto a disk.
pub fn start_swapping_on(disk: &str) -> Outcome {
    let Ok(mut disk_file) = OpenOptions::new().write(true).open(disk) else {
        return Err(Failure::skip(format!("no {disk} to swap to")));
    };
    let pages = match disk_file.seek(SeekFrom::End(0)) {
        Ok(size) => u32::try_from(size / PAGE as u64).expect("a small disk"),
        Err(e) => return Err(e.into()),
    };
    let mut header = vec![0; PAGE];

    // Version, last page, number of bad pages.
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&(pages - 1).to_ne_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    disk_file.write_all_at(&header, 0)?;
    let path = std::ffi::CString::new(disk).expect("has no NUL");
    // SAFETY: The path ends with a NUL.
    Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) })?;
    Ok(())
}
