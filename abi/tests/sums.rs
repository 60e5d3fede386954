// SPDX-License-Identifier: GPL-2.0

//! The checksums of what memfd handlers leave: no flipped bit is missed, and one of another file
//! costs nothing. The versions before, which have none, are read.

mod common;

use common::{
    crc32c,
    memfd,
    PhysMem,
    Shared, //
};
use luo_abi::{
    block::Block,
    chain::{
        walk,
        walk_summed,
        Fault, //
    },
    memfd::{
        Extent,
        ExtentKind,
        ExtentRecord,
        MemfdError,
        MemfdHeader,
        OpenFlags,
        SummedExtentRecord, //
    },
    memfd_small::{
        Small,
        SmallError,
        SmallPage,
        SmallRecord, //
    },
    Phys, //
};
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

fn phys(addr: u64) -> Phys {
    Phys::new(addr).unwrap()
}

fn extent(number: u64) -> Extent {
    Extent {
        start: phys((number + 9) << 12),
        index: 2 * number,
        pages: 1,
        kind: ExtentKind::Pages,
    }
}

/// Calls `test` with `bytes` once for each bit, which is flipped.
fn each_flip(bytes: &[u8], mut test: impl FnMut(&[u8])) {
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        test(&flipped);
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_found() {
    let header = MemfdHeader::new(&memfd(5000)).summed(crc32c);
    assert_eq!(header.verify(crc32c), Ok(()));

    each_flip(header.as_bytes(), |bytes| {
        let header = MemfdHeader::read_from_bytes(bytes).unwrap();
        assert_eq!(header.verify(crc32c), Err(MemfdError::Checksum));
    });
}

fn block(extents: usize) -> Block {
    let mut block = Block::new_zeroed();
    for number in 0..extents {
        let record = ExtentRecord::new(&extent(number as u64));
        block.push(&SummedExtentRecord(record)).unwrap();
    }
    block.set_sum::<SummedExtentRecord>(crc32c);
    block
}

#[test]
fn every_flipped_bit_of_a_block_is_found() {
    let full = Block::capacity::<ExtentRecord>();
    let count = if cfg!(miri) { 2 } else { full };
    for extents in [0, 1, count] {
        let block = block(extents);
        assert!(block.sum_matches::<SummedExtentRecord>(crc32c));
        assert_eq!(block.count::<SummedExtentRecord>(), Ok(extents));

        let used = 16 + 24 * extents;
        each_flip(&block.as_bytes()[..used], |bytes| {
            let mut flipped = Block::new_zeroed();
            flipped.as_mut_bytes()[..used].copy_from_slice(bytes);
            assert!(!flipped.sum_matches::<SummedExtentRecord>(crc32c));
        });
    }
}

#[test]
fn what_is_not_used_of_a_block_means_nothing() {
    let mut block = block(3);

    block.as_mut_bytes()[16 + 3 * 24..].fill(0x55);
    assert!(block.sum_matches::<SummedExtentRecord>(crc32c));
}

#[test]
fn nothing_of_a_corrupt_block_is_visited_or_followed() {
    let mut mem = PhysMem::default();
    let (first, second) = (mem.page(), mem.page());
    mem.bytes(first).copy_from_slice(block(170).as_bytes());
    mem.bytes(second).copy_from_slice(block(1).as_bytes());
    mem.block(first).set_next(Some(second));
    mem.block(first).set_sum::<SummedExtentRecord>(crc32c);

    let visited = |mem: &PhysMem| {
        let mut visited = 0;
        let shared = Shared(mem);
        let walked = walk_summed(
            &shared,
            Some(first),
            9,
            crc32c,
            |_, _: &SummedExtentRecord| {
                visited += 1;
                Ok(())
            },
        );
        (visited, walked.map_err(|error| (error.block, error.fault)))
    };
    assert_eq!(visited(&mem), (171, Ok(171)));

    mem.bytes(second)[20] ^= 1;
    assert_eq!(visited(&mem), (170, Err((1, Fault::Sum))));
    mem.bytes(first)[20] ^= 1;
    assert_eq!(visited(&mem), (0, Err((0, Fault::Sum))));
}

#[test]
fn a_block_without_checksum_is_told_from_one_with() {
    let mut plain = Block::new_zeroed();
    plain.push(&ExtentRecord::new(&extent(0))).unwrap();
    assert!(!plain.sum_matches::<SummedExtentRecord>(crc32c));

    let mut mem = PhysMem::default();
    let at = mem.page();
    mem.bytes(at).copy_from_slice(block(1).as_bytes());
    let walked = walk(&Shared(&mem), Some(at), 9, |_, _: &ExtentRecord| Ok(()));
    assert!(matches!(walked.unwrap_err().fault, Fault::Block(_)));
}

fn small(pages: bool) -> Small {
    Small {
        pos: 7,
        size: 4096,
        seals: 0,
        open: OpenFlags::from_bits(OpenFlags::READ).unwrap(),
        mode: 0o600,
        uid: 1,
        gid: 2,
        name: None,
        extent: pages.then(|| extent(0)),
        poisoned: false,
    }
}

#[test]
fn every_flipped_bit_of_a_slot_is_found() {
    for memfd in [small(true), small(false)] {
        let record = SmallRecord::new(&memfd).summed(crc32c);
        assert_eq!(record.verified(crc32c).unwrap().parse(), Ok(memfd));
        assert_eq!(record.may_be_late(), memfd.extent.is_none());

        each_flip(record.as_bytes(), |bytes| {
            let record = SmallRecord::read_from_bytes(bytes).unwrap();
            let found = record.verified(crc32c).map(|_| ());
            assert_eq!(found, Err(SmallError::Memfd(MemfdError::Checksum)));
        });
    }
}

#[test]
fn every_flipped_bit_before_the_slots_is_found() {
    let mut page = SmallPage::new_zeroed();
    page.add();
    page.set_late(phys(0x4000));
    page.set_sum(crc32c);
    assert!(page.sum_matches(crc32c));

    each_flip(&page.as_bytes()[..16], |bytes| {
        let mut flipped = SmallPage::new_zeroed();
        flipped.as_mut_bytes()[..16].copy_from_slice(bytes);
        assert!(!flipped.sum_matches(crc32c));
    });
}
