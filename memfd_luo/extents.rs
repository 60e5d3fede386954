// SPDX-License-Identifier: GPL-2.0

//! `memfd-extents-v3`: the layout of this implementation.

use core::fmt;

use kernel::{
    crc32c::crc32c,
    prelude::*,
    shmem::{
        PinnedExtent, //
    }, //
};

use super::{
    abi::{
        chain::{
            self,
            Fault, //
        },
        memfd::{
            self as layout,
            ExtentCheck,
            ExtentRecord,
            MemfdHeader,
            SummedExtentRecord, //
        },
        Block,
        Memory,
        Phys, //
    },
    attributes::Attributes,
    late::FileJournal,
    layout::{
        prefer_v2,
        Layout, //
    },
    parts::Part,
    record_pages::RecordPages,
    report::{
        bad_header,
        extent_of,
        malformed, //
    },
    version::{
        crc_of,
        CURRENT, //
    }, //
};

/// `memfd-extents-v3`: our own layout.
///
/// The current version is written. The others are read.
pub(super) struct Extents<const VERSION: u32>;

kernel::liveupdate_note!("handler", layout::COMPATIBLE_EXTENTS);
kernel::liveupdate_note!("handler", layout::COMPATIBLE_EXTENTS_V2);
kernel::liveupdate_note!("handler", layout::COMPATIBLE_EXTENTS_V1);

/// The extents of a memfd, in a chain of blocks.
pub(super) struct ExtentBlocks {
    blocks: RecordPages,
    extents: u64,
    pages: u64,
}

/// Where the extents of an incoming memfd are.
pub(super) struct ExtentList {
    first: Option<Phys>,
    extents: u64,
    late: Option<Phys>,
    /// The check of the first one.
    check: ExtentCheck,
}

impl ExtentList {
    fn of(memfd: &layout::Memfd) -> Self {
        Self {
            first: memfd.extents,
            extents: memfd.nr_extents,
            late: memfd.late,
            check: ExtentCheck::new(memfd),
        }
    }
}

impl<const VERSION: u32> Extents<VERSION> {
    /// The header, if it is as it was written.
    fn verified(header: &Block) -> Result<&MemfdHeader> {
        let header = MemfdHeader::of(header).ok_or(EINVAL)?;

        if let Some(crc) = crc_of(VERSION) {
            header.verify(crc).map_err(bad_header)?;
        }
        Ok(header)
    }
}

impl<const VERSION: u32> Layout for Extents<VERSION> {
    const COMPATIBLE: &'static CStr = match VERSION {
        1 => layout::COMPATIBLE_EXTENTS_V1,
        2 => layout::COMPATIBLE_EXTENTS_V2,
        _ => layout::COMPATIBLE_EXTENTS,
    };
    const RUNS: bool = true;

    type Parts = ExtentBlocks;
    type List = ExtentList;

    fn wanted() -> bool {
        VERSION == CURRENT && !prefer_v2()
    }

    fn check(_attributes: &Attributes) -> Result {
        Ok(())
    }

    fn list(extents: &[PinnedExtent]) -> Result<ExtentBlocks> {
        let mut parts = ExtentBlocks {
            blocks: RecordPages::new(),
            extents: 0,
            pages: 0,
        };

        for extent in extents {
            let record = SummedExtentRecord(ExtentRecord::new(&extent_of(extent)?));
            parts.blocks.put(
                |block| block.push(&record).is_ok(),
                |last, next| last.set_next(Some(next)),
            )?;
            parts.extents += 1;
            parts.pages += u64::from(extent.pages());
        }
        for block in parts.blocks.iter_mut() {
            block.set_sum::<SummedExtentRecord>(crc32c);
        }
        Ok(parts)
    }

    fn journal(file: u64) -> Result<FileJournal> {
        FileJournal::new(file)
    }

    fn write(
        header: &mut Block,
        attributes: &Attributes,
        parts: &ExtentBlocks,
        late: Option<Phys>,
    ) -> Result {
        let (uid, gid) = attributes.owner.ok_or(EINVAL)?;

        let description = MemfdHeader::new(&layout::Memfd {
            pos: attributes.position,
            size: attributes.size,
            seals: attributes.seals,
            open: attributes.open,
            mode: attributes.mode,
            uid,
            gid,
            name: attributes.name,
            nr_extents: parts.extents,
            nr_pages: parts.pages,
            extents: parts.blocks.first()?,
            late,
            poisoned: attributes.poisoned,
        });
        *MemfdHeader::of_mut(header).ok_or(EINVAL)? = description.summed(crc32c);
        Ok(())
    }

    fn read(header: &Block) -> Result<(Attributes, ExtentList)> {
        let memfd = Self::verified(header)?.parse().map_err(bad_header)?;
        let attributes = Attributes {
            position: memfd.pos,
            size: memfd.size,
            seals: memfd.seals,
            mode: memfd.mode,
            owner: Some((memfd.uid, memfd.gid)),
            open: memfd.open,
            name: memfd.name,
            poisoned: memfd.poisoned,
        };
        attributes.expect_readable()?;
        Ok((attributes, ExtentList::of(&memfd)))
    }

    fn late(list: &ExtentList) -> Option<Phys> {
        list.late
    }

    fn summarize(header: &Block, to: &mut dyn fmt::Write) -> Result {
        let header = MemfdHeader::of(header).ok_or(EINVAL)?;
        let intact = crc_of(VERSION).is_none_or(|crc| header.verify(crc).is_ok());
        let memfd = header.parse().ok().filter(|_| intact).ok_or(EINVAL)?;

        Ok(write!(
            to,
            "size {}, {} pages, {} extents",
            memfd.size, memfd.nr_pages, memfd.nr_extents
        )?)
    }

    fn read_list(header: &Block) -> Result<ExtentList> {
        let mut header = *Self::verified(header)?;

        header.set_pos(0);
        header.set_seals(0);
        header.set_owner(0, 0, 0);
        header
            .parse()
            .map(|memfd| ExtentList::of(&memfd))
            .map_err(bad_header)
    }

    fn walk<M: Memory<Error = Error>>(
        mem: &M,
        list: &ExtentList,
        mut visit: impl FnMut(&Part) -> Result,
    ) -> Result {
        // Full blocks, except perhaps for the last.
        let blocks = usize::try_from(list.extents)?.div_ceil(Block::capacity::<ExtentRecord>());
        let mut check = list.check.clone();
        let mut visit = |record: &ExtentRecord| {
            let extent = check.check(record).map_err(malformed)?;
            extent
                .pieces()
                .try_for_each(|piece| visit(&Part::of(&piece)?))
        };

        match crc_of(VERSION) {
            None => chain::walk(mem, list.first, blocks, |_, record| visit(record)),
            Some(crc) => chain::walk_summed(
                mem,
                list.first,
                blocks,
                crc,
                |_, record: &SummedExtentRecord| visit(&record.0),
            ),
        }
        .map_err(|e| match e.fault {
            Fault::Visit(cause) | Fault::Memory(cause) => cause,
            Fault::Sum => {
                malformed(e);
                EUCLEAN
            }
            _ => malformed(e),
        })?;
        check.finish().map_err(malformed)
    }
}
