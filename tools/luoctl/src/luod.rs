// SPDX-License-Identifier: GPL-2.0

//! A client of the agent luod, as `Documentation/userspace-api/liveupdate-agent.rst` describes its
//! protocol.

use crate::exit::{
    Exit,
    Failure,
    Outcome, //
};
use liveupdate::handoff::{
    self,
    Arrived, //
};
use serde_json::{
    json,
    Value, //
};
use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{
            AsFd,
            BorrowedFd, //
        },
        unix::net::UnixStream, //
    },
    path::Path,
    time::Duration, //
};

/// Where the agent listens.
pub const SOCKET: &str = "/run/luod/liveupdate.sock";

/// The version of the protocol that this client speaks.
const VERSION: u64 = 1;

/// The longest line that is accepted.
const MAX_LINE: usize = 1 << 24;

/// How long an answer may take. Events may take as long as they like.
const ANSWER: Duration = Duration::from_secs(60);

/// An event of the agent, and the descriptor that came with it.
#[derive(Debug)]
pub struct Event {
    /// The whole object.
    pub value: Value,
    /// The descriptor.
    pub fd: Option<Arrived>,
}

impl Event {
    /// What kind of event it is.
    pub fn kind(&self) -> &str {
        self.text("event")
    }

    /// A member that is text; empty if it is not there.
    pub fn text(&self, member: &str) -> &str {
        self.value[member].as_str().unwrap_or_default()
    }
}

/// A connection with the agent.
#[derive(Debug)]
pub struct Luod {
    stream: UnixStream,
    /// Bytes that are not a whole line yet.
    buffer: Vec<u8>,
    /// Descriptors whose line has not been read.
    fds: VecDeque<(usize, Arrived)>,
    /// Events that came while an answer was waited for.
    pending: VecDeque<Event>,
}

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
        let mut luod = Self {
            stream,
            buffer: Vec::new(),
            fds: VecDeque::new(),
            pending: VecDeque::new(),
        };
        luod.ask(json!({"cmd": "HELLO", "version": VERSION}), &[])?;
        Ok(Some(luod))
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
        let name = command["cmd"].as_str().unwrap_or_default().to_owned();
        let answer = match name.as_str() {
            "HELLO" => "HELLO",
            "SUBSCRIBE" => "SUBSCRIBED",
            "STATUS" | "MONITOR" => "STATUS",
            "PREPARE" | "CLAIM" => "SESSION",
            _ => "OK",
        };
        self.send(&command, fds)?;
        loop {
            let event = self.read(Some(ANSWER))?.ok_or_else(ended)?;
            if event.kind() == answer {
                return Ok(event);
            }
            if event.kind() == "ERROR" && event.text("cmd") == name {
                return Err(refused(&event));
            }
            self.pending.push_back(event);
        }
    }

    fn send(&mut self, command: &Value, fds: &[BorrowedFd<'_>]) -> Outcome {
        let line = format!("{command}\n");
        let mut rest = line.as_bytes();
        let mut fds = fds;

        while !rest.is_empty() {
            let sent = handoff::send(&self.stream, rest, fds)?;
            rest = &rest[sent..];
            // They went with the first byte.
            fds = &[];
        }
        Ok(())
    }

    /// The next event; [`None`] when the agent ends the connection.
    ///
    /// # Errors
    ///
    /// If it does not speak the protocol, or reading fails.
    pub fn next(&mut self) -> Outcome<Option<Event>> {
        match self.pending.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.read(None),
        }
    }

    /// Reads an event from the socket.
    fn read(&mut self, timeout: Option<Duration>) -> Outcome<Option<Event>> {
        self.stream
            .set_read_timeout(timeout)
            .map_err(|err| Failure::io("use the agent's socket", &err))?;

        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return self.event(&line).map(Some);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(garbled());
            }
            let mut bytes = [0; 16384];
            let received = handoff::receive(&self.stream, &mut bytes)?;
            let at = self.buffer.len();
            self.fds.extend(received.fds.into_iter().map(|fd| (at, fd)));
            if received.len == 0 {
                return Ok(None);
            }
            self.buffer.extend(&bytes[..received.len]);
        }
    }

    /// Makes an event of a line that was taken out of the buffer.
    fn event(&mut self, line: &[u8]) -> Outcome<Event> {
        // What came with a byte of this line is part of it.
        let mut fd = None;
        while let Some((at, _)) = self.fds.front() {
            if *at >= line.len() {
                break;
            }
            let (_, arrived) = self.fds.pop_front().ok_or_else(garbled)?;
            fd.get_or_insert(arrived);
        }
        for (at, _) in &mut self.fds {
            *at -= line.len();
        }

        let value: Value = serde_json::from_slice(line).map_err(|_| garbled())?;
        if !value["event"].is_string() {
            return Err(garbled());
        }
        Ok(Event { value, fd })
    }
}

impl AsFd for Luod {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The agent's refusal as a failure.
pub fn refused(event: &Event) -> Failure {
    let code = event.text("code");
    let exit = match code {
        "ENOENT" => Exit::NoSuch,
        _ => Exit::Failure,
    };
    let failure = Failure::new(exit, format_args!("luod: {}", event.text("message")));

    match advice(code) {
        Some(advice) => failure.hint(advice),
        None => failure,
    }
}

/// What to do about a refusal.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "EACCES" => "who may have which names is up to the policy, /etc/luod.toml",
        "EPERM" => "be root, or one of the operators that /etc/luod.toml names",
        "ENOENT" => "`luoctl list` shows what there is",
        "EEXIST" => "`luoctl list` shows who has it",
        "EBUSY" => "`luoctl monitor` shows what goes on; try again after that",
        "EDQUOT" => "finish sessions that are not needed, or raise the limit in /etc/luod.toml",
        "EAGAIN" => "try again; `fuser /dev/liveupdate` names who has the device open",
        "EIO" => "the kernel log says more",
        _ => return None,
    })
}

fn garbled() -> Failure {
    Failure::new(Exit::Failure, "the agent does not speak the protocol")
}

/// The failure of an agent that went away.
pub fn ended() -> Failure {
    Failure::new(Exit::Failure, "the agent ended the connection")
        .hint("look into its log: journalctl -u luod")
}

#[cfg(test)]
mod tests {
    use super::*;
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
