// SPDX-License-Identifier: GPL-2.0

//! The file handlers that drivers have registered.
//!
//! Between the C interface ([`capi`](super::capi)) and the files that need a handler
//! ([`luo_file`](super::luo_file)). There are few handlers, so they are searched one by one.
//!
//! The lock is held while handlers are asked whether they want a file, and never during any other
//! callback. The table of FLBs may be locked under it.

use core::ptr::NonNull;

use kernel::{
    bindings,
    fs::File,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use crate::{
    abi::Compatible,
    callbacks::{
        Handler,
        RegisteredFlb,
        RegisteredHandler, //
    },
    luo_flb::{
        FlbSet,
        Flbs, //
    }, //
};

/// All registered file handlers, in the order of their registration.
#[pin_data]
pub(crate) struct Handlers {
    #[pin]
    table: Mutex<KVec<Entry>>,
}

struct Entry {
    handler: RegisteredHandler,
    flbs: Arc<FlbSet>,
}

/// A handler to be called, and the FLBs that files of its depend on.
pub(crate) struct Bound {
    pub(crate) handler: Handler,
    pub(crate) flbs: Arc<FlbSet>,
}

impl Entry {
    fn bind(&self) -> Option<Bound> {
        Some(Bound {
            handler: self.handler.pin()?,
            flbs: self.flbs.clone(),
        })
    }
}

impl Handlers {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_mutex!(KVec::new(), "luo::Handlers"),
        })
    }

    /// Registers a handler.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one with the same compatible string.
    /// - [`ENOMEM`].
    pub(crate) fn register(&self, handler: RegisteredHandler) -> Result {
        let flbs = FlbSet::empty()?;
        let mut table = self.table.lock();

        if table
            .iter()
            .any(|e| e.handler.compatible() == handler.compatible())
        {
            pr_err!("handler '{}' is registered already\n", handler.compatible());
            return Err(EEXIST);
        }
        table.push(Entry { handler, flbs }, GFP_KERNEL)?;
        Ok(())
    }

    /// Unregisters a handler together with its dependencies. Nothing happens if it is not there.
    pub(crate) fn unregister(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flbs: &Flbs,
    ) {
        let mut table = self.table.lock();

        table.retain(|entry| {
            if !entry.handler.is(handler) {
                return true;
            }
            for flb in entry.flbs.iter() {
                flbs.unregister(flb);
            }
            false
        });
    }

    /// Makes a handler depend on an FLB.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the handler is not registered.
    /// - [`EEXIST`] if it depends on the FLB, or another FLB of that name is registered.
    /// - [`ENOSPC`] if there are too many FLBs.
    /// - [`ENOMEM`].
    pub(crate) fn link(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flb: RegisteredFlb,
        flbs: &Flbs,
    ) -> Result {
        let mut table = self.table.lock();
        let entry = table
            .iter_mut()
            .find(|entry| entry.handler.is(handler))
            .ok_or(EINVAL)?;

        if entry.flbs.contains(&flb) {
            return Err(EEXIST);
        }

        let known = flbs.register(flb)?;
        entry.flbs = entry
            .flbs
            .with(known, flb)
            .inspect_err(|_| flbs.unregister(&flb))?;
        Ok(())
    }

    /// Takes back what [`Handlers::link`] did.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the handler does not depend on the FLB.
    pub(crate) fn unlink(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flb: &RegisteredFlb,
        flbs: &Flbs,
    ) -> Result {
        let table = self.table.lock();
        let entry = table
            .iter()
            .find(|entry| entry.handler.is(handler) && entry.flbs.contains(flb))
            .ok_or(ENOENT)?;

        entry.flbs.end(flb);
        flbs.unregister(flb);
        Ok(())
    }

    /// The handler for a file that is to be preserved: the first that accepts it.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if there is none.
    pub(crate) fn for_file(&self, file: &File) -> Result<Bound> {
        let table = self.table.lock();

        table
            .iter()
            .find(|entry| entry.handler.can_preserve(file))
            .and_then(Entry::bind)
            .ok_or(ENOENT)
    }

    /// The handler for files that were preserved under a compatible string.
    pub(crate) fn for_compatible(&self, compatible: &Compatible) -> Option<Bound> {
        let table = self.table.lock();

        table
            .iter()
            .find(|entry| entry.handler.compatible() == compatible)
            .and_then(Entry::bind)
    }
}
