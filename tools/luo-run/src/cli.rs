// SPDX-License-Identifier: GPL-2.0

//! The command line, and the manual page and completions that are made of it.

use crate::Outcome;
use clap::{
    CommandFactory,
    Parser, //
};
use clap_complete::Shell;
use liveupdate::agent::SOCKET;
use nix::sys::signal::Signal;
use std::{
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

const AFTER_HELP: &str = "\
The program finds its files in /run/luo-run/NAME. Other files that it writes there go along.

  luo-run cache --file memory=1G --stop-signal USR1 -- memcached -m 1024 -e /run/luo-run/cache/memory

If the previous kernel left the program, it is continued with its files; else it starts with empty \
ones. When an update begins it gets the signal and has to end. If the update is aborted, it is \
started again.";

/// Restartable programs whose memory lives through an update of the kernel.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The name of the program: 1 to 48 characters out of A-Z a-z 0-9 . _ @ -
    #[arg(required_unless_present = "generate")]
    pub name: Option<String>,
    /// A file in memory: its name, and its size with a unit (M, G).
    #[arg(long = "file", value_name = "NAME=SIZE", value_parser = parse_file)]
    pub files: Vec<(String, u64)>,
    /// The signal at which the program writes down what it knows, and ends.
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    pub stop_signal: Signal,
    /// Seconds that it may take to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub stop_timeout: u64,
    /// The socket of the agent.
    #[arg(long, value_name = "PATH", default_value = SOCKET, hide = true)]
    pub socket: PathBuf,
    /// Where folders of programs are.
    #[arg(long, value_name = "PATH", default_value = "/run/luo-run", hide = true)]
    pub folders: PathBuf,
    /// Write the manual page and completions into a directory.
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    pub generate: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(
        last = true,
        value_name = "COMMAND",
        required_unless_present = "generate"
    )]
    pub command: Vec<String>,
}

fn parse_file(text: &str) -> Result<(String, u64), String> {
    let (name, size) = text.split_once('=').ok_or("not of the form NAME=SIZE")?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(format!("'{name}' is no name of a file in the folder"));
    }
    let end = size
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(size.len());
    let (number, unit) = size.split_at(end);
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(format!("'{size}' is no size: a number with K, M or G")),
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes @ 1..) => Ok((name.to_owned(), bytes)),
        _ => Err(format!("'{size}' is no size: a number with K, M or G")),
    }
}

fn parse_signal(text: &str) -> Result<Signal, String> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    format!("SIG{name}")
        .parse()
        .map_err(|_| format!("'{text}' is no signal"))
}

/// Writes `man/luo-run.1` and `completions/` into a directory.
pub fn generate(directory: &Path) -> Outcome {
    let (man, completions) = (directory.join("man"), directory.join("completions"));

    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Arguments::command(), &man)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "luo-run", &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn command_lines() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let good = parse("luo-run a --file m=1G --stop-signal USR1 -- memcached -m 1024").unwrap();
        assert_eq!(good.files, [("m".to_owned(), 1 << 30)]);
        assert_eq!(good.stop_signal, Signal::SIGUSR1);
        for bad in [
            "luo-run a",
            "luo-run a memcached",
            "luo-run a --file m -- x",
            "luo-run a --file m=1 -- x",
            "luo-run a --file m=0M -- x",
            "luo-run a --file ../m=1M -- x",
            "luo-run a --stop-signal X -- x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn everything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        generate(directory.path()).unwrap();
        let made = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(made("man/luo-run.1").contains("stop\\-signal"));
        assert!(made("completions/luo-run.bash").contains("stop-signal"));
    }
}
