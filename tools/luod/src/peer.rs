// SPDX-License-Identifier: GPL-2.0

//! Who is at the other end of a connection: user, process, systemd service.

use crate::policy::Peer;
use nix::{
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::socket::{
        getsockopt,
        sockopt, //
    },
};
use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::net::UnixStream, //
    },
};

/// Asks the kernel who connected.
///
/// # Errors
///
/// What the socket option returns.
pub fn identify(socket: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(socket, sockopt::PeerCredentials)?;

    Ok(Peer {
        uid: credentials.uid(),
        pid: credentials.pid(),
        unit: unit(socket, credentials.pid()),
    })
}

/// The service of the process that connected.
fn unit(socket: &UnixStream, pid: i32) -> Option<String> {
    // Where the kernel has no such option (before 6.5), the number alone must do.
    let process = getsockopt(socket, sockopt::PeerPidfd).ok();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;

    if let Some(process) = process {
        let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        // If it has ended, what was read may be about another process of the same number.
        if poll(&mut ended, PollTimeout::ZERO) != Ok(0) {
            return None;
        }
    }
    service(&groups).map(str::to_owned)
}

/// The service that luod itself is.
pub fn own_service() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;

    service(&groups).map(str::to_owned)
}

/// The service in the text of `/proc/PID/cgroup`.
///
/// Of nested services it is the outermost, which the system's manager knows. Scopes do not count:
/// their names are different after each boot.
fn service(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;

    path.split('/').find(|part| part.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services() {
        let cases = [
            (
                "0::/system.slice/system-qemu.slice/qemu@a.service\n",
                Some("qemu@a.service"),
            ),
            (
                "0::/system.slice/x.service/payload/y.service\n",
                Some("x.service"),
            ),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/a.service\n",
                Some("user@7.service"),
            ),
            ("0::/user.slice/user-7.slice/session-3.scope\n", None),
            ("1:name=systemd:/a.service\n0::/\n", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(service(text), expected, "{text}");
        }
    }

    #[test]
    fn oneself() {
        let (one, _two) = UnixStream::pair().unwrap();
        let peer = identify(&one).unwrap();
        assert_eq!(u32::try_from(peer.pid), Ok(std::process::id()));
    }
}
