// SPDX-License-Identifier: GPL-2.0

//! Subsystems: they hand over state that belongs to no file, and are told of the events of a live
//! update. Notifiers are told of the events only.
//!
//! A live update is prepared when user space says so, or else at the kexec. Then each subsystem is
//! told in the order of its priority, and the number that it returns is handed over in the root. In
//! the next kernel it gets that number back when it registers, however late.
//!
//! ```text
//!            prepare                  kexec
//!   Normal ───────────> Prepared ─────────────> Updated ───────> Normal
//!          <───────────                                  finish
//!            cancel
//! ```
//!
//! One semaphore protects everything: a writer tells of an event, or registers; readers keep that
//! from happening. It is the outermost lock of LUO. What that lock protects is in one file: the
//! table, the phase, and the guard of a kexec that holds the lock.

use core::fmt;

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_rw_semaphore,
        RwSemaphore,
        RwSemaphoreWriteGuard, //
    }, //
};

use crate::{
    abi::subsystem::{
        self,
        Subsystem,
        Subsystems as Records, //
    },
    ffi::{
        kernel::may_print,
        subsystem::RegisteredSubsystem, //
    }, //
};

/// Which events subsystems have been told of.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpdatePhase {
    /// None, or the last update is finished or cancelled.
    Normal,
    /// They are prepared for an update.
    Prepared,
    /// An update led to this boot, and is not finished.
    Updated,
}

impl UpdatePhase {
    const ALL: [Self; 3] = [Self::Normal, Self::Prepared, Self::Updated];
}

/// All subsystems and notifiers.
#[pin_data]
pub(crate) struct Subsystems {
    #[pin]
    table: RwSemaphore<SubsystemTable>,
    /// A [`UpdatePhase`]; changes only while `table` is held for writing.
    phase: Atomic<u32>,
    /// How many handed state over to this kernel and are not finished; likewise.
    incoming: Atomic<usize>,
    /// How many are prepared; likewise.
    outgoing: Atomic<usize>,
}

struct SubsystemTable {
    /// In the order of their priority.
    entries: KVec<SubsystemEntry>,
    /// What was handed over for subsystems that have not registered.
    incoming_records: Records,
}

struct SubsystemEntry {
    subsystem: RegisteredSubsystem,
    /// What it returned, if it is prepared.
    saved: Option<u64>,
    /// Whether it was prepared by the attempt that is under way.
    fresh: bool,
}

impl SubsystemEntry {
    fn prepare(&mut self) -> Result {
        let data = self.subsystem.prepare().inspect_err(|e| {
            if may_print() {
                pr_warn!("subsystem {}: prepare failed: {:?}\n", self.subsystem, e);
            }
        })?;

        self.saved = Some(data);
        self.fresh = true;
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(data) = self.saved.take() {
            self.subsystem.cancel(data);
        }
    }
}

impl SubsystemTable {
    /// Prepares all that are not prepared.
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
            .try_for_each(SubsystemEntry::prepare);
        if result.is_err() {
            self.cancel(|entry| entry.fresh);
        }
        result
    }

    /// Cancels some, the last one first.
    fn cancel(&mut self, which: impl Fn(&SubsystemEntry) -> bool) {
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
                entry.subsystem.reboot(data).inspect_err(|e| {
                    pr_err!("subsystem {}: reboot failed: {:?}\n", entry.subsystem, e)
                })?;
            }
        }
        Ok(())
    }

    /// What they hand over.
    fn records(&self) -> Result<KVec<Subsystem>> {
        let mut records = KVec::new();

        for entry in &self.entries {
            if let (Some(name), Some(data)) = (entry.subsystem.name(), entry.saved) {
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
    /// `incoming_records` is what the previous kernel left; [`None`] if there was none.
    pub(crate) fn new(incoming_records: Option<Records>) -> impl PinInit<Self> {
        let phase = match incoming_records {
            Some(_) => UpdatePhase::Updated,
            None => UpdatePhase::Normal,
        };
        let incoming_records = incoming_records.unwrap_or(Records::NONE);
        let incoming = incoming_records.iter().count();

        pin_init!(Self {
            table <- new_rw_semaphore!(
                SubsystemTable {
                    entries: KVec::new(),
                    incoming_records,
                },
                "luo::Subsystems"
            ),
            phase: Atomic::new(phase as u32),
            incoming: Atomic::new(incoming),
            outgoing: Atomic::new(0),
        })
    }

    pub(crate) fn phase(&self) -> UpdatePhase {
        let phase = self.phase.load(Relaxed);
        let found = UpdatePhase::ALL
            .iter()
            .find(|known| **known as u32 == phase);

        found.copied().unwrap_or(UpdatePhase::Normal)
    }

    fn set(&self, table: &SubsystemTable, phase: UpdatePhase) {
        self.outgoing.store(table.prepared(), Relaxed);
        self.phase.store(phase as u32, Relaxed);
    }

    /// How many handed state over to this kernel and are not finished.
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
            match entry.subsystem.name() {
                Some(name) => write!(f, "subsystem '{name}'")?,
                None => write!(f, "notifier")?,
            }
            writeln!(f, " priority {} {state}", entry.subsystem.priority())?;
        }
        for record in table.incoming_records.iter() {
            writeln!(f, "state of '{}' waiting", record.name)?;
        }
        Ok(())
    }

    /// Registers a subsystem, and gives it what was handed over for it.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if it is there, or another one of that name.
    /// - [`EINVAL`] if its name is not allowed.
    /// - [`ENOSPC`] if there are as many as can be handed over.
    /// - [`ENOMEM`].
    pub(crate) fn register(&self, subsystem: RegisteredSubsystem) -> Result {
        let mut table = self.table.write();
        let table = &mut *table;

        if table
            .entries
            .iter()
            .any(|entry| entry.subsystem.is_like(&subsystem))
        {
            return Err(EEXIST);
        }
        if let Some(name) = subsystem.name() {
            if !subsystem::may_be_called(name) {
                return Err(EINVAL);
            }
            let named = table
                .entries
                .iter()
                .filter(|e| e.subsystem.name().is_some());
            if named.count() >= subsystem::MAX_SUBSYSTEMS {
                return Err(ENOSPC);
            }
        }
        table.entries.reserve(1, GFP_KERNEL)?;

        if let Some(record) = subsystem
            .name()
            .and_then(|name| table.incoming_records.take(name))
        {
            match subsystem.restore(record.data) {
                Ok(()) if self.phase() != UpdatePhase::Updated => subsystem.finish(),
                Ok(()) => {}
                Err(e) => pr_warn!("subsystem {}: restore failed: {:?}\n", subsystem, e),
            }
        }
        let later = |entry: &SubsystemEntry| entry.subsystem.priority() > subsystem.priority();
        let at = table.entries.iter().position(later);
        let entry = SubsystemEntry {
            subsystem,
            saved: None,
            fresh: false,
        };
        let at = at.unwrap_or(table.entries.len());
        table
            .entries
            .insert_within_capacity(at, entry)
            .map_err(|_| ENOMEM)
    }

    /// Unregisters a subsystem; one that is prepared is cancelled. A notifier is told nothing more.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if it is not there.
    pub(crate) fn unregister(&self, is: impl Fn(&RegisteredSubsystem) -> bool) -> Result {
        let mut table = self.table.write();
        let table = &mut *table;
        let at = table.entries.iter().position(|entry| is(&entry.subsystem));

        let mut entry = table
            .entries
            .remove(at.ok_or(ENOENT)?)
            .map_err(|_| ENOENT)?;
        if entry.subsystem.name().is_some() {
            entry.cancel();
        }
        self.set(table, self.phase());
        Ok(())
    }

    /// Prepares all subsystems.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] in the wrong phase, [`EINTR`], and what one of them returns.
    pub(crate) fn prepare(&self) -> Result {
        let mut table = self.table.write_killable()?;

        self.expect(UpdatePhase::Normal, "prepare")?;
        table.prepare()?;
        self.set(&table, UpdatePhase::Prepared);
        pr_info!("prepared, {} subsystems\n", table.prepared());
        Ok(())
    }

    /// Undoes [`Subsystems::prepare`].
    ///
    /// # Errors
    ///
    /// [`EINVAL`] in the wrong phase, [`EINTR`].
    pub(crate) fn cancel(&self) -> Result {
        let mut table = self.table.write_killable()?;

        self.expect(UpdatePhase::Prepared, "cancel")?;
        table.cancel(|_| true);
        self.set(&table, UpdatePhase::Normal);
        pr_info!("cancelled\n");
        Ok(())
    }

    /// Tells all that the update is over.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] in the wrong phase, [`EINTR`].
    pub(crate) fn finish(&self) -> Result {
        let table = self.table.write_killable()?;

        self.expect(UpdatePhase::Updated, "finish")?;
        for entry in &table.entries {
            entry.subsystem.finish();
        }
        for record in table.incoming_records.iter() {
            pr_warn!(
                "subsystem '{}' did not register: its state is dropped\n",
                record.name
            );
        }
        self.incoming.store(0, Relaxed);
        self.set(&table, UpdatePhase::Normal);
        pr_info!("finished, {} subsystems\n", table.entries.len());
        Ok(())
    }

    fn expect(&self, phase: UpdatePhase, what: &str) -> Result {
        let now = self.phase();
        if now == phase {
            return Ok(());
        }

        if may_print() {
            pr_warn!("cannot {} subsystems: they are in phase {:?}\n", what, now);
        }
        Err(EINVAL)
    }

    /// Ends an update if no subsystem is registered or waited for. Returns whether it has ended.
    /// Does not wait for a kexec that is under way, nor for a callback; the update has not ended
    /// then.
    pub(crate) fn end_if_unattended(&self) -> bool {
        if self.phase() != UpdatePhase::Updated {
            return false;
        }

        let Some(table) = self.table.try_write() else {
            return false;
        };
        let over = self.phase() == UpdatePhase::Updated
            && table.entries.is_empty()
            && table.incoming_records.iter().next().is_none();
        if over {
            self.incoming.store(0, Relaxed);
            self.set(&table, UpdatePhase::Normal);
        }
        over
    }

    /// Prepares all that are not prepared, for a kexec that is under way.
    ///
    /// # Errors
    ///
    /// What one of them returns; all is as before then.
    pub(crate) fn prepare_for_kexec(&self) -> Result<PreparedSubsystems<'_>> {
        let mut table = self.table.write();

        table.prepare()?;
        Ok(PreparedSubsystems {
            subsystems: self,
            table,
            rebooted: false,
        })
    }
}

/// All subsystems, prepared for a kexec that is under way. Dropping it cancels those that were
/// prepared for that, or all, if they have been told that the kexec is near.
pub(crate) struct PreparedSubsystems<'a> {
    subsystems: &'a Subsystems,
    table: RwSemaphoreWriteGuard<'a, SubsystemTable>,
    rebooted: bool,
}

impl PreparedSubsystems<'_> {
    /// Tells all that the kexec is near, and returns what they hand over.
    ///
    /// # Errors
    ///
    /// What one of them returns, [`ENOMEM`].
    pub(crate) fn reboot(&mut self) -> Result<KVec<Subsystem>> {
        self.rebooted = true;
        self.table.reboot()?;
        for record in self.table.incoming_records.iter() {
            pr_warn!(
                "subsystem '{}' is not registered: its state is dropped\n",
                record.name
            );
        }
        self.table.records()
    }

    /// How many there are, notifiers among them: the next kernel tells these of the end of the
    /// update, although they hand nothing over by LUO.
    pub(crate) fn count(&self) -> usize {
        self.table.prepared()
    }

    /// The kexec happens.
    pub(crate) fn commit(mut self) {
        for entry in &mut self.table.entries {
            entry.fresh = false;
        }
        self.rebooted = false;
        self.subsystems.set(&self.table, UpdatePhase::Prepared);
    }
}

impl Drop for PreparedSubsystems<'_> {
    fn drop(&mut self) {
        let phase = match self.subsystems.phase() {
            UpdatePhase::Prepared if self.rebooted => UpdatePhase::Normal,
            phase => phase,
        };
        let all = self.rebooted;

        self.table.cancel(|entry| all || entry.fresh);
        self.subsystems.set(&self.table, phase);
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_core_subsystems)]
mod tests {
    use crate::luo_core::{
        kunit::CallLog,
        orchestrator::luo, //
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
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.context.subsystems;
        // Sorted by priority, then by registration.
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
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.context.subsystems;
        let _refusing = REFUSING.register()?;
        let _second = SECOND.register()?;
        let _first = FIRST.register()?;
        LOG.take();

        assert!(subsystems.prepare().err() == Some(ENXIO));
        assert!(LOG.take() == 12465 && subsystems.outgoing() == 0);
        assert!(subsystems.prepare_for_kexec().err() == Some(ENXIO));
        assert!(LOG.take() == 12465);
        Ok(())
    }

    #[test]
    fn a_kexec_that_fails_cancels_what_it_has_prepared() -> Result {
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.context.subsystems;
        let _first = FIRST.register()?;
        LOG.take();

        // Until they are told of the kexec, those prepared by hand stay prepared.
        subsystems.prepare()?;
        {
            let _second = SECOND.register()?;
            drop(subsystems.prepare_for_kexec()?);
            assert!(LOG.take() == 126 && subsystems.outgoing() == 1);
        }
        // Afterwards they do not.
        let mut prepared = subsystems.prepare_for_kexec()?;
        assert!(prepared.reboot()?.len() == 1);
        drop(prepared);
        assert!(LOG.take() == 5 && subsystems.outgoing() == 0);
        Ok(())
    }

    #[test]
    fn unregistering_cancels() -> Result {
        let subsystems = &luo().ok_or(EOPNOTSUPP)?.context.subsystems;
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
