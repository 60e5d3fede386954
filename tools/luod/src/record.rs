// SPDX-License-Identifier: GPL-2.0

//! What luod writes down: for the next kernel, for its own next start, and into each session.
//!
//! | record | where | for |
//! |---|---|---|
//! | [`Map`] | session `luod`, token 0, a sealed memfd | luod in the next kernel |
//! | [`Memory`] | `/run/luod/state.json` | luod after a restart in this kernel |
//! | [`Entry`] | each client's session, token [`MARK`], a sealed memfd | finding out whose a session is, and whether it is finished |

use crate::protocol::{
    Id,
    Last, //
};
use serde::{
    Deserialize,
    Serialize, //
};

/// The name of luod's own session.
pub const OWN_SESSION: &str = "luod";

/// The token of luod's file in each client's session.
pub const MARK: u64 = 0x6c75_6f64_0000_0000;

/// The token of the map in luod's own session.
pub const MAP: u64 = 0;

/// The version of all records.
const VERSION: u32 = 1;

/// Whose a session is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The client's name.
    pub id: Id,
    /// The session's name in the kernel.
    pub session: String,
    /// The user that subscribed.
    pub uid: u32,
    /// The service that subscribed, if it was one.
    pub unit: Option<String>,
    /// When its content was complete, in seconds since 1970; in a mark, when it was made.
    pub time: u64,
    /// How many kexecs the session has seen without having been finished.
    pub updates: u32,
}

/// What is handed over to luod in the next kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    version: u32,
    /// All sessions that are handed over for clients.
    pub sessions: Vec<Entry>,
}

impl Map {
    /// A map of these sessions.
    pub fn new(sessions: Vec<Entry>) -> Self {
        Self {
            version: VERSION,
            sessions,
        }
    }
}

/// What a restarted luod has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    version: u32,
    /// The boot in which it was written.
    pub boot: String,
    /// Incoming sessions that are not finished.
    pub sessions: Vec<Entry>,
    /// Those of them that the kernel did not have any more.
    pub lost: Vec<Id>,
    /// Sessions for the next kernel.
    pub outgoing: Vec<Entry>,
    /// Whether an update is under way.
    pub updating: bool,
    /// Whether the kexec follows.
    pub committed: bool,
    /// Whether luod has loaded the next kernel, or is about to.
    pub image: bool,
    /// How the last update ended.
    pub last: Option<Last>,
}

impl Memory {
    /// What there is to know in a boot, as long as it is empty.
    pub fn new(boot: String) -> Self {
        Self {
            version: VERSION,
            boot,
            sessions: Vec::new(),
            lost: Vec::new(),
            outgoing: Vec::new(),
            updating: false,
            committed: false,
            image: false,
            last: None,
        }
    }
}

/// A record that is read back.
pub trait Record: Sized + Serialize + for<'a> Deserialize<'a> {
    /// What it is, for messages.
    const WHAT: &'static str;

    /// Its version.
    fn version(&self) -> u32;

    /// The bytes of it.
    fn to_bytes(&self) -> Vec<u8> {
        // Its keys are text, and there is nothing else that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// Why it cannot be understood.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Self =
            serde_json::from_slice(bytes).map_err(|err| format!("{}: {err}", Self::WHAT))?;

        match record.version() {
            VERSION => Ok(record),
            other => Err(format!("{} has version {other}", Self::WHAT)),
        }
    }
}

impl Record for Map {
    const WHAT: &'static str = "the map of sessions";

    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for Memory {
    const WHAT: &'static str = "the state file";

    fn version(&self) -> u32 {
        self.version
    }
}

/// The content of the mark in a client's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    version: u32,
    /// Whose the session is.
    #[serde(flatten)]
    pub entry: Entry,
}

impl Mark {
    /// A mark.
    pub fn new(entry: Entry) -> Self {
        Self {
            version: VERSION,
            entry,
        }
    }
}

impl Record for Mark {
    const WHAT: &'static str = "the mark in the session";

    fn version(&self) -> u32 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn entry(id: &str) -> Entry {
        Entry {
            id: Id::try_from(id.to_owned()).unwrap(),
            session: format!("luod.{id}"),
            uid: 7,
            unit: Some("a@b.service".into()),
            time: 1,
            updates: 2,
        }
    }

    #[test]
    fn back_again() {
        let map = Map::new(vec![entry("a"), entry("b")]);
        assert_eq!(Map::parse(&map.to_bytes()), Ok(map));
        let mark = Mark::new(entry("a"));
        assert_eq!(Mark::parse(&mark.to_bytes()), Ok(mark));
        let mut memory = Memory::new("x".into());
        memory.outgoing.push(entry("c"));
        memory.committed = true;
        assert_eq!(Memory::parse(&memory.to_bytes()), Ok(memory));
    }

    #[test]
    fn as_documented() {
        let text = String::from_utf8(Map::new(vec![entry("a")]).to_bytes()).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"sessions":[{"id":"a","session":"luod.a","uid":7,"unit":"a@b.service","time":1,"updates":2}]}"#
        );
    }

    #[test]
    fn other_versions_are_refused() {
        let err = Map::parse(br#"{"version":2,"sessions":[]}"#).unwrap_err();
        assert!(err.contains("version 2"), "{err}");
        assert!(Map::parse(br#"{"sessions":[]}"#).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Map::parse(&bytes);
            let _ = Mark::parse(&bytes);
            let _ = Memory::parse(&bytes);
        }
    }
}
