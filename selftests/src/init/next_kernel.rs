// SPDX-License-Identifier: GPL-2.0

//! The kernel that comes next: which one, with which command line, and its initramfs.

use crate::harness::{
    Failure,
    Outcome,
    Stage, //
};
use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Context, //
};
use luo_guest::initramfs::Archive;
use nix::{
    errno::Errno,
    libc,
    sys::memfd::{
        memfd_create,
        MFdFlags, //
    }, //
};
use std::{
    ffi::CString,
    fs::{
        self,
        File, //
    },
    io,
    os::fd::{
        AsFd,
        AsRawFd, //
    },
    path::Path, //
};

/// The file of the kernel of a boot, counted from one.
pub fn kernel_of(cmdline: &CommandLine, boot: usize) -> &str {
    const FIRST: &str = "/boot/kernel";

    match boot.checked_sub(2) {
        None => FIRST,
        Some(index) => {
            let list = cmdline.get("luo.kernels").unwrap_or(FIRST);
            let mut kernels = list.split(',');
            kernels
                .nth(index)
                .or(list.split(',').next_back())
                .unwrap_or(FIRST)
        }
    }
}

/// Boots what follows; returns why that did not work.
pub(super) fn next_kernel(cmdline: &CommandLine, number: usize, once: &[String]) -> String {
    let kernel = kernel_of(cmdline, number + 1);

    match load_with(kernel, cmdline, once) {
        Ok(()) => kexec::jump().to_string(),
        Err(err) => format!("{kernel}: {err}"),
    }
}

/// Behind this are the parameters that are for one boot only.
pub(super) const ONCE: &str = " luo.once= ";

/// The command line of a boot, without what is for that one only.
pub(super) fn command_line() -> liveupdate::Result<CommandLine> {
    let all = CommandLine::read()?;
    let lasting = all.as_str().split(ONCE.trim_end()).next();

    Ok(CommandLine::new(lasting.unwrap_or_default()))
}

/// Loads the kernel of the boot that follows `stage`, for a test that is alone in its machine and
/// starts the kexec itself.
pub fn load_next(stage: &Stage) -> Outcome {
    let mut cmdline = command_line()?;

    cmdline.set("luo.stage", &(stage.number + 1).to_string());
    let kernel = kernel_of(&cmdline, stage.number + 1);
    Ok(load_with(kernel, &cmdline, stage.for_next_boot())?)
}

/// Loads the kernel of the boot that follows `stage` as the one that runs when this one crashes.
pub fn load_for_crash(stage: &Stage) -> Outcome {
    let mut cmdline = command_line()?;
    cmdline.set("luo.stage", &(stage.number + 1).to_string());
    let kernel = File::open(kernel_of(&cmdline, stage.number + 1))?;
    let initrd = pack()?;
    let line = CString::new(format!("{} nr_cpus=1", cmdline.as_str())).map_err(Failure::here)?;
    let line = line.as_bytes_with_nul();

    // SAFETY: The system call only reads from its arguments; the pointer is good for the length.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            line.len(),
            line.as_ptr(),
            libc::KEXEC_FILE_ON_CRASH,
        )
    })?;
    Ok(())
}

/// Loads a kernel with this initramfs.
pub fn load(kernel: &str, cmdline: &CommandLine) -> liveupdate::Result {
    load_with(kernel, cmdline, &[])
}

/// The same, with parameters for that boot only.
pub(super) fn load_with(
    kernel: &str,
    cmdline: &CommandLine,
    once: &[String],
) -> liveupdate::Result {
    let kernel = File::open(kernel).context(|| "open the next kernel")?;
    let initrd = pack().context(|| "pack the next initramfs")?;
    let mut line = cmdline.as_str().to_owned();

    if !once.is_empty() {
        line += ONCE;
        line += &once.join(" ");
    }
    kexec::load(kernel.as_fd(), Some(initrd.as_fd()), &line)
}

/// Packs an initramfs like the one that this kernel was booted with.
pub(super) fn pack() -> io::Result<File> {
    let out = memfd_create("initramfs", MFdFlags::MFD_CLOEXEC)?;
    let mut archive = Archive::new(File::from(out));

    archive.directory("dev")?;
    archive.device("dev/console", 0o600, (5, 1))?;
    for name in ["proc", "sys", "boot"] {
        archive.directory(name)?;
    }
    archive.copy(Path::new("/init"))?;
    for file in fs::read_dir("/boot")? {
        let path = file?.path();
        if path.file_name().is_some_and(|name| name != "initrd") {
            archive.copy(&path)?;
        }
    }
    archive.finish()
}
