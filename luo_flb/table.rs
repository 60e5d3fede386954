// SPDX-License-Identifier: GPL-2.0

//! The table of FLBs: those that drivers have registered, and those of the previous kernel.

use core::fmt;

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use super::{
    Flb,
    IncomingObject, //
};
use crate::{
    abi::flb::{
        FlbBlock,
        FlbRecord, //
    },
    ffi::flb::{
        FlbId,
        FlbRef,
        RegisteredFlb, //
    },
    records::{
        checksums::SpannedChecks,
        quarantine::Quarantine, //
    }, //
};

/// All FLBs that LUO knows of.
#[pin_data]
pub(crate) struct Flbs {
    #[pin]
    table: Mutex<KVec<FlbEntry>>,
    has_incoming: bool,
    /// More incoming ones, so corrupt that not even their name can be relied on.
    quarantine: Quarantine,
}

/// An FLB, and with how many file handlers its driver has registered it.
struct FlbEntry {
    flb: Arc<Flb>,
    users: usize,
}

impl FlbEntry {
    /// Whether the FLB that is registered is that one.
    fn is(&self, id: FlbId) -> bool {
        let registered = self.flb.registered.lock();
        registered.as_ref().is_some_and(|by| by.get().id() == id)
    }
}

impl Flbs {
    /// `incoming` are the FLBs of the previous kernel; [`None`] if it left none at all.
    pub(crate) fn new(incoming: Option<IncomingFlbs>) -> impl PinInit<Self> {
        let has_incoming = incoming.is_some();
        let IncomingFlbs { table, quarantine } = incoming.unwrap_or(IncomingFlbs::none());

        pin_init!(Self {
            table <- new_mutex!(table, "luo::Flbs"),
            has_incoming,
            quarantine,
        })
    }

    /// Registers another dependency on an FLB.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if another FLB of that name is registered.
    /// - [`ENOSPC`] if there are as many FLBs as can be handed over.
    /// - [`ENOMEM`].
    pub(crate) fn register(&self, flb: RegisteredFlb) -> Result<Arc<Flb>> {
        let mut table = self.table.lock();
        let (id, name) = (flb.get().id(), *flb.get().compatible());
        let registered = table.iter().filter(|entry| entry.users > 0).count();

        let entry = match table.iter_mut().find(|entry| entry.flb.name == name) {
            Some(entry) if entry.users > 0 => {
                if !entry.is(id) {
                    return Err(EEXIST);
                }
                entry.users = entry.users.checked_add(1).ok_or(EOVERFLOW)?;
                return Ok(entry.flb.clone());
            }
            _ if registered >= FlbBlock::MOST => return Err(ENOSPC),
            Some(entry) => entry,
            None => {
                let flb = Flb::new(name, 0, IncomingObject::Absent)?;
                table.push(FlbEntry { flb, users: 0 }, GFP_KERNEL)?;
                table.last_mut().ok_or(ENOMEM)?
            }
        };
        *entry.flb.registered.lock() = Some(flb);
        entry.users = 1;
        Ok(entry.flb.clone())
    }

    /// Takes back what [`Flbs::register`] did. Afterwards nobody begins to use what the driver
    /// registered.
    pub(crate) fn unregister(&self, id: FlbId) {
        let mut table = self.table.lock();

        for entry in table.iter_mut().filter(|entry| entry.is(id)) {
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                *entry.flb.registered.lock() = None;
            }
        }
        // What was handed over must outlive its driver, and so must the fact that it is finished.
        table.retain(|entry| entry.users > 0 || entry.flb.is_incoming);
    }

    /// Gets the outgoing object for a driver.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if there is none.
    pub(crate) fn get_outgoing(&self, flb: FlbRef<'_>) -> Result<*mut c_void> {
        self.find(flb).ok_or(ENOENT)?.get_outgoing(flb.id())
    }

    /// Ends what [`Flbs::get_outgoing`] began.
    pub(crate) fn put_outgoing(&self, flb: FlbRef<'_>) {
        if let Some(flb) = self.find(flb) {
            flb.put_outgoing();
        }
    }

    /// Gets the incoming object for a driver, which is made if need be.
    ///
    /// # Errors
    ///
    /// - [`ENODATA`] if there is no incoming live update, or the object is finished.
    /// - [`ENOENT`] if the previous kernel did not preserve it.
    /// - [`EUCLEAN`] instead if it left corrupt ones, of which it may be one.
    /// - [`ENODEV`] if the module of the FLB is about to go.
    /// - [`EEXIST`] if another FLB of that name made the object.
    /// - What the driver returned when it tried to make it, now or earlier.
    pub(crate) fn get_incoming(&self, flb: FlbRef<'_>) -> Result<*mut c_void> {
        if !self.has_incoming {
            return Err(ENODATA);
        }
        let missing = match self.quarantine.is_empty() {
            true => ENOENT,
            false => EUCLEAN,
        };
        self.find(flb)
            .filter(|found| found.is_incoming)
            .ok_or(missing)?
            .get_incoming(flb)
    }

    /// Ends what [`Flbs::get_incoming`] began.
    pub(crate) fn put_incoming(&self, flb: FlbRef<'_>) {
        if let Some(found) = self.find(flb) {
            found.put_incoming(flb);
        }
    }

    /// Writes what the next kernel is to know into `block`, and returns how many FLBs that are.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`ENOSPC`] if they do not fit, which [`Flbs::register`] excludes.
    pub(crate) fn write(&self, block: &mut FlbBlock) -> Result<usize> {
        let mut count = 0;

        block.clear();
        for record in self.all()?.iter().filter_map(|flb| flb.record()) {
            block.push(&record).map_err(|_| ENOSPC)?;
            count += 1;
        }
        Ok(count)
    }

    /// Shows all of them, a line each.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(all) = self.all() else {
            return writeln!(f, "no memory to show them");
        };

        for flb in &all {
            flb.show(f)?;
        }
        self.quarantine.show(f)
    }

    /// All FLBs, so that one can be locked without the table being: its callbacks may ask for
    /// others.
    fn all(&self) -> Result<KVec<Arc<Flb>>> {
        let table = self.table.lock();
        let mut all = KVec::with_capacity(table.len(), GFP_KERNEL)?;

        for entry in table.iter() {
            all.push(entry.flb.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    fn find(&self, flb: FlbRef<'_>) -> Option<Arc<Flb>> {
        let table = self.table.lock();
        let entry = table.iter().find(|e| e.flb.name == *flb.compatible())?;

        Some(entry.flb.clone())
    }
}

/// The FLBs of the previous kernel.
pub(crate) struct IncomingFlbs {
    table: KVec<FlbEntry>,
    quarantine: Quarantine,
}

impl IncomingFlbs {
    /// There was a live update, without FLBs.
    pub(crate) fn none() -> Self {
        Self {
            table: KVec::new(),
            quarantine: Quarantine::new(),
        }
    }

    /// Reads them, and tells whether anything was corrupt. One that cannot be read is reported and
    /// left out.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if all of them cannot be read, [`ENOMEM`].
    pub(crate) fn read(
        block: &FlbBlock,
        checks: Option<SpannedChecks<'_>>,
    ) -> Result<(Self, bool)> {
        let mut flbs = Self::none();
        let Some((checks, span)) = checks else {
            let records = block.records().map_err(|e| {
                pr_err!("incoming {}\n", e);
                EINVAL
            })?;
            records.iter().try_for_each(|record| flbs.push(record))?;
            let corrupt = !flbs.quarantine.is_empty();
            return Ok((flbs, corrupt));
        };

        let whole = block
            .as_block()
            .is_some_and(|block| checks.checks().header_is_whole::<FlbRecord>(span, 0, block));
        if !whole {
            pr_err!("incoming FLBs: header is corrupt, nothing is lost\n");
        }
        for (index, record) in (0..).zip(block.records_of(span)) {
            if checks.checks().record_is_whole(span, index, record) {
                flbs.push(record)?;
            } else {
                flbs.quarantine
                    .add(None, fmt!("FLB {}: checksum does not match", index));
            }
        }
        let corrupt = !flbs.quarantine.is_empty() || !whole;
        Ok((flbs, corrupt))
    }

    /// Takes in one. One that cannot be read is reported and left out.
    fn push(&mut self, record: &FlbRecord) -> Result {
        match record.parse() {
            Ok(flb) if self.table.iter().any(|e| e.flb.name == flb.name) => {
                self.quarantine
                    .add(None, fmt!("FLB {}: there are two of that name", flb.name));
            }
            Ok(flb) => self.table.push(
                FlbEntry {
                    flb: Flb::new(flb.name, flb.count, IncomingObject::Waiting(flb.data))?,
                    users: 0,
                },
                GFP_KERNEL,
            )?,
            Err(e) => self.quarantine.add(None, fmt!("{}", e)),
        }
        Ok(())
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_flb)]
mod tests {
    use super::*;
    use crate::{
        abi::Compatible,
        luo_core::orchestrator::luo, //
    };
    use kernel::{
        fs::File,
        liveupdate::{
            self,
            AnyFlb,
            FileHandler,
            FlbCell,
            HandlerCell,
            Outcome,
            Registration,
            RetrieveError, //
        },
        sync::{
            aref::ARef,
            atomic::{
                Atomic,
                Relaxed, //
            }, //
        }, //
    };

    /// How often objects were retrieved, and finished: units and hundreds.
    static CALLS: Atomic<u32> = Atomic::new(0);

    /// A number is handed over; of zero no object can be made.
    struct Counted;

    #[vtable]
    impl liveupdate::Flb for Counted {
        const COMPATIBLE: &'static CStr = c"luo-kunit-flb-in";
        type Handle = u64;
        type Outgoing = ();
        type Incoming = u64;

        fn preserve() -> Result<(u64, ())> {
            Err(ENXIO)
        }

        fn unpreserve(_object: (), _handle: u64) {}

        fn retrieve(handle: u64) -> Result<u64> {
            CALLS.fetch_add(1, Relaxed);
            match handle {
                0 => Err(ENXIO),
                _ => Ok(handle),
            }
        }

        fn finish(_object: u64) {
            CALLS.fetch_add(100, Relaxed);
        }
    }

    static COUNTED: FlbCell<Counted> = FlbCell::new();

    /// A handler of nothing, to register the FLB with.
    struct Nothing;

    #[vtable]
    impl FileHandler for Nothing {
        const COMPATIBLE: &'static CStr = c"luo-kunit-file-in";
        type Handle = u64;
        type State = ();

        fn flbs() -> &'static [&'static dyn AnyFlb] {
            static FLBS: [&dyn AnyFlb; 1] = [&COUNTED];
            &FLBS
        }

        fn can_preserve(_file: &File) -> bool {
            false
        }

        fn preserve(_file: &File) -> Result<(u64, ())> {
            Err(ENXIO)
        }

        fn unpreserve(_file: &File, _state: (), _handle: u64) {}

        fn retrieve(_handle: u64) -> Result<ARef<File>, RetrieveError<u64>> {
            Err(RetrieveError::Final(ENXIO))
        }

        fn finish(_outcome: Outcome<'_, u64>) {}
    }

    static NOTHING: HandlerCell<Nothing> = HandlerCell::new();

    /// An FLB as if `files` files that depend on it had been handed over, and what to ask it by.
    fn incoming(files: u64, data: u64) -> Result<(Arc<Flb>, RegisteredFlb, Registration<Nothing>)> {
        let registration = NOTHING.register()?;
        let name =
            Compatible::from_cstr(<Counted as liveupdate::Flb>::COMPATIBLE).map_err(|_| EINVAL)?;
        let registered = {
            let table = luo().ok_or(EOPNOTSUPP)?.flbs.table.lock();
            let entry = table.iter().find(|e| e.flb.name == name).ok_or(ENOENT)?;
            let registered = entry.flb.registered.lock();
            registered.as_ref().ok_or(ENOENT)?.another()
        };

        CALLS.store(0, Relaxed);
        let flb = Flb::new(name, files, IncomingObject::Waiting(data))?;
        *flb.registered.lock() = Some(registered.another());
        Ok((flb, registered, registration))
    }

    fn calls() -> u32 {
        CALLS.load(Relaxed)
    }

    #[test]
    fn what_nobody_fetched_is_finished_with_the_last_file() -> Result {
        let (flb, by, _registration) = incoming(2, 7)?;

        flb.finish_file(by.get().id());
        assert!(calls() == 0);
        flb.finish_file(by.get().id());
        assert!(calls() == 101);
        assert!(flb.get_incoming(by.get()).err() == Some(ENODATA));
        assert!(calls() == 101);
        Ok(())
    }

    #[test]
    fn what_is_fetched_often_is_made_and_finished_once() -> Result {
        let (flb, by, _registration) = incoming(1, 7)?;

        for _ in 0..3 {
            flb.get_incoming(by.get())?;
        }
        flb.put_incoming(by.get());
        assert!(calls() == 1);
        flb.finish_file(by.get().id());
        flb.put_incoming(by.get());
        assert!(calls() == 1);
        flb.put_incoming(by.get());
        assert!(calls() == 101);
        Ok(())
    }

    #[test]
    fn what_cannot_be_made_is_asked_once_and_not_finished() -> Result {
        let (flb, by, _registration) = incoming(1, 0)?;

        for _ in 0..3 {
            assert!(flb.get_incoming(by.get()).err() == Some(ENXIO));
        }
        flb.finish_file(by.get().id());
        assert!(calls() == 1);
        Ok(())
    }

    #[test]
    fn counts_do_not_underflow() -> Result {
        let (flb, by, _registration) = incoming(1, 7)?;

        for _ in 0..3 {
            flb.finish_file(by.get().id());
        }
        flb.put_incoming(by.get());
        assert!(calls() == 101);
        Ok(())
    }
}
