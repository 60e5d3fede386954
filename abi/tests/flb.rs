// SPDX-License-Identifier: GPL-2.0

//! The page of FLBs.

mod common;

use common::{
    cases,
    compatible, //
};
use luo_abi::flb::{
    records_in,
    Flb,
    FlbBlock,
    FlbError,
    FlbHeader,
    FlbRecord, //
};
use proptest::prelude::*;
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

fn flb(number: u64) -> Flb {
    Flb {
        name: compatible(&format!("flb-{number}")),
        data: number << 12,
        count: number + 1,
    }
}

fn with(pages: u64, count: u64) -> FlbBlock {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&pages.to_ne_bytes());
    bytes[8..16].copy_from_slice(&count.to_ne_bytes());
    FlbBlock::read_from_bytes(&bytes[..]).unwrap()
}

#[test]
fn a_page_fills_up() {
    let mut page = FlbBlock::new_zeroed();
    page.clear();
    assert_eq!(page.header(), Ok(FlbHeader { pages: 1, count: 0 }));
    assert!(page.records().unwrap().is_empty());
    for number in 0..63 {
        assert_eq!(page.push(&flb(number)), Ok(number as usize));
    }
    assert_eq!(
        page.push(&flb(63)).unwrap_err().to_string(),
        "FLB count 64 does not fit into 1 page(s)"
    );
    let records = page.records().unwrap();
    assert_eq!(records.len(), 63);
    for (record, number) in records.iter().zip(0..) {
        assert_eq!(record.parse(), Ok(flb(number)));
    }
}

#[test]
fn headers() {
    assert_eq!(with(0, 0).header(), Err(FlbError::NoPages));
    assert_eq!(with(0, 1).records().err(), Some(FlbError::NoPages));
    assert_eq!(
        with(1, 64).header(),
        Err(FlbError::CountTooLarge {
            count: 64,
            pages: 1
        })
    );
    assert_eq!(
        with(2, 100).header(),
        Ok(FlbHeader {
            pages: 2,
            count: 100
        })
    );
    assert!(with(2, 128).header().is_err());
    // What is behind this page is not here.
    assert!(with(2, 100).records().is_err());
    assert!(with(u64::MAX, 1).header().is_err());
    assert!(with(1, u64::MAX).header().is_err());
    assert!(with(1, u64::MAX / 64 + 1).header().is_err());
}

#[test]
fn several_pages() {
    let mut bytes = vec![0; 2 * 4096];
    bytes[0] = 2;
    bytes[8] = 127;
    for (slot, number) in bytes[16..].chunks_exact_mut(64).zip(0..127) {
        slot.copy_from_slice(FlbRecord::new(&flb(number)).as_bytes());
    }
    // As they would be in pages.
    let mut aligned = vec![0_u64; 1024];
    aligned.as_mut_bytes().copy_from_slice(&bytes);
    let records = records_in(aligned.as_bytes()).unwrap();
    assert_eq!(records.len(), 127);
    assert_eq!(records[126].parse(), Ok(flb(126)));
    assert!(records_in(&aligned.as_bytes()[..4096]).is_err());
    assert!(records_in(&aligned.as_bytes()[..15]).is_err());
    assert!(records_in(&[]).is_err());
}

#[test]
fn records_that_are_none() {
    let parse = |bytes: [u8; 64]| FlbRecord::read_from_bytes(&bytes).unwrap().parse();
    assert_eq!(
        parse([0; 64]).unwrap_err().to_string(),
        "FLB: name is empty"
    );
    assert_eq!(
        parse([0xff; 64]).unwrap_err().to_string(),
        "FLB: name has no end"
    );
    let unused = FlbRecord::new(&Flb { count: 0, ..flb(7) });
    assert_eq!(
        unused.parse().unwrap_err().to_string(),
        "FLB flb-7: no file uses it"
    );
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_page(
        bytes in prop::collection::vec(any::<u8>(), 4096),
        pages in prop_oneof![0_u64..3, any::<u64>()],
        count in prop_oneof![0_u64..200, any::<u64>()],
    ) {
        let mut bytes = bytes;
        bytes[..8].copy_from_slice(&pages.to_ne_bytes());
        bytes[8..16].copy_from_slice(&count.to_ne_bytes());
        let mut page = FlbBlock::read_from_bytes(&bytes[..]).unwrap();
        if let Ok(records) = page.records() {
            prop_assert!(pages > 0 && records.len() as u64 == count && count <= 63);
            for record in records {
                let _ = record.parse().map_err(|error| error.to_string());
            }
        }
        if page.push(&flb(1)).is_ok() {
            prop_assert!(count < 63);
        }
    }
}
