// SPDX-License-Identifier: GPL-2.0

//! A process that holds an incoming session while another one works with it.
//!
//! When the last descriptor of an incoming session is closed, what it has may be destroyed, and a
//! tool that is killed in the middle of a copy closes all of its descriptors. So this tool never
//! holds such a session alone: a *keeper*, a process in a session of its own, retrieves it from the
//! kernel, hands out descriptors of it, and ends when it is told that the session is finished.
//! Whatever happens to the one that works, the next one finds the keeper.
//!
//! The keeper listens on the abstract UNIX socket `luoctl-keeper/PID`, and has its first client on
//! standard input. To each client of its own user it sends one message: a byte [`HERE`] with the
//! session's descriptor, or a byte [`FAILED`], the operation and the errno. A client that sends the
//! byte [`DONE`] has finished the session.

use crate::{
    cli::Arguments,
    exit::{
        Exit,
        Failure,
        Outcome, //
    },
    luod::Luod, //
};
use liveupdate::{
    handoff::{
        self,
        ReceivedFd, //
    },
    holders,
    AnySession,
    Device,
    Errno,
    Error,
    Incoming,
    Operation,
    Session,
    SessionName, //
};
use nix::{
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::socket::{
        getsockopt,
        sockopt::PeerCredentials, //
    },
    unistd::{
        geteuid,
        setsid, //
    },
};
use serde_json::{
    json,
    Value, //
};
use std::{
    ffi::OsStr,
    fs,
    io::{
        self,
        Read,
        Write, //
    },
    os::{
        fd::{
            AsFd,
            OwnedFd, //
        },
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{
                SocketAddr,
                UnixListener,
                UnixStream, //
            },
            process::CommandExt, //
        },
    },
    path::Path,
    process::{
        self,
        Command,
        Stdio, //
    },
};

/// The session's descriptor comes with this byte.
const HERE: u8 = b'h';
/// There is none; the operation ([`OPEN`] or [`RETRIEVE`]) and the errno follow.
const FAILED: u8 = b'f';
/// The device could not be opened.
const OPEN: u8 = b'o';
/// The session could not be retrieved.
const RETRIEVE: u8 = b'r';
/// The session is finished.
const DONE: u8 = b'd';

/// An incoming session that somebody else holds as well.
pub struct Held {
    /// The session.
    pub session: Session<Incoming>,
    keeper: Keeper,
}

/// The keeper of a session.
enum Keeper {
    /// A keeper, and its process number.
    Process(UnixStream, u32),
    /// The agent.
    Agent(Luod),
}

impl Held {
    /// Takes a session: from its keeper or from the agent if they have it, else from the kernel, by a
    /// new keeper.
    ///
    /// # Errors
    ///
    /// As [`Device::open`] and [`Device::retrieve_session`]. If another process has the session, the
    /// hint names it.
    pub fn take(arguments: &Arguments, name: SessionName) -> Outcome<Self> {
        let holders = holders::find().unwrap_or_default();
        let mut others = Vec::new();

        for holder in holders.iter().filter(|holder| holder.session == name) {
            match UnixStream::connect_addr(&address(holder.pid)?) {
                Ok(keeper) => {
                    // It may have ended just now.
                    let received = Self::receive(keeper, holder.pid, &arguments.device, name);
                    if let Ok(held) = received {
                        return Ok(held);
                    }
                }
                Err(_) => others.push(format!("{} ({})", holder.pid, holder.command)),
            }
        }
        if let Some(held) = Self::claim(arguments, &name)? {
            return Ok(held);
        }
        Self::start(&arguments.device, name).map_err(|err| {
            let taken = matches!(err.operation(), Operation::RetrieveSession(_))
                && err.errno() == Errno::EINVAL;
            let failure = Failure::from(err);
            if taken && !others.is_empty() {
                failure.hint(format!("process {} has it open", others.join(", ")))
            } else {
                failure
            }
        })
    }

    /// Asks the agent for a session that it keeps.
    fn claim(arguments: &Arguments, name: &SessionName) -> Outcome<Option<Self>> {
        let Some((mut luod, id)) = at_agent(arguments, name)? else {
            return Ok(None);
        };
        let claim = json!({"cmd": "CLAIM", "id": id, "force": true});
        match luod.ask(claim, &[])?.fd {
            Some(ReceivedFd::Session(AnySession::Incoming(session))) => Ok(Some(Self {
                session,
                keeper: Keeper::Agent(luod),
            })),
            _ => Err(Failure::new(
                Exit::Failure,
                "the agent did not send the session",
            )),
        }
    }

    /// Starts a keeper.
    fn start(device: &Path, name: SessionName) -> Result<Self, Error> {
        let what = || Operation::Other("start a process that holds the session".into());
        let errno = |err: io::Error| {
            Error::of(
                what(),
                err.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            )
        };
        let (ours, theirs) = UnixStream::pair().map_err(errno)?;
        let child = Command::new("/proc/self/exe")
            .arg0("luoctl-keeper")
            .arg("keep")
            .arg("--device")
            .arg(device)
            .arg("--")
            .arg(OsStr::from_bytes(name.as_bytes()))
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(errno)?;

        Self::receive(ours, child.id(), device, name)
    }

    fn receive(
        keeper: UnixStream,
        pid: u32,
        device: &Path,
        name: SessionName,
    ) -> Result<Self, Error> {
        let mut message = [0; 6];
        let mut received = handoff::receive(&keeper, &mut message)?;

        match (&message[..received.len], received.fds.pop()) {
            ([HERE], Some(ReceivedFd::Session(AnySession::Incoming(session)))) => Ok(Self {
                session,
                keeper: Keeper::Process(keeper, pid),
            }),
            ([FAILED, operation, errno @ ..], None) => {
                let errno = errno.try_into().map_or(0, i32::from_le_bytes);
                let operation = match *operation {
                    OPEN => Operation::OpenDevice(device.into()),
                    _ => Operation::RetrieveSession(name),
                };
                Err(Error::of(operation, Errno::from_raw(errno)))
            }
            // Its end: it was killed, or has no session any more.
            _ => Err(Error::of(
                Operation::Other(format!("get session '{name}' from its keeper")),
                Errno::ECONNRESET,
            )),
        }
    }

    /// Finishes the session, and with it the keeper.
    ///
    /// # Errors
    ///
    /// As [`Session::finish`]; the session stays with its keeper then.
    pub fn finish(self) -> Outcome {
        if let Err(err) = self.session.finish() {
            self.leave();
            return Err(err.into());
        }
        self.finished();
        Ok(())
    }

    /// Says that the session is finished.
    pub fn finished(self) {
        // The keeper finds out by itself if this does not reach it.
        match self.keeper {
            Keeper::Process(mut stream, _) => drop(stream.write_all(&[DONE])),
            Keeper::Agent(mut luod) => drop(luod.ask(json!({"cmd": "FINISHED"}), &[])),
        }
        // Nothing is left to lose.
        drop(OwnedFd::from(self.session));
    }

    /// Leaves the session to its other holder, whose name is returned.
    pub fn leave(self) -> String {
        // Not the last descriptor of it.
        drop(OwnedFd::from(self.session));
        match self.keeper {
            Keeper::Process(_, pid) => format!("process {pid}"),
            Keeper::Agent(_) => "luod".into(),
        }
    }
}

/// The agent, if it knows an incoming session of this name, and the id of the client whose it is.
///
/// # Errors
///
/// If the agent does not speak the protocol.
pub fn at_agent(arguments: &Arguments, name: &SessionName) -> Outcome<Option<(Luod, Value)>> {
    let Some(mut luod) = Luod::connect(&arguments.socket)? else {
        return Ok(None);
    };
    // A user that is no operator may still ask the kernel.
    let Ok(status) = luod.ask(json!({"cmd": "STATUS"}), &[]) else {
        return Ok(None);
    };
    let text = name.to_string();
    let sessions = status.value["sessions"].as_array();
    let entry = sessions.and_then(|all| all.iter().find(|it| it["session"] == *text));

    Ok(entry.map(|entry| (luod, entry["id"].clone())))
}

/// Where the keeper of some process number listens.
fn address(pid: u32) -> Outcome<SocketAddr> {
    SocketAddr::from_abstract_name(format!("luoctl-keeper/{pid}"))
        .map_err(|err| Failure::io("name a socket", &err))
}

/// The keeper: retrieves a session, and holds it until it is finished.
pub fn keep(device: &Path, name: SessionName) -> Outcome {
    // Not with the terminal's processes: neither its keys nor its end are for this one. That it
    // leads such a group already would be fine.
    let _ = setsid();
    // The name by which lists show it; without it, it works as well.
    let _ = fs::write("/proc/self/comm", "luoctl-keeper");
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|err| Failure::io("use standard input", &err))?;
    let first = UnixStream::from(stdin);
    let listener = UnixListener::bind_addr(&address(process::id())?)
        .map_err(|err| Failure::io("listen for clients", &err))?;

    let opened = Device::open_at(device).map_err(|err| (OPEN, err));
    let retrieved = opened.and_then(|device| {
        device
            .retrieve_session(&name)
            .map_err(|err| (RETRIEVE, err))
    });
    let session = match retrieved {
        Ok(session) => session,
        Err((operation, err)) => {
            let mut message = vec![FAILED, operation];
            message.extend((err.errno() as i32).to_le_bytes());
            handoff::send(&first, &message, &[])?;
            return Err(err.into());
        }
    };

    let mut clients = Vec::new();
    serve(first, &session, &mut clients);
    loop {
        let done = next_done(&listener, &session, &mut clients)?;
        if done {
            // Another descriptor may be open, but nothing is left to lose.
            drop(OwnedFd::from(session));
            return Ok(());
        }
    }
}

/// Gives a client the session, and remembers it.
fn serve(client: UnixStream, session: &Session<Incoming>, clients: &mut Vec<UnixStream>) {
    let mine =
        getsockopt(&client, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw());

    // One that does not take it any more is gone.
    if mine && handoff::send(&client, &[HERE], &[session.as_fd()]).is_ok() {
        clients.push(client);
    }
}

/// Waits for something to happen; whether a client has finished the session.
fn next_done(
    listener: &UnixListener,
    session: &Session<Incoming>,
    clients: &mut Vec<UnixStream>,
) -> Outcome<bool> {
    let ready: Vec<bool> = {
        let fds = std::iter::once(listener.as_fd()).chain(clients.iter().map(AsFd::as_fd));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => fds.iter().map(|fd| fd.any() == Some(true)).collect(),
            Err(Errno::EINTR) => return Ok(false),
            Err(errno) => {
                return Err(Failure::new(
                    Exit::Failure,
                    format_args!("cannot wait for clients: {errno}"),
                ));
            }
        }
    };

    let mut done = false;
    let mut states = ready[1..].iter();
    clients.retain_mut(|client| {
        if states.next() != Some(&true) {
            return true;
        }
        let mut byte = [0];
        let got = client.read(&mut byte);
        done |= matches!(got, Ok(1)) && byte == [DONE];
        matches!(got, Ok(1))
    });
    if ready[0] {
        if let Ok((client, _)) = listener.accept() {
            serve(client, session, clients);
        }
    }
    Ok(done)
}
