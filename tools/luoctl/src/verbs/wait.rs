// SPDX-License-Identifier: GPL-2.0

//! Waiting for changes of the state.

use crate::{
    cli::{
        Arguments,
        WantedState, //
    },
    exit::{
        Exit,
        Failure,
        Outcome, //
    },
    luod::{
        Event,
        Luod, //
    },
    output::Output,
};
use liveupdate::status::{
    State,
    StateWatch,
    Status, //
};
use nix::{
    errno::Errno,
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
};
use serde_json::json;
use std::{
    os::fd::AsFd,
    time::{
        Duration,
        Instant, //
    },
};

/// The kernel's state, to be polled.
fn watch() -> Outcome<StateWatch> {
    StateWatch::new().map_err(|err| match err.errno() {
        Errno::ENOENT => Failure::new(
            Exit::NotRunning,
            "this kernel does not tell its state: live update is off, or its implementation is \
             another one",
        )
        .hint("see `luoctl status`"),
        _ => err.into(),
    })
}

/// Waits for one of the descriptors; which are ready.
fn wait_for(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> Outcome<Vec<bool>> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds.iter().map(|fd| fd.any() == Some(true)).collect()),
        Err(errno) => Err(Failure::new(
            Exit::Failure,
            format_args!("cannot wait for changes: {errno}"),
        )),
    }
}

/// `luoctl wait`
pub fn wait(output: Output, wanted: WantedState, timeout: Option<Duration>) -> Outcome {
    let wanted = match wanted {
        WantedState::Normal => State::Normal,
        WantedState::Prepared => State::Prepared,
        WantedState::Updated => State::Updated,
    };
    let mut watch = watch()?;
    let begin = Instant::now();

    loop {
        let state = watch.state()?;
        if state == wanted {
            return output.result(&json!({"state": state}), |_| Ok(()));
        }
        let left = match timeout {
            None => PollTimeout::NONE,
            Some(timeout) => {
                let left = timeout.saturating_sub(begin.elapsed());
                if left.is_zero() {
                    return Err(Failure::new(
                        Exit::Failure,
                        format_args!("the state is still {state}, not {wanted}"),
                    ));
                }
                // What does not fit is weeks; then it looks again.
                left.saturating_add(Duration::from_millis(1))
                    .try_into()
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        wait_for(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLPRI)], left)?;
    }
}

/// `luoctl monitor`
pub fn monitor(arguments: &Arguments, output: Output) -> Outcome {
    let mut luod = Luod::connect(&arguments.socket)?;
    if let Some(luod) = &mut luod {
        let status = luod.ask(json!({"cmd": "MONITOR"}), &[])?;
        show(output, &status)?;
    }
    let mut watch = match watch() {
        Ok(watch) => Some(watch),
        // The agent alone will do.
        Err(_) if luod.is_some() => None,
        Err(failure) => return Err(failure),
    };
    let mut last = None;

    loop {
        if let Some(watch) = &mut watch {
            let state = watch.state()?;
            let status = Status::read()?;
            if last.as_ref() != Some(&status) {
                let text = format!(
                    "kernel: {state}, outgoing {} with {}, incoming {} with {}",
                    super::look::counted(status.outgoing.sessions, "session"),
                    super::look::counted(status.outgoing.files, "file"),
                    super::look::counted(status.incoming.sessions, "session"),
                    super::look::counted(status.incoming.files, "file"),
                );
                let value = json!({"source": "kernel", "status": status});
                output.event(&value, format_args!("{text}"))?;
                last = Some(status);
            }
        }
        let mut fds = Vec::new();
        if let Some(watch) = &watch {
            fds.push(PollFd::new(watch.as_fd(), PollFlags::POLLPRI));
        }
        if let Some(luod) = &luod {
            fds.push(PollFd::new(luod.as_fd(), PollFlags::POLLIN));
        }
        let ready = wait_for(&mut fds, PollTimeout::NONE)?;
        if luod.is_some() && ready.last() == Some(&true) {
            match luod.as_mut().map(Luod::next).transpose()?.flatten() {
                Some(event) => show(output, &event)?,
                None if watch.is_some() => {
                    output.event(
                        &json!({"source": "agent", "event": "END"}),
                        format_args!("agent: ended"),
                    )?;
                    luod = None;
                }
                None => return Err(crate::luod::ended()),
            }
        }
    }
}

/// Shows what the agent tells.
fn show(output: Output, event: &Event) -> Outcome {
    let mut value = event.value.clone();
    value["source"] = json!("agent");
    output.event(&value, format_args!("agent: {}", describe(event)))
}

/// An event in words.
pub fn describe(event: &Event) -> String {
    let value = &event.value;
    match event.kind() {
        "STATUS" => format!(
            "{}, {}, {} kept",
            event.text("state"),
            super::look::counted(value["clients"].as_array().map_or(0, Vec::len), "client"),
            super::look::counted(value["sessions"].as_array().map_or(0, Vec::len), "session"),
        ),
        "PROGRESS" => {
            let waiting = value["waiting"].as_array().into_iter().flatten();
            let waiting: Vec<_> = waiting.filter_map(|id| id.as_str()).collect();
            let names = match waiting.is_empty() {
                true => String::new(),
                false => format!(", waiting for {}", waiting.join(", ")),
            };
            format!(
                "{}: {} of {} ready{names}",
                event.text("state"),
                value["ready"],
                value["clients"]
            )
        }
        "UPDATE" => match event.text("reason") {
            "" => event.text("outcome").to_owned(),
            reason => format!("{}: {reason}", event.text("outcome")),
        },
        other => other.to_owned(),
    }
}
