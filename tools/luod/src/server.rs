// SPDX-License-Identifier: GPL-2.0

//! The event loop: does what [`Core`] says, and tells it what happened.
//!
//! One thread polls the sockets, the signals and the [`Worker`]. It owns luod's descriptors of
//! sessions.

use crate::{
    connection::Connection,
    core::{
        Action,
        ConnId,
        Core,
        Input,
        Now,
        Severity, //
    },
    crash, kernel,
    manager::Method,
    peer,
    policy::Policy,
    preflight::Image,
    protocol::{
        Command,
        Event, //
    },
    record::{
        Memory,
        Record, //
    },
    worker::{
        Job,
        Worker, //
    },
};
use liveupdate::handoff;
use nix::{
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sys::{
        signal::Signal,
        signalfd::SignalFd, //
    },
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{
            AsFd,
            OwnedFd, //
        },
        unix::{
            fs::OpenOptionsExt,
            net::UnixListener, //
        },
    },
    path::PathBuf,
    time::{
        Duration,
        Instant,
        SystemTime,
        UNIX_EPOCH, //
    },
};

/// The most connections, and the most of one user who is not root.
const CONNECTIONS: (usize, usize) = (4096, 256);

/// A clock for the state machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// One that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time.
    pub fn now(self) -> Now {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);

        Now {
            clock: self.0.elapsed(),
            time: time.map_or(0, |time| time.as_secs()),
        }
    }
}

/// What the server works with.
pub struct Server {
    /// The time.
    pub clock: Clock,
    /// What is to be done.
    pub core: Core,
    /// Does what takes time.
    pub worker: Worker,
    /// Where clients connect.
    pub listener: UnixListener,
    /// The signals that luod reacts to, which are blocked.
    pub signals: SignalFd,
    /// The sessions that luod has, by name.
    pub sessions: BTreeMap<String, OwnedFd>,
    /// How the next kernel is started.
    pub method: Result<Method, String>,
    /// Where the state is written down.
    pub state_file: PathBuf,
    /// Reads the policy anew.
    pub read_policy: fn() -> Result<Policy, String>,
    /// How often the service manager is told that luod lives.
    pub watchdog: Option<Duration>,
}

/// The server's connections, and what it has written down.
#[derive(Default)]
struct Running {
    connections: BTreeMap<ConnId, Connection>,
    next: ConnId,
    written: Option<Memory>,
    /// The image of the UPDATE command that is being handled.
    image: Option<Image>,
    last_watchdog: Duration,
}

/// What poll(2) reported.
#[derive(Default)]
struct Ready {
    listener: bool,
    signals: bool,
    worker: bool,
    connections: Vec<(ConnId, PollFlags)>,
}

impl Server {
    /// Runs until a signal ends it. `first` is to be done at the start.
    ///
    /// # Errors
    ///
    /// What polling returns.
    pub fn run(mut self, first: Vec<Action>) -> io::Result<()> {
        let mut running = Running::default();

        self.listener.set_nonblocking(true)?;
        self.act(&mut running, first);
        notify("READY=1");
        loop {
            let ready = self.wait(&mut running)?;
            if ready.signals && self.signalled(&mut running)? {
                return Ok(());
            }
            if ready.worker {
                for done in self.worker.done() {
                    self.sessions.extend(done.session);
                    if let Some(input) = done.input {
                        self.handle(&mut running, input);
                    }
                }
            }
            if ready.listener {
                self.accept(&mut running);
            }
            for (conn, flags) in ready.connections {
                self.serve(&mut running, conn, flags);
            }
            // Lines that waited for the answer to the one before them.
            let ids: Vec<_> = running.connections.keys().copied().collect();
            for conn in ids {
                self.lines(&mut running, conn);
            }
            self.handle(&mut running, Input::Tick);
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, running: &mut Running) -> io::Result<Ready> {
        let now = self.clock.now().clock;
        let mut until = self.core.deadline();

        if let Some(period) = self.watchdog {
            if now.saturating_sub(running.last_watchdog) >= period
                || running.last_watchdog.is_zero()
            {
                notify("WATCHDOG=1");
                running.last_watchdog = now.max(Duration::from_nanos(1));
            }
            let next = running.last_watchdog + period;
            until = Some(until.map_or(next, |until| until.min(next)));
        }
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, or it would turn in circles for less than a millisecond.
            let left = until.saturating_sub(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });

        let mut fds = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.worker.bell().as_fd(), PollFlags::POLLIN),
        ];
        let polled: Vec<_> = running
            .connections
            .iter()
            // One that has ended and waits for its last answer would be reported all the time.
            .filter(|(_, conn)| !conn.has_ended())
            .collect();
        fds.extend(
            polled
                .iter()
                .map(|(_, conn)| PollFd::new(conn.as_fd(), conn.wants())),
        );
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => return Ok(Ready::default()),
            result => result?,
        };
        let flags: Vec<_> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        let connections = polled.iter().map(|(&id, _)| id).zip(flags[3..].to_vec());
        Ok(Ready {
            listener: !flags[0].is_empty(),
            signals: !flags[1].is_empty(),
            worker: !flags[2].is_empty(),
            connections: connections.filter(|(_, flags)| !flags.is_empty()).collect(),
        })
    }

    /// Reacts to a signal; true if it is the end.
    fn signalled(&mut self, running: &mut Running) -> io::Result<bool> {
        let Some(signal) = self.signals.read_signal()? else {
            return Ok(false);
        };
        if i32::try_from(signal.ssi_signo) != Ok(Signal::SIGHUP as i32) {
            tracing::info!("ended by a signal");
            notify("STOPPING=1");
            return Ok(true);
        }
        match (self.read_policy)() {
            Ok(policy) => {
                tracing::info!("the policy was read anew");
                self.handle(running, Input::NewPolicy(policy));
            }
            Err(why) => tracing::error!("the policy stays as it was: {why}"),
        }
        Ok(false)
    }

    // ---- connections ----

    fn accept(&mut self, running: &mut Running) {
        while let Ok((socket, _)) = self.listener.accept() {
            let peer = match peer::identify(&socket) {
                Ok(peer) => peer,
                Err(err) => {
                    tracing::warn!("a connection of unknown origin was closed: {err}");
                    continue;
                }
            };
            let of_user = running
                .connections
                .values()
                .filter(|conn| conn.uid() == peer.uid)
                .count();
            let (all, each) = CONNECTIONS;
            if running.connections.len() >= all || peer.uid != 0 && of_user >= each {
                tracing::warn!("user {} has too many connections", peer.uid);
                continue;
            }
            let Ok(connection) = Connection::new(socket, peer.uid) else {
                continue;
            };
            running.next += 1;
            let conn = running.next;
            running.connections.insert(conn, connection);
            self.handle(running, Input::Connected(conn, peer));
        }
    }

    fn serve(&mut self, running: &mut Running, conn: ConnId, flags: PollFlags) {
        let Some(connection) = running.connections.get_mut(&conn) else {
            return;
        };
        let mut alive = true;
        if flags.intersects(PollFlags::POLLOUT) {
            alive = connection.flush();
        }
        if alive && flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            alive = connection.fill();
        }
        self.lines(running, conn);
        // An end after the last line counts when that line has its answer.
        if !alive && !self.core.is_pending(conn) {
            self.drop_connection(running, conn);
        }
    }

    /// Handles the lines that have come, as long as each is answered at once.
    fn lines(&mut self, running: &mut Running, conn: ConnId) {
        while !self.core.is_pending(conn) {
            let Some(connection) = running.connections.get_mut(&conn) else {
                return;
            };
            match connection.line() {
                Ok(Some(line)) => {
                    let command = Command::parse(&line);
                    let wanted = command.as_ref().map_or(0, Command::descriptors);
                    let image = connection.descriptors(wanted);
                    running.image = None;
                    let command = match command {
                        Ok(Command::Update {
                            cmdline: Some(cmdline),
                            initrd,
                            dry_run,
                        }) => match take_image(image, &cmdline) {
                            Some(image) => {
                                running.image = Some(image);
                                Ok(Command::Update {
                                    cmdline: Some(cmdline),
                                    initrd,
                                    dry_run,
                                })
                            }
                            None => Err("the descriptor of the image is missing".to_owned()),
                        },
                        other => other,
                    };
                    self.handle(running, Input::Line(conn, command));
                }
                Ok(None) if connection.has_ended() => {
                    self.drop_connection(running, conn);
                    return;
                }
                Ok(None) => return,
                Err(why) => {
                    self.handle(running, Input::Line(conn, Err(why.to_owned())));
                    self.drop_connection(running, conn);
                    return;
                }
            }
        }
    }

    fn drop_connection(&mut self, running: &mut Running, conn: ConnId) {
        if let Some(mut connection) = running.connections.remove(&conn) {
            // The last words, as far as there is room for them.
            connection.flush();
            self.handle(running, Input::Disconnected(conn));
        }
    }

    // ---- the state machine ----

    fn handle(&mut self, running: &mut Running, input: Input) {
        let actions = self.core.handle(self.clock.now(), input);

        self.act(running, actions);
    }

    /// Does what is to be done, in order, after the state is written down.
    fn act(&mut self, running: &mut Running, actions: Vec<Action>) {
        let mut abandoned = false;

        self.write_down(running);
        for action in actions {
            crash::point(name_of(&action));
            if matches!(action, Action::Abandon(_)) {
                abandoned = true;
            } else if std::mem::take(&mut abandoned) {
                wait_for_manager();
            }
            self.perform(running, action);
        }
        if abandoned {
            wait_for_manager();
        }
    }

    fn write_down(&self, running: &mut Running) {
        let memory = self.core.memory();

        if running.written.as_ref() == Some(&memory) {
            return;
        }
        let new = self.state_file.with_extension("new");
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            io::Write::write_all(&mut file, &memory.to_bytes())?;
            fs::rename(&new, &self.state_file)
        };
        if let Err(err) = write() {
            // luod goes on; it is the next start that misses it.
            tracing::error!("{}: {err}", self.state_file.display());
        } else {
            running.written = Some(memory);
        }
    }

    fn perform(&mut self, running: &mut Running, action: Action) {
        match action {
            Action::Send(conn, event, session) => {
                let session = session.map(|name| self.duplicate(&name)).transpose();
                let Some(connection) = running.connections.get_mut(&conn) else {
                    return;
                };
                match session {
                    Ok(session) => connection.send(event.line(), session),
                    Err(why) => {
                        // Better no word than one that means another thing without it.
                        tracing::error!("{why}");
                        connection.end();
                    }
                }
            }
            Action::Close(conn) => {
                if let Some(connection) = running.connections.get_mut(&conn) {
                    connection.end();
                }
            }
            Action::Create(entry) => self.worker.give(Job::Create(entry)),
            Action::Abandon(name) | Action::Release(name) => {
                kernel::unstore(&name);
                self.sessions.remove(&name);
            }
            Action::Retrieve(id, name) => self.worker.give(Job::Retrieve(id, name)),
            Action::Probe(id, name) => match self.duplicate(&name) {
                Ok(session) => self.worker.give(Job::Probe(id, session)),
                Err(why) => self.handle(running, Input::Probed(id, Err(why))),
            },
            Action::Discard(id, name) => {
                // Where there is none, it is in the kernel still.
                let session = self.duplicate(&name).ok();
                self.worker.give(Job::Discard(id, name, session));
            }
            Action::Measure(id, name) => self.worker.give(Job::Measure(id, name)),
            Action::Check { number, dry_run } => {
                let image = running.image.take();
                self.worker.give(Job::Check(number, image, dry_run));
            }
            Action::Write(map) => self.worker.give(Job::Write(map)),
            Action::Kexec => self.worker.give(Job::Kexec(self.method.clone())),
            Action::AbandonOwn | Action::FinishOwn => self.worker.give(Job::EndOwn),
            Action::Unload => self.worker.give(Job::Unload),
            Action::Log(severity, text) => match severity {
                Severity::Info => tracing::info!("{text}"),
                Severity::Warning => tracing::warn!("{text}"),
                Severity::Error => tracing::error!("{text}"),
            },
        }
    }

    fn duplicate(&self, name: &str) -> Result<OwnedFd, String> {
        self.sessions
            .get(name)
            .ok_or_else(|| format!("luod has no descriptor of session '{name}'"))?
            .try_clone()
            .map_err(|err| format!("session '{name}': {err}"))
    }
}

fn take_image(descriptors: Option<Vec<OwnedFd>>, cmdline: &str) -> Option<Image> {
    let mut descriptors = descriptors?.into_iter();

    Some(Image {
        kernel: descriptors.next()?.into(),
        initrd: descriptors.next().map(Into::into),
        cmdline: cmdline.to_owned(),
    })
}

/// What a test calls the moment before an action.
fn name_of(action: &Action) -> &'static str {
    match action {
        Action::Send(_, Event::StartPreservation { .. }, _) => "before send start",
        Action::Send(_, Event::Session { .. }, _) => "before send session",
        Action::Send(_, Event::Committed, _) => "before send committed",
        Action::Send(..) => "before send",
        Action::Close(_) => "before close",
        Action::Create(_) => "before create",
        Action::Abandon(_) => "before abandon",
        Action::Retrieve(..) => "before retrieve",
        Action::Probe(..) => "before probe",
        Action::Release(_) => "before release",
        Action::Discard(..) => "before discard",
        Action::Measure(..) => "before measure",
        Action::Check { .. } => "before check",
        Action::Write(_) => "before write",
        Action::Kexec => "before kexec",
        Action::AbandonOwn => "before abandon-own",
        Action::FinishOwn => "before finish-own",
        Action::Unload => "before unload",
        Action::Log(..) => "before log",
    }
}

/// Waits until the service manager has let go of what it was told to. As long as it has a session,
/// files in that cannot be preserved anew.
fn wait_for_manager() {
    if let Err(why) = kernel::barrier() {
        tracing::warn!("{why}");
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &str) {
    // Without one, there is nobody to tell.
    let _ = handoff::notify(state);
}
