// SPDX-License-Identifier: GPL-2.0

//! What the tests need of the system beyond the client library: requests that are wrong in all
//! the ways there are, memory that cannot be read or written, descriptors and their limits.

mod descriptors;
mod files;
mod mapping;
mod memory;
mod requests;

pub use self::{
    descriptors::*,
    files::*,
    mapping::*,
    memory::*,
    requests::*, //
};

/// Size of a page of the kernels that this is built for: 4 KiB, or as `LUO_PAGE_SIZE` says.
pub const PAGE: usize = match option_env!("LUO_PAGE_SIZE") {
    None => 4096,
    Some(bytes) => match usize::from_str_radix(bytes, 10) {
        Ok(size) if size.is_power_of_two() => size,
        _ => panic!("LUO_PAGE_SIZE is no page size"),
    },
};
