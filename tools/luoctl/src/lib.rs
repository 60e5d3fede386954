// SPDX-License-Identifier: GPL-2.0

//! Client side of the Live Update Orchestrator.
//!
//! [`Device`] is `/dev/liveupdate`, [`Session`] a named container whose files outlive the kernel.
//! Which requests a session understands depends on the side of the reboot it is on, and so does
//! its type: files go into a `Session<Outgoing>` and come out of a `Session<Incoming>`.
//!
//! ```no_run
//! use liveupdate::Device;
//! use std::fs::File;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Before the update. The session must stay open until the reboot.
//! let session = Device::open()?.create_session("vm-0")?;
//! session.preserve(&File::open("/proc/self/fd/5")?, 1)?;
//!
//! // After the update.
//! let session = Device::open()?.retrieve_session("vm-0")?;
//! let memory = File::from(session.retrieve(1)?);
//! session.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! The modules beside the client are what an initramfs needs to do a live update from start to
//! end: [`kexec`] loads the next kernel and jumps into it, [`initramfs`] packs the files that it
//! boots with, [`guest`] makes a bare `init` process at home.

mod client;
mod error;
pub mod guest;
pub mod initramfs;
pub mod kexec;

pub use client::{
    request,
    Device,
    Direction,
    Incoming,
    Outgoing,
    Session,
    SessionName,
    DEVICE_PATH, //
};
pub use error::{
    Context,
    Error,
    Result, //
};
pub use liveupdate_uapi as uapi;
