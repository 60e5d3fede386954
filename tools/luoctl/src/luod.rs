// SPDX-License-Identifier: GPL-2.0

//! A client of the agent luod, as `Documentation/userspace-api/liveupdate-agent.rst` describes its
//! protocol.

use crate::exit::{
    Exit,
    Failure,
    Outcome, //
};
pub use liveupdate::agent::wire::{
    Event,
    SOCKET, //
};
use liveupdate::agent::{
    self,
    wire::{
        Connection,
        Error, //
    },
};
use serde_json::Value;
use std::{
    io,
    os::{
        fd::{
            AsFd,
            BorrowedFd, //
        },
        unix::net::UnixStream, //
    },
    path::Path, //
};

/// The longest line that is accepted: a status names all clients.
const MAX_LINE: usize = 1 << 24;

/// What to do about an agent that went away.
const LOG: &str = "look into its log: journalctl -u luod";

/// A connection with the agent.
#[derive(Debug)]
pub struct Luod(Connection);

impl Luod {
    /// Connects, if there is an agent.
    ///
    /// # Errors
    ///
    /// If there is one that does not speak the protocol, or does not let this user connect.
    pub fn connect(socket: &Path) -> Outcome<Option<Self>> {
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(err) => {
                return Err(Failure::io(
                    format_args!("connect to the agent at {}", socket.display()),
                    &err,
                ));
            }
        };
        Ok(Some(Self(Connection::new(stream, MAX_LINE)?)))
    }

    /// Connects to the agent that there has to be.
    ///
    /// # Errors
    ///
    /// [`Exit::NotRunning`] if there is none, else as [`Self::connect`].
    pub fn require(socket: &Path) -> Outcome<Self> {
        Self::connect(socket)?.ok_or_else(|| {
            Failure::new(Exit::NotRunning, "the live update agent luod does not run")
                .hint("start it: systemctl start luod.socket")
        })
    }

    /// Sends a command with descriptors, and returns its answer.
    ///
    /// # Errors
    ///
    /// The `ERROR` that the agent answered, or why there is no answer.
    pub fn ask(&mut self, command: Value, fds: &[BorrowedFd<'_>]) -> Outcome<Event> {
        Ok(self.0.ask(&command, fds)?)
    }

    /// The next event; [`None`] when the agent ends the connection.
    ///
    /// # Errors
    ///
    /// If it does not speak the protocol, or reading fails.
    pub fn next(&mut self) -> Outcome<Option<Event>> {
        match self.0.next(None) {
            Err(Error::Ended) => Ok(None),
            result => Ok(result?),
        }
    }
}

impl AsFd for Luod {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Error> for Failure {
    fn from(why: Error) -> Self {
        match why {
            Error::Ended => ended(),
            Error::Late(wait) => Self::new(
                Exit::Failure,
                format_args!("the agent did not answer in {} s", wait.as_secs()),
            ),
            Error::Io(err) => err.into(),
            Error::Garbled(_) => garbled(),
            Error::Refused { code, message } => refused(&code, &message),
        }
    }
}

impl From<agent::Error> for Failure {
    fn from(why: agent::Error) -> Self {
        match why {
            agent::Error::Gone(_) => Self::new(Exit::NotRunning, &why).hint(LOG),
            agent::Error::Refused { code, message } => refused(&code, &message),
            agent::Error::Protocol(_) => garbled(),
        }
    }
}

fn garbled() -> Failure {
    Failure::new(Exit::Failure, "the agent does not speak the protocol")
}

/// The agent's refusal as a failure.
fn refused(code: &str, message: &str) -> Failure {
    let exit = match code {
        "ENOENT" => Exit::NoSuch,
        _ => Exit::Failure,
    };
    let failure = Failure::new(exit, format_args!("luod: {message}"));

    match advice(code) {
        Some(advice) => failure.hint(advice),
        None => failure,
    }
}

/// What to do about a refusal.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "EACCES" => "the policy, /etc/luod.toml, says which users may have which names",
        "EPERM" => "be root, or one of the operators that /etc/luod.toml names",
        "ENOENT" => "`luoctl list` shows what there is",
        "EEXIST" => "`luoctl list` shows its holder",
        "EBUSY" => "`luoctl monitor` shows what goes on; try again after that",
        "EDQUOT" => "finish sessions that are not needed, or raise the limit in /etc/luod.toml",
        "EAGAIN" => "try again; `fuser /dev/liveupdate` names the process that has the device open",
        "EIO" => "the kernel log says more",
        _ => return None,
    })
}

/// The failure of an agent that went away.
pub fn ended() -> Failure {
    Failure::new(Exit::Failure, "the agent ended the connection").hint(LOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::{
        io::{
            BufRead,
            BufReader,
            Write, //
        },
        os::unix::net::UnixListener,
        thread, //
    };

    /// An agent that answers each line with what is given for it.
    fn agent(answers: &'static [&'static str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();

        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            // Answers first: after the last one no line is waited for.
            for (answer, line) in answers.iter().zip(lines) {
                let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
                assert!(command["cmd"].is_string());
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (directory, path)
    }

    const HELLO: &str = "{\"event\":\"HELLO\",\"version\":1}\n";

    #[test]
    fn nobody_there() {
        let path = Path::new("/nonexistent/socket");

        assert!(Luod::connect(path).unwrap().is_none());
        assert_eq!(Luod::require(path).unwrap_err().exit, Exit::NotRunning);
    }

    #[test]
    fn events_between_answers() {
        let (_directory, path) = agent(&[
            HELLO,
            "{\"event\":\"PROGRESS\",\"ready\":1}\n{\"event\":\"STATUS\",\"state\":\"idle\"}\n{\"event\"",
        ]);
        let mut luod = Luod::connect(&path).unwrap().unwrap();
        let answer = luod.ask(json!({"cmd": "MONITOR"}), &[]).unwrap();

        assert_eq!(answer.text("state"), "idle");
        assert_eq!(luod.next().unwrap().unwrap().kind(), "PROGRESS");
        assert!(luod.next().unwrap().is_none());
    }

    #[test]
    fn each_refusal_has_its_own_advice() {
        let codes = [
            "EACCES", "EPERM", "ENOENT", "EEXIST", "EBUSY", "EDQUOT", "EAGAIN", "EIO",
        ];
        let advice: std::collections::BTreeSet<_> = codes.map(advice).into();

        assert!(!advice.contains(&None));
        assert_eq!(advice.len(), codes.len());
    }

    #[test]
    fn refusals() {
        let (_directory, path) = agent(&[
            HELLO,
            "{\"event\":\"ERROR\",\"cmd\":\"DISCARD\",\"code\":\"ENOENT\",\"message\":\"no such session\"}\n",
            "{\"event\":\"ERROR\",\"cmd\":\"CANCEL\",\"code\":\"EPERM\",\"message\":\"no\"}\n",
            "nonsense\n",
        ]);
        let mut luod = Luod::connect(&path).unwrap().unwrap();
        let mut ask = |cmd: &str| luod.ask(json!({"cmd": cmd}), &[]).unwrap_err();

        assert_eq!(ask("DISCARD").exit, Exit::NoSuch);
        let failure = ask("CANCEL");
        assert_eq!(
            (failure.exit, failure.message.as_str()),
            (Exit::Failure, "luod: no")
        );
        assert!(failure.hint.unwrap().contains("operators"));
        assert!(ask("STATUS").message.contains("protocol"));
    }
}
