// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client of the live update agent.
//!
//! The agent (luod) owns the device and says when an update happens. A [`Client`] claims what the
//! previous kernel handed over, subscribes, and then gets [`Notice`]s of what the agent wants. It
//! speaks version 1 of the protocol in `Documentation/userspace-api/liveupdate-agent.rst`.
//!
//! A client has one thread and its own event loop: it polls [`Client::as_fd`] for input, and asks
//! [`Client::notice`] when there is some.

pub mod wire;

pub use wire::SOCKET;

use crate::{
    handoff::ReceivedFd,
    AnySession,
    Incoming,
    Outgoing,
    Session, //
};
use serde_json::{
    json,
    Value, //
};
use std::{
    fmt,
    os::{
        fd::{
            AsFd,
            BorrowedFd, //
        },
        unix::net::UnixStream, //
    },
    path::{
        Path,
        PathBuf, //
    },
    time::Duration,
};
use wire::{
    Connection,
    Event, //
};

/// The longest line that is accepted. What a client hears is short.
const MAX_LINE: usize = 1 << 20;

/// Why something could not be done with the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no agent, or it went away. Connecting again may help.
    Gone(String),
    /// The agent refused: its code (`ENOENT`, ...), and its message.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// The answer is not of the protocol.
    Protocol(&'static str),
}

impl Error {
    /// Whether the agent refused with this code.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(why) => write!(f, "the live update agent cannot be reached: {why}"),
            Self::Refused { message, .. } => write!(f, "luod: {message}"),
            Self::Protocol(what) => {
                write!(
                    f,
                    "the live update agent does not speak the protocol: {what}"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<wire::Error> for Error {
    fn from(why: wire::Error) -> Self {
        match why {
            wire::Error::Ended => Self::Gone("it ended the connection".to_owned()),
            wire::Error::Late(wait) => Self::Gone(format!("no answer after {} s", wait.as_secs())),
            wire::Error::Io(err) => Self::Gone(err.to_string()),
            wire::Error::Garbled(what) => Self::Protocol(what),
            wire::Error::Refused { code, message } => Self::Refused { code, message },
        }
    }
}

/// The result of talking to the agent.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// What the agent wants.
#[derive(Debug)]
pub enum Notice {
    /// An update begins: preserve everything in this session, then say [`Client::ready`] or
    /// [`Client::failed`].
    Start(Session<Outgoing>),
    /// The update does not happen: drop the session and go on.
    Abort(String),
    /// The kexec follows. Only an abort takes it back.
    Committed,
}

/// A client of the agent, connected or not.
#[derive(Debug)]
pub struct Client {
    id: String,
    class: String,
    socket: PathBuf,
    connection: Option<Connection>,
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(id: &str, class: &str, socket: &Path) -> Self {
        Self {
            id: id.to_owned(),
            class: class.to_owned(),
            socket: socket.to_owned(),
            connection: None,
        }
    }

    /// Whether there is a connection, so that [`Self::as_fd`] has something to poll.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    fn ask(&mut self, command: &Value) -> Result<Event> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(connect(&self.socket)?),
        };
        let result = connection.ask(command, &[]).map_err(Error::from);
        if matches!(result, Err(Error::Gone(_) | Error::Protocol(_))) {
            self.connection = None;
        }
        result
    }

    /// Claims the session that the previous kernel handed over; [`None`] if there is none.
    ///
    /// # Errors
    ///
    /// The agent's refusal: another user or service preserved it, or another connection has it.
    pub fn claim(&mut self) -> Result<Option<Session<Incoming>>> {
        match self.ask(&json!({"cmd": "CLAIM", "id": self.id})) {
            Err(why) if why.is("ENOENT") => Ok(None),
            Err(why) => Err(why),
            Ok(event) => match session_of(event) {
                Some(AnySession::Incoming(session)) => Ok(Some(session)),
                _ => Err(Error::Protocol("a claim was answered without a session")),
            },
        }
    }

    /// Tells that the claimed session is finished.
    ///
    /// # Errors
    ///
    /// The agent's refusal: it is not.
    pub fn finished(&mut self) -> Result {
        self.ask(&json!({"cmd": "FINISHED"})).map(drop)
    }

    /// Takes part in updates from now on. Returns whether one is committed already.
    ///
    /// # Errors
    ///
    /// The agent's refusal: another client has the name, or an incoming session of that name is
    /// not finished (`EEXIST`), or the policy forbids it.
    pub fn subscribe(&mut self) -> Result<bool> {
        let command = json!({"cmd": "SUBSCRIBE", "id": self.id, "class": self.class});
        let event = self.ask(&command)?;
        Ok(event.text("update") == "committed")
    }

    /// Asks for the session before an update begins, in order to preserve early what takes long.
    ///
    /// # Errors
    ///
    /// The agent's refusal. Without it everything is preserved when the update begins.
    pub fn prepare(&mut self) -> Result<Session<Outgoing>> {
        match session_of(self.ask(&json!({"cmd": "PREPARE"}))?) {
            Some(AnySession::Outgoing(session)) => Ok(session),
            _ => Err(Error::Protocol("PREPARE was answered without a session")),
        }
    }

    /// Says that everything is preserved.
    ///
    /// # Errors
    ///
    /// The agent's refusal. `EPROTO` means that an abort is on its way.
    pub fn ready(&mut self) -> Result {
        self.ask(&json!({"cmd": "READY"})).map(drop)
    }

    /// Says that the client cannot preserve, and why. The update is aborted.
    ///
    /// # Errors
    ///
    /// As [`Self::ready`].
    pub fn failed(&mut self, why: &str) -> Result {
        self.ask(&json!({"cmd": "FAILED", "message": why}))
            .map(drop)
    }

    /// The next notice, if there is a whole one. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the connection ended. Unless the update was committed, it is aborted.
    pub fn notice(&mut self) -> Result<Option<Notice>> {
        let result = match &mut self.connection {
            Some(connection) => next_notice(connection),
            None => Ok(None),
        };
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    /// The next notice; waits for it.
    ///
    /// # Errors
    ///
    /// As [`Self::notice`], also if there is no connection.
    pub fn wait(&mut self) -> Result<Notice> {
        loop {
            if let Some(notice) = self.notice()? {
                return Ok(notice);
            }
            let Some(connection) = &self.connection else {
                return Err(wire::Error::Ended.into());
            };
            connection.wait()?;
        }
    }
}

fn connect(socket: &Path) -> Result<Connection> {
    let stream = UnixStream::connect(socket)
        .map_err(|err| Error::Gone(format!("{}: {err}", socket.display())))?;

    Ok(Connection::new(stream, MAX_LINE)?)
}

fn session_of(event: Event) -> Option<AnySession> {
    event.fd.and_then(ReceivedFd::into_session)
}

fn next_notice(connection: &mut Connection) -> Result<Option<Notice>> {
    while let Some(event) = connection.next(Some(Duration::ZERO))? {
        return Ok(Some(match event.kind() {
            "START_PRESERVATION" | "PRESERVATION_REQUEST" => match session_of(event) {
                Some(AnySession::Outgoing(session)) => Notice::Start(session),
                _ => return Err(Error::Protocol("an update began without a session")),
            },
            "ABORT" => Notice::Abort(event.text("reason").to_owned()),
            "COMMITTED" => Notice::Committed,
            // A client ignores what it does not know.
            _ => continue,
        }));
    }
    Ok(None)
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

    /// An agent that answers each line with what is given for it, then ends the connection.
    fn agent(answers: &'static [&'static str]) -> (tempfile::TempDir, PathBuf) {
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
        let mut client = Client::new("a", "vm", Path::new("/nonexistent/socket"));
        assert!(matches!(client.claim(), Err(Error::Gone(_))));
        assert!(client.as_fd().is_none());
        assert!(client.notice().unwrap().is_none());
    }

    #[test]
    fn nothing_to_claim() {
        let (_directory, path) = agent(&[
            HELLO,
            "{\"event\":\"ERROR\",\"cmd\":\"CLAIM\",\"code\":\"ENOENT\",\"message\":\"none\"}\n",
            "{\"event\":\"ERROR\",\"cmd\":\"CLAIM\",\"code\":\"EACCES\",\"message\":\"not yours\"}\n",
        ]);
        let mut client = Client::new("a", "vm", &path);
        assert!(client.claim().unwrap().is_none());
        let why = client.claim().unwrap_err();
        assert!(why.is("EACCES"));
        assert_eq!(why.to_string(), "luod: not yours");
    }

    #[test]
    fn notices_between_answers() {
        let (_directory, path) = agent(&[
            HELLO,
            "{\"event\":\"ABORT\",\"reason\":\"x\"}\n{\"event\":\"NEWS\"}\n{\"event\":\"SUBSCRIBED\",\"update\":\"committed\"}\n{\"event\":\"COM",
            "MITTED\"}\n{\"event\":\"OK\",\"cmd\":\"READY\"}\n",
        ]);
        let mut client = Client::new("a", "vm", &path);
        assert!(client.subscribe().unwrap());
        assert!(matches!(client.notice().unwrap(), Some(Notice::Abort(why)) if why == "x"));
        assert!(client.notice().unwrap().is_none());
        client.ready().unwrap();
        assert!(matches!(client.notice().unwrap(), Some(Notice::Committed)));
        assert!(matches!(client.wait(), Err(Error::Gone(_))));
        assert!(client.as_fd().is_none());
        assert!(matches!(client.wait(), Err(Error::Gone(_))));
    }

    #[test]
    fn an_update_without_a_session_is_no_update() {
        let (_directory, path) = agent(&[
            HELLO,
            "{\"event\":\"SUBSCRIBED\"}\n{\"event\":\"START_PRESERVATION\"}\n",
        ]);
        let mut client = Client::new("a", "vm", &path);
        assert!(!client.subscribe().unwrap());
        assert!(matches!(client.wait(), Err(Error::Protocol(_))));
    }
}
