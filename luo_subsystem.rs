// SPDX-License-Identifier: GPL-2.0

//! Subsystems: those who carry state that belongs to no file, and are told of events for that.
//!
//! Above the callbacks of drivers, beside sessions, of which it knows nothing. A live update is
//! prepared when user space says so, or else at the kexec; then each is told in the order of its
//! priority, and what it returns is handed over by the root. In the next kernel it gets that back
//! when it registers, whenever that is.
//!
//! ```text
//!            prepare                  kexec
//!   Normal ───────────> Prepared ─────────────> Updated ───────> Normal
//!          <───────────                                  finish
//!            cancel
//! ```
//!
//! One lock for all of it: a writer tells of an event, or registers; readers keep that from
//! happening. It is taken before all others of LUO.

use core::fmt;

use kernel::{
    new_rw_semaphore,
    prelude::*,
    rw_semaphore::{
        RwSemaphore,
        WriteGuard, //
    },
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use crate::{
    abi::subsystem::{
        self,
        Subsystem,
        Subsystems as Records, //
    },
    callbacks::{
        may_print,
        Participant, //
    }, //
};

/// Which events subsystems have been told of.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// None that something follows from.
    Normal,
    /// They are prepared.
    Prepared,
    /// The previous kernel left something, and they are still to be told that it may go.
    Updated,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Normal, Self::Prepared, Self::Updated];
}

/// Everybody who takes part.
#[pin_data]
pub(crate) struct Subsystems {
    #[pin]
    table: RwSemaphore<Table>,
    /// A [`Phase`]; changes only while `table` is held for writing.
    phase: Atomic<u32>,
    /// How many came in that have not been finished; likewise.
    incoming: Atomic<usize>,
    /// How many are prepared; likewise.
    outgoing: Atomic<usize>,
}

struct Table {
    /// In the order of their priority.
    entries: KVec<Entry>,
    /// What came in and has not been taken.
    came: Records,
}

struct Entry {
    who: Participant,
    /// What it returned, if it is prepared.
    saved: Option<u64>,
    /// Whether it was prepared just now.
    fresh: bool,
}

impl Entry {
    fn prepare(&mut self) -> Result {
        let data = self.who.prepare().inspect_err(|e| {
            if may_print() {
                pr_warn!("subsystem {}: prepare failed: {:?}\n", self.who, e);
            }
        })?;

        self.saved = Some(data);
        self.fresh = true;
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(data) = self.saved.take() {
            self.who.cancel(data);
        }
    }
}

impl Table {
    /// Prepares all that are not.
    ///
    /// # Errors
    ///
    /// What one of them returns; those prepared here are cancelled then, in reverse.
    fn prepare(&mut self) -> Result {
        for entry in &mut self.entries {
            entry.fresh = false;
        }
        let result = self
            .entries
            .iter_mut()
            .filter(|entry| entry.saved.is_none())
            .try_for_each(Entry::prepare);
        if result.is_err() {
            self.cancel(|entry| entry.fresh);
        }
        result
    }

    /// Cancels some, the last one first.
    fn cancel(&mut self, which: impl Fn(&Entry) -> bool) {
        for entry in self.entries.iter_mut().rev() {
            if which(entry) {
                entry.cancel();
            }
        }
    }

    /// Tells all that the kexec is near.
    ///
    /// # Errors
    ///
    /// What one of them returns.
    fn reboot(&mut self) -> Result {
        for entry in &mut self.entries {
            if let Some(data) = &mut entry.saved {
                entry.who.reboot(data).inspect_err(|e| {
                    pr_err!("subsystem {}: reboot failed: {:?}\n", entry.who, e)
                })?;
            }
        }
        Ok(())
    }

    /// What they hand over.
    fn records(&self) -> Result<KVec<Subsystem>> {
        let mut records = KVec::new();

        for entry in &self.entries {
            if let (Some(name), Some(data)) = (entry.who.name(), entry.saved) {
                records.push(Subsystem { name: *name, data }, GFP_KERNEL)?;
            }
        }
        Ok(records)
    }

    fn prepared(&self) -> usize {
        self.entries.iter().filter(|e| e.saved.is_some()).count()
    }
}

impl Subsystems {
    /// `came` is what the previous kernel left; [`None`] if there was none.
    pub(crate) fn new(came: Option<Records>) -> impl PinInit<Self> {
        let phase = match came {
            Some(_) => Phase::Updated,
            None => Phase::Normal,
        };
        let came = came.unwrap_or(Records::NONE);
        let incoming = came.iter().count();

        pin_init!(Self {
            table <- new_rw_semaphore!(
                Table {
                    entries: KVec::new(),
                    came,
                },
                "luo::Subsystems"
            ),
            phase: Atomic::new(phase as u32),
            incoming: Atomic::new(incoming),
            outgoing: Atomic::new(0),
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        let phase = self.phase.load(Relaxed);
        let found = Phase::ALL.iter().find(|known| **known as u32 == phase);

        found.copied().unwrap_or(Phase::Normal)
    }

    fn set(&self, table: &Table, phase: Phase) {
        self.outgoing.store(table.prepared(), Relaxed);
        self.phase.store(phase as u32, Relaxed);
    }

    /// How many came in that have not been finished.
    pub(crate) fn incoming(&self) -> usize {
        self.incoming.load(Relaxed)
    }

    /// How many are prepared.
    pub(crate) fn outgoing(&self) -> usize {
        self.outgoing.load(Relaxed)
    }

    /// Keeps events from being told.
    pub(crate) fn lock(&self) -> &RwSemaphore<impl Sized> {
        &self.table
    }

    /// Shows all of them, a line each.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.read();

        writeln!(f, "phase {:?}", self.phase())?;
        for entry in &table.entries {
            let state = match entry.saved {
                Some(_) => "prepared",
                None => "idle",
            };
            match entry.who.name() {
                Some(name) => write!(f, "subsystem '{name}'")?,
                None => write!(f, "notifier")?,
            }
            writeln!(f, " priority {} {state}", entry.who.priority())?;
        }
        for record in table.came.iter() {
            writeln!(f, "state of '{}' waiting", record.name)?;
        }
        Ok(())
    }

    /// Takes one in, and gives it what came in for it.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if it is there, or another one of that name.
    /// - [`EINVAL`] if it may not be called so.
    /// - [`ENOSPC`] if there are as many as can be handed over.
    /// - [`ENOMEM`].
    pub(crate) fn register(&self, who: Participant) -> Result {
        let mut table = self.table.write();
        let table = &mut *table;

        if table.entries.iter().any(|entry| entry.who.is_like(&who)) {
            return Err(EEXIST);
        }
        if let Some(name) = who.name() {
            if !subsystem::may_be_called(name) {
                return Err(EINVAL);
            }
            let named = table.entries.iter().filter(|e| e.who.name().is_some());
            if named.count() >= subsystem::MAX_SUBSYSTEMS {
                return Err(ENOSPC);
            }
        }
        table.entries.reserve(1, GFP_KERNEL)?;

        if let Some(record) = who.name().and_then(|name| table.came.take(name)) {
            match who.restore(record.data) {
                Ok(()) if self.phase() != Phase::Updated => who.finish(),
                Ok(()) => {}
                Err(e) => pr_warn!("subsystem {}: restore failed: {:?}\n", who, e),
            }
        }
        let later = |entry: &Entry| entry.who.priority() > who.priority();
        let at = table.entries.iter().position(later);
        let entry = Entry {
            who,
            saved: None,
            fresh: false,
        };
        let at = at.unwrap_or(table.entries.len());
        table
            .entries
            .insert_within_capacity(at, entry)
            .map_err(|_| ENOMEM)
    }

    /// Takes one out. A subsystem that is prepared is cancelled; a notifier hears nothing more.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if it is not there.
    pub(crate) fn unregister(&self, is: impl Fn(&Participant) -> bool) -> Result {
        let mut table = self.table.write();
        let table = &mut *table;
        let at = table.entries.iter().position(|entry| is(&entry.who));

        let mut entry = table
            .entries
            .remove(at.ok_or(ENOENT)?)
            .map_err(|_| ENOENT)?;
        if entry.who.name().is_some() {
            entry.cancel();
        }
        self.set(table, self.phase());
        Ok(())
    }

    /// Prepares everybody.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] in the wrong phase, [`EINTR`], and what one of them returns.
    pub(crate) fn prepare(&self) -> Result {
        let mut table = self.table.write_killable()?;

        self.expect(Phase::Normal, "prepare")?;
        table.prepare()?;
        self.set(&table, Phase::Prepared);
        pr_info!("prepared, {} subsystems\n", table.prepared());
        Ok(())
    }

    /// Takes [`Subsystems::prepare`] back.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] in the wrong phase, [`EINTR`].
    pub(crate) fn cancel(&self) -> Result {
        let mut table = self.table.write_killable()?;

        self.expect(Phase::Prepared, "cancel")?;
        table.cancel(|_| true);
        self.set(&table, Phase::Normal);
        pr_info!("cancelled\n");
        Ok(())
    }

    /// Tells everybody that the update is over.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] in the wrong phase, [`EINTR`].
    pub(crate) fn finish(&self) -> Result {
        let table = self.table.write_killable()?;

        self.expect(Phase::Updated, "finish")?;
        for entry in &table.entries {
            entry.who.finish();
        }
        for record in table.came.iter() {
            pr_warn!("subsystem '{}': nobody took its state\n", record.name);
        }
        self.incoming.store(0, Relaxed);
        self.set(&table, Phase::Normal);
        pr_info!("finished, {} subsystems\n", table.entries.len());
        Ok(())
    }

    fn expect(&self, phase: Phase, what: &str) -> Result {
        let now = self.phase();
        if now == phase {
            return Ok(());
        }

        if may_print() {
            pr_warn!("cannot {} subsystems: they are in phase {:?}\n", what, now);
        }
        Err(EINVAL)
    }

    /// If there is nobody to be told that an update is over, it is over. Returns whether it is now.
    /// While somebody registers, is told of an event, or a kexec is under way, it is not; this never
    /// waits for that.
    pub(crate) fn settle(&self) -> bool {
        if self.phase() != Phase::Updated {
            return false;
        }

        let Some(table) = self.table.try_write() else {
            return false;
        };
        let over = self.phase() == Phase::Updated
            && table.entries.is_empty()
            && table.came.iter().next().is_none();
        if over {
            self.incoming.store(0, Relaxed);
            self.set(&table, Phase::Normal);
        }
        over
    }

    /// Prepares everybody who is not prepared, for a kexec that is under way.
    ///
    /// # Errors
    ///
    /// What one of them returns; all is as before then.
    pub(crate) fn depart(&self) -> Result<Departure<'_>> {
        let mut table = self.table.write();

        table.prepare()?;
        Ok(Departure {
            subsystems: self,
            table,
            rebooted: false,
        })
    }
}

/// Everybody, prepared and on the way to the next kernel. Dropping it cancels what was done for
/// that, or all, if they have been told that the kexec is near.
pub(crate) struct Departure<'a> {
    subsystems: &'a Subsystems,
    table: WriteGuard<'a, Table>,
    rebooted: bool,
}

impl Departure<'_> {
    /// Tells everybody that the kexec is near, and returns what they hand over.
    ///
    /// # Errors
    ///
    /// What one of them returns, [`ENOMEM`].
    pub(crate) fn reboot(&mut self) -> Result<KVec<Subsystem>> {
        self.rebooted = true;
        self.table.reboot()?;
        for record in self.table.came.iter() {
            pr_warn!(
                "subsystem '{}' is not there: its state is left behind\n",
                record.name
            );
        }
        self.table.records()
    }

    /// The kexec is going to happen.
    pub(crate) fn commit(mut self) {
        for entry in &mut self.table.entries {
            entry.fresh = false;
        }
        self.rebooted = false;
        self.subsystems.set(&self.table, Phase::Prepared);
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        let phase = match self.subsystems.phase() {
            Phase::Prepared if self.rebooted => Phase::Normal,
            phase => phase,
        };
        let all = self.rebooted;

        self.table.cancel(|entry| all || entry.fresh);
        self.subsystems.set(&self.table, phase);
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_subsystem)]
mod tests {
    use crate::{
        luo,
        luo_kunit::CallLog, //
    };
    use kernel::{
        liveupdate::{
            Priority,
            Subsystem,
            SubsystemCell, //
        },
        prelude::*, //
    };

    /// What subsystems were told.
    static LOG: CallLog = CallLog::new();

    /// Logs `N` when it is prepared, and `N + 4` when that is cancelled. The one with `N` = 4
    /// refuses.
    struct Logging<const N: u64>;

    #[vtable]
    impl<const N: u64> Subsystem for Logging<N> {
        const COMPATIBLE: &'static CStr = match N {
            1 => c"luo-kunit-subsystem-1",
            2 => c"luo-kunit-subsystem-2",
            3 => c"luo-kunit-subsystem-3",
            _ => c"luo-kunit-subsystem-4",
        };
        const PRIORITY: Priority = match N {
            1 => Priority::BeforeDevices,
            4 => Priority::AfterDevices,
            _ => Priority::WithDevices,
        };
        type Saved = u64;

        fn prepare() -> Result<u64> {
            LOG.add(N);
            match N {
                4 => Err(ENXIO),
                _ => Ok(N),
            }
        }

        fn cancel(saved: u64) {
            assert!(saved == N);
            LOG.add(N + 4);
        }

        fn restore(_saved: u64) -> Result {
            LOG.add(9);
            Ok(())
        }
    }

    static FIRST: SubsystemCell<Logging<1>> = SubsystemCell::new();
    static SECOND: SubsystemCell<Logging<2>> = SubsystemCell::new();
    static THIRD: SubsystemCell<Logging<3>> = SubsystemCell::new();
    static REFUSING: SubsystemCell<Logging<4>> = SubsystemCell::new();

    #[test]
    fn all_are_told_in_order_and_cancelled_in_reverse() -> Result {
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.subsystems;
        // Priority comes first, then who registered first.
        let _second = SECOND.register()?;
        let _third = THIRD.register()?;
        let _first = FIRST.register()?;
        assert!(FIRST.register().err() == Some(EEXIST));
        LOG.take();

        subsystems.prepare()?;
        assert!(LOG.take() == 123 && subsystems.outgoing() == 3);
        assert!(subsystems.prepare().err() == Some(EINVAL));
        subsystems.cancel()?;
        assert!(LOG.take() == 765 && subsystems.outgoing() == 0);
        assert!(subsystems.cancel().err() == Some(EINVAL));
        assert!(LOG.take() == 0);
        Ok(())
    }

    #[test]
    fn those_before_one_that_refuses_are_cancelled() -> Result {
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.subsystems;
        let _refusing = REFUSING.register()?;
        let _second = SECOND.register()?;
        let _first = FIRST.register()?;
        LOG.take();

        assert!(subsystems.prepare().err() == Some(ENXIO));
        assert!(LOG.take() == 12465 && subsystems.outgoing() == 0);
        assert!(subsystems.depart().err() == Some(ENXIO));
        assert!(LOG.take() == 12465);
        Ok(())
    }

    #[test]
    fn a_kexec_that_fails_cancels_what_it_has_prepared() -> Result {
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.subsystems;
        let _first = FIRST.register()?;
        LOG.take();

        // Before they have heard of the kexec, those prepared by hand stay so.
        subsystems.prepare()?;
        {
            let _second = SECOND.register()?;
            drop(subsystems.depart()?);
            assert!(LOG.take() == 126 && subsystems.outgoing() == 1);
        }
        // Afterwards they do not.
        let mut departure = subsystems.depart()?;
        assert!(departure.reboot()?.len() == 1);
        drop(departure);
        assert!(LOG.take() == 5 && subsystems.outgoing() == 0);
        Ok(())
    }

    #[test]
    fn who_goes_is_cancelled() -> Result {
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.subsystems;
        let first = FIRST.register()?;
        LOG.take();

        subsystems.prepare()?;
        drop(first);
        assert!(LOG.take() == 15 && subsystems.outgoing() == 0);
        subsystems.cancel()?;
        assert!(LOG.take() == 0);
        Ok(())
    }
}
