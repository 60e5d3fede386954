// SPDX-License-Identifier: GPL-2.0

//! Checks: what finds corruption that contradicts nothing else.
//!
//! Beside the records, whose layout has no room for it, stands a table of numbers of 32 bits, in
//! pages that the root lists. Each number is the CRC-32C of something small, so that corruption
//! costs what it hit and nothing else:
//!
//! ```text
//!  a chain, or the page of FLBs
//!     for each block, in order
//!        header    of its first 16 bytes
//!        for each record
//!           link      sessions only: the index of the first check of its files
//!           record    of the record, and of the link behind it
//! ```
//!
//! The root says where the checks of the sessions and of the FLBs begin and how many records those
//! are, and has a checksum over all that it says. So where there are checks, no address is followed
//! and no count relied on that has not been verified.

use core::mem::size_of;

use super::{
    block::{
        Block,
        Record, //
    },
    chain::{
        self,
        ChainError,
        Fault,
        Memory, //
    },
    phys::Phys,
    BLOCK_SIZE, //
};

/// Continues the CRC-32C (Castagnoli) of what comes before over some bytes.
///
/// The first call gets 0. That of `"123456789"` is `0xe306_9283`.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// How many checks a page holds.
pub const CHECKS_PER_PAGE: usize = BLOCK_SIZE / size_of::<u32>();

/// A page of the table.
pub type CheckPage = [u32; CHECKS_PER_PAGE];

/// The table of checks.
pub trait Table {
    /// The check of an index, [`None`] if the table ends before.
    fn get(&self, index: u64) -> Option<u32>;
}

/// Where the checks of a chain stand in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// How many records the chain has.
    pub count: u64,
    /// Index of the first check.
    pub first: u64,
}

impl Span {
    /// The records of a block after `seen` others, as many as have to be, whatever its header says.
    pub(super) fn records<R: Record>(self, seen: u64, block: &Block) -> &[R] {
        let left = usize::try_from(self.count.saturating_sub(seen)).unwrap_or(usize::MAX);
        block.first_records(left)
    }
}

/// How many checks a record has.
const fn per_record<R: Record>() -> u64 {
    if R::LINKED {
        2
    } else {
        1
    }
}

/// The check of a record.
fn of_record<R: Record>(crc: Crc32c, record: &R, link: Option<u32>) -> u32 {
    let sum = crc(0, record.as_bytes());
    match link {
        Some(link) => crc(sum, &link.to_ne_bytes()),
        None => sum,
    }
}

/// Makes the checks of a block, in order.
///
/// `links` has one for each record of a type that is [linked](Record::LINKED).
///
/// # Errors
///
/// What `push` returned.
pub fn write<R: Record, E>(
    crc: Crc32c,
    block: &Block,
    links: &mut impl Iterator<Item = u32>,
    mut push: impl FnMut(u32) -> Result<(), E>,
) -> Result<(), E> {
    push(crc(0, block.header_bytes()))?;
    for record in block.records::<R>().unwrap_or_default() {
        let link = if R::LINKED { links.next() } else { None };
        if let Some(link) = link {
            push(link)?;
        }
        push(of_record(crc, record, link))?;
    }
    Ok(())
}

/// The table, and how to calculate what stands in it.
pub struct Checks<T> {
    table: T,
    crc: Crc32c,
}

/// How the walk through a checked chain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// How many records there were, the corrupt ones included.
    pub records: u64,
    /// Whether the header of the last block is corrupt, which cost nothing.
    pub corrupt_header: bool,
}

impl<T: Table> Checks<T> {
    /// Uses `table` with checksums calculated by `crc`.
    pub const fn new(table: T, crc: Crc32c) -> Self {
        Self { table, crc }
    }

    /// Where the check of the header of a block stands.
    fn at_header<R: Record>(span: Span, block: u64) -> Option<u64> {
        let capacity = u64::try_from(Block::capacity::<R>()).ok()?;
        capacity
            .checked_mul(per_record::<R>())?
            .checked_add(1)?
            .checked_mul(block)?
            .checked_add(span.first)
    }

    /// Where the checks of a record stand.
    fn at_record<R: Record>(span: Span, index: u64) -> Option<u64> {
        let capacity = u64::try_from(Block::capacity::<R>()).ok()?;
        let (block, index) = (index.checked_div(capacity)?, index.checked_rem(capacity)?);
        Self::at_header::<R>(span, block)?
            .checked_add(1)?
            .checked_add(index.checked_mul(per_record::<R>())?)
    }

    /// The link of a record that was found to be whole: the index of the first check of what it
    /// leads to.
    pub fn link<R: Record>(&self, span: Span, index: u64) -> Option<u64> {
        let at = Self::at_record::<R>(span, index)?;
        self.table.get(at).map(u64::from)
    }

    /// Whether the header of a block is as it was written.
    pub fn header_is_whole<R: Record>(&self, span: Span, index: u64, block: &Block) -> bool {
        Self::at_header::<R>(span, index)
            .and_then(|at| self.table.get(at))
            .is_some_and(|check| check == (self.crc)(0, block.header_bytes()))
    }

    /// Whether a record is as it was written.
    pub fn record_is_whole<R: Record>(&self, span: Span, index: u64, record: &R) -> bool {
        let whole = || {
            let at = Self::at_record::<R>(span, index)?;
            let (link, at) = match R::LINKED {
                true => (Some(self.table.get(at)?), at.checked_add(1)?),
                false => (None, at),
            };
            Some(self.table.get(at)? == of_record(self.crc, record, link))
        };
        whole().unwrap_or(false)
    }

    /// Visits every record of a chain, in order: [`None`] for one that is corrupt.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with the chain, or what the visitor returned. All records
    /// before have been visited then.
    pub fn walk<R: Record, M: Memory>(
        &self,
        mem: &M,
        head: Option<Phys>,
        span: Span,
        mut visit: impl FnMut(u64, Option<&R>) -> Result<(), M::Error>,
    ) -> Result<Walked, ChainError<M::Error>> {
        let mut walked = Walked::default();
        let mut next = head;
        let mut index = 0_usize;

        while let Some(at) = next.filter(|_| walked.records < span.count) {
            let fail = |fault| ChainError::new::<R>(index, at, fault);
            if !at.page_aligned() {
                return Err(fail(Fault::Misaligned));
            }
            let page = mem.page(at).map_err(|cause| fail(Fault::Memory(cause)))?;
            let block = u64::try_from(index).unwrap_or(u64::MAX);
            let whole = self.header_is_whole::<R>(span, block, &page);

            for record in span.records::<R>(walked.records, &page) {
                let record =
                    Some(record).filter(|r| self.record_is_whole(span, walked.records, *r));
                visit(walked.records, record).map_err(|cause| fail(Fault::Visit(cause)))?;
                walked.records = walked.records.saturating_add(1);
            }
            if whole {
                next = page.next();
                mem.release(page);
            } else if walked.records < span.count {
                return Err(fail(Fault::Checksum));
            } else {
                walked.corrupt_header = true;
            }
            index = index.saturating_add(1);
        }
        Ok(walked)
    }
}

/// Visits every record of a chain, with the checks that there are for it, if any.
///
/// # Errors
///
/// As [`Checks::walk`] and [`chain::walk`].
pub fn walk<R: Record, M: Memory, T: Table>(
    mem: &M,
    head: Option<Phys>,
    checks: Option<(&Checks<T>, Span)>,
    mut visit: impl FnMut(u64, Option<&R>) -> Result<(), M::Error>,
) -> Result<Walked, ChainError<M::Error>> {
    if let Some((checks, span)) = checks {
        return checks.walk(mem, head, span, visit);
    }
    let mut records = 0_u64;
    chain::walk(mem, head, usize::MAX, |_, record| {
        visit(records, Some(record))?;
        records = records.saturating_add(1);
        Ok(())
    })?;
    Ok(Walked {
        records,
        corrupt_header: false,
    })
}
