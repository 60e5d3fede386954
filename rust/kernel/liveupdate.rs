// SPDX-License-Identifier: GPL-2.0

//! Live update: what a driver does so that its files survive a kexec.
//!
//! A user-space agent collects open files in named sessions and reboots into a new kernel by
//! kexec; there it gets the files back. The Live Update Orchestrator (LUO) does the book-keeping;
//! what a file consists of, only its driver knows. So a driver implements
//!
//! - [`FileHandler`] for each type of file of its that can survive; a [`HandlerCell`] registers it
//!   and gives a [`Registration`], which unregisters it when dropped;
//! - [`Flb`] for state that several files share (file-lifecycle-bound state): preserved with the
//!   first file that needs it, finished with the last. It lives in a [`FlbCell`].
//!
//! State that belongs to no file is a `Subsystem`'s, in a `SubsystemCell`.
//!
//! What is handed over for each is a [`Handover`]: a number, or preserved memory with a type.
//!
//! This module stands on the C interface and on nothing else, so a driver written with it works
//! under any implementation of LUO; only subsystems need the one in Rust.
//!
//! # The life of a file
//!
//! ```text
//!  old kernel                                      new kernel
//!
//!  can_preserve ─ preserve ─┬─ freeze ─── kexec ───┬─ retrieve ─ can_finish ─ finish
//!                           │     │                │                  │
//!                           │  unfreeze            └── (never asked) ─┘
//!                           └─ unpreserve
//! ```
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     fs::File,
//!     liveupdate::{
//!         FileHandler,
//!         HandlerCell,
//!         Outcome,
//!         RetrieveError, //
//!     },
//!     sync::aref::ARef, //
//! };
//!
//! struct Counter;
//!
//! # fn value_of(_: &File) -> u64 { 7 }
//! # fn is_ours(_: &File) -> bool { false }
//! # fn file_with(_: u64) -> Result<ARef<File>> { Err(ENODEV) }
//! #[vtable]
//! impl FileHandler for Counter {
//!     const COMPATIBLE: &'static CStr = c"example-counter-v1";
//!     // The whole state is one number.
//!     type Handle = u64;
//!     type State = ();
//!
//!     fn can_preserve(file: &File) -> bool {
//!         is_ours(file)
//!     }
//!
//!     fn preserve(file: &File) -> Result<(u64, ())> {
//!         Ok((value_of(file), ()))
//!     }
//!
//!     fn unpreserve(_file: &File, _state: (), _value: u64) {}
//!
//!     fn retrieve(value: u64) -> Result<ARef<File>, RetrieveError<u64>> {
//!         file_with(value).map_err(|e| RetrieveError::Again(e, value))
//!     }
//!
//!     fn finish(_outcome: Outcome<'_, u64>) {}
//! }
//!
//! static COUNTER: HandlerCell<Counter> = HandlerCell::new();
//!
//! // In a driver, the module's data keeps this.
//! let registration = COUNTER.register();
//! # assert!(!Counter::HAS_FREEZE);
//! # assert!(registration.is_ok() || registration.err() == Some(EOPNOTSUPP));
//! ```
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h).

use crate::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

mod file;
mod flb;
mod handover;
pub mod note;
mod reboot;
#[cfg(CONFIG_LIVEUPDATE_RUST)]
mod subsystem;

pub use self::{
    file::{
        FileHandler,
        FileState,
        HandlerCell,
        IncomingHandle,
        Outcome,
        Registration,
        RetrieveError,
        RETRIEVE_AGAIN, //
    },
    flb::{
        AnyFlb,
        Flb,
        FlbCell,
        FlbRef, //
    },
    handover::Handover,
    reboot::{
        is_rebooting,
        Rebooting, //
    }, //
};

#[cfg(CONFIG_LIVEUPDATE_RUST)]
pub use self::subsystem::{
    Priority,
    Subsystem,
    SubsystemCell,
    SubsystemRegistration, //
};

/// Whether live update is enabled on this machine (`liveupdate=` on the command line).
///
/// C counterpart: `liveupdate_enabled()`.
pub fn is_enabled() -> bool {
    // SAFETY: The function only reads a flag and has no requirements.
    unsafe { bindings::liveupdate_enabled() }
}

/// In which layouts state is handed over, for handlers that know several (`liveupdate.abi=`).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum OutgoingAbi {
    /// In those that hold most.
    Fdt,
    /// In those that the C implementation of Linux 7.2 and 7.3 reads.
    LuoV5,
}

static WRITES_LUO_V5: Atomic<bool> = Atomic::new(false);
static LOSSY: Atomic<bool> = Atomic::new(false);

/// In which layouts this kernel hands state over.
///
/// A driver with a handler for each layout lets `can_preserve` depend on it. It may change while
/// files are preserved; then LUO has them preserved once more, see [`FileHandler::preserve`].
///
/// Incoming files are not concerned: a handler goes on reading all layouts that it knows.
pub fn outgoing_abi() -> OutgoingAbi {
    if WRITES_LUO_V5.load(Relaxed) {
        OutgoingAbi::LuoV5
    } else {
        OutgoingAbi::Fdt
    }
}

/// Whether a handler may leave out what the layout has no place for, but would else refuse a file
/// for (`liveupdate.abi=luo-v5-lossy`).
pub fn may_lose_properties() -> bool {
    LOSSY.load(Relaxed)
}

/// For the parameter `liveupdate.abi=`. No module can call it.
#[no_mangle]
extern "C" fn liveupdate_set_abi(luo_v5: bool, lossy: bool) {
    WRITES_LUO_V5.store(luo_v5, Relaxed);
    LOSSY.store(lossy, Relaxed);
}

/// Makes the array that the C structures hold of a compatible string, at compile time.
const fn compatible<const N: usize>(name: &CStr) -> [c_char; N] {
    let bytes = name.to_bytes();
    assert!(!bytes.is_empty() && bytes.len() < N);

    let mut array = [0; N];
    let mut i = 0;
    while i < bytes.len() {
        array[i] = bytes[i];
        i += 1;
    }
    array
}

/// Keeps [`AnyFlb`] from being implemented or called elsewhere.
#[doc(hidden)]
pub struct Token(());
