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
pub(crate) trait Format {
    /// Its name, as in `liveupdate.abi=`.
    fn name(&self) -> &'static str;

    /// How many blocks a chain of records may have.
    fn max_blocks(&self) -> usize;

    /// Whether there are checksums of records.
    fn has_checksums(&self) -> bool;

    /// Whether there is room for the state of subsystems.
    fn has_subsystems(&self) -> bool;

    /// Whether the next kernel expects a block of FLBs even if it is empty.
    fn needs_flbs(&self) -> bool;

    /// Writes the root to a page that is aligned as a device tree has to be.
    ///
    /// `checks` and the parts of `extras` that the format has no place for are left out.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if it does not fit.
    fn write_root(
        &self,
        page: &mut [u8],
        root: &Root,
        checks: Option<&RootChecks<'_>>,
        extras: &Extras<'_>,
    ) -> Result;
}

/// The format `abi`.
pub(crate) fn of(abi: OutgoingAbi) -> &'static dyn Format {
    match abi {
        OutgoingAbi::Fdt => &fdt::Fdt,
        OutgoingAbi::LuoV5 => &luo_v5::LuoV5,
    }
}

/// The format that is written now.
pub(crate) fn outgoing() -> &'static dyn Format {
    of(outgoing_abi())
}
