// SPDX-License-Identifier: GPL-2.0

//! The state after a start: in a new kernel, or after a crash in this one.
//!
//! Three sources are put together: what luod wrote down in this boot ([`Memory`]), what the
//! previous kernel's luod handed over ([`Map`]), and the sessions that were kept for luod, with
//! the marks in them. The first counts more than the second, and what is really there more than
//! both.

use super::{
    clients::Client,
    sessions::Held,
    update::Phase,
    Action,
    Core,
    Now,
    Severity, //
};
use crate::{
    policy::Policy,
    protocol::{
        Last,
        Outcome, //
    },
    record::{
        Entry,
        Map,
        Memory,
        OWN_SESSION, //
    },
};
use liveupdate::DirectionKind;
use std::collections::{
    BTreeMap,
    BTreeSet, //
};

/// A session that was kept for luod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub session: String,
    /// On which side of the kexec it is.
    pub direction: DirectionKind,
    /// Its mark, of an incoming one that is not finished.
    pub mark: Option<Entry>,
    /// Whether it is an incoming one that is finished.
    pub finished: bool,
}

/// What there is at a start.
#[derive(Debug)]
pub struct Start {
    /// The policy.
    pub policy: Policy,
    /// The id of this boot.
    pub boot: String,
    /// How the kexec would be performed, for the status.
    pub kexec: &'static str,
    /// Who keeps the sessions, for the status.
    pub store: &'static str,
    /// What was written down, in whatever boot.
    pub memory: Option<Memory>,
    /// What was handed over: none if this was no update of luod's.
    pub map: Option<Result<Map, String>>,
    /// What was kept.
    pub found: Vec<Found>,
}

impl Core {
    /// Begins, and says what is to be done first.
    pub fn begin(now: Now, start: Start) -> (Self, Vec<Action>) {
        let mut core = Self {
            policy: start.policy,
            boot: start.boot,
            kexec: start.kexec,
            store: start.store,
            now,
            conns: BTreeMap::new(),
            clients: BTreeMap::new(),
            creating: BTreeSet::new(),
            sessions: BTreeMap::new(),
            own: false,
            phase: Phase::Idle,
            checks: 0,
            image: false,
            last: None,
            actions: Vec::new(),
            changed: false,
        };
        let memory = start.memory.filter(|memory| memory.boot == core.boot);
        let (own, found): (Vec<_>, Vec<_>) = start
            .found
            .into_iter()
            .partition(|found| found.session == OWN_SESSION);
        let (incoming, outgoing): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|found| found.direction == DirectionKind::Incoming);

        core.own = start.map.is_some();
        let known = core.known(memory.as_ref(), start.map);
        core.take_incoming(known, incoming);
        core.take_outgoing(memory, &outgoing, &own);
        core.finish_own();
        let actions = std::mem::take(&mut core.actions);
        (core, actions)
    }

    /// The entries of the sessions that should be there.
    fn known(&mut self, memory: Option<&Memory>, map: Option<Result<Map, String>>) -> Vec<Entry> {
        if let Some(memory) = memory {
            self.last.clone_from(&memory.last);
            for entry in &memory.sessions {
                if memory.lost.contains(&entry.id) {
                    let held = Held::lost(entry.clone());
                    self.sessions.insert(entry.id.clone(), held);
                }
            }
            let kept = memory.sessions.iter();
            return kept
                .filter(|entry| !memory.lost.contains(&entry.id))
                .cloned()
                .collect();
        }
        let Some(map) = map else {
            return Vec::new();
        };
        self.last = Some(Last {
            outcome: Outcome::Completed,
            reason: None,
            time: self.now.time,
        });
        match map {
            Ok(map) => {
                self.log(
                    Severity::Info,
                    format!("update completed: {} incoming sessions", map.sessions.len()),
                );
                map.sessions.into_iter().map(one_more).collect()
            }
            Err(why) => {
                self.log(
                    Severity::Error,
                    format!("update completed, but {why}; only sessions that were kept are known"),
                );
                Vec::new()
            }
        }
    }

    fn take_incoming(&mut self, known: Vec<Entry>, found: Vec<Found>) {
        let mut found: BTreeMap<_, _> = found
            .into_iter()
            .map(|found| (found.session.clone(), found))
            .collect();
        let warn_after = self.policy.unclaimed.warn_after;
        let clock = self.now.clock;

        for entry in known {
            let kept = found.remove(&entry.session);
            if kept.as_ref().is_some_and(|kept| kept.finished) {
                self.actions.push(Action::Release(entry.session));
                continue;
            }
            let held = Held::new(entry, kept.is_some(), clock, warn_after);
            self.sessions.insert(held.entry.id.clone(), held);
        }
        for (session, kept) in found {
            match kept.mark {
                // The state file was written after it went.
                _ if kept.finished => self.actions.push(Action::Release(session)),
                Some(mark) if !self.sessions.contains_key(&mark.id) => {
                    let entry = one_more(Entry { session, ..mark });
                    let id = entry.id.clone();
                    self.log(
                        Severity::Warning,
                        format!(
                            "session '{}' of client '{id}' was not listed",
                            entry.session
                        ),
                    );
                    self.sessions
                        .insert(id, Held::new(entry, true, clock, warn_after));
                }
                _ => self.log(
                    Severity::Error,
                    format!("session '{session}' cannot be attributed to a client; it is kept"),
                ),
            }
        }
    }

    fn take_outgoing(&mut self, memory: Option<Memory>, found: &[Found], own: &[Found]) {
        let is_there = |entry: &Entry| found.iter().any(|found| found.session == entry.session);
        let has_own = own
            .iter()
            .any(|own| own.direction == DirectionKind::Outgoing);
        let mut reason = None;

        if let Some(memory) = &memory {
            if memory.committed && has_own && memory.outgoing.iter().all(is_there) {
                self.log(
                    Severity::Warning,
                    "luod was restarted after the update was committed; the kexec follows",
                );
                self.phase = Phase::Committed;
                self.image = memory.image;
                self.own = false;
                for entry in &memory.outgoing {
                    self.clients
                        .insert(entry.id.clone(), Client::of_committed(entry.clone()));
                }
                self.actions.push(Action::Kexec);
                return;
            }
            if memory.committed {
                reason = Some("luod was restarted, and not all sessions were kept");
            } else if memory.updating {
                reason = Some("luod was restarted in the middle of it");
            }
        }
        // Nobody says any more that they are complete.
        for found in found {
            self.actions.push(Action::Abandon(found.session.clone()));
        }
        if has_own {
            self.actions.push(Action::AbandonOwn);
        }
        if let Some(reason) = reason {
            self.log(Severity::Error, format!("update aborted: {reason}"));
            self.last = Some(Last {
                outcome: Outcome::Aborted,
                reason: Some(reason.to_owned()),
                time: self.now.time,
            });
        }
        if memory.is_some_and(|memory| memory.image) {
            self.actions.push(Action::Unload);
        }
    }
}

/// The session has seen one more kexec.
fn one_more(mut entry: Entry) -> Entry {
    entry.updates = entry.updates.saturating_add(1);
    entry
}
