// SPDX-License-Identifier: GPL-2.0

//! Extents of a memfd: what is accepted and what is not.

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
        Memfd,
        Overlap,
        Run,
        MAX_SIZE, //
    },
    phys::{
        pages_for,
        PFN_LIMIT, //
    },
    Phys, //
};
use proptest::prelude::*;
use zerocopy::FromBytes;

const PAGE: u64 = 4096;

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
    assert!(Extent::folio(Phys::from_pfn(1).unwrap(), 0, 19).is_none());
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

proptest! {
    #![proptest_config(cases(512))]

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
}
