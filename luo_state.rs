// SPDX-License-Identifier: GPL-2.0

//! Where the machine stands: how much is on its way, and in which state that puts it.
//!
//! Below sessions, which count themselves here, and below what tells user space
//! ([`luo_sysfs`]). Reading takes no lock, so it never waits for a kexec.

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
    sysfs::Directory, //
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
    callbacks::may_print,
    luo_subsystem::{
        Phase,
        Subsystems, //
    },
    luo_sysfs, //
};

/// The state as user space sees it.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is on its way.
    Normal,
    /// Something is preserved, or prepared, for the next kernel.
    Prepared,
    /// The previous kernel left something, and not all of it is finished.
    Updated,
}

impl State {
    /// What subsystems, and how many sessions there are on either side, make. What is incoming has to
    /// be finished first.
    fn of(phase: Phase, incoming: usize, outgoing: usize) -> Self {
        match phase {
            Phase::Updated => Self::Updated,
            _ if incoming > 0 => Self::Updated,
            Phase::Prepared => Self::Prepared,
            _ if outgoing > 0 => Self::Prepared,
            Phase::Normal => Self::Normal,
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
pub(crate) struct Tally {
    sessions: Atomic<usize>,
    files: Atomic<usize>,
}

impl Tally {
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

    /// Another session. Returns whether it is the first.
    pub(crate) fn add_session(&self) -> bool {
        self.sessions.fetch_add(1, Relaxed) == 0
    }

    /// A session less. Returns whether it was the last.
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

/// How long the phases of the live update took by which this kernel came, in microseconds.
pub(crate) struct Timings {
    /// Those in the old kernel, if it said so.
    old: Option<PhaseTimes>,
    validate: u64,
    rebuild: Atomic<u64>,
    /// Of all requests for a file together, in nanoseconds.
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

/// Where the machine stands.
pub(crate) struct Standing {
    pub(crate) outgoing: Tally,
    pub(crate) incoming: Tally,
    /// The form of what the previous kernel left, if it left anything.
    pub(crate) came_as: Option<RootFormat>,
    /// When the previous kernel began to go.
    left_at: Option<Stamp>,
    pub(crate) timings: Timings,
    /// How many microseconds later the device was opened first; [`None`] if that cannot be told.
    blackout: SetOnce<Option<u64>>,
    directory: SetOnce<Directory>,
    /// How many outgoing sessions with files have gone because their holder was killed.
    lost: Atomic<usize>,
    /// Whether anybody has read the state. Until then nobody waits for it to change.
    watched: Atomic<bool>,
}

impl Standing {
    pub(crate) fn new(
        came_as: Option<RootFormat>,
        left_at: Option<Stamp>,
        timings: Timings,
    ) -> Self {
        Self {
            outgoing: Tally::new(),
            incoming: Tally::new(),
            came_as,
            left_at,
            timings,
            blackout: SetOnce::new(),
            directory: SetOnce::new(),
            lost: Atomic::new(0),
            watched: Atomic::new(false),
        }
    }

    /// The state that all of it makes, for somebody who may wait until it is another one.
    pub(crate) fn watch(&self, subsystems: &Subsystems) -> State {
        self.watched.store(true, Relaxed);
        // Pairs with that in `changed`: either the change is seen here, or there that somebody
        // watches.
        barrier::smp_mb(barrier::Full);

        State::of(
            subsystems.phase(),
            self.incoming.sessions(),
            self.outgoing.sessions(),
        )
    }

    /// Begins to tell user space.
    pub(crate) fn tell_in(&self, directory: Directory) {
        self.directory.populate(directory);
    }

    /// The state may have changed.
    pub(crate) fn changed(&self) {
        // What has changed is seen before this is asked. Pairs with that in `watch`.
        barrier::smp_mb(barrier::Full);
        if !self.watched.load(Relaxed) {
            return;
        }

        if let Some(directory) = self.directory.as_ref() {
            directory.notify::<luo_sysfs::State>();
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
                self.left_at
                    .and_then(|left_at| now()?.micros_since(left_at)),
            );
        }
    }

    /// How long the blackout took, in microseconds, if that can be told.
    pub(crate) fn blackout(&self) -> Option<u64> {
        *self.blackout.as_ref()?
    }
}

/// What the clocks say, if they are fit for it.
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
#[kernel::prelude::kunit_tests(luo_state)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_counts_more_than_what_goes_out() {
        for (phase, incoming, outgoing, state) in [
            (Phase::Normal, 0, 0, State::Normal),
            (Phase::Normal, 0, 1, State::Prepared),
            (Phase::Normal, 1, 0, State::Updated),
            (Phase::Normal, 1, 1, State::Updated),
            (Phase::Prepared, 0, 0, State::Prepared),
            (Phase::Prepared, 1, 0, State::Updated),
            (Phase::Updated, 0, 0, State::Updated),
            (Phase::Updated, 0, 1, State::Updated),
        ] {
            assert!(State::of(phase, incoming, outgoing) == state);
        }
    }

    #[test]
    fn only_the_first_and_the_last_session_make_a_difference() {
        let tally = Tally::new();

        assert!(tally.add_session());
        assert!(!tally.add_session());
        tally.add_files(3);
        assert!(!tally.remove_session());
        tally.remove_files(2);
        assert!(tally.remove_session());
        assert!(tally.sessions() == 0 && tally.files() == 1);
        assert!(tally.add_session());
    }
}
