// SPDX-License-Identifier: GPL-2.0

//! The memory of the previous kernel, as those see it who go through the lists in it.

use kernel::{
    kho::{
        self,
        Restored, //
    },
    prelude::*, //
};

use super::{
    abi::{
        Block,
        Memory,
        Phys, //
    },
    report::{
        address,
        not_there, //
    }, //
};

/// The memory of the previous kernel, to be copied.
pub(super) struct CopyMemory;

impl Memory for CopyMemory {
    type Page = KBox<Block>;
    type Error = Error;

    fn page(&self, at: Phys) -> Result<KBox<Block>> {
        let at = address(at)?;
        kho::copy_of(at).map_err(|e| not_there(e, at))
    }
}

/// The memory of the previous kernel, to be claimed and then freed.
pub(super) struct ClaimMemory;

impl Memory for ClaimMemory {
    type Page = Restored<Block>;
    type Error = Error;

    fn page(&self, at: Phys) -> Result<Restored<Block>> {
        let at = address(at)?;
        Restored::claim(at).map_err(|e| not_there(e, at))
    }
}
