// SPDX-License-Identifier: GPL-2.0

//! Clients on the way out: those who take part in the next update.

use super::{
    update::Phase,
    Action,
    Answer,
    ConnId,
    Content,
    Core,
    Severity, //
};
use crate::{
    policy::Limits,
    protocol::{
        Class,
        Code,
        Event,
        Id,
        Refusal, //
    },
    record::Entry,
};
use std::time::Duration;

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for an update.
    Subscribed,
    /// Its session is being made, as it asked for it.
    Preparing,
    /// It has its session early.
    Prepared,
    /// Its session is being made, as its turn has come.
    Starting,
    /// It was told to preserve.
    Preserving {
        /// When it is to be ready, on the clock.
        deadline: Duration,
    },
    /// It said that it is ready, and that is being looked at.
    Measuring,
    /// It is ready.
    Ready,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    /// Who it is. The session's name counts only with [`Client::has_session`].
    pub(super) entry: Entry,
    pub(super) class: Class,
    /// Seconds that it has to get ready.
    pub(super) timeout: u64,
    limits: Limits,
    pub(super) pid: i32,
    /// None if it left after READY.
    pub(super) conn: Option<ConnId>,
    pub(super) stage: Stage,
    pub(super) progress: Option<(u64, u64)>,
}

impl Client {
    /// One that is ready for an update that was under way when luod was restarted.
    pub(super) fn of_committed(entry: Entry) -> Self {
        Self {
            entry,
            class: Class::Vm,
            timeout: 0,
            limits: Limits::default(),
            pid: 0,
            conn: None,
            stage: Stage::Ready,
            progress: None,
        }
    }

    pub(super) fn has_session(&self) -> bool {
        !matches!(
            self.stage,
            Stage::Subscribed | Stage::Preparing | Stage::Starting
        )
    }

    /// Whether it was told to preserve in this update.
    pub(super) fn is_started(&self) -> bool {
        matches!(
            self.stage,
            Stage::Preserving { .. } | Stage::Measuring | Stage::Ready
        )
    }

    pub(super) fn state_name(&self) -> &'static str {
        match self.stage {
            Stage::Subscribed | Stage::Preparing => "subscribed",
            Stage::Prepared => "prepared",
            Stage::Starting | Stage::Preserving { .. } | Stage::Measuring => "preserving",
            Stage::Ready => "ready",
        }
    }
}

impl Core {
    pub(super) fn subscribe(
        &mut self,
        conn: ConnId,
        id: Id,
        class: Option<Class>,
        timeout: Option<u64>,
    ) -> Result<Answer, Refusal> {
        if self.conns[&conn].subscribed.is_some() {
            let why = "this connection has a subscription already";
            return Err(Refusal::new(Code::Eexist, why));
        }
        let peer = self.conns[&conn].peer.clone();
        let limits = self.policy.limits(&peer, &id).ok_or_else(|| {
            let of = peer.unit.as_deref().map(|unit| format!(" of {unit}"));
            let why = format!(
                "the policy does not allow '{id}' to user {}{}",
                peer.uid,
                of.unwrap_or_default()
            );
            Refusal::new(Code::Eacces, why)
        })?;

        if let Some(client) = self.clients.get_mut(&id) {
            // It left after READY and is back.
            let is_same = client.entry.uid == peer.uid && client.entry.unit == peer.unit;
            if client.conn.is_some() || !is_same {
                let why = format!("'{id}' is subscribed by process {}", client.pid);
                return Err(Refusal::new(Code::Eexist, why));
            }
            client.conn = Some(conn);
            client.pid = peer.pid;
            self.conn_mut(conn).subscribed = Some(id.clone());
            self.tell_subscribed(conn, &id);
            return Ok(Answer::Said);
        }
        if !matches!(self.phase, Phase::Idle | Phase::Checking { .. })
            || self.creating.contains(&id)
        {
            return Err(Refusal::new(Code::Ebusy, "an update is under way"));
        }
        if self.look_at_session(conn, &id, class, timeout)? {
            return Ok(Answer::Later);
        }
        self.check_quota(peer.uid, &limits)?;
        let client = Client {
            entry: Entry {
                session: id.session(),
                id: id.clone(),
                uid: peer.uid,
                unit: peer.unit,
                time: self.now.time,
                updates: 0,
            },
            class: limits.class.or(class).unwrap_or(Class::Vm),
            timeout: timeout.map_or(limits.timeout, |timeout| timeout.min(limits.timeout)),
            limits,
            pid: peer.pid,
            conn: Some(conn),
            stage: Stage::Subscribed,
            progress: None,
        };
        self.clients.insert(id.clone(), client);
        self.conn_mut(conn).subscribed = Some(id.clone());
        self.changed = true;
        self.tell_subscribed(conn, &id);
        Ok(Answer::Said)
    }

    fn tell_subscribed(&mut self, conn: ConnId, id: &Id) {
        let client = &self.clients[id];
        let committed = self.phase == Phase::Committed;

        if self.conns[&conn].version.is_some() {
            let event = Event::Subscribed {
                id: id.clone(),
                class: client.class,
                timeout: client.timeout,
                update: if committed { "committed" } else { "none" },
            };
            self.send(conn, event);
        } else if committed {
            self.send(conn, Event::Committed);
        }
    }

    fn check_quota(&self, uid: u32, limits: &Limits) -> Result<(), Refusal> {
        let Some(most) = limits.sessions else {
            return Ok(());
        };
        let clients = self
            .clients
            .values()
            .filter(|client| client.entry.uid == uid);
        let sessions = self
            .sessions
            .values()
            .filter(|held| held.entry.uid == uid && !held.is_lost());
        let count = clients.count() + sessions.count();

        if count < most {
            Ok(())
        } else {
            let why = format!("user {uid} has {count} subscriptions and sessions, of {most}");
            Err(Refusal::new(Code::Edquot, why))
        }
    }

    /// The client that a connection is.
    fn client_of(&mut self, conn: ConnId) -> Result<&mut Client, Refusal> {
        self.conns[&conn]
            .subscribed
            .as_ref()
            .and_then(|id| self.clients.get_mut(id))
            .ok_or_else(|| Refusal::new(Code::Enoent, "this connection has no subscription"))
    }

    pub(super) fn unsubscribe(&mut self, conn: ConnId) -> Result<Answer, Refusal> {
        let client = self.client_of(conn)?;
        let id = client.entry.id.clone();

        if client.is_started() || client.stage == Stage::Starting {
            return Err(Refusal::new(Code::Ebusy, "an update counts on this client"));
        }
        self.conn_mut(conn).subscribed = None;
        self.client_left(&id);
        Ok(Answer::Now)
    }

    pub(super) fn prepare(&mut self, conn: ConnId) -> Result<Answer, Refusal> {
        let phase = self.phase;
        let client = self.client_of(conn)?;
        let entry = client.entry.clone();

        match client.stage {
            Stage::Prepared => {
                let event = Event::Session {
                    id: entry.id,
                    session: entry.session.clone(),
                };
                self.actions
                    .push(Action::Send(conn, event, Some(entry.session)));
                Ok(Answer::Said)
            }
            Stage::Subscribed if matches!(phase, Phase::Idle | Phase::Checking { .. }) => {
                client.stage = Stage::Preparing;
                self.create(entry);
                Ok(Answer::Later)
            }
            _ => Err(Refusal::new(Code::Ebusy, "an update is under way")),
        }
    }

    /// Has a session made for a client, in the stage that says what for. One that is being made
    /// already, for something that was given up, will do.
    pub(super) fn create(&mut self, mut entry: Entry) {
        entry.time = self.now.time;
        if self.creating.insert(entry.id.clone()) {
            self.actions.push(Action::Create(entry));
        }
    }

    pub(super) fn created(&mut self, id: Id, result: Result<String, String>) {
        self.creating.remove(&id);
        let Some(client) = self
            .clients
            .get_mut(&id)
            .filter(|client| matches!(client.stage, Stage::Preparing | Stage::Starting))
        else {
            // Nobody wants it any more.
            if let Ok(session) = result {
                self.actions.push(Action::Abandon(session));
            }
            return;
        };
        let was = client.stage;
        let conn = client.conn;
        match result {
            Ok(session) => {
                client.entry.session.clone_from(&session);
                client.stage = Stage::Prepared;
                if was == Stage::Starting {
                    self.start(&id);
                } else if let Some(conn) = conn {
                    let event = Event::Session {
                        id,
                        session: session.clone(),
                    };
                    self.actions.push(Action::Send(conn, event, Some(session)));
                    self.answer(conn, Ok(Answer::Said));
                }
                self.changed = true;
            }
            Err(why) => {
                client.stage = Stage::Subscribed;
                if was == Stage::Starting {
                    self.abort(&format!("no session for client '{id}': {why}"));
                } else if let Some(conn) = conn {
                    self.answer(conn, Err(Refusal::new(Code::Eio, why)));
                }
            }
        }
    }

    /// Tells a client that has its session to preserve.
    pub(super) fn start(&mut self, id: &Id) {
        let clock = self.now.clock;
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        let Some(conn) = client.conn else {
            return;
        };
        client.progress = None;
        client.stage = Stage::Preserving {
            deadline: clock + Duration::from_secs(client.timeout),
        };
        let event = Event::StartPreservation {
            id: id.clone(),
            session: client.entry.session.clone(),
            timeout: client.timeout,
        };
        let session = client.entry.session.clone();
        self.actions.push(Action::Send(conn, event, Some(session)));
        self.changed = true;
    }

    pub(super) fn progress(
        &mut self,
        conn: ConnId,
        done: u64,
        total: u64,
    ) -> Result<Answer, Refusal> {
        self.client_of(conn)?.progress = Some((done, total));
        self.changed = true;
        Ok(Answer::Now)
    }

    pub(super) fn ready(&mut self, conn: ConnId) -> Result<Answer, Refusal> {
        let client = self.client_of(conn)?;
        let id = client.entry.id.clone();
        let session = client.entry.session.clone();

        match client.stage {
            Stage::Preserving { .. } => {}
            Stage::Ready => return Ok(Answer::Now),
            _ => {
                let why = "READY without START_PRESERVATION";
                return Err(Refusal::new(Code::Eproto, why));
            }
        }
        if client.limits.files.is_some() || client.limits.bytes.is_some() {
            client.stage = Stage::Measuring;
            self.actions.push(Action::Measure(id, session));
            return Ok(Answer::Later);
        }
        self.is_ready(&id);
        Ok(Answer::Now)
    }

    pub(super) fn measured(&mut self, id: &Id, result: Result<Content, String>) {
        let Some(client) = self
            .clients
            .get_mut(id)
            .filter(|client| client.stage == Stage::Measuring)
        else {
            return;
        };
        let conn = client.conn;
        let within = |got: u64, most: Option<u64>| most.is_none_or(|most| got <= most);
        let why = match result {
            Ok(content)
                if within(content.files, client.limits.files)
                    && within(content.bytes, client.limits.bytes) =>
            {
                if let Some(conn) = conn {
                    self.answer(conn, Ok(Answer::Now));
                }
                self.is_ready(id);
                return;
            }
            Ok(content) => format!(
                "client '{id}' preserved {} files with {} bytes, more than the policy allows",
                content.files, content.bytes
            ),
            Err(why) => {
                format!(
                    "client '{id}' has a limit of files or bytes, which cannot be checked: {why}"
                )
            }
        };
        if let Some(conn) = conn {
            self.answer(conn, Err(Refusal::new(Code::Edquot, why.clone())));
        }
        self.abort(&why);
    }

    fn is_ready(&mut self, id: &Id) {
        let time = self.now.time;
        if let Some(client) = self.clients.get_mut(id) {
            client.stage = Stage::Ready;
            client.entry.time = time;
        }
        self.changed = true;
        self.advance();
    }

    pub(super) fn failed(&mut self, conn: ConnId, message: &str) -> Result<Answer, Refusal> {
        let client = self.client_of(conn)?;
        let id = client.entry.id.clone();

        if !matches!(client.stage, Stage::Preserving { .. }) {
            let why = "FAILED without START_PRESERVATION, or after READY";
            return Err(Refusal::new(Code::Eproto, why));
        }
        // Before the ABORT that follows.
        self.accept(conn, "FAILED");
        let message: String = message
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        self.abort(&format!("client '{id}' cannot preserve: {message}"));
        Ok(Answer::Said)
    }

    /// The connection of a client ended, or its subscription.
    pub(super) fn client_left(&mut self, id: &Id) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        client.conn = None;
        self.changed = true;
        match client.stage {
            Stage::Ready => {}
            Stage::Preserving { .. } | Stage::Measuring | Stage::Starting => {
                let why = format!("client '{id}' ended before it was ready");
                self.abort(&why);
                self.clients.remove(id);
            }
            Stage::Prepared => {
                let session = client.entry.session.clone();
                self.actions.push(Action::Abandon(session));
                self.clients.remove(id);
                self.log(
                    Severity::Info,
                    format!("client '{id}' ended, and its early session with it"),
                );
            }
            Stage::Subscribed | Stage::Preparing => {
                self.clients.remove(id);
            }
        }
    }

    pub(super) fn client_deadline(&self) -> Option<Duration> {
        self.clients
            .values()
            .filter_map(|client| match client.stage {
                Stage::Preserving { deadline } => Some(deadline),
                _ => None,
            })
            .min()
    }

    pub(super) fn client_deadlines(&mut self) {
        let late = self.clients.values().find(|client| {
            matches!(client.stage, Stage::Preserving { deadline } if deadline <= self.now.clock)
        });
        if let Some(client) = late {
            let why = format!(
                "client '{}' was not ready after {} s",
                client.entry.id, client.timeout
            );
            self.abort(&why);
        }
    }
}
