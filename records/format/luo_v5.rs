// SPDX-License-Identifier: GPL-2.0

//! The format of the C implementation in Linux 7.2 and 7.3: a structure.

use kernel::prelude::*;

use super::Format;
use crate::abi::chain::MAX_BLOCKS_V5;

pub(super) static FORMAT: Format = Format {
    name: "luo-v5",
    max_blocks: MAX_BLOCKS_V5,
    has_checksums: false,
    has_subsystems: false,
    // The C implementation refuses a root without FLBs.
    needs_flbs: true,
    write_root: |page, root, _checks, _extras| {
        root.to_v5().write_to_prefix(page).map_err(|_| ENOSPC)
    },
};
