// SPDX-License-Identifier: GPL-2.0

//! C drivers and C callers: the only module of the crate with `unsafe` code.

mod exports;
pub(crate) mod flb;
pub(crate) mod handler;
pub(crate) mod kernel;
mod module;
pub(crate) mod subsystem;
pub(crate) mod tracepoints;
