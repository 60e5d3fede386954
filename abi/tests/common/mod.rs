// SPDX-License-Identifier: GPL-2.0

//! A machine's memory on the host, and handovers in it.
//!
//! [`PhysMem`] has preserved pages at physical addresses, [`Claims`] is what a new kernel sees of
//! them: each page can be claimed once. [`emit`] leaves a handover as an old kernel would,
//! [`read`] takes it over as a new one would, with everything that turned out wrong in a list.
//! Shared by the tests and the fuzz target, hence not all of it is used everywhere.

#![allow(dead_code, unreachable_pub, unused_imports)]

mod emit;
mod memory;
mod read;
mod tree;

use luo_abi::{
    memfd::{
        FileName,
        Memfd,
        OpenFlags, //
    },
    name::{
        Compatible,
        SessionName, //
    }, //
};

pub use self::{
    emit::*,
    memory::*,
    read::*,
    tree::*, //
};

/// The CRC-32C.
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(sum, bytes)
}

/// A compatible string.
pub fn compatible(text: &str) -> Compatible {
    Compatible::from_str_bytes(text.as_bytes()).unwrap()
}

/// A session's name.
pub fn session_name(text: &str) -> SessionName {
    SessionName::from_str_bytes(text.as_bytes()).unwrap()
}

/// A memfd without content.
pub fn memfd(size: u64) -> Memfd {
    Memfd {
        pos: 0,
        size,
        seals: 0,
        open: OpenFlags::from_bits(OpenFlags::READ | OpenFlags::WRITE).unwrap(),
        mode: 0o777,
        uid: 0,
        gid: 0,
        name: Some(FileName::from_str_bytes(b"memfd:test").unwrap()),
        nr_extents: 0,
        nr_pages: 0,
        extents: None,
        late: None,
        poisoned: false,
    }
}

/// How often proptest tries: seldom where each try is slow.
pub fn cases(usual: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases: if cfg!(miri) { 3 } else { usual },
        failure_persistence: None,
        ..Default::default()
    }
}
