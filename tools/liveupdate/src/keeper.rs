// SPDX-License-Identifier: MIT OR Apache-2.0

//! What becomes of an incoming session that is dropped unfinished.
//!
//! Closing the last descriptor of such a session may destroy everything in it that nobody has
//! retrieved. A program drops things by accident: on an early return, in a panic, at its end. So
//! the library does not close the descriptor but gives it to the process's *keeper*, and tells the
//! process's *warning hook* about it.
//!
//! | keeper | the session |
//! |---|---|
//! | [`Leak`] (default) | stays open as long as the process lives, and is handed over again at the next kexec |
//! | [`FdStore`] | goes to the service manager, which returns it to the next start of the service |
//! | [`Close`] | ends. For tests of the kernel |
//!
//! ```
//! use liveupdate::keeper;
//!
//! // At the start of a service with FileDescriptorStoreMax=.
//! keeper::set(keeper::FdStore).expect("nobody has set one before");
//! keeper::set_warning_hook(|warning| eprintln!("my-service: {warning}"));
//! ```

use crate::{
    handoff,
    Error,
    SessionName, //
};
use std::{
    fmt,
    io::Write,
    os::fd::{
        AsFd,
        IntoRawFd,
        OwnedFd, //
    },
    sync::{
        OnceLock,
        RwLock, //
    },
};

/// Takes incoming sessions that were dropped unfinished.
pub trait Keeper: Send + Sync {
    /// Takes one. It must not be closed, unless that is the point; and this must not panic.
    fn keep(&self, name: &SessionName, session: OwnedFd) -> Warning;
}

/// What the warning hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The descriptor stays open as long as the process lives.
    Leaked(SessionName),
    /// The service manager has the descriptor.
    Stored(SessionName),
    /// The service manager did not take the descriptor, which stays open as long as the process
    /// lives.
    NotStored(SessionName, Error),
    /// The descriptor is closed.
    Closed(SessionName),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(name) => write!(
                f,
                "session '{name}' was dropped unfinished; it stays open while this process lives"
            ),
            Self::Stored(name) => write!(
                f,
                "session '{name}' was dropped unfinished; it is in the service manager's store"
            ),
            Self::NotStored(name, why) => write!(
                f,
                "session '{name}' was dropped unfinished, and {why}; it stays open while this \
                 process lives"
            ),
            Self::Closed(name) => write!(f, "session '{name}' was closed unfinished"),
        }
    }
}

/// Keeps the descriptor open until the process ends.
///
/// At the latest then the kernel decides. Up to Linux 7.3 it finishes the session.
#[derive(Clone, Copy, Debug)]
pub struct Leak;

impl Keeper for Leak {
    fn keep(&self, name: &SessionName, session: OwnedFd) -> Warning {
        let _ = session.into_raw_fd();
        Warning::Leaked(*name)
    }
}

/// Puts the descriptor into the service manager's store, see [`handoff::store`].
///
/// If that fails it stays open, as with [`Leak`].
#[derive(Clone, Copy, Debug)]
pub struct FdStore;

impl Keeper for FdStore {
    fn keep(&self, name: &SessionName, session: OwnedFd) -> Warning {
        match handoff::store(session.as_fd(), &handoff::store_name(name)) {
            // The message with its own reference is under way, so ours can go.
            Ok(()) => Warning::Stored(*name),
            Err(why) => {
                let _ = session.into_raw_fd();
                Warning::NotStored(*name, why)
            }
        }
    }
}

/// Closes the descriptor: **data may be lost**.
///
/// For programs that test what the kernel does then.
#[derive(Clone, Copy, Debug)]
pub struct Close;

impl Keeper for Close {
    fn keep(&self, name: &SessionName, session: OwnedFd) -> Warning {
        drop(session);
        Warning::Closed(*name)
    }
}

static KEEPER: OnceLock<Box<dyn Keeper>> = OnceLock::new();

type Hook = Box<dyn Fn(&Warning) + Send + Sync>;
static HOOK: RwLock<Option<Hook>> = RwLock::new(None);

/// Another keeper was set before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadySet;

impl fmt::Display for AlreadySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the process has a keeper of unfinished sessions already")
    }
}

impl std::error::Error for AlreadySet {}

/// Sets the keeper of the process, once.
///
/// # Errors
///
/// [`AlreadySet`]; a session that was dropped already counts, as [`Leak`] had to take it.
pub fn set(keeper: impl Keeper + 'static) -> Result<(), AlreadySet> {
    KEEPER.set(Box::new(keeper)).map_err(|_| AlreadySet)
}

/// Sets who is told when the keeper has got a session.
///
/// The default prints the warning to standard error. The hook must not set another one.
pub fn set_warning_hook(hook: impl Fn(&Warning) + Send + Sync + 'static) {
    let mut place = HOOK
        .write()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    *place = Some(Box::new(hook));
}

fn warn(warning: &Warning) {
    match &*HOOK.read().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(hook) => hook(warning),
        None => {
            // Standard error may be closed, which is no reason to panic.
            let _ = writeln!(std::io::stderr(), "liveupdate: {warning}");
        }
    }
}

/// Gives a descriptor to the keeper, and tells the hook.
pub(crate) fn give(name: &SessionName, session: OwnedFd) {
    let keeper = KEEPER.get_or_init(|| Box::new(Leak));
    warn(&keeper.keep(name, session));
}
