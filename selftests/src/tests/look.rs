// SPDX-License-Identifier: GPL-2.0

//! What debugfs shows and tracepoints tell, against what was done.

use super::subsystem;
use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys, //
};
use liveupdate::Device;
use nix::{
    libc,
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

/// In which state a file is, of which this is the line.
fn state_of(file: &str) -> &str {
    let state = file.rsplit("' ").next().unwrap_or_default();

    state.split(':').next().unwrap_or_default()
}

/// What is said to be quarantined, and why.
pub fn quarantined() -> Outcome<Vec<String>> {
    Ok(view("incoming")?
        .lines()
        .filter_map(|line| line.split_once("quarantined: "))
        .map(|(_, why)| why.to_owned())
        .collect())
}

/// Nobody in particular sees names.
pub fn secret(_: &mut Stage) -> Outcome {
    view("outgoing")?;
    seteuid(Uid::from_raw(1000))?;
    let result = fs::read(Path::new(DEBUGFS).join("liveupdate/outgoing"));
    seteuid(Uid::from_raw(0))?;
    ensure_errno!(result, EACCES);
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
            ensure_eq!(state_of(file), "preserved", "{file}");
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
    ensure!(files.iter().all(|file| state_of(file) == "waiting"));

    let session = device.retrieve_session("look-0007")?;
    for token in 0..100 {
        session.retrieve(token)?;
    }
    let found = sessions("incoming")?;
    let (state, files) = &found["look-0007"];
    ensure_eq!(state, "retrieved, 300 files");
    let (first, rest) = files.split_at(100);
    ensure!(first.iter().all(|file| state_of(file) == "retrieved"));
    ensure!(rest.iter().all(|file| state_of(file) == "waiting"));
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

/// Sizes of memfds, in bytes, and how many pages of each are there; the sparse one has its pages apart.
fn memfds() -> Outcome<[(u64, u64); 5]> {
    let page = sys::page_size()?;

    Ok([
        (0, 0),
        (100, 1),
        (page, 0),
        (3 * page, 3),
        (1000 * page + 5, 3),
    ])
}

fn numbers_in(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// What the handler says of each file of the session `name`, and in which state that is.
fn summaries(side: &str, name: &str) -> Outcome<Vec<(String, String)>> {
    let (_, files) = sessions(side)?
        .remove(name)
        .ok_or_else(|| Failure::here(format_args!("no session '{name}'")))?;

    files
        .iter()
        .map(|file| {
            let (_, rest) = file.split_once(": ").ok_or_else(|| Failure::here(file))?;
            Ok((state_of(file).to_owned(), rest.to_owned()))
        })
        .collect()
}

/// Handlers describe their files.
pub fn summary_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session("summary")?;
    let (page_size, memfds) = (sys::page_size()?, memfds()?);

    for (token, (size, pages)) in (0..).zip(memfds) {
        let memfd = sys::memfd("m")?;
        memfd.set_len(size)?;
        for page in 0..pages {
            // From the end, apart if there is room for that.
            let apart = if size > 1000 * page_size { 400 } else { 1 };
            sys::write_at(&memfd, page * apart * page_size, b"x")?;
        }
        session.preserve(&memfd, token)?;
    }

    let found = summaries("outgoing", "summary")?;
    ensure_eq!(found.len(), memfds.len());
    for ((size, pages), (state, text)) in memfds.iter().zip(&found) {
        ensure_eq!(state, "preserved");
        let numbers = numbers_in(text);
        ensure_eq!(numbers.len(), 4, "{text}");
        let extents = if *pages > 1 && *size > 1000 * page_size {
            3..=3
        } else {
            u64::from(*pages > 0)..=*pages
        };
        ensure!(extents.contains(&numbers[3]), "{text}");
        ensure_eq!(numbers[..3], [*size, *pages, *pages], "{text}");
        ensure_eq!(
            *text,
            format!(
                "size {size}, {pages} pages, {pages} folios, {} extents",
                numbers[3]
            )
        );
    }
    stage.note(format!("{found:?}"));
    stage.keep(session);
    Ok(())
}

/// Incoming files are described before they are retrieved, and can be retrieved afterwards.
pub fn summary_after(_: &mut Stage) -> Outcome {
    let memfds = memfds()?;

    for _ in 0..3 {
        let found = summaries("incoming", "summary")?;
        ensure_eq!(found.len(), memfds.len());
        for ((size, pages), (state, text)) in memfds.iter().zip(&found) {
            ensure_eq!(state, "waiting");
            ensure!(
                text.starts_with(&format!("size {size}, {pages} pages, ")),
                "{text}"
            );
            ensure!(text.ends_with(" extents"), "{text}");
        }
    }

    let session = Device::open()?.retrieve_session("summary")?;
    let mut files = Vec::new();
    for (token, (size, _)) in (0..).zip(memfds) {
        let file = std::fs::File::from(session.retrieve(token)?);
        ensure_eq!(file.metadata()?.len(), size);
        files.push(file);
    }
    // What they are now, not what they were.
    files[3].set_len(7)?;
    for ((index, (size, _)), (state, text)) in memfds
        .iter()
        .enumerate()
        .zip(summaries("incoming", "summary")?)
    {
        ensure_eq!(state, "retrieved");
        ensure_eq!(text, format!("size {}", if index == 3 { 7 } else { *size }));
    }
    session.finish()?;
    Ok(())
}

fn trace(name: &str) -> Outcome<String> {
    Ok(fs::read_to_string(Path::new(TRACEFS).join(name))?)
}

/// An event, without the time it took.
fn event(name: &str, token: u64, handler: &str, result: i32) -> String {
    format!("{name}: session=traced token={token:#x} handler={handler} result={result}")
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

/// The name of a handler in an event.
fn handler_in(event: &str) -> Outcome<String> {
    let (_, rest) = event
        .split_once("handler=")
        .ok_or_else(|| Failure::here(event))?;

    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}

/// What is done is told, whether it works or not.
pub fn traced_before(stage: &mut Stage) -> Outcome {
    trace_on()?;
    let device = Device::open()?;
    let memory = sys::memfd_of("m", b"x")?;

    let session = device.create_session("traced")?;
    ensure_errno!(device.create_session("traced"), EEXIST);
    session.preserve(&memory, 0x11)?;
    ensure_errno!(session.preserve(&memory, 0x12), EBUSY);
    let events = traced()?;
    ensure_eq!(events.len(), 4);
    let handler = handler_in(&events[2])?;
    ensure!(handler.starts_with("memfd-"), "{handler}");
    ensure_eq!(
        events,
        [
            event("create", 0, "", 0),
            event("create", 0, "", -libc::EEXIST),
            event("preserve", 0x11, &handler, 0),
            event("preserve", 0x12, &handler, -libc::EBUSY),
        ]
    );

    // A kexec that is refused after all has been written down.
    subsystem::refuse_kexec()?;
    ensure_eq!(
        traced()?,
        [
            event("freeze", 0x11, &handler, 0),
            event("serialize", 0, "", 0),
        ]
    );
    drop(session);
    ensure_eq!(traced()?, [event("unpreserve", 0x11, &handler, 0)]);

    // Nobody listens, nothing is told.
    fs::write(Path::new(TRACEFS).join("events/liveupdate/enable"), "0")?;
    let session = device.create_session("traced")?;
    session.preserve(&memory, 1)?;
    ensure_eq!(traced()?, Vec::<String>::new());
    stage.keep(session);
    Ok(())
}

/// Requests of many threads at a time are traced once each.
pub fn traced_raced(_: &mut Stage) -> Outcome {
    const THREADS: usize = 4;

    trace_on()?;
    fs::write(Path::new(TRACEFS).join("buffer_size_kb"), "8192")?;
    let device = Device::open()?;

    thread::scope(|scope| {
        let work = |thread: usize| -> Outcome {
            for number in (thread..MANY).step_by(THREADS) {
                let session = device.create_session(&format!("many-{number}"))?;
                session.preserve(&sys::memfd_of("m", b"x")?, number as u64)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        for thread in threads {
            let result = thread.join();
            result.map_err(|_| Failure::here("a thread died"))??;
        }
        Ok::<_, Failure>(())
    })?;

    let mut found = BTreeMap::new();
    for event in traced()? {
        let (what, _) = event
            .split_once(" handler=")
            .ok_or_else(|| Failure::here(&event))?;
        ensure!(event.ends_with(" result=0"), "{event}");
        *found.entry(what.to_owned()).or_insert(0) += 1;
    }
    let mut wanted = BTreeMap::new();
    for number in 0..MANY {
        wanted.insert(format!("create: session=many-{number} token=0x0"), 1);
        for what in ["preserve", "unpreserve"] {
            wanted.insert(
                format!("{what}: session=many-{number} token={number:#x}"),
                1,
            );
        }
    }
    ensure_eq!(found.len(), wanted.len());
    ensure!(found == wanted);
    Ok(())
}

/// The same for incoming sessions. The kernel traces from the first moment on.
pub fn traced_between(stage: &mut Stage) -> Outcome {
    mounted("tracefs", TRACEFS)?;
    let events = traced()?;
    ensure_eq!(events, [event("validate", 0, "", 0)]);

    let session = Device::open()?.retrieve_session("traced")?;
    let memory = session.retrieve(1)?;
    ensure_errno!(session.retrieve(2), ENOENT);
    session.finish()?;
    let events = traced()?;
    ensure_eq!(events.len(), 2);
    let handler = handler_in(&events[0])?;
    ensure_eq!(
        events,
        [event("retrieve", 1, &handler, 0), event("finish", 0, "", 0)]
    );
    drop(session);
    ensure_eq!(traced()?, [event("finish", 0, "", 0)]);

    // The first of these is going to be corrupted.
    let session = Device::open()?.create_session("traced")?;
    session.preserve(&memory, 1)?;
    session.preserve(&sys::memfd_of("m", b"x")?, 2)?;
    stage.keep(session);
    Ok(())
}

/// What is corrupt is told, too, and why.
pub fn traced_after(_: &mut Stage) -> Outcome {
    mounted("tracefs", TRACEFS)?;
    ensure_eq!(
        traced()?,
        [
            event("quarantine", 0, "", -libc::EUCLEAN),
            event("validate", 0, "", 0)
        ]
    );
    let why = "session 'traced': file 0: checksum does not match";
    ensure_eq!(quarantined()?, [why]);

    let session = Device::open()?.retrieve_session("traced")?;
    ensure_errno!(session.retrieve(1), EUCLEAN);
    session.retrieve(2)?;
    session.finish()?;
    ensure_eq!(quarantined()?, Vec::<String>::new());
    Ok(())
}
