// SPDX-License-Identifier: GPL-2.0

//! The status: how many sessions and files there are, and which state that makes.
//!
//! Sessions count themselves here. Reading takes no lock, so it never waits for a kexec.

use core::fmt;

use kernel::{
    anon_inode::Holder,
    kho::Clocks,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        barrier,
        SetOnce, //
    },
    sysfs::Directory,
    time::{
        Instant,
        Monotonic, //
    }, //
};

use super::subsystems::{
    Subsystems,
    UpdatePhase, //
};
use crate::{
    abi::{
        stamp::{
            PhaseTimes,
            Stamp, //
        },
        RootFormat,
        SessionName, //
    },
    ffi::kernel::may_print, //
};

/// The name of the attribute in sysfs that shows the state.
pub(crate) const STATE_ATTRIBUTE: &CStr = c"state";

/// The state as user space sees it.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum UpdateState {
    /// Nothing is preserved, and no update is to be finished.
    Normal,
    /// Something is preserved or prepared for the next kernel.
    Prepared,
    /// An update led to this boot, and not everything is finished.
    Updated,
}

impl UpdateState {
    /// The state that follows from the phase of the subsystems and from the numbers of sessions.
    /// What is incoming counts more, since it has to be finished first.
    fn of(phase: UpdatePhase, incoming: usize, outgoing: usize) -> Self {
        match phase {
            UpdatePhase::Updated => Self::Updated,
            _ if incoming > 0 => Self::Updated,
            UpdatePhase::Prepared => Self::Prepared,
            _ if outgoing > 0 => Self::Prepared,
            UpdatePhase::Normal => Self::Normal,
        }
    }

    /// What user space calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Prepared => "prepared",
            Self::Updated => "updated",
        }
    }
}

/// How many sessions and files there are on one side of the kexec.
pub(crate) struct Counters {
    sessions: Atomic<usize>,
    files: Atomic<usize>,
}

impl Counters {
    const fn new() -> Self {
        Self {
            sessions: Atomic::new(0),
            files: Atomic::new(0),
        }
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.load(Relaxed)
    }

    pub(crate) fn files(&self) -> usize {
        self.files.load(Relaxed)
    }

    /// Counts one more session. Returns whether it is the first.
    pub(crate) fn add_session(&self) -> bool {
        self.sessions.fetch_add(1, Relaxed) == 0
    }

    /// Counts one session less. Returns whether it was the last.
    pub(crate) fn remove_session(&self) -> bool {
        self.sessions.fetch_sub(1, Relaxed) == 1
    }

    pub(crate) fn add_files(&self, files: usize) {
        self.files.fetch_add(files, Relaxed);
    }

    pub(crate) fn remove_files(&self, files: usize) {
        self.files.fetch_sub(files, Relaxed);
    }
}

/// How long the phases of the last live update took, in microseconds.
pub(crate) struct Timings {
    /// Those in the old kernel, if it said so.
    old: Option<PhaseTimes>,
    validate: u64,
    rebuild: Atomic<u64>,
    /// All requests for a file together, in nanoseconds.
    retrieve: Atomic<u64>,
    retrieved: Atomic<u64>,
}

impl Timings {
    pub(crate) fn new(old: Option<PhaseTimes>, validate: u64) -> Self {
        Self {
            old,
            validate,
            rebuild: Atomic::new(0),
            retrieve: Atomic::new(0),
            retrieved: Atomic::new(0),
        }
    }

    /// All sessions have been read.
    pub(crate) fn rebuilt(&self, micros: u64) {
        self.rebuild.store(micros, Relaxed);
    }

    /// A file was asked for.
    pub(crate) fn retrieved(&self, nanos: u64) {
        self.retrieve.fetch_add(nanos, Relaxed);
        self.retrieved.fetch_add(1, Relaxed);
    }

    /// Shows them, a line each.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(PhaseTimes { freeze, serialize }) = self.old {
            writeln!(f, "freeze {freeze} us\nserialize {serialize} us")?;
        }
        writeln!(
            f,
            "validate {} us\nrebuild {} us\nretrieve {} us, {} requests",
            self.validate,
            self.rebuild.load(Relaxed),
            self.retrieve.load(Relaxed) / 1000,
            self.retrieved.load(Relaxed),
        )
    }
}

/// The status of the machine.
pub(crate) struct Status {
    pub(crate) outgoing: Counters,
    pub(crate) incoming: Counters,
    /// The format in which the previous kernel handed over, if it did.
    pub(crate) incoming_format: Option<RootFormat>,
    /// When the kexec began, by the previous kernel.
    kexec_begin: Option<Stamp>,
    pub(crate) timings: Timings,
    /// How many microseconds later the device was first opened; [`None`] if that cannot be told.
    blackout: SetOnce<Option<u64>>,
    directory: SetOnce<Directory>,
    /// How many outgoing sessions with files were dropped because their holder was killed.
    lost: Atomic<usize>,
    /// Whether the state has been read. Until then nothing polls it.
    watched: Atomic<bool>,
}

impl Status {
    pub(crate) fn new(
        incoming_format: Option<RootFormat>,
        kexec_begin: Option<Stamp>,
        timings: Timings,
    ) -> Self {
        Self {
            outgoing: Counters::new(),
            incoming: Counters::new(),
            incoming_format,
            kexec_begin,
            timings,
            blackout: SetOnce::new(),
            directory: SetOnce::new(),
            lost: Atomic::new(0),
            watched: Atomic::new(false),
        }
    }

    /// The state, for a reader that may poll it from now on.
    pub(crate) fn watch(&self, subsystems: &Subsystems) -> UpdateState {
        self.watched.store(true, Relaxed);
        // Pairs with the barrier in `changed()`: either this sees the change, or `changed()` sees
        // that the state is watched.
        barrier::smp_mb(barrier::Full);

        UpdateState::of(
            subsystems.phase(),
            self.incoming.sessions(),
            self.outgoing.sessions(),
        )
    }

    /// The directory in sysfs whose pollers are notified.
    pub(crate) fn notify_in(&self, directory: Directory) {
        self.directory.populate(directory);
    }

    /// The state may have changed.
    pub(crate) fn changed(&self) {
        // Pairs with the barrier in `watch()`: the change is visible before `watched` is read.
        barrier::smp_mb(barrier::Full);
        if !self.watched.load(Relaxed) {
            return;
        }

        if let Some(directory) = self.directory.as_ref() {
            directory.notify(STATE_ATTRIBUTE);
        }
    }

    /// An outgoing session with `files` files goes, because its holder was killed.
    pub(crate) fn lost(&self, session: &SessionName, files: usize, holder: &Holder) {
        self.lost.fetch_add(1, Relaxed);
        if may_print() {
            pr_warn!(
                "session '{}': its holder {} was killed, its {} files are no longer preserved\n",
                session,
                holder,
                files,
            );
        }
    }

    /// How many there have been.
    pub(crate) fn lost_sessions(&self) -> usize {
        self.lost.load(Relaxed)
    }

    /// The device was opened.
    pub(crate) fn opened(&self) {
        if self.blackout.as_ref().is_none() {
            self.blackout.populate(
                self.kexec_begin
                    .and_then(|kexec_begin| now()?.micros_since(kexec_begin)),
            );
        }
    }

    /// How long the blackout took, in microseconds, if that can be told.
    pub(crate) fn blackout(&self) -> Option<u64> {
        *self.blackout.as_ref()?
    }
}

/// How many microseconds have passed, rounded up.
pub(crate) fn micros_since(begin: Instant<Monotonic>) -> u64 {
    begin.elapsed().as_micros_ceil().unsigned_abs()
}

/// Reads the clocks that go on across a kexec, if they are reliable.
pub(crate) fn now() -> Option<Stamp> {
    let Clocks {
        cycles,
        khz,
        seconds,
    } = Clocks::read()?;

    Some(Stamp {
        cycles,
        khz,
        seconds,
    })
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(luo_core_status)]
mod tests {
    use super::*;

    #[test]
    fn incoming_counts_more_than_outgoing() {
        for (phase, incoming, outgoing, state) in [
            (UpdatePhase::Normal, 0, 0, UpdateState::Normal),
            (UpdatePhase::Normal, 0, 1, UpdateState::Prepared),
            (UpdatePhase::Normal, 1, 0, UpdateState::Updated),
            (UpdatePhase::Normal, 1, 1, UpdateState::Updated),
            (UpdatePhase::Prepared, 0, 0, UpdateState::Prepared),
            (UpdatePhase::Prepared, 1, 0, UpdateState::Updated),
            (UpdatePhase::Updated, 0, 0, UpdateState::Updated),
            (UpdatePhase::Updated, 0, 1, UpdateState::Updated),
        ] {
            assert!(UpdateState::of(phase, incoming, outgoing) == state);
        }
    }

    #[test]
    fn only_the_first_and_the_last_session_make_a_difference() {
        let counters = Counters::new();

        assert!(counters.add_session());
        assert!(!counters.add_session());
        counters.add_files(3);
        assert!(!counters.remove_session());
        counters.remove_files(2);
        assert!(counters.remove_session());
        assert!(counters.sessions() == 0 && counters.files() == 1);
        assert!(counters.add_session());
    }
}
