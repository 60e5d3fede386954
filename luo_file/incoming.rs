// SPDX-License-Identifier: GPL-2.0

//! Incoming files: handed over by the previous kernel, retrieved when user space asks for them, and
//! finished.
//!
//! A file is bound to its handler when it is needed first: retrieved, or about to be finished. So a
//! handler may be registered late, and one that never is costs its own files only.

use kernel::{
    fmt,
    fs::File,
    liveupdate::{
        Outcome,
        RetrieveError, //
    },
    prelude::*,
    sync::aref::ARef, //
};

use super::{
    handlers::{
        BoundHandler,
        Expected,
        Handlers, //
    },
    outgoing::{
        PreservedFile,
        PreservedFiles, //
    },
    registry::{
        Registered,
        Registry, //
    },
    tokens::ByToken,
    FileInfo, //
};
use crate::{
    abi::{
        check,
        session::{
            FileRecord,
            Session as SessionHeader, //
        },
        SessionName, //
    },
    ffi::{
        handler::PinnedHandler,
        kernel::may_print,
        tracepoints, //
    },
    luo_core::{
        refusal::Refusal,
        trace::Trace, //
    },
    records::{
        chain::ClaimedBlocks,
        checksums::SpannedChecks,
        quarantine::Quarantine, //
    }, //
};

/// A file that the previous kernel handed over.
struct IncomingFile {
    data: u64,
    expected: Expected,
    /// Its handler, looked up when it is needed first.
    bound: Option<BoundHandler>,
    state: RetrieveState,
}

/// How far an incoming file has come.
enum RetrieveState {
    /// It has not been retrieved.
    Waiting,
    /// It has been retrieved. It is not registered if the handler returned a file that is, for
    /// another reason.
    Retrieved {
        _registered: Option<Registered>,
        file: ARef<File>,
    },
    /// The handler failed for good.
    Failed(Error),
}

impl IncomingFile {
    fn bind(&mut self, handlers: &Handlers) -> Result<&PinnedHandler> {
        if self.bound.is_none() {
            self.bound = handlers.for_compatible(self.expected.compatible());
        }
        self.bound
            .as_ref()
            .map(|bound| &bound.handler)
            .ok_or(ENOENT)
    }

    /// Retrieves the file, into `target` if there is one; later it is the same one.
    fn retrieve(
        &mut self,
        session: &SessionName,
        token: u64,
        target: Option<&File>,
        handlers: &Handlers,
        registry: &'static Registry,
    ) -> Result<ARef<File>> {
        match &self.state {
            RetrieveState::Retrieved { .. } if target.is_some() => return Err(EEXIST),
            RetrieveState::Retrieved { file, .. } => return Ok(file.clone()),
            RetrieveState::Failed(e) => return Err(*e),
            RetrieveState::Waiting => {}
        }

        let trace = Trace::<tracepoints::Retrieve>::begin();
        let result = self.retrieve_now(session, token, target, handlers, registry);
        trace.file(session, token, Some(self.expected.compatible()), &result);
        result
    }

    /// Has the handler retrieve the file, and reports if that fails.
    fn retrieve_now(
        &mut self,
        session: &SessionName,
        token: u64,
        target: Option<&File>,
        handlers: &Handlers,
        registry: &'static Registry,
    ) -> Result<ARef<File>> {
        self.call_handler(target, handlers, registry)
            .map_err(|error| {
                let (e, how) = match error {
                    RetrieveError::Again(e, ()) => (e, "may be tried again"),
                    RetrieveError::Final(e) => {
                        self.state = RetrieveState::Failed(e);
                        (e, "for good")
                    }
                };
                if may_print() {
                    pr_warn!(
                        "session '{}': token {:#x}: handler '{}': retrieve failed, {}: {:?}\n",
                        session,
                        token,
                        self.expected.compatible(),
                        how,
                        e,
                    );
                }
                e
            })
    }

    fn call_handler(
        &mut self,
        target: Option<&File>,
        handlers: &Handlers,
        registry: &'static Registry,
    ) -> Result<ARef<File>, RetrieveError<()>> {
        let data = self.data;
        let again = |e| RetrieveError::Again(e, ());
        let handler = self.bind(handlers).map_err(again)?;
        let reservation = registry.reserve().map_err(again)?;
        let file = handler.retrieve(data, target)?;
        let registered = reservation.register(handler.id(&file)).ok();

        self.state = RetrieveState::Retrieved {
            _registered: registered,
            file: file.clone(),
        };
        Ok(file)
    }

    /// Whether a file that could not be retrieved now may be later, by the handler that is there.
    fn may_be_tried_again(&self) -> bool {
        self.bound.is_some() && matches!(self.state, RetrieveState::Waiting)
    }

    /// What the handler is told of the file.
    fn outcome(&self) -> Outcome<'_, ()> {
        match &self.state {
            RetrieveState::Waiting => Outcome::NotRetrieved(()),
            RetrieveState::Retrieved { file, .. } => Outcome::Retrieved(file),
            RetrieveState::Failed(error) => Outcome::Failed {
                error: *error,
                left: None,
            },
        }
    }

    /// What the handler says about the file, if it is there and has not failed.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn summary(&self, handlers: &Handlers) -> Result<KVec<u8>> {
        if matches!(self.state, RetrieveState::Failed(_)) {
            return Ok(KVec::new());
        }
        match handlers.for_compatible(self.expected.compatible()) {
            Some(bound) => bound.handler.summary(self.outcome(), self.data),
            None => Ok(KVec::new()),
        }
    }

    /// Whether [`IncomingFile::finish`] may be called, for which there must be a handler.
    fn can_finish(&mut self, handlers: &Handlers) -> bool {
        // Looked up again, since the handler may depend on one more FLB by now.
        if let Some(bound) = handlers.for_compatible(self.expected.compatible()) {
            self.bound = Some(bound);
        }
        let outcome = self.outcome();

        self.bound
            .as_ref()
            .is_some_and(|bound| bound.handler.can_finish(outcome, self.data))
    }

    fn finish(self) {
        if let Some(bound) = &self.bound {
            bound.handler.finish(self.outcome(), self.data);
            bound.flbs.finish();
        }
    }
}

/// The files of an incoming session, in the order in which they were preserved.
pub(crate) struct IncomingFiles {
    files: ByToken<IncomingFile>,
    /// More files, so corrupt that not even their token can be relied on.
    quarantine: Quarantine,
}

impl IncomingFiles {
    /// Reads the records of a session's files, and returns whether anything was corrupt, too. A
    /// corrupt file is quarantined.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if they cannot be read; the session is in the `quarantine` then.
    pub(crate) fn read(
        session: &SessionHeader,
        checks: Option<SpannedChecks<'_>>,
        handlers: &'static Handlers,
        quarantine: &mut Quarantine,
    ) -> Result<(Self, bool)> {
        let mut files = Self {
            files: ByToken::new(),
            quarantine: Quarantine::new(),
        };

        let walked = check::walk(
            &ClaimedBlocks,
            session.files,
            checks.map(|(checks, span)| (checks.checks(), span)),
            |index, record: Option<&FileRecord>| files.push(session, index, record, handlers),
        )
        .map_err(|e| {
            quarantine.add(
                Some(&session.name),
                fmt!("session '{}': {}", session.name, e),
            );
            EINVAL
        })?;

        session.check_total(walked.records).map_err(|e| {
            quarantine.add(
                Some(&session.name),
                fmt!("session '{}': {}", session.name, e),
            );
            EINVAL
        })?;
        if walked.corrupt_header {
            pr_err!(
                "incoming session '{}': header of the last file block is corrupt, nothing is lost\n",
                session.name,
            );
        }
        let corrupt = files.any_corrupt() || walked.corrupt_header;
        Ok((files, corrupt))
    }

    /// Adds one file. One that cannot be read is quarantined.
    fn push(
        &mut self,
        session: &SessionHeader,
        index: u64,
        record: Option<&FileRecord>,
        handlers: &'static Handlers,
    ) -> Result {
        let name = &session.name;
        let mut quarantine = |why: fmt::Arguments<'_>| {
            self.quarantine
                .add(Some(name), fmt!("session '{}': {}", name, why));
            Ok(())
        };
        let record = match record.map(FileRecord::parse) {
            Some(Ok(record)) => record,
            Some(Err(e)) => return quarantine(fmt!("file {}: {}", index, e)),
            None => return quarantine(fmt!("file {}: checksum does not match", index)),
        };
        let place = match self.files.vacancy(record.token) {
            Err(EEXIST) => return quarantine(fmt!("token {:#x} is there twice", record.token)),
            place => place?,
        };

        place.insert(IncomingFile {
            data: record.data,
            expected: handlers.expect(record.compatible)?,
            bound: None,
            state: RetrieveState::Waiting,
        })
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there were more files, which are quarantined.
    pub(crate) fn any_corrupt(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// These files.
    pub(crate) fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Adds some files to `to`, from that at `first` on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn show(
        &self,
        first: usize,
        count: usize,
        handlers: &Handlers,
        to: &mut KVec<FileInfo>,
    ) -> Result {
        for (token, file) in self.files.iter().skip(first).take(count) {
            let (state, error) = match &file.state {
                RetrieveState::Waiting => ("waiting", None),
                RetrieveState::Retrieved { .. } => ("retrieved", None),
                RetrieveState::Failed(e) => ("failed", Some(*e)),
            };
            let info = FileInfo {
                token,
                handler: *file.expected.compatible(),
                state,
                error,
                summary: file.summary(handlers)?,
            };
            to.push(info, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Retrieves the file under a token, into `target` if there is one; later it is the same one.
    ///
    /// # Errors
    ///
    /// - [`ENOENT`] if there is none, or no handler for it, at least not yet.
    /// - [`EUCLEAN`] instead if there are corrupt files, of which it may be one.
    /// - [`EEXIST`] if there is a target, and it has been retrieved already.
    /// - [`EOPNOTSUPP`] if there is a target, and the handler does not know what to do with it.
    /// - [`ENOMEM`], and what the handler returns; the same each time, unless it said that another
    ///   attempt makes sense.
    pub(crate) fn retrieve(
        &mut self,
        session: &SessionName,
        token: u64,
        target: Option<&File>,
        handlers: &Handlers,
        registry: &'static Registry,
    ) -> Result<ARef<File>> {
        let missing = if self.any_corrupt() { EUCLEAN } else { ENOENT };

        self.files
            .get_mut(token)
            .ok_or(missing)?
            .retrieve(session, token, target, handlers, registry)
    }

    /// Preserves all files again, under the same tokens. Those that have not been retrieved are
    /// retrieved for that.
    ///
    /// A file whose handler is not there, or has failed for good, is dropped; that is reported.
    ///
    /// # Errors
    ///
    /// What a handler or an FLB returns if it cannot preserve a file, or cannot retrieve it now;
    /// then nothing is preserved.
    pub(crate) fn preserve_again(
        &mut self,
        session: &SessionName,
        handlers: &Handlers,
        registry: &'static Registry,
        refusal: &Refusal,
    ) -> Result<PreservedFiles> {
        let mut preserved = PreservedFiles::new();

        if self.any_corrupt() && may_print() {
            pr_warn!("session '{}': corrupt files are dropped\n", session);
        }
        for (token, incoming) in self.files.iter_mut() {
            let file = match incoming.retrieve(session, token, None, handlers, registry) {
                Ok(file) => file,
                // A shortage that may pass: then the kexec has to wait.
                Err(e) if incoming.may_be_tried_again() => {
                    refusal.report(fmt!(
                        "session '{}': token {:#x}: cannot be retrieved for the next kernel now: {:?}",
                        session,
                        token,
                        e,
                    ));
                    return Err(e);
                }
                Err(_) => {
                    if may_print() {
                        pr_warn!("session '{}': token {:#x} is dropped\n", session, token);
                    }
                    continue;
                }
            };
            preserved
                .add(token, || {
                    let bound = handlers.for_file(&file)?;
                    PreservedFile::new(file, bound, None)
                })
                .inspect_err(|e| {
                    refusal.report(fmt!(
                        "session '{}': token {:#x}: cannot be handed over again: {:?}",
                        session,
                        token,
                        e,
                    ));
                })?;
        }
        Ok(preserved)
    }

    /// Finishes all files, or none.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a handler is not ready for that, or not there.
    pub(crate) fn finish(&mut self, session: &SessionName, handlers: &Handlers) -> Result {
        for (token, file) in self.files.iter_mut() {
            if !file.can_finish(handlers) {
                if may_print() {
                    pr_warn!(
                        "session '{}': token {:#x}: handler '{}': {}\n",
                        session,
                        token,
                        file.expected.compatible(),
                        if file.bound.is_some() {
                            "cannot finish yet"
                        } else {
                            "is not registered, so the file cannot be finished"
                        },
                    );
                }
                return Err(EBUSY);
            }
        }

        while let Some((_, file)) = self.files.pop() {
            file.finish();
        }
        self.files = ByToken::new();
        self.quarantine = Quarantine::new();
        Ok(())
    }
}
