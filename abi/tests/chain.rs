// SPDX-License-Identifier: GPL-2.0

//! Blocks, chains of them, and everything that can be wrong with a chain.

mod common;

use common::{
    cases,
    compatible,
    emit_chain,
    session_name,
    Claims,
    NoPage,
    PhysMem,
    Shared, //
};
use luo_abi::{
    block::{
        Block,
        BlockError,
        Full, //
    },
    chain::{
        blocks,
        walk,
        ChainError,
        Fault, //
    },
    session::{
        File,
        FileRecord,
        RecordError,
        Session,
        SessionRecord, //
    },
    Phys, //
};
use proptest::prelude::*;
use zerocopy::{
    FromBytes,
    FromZeros, //
};

fn file(token: u64) -> FileRecord {
    FileRecord::new(&File {
        compatible: compatible("test-v1"),
        data: !token,
        token,
    })
}

fn session(number: u64) -> SessionRecord {
    SessionRecord::new(&Session {
        name: session_name(&format!("s{number}")),
        files: None,
        count: 0,
    })
}

/// A chain of `blocks` blocks with `per_block` files each, and the addresses of the blocks.
fn chain_of(mem: &mut PhysMem, blocks: u64, per_block: usize) -> Vec<Phys> {
    let records: Vec<_> = (0..blocks * per_block as u64).map(file).collect();
    let mut at = emit_chain(mem, &records, per_block);
    let mut addresses = Vec::new();
    while let Some(here) = at {
        addresses.push(here);
        at = mem.block(here).next();
    }
    assert_eq!(addresses.len() as u64, blocks);
    addresses
}

/// The tokens of a chain of files, and how it ended.
fn tokens(
    mem: &PhysMem,
    head: Option<Phys>,
    max: usize,
) -> (Vec<u64>, Result<usize, ChainError<NoPage>>) {
    let mut tokens = Vec::new();
    let end = walk::<FileRecord, _>(&Claims::new(mem), head, max, |index, record| {
        assert_eq!(index, tokens.len());
        tokens.push(record.parse().unwrap().token);
        Ok(())
    });
    (tokens, end)
}

#[test]
fn a_block_fills_up() {
    let mut block = Block::new_zeroed();
    for number in 0..51 {
        assert_eq!(block.push(&session(number)), Ok(number as usize));
    }
    assert_eq!(block.push(&session(51)), Err(Full));
    assert_eq!(block.raw_count(), 51);
    let records = block.records::<SessionRecord>().unwrap();
    assert_eq!(records.len(), 51);
    assert_eq!(records[50].parse().unwrap().name, session_name("s50"));
    assert_eq!(Full.to_string(), "block is full");
}

#[test]
fn records_change_in_place() {
    let mut block = Block::new_zeroed();
    for token in 0..3 {
        block.push(&file(token)).unwrap();
    }
    block.record_mut::<FileRecord>(1).unwrap().set_data(77);
    assert!(block.record_mut::<FileRecord>(3).is_none());
    let records = block.records::<FileRecord>().unwrap();
    assert_eq!(records[1].parse().unwrap().data, 77);

    block.truncate(5);
    assert_eq!(block.raw_count(), 3);
    block.truncate(2);
    assert_eq!(block.records::<FileRecord>().unwrap().len(), 2);
    assert_eq!(block.push(&file(9)), Ok(2));
    assert_eq!(
        block.records::<FileRecord>().unwrap()[2]
            .parse()
            .unwrap()
            .token,
        9
    );

    block.clear();
    assert_eq!(block.raw_count(), 0);
    assert!(block.records::<FileRecord>().unwrap().is_empty());
}

#[test]
fn a_count_that_does_not_fit() {
    let mut mem = PhysMem::default();
    let at = mem.page();
    for count in [64, 77, 255, 1 << 32, u64::MAX] {
        mem.bytes(at)[8..16].copy_from_slice(&count.to_ne_bytes());
        let block = mem.block(at);
        let error = BlockError::CountTooLarge {
            count,
            capacity: 63,
        };
        assert_eq!(block.records::<FileRecord>().err(), Some(error));
        assert_eq!(block.records_mut::<FileRecord>().err(), Some(error));
        assert!(block.record_mut::<FileRecord>(0).is_none());
        assert_eq!(block.push(&file(0)), Err(Full));
        assert_eq!(error.to_string(), format!("count {count} exceeds 63"));
    }
}

#[test]
fn no_chain_is_an_empty_one() {
    assert_eq!(tokens(&PhysMem::default(), None, 0), (vec![], Ok(0)));
}

#[test]
fn an_empty_block_is_no_fault() {
    let mut mem = PhysMem::default();
    let chain = chain_of(&mut mem, 2, 3);
    let empty = mem.page();
    mem.block(chain[1]).set_next(Some(empty));
    assert_eq!(tokens(&mem, Some(chain[0]), 3).1, Ok(6));
}

#[test]
fn a_bad_count_is_named_with_its_place() {
    let mut mem = PhysMem::default();
    let records: Vec<_> = (0..5 * 51).map(session).collect();
    let head = emit_chain(&mut mem, &records, 51);
    let third = blocks::<SessionRecord, _>(&Shared(&mem), head, 10)
        .nth(3)
        .unwrap()
        .map(|link| link.at)
        .unwrap();
    mem.bytes(third)[8..16].copy_from_slice(&77_u64.to_ne_bytes());

    let mut seen = 0;
    let error = walk::<SessionRecord, _>(&Claims::new(&mem), head, 10, |_, _| {
        seen += 1;
        Ok(())
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "session block 3: count 77 exceeds 51");
    assert_eq!(seen, 3 * 51);
}

#[test]
fn every_cycle_ends() {
    for len in 1..6 {
        for back in 0..len {
            let mut mem = PhysMem::default();
            let chain = chain_of(&mut mem, len, 2);
            let (last, to) = (chain[len as usize - 1], chain[back as usize]);
            mem.block(last).set_next(Some(to));

            let (seen, end) = tokens(&mem, Some(chain[0]), 1000);
            assert_eq!(seen.len() as u64, 2 * len);
            assert_eq!(
                end.unwrap_err(),
                ChainError {
                    kind: "file",
                    block: len as usize,
                    at: to,
                    fault: Fault::Memory(NoPage::Claimed),
                }
            );

            // The limit holds where the memory does not tell.
            let error = walk::<FileRecord, _>(&Shared(&mem), Some(chain[0]), 50, |_, _| Ok(()))
                .unwrap_err();
            assert_eq!(error.block, 50);
            assert_eq!(error.fault, Fault::TooLong { max: 50 });
            assert_eq!(
                error.to_string(),
                "file block 50: chain is longer than 50 blocks"
            );
        }
    }
}

#[test]
fn two_chains_that_meet() {
    let mut mem = PhysMem::default();
    let one = chain_of(&mut mem, 3, 1);
    let two = chain_of(&mut mem, 2, 1);
    mem.block(two[1]).set_next(Some(one[1]));
    let claims = Claims::new(&mem);
    assert!(walk::<FileRecord, _>(&claims, Some(one[0]), 9, |_, _| Ok(())).is_ok());
    let error = walk::<FileRecord, _>(&claims, Some(two[0]), 9, |_, _| Ok(())).unwrap_err();
    assert_eq!(error.block, 2);
    assert_eq!(error.fault, Fault::Memory(NoPage::Claimed));
}

#[test]
fn as_long_as_the_limit_and_no_longer() {
    let mut mem = PhysMem::default();
    let chain = chain_of(&mut mem, 4, 1);
    assert_eq!(tokens(&mem, Some(chain[0]), 4).1, Ok(4));
    let error = tokens(&mem, Some(chain[0]), 3).1.unwrap_err();
    assert_eq!((error.block, error.fault), (3, Fault::TooLong { max: 3 }));
    let error = tokens(&mem, Some(chain[0]), 0).1.unwrap_err();
    assert_eq!(error.fault, Fault::TooLong { max: 0 });
}

#[test]
fn an_address_that_is_none() {
    let mut mem = PhysMem::default();
    let chain = chain_of(&mut mem, 2, 1);
    for (address, fault) in [
        (0x123_4568, Fault::Misaligned),
        (1, Fault::Misaligned),
        (u64::MAX, Fault::Misaligned),
        (0x7777_7000, Fault::Memory(NoPage::Absent)),
    ] {
        mem.block(chain[0]).set_next(Phys::new(address));
        let (seen, end) = tokens(&mem, Some(chain[0]), 9);
        assert_eq!(seen, [0]);
        let error = end.unwrap_err();
        assert_eq!((error.block, error.at.get()), (1, address));
        assert_eq!(error.fault, fault);
    }
    assert_eq!(
        tokens(&mem, Phys::new(0x999), 9).1.unwrap_err().to_string(),
        "file block 0: address 0x999 is not that of a page"
    );
    assert_eq!(
        tokens(&mem, Phys::new(0x9000), 9)
            .1
            .unwrap_err()
            .to_string(),
        "file block 0: no preserved page at 0x9000: Absent"
    );
}

#[test]
fn a_visitor_that_gives_up() {
    let mut mem = PhysMem::default();
    let chain = chain_of(&mut mem, 3, 2);
    let error = walk::<FileRecord, _>(&Claims::new(&mem), Some(chain[0]), 9, |index, _| {
        if index == 3 {
            return Err(NoPage::Refused);
        }
        Ok(())
    })
    .unwrap_err();
    assert_eq!((error.block, error.at), (1, chain[1]));
    assert_eq!(error.fault, Fault::Visit(NoPage::Refused));
}

#[test]
fn nothing_follows_an_error() {
    let mut mem = PhysMem::default();
    let chain = chain_of(&mut mem, 2, 1);
    mem.block(chain[0]).set_next(Phys::new(1));
    let claims = Claims::new(&mem);
    let mut blocks = blocks::<FileRecord, _>(&claims, Some(chain[0]), 9);
    assert!(matches!(blocks.next(), Some(Ok(link)) if link.at == chain[0] && link.index == 0));
    assert!(matches!(blocks.next(), Some(Err(_))));
    assert!(blocks.next().is_none());
    assert!(blocks.next().is_none());
}

#[test]
fn sessions_and_files_that_are_none() {
    let name = session_name("a");
    let some = Phys::new(0x1000);
    let parse = |files, count| SessionRecord::new(&Session { name, files, count }).parse();
    assert!(parse(None, 0).is_ok());
    assert!(parse(some, 1).is_ok());
    assert_eq!(
        parse(some, 0),
        Err(RecordError::Files {
            files: some,
            count: 0
        })
    );
    assert_eq!(
        parse(None, 3).unwrap_err().to_string(),
        "count 3 but no address of files"
    );
    let odd = Phys::new(0x1010).unwrap();
    assert_eq!(
        parse(Some(odd), 1),
        Err(RecordError::Misaligned { at: odd })
    );

    let zero = SessionRecord::read_from_bytes(&[0; 80]).unwrap();
    assert_eq!(zero.parse().unwrap_err().to_string(), "name is empty");
    let ones = SessionRecord::read_from_bytes(&[0xff; 80]).unwrap();
    assert_eq!(ones.parse().unwrap_err().to_string(), "name has no end");
    assert_eq!(ones.raw_name(), &[0xff; 64]);
    assert!(FileRecord::read_from_bytes(&[0xff; 64])
        .unwrap()
        .parse()
        .is_err());
    assert!(FileRecord::read_from_bytes(&[0; 64])
        .unwrap()
        .parse()
        .is_err());

    let session = parse(some, 2).unwrap();
    assert_eq!(session.check_total(2), Ok(()));
    assert_eq!(
        session.check_total(3).unwrap_err().to_string(),
        "3 files where 2 are counted"
    );
}

#[test]
fn an_address() {
    assert_eq!(Phys::new(0), None);
    assert_eq!(Phys::from_pfn(0), None);
    assert_eq!(Phys::from_pfn(1 << 52), None);
    let last = Phys::from_pfn((1 << 52) - 1).unwrap();
    assert_eq!(last.get(), u64::MAX - 4095);
    assert_eq!(last.pfn(), (1 << 52) - 1);
    assert!(last.page_aligned());
    assert!(!Phys::new(0x1008).unwrap().page_aligned());
    assert_eq!(Phys::new(0xabc000).unwrap().to_string(), "0xabc000");
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn what_was_written_is_read(count in 0_u64..400, per_block in 1_usize..80) {
        let mut mem = PhysMem::default();
        let records: Vec<_> = (0..count).map(file).collect();
        let head = emit_chain(&mut mem, &records, per_block);
        let (seen, end) = tokens(&mem, head, 400);
        prop_assert_eq!(end, Ok(count as usize));
        prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn any_block(
        bytes in prop::collection::vec(any::<u8>(), 4096),
        count in prop_oneof![any::<u64>(), 0_u64..200],
    ) {
        let mut block = Block::read_from_bytes(&bytes[..]).unwrap();
        let _ = block.push(&file(0));
        let mut bytes = bytes;
        bytes[8..16].copy_from_slice(&count.to_ne_bytes());
        let mut block = Block::read_from_bytes(&bytes[..]).unwrap();
        match block.records::<SessionRecord>() {
            Ok(records) => {
                prop_assert_eq!(records.len() as u64, count);
                for record in records {
                    let _ = record.parse().map_err(|error| error.to_string());
                }
            }
            Err(_) => prop_assert!(count > 51),
        }
        block.truncate(10);
        prop_assert_eq!(block.records::<FileRecord>().unwrap().len() as u64, count.min(10));
    }

    #[test]
    fn any_links(
        links in prop::collection::vec((prop_oneof![0_u64..12, any::<u64>()], 0_u64..80), 1..10),
        max in 0_usize..20,
    ) {
        let mut mem = PhysMem::default();
        let pages: Vec<_> = links.iter().map(|_| mem.page()).collect();
        for (at, (next, count)) in pages.iter().zip(&links) {
            let next = pages.get(usize::try_from(*next).unwrap()).copied().or(Phys::new(*next));
            mem.block(*at).set_next(next);
            mem.bytes(*at)[8..16].copy_from_slice(&count.to_ne_bytes());
        }
        let claims = Claims::new(&mem);
        let end = walk::<FileRecord, _>(&claims, Some(pages[0]), max, |_, _| Ok(()));
        prop_assert!(claims.count() <= links.len().min(max));
        if let Ok(found) = end {
            prop_assert!(found <= 63 * claims.count());
        }
        let end = walk::<FileRecord, _>(&Shared(&mem), Some(pages[0]), max, |_, _| Ok(()));
        prop_assert!(end.is_err() || end.unwrap() <= 63 * max);
    }
}
