// SPDX-License-Identifier: GPL-2.0

//! The handover: the outgoing root, and what belongs to no session.

use kernel::{
    kho::{
        Preserved,
        Subtree, //
    },
    prelude::*, //
};

use super::root::RootPage;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
use super::{
    corrupt::{
        self,
        Region, //
    },
    corrupt_memfd::Memfds, //
};
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
use crate::abi::{
    flb::FlbRecord,
    root::LuoSerV5,
    RootFormat, //
};
use crate::{
    abi::{
        flb::FlbBlock,
        root::{
            Extras,
            ENTRY_NAME, //
        },
        stamp::PhaseTimes,
        Root, //
    },
    luo_session::Serialized,
    records::{
        checksums::OutgoingChecks,
        format, //
    }, //
};

/// The memory in which the state for the next kernel is written at the kexec. It is allocated at
/// boot, so the kexec does not fail for want of it.
///
/// The next kernel finds it only after [`Handover::list`]. A kernel with the C implementation
/// panics on a root that it cannot read, so there is none unless something is handed over.
pub(crate) struct Handover {
    root: Subtree<RootPage>,
    pub(super) flbs: Preserved<FlbBlock>,
    checks: Option<OutgoingChecks>,
}

impl Handover {
    /// Allocates the memory.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            root: Subtree::new(Preserved::new()?),
            flbs: Preserved::new()?,
            checks: None,
        })
    }

    /// Writes the root, and the checksums of everything that it leads to.
    ///
    /// `times` is called when everything but the root is written.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the root does not fit into its page.
    pub(super) fn write(
        &mut self,
        serialized: &Serialized,
        root: &Root,
        mut extras: Extras<'_>,
        times: impl FnOnce() -> PhaseTimes,
    ) -> Result {
        let format = format::outgoing();
        self.checks = match format.has_checksums {
            true => self
                .checksums(serialized, root)
                .inspect_err(|e| pr_warn!("handing over without checksums: {:?}\n", e))
                .ok(),
            false => None,
        };

        extras.times = Some(times());
        let checks = self.checks.as_ref().map(OutgoingChecks::of_root);
        let page = self.root.as_mut_bytes();
        match (format.write_root)(page, root, checks.as_ref(), &extras) {
            // The root is one page, which the list of checksums shares with the subsystems.
            Err(ENOSPC) if self.checks.is_some() => {
                pr_warn!("handing over without checksums: too many beside the subsystems\n");
                self.checks = None;
                (format.write_root)(self.root.as_mut_bytes(), root, None, &extras)
            }
            result => result,
        }
    }

    /// Adds the root to KHO's tree: the next kernel finds it, should the kexec happen now.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if KHO's tree is full.
    pub(super) fn list(&mut self) -> Result {
        self.root.list(ENTRY_NAME)
    }

    fn checksums(&self, serialized: &Serialized, root: &Root) -> Result<OutgoingChecks> {
        let mut checks = serialized.checks()?;

        if root.flbs.is_some() {
            checks.add_flbs(&self.flbs)?;
        }
        Ok(checks)
    }
}

#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
impl Handover {
    /// Corrupts what is handed over, as the command line says.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn corrupt(&mut self, serialized: &Serialized) -> Result {
        let mut memfds = Memfds::new();
        let mut added = Ok(());
        serialized.each_used(
            |_| {},
            |files| added = added.and_then(|()| memfds.add(files)),
        );
        added?;

        corrupt::corrupt(|visit| {
            self.each_used(serialized, visit);
            memfds.each_used(visit);
        });
        Ok(())
    }

    /// Passes everything of LUO that is handed over to a function that corrupts it.
    fn each_used(&mut self, serialized: &Serialized, visit: &mut dyn FnMut(Region, &mut [u8])) {
        // The size of a tree stands in its second word.
        let root = self.root.as_mut_bytes();
        let used = match RootFormat::detect(root) {
            Some(RootFormat::Fdt) => root
                .get(4..8)
                .and_then(|size| size.try_into().ok())
                .and_then(|size| usize::try_from(u32::from_be_bytes(size)).ok()),
            _ => Some(size_of::<LuoSerV5>()),
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
        serialized.each_used(to(Region::Sessions), to(Region::Files));
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
