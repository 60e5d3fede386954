// SPDX-License-Identifier: MIT OR Apache-2.0

//! The connection with the agent: lines of JSON, and the descriptors that come with them.
//!
//! Below [`Client`](super::Client), which knows what a client of updates says and hears. A tool that
//! says other things, as luoctl does, uses this directly.

use crate::handoff::{
    self,
    ReceivedFd, //
};
use nix::{
    errno::Errno,
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
};
use serde_json::{
    json,
    Value, //
};
use std::{
    collections::VecDeque,
    os::{
        fd::{
            AsFd,
            BorrowedFd, //
        },
        unix::net::UnixStream, //
    },
    time::{
        Duration,
        Instant, //
    },
};

/// Where the agent listens.
pub const SOCKET: &str = "/run/luod/liveupdate.sock";

/// The version of the protocol that is spoken here.
const VERSION: u64 = 1;

/// How long an answer may take. Events may take as long as they like.
const ANSWER: Duration = Duration::from_secs(60);

/// Why there is no event.
#[derive(Debug)]
pub enum Error {
    /// The agent ended the connection.
    Ended,
    /// It did not answer in time.
    Late(Duration),
    /// The socket failed.
    Io(crate::Error),
    /// The answer is not of the protocol.
    Garbled(&'static str),
    /// The agent refused: its code (`ENOENT`, ...), and its message.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
}

impl From<crate::Error> for Error {
    fn from(err: crate::Error) -> Self {
        Self::Io(err)
    }
}

/// The result of talking to the agent.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// An event of the agent, and the descriptor that came with it.
#[derive(Debug)]
pub struct Event {
    /// The whole object.
    pub value: Value,
    /// The descriptor.
    pub fd: Option<ReceivedFd>,
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
pub struct Connection {
    stream: UnixStream,
    /// The longest line that is accepted.
    max_line: usize,
    /// Bytes that are not a whole line yet.
    buffer: Vec<u8>,
    /// Descriptors whose line has not been read, and the byte that they came with.
    fds: VecDeque<(usize, ReceivedFd)>,
    /// Events that came while an answer was waited for.
    pending: VecDeque<Event>,
}

impl Connection {
    /// Greets the agent. Lines of more than `max_line` bytes are not accepted.
    ///
    /// # Errors
    ///
    /// Any, also if the agent speaks another version.
    pub fn new(stream: UnixStream, max_line: usize) -> Result<Self> {
        let mut connection = Self {
            stream,
            max_line,
            buffer: Vec::new(),
            fds: VecDeque::new(),
            pending: VecDeque::new(),
        };
        connection.ask(&json!({"cmd": "HELLO", "version": VERSION}), &[])?;
        Ok(connection)
    }

    /// Sends a command with descriptors, and returns its answer.
    ///
    /// # Errors
    ///
    /// Any.
    pub fn ask(&mut self, command: &Value, fds: &[BorrowedFd<'_>]) -> Result<Event> {
        let name = command["cmd"].as_str().unwrap_or_default();
        let answer = match name {
            "HELLO" => "HELLO",
            "SUBSCRIBE" => "SUBSCRIBED",
            "STATUS" | "MONITOR" => "STATUS",
            "PREPARE" | "CLAIM" => "SESSION",
            _ => "OK",
        };
        let end = Instant::now() + ANSWER;

        self.send(command, fds)?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.receive(Some(left))?.ok_or(Error::Late(ANSWER))?;
            if event.kind() == answer {
                return Ok(event);
            }
            if event.kind() == "ERROR" && event.text("cmd") == name {
                return Err(Error::Refused {
                    code: event.text("code").to_owned(),
                    message: event.text("message").to_owned(),
                });
            }
            self.pending.push_back(event);
        }
    }

    fn send(&self, command: &Value, mut fds: &[BorrowedFd<'_>]) -> Result {
        let line = format!("{command}\n");
        let mut rest = line.as_bytes();

        while !rest.is_empty() {
            let sent = handoff::send(&self.stream, rest, fds)?;
            rest = &rest[sent..];
            // They went with the first byte.
            fds = &[];
        }
        Ok(())
    }

    /// The next event that is no answer; [`None`] if there is none after `wait`, which without a
    /// duration has no end.
    ///
    /// # Errors
    ///
    /// Any but [`Error::Late`] and [`Error::Refused`].
    pub fn next(&mut self, wait: Option<Duration>) -> Result<Option<Event>> {
        match self.pending.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.receive(wait),
        }
    }

    /// Waits until there is input, or the connection has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn wait(&self) -> Result {
        self.has_input(None).map(drop)
    }

    fn receive(&mut self, wait: Option<Duration>) -> Result<Option<Event>> {
        let end = wait.map(|wait| Instant::now() + wait);

        loop {
            if let Some(length) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=length).collect();
                return self.event(&line).map(Some);
            }
            if self.buffer.len() > self.max_line {
                return Err(Error::Garbled("a line is too long"));
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if !self.has_input(left)? {
                return Ok(None);
            }

            let mut bytes = [0; 16384];
            let received = handoff::receive(&self.stream, &mut bytes)?;
            if received.len == 0 {
                return Err(Error::Ended);
            }
            let at = self.buffer.len();
            self.fds.extend(received.fds.into_iter().map(|fd| (at, fd)));
            self.buffer.extend(&bytes[..received.len]);
        }
    }

    /// Waits for input; false if there is none after `wait`.
    fn has_input(&self, wait: Option<Duration>) -> Result<bool> {
        let end = wait.map(|wait| Instant::now() + wait);

        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(
                &mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)],
                timeout,
            ) {
                Err(Errno::EINTR) => {}
                Err(err) => return Err(crate::Error::new("wait for the agent", err).into()),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }

    /// Makes an event of a line that was taken out of the buffer.
    fn event(&mut self, line: &[u8]) -> Result<Event> {
        // What came with a byte of this line is part of it.
        let mut fd = None;
        while self.fds.front().is_some_and(|(at, _)| *at < line.len()) {
            let received = self.fds.pop_front().map(|(_, received)| received);
            fd = fd.or(received);
        }
        for (at, _) in &mut self.fds {
            *at -= line.len();
        }

        let value: Value =
            serde_json::from_slice(line).map_err(|_| Error::Garbled("a line is not JSON"))?;
        if !value["event"].is_string() {
            return Err(Error::Garbled("a line is no event"));
        }
        Ok(Event { value, fd })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
