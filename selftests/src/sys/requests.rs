// SPDX-License-Identifier: GPL-2.0

//! Requests to LUO that are right, and those that are wrong in all the ways there are.

use super::PAGE;
use crate::harness::{
    Failure,
    Outcome, //
};
use liveupdate::uapi::{
    self,
    Request, //
};
use nix::{
    errno::Errno,
    libc,
    sys::mman::{
        mmap_anonymous,
        mprotect,
        munmap,
        MapFlags,
        ProtFlags, //
    }, //
};
use std::{
    ffi::c_void,
    mem::size_of,
    num::NonZeroUsize,
    os::fd::{
        AsFd,
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    ptr::NonNull,
    slice, //
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

/// A request of this size without any bits but the number's.
pub fn command(nr: u8) -> u32 {
    (u32::from(uapi::IOCTL_TYPE) << 8) | u32::from(nr)
}

/// A request to make a session.
pub fn create_session(name: &[u8]) -> uapi::CreateSession {
    uapi::CreateSession {
        size: size_of::<uapi::CreateSession>() as u32,
        fd: -1,
        name: name_field(name),
    }
}

/// A request to take over a session.
pub fn retrieve_session(name: &[u8]) -> uapi::RetrieveSession {
    uapi::RetrieveSession {
        size: size_of::<uapi::RetrieveSession>() as u32,
        fd: -1,
        name: name_field(name),
    }
}

/// A request to preserve a file.
pub fn preserve_fd(fd: i32, token: u64) -> uapi::PreserveFd {
    uapi::PreserveFd {
        size: size_of::<uapi::PreserveFd>() as u32,
        fd,
        token,
    }
}

/// A request to retrieve a file.
pub fn retrieve_fd(token: u64) -> uapi::RetrieveFd {
    uapi::RetrieveFd {
        size: size_of::<uapi::RetrieveFd>() as u32,
        fd: -1,
        token,
        flags: 0,
        target: 0,
    }
}

/// A request to finish a session.
pub fn finish() -> uapi::Finish {
    uapi::Finish {
        size: size_of::<uapi::Finish>() as u32,
        reserved: 0,
    }
}

/// A request for a session's name.
pub fn get_name() -> uapi::GetName {
    uapi::GetName {
        size: size_of::<uapi::GetName>() as u32,
        reserved: 0,
        name: [0xff; uapi::SESSION_NAME_LENGTH],
    }
}

/// Puts up to 64 bytes into a name, which may leave no room for the NUL.
fn name_field(name: &[u8]) -> [u8; uapi::SESSION_NAME_LENGTH] {
    let mut field = [0; uapi::SESSION_NAME_LENGTH];

    field[..name.len()].copy_from_slice(name);
    field
}

/// Makes a request and takes ownership of the descriptor that it returns in bytes 4 to 8.
pub fn request_fd<R>(fd: &impl AsFd, mut request: R) -> nix::Result<OwnedFd>
where
    R: Request + IntoBytes + FromBytes + Immutable,
{
    liveupdate::request(fd.as_fd(), &mut request)?;
    let (new, _) = i32::read_from_prefix(&request.as_bytes()[4..]).expect("has two fields");
    // SAFETY: The kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Makes a request for its effect alone.
pub fn request<R>(fd: &impl AsFd, mut request: R) -> nix::Result<()>
where
    R: Request + IntoBytes + FromBytes + Immutable,
{
    liveupdate::request(fd.as_fd(), &mut request)
}

/// Some pages to make requests from, with a request at any place in them, and of any protection.
pub struct Arena {
    start: NonNull<c_void>,
    pages: usize,
    at: usize,
}

impl Arena {
    /// An arena of zeros, with the request at its start.
    pub fn new(pages: usize) -> Outcome<Self> {
        let len = NonZeroUsize::new(pages * PAGE).ok_or_else(|| Failure::here("no pages"))?;
        // SAFETY: A new private mapping disturbs nobody.
        let start = unsafe {
            mmap_anonymous(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )?
        };

        Ok(Self {
            start,
            pages,
            at: 0,
        })
    }

    /// An arena with `bytes` at `at`, where the request starts.
    pub fn with(pages: usize, at: usize, bytes: &[u8]) -> Outcome<Self> {
        let mut arena = Self::new(pages)?;

        arena.at = at;
        arena.write(at, bytes);
        Ok(arena)
    }

    /// Writes into pages that are writable.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.pages * PAGE);
        // SAFETY: In bounds of the mapping, which nobody else has. A page without permission
        // ends the test, not its soundness.
        unsafe {
            self.start
                .cast::<u8>()
                .add(at)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
    }

    /// What is in pages that are readable.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.pages * PAGE);
        // SAFETY: In bounds of the mapping; the borrow of it does not outlive this call.
        unsafe { slice::from_raw_parts(self.start.cast::<u8>().add(at).as_ptr(), len) }.to_vec()
    }

    /// Changes the protection of a page.
    pub fn protect(&self, page: usize, protection: ProtFlags) -> Outcome {
        assert!(page < self.pages);
        // SAFETY: The page is ours, and no reference into it is alive.
        unsafe { mprotect(self.start.byte_add(page * PAGE), PAGE, protection)? };
        Ok(())
    }

    /// Makes the request.
    pub fn request(&self, fd: &impl AsFd, command: u32) -> nix::Result<()> {
        // SAFETY: The requests read and write at most what the mapping has from here on, or a
        // size that the test has made up for a kernel which stops at the end of the mapping.
        let ret = unsafe {
            let arg = self.start.byte_add(self.at);
            libc::ioctl(fd.as_fd().as_raw_fd(), command.into(), arg.as_ptr())
        };
        Errno::result(ret).map(drop)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: No reference into the mapping is alive.
        let _ = unsafe { munmap(self.start, self.pages * PAGE) };
    }
}

/// Makes a request with an address that is not this process's.
pub fn request_from_nowhere(fd: &impl AsFd, command: u32, address: usize) -> nix::Result<()> {
    assert!(!(PAGE..=usize::MAX / 2).contains(&address));
    // SAFETY: Nothing is ever mapped there.
    let ret = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command.into(), address) };
    Errno::result(ret).map(drop)
}
