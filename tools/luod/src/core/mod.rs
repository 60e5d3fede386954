// SPDX-License-Identifier: GPL-2.0

//! What luod does, without doing it.
//!
//! [`Core`] is a state machine. It is told what happened ([`Input`]) and says what is to be done
//! ([`Action`]), in order. It opens nothing, sends nothing and looks at no clock, so everything
//! that it decides can be tested on any machine. [`crate::server`] does what it says.
//!
//! | module | about |
//! |---|---|
//! | this one | connections, dispatch of commands, what is told to operators |
//! | [`clients`] | subscriptions, on the way out |
//! | [`update`] | an update, from the check to the kexec |
//! | [`sessions`] | incoming sessions |
//! | [`recover`] | the state after a start, in a new kernel or after a crash |
//!
//! # What is written down
//!
//! After each input [`Core::memory`] is written to disk if it changed, *before* the actions are
//! carried out. So the state file never promises less than has been said to anybody, and what a
//! crash leaves half done (a session that is stored and not written down, or the reverse) is told
//! apart at the next start.

mod clients;
mod recover;
mod sessions;
#[cfg(test)]
mod tests;
mod update;

use crate::{
    policy::{
        Peer,
        Policy, //
    },
    protocol::{
        ClientStatus,
        Code,
        Command,
        Event,
        Finding,
        Id,
        Last,
        Refusal,
        SessionStatus,
        State,
        Status,
        VERSION, //
    },
    record::{
        Entry,
        Map,
        Memory, //
    },
};
use clients::Client;
pub use recover::{
    Found,
    Start, //
};
use sessions::Held;
use std::{
    collections::{
        BTreeMap,
        BTreeSet, //
    },
    time::Duration, //
};
use update::Phase;

/// What luod calls itself.
pub const AGENT: &str = concat!("luod ", env!("CARGO_PKG_VERSION"));

/// A connection.
pub type ConnId = u64;

/// The time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// On a clock that does not jump.
    pub clock: Duration,
    /// Seconds since 1970.
    pub time: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Somebody connected.
    Connected(ConnId, Peer),
    /// Somebody sent a line.
    Line(ConnId, Result<Command, String>),
    /// A connection ended.
    Disconnected(ConnId),
    /// [`Action::Create`] is done: the session has this name.
    Created(Id, Result<String, String>),
    /// [`Action::Retrieve`] is done.
    Retrieved(Id, Result<(), RetrieveError>),
    /// [`Action::Probe`] is done: whether the session is finished.
    Probed(Id, Result<bool, String>),
    /// [`Action::Measure`] is done.
    Measured(Id, Result<Content, String>),
    /// [`Action::Discard`] is done.
    Discarded(Id, Result<(), String>),
    /// The [`Action::Check`] of this number is done.
    Checked(u64, Vec<Finding>),
    /// [`Action::Write`] is done.
    Written(Result<(), String>),
    /// [`Action::Kexec`] did not happen.
    KexecFailed(String),
    /// There is a new policy.
    NewPolicy(Policy),
    /// Time passed.
    Tick,
}

/// Why a session cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetrieveError {
    /// The kernel does not have it (any more).
    Gone,
    /// It was corrupted on the way.
    Corrupt(String),
    /// Not now.
    Later(String),
}

/// What is in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Files, the mark not counted.
    pub files: u64,
    /// Bytes of memory that they take.
    pub bytes: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell something, with the descriptor of the session of this name.
    Send(ConnId, Event, Option<String>),
    /// End a connection, after what was sent to it.
    Close(ConnId),
    /// Make an outgoing session, mark it, store it. Gives [`Input::Created`].
    Create(Entry),
    /// Let an outgoing session go.
    Abandon(String),
    /// Take a session from the kernel and store it. Gives [`Input::Retrieved`].
    Retrieve(Id, String),
    /// Find out whether a session is finished. Gives [`Input::Probed`].
    Probe(Id, String),
    /// Let a finished session go.
    Release(String),
    /// Finish a session and let it go. Gives [`Input::Discarded`].
    Discard(Id, String),
    /// Find out how much an outgoing session holds. Gives [`Input::Measured`].
    Measure(Id, String),
    /// Look whether an update can succeed; load the image that came with the command. Gives
    /// [`Input::Checked`].
    Check {
        /// Which one it is.
        number: u64,
        /// Whether nothing is to be loaded.
        dry_run: bool,
    },
    /// Hand over the map in luod's own session. Gives [`Input::Written`].
    Write(Map),
    /// Start the next kernel. Gives [`Input::KexecFailed`], or nothing any more.
    Kexec,
    /// Take back [`Action::Write`].
    AbandonOwn,
    /// Let luod's own session of the last update go.
    FinishOwn,
    /// Unload the image that [`Action::Check`] loaded.
    Unload,
    /// Tell the journal.
    Log(Severity, String),
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Info,
    /// An operator may want to do something.
    Warning,
    /// Something is lost or does not work.
    Error,
}

/// A connection.
#[derive(Debug)]
struct Conn {
    peer: Peer,
    /// After HELLO.
    version: Option<u32>,
    subscribed: Option<Id>,
    claimed: Option<Id>,
    monitors: bool,
    /// A command of it has no answer yet.
    pending: Option<&'static str>,
}

/// The state machine.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    boot: String,
    kexec: &'static str,
    store: &'static str,
    now: Now,
    conns: BTreeMap<ConnId, Conn>,
    clients: BTreeMap<Id, Client>,
    /// Sessions that are being made.
    creating: BTreeSet<Id>,
    sessions: BTreeMap<Id, Held>,
    /// Whether luod's own session of the last update is still there.
    own: bool,
    phase: Phase,
    /// How many checks there have been.
    checks: u64,
    /// Whether luod has loaded the next kernel, or is about to.
    image: bool,
    last: Option<Last>,
    actions: Vec<Action>,
    /// Whether monitors are to be told the status.
    changed: bool,
}

impl Core {
    /// Takes in what happened, and says what is to be done.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Action> {
        self.now = now;
        match input {
            Input::Connected(conn, peer) => self.connected(conn, peer),
            Input::Line(conn, command) => self.line(conn, command),
            Input::Disconnected(conn) => self.disconnected(conn),
            Input::Created(id, result) => self.created(id, result),
            Input::Retrieved(id, result) => self.retrieved(&id, result),
            Input::Probed(id, result) => self.probed(&id, result),
            Input::Measured(id, result) => self.measured(&id, result),
            Input::Discarded(id, result) => self.discarded(&id, result),
            Input::Checked(number, findings) => self.checked(number, findings),
            Input::Written(result) => self.written(result),
            Input::KexecFailed(reason) => self.kexec_failed(&reason),
            Input::NewPolicy(policy) => self.policy = policy,
            Input::Tick => {}
        }
        self.client_deadlines();
        self.session_deadlines();
        self.finish_own();
        self.tell_monitors();
        std::mem::take(&mut self.actions)
    }

    /// When [`Input::Tick`] is wanted, on the clock.
    pub fn deadline(&self) -> Option<Duration> {
        self.client_deadline()
            .into_iter()
            .chain(self.session_deadline())
            .min()
    }

    /// Whether a connection waits for an answer. Its next line is to wait, too.
    pub fn is_pending(&self, conn: ConnId) -> bool {
        self.conns
            .get(&conn)
            .is_some_and(|conn| conn.pending.is_some())
    }

    /// What a restarted luod has to know.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::new(self.boot.clone());

        for held in self.sessions.values() {
            if held.is_lost() {
                memory.lost.push(held.entry.id.clone());
            }
            memory.sessions.push(held.entry.clone());
        }
        memory.outgoing = self
            .clients
            .values()
            .filter(|client| client.has_session())
            .map(|client| client.entry.clone())
            .collect();
        memory.updating = !matches!(self.phase, Phase::Idle | Phase::Checking { .. });
        memory.committed = self.phase == Phase::Committed;
        memory.image = self.image;
        memory.last.clone_from(&self.last);
        memory
    }

    // ---- connections ----

    fn connected(&mut self, conn: ConnId, peer: Peer) {
        self.conns.insert(
            conn,
            Conn {
                peer,
                version: None,
                subscribed: None,
                claimed: None,
                monitors: false,
                pending: None,
            },
        );
    }

    fn disconnected(&mut self, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else {
            return;
        };
        if let Some(id) = gone.subscribed {
            self.client_left(&id);
        }
        if let Some(id) = gone.claimed {
            self.claimant_left(&id, conn);
        }
    }

    fn line(&mut self, conn: ConnId, command: Result<Command, String>) {
        if !self.conns.contains_key(&conn) {
            return;
        }
        let command = match command {
            Ok(command) => command,
            Err(why) => {
                self.refuse(conn, "?", &Refusal::new(Code::Einval, why));
                self.actions.push(Action::Close(conn));
                return;
            }
        };
        let name = command.name();
        match self.command(conn, command) {
            Ok(Answer::Now) => self.accept(conn, name),
            Ok(Answer::Said) => {}
            Ok(Answer::Later) => self.conn_mut(conn).pending = Some(name),
            Err(why) => self.refuse(conn, name, &why),
        }
    }

    fn command(&mut self, conn: ConnId, command: Command) -> Result<Answer, Refusal> {
        if self.conns[&conn].version.is_none()
            && !matches!(
                command,
                Command::Hello { .. }
                    | Command::Subscribe { .. }
                    | Command::Ready
                    | Command::Claim { force: false, .. }
            )
        {
            return Err(Refusal::new(Code::Eproto, "say HELLO first"));
        }
        match command {
            Command::Hello { version } => self.hello(conn, version),
            Command::Subscribe { id, class, timeout } => self.subscribe(conn, id, class, timeout),
            Command::Unsubscribe => self.unsubscribe(conn),
            Command::Prepare => self.prepare(conn),
            Command::Progress { done, total } => self.progress(conn, done, total),
            Command::Ready => self.ready(conn),
            Command::Failed { message } => self.failed(conn, &message),
            Command::Claim { id, force } => self.claim(conn, &id, force),
            Command::Finished => self.finished(conn),
            Command::Status => {
                self.operator(conn)?;
                self.send(conn, Event::Status(self.status()));
                Ok(Answer::Said)
            }
            Command::Monitor => {
                self.operator(conn)?;
                self.conn_mut(conn).monitors = true;
                self.send(conn, Event::Status(self.status()));
                Ok(Answer::Said)
            }
            Command::Update {
                cmdline,
                initrd: _,
                dry_run,
            } => {
                self.operator(conn)?;
                self.update(conn, cmdline.is_some(), dry_run)
            }
            Command::Cancel => {
                self.operator(conn)?;
                self.cancel()
            }
            Command::Discard { id } => {
                self.operator(conn)?;
                self.discard(conn, &id)
            }
        }
    }

    fn hello(&mut self, conn: ConnId, version: u32) -> Result<Answer, Refusal> {
        if version == 0 {
            return Err(Refusal::new(Code::Einval, "versions begin with 1"));
        }
        let version = version.min(VERSION);
        self.conn_mut(conn).version = Some(version);
        self.send(
            conn,
            Event::Hello {
                version,
                agent: AGENT,
            },
        );
        Ok(Answer::Said)
    }

    fn operator(&self, conn: ConnId) -> Result<(), Refusal> {
        let peer = &self.conns[&conn].peer;

        if self.policy.is_operator(peer) {
            Ok(())
        } else {
            let why = format!("user {} is no operator", peer.uid);
            Err(Refusal::new(Code::Eperm, why))
        }
    }

    // ---- what is told ----

    fn conn_mut(&mut self, conn: ConnId) -> &mut Conn {
        self.conns
            .get_mut(&conn)
            .expect("commands and answers are for connections that exist")
    }

    fn send(&mut self, conn: ConnId, event: Event) {
        self.actions.push(Action::Send(conn, event, None));
    }

    /// Answers a command that succeeded. A plain client does not wait for that.
    fn accept(&mut self, conn: ConnId, cmd: &'static str) {
        if self.conns[&conn].version.is_some() {
            self.send(conn, Event::Ok { cmd });
        }
    }

    /// Answers a command that failed.
    fn refuse(&mut self, conn: ConnId, cmd: &'static str, why: &Refusal) {
        let is_plain = self.conns[&conn].version.is_none();
        if is_plain && cmd == "READY" {
            // It crossed an ABORT on its way, which says everything.
            return;
        }
        self.send(
            conn,
            Event::Error {
                cmd,
                code: why.code,
                message: why.message.clone(),
            },
        );
        if is_plain && matches!(cmd, "SUBSCRIBE" | "CLAIM") {
            self.actions.push(Action::Close(conn));
        }
    }

    /// Answers a command that took its time, if the connection is still there.
    fn answer(&mut self, conn: ConnId, result: Result<Answer, Refusal>) {
        let Some(cmd) = self
            .conns
            .get_mut(&conn)
            .and_then(|conn| conn.pending.take())
        else {
            return;
        };
        match result {
            Ok(Answer::Now) => self.accept(conn, cmd),
            Ok(Answer::Said | Answer::Later) => {}
            Err(why) => self.refuse(conn, cmd, &why),
        }
    }

    fn log(&mut self, severity: Severity, text: impl Into<String>) {
        self.actions.push(Action::Log(severity, text.into()));
    }

    fn monitors_hear(&mut self, event: &Event) {
        let monitors: Vec<_> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.monitors)
            .map(|(id, _)| *id)
            .collect();

        for conn in monitors {
            self.send(conn, event.clone());
        }
    }

    fn tell_monitors(&mut self) {
        if std::mem::take(&mut self.changed) {
            let status = self.status();
            self.monitors_hear(&Event::Status(status));
        }
    }

    /// The state in one word.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Idle => State::Idle,
            Phase::Checking { .. } => State::Checking,
            Phase::Preserving(_) => State::Preserving,
            Phase::Freezing => State::Freezing,
            Phase::Committed => State::Committed,
        }
    }

    fn status(&self) -> Status {
        Status {
            agent: AGENT,
            state: self.state(),
            kexec: self.kexec,
            store: self.store,
            clients: self
                .clients
                .values()
                .map(|client| ClientStatus {
                    id: client.entry.id.clone(),
                    class: client.class,
                    uid: client.entry.uid,
                    unit: client.entry.unit.clone(),
                    pid: client.pid,
                    state: client.state_name(),
                    session: client.has_session().then(|| client.entry.session.clone()),
                    timeout: client.timeout,
                    done: client.progress.map(|(done, _)| done),
                    total: client.progress.map(|(_, total)| total),
                })
                .collect(),
            sessions: self
                .sessions
                .values()
                .map(|held| SessionStatus {
                    id: held.entry.id.clone(),
                    session: held.entry.session.clone(),
                    uid: held.entry.uid,
                    unit: held.entry.unit.clone(),
                    time: held.entry.time,
                    updates: held.entry.updates,
                    state: held.state_name(),
                })
                .collect(),
            last: self.last.clone(),
        }
    }
}

/// How a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// By OK.
    Now,
    /// By an event that was sent already.
    Said,
    /// When something is done.
    Later,
}
