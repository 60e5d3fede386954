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
//!                                                    luo_check  their checksums
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

use core::mem::ManuallyDrop;

use kernel::{
    crc32c::crc32c,
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
        set_outgoing_abi,
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
mod luo_check;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
mod luo_corrupt;
mod luo_file;
mod luo_flb;
mod luo_fmt;
mod luo_handler;
mod luo_ioctl;
mod luo_session;
#[path = "uapi/lib.rs"]
pub mod uapi;

use abi::{
    check::Crc32c,
    flb::FlbBlock,
    root::{
        self,
        RootChecks,
        Tree,
        TreeBuilder, //
    },
    Root,
    RootFormat,
    SessionName, //
};
use luo_check::{
    IncomingChecks,
    OutgoingChecks, //
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

/// What the command line says: `liveupdate.panic=`.
static PANICS: Atomic<bool> = Atomic::new(false);

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
    checks: Option<OutgoingChecks>,
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
            None,
        )?;

        Ok(Self {
            root: Subtree::add(root::ENTRY_NAME, page)?,
            flbs: Preserved::new()?,
            checks: None,
        })
    }
}

#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
impl Handover {
    /// Shows all that is handed over to a function that damages it.
    fn each_used(&mut self, seal: &Seal, visit: &mut dyn FnMut(luo_corrupt::Region, &mut [u8])) {
        use abi::flb::FlbRecord;
        use luo_corrupt::Region;

        // The size of a tree stands in its second word.
        let root = self.root.as_mut_bytes();
        let used = match RootFormat::detect(root) {
            Some(RootFormat::Fdt) => root
                .get(4..8)
                .and_then(|size| size.try_into().ok())
                .and_then(|size| usize::try_from(u32::from_be_bytes(size)).ok()),
            _ => Some(size_of::<root::LuoSerV5>()),
        };
        if let Some(root) = used.and_then(|used| root.get_mut(..used)) {
            visit(Region::Root, root);
        }

        // Several functions share it, but use it one at a time.
        let visit = core::cell::RefCell::new(visit);
        let to = |region| {
            let visit = &visit;
            move |bytes: &mut [u8]| (visit.borrow_mut())(region, bytes)
        };
        seal.each_used(to(Region::Sessions), to(Region::Files));
        if let Some(block) = self.flbs.as_block() {
            let records = block.records::<FlbRecord>().unwrap_or_default();
            let used = block.header_bytes().len() + size_of_val(records);
            if let Some(flbs) = self.flbs.as_mut_bytes().get_mut(..used) {
                to(Region::Flbs)(flbs);
            }
        }
        if let Some(checks) = &mut self.checks {
            checks.each_used(to(Region::Checks));
        }
    }
}

fn write_root(page: &mut RootPage, root: &Root, checks: Option<RootChecks<'_>>) -> Result {
    match outgoing_abi() {
        OutgoingAbi::Fdt => {
            let mut tree = FdtWriter::new(page.as_mut_bytes())?;
            let sum: Crc32c = crc32c;
            root.write_tree(&mut tree, checks.as_ref().map(|checks| (checks, sum)))?;
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

/// The root that the previous kernel left, and the checks of what it leads to.
struct IncomingRoot {
    root: Root,
    checks: Option<IncomingChecks>,
}

/// Reads the root that the previous kernel left; [`None`] if it left none.
///
/// The page that it stands in is kept for good, since KHO shows it in debugfs.
///
/// # Errors
///
/// [`EINVAL`] and others, if there is one but it cannot be understood; that has been reported.
fn read_root() -> Result<Option<IncomingRoot>> {
    let found = kho::find_subtree(root::ENTRY_NAME)
        .inspect_err(|e| pr_err!("the entry of the previous kernel is malformed: {:?}\n", e))?;
    let Some((at, size)) = found else {
        return Ok(None);
    };

    let page = Restored::<RootPage>::claim(at)
        .inspect_err(|e| pr_err!("no preserved page at {:?}: {:?}\n", at, e))?;
    let page = ManuallyDrop::new(page);
    let bytes = page.as_bytes();
    let bytes = bytes.get(..size).unwrap_or(bytes);
    let reported = |e| {
        pr_err!("incoming {}\n", e);
        EINVAL
    };

    match RootFormat::expect_known(bytes).map_err(reported)? {
        RootFormat::Fdt => {
            let tree = Fdt::new(bytes)
                .inspect_err(|e| pr_err!("the incoming device tree is malformed: {:?}\n", e))?;
            let root = Root::from_tree(&tree).map_err(reported)?;
            let checks = RootChecks::from_tree(&tree, &root, crc32c).map_err(reported)?;
            let checks = checks.as_ref().map(IncomingChecks::claim).transpose()?;

            Ok(Some(IncomingRoot { root, checks }))
        }
        RootFormat::V5 => Ok(Some(IncomingRoot {
            root: Root::from_v5(bytes).map_err(reported)?,
            checks: None,
        })),
    }
}

/// Reads the FLBs that the previous kernel left, and tells whether anything was damaged. That there
/// was such a kernel is known to FLBs even if it had none.
fn read_flbs(incoming: &IncomingRoot) -> Result<(IncomingFlbs, bool)> {
    let at = incoming.root.flbs;
    let Some(at) = at.and_then(|at| kho::PhysAddr::new(at.get())) else {
        return Ok((IncomingFlbs::none(), false));
    };

    let block = Restored::<FlbBlock>::claim(at)
        .inspect_err(|e| pr_err!("incoming FLBs: no preserved page at {:?}: {:?}\n", at, e))?;
    let checks = incoming.checks.as_ref().map(IncomingChecks::flbs);

    IncomingFlbs::read(&block, checks).inspect_err(|_| {
        // It may be something else.
        core::mem::forget(block)
    })
}

/// Reads the parameter `liveupdate=`.
fn parse_parameter(value: &CStr) -> Result {
    WANTED.store(kernel::str::kstrtobool(value)?, Relaxed);
    Ok(())
}

/// Sets in which layouts state is handed over, at boot or later.
///
/// # Errors
///
/// [`EBUSY`] if there are outgoing sessions, whose files may be written down already.
fn set_abi(abi: OutgoingAbi) -> Result {
    let Some(luo) = luo() else {
        set_outgoing_abi(abi);
        return Ok(());
    };
    // No kexec must begin meanwhile.
    let _handover = luo.handover.lock();

    luo.outgoing.if_none(|| set_outgoing_abi(abi))
}

/// Reads the parameter `liveupdate.panic=`.
fn parse_panic_parameter(value: &CStr) -> Result {
    PANICS.store(kernel::str::kstrtobool(value)?, Relaxed);
    Ok(())
}

/// What was handed over is damaged, which has been reported.
fn bad_state() {
    if PANICS.load(Relaxed) {
        callbacks::panic(c"luo: bad incoming state, and liveupdate.panic=on");
    }
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

    let incoming = read_root().and_then(|incoming| {
        let flbs = incoming.as_ref().map(read_flbs).transpose()?;
        Ok((incoming, flbs))
    });
    let Ok((incoming, flbs)) = incoming else {
        pr_err!("live update is off for this boot: the handed-over state cannot be read\n");
        pr_err!("what was preserved is out of reach; its memory stays reserved\n");
        bad_state();
        return Err(EINVAL);
    };

    let number = incoming.as_ref().map_or(0, |incoming| incoming.root.number);
    let (flbs, flbs_damaged) = flbs.map_or((None, false), |(flbs, damaged)| (Some(flbs), damaged));
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

    if let (Some(incoming), Some(luo)) = (incoming, luo()) {
        let counts = luo
            .incoming
            .read(incoming.root.sessions, incoming.checks.as_ref(), luo);
        pr_info!(
            "{} sessions with {} files came in, liveupdate number: {}\n",
            counts.sessions,
            counts.files,
            number,
        );
        if counts.damaged || flbs_damaged {
            pr_err!("some of what was handed over is damaged and quarantined\n");
            bad_state();
        }
    }
    Ok(())
}

/// Makes sure that the next kernel will find what is preserved, if there is anything.
///
/// # Errors
///
/// [`EOPNOTSUPP`] if the loaded image would lose it.
fn check_image(sessions: usize) -> Result {
    if sessions == 0 || kho::image_finds_preserved_memory() {
        return Ok(());
    }
    pr_err!(
        "kexec refused: {} sessions would be lost; load the image by kexec_file_load\n",
        sessions,
    );
    Err(EOPNOTSUPP)
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

    check_image(luo.outgoing.count() + luo.incoming.count())?;
    let refused = |e: &Error| pr_err!("kexec refused: {:?}\n", e);
    let seal = Seal::new(luo).inspect_err(refused)?;
    // Some may have been made meanwhile.
    check_image(luo.outgoing.count())?;
    let flbs = luo.flbs.write(&mut handover.flbs).inspect_err(refused)?;
    let root = Root {
        number: luo.number.saturating_add(1),
        sessions: luo.outgoing.head(),
        // The C implementation takes none at all for a fault of its own counting.
        flbs: luo_chain::phys(&handover.flbs)
            .filter(|_| flbs > 0 || outgoing_abi() == OutgoingAbi::LuoV5),
    };
    let checks = match outgoing_abi() {
        OutgoingAbi::Fdt => Some(seal.checks().and_then(|mut checks| {
            if root.flbs.is_some() {
                checks.add_flbs(&handover.flbs)?;
            }
            Ok(checks)
        })),
        OutgoingAbi::LuoV5 => None,
    };
    handover.checks = checks.and_then(|checks| {
        checks
            .inspect_err(|e| pr_warn!("handing over without checksums: {:?}\n", e))
            .ok()
    });
    let checks = handover.checks.as_ref().map(OutgoingChecks::of_root);
    write_root(&mut handover.root, &root, checks).inspect_err(refused)?;
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    luo_corrupt::corrupt(|visit| handover.each_used(&seal, visit));

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
        Ok(KBox::new(Self { luo }, GFP_KERNEL_ACCOUNT)?)
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
