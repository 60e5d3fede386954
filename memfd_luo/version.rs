// SPDX-License-Identifier: GPL-2.0

//! The versions of our own two layouts: 1, 2 and 3, all of which are read.

use kernel::crc32c::crc32c;

use super::abi::check::Crc32c;

/// The version that is written.
pub(super) const CURRENT: u32 = 3;

/// What verifies that a description is as it was written; [`None`] where it has no checksum.
pub(super) const fn crc_of(version: u32) -> Option<Crc32c> {
    match version {
        1 | 2 => None,
        _ => Some(crc32c),
    }
}
