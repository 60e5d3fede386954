// SPDX-License-Identifier: GPL-2.0

//! Chains of blocks: records laid down in preserved memory, and read from it.
//!
//! Memory is allocated before the kexec, when that may fail ([`Chain::reserve`]); writing a record
//! ([`Chain::push`]) then cannot. A block becomes part of the chain with its first record, so a
//! chain never ends in an empty block, which the C implementation would refuse.

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref, //
};
use kernel::{
    kho::{
        self,
        Preserved,
        Restored, //
    },
    prelude::*, //
};

use super::format;
use crate::abi::{
    block::{
        Block,
        Record, //
    },
    Memory,
    Phys, //
};

/// The address of preserved memory as the layouts write it.
pub(crate) fn phys<T: FromBytes + IntoBytes>(memory: &Preserved<T>) -> Option<Phys> {
    Phys::new(memory.phys().get())
}

/// Records of type `R` for the next kernel.
///
/// # Invariants
///
/// The first `len` records stand in `blocks`, all of which but the last one that holds any are
/// full. The blocks with records are linked, in order.
pub(crate) struct Chain<R> {
    blocks: KVec<Preserved<Block>>,
    len: usize,
    records: PhantomData<R>,
}

impl<R: Record> Chain<R> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: There are no records and no blocks.
        Self {
            blocks: KVec::new(),
            len: 0,
            records: PhantomData,
        }
    }

    /// Makes room for `total` records.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; the chain is as before then, but may hold on to memory until
    /// [`Chain::shrink`].
    pub(crate) fn reserve(&mut self, total: usize) -> Result {
        while self.blocks.len() < Self::blocks_for(total) {
            self.blocks.push(Preserved::new()?, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(())
    }

    /// Gives back memory that `total` records do not need. Those that stand there now stay.
    pub(crate) fn shrink(&mut self, total: usize) {
        let total = total.max(self.len);
        // Fast path: nothing to free, and no division needed to see it.
        let spare = self.blocks.len().saturating_sub(1) * Block::capacity::<R>() >= total;

        if spare {
            self.blocks.truncate(Self::blocks_for(total));
        }
    }

    /// Appends a record, for which room must have been reserved.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if it has not; nothing is changed then.
    pub(crate) fn push(&mut self, record: &R) -> Result {
        let index = self.len / Block::capacity::<R>();
        let block = self.blocks.get_mut(index).ok_or(ENOSPC)?;
        block.push(record).map_err(|_| ENOSPC)?;

        // INVARIANT: The record was appended, and below a block that is new is linked.
        self.len += 1;

        let first = self.len % Block::capacity::<R>() == 1 || Block::capacity::<R>() == 1;
        if let (true, Some(previous)) = (first, index.checked_sub(1)) {
            let at = self.blocks.get(index).and_then(phys);
            if let Some(previous) = self.blocks.get_mut(previous) {
                previous.set_next(at);
            }
        }
        Ok(())
    }

    /// The record at `index`, to be changed.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut R> {
        let capacity = Block::capacity::<R>();
        self.blocks
            .get_mut(index / capacity)?
            .record_mut(index % capacity)
    }

    /// Takes all records out. The memory stays for others.
    pub(crate) fn clear(&mut self) {
        for block in &mut self.blocks {
            block.clear();
        }
        // INVARIANT: There are no records, and clearing a block unlinks it.
        self.len = 0;
    }

    /// The address of the first block; [`None`] if there are no records.
    pub(crate) fn head(&self) -> Option<Phys> {
        self.blocks.first().filter(|_| self.len > 0).and_then(phys)
    }

    /// The number of records.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Checks that a kernel can read the chain for which it is written.
    ///
    /// # Errors
    ///
    /// [`E2BIG`] if it has more blocks than the outgoing format allows.
    pub(crate) fn check_length(&self) -> Result {
        match Self::blocks_for(self.len) > format::outgoing().max_blocks {
            true => Err(E2BIG),
            false => Ok(()),
        }
    }

    /// The blocks that hold records, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block> {
        let used = Self::blocks_for(self.len);
        self.blocks.iter().take(used).map(|block| &**block)
    }

    /// What is used of the blocks that hold records.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(crate) fn each_used(&mut self, mut visit: impl FnMut(&mut [u8])) {
        let mut left = self.len;

        // The headers may be corrupt already.
        for block in self.blocks.iter_mut().take(Self::blocks_for(self.len)) {
            let records = left.min(Block::capacity::<R>());
            let used = block.header_bytes().len() + records * size_of::<R>();
            left -= records;
            if let Some(bytes) = block.as_mut_bytes().get_mut(..used) {
                visit(bytes);
            }
        }
    }

    fn blocks_for(total: usize) -> usize {
        total.div_ceil(Block::capacity::<R>())
    }
}

/// The blocks of the previous kernel. Reading a block claims it. It is freed if it was valid; else
/// its memory may be used for something else, and stays reserved until the next reboot.
pub(crate) struct ClaimedBlocks;

/// A block of the previous kernel.
pub(crate) struct ClaimedBlock(ManuallyDrop<Restored<Block>>);

impl Deref for ClaimedBlock {
    type Target = Block;

    fn deref(&self) -> &Block {
        &self.0
    }
}

impl Memory for ClaimedBlocks {
    type Page = ClaimedBlock;
    type Error = Error;

    fn page(&self, at: Phys) -> Result<ClaimedBlock> {
        Restored::claim(kho::PhysAddr::new(at.get()).ok_or(EINVAL)?)
            .map(|page| ClaimedBlock(ManuallyDrop::new(page)))
    }

    fn release(&self, page: ClaimedBlock) {
        drop(ManuallyDrop::into_inner(page.0));
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_records_chain)]
mod tests {
    use super::*;
    use crate::abi::{
        session::{
            File,
            FileRecord, //
        },
        Compatible, //
    };

    fn record(token: u64) -> Result<FileRecord> {
        Ok(FileRecord::new(&File {
            compatible: Compatible::from_cstr(c"test").map_err(|_| EINVAL)?,
            data: 0,
            token,
        }))
    }

    fn filled(count: usize) -> Result<Chain<FileRecord>> {
        let mut chain = Chain::new();

        chain.reserve(count)?;
        for token in 0..count {
            chain.push(&record(token as u64)?)?;
        }
        Ok(chain)
    }

    #[test]
    fn an_empty_chain_has_no_head() -> Result {
        let mut chain = filled(0)?;

        assert!(chain.head().is_none());
        chain.reserve(1)?;
        assert!(chain.head().is_none());
        Ok(())
    }

    #[test]
    fn nothing_is_pushed_without_room() -> Result {
        let mut chain = filled(0)?;

        assert!(chain.push(&record(0)?) == Err(ENOSPC));
        assert!(chain.len() == 0);
        Ok(())
    }

    #[test]
    fn blocks_are_linked_with_their_first_record() -> Result {
        let capacity = Block::capacity::<FileRecord>();
        let mut chain = filled(capacity)?;

        chain.reserve(capacity + 1)?;
        assert!(chain.blocks.len() == 2);
        assert!(chain.blocks[0].next().is_none());

        chain.push(&record(0)?)?;
        assert!(chain.blocks[0].next() == phys(&chain.blocks[1]));
        assert!(chain.blocks[1].next().is_none());
        assert!(chain.head() == phys(&chain.blocks[0]));
        Ok(())
    }

    #[test]
    fn records_are_found_by_their_index() -> Result {
        let capacity = Block::capacity::<FileRecord>();
        let mut chain = filled(2 * capacity)?;

        for index in [0, capacity - 1, capacity, 2 * capacity - 1] {
            let found = chain.get_mut(index).and_then(|r| r.parse().ok());
            assert!(found.is_some_and(|file| file.token == index as u64));
        }
        assert!(chain.get_mut(2 * capacity).is_none());
        Ok(())
    }

    #[test]
    fn shrinking_leaves_the_records() -> Result {
        let capacity = Block::capacity::<FileRecord>();
        let mut chain = filled(capacity + 1)?;

        chain.reserve(3 * capacity)?;
        chain.shrink(0);
        assert!(chain.blocks.len() == 2);
        assert!(chain.len() == capacity + 1);

        chain.clear();
        chain.shrink(0);
        assert!(chain.blocks.is_empty());
        assert!(chain.head().is_none());
        Ok(())
    }
}
