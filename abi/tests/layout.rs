// SPDX-License-Identifier: GPL-2.0

//! Byte for byte: sizes and offsets that other kernels rely on.

mod common;

use std::mem::{
    align_of,
    size_of, //
};

use common::{
    compatible,
    memfd,
    session_name, //
};
use luo_abi::{
    block::{
        Block,
        Record, //
    },
    flb::{
        Flb,
        FlbBlock,
        FlbRecord, //
    },
    memfd::{
        Extent,
        ExtentKind,
        ExtentRecord,
        FolioFlags,
        FolioV2,
        FoundV2,
        MemfdHeader,
        MemfdV2, //
    },
    memfd_v2::FOLIOS_PER_PAGE,
    root::{
        LuoSerV5,
        Root, //
    },
    session::{
        File,
        FileRecord,
        Session,
        SessionRecord, //
    },
    vmalloc::{
        Area,
        Chunk,
        Vmalloc,
        CHUNK_CAPACITY, //
    },
    Phys,
    BLOCK_SIZE, //
};
use zerocopy::{
    FromZeros,
    IntoBytes, //
};

/// A number that no other field has.
const A: u64 = 0x1122_3344_5566_7000;
const B: u64 = 0x99aa_bbcc_ddee_f000;

fn phys(addr: u64) -> Phys {
    Phys::new(addr).unwrap()
}

fn at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn at32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn at16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

#[test]
fn sizes() {
    assert_eq!(BLOCK_SIZE, 4096);
    assert_eq!(size_of::<Block>(), 4096);
    assert_eq!(size_of::<SessionRecord>(), 80);
    assert_eq!(size_of::<FileRecord>(), 64);
    assert_eq!(size_of::<FlbRecord>(), 64);
    assert_eq!(size_of::<FlbBlock>(), 4096);
    assert_eq!(size_of::<LuoSerV5>(), 32);
    assert_eq!(size_of::<MemfdV2>(), 48);
    assert_eq!(size_of::<FolioV2>(), 16);
    assert_eq!(size_of::<Vmalloc>(), 16);
    assert_eq!(size_of::<Chunk>(), 4096);
    assert_eq!(size_of::<MemfdHeader>(), 336);
    assert_eq!(size_of::<ExtentRecord>(), 24);
    // Records must be aligned where they stand: behind 16 bytes of a page.
    assert!(align_of::<Block>() <= 8);
    assert!(align_of::<SessionRecord>() <= 8);
}

#[test]
fn capacities() {
    assert_eq!(Block::capacity::<SessionRecord>(), 51);
    assert_eq!(Block::capacity::<FileRecord>(), 63);
    assert_eq!(Block::capacity::<ExtentRecord>(), 170);
    assert_eq!(FlbBlock::CAPACITY, 63);
    assert_eq!(CHUNK_CAPACITY, 511);
    assert_eq!(FOLIOS_PER_PAGE, 256);
    assert_eq!(SessionRecord::KIND, "session");
}

#[test]
fn block() {
    let mut block = Block::new_zeroed();
    block.set_next(Some(phys(A)));
    for token in 0..3 {
        let file = FileRecord::new(&File {
            compatible: compatible("memfd-v2"),
            data: A,
            token,
        });
        assert_eq!(block.push(&file), Ok(token as usize));
    }
    let bytes = block.as_bytes();
    assert_eq!(at(bytes, 0), A);
    assert_eq!(at(bytes, 8), 3);
    for token in 0..3 {
        let record = 16 + 64 * token;
        assert_eq!(bytes[record..record + 9], *b"memfd-v2\0");
        assert_eq!(at(bytes, record + 48), A);
        assert_eq!(at(bytes, record + 56), token as u64);
    }
    assert!(bytes[16 + 3 * 64..].iter().all(|byte| *byte == 0));
}

#[test]
fn session() {
    let record = SessionRecord::new(&Session {
        name: session_name("systemd"),
        files: Some(phys(A)),
        count: 7,
    });
    let bytes = record.as_bytes();
    assert_eq!(bytes[..8], *b"systemd\0");
    assert_eq!(at(bytes, 64), A);
    assert_eq!(at(bytes, 72), 7);
}

#[test]
fn flb() {
    let mut page = FlbBlock::new_zeroed();
    page.clear();
    page.push(&Flb {
        name: compatible("iommu-v1"),
        data: A,
        count: 2,
    })
    .unwrap();
    let bytes = page.as_bytes();
    assert_eq!(at(bytes, 0), 1);
    assert_eq!(at(bytes, 8), 1);
    assert_eq!(bytes[16..25], *b"iommu-v1\0");
    assert_eq!(at(bytes, 64), A);
    assert_eq!(at(bytes, 72), 2);
}

#[test]
fn root_v5() {
    let root = Root {
        number: 5,
        sessions: Some(phys(A)),
        flbs: Some(phys(B)),
    };
    let ser = root.to_v5();
    let bytes = ser.as_bytes();
    assert_eq!(bytes[..8], *b"luo-v5\0\0");
    assert_eq!(at(bytes, 8), 5);
    assert_eq!(at(bytes, 16), A);
    assert_eq!(at(bytes, 24), B);
}

#[test]
fn memfd_v2() {
    let ser = MemfdV2::new(&FoundV2 {
        pos: 1,
        size: 2,
        seals: 3,
        nr_folios: 4,
        folios: Some(Area {
            first: phys(A),
            pages: 6,
            flags: 7,
            order: 8,
        }),
    });
    let bytes = ser.as_bytes();
    assert_eq!(at(bytes, 0), 1);
    assert_eq!(at(bytes, 8), 2);
    assert_eq!(at32(bytes, 16), 3);
    assert_eq!(at32(bytes, 20), 0);
    assert_eq!(at(bytes, 24), 4);
    assert_eq!(at(bytes, 32), A);
    assert_eq!(at32(bytes, 40), 6);
    assert_eq!(at16(bytes, 44), 7);
    assert_eq!(at16(bytes, 46), 8);
}

#[test]
fn folio_v2() {
    let flags = FolioFlags {
        dirty: true,
        uptodate: true,
    };
    let folio = FolioV2::new(0x123, flags, 9).unwrap();
    // The page number in the low 52 bits, the flags above.
    assert_eq!(at(folio.as_bytes(), 0), 0x123 | (3 << 52));
    assert_eq!(at(folio.as_bytes(), 8), 9);
    assert_eq!((folio.pfn(), folio.flags(), folio.index()), (0x123, 3, 9));

    let dirty = FolioFlags {
        dirty: true,
        uptodate: false,
    };
    assert_eq!(FolioV2::new(1, dirty, 0).unwrap().flags(), 1);
    assert!(FolioV2::new(0, dirty, 0).is_none());
    assert!(FolioV2::new(1 << 52, dirty, 0).is_none());
}

#[test]
fn memfd_extents() {
    let mut memfd = memfd(2);
    memfd.pos = 1;
    memfd.seals = 8;
    memfd.mode = 0o640;
    memfd.uid = 1000;
    memfd.gid = 1001;
    memfd.nr_extents = 3;
    memfd.nr_pages = 4;
    memfd.extents = Some(phys(A));
    let header = MemfdHeader::new(&memfd);
    let bytes = header.as_bytes();
    assert_eq!(at(bytes, 0), 1);
    assert_eq!(at(bytes, 8), 2);
    assert_eq!(at(bytes, 16), 3);
    assert_eq!(at(bytes, 24), 4);
    assert_eq!(at(bytes, 32), A);
    assert_eq!(at32(bytes, 40), 0);
    assert_eq!(at32(bytes, 44), 8);
    assert_eq!(at32(bytes, 48), 3);
    assert_eq!(at32(bytes, 52), 0o640);
    assert_eq!(at32(bytes, 56), 1000);
    assert_eq!(at32(bytes, 60), 1001);
    assert_eq!(bytes[64..75], *b"memfd:test\0");
}

#[test]
fn extent() {
    let record = ExtentRecord::new(&Extent::folio(phys(0x20_0000), 0x600, 9).unwrap());
    let bytes = record.as_bytes();
    assert_eq!(at(bytes, 0), 0x200);
    assert_eq!(at(bytes, 8), 0x600);
    assert_eq!(at32(bytes, 16), 512);
    assert_eq!(at16(bytes, 20), 2);
    assert_eq!(at16(bytes, 22), 9);

    let record = ExtentRecord::new(&Extent {
        start: phys(0x1000),
        index: 0,
        pages: 77,
        kind: ExtentKind::Pages,
    });
    let bytes = record.as_bytes();
    assert_eq!(at32(bytes, 16), 77);
    assert_eq!(at16(bytes, 20), 1);
    assert_eq!(at16(bytes, 22), 0);
}
