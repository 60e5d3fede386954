// SPDX-License-Identifier: GPL-2.0

//! Kernel modules: `/boot/KERNEL-NAME.ko` for each kernel `/boot/KERNEL`.

use crate::{
    harness::{
        Failure,
        Outcome, //
    },
    init,
};
use liveupdate::cmdline::CommandLine;
use nix::{
    errno::Errno,
    kmod::{
        delete_module,
        finit_module,
        DeleteModuleFlags,
        ModuleInitFlags, //
    }, //
};
use std::{
    ffi::CString,
    fs::File,
    io::ErrorKind, //
};

/// Loads a module of the running kernel.
pub fn load(name: &str, parameters: &str) -> Outcome {
    Ok(try_load(name, parameters)??)
}

/// The same, if the kernel may refuse.
pub fn try_load(name: &str, parameters: &str) -> Outcome<nix::Result<()>> {
    let cmdline = CommandLine::read()?;
    let boot = cmdline.get("luo.stage").map_or(Ok(1), str::parse);
    let kernel = init::kernel_of(&cmdline, boot.map_err(Failure::here)?);
    let file = match File::open(format!("{kernel}-{name}.ko")) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Failure::skip(format!("{kernel} has no module {name}")))
        }
        other => other?,
    };
    let parameters = CString::new(parameters).map_err(Failure::here)?;

    Ok(finit_module(file, &parameters, ModuleInitFlags::empty()))
}

/// Unloads a module.
///
/// # Errors
///
/// [`Errno::EWOULDBLOCK`] if it is in use.
pub fn unload(name: &str) -> nix::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;

    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
}
