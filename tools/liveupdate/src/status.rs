// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state of the machine, from `/sys/kernel/liveupdate/`, without opening the device.

use crate::{
    error::{
        Context,
        Errno,
        Error,
        Result, //
    },
    DEVICE_PATH, //
};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read,
        Seek, //
    },
    os::fd::{
        AsFd,
        BorrowedFd, //
    },
    path::{
        Path,
        PathBuf, //
    },
    time::Duration, //
};

/// Where the kernel shows it.
pub const SYSFS_PATH: &str = "/sys/kernel/liveupdate";

/// What the kernel says about live updates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(tag = "support", rename_all = "lowercase")
)]
pub enum Support {
    /// It has no LUO, or one that is off and does not say so (C).
    Absent,
    /// It has a LUO which is off.
    Off,
    /// It has the device but nothing in sysfs: the implementation in C.
    DeviceOnly,
    /// Live update is on.
    On(Status),
}

impl Support {
    /// Finds out, without opening the device.
    ///
    /// # Errors
    ///
    /// What reading the files returns; `EPROTO` if one has something else than is documented.
    pub fn read() -> Result<Self> {
        Self::read_at(Path::new(SYSFS_PATH), Path::new(DEVICE_PATH))
    }

    /// The same, with directory and device under other paths.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_at(directory: &Path, device: &Path) -> Result<Self> {
        let enabled = match attribute(directory, "enabled") {
            Err(err) if err.errno() == Errno::ENOENT => {
                return Ok(match device.exists() {
                    true => Self::DeviceOnly,
                    false => Self::Absent,
                });
            }
            enabled => enabled?,
        };

        match enabled.trim_end() {
            "0" => Ok(Self::Off),
            "1" => Status::read_at(directory).map(Self::On),
            _ => Err(unexpected(directory, "enabled")),
        }
    }
}

/// The state of live updates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Status {
    /// What is under way.
    pub state: State,
    /// How many live updates the machine has seen since it was booted cold.
    pub number: u64,
    /// The format in which this kernel hands over (`fdt`, `luo-v5`, ...).
    pub outgoing_format: Option<String>,
    /// The format in which the previous kernel did.
    pub incoming_format: Option<String>,
    /// What is to go to the next kernel.
    pub outgoing: Counts,
    /// Incoming and not finished.
    pub incoming: Counts,
    /// The time from the reboot in the previous kernel to the first open of the device in this one.
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "as_micros", rename = "blackout_us")
    )]
    pub blackout: Option<Duration>,
}

#[cfg(feature = "serde")]
fn as_micros<S: serde::Serializer>(
    time: &Option<Duration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    // u128 is not for every format, and 2^64 microseconds are half a million years.
    let micros = time.and_then(|time| u64::try_from(time.as_micros()).ok());
    serde::Serialize::serialize(&micros, to)
}

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum State {
    /// Nothing.
    Normal,
    /// There are sessions for the next kernel, or subsystems are prepared.
    Prepared,
    /// A live update led to this boot, and not all incoming sessions are finished.
    Updated,
    /// Something that this library does not know.
    #[cfg_attr(feature = "serde", serde(untagged))]
    Other(String),
}

impl State {
    /// Reads a state by its name.
    pub fn from_name(name: &str) -> Self {
        match name {
            "normal" => Self::Normal,
            "prepared" => Self::Prepared,
            "updated" => Self::Updated,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Normal => "normal",
            Self::Prepared => "prepared",
            Self::Updated => "updated",
            Self::Other(name) => name,
        })
    }
}

/// How much there is on one side of the reboot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counts {
    /// Sessions.
    pub sessions: u64,
    /// Files in them.
    pub files: u64,
    /// Subsystems of the kernel.
    pub subsystems: u64,
}

impl Counts {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Status {
    /// Reads it from sysfs.
    ///
    /// The files are read one after the other, so an update that begins meanwhile may show in some
    /// of them only.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: live update is off, or the kernel's LUO is not the one in Rust;
    /// - `EPROTO`: a file has something else than is documented.
    pub fn read() -> Result<Self> {
        Self::read_at(Path::new(SYSFS_PATH))
    }

    /// The same, from another directory.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_at(directory: &Path) -> Result<Self> {
        let text = |name| attribute(directory, name);
        let number = |name| {
            let text = text(name)?;
            match text.trim_end() {
                "" => Ok(None),
                number => number
                    .parse::<u64>()
                    .map(Some)
                    .map_err(|_| unexpected(directory, name)),
            }
        };
        let counts = |name| -> Result<Counts> {
            let text = text(name)?;
            let pairs = pairs(&text);
            let count = |key| -> Result<u64> {
                let count = pairs.get(key).and_then(|value| value.parse().ok());
                count.ok_or_else(|| unexpected(directory, name))
            };
            Ok(Counts {
                sessions: count("sessions")?,
                files: count("files")?,
                subsystems: count("subsystems")?,
            })
        };
        let formats = text("abi")?;
        let formats = pairs(&formats);
        let format = |key| {
            let format = formats.get(key).filter(|format| **format != "none");
            format.map(|format| (*format).to_owned())
        };

        Ok(Self {
            state: State::from_name(text("state")?.trim_end()),
            number: number("number")?.ok_or_else(|| unexpected(directory, "number"))?,
            outgoing_format: format("outgoing"),
            incoming_format: format("incoming"),
            outgoing: counts("outgoing")?,
            incoming: counts("incoming")?,
            blackout: number("blackout_us")?.map(Duration::from_micros),
        })
    }
}

/// Waits for changes of the state.
///
/// The descriptor is to be polled for `POLLPRI`; after that, and before the first time,
/// [`Self::state`] tells the state and begins anew.
#[derive(Debug)]
pub struct StateWatch(File);

impl StateWatch {
    /// Opens the file to be polled.
    ///
    /// # Errors
    ///
    /// `ENOENT`: as [`Status::read`].
    pub fn new() -> Result<Self> {
        let path = Path::new(SYSFS_PATH).join("state");
        let file = File::open(&path).context(|| reading(&path))?;

        Ok(Self(file))
    }

    /// Reads the state.
    ///
    /// # Errors
    ///
    /// What reading returns.
    pub fn state(&mut self) -> Result<State> {
        let what = || reading(&Path::new(SYSFS_PATH).join("state"));
        let mut text = String::new();

        self.0.rewind().context(what)?;
        self.0.read_to_string(&mut text).context(what)?;
        Ok(State::from_name(text.trim_end()))
    }
}

impl AsFd for StateWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn reading(path: &Path) -> String {
    format!("read {}", path.display())
}

fn attribute(directory: &Path, name: &str) -> Result<String> {
    let path: PathBuf = directory.join(name);

    fs::read_to_string(&path)
        // What is no text is not what is documented.
        .map_err(|err| match err.kind() {
            io::ErrorKind::InvalidData => Errno::EPROTO.into(),
            _ => err,
        })
        .context(|| reading(&path))
}

fn unexpected(directory: &Path, name: &str) -> Error {
    Error::new(reading(&directory.join(name)), Errno::EPROTO)
}

/// Lines of a key and a value.
fn pairs(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path =
                std::env::temp_dir().join(format!("liveupdate-{}-{name}", std::process::id()));

            fs::create_dir(&path).unwrap();
            for (name, text) in files {
                fs::write(path.join(name), text).unwrap();
            }
            Self(path)
        }

        fn support(&self) -> Result<Support> {
            Support::read_at(&self.0, Path::new("/nonexistent"))
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const COUNTS: &str = "sessions 1\nfiles 2\nsubsystems 0\nlater 9\n";

    fn good() -> Vec<(&'static str, &'static str)> {
        vec![
            ("enabled", "1\n"),
            ("state", "updated\n"),
            ("number", "3\n"),
            ("abi", "outgoing fdt\nincoming none\n"),
            ("outgoing", "sessions 0\nfiles 0\nsubsystems 0\n"),
            ("incoming", COUNTS),
            ("blackout_us", ""),
        ]
    }

    #[test]
    fn all_of_it() {
        let directory = Directory::new("good", &good());
        let Support::On(status) = directory.support().unwrap() else {
            panic!("not on");
        };

        assert_eq!(status.state, State::Updated);
        assert_eq!(status.number, 3);
        assert_eq!(status.outgoing_format.as_deref(), Some("fdt"));
        assert_eq!(status.incoming_format, None);
        assert!(status.outgoing.is_empty());
        assert_eq!((status.incoming.sessions, status.incoming.files), (1, 2));
        assert_eq!(status.blackout, None);
    }

    #[test]
    fn off_and_absent() {
        let off = Directory::new("off", &[("enabled", "0\n")]);
        assert_eq!(off.support(), Ok(Support::Off));
        let absent = Directory::new("absent", &[]);
        assert_eq!(absent.support(), Ok(Support::Absent));
        let c = Support::read_at(&absent.0, Path::new("/dev/null"));
        assert_eq!(c, Ok(Support::DeviceOnly));
    }

    #[test]
    fn nonsense() {
        for (number, broken) in [
            ("enabled", "2\n"),
            ("number", "many\n"),
            ("incoming", "sessions 1\n"),
            ("outgoing", "sessions -1\nfiles 0\nsubsystems 0\n"),
        ]
        .iter()
        .enumerate()
        {
            let mut files = good();
            files.retain(|(name, _)| name != &broken.0);
            files.push(*broken);
            let directory = Directory::new(&format!("nonsense-{number}"), &files);
            assert_eq!(directory.support().unwrap_err().errno(), Errno::EPROTO);
        }
    }
}
