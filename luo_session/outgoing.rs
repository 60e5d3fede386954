// SPDX-License-Identifier: GPL-2.0

//! Outgoing sessions: made in this kernel, for the next one.
//!
//! An outgoing session lives as long as its descriptor is open; closing that unpreserves its files.
//! From the begin of a kexec on it is held: requests that would change it fail with [`EBUSY`], and
//! closing it is deferred until the kexec turns out not to happen.

use core::fmt::{
    Formatter,
    Result as FmtResult, //
};

use kernel::{
    anon_inode::{
        AnonFile,
        LastPut, //
    },
    fs::File,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow,
        Mutex, //
    }, //
};

use super::{
    check_number,
    names::{
        ByName,
        HashedName, //
    },
    Session,
    SessionInfo,
    Side,
    Totals, //
};
use crate::{
    abi::{
        session::{
            Session as SessionHeader,
            SessionRecord, //
        },
        Phys,
        SessionName, //
    },
    ffi::tracepoints,
    luo_core::{
        context::Context,
        ioctl::{
            Argument,
            RawArgument, //
        },
        refusal::Refusal,
        status::Status,
        trace::Trace, //
    },
    luo_file::{
        FileInfo,
        FilesAnew,
        PreservedFiles, //
    },
    records::{
        chain::Chain,
        checksums::OutgoingChecks, //
    },
    uapi::{
        self,
        Request, //
    }, //
};

impl SessionInfo for Arc<OutgoingSession> {
    fn summary(&self) -> (SessionName, &'static str, usize) {
        let state = self.state.lock();
        let phase = match state.phase {
            OutgoingPhase::Open => "open",
            OutgoingPhase::Held {
                serialized: false, ..
            } => "held",
            OutgoingPhase::Held {
                serialized: true, ..
            } => "serialized",
            OutgoingPhase::Closed => "closed",
        };

        (*self.name, phase, state.files.len())
    }

    fn files(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result {
        self.state.lock().files.show(first, count, to)
    }

    fn show_quarantine(&self, _f: &mut Formatter<'_>) -> FmtResult {
        Ok(())
    }
}

/// A session made in this kernel.
pub(crate) type OutgoingSession = Session<OutgoingState>;

/// The state of an outgoing session.
pub(crate) struct OutgoingState {
    files: PreservedFiles,
    phase: OutgoingPhase,
}

impl Side for OutgoingState {
    type Sessions = OutgoingSessions;
}

/// What may be done with an outgoing session.
#[derive(Copy, Clone)]
enum OutgoingPhase {
    /// Anything.
    Open,
    /// Nothing: a kexec has begun.
    Held {
        /// Whether its files are frozen, and its record is written.
        serialized: bool,
        /// How its descriptor was closed since. It is removed if the kexec does not happen.
        closed: Option<LastPut>,
    },
    /// Nothing: it has no files any more, and is about to be removed from the table.
    Closed,
}

impl OutgoingSession {
    fn context(&self) -> &'static Context {
        self.sessions.context
    }

    fn preserve_fd(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::PreserveFd> = arg.read()?;
        // The response is the argument as it is; if it cannot be written, nothing must be done.
        arg.check_writable()?;

        let _format = self.context().format.read_killable()?;
        let mut state = self.state.lock();
        if !matches!(state.phase, OutgoingPhase::Open) {
            return Err(EBUSY);
        }
        state.files.preserve(
            &self.name,
            arg.token,
            arg.fd,
            &self.context().handlers,
            &self.context().registry,
        )?;
        self.context().status.outgoing.add_files(1);
        Ok(())
    }

    /// Describes files anew, beside what there is.
    ///
    /// # Errors
    ///
    /// What a handler returns, which is reported.
    fn describe_anew(&self, all: bool) -> Result<FilesAnew> {
        let state = self.state.lock();

        state
            .files
            .describe_anew(&self.name, all, &self.context().handlers)
    }

    /// Puts files into the place of those that they are, unless these were closed since.
    fn replace(&self, files: FilesAnew) {
        let mut state = self.state.lock();
        if !matches!(state.phase, OutgoingPhase::Closed) {
            state.files.replace(files);
        }
    }

    /// Keeps the session as it is until [`Session::release`]. When this returns, requests and
    /// closes that were under way have finished.
    fn hold(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, OutgoingPhase::Open) {
            state.phase = OutgoingPhase::Held {
                serialized: false,
                closed: None,
            };
        }
    }

    /// Freezes the files, and returns what to hand over; [`None`] if the session was closed before
    /// it was held.
    ///
    /// # Errors
    ///
    /// What a driver returns.
    fn serialize(&self) -> Result<Option<SessionHeader>> {
        let mut state = self.state.lock();
        let OutgoingPhase::Held { closed, .. } = state.phase else {
            return Ok(None);
        };

        let trace = Trace::<tracepoints::Serialize>::begin();
        let result = state.files.freeze(&self.name, &self.context().refusal);
        trace.session(&self.name, &result);
        result?;
        state.phase = OutgoingPhase::Held {
            serialized: true,
            closed,
        };
        Ok(Some(state.files.info(&self.name)))
    }

    /// Whether the session is handed over.
    fn is_serialized(&self) -> bool {
        matches!(
            self.state.lock().phase,
            OutgoingPhase::Held {
                serialized: true,
                ..
            }
        )
    }

    /// Undoes [`Session::hold`] and [`Session::serialize`]. A close that was deferred takes effect.
    fn release(&self) {
        let mut state = self.state.lock();
        let OutgoingPhase::Held { serialized, closed } = state.phase else {
            return;
        };

        if serialized {
            state.files.unfreeze();
        }
        state.phase = OutgoingPhase::Open;
        if let Some(last) = closed {
            state.close(&self.name, &self.context().status, last);
        }
    }
}

impl OutgoingState {
    /// Unpreserves all files, or defers that if the session is held. Returns whether the session is
    /// to be removed from the table.
    fn close(&mut self, session: &SessionName, status: &Status, last: LastPut) -> bool {
        match &mut self.phase {
            OutgoingPhase::Open => {
                let files = self.files.len();
                if files > 0 {
                    if let LastPut::Killed(holder) = last {
                        status.lost(session, files, &holder);
                    }
                    status.outgoing.remove_files(files);
                    self.files.unpreserve(session);
                }
                self.phase = OutgoingPhase::Closed;
                true
            }
            OutgoingPhase::Held { closed, .. } => {
                *closed = Some(last);
                false
            }
            OutgoingPhase::Closed => false,
        }
    }
}

/// The descriptor of an outgoing session.
struct OutgoingDescriptor;

#[vtable]
impl AnonFile for OutgoingDescriptor {
    type Ptr = Arc<OutgoingSession>;

    fn release(session: Self::Ptr, last: LastPut) {
        session.sessions.close(&session, last);
    }

    fn ioctl(session: ArcBorrow<'_, OutgoingSession>, cmd: u32, arg: usize) -> Result<isize> {
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
    context: &'static Context,
    #[pin]
    table: Mutex<OutgoingTable>,
}

/// # Invariants
///
/// There is room in `records` for all `sessions`. It is empty unless they are `held`.
struct OutgoingTable {
    sessions: ByName<OutgoingSession>,
    records: Chain<SessionRecord>,
    held: bool,
}

impl OutgoingSessions {
    pub(crate) fn new(context: &'static Context) -> impl PinInit<Self> {
        pin_init!(Self {
            context,
            table <- new_mutex!(
                OutgoingTable {
                    sessions: ByName::new(),
                    records: Chain::new(),
                    held: false,
                },
                "luo::OutgoingSessions"
            ),
        })
    }

    /// Creates an empty session, and the file that holds it.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one of that name.
    /// - [`EBUSY`] if a kexec is under way.
    /// - [`ENFILE`], [`ENOMEM`].
    pub(crate) fn create(&'static self, name: SessionName) -> Result<ARef<File>> {
        let trace = Trace::<tracepoints::Create>::begin();
        let result = self.create_file(name);
        trace.session(&name, &result);
        result
    }

    fn create_file(&'static self, name: SessionName) -> Result<ARef<File>> {
        let status = &self.context.status;
        let session = Arc::pin_init(
            pin_init!(Session {
                name: HashedName::new(name),
                sessions: self,
                state <- new_mutex!(
                    OutgoingState {
                        files: PreservedFiles::new(),
                        phase: OutgoingPhase::Open,
                    },
                    "luo::OutgoingSession"
                ),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;

        self.table.lock().insert(&session)?;
        if status.outgoing.add_session() {
            status.changed();
        }
        session
            .new_file::<OutgoingDescriptor>(session.clone())
            .inspect_err(|_| self.close(&session, LastPut::Closed))
    }

    /// The last reference to the open file of a session was dropped.
    fn close(&self, session: &Arc<OutgoingSession>, last: LastPut) {
        let status = &self.context.status;

        let ended = session.state.lock().close(&session.name, status, last);
        let removed = ended && self.table.lock().remove(session);
        if removed && status.outgoing.remove_session() {
            status.changed();
        }
    }

    /// A list of the sessions, to be used without the lock of the table.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn all(&self) -> Result<KVVec<Arc<OutgoingSession>>> {
        self.table.lock().sessions.all()
    }

    /// Describes all files anew for which another handler is right since the format has changed;
    /// with `all`, the others as well. No file must be preserved meanwhile.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if a kexec is under way.
    /// - What a handler returns; nothing has changed then.
    pub(crate) fn describe_anew(&self, all: bool) -> Result {
        let table = self.table.lock();
        if table.held {
            return Err(EBUSY);
        }

        let mut anew = KVVec::new();
        for session in table.sessions.iter() {
            let files = session.describe_anew(all)?;
            if !files.is_empty() {
                anew.push((session, files), GFP_KERNEL)?;
            }
        }
        for (session, files) in anew {
            session.replace(files);
        }
        Ok(())
    }

    /// Keeps all sessions as they are until [`OutgoingSessions::release`], and others from being
    /// created.
    pub(super) fn hold(&self) {
        self.table.lock().hold();
    }

    /// Freezes all sessions and writes their records.
    ///
    /// # Errors
    ///
    /// What a driver returns; some are serialized then.
    pub(super) fn serialize(&self) -> Result<Totals> {
        self.table.lock().serialize()
    }

    /// Whether a session of that name is handed over.
    pub(super) fn has_serialized(&self, name: &HashedName) -> bool {
        let table = self.table.lock();
        table
            .sessions
            .get(name)
            .is_some_and(|found| found.is_serialized())
    }

    /// Writes the record of an incoming session behind those of the outgoing ones.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn append(&self, info: &SessionHeader) -> Result {
        let mut table = self.table.lock();
        let total = table.records.len() + 1;
        table.records.reserve(total)?;
        table.records.push(&SessionRecord::new(info))
    }

    /// Adds the checksums of the files of all serialized sessions, in the order of their records.
    pub(super) fn check_files(&self, checks: &mut OutgoingChecks) -> Result {
        for session in self.table.lock().sessions.iter() {
            let state = session.state.lock();
            if let OutgoingPhase::Held {
                serialized: true, ..
            } = state.phase
            {
                state.files.check(checks)?;
            }
        }
        Ok(())
    }

    /// Adds the checksums of the sessions themselves.
    pub(super) fn check(&self, checks: &mut OutgoingChecks) -> Result {
        checks.add_sessions(&self.table.lock().records)
    }

    /// Checks that the next kernel can read as many records.
    ///
    /// # Errors
    ///
    /// [`E2BIG`].
    pub(super) fn check_length(&self, refusal: &Refusal) -> Result {
        self.table.lock().records.check_length().inspect_err(|e| {
            refusal.report(fmt!("too many sessions for luo-v5: {:?}", e));
        })
    }

    /// Where the next kernel finds the record of the first session; [`None`] if there is none.
    pub(crate) fn head(&self) -> Option<Phys> {
        self.table.lock().records.head()
    }

    /// Undoes [`OutgoingSessions::hold`] and [`OutgoingSessions::serialize`].
    pub(super) fn release(&self) {
        self.table.lock().release();
    }

    /// Passes the records of all serialized sessions to `sessions`.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(super) fn each_session(&self, sessions: impl FnMut(&mut [u8])) {
        self.table.lock().records.each_used(sessions);
    }

    /// Passes the records of the files of all outgoing sessions to `files`.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(super) fn each_file(&self, files: &mut impl FnMut(&mut [u8])) {
        for session in self.table.lock().sessions.iter() {
            session.state.lock().files.each_used(&mut *files);
        }
    }
}

impl OutgoingTable {
    fn insert(&mut self, session: &Arc<OutgoingSession>) -> Result {
        if self.held {
            return Err(EBUSY);
        }

        self.sessions.insert(session.clone())?;
        // INVARIANT: If there is no room for its record, it is removed again.
        self.records
            .reserve(self.sessions.len())
            .inspect_err(|_| _ = self.remove(session))
    }

    /// Removes a session, and returns whether it was there. Another one of that name, created since
    /// it was closed, stays.
    fn remove(&mut self, session: &Arc<OutgoingSession>) -> bool {
        let removed = self.sessions.remove(session);
        if removed {
            self.records.shrink(self.sessions.len());
        }
        removed
    }

    fn hold(&mut self) {
        self.held = true;
        for session in self.sessions.iter() {
            session.hold();
        }
    }

    fn serialize(&mut self) -> Result<Totals> {
        let mut totals = Totals::default();

        for session in self.sessions.iter() {
            if let Some(info) = session.serialize()? {
                self.records.push(&SessionRecord::new(&info))?;
                totals.add(info.count);
            }
        }
        Ok(totals)
    }

    fn release(&mut self) {
        if !self.held {
            return;
        }

        for session in self.sessions.iter().rev() {
            session.release();
        }
        self.sessions.retain(|session| {
            let closed = matches!(session.state.lock().phase, OutgoingPhase::Closed);
            if closed {
                session.context().status.outgoing.remove_session();
            }
            !closed
        });

        self.records.clear();
        self.records.shrink(self.sessions.len());
        self.held = false;
    }
}
