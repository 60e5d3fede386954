// SPDX-License-Identifier: GPL-2.0

//! Tracing: how long an operation took, and how it ended, for trace consumers.
//!
//! While a tracepoint is off, a [`Trace`] is a branch that is not taken: no clock is read.

use core::marker::PhantomData;

use kernel::{
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

use crate::{
    abi::{
        Compatible,
        SessionName, //
    },
    ffi::tracepoints::Tracepoint, //
};

/// Something that is being done, to be told by the tracepoint `T` once it is.
#[must_use]
pub(crate) struct Trace<T> {
    begin: Option<Instant<Monotonic>>,
    tracepoint: PhantomData<T>,
}

impl<T: Tracepoint> Trace<T> {
    /// Begins.
    #[inline(always)]
    pub(crate) fn begin() -> Self {
        Self {
            begin: T::is_on().then(Instant::now),
            tracepoint: PhantomData,
        }
    }

    /// Tells of a session as a whole.
    #[inline(always)]
    pub(crate) fn session<R>(self, session: &SessionName, result: &Result<R>) {
        if self.begin.is_some() {
            self.tell(Some(session), 0, None, result.as_ref().err());
        }
    }

    /// Tells of a file.
    #[inline(always)]
    pub(crate) fn file<R>(
        self,
        session: &SessionName,
        token: u64,
        handler: Option<&Compatible>,
        result: &Result<R>,
    ) {
        if self.begin.is_some() {
            self.tell(Some(session), token, handler, result.as_ref().err());
        }
    }

    #[cold]
    fn tell(
        self,
        session: Option<&SessionName>,
        token: u64,
        handler: Option<&Compatible>,
        error: Option<&Error>,
    ) {
        let nanos = self.begin.map_or(0, |begin| begin.elapsed().as_nanos());

        T::emit(
            session.map_or(c"", SessionName::as_cstr),
            token,
            handler.map_or(c"", Compatible::as_cstr),
            nanos.unsigned_abs(),
            error.map_or(0, |e| e.to_errno()),
        );
    }
}

/// Tells of something that is corrupt, as far as it is known.
pub(crate) fn quarantined(session: Option<&SessionName>, error: Error) {
    use crate::ffi::tracepoints::Quarantine;

    if Quarantine::is_on() {
        Trace::<Quarantine>::begin().tell(session, 0, None, Some(&error));
    }
}
