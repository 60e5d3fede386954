// SPDX-License-Identifier: GPL-2.0

//! Shared mappings of files, and what the kernel does with their pages: pinned, moved, swapped,
//! poisoned.

use super::PAGE;
use crate::harness::{
    Failure,
    Outcome, //
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        mman::{
            madvise,
            mmap,
            munmap,
            MapFlags,
            MmapAdvise,
            ProtFlags, //
        },
        signal::Signal,
        wait::{
            waitpid,
            WaitStatus, //
        }, //
    },
    unistd::{
        fork,
        pipe,
        ForkResult, //
    }, //
};
use std::{
    ffi::c_void,
    fs::File,
    io::{
        Read,
        Write, //
    },
    num::NonZeroUsize,
    os::{
        fd::{
            AsFd,
            AsRawFd,
            FromRawFd,
            OwnedFd, //
        },
        unix::fs::FileExt, //
    },
    ptr::{
        self,
        NonNull, //
    },
    sync::atomic::AtomicU64, //
};

/// Writes one byte through a shared mapping of a file.
pub fn poke(file: &File, at: u64, byte: u8) -> Outcome {
    let page = at / PAGE as u64 * PAGE as u64;
    let len = NonZeroUsize::new(PAGE).expect("not zero");

    // SAFETY: A new shared mapping of one page, of which one byte is written; it is gone
    // afterwards.
    unsafe {
        let start = mmap(
            None,
            len,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
            file,
            page as i64,
        )?;
        start
            .cast::<u8>()
            .add((at - page) as usize)
            .write_volatile(byte);
        munmap(start, PAGE)?;
    }
    Ok(())
}

/// A shared mapping of a file.
pub struct SharedWords {
    start: NonNull<c_void>,
    len: usize,
}

impl SharedWords {
    /// Maps the first `len` bytes.
    pub fn of(file: &File, len: usize) -> Outcome<Self> {
        Ok(Self::mapped(file, len, MapFlags::empty())?)
    }

    /// The same, of huge pages that are not reserved.
    pub fn unreserved(file: &File, len: usize) -> Outcome<Self> {
        Ok(Self::mapped(file, len, MapFlags::MAP_NORESERVE)?)
    }

    /// Maps the first `len` bytes, with flags.
    pub fn mapped(file: &File, len: usize, flags: MapFlags) -> nix::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: A new mapping disturbs nobody.
        let start = unsafe {
            mmap(
                None,
                size,
                protection,
                MapFlags::MAP_SHARED | flags,
                file,
                0,
            )?
        };

        Ok(Self { start, len })
    }

    /// A word that other processes may change at any time.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= self.len);
        // SAFETY: In bounds of the mapping, which lives as long as `self`, and aligned.
        unsafe { AtomicU64::from_ptr(self.start.byte_add(at).cast().as_ptr()) }
    }

    /// The address of a part of it, for the kernel.
    fn address(&self, at: usize, len: usize) -> *mut c_void {
        assert!(at + len <= self.len);
        // SAFETY: In bounds of the mapping.
        unsafe { self.start.byte_add(at) }.as_ptr()
    }

    /// Has the kernel read from here, and write to a file.
    pub fn write_to(&self, at: usize, len: usize, file: &File, offset: u64) -> nix::Result<usize> {
        let from = self.address(at, len);
        // SAFETY: The kernel copies from the mapping.
        let done = unsafe { libc::pwrite(file.as_raw_fd(), from, len, offset as i64) };
        Errno::result(done).map(|done| done as usize)
    }

    /// Has the kernel read from a file, and write here.
    pub fn read_from(&self, at: usize, len: usize, file: &impl AsRawFd) -> nix::Result<usize> {
        let to = self.address(at, len);
        // SAFETY: The kernel copies into the mapping, of which no reference but to atomics exists.
        let done = unsafe { libc::read(file.as_raw_fd(), to, len) };
        Errno::result(done).map(|done| done as usize)
    }

    /// The same from a place in the file.
    pub fn read_from_at(
        &self,
        at: usize,
        len: usize,
        file: &impl AsRawFd,
        offset: u64,
    ) -> nix::Result<usize> {
        let to = self.address(at, len);
        // SAFETY: As above.
        let done = unsafe { libc::pread(file.as_raw_fd(), to, len, offset as i64) };
        Errno::result(done).map(|done| done as usize)
    }

    /// The same memory at another address.
    pub fn moved(self) -> nix::Result<Self> {
        // SAFETY: The mapping is ours, and no reference into it is alive, as it is consumed.
        let start = unsafe {
            let new = libc::mremap(
                self.start.as_ptr(),
                self.len,
                self.len,
                libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP,
                // Where to try first. It is read with this flag, so it must be passed.
                ptr::null_mut::<c_void>(),
            );
            if new == libc::MAP_FAILED {
                return Err(Errno::last());
            }
            new
        };
        let start = NonNull::new(start).ok_or(Errno::EFAULT)?;
        // What it was before is unmapped when `self` is dropped.
        Ok(Self {
            start,
            len: self.len,
        })
    }

    /// Has the kernel pin the pages here, as for a device, and write the bytes into them.
    pub fn write_pinned(&self, at: usize, bytes: &[u8]) -> nix::Result<usize> {
        let from = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let to = libc::iovec {
            iov_base: self.address(at, bytes.len()),
            iov_len: bytes.len(),
        };
        // SAFETY: The kernel copies from `bytes` into the mapping, of which no reference but to
        // atomics exists.
        let done = unsafe { libc::process_vm_writev(libc::getpid(), &from, 1, &to, 1, 0) };
        Errno::result(done).map(|done| done as usize)
    }

    /// Gives advice about a part of it.
    pub fn advise(&self, at: usize, len: usize, advice: i32) -> nix::Result<()> {
        // SAFETY: In bounds of the mapping; none of the advice that is given here unmaps it.
        Errno::result(unsafe { libc::madvise(self.address(at, len), len, advice) }).map(drop)
    }

    /// The node of memory that the page at `at` lies on.
    pub fn node(&self, at: usize) -> nix::Result<i32> {
        let page = self.address(at, PAGE);
        let mut node = 0;
        // SAFETY: The kernel reads the address, and writes a number.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_move_pages, 0, 1, &page, 0, &mut node, 0)
        })?;
        match node {
            0.. => Ok(node),
            errno => Err(Errno::from_raw(-errno)),
        }
    }

    /// Says on which nodes of memory new pages are to be.
    pub fn set_policy(&self, policy: i32, nodes: u64) -> nix::Result<()> {
        let start = self.address(0, self.len);
        // SAFETY: The kernel reads the set of nodes.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_mbind, start, self.len, policy, &nodes, 64, 0)
        })
        .map(drop)
    }

    /// Writes a word.
    pub fn write(&mut self, at: usize, value: u64) {
        assert!(at % 8 == 0 && at + 8 <= self.len);
        // SAFETY: In bounds of the mapping, and aligned.
        unsafe { self.start.byte_add(at).cast::<u64>().write_volatile(value) };
    }
}

/// Pages that come into a mapping by `UFFDIO_COPY`, as those of a guest that is migrated after it was
/// started.
pub struct Postcopy {
    fd: OwnedFd,
}

impl Postcopy {
    /// Takes over all holes of a mapping.
    pub fn of(mapping: &SharedWords) -> Outcome<Self> {
        const API: u64 = 0xC018_AA3F;
        const REGISTER: u64 = 0xC020_AA00;
        const MISSING: u64 = 1;

        // SAFETY: The system call takes flags only.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
        // SAFETY: The kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Version; features and requests are the answer.
        let mut api = [0xAA_u64, 0, 0];
        // SAFETY: The kernel reads and writes the three words.
        Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), API, api.as_mut_ptr()) })?;
        let start = mapping.start.as_ptr() as u64;
        let mut register = [start, mapping.len as u64, MISSING, 0];
        // SAFETY: The kernel reads and writes the four words.
        Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), REGISTER, register.as_mut_ptr()) })?;
        Ok(Self { fd })
    }

    /// Puts a page, of the size of those of the file, into the hole at `at`.
    pub fn copy(&self, mapping: &SharedWords, at: usize, page: &[u8]) -> nix::Result<()> {
        const COPY: u64 = 0xC028_AA03;

        let to = mapping.address(at, page.len()) as u64;
        let mut copy = [to, page.as_ptr() as u64, page.len() as u64, 0, 0];
        // SAFETY: The kernel reads and writes the five words, reads the page, and puts a page where
        // the mapping has none.
        Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), COPY, copy.as_mut_ptr()) })
            .map(drop)
    }
}

/// An `io_uring` that has a part of a mapping registered: its pages are pinned as long.
pub struct Ring {
    _fd: OwnedFd,
}

impl Ring {
    /// Makes one.
    pub fn with_buffer(mapping: &SharedWords, at: usize, len: usize) -> Outcome<Self> {
        const REGISTER_BUFFERS: i32 = 0;

        let mut parameters = [0_u64; 15];
        let buffer = libc::iovec {
            iov_base: mapping.address(at, len),
            iov_len: len,
        };
        // SAFETY: The kernel reads and writes the parameters, which have the 120 bytes.
        let fd = Errno::result(unsafe {
            libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr())
        })?;
        // SAFETY: The kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: The kernel reads the one buffer. It is never read or written by the ring.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                fd.as_raw_fd(),
                REGISTER_BUFFERS,
                &buffer,
                1,
            )
        })?;
        Ok(Self { _fd: fd })
    }
}

/// Where the pages of a file are in memory, by number: those that the file has.
pub fn frames(file: &File, pages: usize) -> Outcome<Vec<u64>> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;

    let mapping = SharedWords::of(file, pages * PAGE)?;
    let mut entries = vec![0; pages * 8];
    for page in 0..pages {
        // SAFETY: In bounds of the mapping, and aligned.
        unsafe {
            mapping
                .start
                .byte_add(page * PAGE)
                .cast::<u64>()
                .read_volatile()
        };
    }
    let first = mapping.start.as_ptr() as usize / PAGE * 8;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, first as u64)?;

    let entries = entries
        .chunks_exact(8)
        .map(|it| u64::from_ne_bytes(it.try_into().expect("eight")));
    Ok(entries
        .filter(|it| it & PRESENT != 0)
        .map(|it| it & FRAME)
        .collect())
}

/// Puts the page that a mapping has at `at` into a pipe: the page itself, not what is in it.
pub fn splice_page(mapping: &SharedWords, at: usize, pipe: impl AsFd) -> Outcome {
    assert!(at % PAGE == 0 && at < mapping.len);
    let page = libc::iovec {
        // SAFETY: In bounds of the mapping.
        iov_base: unsafe { mapping.start.byte_add(at) }.as_ptr(),
        iov_len: PAGE,
    };

    // SAFETY: The page is mapped. A reader of the pipe gets what is in it by then.
    let moved = Errno::result(unsafe { libc::vmsplice(pipe.as_fd().as_raw_fd(), &page, 1, 0) })?;
    if moved != PAGE as isize {
        return Err(Failure::here(format_args!("{moved} bytes were moved")));
    }
    Ok(())
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: No reference into the mapping is alive.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

/// Asks the kernel to swap a file's pages out. It need not.
pub fn page_out(file: &File, len: usize) -> Outcome {
    let mapping = SharedWords::of(file, len)?;

    // Only what is mapped can be asked for.
    for at in (0..len - 8).step_by(PAGE) {
        // SAFETY: In bounds of the mapping, and aligned.
        unsafe { mapping.start.byte_add(at).cast::<u64>().read_volatile() };
    }
    // SAFETY: It changes nothing about the content.
    unsafe { madvise(mapping.start, len, MmapAdvise::MADV_PAGEOUT)? };
    Ok(())
}

/// Has the kernel take a page of a file for poisoned, as after an error of the memory.
pub fn poison(file: &File, page: usize) -> Outcome {
    let len = NonZeroUsize::new(PAGE).expect("not zero");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let at = (page * PAGE) as i64;

    // SAFETY: A new shared mapping of one page, which is there and has no reference to it.
    unsafe {
        let start = mmap(None, len, protection, MapFlags::MAP_SHARED, file, at)?;
        start.cast::<u8>().read_volatile();
        match madvise(start, PAGE, MmapAdvise::MADV_HWPOISON) {
            // A page that is pinned cannot be taken away, nor split off: it is poisoned where it is.
            Ok(()) | Err(Errno::EBUSY | Errno::EHWPOISON) => {}
            Err(err) => return Err(err.into()),
        }
        munmap(start, PAGE)?;
    }
    Ok(())
}

/// Does something in a child. False if that was killed as there is no good memory where it looked.
pub fn survives(f: impl FnOnce() -> Outcome) -> Outcome<bool> {
    let (reader, writer) = pipe()?;

    // SAFETY: The processes of tests have one thread.
    match unsafe { fork()? } {
        ForkResult::Child => {
            let outcome = f();
            if let Err(why) = &outcome {
                let _ = File::from(writer).write_all(format!("{why:?}").as_bytes());
            }
            // SAFETY: Ends the process. What it has inherited is closed, not dropped.
            unsafe { libc::_exit(outcome.is_err().into()) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut why = String::new();
            File::from(reader).read_to_string(&mut why)?;
            match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => Ok(true),
                WaitStatus::Signaled(_, Signal::SIGBUS, _) => Ok(false),
                other => Err(Failure::here(format_args!(
                    "the child ended: {other:?} {why}"
                ))),
            }
        }
    }
}
