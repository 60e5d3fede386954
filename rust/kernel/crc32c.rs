// SPDX-License-Identifier: GPL-2.0

//! The CRC-32C (Castagnoli), by the processor's own instructions where it has them.
//!
//! C header: [`include/linux/crc32.h`](srctree/include/linux/crc32.h).

use crate::bindings;

/// Continues the CRC-32C `sum` of what comes before over `bytes`. At the beginning it is 0.
///
/// C counterpart: `crc32c()`, which leaves the inversions to its callers.
///
/// # Examples
///
/// ```
/// use kernel::crc32c::crc32c;
///
/// assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
/// assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
/// ```
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    // SAFETY: The function reads as many bytes as the slice has.
    !unsafe { bindings::crc32c(!sum, bytes.as_ptr().cast(), bytes.len()) }
}
