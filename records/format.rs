// SPDX-License-Identifier: GPL-2.0

//! The formats of the handover: how the root is written, and what there is room for.
//!
//! Each format is a module, and everything that depends on it asks [`Format`]. How the files are
//! described is up to their handlers, see [`kernel::liveupdate::outgoing_abi`].

mod fdt;
mod luo_v5;

use kernel::{
    liveupdate::{
        outgoing_abi,
        OutgoingAbi, //
    },
    prelude::*, //
};

use crate::abi::{
    root::{
        Extras,
        RootChecks, //
    },
    Root, //
};

/// A format of the handover.
pub(crate) struct Format {
    /// Its name, as in `liveupdate.abi=`.
    pub(crate) name: &'static str,
    /// How many blocks a chain of records may have.
    pub(crate) max_blocks: usize,
    /// Whether there are checksums of records.
    pub(crate) has_checksums: bool,
    /// Whether there is room for the state of subsystems.
    pub(crate) has_subsystems: bool,
    /// Whether the next kernel expects a block of FLBs even if it is empty.
    pub(crate) needs_flbs: bool,
    /// Writes the root to a page that is aligned as a device tree has to be. What the format has no
    /// place for is left out. [`ENOSPC`] if the rest does not fit.
    pub(crate) write_root: WriteRoot,
}

/// The page, the root, its checksums, and what else may stand beside it.
type WriteRoot = fn(&mut [u8], &Root, Option<&RootChecks<'_>>, &Extras<'_>) -> Result;

/// The format `abi`.
pub(crate) fn of(abi: OutgoingAbi) -> &'static Format {
    match abi {
        OutgoingAbi::Fdt => &fdt::FORMAT,
        OutgoingAbi::LuoV5 => &luo_v5::FORMAT,
    }
}

/// The format that is written now.
pub(crate) fn outgoing() -> &'static Format {
    of(outgoing_abi())
}
