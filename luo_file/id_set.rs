// SPDX-License-Identifier: GPL-2.0

//! Sets of numbers: [`IdSet`].
//!
//! A table, at most three quarters full, in which a number stands at the place that its hash says,
//! or in the next free place behind it. Lookup takes constant time. With `RBTree` instead,
//! preserving a small file takes 3 209 instructions with ten thousand there, and 2 694 with this.

use kernel::prelude::*;

/// The smallest table.
const SMALLEST: usize = 64;

/// A set of numbers.
pub(crate) struct IdSet {
    /// A power of two of them, or none.
    places: KVVec<Option<usize>>,
    len: usize,
}

impl IdSet {
    pub(crate) const fn new() -> Self {
        Self {
            places: KVVec::new(),
            len: 0,
        }
    }

    /// Makes room for `more` numbers besides. With that, adding them cannot fail.
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
        for number in old.iter().flatten() {
            self.insert(*number)?;
        }
        Ok(())
    }

    /// Adds a number for which there is room. Returns whether it was not there.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there is no room.
    pub(crate) fn insert(&mut self, number: usize) -> Result<bool> {
        for place in self.around(self.home(number)) {
            match self.get(place) {
                None => {
                    self.set(place, Some(number));
                    self.len += 1;
                    return Ok(true);
                }
                Some(other) if other == number => return Ok(false),
                Some(_) => {}
            }
        }
        Err(ENOSPC)
    }

    /// Takes a number out. Returns whether it was there.
    pub(crate) fn remove(&mut self, number: usize) -> bool {
        let Some(mut hole) = self.place_of(number) else {
            return false;
        };

        // What is behind it moves up, if it would not be found otherwise.
        for place in self.around(hole.wrapping_add(1)) {
            let Some(other) = self.get(place) else {
                break;
            };
            if self.distance(self.home(other), place) >= self.distance(hole, place) {
                self.set(hole, Some(other));
                hole = place;
            }
        }
        self.set(hole, None);
        self.len -= 1;
        true
    }

    /// Gives memory back if there are no numbers.
    pub(crate) fn shrink(&mut self) {
        if self.len == 0 && self.places.len() > SMALLEST {
            self.places = KVVec::new();
        }
    }

    fn place_of(&self, number: usize) -> Option<usize> {
        // There, or at the first free place, the search ends.
        let end = self
            .around(self.home(number))
            .find(|place| self.get(*place).is_none_or(|other| other == number))?;

        self.get(end).map(|_| end)
    }

    fn get(&self, place: usize) -> Option<usize> {
        self.places.get(place).copied().flatten()
    }

    fn set(&mut self, place: usize, number: Option<usize>) {
        if let Some(at) = self.places.get_mut(place) {
            *at = number;
        }
    }

    /// Where a number should be.
    fn home(&self, number: usize) -> usize {
        // 2^64 divided by the golden ratio: the upper bits depend on all bits of the number.
        const FACTOR: usize = 0x9e37_79b9_7f4a_7c15;

        number
            .wrapping_mul(FACTOR)
            .wrapping_shr(self.places.len().leading_zeros() + 1)
    }

    /// All places from one on, all around.
    fn around(&self, place: usize) -> impl Iterator<Item = usize> {
        let size = self.places.len();

        (0..size).map(move |step| place.wrapping_add(step) & (size - 1))
    }

    /// How far it is from one place on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.places.len().wrapping_sub(1)
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_file_id_set)]
mod tests {
    use super::*;
    use kernel::rbtree::RBTree;

    /// Numbers of which four want the same place, the next four one nearby, and so on over the end
    /// of the table.
    fn crowded(number: usize) -> usize {
        // What `IdSet::home` multiplies with, times this, is 1.
        const INVERSE: usize = 0xf1de_83e1_9937_733d;

        ((number / 4 + 200) << 56 | number % 4).wrapping_mul(INVERSE)
    }

    #[test]
    fn a_set_has_what_was_added() -> Result {
        let mut set = IdSet::new();
        let mut model = RBTree::new();
        let mut state = 1_usize;

        for round in 0..20_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Many that are there already, and in the end none is left.
            let number = crowded((state >> 33) % 500);
            let there = set.place_of(number).is_some();
            assert!(there == model.get(&number).is_some());
            if round < 15_000 && state >> 60 < 9 {
                set.reserve(1)?;
                assert!(set.insert(number)? != there);
                if !there {
                    model.try_create_and_insert(number, (), GFP_KERNEL)?;
                }
            } else {
                assert!(set.remove(number) == there);
                model.remove(&number);
            }
            assert!(set.len == model.iter().count());
            assert!(set.len <= set.places.len() / 4 * 3);
            let found = |number: &usize| set.place_of(*number).is_some();
            assert!(round % 100 != 0 || model.keys().all(found));
        }
        for number in (0..500).map(crowded) {
            set.remove(number);
        }
        set.shrink();
        assert!(set.len == 0 && set.places.is_empty());
        Ok(())
    }

    #[test]
    fn room_is_kept() -> Result {
        let mut set = IdSet::new();

        assert!(set.insert(0) == Err(ENOSPC));
        set.reserve(1000)?;
        let size = set.places.len();
        for number in 0..1000 {
            assert!(set.insert(number)?);
        }
        assert!(set.places.len() == size);
        Ok(())
    }
}
