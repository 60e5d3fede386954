// SPDX-License-Identifier: GPL-2.0

//! The thread for what may take time: the device, the check, loading, the kexec.
//!
//! It takes one job after the other, in order. The device is open only while jobs that need it are
//! waiting.

use crate::{
    core::{
        Input,
        RetrieveError, //
    },
    crash,
    kernel::{
        self,
        Own, //
    },
    manager::Method,
    preflight::{
        self,
        Image, //
    },
    protocol::{
        Finding,
        Id,
        Level, //
    },
    record::{
        Entry,
        Map, //
    },
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::sys::eventfd::{
    EfdFlags,
    EventFd, //
};
use std::{
    os::fd::{
        AsFd,
        OwnedFd, //
    },
    process::Command,
    sync::{
        mpsc::{
            channel,
            Receiver,
            Sender, //
        },
        Arc,
    },
    thread,
};

/// What is to be done.
#[derive(Debug)]
pub enum Job {
    /// Make a session for a client.
    Create(Entry),
    /// Take over a session.
    Retrieve(Id, String),
    /// Find out whether a session is finished.
    Probe(Id, OwnedFd),
    /// Finish a session, of which there may be a descriptor.
    Discard(Id, String, Option<OwnedFd>),
    /// Find out how much a session holds.
    Measure(Id, String),
    /// Look whether an update can succeed, and load the image unless it is a dry run.
    Check(u64, Option<Image>, bool),
    /// Hand over the map.
    Write(Map),
    /// Start the next kernel.
    Kexec(Result<Method, String>),
    /// End luod's own session.
    EndOwn,
    /// Unload what was loaded.
    Unload,
}

/// What was done.
#[derive(Debug)]
pub struct Done {
    /// For the state machine.
    pub input: Option<Input>,
    /// A session that luod has now.
    pub session: Option<(String, OwnedFd)>,
}

/// The thread, from outside.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    bell: Arc<EventFd>,
}

impl Worker {
    /// Starts it. `loaded`: whether luod may have loaded the next kernel before.
    pub fn start(own: Own, loaded: bool) -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (jobs, todo) = channel();
        let (tell, done) = channel();
        let thread = Thread {
            own,
            loaded,
            todo,
            tell,
            bell: bell.clone(),
        };
        thread::spawn(move || thread.run());
        Ok(Self { jobs, done, bell })
    }

    /// Gives it a job.
    pub fn give(&self, job: Job) {
        // It ends with the process only.
        let _ = self.jobs.send(job);
    }

    /// To be polled.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// What was done since the last call.
    pub fn done(&self) -> Vec<Done> {
        // It may not have rung.
        let _ = nix::unistd::read(self.bell.as_fd(), &mut [0; 8]);
        self.done.try_iter().collect()
    }
}

struct Thread {
    own: Own,
    /// Whether luod has loaded the next kernel.
    loaded: bool,
    todo: Receiver<Job>,
    tell: Sender<Done>,
    bell: Arc<EventFd>,
}

impl Thread {
    fn run(mut self) {
        let mut device = None;

        while let Ok(job) = self.todo.try_recv().or_else(|_| {
            // Another process can have it while there is nothing to do.
            device = None;
            self.todo.recv()
        }) {
            if !matches!(job, Job::Create(_)) {
                device = None;
            }
            let done = self.work(job, &mut device);
            // Before the other side can see it.
            if self.tell.send(done).is_err() || self.bell.write(1).is_err() {
                return;
            }
        }
    }

    fn work(&mut self, job: Job, device: &mut Option<Device>) -> Done {
        let mut session = None;
        let input = match job {
            Job::Create(entry) => {
                let result = match device {
                    Some(device) => kernel::create(device, &entry),
                    None => kernel::open_device()
                        .map_err(|err| kernel::explain(&err))
                        .and_then(|opened| kernel::create(device.insert(opened), &entry)),
                };
                crash::point("created");
                Some(Input::Created(
                    entry.id,
                    result.map(|(name, fd)| {
                        session = Some((name.clone(), fd));
                        name
                    }),
                ))
            }
            Job::Retrieve(id, name) => {
                let result = kernel::retrieve(&name);
                crash::point("retrieved");
                Some(Input::Retrieved(
                    id,
                    result.map(|fd| session = Some((name, fd))),
                ))
            }
            Job::Probe(id, fd) => Some(Input::Probed(id, kernel::is_finished(fd))),
            Job::Discard(id, name, fd) => {
                let result = match fd {
                    Some(fd) => kernel::finish(fd),
                    None => kernel::retrieve(&name)
                        .map_err(|err| match err {
                            RetrieveError::Gone => "it is gone already".to_owned(),
                            RetrieveError::Corrupt(why) | RetrieveError::Later(why) => why,
                        })
                        .and_then(kernel::finish),
                };
                Some(Input::Discarded(id, result))
            }
            Job::Measure(id, name) => Some(Input::Measured(id, kernel::measure(&name))),
            Job::Check(number, image, dry_run) => {
                let found = self.check(image, dry_run);
                crash::point("checked");
                Some(Input::Checked(number, found))
            }
            Job::Write(map) => {
                let result = self.own.write(&map);
                crash::point("written");
                Some(Input::Written(result))
            }
            Job::Kexec(method) => {
                crash::point("kexec");
                start_next_kernel(method).err().map(Input::KexecFailed)
            }
            Job::EndOwn => {
                self.own.let_go();
                None
            }
            Job::Unload => {
                if std::mem::take(&mut self.loaded) {
                    if let Err(err) = kexec::unload() {
                        tracing::warn!("{}", kernel::explain(&err));
                    }
                }
                None
            }
        };
        Done { input, session }
    }

    fn check(&mut self, image: Option<Image>, dry_run: bool) -> Vec<Finding> {
        let mut found = preflight::look(image.as_ref());
        let is_good = found.iter().all(|found| found.level != Level::Error);
        if let (Some(image), true, false) = (&image, is_good, dry_run) {
            let initrd = image.initrd.as_ref().map(AsFd::as_fd);
            match kexec::load(image.kernel.as_fd(), initrd, &image.cmdline) {
                Ok(()) => {
                    self.loaded = true;
                    if let Err(err) = kexec::tell_format(&image.kernel) {
                        found.push(Finding {
                            level: Level::Error,
                            text: format!(
                                "this kernel cannot hand over as the next one reads: {err}; its log \
                                 says which file"
                            ),
                        });
                    }
                }
                Err(err) => found.push(Finding {
                    level: Level::Error,
                    text: kernel::explain(&err),
                }),
            }
        }
        found
    }
}

/// Starts the next kernel, or begins the shutdown that ends there.
fn start_next_kernel(method: Result<Method, String>) -> Result<(), String> {
    match method? {
        Method::Systemctl => {
            let done = Command::new("systemctl")
                .args(["kexec", "--no-wall"])
                .output()
                .map_err(|err| format!("systemctl kexec: {err}"))?;
            if done.status.success() {
                return Ok(());
            }
            let words = String::from_utf8_lossy(&done.stderr);
            let words = words.trim().replace('\n', " ");
            Err(format!("systemctl kexec: {words} ({})", done.status))
        }
        Method::Direct => {
            // Nobody unmounts the file systems.
            nix::unistd::sync();
            Err(kernel::explain(&kexec::jump()))
        }
    }
}
