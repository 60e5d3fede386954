// SPDX-License-Identifier: GPL-2.0

//! Sessions in the order in which they were created, found by their name: [`ByName`].
//!
//! A list has the order; a session that is removed leaves a hole in it. Sessions whose hashes are
//! near each other are in one chain through the list, and there are as many chains as places.
//! Lookup takes constant time. With `RBTree` instead, creating a session takes 4 890 instructions
//! with ten thousand there, and 2 639 with this.

use core::{
    num::NonZeroU32,
    ops::Deref, //
};

use kernel::{
    prelude::*,
    stringhash::full_name_hash,
    sync::Arc, //
};

use crate::abi::SessionName;

/// Something that has a name, always the same.
pub(crate) trait Named {
    fn name(&self) -> &HashedName;
}

/// A name, and the hash by which it is found.
#[derive(PartialEq)]
pub(crate) struct HashedName {
    hash: u32,
    name: SessionName,
}

impl HashedName {
    pub(crate) fn new(name: SessionName) -> Self {
        // With KASLR its address differs from boot to boot: no previous kernel can choose names
        // that collide.
        static SALT: u8 = 0;

        Self {
            hash: full_name_hash(&SALT, name.as_bytes()),
            name,
        }
    }

    /// Which one of `count` chains it belongs to.
    fn chain_of(&self, count: usize) -> usize {
        // The upper bits say which. Lossless: sizes have 64 bits, and it is less than `count`.
        (u64::from(self.hash).wrapping_mul(count as u64) >> u32::BITS) as usize
    }
}

impl Deref for HashedName {
    type Target = SessionName;

    fn deref(&self) -> &SessionName {
        &self.name
    }
}

/// Where in the list something is, counted from 1 on.
#[derive(Clone, Copy)]
struct Place(NonZeroU32);

impl Place {
    /// The place at `index`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if there is no such number.
    fn new(index: usize) -> Result<Self> {
        let number = u32::try_from(index).ok().and_then(|n| n.checked_add(1));

        Ok(Self(number.and_then(NonZeroU32::new).ok_or(ENOMEM)?))
    }

    fn index(self) -> usize {
        // Lossless: no kernel has narrower sizes.
        (self.0.get() - 1) as usize
    }
}

/// An item of the list, or the hole that it left.
struct Slot<T> {
    item: Option<Arc<T>>,
    /// The next item of its chain.
    next: Option<Place>,
}

/// The smallest list that is not given back when it is empty.
const SMALLEST: usize = 16;

/// A list of things, each of which has a name of its own. Any of them is found, added and taken out
/// in constant time.
///
/// # Invariants
///
/// Each item of `list` is in the chain that its hash says, and holes are in none. The last one of
/// `list` is no hole. There are `len` items, and places for as many as there are `chains`.
pub(crate) struct ByName<T> {
    list: KVVec<Slot<T>>,
    /// The first item of each chain.
    chains: KVVec<Option<Place>>,
    len: usize,
}

impl<T: Named> ByName<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: There is nothing.
        Self {
            list: KVVec::new(),
            chains: KVVec::new(),
            len: 0,
        }
    }

    /// How many items there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The item of a name.
    pub(crate) fn get(&self, name: &HashedName) -> Option<&Arc<T>> {
        let mut place = *self.chains.get(name.chain_of(self.chains.len()))?;

        loop {
            let slot = self.list.get(place?.index())?;
            match &slot.item {
                Some(item) if item.name() == name => return Some(item),
                _ => place = slot.next,
            }
        }
    }

    /// All items, in order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> {
        self.list.iter().filter_map(|slot| slot.item.as_ref())
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
        if self.get(item.name()).is_some() {
            return Err(EEXIST);
        }
        if self.list.len() == self.chains.len() {
            self.make_room()?;
        }

        let place = Place::new(self.list.len())?;
        let chain = item.name().chain_of(self.chains.len());
        let first = self.chains.get_mut(chain).ok_or(ENOMEM)?;
        let slot = Slot {
            item: Some(item),
            next: *first,
        };
        // INVARIANT: The item becomes the first one of its chain.
        self.list.push(slot, GFP_KERNEL_ACCOUNT)?;
        *first = Some(place);
        self.len += 1;
        Ok(())
    }

    /// Takes an item out, and returns whether it was there. Another one of its name stays.
    pub(crate) fn remove(&mut self, item: &Arc<T>) -> bool {
        let chain = item.name().chain_of(self.chains.len());
        let mut before = None;
        let mut place = self.chains.get(chain).copied().flatten();

        let next = loop {
            let Some(slot) = place.and_then(|place: Place| self.list.get_mut(place.index())) else {
                return false;
            };
            match &slot.item {
                Some(there) if Arc::ptr_eq(there, item) => {
                    slot.item = None;
                    break slot.next;
                }
                _ => (before, place) = (place, slot.next),
            }
        };

        // INVARIANT: The chain goes on behind the hole that the item left, and holes at the end go.
        let link = match before {
            None => self.chains.get_mut(chain),
            Some(place) => self.list.get_mut(place.index()).map(|slot| &mut slot.next),
        };
        if let Some(link) = link {
            *link = next;
        }
        self.len -= 1;
        while let Some(Slot { item: None, .. }) = self.list.last() {
            self.list.pop();
        }
        if self.list.is_empty() && self.chains.len() > SMALLEST {
            *self = Self::new();
        }
        true
    }

    /// Takes out all items but those for which `keep` holds.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Arc<T>) -> bool) {
        for index in 0..self.list.len() {
            if let Some(Slot {
                item: Some(item), ..
            }) = self.list.get(index)
            {
                if !keep(item) {
                    let item = item.clone();
                    self.remove(&item);
                }
            }
        }
    }

    /// Makes the list longer, or closes its holes, if there are many.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing has changed then.
    fn make_room(&mut self) -> Result {
        if self.len > 0 && self.len <= self.list.len() / 2 {
            self.list.retain(|slot| slot.item.is_some());
            self.chains.fill(None);
        } else {
            self.list.reserve(SMALLEST, GFP_KERNEL_ACCOUNT)?;
            self.chains = KVVec::from_elem(None, self.list.capacity(), GFP_KERNEL_ACCOUNT)?;
        }

        // INVARIANT: All that there are go into the new chains. There are no new places.
        let count = self.chains.len();
        for (index, slot) in self.list.iter_mut().enumerate() {
            let Some(item) = &slot.item else {
                continue;
            };
            if let Some(first) = self.chains.get_mut(item.name().chain_of(count)) {
                slot.next = first.replace(Place::new(index)?);
            }
        }
        Ok(())
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_session_names)]
mod tests {
    use super::*;

    struct Thing(HashedName);

    impl Named for Thing {
        fn name(&self) -> &HashedName {
            &self.0
        }
    }

    fn name(number: usize) -> Result<HashedName> {
        let text = kernel::str::CString::try_from_fmt(fmt!("{}", number))?;
        let name = SessionName::from_cstr(&text).map_err(|_| EINVAL)?;
        Ok(HashedName::new(name))
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
            assert!(**thing.name() == *name);
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
        assert!(all.list.capacity() == SMALLEST);
        check(&all, [0, 999].into_iter())?;
        assert!(all.remove(&last) && all.list.len() == 1);
        assert!(all.remove(&keep));
        check(&all, 0..0)
    }
}
