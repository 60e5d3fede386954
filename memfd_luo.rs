// SPDX-License-Identifier: GPL-2.0

//! Memfds across a live update.
//!
//! A file handler like that of any driver: it uses the public driver API and the shmem abstraction,
//! and so runs under either implementation of LUO. A handler is registered for each layout:
//!
//! ```text
//!  small       memfd-small-v3    at most one page: many files share a page of records
//!  extents     memfd-extents-v3  our own layout for all other files, and the default
//!  folios_v2   memfd-v2          the layout of the C handler: content, size, position and seals
//! ```
//!
//! All three are read, always; of the first two also versions 1 and 2, which earlier kernels wrote.
//! `liveupdate.abi=luo-v5` has files written in the last one, for a next kernel that reads nothing
//! else.
//!
//! What happens to a file:
//!
//! - preserve: its mapping is frozen, and all of its pages are pinned and preserved. Pages that are
//!   fragmented in memory are migrated together first.
//! - freeze: what may have changed since is written: position, seals, owner, and so on. From now
//!   on, a folio that is inserted into a hole is preserved and listed ([`late`]) until the kexec is
//!   called off. Folios that were inserted before are pinned and preserved, and the file is
//!   described anew.
//! - retrieve: the whole description is validated first, and a file is made. Only then pages are
//!   restored, part by part, and inserted into the file. If that fails, the rest is restored and
//!   freed.

#![deny(unsafe_code)]

use kernel::{
    liveupdate::{
        HandlerCell,
        Registration, //
    },
    prelude::*, //
};

#[path = "abi/lib.rs"]
pub mod abi;
#[path = "memfd_luo/attributes.rs"]
mod attributes;
#[path = "memfd_luo/extents.rs"]
mod extents;
#[path = "memfd_luo/filling.rs"]
mod filling;
#[path = "memfd_luo/folios_v2.rs"]
mod folios_v2;
#[path = "memfd_luo/handler.rs"]
mod handler;
#[path = "memfd_luo/late.rs"]
mod late;
#[path = "memfd_luo/layout.rs"]
mod layout;
#[path = "memfd_luo/memory.rs"]
mod memory;
#[path = "memfd_luo/parts.rs"]
mod parts;
#[path = "memfd_luo/preserve.rs"]
mod preserve;
#[path = "memfd_luo/record_pages.rs"]
mod record_pages;
#[path = "memfd_luo/report.rs"]
mod report;
#[path = "memfd_luo/restore.rs"]
mod restore;
#[path = "memfd_luo/retrieve.rs"]
mod retrieve;
#[path = "memfd_luo/singles.rs"]
mod singles;
#[path = "memfd_luo/slots.rs"]
mod slots;
#[path = "memfd_luo/small.rs"]
mod small;
#[path = "memfd_luo/version.rs"]
mod version;

use extents::Extents;
use folios_v2::FoliosV2;
use handler::Handler;
use small::Small;
use version::CURRENT;

module! {
    type: MemfdLuo,
    name: "memfd_luo",
    authors: ["The LUO developers"],
    description: "Live update of memfds",
    license: "GPL",
}

/// All handlers; none if live update is off.
struct MemfdLuo {
    _handlers: Option<Handlers>,
}

/// LUO asks handlers in the order of their registration.
struct Handlers {
    _small: Registration<Small<CURRENT>>,
    _small_v2: Registration<Small<2>>,
    _small_v1: Registration<Small<1>>,
    _extents: Registration<Handler<Extents<CURRENT>>>,
    _extents_v2: Registration<Handler<Extents<2>>>,
    _extents_v1: Registration<Handler<Extents<1>>>,
    _folios_v2: Registration<Handler<FoliosV2>>,
}

impl Handlers {
    fn register() -> Result<Self> {
        static SMALL: HandlerCell<Small<CURRENT>> = HandlerCell::new();
        static SMALL_V2: HandlerCell<Small<2>> = HandlerCell::new();
        static SMALL_V1: HandlerCell<Small<1>> = HandlerCell::new();
        static EXTENTS: HandlerCell<Handler<Extents<CURRENT>>> = HandlerCell::new();
        static EXTENTS_V2: HandlerCell<Handler<Extents<2>>> = HandlerCell::new();
        static EXTENTS_V1: HandlerCell<Handler<Extents<1>>> = HandlerCell::new();
        static FOLIOS_V2: HandlerCell<Handler<FoliosV2>> = HandlerCell::new();

        Ok(Self {
            _small: SMALL.register()?,
            _small_v2: SMALL_V2.register()?,
            _small_v1: SMALL_V1.register()?,
            _extents: EXTENTS.register()?,
            _extents_v2: EXTENTS_V2.register()?,
            _extents_v1: EXTENTS_V1.register()?,
            _folios_v2: FOLIOS_V2.register()?,
        })
    }
}

impl kernel::Module for MemfdLuo {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let handlers = match Handlers::register() {
            Ok(handlers) => Some(handlers),
            Err(EOPNOTSUPP) => None,
            Err(e) => {
                pr_err!("handlers cannot be registered: {:?}\n", e);
                return Err(e);
            }
        };
        Ok(Self {
            _handlers: handlers,
        })
    }
}
