// SPDX-License-Identifier: GPL-2.0

//! What the verbs do.

mod generate;
mod incoming;
mod kernel;
mod look;
mod outgoing;
mod wait;

use crate::{
    cli::{
        Arguments,
        Verb, //
    },
    exit::{
        Exit,
        Outcome, //
    },
    keep,
    output::Output, //
};
use liveupdate::{
    Error,
    SessionName, //
};
use std::{
    ffi::OsStr,
    process::ExitCode, //
};

/// Runs the verb.
pub fn run(arguments: &Arguments, output: Output) -> Outcome<ExitCode> {
    let done = |()| ExitCode::SUCCESS;

    match &arguments.verb {
        Verb::Status => look::status(arguments, output).map(code),
        Verb::List => look::list(arguments, output).map(done),
        Verb::Show { session } => look::show(arguments, output, name(session)?).map(done),
        Verb::Monitor => wait::monitor(arguments, output).map(done),
        Verb::Wait { state, timeout } => wait::wait(output, *state, *timeout).map(done),
        Verb::Check(next) => kernel::check(output, next).map(code),
        Verb::Load(next) => kernel::load(output, next).map(done),
        Verb::Unload => kernel::unload(output).map(done),
        Verb::Kexec { systemd } => kernel::kexec(output, *systemd).map(done),
        Verb::Hold {
            session,
            files,
            detach,
        } => outgoing::hold(arguments, output, name(session)?, files, *detach).map(done),
        Verb::Run { sessions, command } => outgoing::run(arguments, output, sessions, command),
        Verb::Retrieve { session, .. } => {
            incoming::retrieve(arguments, output, name(session)?).map(done)
        }
        Verb::Finish { session } => incoming::finish(arguments, output, name(session)?).map(done),
        Verb::Discard { session, yes } => {
            incoming::discard(arguments, output, name(session)?, *yes).map(done)
        }
        Verb::Subscribe {
            id,
            files,
            class,
            exec,
        } => outgoing::subscribe(
            arguments,
            output,
            id,
            files,
            class.as_deref(),
            exec.as_deref(),
        )
        .map(done),
        Verb::Update { kernel, dry_run } => {
            kernel::update(arguments, output, kernel, *dry_run).map(code)
        }
        Verb::Generate { directory } => generate::generate(directory).map(done),
        Verb::Keep { session } => keep::keep(&arguments.device, name(session)?).map(done),
    }
}

/// A name from the command line.
fn name(text: &OsStr) -> Outcome<SessionName> {
    Ok(SessionName::try_from(text).map_err(Error::from)?)
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
