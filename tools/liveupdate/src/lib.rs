// SPDX-License-Identifier: MIT OR Apache-2.0

//! Client library of the Live Update Orchestrator (LUO).
//!
//! LUO carries open files over a kexec. A process puts them into a named *session*, the machine
//! starts its next kernel, and a process there takes the session and its files back.
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
//! # What is where
//!
//! | module or type | what it is for |
//! |---|---|
//! | [`Device`] | `/dev/liveupdate`: makes sessions, and takes over those of the previous kernel |
//! | [`Session`], [`AnySession`] | an open session of known direction, or of one still to be asked for |
//! | [`keeper`] | what becomes of an incoming session that is dropped unfinished |
//! | [`handoff`] | sessions between processes: `LISTEN_FDS`, sockets, the service manager's store |
//! | [`status`] | the state of the machine, from sysfs, without opening the device |
//! | [`listing`] | all sessions and their files, from debugfs, without opening the device |
//! | [`holders`] | which processes have which sessions open |
//! | [`kexec`] | loading the next kernel, and the jump into it |
//! | [`cmdline`] | kernel command lines |
//!
//! # Nothing is destroyed silently
//!
//! When the last descriptor of an incoming session is closed, the kernel may free everything in it
//! that nobody has retrieved. So dropping a [`Session<Incoming>`] closes nothing: unless it was
//! [finished](Session::finish), its descriptor goes to the process's [`keeper`], with a warning.
//! Only [`Session::finish`], [`Session::discard`] and the owner of a raw descriptor
//! ([`Session::into_fd`]) end a session.
//!
//! # Features
//!
//! By default the library depends on little: nix, zerocopy and the uAPI crate.
//!
//! | feature | adds |
//! |---|---|
//! | `agent` | `agent`: a client of the live update agent, for programs that take part in updates |
//! | `image` | `image`: what a kernel image reads; `preflight`: whether it can follow this kernel |
//! | `serde` | `Serialize` for the types that describe something |

#[cfg(feature = "agent")]
pub mod agent;
pub mod cmdline;
mod device;
mod error;
pub mod handoff;
pub mod holders;
#[cfg(feature = "image")]
pub mod image;
pub mod keeper;
mod kept;
pub mod kexec;
pub mod listing;
mod name;
#[cfg(feature = "image")]
pub mod preflight;
mod request;
mod session;
pub mod status;
mod token;

pub use device::{
    Device,
    DEVICE_PATH, //
};
pub use error::{
    Context,
    Errno,
    Error,
    Operation,
    Result, //
};
pub use liveupdate_uapi as uapi;
pub use name::{
    NameError,
    SessionName, //
};
pub use request::request;
pub use session::{
    AnySession,
    Direction,
    DirectionKind,
    Incoming,
    Outgoing,
    Session, //
};
pub use token::Token;
