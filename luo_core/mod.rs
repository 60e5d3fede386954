// SPDX-License-Identifier: GPL-2.0

//! Boot, the kexec, and the interfaces to user space.

pub(crate) mod boot;
pub(crate) mod context;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
pub(crate) mod corrupt;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
mod corrupt_memfd;
mod debugfs;
mod device;
mod formats;
mod handover;
pub(crate) mod ioctl;
#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
pub(crate) mod kunit;
pub(crate) mod orchestrator;
pub(crate) mod outgoing_format;
pub(crate) mod params;
pub(crate) mod reboot;
pub(crate) mod refusal;
mod root;
pub(crate) mod status;
pub(crate) mod subsystems;
mod sysfs;
pub(crate) mod trace;
