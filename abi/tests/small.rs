// SPDX-License-Identifier: GPL-2.0

//! Small memfds: what is accepted and what is not, and the slots they stand in.

use core::mem::size_of;
use luo_abi::{
    memfd::{
        Extent,
        ExtentKind,
        MemfdError,
        OpenFlags, //
    },
    memfd_small::{
        slot_address,
        slot_at,
        Small,
        SmallError,
        SmallPage,
        SmallRecord,
        COMPATIBLE_SMALL,
        SLOTS, //
    },
    Name,
    Phys,
    BLOCK_SIZE, //
};
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

fn phys(addr: u64) -> Phys {
    Phys::new(addr).unwrap()
}

fn small() -> Small {
    Small {
        pos: 7,
        size: 4096,
        seals: 1,
        open: OpenFlags::from_bits(OpenFlags::READ).unwrap(),
        mode: 0o600,
        uid: 1,
        gid: 2,
        name: Some(Name::from_str_bytes(b"memfd:test").unwrap()),
        extent: Some(extent(0, 1, ExtentKind::Pages)),
        poisoned: false,
    }
}

fn extent(index: u64, pages: u32, kind: ExtentKind) -> Extent {
    Extent {
        start: phys(0x20_0000),
        index,
        pages,
        kind,
    }
}

fn reparse(memfd: &Small) -> Result<Small, SmallError> {
    SmallRecord::new(memfd).parse()
}

#[test]
fn sizes_are_those_of_the_layout() {
    assert_eq!(COMPATIBLE_SMALL, c"memfd-small-v3");
    assert_eq!(size_of::<SmallRecord>(), 128);
    assert_eq!(size_of::<SmallPage>(), BLOCK_SIZE);
}

#[test]
fn what_is_written_is_read() {
    let hole = Small {
        extent: None,
        name: None,
        ..small()
    };
    let folio = Small {
        extent: Some(extent(0, 512, ExtentKind::Folios { order: 9 })),
        ..small()
    };
    let poisoned = Small {
        poisoned: true,
        ..small()
    };
    for memfd in [small(), hole, folio, poisoned] {
        assert_eq!(reparse(&memfd), Ok(memfd));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let too_large = Small {
        size: 4097,
        ..small()
    };
    assert_eq!(
        reparse(&too_large),
        Err(MemfdError::Size { size: 4097 }.into())
    );

    let empty = Small { size: 0, ..small() };
    let two_pages = Small {
        extent: Some(extent(0, 2, ExtentKind::Pages)),
        ..small()
    };
    for memfd in [empty, two_pages] {
        assert!(matches!(reparse(&memfd), Err(SmallError::Extent(_))));
    }
    // The index of the page, which version 2 writes.
    let mut second_page = SmallRecord::new(&small());
    second_page.as_mut_bytes()[24] = 1;
    assert!(matches!(second_page.parse(), Err(SmallError::Extent(_))));
}

#[test]
fn no_byte_makes_the_parser_fail() {
    for at in 0..size_of::<SmallRecord>() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut record = SmallRecord::new(&small());
            record.as_mut_bytes()[at] = value;
            // Refused or not, it ends.
            let _ = record.parse().map(|memfd| reparse(&memfd).unwrap());
        }
    }
}

#[test]
fn slots_are_used_until_none_is_left() {
    let mut page = SmallPage::new_zeroed();

    for index in 0..SLOTS {
        assert_eq!(page.add(), Some(index));
    }
    assert_eq!(page.add(), None);

    page.remove(4);
    assert!(page.get(4).is_none() && page.get_mut(4).is_none());
    assert!(page.get(5).is_some() && page.get(SLOTS).is_none());
    assert_eq!(page.add(), Some(4));

    for index in 0..SLOTS + 2 {
        page.remove(index);
    }
    assert_eq!(page.used(), 0);
}

#[test]
fn bits_without_a_slot_mean_nothing() {
    let page = SmallPage::read_from_bytes(&[0xff; BLOCK_SIZE]).unwrap();

    assert_eq!(page.used().count_ones() as usize, SLOTS);
    assert!(page.get(SLOTS).is_none());
}

#[test]
fn addresses_of_slots_are_told_from_others() {
    let page = phys(0x5000);

    for index in 0..SLOTS {
        let address = slot_address(page, index).unwrap();
        assert_eq!(slot_at(address), Some((page, index)));
        assert_eq!(slot_at(address + 1), None);
    }
    // The beginning of a page, and the first page of all.
    for address in [0x5000, 0, 128, u64::MAX] {
        assert_eq!(slot_at(address), None);
    }
}
