// SPDX-License-Identifier: GPL-2.0

//! luod, the live update agent.
//!
//! It owns `/dev/liveupdate` for the whole machine: clients get sessions from it, preserve their
//! files in them, and claim them in the next kernel. `Documentation/userspace-api/liveupdate-agent.rst`
//! is the protocol, `Documentation/admin-guide/luod.rst` is for administrators.
//!
//! ```text
//!        clients, luoctl                      systemd or supervisor
//!              │ socket                             ▲ stored sessions
//!   ┌──────────┴─────────┐  what happened   ┌───────┴──────────┐
//!   │ server, connection ├─────────────────►│ core             │
//!   │ peer               │◄─────────────────┤ protocol, policy │
//!   └──────────┬─────────┘  what to do      │ record           │
//!              │ jobs                       └──────────────────┘
//!   ┌──────────┴─────────┐
//!   │ worker, preflight  ├───► /dev/liveupdate, kexec
//!   │ kernel, manager    │
//!   └────────────────────┘
//! ```
//!
//! `core` and what is beside it in the picture decides, and does nothing; the rest does, and decides
//! nothing.

#![forbid(unsafe_code)]

mod connection;
mod core;
mod crash;
mod kernel;
mod manager;
mod peer;
mod policy;
mod preflight;
mod protocol;
mod record;
mod server;
mod supervisor;
mod worker;

use crate::{
    core::{
        Core,
        Start, //
    },
    kernel::Own,
    manager::{
        Method,
        Store,
        SUPERVISED, //
    },
    policy::Policy,
    record::{
        Memory,
        Record,
        OWN_SESSION, //
    },
    server::{
        Clock,
        Server, //
    },
    worker::Worker,
};
use clap::Parser;
use liveupdate::{
    handoff::{
        self,
        ReceivedFd, //
    },
    keeper,
    AnySession, //
};
use nix::{
    sys::{
        signal::{
            SigSet,
            Signal, //
        },
        signalfd::{
            SfdFlags,
            SignalFd, //
        },
    },
    unistd::User,
};
use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::net::UnixListener, //
    },
    path::{
        Path,
        PathBuf, //
    },
    process::{
        self,
        ExitCode, //
    },
    time::Duration,
};
use tracing_subscriber::layer::SubscriberExt;

/// Where the policy is.
const POLICY: &str = "/etc/luod.toml";
/// Where the socket and the state file are.
const RUNTIME: &str = "/run/luod";

/// Live update agent.
///
/// Hands sessions of /dev/liveupdate to clients, and leads them over the kexec into the next
/// kernel. Run it as a service of systemd, or by `luod --supervise`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run luod as a child, start it again if it dies, and keep its sessions meanwhile: for systems
    /// without systemd
    #[arg(long)]
    supervise: bool,
    /// Read the policy, tell whether it is good, and end
    #[arg(long)]
    check_policy: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();

    if arguments.check_policy {
        return match read_policy() {
            Ok(_) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("luod: {why}");
                ExitCode::FAILURE
            }
        };
    }
    begin_log();
    let result = if arguments.supervise {
        supervise()
    } else {
        serve()
    };
    if let Err(err) = result {
        tracing::error!("{err}");
        return ExitCode::FAILURE;
    }
    // At once: nothing that is held here is to be dropped, and with that closed, one by one.
    process::exit(0);
}

/// To the journal, or to standard error where there is none.
fn begin_log() {
    let registry = tracing_subscriber::registry();
    let journal = env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let set = match journal {
        Some(journal) => {
            let journal = journal
                .with_field_prefix(None)
                .with_syslog_identifier("luod".to_owned());
            tracing::subscriber::set_global_default(registry.with(journal))
        }
        None => tracing::subscriber::set_global_default(
            registry.with(
                tracing_subscriber::fmt::layer()
                    .with_writer(io::stderr)
                    .without_time()
                    .with_target(false)
                    .with_ansi(false),
            ),
        ),
    };
    if set.is_err() {
        eprintln!("luod: there is a log already");
    }
}

/// Blocks the signals that are read from a descriptor instead.
fn signals(more: &[Signal]) -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .iter()
        .chain(more)
    {
        set.add(*signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn supervise() -> Result<(), Box<dyn Error>> {
    let signals = signals(&[Signal::SIGCHLD])?;

    fs::create_dir_all(RUNTIME)?;
    supervisor::run(Path::new(RUNTIME), &socket_path(), signals)?;
    Ok(())
}

fn socket_path() -> PathBuf {
    Path::new(RUNTIME).join("liveupdate.sock")
}

fn read_policy() -> Result<Policy, String> {
    let text = match fs::read_to_string(POLICY) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        result => result.map_err(|err| format!("{POLICY}: {err}"))?,
    };
    let user = |name: &str| {
        let user = User::from_name(name).ok().flatten();
        user.map(|user| user.uid.as_raw())
    };

    Policy::parse(&text, user).map_err(|err| format!("{POLICY}: {err}"))
}

/// The state that an earlier start wrote down, in whatever boot.
fn read_state(path: &Path) -> Option<Memory> {
    let bytes = match fs::read(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return None,
        Err(err) => {
            tracing::error!("{}: {err}", path.display());
            return None;
        }
        Ok(bytes) => bytes,
    };
    Memory::parse(&bytes)
        .inspect_err(|why| tracing::error!("{}: {why}", path.display()))
        .ok()
}

/// What the service manager kept: the socket, luod's own session, and those of clients.
#[derive(Default)]
struct Inherited {
    listener: Option<UnixListener>,
    own: Option<AnySession>,
    sessions: Vec<AnySession>,
}

impl Inherited {
    fn take() -> Result<Self, Box<dyn Error>> {
        let mut inherited = Self::default();

        if env::var_os(SUPERVISED).is_some() {
            // The supervisor cannot know it before the process exists.
            env::set_var("LISTEN_PID", process::id().to_string());
        }
        for one in handoff::inherited()? {
            match one.fd {
                ReceivedFd::Session(session) => {
                    let is_own = match &session {
                        AnySession::Outgoing(session) => session.name(),
                        AnySession::Incoming(session) => session.name(),
                    }
                    .as_bytes()
                        == OWN_SESSION.as_bytes();
                    if is_own {
                        inherited.own = Some(session);
                    } else {
                        inherited.sessions.push(session);
                    }
                }
                ReceivedFd::Other(fd) if inherited.listener.is_none() => {
                    inherited.listener = Some(fd.into());
                }
                ReceivedFd::Other(_) => {
                    tracing::warn!("an unknown descriptor was passed: {:?}", one.name);
                }
            }
        }
        Ok(inherited)
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    // Before there is a thread.
    let signals = signals(&[])?;
    let clock = Clock::start();
    let inherited = Inherited::take()?;
    // Of every session that luod drops there is another descriptor, or it is finished.
    let _ = keeper::set(keeper::Close);
    keeper::set_warning_hook(|warning| tracing::debug!("{warning}"));

    let policy = read_policy()?;
    let store = Store::detect();
    let method = Method::choose(policy.kexec, store);
    match &method {
        Ok(method) => tracing::info!(
            "sessions are kept by: {}; kexec: {}",
            store.name(),
            method.name()
        ),
        Err(why) => tracing::error!("no update is possible: {why}"),
    }
    if store == Store::None {
        tracing::warn!(
            "there is no descriptor store: a crash of luod loses what clients left with it"
        );
    }

    fs::create_dir_all(RUNTIME)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot = boot.trim().to_owned();
    let state_file = Path::new(RUNTIME).join("state.json");
    let memory = read_state(&state_file).filter(|memory| memory.boot == boot);
    let loaded = memory.as_ref().is_some_and(|memory| memory.image);
    let own = Own::take(inherited.own, memory.is_none());
    let mut found: Vec<_> = inherited.sessions.iter().map(kernel::look).collect();
    if let Own::Outgoing(session) = &own {
        found.push(core::Found {
            session: session.name().to_string(),
            direction: liveupdate::DirectionKind::Outgoing,
            mark: None,
            finished: false,
        });
    }
    let sessions: BTreeMap<String, OwnedFd> = inherited
        .sessions
        .into_iter()
        .map(|session| match session {
            AnySession::Outgoing(session) => (session.name().to_string(), session.into_fd()),
            AnySession::Incoming(session) => (session.name().to_string(), session.into_fd()),
        })
        .collect();

    let (core, first) = Core::begin(
        clock.now(),
        Start {
            policy,
            boot,
            kexec: method.as_ref().map_or("none", |method| method.name()),
            store: store.name(),
            memory,
            map: own.map(),
            found,
        },
    );
    let listener = match inherited.listener {
        Some(listener) => listener,
        None => supervisor::listen(&socket_path())?,
    };
    let server = Server {
        clock,
        core,
        worker: Worker::start(own, loaded)?,
        listener,
        signals,
        sessions,
        method,
        state_file,
        read_policy,
        watchdog: watchdog(),
    };
    server.run(first)?;
    Ok(())
}

/// How often the service manager is to be told that luod lives: twice in the time that it waits.
fn watchdog() -> Option<Duration> {
    let microseconds: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;

    (microseconds > 0).then(|| Duration::from_micros(microseconds / 2))
}
