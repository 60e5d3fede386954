// SPDX-License-Identifier: GPL-2.0

//! The life of a program, from one update to the next.

use crate::{
    cli::Arguments,
    folder::{
        Folder,
        FIRST_FD, //
    },
    second::Second,
    Outcome, //
};
use command_fds::{
    CommandFdExt,
    FdMapping, //
};
use liveupdate::{
    agent::{
        Client,
        Error as AgentError,
        Notice, //
    },
    handoff,
    Incoming,
    Outgoing,
    Session, //
};
use nix::{
    errno::Errno,
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::{
        signal::{
            kill,
            SigSet,
            Signal, //
        },
        signalfd::{
            SfdFlags,
            SignalFd, //
        },
    },
    unistd::Pid,
};
use std::{
    os::fd::AsFd,
    process::{
        Child,
        Command,
        ExitCode,
        ExitStatus, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// How often what could not be done with the agent is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Runs the program to its end.
pub fn run(arguments: &Arguments) -> Outcome<ExitCode> {
    let name = arguments.name.as_deref().unwrap_or_default();
    let path = arguments.folders.join(name);
    let set: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]
        .into_iter()
        .collect();
    set.thread_block()?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let mut client = Client::new(name, "memory", &arguments.socket);
    let incoming = client.claim()?;
    let folder = match &incoming {
        Some(session) => Folder::retrieve(path, session)?,
        None => {
            // A name that is taken must not get a second program.
            if client.subscribe()? {
                return Err("the machine is being updated".into());
            }
            Folder::new(path, &arguments.files)?
        }
    };
    let child = start(arguments, &folder)?;
    tell(if incoming.is_some() {
        "the program goes on with what it had"
    } else {
        "the program runs"
    });
    let service = Service {
        arguments,
        client,
        folder,
        subscribed: incoming.is_none(),
        incoming,
        child: Some(child),
        outgoing: None,
        committed: false,
    };
    service.run(&signals)
}

/// Starts the program, in another second than it ended in.
fn start(arguments: &Arguments, folder: &Folder) -> Outcome<Child> {
    let [program, words @ ..] = arguments.command.as_slice() else {
        return Err("there is no command to run".into());
    };
    let mappings = folder
        .memory
        .iter()
        .zip(FIRST_FD..)
        .map(|((_, file), child_fd)| {
            Ok(FdMapping {
                parent_fd: file.as_fd().try_clone_to_owned()?,
                child_fd,
            })
        });
    let mut command = Command::new(program);
    command
        .args(words)
        .fd_mappings(mappings.collect::<Outcome<_>>()?)?;
    if let Some(ended) = folder.ended {
        ended.wait();
    }
    let child = command
        .spawn()
        .map_err(|err| format!("cannot start {program}: {err}"))?;
    Ok(child)
}

struct Service<'a> {
    arguments: &'a Arguments,
    client: Client,
    folder: Folder,
    subscribed: bool,
    incoming: Option<Session<Incoming>>,
    /// Not there while everything is preserved.
    child: Option<Child>,
    outgoing: Option<Session<Outgoing>>,
    committed: bool,
}

impl Service<'_> {
    fn run(mut self, signals: &SignalFd) -> Outcome<ExitCode> {
        let _ = handoff::notify("READY=1");
        let mut said = None;
        loop {
            let why = self.finish_and_subscribe().err();
            if let Some(why) = why.as_ref().filter(|why| said.as_ref() != Some(*why)) {
                tell(&format!("not part of updates yet, tried again: {why}"));
            }
            let timeout = match why {
                Some(_) => PollTimeout::try_from(AGAIN)?,
                None => PollTimeout::NONE,
            };
            said = why;

            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                self.client
                    .as_fd()
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
            );
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(err) => return Err(err.into()),
            }
            // Before signals: a COMMITTED explains the SIGTERM that follows it.
            self.listen()?;
            while let Some(signal) = signals.read_signal()? {
                if i32::try_from(signal.ssi_signo)? != Signal::SIGCHLD as i32 {
                    let status = self.stop(Signal::SIGTERM)?;
                    return Ok(status.map_or(ExitCode::SUCCESS, code));
                }
            }
            if let Some(child) = &mut self.child {
                if let Some(status) = child.try_wait()? {
                    tell(&format!("the program ended: {status}"));
                    return Ok(code(status));
                }
            }
        }
    }

    /// Finishes the incoming session, and subscribes; as far as it is not done.
    fn finish_and_subscribe(&mut self) -> Result<(), String> {
        if let Some(session) = self.incoming.take() {
            if let Err(why) = session.finish() {
                self.incoming = Some(session);
                return Err(why.to_string());
            }
            let _ = self.client.finished();
        }
        if !self.subscribed {
            let committed = self.client.subscribe().map_err(|why| why.to_string())?;
            self.subscribed = true;
            if self.committed && !committed {
                self.roll_back("the agent knows of no update any more")
                    .map_err(|why| why.to_string())?;
            }
        }
        Ok(())
    }

    fn listen(&mut self) -> Outcome {
        loop {
            match self.client.notice() {
                Ok(None) => return Ok(()),
                Ok(Some(Notice::Start(session))) => self.preserve(session)?,
                Ok(Some(Notice::Abort(why))) => self.roll_back(&why)?,
                Ok(Some(Notice::Committed)) => self.committed = self.outgoing.is_some(),
                Err(why) => {
                    self.subscribed = false;
                    if !self.committed {
                        self.roll_back(&why.to_string())?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Has the program end, and preserves what it leaves.
    fn preserve(&mut self, session: Session<Outgoing>) -> Outcome {
        let done = self
            .stop(self.arguments.stop_signal)
            .and_then(|status| match status {
                Some(status) if !status.success() => {
                    Err(format!("the program ended with {status}").into())
                }
                _ => self.folder.preserve(&session),
            });
        let answer = match done {
            Ok(()) => {
                tell("the program has ended, and what it had is preserved");
                self.outgoing = Some(session);
                self.client.ready()
            }
            Err(why) => {
                drop(session);
                let answer = self.client.failed(&why.to_string());
                self.roll_back(&why.to_string())?;
                answer
            }
        };
        match answer {
            // An abort crossed it, and comes next.
            Ok(()) | Err(AgentError::Refused { .. }) => Ok(()),
            Err(why) => {
                self.subscribed = false;
                self.roll_back(&why.to_string())
            }
        }
    }

    /// The update does not happen: the program is started again.
    fn roll_back(&mut self, why: &str) -> Outcome {
        self.outgoing = None;
        self.committed = false;
        if self.child.is_none() {
            self.child = Some(start(self.arguments, &self.folder)?);
            tell(&format!(
                "the program is started again in this kernel: {why}"
            ));
        }
        Ok(())
    }

    /// Sends the program a signal and waits for its end, if it runs.
    fn stop(&mut self, signal: Signal) -> Outcome<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        let status = end(&mut child, signal, self.arguments.stop_timeout);
        self.folder.ended = Some(Second::now());
        status.map(Some)
    }
}

/// Sends a program a signal, and waits some seconds for its end, or kills it.
fn end(child: &mut Child, signal: Signal, seconds: u64) -> Outcome<ExitStatus> {
    kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    Err(format!("the program did not end in {seconds} s").into())
}

fn tell(text: &str) {
    eprintln!("luo-run: {text}");
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
