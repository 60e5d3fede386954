// SPDX-License-Identifier: GPL-2.0

//! The service manager: who keeps sessions when luod is not there, and who performs the kexec.

use crate::{
    peer,
    policy::Kexec, //
};
use std::{
    env,
    process::Command, //
};

/// Set by [`crate::supervisor`] for the luod that it runs.
pub const SUPERVISED: &str = "LUOD_SUPERVISED";

/// The first systemd of which PID 1 carries descriptor stores over a kexec.
const CARRIES_SINCE: u32 = 261;

/// Who keeps sessions when luod is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// systemd, over restarts of luod and over a kexec that it performs.
    SystemdKexec,
    /// systemd, over restarts of luod.
    Systemd,
    /// luod's own supervisor, over restarts of luod.
    Supervisor,
    /// Nobody.
    None,
}

impl Store {
    /// Finds it out.
    pub fn detect() -> Self {
        // The manager says how many descriptors it takes.
        let takes = env::var("FDSTORE").is_ok_and(|max| max.parse().is_ok_and(|max: u32| max > 0));

        if !takes || env::var_os("NOTIFY_SOCKET").is_none() {
            Self::None
        } else if env::var_os(SUPERVISED).is_some() {
            Self::Supervisor
        } else if carries_over_kexec() {
            Self::SystemdKexec
        } else {
            Self::Systemd
        }
    }

    /// The name in the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::SystemdKexec => "systemd-kexec",
            Self::Systemd => "systemd",
            Self::Supervisor => "supervisor",
            Self::None => "none",
        }
    }
}

/// How a kexec is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By the service manager: services are stopped and file systems unmounted before.
    Systemctl,
    /// By luod, at once.
    Direct,
}

impl Method {
    /// What the policy says, with that store.
    ///
    /// # Errors
    ///
    /// If that would lose the sessions.
    pub fn choose(policy: Kexec, store: Store) -> Result<Self, String> {
        match (policy, store) {
            (Kexec::Auto | Kexec::Systemctl, Store::SystemdKexec) => Ok(Self::Systemctl),
            (Kexec::Auto | Kexec::Direct, _) => Ok(Self::Direct),
            (Kexec::Systemctl, _) => Err(format!(
                "the policy says kexec = \"systemctl\", but PID 1 does not carry luod's sessions over \
                 a kexec (systemd {CARRIES_SINCE} and FileDescriptorStorePreserve=yes do)"
            )),
        }
    }

    /// The name in the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Systemctl => "systemctl",
            Self::Direct => "direct",
        }
    }
}

/// Whether PID 1 hands over the store of this very service.
fn carries_over_kexec() -> bool {
    let Some(version) = show(&["--property=Version"]) else {
        return false;
    };
    if major(&version).is_none_or(|major| major < CARRIES_SINCE) {
        return false;
    }
    let Some(unit) = peer::own_service() else {
        return false;
    };

    show(&["--property=FileDescriptorStorePreserve", &unit])
        .is_some_and(|preserve| preserve == "yes")
}

fn show(arguments: &[&str]) -> Option<String> {
    let shown = Command::new("systemctl")
        .args(["show", "--value"])
        .args(arguments)
        .output()
        .ok()?;

    shown
        .status
        .success()
        .then(|| String::from_utf8_lossy(&shown.stdout).trim().to_owned())
}

/// The number that a version such as `262.1-1` or `257` begins with.
fn major(version: &str) -> Option<u32> {
    let end = version
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(version.len());

    version[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major("262.1-1"), Some(262));
        assert_eq!(major("257"), Some(257));
        assert_eq!(major("261~rc1"), Some(261));
        assert_eq!(major("v261"), None);
        assert_eq!(major(""), None);
    }

    #[test]
    fn methods() {
        let choose = |policy, store| Method::choose(policy, store).ok();

        assert_eq!(
            choose(Kexec::Auto, Store::SystemdKexec),
            Some(Method::Systemctl)
        );
        assert_eq!(choose(Kexec::Auto, Store::Systemd), Some(Method::Direct));
        assert_eq!(
            choose(Kexec::Direct, Store::SystemdKexec),
            Some(Method::Direct)
        );
        assert_eq!(choose(Kexec::Systemctl, Store::Systemd), None);
        assert_eq!(choose(Kexec::Systemctl, Store::Supervisor), None);
    }
}
