// SPDX-License-Identifier: GPL-2.0

//! The life of a guest, from one update to the next.
//!
//! ```text
//!   Running ── START_PRESERVATION: stop, save, preserve, READY ──► Saved ── COMMITTED ──► Committed
//!     ▲                                                              │                        │
//!     └── ABORT, or the connection ended: cont ◄─────────────────────┘                        │
//!     └── ABORT, or luod knows of no update any more: cont ◄──────────────────────────────────┘
//! ```
//!
//! QEMU stays there when its guest is saved, so that an update that is aborted late costs the guest
//! nothing but the pause. When the machine goes down (SIGTERM) it is ended.

use crate::{
    cli::{
        self,
        Manner,
        Verb, //
    },
    machine::{
        Files,
        Machine, //
    },
    manifest::{
        self,
        Manifest, //
    },
    options,
    ram::Ram,
    survival,
    Outcome, //
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
            SigSet,
            Signal, //
        },
        signalfd::{
            SfdFlags,
            SignalFd, //
        },
    },
    time::{
        clock_gettime,
        ClockId, //
    },
};
use std::{
    env,
    ffi::OsString,
    fs::File,
    os::fd::AsFd,
    process::{
        ExitCode,
        ExitStatus, //
    },
    time::{
        Duration,
        Instant,
        SystemTime, //
    },
};

/// How often what could not be done with the agent is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Does what the command line says.
pub fn run(verb: Verb) -> Outcome<ExitCode> {
    match verb {
        Verb::Generate { directory } => {
            cli::generate(&directory)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Check {
            memory,
            huge_pages,
            command,
        } => match Plan::new(memory, huge_pages, command)? {
            Some(_) => Ok(ExitCode::SUCCESS),
            None => Ok(ExitCode::from(2)),
        },
        Verb::Resume { name, manner } => {
            let mut client = Client::new(&name, "vm", &manner.socket);
            match client.claim()? {
                Some(session) => resume(client, session, &manner),
                None => Err(format!(
                    "the previous kernel left no guest '{name}'; `luo-qemu run {name}' starts one"
                )
                .into()),
            }
        }
        Verb::Run {
            name,
            memory,
            huge_pages,
            resume: may_resume,
            manner,
            command,
        } => {
            let mut client = Client::new(&name, "vm", &manner.socket);
            if may_resume {
                if let Some(session) = client.claim()? {
                    return resume(client, session, &manner);
                }
            }
            let Some(plan) = Plan::new(memory, huge_pages, command)? else {
                return Ok(ExitCode::from(2));
            };
            start(client, &name, plan, &manner)
        }
    }
}

/// A guest to be started.
struct Plan {
    command: Vec<String>,
    ram: Ram,
}

impl Plan {
    /// Looks at a command line. If the guest could not survive, says why, for each option at fault.
    fn new(
        memory: Option<String>,
        huge_pages: Option<String>,
        command: Vec<OsString>,
    ) -> Outcome<Option<Self>> {
        let command: Vec<String> = command
            .into_iter()
            .map(|word| {
                word.into_string()
                    .map_err(|word| format!("{word:?} is not UTF-8"))
            })
            .collect::<Result<_, _>>()?;
        let arguments = command.get(1..).unwrap_or_default();

        let refusals = survival::refusals(arguments);
        for refusal in &refusals {
            eprintln!("luo-qemu: {refusal}");
        }
        let found = options::parse(arguments);
        let in_command = found.iter().rev().find(|option| option.name == "m");
        let in_command = in_command.map(|option| option.kind(&["size"]));
        let memory = match (memory, in_command) {
            (Some(text), None) | (None, Some(text)) => Some(text),
            (Some(text), Some(other)) if options::size(&text) == options::size(&other) => {
                Some(text)
            }
            (Some(text), Some(other)) => {
                eprintln!(
                    "luo-qemu: --memory {text} and `-m {other}' differ; leave one of them out"
                );
                return Ok(None);
            }
            (None, None) => {
                eprintln!("luo-qemu: say how much RAM the guest has, by --memory");
                None
            }
        };
        let Some(text) = memory.filter(|_| refusals.is_empty()) else {
            return Ok(None);
        };
        let Some(memory) = options::size(&text) else {
            eprintln!("luo-qemu: `{text}' is no size of RAM: a number with M or G, in whole pages");
            return Ok(None);
        };
        match Ram::new(memory, huge_pages.as_deref()) {
            Ok(ram) => Ok(Some(Self { command, ram })),
            Err(why) => {
                eprintln!("luo-qemu: {why}");
                Ok(None)
            }
        }
    }
}

/// Starts a new guest.
fn start(mut client: Client, name: &str, plan: Plan, manner: &Manner) -> Outcome<ExitCode> {
    let signals = signals()?;
    // Before the guest is there: a name that is taken must not get a second guest.
    let committed = client.subscribe().map_err(|why| {
        let hint = if why.is("EEXIST") {
            format!("; `luo-qemu resume {name}' continues a guest that the previous kernel left")
        } else {
            String::new()
        };
        format!("{why}{hint}")
    })?;
    if committed {
        return Err("the machine is being updated".into());
    }
    let directory = env::current_dir()?;
    let (memory, files) = (plan.ram.size, Files::new(name, plan.ram)?);
    let mut machine = Machine::start(&plan.command, &directory, memory, files, None)?;
    let kind = machine.kind()?;
    let manifest = Manifest::new(plan.command, directory, memory, kind);

    tell(&format!("guest '{name}' runs"));
    Service::new(client, machine, manifest, None, manner).run(&signals)
}

/// Continues the guest of a session.
fn resume(client: Client, session: Session<Incoming>, manner: &Manner) -> Outcome<ExitCode> {
    let signals = signals()?;
    let begin = Instant::now();
    let manifest = Manifest::read(&File::from(session.retrieve(manifest::MANIFEST)?))?;
    let files = Files {
        ram: File::from(session.retrieve(manifest::RAM)?),
        state: File::from(session.retrieve(manifest::STATE)?),
    };
    if files.ram.metadata()?.len() != manifest.memory {
        return Err("the guest's RAM has another size than it had".into());
    }
    let retrieved = begin.elapsed();
    let mut machine = Machine::start(
        &manifest.command,
        &manifest.directory,
        manifest.memory,
        files,
        Some(&manifest.machine),
    )?;
    let started = begin.elapsed();
    machine.load()?;
    if manifest.running {
        machine.go_on()?;
    }
    tell(&format!(
        "the guest goes on after {:.3} s by the host's clock; at {:.3} s of this kernel: retrieve {} ms, QEMU {} ms, load {} ms",
        since(manifest.stopped).as_secs_f64(),
        uptime().as_secs_f64(),
        retrieved.as_millis(),
        (started - retrieved).as_millis(),
        (begin.elapsed() - started).as_millis(),
    ));
    Service::new(client, machine, manifest, Some(session), manner).run(&signals)
}

/// Signals as a descriptor; blocked from now on, but not in children.
fn signals() -> Outcome<SignalFd> {
    let set: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]
        .into_iter()
        .collect();
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// How far the guest is in an update.
enum Stage {
    Running,
    /// It is stopped and preserved. `running` is whether it ran before.
    Saved {
        running: bool,
    },
    /// And the kexec follows.
    Committed {
        running: bool,
    },
}

struct Service<'a> {
    client: Client,
    machine: Machine,
    manifest: Manifest,
    manner: &'a Manner,
    stage: Stage,
    /// What the guest came from, until it is finished.
    incoming: Option<Session<Incoming>>,
    /// What is to be handed over.
    outgoing: Option<Session<Outgoing>>,
    /// Whether the agent knows of this client.
    subscribed: bool,
    /// Whether the RAM is preserved in `outgoing`.
    prepared: bool,
    /// When QEMU is ended, if the guest has not shut down by then.
    deadline: Option<Instant>,
}

impl<'a> Service<'a> {
    fn new(
        client: Client,
        machine: Machine,
        manifest: Manifest,
        incoming: Option<Session<Incoming>>,
        manner: &'a Manner,
    ) -> Self {
        Self {
            client,
            machine,
            manifest,
            manner,
            stage: Stage::Running,
            // A new guest has subscribed before it was started.
            subscribed: incoming.is_none(),
            incoming,
            outgoing: None,
            prepared: false,
            deadline: None,
        }
    }

    fn run(mut self, signals: &SignalFd) -> Outcome<ExitCode> {
        // Services that wait for the guest need not wait for what follows.
        let _ = handoff::notify("READY=1");
        let mut said = None;
        loop {
            // What the agent still has to be told, and could not be.
            let why = self.finish_and_subscribe().err();
            if let Some(why) = why.as_ref().filter(|why| said.as_ref() != Some(*why)) {
                tell(&format!("not part of updates yet, tried again: {why}"));
            }
            let open = why.is_some();
            said = why;

            self.wait(signals, open)?;
            // Before signals: a COMMITTED explains the SIGTERM that follows it.
            self.listen()?;
            while let Some(signal) = signals.read_signal()? {
                if i32::try_from(signal.ssi_signo)? != Signal::SIGCHLD as i32 {
                    if let Some(status) = self.terminate()? {
                        return Ok(code(status));
                    }
                }
            }
            if let Some(status) = self.machine.ended()? {
                tell(&format!("QEMU ended: {status}"));
                return Ok(code(status));
            }
            let _ = self.machine.drain();
            if self.deadline.is_some_and(|end| Instant::now() >= end) {
                tell("the guest did not shut down in time");
                return Ok(code(self.machine.quit()?));
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, signals: &SignalFd, open: bool) -> Outcome {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.machine.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            self.client
                .as_fd()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let left = self
            .deadline
            .map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = match (open, left) {
            (true, left) => Some(left.map_or(AGAIN, |left| left.min(AGAIN))),
            (false, left) => left,
        };
        let timeout = timeout.map_or(PollTimeout::NONE, |time| {
            PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// Finishes the incoming session, subscribes, and preserves the RAM early; as far as it is not
    /// done.
    fn finish_and_subscribe(&mut self) -> Result<(), String> {
        if let Some(session) = self.incoming.take() {
            if let Err(why) = session.finish() {
                self.incoming = Some(session);
                return Err(why.to_string());
            }
            // Without it the agent finds out by itself.
            let _ = self.client.finished();
        }
        if !self.subscribed {
            let committed = self.client.subscribe().map_err(|why| why.to_string())?;
            self.subscribed = true;
            if !committed {
                if let Stage::Committed { .. } = self.stage {
                    self.roll_back("the agent knows of no update any more");
                }
            }
        }
        if !self.prepared && matches!(self.stage, Stage::Running) && self.deadline.is_none() {
            let session = match self.client.prepare() {
                Ok(session) => session,
                // One is beginning: everything is preserved then.
                Err(why) if why.is("EBUSY") || why.is("EPROTO") => return Ok(()),
                Err(why) => return Err(why.to_string()),
            };
            session
                .preserve(&self.machine.files().ram, manifest::RAM)
                .map_err(|why| why.to_string())?;
            self.outgoing = Some(session);
            self.prepared = true;
        }
        Ok(())
    }

    /// Does what the agent wants.
    fn listen(&mut self) -> Outcome {
        loop {
            match self.client.notice() {
                Ok(None) => return Ok(()),
                Ok(Some(Notice::Start(session))) => self.preserve(session)?,
                Ok(Some(Notice::Abort(why))) => self.roll_back(&why),
                Ok(Some(Notice::Committed)) => {
                    if let Stage::Saved { running } = self.stage {
                        self.stage = Stage::Committed { running };
                    }
                }
                Err(why) => {
                    self.subscribed = false;
                    if !matches!(self.stage, Stage::Committed { .. }) {
                        self.roll_back(&why.to_string());
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Saves the guest into a session, or tells the agent why that cannot be.
    fn preserve(&mut self, session: Session<Outgoing>) -> Outcome {
        let answer = match self.try_preserve(&session) {
            Ok(running) => {
                self.stage = Stage::Saved { running };
                self.outgoing = Some(session);
                self.client.ready()
            }
            Err(why) => {
                let why = why.to_string();
                tell(&why);
                drop(session);
                self.outgoing = None;
                self.prepared = false;
                self.client.failed(&why)
            }
        };
        match answer {
            // An abort crossed it, and comes next.
            Ok(()) | Err(AgentError::Refused { .. }) => {}
            Err(why) => {
                self.subscribed = false;
                self.roll_back(&why.to_string());
            }
        }
        Ok(())
    }

    fn try_preserve(&mut self, session: &Session<Outgoing>) -> Outcome<bool> {
        if self.deadline.is_some() {
            return Err("the guest is being shut down".into());
        }
        if !self.prepared {
            session.preserve(&self.machine.files().ram, manifest::RAM)?;
            self.prepared = true;
        }
        let begin = Instant::now();
        self.manifest.stopped = now();
        let running = self.machine.save()?;
        let preserved = self.preserve_state(session, running);
        if preserved.is_err() && running {
            self.machine.go_on()?;
        }
        let bytes = preserved?;
        tell(&format!(
            "the guest is stopped at {:.3} s of this kernel, its state of {bytes} bytes preserved in {} ms",
            uptime().as_secs_f64(),
            begin.elapsed().as_millis()
        ));
        Ok(running)
    }

    /// Preserves what is known when the guest is stopped. Returns the size of its state.
    fn preserve_state(&mut self, session: &Session<Outgoing>, running: bool) -> Outcome<u64> {
        let state = &self.machine.files().state;
        session.preserve(state, manifest::STATE)?;
        self.manifest.running = running;
        session.preserve(&self.manifest.write()?, manifest::MANIFEST)?;
        Ok(state.metadata()?.len())
    }

    /// The update does not happen: the guest goes on, and nothing is preserved.
    fn roll_back(&mut self, why: &str) {
        self.outgoing = None;
        self.prepared = false;
        let stage = std::mem::replace(&mut self.stage, Stage::Running);
        let (Stage::Saved { running } | Stage::Committed { running }) = stage else {
            return;
        };
        match if running {
            self.machine.go_on()
        } else {
            Ok(())
        } {
            Ok(()) => tell(&format!("the guest goes on in this kernel: {why}")),
            // If QEMU is gone, the loop finds out.
            Err(err) => tell(&format!("the guest cannot be continued: {err}")),
        }
    }

    /// A signal says that it is time to end. Returns how QEMU ended, if it is to end at once.
    fn terminate(&mut self) -> Outcome<Option<ExitStatus>> {
        let saved = !matches!(self.stage, Stage::Running);
        if saved || self.deadline.is_some() {
            return Ok(Some(self.machine.quit()?));
        }
        self.deadline = Some(Instant::now() + Duration::from_secs(self.manner.shutdown_timeout));
        // If the monitor is gone, so is QEMU.
        let _ = self.machine.power_down();
        Ok(None)
    }
}

fn tell(text: &str) {
    eprintln!("luo-qemu: {text}");
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn since(time: u64) -> Duration {
    Duration::from_nanos(now().saturating_sub(time))
}

/// How long this kernel runs.
fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
