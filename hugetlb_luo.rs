// SPDX-License-Identifier: GPL-2.0

//! Memfds of huge pages (HugeTLB) across a live update.
//!
//! A file handler like that of any driver: it uses the public driver API and the abstraction of
//! HugeTLB. The layout is `hugetlb-memfd-v1`.
//!
//! What happens to a file:
//!
//! - preserve: the file is frozen: it can neither grow nor shrink nor lose pages. All pages are
//!   pinned, moved before if they are where they cannot stay, and preserved as whole folios. Pages
//!   may still appear in holes, and are looked for at the freeze.
//! - freeze: what may have changed since is written: position, seals, owner, and so on, and for
//!   which holes there is a reservation. From now on, a folio that is inserted into a hole is
//!   preserved and listed ([`late`]) until the kexec is called off.
//! - retrieve: the whole description is validated first, a file is made and its reservations. Only
//!   then folios are restored and inserted into the file.
//!
//! What is handed over counts as allocated from the next kernel's pools. So that these do not
//! allocate it once more when they are made, an FLB ([`pool`]) tells how much it is, and is read
//! early in the boot.

#![deny(unsafe_code)]

use kernel::{
    liveupdate::HandlerCell,
    prelude::*, //
};

#[path = "abi/lib.rs"]
pub mod abi;
#[path = "memfd_luo/attributes.rs"]
#[expect(dead_code, reason = "memfds of shmem have more")]
mod attributes;
#[path = "hugetlb_luo/handler.rs"]
mod handler;
#[path = "hugetlb_luo/kept.rs"]
mod kept;
#[path = "memfd_luo/late.rs"]
#[expect(dead_code, reason = "memfds of shmem have more")]
mod late;
#[path = "hugetlb_luo/lists.rs"]
mod lists;
#[path = "memfd_luo/memory.rs"]
mod memory;
#[path = "hugetlb_luo/pool.rs"]
mod pool;
#[path = "hugetlb_luo/preserve.rs"]
mod preserve;
#[path = "memfd_luo/record_pages.rs"]
#[expect(dead_code, reason = "memfds of shmem have more")]
mod record_pages;
#[path = "memfd_luo/report.rs"]
mod report;
#[path = "hugetlb_luo/restore.rs"]
mod restore;
#[path = "memfd_luo/retrieve.rs"]
mod retrieve;

use handler::Handler;

module! {
    type: HugetlbLuo,
    name: "hugetlb_luo",
    authors: ["The LUO developers"],
    description: "Live update of memfds of huge pages",
    license: "GPL",
}

/// The module, which is built in. The handler is registered before, by [`early`].
struct HugetlbLuo;

impl kernel::Module for HugetlbLuo {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

/// Registers the handler, before HugeTLB makes its pools, and announces what is handed over.
fn early() {
    static HANDLER: HandlerCell<Handler> = HandlerCell::new();

    match HANDLER.register() {
        // It stays until the machine goes down.
        Ok(registration) => core::mem::forget(registration),
        Err(EOPNOTSUPP) => return,
        Err(e) => {
            pr_err!("the handler cannot be registered: {:?}\n", e);
            return;
        }
    }
    pool::announce();
}

kernel::pure_initcall_fn!(rust_hugetlb_luo_early, early);
