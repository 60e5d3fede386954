// SPDX-License-Identifier: GPL-2.0

//! Processes that a test starts: agents that end by themselves, or are killed, and those that go on
//! until the kexec.

use crate::{
    harness::{
        ensure,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        SharedWords,
        PAGE, //
    }, //
};
use liveupdate::Device;
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
        pause,
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
    os::{
        fd::OwnedFd,
        unix::fs::FileExt, //
    },
    sync::atomic::AtomicU64, //
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
                    Err(Failure::Over) => "over".to_owned(),
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

/// What processes that work until the kexec leave for the next kernel: numbers, and what went wrong.
pub struct Notes {
    file: File,
    words: SharedWords,
}

impl Notes {
    /// Where there is an error, if there is one.
    const ERROR: usize = PAGE;

    fn session(stage: &Stage) -> String {
        format!("{}-notes", stage.name)
    }

    /// Empty ones, preserved in a session of their own.
    pub fn new(device: &Device, stage: &mut Stage) -> Outcome<Self> {
        // Of two pages, so that it has nothing to do with small files.
        let file = sys::memfd_of("notes", &[0; 2 * PAGE])?;
        let session = device.create_session(&Self::session(stage))?;

        session.preserve(&file, 0)?;
        stage.keep(session);
        let words = SharedWords::of(&file, 2 * PAGE)?;
        Ok(Self { file, words })
    }

    /// A number.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < PAGE / 8);
        self.words.word(index * 8)
    }

    /// Starts a child that does something, and then stays until the kexec with all that it has.
    ///
    /// What the closure owns is the child's alone.
    pub fn child(&self, f: impl FnOnce() -> Outcome) -> Outcome<Pid> {
        // SAFETY: This process has one thread.
        match unsafe { fork()? } {
            ForkResult::Child => {
                if let Err(Failure::Failed(why) | Failure::Skipped(why)) = f() {
                    let _ = self.file.write_all_at(why.as_bytes(), Self::ERROR as u64);
                }
                loop {
                    pause();
                }
            }
            ForkResult::Parent { child } => Ok(child),
        }
    }

    /// In the next kernel: the numbers, if nothing went wrong.
    pub fn read(device: &Device, stage: &Stage) -> Outcome<Vec<u64>> {
        let session = device.retrieve_session(&Self::session(stage))?;
        let bytes = sys::content(&session.retrieve(0)?.into())?;

        session.finish()?;
        let (words, error) = bytes.split_at(Self::ERROR);
        let error = error.split(|&byte| byte == 0).next().unwrap_or_default();
        ensure!(
            error.is_empty(),
            "in the old kernel: {}",
            String::from_utf8_lossy(error)
        );
        Ok(words
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect())
    }
}

/// Waits until a process is dead, also if it is no child: all that it had is closed then.
pub fn await_death(process: Pid) -> Outcome {
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let state = stat.rsplit_once(") ").map(|(_, state)| state);
        if state.is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
