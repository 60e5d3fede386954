// SPDX-License-Identifier: GPL-2.0

//! All tests. Those that the C LUO of Linux 7.3 is known to fail are marked so; what it does
//! instead stands in the documentation of this project as a difference.

mod borders;
mod client32;
mod corrupt;
mod device;
mod driver;
mod endurance;
mod faults;
mod freeze;
mod hugetlb;
mod kexec;
mod killed;
mod late;
mod lifetime;
mod limits;
mod look;
mod machine;
mod memfd;
mod memfd_use;
mod pages;
mod poison;
mod preserve;
mod pressure;
mod race;
mod reboot;
mod sample;
mod session;
mod subsystem;
mod sysfs;
mod table;
mod target;
mod tmpfs;

pub use self::table::all;
