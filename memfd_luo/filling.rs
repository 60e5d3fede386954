// SPDX-License-Identifier: GPL-2.0

//! The file that an incoming memfd is restored into: a new one, or one that the caller gives.

use kernel::{
    fs::File,
    liveupdate::RetrieveError,
    prelude::*,
    shmem::{
        Filling,
        NewMemfd,
        Target, //
    }, //
};

use super::{
    attributes::Attributes,
    report::unclaimed, //
};

impl<const NAME: usize> Attributes<NAME> {
    /// Makes a file that is all of this, with room for some pages.
    pub(super) fn new_file(&self, pages: usize) -> Result<Filling, RetrieveError<()>> {
        NewMemfd::new(self.name())
            .and_then(|file| self.build(file)?.fill(pages))
            .map_err(unclaimed)
    }

    /// Makes `target` a file of this size and with room for some pages, if that is allowed.
    pub(super) fn fit_target(
        &self,
        target: &File,
        pages: usize,
    ) -> Result<Filling, RetrieveError<()>> {
        let fill = || {
            let mut target = Target::new(target)?;
            // Nobody may gain rights by a live update.
            if self.seals & !target.seals() != 0 {
                return Err(EPERM);
            }
            target.set_size(self.size)?;
            target.fill(pages)
        };
        fill().map_err(|e| RetrieveError::Again(e, ()))
    }
}
