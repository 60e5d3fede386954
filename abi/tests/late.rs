// SPDX-License-Identifier: GPL-2.0

//! The list of late folios: its layout, and what a reader takes for a record.

use core::mem::size_of;
use luo_abi::{
    memfd::{
        Extent,
        ExtentKind, //
    },
    memfd_late::{
        record_word,
        Corrupt,
        Late,
        LatePage,
        LateRecord,
        FILES_WORD,
        MAGIC,
        NEXT_WORD,
        RECORDS,
        RECORD_WORDS, //
    },
    Phys,
    BLOCK_SIZE, //
};
use proptest::prelude::*;
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

mod common;
use common::crc32c;

fn late(file: u64, index: u64, order: u16) -> Late {
    let start = Phys::new(0x4000_0000).unwrap();
    Late {
        file,
        extent: match order {
            0 => Extent {
                start,
                index,
                pages: 1,
                kind: ExtentKind::Pages,
            },
            order => Extent::folio(start, index, order).unwrap(),
        },
    }
}

fn page_of(words: &[(usize, u64)]) -> LatePage {
    let mut page = [0_u64; BLOCK_SIZE / 8];
    for (word, value) in words {
        page[*word] = *value;
    }
    LatePage::read_from_bytes(page.as_bytes()).unwrap()
}

#[test]
fn words_are_where_the_layout_has_them() {
    assert_eq!(size_of::<LatePage>(), BLOCK_SIZE);
    assert_eq!(size_of::<LateRecord>(), 8 * RECORD_WORDS);

    let record = LateRecord::new(&late(0x1234, 5, 0), crc32c);
    let first = record_word(RECORDS - 1).unwrap();
    let mut words = vec![(0, MAGIC), (NEXT_WORD, 0x7000), (FILES_WORD, 3)];
    words.extend((first..).zip(record.words()));
    let page = page_of(&words);

    assert_eq!(page.next(), Ok(Phys::new(0x7000)));
    assert_eq!(page.files(), 3);
    assert_eq!(page.records().len(), RECORDS);
    let found: Vec<_> = page.records().iter().map(|r| r.parse(crc32c)).collect();
    assert_eq!(found[RECORDS - 1], Ok(Some(late(0x1234, 5, 0))));
    assert!(found[..RECORDS - 1]
        .iter()
        .all(|record| *record == Ok(None)));
}

#[test]
fn a_page_without_the_magic_is_none() {
    assert_eq!(LatePage::new_zeroed().next(), Err(Corrupt));
    assert_eq!(page_of(&[(0, MAGIC ^ 1)]).next(), Err(Corrupt));
    assert_eq!(page_of(&[(0, MAGIC)]).next(), Ok(None));
}

#[test]
fn until_its_last_word_is_written_there_is_no_record() {
    let words = LateRecord::new(&late(1, 2, 0), crc32c).words();

    for written in 0..RECORD_WORDS {
        let mut partly = [0; RECORD_WORDS];
        partly[..written].copy_from_slice(&words[..written]);
        let record = LateRecord::read_from_bytes(partly.as_bytes()).unwrap();
        assert_eq!(record.parse(crc32c), Ok(None));
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(file: u64, index in 0..1_u64 << 40, order in 0..=9_u16) {
        let late = late(file, index << order, order);
        prop_assert_eq!(LateRecord::new(&late, crc32c).parse(crc32c), Ok(Some(late)));
    }

    #[test]
    fn a_bit_that_is_flipped_is_noticed(file: u64, index in 0..1_u64 << 40, bit in 0_usize..256) {
        let mut bytes = LateRecord::new(&late(file, index, 0), crc32c);
        let bytes = bytes.as_mut_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let record = LateRecord::read_from_bytes(bytes).unwrap();
        prop_assert_eq!(record.parse(crc32c), Err(Corrupt));
    }

    #[test]
    fn no_record_makes_the_reader_panic(bytes: [u8; 32]) {
        let _ = LateRecord::read_from_bytes(&bytes).unwrap().parse(crc32c);
    }
}
