// SPDX-License-Identifier: GPL-2.0

//! The first process of the virtual machine: runs tests, reports, and reboots into what follows.
//!
//! Each part of a test runs in a child of its own, so whatever it leaves behind goes with it:
//! descriptors, limits, threads. A child whose test goes on in the next kernel stays until then,
//! with the descriptors that the test wants to keep.

mod kernel_log;
mod next_kernel;

use self::kernel_log::{
    alarm_in,
    leaks, //
};
use self::next_kernel::{
    command_line,
    next_kernel, //
};
pub use self::next_kernel::{
    kernel_of,
    load,
    load_for_crash,
    load_next, //
};
use crate::{
    harness::{
        Failure,
        Outcome,
        Stage,
        Test, //
    },
    tests, //
};
use liveupdate::{
    cmdline::CommandLine,
    keeper, //
};
use luo_guest::LogRecord;
use nix::{
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::{
        signal::{
            kill,
            Signal, //
        },
        wait::waitpid, //
    },
    unistd::{
        self,
        fork,
        ForkResult, //
    }, //
};
use std::{
    any::Any,
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read,
        Write, //
    },
    os::fd::AsFd,
    panic,
    sync::Mutex,
    time::{
        Duration,
        Instant, //
    }, //
};

/// Runs what the command line asks for, and never returns.
pub fn run() -> ! {
    close_means_close();
    let mut report = match luo_guest::mount_all().and_then(|()| luo_guest::report_port()) {
        Ok(port) => Report::new(Box::new(port)),
        Err(err) => {
            eprintln!("luo-selftest: {err}");
            Report::new(Box::new(io::stdout()))
        }
    };

    keep_panics();
    match stage(&mut report) {
        // What the tree's vmtest.sh looks for.
        Ok(()) if report.failed == 0 => println!("TEST PASSED"),
        Ok(()) => {}
        Err(err) => report.line(&format!("Bail out! {err}")),
    }
    report.line("done");
    luo_guest::power_off();
}

/// Has the client library leave unfinished sessions alone: what `close(2)` does to one is to be tested.
pub fn close_means_close() {
    let _ = keeper::set(keeper::Close);
    keeper::set_warning_hook(|_| {});
}

/// Has panics noted, so that the function that catches them can report them.
pub fn keep_panics() {
    panic::set_hook(Box::new(|info| {
        let mut last = LAST_PANIC.lock().unwrap_or_else(|err| err.into_inner());
        *last = info.location().map(|place| {
            let what = payload_text(info.payload());
            Failure::at(place, format_args!("panic: {what}"))
        });
    }));
}

/// Where and why the last panic was.
static LAST_PANIC: Mutex<Option<Failure>> = Mutex::new(None);

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of some kind")
}

/// The lines of the report, and the count of what they said.
pub struct Report {
    out: Box<dyn Write>,
    count: usize,
    /// How many tests have failed so far.
    pub failed: usize,
    /// Parameters that tests want for the next boot, and only for that.
    once: Vec<String>,
}

impl Report {
    /// A report without a line.
    pub fn new(out: Box<dyn Write>) -> Self {
        Self {
            out,
            count: 0,
            failed: 0,
            once: Vec::new(),
        }
    }

    /// Adds a line.
    pub fn line(&mut self, text: &str) {
        // There is nobody to tell that telling failed.
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    /// Adds the result of a test.
    pub fn result(&mut self, name: &str, outcome: &Outcome) {
        self.count += 1;
        let number = self.count;
        match outcome {
            Ok(()) | Err(Failure::Over) => self.line(&format!("ok {number} {name}")),
            Err(Failure::Skipped(why)) => self.line(&format!("ok {number} {name} # SKIP {why}")),
            Err(Failure::Failed(why)) => {
                self.failed += 1;
                self.line(&format!("not ok {number} {name} # {}", one_line(why)));
            }
        }
    }
}

/// Makes text fit for a line of the report.
fn one_line(text: &str) -> String {
    let line = text.lines().collect::<Vec<_>>().join(" / ");

    match line.char_indices().nth(600) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

/// The tests that the command line names.
fn select(cmdline: &CommandLine) -> Result<Vec<&'static Test>, String> {
    let wanted = cmdline.get("luo.test").ok_or("no luo.test= parameter")?;
    let is_c = |key| cmdline.get(key) == Some("c");
    let applies =
        |test: &Test| !(is_c("luo.core") && test.c_differs || is_c("luo.memfd") && test.rust_memfd);
    let mut selected: Vec<&'static Test> = Vec::new();

    for word in wanted.split(',') {
        let before = selected.len();
        selected.extend(
            tests::all().filter(|test| test.name == word || test.group() == word && applies(test)),
        );
        if selected.len() == before {
            return Err(format!("no test is called '{word}'"));
        }
    }
    Ok(selected)
}

/// Does one boot's share of the work. Returns when all is done.
fn stage(report: &mut Report) -> Result<(), String> {
    let mut cmdline = command_line().map_err(|err| err.to_string())?;
    let number: usize = match cmdline.get("luo.stage") {
        Some(text) => text.parse().map_err(|_| "luo.stage= is not a number")?,
        None => 1,
    };
    let mut selected = select(&cmdline)?;

    if number == 1 {
        // A kernel that the one before should have refused would begin all tests again, for ever.
        match luo_guest::live_update_number().map_err(|err| err.to_string())? {
            0 => {}
            n => return Err(format!("after {n} live updates there is no luo.stage=")),
        }
        report.line("KTAP version 1");
        // The last one is the kernel log of all boots.
        report.line(&format!("1..{}", selected.len() + 1));
    } else {
        let state = State::parse(cmdline.get("luo.state").unwrap_or_default());
        report.count = state.count;
        report.failed = state.failed;
        selected.retain(|test| test.parts.len() >= number && !state.over.contains(&test.name));
    }

    let boot_log = alarm_in(&luo_guest::kernel_log(0).map_err(|err| err.to_string())?);
    if let Some(alarm) = &boot_log {
        report.line(&format!("# boot {number}: {alarm}"));
    }

    let slow = cmdline.get("luo.slow").and_then(|text| text.parse().ok());
    let mut over = Vec::new();
    let mut next_parameters = Vec::new();
    for test in &selected {
        let last = test.parts.len() == number;
        let start = Instant::now();
        let limit = Duration::from_secs(test.timeout * slow.unwrap_or(1));
        let outcome = run_part(test, number, limit, report);
        let elapsed = start.elapsed().as_secs_f64();

        report.line(&format!("# {} part {number}: {elapsed:.2} s", test.name));
        if outcome.is_ok() && !last {
            next_parameters.extend(test.next_parameters);
            continue;
        }
        if !last {
            over.push(test.name);
        }
        report.result(test.name, &in_part(number, test.parts.len(), outcome));
    }

    let proceed = selected
        .iter()
        .any(|test| test.parts.len() > number && !over.contains(&test.name));
    let boot_log = boot_log
        .or_else(|| leaks().err())
        .map(|alarm| format!("boot {number}: {alarm}"));
    let earlier_log = cmdline
        .get("luo.alarm")
        .map(|boot| format!("boot {boot}: see its line above"));
    if !proceed {
        let log = earlier_log
            .or(boot_log)
            .map_or(Ok(()), |alarm| Err(Failure::Failed(alarm)));
        report.result("kernel-log", &log);
        let (count, failed) = (report.count, report.failed);
        report.line(&format!("# {} passed, {failed} failed", count - failed));
        return Ok(());
    }
    if boot_log.is_some() {
        cmdline.set("luo.alarm", &number.to_string());
    }

    // Over means: not to be run in the boots that follow.
    let mut state = State::parse(cmdline.get("luo.state").unwrap_or_default());
    state.over.extend(over);
    state.count = report.count;
    state.failed = report.failed;
    let state = state.to_string();
    cmdline.set("luo.state", &state);
    cmdline.set("luo.stage", &(number + 1).to_string());
    for (key, value) in next_parameters {
        cmdline.set(key, value);
    }
    let err = next_kernel(&cmdline, number, &report.once);
    // The tests that are left have failed.
    for test in selected {
        if test.parts.len() > number && !state.contains(test.name) {
            report.result(test.name, &Err(Failure::Failed(err.clone())));
        }
    }
    Err(err)
}

/// What one boot tells the next about the tests.
struct State<'a> {
    count: usize,
    failed: usize,
    over: Vec<&'a str>,
}

impl<'a> State<'a> {
    fn parse(text: &'a str) -> Self {
        let mut words = text.split(',');
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);

        Self {
            count: number(),
            failed: number(),
            over: words.filter(|word| !word.is_empty()).collect(),
        }
    }
}

impl std::fmt::Display for State<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.count, self.failed)?;
        self.over.iter().try_for_each(|name| write!(f, ",{name}"))
    }
}

/// Says in which part a test failed, if it has more than one.
fn in_part(number: usize, parts: usize, outcome: Outcome) -> Outcome {
    outcome.map_err(|failure| match failure {
        Failure::Failed(why) if parts > 1 => Failure::Failed(format!("part {number}: {why}")),
        other => other,
    })
}

/// Runs one part, with an eye on the kernel's log.
pub fn run_part(test: &Test, number: usize, limit: Duration, report: &mut Report) -> Outcome {
    let next = |log: &[LogRecord]| log.last().map_or(0, |record| record.sequence + 1);
    let first = next(&luo_guest::kernel_log(0)?);
    let outcome = in_child(test, number, limit, report);

    match (outcome, alarm_in(&luo_guest::kernel_log(first)?)) {
        (Ok(()) | Err(Failure::Over), Some(alarm)) => {
            Err(Failure::Failed(format!("kernel log: {alarm}")))
        }
        (Err(Failure::Failed(why)), Some(alarm)) => {
            Err(Failure::Failed(format!("{why}; kernel log: {alarm}")))
        }
        (outcome, _) => outcome,
    }
}

/// Runs one part in a child.
///
/// A child that succeeded and has more parts to come is left waiting for the kexec.
fn in_child(test: &Test, number: usize, limit: Duration, report: &mut Report) -> Outcome {
    let part = test.parts[number - 1];
    let (reader, writer) = unistd::pipe()?;

    // SAFETY: This process has one thread.
    match unsafe { fork()? } {
        ForkResult::Child => {
            drop(reader);
            let mut stage = Stage::new(test.name, number);
            let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| part(&mut stage)))
                .unwrap_or_else(|_| {
                    let last = LAST_PANIC.lock().unwrap_or_else(|err| err.into_inner());
                    Err(last.clone().unwrap_or_else(|| Failure::here("panic")))
                });

            let mut message = String::new();
            for note in stage.notes() {
                message += &format!("note {}\n", one_line(note));
            }
            for parameters in stage.for_next_boot() {
                message += &format!("once {parameters}\n");
            }
            message += &match &outcome {
                Ok(()) => "ok\n".to_owned(),
                Err(Failure::Over) => "over\n".to_owned(),
                Err(Failure::Failed(why)) => format!("failed {}\n", one_line(why)),
                Err(Failure::Skipped(why)) => format!("skipped {}\n", one_line(why)),
            };
            if outcome.is_err() || test.parts.len() == number {
                // What it kept must be gone when the parent hears of it.
                drop(stage);
                let _ = File::from(writer).write_all(message.as_bytes());
                std::process::exit(0);
            }
            let _ = File::from(writer).write_all(message.as_bytes());
            loop {
                unistd::pause();
            }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let deadline = Instant::now() + limit;
            let mut reader = File::from(reader);
            let mut message = String::new();
            let mut chunk = [0; 4096];

            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
                let ready = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], left)?;
                if ready == 0 {
                    // It may be stuck in the kernel for good: do not wait for its end.
                    let _ = kill(child, Signal::SIGKILL);
                    return Err(Failure::Failed(format!(
                        "no end in sight after {} s: {}",
                        limit.as_secs(),
                        whereabouts(child)
                    )));
                }
                let len = reader.read(&mut chunk)?;
                if len == 0 {
                    break;
                }
                message += &String::from_utf8_lossy(&chunk[..len]);
                // Not the end of the pipe: the test may have left processes that hold it.
                if is_complete(&message) {
                    break;
                }
            }

            let mut outcome = None;
            for line in message.lines() {
                match line.split_once(' ').unwrap_or((line, "")) {
                    ("note", note) => report.line(&format!("# {}: {note}", test.name)),
                    ("once", parameters) => report.once.push(parameters.to_owned()),
                    ("ok", _) => outcome = Some(Ok(())),
                    ("over", _) => outcome = Some(Err(Failure::Over)),
                    ("failed", why) => outcome = Some(Err(Failure::Failed(why.into()))),
                    ("skipped", why) => outcome = Some(Err(Failure::Skipped(why.into()))),
                    _ => {}
                }
            }
            let waits = outcome == Some(Ok(())) && test.parts.len() != number;
            let status = match waits {
                true => None,
                false => Some(waitpid(child, None)?),
            };
            outcome.unwrap_or_else(|| {
                Err(Failure::Failed(format!(
                    "ended without a message: {status:?}"
                )))
            })
        }
    }
}

/// Whether a child has said how its test ended.
fn is_complete(message: &str) -> bool {
    let last = message.lines().next_back().unwrap_or_default();
    let verdict = last.split(' ').next().unwrap_or_default();

    message.ends_with('\n') && ["ok", "over", "failed", "skipped"].contains(&verdict)
}

/// Where in the kernel a process is.
fn whereabouts(process: unistd::Pid) -> String {
    let stack = fs::read_to_string(format!("/proc/{process}/stack")).unwrap_or_default();
    let wchan = fs::read_to_string(format!("/proc/{process}/wchan")).unwrap_or_default();

    format!("{wchan} {}", one_line(&stack))
}

/// Whether this is a debug kernel, which is slow.
pub fn is_slow() -> Outcome<bool> {
    let cmdline = CommandLine::read()?;

    Ok(cmdline.get("luo.slow").is_some_and(|times| times != "1"))
}
