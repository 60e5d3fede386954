// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which processes have which sessions open.

use crate::{
    error::{
        Context,
        Errno,
        Result, //
    },
    AnySession,
    SessionName, //
};
use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd,
            RawFd, //
        },
        unix::ffi::OsStrExt, //
    },
    path::{
        Path,
        PathBuf, //
    },
    str::FromStr, //
};

/// A descriptor of a session that a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Holder {
    /// The session.
    pub session: SessionName,
    /// The process.
    pub pid: u32,
    /// The number of the descriptor there.
    pub fd: RawFd,
    /// What the process calls itself (`/proc/PID/comm`).
    pub command: String,
}

/// What links of sessions begin with in `/proc/PID/fd/`.
const LINK: &[u8] = b"anon_inode:[luo_session] ";

/// Looks through `/proc`. A process that comes or goes meanwhile may be missing, and without rights
/// so are those of other users.
///
/// What the service manager has in its stores is listed under PID 1.
///
/// # Errors
///
/// What reading `/proc` returns.
pub fn find() -> Result<Vec<Holder>> {
    let mut holders = Vec::new();

    for entry in fs::read_dir("/proc").context(|| "read /proc")? {
        let Some((pid, path)) = entry.ok().and_then(|entry| numbered::<u32>(entry.path())) else {
            continue;
        };
        // It may have ended, or be none of ours.
        let Ok(fds) = fs::read_dir(path.join("fd")) else {
            continue;
        };
        for (fd, link) in fds.filter_map(|entry| numbered::<RawFd>(entry.ok()?.path())) {
            let Some(session) = session_of(&link) else {
                continue;
            };
            let command = fs::read(path.join("comm")).unwrap_or_default();
            holders.push(Holder {
                session,
                pid,
                fd,
                command: String::from_utf8_lossy(command.trim_ascii_end()).into_owned(),
            });
        }
    }
    Ok(holders)
}

/// A path that ends in a number.
fn numbered<N: FromStr>(path: PathBuf) -> Option<(N, PathBuf)> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    Some((number, path))
}

/// The session that a link in `/proc/PID/fd/` leads to.
fn session_of(link: &Path) -> Option<SessionName> {
    let target = fs::read_link(link).ok()?;
    parse_link(target.as_os_str())
}

fn parse_link(target: &OsStr) -> Option<SessionName> {
    SessionName::new(target.as_bytes().strip_prefix(LINK)?).ok()
}

impl Holder {
    /// Gets a descriptor of the same session (`pidfd_getfd(2)`). The process keeps its own.
    ///
    /// # Errors
    ///
    /// - `ESRCH`, `EBADF`: the process or its descriptor is gone;
    /// - `ESTALE`: the number is another descriptor now;
    /// - `EPERM`: the caller may not trace the process.
    pub fn duplicate(&self) -> Result<AnySession> {
        let what = || {
            format!(
                "take over session '{}' from process {} ({})",
                self.session, self.pid, self.command
            )
        };
        let fd = duplicate(self.pid, self.fd).context(what)?;

        match AnySession::recognize(fd) {
            Ok(session) if *session.name() == self.session => Ok(session),
            // Another session, or no session: not ours to keep, its owner has it open.
            Ok(other) => {
                drop(OwnedFd::from(other));
                Err(Errno::ESTALE).context(what)
            }
            Err(_) => Err(Errno::ESTALE).context(what),
        }
    }
}

/// Gets a descriptor of the same open file as one of another process (`pidfd_getfd(2)`).
///
/// # Errors
///
/// - `ESRCH`, `EBADF`: the process or its descriptor does not exist;
/// - `EPERM`: the caller may not trace the process.
pub fn descriptor_of(pid: u32, fd: RawFd) -> Result<OwnedFd> {
    duplicate(pid, fd).context(|| format!("get descriptor {fd} of process {pid}"))
}

fn duplicate(pid: u32, fd: RawFd) -> nix::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    // SAFETY: The system call takes numbers only.
    let process = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: It has just made this descriptor, whose number is in the range of one.
    let process = unsafe { OwnedFd::from_raw_fd(process as RawFd) };
    // SAFETY: The system call takes numbers only.
    let fd =
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: As above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        let name = |target: &[u8]| {
            let name = parse_link(OsStr::from_bytes(target))?;
            Some(name.as_bytes().to_vec())
        };

        assert_eq!(
            name(b"anon_inode:[luo_session] a b\n"),
            Some(b"a b\n".to_vec())
        );
        assert_eq!(name(b"anon_inode:[luo_session] "), None);
        assert_eq!(name(b"anon_inode:[eventfd]"), None);
        assert_eq!(name(b"/dev/liveupdate"), None);
    }

    #[test]
    fn a_descriptor_that_is_another_one() {
        let null = fs::File::open("/dev/null").unwrap();
        let holder = Holder {
            session: SessionName::new("a").unwrap(),
            pid: std::process::id(),
            fd: null.as_raw_fd(),
            command: "me".into(),
        };

        // Where the sandbox forbids it, nothing is known but that it fails.
        let errno = holder.duplicate().unwrap_err().errno();
        assert!(matches!(
            errno,
            Errno::ESTALE | Errno::EPERM | Errno::ENOSYS
        ));
    }
}
