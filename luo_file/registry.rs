// SPDX-License-Identifier: GPL-2.0

//! The registry of files that are preserved or retrieved, by the number that their handler gives
//! them. So no file is preserved twice.

use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

use super::id_set::IdSet;

/// The registry.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    ids: Mutex<Ids>,
}

struct Ids {
    registered: IdSet,
    /// For how many more there is room.
    reserved: usize,
}

impl Ids {
    const fn new() -> Self {
        Self {
            registered: IdSet::new(),
            reserved: 0,
        }
    }

    /// Reserves room for one more.
    fn reserve(&mut self) -> Result {
        self.registered.reserve(self.reserved + 1)?;
        self.reserved += 1;
        Ok(())
    }

    /// Adds a number for which room is reserved.
    fn register(&mut self, id: usize) -> Result {
        match self.registered.insert(id)? {
            true => Ok(()),
            false => Err(EBUSY),
        }
    }

    fn unregister(&mut self, id: usize) {
        self.registered.remove(id);
        if self.reserved == 0 {
            self.registered.shrink();
        }
    }
}

impl Registry {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            ids <- new_mutex!(Ids::new(), "luo::Registry"),
        })
    }

    /// Reserves room for one more file.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn reserve(&'static self) -> Result<Reservation> {
        self.ids.lock().reserve()?;
        Ok(Reservation { registry: self })
    }
}

/// Room for a file: registering one needs no memory.
pub(crate) struct Reservation {
    registry: &'static Registry,
}

impl Reservation {
    /// Registers a file.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is registered.
    pub(crate) fn register(self, id: usize) -> Result<Registered> {
        self.registry.ids.lock().register(id)?;
        Ok(Registered {
            registry: self.registry,
            id,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.registry.ids.lock().reserved -= 1;
    }
}

/// A file that is registered, until this is dropped.
pub(crate) struct Registered {
    registry: &'static Registry,
    id: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.ids.lock().unregister(self.id);
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_file_registry)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_there() -> Result {
        let mut ids = Ids::new();

        for _ in 0..1000 {
            ids.reserve()?;
        }
        for id in 0..1000 {
            ids.register(id)?;
            ids.reserved -= 1;
            assert!(ids.register(id) == Err(EBUSY));
        }
        ids.unregister(7);
        ids.reserve()?;
        ids.register(7)
    }
}
