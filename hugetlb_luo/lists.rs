// SPDX-License-Identifier: GPL-2.0

//! The lists of a file for the next kernel: the extents of its pages, and its reservations.

use kernel::{
    crc32c::crc32c,
    hugetlb::FrozenFile,
    prelude::*,
    shmem::{
        Journal,
        PinnedExtent, //
    }, //
};

use super::{
    abi::{
        block::Record,
        extent::{
            ExtentRecord,
            SummedExtentRecord, //
        },
        hugetlb::{
            HugetlbMemfd,
            ReservedRange,
            ReservedRecord, //
        },
        memfd::Extent, //
    },
    record_pages::RecordPages, //
};

/// Records of one type, in a chain of blocks.
pub(super) struct List<R> {
    blocks: RecordPages,
    records: u64,
    _records: core::marker::PhantomData<fn() -> R>,
}

impl<R: Record> List<R> {
    fn new() -> Self {
        Self {
            blocks: RecordPages::new(),
            records: 0,
            _records: core::marker::PhantomData,
        }
    }

    fn push(&mut self, record: &R) -> Result {
        self.blocks.put(
            |block| block.push(record).is_ok(),
            |last, next| last.set_next(Some(next)),
        )?;
        self.records += 1;
        Ok(())
    }

    /// Writes the checksums. Nothing is added from now on.
    fn finish(mut self) -> Self {
        for block in self.blocks.iter_mut() {
            block.set_sum::<R>(crc32c);
        }
        self
    }
}

/// The lists of a file.
pub(super) struct Lists {
    pub(super) extents: List<SummedExtentRecord>,
    pub(super) reserved: List<ReservedRecord>,
}

impl Lists {
    /// Has a description refer to these lists.
    pub(super) fn describe(&self, memfd: HugetlbMemfd) -> Result<HugetlbMemfd> {
        Ok(HugetlbMemfd {
            nr_extents: self.extents.records,
            extents: self.extents.blocks.first()?,
            nr_reserved: self.reserved.records,
            reserved: self.reserved.blocks.first()?,
            ..memfd
        })
    }
}

/// Lists extents, which come in the order of the file.
pub(super) fn list_extents(
    extents: impl Iterator<Item = Result<Extent>>,
) -> Result<List<SummedExtentRecord>> {
    let mut list = List::new();

    for extent in extents {
        list.push(&SummedExtentRecord(ExtentRecord::new(&extent?)))?;
    }
    Ok(list.finish())
}

/// Lists reservations, which come in the order of the file.
pub(super) fn list_ranges(ranges: &[ReservedRange]) -> Result<List<ReservedRecord>> {
    let mut list = List::new();

    for range in ranges {
        list.push(&ReservedRecord::new(range))?;
    }
    Ok(list.finish())
}

/// Lists the reservations of a file that has these extents: of the pages that are not there.
pub(super) fn list_reserved<J: Journal>(
    file: &FrozenFile<J>,
    extents: &[&PinnedExtent],
) -> Result<List<ReservedRecord>> {
    let mut list = List::new();
    let order = file.order();

    file.reserved(|pages| {
        let (start, end) = (pages.start << order, pages.end << order);
        let first = extents.partition_point(|extent| end_of(extent) <= start);
        let mut at = start;

        for extent in extents.iter().skip(first) {
            let index = extent.index().min(end);
            if at < index {
                list.push(&record(at, index))?;
            }
            if end <= extent.index() {
                return Ok(());
            }
            at = end_of(extent);
        }
        if at < end {
            list.push(&record(at, end))?;
        }
        Ok(())
    })?;
    Ok(list.finish())
}

fn record(from: u64, to: u64) -> ReservedRecord {
    ReservedRecord::new(&ReservedRange {
        index: from,
        pages: to - from,
    })
}

fn end_of(extent: &PinnedExtent) -> u64 {
    extent.index().saturating_add(extent.pages().into())
}
