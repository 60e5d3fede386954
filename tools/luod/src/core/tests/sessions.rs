// SPDX-License-Identifier: GPL-2.0

//! Incoming sessions.

use super::*;

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
