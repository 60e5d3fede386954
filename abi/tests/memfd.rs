// SPDX-License-Identifier: GPL-2.0

//! Both layouts of a memfd: what is accepted and what is not.

mod common;

use common::{
    cases,
    memfd, //
};
use luo_abi::{
    memfd::{
        check_disjoint,
        Extent,
        ExtentCheck,
        ExtentError,
        ExtentKind,
        ExtentRecord,
        FileName,
        FolioCheckV2,
        FolioError,
        FolioFlags,
        FolioV2,
        FoundV2,
        Memfd,
        MemfdError,
        MemfdHeader,
        MemfdV2,
        OpenFlags,
        Overlap,
        Run,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_V2,
        MAX_SIZE,
        SEALS_KNOWN,
        SEAL_EXEC,
        SEAL_FUTURE_WRITE,
        SEAL_GROW,
        SEAL_SEAL,
        SEAL_SHRINK,
        SEAL_WRITE, //
    },
    phys::{
        pages_for,
        PFN_LIMIT, //
    },
    vmalloc::{
        Area,
        VmallocError,
        FLAG_ALLOC, //
    },
    Phys, //
};
use proptest::prelude::*;
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

const PAGE: u64 = 4096;

const FLAGS: FolioFlags = FolioFlags {
    dirty: true,
    uptodate: true,
};

fn phys(addr: u64) -> Phys {
    Phys::new(addr).unwrap()
}

fn reparse(memfd: &Memfd) -> Result<Memfd, MemfdError> {
    MemfdHeader::new(memfd).parse()
}

/// A memfd of `pages` pages with room for as many extents and pages.
fn roomy(pages: u64) -> Memfd {
    Memfd {
        nr_extents: pages,
        nr_pages: pages,
        extents: Phys::new(0x1000),
        ..memfd(pages * PAGE)
    }
}

fn pages(pfn: u64, index: u64, pages: u32) -> Extent {
    Extent {
        start: Phys::from_pfn(pfn).unwrap(),
        index,
        pages,
        kind: ExtentKind::Pages,
    }
}

fn folio(pfn: u64, index: u64, order: u16) -> Extent {
    Extent::folio(Phys::from_pfn(pfn).unwrap(), index, order).unwrap()
}

/// Checks some extents, returns the first error.
fn check(memfd: &Memfd, extents: &[Extent]) -> Result<(), ExtentError> {
    let mut check = ExtentCheck::new(memfd);
    for extent in extents {
        assert_eq!(check.check(&ExtentRecord::new(extent))?, *extent);
    }
    check.finish()
}

/// A record with these fields, whatever they are.
fn record(pfn: u64, index: u64, pages: u32, kind: u16, order: u16) -> ExtentRecord {
    let mut bytes = Vec::new();
    bytes.extend(pfn.to_ne_bytes());
    bytes.extend(index.to_ne_bytes());
    bytes.extend(pages.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(order.to_ne_bytes());
    ExtentRecord::read_from_bytes(&bytes[..]).unwrap()
}

#[test]
fn compatible_strings() {
    assert_eq!(COMPATIBLE_V2, c"memfd-v2");
    assert_eq!(COMPATIBLE_EXTENTS, c"memfd-extents-v3");
}

#[test]
fn open_flags() {
    assert!(OpenFlags::from_bits(0).is_none());
    assert!(OpenFlags::from_bits(OpenFlags::APPEND).is_none());
    assert!(OpenFlags::from_bits((1 << 31) | OpenFlags::READ).is_none());
    let flags = OpenFlags::from_bits(OpenFlags::READ | OpenFlags::APPEND).unwrap();
    assert!(flags.has(OpenFlags::READ));
    assert!(!flags.has(OpenFlags::WRITE));
    assert_eq!(OpenFlags::from_bits(flags.bits()), Some(flags));
}

#[test]
fn an_empty_file() {
    let memfd = Memfd {
        name: None,
        ..memfd(0)
    };
    assert_eq!(reparse(&memfd), Ok(memfd));
    assert_eq!(check(&memfd, &[]), Ok(()));
}

#[test]
fn a_file_with_a_poisoned_page() {
    let memfd = Memfd {
        poisoned: true,
        ..memfd(1)
    };
    assert_eq!(reparse(&memfd), Ok(memfd));
    // Kernels from before there was this flag look for any.
    assert_eq!(MemfdHeader::new(&memfd).as_bytes()[40..44], [2, 0, 0, 0]);
}

#[test]
fn the_longest_name() {
    let memfd = Memfd {
        name: Some(FileName::from_str_bytes(&[b'n'; 255]).unwrap()),
        ..memfd(1)
    };
    assert_eq!(reparse(&memfd), Ok(memfd));
}

#[test]
fn a_name_without_an_end() {
    let mut bytes = MemfdHeader::new(&memfd(1)).as_bytes().to_vec();
    bytes[64..].fill(b'n');
    let header = MemfdHeader::read_from_bytes(&bytes[..]).unwrap();
    assert_eq!(header.parse(), Err(MemfdError::Name));
}

#[test]
fn header_fields_out_of_range() {
    let good = memfd(1);
    let bad = |change: fn(&mut Memfd)| {
        let mut memfd = good;
        change(&mut memfd);
        reparse(&memfd).unwrap_err().to_string()
    };
    assert_eq!(
        bad(|memfd| memfd.size = 1 << 63),
        "memfd size 0x8000000000000000 is too large"
    );
    assert_eq!(
        bad(|memfd| memfd.pos = u64::MAX),
        "memfd position 0xffffffffffffffff is too large"
    );
    assert_eq!(
        bad(|memfd| memfd.seals = 0x40),
        "memfd seals 0x40 are not known"
    );
    assert_eq!(
        bad(|memfd| memfd.mode = 0o100777),
        "memfd mode 0o100777 is not valid"
    );
    assert_eq!(
        bad(|memfd| memfd.uid = u32::MAX),
        "memfd owner 4294967295:0 is not valid"
    );
    assert_eq!(
        bad(|memfd| memfd.gid = u32::MAX),
        "memfd owner 0:4294967295 is not valid"
    );

    let mut bytes = MemfdHeader::new(&good).as_bytes().to_vec();
    bytes[40] = 4;
    let header = MemfdHeader::read_from_bytes(&bytes[..]).unwrap();
    assert_eq!(
        header.parse().unwrap_err().to_string(),
        "memfd flags 0x4 are not known"
    );
    bytes[40] = 0;
    bytes[48] = 0;
    let header = MemfdHeader::read_from_bytes(&bytes[..]).unwrap();
    assert_eq!(header.parse(), Err(MemfdError::Open { open: 0 }));
}

#[test]
fn header_counts_that_contradict_each_other() {
    let at = Phys::new(0x7000);
    for (size, nr_extents, nr_pages, extents) in [
        (PAGE, 1, 1, None),
        (PAGE, 0, 1, at),
        (PAGE, 0, 0, at),
        (PAGE, 1, 0, at),
        (PAGE, 0, 1, None),
        (2 * PAGE, 2, 1, at),
        (PAGE, 2, 2, at),
        (0, 1, 1, at),
        (PAGE, u64::MAX, u64::MAX, at),
    ] {
        let memfd = Memfd {
            nr_extents,
            nr_pages,
            extents,
            ..memfd(size)
        };
        assert!(
            matches!(reparse(&memfd), Err(MemfdError::Count { .. })),
            "{memfd:?}"
        );
    }
    let odd = Memfd {
        extents: Phys::new(0x7008),
        ..roomy(1)
    };
    assert_eq!(
        reparse(&odd),
        Err(MemfdError::Misaligned { at: phys(0x7008) })
    );
    // A folio may be larger than the file.
    let huge = Memfd {
        nr_extents: 1,
        nr_pages: 512,
        extents: at,
        ..memfd(1)
    };
    assert_eq!(reparse(&huge), Ok(huge));
}

#[test]
fn changes_before_the_jump() {
    let mut header = MemfdHeader::new(&memfd(PAGE));
    let read = OpenFlags::from_bits(OpenFlags::READ).unwrap();
    header.set_pos(17);
    header.set_seals(SEAL_SHRINK);
    header.set_open(read);
    header.set_owner(0o600, 1, 2);
    let memfd = header.parse().unwrap();
    assert_eq!((memfd.pos, memfd.seals), (17, SEAL_SHRINK));
    assert_eq!(memfd.open, read);
    assert_eq!((memfd.mode, memfd.uid, memfd.gid), (0o600, 1, 2));
}

#[test]
fn extents_with_holes() {
    let memfd = Memfd {
        nr_extents: 3,
        nr_pages: 1 + 4 + 512,
        extents: Phys::new(0x1000),
        ..memfd(1 << 40)
    };
    let extents = [pages(9, 0, 1), pages(0x500, 1, 4), folio(0x200, 0x400, 9)];
    assert_eq!(check(&memfd, &extents), Ok(()));
    assert_eq!(
        check(&memfd, &extents[..2]).unwrap_err().to_string(),
        "memfd: 2 extents of 5 pages where there should be 3 of 517"
    );
    let more = [extents[0], extents[1], extents[2], pages(1, 0x1000, 1)];
    assert!(matches!(
        check(&memfd, &more),
        Err(ExtentError::Totals { extents: 4, .. })
    ));
    let narrower = [extents[0], pages(0x500, 1, 3), extents[2]];
    assert!(matches!(
        check(&memfd, &narrower),
        Err(ExtentError::Totals { pages: 516, .. })
    ));
    let wider = [pages(1, 0, 518)];
    assert!(matches!(
        check(&memfd, &wider),
        Err(ExtentError::Totals { pages: 518, .. })
    ));
}

#[test]
fn extents_out_of_order() {
    let memfd = roomy(100);
    for (first, second) in [
        (pages(1, 5, 2), pages(9, 6, 1)),
        (pages(1, 5, 2), pages(9, 5, 1)),
        (pages(1, 5, 2), pages(9, 0, 1)),
        (folio(8, 8, 3), pages(1, 15, 1)),
    ] {
        let error = check(&memfd, &[first, second]).unwrap_err();
        assert_eq!(
            error,
            ExtentError::Order {
                index: second.index,
                free_from: first.index + u64::from(first.pages)
            }
        );
    }
    assert_eq!(
        check(&memfd, &[pages(1, 5, 2), pages(9, 6, 1)])
            .unwrap_err()
            .to_string(),
        "memfd extent 0x6 begins before 0x7"
    );
}

#[test]
fn extents_outside_the_file() {
    // Ten pages and a byte are eleven pages.
    let memfd = Memfd {
        size: 10 * PAGE + 1,
        ..roomy(1000)
    };
    let outside = |extent| matches!(check(&memfd, &[extent]), Err(ExtentError::Outside { .. }));
    assert!(!outside(pages(1, 10, 1)));
    assert!(outside(pages(1, 11, 1)));
    assert!(outside(pages(1, 10, 2)));
    assert!(outside(pages(1, u64::MAX, 1)));
    // A folio has to begin in it.
    assert!(!outside(folio(4, 8, 2)));
    assert!(outside(folio(4, 12, 2)));
    assert!(outside(folio(0x400, 0x400, 9)));
}

#[test]
fn extents_of_several_folios() {
    let several = |pages| Extent {
        pages,
        ..folio(0x400, 8, 2)
    };

    // The last folio has to begin in the file.
    assert_eq!(
        check(
            &Memfd {
                nr_extents: 1,
                ..roomy(16)
            },
            &[several(8)]
        ),
        Err(ExtentError::Totals {
            extents: 1,
            pages: 8,
            expected_extents: 1,
            expected_pages: 16
        })
    );
    let check_in = |file, pages: u32| {
        let memfd = Memfd {
            size: file * PAGE,
            nr_extents: 1,
            nr_pages: pages.into(),
            ..roomy(file)
        };
        check(&memfd, &[several(pages)])
    };
    assert_eq!(check_in(16, 8), Ok(()));
    assert_eq!(check_in(13, 8), Ok(()));
    assert!(matches!(check_in(12, 8), Err(ExtentError::Outside { .. })));
    for pages in [6, 9] {
        assert!(matches!(
            check_in(64, pages),
            Err(ExtentError::Kind {
                kind: 2,
                order: 2,
                ..
            })
        ));
    }

    let pieces: Vec<_> = several(12).pieces().collect();
    assert_eq!(
        pieces,
        [folio(0x400, 8, 2), folio(0x404, 12, 2), folio(0x408, 16, 2)]
    );
    assert_eq!(
        pages(5, 1, 3).pieces().collect::<Vec<_>>(),
        [pages(5, 1, 3)]
    );
}

#[test]
fn extents_that_are_none() {
    let parse = |record: ExtentRecord| record.parse().unwrap_err();
    assert!(matches!(
        parse(record(0, 0, 1, 1, 0)),
        ExtentError::Address { .. }
    ));
    assert!(matches!(
        parse(record(PFN_LIMIT, 0, 1, 1, 0)),
        ExtentError::Address { .. }
    ));
    assert!(matches!(
        parse(record(PFN_LIMIT - 1, 0, 2, 1, 0)),
        ExtentError::Address { .. }
    ));
    assert!(matches!(
        parse(record(1, 0, 0, 1, 0)),
        ExtentError::Address { .. }
    ));
    assert!(record(PFN_LIMIT - 1, 0, 1, 1, 0).parse().is_ok());
    for (count, kind, order) in [
        (1, 0, 0),
        (1, 3, 0),
        (1, 1, 1),
        (1, 2, 1),
        (3, 2, 1),
        (1, 2, 19),
        (0, 2, 32),
        (1, 2, 64),
        (1, 2, u16::MAX),
    ] {
        let error = record(0x100, 0, count, kind, order).parse().unwrap_err();
        assert!(
            matches!(
                error,
                ExtentError::Kind { .. } | ExtentError::Address { pages: 0, .. }
            ),
            "{error}"
        );
    }
    for (pfn, index) in [(4, 6), (6, 4), (5, 5)] {
        let error = parse(record(pfn, index, 4, 2, 2));
        assert_eq!(
            error,
            ExtentError::Misaligned {
                index,
                pfn,
                order: 2
            }
        );
    }
    assert!(Extent::folio(phys(0x1000), 0, 19).is_none());
}

#[test]
fn runs_apart() {
    let run = |pfn, pages| Run { pfn, pages };
    assert_eq!(check_disjoint(&mut []), Ok(()));
    assert_eq!(
        check_disjoint(&mut [run(9, 3), run(1, 8), run(12, 1)]),
        Ok(())
    );
    assert_eq!(
        check_disjoint(&mut [run(9, 3), run(1, 9)]),
        Err(Overlap { pfn: 9 })
    );
    assert_eq!(
        check_disjoint(&mut [run(5, 1), run(1, 100), run(200, 1)]),
        Err(Overlap { pfn: 5 })
    );
    assert_eq!(
        check_disjoint(&mut [run(5, 1), run(5, 1)]),
        Err(Overlap { pfn: 5 })
    );
    assert_eq!(
        check_disjoint(&mut [run(PFN_LIMIT - 1, 2)]),
        Err(Overlap { pfn: PFN_LIMIT - 1 })
    );
    assert!(check_disjoint(&mut [run(u64::MAX, u64::MAX)]).is_err());
}

/// A memfd of the C handler with `nr_folios` folios.
fn v2(size: u64, nr_folios: u64) -> FoundV2 {
    FoundV2 {
        pos: 0,
        size,
        seals: 0,
        nr_folios,
        folios: (nr_folios != 0).then(|| Area {
            first: phys(0x5000),
            pages: u32::try_from(pages_for(16 * nr_folios)).unwrap(),
            flags: FLAG_ALLOC,
            order: 0,
        }),
    }
}

#[test]
fn v2_that_is_good() {
    for memfd in [v2(0, 0), v2(5 * PAGE, 0), v2(1, 1), v2(257 * PAGE, 257)] {
        assert_eq!(MemfdV2::new(&memfd).parse(), Ok(memfd));
    }
}

#[test]
fn v2_counts_that_contradict_each_other() {
    let parse = |memfd| MemfdV2::new(&memfd).parse();
    assert!(matches!(
        parse(v2(PAGE, 2)),
        Err(MemfdError::Count {
            count: 2,
            pages: 1,
            ..
        })
    ));
    assert!(matches!(parse(v2(0, 1)), Err(MemfdError::Count { .. })));
    assert!(matches!(
        parse(FoundV2 {
            nr_folios: u64::MAX,
            ..v2(MAX_SIZE, 1)
        }),
        Err(MemfdError::Count { .. })
    ));
    // One folio described by a page too many, or too few for 300 folios.
    for (nr_folios, area_of) in [(1, 257), (300, 256), (1 << 50, 1)] {
        let memfd = FoundV2 {
            nr_folios,
            ..v2(MAX_SIZE, area_of)
        };
        assert!(matches!(
            parse(memfd),
            Err(MemfdError::List(VmallocError::Pages { .. }))
        ));
    }
    let none = FoundV2 {
        folios: None,
        ..v2(PAGE, 1)
    };
    assert_eq!(parse(none), Err(MemfdError::List(VmallocError::NoList)));
}

#[test]
fn v2_fields_out_of_range() {
    let mut memfd = v2(1, 1);
    memfd.size = MAX_SIZE + 1;
    assert!(matches!(
        MemfdV2::new(&memfd).parse(),
        Err(MemfdError::Size { .. })
    ));
    memfd = v2(1, 1);
    memfd.pos = MAX_SIZE + 1;
    assert!(matches!(
        MemfdV2::new(&memfd).parse(),
        Err(MemfdError::Position { .. })
    ));
    memfd = v2(1, 1);
    memfd.seals = !0;
    assert!(matches!(
        MemfdV2::new(&memfd).parse(),
        Err(MemfdError::Seals { .. })
    ));
    let mut bytes = MemfdV2::new(&v2(1, 1)).as_bytes().to_vec();
    bytes[20] = 1;
    assert!(matches!(
        MemfdV2::read_from_bytes(&bytes[..]).unwrap().parse(),
        Err(MemfdError::Flags { .. })
    ));
}

#[test]
fn v2_folios() {
    let mut check = FolioCheckV2::new(&v2(10 * PAGE, 10));
    let folio = |pfn, index| FolioV2::new(pfn, FLAGS, index).unwrap();

    let first = check.check(&folio(9, 0)).unwrap().unwrap();
    assert_eq!((first.start, first.index), (phys(0x9000), 0));
    assert_eq!(first.flags, FLAGS);
    // Two with the same index.
    assert_eq!(
        check.check(&folio(9, 0)),
        Err(FolioError::Order {
            index: 0,
            free_from: 1
        })
    );
    // It turns out to be larger.
    check.restored(&first, 4).unwrap();
    assert!(check.check(&folio(1, 3)).is_err());
    let second = check.check(&folio(1, 5)).unwrap().unwrap();
    assert_eq!(
        check.restored(&second, 4),
        Err(FolioError::Misaligned { index: 5, pages: 4 })
    );
    assert!(check.restored(&second, 0).is_err());
    check.restored(&second, 1).unwrap();
    assert!(check.check(&folio(2, 9)).unwrap().is_some());
    assert_eq!(
        check.check(&folio(3, 10)).unwrap_err().to_string(),
        "folio 0xa is not among the file's 0xa pages"
    );

    // No page means no folio, wherever it claims to be.
    let none = FolioV2::read_from_bytes(&[0; 16]).unwrap();
    assert_eq!(check.check(&none), Ok(None));

    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(1 | (4_u64 << 52)).to_ne_bytes());
    let flags = FolioV2::read_from_bytes(&bytes).unwrap();
    assert_eq!(
        FolioCheckV2::new(&v2(PAGE, 1)).check(&flags),
        Err(FolioError::Flags { index: 0, flags: 4 })
    );
}

#[test]
fn v2_does_not_make_executable() {
    let mode = |seals| FoundV2 { seals, ..v2(0, 0) }.implied_mode();
    assert_eq!(mode(0), 0o777);
    assert_eq!(mode(SEAL_SEAL | SEAL_WRITE), 0o777);
    assert_eq!(mode(SEAL_EXEC), 0o666);
    assert_eq!(mode(SEAL_EXEC | SEAL_WRITE), 0o666);
    assert_eq!(
        mode(SEAL_EXEC | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE),
        0o777
    );
    assert_eq!(SEALS_KNOWN, 0x3f);
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_header(bytes in prop::collection::vec(any::<u8>(), 336), zeroed in 0_usize..8) {
        let mut bytes = bytes;
        // Half of the fields 0, or else nothing gets far.
        for field in 0..8 {
            if field >= zeroed {
                bytes[8 * field..8 * field + 8].fill(0);
            }
        }
        bytes[48] = 3;
        match MemfdHeader::read_from_bytes(&bytes[..]).unwrap().parse() {
            Ok(memfd) => {
                prop_assert_eq!(reparse(&memfd), Ok(memfd));
                prop_assert!(memfd.size <= MAX_SIZE && memfd.mode <= 0o7777);
            }
            Err(error) => prop_assert!(error.to_string().len() < 200),
        }
        if let Err(error) = MemfdV2::read_from_prefix(&bytes).unwrap().0.parse() {
            prop_assert!(error.to_string().len() < 200);
        }
    }

    #[test]
    fn any_extents(
        records in prop::collection::vec(
            (
                prop_oneof![0_u64..64, any::<u64>()],
                prop_oneof![0_u64..64, any::<u64>()],
                prop_oneof![0_u32..16, any::<u32>()],
                prop_oneof![Just(1_u16), Just(2), any::<u16>()],
                prop_oneof![Just(0_u16), 0_u16..4, any::<u16>()],
            ),
            0..8,
        ),
        size in prop_oneof![0..64 * PAGE, 0..=MAX_SIZE],
    ) {
        let memfd = Memfd {
            size,
            nr_extents: 8,
            nr_pages: u64::MAX,
            ..roomy(1)
        };
        let mut check = ExtentCheck::new(&memfd);
        let mut runs = Vec::new();
        let mut end = 0;
        for (pfn, index, pages, kind, order) in records {
            match check.check(&record(pfn, index, pages, kind, order)) {
                Ok(extent) => {
                    prop_assert!(extent.index >= end);
                    prop_assert!(extent.index < pages_for(size));
                    end = extent.index + u64::from(extent.pages);
                    if extent.kind == ExtentKind::Pages {
                        prop_assert!(end <= pages_for(size));
                    }
                    runs.push(extent.run());
                }
                Err(error) => prop_assert!(error.to_string().len() < 200),
            }
        }
        // The check of the runs against the plain one.
        let apart = |a: &Run, b: &Run| a.pfn + a.pages <= b.pfn || b.pfn + b.pages <= a.pfn;
        let expected = runs
            .iter()
            .enumerate()
            .all(|(i, a)| runs[..i].iter().all(|b| apart(a, b)));
        prop_assert_eq!(check_disjoint(&mut runs).is_ok(), expected);
    }

    #[test]
    fn any_folios(
        records in prop::collection::vec(
            (any::<u64>(), prop_oneof![0_u64..64, any::<u64>()], 0_u64..9),
            0..8,
        ),
    ) {
        let mut check = FolioCheckV2::new(&v2(64 * PAGE, 8));
        let mut last = None;
        for (raw, index, pages) in records {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(raw & !(0xffc << 52)).to_ne_bytes());
            bytes[8..].copy_from_slice(&index.to_ne_bytes());
            let record = FolioV2::read_from_bytes(&bytes).unwrap();
            if let Ok(Some(folio)) = check.check(&record) {
                prop_assert!(folio.index < 64 && Some(folio.index) > last);
                last = Some(folio.index);
                if check.restored(&folio, pages).is_ok() {
                    last = Some(folio.index + pages - 1);
                }
            }
        }
    }
}
