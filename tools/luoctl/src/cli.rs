// SPDX-License-Identifier: GPL-2.0

//! The command line: verbs, options, and their help, from which manual pages and completions are
//! made.

use clap::{
    builder::{
        OsStringValueParser,
        TypedValueParser, //
    },
    Args,
    Parser,
    Subcommand,
    ValueEnum,
    ValueHint, //
};
use liveupdate::{
    Token,
    DEVICE_PATH, //
};
use std::{
    ffi::OsString,
    os::unix::ffi::{
        OsStrExt,
        OsStringExt, //
    },
    path::PathBuf,
    time::Duration, //
};

/// What stands at the end of the manual page.
const AFTER_HELP: &str = "\
Exit status:
  0  done
  1  failed
  2  used wrongly
  3  live update is off, the agent does not run, or no kernel is loaded
  4  there is no such session or client
Of `check`: 0 nothing speaks against the update, 1 there are warnings, 2 something would be lost, or \
nothing can be said.

Names of sessions are taken as they are, byte by byte. They are shown with control characters, \
backslashes and what is no UTF-8 as \\xNN.";

/// Live updates: open files that outlive the kernel.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Write JSON to standard output, failures as JSON to standard error.
    #[arg(long, global = true)]
    pub json: bool,

    /// The device to talk to.
    #[arg(long, global = true, value_name = "PATH", default_value = DEVICE_PATH, hide = true)]
    pub device: PathBuf,

    /// The socket of the agent.
    #[arg(long, global = true, value_name = "PATH", default_value = crate::luod::SOCKET, hide = true)]
    pub socket: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Tell the state of live updates on this machine.
    ///
    /// Opens no device, so it disturbs nobody. Exits with 3 if live update is off.
    Status,

    /// List sessions, who holds them, and the clients of the agent.
    List,

    /// Show a session with its files, or a client of the agent.
    Show {
        /// Name of the session.
        session: OsString,
    },

    /// Tell changes as they come, until interrupted.
    Monitor,

    /// Wait until the machine is in a state.
    Wait {
        /// The state to wait for.
        #[arg(long, value_enum, default_value_t = WantedState::Normal)]
        state: WantedState,
        /// Give up after this time, with exit status 1: seconds, or with a unit (500ms, 2min).
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        timeout: Option<Duration>,
    },

    /// Tell whether a kernel could take over what is preserved now, before anything is stopped.
    ///
    /// One line a finding. Exits with 0, 1 or 2, see below.
    Check(NextKernel),

    /// Load the next kernel, so that it can find what is preserved.
    ///
    /// It replaces the one that was loaded before. Nothing is started: see `kexec` and `update`.
    Load(NextKernel),

    /// Unload the next kernel.
    Unload,

    /// Start the loaded kernel at once, as `reboot -f` does.
    ///
    /// File systems are synced, but nothing is stopped: sessions that processes hold survive. The
    /// agent's clients are not told; `update` does the whole thing. Exits with 3 if no kernel is
    /// loaded.
    Kexec {
        /// Let the service manager stop everything first (`systemctl kexec`). Sessions then survive
        /// in its stores only, on systemd 261 or later.
        #[arg(long)]
        systemd: bool,
    },

    /// Create a session, preserve files in it and hold it until interrupted.
    ///
    /// A session lasts as long as somebody holds it: leave this running until the kexec. As a
    /// service with Type=notify and FileDescriptorStoreMax=1 it puts the session into the service
    /// manager's store, where it outlives this process.
    Hold {
        /// Name of the session.
        session: OsString,
        /// What to preserve, and under which token: FILE is copied into memory; fd:N is an inherited
        /// descriptor, pid:PID:N one of another process, which are preserved themselves.
        #[arg(value_name = "TOKEN=FILE", value_parser = OsStringValueParser::new().try_map(HoldFile::parse))]
        files: Vec<HoldFile>,
        /// Go on in the background when everything is preserved, and print the process's number.
        #[arg(long)]
        detach: bool,
    },

    /// Run a program with sessions as inherited descriptors (LISTEN_FDS), their names in
    /// LISTEN_FDNAMES.
    ///
    /// An incoming session of the name is retrieved, else one is created. While the program runs this process
    /// holds the sessions too. If the program fails, incoming ones stay retrievable.
    Run {
        /// Names of the sessions.
        #[arg(required = true)]
        sessions: Vec<OsString>,
        /// The program and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },

    /// Retrieve files of an incoming session, and write them out.
    ///
    /// Each file is written under another name, synced, and renamed when it is complete; its holes
    /// stay holes. The session is finished if all its files were retrieved. Whatever goes wrong, it
    /// can be retrieved again.
    Retrieve {
        /// Name of the session.
        session: OsString,
        /// What to retrieve, and where to put it.
        #[arg(
            value_name = "TOKEN=FILE",
            value_parser = OsStringValueParser::new().try_map(TokenPath::parse),
            required_unless_present = "all"
        )]
        files: Vec<TokenPath>,
        /// Retrieve all files, into this directory, each under the name of its token.
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "files", value_hint = ValueHint::DirPath)]
        all: Option<PathBuf>,
        /// Overwrite files that exist.
        #[arg(long)]
        force: bool,
        /// Finish the session even if files are left, which destroys them.
        #[arg(long)]
        discard_rest: bool,
        /// Leave the session unfinished in any case.
        #[arg(long, conflicts_with = "discard_rest")]
        keep: bool,
    },

    /// Finish an incoming session, if nothing in it would be lost.
    Finish {
        /// Name of the session.
        session: OsString,
    },

    /// Destroy what is preserved in an incoming session.
    ///
    /// Asks before it does so, if there is a terminal.
    Discard {
        /// Name of the session.
        session: OsString,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },

    /// Wait for an update as a client of the agent, and preserve files then.
    ///
    /// Subscribes, and at the update preserves copies of the files and says that it is ready. Goes on
    /// with the next update if one is aborted, and subscribes again if the agent is restarted; ends
    /// with the kernel.
    Subscribe {
        /// The name of the client.
        id: String,
        /// What to preserve, and under which token; as for `hold`.
        #[arg(value_name = "TOKEN=FILE", value_parser = OsStringValueParser::new().try_map(HoldFile::parse))]
        files: Vec<HoldFile>,
        /// The order class: memory, vm or devices.
        #[arg(long)]
        class: Option<String>,
        /// A command to run at the update, before the files are preserved. If it fails, so does the
        /// update.
        #[arg(long, value_name = "COMMAND")]
        exec: Option<OsString>,
    },

    /// Update the kernel: check, have all clients preserve, and start the next kernel.
    ///
    /// With the agent, its clients are told and waited for; if anything fails everybody goes on as
    /// before. Without it, what is preserved already is handed over.
    Update {
        /// The next kernel; the loaded one if it is left out.
        #[command(flatten)]
        kernel: OptionalKernel,
        /// Check only; nothing is loaded and nobody is told.
        #[arg(long)]
        dry_run: bool,
    },

    /// Write manual pages and completions into a directory.
    #[command(hide = true)]
    Generate {
        /// The directory.
        directory: PathBuf,
    },

    /// Hold a session for another process of this tool.
    #[command(hide = true)]
    Keep {
        /// Name of the session.
        session: OsString,
    },
}

/// A kernel to be loaded.
#[derive(Args, Clone, Debug)]
pub struct NextKernel {
    /// The kernel image.
    #[arg(value_hint = ValueHint::FilePath)]
    pub kernel: PathBuf,
    /// What goes with it.
    #[command(flatten)]
    pub with: KernelOptions,
}

/// A kernel to be loaded, or the one that is.
#[derive(Args, Clone, Debug)]
pub struct OptionalKernel {
    /// The kernel image. If it is left out, the loaded kernel is started.
    #[arg(value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// What goes with it.
    #[command(flatten)]
    pub with: KernelOptions,
}

/// What goes with a kernel.
#[derive(Args, Clone, Debug, Default)]
pub struct KernelOptions {
    /// The initrd.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[arg(long, value_name = "TEXT", conflicts_with = "reuse_cmdline")]
    pub cmdline: Option<String>,
    /// The running kernel's command line. The default.
    #[arg(long)]
    pub reuse_cmdline: bool,
    /// Parameters to add to the command line.
    #[arg(long, value_name = "TEXT")]
    pub append: Option<String>,
}

/// A state to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WantedState {
    /// Nothing is under way.
    Normal,
    /// There is something for the next kernel.
    Prepared,
    /// Incoming sessions are not finished.
    Updated,
}

/// A token and the path of the file that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPath {
    /// The token.
    pub token: Token,
    /// The path.
    pub path: PathBuf,
}

impl TokenPath {
    fn parse(text: OsString) -> Result<Self, String> {
        let (token, path) = split(&text)?;
        Ok(Self {
            token,
            path: path.into(),
        })
    }
}

/// A token and what is to be preserved under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldFile {
    /// The token.
    pub token: Token,
    /// The file.
    pub source: Source,
}

/// A file to be preserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A copy of the file at a path.
    Copy(PathBuf),
    /// A descriptor that this process inherited.
    Inherited(i32),
    /// A descriptor of another process.
    Process(u32, i32),
}

impl HoldFile {
    fn parse(text: OsString) -> Result<Self, String> {
        let (token, source) = split(&text)?;
        let number = |text: &str| -> Result<i32, String> {
            match text.parse() {
                Ok(number @ 0..) => Ok(number),
                _ => Err(format!("'{text}' is no descriptor")),
            }
        };
        let words = source.to_str().unwrap_or_default();
        let source = if let Some(fd) = words.strip_prefix("fd:") {
            Source::Inherited(number(fd)?)
        } else if let Some(rest) = words.strip_prefix("pid:") {
            let (pid, fd) = rest.split_once(':').ok_or("not of the form pid:PID:FD")?;
            let pid = pid.parse().map_err(|_| format!("'{pid}' is no process"))?;
            Source::Process(pid, number(fd)?)
        } else {
            Source::Copy(source.into())
        };

        Ok(Self { token, source })
    }
}

/// Takes `TOKEN=FILE` apart.
fn split(text: &OsString) -> Result<(Token, OsString), String> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=');
    let at = at.ok_or("not of the form TOKEN=FILE")?;
    let token = String::from_utf8_lossy(&bytes[..at]);
    let file = &bytes[at + 1..];

    if file.is_empty() {
        return Err("there is no file behind the equals sign".into());
    }
    let token = token
        .parse()
        .map_err(|err| format!("token '{token}': {err}"))?;
    Ok((token, OsString::from_vec(file.to_vec())))
}

/// Reads a time: seconds, or a number with a unit.
fn parse_time(text: &str) -> Result<Duration, String> {
    let end = text.find(|char: char| !char.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let number: u32 = number
        .parse()
        .map_err(|err| format!("'{text}' is no time: {err}"))?;

    match unit {
        "" | "s" | "sec" => Ok(Duration::from_secs(number.into())),
        "ms" => Ok(Duration::from_millis(number.into())),
        "m" | "min" => Ok(Duration::from_secs(u64::from(number) * 60)),
        "h" => Ok(Duration::from_secs(u64::from(number) * 3600)),
        _ => Err(format!("'{unit}' is no unit of time (ms, s, min, h)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn published_verbs() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["luoctl"], words].concat());

        for words in [
            &["load", "K", "--initrd", "F", "--reuse-cmdline"][..],
            &["load", "K", "--initrd", "F", "--cmdline", "quiet"],
            &["list"],
            &["kexec"],
        ] {
            parse(words).unwrap();
        }
        assert!(parse(&["load", "K", "--reuse-cmdline", "--cmdline", "x"]).is_err());
    }

    #[test]
    fn nothing_to_retrieve() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["luoctl"], words].concat());

        assert!(parse(&["retrieve", "a"]).is_err());
        assert!(parse(&["retrieve", "a", "1=x"]).is_ok());
        assert!(parse(&["retrieve", "a", "--all", "d"]).is_ok());
        assert!(parse(&["retrieve", "a", "--all", "d", "1=x"]).is_err());
        assert!(parse(&["retrieve", "a", "1=x", "--keep", "--discard-rest"]).is_err());
    }

    #[test]
    fn tokens() {
        let parse = |text: &str| TokenPath::parse(text.into()).map(|it| (it.token.0, it.path));

        assert_eq!(parse("7=a=b"), Ok((7, "a=b".into())));
        assert_eq!(parse("0xffffffffffffffff=x"), Ok((u64::MAX, "x".into())));
        for bad in ["x", "7=", "-1=x", "18446744073709551616=x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources() {
        let parse = |text: &str| HoldFile::parse(text.into()).map(|it| it.source);

        assert_eq!(parse("1=/a"), Ok(Source::Copy("/a".into())));
        assert_eq!(parse("1=fd:7"), Ok(Source::Inherited(7)));
        assert_eq!(parse("1=pid:8:7"), Ok(Source::Process(8, 7)));
        for bad in ["1=fd:", "1=fd:-1", "1=pid:8", "1=pid:x:1", "1=pid:1:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_time("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("2min"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "-1", "1.5", "1 day"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
