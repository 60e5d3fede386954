// SPDX-License-Identifier: GPL-2.0

//! What the kernel reports of itself: alarms in its log, and memory that leaked.

use luo_guest::LogRecord;
use std::{
    fs,
    path::Path,
    thread,
    time::Duration, //
};

/// Words in the kernel's log that no test may bring about.
const ALARMS: [&str; 20] = [
    "WARNING:",
    "BUG:",
    "Oops:",
    "INFO: task",
    "INFO: rcu",
    "KASAN:",
    "KFENCE:",
    "UBSAN:",
    "general protection fault",
    "unable to handle",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "possible circular locking",
    "possible recursive locking",
    "page allocation failure",
    "INFO: trying to register",
    "new suspected memory leaks",
    "invoked oom-killer",
    "page dumped because",
];

/// Looks for memory that the kernel has lost, if it keeps a record of that.
///
/// # Errors
///
/// How much there is; where it came from is on the console.
pub(super) fn leaks() -> Result<(), String> {
    const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

    if !Path::new(KMEMLEAK).exists() {
        return Ok(());
    }
    // Only what is older than five seconds counts, and has not changed from one look to the next.
    thread::sleep(Duration::from_millis(5500));
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan").map_err(|err| format!("kmemleak: {err}"))?;
    }
    let found = fs::read_to_string(KMEMLEAK).map_err(|err| format!("kmemleak: {err}"))?;
    if found.is_empty() {
        return Ok(());
    }

    println!("{found}");
    let count = found.matches("unreferenced object").count();
    Err(format!(
        "{count} new suspected memory leaks, see the console"
    ))
}

/// What the report of a race must name for it to have to do with live update: the tree has others, and
/// lives with them.
const OURS: [&str; 7] = ["luo", "liveupdate", "kho", "memfd", "shmem", "rust", "_R"];

/// The first line that should not be there.
pub(super) fn alarm_in(log: &[LogRecord]) -> Option<String> {
    let is_alarm = |text: &str| match text.split_once("KCSAN:") {
        Some((_, race)) => OURS.iter().any(|name| race.contains(name)),
        // Why a block of memory does not go offline.
        None if text.contains("page dumped because: unmovable page") => false,
        None => ALARMS.iter().any(|alarm| text.contains(alarm)),
    };

    log.iter()
        .map(|record| &record.text)
        .find(|text| is_alarm(text))
        .cloned()
}
