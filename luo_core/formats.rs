// SPDX-License-Identifier: GPL-2.0

//! What this implementation reads, as notes in the kernel image.
//!
//! A new layout gets its line here, one that is not read any more loses it.

use kernel::liveupdate_note;

use crate::abi::{
    root::{
        FLB_COMPATIBLE,
        ROOT_COMPATIBLE,
        SESSION_COMPATIBLE,
        V5_NAME, //
    },
    subsystem::SUBSYSTEM_COMPATIBLE, //
};

liveupdate_note!("root", ROOT_COMPATIBLE);
liveupdate_note!("root", V5_NAME);
liveupdate_note!("record", SESSION_COMPATIBLE);
liveupdate_note!("record", FLB_COMPATIBLE);
liveupdate_note!("record", SUBSYSTEM_COMPATIBLE);
