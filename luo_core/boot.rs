// SPDX-License-Identifier: GPL-2.0

//! Boot: early, the state of the previous kernel is read and the incoming sessions are rebuilt;
//! late, memory for the outgoing root is allocated, and the device, sysfs and debugfs appear.

use kernel::{
    debugfs::Dir,
    kho,
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sysfs::Directory,
    time::{
        Instant,
        Monotonic, //
    },
    ThisModule, //
};

use super::{
    context::Context,
    debugfs::DebugFiles,
    device::Device,
    handover::Handover,
    orchestrator::{
        luo,
        Luo, //
    },
    outgoing_format,
    params,
    root,
    status::{
        micros_since,
        Status,
        Timings, //
    },
    subsystems::Subsystems,
    sysfs, //
};
use crate::{
    abi::root::ENTRY_NAME,
    ffi::kernel::panic, //
};

/// Reads what the previous kernel handed over, early in boot.
///
/// # Errors
///
/// [`EINVAL`] if the root cannot be understood. Live update is off for this boot then, and the
/// memory that was handed over stays reserved. [`ENOMEM`].
pub(crate) fn early_init() -> Result {
    if !params::enabled() {
        if kho::find_subtree(ENTRY_NAME).is_ok_and(|found| found.is_none()) {
            return Ok(());
        }
        pr_warn!("the previous kernel handed state over, but live update is off in this one\n");
        pr_warn!("what was preserved is out of reach; its memory stays reserved\n");
        return Ok(());
    }
    if !kho::is_enabled() {
        pr_warn!("live update is off, since Kexec Handover is (see the parameter kho=)\n");
        return Ok(());
    }

    if let Some(size) = kho::other_page_size() {
        pr_err!(
            "live update is off for this boot: the previous kernel had pages of {} bytes, not of {}\n",
            size,
            PAGE_SIZE,
        );
        pr_err!("what was preserved is kept, and the next kernel gets it\n");
        return Ok(());
    }

    let begin = Instant::<Monotonic>::now();
    let incoming = root::read().and_then(|incoming| {
        let flbs = incoming.as_ref().map(root::read_flbs).transpose()?;
        Ok((incoming, flbs))
    });
    let Ok((incoming, flbs)) = incoming else {
        pr_err!("live update is off for this boot: the handed-over state cannot be read\n");
        pr_err!("what was preserved is out of reach; its memory stays reserved\n");
        on_corruption();
        return Err(EINVAL);
    };

    let number = incoming.as_ref().map_or(0, |incoming| incoming.root.number);
    let (flbs, flbs_corrupt) = flbs.map_or((None, false), |(flbs, corrupt)| (Some(flbs), corrupt));
    let root = incoming.as_ref();
    let status = Status::new(
        root.map(|root| root.format),
        root.and_then(|root| root.stamp),
        Timings::new(root.and_then(|root| root.times), micros_since(begin)),
    );
    outgoing_format::begin(root.map(|root| root.format));
    let subsystems = Subsystems::new(root.map(|root| root.subsystems));
    let luo = Luo::create(Context::new(status, subsystems), flbs, number)?;

    if let Some(incoming) = incoming {
        let rebuild = Instant::<Monotonic>::now();
        let totals = luo
            .incoming
            .read(incoming.root.sessions, incoming.checks.as_ref());
        luo.context.status.timings.rebuilt(micros_since(rebuild));
        pr_info!(
            "incoming: {} sessions with {} files, {} subsystems, {} bytes of records, read in {} us, liveupdate number: {}\n",
            totals.sessions,
            totals.files,
            luo.context.subsystems.incoming(),
            totals.records(),
            micros_since(begin),
            number,
        );
        if totals.corrupt || flbs_corrupt || incoming.corrupt {
            pr_err!("some of what was handed over is corrupt and quarantined\n");
            on_corruption();
        }
    }
    Ok(())
}

/// Incoming state is corrupt, which has been reported.
fn on_corruption() {
    if params::panic_on_corruption() {
        panic(c"luo: corrupt incoming state, and liveupdate.panic=on");
    }
}

/// Late in boot: the outgoing root, and what user space sees.
pub(crate) struct LuoModule {
    _device: Option<Pin<KBox<MiscDeviceRegistration<Device>>>>,
    /// While live update is off; else the status has it.
    _directory: Option<Directory>,
    _debug_files: Option<Pin<KBox<DebugFiles>>>,
}

impl kernel::Module for LuoModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let directory = sysfs::make()
            .inspect_err(|e| pr_err!("no /sys/kernel/liveupdate: {:?}\n", e))
            .ok();
        let mut this = Self {
            _device: None,
            _directory: None,
            _debug_files: None,
        };
        match (luo(), directory) {
            (Some(luo), Some(directory)) => luo.context.status.notify_in(directory),
            (_, directory) => this._directory = directory,
        }
        if !params::enabled() || !kho::is_enabled() {
            return Ok(this);
        }

        if let Some(luo) = luo() {
            let handover = Handover::new()
                .inspect_err(|e| pr_err!("no memory for the outgoing root: {:?}\n", e))?;
            *luo.handover.lock() = Some(handover);
            let debugfs = Dir::new(c"liveupdate");
            this._debug_files = Some(KBox::pin_init(DebugFiles::new(&debugfs), GFP_KERNEL)?);
        }

        // The device is there even if the incoming root is corrupt: opening it says so.
        let options = MiscDeviceOptions {
            name: c"liveupdate",
        };
        this._device = Some(KBox::pin_init(
            MiscDeviceRegistration::register(options),
            GFP_KERNEL,
        )?);
        Ok(this)
    }
}
