// SPDX-License-Identifier: GPL-2.0

//! File-lifecycle-bound state (FLB): what several preserved files share.
//!
//! Below files, above the callbacks of drivers. An FLB is preserved with the first file that
//! depends on it and unpreserved with the last; in the new kernel its object is retrieved when a
//! driver asks for it, and finished with the last file. Which files those are follows from their
//! handlers: each has an [`FlbSet`].
//!
//! ```text
//!  luo_flb   one FLB: its outgoing and its incoming side
//!  sets      the FLBs of a file handler, and a file's use of them
//!  table     all FLBs, registered or incoming
//! ```
//!
//! An FLB is identified by its compatible string, on both sides of the kexec: an incoming one is
//! there before its driver, and stays while that driver comes and goes. Files and drivers that use
//! the object are counted apart. Only files are handed over.
//!
//! # Locks
//!
//! One side of one FLB, then the table of FLBs, then what is registered of an FLB. A callback runs
//! under the lock of one side of its FLB. All of these locks are of one class, so a callback must
//! not ask for an object of any FLB.

use core::fmt;

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use crate::{
    abi::{
        flb::Flb as FlbDescription,
        Compatible, //
    },
    ffi::flb::{
        FlbId,
        FlbRef,
        LiveFlb,
        PinnedFlb,
        Preserved,
        RegisteredFlb,
        Retrieved, //
    }, //
};

mod sets;
mod table;

pub(crate) use sets::{
    FlbSet,
    FlbUse, //
};
pub(crate) use table::{
    Flbs,
    IncomingFlbs, //
};

/// One FLB, by its compatible string.
#[pin_data]
pub(crate) struct Flb {
    name: Compatible,
    /// Whether the previous kernel handed it over.
    is_incoming: bool,
    /// What the driver registered; nothing while its driver is not there.
    #[pin]
    registered: Mutex<Option<RegisteredFlb>>,
    #[pin]
    outgoing: Mutex<OutgoingSide>,
    #[pin]
    incoming: Mutex<IncomingSide>,
}

/// The side of an FLB that goes to the next kernel.
///
/// There is a live object exactly if a file or a driver uses it.
struct OutgoingSide {
    files: u64,
    drivers: u64,
    live: Option<LiveFlb<Preserved>>,
}

/// The incoming side of an FLB.
struct IncomingSide {
    name: Compatible,
    files: u64,
    drivers: u64,
    state: IncomingObject,
}

/// How far an incoming FLB has come.
enum IncomingObject {
    /// The previous kernel did not preserve it.
    Absent,
    /// The object was not retrieved; this is the handle.
    Waiting(u64),
    /// The object exists.
    Live(LiveFlb<Retrieved>),
    /// The object could not be made, and will not be tried again.
    Failed(Error),
    /// The object has been finished.
    Finished,
}

impl Flb {
    fn new(name: Compatible, files: u64, state: IncomingObject) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                name,
                is_incoming: !matches!(state, IncomingObject::Absent),
                registered <- new_mutex!(None, "luo::Flb::registered"),
                outgoing <- new_mutex!(
                    OutgoingSide {
                        files: 0,
                        drivers: 0,
                        live: None,
                    },
                    "luo::Flb::outgoing"
                ),
                incoming <- new_mutex!(
                    IncomingSide {
                        name: *name,
                        files,
                        drivers: 0,
                        state,
                    },
                    "luo::Flb::incoming"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// Keeps what a driver has registered in memory; [`None`] if that is not there any more, or is
    /// about to go.
    fn pin(&self, id: FlbId) -> Option<PinnedFlb> {
        let registered = self.registered.lock();
        let flb = registered.as_ref()?.get();

        if flb.id() != id {
            return None;
        }
        flb.pin()
    }

    /// Another file that depends on the FLB is being preserved.
    fn preserve_file(&self, id: FlbId) -> Result {
        let mut outgoing = self.outgoing.lock();

        if outgoing.live.is_none() {
            outgoing.live = Some(self.pin(id).ok_or(ENODEV)?.preserve()?);
        }
        outgoing.files = outgoing.files.saturating_add(1);
        Ok(())
    }

    /// A file that depends on the FLB is not preserved any more.
    fn unpreserve_file(&self) {
        let mut outgoing = self.outgoing.lock();

        outgoing.files = outgoing.files.saturating_sub(1);
        outgoing.end_if_unused();
    }

    /// A file that depends on the FLB has been finished.
    fn finish_file(&self, id: FlbId) {
        let mut incoming = self.incoming.lock();

        incoming.files = incoming.files.saturating_sub(1);
        incoming.end_if_unused(id, || self.pin(id));
    }

    /// A driver asks for the outgoing object.
    fn get_outgoing(&self, id: FlbId) -> Result<*mut c_void> {
        let mut outgoing = self.outgoing.lock();
        let live = outgoing.live.as_ref().ok_or(ENOENT)?;
        let object = live.object(id).ok_or(ENOENT)?;

        // An FLB whose `preserve` made no object has none to give.
        if object.is_null() {
            return Err(ENOENT);
        }
        outgoing.drivers = outgoing.drivers.checked_add(1).ok_or(EOVERFLOW)?;
        Ok(object)
    }

    /// A driver gives the outgoing object back.
    fn put_outgoing(&self) {
        let mut outgoing = self.outgoing.lock();

        match outgoing.drivers.checked_sub(1) {
            Some(drivers) => outgoing.drivers = drivers,
            None => pr_err!("FLB '{}': outgoing object put too often\n", self.name),
        }
        outgoing.end_if_unused();
    }

    /// A driver asks for the incoming object.
    fn get_incoming(&self, flb: FlbRef<'_>) -> Result<*mut c_void> {
        let mut incoming = self.incoming.lock();
        let object = incoming.object(flb.id(), || flb.pin())?;

        incoming.drivers = incoming.drivers.checked_add(1).ok_or(EOVERFLOW)?;
        Ok(object)
    }

    /// A driver gives the incoming object back.
    fn put_incoming(&self, flb: FlbRef<'_>) {
        let mut incoming = self.incoming.lock();

        match incoming.drivers.checked_sub(1) {
            Some(drivers) => incoming.drivers = drivers,
            None => pr_err!("FLB '{}': incoming object put too often\n", self.name),
        }
        incoming.end_if_unused(flb.id(), || flb.pin());
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, drivers, live) = {
            let outgoing = self.outgoing.lock();
            (outgoing.files, outgoing.drivers, outgoing.live.is_some())
        };
        let state = if live { "preserved" } else { "none" };
        write!(
            f,
            "'{}' outgoing {state}, {files} files, {drivers} drivers; ",
            self.name,
        )?;

        let (files, drivers, state, error) = {
            let incoming = self.incoming.lock();
            let (state, error) = match &incoming.state {
                IncomingObject::Absent => ("none", None),
                IncomingObject::Waiting(_) => ("waiting", None),
                IncomingObject::Live(_) => ("retrieved", None),
                IncomingObject::Failed(e) => ("failed ", Some(*e)),
                IncomingObject::Finished => ("finished", None),
            };
            (incoming.files, incoming.drivers, state, error)
        };
        write!(f, "incoming {state}")?;
        if let Some(e) = error {
            write!(f, "{e:?}")?;
        }
        writeln!(f, ", {files} files, {drivers} drivers")
    }

    /// What to tell the next kernel, if there is anything.
    fn record(&self) -> Option<FlbDescription> {
        let outgoing = self.outgoing.lock();

        match &outgoing.live {
            Some(live) if outgoing.files > 0 => Some(FlbDescription {
                name: self.name,
                data: live.data(),
                count: outgoing.files,
            }),
            _ => None,
        }
    }
}

impl OutgoingSide {
    fn end_if_unused(&mut self) {
        if self.files == 0 && self.drivers == 0 {
            self.live = None;
        }
    }
}

impl IncomingSide {
    /// The object of the FLB that `pin` keeps, which is made if it does not exist.
    fn object(
        &mut self,
        id: FlbId,
        pin: impl FnOnce() -> Option<PinnedFlb>,
    ) -> Result<*mut c_void> {
        if let IncomingObject::Waiting(data) = self.state {
            // If the module is about to go, what was handed over is untouched.
            let flb = pin().ok_or(ENODEV)?;
            self.state = match flb.retrieve(data) {
                Ok(live) => IncomingObject::Live(live),
                Err(e) => {
                    pr_warn!("FLB '{}': retrieve failed: {:?}\n", self.name, e);
                    IncomingObject::Failed(e)
                }
            };
        }

        match &self.state {
            IncomingObject::Live(live) => live.object(id).ok_or(EEXIST),
            IncomingObject::Failed(e) => Err(*e),
            IncomingObject::Finished => Err(ENODATA),
            IncomingObject::Absent | IncomingObject::Waiting(_) => Err(ENOENT),
        }
    }

    /// Finishes the object once it is not needed, even if it was never retrieved.
    fn end_if_unused(&mut self, id: FlbId, pin: impl FnOnce() -> Option<PinnedFlb>) {
        if self.files > 0 || self.drivers > 0 {
            return;
        }
        if matches!(self.state, IncomingObject::Waiting(_)) && self.object(id, pin).is_err() {
            return;
        }
        if matches!(self.state, IncomingObject::Live(_)) {
            self.state = IncomingObject::Finished;
        }
    }
}
