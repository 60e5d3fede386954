// SPDX-License-Identifier: GPL-2.0

//! Records in preserved memory, and the formats of what leads to them.

pub(crate) mod chain;
pub(crate) mod checksums;
mod display;
pub(crate) mod format;
pub(crate) mod quarantine;
