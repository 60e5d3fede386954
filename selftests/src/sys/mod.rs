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

/// Size of a page.
pub const PAGE: usize = 4096;
