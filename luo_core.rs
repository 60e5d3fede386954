// SPDX-License-Identifier: GPL-2.0

//! The Live Update Orchestrator (LUO): open files that survive a kexec.
//!
//! A user-space agent collects files in named sessions (`/dev/liveupdate`), reboots by kexec into
//! a new kernel, and gets sessions and files back there. What a file consists of is known to its
//! driver; the memory is carried by Kexec Handover (KHO); LUO does the book-keeping between them.
//!
//! This is the root of the crate and its highest layer: boot, the device, and the kexec itself.
//!
//! ```text
//!  luo_core       boot, /dev/liveupdate, the reboot hook
//!  luo_session    named containers of files          luo_ioctl  extensible ioctls
//!  luo_file       the life of one file               luo_flb    state that files share
//!  luo_handler    what drivers registered            luo_chain  records in preserved memory
//!  ---------------------------------------------------------------------------------------
//!  capi           C calls LUO                        callbacks  LUO calls C     (`unsafe`)
//!  ---------------------------------------------------------------------------------------
//!  abi            what crosses the kexec             uapi       what user space sees
//! ```
//!
//! # Boot
//!
//! The parameter `liveupdate=` is read first. Early in boot ([`early_init`]) what the previous
//! kernel left is claimed, validated and rebuilt. Late in boot the place is made where the state
//! for the next kernel will be written, and the device appears.
//!
//! # Locks
//!
//! From the outside in: the handover, the incoming sessions, one of them, the outgoing sessions, one
//! of them, the handlers, one FLB, the table of FLBs, the claims.

#![deny(unsafe_code)]

use kernel::{
    fdt::{
        Fdt,
        FdtWriter, //
    },
    fs::{
        file::FileDescriptorReservation,
        File, //
    },
    kho::{
        self,
        Preserved,
        Restored,
        Subtree, //
    },
    liveupdate::{
        outgoing_abi,
        OutgoingAbi, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Mutex,
        SetOnce, //
    },
    ThisModule, //
};

#[path = "abi/lib.rs"]
pub mod abi;
#[allow(unsafe_code)]
mod callbacks;
#[allow(unsafe_code)]
mod capi;
mod luo_chain;
mod luo_file;
mod luo_flb;
mod luo_fmt;
mod luo_handler;
mod luo_ioctl;
mod luo_session;
#[path = "uapi/lib.rs"]
pub mod uapi;

use abi::{
    flb::FlbBlock,
    root::{
        self,
        Tree,
        TreeBuilder, //
    },
    Phys,
    Root,
    RootFormat,
    SessionName, //
};
use luo_file::Claims;
use luo_flb::{
    Flbs,
    IncomingFlbs, //
};
use luo_handler::Handlers;
use luo_ioctl::{
    Argument,
    RawArgument, //
};
use luo_session::{
    IncomingSessions,
    OutgoingSessions,
    Seal, //
};
use uapi::Request;

module! {
    type: LuoModule,
    name: "luo",
    authors: ["The LUO developers"],
    description: "Live Update Orchestrator",
    license: "GPL",
}

/// What the command line says: `liveupdate=`.
static WANTED: Atomic<bool> = Atomic::new(false);

/// The orchestrator, if live update is enabled and what came from the previous kernel is readable.
static LUO: SetOnce<Pin<KBox<Luo>>> = SetOnce::new();

/// The whole state of the orchestrator.
#[pin_data]
struct Luo {
    #[pin]
    handlers: Handlers,
    #[pin]
    flbs: Flbs,
    #[pin]
    claims: Claims,
    #[pin]
    outgoing: OutgoingSessions,
    #[pin]
    incoming: IncomingSessions,
    /// How many live updates this machine has seen.
    number: u64,
    /// Whether somebody has the device open.
    opened: Atomic<bool>,
    #[pin]
    handover: Mutex<Option<Handover>>,
}

/// The orchestrator; [`None`] if live update is not enabled.
fn luo() -> Option<&'static Luo> {
    LUO.as_ref().map(|luo| &**luo)
}

/// A page for the root of the handed-over state, aligned for a device tree.
type RootPage = [u64; abi::BLOCK_SIZE / size_of::<u64>()];

/// Where the state for the next kernel is written at the kexec: memory that cannot fail then.
struct Handover {
    root: Subtree<RootPage>,
    flbs: Preserved<FlbBlock>,
}

impl Handover {
    /// Sets the memory aside and makes it known to the next kernel, with nothing in it so far.
    fn new(number: u64) -> Result<Self> {
        let mut page = Preserved::new()?;
        write_root(
            &mut page,
            &Root {
                number,
                ..Root::default()
            },
        )?;

        Ok(Self {
            root: Subtree::add(root::ENTRY_NAME, page)?,
            flbs: Preserved::new()?,
        })
    }
}

fn write_root(page: &mut RootPage, root: &Root) -> Result {
    match outgoing_abi() {
        OutgoingAbi::Fdt => {
            let mut tree = FdtWriter::new(page.as_mut_bytes())?;
            root.write_tree(&mut tree)?;
            tree.finish()
        }
        OutgoingAbi::LuoV5 => root
            .to_v5()
            .write_to_prefix(page.as_mut_bytes())
            .map_err(|_| ENOSPC),
    }
}

impl TreeBuilder for FdtWriter<'_> {
    type Error = Error;

    fn begin_node(&mut self, name: &CStr) -> Result {
        FdtWriter::begin_node(self, name)
    }

    fn end_node(&mut self) -> Result {
        FdtWriter::end_node(self)
    }

    fn property(&mut self, name: &CStr, value: &[u8]) -> Result {
        FdtWriter::property(self, name, value)
    }
}

impl Tree for Fdt<'_> {
    fn property(&self, node: &CStr, name: &CStr) -> Option<&[u8]> {
        Fdt::property(self, node, name)
    }
}

/// Reads the root that the previous kernel left; [`None`] if it left none.
///
/// The page that it stands in is kept for good, since KHO shows it in debugfs.
///
/// # Errors
///
/// [`EINVAL`] and others, if there is one but it cannot be understood; that has been reported.
fn read_root() -> Result<Option<Root>> {
    let found = kho::find_subtree(root::ENTRY_NAME)
        .inspect_err(|e| pr_err!("the entry of the previous kernel is malformed: {:?}\n", e))?;
    let Some((at, size)) = found else {
        return Ok(None);
    };

    let page = Restored::<RootPage>::claim(at)
        .inspect_err(|e| pr_err!("no preserved page at {:?}: {:?}\n", at, e))?;
    let bytes = page.as_bytes();
    let bytes = bytes.get(..size).unwrap_or(bytes);

    let root = match RootFormat::expect_known(bytes) {
        Ok(RootFormat::Fdt) => Fdt::new(bytes)
            .inspect_err(|e| pr_err!("the incoming device tree is malformed: {:?}\n", e))
            .map(|tree| Root::from_tree(&tree)),
        Ok(RootFormat::V5) => Ok(Root::from_v5(bytes)),
        Err(e) => Ok(Err(e)),
    };
    core::mem::forget(page);

    root?.map(Some).map_err(|e| {
        pr_err!("incoming {}\n", e);
        EINVAL
    })
}

/// Reads the FLBs that the previous kernel left.
fn read_flbs(at: Option<Phys>) -> Result<Option<IncomingFlbs>> {
    let Some(at) = at.and_then(|at| kho::PhysAddr::new(at.get())) else {
        return Ok(None);
    };

    let block = Restored::<FlbBlock>::claim(at)
        .inspect_err(|e| pr_err!("incoming FLBs: no preserved page at {:?}: {:?}\n", at, e))?;
    IncomingFlbs::read(&block).map(Some)
}

/// Reads the parameter `liveupdate=`.
fn parse_parameter(value: &CStr) -> Result {
    WANTED.store(kernel::str::kstrtobool(value)?, Relaxed);
    Ok(())
}

/// Takes over from the previous kernel, early in boot.
///
/// # Errors
///
/// If what was left cannot be understood. Live update is off for this boot then, and the memory
/// that was handed over stays reserved.
fn early_init() -> Result {
    if !WANTED.load(Relaxed) {
        if kho::find_subtree(root::ENTRY_NAME).is_ok_and(|found| found.is_none()) {
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

    let root = read_root();
    let flbs = match &root {
        Ok(Some(root)) => read_flbs(root.flbs),
        _ => Ok(None),
    };
    let (Ok(root), Ok(flbs)) = (&root, flbs) else {
        pr_err!("live update is off for this boot: the handed-over state cannot be read\n");
        pr_err!("what was preserved is out of reach; its memory stays reserved\n");
        return Err(EINVAL);
    };

    let number = root.map_or(0, |root| root.number);
    // That a kernel took part in a live update is known to FLBs even if it had none.
    let flbs = match (root, flbs) {
        (Some(_), None) => Some(IncomingFlbs::none()),
        (_, flbs) => flbs,
    };
    LUO.populate(KBox::pin_init(
        pin_init!(Luo {
            handlers <- Handlers::new(),
            flbs <- Flbs::new(flbs),
            claims <- Claims::new(),
            outgoing <- OutgoingSessions::new(),
            incoming <- IncomingSessions::new(),
            number,
            opened: Atomic::new(false),
            handover <- new_mutex!(None, "luo::Handover"),
        }),
        GFP_KERNEL,
    )?);

    if let (Some(root), Some(luo)) = (root, luo()) {
        let counts = luo.incoming.read(root.sessions, luo);
        pr_info!(
            "{} sessions with {} files came in, liveupdate number: {}\n",
            counts.sessions,
            counts.files,
            number,
        );
    }
    Ok(())
}

/// Writes the state for the next kernel, at the kexec.
///
/// # Errors
///
/// What a driver returns, [`EOPNOTSUPP`] if the loaded image would lose everything. Nothing has
/// changed then.
fn reboot() -> Result {
    let Some(luo) = luo() else {
        return Ok(());
    };
    let mut handover = luo.handover.lock();
    let Some(handover) = &mut *handover else {
        return Ok(());
    };

    let count = luo.outgoing.count() + luo.incoming.count();
    if count > 0 && !kho::image_finds_preserved_memory() {
        pr_err!(
            "kexec refused: {} sessions would be lost; load the image by kexec_file_load\n",
            count,
        );
        return Err(EOPNOTSUPP);
    }

    let seal = Seal::new(luo).inspect_err(|e| pr_err!("kexec refused: {:?}\n", e))?;
    let flbs = luo.flbs.write(&mut handover.flbs)?;
    let root = Root {
        number: luo.number.saturating_add(1),
        sessions: luo.outgoing.head(),
        // The C implementation takes none at all for a fault of its own counting.
        flbs: luo_chain::phys(&handover.flbs)
            .filter(|_| flbs > 0 || outgoing_abi() == OutgoingAbi::LuoV5),
    };
    write_root(&mut handover.root, &root)?;

    pr_info!(
        "handing over {} sessions with {} files and {} FLBs, liveupdate number: {}\n",
        seal.counts().sessions,
        seal.counts().files,
        flbs,
        root.number,
    );
    seal.commit();
    Ok(())
}

/// Late initialization: the way out, and the device.
struct LuoModule {
    _device: Option<Pin<KBox<MiscDeviceRegistration<Device>>>>,
}

impl kernel::Module for LuoModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        if !WANTED.load(Relaxed) || !kho::is_enabled() {
            return Ok(Self { _device: None });
        }

        if let Some(luo) = luo() {
            let handover = Handover::new(luo.number.saturating_add(1))
                .inspect_err(|e| pr_err!("no memory for the next kernel's state: {:?}\n", e))?;
            *luo.handover.lock() = Some(handover);
        }

        // The device is there even if the incoming state was bad, to say so.
        let options = MiscDeviceOptions {
            name: c"liveupdate",
        };
        Ok(Self {
            _device: Some(KBox::pin_init(
                MiscDeviceRegistration::register(options),
                GFP_KERNEL,
            )?),
        })
    }
}

/// An open `/dev/liveupdate`. There is at most one, so that one agent is in control.
struct Device {
    luo: &'static Luo,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.luo.opened.store(false, Release);
    }
}

#[vtable]
impl MiscDevice for Device {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let luo = luo().ok_or(EIO)?;
        luo.opened
            .cmpxchg(false, true, Full)
            .map_err(|_opened| EBUSY)?;

        // From here on a drop gives the device free.
        Ok(KBox::new(Self { luo }, GFP_KERNEL)?)
    }

    fn ioctl(device: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if luo_ioctl::number(cmd) > uapi::CMD_RETRIEVE_SESSION {
            return Err(EINVAL);
        }
        let arg = RawArgument::new(arg)?;

        match cmd {
            uapi::CreateSession::COMMAND => device.create_session(arg)?,
            uapi::RetrieveSession::COMMAND => device.retrieve_session(arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

impl Device {
    fn create_session(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::CreateSession> = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(luo_session::CLOEXEC)?;
        let name = SessionName::from_bytes(&arg.name).map_err(|_| EINVAL)?;
        arg.check_writable()?;

        // Dropping the file drops the session.
        let file = self.luo.outgoing.create(name, self.luo)?;
        arg.write_fd(fd.reserved_fd())?;
        fd.fd_install(file);
        Ok(())
    }

    fn retrieve_session(&self, arg: RawArgument) -> Result {
        let arg: Argument<uapi::RetrieveSession> = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(luo_session::CLOEXEC)?;
        // No session has a name that is none.
        let name = SessionName::from_bytes(&arg.name).map_err(|_| ENOENT)?;
        arg.check_writable()?;

        let session = self.luo.incoming.retrieve(&name)?;
        arg.write_fd(fd.reserved_fd())?;
        session.install(fd);
        Ok(())
    }
}
