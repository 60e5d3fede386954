// SPDX-License-Identifier: GPL-2.0

//! What the tests need of the system beyond the client library: requests that are wrong in all
//! the ways there are, memory that cannot be read or written, descriptors and their limits.

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
    fcntl::{
        fcntl,
        FcntlArg,
        OFlag,
        SealFlag, //
    },
    libc,
    sys::{
        memfd::{
            memfd_create,
            MFdFlags, //
        },
        mman::{
            madvise,
            mmap,
            mmap_anonymous,
            mprotect,
            munmap,
            MapFlags,
            MmapAdvise,
            ProtFlags, //
        },
        resource::{
            getrlimit,
            setrlimit,
            Resource, //
        },
        signal::Signal,
        wait::{
            waitpid,
            WaitStatus, //
        },
    },
    unistd::{
        fork,
        pipe,
        seteuid,
        ForkResult,
        Uid, //
    },
};
use std::{
    ffi::c_void,
    fs::{
        self,
        File, //
    },
    io::{
        Read,
        Seek,
        SeekFrom,
        Write, //
    },
    mem::size_of,
    num::NonZeroUsize,
    os::{
        fd::{
            AsFd,
            AsRawFd,
            BorrowedFd,
            FromRawFd,
            IntoRawFd,
            OwnedFd, //
        },
        unix::fs::FileExt, //
    },
    ptr::{
        self,
        NonNull, //
    },
    slice,
    sync::atomic::AtomicU64,
    thread,
    time::Duration, //
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

/// Size of a page.
pub const PAGE: usize = 4096;

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

/// Numbers of the open descriptors.
pub fn open_fds() -> Outcome<Vec<String>> {
    let own = fs::read_dir("/proc/self/fd")?;
    let mut fds = Vec::new();

    for fd in own {
        let name = fd?.file_name().to_string_lossy().into_owned();
        // The one of the directory is gone by now.
        if fs::read_link(format!("/proc/self/fd/{name}")).is_ok() {
            fds.push(name);
        }
    }
    fds.sort();
    Ok(fds)
}

/// What the kernel calls an open file.
pub fn link_of(fd: &impl AsFd) -> Outcome<String> {
    let link = fs::read_link(proc_path(fd))?;

    Ok(link.to_string_lossy().into_owned())
}

/// The path by which a file of this process can be opened again.
pub fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Raises the limit of open descriptors.
pub fn allow_fds(number: u64) -> Outcome {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;

    setrlimit(Resource::RLIMIT_NOFILE, soft.max(number), hard.max(number))?;
    Ok(())
}

/// Runs `f` while no further descriptor can be opened.
pub fn without_free_fds<T>(f: impl FnOnce() -> T) -> Outcome<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;

    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let result = f();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(result)
}

/// Runs `f` as somebody who gets no new file from the kernel (`ENFILE`).
///
/// Only privileged processes exceed the limit of the system, so for a while this one is not.
pub fn without_free_files<T>(f: impl FnOnce() -> T) -> Outcome<T> {
    let path = "/proc/sys/fs/file-max";
    let limit = fs::read_to_string(path)?;

    fs::write(path, "0")?;
    seteuid(Uid::from_raw(1000))?;
    let result = f();
    seteuid(Uid::from_raw(0))?;
    fs::write(path, limit.trim_end())?;
    Ok(result)
}

/// Marks an open file, which all of its descriptors then show.
pub fn set_nonblocking(file: &impl AsFd) -> Outcome {
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether an open file has that mark.
pub fn is_nonblocking(file: &impl AsFd) -> Outcome<bool> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);

    Ok(flags.contains(OFlag::O_NONBLOCK))
}

/// Closes a descriptor and says whether that worked.
pub fn close(fd: impl Into<OwnedFd>) -> nix::Result<()> {
    let fd = fd.into().into_raw_fd();
    // SAFETY: We have just given up the ownership.
    Errno::result(unsafe { libc::close(fd) }).map(drop)
}

/// An empty memfd to which seals can be added.
pub fn memfd(name: &str) -> Outcome<File> {
    memfd_with(name, MFdFlags::MFD_ALLOW_SEALING)
}

/// An empty memfd.
pub fn memfd_with(name: &str, flags: MFdFlags) -> Outcome<File> {
    Ok(memfd_create(name, flags | MFdFlags::MFD_CLOEXEC)?.into())
}

/// A memfd with these bytes, its position at their end.
pub fn memfd_of(name: &str, content: &[u8]) -> Outcome<File> {
    let mut file = memfd(name)?;

    file.write_all(content)?;
    Ok(file)
}

/// The seals of a memfd.
pub fn seals(file: &impl AsFd) -> Outcome<SealFlag> {
    Ok(SealFlag::from_bits_retain(fcntl(
        file,
        FcntlArg::F_GET_SEALS,
    )?))
}

/// Adds seals to a memfd.
pub fn add_seals(file: &impl AsFd, seals: SealFlag) -> Outcome {
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// The position of an open file.
pub fn position(file: &File) -> Outcome<u64> {
    let mut file = file;

    Ok(file.stream_position()?)
}

/// All of a file, whatever its position, which stays.
pub fn content(file: &File) -> Outcome<Vec<u8>> {
    let mut handle = file;
    let before = handle.stream_position()?;
    let mut bytes = Vec::new();

    handle.seek(SeekFrom::Start(0))?;
    handle.read_to_end(&mut bytes)?;
    handle.seek(SeekFrom::Start(before))?;
    Ok(bytes)
}

/// Bytes that look random and depend on `seed` alone.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);

    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Which parts of a file have memory behind them, as `SEEK_DATA` and `SEEK_HOLE` tell.
pub fn extents(file: &File) -> Outcome<Vec<(i64, i64)>> {
    let seek = |offset, whence| -> nix::Result<i64> {
        // SAFETY: No memory is involved.
        Errno::result(unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) })
    };
    let before = seek(0, libc::SEEK_CUR)?;
    let mut extents = Vec::new();
    let mut offset = 0;

    loop {
        match seek(offset, libc::SEEK_DATA) {
            Ok(start) => {
                offset = seek(start, libc::SEEK_HOLE)?;
                extents.push((start, offset));
            }
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    seek(before, libc::SEEK_SET)?;
    Ok(extents)
}

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
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let size = NonZeroUsize::new(len).ok_or_else(|| Failure::here("nothing to map"))?;
        // SAFETY: A new mapping disturbs nobody.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0)? };

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

    /// Puts a page into the hole at `at`.
    pub fn copy(&self, mapping: &SharedWords, at: usize, page: &[u8; PAGE]) -> nix::Result<()> {
        const COPY: u64 = 0xC028_AA03;

        let to = mapping.address(at, PAGE) as u64;
        let mut copy = [to, page.as_ptr() as u64, PAGE as u64, 0, 0];
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

    // SAFETY: The page is mapped. Whoever reads the pipe gets what is in it by then.
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

/// A counter of `/proc/vmstat`.
pub fn vmstat(key: &str) -> Outcome<u64> {
    fs::read_to_string("/proc/vmstat")?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| Failure::here(format_args!("/proc/vmstat has no {key}")))
}

/// How many pages of a zone the kernel can use above the low watermark, which CMA's are not; more
/// than any if there is no such zone.
pub fn zone_room(zone: &str) -> Outcome<i64> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let Some(section) = text
        .split("Node ")
        .find(|section| section.split_ascii_whitespace().nth(2) == Some(zone))
    else {
        return Ok(i64::MAX);
    };
    let number = |key: &str| -> Outcome<i64> {
        section
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix(' '))
            .find_map(|value| value.trim().parse().ok())
            .ok_or_else(|| Failure::here(format_args!("zone {zone} has no {key}")))
    };

    match number("present")? {
        0 => Ok(i64::MAX),
        _ => Ok(number("pages free")? - number("nr_free_cma")? - number("low")?),
    }
}

/// Writes at an offset, leaving the position alone.
pub fn write_at(file: &File, at: u64, bytes: &[u8]) -> Outcome {
    file.write_all_at(bytes, at)?;
    Ok(())
}

/// How much memory is free, in KiB: also what processors have set aside for their next
/// allocations.
pub fn free_memory() -> Outcome<u64> {
    let pages: u64 = fs::read_to_string("/proc/zoneinfo")?
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            line.strip_prefix("nr_free_pages")
                .or(line.strip_prefix("count:"))
        })
        .filter_map(|value| value.trim().parse::<u64>().ok())
        .sum();

    Ok(pages * (PAGE as u64 >> 10))
}

/// Waits for freed memory, which comes back a moment later, and has the slab caches give back what
/// they have free, objects that KASAN holds back included.
pub fn settle_memory() -> Outcome {
    thread::sleep(Duration::from_millis(300));
    for cache in fs::read_dir("/sys/kernel/slab")? {
        fs::write(cache?.path().join("shrink"), "1")?;
    }
    Ok(())
}

/// The value of a line of `/proc/meminfo`, in KiB.
pub fn meminfo(key: &str) -> Outcome<u64> {
    fs::read_to_string("/proc/meminfo")?
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| Failure::here(format_args!("/proc/meminfo has no {key}")))
}

/// A descriptor of this process that is not open.
pub fn closed_fd() -> Outcome<i32> {
    let fd = memfd("closed")?;

    Ok(fd.as_raw_fd())
}

/// A descriptor for a number, without ownership.
pub fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: Its owner is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// A setting of the kernel, which is as before when this is dropped.
pub struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    /// Sets it; `name` is a path below `/proc/sys`.
    pub fn set(name: &str, value: &str) -> Outcome<Self> {
        let path = format!("/proc/sys/{name}");
        let before = fs::read_to_string(&path)?;

        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).expect("what it was can be set");
    }
}
