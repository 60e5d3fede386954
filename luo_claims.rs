// SPDX-License-Identifier: GPL-2.0

//! Which files are preserved or retrieved now, by the number that their handler gives them, so
//! that no file is preserved twice.

use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

use crate::luo_set::Set;

/// All claims.
#[pin_data]
pub(crate) struct Claims {
    #[pin]
    ids: Mutex<Ids>,
}

struct Ids {
    claimed: Set,
    /// For how many more there is room.
    promised: usize,
}

impl Ids {
    const fn new() -> Self {
        Self {
            claimed: Set::new(),
            promised: 0,
        }
    }

    /// Keeps room for one more.
    fn promise(&mut self) -> Result {
        self.claimed.reserve(self.promised + 1)?;
        self.promised += 1;
        Ok(())
    }

    /// Adds a number for which room was kept.
    fn claim(&mut self, id: usize) -> Result {
        match self.claimed.insert(id)? {
            true => Ok(()),
            false => Err(EBUSY),
        }
    }

    fn give_free(&mut self, id: usize) {
        self.claimed.remove(id);
        if self.promised == 0 {
            self.claimed.shrink();
        }
    }
}

impl Claims {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            ids <- new_mutex!(Ids::new(), "luo::Claims"),
        })
    }

    /// Makes room for one more claim.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn room(&'static self) -> Result<Room> {
        self.ids.lock().promise()?;
        Ok(Room { claims: self })
    }
}

/// Room for a claim. With that, claiming needs no memory.
pub(crate) struct Room {
    claims: &'static Claims,
}

impl Room {
    /// Claims a file.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is claimed.
    pub(crate) fn claim(self, id: usize) -> Result<Claim> {
        self.claims.ids.lock().claim(id)?;
        Ok(Claim {
            claims: self.claims,
            id,
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.claims.ids.lock().promised -= 1;
    }
}

/// The claim on a file; dropping it gives the file free.
pub(crate) struct Claim {
    claims: &'static Claims,
    id: usize,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.ids.lock().give_free(self.id);
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_claims)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_is_kept() -> Result {
        let mut ids = Ids::new();

        for _ in 0..1000 {
            ids.promise()?;
        }
        for id in 0..1000 {
            ids.claim(id)?;
            ids.promised -= 1;
            assert!(ids.claim(id) == Err(EBUSY));
        }
        ids.give_free(7);
        ids.promise()?;
        ids.claim(7)
    }
}
