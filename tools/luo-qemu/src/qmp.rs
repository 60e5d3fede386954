// SPDX-License-Identifier: GPL-2.0

//! The connection to QEMU's monitor (QMP).
//!
//! Not by the crate `qapi`: its events are those of one QEMU, an event that is newer ends the connection, and its
//! reads cannot time out or be polled beside other descriptors. What is needed here are six commands.

use crate::Outcome;
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
    io::{
        ErrorKind,
        Read,
        Write, //
    },
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

/// The longest line that is accepted.
const MAX_LINE: usize = 1 << 24;

/// A connection to the monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Greets the QEMU at the other end, which may still be starting.
    pub fn new(stream: UnixStream, timeout: Duration) -> Outcome<Self> {
        stream.set_nonblocking(true)?;
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            events: VecDeque::new(),
        };
        let end = Instant::now() + timeout;
        while qmp.line(end)?["QMP"].is_null() {}
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its result.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Outcome<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        // Short, and QEMU reads: it fits into the socket's buffer.
        self.stream
            .write_all(line.as_bytes())
            .map_err(|err| format!("QEMU's monitor is gone: {err}"))?;

        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut answer = self.line(end)?;
            if !answer["event"].is_null() {
                self.events.push_back(answer);
            } else if let Some(why) = answer["error"]["desc"].as_str() {
                return Err(format!("QEMU refuses {command}: {why}").into());
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Waits for an event that `wanted` makes something of.
    pub fn wait<T>(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Outcome<T> {
        let end = Instant::now() + timeout;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.line(end)?,
            };
            if let Some(found) = wanted(&event) {
                return Ok(found);
            }
        }
    }

    /// Reads what there is without waiting, and drops the events.
    pub fn drain(&mut self) -> Outcome {
        self.fill()?;
        while self.take()?.is_some() {}
        self.events.clear();
        Ok(())
    }

    /// The next line.
    fn line(&mut self, end: Instant) -> Outcome<Value> {
        loop {
            if let Some(line) = self.take()? {
                return Ok(line);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("QEMU's monitor does not answer".into());
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(
                &mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)],
                timeout,
            ) {
                Ok(_) | Err(Errno::EINTR) => self.fill()?,
                Err(err) => return Err(err.into()),
            }
        }
    }

    fn take(&mut self) -> Outcome<Option<Value>> {
        let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        let value =
            serde_json::from_slice(&line).map_err(|err| format!("QEMU's monitor: {err}"))?;
        Ok(Some(value))
    }

    fn fill(&mut self) -> Outcome {
        let mut bytes = [0; 16384];
        let before = self.buffer.len();
        loop {
            match self.stream.read(&mut bytes) {
                // What came before the end counts first.
                Ok(0) if self.buffer.len() > before => return Ok(()),
                Ok(0) => return Err("QEMU's monitor is gone".into()),
                Ok(len) => self.buffer.extend(&bytes[..len]),
                Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => return Err(format!("QEMU's monitor is gone: {err}").into()),
            }
            if self.buffer.len() > MAX_LINE {
                return Err("QEMU's monitor sends a line without an end".into());
            }
        }
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{
            BufRead,
            BufReader, //
        },
        thread,
    };

    const SOON: Duration = Duration::from_secs(10);

    /// A monitor that greets, and answers each command with the next text.
    fn monitor(answers: &'static [&'static str]) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            theirs.write_all(b"{\"QMP\":{}}\n").unwrap();
            for (answer, _) in ["{\"return\":{}}\n"].iter().chain(answers).zip(lines) {
                theirs.write_all(answer.as_bytes()).unwrap();
            }
        });
        ours
    }

    #[test]
    fn events_of_the_future() {
        let mut qmp = Qmp::new(
            monitor(&["{\"event\":\"NEWER\",\"x\":1}\n{\"return\":{\"running\":true}}\n"]),
            SOON,
        )
        .unwrap();
        let status = qmp.execute("query-status", &json!({})).unwrap();
        assert_eq!(status["running"], true);
        let seen = qmp.wait(SOON, |event| event["x"].as_u64()).unwrap();
        assert_eq!(seen, 1);
    }

    #[test]
    fn refusals_and_the_end() {
        let mut qmp = Qmp::new(
            monitor(&["{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n"]),
            SOON,
        )
        .unwrap();
        let why = qmp.execute("migrate", &json!({})).unwrap_err();
        assert_eq!(why.to_string(), "QEMU refuses migrate: no");
        assert!(qmp.wait(SOON, |_| Some(())).is_err());
    }

    #[test]
    fn a_monitor_that_says_nothing() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let why = Qmp::new(ours, Duration::from_millis(10)).unwrap_err();
        assert!(why.to_string().contains("does not answer"));
    }
}
