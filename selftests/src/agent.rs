// SPDX-License-Identifier: GPL-2.0

//! Processes that a test starts: agents that end by themselves, or are killed.

use crate::harness::{
    Failure,
    Outcome, //
};
use nix::{
    sys::{
        signal::{
            kill,
            Signal, //
        },
        wait::{
            waitpid,
            WaitStatus, //
        },
    },
    unistd::{
        fork,
        pipe,
        setgroups,
        setresgid,
        setresuid,
        ForkResult,
        Gid,
        Pid,
        Uid, //
    },
};
use std::{
    fs::File,
    io::{
        Read,
        Write, //
    },
    os::fd::OwnedFd, //
};

/// A child with something to do. Dropping it kills it.
pub struct Agent {
    process: Option<Pid>,
    /// Where it says why it failed.
    words: OwnedFd,
}

impl Agent {
    /// Starts a child, from a process that has one thread.
    pub fn start(f: impl FnOnce() -> Outcome) -> Outcome<Self> {
        let (reader, writer) = pipe()?;

        // SAFETY: This process has one thread.
        match unsafe { fork()? } {
            ForkResult::Child => {
                drop(reader);
                let word = match f() {
                    Ok(()) => String::new(),
                    Err(Failure::Failed(why)) => why,
                    Err(Failure::Skipped(why)) => format!("skipped: {why}"),
                };
                let _ = File::from(writer).write_all(word.as_bytes());
                // SAFETY: Ends the process. What it has inherited is closed, not dropped.
                unsafe { nix::libc::_exit(0) }
            }
            ForkResult::Parent { child } => Ok(Self {
                process: Some(child),
                words: reader,
            }),
        }
    }

    /// Waits for its end, which must be a good one.
    pub fn join(mut self) -> Outcome {
        let status = self.wait()?;
        self.verdict()?;
        match status {
            Some(WaitStatus::Exited(_, 0)) => Ok(()),
            other => Err(Failure::here(format_args!("the agent ended: {other:?}"))),
        }
    }

    /// Kills it, wherever it is. Before that, nothing must have gone wrong for it.
    pub fn kill(mut self) -> Outcome {
        if let Some(process) = self.process {
            kill(process, Signal::SIGKILL)?;
        }
        self.wait()?;
        self.verdict()
    }

    fn wait(&mut self) -> Outcome<Option<WaitStatus>> {
        let process = self.process.take();

        Ok(process.map(|process| waitpid(process, None)).transpose()?)
    }

    fn verdict(&mut self) -> Outcome {
        let mut word = String::new();

        File::from(self.words.try_clone()?).read_to_string(&mut word)?;
        match word.is_empty() {
            true => Ok(()),
            false => Err(Failure::Failed(format!("in the agent: {word}"))),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = self.process {
            let _ = kill(process, Signal::SIGKILL);
            let _ = self.wait();
        }
    }
}

/// Does something as a user without any privilege, in a child.
pub fn unprivileged(f: impl FnOnce() -> Outcome) -> Outcome {
    Agent::start(|| {
        let (user, group) = (Uid::from_raw(1000), Gid::from_raw(1000));

        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
        f()
    })?
    .join()
}
