// SPDX-License-Identifier: GPL-2.0

//! The steps in which each handler of memfds retrieves a file: [`retrieve`].

use kernel::{
    fs::File,
    liveupdate::{
        Handover,
        RetrieveError, //
    },
    prelude::*,
    sync::aref::ARef, //
};

use super::report::unclaimed;

/// Reads the description of a file, opens what it is to be restored into, and fills that.
///
/// Only the last step claims anything. If one before it fails and another try makes no sense, what the
/// handle stands for is kept: it may still be there when the file is finished.
pub(super) fn retrieve<H: Handover, D, F>(
    incoming: H::Incoming,
    read: impl FnOnce(&H::Incoming) -> Result<D>,
    open: impl FnOnce(&D) -> Result<F, RetrieveError<()>>,
    fill: impl FnOnce(D, F, H::Incoming) -> Result<ARef<File>>,
) -> Result<ARef<File>, RetrieveError<H::Incoming>> {
    let opened = read(&incoming)
        .map_err(unclaimed)
        .and_then(|description| Ok((open(&description)?, description)));

    match opened {
        Ok((file, description)) => Ok(fill(description, file, incoming)?),
        Err(RetrieveError::Again(e, ())) => Err(RetrieveError::Again(e, incoming)),
        Err(RetrieveError::Final(e)) => {
            H::keep(incoming);
            Err(RetrieveError::Final(e))
        }
    }
}
