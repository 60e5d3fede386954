// SPDX-License-Identifier: GPL-2.0

//! The root that the previous kernel handed over: an entry in KHO's tree, from which everything else
//! is found.

use core::mem::ManuallyDrop;

use kernel::{
    crc32c::crc32c,
    fdt::Fdt,
    kho::{
        self,
        Restored, //
    },
    prelude::*, //
};

use crate::{
    abi::{
        self,
        flb::FlbBlock,
        root::{
            self,
            RootChecks, //
        },
        stamp::{
            PhaseTimes,
            Stamp, //
        },
        subsystem::Subsystems as SubsystemRecords,
        tree::Tree,
        Root,
        RootFormat, //
    },
    luo_flb::IncomingFlbs,
    records::checksums::IncomingChecks, //
};

/// The page of the root, aligned for a device tree.
pub(super) type RootPage = [u64; abi::BLOCK_SIZE / size_of::<u64>()];

impl Tree for Fdt<'_> {
    fn property(&self, node: &CStr, name: &CStr) -> Option<&[u8]> {
        Fdt::property(self, node, name)
    }
}

/// The root that the previous kernel handed over, and the checksums of what it leads to.
pub(super) struct IncomingRoot {
    pub(super) format: RootFormat,
    pub(super) root: Root,
    pub(super) checks: Option<IncomingChecks>,
    pub(super) stamp: Option<Stamp>,
    pub(super) times: Option<PhaseTimes>,
    pub(super) subsystems: SubsystemRecords,
    /// Whether there were records of subsystems, but corrupt ones.
    pub(super) corrupt: bool,
}

/// Reads the root that the previous kernel handed over; [`None`] if there is none.
///
/// Its page is never freed, since KHO shows it in debugfs.
///
/// # Errors
///
/// [`EINVAL`] and others, if there is one but it cannot be understood; that has been reported.
pub(super) fn read() -> Result<Option<IncomingRoot>> {
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
                corrupt: subsystems.is_err(),
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
            corrupt: false,
        })),
    }
}

/// Reads the FLBs that the previous kernel handed over, and returns whether anything was corrupt,
/// too.
pub(super) fn read_flbs(incoming: &IncomingRoot) -> Result<(IncomingFlbs, bool)> {
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
