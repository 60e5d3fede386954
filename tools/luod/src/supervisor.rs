// SPDX-License-Identifier: GPL-2.0

//! `luod --supervise`: a service manager for luod alone, where there is no systemd.
//!
//! It runs luod as its child, starts it again when it dies, and keeps for it what a service manager
//! would: the socket, and the descriptors that luod puts into its store. It speaks the same protocol
//! as systemd (`NOTIFY_SOCKET`, `FDSTORE=1`, `LISTEN_FDS`), so luod need not know the difference.

use crate::manager::SUPERVISED;
use command_fds::{
    CommandFdExt,
    FdMapping, //
};
use liveupdate::handoff;
use nix::{
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::{
        signal::{
            kill,
            Signal, //
        },
        signalfd::SignalFd,
    },
    unistd::Pid,
};
use std::{
    env,
    fs::{
        self,
        Permissions, //
    },
    io,
    os::{
        fd::{
            AsFd,
            OwnedFd, //
        },
        unix::{
            fs::PermissionsExt,
            net::{
                UnixDatagram,
                UnixListener, //
            },
        },
    },
    path::Path,
    process::{
        Child,
        Command, //
    },
    time::{
        Duration,
        Instant, //
    },
};

/// How many descriptors it keeps.
const STORE_MAX: usize = 2048;

/// The name of the listening socket among the descriptors.
pub const LISTEN_NAME: &str = "listen";

/// How long luod waits to be started again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

struct Supervisor<'a> {
    runtime: &'a Path,
    listener: UnixListener,
    notify: UnixDatagram,
    signals: SignalFd,
    store: Vec<(String, OwnedFd)>,
}

/// Runs luod until a signal ends both. `signals` has SIGTERM, SIGINT, SIGHUP and SIGCHLD.
///
/// # Errors
///
/// If sockets cannot be made, or luod not started.
pub fn run(runtime: &Path, socket: &Path, signals: SignalFd) -> io::Result<()> {
    let notify_path = runtime.join("notify");
    // One of an earlier run may be there.
    let _ = fs::remove_file(&notify_path);
    let notify = UnixDatagram::bind(&notify_path)?;
    fs::set_permissions(&notify_path, Permissions::from_mode(0o600))?;
    notify.set_nonblocking(true)?;
    let mut supervisor = Supervisor {
        runtime,
        listener: listen(socket)?,
        notify,
        signals,
        store: Vec::new(),
    };
    let mut pause = PAUSE.0;

    loop {
        let begin = Instant::now();
        let child = supervisor.start()?;
        if supervisor.watch(child)? {
            return Ok(());
        }
        if begin.elapsed() > PAUSE.1 {
            pause = PAUSE.0;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Binds the socket that clients connect to.
///
/// # Errors
///
/// What binding returns.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;

    // Who may do what is up to the policy.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl Supervisor<'_> {
    /// Starts luod with everything that is kept for it.
    fn start(&self) -> io::Result<Child> {
        let mut names = vec![LISTEN_NAME.to_owned()];
        let mut parent_fds = vec![self.listener.as_fd().try_clone_to_owned()?];
        for (name, fd) in &self.store {
            names.push(name.clone());
            parent_fds.push(fd.try_clone()?);
        }
        let mut child_fd = 2;
        let mappings = parent_fds.into_iter().map(|parent_fd| {
            child_fd += 1;
            FdMapping {
                parent_fd,
                child_fd,
            }
        });
        let mappings: Vec<_> = mappings.collect();

        Command::new(env::current_exe()?)
            .args(env::args_os().skip(1).filter(|word| word != "--supervise"))
            .env("NOTIFY_SOCKET", self.runtime.join("notify"))
            .env("FDSTORE", STORE_MAX.to_string())
            .env("LISTEN_FDS", mappings.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env(SUPERVISED, "1")
            .fd_mappings(mappings)
            .map_err(io::Error::other)?
            .spawn()
    }

    /// Serves luod until it has died; true if it is not to be started again.
    fn watch(&mut self, mut child: Child) -> io::Result<bool> {
        let mut ending = false;

        loop {
            let mut fds = [
                PollFd::new(self.notify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result?,
            };
            while let Some(signal) = self.signals.read_signal()? {
                let signal = i32::try_from(signal.ssi_signo)
                    .ok()
                    .and_then(|number| Signal::try_from(number).ok());
                if let Some(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP)) = signal {
                    ending |= signal != Signal::SIGHUP;
                    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            let ended = child.try_wait()?;
            // What it sent before it died counts.
            self.messages();
            if let Some(status) = ended {
                if ending || status.success() {
                    return Ok(true);
                }
                tracing::error!("luod died ({status}) and is started again");
                return Ok(false);
            }
        }
    }

    fn messages(&mut self) {
        let mut buffer = [0; 4096];

        while let Ok(message) = handoff::receive(&self.notify, &mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..message.len]).into_owned();
            let fds = message.fds.into_iter().map(OwnedFd::from).collect();
            self.message(&text, fds);
        }
    }

    fn message(&mut self, text: &str, fds: Vec<OwnedFd>) {
        let has = |line: &str| text.lines().any(|other| other == line);
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .unwrap_or("stored");

        if has("FDSTOREREMOVE=1") {
            self.store.retain(|(stored, _)| stored != name);
        } else if has("FDSTORE=1") {
            for fd in fds {
                if self.store.len() >= STORE_MAX {
                    tracing::error!("there is no room for descriptor '{name}'");
                    break;
                }
                self.store.push((name.to_owned(), fd));
            }
        }
        // Others, such as that of BARRIER=1, are closed.
    }
}
