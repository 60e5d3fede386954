// SPDX-License-Identifier: GPL-2.0

//! An update, from the check to the kexec.
//!
//! ```text
//!   Idle ── UPDATE ──► Checking ──► Preserving(memory) ──► ...(vm) ──► ...(devices) ──► Freezing ──► Committed ──► kexec
//!    ▲                    │                 │                                              │             │
//!    └──── abort ◄────────┴─────────────────┴──────────────────────────────────────────────┴─────────────┘
//! ```
//!
//! Whatever fails, every client that was told to preserve is told ABORT, and its session is
//! given up.

use super::{
    clients::Stage,
    Action,
    Answer,
    ConnId,
    Core,
    Severity, //
};
use crate::{
    protocol::{
        Class,
        Code,
        Event,
        Finding,
        Last,
        Level,
        Outcome,
        Refusal, //
    },
    record::Map,
};

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    Idle,
    /// Pre-flight.
    Checking {
        /// Nothing follows.
        dry_run: bool,
    },
    /// The clients of this class have their turn.
    Preserving(Class),
    /// The map is being written.
    Freezing,
    /// The kexec follows.
    Committed,
}

/// How many names of clients that are not ready are told.
const NAMES: usize = 16;

impl Core {
    pub(super) fn update(
        &mut self,
        conn: ConnId,
        with_image: bool,
        dry_run: bool,
    ) -> Result<Answer, Refusal> {
        if self.phase != Phase::Idle {
            return Err(Refusal::new(Code::Ebusy, "an update is under way"));
        }
        self.conn_mut(conn).monitors = true;
        self.phase = Phase::Checking { dry_run };
        self.image = with_image && !dry_run;
        self.accept(conn, "UPDATE");
        self.tell_progress(None);
        // Their answers come before that of the check.
        self.probe_claimed();
        self.checks += 1;
        self.actions.push(Action::Check {
            number: self.checks,
            dry_run,
        });
        Ok(Answer::Said)
    }

    pub(super) fn checked(&mut self, number: u64, mut findings: Vec<Finding>) {
        let Phase::Checking { dry_run } = self.phase else {
            // It was cancelled.
            return;
        };
        if number != self.checks {
            // That one was, and another update began at once.
            return;
        }
        findings.extend(self.claimed().map(|held| Finding {
            level: Level::Error,
            text: format!(
                "client '{}' has claimed its session and not finished it; wait for it or stop it",
                held.entry.id
            ),
        }));
        for finding in &findings {
            if finding.level != Level::Note {
                let text = format!("check: {}", finding.text);
                self.actions.push(Action::Log(Severity::Warning, text));
            }
        }
        let error = findings
            .iter()
            .find(|finding| finding.level == Level::Error)
            .map(|finding| finding.text.clone());

        match error {
            Some(why) => self.end(Outcome::Aborted, Some(&why), findings),
            None if dry_run => self.end(Outcome::Checked, None, findings),
            None => {
                self.log(
                    Severity::Info,
                    format!("update: {} clients take part", self.clients.len()),
                );
                self.begin_class(Class::ORDER[0]);
            }
        }
    }

    /// Lets the clients of a class have their turn; goes on if there are none.
    fn begin_class(&mut self, class: Class) {
        self.phase = Phase::Preserving(class);
        let turn: Vec<_> = self
            .clients
            .values_mut()
            .filter(|client| client.class == class)
            .map(|client| {
                let has_session = client.has_session();
                if !has_session {
                    // One that asked for its session early gets it now, by the start.
                    client.stage = Stage::Starting;
                }
                (client.entry.clone(), has_session, client.conn)
            })
            .collect();

        for (entry, has_session, conn) in turn {
            if has_session {
                self.start(&entry.id);
                continue;
            }
            if let Some(conn) = conn.filter(|conn| self.conns[conn].pending == Some("PREPARE")) {
                let why = "an update has begun, which brings the session";
                self.answer(conn, Err(Refusal::new(Code::Ebusy, why)));
            }
            self.create(entry);
        }
        self.changed = true;
        self.advance();
    }

    /// Goes on if all clients of the class are ready.
    pub(super) fn advance(&mut self) {
        let Phase::Preserving(class) = self.phase else {
            return;
        };
        self.tell_progress(Some(class));
        let waits = self
            .clients
            .values()
            .any(|client| client.class == class && client.stage != Stage::Ready);
        if waits {
            return;
        }
        match Class::ORDER.iter().find(|&&next| next > class) {
            Some(&next) => self.begin_class(next),
            None => self.freeze(),
        }
    }

    fn freeze(&mut self) {
        let ready = self.clients.values().map(|client| client.entry.clone());
        let kept = self
            .sessions
            .values()
            .filter(|held| !held.is_lost())
            .map(|held| held.entry.clone());
        let map = Map::new(ready.chain(kept).collect());

        self.phase = Phase::Freezing;
        self.tell_progress(None);
        // The new one takes its place.
        self.own = false;
        self.actions.push(Action::Write(map));
    }

    pub(super) fn written(&mut self, result: Result<(), String>) {
        if self.phase != Phase::Freezing {
            // Cancelled meanwhile.
            self.actions.push(Action::AbandonOwn);
            return;
        }
        if let Err(why) = result {
            self.abort(&format!("the map of sessions cannot be handed over: {why}"));
            return;
        }
        self.phase = Phase::Committed;
        self.log(
            Severity::Info,
            format!(
                "update: {} clients are ready; the kexec follows",
                self.clients.len()
            ),
        );
        self.tell_progress(None);
        for conn in self.started() {
            self.send(conn, Event::Committed);
        }
        self.monitors_hear(&Event::Update {
            outcome: Outcome::Kexec,
            reason: None,
            findings: Vec::new(),
        });
        self.actions.push(Action::Kexec);
    }

    pub(super) fn kexec_failed(&mut self, reason: &str) {
        if self.phase == Phase::Committed {
            self.actions.push(Action::AbandonOwn);
            self.abort(&format!("the kexec did not happen: {reason}"));
        }
    }

    pub(super) fn cancel(&mut self) -> Result<Answer, Refusal> {
        match self.phase {
            Phase::Idle => Err(Refusal::new(Code::Enoent, "no update is under way")),
            Phase::Committed => Err(Refusal::new(Code::Ebusy, "the update is committed")),
            Phase::Checking { .. } | Phase::Preserving(_) | Phase::Freezing => {
                self.abort("cancelled by an operator");
                Ok(Answer::Now)
            }
        }
    }

    /// The connections of those who were told to preserve.
    fn started(&self) -> Vec<ConnId> {
        self.clients
            .values()
            .filter(|client| client.is_started())
            .filter_map(|client| client.conn)
            .collect()
    }

    /// Everything is as it was before the update.
    pub(super) fn abort(&mut self, reason: &str) {
        if self.phase == Phase::Idle {
            return;
        }
        let told = self.started();
        // Let go before anybody is told, so that a client that is told finds its files free again.
        for client in self.clients.values_mut() {
            if client.is_started() {
                let session = client.entry.session.clone();
                self.actions.push(Action::Abandon(session));
                client.stage = Stage::Subscribed;
            } else if client.stage == Stage::Starting {
                client.stage = Stage::Subscribed;
            }
            client.progress = None;
        }
        for conn in told {
            // A READY that was being looked at is answered first.
            if self.conns[&conn].pending == Some("READY") {
                let why = "the update was aborted";
                self.answer(conn, Err(Refusal::new(Code::Ebusy, why)));
            }
            let reason = reason.to_owned();
            self.send(conn, Event::Abort { reason });
        }
        self.clients
            .retain(|_, client| client.conn.is_some() || client.stage != Stage::Subscribed);
        self.end(Outcome::Aborted, Some(reason), Vec::new());
    }

    fn end(&mut self, outcome: Outcome, reason: Option<&str>, findings: Vec<Finding>) {
        self.phase = Phase::Idle;
        self.image = false;
        if outcome == Outcome::Aborted {
            let why = reason.unwrap_or_default();
            self.log(Severity::Error, format!("update aborted: {why}"));
            self.last = Some(Last {
                outcome,
                reason: reason.map(str::to_owned),
                time: self.now.time,
            });
            self.actions.push(Action::Unload);
        }
        self.changed = true;
        self.monitors_hear(&Event::Update {
            outcome,
            reason: reason.map(str::to_owned),
            findings,
        });
    }

    fn tell_progress(&mut self, class: Option<Class>) {
        let concerned = || {
            self.clients
                .values()
                .filter(|client| class.is_none_or(|class| client.class == class))
        };
        let not_ready = || concerned().filter(|client| client.stage != Stage::Ready);
        let clients = concerned().count();
        let event = Event::Progress {
            state: self.state(),
            class,
            ready: clients - not_ready().count(),
            clients,
            waiting: not_ready()
                .take(NAMES)
                .map(|client| client.entry.id.clone())
                .collect(),
        };
        self.monitors_hear(&event);
    }
}
