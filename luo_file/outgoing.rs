// SPDX-License-Identifier: GPL-2.0

//! Outgoing files: preserved, frozen at the kexec, and described for the next kernel.
//!
//! A file's record is written when the file is preserved, so the kexec touches only those whose
//! handler freezes them.

use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use super::{
    handlers::{
        BoundHandler,
        Handlers, //
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
        session::{
            File as FileDescription,
            FileRecord,
            Session as SessionHeader, //
        },
        SessionName, //
    },
    ffi::{
        handler::{
            PinnedHandler,
            Saved, //
        },
        kernel::{
            fget,
            may_print, //
        },
        tracepoints, //
    },
    luo_core::{
        refusal::Refusal,
        trace::Trace, //
    },
    luo_flb::FlbUse,
    records::{
        chain::Chain,
        checksums::OutgoingChecks, //
    }, //
};

/// How often a file that changes while it is preserved is offered to the handlers again.
const CHANGES: usize = 8;

/// A preserved file. Dropping it undoes the preservation: first the handler's, then that of the
/// FLBs; then the file is unregistered, and our reference to it is dropped.
pub(super) struct PreservedFile {
    saved: Saved,
    _flbs: FlbUse,
    /// [`None`] for an incoming file that is handed over again: it is registered as such.
    _registered: Option<Registered>,
    _file: ARef<File>,
}

impl PreservedFile {
    /// Preserves a file. Every step undoes itself when a later one fails.
    pub(super) fn new(
        file: ARef<File>,
        bound: BoundHandler,
        registered: Option<Registered>,
    ) -> Result<Self> {
        let flbs = bound.flbs.preserve()?;
        let saved = bound.handler.preserve(&file)?;

        Ok(Self {
            saved,
            _flbs: flbs,
            _registered: registered,
            _file: file,
        })
    }
}

/// Files that are described anew, with their places in the session: some or all of its files.
/// Dropping it undoes that.
pub(crate) struct FilesAnew(KVVec<(usize, PreservedFile)>);

impl FilesAnew {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The files of an outgoing session, in the order in which they were preserved. Dropping it
/// undoes that in reverse order.
///
/// Without a file it takes no memory of its own.
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
            let trace = Trace::<tracepoints::Unpreserve>::begin();
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
        registry: &'static Registry,
    ) -> Result {
        let mut known = None;
        let mut preserve = |file: &ARef<File>, bound: BoundHandler| {
            let handler = known.insert(bound.handler.clone());
            let registered = registry.reserve()?.register(bound.handler.id(file))?;

            PreservedFile::new(file.clone(), bound, Some(registered)).inspect_err(|e| {
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

        let trace = Trace::<tracepoints::Preserve>::begin();
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
            known.as_ref().map(PinnedHandler::compatible),
            &result,
        );
        result
    }

    /// Has those files preserved once more for which another handler is right than before; with
    /// `all`, the others as well.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if no handler accepts a file any more, and what a handler or an FLB returns;
    /// reported.
    pub(crate) fn describe_anew(
        &self,
        session: &SessionName,
        all: bool,
        handlers: &Handlers,
    ) -> Result<FilesAnew> {
        let mut anew = FilesAnew(KVVec::new());
        let Some(lists) = &self.lists else {
            return Ok(anew);
        };

        for (index, (token, file)) in lists.files.iter().enumerate() {
            let former = file.saved.handler().compatible();
            let describe = || {
                let bound = handlers.for_file(file.saved.file())?;
                if !all && bound.handler.compatible() == former {
                    return Ok(None);
                }
                PreservedFile::new(file.saved.file().clone(), bound, None).map(Some)
            };
            let described = describe().inspect_err(|e| {
                pr_warn!(
                    "session '{}': token {:#x}: handler '{}': cannot be described anew: {:?}\n",
                    session,
                    token,
                    former,
                    e,
                );
            })?;
            if let Some(file) = described {
                anew.0.push((index, file), GFP_KERNEL)?;
            }
        }
        Ok(anew)
    }

    /// Puts files into the places of those that they are, which are unpreserved.
    pub(crate) fn replace(&mut self, anew: FilesAnew) {
        let Some(lists) = &mut self.lists else {
            return;
        };
        let Lists { files, records } = &mut **lists;
        let mut anew = anew.0.into_iter().peekable();

        for (index, (token, file)) in files.iter_mut().enumerate() {
            let Some((_, mut new)) = anew.next_if(|(at, _)| *at == index) else {
                continue;
            };
            new._registered = file._registered.take();
            let record = FileDescription {
                compatible: *new.saved.handler().compatible(),
                data: new.saved.data(),
                token,
            };
            // INVARIANT: The record is that of the new one.
            if let Some(place) = records.get_mut(index) {
                *place = FileRecord::new(&record);
            }
            *file = new;
        }
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> usize {
        self.lists.as_ref().map_or(0, |lists| lists.files.len())
    }

    /// Adds the file that `preserve` returns.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if there is one under that token, [`ENOMEM`], and what `preserve` returns.
    pub(super) fn add(
        &mut self,
        token: u64,
        preserve: impl FnOnce() -> Result<PreservedFile>,
    ) -> Result {
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
                let record = FileDescription {
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

    /// Freezes all files, in order, and updates their records.
    ///
    /// # Errors
    ///
    /// What a handler returns; those frozen before are unfrozen then, in reverse order. [`E2BIG`]
    /// if there are more than the next kernel can take.
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
            let trace = Trace::<tracepoints::Freeze>::begin();
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

    /// The record of the session `name`, which has these files.
    pub(crate) fn info(&self, name: &SessionName) -> SessionHeader {
        let records = self.lists.as_ref().map(|lists| &lists.records);

        SessionHeader {
            name: *name,
            files: records.and_then(Chain::head),
            // Lossless: no kernel has wider sizes.
            count: records.map_or(0, Chain::len) as u64,
        }
    }

    /// Passes the records to a function that corrupts them.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(crate) fn each_used(&mut self, visit: impl FnMut(&mut [u8])) {
        if let Some(lists) = &mut self.lists {
            lists.records.each_used(visit);
        }
    }

    /// Adds some files to `to`, from that at `first` on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
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

    /// Adds the checksums of the files behind those of the sessions before.
    pub(crate) fn check(&self, checks: &mut OutgoingChecks) -> Result {
        match &self.lists {
            Some(lists) => checks.add_files(&lists.records),
            None => checks.add_files(&Chain::new()),
        }
    }
}
