// SPDX-License-Identifier: GPL-2.0

//! A client of luod that takes updates as a service would, and sees to it that nothing is lost.
//!
//! `luod-client ID` restores what it had, checks it, and takes part in the next update. It is written
//! after `Documentation/userspace-api/liveupdate-agent.rst` and shares no code with luod. What it
//! says on standard output, a word and details a line, is what tests look for:
//!
//! | word | when |
//! |---|---|
//! | `new` | there was nothing to restore |
//! | `restored N` | everything is there as it was after N updates |
//! | `refused CODE` | luod refused the claim or the subscription |
//! | `subscribed` | it takes part |
//! | `start` | it was told to preserve |
//! | `ready` | it said so |
//! | `aborted REASON` | everything is as before, and was checked to be so |
//! | `committed` | the kexec follows |
//! | `lost` | the connection ended; it connects again |
//! | `wrong WHAT` | something is not as it should be; it ends with status 1 |
//!
//! Its state is a number of memfds. In each there is the client's name, the number of the file, the
//! number of updates that it has seen, and a pattern that these determine.

use clap::{
    Parser,
    ValueEnum, //
};
use liveupdate_uapi::{
    Finish,
    PreserveFd,
    Request,
    RetrieveFd, //
};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        memfd::{
            memfd_create,
            MFdFlags, //
        },
        socket::{
            recvmsg,
            ControlMessageOwned,
            MsgFlags,
            UnixAddr, //
        },
    },
    unistd::{
        ftruncate,
        setuid,
        Uid, //
    },
};
use serde_json::{
    json,
    Value, //
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{
        self,
        IoSliceMut,
        Write, //
    },
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd,
            RawFd, //
        },
        unix::{
            fs::FileExt,
            net::UnixStream, //
        },
    },
    process::{
        Command,
        ExitCode, //
    },
    thread,
    time::Duration, //
};

const SOCKET: &str = "/run/luod/liveupdate.sock";
const PAGE: usize = 4096;

#[derive(Parser)]
struct Arguments {
    /// The client's name
    id: String,
    /// Its class; with it, version 1 is spoken
    #[arg(long)]
    class: Option<String>,
    /// How many files it has
    #[arg(long, default_value_t = 3)]
    files: u64,
    /// How many pages each file has
    #[arg(long, default_value_t = 16)]
    pages: u64,
    /// What it does wrong
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// Asks for its session early
    #[arg(long)]
    prepare: bool,
    /// Claims, and ends without having finished
    #[arg(long)]
    claim_only: bool,
    /// Becomes another user first
    #[arg(long)]
    uid: Option<u32>,
    /// Does not claim
    #[arg(long)]
    no_claim: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Fault {
    /// It is never ready.
    Never,
    /// It ends when it is told to preserve.
    Dies,
    /// It says that it cannot.
    Fails,
    /// It ends when it has said that it is ready.
    DiesReady,
    /// It unloads the next kernel behind luod's back.
    Unloads,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();

    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("wrong {why}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    // Somebody may have stopped listening.
    let _ = writeln!(io::stdout(), "{line}");
}

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn run(arguments: &Arguments) -> Outcome {
    if let Some(uid) = arguments.uid {
        setuid(Uid::from_raw(uid))?;
    }
    let mut state = if arguments.no_claim {
        None
    } else {
        match restore(arguments)? {
            Claim::Restored(state) => Some(state),
            Claim::Nothing => None,
            Claim::Over => return Ok(()),
        }
    };
    if state.is_none() {
        say("new");
    }
    let state = state.get_or_insert(State::new(arguments)?);

    while take_part(arguments, state)? {
        say("lost");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

// ---- what it has to lose ----

struct State {
    files: Vec<File>,
    updates: u64,
}

impl State {
    fn new(arguments: &Arguments) -> Outcome<Self> {
        let files = (0..arguments.files).map(|_| {
            let file = File::from(memfd_create(arguments.id.as_str(), MFdFlags::MFD_CLOEXEC)?);
            ftruncate(&file, i64::try_from(arguments.pages * PAGE as u64)?)?;
            Ok(file)
        });
        let state = Self {
            files: files.collect::<Outcome<_>>()?,
            updates: 0,
        };
        state.fill(arguments, 0)?;
        Ok(state)
    }

    /// Writes what is to be there after so many updates.
    fn fill(&self, arguments: &Arguments, updates: u64) -> Outcome {
        for (number, file) in self.files.iter().enumerate() {
            for page in 0..arguments.pages {
                let bytes = pattern(&arguments.id, number, page, updates);
                file.write_all_at(&bytes, page * PAGE as u64)?;
            }
        }
        Ok(())
    }

    /// Checks that it is there.
    fn check(&self, arguments: &Arguments, updates: u64) -> Outcome {
        for (number, file) in self.files.iter().enumerate() {
            if file.metadata()?.len() != arguments.pages * PAGE as u64 {
                return Err(format!("file {number} has another size").into());
            }
            for page in 0..arguments.pages {
                let mut bytes = vec![0; PAGE];
                file.read_exact_at(&mut bytes, page * PAGE as u64)?;
                if bytes != pattern(&arguments.id, number, page, updates) {
                    return Err(format!("file {number} has other content in page {page}").into());
                }
            }
        }
        Ok(())
    }
}

/// What a page is to have.
fn pattern(id: &str, file: usize, page: u64, updates: u64) -> Vec<u8> {
    let mut text = format!("{id} file {file} page {page} updates {updates} ").into_bytes();
    let unit = text.len();
    while text.len() < PAGE {
        text.push(text[text.len() - unit].wrapping_add(1));
    }
    text.truncate(PAGE);
    text
}

// ---- the two sides of an update ----

enum Claim {
    Restored(State),
    Nothing,
    Over,
}

fn restore(arguments: &Arguments) -> Outcome<Claim> {
    let mut luod = Luod::connect(arguments)?;
    luod.say(&json!({"cmd": "CLAIM", "id": arguments.id}))?;
    let (event, session) = loop {
        match luod.hear()? {
            Some((event, session)) if event["event"] == "SESSION" || event["event"] == "ERROR" => {
                break (event, session);
            }
            Some(_) => {}
            None => {
                // luod was restarted in the middle of the claim.
                say("lost");
                luod = Luod::connect(arguments)?;
                luod.say(&json!({"cmd": "CLAIM", "id": arguments.id}))?;
            }
        }
    };
    if event["event"] == "ERROR" {
        if event["code"] == "ENOENT" {
            return Ok(Claim::Nothing);
        }
        say(&format!(
            "refused {}",
            event["code"].as_str().unwrap_or("?")
        ));
        return Ok(Claim::Over);
    }
    let session = session.ok_or("a claim was answered without a session")?;
    if arguments.claim_only {
        retrieve(&session, 1)?;
        say("claimed");
        return Ok(Claim::Over);
    }
    let files = (1..=arguments.files).map(|token| Ok(File::from(retrieve(&session, token)?)));
    let files: Vec<_> = files.collect::<Outcome<_>>()?;
    let mut head = vec![0; PAGE];
    let first = files.first().ok_or("it has no files")?;
    first.read_exact_at(&mut head, 0)?;
    let updates = (1..1000).find(|&n| head == pattern(&arguments.id, 0, 0, n));
    let state = State {
        updates: updates.ok_or("file 0 has other content in its first page")?,
        files,
    };
    state.check(arguments, state.updates)?;
    finish(&session)?;
    drop(session);
    say(&format!("restored {}", state.updates));
    Ok(Claim::Restored(state))
}

/// Takes part in updates until the connection ends (true), or it has reason to end itself.
fn take_part(arguments: &Arguments, state: &mut State) -> Outcome<bool> {
    let Ok(mut luod) = Luod::connect(arguments) else {
        // It is being started again.
        return Ok(true);
    };
    match &arguments.class {
        Some(class) => {
            luod.say(&json!({"cmd": "SUBSCRIBE", "id": arguments.id, "class": class}))?;
        }
        None => luod.say(&json!({"cmd": "SUBSCRIBE", "id": arguments.id}))?,
    }
    if arguments.class.is_none() {
        say("subscribed");
    }
    let mut session = None;
    let mut early = false;
    while let Some((event, got)) = luod.hear()? {
        match event["event"].as_str().unwrap_or_default() {
            "SUBSCRIBED" => {
                say("subscribed");
                if arguments.prepare {
                    luod.say(&json!({"cmd": "PREPARE"}))?;
                }
            }
            "SESSION" => {
                // Early: what takes long, with the content of then.
                let got = got.ok_or("no session came")?;
                for (file, token) in state.files.iter().zip(1..) {
                    preserve(&got, file, token)?;
                }
                early = true;
                session = Some(got);
                say("prepared");
            }
            "START_PRESERVATION" | "PRESERVATION_REQUEST" => {
                say("start");
                match arguments.fault {
                    Some(Fault::Never) => continue,
                    Some(Fault::Dies) => return Ok(false),
                    Some(Fault::Fails) => {
                        luod.say(&json!({"cmd": "FAILED", "message": "out of paint"}))?;
                        continue;
                    }
                    Some(Fault::Unloads) => {
                        let done = Command::new("luoctl").arg("unload").status()?;
                        if !done.success() {
                            return Err(format!("luoctl unload: {done}").into());
                        }
                    }
                    Some(Fault::DiesReady) | None => {}
                }
                let got = got.ok_or("no session came")?;
                state.fill(arguments, state.updates + 1)?;
                if !early {
                    for (file, token) in state.files.iter().zip(1..) {
                        preserve(&got, file, token)?;
                    }
                }
                session = Some(got);
                luod.say(&json!({"cmd": "READY"}))?;
                say("ready");
                if arguments.fault == Some(Fault::DiesReady) {
                    return Ok(false);
                }
            }
            "COMMITTED" => say("committed"),
            "ABORT" => {
                drop(session.take());
                early = false;
                as_before(arguments, state)?;
                say(&format!(
                    "aborted {}",
                    event["reason"].as_str().unwrap_or("?")
                ));
                if arguments.prepare {
                    luod.say(&json!({"cmd": "PREPARE"}))?;
                }
            }
            // It crossed an ABORT.
            "ERROR" if event["cmd"] == "READY" || event["cmd"] == "FAILED" => {}
            "ERROR" => {
                let code = event["code"].as_str().unwrap_or("?");
                say(&format!("refused {code}"));
                // An update that is about to be aborted passes.
                if code != "EBUSY" {
                    return Ok(false);
                }
                thread::sleep(Duration::from_millis(200));
                return Ok(true);
            }
            _ => {}
        }
    }
    drop(session);
    Ok(true)
}

/// After an ABORT: the content is the same, and the files can be changed again.
fn as_before(arguments: &Arguments, state: &State) -> Outcome {
    let size = arguments.pages * PAGE as u64;

    state.fill(arguments, state.updates)?;
    for (number, file) in state.files.iter().enumerate() {
        // As long as luod, or its store, has the session, the file is preserved.
        let mut result = file.set_len(size + PAGE as u64);
        for _ in 0..50 {
            if result.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
            result = file.set_len(size + PAGE as u64);
        }
        result.map_err(|err| format!("file {number} cannot change its size: {err}"))?;
        file.set_len(size)?;
    }
    state.check(arguments, state.updates)
}

// ---- the protocol ----

struct Luod {
    socket: UnixStream,
    data: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Luod {
    fn connect(arguments: &Arguments) -> Outcome<Self> {
        let mut attempts = 0;
        let socket = loop {
            match UnixStream::connect(SOCKET) {
                Ok(socket) => break socket,
                Err(err) if attempts == 100 => return Err(err.into()),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
            attempts += 1;
        };
        let mut luod = Self {
            socket,
            data: Vec::new(),
            descriptors: VecDeque::new(),
        };
        if arguments.class.is_some() {
            luod.say(&json!({"cmd": "HELLO", "version": 1}))?;
        }
        Ok(luod)
    }

    fn say(&mut self, command: &Value) -> Outcome {
        match self.socket.write_all(format!("{command}\n").as_bytes()) {
            // The end is found by reading.
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }

    /// The next event, and its session; none at the end of the connection.
    fn hear(&mut self) -> Outcome<Option<(Value, Option<OwnedFd>)>> {
        loop {
            if let Some(end) = self.data.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.data.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line)?;
                let has_session = matches!(
                    event["event"].as_str(),
                    Some("START_PRESERVATION" | "PRESERVATION_REQUEST" | "SESSION")
                );
                let session = has_session.then(|| self.descriptors.pop_front()).flatten();
                return Ok(Some((event, session)));
            }
            let mut buffer = [0; 4096];
            let mut control = cmsg_space!([RawFd; 8]);
            let mut buffers = [IoSliceMut::new(&mut buffer)];
            let message = match recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut buffers,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => return Ok(None),
                result => result?,
            };
            for part in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = part {
                    // SAFETY: The kernel has just made these descriptors for this process.
                    self.descriptors.extend(
                        fds.into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
            }
            let len = message.bytes;
            if len == 0 {
                return Ok(None);
            }
            self.data.extend_from_slice(&buffer[..len]);
        }
    }
}

// ---- the session ----

fn request<R: Request>(session: &OwnedFd, request: &mut R) -> nix::Result<()> {
    // SAFETY: The request has its own size in its first field, so the kernel writes into it only.
    let ret = unsafe {
        libc::ioctl(
            session.as_raw_fd(),
            R::COMMAND.into(),
            std::ptr::from_mut(request),
        )
    };
    Errno::result(ret).map(drop)
}

fn preserve(session: &OwnedFd, file: &File, token: u64) -> Outcome {
    let mut args = PreserveFd {
        size: u32::try_from(size_of::<PreserveFd>())?,
        fd: file.as_raw_fd(),
        token,
    };
    request(session, &mut args).map_err(|err| format!("PRESERVE_FD {token}: {err}").into())
}

fn retrieve(session: &OwnedFd, token: u64) -> Outcome<OwnedFd> {
    let mut args = RetrieveFd {
        size: u32::try_from(size_of::<RetrieveFd>())?,
        fd: -1,
        token,
        flags: 0,
        target: 0,
    };
    request(session, &mut args).map_err(|err| format!("RETRIEVE_FD {token}: {err}"))?;
    // SAFETY: The kernel has just made this descriptor for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(args.fd) })
}

fn finish(session: &OwnedFd) -> Outcome {
    let mut args = Finish {
        size: u32::try_from(size_of::<Finish>())?,
        reserved: 0,
    };
    request(session, &mut args).map_err(|err| format!("FINISH: {err}").into())
}
