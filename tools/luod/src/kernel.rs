// SPDX-License-Identifier: GPL-2.0

//! What luod asks of the kernel and of the service manager's store: sessions, and the sealed memfds
//! in them.

use crate::{
    core::{
        Content,
        Found,
        RetrieveError, //
    },
    record::{
        Entry,
        Map,
        Mark,
        Record,
        MAP,
        MARK,
        OWN_SESSION, //
    },
};
use liveupdate::{
    handoff,
    listing::Listing,
    AnySession,
    Context,
    Device,
    DirectionKind,
    Errno,
    Error,
    Incoming,
    Outgoing,
    Session,
    SessionName, //
};
use nix::{
    fcntl::{
        fcntl,
        FcntlArg,
        SealFlag, //
    },
    sys::memfd::{
        memfd_create,
        MFdFlags, //
    },
    unistd::{
        sysconf,
        SysconfVar, //
    },
};
use std::{
    fs::File,
    io::{
        Read,
        Seek,
        Write, //
    },
    os::fd::{
        AsFd,
        OwnedFd, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// How long somebody else may have the device open.
const DEVICE_WAIT: Duration = Duration::from_secs(5);

/// How many names are tried for a session.
const NAMES: u32 = 9;

/// The most bytes that a record may have.
const MAX_RECORD: u64 = 16 << 20;

/// How long the service manager may take to take in what it was sent.
pub const BARRIER_WAIT: Duration = Duration::from_secs(10);

/// Opens the device, for as short as possible. Waits if somebody else has it.
pub fn open_device() -> liveupdate::Result<Device> {
    let begin = Instant::now();

    loop {
        match Device::open() {
            Err(err) if err.errno() == Errno::EBUSY && begin.elapsed() < DEVICE_WAIT => {
                thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// One line for people: what failed, and what to do about it.
pub fn explain(err: &Error) -> String {
    match err.advice() {
        Some(advice) => format!("{err} ({advice})"),
        None => err.to_string(),
    }
}

/// Puts a session into the service manager's store, if there is one.
pub fn store(session: &impl AsFd, name: &str) -> Result<(), String> {
    match handoff::store(session.as_fd(), &store_name(name)) {
        Err(err) if err.errno() == Errno::EOPNOTSUPP => Ok(()),
        result => result.map_err(|err| explain(&err)),
    }
}

/// Has the service manager close a session, if it has it.
pub fn unstore(name: &str) {
    if let Err(err) = handoff::unstore(&store_name(name)) {
        if err.errno() != Errno::EOPNOTSUPP {
            tracing::error!("{err}");
        }
    }
}

fn store_name(name: &str) -> String {
    // What has no such form is no name of luod's.
    SessionName::new(name).map_or_else(|_| name.to_owned(), |name| handoff::store_name(&name))
}

/// Waits until the service manager has what it was sent, if there is one.
pub fn barrier() -> Result<(), String> {
    match handoff::barrier(BARRIER_WAIT) {
        Err(err) if err.errno() == Errno::EOPNOTSUPP => Ok(()),
        result => result.map_err(|err| explain(&err)),
    }
}

/// Makes a session for a client: marked, and stored.
pub fn create(device: &Device, entry: &Entry) -> Result<(String, OwnedFd), String> {
    let session = create_named(device, &entry.session)?;
    let name = session.name().to_string();
    let mark = Mark::new(Entry {
        session: name.clone(),
        ..entry.clone()
    });

    sealed_memfd("luod-mark", &mark.to_bytes())
        .and_then(|mark| session.preserve(&mark, MARK))
        .map_err(|err| explain(&err))?;
    store(&session, &name)?;
    Ok((name, session.into_fd()))
}

/// Makes a session under a name, or one like it: clients that ignored an ABORT may have the last one
/// of that name open still.
fn create_named(device: &Device, name: &str) -> Result<Session<Outgoing>, String> {
    let mut result = Err(Errno::EEXIST.to_string());

    for number in 1..=NAMES {
        let name = match number {
            1 => name.to_owned(),
            _ => format!("{name}.{number}"),
        };
        match device.create_session(&name) {
            Ok(session) => return Ok(session),
            Err(err) if err.errno() == Errno::EEXIST => result = Err(explain(&err)),
            Err(err) => return Err(explain(&err)),
        }
    }
    result
}

/// Takes a session over, and stores it.
pub fn retrieve(name: &str) -> Result<OwnedFd, RetrieveError> {
    let session = open_device()
        .and_then(|device| device.retrieve_session(name))
        .map_err(|err| match err.errno() {
            Errno::ENOENT => RetrieveError::Gone,
            Errno::EUCLEAN => RetrieveError::Corrupt(explain(&err)),
            _ => RetrieveError::Later(explain(&err)),
        })?;

    if let Err(why) = store(&session, name) {
        tracing::error!("session '{name}' is not safe from a crash of luod: {why}");
    }
    Ok(session.into_fd())
}

/// Whether an incoming session of a client is finished: then it has no mark any more.
pub fn is_finished(session: OwnedFd) -> Result<bool, String> {
    let session = Borrowed::new(session)?;

    match session.get().retrieve(MARK) {
        Ok(_) => Ok(false),
        Err(err) if err.errno() == Errno::ENOENT => Ok(true),
        Err(err) => Err(explain(&err)),
    }
}

/// Finishes a session, whatever is in it.
pub fn finish(session: OwnedFd) -> Result<(), String> {
    let session = Borrowed::new(session)?;

    session.get().finish().map_err(|err| explain(&err))
}

/// A duplicate of a descriptor of an incoming session, closing which means nothing.
struct Borrowed(Option<Session<Incoming>>);

impl Borrowed {
    fn new(session: OwnedFd) -> Result<Self, String> {
        Session::adopt(session)
            .map(|session| Self(Some(session)))
            .map_err(|err| explain(&err))
    }

    fn get(&self) -> &Session<Incoming> {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // Not to the keeper: luod has another descriptor.
        drop(self.0.take().map(Session::into_fd));
    }
}

/// Looks at a session that was kept for luod.
pub fn look(session: &AnySession) -> Found {
    match session {
        AnySession::Outgoing(session) => Found {
            session: session.name().to_string(),
            direction: DirectionKind::Outgoing,
            mark: None,
            finished: false,
        },
        AnySession::Incoming(session) => {
            let mark = session.retrieve(MARK);
            let finished = mark.as_ref().is_err_and(|err| err.errno() == Errno::ENOENT);
            let mark = mark
                .map_err(|err| explain(&err))
                .and_then(read_record::<Mark>)
                .map(|mark| mark.entry);
            if let (Err(why), false) = (&mark, finished) {
                tracing::warn!("session '{}': {why}", session.name());
            }
            Found {
                session: session.name().to_string(),
                direction: DirectionKind::Incoming,
                mark: mark.ok(),
                finished,
            }
        }
    }
}

/// How much is in an outgoing session, by what the kernel shows to people.
pub fn measure(name: &str) -> Result<Content, String> {
    let listing = Listing::read(DirectionKind::Outgoing).map_err(|err| err.to_string())?;
    let name = SessionName::new(name).map_err(|err| err.to_string())?;
    let session = listing
        .session(&name)
        .ok_or_else(|| format!("the kernel does not list session '{name}'"))?;
    let mut content = Content { files: 0, bytes: 0 };

    for file in session
        .files
        .iter()
        .filter(|file| u64::from(file.token) != MARK)
    {
        let bytes = bytes_of(&file.details)
            .ok_or_else(|| format!("the kernel does not tell the size of token {}", file.token))?;
        content.files += 1;
        content.bytes = content.bytes.saturating_add(bytes);
    }
    Ok(content)
}

/// The memory that a file takes: `size 8192, 2 pages, ...`. Holes take none.
fn bytes_of(details: &str) -> Option<u64> {
    pages_or_size(details, page_size())
}

/// The same, for pages of that many bytes.
fn pages_or_size(details: &str, page_size: u64) -> Option<u64> {
    let parts = || details.split(',').map(str::trim);
    let number = |text: &str| text.parse::<u64>().ok();
    let pages = parts().find_map(|part| part.strip_suffix(" pages").and_then(number));
    let size = parts().find_map(|part| part.strip_prefix("size ").and_then(number));

    pages.map(|pages| pages.saturating_mul(page_size)).or(size)
}

/// The size of the pages that the kernel counts.
fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();

    size.and_then(|size| size.try_into().ok()).unwrap_or(4096)
}

/// luod's own session.
#[derive(Debug)]
pub enum Own {
    /// There is none.
    None,
    /// That of the last update, and what it says.
    Incoming(Session<Incoming>),
    /// That for the next kernel.
    Outgoing(Session<Outgoing>),
}

impl Own {
    /// Takes it from what was kept, or from the kernel.
    pub fn take(kept: Option<AnySession>, look_in_kernel: bool) -> Self {
        match kept {
            Some(AnySession::Incoming(session)) => Self::Incoming(session),
            Some(AnySession::Outgoing(session)) => Self::Outgoing(session),
            None if !look_in_kernel => Self::None,
            None => match open_device().and_then(|device| device.retrieve_session(OWN_SESSION)) {
                Ok(session) => {
                    if let Err(why) = store(&session, OWN_SESSION) {
                        tracing::error!("session '{OWN_SESSION}': {why}");
                    }
                    Self::Incoming(session)
                }
                Err(err) => {
                    if err.errno() != Errno::ENOENT {
                        tracing::error!("{}", explain(&err));
                    }
                    Self::None
                }
            },
        }
    }

    /// The map of the last update.
    pub fn map(&self) -> Option<Result<Map, String>> {
        let Self::Incoming(session) = self else {
            return None;
        };
        Some(
            session
                .retrieve(MAP)
                .map_err(|err| explain(&err))
                .and_then(read_record),
        )
    }

    /// Hands a map over. The last one goes.
    pub fn write(&mut self, map: &Map) -> Result<(), String> {
        self.let_go();
        let session = open_device()
            .and_then(|device| device.create_session(OWN_SESSION))
            .map_err(|err| explain(&err))?;

        sealed_memfd("luod-map", &map.to_bytes())
            .and_then(|map| session.preserve(&map, MAP))
            .map_err(|err| explain(&err))?;
        store(&session, OWN_SESSION)?;
        *self = Self::Outgoing(session);
        barrier()
    }

    /// Ends it, on whichever side of the kexec it is.
    pub fn let_go(&mut self) {
        let is_there = !matches!(self, Self::None);

        if let Self::Incoming(session) = std::mem::replace(self, Self::None) {
            if let Err(err) = session.finish() {
                tracing::error!("{}", explain(&err));
                drop(session.into_fd());
            }
        }
        if is_there {
            unstore(OWN_SESSION);
        }
    }
}

fn sealed_memfd(name: &str, content: &[u8]) -> liveupdate::Result<File> {
    let what = || format!("make the memfd '{name}'");
    let mut file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map(File::from)
        .context(what)?;

    file.write_all(content)
        .and_then(|()| file.rewind())
        .context(what)?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context(what)?;
    Ok(file)
}

fn read_record<R: Record>(file: OwnedFd) -> Result<R, String> {
    let mut file = File::from(file);
    let mut bytes = Vec::new();

    // Somebody may have read it before, and its position is handed over, too.
    file.rewind()
        .and_then(|()| (&mut file).take(MAX_RECORD).read_to_end(&mut bytes))
        .map_err(|err| format!("{}: {err}", R::WHAT))?;
    R::parse(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes_of("size 1048576"), Some(1048576));
        assert_eq!(
            pages_or_size("size 8192, 1 pages, 1 extents", 4096),
            Some(4096)
        );
        assert_eq!(
            pages_or_size("size 8192, 1 pages, 1 extents", 65536),
            Some(65536)
        );
        assert_eq!(bytes_of(""), None);
        assert_eq!(bytes_of("size x"), None);
    }

    #[test]
    fn records_in_memfds() {
        let map = Map::new(Vec::new());
        let mut file = sealed_memfd("luod-map", &map.to_bytes()).unwrap();
        assert!(file.write_all(b"x").is_err());
        let mut byte = [0];
        file.read_exact(&mut byte).unwrap();
        assert_eq!(read_record(file.into()), Ok(map));
    }
}
