// SPDX-License-Identifier: GPL-2.0

//! What `/sys/kernel/debug/liveupdate/` shows: all sessions and their files, subsystems, FLBs, and
//! how long the phases of the last update took. For people who look into a problem, and no
//! interface.
//!
//! Of the highest layer. Nothing is kept for it but the reasons why something is quarantined. A
//! reader goes from session to session, and in a session from one piece to the next, and keeps no
//! lock of theirs for longer: what changes meanwhile is seen as it was before or after, and a kexec
//! does not wait for all of it.

use core::fmt::{
    Formatter,
    Result as FmtResult,
    Write, //
};

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    prelude::*, //
};

use super::orchestrator::luo;
use crate::{
    luo_file::FileInfo,
    luo_session::SessionInfo, //
};

/// How many files of a session are looked at while it is locked.
const PIECE: usize = 64;

/// The files of the directory, which are there as long as this is.
#[pin_data]
pub(crate) struct DebugFiles {
    #[pin]
    outgoing: File<()>,
    #[pin]
    incoming: File<()>,
    #[pin]
    subsystems: File<()>,
    #[pin]
    flbs: File<()>,
    #[pin]
    timings: File<()>,
}

impl DebugFiles {
    /// Makes the directory. That it cannot be made, as debugfs has it, is no error.
    pub(crate) fn new(in_directory: &Dir) -> impl PinInit<Self, Error> + '_ {
        try_pin_init!(Self {
            outgoing <- in_directory.read_callback_file(c"outgoing", (), &show_outgoing),
            incoming <- in_directory.read_callback_file(c"incoming", (), &show_incoming),
            subsystems <- in_directory.read_callback_file(c"subsystems", (), &show_subsystems),
            flbs <- in_directory.read_callback_file(c"flbs", (), &show_flbs),
            timings <- in_directory.read_callback_file(c"timings", (), &show_timings),
        })
    }
}

fn show_outgoing(_: &(), f: &mut Formatter<'_>) -> FmtResult {
    luo().map_or(Ok(()), |luo| show_sessions(f, luo.outgoing.all()))
}

fn show_incoming(_: &(), f: &mut Formatter<'_>) -> FmtResult {
    let Some(luo) = luo() else {
        return Ok(());
    };

    show_sessions(f, luo.incoming.all())?;
    luo.incoming.quarantine().map_or(Ok(()), |all| all.show(f))
}

/// Shows sessions.
fn show_sessions<S: SessionInfo>(f: &mut Formatter<'_>, sessions: Result<KVVec<S>>) -> FmtResult {
    let Ok(sessions) = sessions else {
        return writeln!(f, "no memory to show sessions");
    };

    for this in &sessions {
        let (name, state, files) = this.summary();
        writeln!(f, "session '{name}' {state}, {files} files")?;

        let mut seen = 0;
        loop {
            let mut piece = KVec::new();
            if this.files(seen, PIECE, &mut piece).is_err() {
                writeln!(f, "  no memory to show more")?;
                break;
            }
            for file in &piece {
                show_file(f, file)?;
            }
            if piece.len() < PIECE {
                break;
            }
            seen = seen.saturating_add(PIECE);
        }
        this.show_quarantine(f)?;
    }
    Ok(())
}

fn show_file(f: &mut Formatter<'_>, file: &FileInfo) -> FmtResult {
    let FileInfo {
        token,
        handler,
        state,
        error,
        summary,
    } = file;

    write!(f, "  token {token:#x} handler '{handler}' {state}")?;
    if let Some(e) = error {
        write!(f, " {e:?}")?;
    }
    if !summary.is_empty() {
        f.write_str(": ")?;
    }
    for byte in summary {
        f.write_char(match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '?',
        })?;
    }
    writeln!(f)
}

fn show_subsystems(_: &(), f: &mut Formatter<'_>) -> FmtResult {
    luo().map_or(Ok(()), |luo| luo.context.subsystems.show(f))
}

fn show_flbs(_: &(), f: &mut Formatter<'_>) -> FmtResult {
    luo().map_or(Ok(()), |luo| luo.flbs.show(f))
}

fn show_timings(_: &(), f: &mut Formatter<'_>) -> FmtResult {
    luo().map_or(Ok(()), |luo| luo.context.status.timings.show(f))
}
