// SPDX-License-Identifier: GPL-2.0

//! Which files are preserved or retrieved now, by the number that their handler gives them, so
//! that no file is preserved twice.
//!
//! A set of numbers, in a table that is at most three quarters full: a number stands at the place
//! that its hash says, or in the next free one behind it. So it takes as long with ten thousand
//! files as with ten, but for the one that makes the table larger.

use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// All claims.
#[pin_data]
pub(crate) struct Claims {
    #[pin]
    table: Mutex<Table>,
}

impl Claims {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_mutex!(Table::new(), "luo::Claims"),
        })
    }

    /// Makes room for one more claim.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn room(&'static self) -> Result<Room> {
        self.table.lock().promise()?;
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
        self.claims.table.lock().insert(id)?;
        Ok(Claim {
            claims: self.claims,
            id,
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.claims.table.lock().promised -= 1;
    }
}

/// The claim on a file; dropping it gives the file free.
pub(crate) struct Claim {
    claims: &'static Claims,
    id: usize,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.table.lock().remove(self.id);
    }
}

/// The smallest table.
const SMALLEST: usize = 64;

struct Table {
    /// A power of two of them, or none.
    places: KVVec<Option<usize>>,
    len: usize,
    /// For how many more there is room.
    promised: usize,
}

impl Table {
    const fn new() -> Self {
        Self {
            places: KVVec::new(),
            len: 0,
            promised: 0,
        }
    }

    /// Keeps room for one more.
    fn promise(&mut self) -> Result {
        let wanted = self.len + self.promised + 1;
        if wanted > self.places.len() / 4 * 3 {
            self.grow()?;
        }
        self.promised += 1;
        Ok(())
    }

    fn grow(&mut self) -> Result {
        let size = self.places.len().saturating_mul(2).max(SMALLEST);
        let places = KVVec::from_elem(None, size, GFP_KERNEL_ACCOUNT)?;
        let old = core::mem::replace(&mut self.places, places);

        for id in old.iter().flatten() {
            self.put(*id);
        }
        Ok(())
    }

    /// Adds a number for which there is room.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is there.
    fn insert(&mut self, id: usize) -> Result {
        if !self.put(id) {
            return Err(EBUSY);
        }
        self.len += 1;
        Ok(())
    }

    /// Puts a number into its place. False if it is there, or there is no place.
    fn put(&mut self, id: usize) -> bool {
        for place in self.search(id) {
            match self.places.get_mut(place) {
                Some(Some(other)) if *other != id => {}
                Some(free @ None) => {
                    *free = Some(id);
                    return true;
                }
                _ => break,
            }
        }
        false
    }

    fn remove(&mut self, id: usize) {
        let found = |place: &usize| self.places.get(*place) == Some(&Some(id));
        let Some(mut hole) = self.search(id).find(found) else {
            return;
        };

        // What is behind it moves up, if it would not be found otherwise.
        for place in self.behind(hole) {
            let Some(&Some(other)) = self.places.get(place) else {
                break;
            };
            if self.distance(self.home(other), place) >= self.distance(hole, place) {
                self.set(hole, Some(other));
                hole = place;
            }
        }
        self.set(hole, None);
        self.len -= 1;

        if self.len + self.promised == 0 && self.places.len() > SMALLEST {
            self.places = KVVec::new();
        }
    }

    fn set(&mut self, place: usize, id: Option<usize>) {
        if let Some(at) = self.places.get_mut(place) {
            *at = id;
        }
    }

    /// Where a number should be.
    fn home(&self, id: usize) -> usize {
        // 2^64 divided by the golden ratio: its upper bits depend on all bits of the number.
        const FACTOR: usize = 0x9e37_79b9_7f4a_7c15;
        let bits = self.places.len().trailing_zeros();

        id.wrapping_mul(FACTOR)
            .checked_shr(usize::BITS - bits)
            .unwrap_or(0)
    }

    /// The places where a number can be, in this order.
    fn search(&self, id: usize) -> impl Iterator<Item = usize> {
        let (home, size) = (self.home(id), self.places.len());

        (0..size).map(move |step| (home + step) & (size - 1))
    }

    /// The places behind one, all around.
    fn behind(&self, place: usize) -> impl Iterator<Item = usize> {
        let size = self.places.len();

        (1..size).map(move |step| (place + step) & (size - 1))
    }

    /// How far it is from one place on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.places.len().wrapping_sub(1)
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_claims)]
mod tests {
    use super::*;
    use kernel::rbtree::RBTree;

    #[test]
    fn a_table_is_a_set() -> Result {
        let mut table = Table::new();
        let mut model = RBTree::new();
        let mut state = 1_usize;

        for round in 0..20_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Many that are there already, and in the end none is left.
            let id = (state >> 33) % 500 * 0x1_0000;
            if round < 15_000 && state >> 60 < 9 {
                table.promise()?;
                let added = table.insert(id).is_ok();
                table.promised -= 1;
                assert!(added == model.try_create_and_insert(id, (), GFP_KERNEL)?.is_none());
            } else {
                table.remove(id);
                model.remove(&id);
            }
            assert!(table.len == model.iter().count());
            assert!(table.len <= table.places.len() / 4 * 3);
            let found = |id: &usize| table.search(*id).any(|at| table.places[at] == Some(*id));
            assert!(round % 100 != 0 || model.keys().all(found));
        }
        for id in 0..500 {
            table.remove(id * 0x1_0000);
        }
        assert!(table.len == 0 && table.places.is_empty());
        Ok(())
    }

    #[test]
    fn what_was_promised_is_kept() -> Result {
        let mut table = Table::new();

        for _ in 0..1000 {
            table.promise()?;
        }
        let size = table.places.len();
        for id in 0..1000 {
            table.insert(id)?;
            table.promised -= 1;
            assert!(table.insert(id) == Err(EBUSY));
        }
        assert!(table.places.len() == size);
        Ok(())
    }
}
