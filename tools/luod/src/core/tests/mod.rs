// SPDX-License-Identifier: GPL-2.0

//! The state machine in a world that is made up: a kernel with sessions, a store, clients.

mod clients;
mod random;
mod recover;
mod sessions;
mod update;

use super::*;
use crate::{
    protocol::{
        Class,
        Level,
        Outcome, //
    },
    record::OWN_SESSION,
};
use liveupdate::DirectionKind;
use std::collections::VecDeque;

/// A session in the made-up kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fake {
    direction: DirectionKind,
    mark: Option<Entry>,
    finished: bool,
    /// Whether luod, or its store, has a descriptor.
    kept: bool,
}

/// Everything around the state machine.
struct World {
    core: Core,
    policy: Policy,
    clock: u64,
    boot: u32,
    kernel: BTreeMap<String, Fake>,
    /// The map in luod's own session, on each side.
    own_in: Option<Map>,
    own_out: Option<Map>,
    memory: Option<Memory>,
    jobs: VecDeque<Action>,
    heard: BTreeMap<ConnId, Vec<(Event, Option<String>)>>,
    closed: BTreeSet<ConnId>,
    next: ConnId,
    loaded: bool,
    /// What the jobs are to answer.
    check: Vec<Finding>,
    create: Result<(), String>,
    content: Content,
    log: Vec<String>,
}

fn id(text: &str) -> Id {
    Id::try_from(text.to_owned()).unwrap()
}

impl World {
    fn new(policy: &str) -> Self {
        let policy = Policy::parse(policy, |_| None).unwrap();
        let start = Start {
            policy: policy.clone(),
            boot: "0".into(),
            kexec: "direct",
            store: "none",
            memory: None,
            map: None,
            found: Vec::new(),
        };
        let now = Now {
            clock: Duration::ZERO,
            time: 1000,
        };
        let (core, first) = Core::begin(now, start);
        assert_eq!(first, []);
        Self {
            core,
            policy,
            clock: 0,
            boot: 0,
            kernel: BTreeMap::new(),
            own_in: None,
            own_out: None,
            memory: None,
            jobs: VecDeque::new(),
            heard: BTreeMap::new(),
            closed: BTreeSet::new(),
            next: 0,
            loaded: false,
            check: Vec::new(),
            create: Ok(()),
            content: Content { files: 1, bytes: 1 },
            log: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now {
            clock: Duration::from_secs(self.clock),
            time: 1000 + self.clock,
        }
    }

    fn input(&mut self, input: Input) {
        let actions = self.core.handle(self.now(), input);
        self.take(actions);
    }

    /// As the server: state first, then the actions; jobs wait until [`Self::work`].
    fn take(&mut self, actions: Vec<Action>) {
        self.memory = Some(self.core.memory());
        for action in actions {
            match action {
                Action::Send(conn, event, session) => {
                    if let Some(name) = &session {
                        let there = self.kernel.get(name);
                        assert!(there.is_some_and(|it| it.kept), "{name} is not there");
                    }
                    self.heard.entry(conn).or_default().push((event, session));
                }
                Action::Close(conn) => {
                    self.closed.insert(conn);
                }
                Action::Abandon(name) => {
                    let gone = self.kernel.remove(&name).expect("abandoned twice");
                    assert_eq!(gone.direction, DirectionKind::Outgoing);
                }
                Action::Release(name) => {
                    let gone = self.kernel.remove(&name).expect("released twice");
                    assert!(gone.finished, "{name} was released unfinished");
                }
                Action::Log(_, text) => self.log.push(text),
                job => self.jobs.push_back(job),
            }
        }
    }

    /// Does one job.
    fn work_one(&mut self) -> bool {
        let Some(job) = self.jobs.pop_front() else {
            return false;
        };
        let input = match job {
            Action::Create(entry) => {
                let name = entry.session.clone();
                let result = self.create.clone().map(|()| {
                    let fake = Fake {
                        direction: DirectionKind::Outgoing,
                        mark: Some(entry.clone()),
                        finished: false,
                        kept: true,
                    };
                    assert!(self.kernel.insert(name.clone(), fake).is_none());
                    name
                });
                Input::Created(entry.id, result)
            }
            Action::Retrieve(id, name) => {
                let result = match self.kernel.get_mut(&name) {
                    Some(fake) => {
                        fake.kept = true;
                        Ok(())
                    }
                    None => Err(RetrieveError::Gone),
                };
                Input::Retrieved(id, result)
            }
            Action::Probe(id, name) => {
                let result = self.kernel.get(&name).map(|fake| fake.finished);
                Input::Probed(id, result.ok_or("gone".to_owned()))
            }
            Action::Discard(id, name) => {
                self.kernel.get_mut(&name).expect("it is there").finished = true;
                Input::Discarded(id, Ok(()))
            }
            Action::Measure(id, _) => Input::Measured(id, Ok(self.content)),
            Action::Check { number, dry_run } => {
                self.loaded |= !dry_run && self.check.is_empty();
                Input::Checked(number, self.check.clone())
            }
            Action::Write(map) => {
                self.own_in = None;
                self.own_out = Some(map);
                Input::Written(Ok(()))
            }
            Action::AbandonOwn => {
                self.own_out = None;
                return true;
            }
            Action::FinishOwn => {
                self.own_in = None;
                return true;
            }
            Action::Unload => {
                self.loaded = false;
                return true;
            }
            Action::Kexec => {
                // It takes a while.
                self.jobs.push_front(Action::Kexec);
                return false;
            }
            other => panic!("{other:?} is no job"),
        };
        self.input(input);
        true
    }

    fn work(&mut self) {
        while self.work_one() {}
    }

    fn connect(&mut self, uid: u32, unit: Option<&str>) -> ConnId {
        self.next += 1;
        let peer = Peer {
            uid,
            pid: 100,
            unit: unit.map(str::to_owned),
        };
        self.input(Input::Connected(self.next, peer));
        self.next
    }

    fn say(&mut self, conn: ConnId, line: &str) {
        self.input(Input::Line(conn, Command::parse(line.as_bytes())));
    }

    fn hello(&mut self, uid: u32) -> ConnId {
        let conn = self.connect(uid, None);
        self.say(conn, r#"{"cmd":"HELLO","version":9}"#);
        assert!(matches!(self.last(conn), Event::Hello { version: 1, .. }));
        conn
    }

    fn subscribe(&mut self, name: &str, class: &str) -> ConnId {
        let conn = self.hello(0);
        self.say(
            conn,
            &format!(r#"{{"cmd":"SUBSCRIBE","id":"{name}","class":"{class}"}}"#),
        );
        assert!(matches!(self.last(conn), Event::Subscribed { .. }));
        conn
    }

    fn update(&mut self) -> ConnId {
        let conn = self.hello(0);
        self.say(conn, r#"{"cmd":"UPDATE","cmdline":"x"}"#);
        self.work();
        conn
    }

    fn last(&self, conn: ConnId) -> Event {
        self.heard[&conn].last().unwrap().0.clone()
    }

    fn refusal(&self, conn: ConnId) -> Code {
        match self.last(conn) {
            Event::Error { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    /// The session that came last to a connection.
    fn session(&self, conn: ConnId) -> String {
        self.heard[&conn]
            .iter()
            .rev()
            .find_map(|(_, session)| session.clone())
            .expect("it got a session")
    }

    fn count(&self, conn: ConnId, wanted: impl Fn(&Event) -> bool) -> usize {
        self.heard.get(&conn).map_or(0, |heard| {
            heard.iter().filter(|(one, _)| wanted(one)).count()
        })
    }

    /// Starts again: after a crash, or in the next kernel.
    fn start(&mut self, carried: bool) {
        for fake in self.kernel.values_mut() {
            fake.kept &= carried;
        }
        let look = |(session, fake): (&String, &Fake)| Found {
            session: session.clone(),
            direction: fake.direction,
            mark: fake.mark.clone(),
            finished: fake.finished,
        };
        let mut found: Vec<_> = self
            .kernel
            .iter()
            .filter(|(_, fake)| fake.kept)
            .map(look)
            .collect();
        if self.own_out.is_some() {
            found.push(Found {
                session: OWN_SESSION.into(),
                direction: DirectionKind::Outgoing,
                mark: None,
                finished: false,
            });
        }
        let start = Start {
            policy: self.policy.clone(),
            boot: self.boot.to_string(),
            kexec: "direct",
            store: "none",
            memory: self.memory.clone(),
            map: self.own_in.clone().map(Ok),
            found,
        };
        self.jobs.clear();
        self.heard.clear();
        let (core, first) = Core::begin(self.now(), start);
        self.core = core;
        self.take(first);
    }

    /// The kexec. `carried`: whether PID 1 keeps the descriptors over it.
    fn kexec(&mut self, carried: bool) {
        assert_eq!(self.jobs.pop_back(), Some(Action::Kexec));
        self.boot += 1;
        self.own_in = self.own_out.take();
        for fake in self.kernel.values_mut() {
            fake.direction = DirectionKind::Incoming;
        }
        self.memory = None;
        self.start(carried);
    }
}
