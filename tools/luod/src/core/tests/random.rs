// SPDX-License-Identifier: GPL-2.0

//! Whatever happens, in whatever order, nothing is lost.

use super::*;
use proptest::prelude::*;

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
        // No incoming session is lost, and each is known under its user.
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
        cases: 128,
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
                    // The client that has claimed it may do so.
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
