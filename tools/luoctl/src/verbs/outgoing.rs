// SPDX-License-Identifier: GPL-2.0

//! Sessions that wait for the reboot: holding files in them, and passing them to programs.

use crate::{
    cli::{
        Arguments,
        HoldFile,
        Source, //
    },
    copy::{
        copy_sparse,
        progress_bar, //
    },
    exit::{
        Exit,
        Failure,
        Outcome, //
    },
    keep::Held,
    luod::Luod,
    output::{
        Output,
        Size, //
    },
};
use liveupdate::{
    agent::{
        self,
        Client,
        Notice, //
    },
    handoff::{
        self,
        ReceivedFd, //
    },
    holders,
    listing::Listing,
    AnySession,
    Device,
    DirectionKind,
    Errno,
    Outgoing,
    Session,
    SessionName,
    Token, //
};
use nix::{
    fcntl::{
        fcntl,
        FcntlArg,
        OFlag, //
    },
    sys::{
        memfd::{
            memfd_create,
            MFdFlags, //
        },
        signal::{
            SigSet,
            Signal, //
        },
        wait::{
            waitpid,
            WaitStatus, //
        },
    },
    unistd::{
        chdir,
        fork,
        pipe2,
        setsid,
        ForkResult,
        Pid, //
    },
};
use serde::Serialize;
use serde_json::json;
use std::{
    env,
    ffi::{
        OsStr,
        OsString, //
    },
    fs::File,
    io::{
        Read,
        Write, //
    },
    os::{
        fd::{
            AsFd,
            BorrowedFd,
            OwnedFd, //
        },
        unix::process::CommandExt, //
    },
    process::{
        self,
        Command,
        ExitCode, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// A file that is preserved.
#[derive(Serialize)]
struct Preserved {
    token: Token,
    bytes: Option<u64>,
}

/// Opens what is to be preserved; the size, if it is a copy.
fn open(source: &Source) -> Outcome<(OwnedFd, Option<u64>)> {
    match source {
        Source::Copy(path) => {
            let what = || format!("copy {}", path.display());
            let label = path.file_name().unwrap_or_default();
            let from = File::open(path).map_err(|err| Failure::io(what(), &err))?;
            let memory = memfd_create(label, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
                .map_err(|errno| Failure::io(what(), &errno.into()))?;
            let memory = File::from(memory);
            let bar = progress_bar(path.display().to_string());
            let bytes =
                copy_sparse(&from, &memory, &bar).map_err(|err| Failure::io(what(), &err))?;
            Ok((memory.into(), Some(bytes)))
        }
        Source::Inherited(number) => {
            // SAFETY: Only for the next call, which fails if there is no such descriptor.
            let fd = unsafe { BorrowedFd::borrow_raw(*number) };
            let fd = fd
                .try_clone_to_owned()
                .map_err(|err| Failure::io(format_args!("use descriptor {number}"), &err))?;
            Ok((fd, None))
        }
        Source::Process(pid, number) => Ok((holders::descriptor_of(*pid, *number)?, None)),
    }
}

/// Preserves files in a session.
fn preserve(session: &Session<Outgoing>, files: &[HoldFile]) -> Outcome<Vec<Preserved>> {
    let preserve = |file: &HoldFile| {
        let (fd, bytes) = open(&file.source)?;
        session.preserve(&fd, file.token)?;
        Ok(Preserved {
            token: file.token,
            bytes,
        })
    };
    files.iter().map(preserve).collect()
}

/// `luoctl hold`
pub fn hold(
    arguments: &Arguments,
    output: Output,
    name: SessionName,
    files: &[HoldFile],
    detach: bool,
) -> Outcome {
    let (session, preserved) = match stored(&name)? {
        Some(session) => {
            output.note(format_args!(
                "luoctl: session '{name}' was in the service manager's store"
            ));
            (session, Vec::new())
        }
        None => {
            // Dropped at once, since others want it, and a session does without.
            let session = Device::open_at(&arguments.device)?.create_session(&name)?;
            let preserved = preserve(&session, files)?;
            (session, preserved)
        }
    };
    let in_store = match handoff::store(session.as_fd(), &handoff::store_name(&name)) {
        Ok(()) => true,
        Err(err) if err.errno() == Errno::EOPNOTSUPP => false,
        Err(err) => return Err(err.into()),
    };
    // The session goes on in the child.
    let parent = detach.then(go_into_background).transpose()?;

    let value = json!({"session": name, "files": preserved, "pid": process::id()});
    output.result(&value, |out| {
        for Preserved { token, bytes } in &preserved {
            match bytes {
                Some(bytes) => writeln!(out, "token {token}: a copy of {}", Size(*bytes))?,
                None => writeln!(out, "token {token}: preserved")?,
            }
        }
        writeln!(out, "process {} holds session '{name}'", process::id())
    })?;
    // There need be no service manager.
    let _ = handoff::notify("READY=1");
    if let Some(mut parent) = parent {
        silence()?;
        // If the parent was killed, nobody waits for this.
        let _ = parent.write_all(&[0]);
    }
    let signal = wait_for_signal()?;
    match in_store {
        true => output.note(format_args!(
            "luoctl: {signal}: session '{name}' stays in the service manager's store"
        )),
        false => output.note(format_args!(
            "luoctl: {signal}: session '{name}' is closed, and what it preserved is ordinary again"
        )),
    }
    Ok(())
}

/// The session that an earlier process of the same service put into the store.
fn stored(name: &SessionName) -> Outcome<Option<Session<Outgoing>>> {
    for inherited in handoff::inherited()? {
        match inherited.fd {
            ReceivedFd::Session(AnySession::Outgoing(session)) if session.name() == name => {
                return Ok(Some(session));
            }
            // The store has it still.
            ReceivedFd::Session(session) => {
                let (other, direction) = (*session.name(), session.direction());
                drop(OwnedFd::from(session));
                if other == *name {
                    return Err(Failure::new(
                        Exit::Failure,
                        format_args!("session '{name}' in the store is an {direction} one"),
                    )
                    .hint("retrieve it first"));
                }
            }
            ReceivedFd::Other(_) => {}
        }
    }
    Ok(None)
}

/// Goes on in a child, in a session of its own. The parent ends once the child has written a byte to
/// what this returns, or with the status with which the child has ended before.
fn go_into_background() -> Outcome<File> {
    let failed = |errno: Errno| Failure::io("go into the background", &errno.into());
    let (ready, child) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;

    // SAFETY: This process has one thread, so the child can do whatever it wants.
    match unsafe { fork() }.map_err(failed)? {
        ForkResult::Child => {
            drop(ready);
            setsid().map_err(failed)?;
            chdir("/").map_err(failed)?;
            Ok(File::from(child))
        }
        ForkResult::Parent { child: pid } => {
            drop(child);
            let status = match File::from(ready).read_exact(&mut [0]) {
                Ok(()) => 0,
                // It has said why.
                Err(_) => wait_for(pid)
                    .map_err(|errno| Failure::io("wait for the background", &errno.into()))?,
            };
            // Without destructors: the session is the child's.
            process::exit(status);
        }
    }
}

/// Waits until a child ends. Returns its status, as a shell does.
fn wait_for(child: Pid) -> nix::Result<i32> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Lets go of the terminal.
fn silence() -> Outcome {
    let null = || File::options().read(true).write(true).open("/dev/null");
    let failed = |err: std::io::Error| Failure::io("leave the terminal", &err);

    let null = null().map_err(failed)?;
    for redirect in [
        nix::unistd::dup2_stdin::<&File>,
        nix::unistd::dup2_stdout,
        nix::unistd::dup2_stderr,
    ] {
        redirect(&null).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

fn wait_for_signal() -> Outcome<Signal> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }

    signals
        .thread_block()
        .and_then(|()| signals.wait())
        .map_err(|errno| Failure::io("wait for a signal", &errno.into()))
}

/// A session for a program.
enum ForProgram {
    Outgoing(Session<Outgoing>),
    Incoming(Held),
}

impl ForProgram {
    /// Retrieves an incoming session, or creates one.
    fn new(arguments: &Arguments, name: SessionName) -> Outcome<Self> {
        match Held::take(arguments, name) {
            Ok(held) => Ok(Self::Incoming(held)),
            Err(failure) if failure.exit == Exit::NoSuch => {
                let session = Device::open_at(&arguments.device)?.create_session(&name)?;
                Ok(Self::Outgoing(session))
            }
            Err(failure) => Err(failure),
        }
    }

    fn name(&self) -> SessionName {
        match self {
            Self::Outgoing(session) => *session.name(),
            Self::Incoming(held) => *held.session.name(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Outgoing(session) => session.as_fd(),
            Self::Incoming(held) => held.session.as_fd(),
        }
    }
}

/// `luoctl run`
pub fn run(
    arguments: &Arguments,
    output: Output,
    names: &[OsString],
    command: &[OsString],
) -> Outcome<ExitCode> {
    let names: Vec<_> = names
        .iter()
        .map(|name| super::name(name))
        .collect::<Outcome<_>>()?;
    let mut sessions = Vec::new();
    for name in names {
        match ForProgram::new(arguments, name) {
            Ok(session) => sessions.push(session),
            Err(failure) => {
                sessions.into_iter().for_each(leave);
                return Err(failure);
            }
        }
    }

    // SAFETY: This process has one thread, so the child can do whatever it wants.
    let status = match unsafe { fork() } {
        Err(errno) => Err(Failure::io("start the program", &errno.into())),
        Ok(ForkResult::Child) => {
            let failure = execute(&sessions, command);
            output.failure(&failure);
            // Without destructors: the sessions are the parent's.
            process::exit(127);
        }
        Ok(ForkResult::Parent { child }) => {
            wait_for(child).map_err(|errno| Failure::io("wait for the program", &errno.into()))
        }
    };
    for session in sessions {
        let name = session.name();
        if let ForProgram::Incoming(held) = session {
            let listing = Listing::read(DirectionKind::Incoming).ok();
            let entry = listing.as_ref().and_then(|listing| listing.session(&name));
            if entry.is_some_and(|entry| entry.is_finished()) {
                held.finished();
            } else {
                let keeper = held.leave();
                output.note(format_args!(
                    "luoctl: the program did not finish session '{name}'; {keeper} holds it until \
                     `luoctl run`, `retrieve` or `discard`"
                ));
            }
        }
    }
    Ok(ExitCode::from(u8::try_from(status?).unwrap_or(1)))
}

fn leave(session: ForProgram) {
    if let ForProgram::Incoming(held) = session {
        held.leave();
    }
}

/// In the child: becomes the program. Returns if that fails.
fn execute(sessions: &[ForProgram], command: &[OsString]) -> Failure {
    let Some((program, arguments)) = command.split_first() else {
        return Failure::new(Exit::Invalid, "there is no program to run");
    };
    let failed = |errno: Errno| Failure::io("pass on the sessions", &errno.into());
    let first = 3;
    let Ok(count) = i32::try_from(sessions.len()) else {
        return Failure::new(Exit::Invalid, "there are too many sessions");
    };

    // Out of the way first, so that no number is taken before its descriptor is moved.
    let mut moved = Vec::new();
    for session in sessions {
        match fcntl(session.fd(), FcntlArg::F_DUPFD_CLOEXEC(first + count)) {
            Ok(number) => moved.push(number),
            Err(errno) => return failed(errno),
        }
    }
    for (number, from) in (first..).zip(&moved) {
        // SAFETY: The process is about to become another one. Until then nothing uses what `number`
        // may have been: a session that is moved already, or a descriptor of this process's own.
        if let Err(errno) = Errno::result(unsafe { nix::libc::dup2(*from, number) }) {
            return failed(errno);
        }
    }

    let names: Vec<_> = sessions
        .iter()
        .map(|session| handoff::store_name(&session.name()))
        .collect();
    env::set_var("LISTEN_PID", process::id().to_string());
    env::set_var("LISTEN_FDS", count.to_string());
    env::set_var("LISTEN_FDNAMES", names.join(":"));
    let err = Command::new(program).args(arguments).exec();
    Failure::io(format_args!("run {}", program.to_string_lossy()), &err)
}

/// How long an agent that went away is waited for: it is started again within seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is tried.
const AGAIN: Duration = Duration::from_millis(500);

/// `luoctl subscribe`
pub fn subscribe(
    arguments: &Arguments,
    output: Output,
    id: &str,
    files: &[HoldFile],
    class: Option<&str>,
    exec: Option<&OsStr>,
) -> Outcome {
    // One that does not run at all is not waited for.
    Luod::require(&arguments.socket)?;
    let mut client = Client::new(id, class.unwrap_or("vm"), &arguments.socket);
    let mut committed = client.subscribe()?;
    tell_subscribed(output, id)?;
    // There need be no service manager.
    let _ = handoff::notify("READY=1");

    // Ours until the jump, beside the agent's.
    let mut session = None;
    loop {
        match client.wait() {
            Ok(Notice::Start(started)) => {
                let told = match prepare(&started, files, exec) {
                    Ok(preserved) => {
                        let value = json!({"event": "READY", "id": id, "files": preserved});
                        client
                            .ready()
                            .map(|()| output.event(&value, format_args!("ready")))
                    }
                    Err(failure) => {
                        output.failure(&failure);
                        client.failed(&failure.message).map(Ok)
                    }
                };
                session = Some(started);
                match told {
                    Ok(written) => written?,
                    // The abort follows, or has crossed this.
                    Err(why @ agent::Error::Refused { .. }) => output.failure(&why.into()),
                    // The next wait ends with the same.
                    Err(agent::Error::Gone(_)) => {}
                    Err(why) => return Err(why.into()),
                }
            }
            Ok(Notice::Abort(reason)) => {
                session = None;
                committed = false;
                tell_aborted(output, &reason)?;
            }
            Ok(Notice::Committed) => {
                committed = true;
                output.event(&json!({"event": "COMMITTED"}), format_args!("committed"))?;
            }
            Err(why @ agent::Error::Gone(_)) => {
                output.note(format_args!("luoctl: {why}"));
                let had = session.is_some();
                if !committed {
                    // Before the next one of this name is made.
                    session = None;
                }
                committed = subscribe_again(&mut client)?;
                if !committed {
                    session = None;
                    if had {
                        tell_aborted(output, "the agent was restarted")?;
                    }
                }
                tell_subscribed(output, id)?;
            }
            Err(why) => return Err(why.into()),
        }
    }
}

fn tell_subscribed(output: Output, id: &str) -> Outcome {
    output.event(
        &json!({"event": "SUBSCRIBED", "id": id}),
        format_args!("subscribed as '{id}'"),
    )
}

fn tell_aborted(output: Output, reason: &str) -> Outcome {
    output.event(
        &json!({"event": "ABORT", "reason": reason}),
        format_args!("aborted: {reason}"),
    )
}

/// Subscribes with an agent that is being started again. Returns whether an update is committed.
fn subscribe_again(client: &mut Client) -> Outcome<bool> {
    let begin = Instant::now();

    loop {
        let why = match client.subscribe() {
            Ok(committed) => return Ok(committed),
            Err(why) => why,
        };
        // EBUSY: an update is under way that is about to be aborted.
        let passes = matches!(why, agent::Error::Gone(_)) || why.is("EBUSY");
        if !passes || begin.elapsed() > PATIENCE {
            return Err(why.into());
        }
        thread::sleep(AGAIN);
    }
}

/// Does what is to be done at an update.
fn prepare(
    session: &Session<Outgoing>,
    files: &[HoldFile],
    exec: Option<&OsStr>,
) -> Outcome<Vec<Preserved>> {
    if let Some(command) = exec {
        let status = Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .status()
            .map_err(|err| Failure::io("run the command", &err))?;
        if !status.success() {
            return Err(Failure::new(
                Exit::Failure,
                format_args!("the command ended with {status}"),
            ));
        }
    }
    preserve(session, files)
}
