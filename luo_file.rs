// SPDX-License-Identifier: GPL-2.0

//! The life of one preserved file, and the files of one session.
//!
//! Below sessions, above the drivers' callbacks and FLBs. A file is either outgoing
//! ([`PreservedFiles`]) or incoming ([`IncomingFiles`]); there is no way from one to the other.
//! Both are owned by their session and protected by its lock.
//!
//! Cost: a file is found by its token in logarithmic time at most. Its record for the next kernel is
//! written when it is preserved; at the time of the kexec only those are touched whose handler
//! freezes them.

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

use crate::{
    abi::{
        check,
        session::{
            File as Record,
            FileRecord,
            Session as SessionInfo, //
        },
        Compatible,
        SessionName, //
    },
    callbacks::{
        fget,
        may_print,
        tracepoint,
        Handler,
        Saved, //
    },
    luo_chain::{
        Chain,
        Incoming, //
    },
    luo_check::{
        OutgoingChecks,
        Spanned, //
    },
    luo_claims::{
        Claim,
        Claims, //
    },
    luo_flb::FlbUse,
    luo_handler::{
        Bound,
        Expected,
        Handlers, //
    },
    luo_quarantine::Quarantine,
    luo_refusal::Refusal,
    luo_tokens::ByToken,
    luo_trace::Trace, //
};

/// What there is to be seen of a file.
pub(crate) struct FileInfo {
    pub(crate) token: u64,
    pub(crate) handler: Compatible,
    pub(crate) state: &'static str,
    /// Why it is in that state, if it failed.
    pub(crate) error: Option<Error>,
    /// What its handler says of it, if anything.
    pub(crate) summary: KVec<u8>,
}

/// How often a file that changes while it is preserved is offered to the handlers once more.
const CHANGES: usize = 8;

/// A preserved file. Dropping it undoes the preservation: the handler's first, then that of the
/// FLBs; then the file may be preserved again, and at last our reference to it goes.
struct PreservedFile {
    saved: Saved,
    _flbs: FlbUse,
    /// Nothing, if the claim is that of an incoming file which is to cross again.
    _claim: Option<Claim>,
    _file: ARef<File>,
}

impl PreservedFile {
    /// Preserves a file. Every step undoes itself when a later one fails.
    fn new(file: ARef<File>, bound: Bound, claim: Option<Claim>) -> Result<Self> {
        let flbs = bound.flbs.preserve()?;
        let saved = bound.handler.preserve(&file)?;

        Ok(Self {
            saved,
            _flbs: flbs,
            _claim: claim,
            _file: file,
        })
    }
}

/// The files of an outgoing session, in the order in which they were preserved. Dropping it
/// undoes that in reverse order.
///
/// Before the first one it takes next to no memory, and nothing has to be let go of.
pub(crate) struct PreservedFiles {
    lists: Option<KBox<Lists>>,
}

/// # Invariants
///
/// `records` holds the record of each of `files`, in the same order.
struct Lists {
    files: ByToken<PreservedFile>,
    records: Chain<FileRecord>,
}

impl Lists {
    fn new() -> Result<KBox<Self>> {
        // INVARIANT: Both are empty.
        let empty = Self {
            files: ByToken::new(),
            records: Chain::new(),
        };

        Ok(KBox::new(empty, GFP_KERNEL_ACCOUNT)?)
    }

    /// Undoes the preservation of all files, in reverse order.
    // Out of line, as most sessions that are closed have no files.
    #[inline(never)]
    fn unpreserve(&mut self, session: &SessionName) {
        while let Some((token, file)) = self.files.pop() {
            let trace = Trace::<tracepoint::Unpreserve>::begin();
            let handler = file.saved.handler().clone();
            drop(file);
            trace.file(session, token, Some(handler.compatible()), &Ok(()));
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        while let Some(file) = self.files.pop() {
            drop(file);
        }
    }
}

impl PreservedFiles {
    pub(crate) fn new() -> Self {
        Self { lists: None }
    }

    /// Preserves the file behind a descriptor of the current task.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is a file under that token.
    /// - [`EBADF`] if there is no file behind the descriptor.
    /// - [`ENOENT`] if no handler accepts the file.
    /// - [`EBUSY`] if the file is preserved already, here or elsewhere.
    /// - [`ENOMEM`], and what the handler or an FLB returns.
    ///
    /// Nothing has changed then.
    pub(crate) fn preserve(
        &mut self,
        session: &SessionName,
        token: u64,
        fd: i32,
        handlers: &Handlers,
        claims: &'static Claims,
    ) -> Result {
        let mut known = None;
        let mut preserve = |file: &ARef<File>, bound: Bound| {
            let handler = known.insert(bound.handler.clone());
            let claim = claims.room()?.claim(bound.handler.id(file))?;

            PreservedFile::new(file.clone(), bound, Some(claim)).inspect_err(|e| {
                if may_print() {
                    pr_warn!(
                        "session '{}': token {:#x}: handler '{}': preserve failed: {:?}\n",
                        session,
                        token,
                        handler.compatible(),
                        e,
                    );
                }
            })
        };

        let trace = Trace::<tracepoint::Preserve>::begin();
        let result = self.add(token, || {
            let file = fget(fd)?;
            let mut bound = handlers.for_file(&file)?;
            for _ in 0..CHANGES {
                let compatible = *bound.handler.compatible();
                match preserve(&file, bound) {
                    // If it has changed, it may be one for another handler now.
                    Err(e) if e == EAGAIN => bound = handlers.for_file(&file)?,
                    result => return result,
                }
                if *bound.handler.compatible() == compatible {
                    break;
                }
            }
            Err(EAGAIN)
        });
        trace.file(
            session,
            token,
            known.as_ref().map(Handler::compatible),
            &result,
        );
        result
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> usize {
        self.lists.as_ref().map_or(0, |lists| lists.files.len())
    }

    /// Adds the file that `preserve` makes, if there is none under that token yet.
    fn add(&mut self, token: u64, preserve: impl FnOnce() -> Result<PreservedFile>) -> Result {
        let lists = match &mut self.lists {
            Some(lists) => lists,
            none => none.insert(Lists::new()?),
        };
        let Lists { files, records } = &mut **lists;
        let count = files.len();
        let place = files.vacancy(token)?;

        // Memory first, so that nothing can fail once the file is preserved.
        records
            .reserve(count + 1)
            .and_then(|()| {
                let file = preserve()?;
                let record = Record {
                    compatible: *file.saved.handler().compatible(),
                    data: file.saved.data(),
                    token,
                };
                // INVARIANT: The file gets into both.
                records.push(&FileRecord::new(&record))?;
                place.insert(file)
            })
            .inspect_err(|_| records.shrink(count))
    }

    /// Freezes all files, in order. What the handlers change is written down.
    ///
    /// # Errors
    ///
    /// What a handler returns; those frozen before are unfrozen then, in reverse order. [`E2BIG`] if
    /// there are more than the next kernel can take.
    pub(crate) fn freeze(&mut self, session: &SessionName, refusal: &Refusal) -> Result {
        let Some(lists) = &mut self.lists else {
            return Ok(());
        };
        let Lists { files, records } = &mut **lists;
        let mut failed = None;

        records.check_length().inspect_err(|e| {
            refusal.report(fmt!(
                "session '{}': too many files for luo-v5: {:?}",
                session,
                e
            ));
        })?;

        for (index, (token, file)) in files.iter_mut().enumerate() {
            if !file.saved.handler().has_freeze() {
                continue;
            }
            let trace = Trace::<tracepoint::Freeze>::begin();
            let result = file.saved.freeze();
            let handler = file.saved.handler().compatible();
            trace.file(session, token, Some(handler), &result);
            if let Err(e) = result {
                refusal.report(fmt!(
                    "session '{}': token {:#x}: handler '{}': freeze failed: {:?}",
                    session,
                    token,
                    file.saved.handler().compatible(),
                    e,
                ));
                failed = Some((index, e));
                break;
            }
            if let Some(record) = records.get_mut(index) {
                record.set_data(file.saved.data());
            }
        }

        match failed {
            Some((index, e)) => {
                self.unfreeze_first(index);
                Err(e)
            }
            None => Ok(()),
        }
    }

    /// Undoes the preservation of all files, in reverse order.
    pub(crate) fn unpreserve(&mut self, session: &SessionName) {
        if let Some(mut lists) = self.lists.take() {
            lists.unpreserve(session);
        }
    }

    /// Undoes [`PreservedFiles::freeze`].
    pub(crate) fn unfreeze(&mut self) {
        self.unfreeze_first(self.len());
    }

    fn unfreeze_first(&mut self, count: usize) {
        let Some(lists) = &mut self.lists else {
            return;
        };

        for (_, file) in lists.files.iter_mut().take(count).rev() {
            file.saved.unfreeze();
        }
    }

    /// What to tell the next kernel about the files of the session `name`.
    pub(crate) fn info(&self, name: &SessionName) -> SessionInfo {
        let records = self.lists.as_ref().map(|lists| &lists.records);

        SessionInfo {
            name: *name,
            files: records.and_then(Chain::head),
            // Lossless: no kernel has wider sizes.
            count: records.map_or(0, Chain::len) as u64,
        }
    }

    /// Shows the records to a function that damages them.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(crate) fn each_used(&mut self, visit: impl FnMut(&mut [u8])) {
        if let Some(lists) = &mut self.lists {
            lists.records.each_used(visit);
        }
    }

    /// Adds what there is to be seen of some files to `to`.
    pub(crate) fn show(&self, first: usize, count: usize, to: &mut KVec<FileInfo>) -> Result {
        let Some(lists) = &self.lists else {
            return Ok(());
        };

        for (token, file) in lists.files.iter().skip(first).take(count) {
            let info = FileInfo {
                token,
                handler: *file.saved.handler().compatible(),
                state: "preserved",
                error: None,
                summary: file.saved.summary()?,
            };
            to.push(info, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Adds the checks of the files to those of the sessions before.
    pub(crate) fn check(&self, checks: &mut OutgoingChecks) -> Result {
        match &self.lists {
            Some(lists) => checks.add_files(&lists.records),
            None => checks.add_files(&Chain::new()),
        }
    }
}

/// A file that came from the previous kernel.
struct IncomingFile {
    data: u64,
    expected: Expected,
    /// Looked up when it is needed first: it may be registered late, or never.
    bound: Option<Bound>,
    state: State,
}

/// How far an incoming file has come.
enum State {
    /// Nobody has asked for it.
    Waiting,
    /// It exists. There is no claim on it if its handler says that it is one that existed before.
    Retrieved {
        _claim: Option<Claim>,
        file: ARef<File>,
    },
    /// It could not be made, and will not be tried again.
    Failed(Error),
}

impl IncomingFile {
    fn bind(&mut self, handlers: &Handlers) -> Result<&Handler> {
        if self.bound.is_none() {
            self.bound = handlers.for_compatible(self.expected.compatible());
        }
        self.bound
            .as_ref()
            .map(|bound| &bound.handler)
            .ok_or(ENOENT)
    }

    /// The file, made by its handler if it does not exist.
    fn retrieve(
        &mut self,
        session: &SessionName,
        token: u64,
        handlers: &Handlers,
        claims: &'static Claims,
    ) -> Result<ARef<File>> {
        match &self.state {
            State::Retrieved { file, .. } => return Ok(file.clone()),
            State::Failed(e) => return Err(*e),
            State::Waiting => {}
        }

        let trace = Trace::<tracepoint::Retrieve>::begin();
        let result = self.retrieve_now(session, token, handlers, claims);
        trace.file(session, token, Some(self.expected.compatible()), &result);
        result
    }

    /// Has the handler make the file.
    fn retrieve_now(
        &mut self,
        session: &SessionName,
        token: u64,
        handlers: &Handlers,
        claims: &'static Claims,
    ) -> Result<ARef<File>> {
        self.make(handlers, claims).map_err(|error| {
            let (e, how) = match error {
                RetrieveError::Again(e, ()) => (e, "may be tried again"),
                RetrieveError::Final(e) => {
                    self.state = State::Failed(e);
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

    fn make(
        &mut self,
        handlers: &Handlers,
        claims: &'static Claims,
    ) -> Result<ARef<File>, RetrieveError<()>> {
        let data = self.data;
        let again = |e| RetrieveError::Again(e, ());
        let handler = self.bind(handlers).map_err(again)?;
        let room = claims.room().map_err(again)?;
        let file = handler.retrieve(data)?;
        let claim = room.claim(handler.id(&file)).ok();

        self.state = State::Retrieved {
            _claim: claim,
            file: file.clone(),
        };
        Ok(file)
    }

    /// Whether a file that could not be made may be made yet, by the handler that is there.
    fn may_be_tried_again(&self) -> bool {
        self.bound.is_some() && matches!(self.state, State::Waiting)
    }

    /// What the handler is told of the file.
    fn outcome(&self) -> Outcome<'_, ()> {
        match &self.state {
            State::Waiting => Outcome::NeverAsked(()),
            State::Retrieved { file, .. } => Outcome::Retrieved(file),
            State::Failed(error) => Outcome::Failed {
                error: *error,
                left: None,
            },
        }
    }

    /// What the handler says of it, if it is there and has not failed.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn summary(&self, handlers: &Handlers) -> Result<KVec<u8>> {
        if matches!(self.state, State::Failed(_)) {
            return Ok(KVec::new());
        }
        match handlers.for_compatible(self.expected.compatible()) {
            Some(bound) => bound.handler.summary(self.outcome(), self.data),
            None => Ok(KVec::new()),
        }
    }

    /// Whether [`IncomingFile::finish`] may be called, for which there must be a handler.
    fn can_finish(&mut self, handlers: &Handlers) -> bool {
        // Anew, since the handler may have come to depend on an FLB that finishes with the file.
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
    /// More files, so damaged that not even their token can be relied on.
    quarantine: Quarantine,
}

impl IncomingFiles {
    /// Reads what the previous kernel left of a session's files, and tells whether anything was
    /// damaged.
    ///
    /// A file that is damaged is quarantined.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it cannot be read; then it is in the `quarantine`.
    pub(crate) fn read(
        session: &SessionInfo,
        checks: Option<Spanned<'_>>,
        handlers: &'static Handlers,
        quarantine: &mut Quarantine,
    ) -> Result<(Self, bool)> {
        let mut files = Self {
            files: ByToken::new(),
            quarantine: Quarantine::new(),
        };

        let walked = check::walk(
            &Incoming,
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
        if walked.damaged_header {
            pr_err!(
                "incoming session '{}': header of the last file block is damaged, nothing is lost\n",
                session.name,
            );
        }
        let damaged = files.is_damaged() || walked.damaged_header;
        Ok((files, damaged))
    }

    /// Takes in one file. One that cannot be read is quarantined.
    fn push(
        &mut self,
        session: &SessionInfo,
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
            state: State::Waiting,
        })
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there were more files, which are damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// Why, a line each.
    pub(crate) fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Adds what there is to be seen of some files to `to`.
    pub(crate) fn show(
        &self,
        first: usize,
        count: usize,
        handlers: &Handlers,
        to: &mut KVec<FileInfo>,
    ) -> Result {
        for (token, file) in self.files.iter().skip(first).take(count) {
            let (state, error) = match &file.state {
                State::Waiting => ("waiting", None),
                State::Retrieved { .. } => ("retrieved", None),
                State::Failed(e) => ("failed", Some(*e)),
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

    /// The file under a token. Its handler makes it when it is asked for first; later it is the
    /// same one.
    ///
    /// # Errors
    ///
    /// - [`ENOENT`] if there is none, or no handler for it, at least not yet.
    /// - [`EUCLEAN`] instead if there are damaged files, of which it may be one.
    /// - [`ENOMEM`], and what the handler returns. It returns it again each time, unless it said
    ///   that trying again makes sense.
    pub(crate) fn retrieve(
        &mut self,
        session: &SessionName,
        token: u64,
        handlers: &Handlers,
        claims: &'static Claims,
    ) -> Result<ARef<File>> {
        let missing = if self.is_damaged() { EUCLEAN } else { ENOENT };

        self.files
            .get_mut(token)
            .ok_or(missing)?
            .retrieve(session, token, handlers, claims)
    }

    /// Preserves all files for the next kernel as they came from the previous one, under the same
    /// tokens. Nobody asked for those that wait, so it is done now that there is no other chance.
    ///
    /// A file that is lost already, or has no handler, stays behind; that is reported.
    ///
    /// # Errors
    ///
    /// What a handler or an FLB returns when it cannot preserve a file, or make it just now; then
    /// nothing is preserved.
    pub(crate) fn preserve_again(
        &mut self,
        session: &SessionName,
        handlers: &Handlers,
        claims: &'static Claims,
        refusal: &Refusal,
    ) -> Result<PreservedFiles> {
        let mut preserved = PreservedFiles::new();

        if self.is_damaged() && may_print() {
            pr_warn!("session '{}': damaged files are left behind\n", session);
        }
        for (token, incoming) in self.files.iter_mut() {
            let file = match incoming.retrieve(session, token, handlers, claims) {
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
                        pr_warn!("session '{}': token {:#x} is left behind\n", session, token,);
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
                        "session '{}': token {:#x}: cannot cross again: {:?}",
                        session,
                        token,
                        e,
                    ));
                })?;
        }
        Ok(preserved)
    }

    /// Ends the life of all files, or of none.
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
