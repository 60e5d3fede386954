// SPDX-License-Identifier: MIT OR Apache-2.0

//! The descriptor of an incoming session, as [`Session`](crate::Session) owns it.

use crate::{
    keeper,
    SessionName, //
};
use std::{
    mem::ManuallyDrop,
    os::fd::{
        AsFd,
        BorrowedFd,
        OwnedFd, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
};

/// The descriptor of an incoming session, which the keeper gets unless it is released.
#[derive(Debug)]
pub struct Kept {
    fd: ManuallyDrop<OwnedFd>,
    name: SessionName,
    released: AtomicBool,
}

impl Kept {
    pub(crate) fn new(fd: OwnedFd, name: SessionName) -> Self {
        Self {
            fd: ManuallyDrop::new(fd),
            name,
            released: AtomicBool::new(false),
        }
    }

    /// Says that closing the descriptor does no harm any more.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Kept> for OwnedFd {
    fn from(kept: Kept) -> Self {
        let mut kept = ManuallyDrop::new(kept);
        // SAFETY: `kept` is not used after this and is never dropped, so neither is its field.
        unsafe { ManuallyDrop::take(&mut kept.fd) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: `drop` runs once, and nobody can use the field after it.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };

        if !*self.released.get_mut() {
            keeper::give(&self.name, fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::fd::AsRawFd,
        sync::Mutex, //
    };

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe().unwrap()
    }

    /// Whether nobody has the other end of a pipe open for writing.
    fn closed(reader: &OwnedFd) -> bool {
        let mut fds = [nix::poll::PollFd::new(
            reader.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap();
        fds[0]
            .revents()
            .is_some_and(|events| events.contains(nix::poll::PollFlags::POLLHUP))
    }

    // One test, as keeper and hook belong to the process.
    #[test]
    fn dropping() {
        static WARNINGS: Mutex<Vec<keeper::Warning>> = Mutex::new(Vec::new());
        let name = SessionName::new("a").unwrap();
        keeper::set_warning_hook(|warning| WARNINGS.lock().unwrap().push(warning.clone()));

        let (reader, writer) = pipe();
        let number = writer.as_raw_fd();
        drop(Kept::new(writer, name));
        assert!(!closed(&reader));
        assert_eq!(*WARNINGS.lock().unwrap(), [keeper::Warning::Leaked(name)]);
        assert_eq!(keeper::set(keeper::Close), Err(keeper::AlreadySet));
        nix::unistd::close(number).unwrap();

        let (reader, writer) = pipe();
        let kept = Kept::new(writer, name);
        kept.release();
        drop(kept);
        assert!(closed(&reader));

        let (reader, writer) = pipe();
        let fd = OwnedFd::from(Kept::new(writer, name));
        assert!(!closed(&reader));
        drop(fd);
        assert!(closed(&reader));
        assert_eq!(WARNINGS.lock().unwrap().len(), 1);
    }
}
