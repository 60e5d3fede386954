// SPDX-License-Identifier: GPL-2.0

//! Conversions between the layouts and the kernel, and reports of what cannot be read.

use core::fmt::Display;

use kernel::{
    kho::PhysAddr,
    liveupdate::RetrieveError,
    prelude::*,
    shmem::PinnedExtent, //
};

use super::abi::{
    memfd::{
        Extent,
        ExtentKind,
        MemfdError, //
    },
    Phys, //
};

pub(super) fn address(at: Phys) -> Result<PhysAddr> {
    PhysAddr::new(at.get()).ok_or(EINVAL)
}

pub(super) fn phys_of(at: PhysAddr) -> Result<Phys> {
    Phys::new(at.get()).ok_or(EINVAL)
}

/// An extent as the layouts have it.
pub(super) fn extent_of(extent: &PinnedExtent) -> Result<Extent> {
    Ok(Extent {
        start: phys_of(extent.phys()?)?,
        index: extent.index(),
        pages: extent.pages(),
        kind: match extent.order() {
            0 => ExtentKind::Pages,
            order => ExtentKind::Folios {
                order: u16::try_from(order)?,
            },
        },
    })
}

/// Whether it makes sense to try again after an error.
fn is_shortage(error: Error) -> bool {
    matches!(error, ENOMEM | ENOSPC | ENFILE | EMFILE | EINTR | EAGAIN)
}

/// What to do after an error before anything was claimed.
pub(super) fn unclaimed(error: Error) -> RetrieveError<()> {
    match is_shortage(error) {
        true => RetrieveError::Again(error, ()),
        false => RetrieveError::Final(error),
    }
}

/// Reports what is wrong with a description.
pub(super) fn malformed(what: impl Display) -> Error {
    pr_err!("{}\n", format_args!("{what}"));
    EINVAL
}

/// Reports why a header is not usable.
pub(super) fn bad_header(what: MemfdError) -> Error {
    let error = malformed(what);
    match what {
        MemfdError::Checksum => EUCLEAN,
        MemfdError::Seals { .. } | MemfdError::Flags { .. } => EOPNOTSUPP,
        _ => error,
    }
}

/// Reports that something is not where it should be, unless it could only not be looked at.
pub(super) fn not_there(error: Error, at: PhysAddr) -> Error {
    match error {
        ENOMEM => ENOMEM,
        _ => malformed(format_args!("nothing fitting is preserved at {at:?}")),
    }
}
