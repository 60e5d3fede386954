// SPDX-License-Identifier: GPL-2.0

//! Things in the order in which they came, to be found by their name: [`ByName`].
//!
//! Below [`luo_session`](super::luo_session), as [`luo_tokens`](super::luo_tokens) is below files. A
//! list has the order; what has gone leaves a hole in it. A hash table tells where in the list a name
//! is.

use core::num::NonZeroU32;

use kernel::{
    prelude::*,
    stringhash::full_name_hash,
    sync::Arc, //
};

use crate::{
    abi::SessionName,
    luo_table::{
        Entry,
        Table, //
    }, //
};

/// Something that has a name, always the same.
pub(crate) trait Named {
    fn name(&self) -> &SessionName;
}

/// Where in the list something is.
#[derive(Clone, Copy)]
struct Place {
    hash: u32,
    /// Counted from 1 on.
    number: NonZeroU32,
}

impl Place {
    /// The place at `index`. That of what has a name is found by its hash.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if there is no such number.
    fn new(name: &SessionName, index: usize) -> Result<Self> {
        let number = u32::try_from(index).ok().and_then(|n| n.checked_add(1));

        Ok(Self {
            hash: hash(name),
            number: number.and_then(NonZeroU32::new).ok_or(ENOMEM)?,
        })
    }

    fn index(self) -> usize {
        // Lossless: no kernel has narrower sizes.
        (self.number.get() - 1) as usize
    }
}

impl Entry for Place {
    fn hash(self) -> usize {
        self.hash as usize
    }
}

fn hash(name: &SessionName) -> u32 {
    // With KASLR its address differs from boot to boot: no previous kernel can choose names that
    // collide.
    static SALT: u8 = 0;

    full_name_hash(&SALT, name.as_bytes())
}

/// A list of things, each of which has a name of its own. Any of them is found, added and taken out
/// in constant time.
///
/// # Invariants
///
/// `places` has where each item is in `list`, and nothing else. The last one of `list` is no hole.
pub(crate) struct ByName<T> {
    list: KVVec<Option<Arc<T>>>,
    places: Table<Place>,
}

impl<T: Named> ByName<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: Both are empty.
        Self {
            list: KVVec::new(),
            places: Table::new(),
        }
    }

    /// How many items there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The item of a name.
    pub(crate) fn get(&self, name: &SessionName) -> Option<&Arc<T>> {
        let is = |place| at(&self.list, place).is_some_and(|item| item.name() == name);
        let place = self.places.find(hash(name) as usize, is)?;

        at(&self.list, place)
    }

    /// All items, in order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> {
        self.list.iter().flatten()
    }

    /// All items, in order, to be looked at when this one is unlocked.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn all(&self) -> Result<KVVec<Arc<T>>> {
        let mut all = KVVec::with_capacity(self.len(), GFP_KERNEL)?;

        for item in self.iter() {
            all.push(item.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Adds an item behind the others.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one of its name.
    /// - [`ENOMEM`].
    pub(crate) fn insert(&mut self, item: Arc<T>) -> Result {
        // Rather than to make the list longer, close its holes, if there are many.
        if self.list.len() == self.list.capacity() && self.len() <= self.list.len() / 2 {
            self.close_up()?;
        }
        self.list.reserve(1, GFP_KERNEL_ACCOUNT)?;
        self.places.reserve(1)?;

        let place = Place::new(item.name(), self.list.len())?;
        let list = &self.list;
        let is = |place| at(list, place).is_some_and(|other| other.name() == item.name());
        if !self.places.insert(place, is)? {
            return Err(EEXIST);
        }
        // INVARIANT: There is room for it where it is said to be.
        Ok(self.list.push(Some(item), GFP_KERNEL_ACCOUNT)?)
    }

    /// Takes an item out, and returns whether it was there. Another one of its name stays.
    pub(crate) fn remove(&mut self, item: &Arc<T>) -> bool {
        let list = &self.list;
        let is = |place| at(list, place).is_some_and(|there| Arc::ptr_eq(there, item));
        let Some(place) = self.places.remove(hash(item.name()) as usize, is) else {
            return false;
        };

        // INVARIANT: It is in neither of the two now, and holes at the end go.
        if let Some(at) = self.list.get_mut(place.index()) {
            *at = None;
        }
        while let Some(None) = self.list.last() {
            self.list.pop();
        }
        if self.list.is_empty() {
            self.list = KVVec::new();
            self.places.shrink();
        }
        true
    }

    /// Takes out all items but those for which `keep` holds.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Arc<T>) -> bool) {
        for index in 0..self.list.len() {
            if let Some(Some(item)) = self.list.get(index) {
                if !keep(item) {
                    let item = item.clone();
                    self.remove(&item);
                }
            }
        }
    }

    /// Closes the holes.
    fn close_up(&mut self) -> Result {
        self.list.retain(|item| item.is_some());
        self.places.clear();
        for (index, item) in self.list.iter().flatten().enumerate() {
            // INVARIANT: That is where it is now. There is room, as there was.
            self.places
                .insert(Place::new(item.name(), index)?, |_| false)?;
        }
        Ok(())
    }
}

/// What is at a place of a list.
fn at<T>(list: &[Option<Arc<T>>], place: Place) -> Option<&Arc<T>> {
    list.get(place.index())?.as_ref()
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_names)]
mod tests {
    use super::*;

    struct Thing(SessionName);

    impl Named for Thing {
        fn name(&self) -> &SessionName {
            &self.0
        }
    }

    fn name(number: usize) -> Result<SessionName> {
        let text = kernel::str::CString::try_from_fmt(fmt!("{}", number))?;
        SessionName::from_cstr(&text).map_err(|_| EINVAL)
    }

    fn add(all: &mut ByName<Thing>, number: usize) -> Result<Arc<Thing>> {
        let thing = Arc::new(Thing(name(number)?), GFP_KERNEL)?;
        all.insert(thing.clone())?;
        Ok(thing)
    }

    /// They are there, in this order, and each is found.
    fn check(all: &ByName<Thing>, numbers: impl Iterator<Item = usize>) -> Result {
        let mut things = all.iter();
        let mut count = 0;

        for number in numbers {
            let name = name(number)?;
            let thing = things.next().ok_or(ENOENT)?;
            assert!(*thing.name() == name);
            assert!(all
                .get(&name)
                .is_some_and(|found| Arc::ptr_eq(found, thing)));
            count += 1;
        }
        assert!(things.next().is_none() && all.len() == count);
        Ok(())
    }

    #[test]
    fn in_the_order_in_which_they_came() -> Result {
        let mut all = ByName::new();

        for number in (0..100).rev() {
            add(&mut all, number)?;
        }
        check(&all, (0..100).rev())?;
        assert!(add(&mut all, 50).err() == Some(EEXIST));
        assert!(all.get(&name(100)?).is_none());

        all.retain(|thing| thing.name().as_bytes().len() == 1);
        check(&all, (0..10).rev())?;
        all.retain(|_| false);
        assert!(all.list.capacity() == 0);
        check(&all, 0..0)
    }

    #[test]
    fn another_of_the_name_stays() -> Result {
        let mut all = ByName::new();

        let first = add(&mut all, 1)?;
        assert!(all.remove(&first));
        assert!(!all.remove(&first));
        let second = add(&mut all, 1)?;
        assert!(!all.remove(&first));
        check(&all, 1..2)?;
        assert!(all.remove(&second));
        check(&all, 0..0)
    }

    #[test]
    fn holes_are_closed() -> Result {
        let mut all = ByName::new();
        let keep = add(&mut all, 0)?;
        let mut last = add(&mut all, 1)?;

        for number in 2..1000 {
            let next = add(&mut all, number)?;
            assert!(all.remove(&last));
            last = next;
        }
        assert!(all.list.capacity() <= 8);
        check(&all, [0, 999].into_iter())?;
        assert!(all.remove(&last) && all.list.len() == 1);
        assert!(all.remove(&keep));
        check(&all, 0..0)
    }
}
