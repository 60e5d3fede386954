// SPDX-License-Identifier: GPL-2.0

//! Small things to be found by a hash: [`Table`].
//!
//! Below [`luo_claims`](super::luo_claims) and [`luo_names`](super::luo_names). The table is at most
//! three quarters full, and an entry stands at the place that its hash says, or in the next free one
//! behind it. So it takes as long with ten thousand entries as with ten, but for the one that makes
//! the table larger.

use kernel::prelude::*;

/// What can be in a [`Table`].
pub(crate) trait Entry: Copy {
    /// A number that says where to look. Entries may have the same.
    fn hash(self) -> usize;
}

impl Entry for usize {
    fn hash(self) -> usize {
        self
    }
}

/// The smallest table.
const SMALLEST: usize = 64;

/// A hash table.
pub(crate) struct Table<T> {
    /// A power of two of them, or none.
    places: KVVec<Option<T>>,
    len: usize,
}

impl<T: Entry> Table<T> {
    pub(crate) const fn new() -> Self {
        Self {
            places: KVVec::new(),
            len: 0,
        }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `more` entries besides. With that, adding them cannot fail.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn reserve(&mut self, more: usize) -> Result {
        let wanted = self.len.saturating_add(more);
        let mut size = self.places.len().max(SMALLEST);
        while wanted > size / 4 * 3 {
            size = size.checked_mul(2).ok_or(ENOMEM)?;
        }
        if size == self.places.len() {
            return Ok(());
        }

        let places = KVVec::from_elem(None, size, GFP_KERNEL_ACCOUNT)?;
        let old = core::mem::replace(&mut self.places, places);
        self.len = 0;
        for entry in old.iter().flatten() {
            self.insert(*entry, |_| false)?;
        }
        Ok(())
    }

    /// The entry with a hash for which `is` holds.
    pub(crate) fn find(&self, hash: usize, is: impl Fn(T) -> bool) -> Option<T> {
        self.get(self.place_of(hash, is)?)
    }

    /// Adds an entry for which there is room, unless there is one with its hash that `is` it. Returns
    /// whether it was added.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there is no room.
    pub(crate) fn insert(&mut self, entry: T, is: impl Fn(T) -> bool) -> Result<bool> {
        let hash = entry.hash();

        for place in self.around(self.home(hash)) {
            match self.get(place) {
                None => {
                    self.set(place, Some(entry));
                    self.len += 1;
                    return Ok(true);
                }
                Some(other) if other.hash() == hash && is(other) => return Ok(false),
                Some(_) => {}
            }
        }
        Err(ENOSPC)
    }

    /// Takes out the entry with a hash for which `is` holds.
    pub(crate) fn remove(&mut self, hash: usize, is: impl Fn(T) -> bool) -> Option<T> {
        let mut hole = self.place_of(hash, is)?;
        let removed = self.get(hole);

        // What is behind it moves up, if it would not be found otherwise.
        for place in self.around(hole + 1) {
            let Some(other) = self.get(place) else {
                break;
            };
            if self.distance(self.home(other.hash()), place) >= self.distance(hole, place) {
                self.set(hole, Some(other));
                hole = place;
            }
        }
        self.set(hole, None);
        self.len -= 1;
        removed
    }

    /// Takes all entries out. The memory stays for others.
    pub(crate) fn clear(&mut self) {
        for place in &mut self.places {
            *place = None;
        }
        self.len = 0;
    }

    /// Gives memory back if there are no entries.
    pub(crate) fn shrink(&mut self) {
        if self.len == 0 && self.places.len() > SMALLEST {
            self.places = KVVec::new();
        }
    }

    fn place_of(&self, hash: usize, is: impl Fn(T) -> bool) -> Option<usize> {
        for place in self.around(self.home(hash)) {
            let entry = self.get(place)?;
            if entry.hash() == hash && is(entry) {
                return Some(place);
            }
        }
        None
    }

    fn get(&self, place: usize) -> Option<T> {
        self.places.get(place).copied().flatten()
    }

    fn set(&mut self, place: usize, entry: Option<T>) {
        if let Some(at) = self.places.get_mut(place) {
            *at = entry;
        }
    }

    /// Where an entry with that hash should be.
    fn home(&self, hash: usize) -> usize {
        // 2^64 divided by the golden ratio: its upper bits depend on all bits of the number.
        const FACTOR: usize = 0x9e37_79b9_7f4a_7c15;
        let bits = self.places.len().trailing_zeros();

        hash.wrapping_mul(FACTOR)
            .checked_shr(usize::BITS - bits)
            .unwrap_or(0)
    }

    /// All places from one on, all around.
    fn around(&self, place: usize) -> impl Iterator<Item = usize> {
        let size = self.places.len();

        (0..size).map(move |step| (place + step) & (size - 1))
    }

    /// How far it is from one place on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.places.len().wrapping_sub(1)
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_table)]
mod tests {
    use super::*;
    use kernel::rbtree::RBTree;

    /// Numbers of which four have the same hash.
    #[derive(Clone, Copy, PartialEq)]
    struct Number(usize);

    impl Entry for Number {
        fn hash(self) -> usize {
            self.0 / 4 * 0x1_0000
        }
    }

    #[test]
    fn a_table_is_a_set() -> Result {
        let mut table = Table::new();
        let mut model = RBTree::new();
        let mut state = 1_usize;

        for round in 0..20_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Many that are there already, and in the end none is left.
            let number = Number((state >> 33) % 500);
            let is = |other| other == number;
            let there = table.find(number.hash(), is).is_some();
            assert!(there == model.get(&number.0).is_some());
            if round < 15_000 && state >> 60 < 9 {
                table.reserve(1)?;
                assert!(table.insert(number, is)? != there);
                if !there {
                    model.try_create_and_insert(number.0, (), GFP_KERNEL)?;
                }
            } else {
                assert!(table.remove(number.hash(), is).is_some() == there);
                model.remove(&number.0);
            }
            assert!(table.len() == model.iter().count());
            assert!(table.len() <= table.places.len() / 4 * 3);
            let found = |number: &usize| {
                let hash = Number(*number).hash();
                table.find(hash, |other| other.0 == *number).is_some()
            };
            assert!(round % 100 != 0 || model.keys().all(found));
        }
        for number in (0..500).map(Number) {
            table.remove(number.hash(), |other| other == number);
        }
        table.shrink();
        assert!(table.len() == 0 && table.places.is_empty());
        Ok(())
    }

    #[test]
    fn room_is_kept() -> Result {
        let mut table = Table::new();

        assert!(table.insert(0, |_| false) == Err(ENOSPC));
        table.reserve(1000)?;
        let size = table.places.len();
        for number in 0..1000_usize {
            assert!(table.insert(number, |_| true)?);
        }
        assert!(table.places.len() == size);
        table.clear();
        assert!(table.len() == 0 && table.find(7, |_| true).is_none());
        assert!(table.places.len() == size);
        Ok(())
    }
}
