// SPDX-License-Identifier: GPL-2.0

//! What a test is, and how it says what went wrong.

use nix::errno::Errno;
use std::{
    fmt,
    io,
    os::fd::OwnedFd,
    panic::Location, //
};

/// Why a test did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What should have been otherwise, and where in the test.
    Failed(String),
    /// What the kernel lacks to run the test.
    Skipped(String),
    /// Nothing: what the parts that follow would look at has been prevented, and rightly so.
    Over,
}

/// What a test returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure at the place of the caller.
    #[track_caller]
    pub fn here(what: impl fmt::Display) -> Self {
        Self::at(Location::caller(), what)
    }

    /// A failure at `place`.
    pub fn at(place: &Location<'_>, what: impl fmt::Display) -> Self {
        let file = place.file().rsplit('/').next().unwrap_or_default();

        Self::Failed(format!("{file}:{}: {what}", place.line()))
    }

    /// Ends a test well before its last part, as the kernel has refused to go on in a way that is as
    /// good as going on.
    pub fn over() -> Self {
        Self::Over
    }

    /// Ends a test that cannot run on this kernel.
    pub fn skip(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }
}

// The `?` operator passes its own place on to these.

impl From<liveupdate::Error> for Failure {
    #[track_caller]
    fn from(err: liveupdate::Error) -> Self {
        Self::here(err)
    }
}

impl From<Errno> for Failure {
    #[track_caller]
    fn from(err: Errno) -> Self {
        Self::here(err)
    }
}

impl From<io::Error> for Failure {
    #[track_caller]
    fn from(err: io::Error) -> Self {
        Self::here(err)
    }
}

/// An error that comes down to an errno.
pub trait HasErrno {
    /// The errno.
    fn errno(&self) -> Errno;
}

impl HasErrno for Errno {
    fn errno(&self) -> Errno {
        *self
    }
}

impl HasErrno for liveupdate::Error {
    fn errno(&self) -> Errno {
        self.errno()
    }
}

impl HasErrno for io::Error {
    fn errno(&self) -> Errno {
        Errno::from_raw(self.raw_os_error().unwrap_or(0))
    }
}

/// Fails the test unless a condition holds; more arguments explain.
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        if !$condition {
            return Err($crate::harness::Failure::here(concat!(
                "not true: ",
                stringify!($condition)
            )));
        }
    };
    ($condition:expr, $($explain:tt)+) => {
        if !$condition {
            return Err($crate::harness::Failure::here(format_args!($($explain)+)));
        }
    };
}

/// Fails the test unless two values are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    return Err($crate::harness::Failure::here(format_args!(
                        "{} is {left:?}, not {right:?}",
                        stringify!($left)
                    )));
                }
            }
        }
    };
    ($left:expr, $right:expr, $($explain:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    return Err($crate::harness::Failure::here(format_args!(
                        "{}: {} is {left:?}, not {right:?}",
                        format_args!($($explain)+),
                        stringify!($left)
                    )));
                }
            }
        }
    };
}

/// Fails the test unless an operation fails with one of the given errnos.
macro_rules! ensure_errno {
    ($operation:expr, $($errno:ident)|+ $(,)?) => {
        match $operation {
            Ok(_) => {
                return Err($crate::harness::Failure::here(format_args!(
                    "{} succeeded, should be {}",
                    stringify!($operation),
                    stringify!($($errno)|+)
                )));
            }
            Err(err) => {
                let errno = $crate::harness::HasErrno::errno(&err);
                if !matches!(errno, $(nix::errno::Errno::$errno)|+) {
                    return Err($crate::harness::Failure::here(format_args!(
                        "{} is {errno:?}, should be {}",
                        stringify!($operation),
                        stringify!($($errno)|+)
                    )));
                }
            }
        }
    };
}

pub(crate) use {
    ensure,
    ensure_eq,
    ensure_errno, //
};

/// One boot of a test.
pub struct Stage {
    /// The name of the test, also good as the name of a session.
    pub name: &'static str,
    /// Which boot, from 1 on.
    pub number: usize,
    kept: Vec<OwnedFd>,
    notes: Vec<String>,
    next: Vec<String>,
}

impl Stage {
    /// A stage in which nothing has happened yet.
    pub fn new(name: &'static str, number: usize) -> Self {
        Self {
            name,
            number,
            kept: Vec::new(),
            notes: Vec::new(),
            next: Vec::new(),
        }
    }

    /// Keeps a descriptor open until the kexec.
    pub fn keep(&mut self, fd: impl Into<OwnedFd>) {
        self.kept.push(fd.into());
    }

    /// Records something worth knowing, such as a time that was measured.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds parameters to the command line of the next boot, and only of that. The test must be alone
    /// in its machine.
    pub fn next_boot(&mut self, parameters: impl Into<String>) {
        self.next.push(parameters.into());
    }

    /// What is to be added.
    pub fn for_next_boot(&self) -> &[String] {
        &self.next
    }

    /// What was recorded.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The part of a test in one boot.
pub type Part = fn(&mut Stage) -> Outcome;

/// A test: its parts, separated by kexecs, and what it needs.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name: letters, digits and dashes.
    pub name: &'static str,
    /// What to do in the first boot, the second, ...
    pub parts: &'static [Part],
    /// Memory of the virtual machine, in MiB.
    pub memory: u32,
    /// Seconds after which one part counts as hung.
    pub timeout: u64,
    /// Whether it wants a virtual machine for itself.
    pub alone: bool,
    /// Whether it needs the Rust memfd handler.
    pub rust_memfd: bool,
    /// Whether the C core is known not to pass.
    pub c_differs: bool,
    /// Whether it takes too long for every day.
    pub long: bool,
    /// Options that the kernel must be configured with, if any: `CONFIG_` and each of these.
    pub needs: Option<&'static str>,
    /// What to change on the command line of the boot that follows the first.
    pub next_parameters: &'static [(&'static str, &'static str)],
    /// How many processors the virtual machine should have.
    pub processors: u32,
    /// Parameters of the kernel in all boots, as on its command line.
    pub parameters: &'static str,
    /// Functions of the kernel, with commas between them, in which the first processor is held from
    /// outside, wherever it is in them. (A compiler may make one function a part of another.)
    pub hold: Option<&'static str>,
    /// What is special about the virtual machine, by a name that the suite knows.
    pub machine: Option<&'static str>,
}

impl Test {
    /// A test that is content with little.
    pub const fn new(name: &'static str, parts: &'static [Part]) -> Self {
        Self {
            name,
            parts,
            memory: 1024,
            timeout: 60,
            alone: false,
            rust_memfd: false,
            c_differs: false,
            long: false,
            needs: None,
            next_parameters: &[],
            processors: 2,
            parameters: "",
            hold: None,
            machine: None,
        }
    }

    /// Sets the memory it needs, in MiB.
    pub const fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// Sets how long one part may take, in seconds.
    pub const fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }

    /// Gives it a virtual machine for itself.
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Says that it tests what only the Rust memfd handler does.
    pub const fn rust_memfd(mut self) -> Self {
        self.rust_memfd = true;
        self
    }

    /// Says that it tests what the C core is known not to do.
    pub const fn c_differs(mut self) -> Self {
        self.c_differs = true;
        self
    }

    /// Says that it takes too long for every day.
    pub const fn long(mut self) -> Self {
        self.long = true;
        self.alone()
    }

    /// Says that it needs a kernel with an option that not all have, or, behind a `!`, without it; or
    /// several, with commas between.
    pub const fn needs(mut self, option: &'static str) -> Self {
        self.needs = Some(option);
        self
    }

    /// Sets parameters of the kernel from the second boot on.
    pub const fn next_parameters(
        mut self,
        parameters: &'static [(&'static str, &'static str)],
    ) -> Self {
        self.next_parameters = parameters;
        self.alone()
    }

    /// Sets how many processors there should be.
    pub const fn processors(mut self, number: u32) -> Self {
        self.processors = number;
        self.alone()
    }

    /// Sets parameters of the kernel in all boots.
    pub const fn parameters(mut self, parameters: &'static str) -> Self {
        self.parameters = parameters;
        self.alone()
    }

    /// Has the first processor held up in functions of the kernel. (Their addresses must be known: the
    /// kernel's parameters need `nokaslr`.)
    pub const fn hold(mut self, functions: &'static str) -> Self {
        self.hold = Some(functions);
        self.alone()
    }

    /// Has the virtual machine be one of a special kind: see `MACHINES` in
    /// `scripts/lib/guest_tests.py`.
    pub const fn machine(mut self, kind: &'static str) -> Self {
        self.machine = Some(kind);
        self.alone()
    }

    /// Number of kexecs.
    pub fn kexecs(&self) -> usize {
        self.parts.len() - 1
    }

    /// The boots that it may share with others.
    pub fn group(&self) -> &'static str {
        match (self.alone, self.needs, self.kexecs()) {
            (true, ..) => self.name,
            // Only with those that need the same.
            (_, Some(option), _) => option,
            (.., 0) => "@live",
            _ => "@kexec",
        }
    }
}

/// The line of `luo-selftest list`.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kexecs={} mem={} timeout={} boot={}",
            self.name,
            self.kexecs(),
            self.memory,
            // Besides the test: two boots of a slow machine for each part.
            self.parts.len() as u64 * (self.timeout + 20),
            self.group(),
        )?;
        if self.c_differs {
            f.write_str(" c=differs")?;
        }
        if self.rust_memfd {
            f.write_str(" memfd=rust")?;
        }
        if self.long {
            f.write_str(" when=long")?;
        }
        if let Some(option) = self.needs {
            write!(f, " needs={option}")?;
        }
        if self.processors != 2 {
            write!(f, " cpus={}", self.processors)?;
        }
        if let Some(functions) = self.hold {
            write!(f, " hold={functions}")?;
        }
        if let Some(kind) = self.machine {
            write!(f, " machine={kind}")?;
        }
        if !self.parameters.is_empty() {
            write!(f, " -- {}", self.parameters)?;
        }
        Ok(())
    }
}
