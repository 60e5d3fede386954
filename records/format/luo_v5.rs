// SPDX-License-Identifier: GPL-2.0

//! The format of the C implementation in Linux 7.2 and 7.3: a structure.

use kernel::prelude::*;

use super::Format;
use crate::abi::{
    chain::MAX_BLOCKS_V5,
    root::{
        Extras,
        RootChecks, //
    },
    Root, //
};

pub(super) struct LuoV5;

impl Format for LuoV5 {
    fn name(&self) -> &'static str {
        "luo-v5"
    }

    fn max_blocks(&self) -> usize {
        MAX_BLOCKS_V5
    }

    fn has_checksums(&self) -> bool {
        false
    }

    fn has_subsystems(&self) -> bool {
        false
    }

    /// The C implementation refuses a root without FLBs.
    fn needs_flbs(&self) -> bool {
        true
    }

    fn write_root(
        &self,
        page: &mut [u8],
        root: &Root,
        _checks: Option<&RootChecks<'_>>,
        _extras: &Extras<'_>,
    ) -> Result {
        root.to_v5().write_to_prefix(page).map_err(|_| ENOSPC)
    }
}
