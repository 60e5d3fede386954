// SPDX-License-Identifier: GPL-2.0

//! Incoming sessions: which client gets them, and when they are over.
//!
//! luod keeps its own descriptor of a session until the session is finished. So a client that
//! dies between claiming and finishing has lost nothing, and can claim again.

use super::{
    Action,
    Answer,
    ConnId,
    Core,
    RetrieveError,
    Severity, //
};
use crate::{
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

/// An incoming session.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) entry: Entry,
    state: HeldState,
    /// Whether luod has a descriptor of it; else it is in the kernel.
    present: bool,
    /// What is being done with it.
    operation: Option<Operation>,
    /// When it came, on the clock.
    since: Duration,
    /// When the next warning is due.
    warn_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldState {
    Unclaimed,
    Claimed(ConnId),
    Lost,
}

/// What somebody waits for.
#[derive(Debug)]
enum Operation {
    /// It is being taken from the kernel, for a claim.
    Retrieve(ConnId),
    /// It is being looked whether it is finished.
    Probe(Asker),
    /// It is being discarded.
    Discard(Option<ConnId>),
}

/// A client that wants to know whether a session is finished.
#[derive(Debug)]
enum Asker {
    /// The claimant left, or an update is to begin.
    Luod,
    /// The claimant says so.
    Claimant(ConnId),
    /// The same client wants to subscribe.
    Subscriber(ConnId, Option<Class>, Option<u64>),
    /// Somebody claims it, as the last claimant left.
    Successor(ConnId),
}

/// How often is warned of an unclaimed session, after the first time.
const WARN_AGAIN: Duration = Duration::from_secs(3600);

impl Held {
    pub(super) fn new(entry: Entry, present: bool, now: Duration, warn_after: u64) -> Self {
        Self {
            entry,
            state: HeldState::Unclaimed,
            present,
            operation: None,
            since: now,
            warn_at: now.saturating_add(Duration::from_secs(warn_after)),
        }
    }

    pub(super) fn lost(entry: Entry) -> Self {
        Self {
            state: HeldState::Lost,
            ..Self::new(entry, false, Duration::ZERO, 0)
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state == HeldState::Lost
    }

    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            HeldState::Unclaimed => "unclaimed",
            HeldState::Claimed(_) => "claimed",
            HeldState::Lost => "lost",
        }
    }

    fn is_idle(&self) -> bool {
        self.state == HeldState::Unclaimed && self.operation.is_none()
    }
}

impl Core {
    pub(super) fn claim(&mut self, conn: ConnId, id: &Id, force: bool) -> Result<Answer, Refusal> {
        if force {
            self.operator(conn)?;
        }
        if self.conns[&conn].claimed.is_some() {
            let why = "this connection has claimed a session already";
            return Err(Refusal::new(Code::Eexist, why));
        }
        let peer = &self.conns[&conn].peer;
        let Some(held) = self.sessions.get_mut(id) else {
            let why = format!("there is no incoming session of '{id}', or it is finished");
            return Err(Refusal::new(Code::Enoent, why));
        };
        let entry = &held.entry;
        let is_owner = entry.uid == peer.uid && (entry.unit.is_none() || entry.unit == peer.unit);
        if !force && !is_owner {
            let of = entry.unit.as_deref().map(|unit| format!(" in {unit}"));
            let why = format!(
                "the session of '{id}' belongs to user {}{}",
                entry.uid,
                of.unwrap_or_default()
            );
            let (uid, pid) = (peer.uid, peer.pid);
            self.log(
                Severity::Warning,
                format!("process {pid} of user {uid} was refused: {why}"),
            );
            return Err(Refusal::new(Code::Eacces, why));
        }
        if held.is_lost() {
            let why = format!("the session of '{id}' is lost; the kernel log may say why");
            return Err(Refusal::new(Code::Enoent, why));
        }
        if let HeldState::Claimed(by) = held.state {
            let pid = self.conns.get(&by).map_or(0, |by| by.peer.pid);
            let why = format!("process {pid} has the session of '{id}'");
            return Err(Refusal::new(Code::Ebusy, why));
        }
        if self.phase != super::Phase::Idle {
            return Err(Refusal::new(Code::Ebusy, "an update is under way"));
        }
        match &mut held.operation {
            // The claimant before has just left.
            Some(Operation::Probe(asker @ Asker::Luod)) => {
                *asker = Asker::Successor(conn);
                return Ok(Answer::Later);
            }
            Some(_) => return Err(Refusal::new(Code::Ebusy, "luod is busy with the session")),
            None => {}
        }
        if held.present {
            self.give(conn, id);
            return Ok(Answer::Said);
        }
        held.operation = Some(Operation::Retrieve(conn));
        let session = held.entry.session.clone();
        self.actions.push(Action::Retrieve(id.clone(), session));
        Ok(Answer::Later)
    }

    fn give(&mut self, conn: ConnId, id: &Id) {
        let Some(held) = self.sessions.get_mut(id) else {
            return;
        };
        held.state = HeldState::Claimed(conn);
        let session = held.entry.session.clone();
        let event = Event::Session {
            id: id.clone(),
            session: session.clone(),
        };
        self.conn_mut(conn).claimed = Some(id.clone());
        self.actions.push(Action::Send(conn, event, Some(session)));
        self.changed = true;
    }

    pub(super) fn retrieved(&mut self, id: &Id, result: Result<(), RetrieveError>) {
        let Some(held) = self.sessions.get_mut(id) else {
            return;
        };
        let Some(Operation::Retrieve(conn)) = held.operation.take() else {
            return;
        };
        let refusal = match result {
            Ok(()) => {
                held.present = true;
                if self.conns.contains_key(&conn) {
                    self.give(conn, id);
                    self.answer(conn, Ok(Answer::Said));
                }
                return;
            }
            Err(RetrieveError::Gone) => {
                self.lose(id, "the kernel does not have it any more");
                Refusal::new(Code::Enoent, format!("the session of '{id}' is gone"))
            }
            Err(RetrieveError::Corrupt(why)) => {
                self.lose(id, &why);
                Refusal::new(
                    Code::Enoent,
                    format!("the session of '{id}' is lost: {why}"),
                )
            }
            Err(RetrieveError::Later(why)) => Refusal::new(Code::Eagain, why),
        };
        self.answer(conn, Err(refusal));
    }

    fn lose(&mut self, id: &Id, why: &str) {
        if let Some(held) = self.sessions.get_mut(id) {
            held.state = HeldState::Lost;
            held.present = false;
            let session = held.entry.session.clone();
            self.log(
                Severity::Error,
                format!("session '{session}' of client '{id}' is lost: {why}"),
            );
            self.changed = true;
        }
    }

    /// The connection of a claimant ended.
    pub(super) fn claimant_left(&mut self, id: &Id, conn: ConnId) {
        let Some(held) = self
            .sessions
            .get_mut(id)
            .filter(|held| held.state == HeldState::Claimed(conn))
        else {
            return;
        };
        held.state = HeldState::Unclaimed;
        self.changed = true;
        // On the way out nothing changes any more.
        if held.operation.is_none() && self.phase != super::Phase::Committed {
            self.probe(id, Asker::Luod);
        }
    }

    fn probe(&mut self, id: &Id, asker: Asker) {
        if let Some(held) = self.sessions.get_mut(id) {
            held.operation = Some(Operation::Probe(asker));
            let session = held.entry.session.clone();
            self.actions.push(Action::Probe(id.clone(), session));
        }
    }

    /// The sessions that somebody has.
    pub(super) fn claimed(&self) -> impl Iterator<Item = &Held> {
        self.sessions
            .values()
            .filter(|held| matches!(held.state, HeldState::Claimed(_)))
    }

    /// Finds out which of the claimed sessions are finished.
    pub(super) fn probe_claimed(&mut self) {
        let ids: Vec<_> = self
            .claimed()
            .filter(|held| held.operation.is_none())
            .map(|held| held.entry.id.clone())
            .collect();

        for id in ids {
            self.probe(&id, Asker::Luod);
        }
    }

    pub(super) fn finished(&mut self, conn: ConnId) -> Result<Answer, Refusal> {
        let Some(id) = self.conns[&conn].claimed.clone() else {
            let why = "this connection has not claimed a session";
            return Err(Refusal::new(Code::Enoent, why));
        };
        match self.sessions.get(&id) {
            None => {
                self.conn_mut(conn).claimed = None;
                Ok(Answer::Now)
            }
            Some(held) if held.operation.is_some() => {
                Err(Refusal::new(Code::Ebusy, "luod is busy with the session"))
            }
            Some(_) => {
                self.probe(&id, Asker::Claimant(conn));
                Ok(Answer::Later)
            }
        }
    }

    /// Before a client subscribes: whether that has to wait for a look at its session.
    pub(super) fn look_at_session(
        &mut self,
        conn: ConnId,
        id: &Id,
        class: Option<Class>,
        timeout: Option<u64>,
    ) -> Result<bool, Refusal> {
        let Some(held) = self.sessions.get_mut(id) else {
            return Ok(false);
        };
        if held.is_lost() {
            self.sessions.remove(id);
            self.changed = true;
            return Ok(false);
        }
        match &mut held.operation {
            // Usually it has just finished the session, and left.
            Some(Operation::Probe(asker @ Asker::Luod)) => {
                *asker = Asker::Subscriber(conn, class, timeout);
                return Ok(true);
            }
            Some(_) => return Err(Refusal::new(Code::Ebusy, "luod is busy with the session")),
            None => {}
        }
        if !held.present {
            return Err(Self::not_finished(id));
        }
        self.probe(id, Asker::Subscriber(conn, class, timeout));
        Ok(true)
    }

    fn not_finished(id: &Id) -> Refusal {
        let why = format!("the session of '{id}' is not finished; claim and finish, or discard it");
        Refusal::new(Code::Eexist, why)
    }

    pub(super) fn probed(&mut self, id: &Id, result: Result<bool, String>) {
        let Some(held) = self.sessions.get_mut(id) else {
            return;
        };
        let Some(Operation::Probe(asker)) = held.operation.take() else {
            return;
        };
        let is_claimed = matches!(held.state, HeldState::Claimed(_));
        let finished = match result {
            Ok(finished) => finished,
            Err(why) => {
                self.log(
                    Severity::Warning,
                    format!("whether the session of client '{id}' is finished is unknown: {why}"),
                );
                false
            }
        };
        if finished {
            self.release(id);
        } else if !is_claimed && matches!(asker, Asker::Luod | Asker::Claimant(_)) {
            self.log(
                Severity::Warning,
                format!("client '{id}' ended without finishing its session, which is kept"),
            );
        }
        match asker {
            Asker::Luod => {}
            Asker::Claimant(conn) if finished => self.answer(conn, Ok(Answer::Now)),
            Asker::Claimant(conn) => {
                let why = "the session is not finished";
                self.answer(conn, Err(Refusal::new(Code::Ebusy, why)));
            }
            Asker::Successor(conn) => {
                if !self.conns.contains_key(&conn) {
                    return;
                }
                let result = if finished {
                    let why = format!("the session of '{id}' is finished");
                    Err(Refusal::new(Code::Enoent, why))
                } else if is_claimed || self.phase != super::Phase::Idle {
                    let why = "the session is claimed, or an update is under way";
                    Err(Refusal::new(Code::Ebusy, why))
                } else {
                    self.give(conn, id);
                    Ok(Answer::Said)
                };
                self.answer(conn, result);
            }
            Asker::Subscriber(conn, class, timeout) => {
                if !self.conns.contains_key(&conn) {
                    return;
                }
                let result = if finished {
                    self.subscribe(conn, id.clone(), class, timeout)
                } else {
                    Err(Self::not_finished(id))
                };
                self.answer(conn, result);
            }
        }
    }

    fn release(&mut self, id: &Id) {
        let Some(held) = self.sessions.remove(id) else {
            return;
        };
        if let HeldState::Claimed(conn) = held.state {
            if let Some(conn) = self.conns.get_mut(&conn) {
                conn.claimed = None;
            }
        }
        self.actions.push(Action::Release(held.entry.session));
        self.log(
            Severity::Info,
            format!("client '{id}' has finished its session"),
        );
        self.changed = true;
    }

    pub(super) fn discard(&mut self, conn: ConnId, id: &Id) -> Result<Answer, Refusal> {
        let Some(held) = self.sessions.get_mut(id) else {
            let why = format!("there is no incoming session of '{id}', or it is finished");
            return Err(Refusal::new(Code::Enoent, why));
        };
        if held.is_lost() {
            self.sessions.remove(id);
            self.changed = true;
            return Ok(Answer::Now);
        }
        if !held.is_idle() || self.phase != super::Phase::Idle {
            let why = "a client has the session, or an update is under way";
            return Err(Refusal::new(Code::Ebusy, why));
        }
        self.begin_discard(id, Some(conn));
        Ok(Answer::Later)
    }

    fn begin_discard(&mut self, id: &Id, conn: Option<ConnId>) {
        if let Some(held) = self.sessions.get_mut(id) {
            held.operation = Some(Operation::Discard(conn));
            let session = held.entry.session.clone();
            self.actions.push(Action::Discard(id.clone(), session));
        }
    }

    pub(super) fn discarded(&mut self, id: &Id, result: Result<(), String>) {
        let Some(held) = self.sessions.get_mut(id) else {
            return;
        };
        let Some(Operation::Discard(conn)) = held.operation.take() else {
            return;
        };
        let answer = match result {
            Ok(()) => {
                if let Some(held) = self.sessions.remove(id) {
                    self.actions.push(Action::Release(held.entry.session));
                }
                self.log(
                    Severity::Warning,
                    format!("the session of client '{id}' was discarded"),
                );
                self.changed = true;
                Ok(Answer::Now)
            }
            Err(why) => {
                self.log(
                    Severity::Error,
                    format!("the session of client '{id}' cannot be discarded: {why}"),
                );
                Err(Refusal::new(Code::Eio, why))
            }
        };
        if let Some(conn) = conn {
            self.answer(conn, answer);
        }
    }

    /// When a held session is due for a warning or for being discarded.
    fn due(&self, held: &Held) -> Option<Duration> {
        held.is_idle().then(|| {
            let discard = self
                .policy
                .unclaimed
                .discard_after
                .map(|after| held.since.saturating_add(Duration::from_secs(after)));
            discard.map_or(held.warn_at, |at| at.min(held.warn_at))
        })
    }

    pub(super) fn session_deadline(&self) -> Option<Duration> {
        self.sessions
            .values()
            .filter_map(|held| self.due(held))
            .min()
    }

    pub(super) fn session_deadlines(&mut self) {
        let clock = self.now.clock;
        let due: Vec<_> = self
            .sessions
            .values()
            .filter(|held| self.due(held).is_some_and(|at| at <= clock))
            .map(|held| held.entry.id.clone())
            .collect();
        let discard_after = self.policy.unclaimed.discard_after.map(Duration::from_secs);

        for id in due {
            let Some(held) = self.sessions.get_mut(&id) else {
                continue;
            };
            held.warn_at = clock + WARN_AGAIN;
            let waited = clock.saturating_sub(held.since);
            let text = format!(
                "session '{}' of client '{id}' (user {}) is unclaimed since {} s",
                held.entry.session,
                held.entry.uid,
                waited.as_secs()
            );
            let is_over = discard_after.is_some_and(|after| waited >= after);
            self.log(Severity::Warning, text);
            // Not on the way out; what is still there then is handed over.
            if is_over && self.phase == super::Phase::Idle {
                self.begin_discard(&id, None);
            }
        }
    }

    /// Lets luod's own session go when nothing that it tells of is left.
    pub(super) fn finish_own(&mut self) {
        if self.own && self.sessions.values().all(Held::is_lost) {
            self.own = false;
            self.actions.push(Action::FinishOwn);
        }
    }
}
