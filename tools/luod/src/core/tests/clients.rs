// SPDX-License-Identifier: GPL-2.0

//! Clients on the way out: what they hear, and what they may do.

use super::*;

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
fn the_policy_says_who_may_be_what() {
    let mut world = World::new(
        r#"
        [[client]]
        id = "vm-*"
        user = 7
        unit = "qemu@*.service"
        class = "devices"
        ready-timeout = 9
        "#,
    );
    let vm = r#"{"cmd":"SUBSCRIBE","id":"vm-0","class":"memory","timeout":30}"#;
    for (uid, unit, line) in [
        (8, Some("qemu@0.service"), vm),
        (7, Some("other.service"), vm),
        (7, None, vm),
        (
            7,
            Some("qemu@0.service"),
            r#"{"cmd":"SUBSCRIBE","id":"db"}"#,
        ),
    ] {
        let conn = world.connect(uid, unit);
        world.say(conn, line);
        assert_eq!(world.refusal(conn), Code::Eacces, "{uid} {unit:?} {line}");
    }
    let subscribed = |world: &mut World| {
        let conn = world.connect(7, Some("qemu@0.service"));
        world.say(conn, r#"{"cmd":"HELLO","version":1}"#);
        world.say(conn, vm);
        let Event::Subscribed { class, timeout, .. } = world.last(conn) else {
            panic!("{:?}", world.last(conn));
        };
        world.input(Input::Disconnected(conn));
        (class, timeout)
    };
    // The client asked for more than it may have.
    assert_eq!(subscribed(&mut world), (Class::Devices, 9));

    // A policy that is read anew counts for the next.
    let policy = "[[client]]\nid = \"*\"\nready-timeout = 40";
    let policy = Policy::parse(policy, |_| None).unwrap();
    world.input(Input::NewPolicy(policy));
    assert_eq!(subscribed(&mut world), (Class::Memory, 30));
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
fn classes_are_ordered() {
    assert!(Class::ORDER.is_sorted());
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
fn progress_is_told_and_buys_no_time() {
    let mut world = World::new("[update]\nready-timeout = 30");
    let client = world.subscribe("a", "vm");
    let operator = world.update();
    world.clock = 29;
    world.say(client, r#"{"cmd":"PROGRESS","done":3,"total":4}"#);
    let Event::Status(status) = world.last(operator) else {
        panic!("the operator does not hear of it");
    };
    let told = &status.clients[0];
    assert_eq!((told.done, told.total), (Some(3), Some(4)));
    world.clock = 30;
    world.input(Input::Tick);
    assert!(matches!(world.last(client), Event::Abort { .. }));
    // It is that of an update, not of the next one.
    world.work();
    world.update();
    assert!(world.core.status().clients[0].done.is_none());
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
