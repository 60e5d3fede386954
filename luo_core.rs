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
//!  luo_sysfs      /sys/kernel/liveupdate             luo_debugfs  to look inside
//!  luo_session    named containers of files          luo_ioctl  extensible ioctls
//!  luo_file       the life of one file               luo_flb    state that files share
//!  luo_subsystem  state that belongs to no file      luo_state  where the machine stands
//!                                                    luo_trace  for who listens
//!  luo_handler    what drivers registered            luo_chain  records in preserved memory
//!                                                    luo_check  their checksums
//!  luo_names      sessions by their names            luo_tokens  files by their tokens
//!  luo_claims     no file twice                      luo_set    numbers that are there
//!  luo_quarantine  what is damaged
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
//! From the outside in: the subsystems, the handover, the incoming sessions, one of them, the
//! outgoing sessions, one of them, the handlers, one FLB, the table of FLBs, the claims.

#![deny(unsafe_code)]

use core::mem::ManuallyDrop;

use kernel::{
    crc32c::crc32c,
    debugfs::Dir,
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
        KexecLock,
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
    sysfs::Directory,
    time::{
        Instant,
        Monotonic, //
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
mod luo_claims;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
mod luo_corrupt;
mod luo_debugfs;
mod luo_file;
mod luo_flb;
mod luo_fmt;
mod luo_handler;
mod luo_ioctl;
#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
mod luo_kunit;
mod luo_names;
mod luo_quarantine;
mod luo_refusal;
mod luo_session;
mod luo_set;
mod luo_state;
mod luo_subsystem;
mod luo_sysfs;
mod luo_tokens;
mod luo_trace;
#[path = "uapi/lib.rs"]
pub mod uapi;

use abi::{
    flb::FlbBlock,
    root::{
        self,
        Extras,
        RootChecks,
        Tree,
        TreeBuilder, //
    },
    stamp::{
        PhaseTimes,
        Stamp, //
    },
    subsystem::Subsystems as SubsystemRecords,
    Root,
    RootFormat,
    SessionName, //
};
use luo_check::{
    IncomingChecks,
    OutgoingChecks, //
};
use luo_claims::Claims;
use luo_debugfs::Views;
use luo_flb::{
    Flbs,
    IncomingFlbs, //
};
use luo_handler::Handlers;
use luo_ioctl::{
    Argument,
    RawArgument, //
};
use luo_refusal::Refusal;
use luo_session::{
    IncomingSessions,
    OutgoingSessions,
    Seal, //
};
use luo_state::{
    Standing,
    Timings, //
};
use luo_subsystem::Subsystems;
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
    #[pin]
    subsystems: Subsystems,
    standing: Standing,
    #[pin]
    refusal: Refusal,
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
            &Extras::default(),
        )?;

        Ok(Self {
            root: Subtree::add(root::ENTRY_NAME, page)?,
            flbs: Preserved::new()?,
            checks: None,
        })
    }

    /// Writes the root, and the checks of all that it leads to.
    ///
    /// `times` tells how long it took, once all but the root is written.
    fn write(
        &mut self,
        seal: &Seal,
        root: &Root,
        mut extras: Extras<'_>,
        times: impl FnOnce() -> PhaseTimes,
    ) -> Result {
        self.checks = match outgoing_abi() {
            OutgoingAbi::Fdt => self
                .make_checks(seal, root)
                .inspect_err(|e| pr_warn!("handing over without checksums: {:?}\n", e))
                .ok(),
            OutgoingAbi::LuoV5 => None,
        };

        extras.times = Some(times());
        let checks = self.checks.as_ref().map(OutgoingChecks::of_root);
        match write_root(&mut self.root, root, checks, &extras) {
            // The root is a page, which most have to share with subsystems.
            Err(ENOSPC) if self.checks.is_some() => {
                pr_warn!("handing over without checksums: too many beside the subsystems\n");
                self.checks = None;
                write_root(&mut self.root, root, None, &extras)
            }
            result => result,
        }
    }

    fn make_checks(&self, seal: &Seal, root: &Root) -> Result<OutgoingChecks> {
        let mut checks = seal.checks()?;

        if root.flbs.is_some() {
            checks.add_flbs(&self.flbs)?;
        }
        Ok(checks)
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

fn write_root(
    page: &mut RootPage,
    root: &Root,
    checks: Option<RootChecks<'_>>,
    extras: &Extras<'_>,
) -> Result {
    match outgoing_abi() {
        OutgoingAbi::Fdt => {
            let mut tree = FdtWriter::new(page.as_mut_bytes())?;
            root.write_tree(&mut tree, checks.as_ref(), extras, crc32c)?;
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
    format: RootFormat,
    root: Root,
    checks: Option<IncomingChecks>,
    stamp: Option<Stamp>,
    times: Option<PhaseTimes>,
    subsystems: SubsystemRecords,
    /// Whether there were subsystems, but damaged.
    damaged: bool,
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

    let format = RootFormat::expect_known(bytes).map_err(reported)?;
    match format {
        RootFormat::Fdt => {
            let tree = Fdt::new(bytes)
                .inspect_err(|e| pr_err!("the incoming device tree is malformed: {:?}\n", e))?;
            let root = Root::from_tree(&tree).map_err(reported)?;
            let checks = RootChecks::from_tree(&tree, &root, crc32c).map_err(reported)?;
            let checks = checks.as_ref().map(IncomingChecks::claim).transpose()?;
            let subsystems = SubsystemRecords::from_tree(&tree, crc32c)
                .inspect_err(|e| pr_err!("incoming {}\n", e));

            Ok(Some(IncomingRoot {
                format,
                root,
                checks,
                stamp: Stamp::from_tree(&tree),
                times: PhaseTimes::from_tree(&tree),
                damaged: subsystems.is_err(),
                subsystems: subsystems.unwrap_or(SubsystemRecords::NONE),
            }))
        }
        RootFormat::V5 => Ok(Some(IncomingRoot {
            format,
            root: Root::from_v5(bytes).map_err(reported)?,
            checks: None,
            stamp: None,
            times: None,
            subsystems: SubsystemRecords::NONE,
            damaged: false,
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

/// How many microseconds have passed, rounded up.
fn micros_since(begin: Instant<Monotonic>) -> u64 {
    begin.elapsed().as_micros_ceil().unsigned_abs()
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

    let begin = Instant::<Monotonic>::now();
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
    let came = incoming.as_ref();
    let standing = Standing::new(
        came.map(|came| came.format),
        came.and_then(|came| came.stamp),
        Timings::new(came.and_then(|came| came.times), micros_since(begin)),
    );
    let subsystems = came.map(|came| came.subsystems);
    LUO.populate(KBox::pin_init(
        pin_init!(Luo {
            handlers <- Handlers::new(),
            flbs <- Flbs::new(flbs),
            claims <- Claims::new(),
            outgoing <- OutgoingSessions::new(),
            incoming <- IncomingSessions::new(),
            subsystems <- Subsystems::new(subsystems),
            standing,
            refusal <- Refusal::new(),
            number,
            opened: Atomic::new(false),
            handover <- new_mutex!(None, "luo::Handover"),
        }),
        GFP_KERNEL,
    )?);

    if let (Some(incoming), Some(luo)) = (incoming, luo()) {
        let rebuild = Instant::<Monotonic>::now();
        let counts = luo
            .incoming
            .read(incoming.root.sessions, incoming.checks.as_ref(), luo);
        luo.standing.timings.rebuilt(micros_since(rebuild));
        pr_info!(
            "{} sessions with {} files came in, {} subsystems, {} bytes of records, read in {} us, liveupdate number: {}\n",
            counts.sessions,
            counts.files,
            luo.subsystems.incoming(),
            counts.records(),
            micros_since(begin),
            number,
        );
        if counts.damaged || flbs_damaged || incoming.damaged {
            pr_err!("some of what was handed over is damaged and quarantined\n");
            bad_state();
        }
    }
    Ok(())
}

/// Writes the state for the next kernel, at the kexec.
///
/// # Errors
///
/// What a driver or a subsystem returns, [`EOPNOTSUPP`] if the loaded image would lose everything.
/// Nothing has changed then, but that subsystems which refuse at the last moment are cancelled.
fn reboot(kexec: &KexecLock<'_>) -> Result {
    let Some(luo) = luo() else {
        return Ok(());
    };
    let stamp = luo_state::now();
    let begin = Instant::<Monotonic>::now();

    luo.refusal.clear();
    let result = if kexec.image_finds_preserved_memory() {
        luo.hand_over(stamp, begin)
    } else {
        luo.leave_all()
    };
    result.inspect_err(|e| {
        luo.refusal.refused(*e);
        // Sessions may have been closed while they were sealed.
        luo.sessions_ended();
    })
}

impl Luo {
    /// How many sessions and subsystems would be lost by a kexec that hands nothing over.
    fn at_stake(&self) -> (usize, usize) {
        let sessions = self.standing.outgoing.sessions() + self.standing.incoming.sessions();
        (sessions, self.subsystems.outgoing())
    }

    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if something would be lost by a kexec that hands nothing over, for that reason.
    fn expect_nothing_at_stake(&self, reason: &str) -> Result {
        match self.at_stake() {
            (0, 0) => Ok(()),
            (sessions, subsystems) => {
                self.refusal.report(fmt!(
                    "{} sessions and {} subsystems would be lost: {}",
                    sessions,
                    subsystems,
                    reason,
                ));
                Err(EOPNOTSUPP)
            }
        }
    }

    /// Lets a kexec go ahead whose kernel will find nothing, if there is nothing to find.
    fn leave_all(&'static self) -> Result {
        // First, so that nothing can come while we look.
        let seal = Seal::new(self);

        self.expect_nothing_at_stake("load the image by kexec_file_load")?;
        seal?.commit();
        Ok(())
    }

    fn hand_over(&'static self, stamp: Option<Stamp>, begin: Instant<Monotonic>) -> Result {
        let mut departure = self.subsystems.depart()?;
        let mut handover = self.handover.lock();
        let Some(handover) = &mut *handover else {
            // There is no device either, but sessions may have come in.
            return self.expect_nothing_at_stake("there was no memory for the handover at boot");
        };

        let freeze = Instant::<Monotonic>::now();
        let seal = Seal::new(self)?;
        let freeze = micros_since(freeze);
        let serialize = Instant::<Monotonic>::now();
        let flbs = self.flbs.write(&mut handover.flbs)?;
        let subsystems = departure.reboot()?;
        if outgoing_abi() == OutgoingAbi::LuoV5 {
            for subsystem in &subsystems {
                pr_warn!(
                    "subsystem '{}': its state is left behind, luo-v5 has no place for it\n",
                    subsystem.name,
                );
            }
        }
        let root = Root {
            number: self.number.saturating_add(1),
            sessions: self.outgoing.head(),
            // The C implementation takes none at all for a fault of its own counting.
            flbs: luo_chain::phys(&handover.flbs)
                .filter(|_| flbs > 0 || outgoing_abi() == OutgoingAbi::LuoV5),
        };
        let times = || PhaseTimes {
            freeze,
            serialize: micros_since(serialize),
        };
        let extras = Extras {
            stamp,
            times: None,
            subsystems: &subsystems,
        };
        handover.write(&seal, &root, extras, times)?;
        #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
        luo_corrupt::corrupt(|visit| handover.each_used(&seal, visit));

        pr_info!(
            "handing over {} sessions with {} files and {} FLBs, {} subsystems, {} bytes of records, in {} us, liveupdate number: {}\n",
            seal.counts().sessions,
            seal.counts().files,
            flbs,
            subsystems.len(),
            seal.counts().records(),
            micros_since(begin),
            root.number,
        );
        seal.commit();
        departure.commit();
        Ok(())
    }

    /// Prepares the subsystems for a live update.
    fn prepare(&self) -> Result {
        self.settle();
        self.subsystems.prepare()?;
        self.standing.changed();
        Ok(())
    }

    /// Takes [`Luo::prepare`] back.
    fn cancel(&self) -> Result {
        self.subsystems.cancel()?;
        self.standing.changed();
        Ok(())
    }

    /// Tells the subsystems that the live update is over.
    fn finish(&self) -> Result {
        self.subsystems.finish()?;
        self.standing.changed();
        Ok(())
    }

    /// Ends a live update that is over, as nothing of it is left that could be finished.
    fn settle(&self) {
        if self.standing.incoming.sessions() == 0 && self.subsystems.settle() {
            self.standing.changed();
        }
    }

    /// The last session may be finished, or closed.
    fn sessions_ended(&self) {
        self.settle();
        self.standing.changed();
    }
}

/// Late initialization: the way out, and the device.
struct LuoModule {
    _device: Option<Pin<KBox<MiscDeviceRegistration<Device>>>>,
    /// While live update is off; else the state has it.
    _directory: Option<Directory>,
    _views: Option<Pin<KBox<Views>>>,
}

impl kernel::Module for LuoModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let directory = luo_sysfs::make()
            .inspect_err(|e| pr_err!("no /sys/kernel/liveupdate: {:?}\n", e))
            .ok();
        let mut this = Self {
            _device: None,
            _directory: None,
            _views: None,
        };
        match (luo(), directory) {
            (Some(luo), Some(directory)) => luo.standing.tell_in(directory),
            (_, directory) => this._directory = directory,
        }
        if !WANTED.load(Relaxed) || !kho::is_enabled() {
            return Ok(this);
        }

        if let Some(luo) = luo() {
            let handover = Handover::new(luo.number.saturating_add(1))
                .inspect_err(|e| pr_err!("no memory for the next kernel's state: {:?}\n", e))?;
            *luo.handover.lock() = Some(handover);
            let debugfs = Dir::new(c"liveupdate");
            this._views = Some(KBox::pin_init(Views::new(&debugfs), GFP_KERNEL)?);
        }

        // The device is there even if the incoming state was bad, to say so.
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
        luo.standing.opened();

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
