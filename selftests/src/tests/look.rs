// SPDX-License-Identifier: GPL-2.0

//! What debugfs shows and tracepoints tell, against what was done.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        Failure,
        Outcome,
        Stage, //
    },
    sys, //
};
use liveupdate::Device;
use nix::{
    mount::{
        mount,
        MsFlags, //
    },
    unistd::{
        seteuid,
        Uid, //
    }, //
};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread, //
};

const DEBUGFS: &str = "/sys/kernel/debug";
const TRACEFS: &str = "/sys/kernel/tracing";

/// Mounts a file system of the kernel, if that has not been done.
fn mounted(kind: &str, at: &str) -> Outcome {
    if fs::read_dir(at)?.next().is_none() {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    Ok(())
}

/// What a file in debugfs says.
fn view(name: &str) -> Outcome<String> {
    mounted("debugfs", DEBUGFS)?;
    Ok(fs::read_to_string(
        Path::new(DEBUGFS).join("liveupdate").join(name),
    )?)
}

/// What is said of each session: its state, and its lines.
fn sessions(name: &str) -> Outcome<BTreeMap<String, (String, Vec<String>)>> {
    let mut found = BTreeMap::new();
    let mut last = None;

    for line in view(name)?.lines() {
        if let Some(line) = line.strip_prefix("session '") {
            let (name, state) = line.split_once("' ").ok_or_else(|| Failure::here(line))?;
            ensure!(!found.contains_key(name), "'{name}' is there twice");
            last = Some(name.to_owned());
            found.insert(name.to_owned(), (state.to_owned(), Vec::new()));
        } else {
            let of = last.as_ref().and_then(|name| found.get_mut(name));
            let (_, lines) = of.ok_or_else(|| Failure::here(line))?;
            lines.push(line.trim_start().to_owned());
        }
    }
    Ok(found)
}

/// Nobody in particular sees names.
pub fn secret(_: &mut Stage) -> Outcome {
    view("outgoing")?;
    seteuid(Uid::from_raw(1000))?;
    let result = view("outgoing");
    seteuid(Uid::from_raw(0))?;
    ensure!(result.is_err());
    Ok(())
}

const MANY: usize = 2000;

/// Thousands of sessions, one of them with many files.
pub fn before(stage: &mut Stage) -> Outcome {
    sys::allow_fds(4 * MANY as u64)?;
    ensure_eq!(view("outgoing")?, "");
    ensure_eq!(view("incoming")?, "");
    let device = Device::open()?;

    for number in 0..MANY {
        let session = device.create_session(&format!("look-{number:04}"))?;
        if number % 2 == 0 {
            session.preserve(&sys::memfd_of("m", b"x")?, number as u64)?;
        }
        if number == 7 {
            for token in 0..300 {
                session.preserve(&sys::memfd_of("m", b"x")?, token)?;
            }
        }
        stage.keep(session);
    }

    let found = sessions("outgoing")?;
    ensure_eq!(found.len(), MANY);
    for number in 0..MANY {
        let (state, files) = &found[&format!("look-{number:04}")];
        let count = match number {
            7 => 300,
            number => 1 - number % 2,
        };
        ensure_eq!(*state, format!("open, {count} files"));
        ensure_eq!(files.len(), count);
        for (index, file) in files.iter().enumerate() {
            let token = if number == 7 { index } else { number };
            ensure!(
                file.starts_with(&format!("token {token:#x} handler 'memfd-")),
                "{file}"
            );
            ensure!(file.ends_with("' preserved"), "{file}");
        }
    }
    Ok(())
}

/// Each is seen in the state that it is in.
pub fn after(_: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let found = sessions("incoming")?;
    ensure_eq!(found.len(), MANY);
    let (state, files) = &found["look-0007"];
    ensure_eq!(state, "waiting, 300 files");
    ensure!(files.iter().all(|file| file.ends_with("' waiting")));

    let session = device.retrieve_session("look-0007")?;
    for token in 0..100 {
        session.retrieve(token)?;
    }
    let found = sessions("incoming")?;
    let (state, files) = &found["look-0007"];
    ensure_eq!(state, "retrieved, 300 files");
    let (first, rest) = files.split_at(100);
    ensure!(first.iter().all(|file| file.ends_with("' retrieved")));
    ensure!(rest.iter().all(|file| file.ends_with("' waiting")));
    session.finish()?;
    ensure_eq!(sessions("incoming")?["look-0007"].0, "finished, 0 files");
    drop(session);
    ensure_eq!(sessions("incoming")?.len(), MANY - 1);

    let timings = view("timings")?;
    let phases: Vec<_> = timings
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    ensure_eq!(
        phases,
        ["freeze", "serialize", "validate", "rebuild", "retrieve"]
    );
    ensure!(timings.ends_with(" us, 100 requests\n"), "{timings}");
    ensure_eq!(view("subsystems")?, "phase Updated\n");
    Ok(())
}

/// Readers and writers at the same time.
pub fn raced(_: &mut Stage) -> Outcome {
    let stop = AtomicBool::new(false);
    let device = Device::open()?;

    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut most = 0;
                    while !stop.load(Ordering::Relaxed) {
                        most = most.max(sessions("outgoing")?.len());
                        view("incoming")?;
                        view("flbs")?;
                        view("subsystems")?;
                        view("timings")?;
                    }
                    Ok::<_, Failure>(most)
                })
            })
            .collect();
        let work = || {
            for _ in 0..20 {
                let mut made = Vec::new();
                for number in 0..40 {
                    let session = device.create_session(&format!("raced-{number}"))?;
                    for token in 0..5 {
                        session.preserve(&sys::memfd_of("m", b"x")?, token)?;
                    }
                    made.push(session);
                }
            }
            Ok(())
        };
        let result: Outcome = work();
        stop.store(true, Ordering::Relaxed);
        result?;
        for reader in readers {
            let most = reader
                .join()
                .map_err(|_| Failure::here("a reader died"))??;
            ensure!(most > 0 && most <= 40, "{most}");
        }
        Ok(())
    })?;
    ensure_eq!(view("outgoing")?, "");
    Ok(())
}

fn trace(name: &str) -> Outcome<String> {
    Ok(fs::read_to_string(Path::new(TRACEFS).join(name))?)
}

/// The events since the trace was cleared: name, then fields, without the time it took.
fn traced() -> Outcome<Vec<String>> {
    let mut events = Vec::new();

    for line in trace("trace")?
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let (_, event) = line
            .split_once(": liveupdate_")
            .ok_or_else(|| Failure::here(line))?;
        let mut fields: Vec<_> = event.split(' ').collect();
        let time = fields.iter().position(|field| field.starts_with("ns="));
        let time = fields.remove(time.ok_or_else(|| Failure::here(line))?);
        let nanos: u64 = time[3..].parse().map_err(Failure::here)?;
        ensure!(nanos < 10_000_000_000, "{line}");
        events.push(fields.join(" "));
    }
    fs::write(Path::new(TRACEFS).join("trace"), "")?;
    Ok(events)
}

fn trace_on() -> Outcome {
    mounted("tracefs", TRACEFS)?;
    fs::write(Path::new(TRACEFS).join("events/liveupdate/enable"), "1")?;
    traced()?;
    Ok(())
}

/// What is done is told, whether it works or not.
pub fn traced_before(stage: &mut Stage) -> Outcome {
    trace_on()?;
    let device = Device::open()?;
    let memory = sys::memfd_of("m", b"x")?;

    let session = device.create_session("traced")?;
    ensure!(device.create_session("traced").is_err());
    session.preserve(&memory, 0x11)?;
    let events = traced()?;
    let handler = events
        .get(2)
        .and_then(|event| event.split("handler=").nth(1))
        .and_then(|rest| rest.split(' ').next())
        .ok_or_else(|| Failure::here(format_args!("{events:?}")))?
        .to_owned();
    ensure_eq!(
        events,
        [
            "create: session=traced token=0x0 handler= result=0".to_owned(),
            "create: session=traced token=0x0 handler= result=-17".to_owned(),
            format!("preserve: session=traced token=0x11 handler={handler} result=0"),
        ]
    );
    drop(session);
    ensure_eq!(
        traced()?,
        [format!(
            "unpreserve: session=traced token=0x11 handler={handler} result=0"
        )]
    );

    // Nobody listens, nothing is told.
    fs::write(Path::new(TRACEFS).join("events/liveupdate/enable"), "0")?;
    let session = device.create_session("traced")?;
    session.preserve(&memory, 1)?;
    ensure_eq!(traced()?, Vec::<String>::new());
    stage.keep(session);
    Ok(())
}

/// The same for what comes in.
pub fn traced_after(_: &mut Stage) -> Outcome {
    trace_on()?;
    let session = Device::open()?.retrieve_session("traced")?;
    session.retrieve(1)?;
    session.finish()?;

    let events = traced()?;
    ensure_eq!(events.len(), 2);
    ensure!(events[0].starts_with("retrieve: session=traced token=0x1 handler=memfd-"));
    ensure!(events[0].ends_with(" result=0"));
    ensure_eq!(
        events[1],
        "finish: session=traced token=0x0 handler= result=0"
    );
    Ok(())
}
