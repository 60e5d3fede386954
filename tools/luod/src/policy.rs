// SPDX-License-Identifier: GPL-2.0

//! The policy: who may do what, and what the limits are (`/etc/luod.toml`).

use crate::protocol::{
    Class,
    Id, //
};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fmt, //
};
use wildmatch::WildMatch;

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The process.
    pub pid: i32,
    /// The systemd service, if it belongs to one.
    pub unit: Option<String>,
}

/// How the kexec is performed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kexec {
    /// By `systemctl kexec` if PID 1 carries sessions over it, else directly.
    #[default]
    Auto,
    /// By `systemctl kexec`.
    Systemctl,
    /// By luod itself.
    Direct,
}

/// The policy.
#[derive(Clone, Debug)]
pub struct Policy {
    operators: BTreeSet<u32>,
    /// How to perform the kexec.
    pub kexec: Kexec,
    /// What becomes of sessions that nobody claims.
    pub unclaimed: Unclaimed,
    ready_timeout: u64,
    rules: Vec<Rule>,
}

/// What becomes of sessions that nobody claims.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Unclaimed {
    /// Seconds until the first warning.
    pub warn_after: u64,
    /// Seconds until they are finished; never, if not said.
    pub discard_after: Option<u64>,
}

impl Default for Unclaimed {
    fn default() -> Self {
        Self {
            warn_after: 300,
            discard_after: None,
        }
    }
}

/// What a client may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The class that the policy says.
    pub class: Option<Class>,
    /// The most seconds from the start to READY.
    pub timeout: u64,
    /// Subscriptions and sessions of one user.
    pub sessions: Option<usize>,
    /// Files in a session.
    pub files: Option<u64>,
    /// Bytes in a session.
    pub bytes: Option<u64>,
}

#[derive(Clone, Debug)]
struct Rule {
    id: WildMatch,
    uid: Option<u32>,
    unit: Option<WildMatch>,
    limits: Limits,
}

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    operators: Option<Vec<User>>,
    update: UpdateSection,
    unclaimed: Unclaimed,
    client: Vec<ClientSection>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct UpdateSection {
    kexec: Kexec,
    ready_timeout: u64,
}

impl Default for UpdateSection {
    fn default() -> Self {
        Self {
            kexec: Kexec::Auto,
            ready_timeout: 60,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ClientSection {
    id: String,
    user: Option<User>,
    unit: Option<String>,
    class: Option<Class>,
    ready_timeout: Option<u64>,
    sessions: Option<usize>,
    files: Option<u64>,
    bytes: Option<Size>,
}

/// A user's name or number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum User {
    Number(u32),
    Name(String),
}

/// Bytes, as a number or as a text such as `64G`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "SizeText")]
struct Size(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(size: SizeText) -> Result<Self, String> {
        let text = match size {
            SizeText::Number(bytes) => return Ok(Self(bytes)),
            SizeText::Text(text) => text,
        };
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            Some(b'G') => (&text[..text.len() - 1], 30),
            Some(b'T') => (&text[..text.len() - 1], 40),
            _ => (text.as_str(), 0),
        };

        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no size (a number, then K, M, G or T)"))
    }
}

/// Why a policy cannot be used.
#[derive(Debug)]
pub struct PolicyError(String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Reads a policy. `user` finds the number of a user by name.
    ///
    /// # Errors
    ///
    /// What cannot be understood, and where.
    pub fn parse(text: &str, user: impl Fn(&str) -> Option<u32>) -> Result<Self, PolicyError> {
        let file: File =
            toml::from_str(text).map_err(|err| PolicyError(err.to_string().replace('\n', " ")))?;
        let uid = |one: &User| match one {
            User::Number(uid) => Ok(*uid),
            User::Name(name) => {
                user(name).ok_or_else(|| PolicyError(format!("there is no user `{name}`")))
            }
        };
        let operators = match &file.operators {
            Some(users) => users.iter().map(&uid).collect::<Result<_, _>>()?,
            None => BTreeSet::from([0]),
        };
        let rules = file
            .client
            .iter()
            .map(|client| {
                Ok(Rule {
                    id: WildMatch::new(&client.id),
                    uid: client.user.as_ref().map(uid).transpose()?,
                    unit: client.unit.as_deref().map(WildMatch::new),
                    limits: Limits {
                        class: client.class,
                        timeout: client.ready_timeout.unwrap_or(file.update.ready_timeout),
                        sessions: client.sessions,
                        files: client.files,
                        bytes: client.bytes.map(|size| size.0),
                    },
                })
            })
            .collect::<Result<_, PolicyError>>()?;

        Ok(Self {
            operators,
            kexec: file.update.kexec,
            unclaimed: file.unclaimed,
            ready_timeout: file.update.ready_timeout,
            rules,
        })
    }

    /// What a peer may do under an id; nothing, if no rule fits.
    ///
    /// Without any rule root may do everything.
    pub fn limits(&self, peer: &Peer, id: &Id) -> Option<Limits> {
        if self.rules.is_empty() {
            return (peer.uid == 0).then_some(Limits {
                timeout: self.ready_timeout,
                ..Limits::default()
            });
        }
        self.rules
            .iter()
            .find(|rule| {
                rule.id.matches(id.as_str())
                    && rule.uid.is_none_or(|uid| uid == peer.uid)
                    && rule.unit.as_ref().is_none_or(|unit| {
                        peer.unit.as_deref().is_some_and(|name| unit.matches(name))
                    })
            })
            .map(|rule| rule.limits)
    }

    /// Whether a peer may use the control commands.
    pub fn is_operator(&self, peer: &Peer) -> bool {
        self.operators.contains(&peer.uid)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            operators: BTreeSet::from([0]),
            kexec: Kexec::Auto,
            unclaimed: Unclaimed::default(),
            ready_timeout: UpdateSection::default().ready_timeout,
            rules: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, PolicyError> {
        Policy::parse(text, |name| (name == "vm").then_some(64055))
    }

    fn peer(uid: u32, unit: Option<&str>) -> Peer {
        Peer {
            uid,
            pid: 1,
            unit: unit.map(str::to_owned),
        }
    }

    fn id(text: &str) -> Id {
        Id::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn without_a_rule() {
        for policy in [Policy::default(), parse("").unwrap()] {
            assert_eq!(policy.limits(&peer(0, None), &id("a")).unwrap().timeout, 60);
            assert!(policy.limits(&peer(1, None), &id("a")).is_none());
            assert!(policy.is_operator(&peer(0, None)));
            assert!(!policy.is_operator(&peer(1, None)));
            assert!(policy.unclaimed.discard_after.is_none());
        }
    }

    #[test]
    fn the_first_rule_that_fits() {
        let policy = parse(
            r#"
            operators = ["vm", 7]
            [update]
            kexec = "direct"
            ready-timeout = 30
            [unclaimed]
            discard-after = 86400
            [[client]]
            id = "vm-*"
            user = "vm"
            unit = "qemu@*.service"
            class = "vm"
            bytes = "64G"
            [[client]]
            id = "vm-*"
            user = "vm"
            ready-timeout = 5
            files = 3
            "#,
        )
        .unwrap();

        let unit = Some("qemu@1.service");
        let first = policy.limits(&peer(64055, unit), &id("vm-1")).unwrap();
        assert_eq!(first.bytes, Some(64 << 30));
        assert_eq!((first.class, first.timeout), (Some(Class::Vm), 30));
        let second = policy.limits(&peer(64055, None), &id("vm-1")).unwrap();
        assert_eq!((second.files, second.timeout), (Some(3), 5));
        assert!(policy.limits(&peer(64055, unit), &id("db")).is_none());
        assert!(policy.limits(&peer(0, unit), &id("vm-1")).is_none());
        assert!(policy.is_operator(&peer(7, None)) && !policy.is_operator(&peer(0, None)));
        assert_eq!(policy.kexec, Kexec::Direct);
        assert_eq!(policy.unclaimed.discard_after, Some(86400));
        assert_eq!(policy.unclaimed.warn_after, 300);
    }

    #[test]
    fn what_is_refused() {
        for text in [
            "x = 1",
            "[update]\nkexec = \"cold\"",
            "[unclaimed]\nwarn = 1",
            "[[client]]\nuser = \"vm\"",
            "[[client]]\nid = \"*\"\nuser = \"nobody-here\"",
            "[[client]]\nid = \"*\"\nbytes = \"64X\"",
            "[[client]]\nid = \"*\"\nbytes = \"99999999999999T\"",
        ] {
            let why = parse(text).unwrap_err().to_string();
            assert!(!why.is_empty() && !why.contains('\n'), "{text}: {why}");
        }
    }
}
