// SPDX-License-Identifier: GPL-2.0

//! Memfds and what can be seen of a file: content, position, seals and extents.

use crate::harness::Outcome;
use nix::{
    errno::Errno,
    fcntl::{
        fcntl,
        FcntlArg,
        SealFlag, //
    },
    libc,
    sys::memfd::{
        memfd_create,
        MFdFlags, //
    }, //
};
use std::{
    fs::File,
    io::{
        Read,
        Seek,
        SeekFrom,
        Write, //
    },
    os::{
        fd::{
            AsFd,
            AsRawFd, //
        },
        unix::fs::FileExt, //
    }, //
};

/// An empty memfd to which seals can be added.
pub fn memfd(name: &str) -> Outcome<File> {
    memfd_with(name, MFdFlags::MFD_ALLOW_SEALING)
}

/// An empty memfd.
pub fn memfd_with(name: &str, flags: MFdFlags) -> Outcome<File> {
    Ok(memfd_create(name, flags | MFdFlags::MFD_CLOEXEC)?.into())
}

/// A memfd with these bytes, its position at their end.
pub fn memfd_of(name: &str, content: &[u8]) -> Outcome<File> {
    let mut file = memfd(name)?;

    file.write_all(content)?;
    Ok(file)
}

/// The seals of a memfd.
pub fn seals(file: &impl AsFd) -> Outcome<SealFlag> {
    Ok(SealFlag::from_bits_retain(fcntl(
        file,
        FcntlArg::F_GET_SEALS,
    )?))
}

/// Adds seals to a memfd.
pub fn add_seals(file: &impl AsFd, seals: SealFlag) -> Outcome {
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// The position of an open file.
pub fn position(file: &File) -> Outcome<u64> {
    let mut file = file;

    Ok(file.stream_position()?)
}

/// All of a file, whatever its position, which stays.
pub fn content(file: &File) -> Outcome<Vec<u8>> {
    let mut handle = file;
    let before = handle.stream_position()?;
    let mut bytes = Vec::new();

    handle.seek(SeekFrom::Start(0))?;
    handle.read_to_end(&mut bytes)?;
    handle.seek(SeekFrom::Start(before))?;
    Ok(bytes)
}

/// Bytes that look random and depend on `seed` alone.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);

    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Which parts of a file have memory behind them, as `SEEK_DATA` and `SEEK_HOLE` tell.
pub fn extents(file: &File) -> Outcome<Vec<(i64, i64)>> {
    let seek = |offset, whence| -> nix::Result<i64> {
        // SAFETY: No memory is involved.
        Errno::result(unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) })
    };
    let before = seek(0, libc::SEEK_CUR)?;
    let mut extents = Vec::new();
    let mut offset = 0;

    loop {
        match seek(offset, libc::SEEK_DATA) {
            Ok(start) => {
                offset = seek(start, libc::SEEK_HOLE)?;
                extents.push((start, offset));
            }
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    seek(before, libc::SEEK_SET)?;
    Ok(extents)
}

/// Writes at an offset, leaving the position alone.
pub fn write_at(file: &File, at: u64, bytes: &[u8]) -> Outcome {
    file.write_all_at(bytes, at)?;
    Ok(())
}
