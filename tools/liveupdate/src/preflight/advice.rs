// SPDX-License-Identifier: MIT OR Apache-2.0

//! What would make the next kernel ready sooner, while what is preserved waits for it: [`of`].

use super::{
    Finding,
    Level,
    Problem, //
};
use crate::cmdline::{
    CommandLine,
    Parameter, //
};

/// The least important messages that `quiet` still lets through, and those that a kernel shows by
/// itself.
const QUIET: u32 = 4;
const DEFAULT: u32 = 7;

/// Advice about a command line.
pub(super) fn of(cmdline: &CommandLine) -> Option<Finding> {
    let console = cmdline.parameters().find(is_serial)?;

    (shown(cmdline) > QUIET).then(|| Finding {
        level: Level::Note,
        problem: Problem::SlowConsole(format!("console={}", console.value.unwrap_or_default())),
    })
}

/// Whether a parameter names a console that takes as long as a wire does.
fn is_serial(parameter: &Parameter<'_>) -> bool {
    let serial = |name: &str| name.starts_with("ttyS") || name.starts_with("ttyAMA");

    parameter.is("console") && parameter.value.is_some_and(serial)
}

/// Below which number the kernel shows messages: the last parameter counts.
fn shown(cmdline: &CommandLine) -> u32 {
    let levels = cmdline.parameters().filter_map(|parameter| {
        if parameter.is("quiet") {
            Some(QUIET)
        } else if parameter.is("debug") {
            Some(10)
        } else if parameter.is("loglevel") {
            parameter.value.and_then(|value| value.parse().ok())
        } else {
            None
        }
    });

    levels.last().unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(cmdline: &str) -> Option<String> {
        of(&CommandLine::new(cmdline)).map(|finding| finding.to_string())
    }

    #[test]
    fn messages_on_a_wire() {
        let slow = advice("console=tty0 console=ttyS0,115200 liveupdate=on").unwrap();
        assert!(slow.contains("console=ttyS0,115200"));
        for more in ["quiet loglevel=7", "debug", "console=ttyAMA0 loglevel=5"] {
            assert!(advice(&format!("console=ttyS1 {more}")).is_some(), "{more}");
        }
    }

    #[test]
    fn none_where_nothing_is_slow() {
        for cmdline in [
            "",
            "console=tty0",
            "console=ttyS0 quiet",
            "console=ttyS0 loglevel=7 quiet",
            "console=ttyS0 loglevel=3",
            "liveupdate=on -- console=ttyS0",
        ] {
            assert_eq!(advice(cmdline), None, "{cmdline}");
        }
    }
}
