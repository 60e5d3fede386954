// SPDX-License-Identifier: GPL-2.0

//! Reboots that do not happen, and what is left afterwards.

use crate::{
    harness::{
        ensure,
        ensure_eq,
        ensure_errno,
        Failure,
        Outcome,
        Stage, //
    },
    init, module, sys,
    tests::{
        kexec::three_after,
        lifetime::wait_forever,
        sysfs, //
    },
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Device,
    Incoming,
    Outgoing,
    Session, //
};
use nix::{
    errno::Errno,
    libc,
    unistd::{
        fork,
        ForkResult, //
    }, //
};
use std::{
    fs::{
        self,
        File, //
    },
    ptr,
    thread,
    time::Duration, //
};

/// Without a kernel to jump into everything stays as it is.
pub fn no_image(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"content")?;
    session.preserve(&memory, 1)?;

    for round in 0..3 {
        let err = kexec::jump();
        ensure_eq!(err.errno(), Errno::EINVAL);
        usable(&device, stage.number, round)?;
        ensure_errno!(device.create_session(stage.name), EEXIST);
        session.preserve(&sys::memfd_of("n", b"x")?, 10 + round)?;
        ensure_errno!(memory.set_len(0), EPERM);
    }
    drop(session);
    memory.set_len(0)?;
    Ok(())
}

/// Sessions can be made, used and closed.
fn usable(device: &Device, part: usize, round: u64) -> Outcome {
    let other = device.create_session(&format!("usable-{part}-{round}"))?;
    other.preserve(&sys::memfd_of("o", b"x")?, 1)?;
    ensure_eq!(
        other.ask_name()?.to_string(),
        format!("usable-{part}-{round}")
    );
    drop(other);
    ensure_errno!(device.retrieve_session("nobody"), ENOENT);
    Ok(())
}

/// Loads something by `kexec_load(2)`, which cannot carry state over.
///
/// It is a program all the same: should the machine jump into it, it resets it.
pub fn load_without_handover() -> nix::Result<()> {
    load_code(RESET, 0)
}

/// mov al, 0xfe; out 0x64, al; hlt: by way of the keyboard controller.
#[cfg(target_arch = "x86_64")]
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// mov w0, 0x84000009; hvc 0; b .: by a call of the firmware.
#[cfg(target_arch = "aarch64")]
const RESET: &[u8] = &[
    0x20, 0x01, 0x80, 0x52, 0x00, 0x80, 0xb0, 0x72, 0x02, 0x00, 0x00, 0xd4, 0x00, 0x00, 0x00, 0x14,
];

/// An address that is memory, in machines of QEMU.
const CODE: usize = if cfg!(target_arch = "aarch64") {
    0x4100_0000
} else {
    0x0100_0000
};

/// Goes to a program, and comes back at once.
pub fn go_and_return() -> nix::Result<()> {
    const KEXEC_PRESERVE_CONTEXT: u64 = 2;

    // ret; only x86 comes back.
    load_code(&[0xc3], KEXEC_PRESERVE_CONTEXT)?;
    // SAFETY: The program does nothing.
    Errno::result(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) })?;
    unload_without_handover()
}

/// Loads a program.
fn load_code(code: &[u8], flags: u64) -> nix::Result<()> {
    let at = CODE as *mut libc::c_void;

    #[repr(C)]
    struct Segment {
        buf: *const u8,
        bufsz: usize,
        mem: *mut libc::c_void,
        memsz: usize,
    }
    let segments = [Segment {
        buf: code.as_ptr(),
        bufsz: code.len(),
        mem: at,
        // Whole pages, however large they are.
        memsz: 64 << 10,
    }];
    // SAFETY: The kernel reads the one segment, and its bytes.
    let ret = unsafe { libc::syscall(libc::SYS_kexec_load, at, 1, segments.as_ptr(), flags) };
    Errno::result(ret).map(drop)
}

pub fn unload_without_handover() -> nix::Result<()> {
    // SAFETY: No segments: nothing is read.
    let ret = unsafe { libc::syscall(libc::SYS_kexec_load, 0, 0, ptr::null::<u8>(), 0) };
    Errno::result(ret).map(drop)
}

/// A kernel that cannot take over is refused while there is something to take over.
pub fn no_handover_before(stage: &mut Stage) -> Outcome {
    match load_without_handover() {
        Ok(()) => {}
        Err(Errno::ENOSYS) => return Err(Failure::skip("no kexec_load")),
        Err(errno) => return Err(errno.into()),
    }
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    session.preserve(&sys::memfd_of("m", &sys::pattern(1, 10_000))?, 1)?;

    for round in 0..3 {
        let err = kexec::jump();
        stage.note(format!("{err}"));
        ensure_eq!(err.errno(), Errno::EOPNOTSUPP);
        let reason = sysfs::show("refused")?;
        ensure!(reason.contains("would be lost"), "{reason}");
        usable(&device, stage.number, round)?;
        session.preserve(&sys::memfd_of("n", &[round as u8; 10])?, 10 + round)?;
    }
    unload_without_handover()?;
    ensure_eq!(kexec::jump().errno(), Errno::EINVAL);
    usable(&device, stage.number, 3)?;
    stage.keep(session);
    Ok(())
}

/// Unclaimed sessions are something to take over as well.
pub fn no_handover_middle(_: &mut Stage) -> Outcome {
    match load_without_handover() {
        Ok(()) => {}
        Err(Errno::ENOSYS) => return Err(Failure::skip("no kexec_load")),
        Err(errno) => return Err(errno.into()),
    }
    let device = Device::open()?;
    let session = device.create_session("empty")?;

    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    drop(session);
    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    unload_without_handover()?;
    Ok(())
}

/// Then it is done as it should be, and nothing is lost.
pub fn no_handover_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    let file = session.retrieve(1)?.into();
    ensure_eq!(sys::content(&file)?, sys::pattern(1, 10_000));
    for round in 0..3 {
        let file = session.retrieve(10 + round)?.into();
        ensure_eq!(sys::content(&file)?, [round as u8; 10]);
    }
    session.finish()?;
    Ok(())
}

/// A memfd that one can only read, which the old layout of memfds cannot tell.
pub fn refused_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;
    let memory = sys::memfd_of("m", b"content")?;

    session.preserve(&File::open(sys::proc_path(&memory))?, 1)?;
    stage.keep(session);
    Ok(())
}

/// The kexec is called off when almost all is done: this kernel writes the old layout, and an
/// unclaimed session has a file that does not fit. Everything else is frozen by then, and must
/// thaw.
pub fn refused_middle(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session("refused-own")?;
    let memory = sys::memfd("holes")?;
    memory.set_len(1 << 20)?;
    sys::write_at(&memory, 0, b"head")?;
    session.preserve(&memory, 1)?;
    let claimed = device.create_session("refused-other")?;
    claimed.preserve(&sys::memfd_of("o", b"x")?, 1)?;

    init::load_next(stage)?;
    for round in 0..3 {
        let err = kexec::jump();
        stage.note(format!("{err}"));
        ensure_eq!(err.errno(), Errno::EOPNOTSUPP);
        usable(&device, stage.number, round)?;
        // Pages appear in holes as before, by write and by mapping.
        let at = (round + 1) * 100_000;
        sys::write_at(&memory, at, &at.to_ne_bytes())?;
        sys::poke(&memory, at + 50_000, 0x5a)?;
        session.preserve(&sys::memfd_of("n", &[round as u8; 10])?, 10 + round)?;
        ensure_errno!(memory.set_len(0), EPERM);
        ensure_errno!(session.preserve(&memory, 2), EBUSY);
    }
    // One that is closed now is gone, as if nothing had happened.
    drop(claimed);
    drop(device.create_session("refused-other")?);

    // Its owner comes and takes away what was in the way.
    let owner = device.retrieve_session(stage.name)?;
    let file = File::from(owner.retrieve(1)?);
    ensure_eq!(sys::content(&file)?, b"content");
    ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP);
    ensure_eq!(sys::content(&owner.retrieve(1)?.into())?, b"content");
    owner.finish()?;
    stage.keep(session);
    Ok(())
}

/// See [`refused_middle`].
pub fn refused_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    ensure_errno!(device.retrieve_session(stage.name), ENOENT);
    ensure_errno!(device.retrieve_session("refused-other"), ENOENT);
    let session = device.retrieve_session("refused-own")?;

    let mut expected = vec![0; 1 << 20];
    expected[..4].copy_from_slice(b"head");
    for round in 0..3 {
        let at = (round as usize + 1) * 100_000;
        expected[at..at + 8].copy_from_slice(&at.to_ne_bytes());
        expected[at + 50_000] = 0x5a;
        let file = session.retrieve(10 + round)?.into();
        ensure_eq!(sys::content(&file)?, [round as u8; 10]);
    }
    ensure!(sys::content(&session.retrieve(1)?.into())? == expected);
    session.finish()?;
    Ok(())
}

/// What an agent finds once everything has been written down, where it notes it.
const LATE: [&str; 6] = ["preserve", "create", "retrieve", "finish", "name", "close"];

/// Notes what comes of a request: its errno, or 1000 if there is none.
fn note(notes: &mut sys::SharedWords, index: usize, errno: Option<Errno>) {
    notes.write(index * 8, errno.map_or(1000, |errno| errno as u64));
}

/// Waits for the moment at which all is written down, and makes one request of each kind.
fn come_late(device: &Device, own: Session<Outgoing>, old: Session<Incoming>, notes: &File) {
    let Ok(mut notes) = sys::SharedWords::of(notes, sys::PAGE) else {
        return;
    };
    let errno = |result: liveupdate::Result| result.err().map(|err| err.errno());

    for token in 100.. {
        let Ok(file) = sys::memfd("late") else { return };
        if errno(own.preserve(&file, token)) == Some(Errno::EBUSY) {
            break;
        }
    }
    note(&mut notes, 0, Some(Errno::EBUSY));
    // Incoming sessions are serialized after outgoing ones.
    thread::sleep(Duration::from_millis(500));
    note(
        &mut notes,
        1,
        errno(device.create_session("late").map(drop)),
    );
    note(&mut notes, 2, errno(old.retrieve(7).map(drop)));
    note(&mut notes, 3, errno(old.finish()));
    note(&mut notes, 4, errno(own.ask_name().map(drop)));
    drop((own, old));
    note(&mut notes, 5, None);
}

/// An agent that comes between the moment at which all is written down and the jump: it gets an
/// answer at once, and changes nothing.
pub fn late_middle(stage: &mut Stage) -> Outcome {
    module::load("luo_test_linger", "milliseconds=3000")?;
    let device = Device::open()?;
    let old = device.retrieve_session(stage.name)?;
    let own = device.create_session("late-own")?;
    own.preserve(&sys::memfd_of("m", b"content")?, 1)?;
    let notes = sys::memfd_of("notes", &[0; sys::PAGE])?;
    let session = device.create_session("late-notes")?;
    session.preserve(&notes, 1)?;
    stage.keep(session);

    // SAFETY: This process has one thread.
    if let ForkResult::Child = unsafe { fork()? } {
        come_late(&device, own, old, &notes);
        wait_forever();
    }
    Ok(())
}

/// See [`late_middle`].
pub fn late_after(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.retrieve_session("late-notes")?;
    let notes = sys::content(&session.retrieve(1)?.into())?;
    session.finish()?;

    for (index, what) in LATE.iter().enumerate() {
        let bytes = notes[index * 8..][..8].try_into();
        let found = u64::from_ne_bytes(bytes.map_err(Failure::here)?);
        let expected = match *what {
            "name" | "close" => 1000,
            _ => Errno::EBUSY as u64,
        };
        ensure_eq!(found, expected, "{what}");
    }

    // What was closed then had been written down.
    let own = device.retrieve_session("late-own")?;
    ensure_eq!(sys::content(&own.retrieve(1)?.into())?, b"content");
    own.finish()?;
    ensure_errno!(device.retrieve_session("late"), ENOENT);
    drop(device);
    three_after(stage)
}

/// The format in which the next kernel gets what is preserved, where there is a choice.
pub const ABI: &str = "/sys/module/liveupdate/parameters/abi";
const IMAGE_FORMAT: &str = "/sys/kernel/liveupdate/image_format";

/// What the kernel writes now.
fn outgoing_format() -> Outcome<String> {
    let text = sysfs::show("abi")?;
    let first = text.lines().next().unwrap_or_default();
    Ok(first.trim_start_matches("outgoing ").to_string())
}

/// The handlers of the files of a session, in order.
fn handlers_of(session: &str) -> Outcome<Vec<String>> {
    let text = fs::read_to_string("/sys/kernel/debug/liveupdate/outgoing")?;
    Ok(text
        .split("session '")
        .filter(|part| part.starts_with(&format!("{session}'")))
        .flat_map(str::lines)
        .filter_map(|line| line.split("handler '").nth(1)?.split('\'').next())
        .map(str::to_string)
        .collect())
}

/// The format can change while files are preserved, small ones and large ones, sparse and whole, here
/// and there again; or nothing changes, if a file cannot be described.
pub fn abi_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;

    ensure_eq!(fs::read_to_string(ABI)?, "auto\n");
    ensure_eq!(outgoing_format()?, "fdt");
    for none in ["luo", "luo-v4", "fdt fdt"] {
        ensure_errno!(fs::write(ABI, none), EINVAL);
    }

    let session = device.create_session(stage.name)?;
    let small = sys::memfd_of("small", b"small")?;
    let large = sys::memfd_of("large", &sys::pattern(9, 300 * sys::PAGE))?;
    let sparse = sys::memfd_of("sparse", b"")?;
    sparse.set_len(64 * sys::PAGE as u64)?;
    sys::write_at(&sparse, 3 * sys::PAGE as u64, b"three")?;
    for (token, file) in [&small, &large, &sparse].into_iter().enumerate() {
        session.preserve(file, token as u64)?;
    }
    let other = device.create_session("other")?;
    let written = sys::memfd_of("readonly", &sys::pattern(2, 5 * sys::PAGE))?;
    other.preserve(&File::open(sys::proc_path(&written))?, 7)?;
    let ours = handlers_of(stage.name)?;
    ensure_eq!(ours.len(), 3);

    // One cannot be described: it would come back open for writing.
    ensure_errno!(fs::write(ABI, "luo-v5"), EOPNOTSUPP);
    ensure_eq!(fs::read_to_string(ABI)?, "auto\n");
    ensure_eq!(outgoing_format()?, "fdt");
    ensure_eq!(handlers_of(stage.name)?, ours);
    // It may come back so.
    fs::write(ABI, "luo-v5-lossy\n")?;
    ensure_eq!(outgoing_format()?, "luo-v5");
    ensure_errno!(fs::write(ABI, "luo-v5"), EOPNOTSUPP);
    ensure_eq!(fs::read_to_string(ABI)?, "luo-v5-lossy\n");
    sys::close(other)?;

    for _ in 0..20 {
        fs::write(ABI, "luo-v5")?;
        ensure_eq!(handlers_of(stage.name)?, ["memfd-v2"; 3]);
        // Frozen still.
        ensure_errno!(large.set_len(0), EPERM);
        fs::write(ABI, "fdt")?;
        ensure_eq!(handlers_of(stage.name)?, ours);
        ensure_errno!(large.set_len(0), EPERM);
    }
    // What is written meanwhile is there, too.
    sys::write_at(&sparse, 5 * sys::PAGE as u64, b"five")?;
    fs::write(ABI, "luo-v5")?;
    // After it was given up the file is as any other.
    let closed = device.create_session("closed")?;
    let given_up = sys::memfd_of("m", &sys::pattern(1, 2 * sys::PAGE))?;
    closed.preserve(&given_up, 1)?;
    fs::write(ABI, "fdt")?;
    fs::write(ABI, "luo-v5")?;
    sys::close(closed)?;
    given_up.set_len(0)?;

    stage.keep(session);
    Ok(())
}

/// See [`abi_before`].
pub fn abi_after(stage: &mut Stage) -> Outcome {
    let root = fs::read("/sys/kernel/debug/kho/in/sub_fdts/LUO")?;
    ensure!(root.starts_with(b"luo-v5\0"));
    ensure_eq!(fs::read_to_string(ABI)?, "auto\n");
    // As the kernel before, unless the image is known to read more.
    ensure_eq!(outgoing_format()?, "luo-v5");

    let session = Device::open()?.retrieve_session(stage.name)?;
    ensure_eq!(sys::content(&session.retrieve(0)?.into())?, b"small");
    ensure_eq!(
        sys::content(&session.retrieve(1)?.into())?,
        sys::pattern(9, 300 * sys::PAGE)
    );
    let mut sparse = vec![0; 64 * sys::PAGE];
    sparse[3 * sys::PAGE..][..5].copy_from_slice(b"three");
    sparse[5 * sys::PAGE..][..4].copy_from_slice(b"five");
    ensure!(sys::content(&session.retrieve(2)?.into())? == sparse);
    session.finish()?;
    fs::write(ABI, "fdt")?;
    fs::write(ABI, "luo-v5")?;
    Ok(())
}

/// What the loaded image reads decides, if it is known; and not what an earlier image read.
pub fn auto_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    session.preserve(&sys::memfd_of("m", &sys::pattern(3, 9000))?, 1)?;

    let cmdline = CommandLine::read()?;
    let kernel = init::kernel_of(&cmdline, stage.number + 1);
    kexec::unload()?;
    ensure_errno!(fs::write(IMAGE_FORMAT, "luo-v5"), ENOENT);
    init::load(kernel, &cmdline)?;
    ensure_eq!(sysfs::show("image_format")?, "unknown\n");
    fs::write(IMAGE_FORMAT, "luo-v5")?;
    ensure_eq!(outgoing_format()?, "luo-v5");
    ensure_eq!(handlers_of(stage.name)?, ["memfd-v2"]);
    ensure_errno!(fs::write(IMAGE_FORMAT, "v5"), EINVAL);
    // A choice of the user goes first.
    fs::write(ABI, "fdt")?;
    ensure_eq!(outgoing_format()?, "fdt");
    fs::write(ABI, "auto")?;
    ensure_eq!(outgoing_format()?, "luo-v5");

    init::load(kernel, &cmdline)?;
    ensure_eq!(sysfs::show("image_format")?, "unknown\n");
    stage.keep(session);
    Ok(())
}

/// See [`auto_before`]. The format was settled at the kexec.
pub fn auto_after(stage: &mut Stage) -> Outcome {
    let root = fs::read("/sys/kernel/debug/kho/in/sub_fdts/LUO")?;
    ensure!(!root.starts_with(b"luo-v5\0"));
    ensure_eq!(outgoing_format()?, "fdt");

    let session = Device::open()?.retrieve_session(stage.name)?;
    ensure_eq!(
        sys::content(&session.retrieve(1)?.into())?,
        sys::pattern(3, 9000)
    );
    Ok(session.finish()?)
}

/// A next kernel that would not have what is preserved, or would overwrite it, is refused, and nothing
/// changes by that.
///
/// At bd974ac it died before it said a word.
pub fn memory_before(stage: &mut Stage) -> Outcome {
    let device = Device::open()?;
    let session = device.create_session(stage.name)?;
    let memory = sys::memfd_of("m", &sys::pattern(1, 3 * sys::PAGE))?;
    session.preserve(&memory, 1)?;
    let frames = sys::frames(&memory, 3)?;
    let page = frames[1] * sys::PAGE as u64;
    let around = page >> 20 << 20;

    let kernel = init::kernel_of(&CommandLine::read()?, stage.number + 1).to_owned();
    for (option, value) in [
        ("mem", "64M".to_string()),
        ("memmap", "64M".into()),
        ("memmap", format!("4K${page:#x}")),
        ("memmap", format!("64K!{around:#x},1M#{around:#x}")),
        ("memmap", format!("1M%{around:#x}+2")),
        ("memmap", "exactmap,640K@0,63M@1M".into()),
        ("memtest", "1".into()),
    ]
    .into_iter()
    // Only x86 has this one.
    .filter(|(option, _)| cfg!(target_arch = "x86_64") || *option != "memmap")
    {
        let mut cmdline = CommandLine::read()?;
        cmdline.set(option, &value);
        init::load(&kernel, &cmdline)?;
        let what = format!("{option}={value}");
        ensure_eq!(kexec::jump().errno(), Errno::EOPNOTSUPP, "{what}");
        let reason = sysfs::show("refused")?;
        ensure!(reason.contains(option), "{what}: {reason}");
        usable(&device, stage.number, 0)?;
        ensure_errno!(memory.set_len(0), EPERM);
    }
    ensure!(sys::content(&memory)? == sys::pattern(1, 3 * sys::PAGE));
    stage.keep(session);
    Ok(())
}

/// See [`memory_before`].
pub fn memory_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    let content = sys::content(&session.retrieve(1)?.into())?;
    ensure!(content == sys::pattern(1, 3 * sys::PAGE));
    Ok(session.finish()?)
}
