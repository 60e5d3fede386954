// SPDX-License-Identifier: GPL-2.0

//! Sessions: named containers of files, and the descriptors that user space holds on them.
//!
//! Below the device, above files. A session is outgoing, made in this kernel for the next one, or
//! incoming, left by the previous one: two types, with different operations, in two tables.
//!
//! An outgoing session lives as long as its descriptor is open. An incoming one waits until it is
//! retrieved; closing that descriptor finishes it, and where that is refused the session waits
//! again. One that is not finished by the next kexec crosses again.
//!
//! # Sealing
//!
//! At the kexec all sessions are sealed: frozen, and written down. Incoming ones that are not
//! finished are preserved again for that. From then on ioctls that would change a session fail with
//! `EBUSY` and closing one has no effect: what has been written down stays true. If the kexec does
//! not happen, unsealing takes all that back, and lets go of what was closed.
//!
//! # Locks
//!
//! The table of incoming sessions, one incoming session, the table of outgoing sessions, one
//! outgoing session. Callbacks of drivers run under the lock of their session, at the kexec also
//! under that of its table.

use core::fmt::{
    Formatter,
    Result as Shown, //
};

use kernel::{
    anon_inode::{
        self,
        AnonFile,
        LastPut, //
    },
    fs::{
        file::FileDescriptorReservation,
        File, //
    },
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        ArcBorrow,
        Mutex,
        SetOnce, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

use crate::{
    abi::{
        check,
        name::SESSION_NAME_LEN,
        session::{
            FileRecord,
            Session as SessionHeader,
            SessionRecord, //
        },
        Phys,
        SessionName, //
    },
    callbacks::{
        may_print,
        tracepoint, //
    },
    luo_chain::{
        self,
        Chain, //
    },
    luo_check::{
        IncomingChecks,
        OutgoingChecks, //
    },
    luo_file::{
        FileInfo,
        IncomingFiles,
        PreservedFiles, //
    },
    luo_ioctl::{
        self,
        Argument,
        RawArgument, //
    },
    luo_names::{
        ByName,
        HashedName,
        Named, //
    },
    luo_quarantine::Quarantine,
    luo_refusal::Refusal,
    luo_state::Standing,
    luo_trace::Trace,
    uapi::{
        self,
        Request, //
    },
    Luo, //
};

/// What there is to be seen of a session.
pub(crate) trait SessionInfo {
    /// Its name, its state, and how many files it has.
    fn summary(&self) -> (SessionName, &'static str, usize);

    /// Adds some of its files to `to`, from that at `first` on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn files(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result;

    /// Shows why there are not more.
    fn show_quarantine(&self, f: &mut Formatter<'_>) -> Shown;
}

impl SessionInfo for Arc<Session<Outgoing>> {
    fn summary(&self) -> (SessionName, &'static str, usize) {
        let state = self.state.lock();
        let phase = match state.phase {
            Phase::Open => "open",
            Phase::Held { frozen: false, .. } => "held",
            Phase::Held { frozen: true, .. } => "sealed",
            Phase::Closed => "closed",
        };

        (*self.name, phase, state.files.len())
    }

    fn files(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result {
        self.state.lock().files.show(first, count, to)
    }

    fn show_quarantine(&self, _f: &mut Formatter<'_>) -> Shown {
        Ok(())
    }
}

impl SessionInfo for Arc<Session<Incoming>> {
    fn summary(&self) -> (SessionName, &'static str, usize) {
        let state = self.state.lock();
        let phase = match (&state.sealed, state.phase) {
            (Some(_), _) => "sealed",
            (None, _) if state.held => "held",
            (None, IncomingPhase::Waiting) => "waiting",
            (None, IncomingPhase::Retrieved) => "retrieved",
            (None, IncomingPhase::Closed) => "closed",
            (None, IncomingPhase::Finished) => "finished",
        };

        (*self.name, phase, state.files.len())
    }

    fn files(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result {
        let handlers = &self.luo.handlers;

        self.state.lock().files.show(first, count, handlers, to)
    }

    fn show_quarantine(&self, f: &mut Formatter<'_>) -> Shown {
        self.state.lock().files.quarantine().show(f)
    }
}

/// `O_CLOEXEC` for descriptors that are handed out.
pub(crate) const CLOEXEC: u32 = kernel::fs::file::flags::O_CLOEXEC;

/// A session; what there is to it depends on its side `S` of the kexec.
#[pin_data]
pub(crate) struct Session<S> {
    name: HashedName,
    luo: &'static Luo,
    #[pin]
    state: Mutex<S>,
}

impl<S> Named for Session<S> {
    fn name(&self) -> &HashedName {
        &self.name
    }
}

impl<S> Session<S> {
    /// Makes the file by which user space holds on to the session.
    fn new_file<T: AnonFile>(&self, data: T::Ptr) -> Result<ARef<File>> {
        const PREFIX: &[u8] = b"[luo_session] ";

        let mut name = [0; PREFIX.len() + SESSION_NAME_LEN];
        let (prefix, rest) = name.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        rest.copy_from_slice(&self.name.to_bytes_padded());

        anon_inode::new_file::<T>(CStr::from_bytes_until_nul(&name).map_err(|_| EINVAL)?, data)
    }

    fn get_name(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::GetName> = arg.read()?;
        if arg.reserved != 0 {
            return Err(EINVAL);
        }

        let mut answer = *arg;
        answer.name = self.name.to_bytes_padded();
        arg.write(&answer)
    }
}

/// Whether a command is in the table of sessions at all.
///
/// # Errors
///
/// [`EINVAL`] if not.
fn check_number(cmd: u32) -> Result {
    match luo_ioctl::number(cmd) {
        uapi::CMD_SESSION_BASE..=uapi::CMD_SESSION_GET_NAME => Ok(()),
        _ => Err(EINVAL),
    }
}

/// A session made in this kernel.
pub(crate) struct Outgoing {
    files: PreservedFiles,
    phase: Phase,
}

/// What may be done with an outgoing session.
#[derive(Copy, Clone)]
enum Phase {
    /// Anything.
    Open,
    /// Nothing: a kexec has begun.
    Held {
        /// Its files are frozen, and it is written down for the next kernel.
        frozen: bool,
        /// How its descriptor was closed since; it goes if the kexec does not happen.
        closed: Option<LastPut>,
    },
    /// Nothing: it has no files any more, and is about to leave the table.
    Closed,
}

impl Session<Outgoing> {
    fn preserve_fd(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::PreserveFd> = arg.read()?;
        // The answer is the argument as it is; if it cannot be written, nothing must be done.
        arg.check_writable()?;

        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Open) {
            return Err(EBUSY);
        }
        state.files.preserve(
            &self.name,
            arg.token,
            arg.fd,
            &self.luo.handlers,
            &self.luo.claims,
        )?;
        self.luo.standing.outgoing.add_files(1);
        Ok(())
    }

    /// Keeps the session as it is from now on, until [`Session::unseal`]. Whoever is changing it, or
    /// closing it, has done so when this returns.
    fn hold(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Held {
                frozen: false,
                closed: None,
            };
        }
    }

    /// Freezes the files, and says what to tell the next kernel; [`None`] if the session was closed
    /// before it was held.
    fn seal(&self) -> Result<Option<SessionHeader>> {
        let mut state = self.state.lock();
        let Phase::Held { closed, .. } = state.phase else {
            return Ok(None);
        };

        let trace = Trace::<tracepoint::Serialize>::begin();
        let result = state.files.freeze(&self.name, &self.luo.refusal);
        trace.session(&self.name, &result);
        result?;
        state.phase = Phase::Held {
            frozen: true,
            closed,
        };
        Ok(Some(state.files.info(&self.name)))
    }

    /// Whether the session is written down for the next kernel.
    fn is_sealed(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Held { frozen: true, .. })
    }

    /// Undoes [`Session::hold`] and [`Session::seal`].
    fn unseal(&self) {
        let mut state = self.state.lock();
        let Phase::Held { frozen, closed } = state.phase else {
            return;
        };

        if frozen {
            state.files.unfreeze();
        }
        state.phase = Phase::Open;
        if let Some(last) = closed {
            state.close(&self.name, &self.luo.standing, last);
        }
    }
}

impl Outgoing {
    /// Lets go of all files, unless they are on their way to the next kernel. Returns whether the
    /// session is to leave the table.
    fn close(&mut self, session: &SessionName, standing: &Standing, last: LastPut) -> bool {
        match &mut self.phase {
            Phase::Open => {
                let files = self.files.len();
                if files > 0 {
                    if let LastPut::Killed(holder) = last {
                        standing.lost(session, files, &holder);
                    }
                    standing.outgoing.remove_files(files);
                    self.files.unpreserve(session);
                }
                self.phase = Phase::Closed;
                true
            }
            Phase::Held { closed, .. } => {
                *closed = Some(last);
                false
            }
            Phase::Closed => false,
        }
    }
}

/// The descriptor of an outgoing session.
struct OutgoingFile;

#[vtable]
impl AnonFile for OutgoingFile {
    type Ptr = Arc<Session<Outgoing>>;

    fn release(session: Self::Ptr, last: LastPut) {
        session.luo.outgoing.close(&session, last);
    }

    fn ioctl(session: ArcBorrow<'_, Session<Outgoing>>, cmd: u32, arg: usize) -> Result<isize> {
        check_number(cmd)?;
        let arg = RawArgument::new(arg)?;

        match cmd {
            uapi::PreserveFd::COMMAND => session.preserve_fd(arg)?,
            uapi::GetName::COMMAND => session.get_name(arg)?,
            uapi::RetrieveFd::COMMAND | uapi::Finish::COMMAND => return Err(EINVAL),
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

/// All outgoing sessions.
#[pin_data]
pub(crate) struct OutgoingSessions {
    #[pin]
    table: Mutex<OutgoingTable>,
}

/// # Invariants
///
/// There is room in `records` for all `sessions`. It is empty unless `sealed`.
struct OutgoingTable {
    sessions: ByName<Session<Outgoing>>,
    records: Chain<SessionRecord>,
    sealed: bool,
}

impl OutgoingSessions {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_mutex!(
                OutgoingTable {
                    sessions: ByName::new(),
                    records: Chain::new(),
                    sealed: false,
                },
                "luo::OutgoingSessions"
            ),
        })
    }

    /// Makes an empty session, and the file that holds it.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one of that name.
    /// - [`EBUSY`] if a kexec is under way.
    /// - [`ENFILE`], [`ENOMEM`].
    pub(crate) fn create(&self, name: SessionName, luo: &'static Luo) -> Result<ARef<File>> {
        let trace = Trace::<tracepoint::Create>::begin();
        let result = self.make(name, luo);
        trace.session(&name, &result);
        result
    }

    fn make(&self, name: SessionName, luo: &'static Luo) -> Result<ARef<File>> {
        let session = Arc::pin_init(
            pin_init!(Session {
                name: HashedName::new(name),
                luo,
                state <- new_mutex!(
                    Outgoing {
                        files: PreservedFiles::new(),
                        phase: Phase::Open,
                    },
                    "luo::Session<Outgoing>"
                ),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;

        self.table.lock().insert(&session)?;
        if luo.standing.outgoing.add_session() {
            luo.standing.changed();
        }
        session
            .new_file::<OutgoingFile>(session.clone())
            .inspect_err(|_| self.close(&session, LastPut::Closed))
    }

    /// Nobody holds on to a session any more.
    fn close(&self, session: &Arc<Session<Outgoing>>, last: LastPut) {
        let standing = &session.luo.standing;

        let leaves = session.state.lock().close(&session.name, standing, last);
        let left = leaves && self.table.lock().remove(session);
        if left && standing.outgoing.remove_session() {
            standing.changed();
        }
    }

    /// The sessions that there are now.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn all(&self) -> Result<KVVec<Arc<Session<Outgoing>>>> {
        self.table.lock().sessions.all()
    }

    /// Does something while there are no sessions.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there are some.
    pub(crate) fn if_none(&self, act: impl FnOnce()) -> Result {
        let table = self.table.lock();
        if table.sessions.len() > 0 {
            return Err(EBUSY);
        }

        act();
        Ok(())
    }

    /// Keeps all sessions as they are from now on, and others from being made.
    fn hold(&self) {
        self.table.lock().hold();
    }

    /// Freezes all sessions and writes them down.
    ///
    /// # Errors
    ///
    /// What a driver returns; some are sealed then.
    fn seal(&self) -> Result<Counts> {
        self.table.lock().seal()
    }

    /// Whether a session of that name is written down for the next kernel.
    fn has_sealed(&self, name: &HashedName) -> bool {
        let table = self.table.lock();
        table
            .sessions
            .get(name)
            .is_some_and(|found| found.is_sealed())
    }

    /// Writes an incoming session down among the sealed ones.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn write_too(&self, info: &SessionHeader) -> Result {
        let mut table = self.table.lock();
        let total = table.records.len() + 1;
        table.records.reserve(total)?;
        table.records.push(&SessionRecord::new(info))
    }

    /// Adds the checks of the files of all sealed sessions, in the order of their records.
    fn check_files(&self, checks: &mut OutgoingChecks) -> Result {
        for session in self.table.lock().sessions.iter() {
            let state = session.state.lock();
            if let Phase::Held { frozen: true, .. } = state.phase {
                state.files.check(checks)?;
            }
        }
        Ok(())
    }

    /// Adds the checks of the sessions themselves.
    fn check(&self, checks: &mut OutgoingChecks) -> Result {
        checks.add_sessions(&self.table.lock().records)
    }

    /// Checks that the next kernel can read all that are written down.
    ///
    /// # Errors
    ///
    /// [`E2BIG`].
    fn check_length(&self, refusal: &Refusal) -> Result {
        self.table.lock().records.check_length().inspect_err(|e| {
            refusal.report(fmt!("too many sessions for luo-v5: {:?}", e));
        })
    }

    /// Where the next kernel finds the first session.
    pub(crate) fn head(&self) -> Option<Phys> {
        self.table.lock().records.head()
    }

    /// Makes all sessions usable again.
    fn unseal(&self) {
        self.table.lock().unseal();
    }
}

impl OutgoingTable {
    fn insert(&mut self, session: &Arc<Session<Outgoing>>) -> Result {
        if self.sealed {
            return Err(EBUSY);
        }

        self.sessions.insert(session.clone())?;
        // INVARIANT: If there is no room for its record, it is taken out again.
        self.records
            .reserve(self.sessions.len())
            .inspect_err(|_| _ = self.remove(session))
    }

    /// Takes a session out, and returns whether it was there. Another one of that name, made since
    /// it was closed, stays.
    fn remove(&mut self, session: &Arc<Session<Outgoing>>) -> bool {
        let removed = self.sessions.remove(session);
        if removed {
            self.records.shrink(self.sessions.len());
        }
        removed
    }

    fn hold(&mut self) {
        self.sealed = true;
        for session in self.sessions.iter() {
            session.hold();
        }
    }

    fn seal(&mut self) -> Result<Counts> {
        let mut counts = Counts::default();

        for session in self.sessions.iter() {
            if let Some(info) = session.seal()? {
                self.records.push(&SessionRecord::new(&info))?;
                counts.add(info.count);
            }
        }
        Ok(counts)
    }

    fn unseal(&mut self) {
        if !self.sealed {
            return;
        }

        for session in self.sessions.iter().rev() {
            session.unseal();
        }
        self.sessions.retain(|session| {
            let closed = matches!(session.state.lock().phase, Phase::Closed);
            if closed {
                session.luo.standing.outgoing.remove_session();
            }
            !closed
        });

        self.records.clear();
        self.records.shrink(self.sessions.len());
        self.sealed = false;
    }
}

/// All sessions, sealed. Dropping it unseals them: the kexec does not happen.
pub(crate) struct Seal {
    luo: &'static Luo,
    counts: Counts,
}

impl Seal {
    /// Freezes all sessions and writes them down.
    ///
    /// # Errors
    ///
    /// What a driver returns, [`ENOMEM`]; nothing is sealed then.
    pub(crate) fn new(luo: &'static Luo) -> Result<Self> {
        // Dropped on error, it unseals what was sealed so far.
        let mut seal = Self {
            luo,
            counts: Counts::default(),
        };

        // An earlier kexec may have come as far as this, and then back.
        seal.undo();
        // All before the first one is frozen: what one session gives up may be beside, or the same as,
        // what another one hands over.
        luo.incoming.hold();
        luo.outgoing.hold();
        seal.counts = luo.outgoing.seal()?;
        luo.incoming.seal(&luo.outgoing, &mut seal.counts)?;
        luo.outgoing.check_length(&luo.refusal)?;
        Ok(seal)
    }

    /// How much there is.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Shows all records to a function that damages them: the sessions, then their files.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(crate) fn each_used(
        &self,
        mut sessions: impl FnMut(&mut [u8]),
        mut files: impl FnMut(&mut [u8]),
    ) {
        let incoming = self.luo.incoming.table.lock();
        let mut outgoing = self.luo.outgoing.table.lock();

        outgoing.records.each_used(&mut sessions);
        for session in outgoing.sessions.iter() {
            session.state.lock().files.each_used(&mut files);
        }
        for session in incoming.iter() {
            if let Some(sealed) = &mut session.state.lock().sealed {
                sealed.each_used(&mut files);
            }
        }
    }

    /// Makes the checks of all that is sealed.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`ENOSPC`] if there are more than a root can list.
    pub(crate) fn checks(&self) -> Result<OutgoingChecks> {
        let mut checks = OutgoingChecks::new();

        self.luo.outgoing.check_files(&mut checks)?;
        self.luo.incoming.check_files(&mut checks)?;
        self.luo.outgoing.check(&mut checks)?;
        Ok(checks)
    }

    /// The kexec is going to happen: what is sealed stays sealed.
    pub(crate) fn commit(self) {
        core::mem::forget(self);
    }

    fn undo(&self) {
        self.luo.incoming.unseal();
        self.luo.outgoing.unseal();
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        self.undo();
    }
}

/// A session left by the previous kernel.
pub(crate) struct Incoming {
    files: IncomingFiles,
    phase: IncomingPhase,
    /// Whether a kexec has begun, so that nothing may change.
    held: bool,
    /// The files on their way to the next kernel, once the session is sealed.
    sealed: Option<PreservedFiles>,
}

/// How far an incoming session has come.
#[derive(Copy, Clone, PartialEq, Eq)]
enum IncomingPhase {
    /// Nobody has it.
    Waiting,
    /// There is a descriptor on it.
    Retrieved,
    /// There was a descriptor on it, which was closed while the session was held.
    Closed,
    /// There is a descriptor on it, but nothing in it any more.
    Finished,
}

impl Session<Incoming> {
    fn retrieve_fd(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::RetrieveFd> = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(CLOEXEC)?;
        arg.check_writable()?;

        let begin = Instant::<Monotonic>::now();
        let file = self.state.lock().unsealed()?.files.retrieve(
            &self.name,
            arg.token,
            &self.luo.handlers,
            &self.luo.claims,
        )?;
        let nanos = begin.elapsed().as_nanos().unsigned_abs();
        self.luo.standing.timings.retrieved(nanos);
        arg.write_fd(fd.reserved_fd())?;
        fd.fd_install(file);
        Ok(())
    }

    fn finish(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::Finish> = arg.read()?;
        if arg.reserved != 0 {
            return Err(EINVAL);
        }
        arg.check_writable()?;

        let last = self.state.lock().unsealed()?.finish(self)?;
        if last {
            self.luo.sessions_ended();
        }
        Ok(())
    }

    /// The last reference to the descriptor is gone. Returns whether the session is to leave the
    /// table.
    fn close(&self, last: LastPut) -> bool {
        let mut state = self.state.lock();

        if let LastPut::Killed(holder) = last {
            // Whoever was killed has not decided to discard anything.
            if state.phase != IncomingPhase::Finished {
                state.phase = IncomingPhase::Waiting;
                if may_print() {
                    pr_warn!(
                        "session '{}': its holder {} was killed, it can be retrieved again\n",
                        *self.name,
                        holder,
                    );
                }
                return false;
            }
        }
        if state.held {
            state.phase = IncomingPhase::Closed;
            return false;
        }
        self.finish_closed(&mut state)
    }

    /// Finishes a session whose descriptor was closed. Returns whether it is to leave the table.
    fn finish_closed(&self, state: &mut Incoming) -> bool {
        match state.finish(self) {
            Ok(_) => true,
            Err(e) => {
                if may_print() {
                    pr_warn!(
                        "session '{}': closed but not finished ({:?}), it can be retrieved again\n",
                        *self.name,
                        e,
                    );
                }
                state.phase = IncomingPhase::Waiting;
                false
            }
        }
    }

    /// Keeps the session as it is from now on, until [`Session::unseal`]. Whoever is changing it has
    /// done so when this returns.
    fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Preserves the files again, and says what to tell the next kernel; [`None`] if the session
    /// is finished.
    fn seal(&self) -> Result<Option<SessionHeader>> {
        let mut state = self.state.lock();
        if state.phase == IncomingPhase::Finished {
            return Ok(None);
        }

        let trace = Trace::<tracepoint::Serialize>::begin();
        let result = state
            .files
            .preserve_again(
                &self.name,
                &self.luo.handlers,
                &self.luo.claims,
                &self.luo.refusal,
            )
            .and_then(|mut files| {
                files.freeze(&self.name, &self.luo.refusal)?;
                Ok(files)
            });
        trace.session(&self.name, &result);
        let files = result?;
        let info = files.info(&self.name);
        state.sealed = Some(files);
        Ok(Some(info))
    }

    /// Undoes [`Session::hold`] and [`Session::seal`]. Returns whether the session is to leave the
    /// table.
    fn unseal(&self) -> bool {
        let mut state = self.state.lock();

        state.held = false;
        if let Some(mut files) = state.sealed.take() {
            files.unfreeze();
        }
        state.phase == IncomingPhase::Closed && self.finish_closed(&mut state)
    }
}

impl Incoming {
    /// Finishes all files, and returns whether nothing is left to be finished, of any session.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a handler is not ready for that, or not there.
    fn finish(&mut self, session: &Session<Self>) -> Result<bool> {
        let tally = &session.luo.standing.incoming;
        let files = self.files.len();

        let trace = Trace::<tracepoint::Finish>::begin();
        let result = self.files.finish(&session.name, &session.luo.handlers);
        trace.session(&session.name, &result);
        result?;
        tally.remove_files(files);
        let finished = core::mem::replace(&mut self.phase, IncomingPhase::Finished);
        Ok(finished != IncomingPhase::Finished && tally.remove_session())
    }

    /// # Errors
    ///
    /// [`EBUSY`] if the session is on its way to the next kernel.
    fn unsealed(&mut self) -> Result<&mut Self> {
        match self.held {
            true => Err(EBUSY),
            false => Ok(self),
        }
    }
}

/// The descriptor of an incoming session.
pub(crate) struct IncomingFile {
    session: Arc<Session<Incoming>>,
    /// Whether user space has the descriptor. Until then, closing the file is not user space's
    /// doing, and finishes nothing.
    handed_out: Atomic<bool>,
}

#[vtable]
impl AnonFile for IncomingFile {
    type Ptr = Arc<IncomingFile>;

    fn release(this: Self::Ptr, last: LastPut) {
        let session = &this.session;

        if !this.handed_out.load(Acquire) {
            session.state.lock().phase = IncomingPhase::Waiting;
        } else if session.close(last) {
            session.luo.incoming.remove(session);
            if session.luo.standing.incoming.sessions() == 0 {
                session.luo.sessions_ended();
            }
        }
    }

    fn ioctl(this: ArcBorrow<'_, IncomingFile>, cmd: u32, arg: usize) -> Result<isize> {
        check_number(cmd)?;
        let arg = RawArgument::new(arg)?;

        match cmd {
            uapi::RetrieveFd::COMMAND => this.session.retrieve_fd(arg)?,
            uapi::Finish::COMMAND => this.session.finish(arg)?,
            uapi::GetName::COMMAND => this.session.get_name(arg)?,
            uapi::PreserveFd::COMMAND => return Err(EINVAL),
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

/// A retrieved session on its way to user space. Dropping it lets the session wait again.
pub(crate) struct Retrieved {
    this: Arc<IncomingFile>,
    file: ARef<File>,
}

impl Retrieved {
    /// Hands the descriptor out. It cannot fail.
    pub(crate) fn install(self, fd: FileDescriptorReservation) {
        self.this.handed_out.store(true, Release);
        fd.fd_install(self.file);
    }
}

/// All incoming sessions that are not finished.
#[pin_data]
pub(crate) struct IncomingSessions {
    #[pin]
    table: Mutex<ByName<Session<Incoming>>>,
    /// More sessions, so damaged that not even their name can be relied on.
    quarantine: SetOnce<Quarantine>,
}

/// How much there is.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) sessions: u64,
    pub(crate) files: u64,
    /// Whether there was more, which is damaged.
    pub(crate) damaged: bool,
}

/// What there is in an incoming session.
struct FilesInfo {
    count: u64,
    damaged: bool,
}

impl Counts {
    /// Counts a session with `files` files.
    fn add(&mut self, files: u64) {
        self.sessions = self.sessions.saturating_add(1);
        self.files = self.files.saturating_add(files);
    }

    /// How many bytes their records have.
    pub(crate) fn records(&self) -> u64 {
        // Lossless: no kernel has wider sizes.
        const SESSION: u64 = size_of::<SessionRecord>() as u64;
        const FILE: u64 = size_of::<FileRecord>() as u64;

        let sessions = self.sessions.saturating_mul(SESSION);
        sessions.saturating_add(self.files.saturating_mul(FILE))
    }
}

impl IncomingSessions {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_mutex!(ByName::new(), "luo::IncomingSessions"),
            quarantine: SetOnce::new(),
        })
    }

    /// Reads what the previous kernel left, once. What cannot be read is quarantined.
    pub(crate) fn read(
        &self,
        head: Option<Phys>,
        checks: Option<&IncomingChecks>,
        luo: &'static Luo,
    ) -> Counts {
        let mut counts = Counts::default();
        let mut quarantine = Quarantine::new();
        let of_sessions = checks.map(IncomingChecks::sessions);

        let result = check::walk(
            &luo_chain::Incoming,
            head,
            of_sessions.map(|(checks, span)| (checks.checks(), span)),
            |index, record: Option<&SessionRecord>| {
                if let Ok(files) = self.insert(index, record, checks, luo, &mut quarantine) {
                    counts.add(files.count);
                    counts.damaged |= files.damaged;
                }
                Ok(())
            },
        );
        match result {
            Ok(walked) if walked.damaged_header => {
                counts.damaged = true;
                pr_err!(
                    "incoming sessions: header of the last block is damaged, nothing is lost\n"
                );
            }
            Ok(_) => {}
            Err(e) => quarantine.add(None, fmt!("sessions from here on are lost: {}", e)),
        }
        counts.damaged |= !quarantine.is_empty();
        self.quarantine.populate(quarantine);
        counts
    }

    /// Takes in one session.
    ///
    /// # Errors
    ///
    /// If that is not possible; then it is in the `quarantine`.
    fn insert(
        &self,
        index: u64,
        record: Option<&SessionRecord>,
        checks: Option<&IncomingChecks>,
        luo: &'static Luo,
        quarantine: &mut Quarantine,
    ) -> Result<FilesInfo> {
        let Some(record) = record else {
            quarantine.add(None, fmt!("session {}: checksum does not match", index));
            return Err(EUCLEAN);
        };
        let info = record.parse().map_err(|e| {
            quarantine.add(None, fmt!("session {}: {}", index, e));
            EUCLEAN
        })?;

        let name = HashedName::new(info.name);
        let mut table = self.table.lock();
        if table.get(&name).is_some() {
            quarantine.add(
                Some(&info.name),
                fmt!("session '{}': there are two of that name", info.name),
            );
            return Err(EEXIST);
        }

        let checks = checks.map(|checks| checks.files(index, info.count));
        let trace = Trace::<tracepoint::Validate>::begin();
        let result = checks
            .transpose()
            .inspect_err(|_| {
                quarantine.add(
                    Some(&info.name),
                    fmt!("session '{}': there are no checks of its files", info.name),
                );
            })
            .and_then(|checks| IncomingFiles::read(&info, checks, &luo.handlers, quarantine));
        trace.session(&info.name, &result);
        let (files, damaged) = result?;
        let files_count = files.len();
        let result = FilesInfo {
            // Lossless: no kernel has wider sizes.
            count: files_count as u64,
            damaged,
        };
        let session = Arc::pin_init(
            pin_init!(Session {
                name,
                luo,
                state <- new_mutex!(
                    Incoming {
                        files,
                        phase: IncomingPhase::Waiting,
                        held: false,
                        sealed: None,
                    },
                    "luo::Session<Incoming>"
                ),
            }),
            GFP_KERNEL,
        );
        session
            .and_then(|session| table.insert(session))
            .inspect_err(|e| {
                quarantine.add(Some(&info.name), fmt!("session '{}': {:?}", info.name, e));
            })?;
        luo.standing.incoming.add_session();
        luo.standing.incoming.add_files(files_count);
        Ok(result)
    }

    /// Takes a session for user space.
    ///
    /// # Errors
    ///
    /// - [`ENOENT`] if there is none of that name.
    /// - [`EUCLEAN`] instead if there are damaged sessions, of which it may be one.
    /// - [`EINVAL`] if somebody has it.
    /// - [`ENFILE`], [`ENOMEM`].
    pub(crate) fn retrieve(&self, name: &SessionName) -> Result<Retrieved> {
        let missing = || match self.quarantine() {
            Some(_) => EUCLEAN,
            None => ENOENT,
        };
        let name = HashedName::new(*name);
        let session = self.table.lock().get(&name).ok_or_else(missing)?.clone();

        {
            let mut state = session.state.lock();
            let state = state.unsealed()?;
            if state.phase != IncomingPhase::Waiting {
                return Err(EINVAL);
            }
            state.phase = IncomingPhase::Retrieved;
        }

        let result = Arc::new(
            IncomingFile {
                session: session.clone(),
                handed_out: Atomic::new(false),
            },
            GFP_KERNEL_ACCOUNT,
        )
        .map_err(Error::from)
        .and_then(|this| {
            let file = session.new_file::<IncomingFile>(this.clone())?;
            Ok(Retrieved { this, file })
        });
        if result.is_err() {
            session.state.lock().phase = IncomingPhase::Waiting;
        }
        result
    }

    /// The sessions that there are now.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn all(&self) -> Result<KVVec<Arc<Session<Incoming>>>> {
        self.table.lock().all()
    }

    /// What there was besides, if there was.
    pub(crate) fn quarantine(&self) -> Option<&Quarantine> {
        self.quarantine.as_ref().filter(|all| !all.is_empty())
    }

    /// Keeps all sessions as they are from now on.
    fn hold(&self) {
        for session in self.table.lock().iter() {
            session.hold();
        }
    }

    /// Preserves all sessions again and writes them down among the outgoing ones.
    ///
    /// # Errors
    ///
    /// What a driver returns, [`ENOMEM`]; some are sealed then.
    fn seal(&self, outgoing: &OutgoingSessions, counts: &mut Counts) -> Result {
        let table = self.table.lock();

        for session in table.iter() {
            if outgoing.has_sealed(&session.name) {
                pr_warn!(
                    "incoming session '{}' is left behind: there is a new one of that name\n",
                    *session.name,
                );
            } else if let Some(info) = session.seal()? {
                outgoing.write_too(&info)?;
                counts.add(info.count);
            }
        }
        Ok(())
    }

    /// Adds the checks of the files of all sealed sessions, in the order of their records.
    fn check_files(&self, checks: &mut OutgoingChecks) -> Result {
        for session in self.table.lock().iter() {
            if let Some(files) = &session.state.lock().sealed {
                files.check(checks)?;
            }
        }
        Ok(())
    }

    /// Makes all sessions usable again.
    fn unseal(&self) {
        self.table.lock().retain(|session| !session.unseal());
    }

    fn remove(&self, session: &Arc<Session<Incoming>>) {
        self.table.lock().remove(session);
    }
}
