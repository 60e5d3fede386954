// SPDX-License-Identifier: GPL-2.0

//! Incoming sessions: handed over by the previous kernel.
//!
//! An incoming session waits until it is retrieved. Closing its descriptor finishes it; where that
//! fails, or if the holder was killed, the session can be retrieved again. One that is not finished
//! at the next kexec is handed over again.
//!
//! A session, its descriptor and the table of all are in one file, as they depend on each other:
//! the table retrieves a descriptor, which removes its session from the table when it is closed.

use core::fmt::{
    Formatter,
    Result as FmtResult, //
};

use kernel::{
    anon_inode::{
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

use super::{
    check_number,
    names::{
        ByName,
        HashedName, //
    },
    outgoing::OutgoingSessions,
    Session,
    SessionInfo,
    Side,
    Totals,
    CLOEXEC, //
};
use crate::{
    abi::{
        check,
        session::{
            Session as SessionHeader,
            SessionRecord, //
        },
        Phys,
        SessionName, //
    },
    ffi::{
        kernel::{
            fget,
            may_print, //
        },
        tracepoints, //
    },
    luo_core::{
        context::Context,
        ioctl::{
            Argument,
            RawArgument, //
        },
        trace::Trace, //
    },
    luo_file::{
        FileInfo,
        IncomingFiles,
        PreservedFiles, //
    },
    records::{
        chain::ClaimedBlocks,
        checksums::{
            IncomingChecks,
            OutgoingChecks, //
        },
        quarantine::Quarantine, //
    },
    uapi::{
        self,
        Request, //
    }, //
};

impl SessionInfo for Arc<IncomingSession> {
    fn summary(&self) -> (SessionName, &'static str, usize) {
        let state = self.state.lock();
        let phase = match (&state.serialized, state.phase) {
            (Some(_), _) => "serialized",
            (None, _) if state.held => "held",
            (None, IncomingPhase::Waiting) => "waiting",
            (None, IncomingPhase::Retrieved) => "retrieved",
            (None, IncomingPhase::Closed) => "closed",
            (None, IncomingPhase::Finished) => "finished",
        };

        (*self.name, phase, state.files.len())
    }

    fn files(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result {
        let handlers = &self.context().handlers;

        self.state.lock().files.show(first, count, handlers, to)
    }

    fn show_quarantine(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.state.lock().files.quarantine().show(f)
    }
}

/// A session that the previous kernel handed over.
pub(crate) type IncomingSession = Session<IncomingState>;

/// The state of an incoming session.
pub(crate) struct IncomingState {
    files: IncomingFiles,
    phase: IncomingPhase,
    /// Whether a kexec has begun, so that nothing may change.
    held: bool,
    /// The files as they are handed over again, once the session is serialized.
    serialized: Option<PreservedFiles>,
}

impl Side for IncomingState {
    type Sessions = IncomingSessions;
}

/// How far an incoming session has come.
#[derive(Copy, Clone, PartialEq, Eq)]
enum IncomingPhase {
    /// It has no file descriptor.
    Waiting,
    /// It has been retrieved: there is a descriptor.
    Retrieved,
    /// Its descriptor was closed while the session was held.
    Closed,
    /// It has been finished. There is a descriptor, but no file any more.
    Finished,
}

impl IncomingSession {
    fn context(&self) -> &'static Context {
        self.sessions.context
    }

    fn retrieve_fd(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::RetrieveFd> = arg.read()?;
        let target = match arg.flags {
            0 if arg.target == 0 => None,
            0 => return Err(EINVAL),
            uapi::RETRIEVE_INTO => Some(fget(arg.target)?),
            _ => return Err(EOPNOTSUPP),
        };
        let fd = FileDescriptorReservation::get_unused_fd_flags(CLOEXEC)?;
        arg.check_writable()?;

        let begin = Instant::<Monotonic>::now();
        let file = self.state.lock().not_held()?.files.retrieve(
            &self.name,
            arg.token,
            target.as_deref(),
            &self.context().handlers,
            &self.context().registry,
        )?;
        let nanos = begin.elapsed().as_nanos().unsigned_abs();
        self.context().status.timings.retrieved(nanos);
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

        let last = self.state.lock().not_held()?.finish(self)?;
        if last {
            self.context().sessions_ended();
        }
        Ok(())
    }

    /// The last reference to the open file was dropped. Returns whether the session is to be
    /// removed from the table.
    fn close(&self, last: LastPut) -> bool {
        let mut state = self.state.lock();

        if let LastPut::Killed(holder) = last {
            // A task that was killed has not decided to discard anything.
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

    /// Finishes a session whose descriptor was closed. Returns whether it is to be removed from the
    /// table.
    fn finish_closed(&self, state: &mut IncomingState) -> bool {
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

    /// Keeps the session as it is until [`Session::release`]. When this returns, requests and
    /// closes that were under way have finished.
    fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Preserves the files again, and returns what to hand over; [`None`] if the session is
    /// finished.
    ///
    /// # Errors
    ///
    /// What a driver returns, [`ENOMEM`].
    fn serialize(&self) -> Result<Option<SessionHeader>> {
        let mut state = self.state.lock();
        if state.phase == IncomingPhase::Finished {
            return Ok(None);
        }

        let trace = Trace::<tracepoints::Serialize>::begin();
        let Context {
            handlers,
            registry,
            refusal,
            ..
        } = self.context();
        let result = state
            .files
            .preserve_again(&self.name, handlers, registry, refusal)
            .and_then(|mut files| {
                files.freeze(&self.name, refusal)?;
                Ok(files)
            });
        trace.session(&self.name, &result);
        let files = result?;
        let info = files.info(&self.name);
        state.serialized = Some(files);
        Ok(Some(info))
    }

    /// Undoes [`Session::hold`] and [`Session::serialize`]. Returns whether the session is to be
    /// removed from the table.
    fn release(&self) -> bool {
        let mut state = self.state.lock();

        state.held = false;
        if let Some(mut files) = state.serialized.take() {
            files.unfreeze();
        }
        state.phase == IncomingPhase::Closed && self.finish_closed(&mut state)
    }
}

impl IncomingState {
    /// Finishes all files, and returns whether this was the last session to be finished.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a handler is not ready for that, or not there.
    fn finish(&mut self, session: &Session<Self>) -> Result<bool> {
        let context = session.context();
        let counters = &context.status.incoming;
        let files = self.files.len();

        let trace = Trace::<tracepoints::Finish>::begin();
        let result = self.files.finish(&session.name, &context.handlers);
        trace.session(&session.name, &result);
        result?;
        counters.remove_files(files);
        let finished = core::mem::replace(&mut self.phase, IncomingPhase::Finished);
        Ok(finished != IncomingPhase::Finished && counters.remove_session())
    }

    /// The state, to be changed.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a kexec has begun.
    fn not_held(&mut self) -> Result<&mut Self> {
        match self.held {
            true => Err(EBUSY),
            false => Ok(self),
        }
    }
}

/// The descriptor of an incoming session.
pub(crate) struct IncomingDescriptor {
    session: Arc<IncomingSession>,
    /// Whether user space has the descriptor. Until then it is the kernel that puts the file, and
    /// that finishes nothing.
    handed_out: Atomic<bool>,
}

#[vtable]
impl AnonFile for IncomingDescriptor {
    type Ptr = Arc<IncomingDescriptor>;

    fn release(this: Self::Ptr, last: LastPut) {
        let session = &this.session;

        if !this.handed_out.load(Acquire) {
            session.state.lock().phase = IncomingPhase::Waiting;
        } else if session.close(last) {
            let context = session.context();

            session.sessions.remove(session);
            if context.status.incoming.sessions() == 0 {
                context.sessions_ended();
            }
        }
    }

    fn ioctl(this: ArcBorrow<'_, IncomingDescriptor>, cmd: u32, arg: usize) -> Result<isize> {
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
    this: Arc<IncomingDescriptor>,
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
    context: &'static Context,
    #[pin]
    table: Mutex<ByName<IncomingSession>>,
    /// More sessions, so corrupt that not even their name can be relied on.
    quarantine: SetOnce<Quarantine>,
}

/// How many files an incoming session has, and whether there were more that are corrupt.
struct FilesInfo {
    count: u64,
    corrupt: bool,
}

impl IncomingSessions {
    pub(crate) fn new(context: &'static Context) -> impl PinInit<Self> {
        pin_init!(Self {
            context,
            table <- new_mutex!(ByName::new(), "luo::IncomingSessions"),
            quarantine: SetOnce::new(),
        })
    }

    /// Reads what the previous kernel handed over, once. What cannot be read is quarantined.
    pub(crate) fn read(
        &'static self,
        head: Option<Phys>,
        checks: Option<&IncomingChecks>,
    ) -> Totals {
        let mut totals = Totals::default();
        let mut quarantine = Quarantine::new();
        let of_sessions = checks.map(IncomingChecks::sessions);

        let result = check::walk(
            &ClaimedBlocks,
            head,
            of_sessions.map(|(checks, span)| (checks.checks(), span)),
            |index, record: Option<&SessionRecord>| {
                if let Ok(files) = self.insert(index, record, checks, &mut quarantine) {
                    totals.add(files.count);
                    totals.corrupt |= files.corrupt;
                }
                Ok(())
            },
        );
        match result {
            Ok(walked) if walked.corrupt_header => {
                totals.corrupt = true;
                pr_err!(
                    "incoming sessions: header of the last block is corrupt, nothing is lost\n"
                );
            }
            Ok(_) => {}
            Err(e) => quarantine.add(None, fmt!("sessions from here on are lost: {}", e)),
        }
        totals.corrupt |= !quarantine.is_empty();
        self.quarantine.populate(quarantine);
        totals
    }

    /// Adds one session.
    ///
    /// # Errors
    ///
    /// If that is not possible; the session is in the `quarantine` then.
    fn insert(
        &'static self,
        index: u64,
        record: Option<&SessionRecord>,
        checks: Option<&IncomingChecks>,
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
        let trace = Trace::<tracepoints::Validate>::begin();
        let result = checks
            .transpose()
            .inspect_err(|_| {
                quarantine.add(
                    Some(&info.name),
                    fmt!("session '{}': there are no checks of its files", info.name),
                );
            })
            .and_then(|checks| {
                IncomingFiles::read(&info, checks, &self.context.handlers, quarantine)
            });
        trace.session(&info.name, &result);
        let (files, corrupt) = result?;
        let files_count = files.len();
        let result = FilesInfo {
            // Lossless: no kernel has wider sizes.
            count: files_count as u64,
            corrupt,
        };
        let session = Arc::pin_init(
            pin_init!(Session {
                name,
                sessions: self,
                state <- new_mutex!(
                    IncomingState {
                        files,
                        phase: IncomingPhase::Waiting,
                        held: false,
                        serialized: None,
                    },
                    "luo::IncomingSession"
                ),
            }),
            GFP_KERNEL,
        );
        session
            .and_then(|session| table.insert(session))
            .inspect_err(|e| {
                quarantine.add(Some(&info.name), fmt!("session '{}': {:?}", info.name, e));
            })?;
        let counters = &self.context.status.incoming;
        counters.add_session();
        counters.add_files(files_count);
        Ok(result)
    }

    /// Retrieves a session for user space.
    ///
    /// # Errors
    ///
    /// - [`ENOENT`] if there is none of that name.
    /// - [`EUCLEAN`] instead if there are corrupt sessions, of which it may be one.
    /// - [`EINVAL`] if it has been retrieved.
    /// - [`EBUSY`] if a kexec has begun.
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
            let state = state.not_held()?;
            if state.phase != IncomingPhase::Waiting {
                return Err(EINVAL);
            }
            state.phase = IncomingPhase::Retrieved;
        }

        let result = Arc::new(
            IncomingDescriptor {
                session: session.clone(),
                handed_out: Atomic::new(false),
            },
            GFP_KERNEL_ACCOUNT,
        )
        .map_err(Error::from)
        .and_then(|this| {
            let file = session.new_file::<IncomingDescriptor>(this.clone())?;
            Ok(Retrieved { this, file })
        });
        if result.is_err() {
            session.state.lock().phase = IncomingPhase::Waiting;
        }
        result
    }

    /// A list of the sessions, to be used without the lock of the table.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn all(&self) -> Result<KVVec<Arc<IncomingSession>>> {
        self.table.lock().all()
    }

    /// The sessions that are corrupt; [`None`] if there are none.
    pub(crate) fn quarantine(&self) -> Option<&Quarantine> {
        self.quarantine.as_ref().filter(|all| !all.is_empty())
    }

    /// Keeps all sessions as they are until [`IncomingSessions::release`].
    pub(super) fn hold(&self) {
        for session in self.table.lock().iter() {
            session.hold();
        }
    }

    /// Preserves all sessions again and writes their records behind those of `outgoing`.
    ///
    /// # Errors
    ///
    /// What a driver returns, [`ENOMEM`]; some are serialized then.
    pub(super) fn serialize(&self, outgoing: &OutgoingSessions, totals: &mut Totals) -> Result {
        let table = self.table.lock();

        for session in table.iter() {
            if outgoing.has_serialized(&session.name) {
                pr_warn!(
                    "incoming session '{}' is dropped: an outgoing one of that name is handed over\n",
                    *session.name,
                );
            } else if let Some(info) = session.serialize()? {
                outgoing.append(&info)?;
                totals.add(info.count);
            }
        }
        Ok(())
    }

    /// Adds the checksums of the files of all serialized sessions, in the order of their records.
    pub(super) fn check_files(&self, checks: &mut OutgoingChecks) -> Result {
        for session in self.table.lock().iter() {
            if let Some(files) = &session.state.lock().serialized {
                files.check(checks)?;
            }
        }
        Ok(())
    }

    /// Undoes [`IncomingSessions::hold`] and [`IncomingSessions::serialize`].
    pub(super) fn release(&self) {
        self.table.lock().retain(|session| !session.release());
    }

    fn remove(&self, session: &Arc<IncomingSession>) {
        self.table.lock().remove(session);
    }

    /// Passes the records of the files of all serialized sessions to `files`.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(super) fn each_file(&self, files: &mut impl FnMut(&mut [u8])) {
        for session in self.table.lock().iter() {
            if let Some(serialized) = &mut session.state.lock().serialized {
                serialized.each_used(&mut *files);
            }
        }
    }
}
