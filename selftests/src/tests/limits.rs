// SPDX-License-Identifier: GPL-2.0

//! What a process can do with a session that it was handed, and which group pays.

use crate::{
    agent::{
        self,
        Agent,
        Notes, //
    },
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        SharedWords, //
    },
    tests::memfd::start_swapping, //
};
use liveupdate::{
    kexec,
    Device, //
};
use nix::{
    errno::Errno,
    fcntl::{
        fcntl,
        FcntlArg,
        OFlag, //
    },
    mount::{
        mount,
        MsFlags, //
    },
    unistd::getpid,
};
use std::{
    fs::{
        self,
        File,
        OpenOptions,
        Permissions, //
    },
    os::unix::fs::{
        FileExt,
        PermissionsExt, //
    },
    path::{
        Path,
        PathBuf, //
    },
    sync::atomic::Ordering,
    thread,
    time::Duration, //
};

/// With a session, a user without privileges can do what the session is for, and nothing else.
pub fn unprivileged(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let other = device.create_session("somebody-else")?;
    let taken = sys::memfd_of("taken", b"x")?;
    other.preserve(&taken, 1)?;
    session.preserve(&sys::memfd_of("of root", b"x")?, 1)?;

    agent::unprivileged(|| {
        session.preserve(&sys::memfd_of("own", b"content")?, 2)?;
        ensure_eq!(session.ask_name()?.to_string(), stage.name);
        // A taken name or token stays taken for any user.
        ensure_errno!(session.preserve(&sys::memfd_of("own", b"x")?, 1), EEXIST);
        ensure_errno!(session.preserve(&taken, 3), EBUSY);
        ensure_errno!(sys::request(&session, sys::retrieve_fd(1)), EINVAL);
        ensure_errno!(sys::request(&session, sys::finish()), EINVAL);
        // A session does not lead to others, nor to the device.
        for name in [stage.name, "somebody-else"] {
            let name = name.as_bytes();
            ensure_errno!(sys::request(&session, sys::create_session(name)), EINVAL);
            ensure_errno!(sys::request(&session, sys::retrieve_session(name)), EINVAL);
        }
        ensure_errno!(Device::open(), EACCES);
        ensure_errno!(
            OpenOptions::new()
                .write(true)
                .open("/sys/module/liveupdate/parameters/abi"),
            EACCES | ENOENT
        );
        ensure_errno!(
            fs::read_dir("/sys/kernel/debug/liveupdate"),
            EACCES | ENOENT
        );
        ensure_eq!(kexec::jump().errno(), Errno::EPERM);
        Ok(())
    })?;

    // It is gone; what it preserved is not.
    ensure_errno!(session.preserve(&sys::memfd_of("n", b"x")?, 2), EEXIST);
    Ok(())
}

/// Root's file, which root itself could only read by this descriptor.
pub fn handed_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd_of("secret", b"of root")?;
    memory.set_permissions(Permissions::from_mode(0o600))?;

    session.preserve(&File::open(sys::proc_path(&memory))?, 1)?;
    let other = sys::memfd_of("other", b"content")?;
    session.preserve(&other, 2)?;
    stage.keep(session);
    Ok(())
}

/// A process that is handed a session gets its files, each with the access that it was preserved
/// with.
pub fn handed_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session(stage.name)?;

    agent::unprivileged(|| {
        let secret = File::from(session.retrieve(1)?);
        ensure_eq!(sys::content(&secret)?, b"of root");
        let flags = OFlag::from_bits_retain(fcntl(&secret, FcntlArg::F_GETFL)?);
        ensure_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDONLY);
        ensure_errno!(
            sys::write_at(&secret, 0, b"!").map_err(|_| Errno::EBADF),
            EBADF
        );
        // Opening it anew is a matter of its mode and owner, which have not changed.
        ensure_errno!(
            OpenOptions::new().write(true).open(sys::proc_path(&secret)),
            EACCES
        );
        ensure_eq!(sys::content(&session.retrieve(2)?.into())?, b"content");
        ensure_errno!(sys::request(&session, sys::preserve_fd(0, 3)), EINVAL);
        Ok(session.finish()?)
    })?;
    ensure_errno!(session.retrieve(2), ENOENT);
    Ok(())
}

/// A memory control group.
pub struct Group(PathBuf);

impl Group {
    /// Makes one that limits memory.
    pub fn new(name: &str) -> Outcome<Self> {
        Self::of("memory", name)
    }

    /// Makes one that a controller has limits for.
    pub fn of(controller: &str, name: &str) -> Outcome<Self> {
        let root = Path::new("/cgroup");

        fs::create_dir_all(root)?;
        mount(
            Some("cgroup2"),
            root,
            Some("cgroup2"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        fs::write(
            root.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )?;
        let group = root.join(name);
        fs::create_dir(&group)?;
        Ok(Self(group))
    }

    /// Takes the current process in.
    pub fn enter(&self) -> Outcome {
        Ok(fs::write(
            self.0.join("cgroup.procs"),
            getpid().to_string(),
        )?)
    }

    /// Sets one of its limits.
    pub fn set(&self, limit: &str, bytes: u64) -> Outcome {
        Ok(fs::write(self.0.join(limit), bytes.to_string())?)
    }

    /// One of its numbers.
    pub fn get(&self, name: &str) -> Outcome<u64> {
        let text = fs::read_to_string(self.0.join(name))?;

        text.trim()
            .parse()
            .map_err(|err| Failure::here(format_args!("{name}: {text:?}: {err}")))
    }

    /// For how many bytes of some kind it is charged.
    pub fn bytes(&self, kind: &str) -> Outcome<u64> {
        // What processors have counted is summed up once it is many pages, or every two seconds.
        if sys::page_size()? > 4096 {
            thread::sleep(Duration::from_millis(2500));
        }
        fs::read_to_string(self.0.join("memory.stat"))?
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| Failure::here(format!("no line for {kind}")))
    }
}

/// What the kernel allocates for sessions and files is charged to the memory cgroup of the task that
/// asks for it, and released with them.
pub fn charged(stage: &mut Stage) -> Outcome {
    const SESSIONS: u64 = 100;
    const FILES: u64 = 50;

    let group = Group::new("agent")?;
    let device = Device::open()?;
    let files = (0..SESSIONS * FILES)
        .map(|_| sys::memfd("m"))
        .collect::<Outcome<Vec<_>>>();
    drop(files);
    let measured = Agent::start(|| {
        group.enter()?;
        sys::allow_fds(10_000)?;
        let files = (0..SESSIONS * FILES)
            .map(|_| sys::memfd("m"))
            .collect::<Outcome<Vec<_>>>()?;

        let before = group.bytes("slab")?;
        let mut sessions = Vec::new();
        for (i, files) in files.chunks(FILES as usize).enumerate() {
            let session = device.create_session(&format!("charged-{i}"))?;
            for (token, file) in files.iter().enumerate() {
                session.preserve(file, token as u64)?;
            }
            sessions.push(session);
        }
        let during = group.bytes("slab")?;
        drop(sessions);
        let after = group.bytes("slab")?;

        // A file takes a place among the claims and one in a list, and its handler's state.
        let charged = during.saturating_sub(before);
        ensure!(charged > SESSIONS * FILES * 150, "only {charged} bytes");
        let left = after.saturating_sub(before);
        ensure!(left < charged / 4, "{left} of {charged} bytes are left");
        Ok(())
    })?;
    let result = measured.join();
    stage.note(format!(
        "peak {}",
        fs::read_to_string(group.0.join("memory.peak"))?.trim()
    ));
    result
}

/// How many pages of [`full_before`] are written when the file is preserved.
const LATE: usize = (48 << 20) / sys::PAGE;

/// A file of which much more is written late than its memory cgroup may have at a time: most of it
/// is in swap at the reboot.
pub fn full_before(stage: &mut Stage) -> Outcome {
    start_swapping()?;
    let group = Group::new("full")?;
    group.set("memory.max", 16 << 20)?;
    let device = Device::open()?;
    let notes = Notes::new(&device, stage)?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd("memory")?;
    memory.set_len((LATE * sys::PAGE) as u64)?;
    session.preserve(&memory, 1)?;
    stage.keep(session);

    notes.child(|| {
        group.enter()?;
        let mapping = SharedWords::of(&memory, LATE * sys::PAGE)?;
        for page in 0..LATE {
            mapping
                .word(page * sys::PAGE)
                .store(page as u64 + 1, Ordering::Release);
            notes.word(0).store(page as u64 + 1, Ordering::Release);
        }
        // It lives on, and says so.
        loop {
            notes.word(1).fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(10));
        }
    })?;
    while notes.word(0).load(Ordering::Acquire) < LATE as u64 {
        thread::sleep(Duration::from_millis(10));
    }
    let out = sys::vmstat("pswpout")?;
    stage.note(format!("{out} pages went to swap"));
    ensure!(out as usize > LATE / 2);
    // From here on, who charges it and may wait has to.
    group.set("memory.high", 8 << 20)
}

/// A memory cgroup that is full does not stop the machine's update or slow it down, nor is anybody
/// in it killed.
///
/// At bd974ac the group's processes were killed and the reboot failed, each time. At 7dc7e6f the
/// group was searched for memory for each page, which took minutes with `CONFIG_LRU_GEN`.
pub fn full_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let notes = Notes::read(&device, stage)?;
    let session = device.retrieve_session(stage.name)?;
    let file = File::from(session.retrieve(1)?);

    ensure_eq!(notes[0], LATE as u64);
    ensure!(notes[1] > 0);
    for page in 0..LATE {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, (page * sys::PAGE) as u64)?;
        ensure_eq!(u64::from_ne_bytes(word), page as u64 + 1, "page {page}");
    }
    Ok(session.finish()?)
}

/// Size of the file of [`retrieved_before`].
const RETRIEVED: usize = 32 << 20;

/// A file of which each page is there.
pub fn retrieved_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let file = sys::memfd_of("memory", &sys::pattern(1, RETRIEVED))?;

    session.preserve(&file, 1)?;
    stage.keep(session);
    Ok(())
}

/// Memory is charged to the process that retrieves it, as any other memory of files, until it is
/// freed.
pub fn retrieved_after(stage: &mut Stage) -> Outcome {
    let group = Group::new("retriever")?;
    let shmem = || Ok::<_, Failure>(sys::meminfo("Shmem")? << 10);
    let device = Device::open()?;

    Agent::start(|| {
        group.enter()?;
        let counted = |free: u64| -> Outcome {
            let on_lists = group.bytes("active_anon")? + group.bytes("inactive_anon")?;
            for (what, bytes) in [
                ("file", group.bytes("file")?),
                ("shmem", group.bytes("shmem")?),
                ("on lists", on_lists),
                ("Shmem", shmem()?.saturating_sub(free)),
            ] {
                // The kernel's counters lag behind a little.
                let off = bytes.abs_diff(RETRIEVED as u64);
                ensure!(off < RETRIEVED as u64 / 16, "{what}: {bytes} bytes");
            }
            Ok(())
        };

        let free = shmem()?;
        let session = device.retrieve_session(stage.name)?;
        let file = File::from(session.retrieve(1)?);
        counted(free)?;
        session.finish()?;
        drop(session);
        counted(free)?;

        drop(file);
        let left = group.bytes("shmem")?;
        ensure!(left < RETRIEVED as u64 / 16, "{left} bytes are left");
        Ok(())
    })?
    .join()
}

/// Sizes of the files of [`full_retriever_before`].
const LARGE: [usize; 2] = [128 << 20, 1 << 20];

/// How much memory the group of [`full_retriever_after`] may have.
const LITTLE: usize = 32 << 20;

/// Much more than one who retrieves it may have.
pub fn full_retriever_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for (token, size) in (0..).zip(LARGE) {
        let file = sys::memfd("memory")?;
        for part in 0..size >> 20 {
            let bytes = sys::pattern(token + part as u64, 1 << 20);
            sys::write_at(&file, (part << 20) as u64, &bytes)?;
        }
        session.preserve(&file, token)?;
    }
    stage.keep(session);
    Ok(())
}

/// Memory that is there already is neither reclaimed for nor is anybody killed for it: what the group
/// of the process that retrieves it has no room for is charged to the one above.
///
/// At bd974ac the process was killed in the middle of `RETRIEVE_FD`, each time.
pub fn full_retriever_after(stage: &mut Stage) -> Outcome {
    let outer = Group::new("outer")?;
    fs::write(outer.0.join("cgroup.subtree_control"), "+memory")?;
    let group = Group(outer.0.join("inner"));
    fs::create_dir(&group.0)?;
    fs::write(group.0.join("memory.max"), LITTLE.to_string())?;
    let device = Device::open()?;
    let mut bytes = vec![0; 1 << 20];
    bytes.fill(1);

    Agent::start(|| {
        group.enter()?;
        let session = device.retrieve_session(stage.name)?;
        let mut files = Vec::new();
        for (token, size) in (0..).zip(LARGE) {
            let file = File::from(session.retrieve(token)?);
            // It has room left for what it needs itself: page tables, and memory of its own.
            let mapping = sys::SharedWords::of(&file, size)?;
            let own = vec![1_u8; 1 << 20];
            for part in 0..size >> 20 {
                file.read_exact_at(&mut bytes, (part << 20) as u64)?;
                ensure!(
                    bytes == sys::pattern(token + part as u64, 1 << 20),
                    "file {token}: MiB {part} is not what it was"
                );
            }
            files.push((file, mapping, own));
        }
        session.finish()?;

        let (inner, all) = (group.bytes("shmem")?, outer.bytes("shmem")?);
        let size = LARGE.iter().sum::<usize>() as u64;
        ensure!(
            inner < LITTLE as u64,
            "the group is charged for {inner} bytes"
        );
        ensure!(
            inner > LITTLE as u64 / 2,
            "the group is charged for {inner} bytes"
        );
        let off = all.abs_diff(size);
        ensure!(off < size / 16, "the one above is charged for {all} bytes");
        Ok(())
    })?
    .join()?;

    let events = fs::read_to_string(group.0.join("memory.events"))?;
    ensure!(events.contains("oom_kill 0"), "{events}");
    // They go with the files.
    let left = outer.bytes("shmem")?;
    ensure!(left < LITTLE as u64 / 16, "{left} bytes are left");
    Ok(())
}
