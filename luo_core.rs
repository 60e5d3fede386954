// SPDX-License-Identifier: GPL-2.0

//! The Live Update Orchestrator (LUO): open files that survive a kexec.
//!
//! A user-space agent collects files in named sessions (`/dev/liveupdate`), reboots by kexec into a
//! new kernel, and retrieves sessions and files there. What a file consists of is known to its
//! driver; Kexec Handover (KHO) carries the memory; LUO keeps the books.
//!
//! This is the root of the crate. It names the modules and nothing imports from it. A module
//! imports from those below it only; the picture of the layers and the order of the locks are in
//! `Documentation/core-api/liveupdate/architecture.rst`.

#![deny(unsafe_code)]

use kernel::prelude::*;

#[path = "abi/lib.rs"]
pub mod abi;
#[path = "uapi/lib.rs"]
pub mod uapi;

#[expect(unsafe_code)]
mod ffi;
#[path = "luo_core/mod.rs"]
mod luo_core;
mod luo_file;
mod luo_flb;
mod luo_session;
mod records;

use luo_core::boot::LuoModule;

module! {
    type: LuoModule,
    name: "luo",
    authors: ["The LUO developers"],
    description: "Live Update Orchestrator",
    license: "GPL",
}
