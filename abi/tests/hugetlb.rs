// SPDX-License-Identifier: GPL-2.0

//! Memfds of huge pages and their pools: the layouts, and what a reader refuses.

use core::mem::size_of;
use luo_abi::{
    hugetlb::{
        HugeExtentCheck,
        HugetlbHeader,
        HugetlbMemfd,
        ReservedCheck,
        ReservedRange,
        ReservedRecord, //
    },
    hugetlb_pool::{
        Corrupt,
        Handed,
        PoolPage, //
    },
    memfd::{
        Extent,
        ExtentError,
        ExtentKind,
        ExtentRecord,
        MemfdError,
        OpenFlags, //
    },
    Block,
    Name,
    Phys,
    BLOCK_SIZE, //
};
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

mod common;
use common::crc32c;

const HUGE: u64 = 2 << 20;

fn memfd() -> HugetlbMemfd {
    HugetlbMemfd {
        pos: 5,
        size: 9 * HUGE,
        seals: 0x3f,
        open: OpenFlags::from_bits(OpenFlags::READ | OpenFlags::WRITE).unwrap(),
        mode: 0o640,
        uid: 1000,
        gid: 100,
        name: Some(Name::from_str_bytes(b"memfd:guest").unwrap()),
        order: 9,
        nr_extents: 2,
        nr_pages: 3 * 512,
        extents: Phys::new(0x100_000),
        nr_reserved: 1,
        reserved: Phys::new(0x101_000),
        late: Phys::new(0x102_000),
    }
}

fn parsed(memfd: &HugetlbMemfd) -> Result<HugetlbMemfd, MemfdError> {
    HugetlbHeader::new(memfd, crc32c).parse(crc32c)
}

#[test]
fn header() {
    let mut block = Block::new_zeroed();
    *HugetlbHeader::of_mut(&mut block).unwrap() = HugetlbHeader::new(&memfd(), crc32c);
    let bytes = block.as_bytes();
    let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());

    assert_eq!(size_of::<HugetlbHeader>(), 360);
    let numbers = [0, 8, 16, 24, 32, 320, 328, 336, 352].map(number);
    let expected = [5, 9 * HUGE, 2, 1536, 0x100_000, 0x102_000, 0x101_000, 1, 0];
    assert_eq!(numbers, expected);
    let halves = [40, 44, 48, 52, 56, 60, 344].map(half);
    assert_eq!(halves, [1, 0x3f, 3, 0o640, 1000, 100, 9]);
    assert_eq!(&bytes[64..76], b"memfd:guest\0");
    assert_eq!(
        HugetlbHeader::of(&block).unwrap().parse(crc32c),
        Ok(memfd())
    );
}

#[test]
fn nothing_in_it() {
    let empty = HugetlbMemfd {
        size: 0,
        name: None,
        nr_extents: 0,
        nr_pages: 0,
        extents: None,
        nr_reserved: 0,
        reserved: None,
        late: None,
        ..memfd()
    };
    assert_eq!(parsed(&empty), Ok(empty));
}

#[test]
fn each_byte_counts() {
    let header = HugetlbHeader::new(&memfd(), crc32c);
    for at in 0..size_of::<HugetlbHeader>() {
        let mut bytes = header.as_bytes().to_vec();
        bytes[at] ^= 1;
        let corrupt = HugetlbHeader::read_from_bytes(&bytes).unwrap();
        assert_eq!(corrupt.parse(crc32c), Err(MemfdError::Checksum), "{at}");
    }
}

#[test]
fn wrong_headers() {
    let order = |order| parsed(&HugetlbMemfd { order, ..memfd() });
    assert_eq!(order(0), Err(MemfdError::Order { order: 0 }));
    assert_eq!(order(19), Err(MemfdError::Order { order: 19 }));
    assert!(order(18).is_ok());

    let size = 1 << 63;
    assert_eq!(
        parsed(&HugetlbMemfd { size, ..memfd() }),
        Err(MemfdError::Size { size })
    );
    let pos = u64::MAX;
    assert_eq!(
        parsed(&HugetlbMemfd { pos, ..memfd() }),
        Err(MemfdError::Position { pos })
    );
    let seals = 0x40;
    assert_eq!(
        parsed(&HugetlbMemfd { seals, ..memfd() }),
        Err(MemfdError::Seals { seals })
    );
    let uid = u32::MAX;
    assert!(parsed(&HugetlbMemfd { uid, ..memfd() }).is_err());
    let mode = 0o10000;
    assert_eq!(
        parsed(&HugetlbMemfd { mode, ..memfd() }),
        Err(MemfdError::Mode { mode })
    );

    // A list where there is nothing to be listed, or none where there is.
    let count = |memfd| assert!(matches!(parsed(&memfd), Err(MemfdError::Count { .. })));
    count(HugetlbMemfd {
        extents: None,
        ..memfd()
    });
    count(HugetlbMemfd {
        nr_extents: 0,
        ..memfd()
    });
    count(HugetlbMemfd {
        nr_extents: 1 << 40,
        ..memfd()
    });
    count(HugetlbMemfd {
        reserved: None,
        ..memfd()
    });
    count(HugetlbMemfd {
        nr_reserved: 0,
        ..memfd()
    });

    for misaligned in [
        HugetlbMemfd {
            extents: Phys::new(1),
            ..memfd()
        },
        HugetlbMemfd {
            reserved: Phys::new(1),
            ..memfd()
        },
        HugetlbMemfd {
            late: Phys::new(1),
            ..memfd()
        },
    ] {
        let at = Phys::new(1).unwrap();
        assert_eq!(parsed(&misaligned), Err(MemfdError::Misaligned { at }));
    }
}

fn extent(index: u64, order: u16) -> ExtentRecord {
    ExtentRecord::new(&Extent::folio(Phys::new(0x4000_0000).unwrap(), index, order).unwrap())
}

#[test]
fn extents_are_of_its_pages() {
    let mut check = HugeExtentCheck::new(&memfd());
    let first = check.check(&extent(0, 9)).unwrap();
    assert_eq!(first.kind, ExtentKind::Folios { order: 9 });

    for other in [extent(512, 8), extent(1024, 10)] {
        let result = check.clone().check(&other);
        assert!(
            matches!(result, Err(ExtentError::Kind { .. })),
            "{result:?}"
        );
    }
    let page = Extent {
        kind: ExtentKind::Pages,
        pages: 512,
        ..Extent::folio(Phys::new(0x4000_0000).unwrap(), 512, 9).unwrap()
    };
    let result = check.clone().check(&ExtentRecord::new(&page));
    assert!(matches!(result, Err(ExtentError::Kind { .. })));
    let result = check.clone().check(&extent(0, 9));
    assert!(matches!(result, Err(ExtentError::Order { .. })));
    assert!(matches!(check.finish(), Err(ExtentError::Totals { .. })));
}

#[test]
fn reservations() {
    let record = |index, pages| ReservedRecord::new(&ReservedRange { index, pages });
    let two = HugetlbMemfd {
        nr_reserved: 2,
        ..memfd()
    };
    let check = ReservedCheck::new(&two);
    assert_eq!(size_of::<ReservedRecord>(), 16);

    let mut good = check.clone();
    let first = ReservedRange {
        index: 512,
        pages: 1024,
    };
    assert_eq!(good.check(&ReservedRecord::new(&first)), Ok(first));
    assert!(good.check(&record(1536, 512)).is_ok());
    assert!(
        good.clone().check(&record(4096, 512)).is_err(),
        "more than the header says"
    );
    assert_eq!(good.finish(), Ok(()));

    let mut short = check.clone();
    short.check(&record(0, 512)).unwrap();
    assert!(matches!(
        short.finish(),
        Err(MemfdError::Count { count: 1, .. })
    ));

    for (index, pages) in [
        (0, 0),
        (1, 512),
        (512, 1),
        (u64::MAX - 511, 512),
        (1 << 63, 512),
    ] {
        let wrong = MemfdError::Reserved { index, pages };
        assert_eq!(check.clone().check(&record(index, pages)), Err(wrong));
    }
    let mut order = check;
    order.check(&record(1024, 512)).unwrap();
    assert!(order.check(&record(1024, 512)).is_err());
}

fn handed(node: u64) -> Handed {
    Handed {
        at: Phys::from_pfn(0x40000 + node).unwrap(),
        order: if node % 2 == 0 { 9 } else { 18 },
        folios: 3 + node,
    }
}

#[test]
fn pools() {
    let mut page = PoolPage::new_zeroed();
    assert_eq!(size_of::<PoolPage>(), BLOCK_SIZE);
    let read = |page: &PoolPage| -> Result<Vec<Handed>, Corrupt> { page.read(crc32c)?.collect() };

    for count in [0, 1, 3, 170] {
        let all: Vec<_> = (0..count).map(handed).collect();
        page.write(all.iter().copied(), crc32c);
        assert_eq!(read(&page), Ok(all));
    }
    // What there is no place for is left out.
    page.write((0..171).map(handed), crc32c);
    assert_eq!(read(&page).unwrap().len(), 170);

    page.write((0..2).map(handed), crc32c);
    let bytes = page.as_bytes();
    assert_eq!(bytes[..4], 2_u32.to_ne_bytes());
    assert_eq!(bytes[16..24], 0x40000_u64.to_ne_bytes());
    assert_eq!(bytes[24..32], 3_u64.to_ne_bytes());
    assert_eq!(bytes[32..36], 9_u32.to_ne_bytes());
    for at in (0..8).chain(16..16 + 2 * 24) {
        let mut corrupt = PoolPage::read_from_bytes(page.as_bytes()).unwrap();
        corrupt.as_mut_bytes()[at] ^= 1;
        assert_eq!(read(&corrupt), Err(Corrupt), "{at}");
    }
    let wrong = Handed {
        order: 19,
        ..handed(0)
    };
    page.write([wrong].into_iter(), crc32c);
    assert_eq!(read(&page), Err(Corrupt));
}

#[test]
fn late_folios() {
    let memfd = memfd();
    let folio =
        |pfn, index, order| Extent::folio(Phys::from_pfn(pfn).unwrap(), index, order).unwrap();
    let mut extent = folio(0x800, 512, 9);
    extent.pages = 1024;
    let extents = [extent];
    let missing = |folio: Extent| memfd.is_missing(&folio, &extents);

    // In front of the extent, behind it, and as the last one of the file.
    for index in [0, 3 * 512, 8 * 512] {
        assert_eq!(missing(folio(0x4000, index, 9)), Ok(true));
    }
    // As the extent has them.
    assert_eq!(missing(folio(0x800, 512, 9)), Ok(false));
    assert_eq!(missing(folio(0xa00, 1024, 9)), Ok(false));
    for wrong in [
        // Elsewhere: also so low that the extent could not be where it is.
        folio(0x4000, 512, 9),
        folio(0x200, 1024, 9),
        folio(1, 1024, 9),
        // Of another size, between two pages, and beyond the end.
        folio(0x4000, 0, 8),
        folio(0x4000, 0, 10),
        folio(0x4000, 1, 9),
        folio(0x4000, 9 * 512, 9),
        folio(0x4000, u64::MAX - 511, 9),
        folio(0x4000, u64::MAX, 9),
    ] {
        let index = wrong.index;
        assert_eq!(missing(wrong), Err(MemfdError::LateFolio { index }));
    }
    let pages = Extent {
        kind: ExtentKind::Pages,
        ..folio(0x4000, 0, 9)
    };
    assert_eq!(missing(pages), Err(MemfdError::LateFolio { index: 0 }));
}
