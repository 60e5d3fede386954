// SPDX-License-Identifier: GPL-2.0

//! The command line, and the manual pages and completions that are made of it.

use crate::Outcome;
use clap::{
    CommandFactory,
    Parser,
    Subcommand,
    ValueHint, //
};
use clap_complete::Shell;
use liveupdate::agent::SOCKET;
use std::{
    ffi::OsString,
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

const AFTER_HELP: &str = "\
luo-qemu makes the guest's RAM and connects to QEMU's monitor by itself: leave out -m (or let it agree with \
--memory), -object memory-backend-*, and -incoming. Command lines with which the guest could not be \
continued are refused before it is started, with the option that is at fault.

As a service: put MEMORY= and QEMU=, and other options of luo-qemu as OPTIONS=, into \
/etc/luo-qemu/NAME.conf, then `systemctl enable --now luo-qemu@NAME'.

Exit status: that of QEMU; 0 if the guest went into an update or was shut down, 1 if luo-qemu failed, 2 if it was \
used wrongly.";

/// Virtual machines that live through an update of their host's kernel.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start a guest, and take it through updates.
    Run {
        /// The name of the guest: 1 to 48 characters out of A-Z a-z 0-9 . _ @ -
        name: String,
        /// The guest's RAM, with a unit (M, G); that of -m if it is left out.
        #[arg(long, value_name = "SIZE")]
        memory: Option<String>,
        /// Take the RAM from HugeTLB pages of this size (2M, 1G), of which enough must be free.
        #[arg(long, value_name = "SIZE")]
        huge_pages: Option<String>,
        /// If the previous kernel left this guest, continue it instead of starting it.
        #[arg(long)]
        resume: bool,
        /// How the agent and the guest are treated.
        #[command(flatten)]
        manner: Manner,
        /// QEMU and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },

    /// Continue a guest that the previous kernel left, and take it through further updates.
    Resume {
        /// The name of the guest.
        name: String,
        /// How the agent and the guest are treated.
        #[command(flatten)]
        manner: Manner,
    },

    /// Tell whether a guest with this command line could live through an update; nothing is started.
    Check {
        /// The guest's RAM.
        #[arg(long, value_name = "SIZE")]
        memory: Option<String>,
        /// The size of its HugeTLB pages.
        #[arg(long, value_name = "SIZE")]
        huge_pages: Option<String>,
        /// QEMU and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },

    /// Write manual pages and completions into a directory.
    #[command(hide = true)]
    Generate {
        /// The directory.
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

/// How the agent and the guest are treated.
#[derive(clap::Args, Clone, Debug)]
pub struct Manner {
    /// The socket of the agent.
    #[arg(long, value_name = "PATH", default_value = SOCKET, hide = true)]
    pub socket: PathBuf,
    /// Seconds that the guest has to shut down at SIGTERM, before QEMU is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub shutdown_timeout: u64,
}

/// Writes `man/luo-qemu*.1` and `completions/` into a directory.
pub fn generate(directory: &Path) -> Outcome {
    let (man, completions) = (directory.join("man"), directory.join("completions"));

    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Arguments::command(), &man)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "luo-qemu", &completions)?;
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
    fn published_verbs() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["luo-qemu"], words].concat());

        assert!(parse(&["run", "vm", "--", "qemu-system-x86_64", "-S"]).is_ok());
        assert!(parse(&["run", "vm", "--memory", "1G", "--", "qemu-system-x86_64"]).is_ok());
        assert!(parse(&["resume", "vm"]).is_ok());
        assert!(parse(&["run", "vm"]).is_err());
        assert!(parse(&["run", "vm", "qemu-system-x86_64"]).is_err());
    }

    #[test]
    fn everything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        generate(directory.path()).unwrap();

        let made = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(made("man/luo-qemu-run.1").contains("shutdown\\-timeout"));
        assert!(made("completions/luo-qemu.bash").contains("resume"));
    }
}
