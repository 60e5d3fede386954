// SPDX-License-Identifier: GPL-2.0

//! The state after a start of luod.

use super::*;

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
