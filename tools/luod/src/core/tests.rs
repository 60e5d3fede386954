// SPDX-License-Identifier: GPL-2.0

//! The state machine in a world that is made up: a kernel with sessions, a store, clients.

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
use proptest::prelude::*;
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

#[test]
fn a_plain_client_hears_what_is_published() {
    let mut world = World::new("");
    let conn = world.connect(0, Some("a.service"));
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"vm-0"}"#);
    assert!(!world.heard.contains_key(&conn));

    world.update();
    let heard = &world.heard[&conn];
    assert_eq!(heard.len(), 1);
    assert!(matches!(heard[0].0, Event::StartPreservation { .. }));
    assert_eq!(world.session(conn), "luod.vm-0");
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(world.heard[&conn].len(), 2);
    assert_eq!(world.last(conn), Event::Committed);

    world.kexec(true);
    let conn = world.connect(0, Some("a.service"));
    world.say(conn, r#"{"cmd":"CLAIM","id":"vm-0"}"#);
    world.work();
    assert_eq!(world.heard[&conn].len(), 1);
    assert_eq!(world.session(conn), "luod.vm-0");
    world.kernel.get_mut("luod.vm-0").unwrap().finished = true;
    world.input(Input::Disconnected(conn));
    world.work();
    assert!(world.kernel.is_empty());
    assert!(world.own_in.is_none());
    assert!(world.core.sessions.is_empty());
}

#[test]
fn classes_take_turns() {
    let mut world = World::new("");
    let devices = world.subscribe("d", "devices");
    let vm = world.subscribe("v", "vm");
    let memory = world.subscribe("m", "memory");
    let started = |world: &World, conn| {
        world.count(conn, |event| {
            matches!(event, Event::StartPreservation { .. })
        })
    };

    world.update();
    assert_eq!(
        [memory, vm, devices].map(|conn| started(&world, conn)),
        [1, 0, 0]
    );
    world.say(memory, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(
        [memory, vm, devices].map(|conn| started(&world, conn)),
        [1, 1, 0]
    );
    world.say(vm, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(started(&world, devices), 1);
    assert_eq!(world.core.state(), State::Preserving);
    world.say(devices, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(world.core.state(), State::Committed);
    let map = world.own_out.clone().unwrap();
    assert_eq!(map.sessions.len(), 3);
}

#[test]
fn one_that_is_never_ready() {
    let mut world = World::new("[update]\nready-timeout = 30");
    let good = world.subscribe("a", "vm");
    let bad = world.subscribe("b", "vm");
    let operator = world.update();
    world.say(good, r#"{"cmd":"READY"}"#);

    world.clock = 29;
    world.input(Input::Tick);
    assert_eq!(world.core.state(), State::Preserving);
    assert_eq!(world.core.deadline(), Some(Duration::from_secs(30)));
    world.clock = 30;
    world.input(Input::Tick);
    world.work();
    for conn in [good, bad] {
        assert!(matches!(world.last(conn), Event::Abort { .. }));
    }
    let told = world.heard[&operator]
        .iter()
        .any(|(event, _)| matches!(event, Event::Update { outcome: Outcome::Aborted, reason: Some(why), .. } if why.contains("'b' was not ready after 30 s")));
    assert!(told);
    assert!(world.kernel.is_empty() && !world.loaded);
    assert_eq!(world.core.memory().last.unwrap().outcome, Outcome::Aborted);

    // Both go on, and the next time it works.
    world.update();
    for conn in [good, bad] {
        world.say(conn, r#"{"cmd":"READY"}"#);
    }
    world.work();
    assert_eq!(world.core.state(), State::Committed);
}

#[test]
fn a_ready_that_crosses_an_abort() {
    let mut world = World::new("");
    let plain = world.connect(0, None);
    world.say(plain, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    let other = world.subscribe("b", "vm");
    let operator = world.update();
    world.say(operator, r#"{"cmd":"CANCEL"}"#);
    for conn in [plain, other] {
        world.say(conn, r#"{"cmd":"READY"}"#);
    }
    assert!(matches!(world.last(plain), Event::Abort { .. }));
    assert!(!world.closed.contains(&plain));
    assert_eq!(world.refusal(other), Code::Eproto);
    assert_eq!(world.core.clients.len(), 2);
}

#[test]
fn one_that_dies() {
    let mut world = World::new("");
    let idle = world.subscribe("idle", "vm");
    let early = world.subscribe("early", "vm");
    world.say(early, r#"{"cmd":"PREPARE"}"#);
    world.work();
    assert!(matches!(world.last(early), Event::Session { .. }));
    // Before an update it takes its subscription along.
    world.input(Input::Disconnected(idle));
    world.input(Input::Disconnected(early));
    assert!(world.core.clients.is_empty() && world.kernel.is_empty());

    // In the middle it aborts the update.
    let good = world.subscribe("a", "vm");
    let bad = world.subscribe("b", "vm");
    world.update();
    world.input(Input::Disconnected(bad));
    assert!(matches!(world.last(good), Event::Abort { .. }));
    assert_eq!(world.core.clients.len(), 1);

    // After READY it is not missed.
    let ready = world.subscribe("c", "vm");
    world.update();
    world.say(ready, r#"{"cmd":"READY"}"#);
    world.input(Input::Disconnected(ready));
    world.say(good, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(world.own_out.as_ref().unwrap().sessions.len(), 2);
}

#[test]
fn a_claim_of_what_is_not_ones_own() {
    let mut world = World::new("[[client]]\nid = \"*\"");
    let owner = world.connect(7, Some("a.service"));
    world.say(owner, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    world.update();
    world.say(owner, r#"{"cmd":"READY"}"#);
    world.work();
    world.kexec(false);

    for (uid, unit) in [
        (8, Some("a.service")),
        (7, Some("b.service")),
        (7, None),
        (0, None),
    ] {
        let conn = world.connect(uid, unit);
        world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
        assert_eq!(world.refusal(conn), Code::Eacces, "{uid} {unit:?}");
        assert!(world.closed.contains(&conn));
    }
    let conn = world.hello(7);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a","force":true}"#);
    assert_eq!(world.refusal(conn), Code::Eperm);
    let conn = world.hello(0);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a","force":true}"#);
    assert!(world.core.is_pending(conn));
    world.work();
    assert_eq!(world.session(conn), "luod.a");
    // While one has it, no other gets it.
    let second = world.connect(7, Some("a.service"));
    world.say(second, r#"{"cmd":"CLAIM","id":"a"}"#);
    assert_eq!(world.refusal(second), Code::Ebusy);
}

#[test]
fn what_nobody_claims_is_handed_over_again() {
    for carried in [true, false] {
        let mut world = World::new("[unclaimed]\nwarn-after = 60");
        let conn = world.subscribe("a", "vm");
        world.update();
        world.say(conn, r#"{"cmd":"READY"}"#);
        world.work();
        for updates in 1..4 {
            world.kexec(carried);
            let held = &world.core.sessions[&id("a")];
            assert_eq!(
                (held.state_name(), held.entry.updates),
                ("unclaimed", updates)
            );
            // It is warned of, once an hour.
            world.log.clear();
            world.clock += 60;
            world.input(Input::Tick);
            world.clock += 60;
            world.input(Input::Tick);
            let warned = world.log.iter().filter(|it| it.contains("unclaimed"));
            assert_eq!(warned.count(), 1);
            world.update();
            assert_eq!(world.own_out.as_ref().unwrap().sessions.len(), 1);
        }
        world.kexec(carried);
        let conn = world.hello(0);
        world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
        world.work();
        assert_eq!(world.session(conn), "luod.a");
    }
}

#[test]
fn discarding() {
    let mut world = World::new("[unclaimed]\ndiscard-after = 100");
    for name in ["a", "b"] {
        let conn = world.subscribe(name, "vm");
        if name == "b" {
            world.update();
        }
        world.say(conn, r#"{"cmd":"READY"}"#);
    }
    let first = 1;
    world.say(first, r#"{"cmd":"READY"}"#);
    world.work();
    world.kexec(false);
    assert_eq!(world.core.sessions.len(), 2);

    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"DISCARD","id":"a"}"#);
    world.work();
    assert_eq!(world.last(operator), Event::Ok { cmd: "DISCARD" });
    assert!(!world.kernel.contains_key("luod.a"));
    world.say(operator, r#"{"cmd":"DISCARD","id":"a"}"#);
    assert_eq!(world.refusal(operator), Code::Enoent);

    world.clock += 99;
    world.input(Input::Tick);
    world.work();
    assert!(world.kernel.contains_key("luod.b"));
    world.clock += 1;
    world.input(Input::Tick);
    world.work();
    assert!(world.kernel.is_empty());
    assert!(world.own_in.is_none());
}

#[test]
fn an_unfinished_session_is_in_the_way_of_a_subscription() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    world.kexec(false);

    let conn = world.hello(0);
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    assert_eq!(world.refusal(conn), Code::Eexist);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
    world.work();
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    world.work();
    assert_eq!(world.refusal(conn), Code::Eexist);
    world.say(conn, r#"{"cmd":"FINISHED"}"#);
    world.work();
    assert_eq!(world.refusal(conn), Code::Ebusy);
    // An update would be too early.
    let operator = world.update();
    let refused = world.heard[&operator].iter().any(|(event, _)| {
        matches!(event, Event::Update { outcome: Outcome::Aborted, findings, .. }
            if findings.iter().any(|one| one.level == Level::Error && one.text.contains("not finished")))
    });
    assert!(refused);

    world.kernel.get_mut("luod.a").unwrap().finished = true;
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    world.work();
    assert!(matches!(world.last(conn), Event::Subscribed { .. }));
    assert!(world.kernel.is_empty());
    // And with the same connection into the next update.
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(world.core.state(), State::Committed);
}

#[test]
fn a_claimant_that_dies_has_lost_nothing() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    world.kexec(false);

    let conn = world.hello(0);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
    world.work();
    world.input(Input::Disconnected(conn));
    world.work();
    assert!(world.log.iter().any(|it| it.contains("without finishing")));
    let conn = world.hello(0);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
    assert_eq!(world.session(conn), "luod.a");
}

#[test]
fn one_that_leaves_and_is_back_at_once() {
    let mut world = World::new("");
    let conn = world.connect(0, None);
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    world.kexec(true);

    // It died, and claims again before luod has looked at what it left.
    let conn = world.connect(0, None);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
    world.input(Input::Disconnected(conn));
    let conn = world.connect(0, None);
    world.say(conn, r#"{"cmd":"CLAIM","id":"a"}"#);
    assert!(world.core.is_pending(conn));
    world.work();
    assert_eq!(world.session(conn), "luod.a");

    // It has finished, and subscribes as soon.
    world.kernel.get_mut("luod.a").unwrap().finished = true;
    world.input(Input::Disconnected(conn));
    let conn = world.connect(0, None);
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    assert!(world.core.is_pending(conn));
    world.work();
    assert!(!world.closed.contains(&conn) && !world.heard.contains_key(&conn));
    assert_eq!(world.core.clients.len(), 1);
    assert!(world.kernel.is_empty());
}

#[test]
fn limits_are_checked_at_ready() {
    let mut world = World::new("[[client]]\nid = \"*\"\nfiles = 2\nbytes = \"1K\"\nsessions = 2");
    let conn = world.subscribe("a", "vm");
    for content in [
        Content { files: 3, bytes: 0 },
        Content {
            files: 1,
            bytes: 1025,
        },
    ] {
        world.content = content;
        world.update();
        world.say(conn, r#"{"cmd":"READY"}"#);
        assert!(world.core.is_pending(conn));
        world.work();
        assert!(matches!(world.last(conn), Event::Abort { .. }));
        let told = |event: &Event| {
            matches!(
                event,
                Event::Error {
                    code: Code::Edquot,
                    ..
                }
            )
        };
        assert_eq!(world.count(conn, told), 1);
        world.heard.clear();
    }
    world.content = Content {
        files: 2,
        bytes: 1024,
    };
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(world.core.state(), State::Committed);

    let mut world = World::new("[[client]]\nid = \"*\"\nsessions = 2");
    world.subscribe("a", "vm");
    world.subscribe("b", "vm");
    let third = world.hello(0);
    world.say(third, r#"{"cmd":"SUBSCRIBE","id":"c"}"#);
    assert_eq!(world.refusal(third), Code::Edquot);
}

#[test]
fn a_check_that_fails_tells_no_client() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    world.heard.clear();
    world.check = vec![Finding {
        level: Level::Error,
        text: "no".into(),
    }];
    world.update();
    assert!(!world.heard.contains_key(&conn));
    assert_eq!(world.core.state(), State::Idle);

    // A dry run tells nobody either.
    world.check = Vec::new();
    world.loaded = false;
    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"x","dry-run":true}"#);
    world.work();
    assert!(!world.heard.contains_key(&conn) && !world.loaded);
    let checked = |event: &Event| {
        matches!(
            event,
            Event::Update {
                outcome: Outcome::Checked,
                ..
            }
        )
    };
    assert_eq!(world.count(operator, checked), 1);
}

#[test]
fn the_kexec_does_not_happen() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    assert_eq!(world.last(conn), Event::Committed);
    assert_eq!(world.jobs.pop_front(), Some(Action::Kexec));
    world.input(Input::KexecFailed("refused".into()));
    world.work();
    assert!(matches!(world.last(conn), Event::Abort { .. }));
    assert!(world.kernel.is_empty() && world.own_out.is_none() && !world.loaded);
}

#[test]
fn operators_only() {
    let mut world = World::new("operators = [3]");
    let conn = world.hello(0);
    for line in [
        r#"{"cmd":"STATUS"}"#,
        r#"{"cmd":"MONITOR"}"#,
        r#"{"cmd":"UPDATE"}"#,
        r#"{"cmd":"CANCEL"}"#,
        r#"{"cmd":"DISCARD","id":"a"}"#,
    ] {
        world.say(conn, line);
        assert_eq!(world.refusal(conn), Code::Eperm, "{line}");
    }
    let plain = world.connect(3, None);
    world.say(plain, r#"{"cmd":"STATUS"}"#);
    assert_eq!(world.refusal(plain), Code::Eproto);
    let operator = world.hello(3);
    world.say(operator, r#"{"cmd":"STATUS"}"#);
    assert!(matches!(world.last(operator), Event::Status(_)));
    world.say(operator, r#"{"cmd":"CANCEL"}"#);
    assert_eq!(world.refusal(operator), Code::Enoent);
}

#[test]
fn cancelled_while_a_session_is_being_made() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"x"}"#);
    // The check only.
    assert!(world.work_one());
    assert_eq!(world.core.state(), State::Preserving);
    world.say(operator, r#"{"cmd":"CANCEL"}"#);
    world.work();
    assert!(world.kernel.is_empty());
    assert_eq!(
        world.count(conn, |event| matches!(
            event,
            Event::StartPreservation { .. }
        )),
        0
    );
    world.update();
    assert!(matches!(world.last(conn), Event::StartPreservation { .. }));
}

#[test]
fn asked_for_while_one_is_being_made_that_was_given_up() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"x"}"#);
    assert!(world.work_one());
    world.say(operator, r#"{"cmd":"CANCEL"}"#);
    world.say(conn, r#"{"cmd":"PREPARE"}"#);
    let is_create = |job: &&Action| matches!(job, Action::Create(_));
    assert_eq!(world.jobs.iter().filter(is_create).count(), 1);
    world.work();
    assert!(matches!(world.last(conn), Event::Session { .. }));
    assert_eq!(world.kernel.len(), 1);
}

#[test]
fn a_check_of_an_update_that_was_cancelled() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"good"}"#);
    world.say(operator, r#"{"cmd":"CANCEL"}"#);
    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"bad"}"#);
    // The first check is good, and not the one that counts.
    assert!(world.work_one());
    assert_eq!(world.core.state(), State::Checking);
    world.check = vec![Finding {
        level: Level::Error,
        text: "no".into(),
    }];
    world.work();
    assert_eq!(world.core.state(), State::Idle);
    assert!(!world.loaded);
    let started = |event: &Event| matches!(event, Event::StartPreservation { .. });
    assert_eq!(world.count(conn, started), 0);
}

#[test]
fn restarted_with_an_image_loaded() {
    let mut world = World::new("");
    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"x"}"#);
    world.start(true);
    assert_eq!(world.jobs.pop_front(), Some(Action::Unload));
    // One that was loaded by somebody else stays.
    let operator = world.hello(0);
    world.say(operator, r#"{"cmd":"UPDATE"}"#);
    world.start(true);
    assert_eq!(world.jobs.pop_front(), None);
}

#[test]
fn restarted_after_the_commit() {
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    world.start(true);
    assert_eq!(world.core.state(), State::Committed);
    assert_eq!(world.jobs.front(), Some(&Action::Kexec));
    // The client comes back, and is told where things are.
    let conn = world.hello(0);
    world.say(conn, r#"{"cmd":"SUBSCRIBE","id":"a"}"#);
    assert!(matches!(
        world.last(conn),
        Event::Subscribed {
            update: "committed",
            ..
        }
    ));
    world.jobs.clear();
    world.input(Input::KexecFailed("refused".into()));
    assert!(matches!(world.last(conn), Event::Abort { .. }));

    // Without the sessions, there is no going on.
    let mut world = World::new("");
    let conn = world.subscribe("a", "vm");
    world.update();
    world.say(conn, r#"{"cmd":"READY"}"#);
    world.work();
    world.own_out = None;
    world.kernel.clear();
    world.start(false);
    assert_eq!(world.core.state(), State::Idle);
    assert_eq!(world.core.memory().last.unwrap().outcome, Outcome::Aborted);
}

#[test]
fn a_map_that_cannot_be_read() {
    let found = Found {
        session: "luod.a".into(),
        direction: DirectionKind::Incoming,
        mark: Some(Entry {
            id: id("a"),
            session: "luod.a".into(),
            uid: 7,
            unit: None,
            time: 1,
            updates: 0,
        }),
        finished: false,
    };
    let start = Start {
        policy: Policy::default(),
        boot: "1".into(),
        kexec: "direct",
        store: "none",
        memory: None,
        map: Some(Err("broken".into())),
        found: vec![found],
    };
    let now = Now {
        clock: Duration::ZERO,
        time: 5,
    };
    let (core, _) = Core::begin(now, start);
    let held = &core.sessions[&id("a")];
    assert_eq!((held.entry.uid, held.entry.updates), (7, 1));
}

/// What a random world does.
#[derive(Clone, Debug)]
enum Step {
    Connect(u32),
    Subscribe(usize, u8, u8),
    Prepare(usize),
    Ready(usize),
    Failed(usize),
    Claim(usize, u8),
    Finish(u8),
    Finished(usize),
    Disconnect(usize),
    Update,
    Cancel,
    Discard(u8),
    Work(u8),
    Wait(u8),
    Crash,
    Kexec(bool),
    KexecFails,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_u32).prop_map(Step::Connect),
        4 => (any::<usize>(), 0..4_u8, 0..3_u8).prop_map(|(c, i, k)| Step::Subscribe(c, i, k)),
        1 => any::<usize>().prop_map(Step::Prepare),
        6 => any::<usize>().prop_map(Step::Ready),
        1 => any::<usize>().prop_map(Step::Failed),
        4 => (any::<usize>(), 0..4_u8).prop_map(|(c, i)| Step::Claim(c, i)),
        2 => (0..4_u8).prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Finished),
        1 => any::<usize>().prop_map(Step::Disconnect),
        3 => Just(Step::Update),
        1 => Just(Step::Cancel),
        1 => (0..4_u8).prop_map(Step::Discard),
        6 => (1..6_u8).prop_map(Step::Work),
        1 => (0..40_u8).prop_map(Step::Wait),
        1 => Just(Step::Crash),
        3 => any::<bool>().prop_map(Step::Kexec),
        1 => Just(Step::KexecFails),
    ]
}

/// What must hold, whatever happened.
struct Promises {
    /// The users of all sessions that were handed over and are not finished or discarded.
    owed: BTreeMap<String, u32>,
}

impl Promises {
    fn check(&self, world: &World) {
        // No session that came in is lost, and each is known under its user.
        for (session, uid) in &self.owed {
            assert!(world.kernel.contains_key(session), "{session} is lost");
            let held = world
                .core
                .sessions
                .values()
                .find(|held| held.entry.session == *session)
                .unwrap_or_else(|| panic!("{session} is forgotten"));
            assert_eq!(held.entry.uid, *uid);
        }
        // An outgoing session belongs to a client that knows of it, or is being made.
        for (session, fake) in &world.kernel {
            if fake.direction == DirectionKind::Outgoing {
                let known = world
                    .core
                    .clients
                    .values()
                    .any(|client| client.has_session() && client.entry.session == *session);
                assert!(known, "{session} is nobody's");
            }
        }
        // Once committed, the map has everything.
        if world.core.state() == State::Committed {
            let map = world.own_out.as_ref().expect("there is a map");
            for session in world.kernel.keys() {
                assert!(map.sessions.iter().any(|entry| entry.session == *session));
            }
        } else if world.core.state() != State::Freezing && world.jobs.is_empty() {
            assert!(world.own_out.is_none());
        }
        // Nobody got a session of another user.
        for (conn, heard) in &world.heard {
            for (event, session) in heard {
                if let (Event::Session { .. }, Some(session)) = (event, session) {
                    if let (Some(conn), Some(uid)) =
                        (world.core.conns.get(conn), self.owed.get(session))
                    {
                        assert_eq!(conn.peer.uid, *uid);
                    }
                }
            }
        }
    }
}

proptest! {
    // What it finds becomes a test of its own.
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_is_lost(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new("[[client]]\nid = \"*\"");
        let mut promises = Promises { owed: BTreeMap::new() };

        for step in steps {
            let conns: Vec<_> = world.core.conns.keys().copied().collect();
            let free: Vec<_> = conns
                .iter()
                .copied()
                .filter(|&conn| !world.core.is_pending(conn))
                .collect();
            let pick = |index: usize| free.get(index % free.len().max(1)).copied();
            let mut say = |index, line: &str| {
                if let Some(conn) = pick(index) {
                    world.say(conn, line);
                }
            };
            match step {
                Step::Connect(uid) => {
                    world.hello(uid);
                }
                Step::Subscribe(conn, id, class) => {
                    let class = ["memory", "vm", "devices"][usize::from(class)];
                    say(conn, &format!(r#"{{"cmd":"SUBSCRIBE","id":"c{id}","class":"{class}"}}"#));
                }
                Step::Prepare(conn) => say(conn, r#"{"cmd":"PREPARE"}"#),
                Step::Ready(conn) => say(conn, r#"{"cmd":"READY"}"#),
                Step::Failed(conn) => say(conn, r#"{"cmd":"FAILED","message":"x"}"#),
                Step::Claim(conn, id) => say(conn, &format!(r#"{{"cmd":"CLAIM","id":"c{id}"}}"#)),
                Step::Finished(conn) => say(conn, r#"{"cmd":"FINISHED"}"#),
                Step::Finish(id) => {
                    // Whoever has claimed it may do so.
                    let session = format!("luod.c{id}");
                    let claimed = world.core.claimed().any(|held| held.entry.session == session);
                    if claimed && world.core.state() != State::Committed {
                        world.kernel.get_mut(&session).unwrap().finished = true;
                        promises.owed.remove(&session);
                    }
                }
                Step::Disconnect(index) => {
                    if !conns.is_empty() {
                        world.input(Input::Disconnected(conns[index % conns.len()]));
                    }
                }
                Step::Update => {
                    let operator = world.hello(0);
                    world.say(operator, r#"{"cmd":"UPDATE","cmdline":"x"}"#);
                }
                Step::Cancel => {
                    let operator = world.hello(0);
                    world.say(operator, r#"{"cmd":"CANCEL"}"#);
                }
                Step::Discard(id) => {
                    let operator = world.hello(0);
                    world.say(operator, &format!(r#"{{"cmd":"DISCARD","id":"c{id}"}}"#));
                    if world.core.is_pending(operator) {
                        promises.owed.remove(&format!("luod.c{id}"));
                    }
                }
                Step::Work(count) => {
                    for _ in 0..count {
                        world.work_one();
                    }
                }
                Step::Wait(seconds) => {
                    world.clock += u64::from(seconds);
                    world.input(Input::Tick);
                }
                Step::Crash => {
                    world.start(true);
                    // What had been finished is found to be so.
                    promises.owed.retain(|session, _| world.kernel.contains_key(session));
                }
                Step::Kexec(carried) => {
                    if world.core.state() == State::Committed
                        && world.jobs.len() == 1
                    {
                        world.kexec(carried);
                        promises.owed = world
                            .kernel
                            .iter()
                            .filter(|(_, fake)| !fake.finished)
                            .map(|(name, fake)| (name.clone(), fake.mark.as_ref().unwrap().uid))
                            .collect();
                    }
                }
                Step::KexecFails => {
                    if world.core.state() == State::Committed
                        && world.jobs.back() == Some(&Action::Kexec)
                    {
                        world.jobs.pop_back();
                        world.input(Input::KexecFailed("x".into()));
                    }
                }
            }
            promises.check(&world);
        }
        // Whatever is under way, an operator gets luod back to rest.
        world.work();
        if !matches!(world.core.state(), State::Idle | State::Committed) {
            let operator = world.hello(0);
            world.say(operator, r#"{"cmd":"CANCEL"}"#);
            world.work();
            prop_assert_eq!(world.core.state(), State::Idle);
        }
        promises.check(&world);
    }
}

#[test]
fn classes_are_ordered() {
    assert!(Class::ORDER.is_sorted());
}
