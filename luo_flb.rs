// SPDX-License-Identifier: GPL-2.0

//! File-lifecycle-bound state (FLB): what several preserved files share.
//!
//! Beside [`luo_file`](super::luo_file), above the callbacks of drivers. An FLB is preserved with
//! the first file that depends on it and unpreserved with the last; in the new kernel its object
//! is made when somebody asks for it, and finished with the last file. Which files those are
//! follows from their handlers: each carries an [`FlbSet`].
//!
//! An FLB is known by its compatible string, on both sides: what came from the previous kernel is
//! here before the driver that understands it is, and stays while that driver comes and goes.
//! Files and drivers that use the object are counted apart. Only files cross the kexec.
//!
//! Locks: one side of one FLB, then the table of FLBs, then what is registered of an FLB. A callback
//! runs under the lock of one side of its FLB. All of these locks are of one class, so a callback must
//! not ask for an object of any FLB.

use core::fmt;

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Mutex, //
    }, //
};

use crate::{
    abi::{
        flb::{
            Flb as Record,
            FlbBlock,
            FlbRecord, //
        },
        Compatible, //
    },
    callbacks::{
        may_print,
        FlbId,
        FlbRef,
        LiveFlb,
        PinnedFlb,
        Preserved,
        RegisteredFlb,
        Retrieved, //
    },
    luo_check::Spanned,
    luo_quarantine::Quarantine, //
};

/// One FLB, by its compatible string.
#[pin_data]
pub(crate) struct Flb {
    name: Compatible,
    /// Whether the previous kernel handed it over.
    came_in: bool,
    /// What the driver registered; nothing while its driver is not there.
    #[pin]
    registered: Mutex<Option<RegisteredFlb>>,
    #[pin]
    outgoing: Mutex<Outgoing>,
    #[pin]
    incoming: Mutex<Incoming>,
}

/// The side of an FLB that goes to the next kernel.
///
/// There is a live object exactly if a file or a driver uses it.
struct Outgoing {
    files: u64,
    drivers: u64,
    live: Option<LiveFlb<Preserved>>,
}

/// The side of an FLB that came from the previous kernel.
struct Incoming {
    name: Compatible,
    files: u64,
    drivers: u64,
    state: State,
}

/// How far an incoming FLB has come.
enum State {
    /// The previous kernel did not preserve it.
    Absent,
    /// Nobody has asked for the object; this is what was handed over.
    Waiting(u64),
    /// The object exists.
    Live(LiveFlb<Retrieved>),
    /// The object could not be made, and will not be tried again.
    Failed(Error),
    /// The object has been finished.
    Finished,
}

impl Flb {
    fn new(name: Compatible, files: u64, state: State) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                name,
                came_in: !matches!(state, State::Absent),
                registered <- new_mutex!(None, "luo::Flb::registered"),
                outgoing <- new_mutex!(
                    Outgoing {
                        files: 0,
                        drivers: 0,
                        live: None,
                    },
                    "luo::Flb::outgoing"
                ),
                incoming <- new_mutex!(
                    Incoming {
                        name: *name,
                        files,
                        drivers: 0,
                        state,
                    },
                    "luo::Flb::incoming"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// Keeps what a driver has registered in memory; [`None`] if that is not there any more, or is
    /// about to go.
    fn pin(&self, id: FlbId) -> Option<PinnedFlb> {
        let registered = self.registered.lock();
        let flb = registered.as_ref()?.get();

        if flb.id() != id {
            return None;
        }
        flb.pin()
    }

    /// Another file that depends on the FLB is being preserved.
    fn take_file(&self, id: FlbId) -> Result {
        let mut outgoing = self.outgoing.lock();

        if outgoing.live.is_none() {
            outgoing.live = Some(self.pin(id).ok_or(ENODEV)?.preserve()?);
        }
        outgoing.files = outgoing.files.saturating_add(1);
        Ok(())
    }

    /// A file that depends on the FLB is not preserved any more.
    fn put_file(&self) {
        let mut outgoing = self.outgoing.lock();

        outgoing.files = outgoing.files.saturating_sub(1);
        outgoing.end_if_unused();
    }

    /// A file that depends on the FLB has been finished.
    fn finish_file(&self, id: FlbId) {
        let mut incoming = self.incoming.lock();

        incoming.files = incoming.files.saturating_sub(1);
        incoming.end_if_unused(id, || self.pin(id));
    }

    /// A driver asks for the outgoing object.
    fn get_outgoing(&self, id: FlbId) -> Result<*mut c_void> {
        let mut outgoing = self.outgoing.lock();
        let live = outgoing.live.as_ref().ok_or(ENOENT)?;
        let object = live.object(id).ok_or(ENOENT)?;

        // An FLB whose `preserve` made no object has none to give.
        if object.is_null() {
            return Err(ENOENT);
        }
        outgoing.drivers = outgoing.drivers.checked_add(1).ok_or(EOVERFLOW)?;
        Ok(object)
    }

    /// A driver gives the outgoing object back.
    fn put_outgoing(&self) {
        let mut outgoing = self.outgoing.lock();

        match outgoing.drivers.checked_sub(1) {
            Some(drivers) => outgoing.drivers = drivers,
            None => pr_err!("FLB '{}': outgoing object put too often\n", self.name),
        }
        outgoing.end_if_unused();
    }

    /// A driver asks for the incoming object.
    fn get_incoming(&self, flb: FlbRef<'_>) -> Result<*mut c_void> {
        let mut incoming = self.incoming.lock();
        let object = incoming.object(flb.id(), || flb.pin())?;

        incoming.drivers = incoming.drivers.checked_add(1).ok_or(EOVERFLOW)?;
        Ok(object)
    }

    /// A driver gives the incoming object back.
    fn put_incoming(&self, flb: FlbRef<'_>) {
        let mut incoming = self.incoming.lock();

        match incoming.drivers.checked_sub(1) {
            Some(drivers) => incoming.drivers = drivers,
            None => pr_err!("FLB '{}': incoming object put too often\n", self.name),
        }
        incoming.end_if_unused(flb.id(), || flb.pin());
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, drivers, live) = {
            let outgoing = self.outgoing.lock();
            (outgoing.files, outgoing.drivers, outgoing.live.is_some())
        };
        let state = if live { "preserved" } else { "none" };
        write!(
            f,
            "'{}' outgoing {state}, {files} files, {drivers} drivers; ",
            self.name,
        )?;

        let (files, drivers, state, error) = {
            let incoming = self.incoming.lock();
            let (state, error) = match &incoming.state {
                State::Absent => ("none", None),
                State::Waiting(_) => ("waiting", None),
                State::Live(_) => ("retrieved", None),
                State::Failed(e) => ("failed ", Some(*e)),
                State::Finished => ("finished", None),
            };
            (incoming.files, incoming.drivers, state, error)
        };
        write!(f, "incoming {state}")?;
        if let Some(e) = error {
            write!(f, "{e:?}")?;
        }
        writeln!(f, ", {files} files, {drivers} drivers")
    }

    /// What to tell the next kernel, if there is anything.
    fn record(&self) -> Option<Record> {
        let outgoing = self.outgoing.lock();

        match &outgoing.live {
            Some(live) if outgoing.files > 0 => Some(Record {
                name: self.name,
                data: live.data(),
                count: outgoing.files,
            }),
            _ => None,
        }
    }
}

impl Outgoing {
    fn end_if_unused(&mut self) {
        if self.files == 0 && self.drivers == 0 {
            self.live = None;
        }
    }
}

impl Incoming {
    /// The object of the FLB that `pin` keeps, which is made if it does not exist.
    fn object(
        &mut self,
        id: FlbId,
        pin: impl FnOnce() -> Option<PinnedFlb>,
    ) -> Result<*mut c_void> {
        if let State::Waiting(data) = self.state {
            // If the module is about to go, what was handed over is untouched.
            let flb = pin().ok_or(ENODEV)?;
            self.state = match flb.retrieve(data) {
                Ok(live) => State::Live(live),
                Err(e) => {
                    pr_warn!("FLB '{}': retrieve failed: {:?}\n", self.name, e);
                    State::Failed(e)
                }
            };
        }

        match &self.state {
            State::Live(live) => live.object(id).ok_or(EEXIST),
            State::Failed(e) => Err(*e),
            State::Finished => Err(ENODATA),
            State::Absent | State::Waiting(_) => Err(ENOENT),
        }
    }

    /// Finishes the object once nobody needs it, even if nobody ever asked for it.
    fn end_if_unused(&mut self, id: FlbId, pin: impl FnOnce() -> Option<PinnedFlb>) {
        if self.files > 0 || self.drivers > 0 {
            return;
        }
        if matches!(self.state, State::Waiting(_)) && self.object(id, pin).is_err() {
            return;
        }
        if matches!(self.state, State::Live(_)) {
            self.state = State::Finished;
        }
    }
}

/// A file handler's dependency on an FLB.
struct Link {
    flb: Arc<Flb>,
    id: FlbId,
    /// Whether the dependency still exists. Ending it must not need memory, and sets are shared.
    ended: Atomic<bool>,
}

impl Link {
    fn is(&self, id: FlbId) -> bool {
        self.id == id && !self.ended.load(Acquire)
    }
}

/// The FLBs that a file handler depends on, in the order of their registration. A file goes on
/// with the set that it was preserved with.
pub(crate) struct FlbSet {
    links: KVec<Arc<Link>>,
}

impl FlbSet {
    /// The set of a handler that depends on nothing.
    pub(crate) fn empty() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { links: KVec::new() }, GFP_KERNEL)?)
    }

    pub(crate) fn contains(&self, id: FlbId) -> bool {
        self.links.iter().any(|link| link.is(id))
    }

    /// The set with one more FLB.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn with(&self, flb: Arc<Flb>, id: FlbId) -> Result<Arc<Self>> {
        let mut links = KVec::with_capacity(self.links.len() + 1, GFP_KERNEL)?;

        for link in self.links.iter().filter(|link| !link.ended.load(Acquire)) {
            links.push(link.clone(), GFP_KERNEL)?;
        }
        let link = Link {
            flb,
            id,
            ended: Atomic::new(false),
        };
        links.push(Arc::new(link, GFP_KERNEL)?, GFP_KERNEL)?;
        Ok(Arc::new(Self { links }, GFP_KERNEL)?)
    }

    /// Ends the dependency on an FLB. Files preserved with it go on using it.
    pub(crate) fn end(&self, id: FlbId) {
        for link in self.links.iter().filter(|link| link.is(id)) {
            link.ended.store(true, Release);
        }
    }

    /// All FLBs of the set.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FlbId> + '_ {
        self.links
            .iter()
            .filter(|link| !link.ended.load(Acquire))
            .map(|link| link.id)
    }

    /// A file is being preserved: preserves those FLBs for which it is the first.
    ///
    /// # Errors
    ///
    /// What a driver returns; nothing has changed then.
    pub(crate) fn preserve(self: Arc<Self>) -> Result<FlbUse> {
        let mut used = FlbUse {
            set: self,
            taken: 0,
        };

        for (bit, link) in bits().zip(&used.set.links) {
            if !link.ended.load(Acquire) {
                link.flb.take_file(link.id).inspect_err(|e| {
                    if may_print() {
                        pr_warn!("FLB '{}': preserve failed: {:?}\n", link.flb.name, e);
                    }
                })?;
                used.taken |= bit;
            }
        }
        Ok(used)
    }

    /// A file has been finished: finishes those FLBs for which it was the last.
    pub(crate) fn finish(&self) {
        for link in self.links.iter().rev() {
            if !link.ended.load(Acquire) {
                link.flb.finish_file(link.id);
            }
        }
    }
}

/// One bit for each link of a set: there are no more FLBs than bits.
fn bits() -> impl Iterator<Item = u64> {
    const { assert!(FlbBlock::CAPACITY < 64) };

    (0..u64::BITS).map(|n| 1 << n)
}

/// A preserved file's use of its FLBs. Dropping it ends the use, in reverse order.
pub(crate) struct FlbUse {
    set: Arc<FlbSet>,
    taken: u64,
}

impl Drop for FlbUse {
    fn drop(&mut self) {
        for (n, link) in self.set.links.iter().enumerate().rev() {
            if bits().nth(n).is_some_and(|bit| self.taken & bit != 0) {
                link.flb.put_file();
            }
        }
    }
}

/// All FLBs that LUO knows of.
#[pin_data]
pub(crate) struct Flbs {
    #[pin]
    table: Mutex<KVec<Entry>>,
    has_incoming: bool,
    /// More incoming ones, so damaged that not even their name can be relied on.
    quarantine: Quarantine,
}

/// An FLB, and with how many file handlers its driver has registered it.
struct Entry {
    flb: Arc<Flb>,
    users: usize,
}

impl Entry {
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
            _ if registered >= FlbBlock::CAPACITY => return Err(ENOSPC),
            Some(entry) => entry,
            None => {
                let flb = Flb::new(name, 0, State::Absent)?;
                table.push(Entry { flb, users: 0 }, GFP_KERNEL)?;
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
        table.retain(|entry| entry.users > 0 || entry.flb.came_in);
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
    /// - [`EUCLEAN`] instead if it left damaged ones, of which it may be one.
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
            .filter(|found| found.came_in)
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
    table: KVec<Entry>,
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

    /// Reads them, and tells whether anything was damaged. One that cannot be read is reported and
    /// left out.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if all of them cannot be read, [`ENOMEM`].
    pub(crate) fn read(block: &FlbBlock, checks: Option<Spanned<'_>>) -> Result<(Self, bool)> {
        let mut flbs = Self::none();
        let Some((checks, span)) = checks else {
            let records = block.records().map_err(|e| {
                pr_err!("incoming {}\n", e);
                EINVAL
            })?;
            records.iter().try_for_each(|record| flbs.push(record))?;
            let damaged = !flbs.quarantine.is_empty();
            return Ok((flbs, damaged));
        };

        let whole = block
            .as_block()
            .is_some_and(|block| checks.checks().header_is_whole::<FlbRecord>(span, 0, block));
        if !whole {
            pr_err!("incoming FLBs: header is damaged, nothing is lost\n");
        }
        for (index, record) in (0..).zip(block.records_of(span)) {
            if checks.checks().record_is_whole(span, index, record) {
                flbs.push(record)?;
            } else {
                flbs.quarantine
                    .add(None, fmt!("FLB {}: checksum does not match", index));
            }
        }
        let damaged = !flbs.quarantine.is_empty() || !whole;
        Ok((flbs, damaged))
    }

    /// Takes in one. One that cannot be read is reported and left out.
    fn push(&mut self, record: &FlbRecord) -> Result {
        match record.parse() {
            Ok(flb) if self.table.iter().any(|e| e.flb.name == flb.name) => {
                self.quarantine
                    .add(None, fmt!("FLB {}: there are two of that name", flb.name));
            }
            Ok(flb) => self.table.push(
                Entry {
                    flb: Flb::new(flb.name, flb.count, State::Waiting(flb.data))?,
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
    use crate::luo;
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
            atomic::Relaxed, //
        }, //
    };

    /// How often objects were made of what came in, and finished: units and hundreds.
    static CALLS: Atomic<u32> = Atomic::new(0);

    /// What comes in is a number; zero cannot be made into an object.
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

    /// An FLB as if `files` files that depend on it had come in, and what to ask it by.
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
        let flb = Flb::new(name, files, State::Waiting(data))?;
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
