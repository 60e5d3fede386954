// SPDX-License-Identifier: GPL-2.0

//! Headers of memfds, of both layouts: what is accepted and what is not.

mod common;

use common::{
    cases,
    memfd, //
};
use luo_abi::{
    memfd::{
        ExtentCheck,
        FileName,
        Memfd,
        MemfdError,
        MemfdHeader,
        MemfdV2,
        OpenFlags,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_V2,
        MAX_SIZE,
        SEAL_SHRINK, //
    },
    Phys, //
};
use proptest::prelude::*;
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

const PAGE: u64 = 4096;

fn phys(addr: u64) -> Phys {
    Phys::new(addr).unwrap()
}

fn reparse(memfd: &Memfd) -> Result<Memfd, MemfdError> {
    MemfdHeader::new(memfd).parse()
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
    assert_eq!(ExtentCheck::new(&memfd).finish(), Ok(()));
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
        nr_extents: 1,
        nr_pages: 1,
        extents: Phys::new(0x7008),
        ..memfd(PAGE)
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
}
