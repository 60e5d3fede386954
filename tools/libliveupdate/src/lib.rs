// SPDX-License-Identifier: MIT OR Apache-2.0

//! The client library for C: `include/liveupdate.h` is generated from this file.
//!
//! Sessions and files are descriptors, as C programs have them. So what protects from closing an
//! unfinished session by accident is not here: the caller owns each descriptor that is returned.
//!
//! # Safety
//!
//! What the functions require of their caller is what C programs take for granted: a string is null
//! or ends with a NUL, a buffer has the bytes that are named, a place for a result can be written to,
//! and nobody closes a descriptor or changes memory that is given to a function until it returns.

// It is above, for all of them, and would be noise in the header.
#![expect(clippy::missing_safety_doc)]

use liveupdate::{
    cmdline::CommandLine,
    handoff,
    kexec,
    preflight::{
        self,
        Level,
        Next, //
    },
    request,
    status::{
        State,
        Support, //
    },
    uapi,
    Context,
    Device,
    DirectionKind,
    Errno,
    Error,
    Operation,
    SessionName,
    Token, //
};
use std::{
    cell::RefCell,
    ffi::{
        c_char,
        c_int,
        c_void,
        CStr,
        CString,
        OsStr, //
    },
    mem::size_of,
    os::{
        fd::{
            BorrowedFd,
            IntoRawFd,
            OwnedFd, //
        },
        unix::ffi::OsStrExt, //
    },
    path::Path,
    ptr,
    slice, //
};

thread_local! {
    /// The last error of this thread.
    static LAST: RefCell<CString> = RefCell::default();
}

/// Remembers an error for `liveupdate_error()`, and makes a number of it.
fn failed(err: &Error) -> c_int {
    let text = match err.advice() {
        Some(advice) => format!("{err} ({advice})"),
        None => err.to_string(),
    };
    // Names are shown without NUL.
    let text = CString::new(text).unwrap_or_default();

    LAST.with(|last| *last.borrow_mut() = text);
    -(err.errno() as c_int)
}

fn done(result: Result<c_int, Error>) -> c_int {
    result.unwrap_or_else(|err| failed(&err))
}

/// A descriptor of the caller's for the time of a call.
///
/// # Safety
///
/// Nobody closes it meanwhile.
unsafe fn borrow<'a>(fd: c_int, what: &str) -> Result<BorrowedFd<'a>, Error> {
    if fd < 0 {
        return Err(Error::new(what, Errno::EBADF));
    }
    // SAFETY: It is not -1; that it stays open is the requirement of this function.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A string of the caller's.
///
/// # Safety
///
/// It is null, or ends with a NUL and is not changed meanwhile.
unsafe fn string<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: It is not null, so the requirement of this function says the rest.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// A path of the caller's.
///
/// # Safety
///
/// As [`string`].
unsafe fn path<'a>(text: *const c_char) -> Option<&'a Path> {
    // SAFETY: By the crate's requirement on `text`, which is that of `string`.
    let text = unsafe { string(text) }?;
    Some(Path::new(OsStr::from_bytes(text.to_bytes())))
}

/// A name of the caller's.
///
/// # Safety
///
/// As [`string`].
unsafe fn name(text: *const c_char) -> Result<SessionName, Error> {
    // SAFETY: By the crate's requirement on `text`, which is that of `string`.
    let text = unsafe { string(text) }.unwrap_or_default();
    Ok(SessionName::new(text.to_bytes())?)
}

fn size<T>() -> u32 {
    // Requests are small.
    size_of::<T>() as u32
}

/// Why the last call in this thread failed, in one line. Valid until the next call in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn liveupdate_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// Makes an outgoing session; `name` has 1 to 63 bytes.
///
/// Returns its descriptor, close-on-exec. The session lasts as long as it, or a copy of it, is open;
/// /dev/liveupdate is open during the call only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_create(name: *const c_char) -> c_int {
    let create = || {
        // SAFETY: By the crate's requirement on `name`.
        let name = unsafe { self::name(name) }?;
        let session = Device::open()?.create_session(&name)?;
        Ok(OwnedFd::from(session).into_raw_fd())
    };
    done(create())
}

/// Takes over a session that the previous kernel preserved.
///
/// Returns its descriptor, close-on-exec. -ENOENT: there is none of this name, or it is finished;
/// -EINVAL: somebody has it; -EUCLEAN: it may have been corrupted on the way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_take(name: *const c_char) -> c_int {
    let take = || {
        // SAFETY: By the crate's requirement on `name`.
        let name = unsafe { self::name(name) }?;
        let session = Device::open()?.retrieve_session(&name)?;
        Ok(OwnedFd::from(session).into_raw_fd())
    };
    done(take())
}

/// The session waits for the reboot.
pub const LIVEUPDATE_OUTGOING: c_int = 1;
/// The previous kernel handed the session over.
pub const LIVEUPDATE_INCOMING: c_int = 2;

/// On which side of the reboot a session is: LIVEUPDATE_OUTGOING or LIVEUPDATE_INCOMING. -ENOTTY: the
/// descriptor is not a session. Asking has no effect on it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_direction(session: c_int) -> c_int {
    // SAFETY: By the crate's requirement on `session`.
    let session = unsafe { borrow(session, "ask for the direction of a session") };
    done(session.and_then(DirectionKind::of).map(|kind| match kind {
        DirectionKind::Outgoing => LIVEUPDATE_OUTGOING,
        DirectionKind::Incoming => LIVEUPDATE_INCOMING,
    }))
}

/// Writes the name of a session to `name`, which has 64 bytes, and ends it by a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_name(session: c_int, name: *mut c_char) -> c_int {
    let ask = || {
        let what = "get the name of a session";
        // SAFETY: By the crate's requirement on `session`.
        let session = unsafe { borrow(session, what) }?;
        let mut args = uapi::GetName {
            size: size::<uapi::GetName>(),
            reserved: 0,
            name: [0; uapi::SESSION_NAME_LENGTH],
        };
        request(session, &mut args).context(|| what)?;
        // SAFETY: By the crate's requirement on `name`, which has as many bytes.
        unsafe { ptr::copy_nonoverlapping(args.name.as_ptr().cast(), name, args.name.len()) };
        Ok(0)
    };
    done(ask())
}

/// Preserves an open file in an outgoing session. The kernel keeps its own reference to it.
///
/// -ENOENT: no file handler can preserve such a file; -EBUSY: it is preserved already, or a kexec is
/// under way; -EEXIST: the session has a file under this token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_preserve(session: c_int, fd: c_int, token: u64) -> c_int {
    // SAFETY: By the crate's requirement on `session`.
    let session = unsafe { borrow(session, "preserve a file") };
    let preserve = |session| {
        let mut args = uapi::PreserveFd {
            size: size::<uapi::PreserveFd>(),
            fd,
            token,
        };
        request(session, &mut args)
            .context(|| format!("preserve descriptor {fd} under token {}", Token(token)))?;
        Ok(0)
    };
    done(session.and_then(preserve))
}

/// Returns the file that was preserved under a token, close-on-exec.
///
/// -ENOENT: the session has no such token, or the file handler is not there; -EUCLEAN: it may have
/// been corrupted on the way; -ENOMEM, -ENFILE, -EMFILE: try again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_retrieve(session: c_int, token: u64) -> c_int {
    // SAFETY: By the crate's requirement on `session`.
    unsafe { retrieve(session, token, 0, 0) }
}

/// Makes an open file, the target, the one that was preserved under a token, and returns another
/// descriptor of it, close-on-exec. It must be an empty regular file of a tmpfs, or a memfd, open for
/// reading and writing. It gets content and size, and nothing is copied.
///
/// As liveupdate_retrieve(), and: -EOPNOTSUPP, -E2BIG: this type of file, or this kernel, cannot do
/// that; -EINVAL, -EBADF, -ENOTEMPTY, -EPERM, -ENOSPC: the target does not do; -EEXIST: it has been
/// retrieved already. The file can be retrieved otherwise then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_retrieve_into(
    session: c_int,
    token: u64,
    target: c_int,
) -> c_int {
    // SAFETY: By the crate's requirement on `session`.
    unsafe { retrieve(session, token, uapi::RETRIEVE_INTO, target) }
}

/// # Safety
///
/// By the crate's requirement on `session`.
unsafe fn retrieve(session: c_int, token: u64, flags: u32, target: c_int) -> c_int {
    // SAFETY: By the requirement of this function.
    let session = unsafe { borrow(session, "retrieve a file") };
    let retrieve = |session| {
        let mut args = uapi::RetrieveFd {
            size: size::<uapi::RetrieveFd>(),
            fd: -1,
            token,
            flags,
            target,
        };
        request(session, &mut args).context(|| format!("retrieve token {}", Token(token)))?;
        Ok(args.fd)
    };
    done(session.and_then(retrieve))
}

/// Ends an incoming session. What was not retrieved is destroyed.
///
/// -EBUSY: a file cannot be finished yet; nothing has changed, try again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_finish(session: c_int) -> c_int {
    // SAFETY: By the crate's requirement on `session`.
    let session = unsafe { borrow(session, "finish a session") };
    let finish = |session| {
        let mut args = uapi::Finish {
            size: size::<uapi::Finish>(),
            reserved: 0,
        };
        request(session, &mut args).context(|| "finish a session")?;
        Ok(0)
    };
    done(session.and_then(finish))
}

/// Puts a descriptor into the service manager's store, which returns it to the next start of the
/// service. -EOPNOTSUPP: there is none (FileDescriptorStoreMax=, systemd 254 or later). The caller
/// still owns `fd`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_store(fd: c_int, name: *const c_char) -> c_int {
    // SAFETY: By the crate's requirement on `name`.
    let name = unsafe { string(name) }
        .unwrap_or_default()
        .to_string_lossy();
    // SAFETY: By the crate's requirement on `fd`.
    let fd = unsafe { borrow(fd, "store a descriptor") };
    done(fd.and_then(|fd| handoff::store(fd, &name)).map(|()| 0))
}

/// There is no live update in this kernel, or it does not say so.
pub const LIVEUPDATE_ABSENT: c_int = 0;
/// Live update is off.
pub const LIVEUPDATE_OFF: c_int = 1;
/// The device is there, and the kernel tells no more.
pub const LIVEUPDATE_DEVICE_ONLY: c_int = 2;
/// Nothing is under way.
pub const LIVEUPDATE_NORMAL: c_int = 3;
/// There is something for the next kernel.
pub const LIVEUPDATE_PREPARED: c_int = 4;
/// A live update led to this boot, and not all incoming sessions are finished.
pub const LIVEUPDATE_UPDATED: c_int = 5;

/// The state of live updates on this machine. Does not open the device.
#[unsafe(no_mangle)]
pub extern "C" fn liveupdate_state() -> c_int {
    done(Support::read().map(|support| match support {
        Support::Absent => LIVEUPDATE_ABSENT,
        Support::Off => LIVEUPDATE_OFF,
        Support::DeviceOnly => LIVEUPDATE_DEVICE_ONLY,
        Support::On(status) => match status.state {
            State::Prepared => LIVEUPDATE_PREPARED,
            State::Updated => LIVEUPDATE_UPDATED,
            _ => LIVEUPDATE_NORMAL,
        },
    }))
}

/// Loads the next kernel; `initrd` is -1 if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_kexec_load(
    kernel: c_int,
    initrd: c_int,
    cmdline: *const c_char,
) -> c_int {
    let load = || {
        let what = "load the next kernel";
        // SAFETY: By the crate's requirement on `cmdline`.
        let cmdline = unsafe { string(cmdline) }.unwrap_or_default();
        let cmdline = cmdline
            .to_str()
            .map_err(|_| Error::of(Operation::Load, Errno::EINVAL))?;
        // SAFETY: By the crate's requirement on `kernel`.
        let kernel = unsafe { borrow(kernel, what) }?;
        // SAFETY: By the crate's requirement on `initrd`.
        let initrd = (initrd != -1).then(|| unsafe { borrow(initrd, what) });
        kexec::load(kernel, initrd.transpose()?, cmdline)?;
        kernel
            .try_clone_to_owned()
            .and_then(|kernel| kexec::tell_format(&kernel.into()))
            .map_err(|err| {
                // What was loaded would find nothing that it can read.
                let _ = kexec::unload();
                let errno = err.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
                Error::of(Operation::Load, errno)
            })?;
        Ok(0)
    };
    done(load())
}

/// Unloads the next kernel.
#[unsafe(no_mangle)]
pub extern "C" fn liveupdate_kexec_unload() -> c_int {
    done(kexec::unload().map(|()| 0))
}

/// Starts the loaded kernel at once. Returns only if the kernel refuses; nothing has changed then.
#[unsafe(no_mangle)]
pub extern "C" fn liveupdate_kexec() -> c_int {
    failed(&kexec::jump())
}

/// To be known.
pub const LIVEUPDATE_NOTE: c_int = 0;
/// Something may be lost, or cannot be known.
pub const LIVEUPDATE_WARNING: c_int = 1;
/// Something would be lost, or the update would fail.
pub const LIVEUPDATE_ERROR: c_int = 2;

/// Is told a finding: its level, a short name and a text, which are valid during the call.
#[expect(non_camel_case_types)]
pub type liveupdate_finding_fn = Option<
    unsafe extern "C" fn(
        argument: *mut c_void,
        level: c_int,
        code: *const c_char,
        text: *const c_char,
    ),
>;

/// Checks whether a kernel image can take over what is preserved now. `initrd` may be NULL, `finding`
/// too. Returns the level of what matters most.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_check(
    kernel: *const c_char,
    initrd: *const c_char,
    cmdline: *const c_char,
    finding: liveupdate_finding_fn,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: By the crate's requirement on `kernel`.
    let Some(kernel) = (unsafe { path(kernel) }) else {
        return failed(&Error::new("check a kernel", Errno::EFAULT));
    };
    // SAFETY: By the crate's requirement on `cmdline`.
    let cmdline = unsafe { string(cmdline) }.unwrap_or_default();
    let cmdline = CommandLine::new(cmdline.to_string_lossy());
    let report = preflight::check(&Next {
        kernel,
        // SAFETY: By the crate's requirement on `initrd`.
        initrd: unsafe { path(initrd) },
        cmdline: &cmdline,
        will_preserve: true,
    });

    let number = |level| match level {
        Level::Note => LIVEUPDATE_NOTE,
        Level::Warning => LIVEUPDATE_WARNING,
        Level::Error => LIVEUPDATE_ERROR,
    };
    if let Some(tell) = finding {
        for found in &report.findings {
            let code = CString::new(found.problem.code()).unwrap_or_default();
            let text = CString::new(found.to_string()).unwrap_or_default();
            // SAFETY: By the crate's requirement on `finding`; both strings outlive the call.
            unsafe { tell(argument, number(found.level), code.as_ptr(), text.as_ptr()) };
        }
    }
    number(report.level())
}

/// Sends bytes and descriptors over a UNIX socket. Returns how many bytes were sent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_send(
    socket: c_int,
    bytes: *const c_void,
    len: usize,
    fds: *const c_int,
    count: usize,
) -> c_int {
    let send = || {
        let what = "send to a socket";
        // SAFETY: By the crate's requirement on `socket`.
        let socket = unsafe { borrow(socket, what) }?;
        let numbers = match count {
            0 => &[],
            // SAFETY: By the crate's requirement on `fds`.
            _ => unsafe { slice::from_raw_parts(fds, count) },
        };
        let bytes = match len {
            0 => &[],
            // SAFETY: By the crate's requirement on `bytes`.
            _ => unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len) },
        };
        let fds = numbers
            .iter()
            // SAFETY: By the crate's requirement on `fds`.
            .map(|fd| unsafe { borrow(*fd, what) })
            .collect::<Result<Vec<_>, _>>()?;
        let sent = handoff::send(&socket, bytes, &fds)?;
        Ok(c_int::try_from(sent).unwrap_or(c_int::MAX))
    };
    done(send())
}

/// Receives bytes and one descriptor from a UNIX socket; `*fd` is -1 if there is none. Further ones are
/// closed, so protocols with one a message are meant. Returns how many bytes were received.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn liveupdate_receive(
    socket: c_int,
    bytes: *mut c_void,
    len: usize,
    fd: *mut c_int,
) -> c_int {
    let receive = || {
        // SAFETY: By the crate's requirement on `socket`.
        let socket = unsafe { borrow(socket, "receive from a socket") }?;
        let buffer = match len {
            0 => &mut [],
            // SAFETY: By the crate's requirement on `bytes`.
            _ => unsafe { slice::from_raw_parts_mut(bytes.cast::<u8>(), len) },
        };
        let received = handoff::receive(&socket, buffer)?;
        let mut fds = received.fds.into_iter();
        let first = fds.next().map_or(-1, |fd| OwnedFd::from(fd).into_raw_fd());
        // SAFETY: By the crate's requirement on `fd`.
        unsafe { fd.write(first) };
        Ok(c_int::try_from(received.len).unwrap_or(c_int::MAX))
    };
    done(receive())
}
