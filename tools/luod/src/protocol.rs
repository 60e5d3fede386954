// SPDX-License-Identifier: GPL-2.0

//! The messages between luod and its clients, as
//! `Documentation/userspace-api/liveupdate-agent.rst` describes them.
//!
//! This is the shape of the messages alone. What they do is up to [`crate::core`].

use serde::{
    Deserialize,
    Serialize, //
};
use std::fmt;

/// The version of the protocol that is spoken after `HELLO`.
pub const VERSION: u32 = 1;

/// The most bytes that a command may have.
pub const MAX_COMMAND: usize = 16384;

/// The name of a client on this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// The longest one, so that the session's name has room for it.
    const MAX: usize = 48;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that the client's session has in the kernel.
    pub fn session(&self) -> String {
        format!("luod.{}", self.0)
    }
}

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'-');

        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err("an id has 1 to 48 characters out of A-Z a-z 0-9 . _ @ -")
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// When a client has its turn in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// First: what others refer to.
    Memory,
    /// Then: what runs.
    Vm,
    /// Last: what refers to others.
    Devices,
}

impl Class {
    /// All of them, in the order of an update.
    pub const ORDER: [Self; 3] = [Self::Memory, Self::Vm, Self::Devices];
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "cmd", rename_all = "UPPERCASE")]
pub enum Command {
    /// Agrees on a version.
    Hello {
        /// The highest one that the client speaks.
        version: u32,
    },
    /// Takes part in updates.
    Subscribe {
        /// Under this name.
        id: Id,
        /// When its turn is.
        #[serde(default)]
        class: Option<Class>,
        /// Seconds that it needs to get ready.
        #[serde(default)]
        timeout: Option<u64>,
    },
    /// Does not take part any more.
    Unsubscribe,
    /// Wants its session before an update.
    Prepare,
    /// Tells how far it is.
    Progress {
        /// Of `total`.
        done: u64,
        /// In a unit of the client's.
        total: u64,
    },
    /// Everything is preserved.
    Ready,
    /// It cannot preserve.
    Failed {
        /// Why.
        message: String,
    },
    /// Wants its incoming session.
    Claim {
        /// The name under which it was subscribed.
        id: Id,
        /// For operators: whosoever it is.
        #[serde(default)]
        force: bool,
    },
    /// Has finished what it claimed.
    Finished,
    /// What the state is.
    Status,
    /// Likewise, and all changes from now on.
    Monitor,
    /// Updates the machine.
    Update {
        /// Of the image that comes with the message.
        #[serde(default)]
        cmdline: Option<String>,
        /// Whether the image is followed by an initrd.
        #[serde(default)]
        initrd: bool,
        /// Only checks.
        #[serde(default, rename = "dry-run")]
        dry_run: bool,
    },
    /// Aborts the update.
    Cancel,
    /// Destroys an unclaimed session.
    Discard {
        /// Whose.
        id: Id,
    },
}

impl Command {
    /// Reads a line.
    ///
    /// # Errors
    ///
    /// Why it is not a command.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|err| err.to_string())
    }

    /// The value of `cmd`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "HELLO",
            Self::Subscribe { .. } => "SUBSCRIBE",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::Prepare => "PREPARE",
            Self::Progress { .. } => "PROGRESS",
            Self::Ready => "READY",
            Self::Failed { .. } => "FAILED",
            Self::Claim { .. } => "CLAIM",
            Self::Finished => "FINISHED",
            Self::Status => "STATUS",
            Self::Monitor => "MONITOR",
            Self::Update { .. } => "UPDATE",
            Self::Cancel => "CANCEL",
            Self::Discard { .. } => "DISCARD",
        }
    }

    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Update {
                cmdline: Some(_),
                initrd,
                ..
            } => 1 + usize::from(*initrd),
            _ => 0,
        }
    }
}

/// Why a command failed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Code {
    Einval,
    Eacces,
    Eperm,
    Enoent,
    Eexist,
    Ebusy,
    Edquot,
    Eagain,
    Eproto,
    Eio,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people, in one line.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The state of luod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No update is under way.
    Idle,
    /// The image is being checked.
    Checking,
    /// Clients are preserving.
    Preserving,
    /// The map of sessions is being written.
    Freezing,
    /// The kexec follows.
    Committed,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A dry run, to its end.
    Checked,
    /// The kexec is being performed.
    Kexec,
    /// It does not happen.
    Aborted,
    /// It led to this boot.
    Completed,
}

/// How the last update ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// [`Outcome::Aborted`] or [`Outcome::Completed`].
    pub outcome: Outcome,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Note,
    /// May be wrong.
    Warning,
    /// The update would fail.
    Error,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is, in one line.
    pub text: String,
}

/// A client in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientStatus {
    pub id: Id,
    pub class: Class,
    pub uid: u32,
    pub unit: Option<String>,
    pub pid: i32,
    pub state: &'static str,
    pub session: Option<String>,
    pub timeout: u64,
    pub done: Option<u64>,
    pub total: Option<u64>,
}

/// An incoming session, in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionStatus {
    pub id: Id,
    pub session: String,
    pub uid: u32,
    pub unit: Option<String>,
    pub time: u64,
    pub updates: u32,
    pub state: &'static str,
}

/// The whole status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    pub agent: &'static str,
    pub state: State,
    pub kexec: &'static str,
    pub store: &'static str,
    pub clients: Vec<ClientStatus>,
    pub sessions: Vec<SessionStatus>,
    pub last: Option<Last>,
}

/// What luod tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Event {
    Hello {
        version: u32,
        agent: &'static str,
    },
    Ok {
        cmd: &'static str,
    },
    Error {
        cmd: &'static str,
        code: Code,
        message: String,
    },
    Subscribed {
        id: Id,
        class: Class,
        timeout: u64,
        update: &'static str,
    },
    StartPreservation {
        id: Id,
        session: String,
        timeout: u64,
    },
    Session {
        id: Id,
        session: String,
    },
    Abort {
        reason: String,
    },
    Committed,
    Status(Status),
    Progress {
        state: State,
        class: Option<Class>,
        ready: usize,
        clients: usize,
        waiting: Vec<Id>,
    },
    Update {
        outcome: Outcome,
        reason: Option<String>,
        findings: Vec<Finding>,
    },
}

impl Event {
    /// The line for it, with the newline.
    pub fn line(&self) -> Vec<u8> {
        // It has no maps with keys that are not text, which is all that could fail.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(event: &Event) -> String {
        String::from_utf8(event.line()).unwrap()
    }

    #[test]
    fn published_commands() {
        let id = Id::try_from("vm-0".to_owned()).unwrap();
        let parse = |line: &str| Command::parse(line.as_bytes()).unwrap();

        assert_eq!(
            parse(r#"{"cmd": "SUBSCRIBE", "id": "vm-0"}"#),
            Command::Subscribe {
                id: id.clone(),
                class: None,
                timeout: None
            }
        );
        assert_eq!(parse(r#"{"cmd":"READY"}"#), Command::Ready);
        assert_eq!(
            parse(r#"{"id":"vm-0","cmd":"CLAIM","more":[1]}"#),
            Command::Claim { id, force: false }
        );
    }

    #[test]
    fn an_update_has_descriptors() {
        let count = |line: &str| Command::parse(line.as_bytes()).unwrap().descriptors();

        assert_eq!(count(r#"{"cmd":"UPDATE"}"#), 0);
        assert_eq!(count(r#"{"cmd":"UPDATE","initrd":true}"#), 0);
        assert_eq!(count(r#"{"cmd":"UPDATE","cmdline":""}"#), 1);
        assert_eq!(
            count(r#"{"cmd":"UPDATE","cmdline":"a","initrd":true,"dry-run":true}"#),
            2
        );
    }

    #[test]
    fn what_is_no_command() {
        for line in [
            "",
            "{}",
            "[]",
            r#"{"cmd":"ready"}"#,
            r#"{"cmd":"CLAIM"}"#,
            r#"{"cmd":"CLAIM","id":""}"#,
            r#"{"cmd":"CLAIM","id":"a b"}"#,
            r#"{"cmd":"CLAIM","id":"a:b"}"#,
            r#"{"cmd":"CLAIM","id":7}"#,
            r#"{"cmd":"HELLO","version":-1}"#,
            r#"{"cmd":"SUBSCRIBE","id":"a","class":"cpu"}"#,
            r#"{"cmd":"READY"}{}"#,
        ] {
            assert!(Command::parse(line.as_bytes()).is_err(), "{line}");
        }
        let long = format!(r#"{{"cmd":"CLAIM","id":"{}"}}"#, "x".repeat(49));
        assert!(Command::parse(long.as_bytes()).is_err());
    }

    #[test]
    fn events() {
        assert_eq!(text(&Event::Committed), "{\"event\":\"COMMITTED\"}\n");
        let start = Event::StartPreservation {
            id: Id::try_from("a".to_owned()).unwrap(),
            session: "luod.a".into(),
            timeout: 5,
        };
        assert_eq!(
            text(&start),
            "{\"event\":\"START_PRESERVATION\",\"id\":\"a\",\"session\":\"luod.a\",\"timeout\":5}\n"
        );
        let refused = Event::Error {
            cmd: "CLAIM",
            code: Code::Enoent,
            message: "a\nb".into(),
        };
        assert!(text(&refused).contains(r#""code":"ENOENT""#));
        assert_eq!(text(&refused).matches('\n').count(), 1);
    }

    proptest! {
        #[test]
        fn nothing_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::parse(&line);
        }

        #[test]
        fn sessions_have_names(id in "[A-Za-z0-9._@-]{1,48}") {
            let id = Id::try_from(id).unwrap();
            prop_assert!(liveupdate::SessionName::new(id.session()).is_ok());
            prop_assert!(id.session() != "luod");
        }
    }
}
