// SPDX-License-Identifier: GPL-2.0

//! Updates that do not happen, and who may begin one.

use super::*;

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
