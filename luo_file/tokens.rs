// SPDX-License-Identifier: GPL-2.0

//! Files in the order in which they were preserved, found by their token: [`ByToken`].
//!
//! Most agents use ascending tokens. As long as they do, a list is all that is needed; the tokens
//! that do not ascend are in a tree besides. `XArray` and the maple tree do not keep the order,
//! which is that of the records.

use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    }, //
};

struct TokenEntry<T> {
    token: u64,
    item: T,
}

/// A list of items, each of which has a token of its own. Any of them is found in logarithmic time.
///
/// # Invariants
///
/// The tokens of the first `ascending` items of `list` ascend. `others` has the token of each item
/// behind those, and where in `list` it is.
pub(crate) struct ByToken<T> {
    list: KVVec<TokenEntry<T>>,
    ascending: usize,
    others: RBTree<u64, usize>,
}

impl<T> ByToken<T> {
    pub(crate) fn new() -> Self {
        // INVARIANT: All are empty.
        Self {
            list: KVVec::new(),
            ascending: 0,
            others: RBTree::new(),
        }
    }

    /// How many items there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Makes room for one more item. With that, adding it cannot fail.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one with the token.
    /// - [`ENOMEM`].
    pub(crate) fn vacancy(&mut self, token: u64) -> Result<Vacancy<'_, T>> {
        let ascends =
            self.ascending == self.len() && self.list.last().is_none_or(|last| last.token < token);
        if !ascends && self.index_of(token).is_some() {
            return Err(EEXIST);
        }

        self.list.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let node = match ascends {
            true => None,
            false => Some(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?),
        };
        Ok(Vacancy {
            items: self,
            token,
            node,
        })
    }

    fn index_of(&self, token: u64) -> Option<usize> {
        self.list
            .get(..self.ascending)?
            .binary_search_by_key(&token, |entry| entry.token)
            .ok()
            .or_else(|| self.others.get(&token).copied())
    }

    /// The item with a token.
    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut T> {
        let index = self.index_of(token)?;
        self.list.get_mut(index).map(|entry| &mut entry.item)
    }

    /// All items with their tokens, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.list.iter().map(|entry| (entry.token, &entry.item))
    }

    /// All items with their tokens, in order, to be changed.
    pub(crate) fn iter_mut(
        &mut self,
    ) -> impl DoubleEndedIterator<Item = (u64, &mut T)> + ExactSizeIterator {
        self.list
            .iter_mut()
            .map(|entry| (entry.token, &mut entry.item))
    }

    /// Takes the last item out.
    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        let TokenEntry { token, item } = self.list.pop()?;

        // INVARIANT: It is forgotten where it was known.
        if self.list.len() < self.ascending {
            self.ascending = self.list.len();
        } else {
            self.others.remove(&token);
        }
        Some((token, item))
    }
}

/// Room for one more item in a [`ByToken`].
pub(crate) struct Vacancy<'a, T> {
    items: &'a mut ByToken<T>,
    token: u64,
    /// Nothing, if all tokens ascend, this one included.
    node: Option<RBTreeNodeReservation<u64, usize>>,
}

impl<T> Vacancy<'_, T> {
    /// Adds the item.
    ///
    /// # Errors
    ///
    /// None, as there is room.
    pub(crate) fn insert(self, item: T) -> Result {
        let Self { items, token, node } = self;
        let index = items.len();

        items
            .list
            .push(TokenEntry { token, item }, GFP_KERNEL_ACCOUNT)?;
        // INVARIANT: Either all ascend, or the tree knows the new one.
        match node {
            None => items.ascending = items.len(),
            Some(node) => drop(items.others.insert(node.into_node(token, index))),
        }
        Ok(())
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_file_tokens)]
mod tests {
    use super::*;

    fn add(items: &mut ByToken<u64>, token: u64) -> Result {
        items.vacancy(token)?.insert(!token)
    }

    fn all(tokens: &[u64]) -> Result<ByToken<u64>> {
        let mut items = ByToken::new();
        for token in tokens {
            add(&mut items, *token)?;
        }
        Ok(items)
    }

    /// Each is found, nothing else is, and none can be added twice.
    fn check(tokens: &[u64]) -> Result {
        let mut items = all(tokens)?;

        assert_eq!(items.len(), tokens.len());
        assert!(items
            .iter()
            .map(|(token, _)| token)
            .eq(tokens.iter().copied()));
        for token in 0..100 {
            let there = tokens.contains(&token);
            assert_eq!(items.get_mut(token).copied(), there.then_some(!token));
            if there {
                assert_eq!(add(&mut items, token), Err(EEXIST));
            }
        }
        assert_eq!(items.len(), tokens.len());
        Ok(())
    }

    #[test]
    fn in_any_order() -> Result {
        check(&[])?;
        check(&[0])?;
        check(&[1, 2, 3, 50, 99])?;
        check(&[99, 50, 3, 2, 1])?;
        check(&[10, 20, 15, 30, 40, 5])?;
        check(&[0, u64::MAX, 1])
    }

    #[test]
    fn only_what_is_out_of_order_is_in_the_tree() -> Result {
        let items = all(&[10, 20, 30, 25, 40])?;

        assert_eq!(items.ascending, 3);
        assert_eq!(items.others.get(&25), Some(&3));
        assert_eq!(items.others.get(&40), Some(&4));
        assert_eq!(items.others.get(&30), None);
        Ok(())
    }

    #[test]
    fn room_that_is_not_used() -> Result {
        let mut items = all(&[10, 20])?;

        drop(items.vacancy(5)?);
        drop(items.vacancy(30)?);
        assert_eq!(items.len(), 2);
        add(&mut items, 30)?;
        add(&mut items, 5)?;
        assert_eq!(items.get_mut(5), Some(&mut !5));
        Ok(())
    }

    #[test]
    fn taken_out_and_added_again() -> Result {
        let mut items = all(&[10, 20, 15])?;

        assert_eq!(items.pop(), Some((15, !15)));
        assert_eq!(items.pop(), Some((20, !20)));
        assert_eq!(items.get_mut(15), None);
        assert_eq!(items.get_mut(20), None);
        add(&mut items, 15)?;
        add(&mut items, 20)?;
        assert_eq!(items.ascending, 3);
        assert_eq!(items.get_mut(20), Some(&mut !20));
        while items.pop().is_some() {}
        assert_eq!(items.ascending, 0);
        Ok(())
    }
}
