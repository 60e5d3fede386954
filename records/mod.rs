// SPDX-License-Identifier: GPL-2.0

//! Records in preserved memory.

pub(crate) mod chain;
pub(crate) mod checksums;
mod display;
pub(crate) mod quarantine;
