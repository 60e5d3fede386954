// SPDX-License-Identifier: GPL-2.0

//! What is handed over in a live update: layouts, parsing, validation, emission.
//!
//! The lowest layer of LUO. Everything that the previous kernel handed over is read through the
//! types of this module and is hostile until one of its functions has said otherwise; everything
//! that is left for the next kernel is written through them too. So this is the only place that
//! knows an offset, a compatible string or a limit of the format.
//!
//! It uses `core` and `zerocopy` and nothing else: no kernel, no allocation, no `unsafe`, no panic.
//! The same files are built twice: as a module of the kernel crates that need them, and as the host
//! crate `luo-abi` that is tested without a kernel. A kernel crate says `pub mod abi`, since each
//! needs another part of it and what is public needs no user.
//!
//! ```text
//!  root      the entry of all: an FDT, or the C LUO's `struct luo_ser`
//!   |- flb       one page: shared objects and how many files use each
//!   `- session   a chain of blocks: named sessions
//!        `- session   a chain of blocks for each: its files
//!             `- memfd     what a file's handler left: memfd_v2, memfd_extents or hugetlb
//!                  |- extent       runs of pages
//!                  `- memfd_late   folios inserted after the freeze
//!  hugetlb_pool   an FLB: how many huge pages are handed over
//!
//!  chain     walks blocks through a `Memory`, which says what may be followed
//!  check     checksums of records and of what leads to them
//!  subsystem a number for each subsystem, in the root itself
//!  stamp     when the old kernel began to go
//!  tree      device trees, such as the root is
//!  block     one page: { next, count, records }
//!  vmalloc   KHO's description of a virtually contiguous area, used by memfd-v2
//!  name      bounded strings;  phys  addresses;  error  what can be wrong
//! ```
//!
//! Numbers are in native byte order throughout: both kernels run on the same machine.

// As a module of a kernel crate this file may not say it, and the kernel says it itself.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![deny(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

pub mod block;
pub mod chain;
pub mod check;
pub mod error;
pub mod extent;
pub mod flb;
pub mod hugetlb;
pub mod hugetlb_pool;
pub mod memfd;
pub mod memfd_extents;
pub mod memfd_late;
pub mod memfd_small;
pub mod memfd_v2;
pub mod name;
pub mod phys;
pub mod root;
pub mod session;
pub mod stamp;
pub mod subsystem;
pub mod tree;
pub mod vmalloc;

pub use self::{
    block::{
        Block,
        Record, //
    },
    chain::Memory,
    error::Excerpt,
    name::{
        Compatible,
        Name,
        SessionName, //
    },
    phys::Phys,
    root::{
        Root,
        RootFormat, //
    }, //
};

/// Size of a block, and of a page of the kernel, in bytes.
///
/// Records count in pages, so only a kernel with the same page size can read them. KHO sees to it
/// that no other one gets them.
pub const BLOCK_SIZE: usize = 1 << phys::PAGE_SHIFT;
