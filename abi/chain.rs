// SPDX-License-Identifier: GPL-2.0

//! Walks a chain of blocks that the previous kernel left.
//!
//! Addresses are followed only through a [`Memory`], which decides whether there is a preserved
//! page. In the kernel it claims the page, and a page can be claimed once, so that a chain that
//! bites its own tail, or another one, ends in an error by itself; a limit on the number of blocks
//! holds for any other memory.

use core::{
    error::Error,
    fmt,
    marker::PhantomData,
    ops::Deref, //
};

use super::{
    block::{
        Block,
        BlockError,
        Record, //
    },
    check::Crc32c,
    phys::Phys, //
};

/// The most blocks that the C implementation reads or writes in a chain.
///
/// A chain for `luo-v5` must not be longer.
pub const MAX_BLOCKS_V5: usize = 10_000;

/// Preserved memory, by physical address.
pub trait Memory {
    /// A page, owned or borrowed.
    type Page: Deref<Target = Block>;

    /// Why there is no such page.
    type Error;

    /// The preserved page at `at`, which is the address of the first byte of a page.
    ///
    /// # Errors
    ///
    /// If there is no preserved page, or it is in use already.
    fn page(&self, at: Phys) -> Result<Self::Page, Self::Error>;

    /// Ends the use of a page in which nothing was wrong.
    fn release(&self, page: Self::Page) {
        drop(page);
    }
}

/// A block of a chain, with the place where it stood.
pub struct Link<P> {
    /// Index of the block in the chain.
    pub index: usize,
    /// Address of the block.
    pub at: Phys,
    /// The block. Its count was checked, so [`Block::records`] succeeds.
    pub page: P,
}

/// The blocks of a chain, from the first to the last.
///
/// Nothing follows an error.
pub struct Blocks<'m, R, M: Memory> {
    mem: &'m M,
    next: Option<Phys>,
    index: usize,
    max: usize,
    crc: Option<Crc32c>,
    records: PhantomData<fn() -> R>,
}

/// Starts at block `head`; more than `max_blocks` blocks are an error.
pub fn blocks<R: Record, M: Memory>(
    mem: &M,
    head: Option<Phys>,
    max_blocks: usize,
) -> Blocks<'_, R, M> {
    Blocks {
        mem,
        next: head,
        index: 0,
        max: max_blocks,
        crc: None,
        records: PhantomData,
    }
}

impl<R: Record, M: Memory> Blocks<'_, R, M> {
    fn open(&self, at: Phys) -> Result<M::Page, Fault<M::Error>> {
        if self.index >= self.max {
            return Err(Fault::TooLong { max: self.max });
        }
        if !at.page_aligned() {
            return Err(Fault::Misaligned);
        }
        let page = self.mem.page(at).map_err(Fault::Memory)?;
        if self.crc.is_some_and(|crc| !page.sum_matches::<R>(crc)) {
            return Err(Fault::Sum);
        }
        page.count::<R>().map_err(Fault::Block)?;
        Ok(page)
    }
}

impl<R: Record, M: Memory> Iterator for Blocks<'_, R, M> {
    type Item = Result<Link<M::Page>, ChainError<M::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next.take()?;
        let index = self.index;
        match self.open(at) {
            Ok(page) => {
                self.next = page.next();
                self.index = index.saturating_add(1);
                Some(Ok(Link { index, at, page }))
            }
            Err(fault) => Some(Err(ChainError::new::<R>(index, at, fault))),
        }
    }
}

/// Visits every record of a chain, in order, and returns how many there were.
///
/// The visitor gets the index of the record in the chain. When it returns an error, or a block
/// turns out to be bad, it has seen all records before.
///
/// # Errors
///
/// The first thing that is wrong with the chain, or what the visitor returned.
pub fn walk<R: Record, M: Memory>(
    mem: &M,
    head: Option<Phys>,
    max_blocks: usize,
    visit: impl FnMut(usize, &R) -> Result<(), M::Error>,
) -> Result<usize, ChainError<M::Error>> {
    visit_all(blocks(mem, head, max_blocks), visit)
}

/// As [`walk`], where each block has a [checksum](Record::SUMMED): nothing of a block is used, nor
/// its successor looked for, before that was found to match.
///
/// # Errors
///
/// Those of [`walk`], and [`Fault::Sum`].
pub fn walk_summed<R: Record, M: Memory>(
    mem: &M,
    head: Option<Phys>,
    max_blocks: usize,
    crc: Crc32c,
    visit: impl FnMut(usize, &R) -> Result<(), M::Error>,
) -> Result<usize, ChainError<M::Error>> {
    let mut blocks = blocks(mem, head, max_blocks);
    blocks.crc = Some(crc);
    visit_all(blocks, visit)
}

fn visit_all<R: Record, M: Memory>(
    blocks: Blocks<'_, R, M>,
    mut visit: impl FnMut(usize, &R) -> Result<(), M::Error>,
) -> Result<usize, ChainError<M::Error>> {
    let mem = blocks.mem;
    let mut seen = 0_usize;
    for link in blocks {
        let Link { index, at, page } = link?;
        let records = page
            .records::<R>()
            .map_err(|cause| ChainError::new::<R>(index, at, Fault::Block(cause)))?;
        for record in records {
            visit(seen, record)
                .map_err(|cause| ChainError::new::<R>(index, at, Fault::Visit(cause)))?;
            seen = seen.saturating_add(1);
        }
        mem.release(page);
    }
    Ok(seen)
}

/// What was wrong with a chain, and at which block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainError<E> {
    /// What the records describe.
    pub kind: &'static str,
    /// Index of the block in the chain.
    pub block: usize,
    /// Address of the block, as the chain has it.
    pub at: Phys,
    /// What was wrong.
    pub fault: Fault<E>,
}

impl<E> ChainError<E> {
    pub(super) fn new<R: Record>(block: usize, at: Phys, fault: Fault<E>) -> Self {
        Self {
            kind: R::KIND,
            block,
            at,
            fault,
        }
    }
}

/// What was wrong with a block of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault<E> {
    /// The address is not that of a page.
    Misaligned,
    /// There is no such preserved page, or it was met before.
    Memory(E),
    /// The block contradicts itself.
    Block(BlockError),
    /// The chain goes on after this many blocks.
    TooLong {
        /// How many blocks are allowed.
        max: usize,
    },
    /// The header is not as it was written.
    Checksum,
    /// The block is not as it was written.
    Sum,
    /// The visitor gave up.
    Visit(E),
}

impl<E: fmt::Debug> fmt::Display for ChainError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} block {}: ", self.kind, self.block)?;
        match &self.fault {
            Fault::Misaligned => write!(f, "address {} is not that of a page", self.at),
            Fault::Memory(cause) => write!(f, "no preserved page at {}: {cause:?}", self.at),
            Fault::Block(cause) => cause.fmt(f),
            Fault::TooLong { max } => write!(f, "chain is longer than {max} blocks"),
            Fault::Checksum => f.write_str("checksum of the header does not match"),
            Fault::Sum => f.write_str("checksum does not match"),
            Fault::Visit(cause) => write!(f, "{cause:?}"),
        }
    }
}

impl<E: fmt::Debug> Error for ChainError<E> {}
