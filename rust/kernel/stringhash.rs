// SPDX-License-Identifier: GPL-2.0

//! Hashes of names, as directories have them.
//!
//! C header: [`include/linux/stringhash.h`](srctree/include/linux/stringhash.h).

use crate::bindings;

/// The hash of a name, of which only the first 4 GiB count.
///
/// `salt` matters by its address: hashes with another one have nothing to do with these.
///
/// C counterpart: `full_name_hash()`.
///
/// # Examples
///
/// ```
/// use kernel::stringhash::full_name_hash;
///
/// static SALT: u8 = 0;
///
/// assert_eq!(full_name_hash(&SALT, b"a name"), full_name_hash(&SALT, b"a name"));
/// assert_ne!(full_name_hash(&SALT, b"a name"), full_name_hash(&SALT, b"a mane"));
/// ```
pub fn full_name_hash<T>(salt: &'static T, name: &[u8]) -> u32 {
    let len = u32::try_from(name.len()).unwrap_or(u32::MAX);

    // SAFETY: The slice has `len` bytes. The function may read the rest of a word, too, which
    // changes nothing and need not be there, and of the salt nothing but the address.
    unsafe { bindings::full_name_hash(core::ptr::from_ref(salt).cast(), name.as_ptr().cast(), len) }
}
