// SPDX-License-Identifier: GPL-2.0

//! The layout of the C handler: what is accepted and what is not.

mod common;

use common::cases;
use luo_abi::{
    memfd::{
        FolioCheckV2,
        FolioError,
        FolioFlags,
        FolioV2,
        FoundV2,
        MemfdError,
        MemfdV2,
        MAX_SIZE,
        SEALS_KNOWN,
        SEAL_EXEC,
        SEAL_FUTURE_WRITE,
        SEAL_GROW,
        SEAL_SEAL,
        SEAL_SHRINK,
        SEAL_WRITE, //
    },
    phys::pages_for,
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
