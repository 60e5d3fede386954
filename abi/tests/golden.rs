// SPDX-License-Identifier: GPL-2.0

//! The golden files: what was left in each format that is read, as files; see `golden/README`.
//!
//! A format whose name has not changed must still be written like that, and be read as what is said
//! here. A test that fails here is seldom wrong: the layout needs another version then. The formats are in
//! one file, as they are made of the same pieces.

mod common;
#[path = "common/fdt.rs"]
mod tree;

use common::{
    compatible,
    crc32c,
    emit,
    emit_checks,
    memfd,
    read_checked,
    session_name,
    Content,
    Image,
    PhysMem,
    Shared,
    Spans, //
};
use fdt::Fdt;
use luo_abi::{
    block::Block,
    chain::{
        walk,
        walk_summed, //
    },
    hugetlb::{
        HugeExtentCheck,
        HugetlbHeader,
        HugetlbMemfd,
        ReservedCheck,
        ReservedRange,
        ReservedRecord,
        COMPATIBLE_HUGETLB, //
    },
    hugetlb_pool::{
        Handed,
        PoolPage,
        COMPATIBLE_POOL, //
    },
    memfd::{
        Extent,
        ExtentCheck,
        ExtentKind,
        ExtentRecord,
        Memfd,
        MemfdHeader,
        OpenFlags,
        SummedExtentRecord,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_EXTENTS_V1,
        COMPATIBLE_EXTENTS_V2, //
    },
    memfd_late::{
        record_word,
        Late,
        LatePage,
        LateRecord,
        FILES_WORD,
        MAGIC, //
    },
    memfd_small::{
        slot_address,
        slot_at,
        Small,
        SmallPage,
        SmallRecord,
        COMPATIBLE_SMALL,
        COMPATIBLE_SMALL_V1,
        COMPATIBLE_SMALL_V2, //
    },
    root::{
        Extras,
        Root,
        RootChecks, //
    },
    stamp::{
        PhaseTimes,
        Stamp, //
    },
    subsystem::{
        Subsystem,
        Subsystems, //
    },
    Name,
    Phys, //
};
use std::{
    env,
    fs::{
        self,
        OpenOptions, //
    },
    io::Write,
    path::PathBuf, //
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

/// The pages of a handover, and the address from which it is read.
struct Golden {
    start: u64,
    mem: PhysMem,
}

impl Golden {
    /// The file: the start, then each page as its address, the number of bytes up to the last one
    /// that is not 0, and these bytes. All numbers have 64 bits.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.start.to_le_bytes().to_vec();

        for (at, page) in &self.mem.pages {
            let page = page.as_bytes();
            let used = page
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            bytes.extend(at.to_le_bytes());
            bytes.extend((used as u64).to_le_bytes());
            bytes.extend(&page[..used]);
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let (start, mut rest) = (number(bytes), &bytes[8..]);
        let mut mem = PhysMem::default();

        while !rest.is_empty() {
            let used = usize::try_from(number(&rest[8..])).unwrap();
            let mut page = Box::new([0; 4096]);
            page[..used].copy_from_slice(&rest[16..16 + used]);
            let block = Block::read_from_bytes(&*page).unwrap();
            mem.pages.insert(number(rest), Box::new(block));
            rest = &rest[16 + used..];
        }
        Self { start, mem }
    }

    fn at(&self) -> Phys {
        Phys::new(self.start).unwrap()
    }
}

/// What writes a golden file.
type Writer = fn() -> Golden;

/// All golden files, with what writes them.
const ALL: [(&str, Writer); 12] = [
    ("root-luo-v1", root_fdt),
    ("root-luo-v5", root_v5),
    ("memfd-extents-v1", || extents(1)),
    ("memfd-extents-v2", || extents(2)),
    ("memfd-extents-v3", || extents(3)),
    ("memfd-small-v1", || small(1)),
    ("memfd-small-v2", || small(2)),
    ("memfd-small-v3", || small(3)),
    ("memfd-v2", memfd_v2),
    ("memfd-late", late),
    ("hugetlb-memfd-v1", hugetlb),
    ("hugetlb-pool-v1", pool),
];

fn path(name: &str) -> PathBuf {
    // Not that of the build, which may have been another clone's.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    root.join(format!("tests/golden/{name}.bin"))
}

fn file(name: &str) -> Golden {
    Golden::from_bytes(&fs::read(path(name)).unwrap())
}

/// Writes the golden files that are not there. One that is there stays as it is.
#[test]
#[ignore = "writes files"]
fn regenerate() {
    for (name, write) in ALL {
        let open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path(name));
        match open {
            Ok(mut file) => file.write_all(&write().to_bytes()).unwrap(),
            Err(error) => println!("{name} stays as it is: {error}"),
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn all_is_written_as_it_was() {
    for (name, write) in ALL {
        let there = fs::read(path(name)).unwrap();
        assert!(there == write().to_bytes(), "{name} is written otherwise");
    }
    let there = fs::read_dir(path("x").parent().unwrap()).unwrap();
    let binary = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".bin");
    let count = there
        .map(|entry| entry.unwrap().file_name())
        .filter(binary)
        .count();
    assert_eq!(count, ALL.len(), "a golden file that nobody reads");
}

/// Two blocks of sessions, files of each kind, FLBs.
fn image() -> Image {
    let mut image = Image {
        number: 7,
        ..Image::default()
    };
    for number in 0..52 {
        image
            .sessions
            .insert(session_name(&format!("session {number:02}")), [].into());
    }
    let files = [
        (0, Content::Other(compatible("other-v1"), 0x1234)),
        (u64::MAX, Content::V2(1, 8192, 2, vec![(0, 1), (1, 1)])),
    ];
    image.sessions.insert(session_name("files"), files.into());
    image.flbs.insert(compatible("one-v1"), (0x10, 1));
    image.flbs.insert(compatible("two-v1"), (0x20, 2));
    image
}

const STAMP: Stamp = Stamp {
    cycles: 1,
    khz: 2,
    seconds: 3,
};
const TIMES: PhaseTimes = PhaseTimes {
    freeze: 4,
    serialize: 5,
};

fn subsystems() -> [Subsystem; 2] {
    ["alpha-v1", "beta-v3"].map(|name| Subsystem {
        name: compatible(name),
        data: name.len() as u64,
    })
}

fn root_fdt() -> Golden {
    let mut mem = PhysMem::default();
    let root = emit(&mut image(), &mut mem, usize::MAX);
    let spans = emit_checks(&root, &mut mem);
    let mut writer = tree::Writer::new();
    let extras = Extras {
        stamp: Some(STAMP),
        times: Some(TIMES),
        subsystems: &subsystems(),
    };
    root.write_tree(&mut writer, Some(&spans.of_root()), &extras, crc32c)
        .unwrap();
    let blob = writer.finish();
    let at = mem.page();
    mem.bytes(at)[..blob.len()].copy_from_slice(&blob);
    Golden {
        start: at.get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn root_luo_v1() {
    let golden = file("root-luo-v1");
    let page = golden.mem.pages[&golden.start].as_bytes();
    let tree = tree::Reader(Fdt::new(page).unwrap());

    let root = Root::from_tree(&tree).unwrap();
    let checks = RootChecks::from_tree(&tree, &root, crc32c)
        .unwrap()
        .unwrap();
    let spans = Spans {
        sessions: checks.sessions,
        flbs: checks.flbs,
        pages: checks.pages.to_vec(),
    };
    assert_eq!(Stamp::from_tree(&tree), Some(STAMP));
    assert_eq!(PhaseTimes::from_tree(&tree), Some(TIMES));
    let found = Subsystems::from_tree(&tree, crc32c).unwrap();
    assert!(found.iter().eq(&subsystems()));
    assert_image(&root, Some(&spans), golden.mem);
}

fn assert_image(root: &Root, spans: Option<&Spans>, mut mem: PhysMem) {
    // The content of the memfd, which is in no golden file.
    let mut expected = image();
    let mut again = PhysMem::default();
    emit(&mut expected, &mut again, usize::MAX);
    mem.data = again.data;

    let (found, wrong) = read_checked(root, spans, &mem);
    assert_eq!((found, wrong), (expected, vec![]));
}

fn root_v5() -> Golden {
    let mut mem = PhysMem::default();
    let root = emit(&mut image(), &mut mem, usize::MAX);
    let at = mem.page();
    let root = root.to_v5();
    mem.bytes(at)[..root.as_bytes().len()].copy_from_slice(root.as_bytes());
    Golden {
        start: at.get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn root_luo_v5() {
    let golden = file("root-luo-v5");
    let root = Root::from_v5(golden.mem.pages[&golden.start].as_bytes()).unwrap();

    assert_image(&root, None, golden.mem);
}

/// A file of each of the known kinds of extents, as far as the version has them.
fn description(version: u32, extents: &[Extent]) -> Memfd {
    Memfd {
        pos: 5,
        seals: 0x3f,
        open: OpenFlags::from_bits(OpenFlags::READ | OpenFlags::APPEND).unwrap(),
        mode: 0o640,
        uid: 1000,
        gid: 100,
        nr_extents: extents.len() as u64,
        nr_pages: extents.iter().map(|extent| u64::from(extent.pages)).sum(),
        late: Phys::new(0x8000_0000).filter(|_| version > 1),
        poisoned: version > 1,
        extents: Phys::new(0x100_000),
        ..memfd(0x40_0001)
    }
}

fn list(version: u32) -> Vec<Extent> {
    // More than a block of them.
    let page = |number: u64| Extent {
        start: Phys::from_pfn(0x1000 + 3 * number).unwrap(),
        index: 2 * number,
        pages: 1,
        kind: ExtentKind::Pages,
    };
    let mut list: Vec<_> = (0..171).map(page).collect();
    let start = Phys::from_pfn(0x4000).unwrap();
    list.push(Extent {
        pages: if version == 1 { 512 } else { 1024 },
        ..Extent::folio(start, 512, 9).unwrap()
    });
    // The last one reaches beyond the end.
    list
}

fn extents(version: u32) -> Golden {
    let (mut mem, list) = (PhysMem::default(), list(version));
    let record = |extent: &Extent| SummedExtentRecord(ExtentRecord::new(extent));
    let records: Vec<_> = list.iter().map(record).collect();
    let mut next = common::emit_chain(&mut mem, &records, usize::MAX);
    let mut header = MemfdHeader::new(&description(version, &list));

    if version > 2 {
        header = header.summed(crc32c);
        while let Some(at) = next {
            mem.block(at).set_sum::<SummedExtentRecord>(crc32c);
            next = mem.block(at).next();
        }
    }
    let at = mem.page();
    *MemfdHeader::of_mut(mem.block(at)).unwrap() = header;
    Golden {
        start: at.get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn memfd_extents() {
    let names = [
        COMPATIBLE_EXTENTS_V1,
        COMPATIBLE_EXTENTS_V2,
        COMPATIBLE_EXTENTS,
    ];
    for (version, name) in (1..).zip(names) {
        let golden = file(name.to_str().unwrap());
        let mem = Shared(&golden.mem);
        let header = MemfdHeader::of(&golden.mem.pages[&golden.start]).unwrap();
        assert_eq!(header.verify(crc32c).is_ok(), version > 2);
        let memfd = header.parse().unwrap();
        assert_eq!(memfd, description(version, &list(version)));

        let mut check = ExtentCheck::new(&memfd);
        let mut found = Vec::new();
        let mut visit = |record: &ExtentRecord| {
            found.push(check.check(record).unwrap());
            Ok(())
        };
        match version {
            1 | 2 => walk(&mem, memfd.extents, 2, |_, record| visit(record)),
            _ => walk_summed(
                &mem,
                memfd.extents,
                2,
                crc32c,
                |_, r: &SummedExtentRecord| visit(&r.0),
            ),
        }
        .unwrap();
        check.finish().unwrap();
        assert_eq!(found, list(version));
    }
}

/// The files of a page of slots: one with content, and a hole.
fn smalls(version: u32) -> [Small; 2] {
    let page = Small {
        pos: 9,
        size: 4096,
        seals: 1,
        open: OpenFlags::from_bits(OpenFlags::READ | OpenFlags::WRITE).unwrap(),
        mode: 0o755,
        uid: 3,
        gid: 4,
        name: Some(Name::from_str_bytes(b"memfd:small").unwrap()),
        extent: Some(Extent {
            start: Phys::new(0x7000_0000).unwrap(),
            index: 0,
            pages: 1,
            kind: ExtentKind::Pages,
        }),
        poisoned: version > 1,
    };
    let hole = Small {
        name: None,
        extent: None,
        poisoned: false,
        ..page
    };
    [page, hole]
}

fn small(version: u32) -> Golden {
    let mut mem = PhysMem::default();
    let at = mem.page();
    let page = SmallPage::mut_from_bytes(mem.bytes(at)).unwrap();
    for memfd in smalls(version) {
        let record = SmallRecord::new(&memfd);
        let index = page.add().unwrap();
        *page.get_mut(index).unwrap() = match version {
            1 | 2 => record,
            _ => record.summed(crc32c),
        };
    }
    if version > 1 {
        page.set_late(Phys::new(0x8000_0000).unwrap());
    }
    if version > 2 {
        page.set_sum(crc32c);
    }
    Golden {
        start: slot_address(at, 0).unwrap(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn memfd_small() {
    let names = [COMPATIBLE_SMALL_V1, COMPATIBLE_SMALL_V2, COMPATIBLE_SMALL];
    for (version, name) in (1..).zip(names) {
        let golden = file(name.to_str().unwrap());
        let (at, first) = slot_at(golden.start).unwrap();
        let page = SmallPage::ref_from_bytes(golden.mem.pages[&at.get()].as_bytes()).unwrap();
        assert_eq!((first, page.used()), (0, 3));
        assert_eq!(
            page.late().map(Phys::get),
            [None, Some(0x8000_0000)][usize::from(version > 1)]
        );
        assert_eq!(page.sum_matches(crc32c), version > 2);

        for (index, expected) in smalls(version).iter().enumerate() {
            let record = *page.get(index).unwrap();
            let record = match version {
                1 | 2 => record,
                _ => record.verified(crc32c).unwrap(),
            };
            assert_eq!(record.parse().as_ref(), Ok(expected));
        }
    }
}

const FOLIOS: [(u64, u64); 3] = [(0, 1), (2, 2), (5, 1)];

fn memfd_v2() -> Golden {
    let mut mem = PhysMem::default();
    let content = Content::V2(3, 6 * 4096, 0x3f, FOLIOS.to_vec());
    let mut image = Image::default();
    image
        .sessions
        .insert(session_name("s"), [(1, content)].into());
    let root = emit(&mut image, &mut mem, usize::MAX);
    Golden {
        start: root.sessions.unwrap().get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn memfd_v2_of_the_c_handler() {
    let mut golden = file("memfd-v2");
    let root = Root {
        number: 1,
        sessions: Some(golden.at()),
        flbs: None,
    };
    golden.mem.data = memfd_v2().mem.data;

    let (found, wrong) = read_checked(&root, None, &golden.mem);
    assert!(wrong.is_empty(), "{wrong:?}");
    let files = &found.sessions[&session_name("s")];
    assert_eq!(files[&1], Content::V2(3, 6 * 4096, 0x3f, FOLIOS.to_vec()));
}

fn lates() -> [Late; 2] {
    let start = Phys::new(0x4000_0000).unwrap();
    let page = Extent {
        start,
        index: 1,
        pages: 1,
        kind: ExtentKind::Pages,
    };
    let folio = Extent::folio(start, 512, 9).unwrap();
    [(0x5000, page), (0x6080, folio)].map(|(file, extent)| Late { file, extent })
}

fn late() -> Golden {
    let mut mem = PhysMem::default();
    let at = mem.page();
    let mut set = |word: usize, value: u64| {
        mem.bytes(at)[8 * word..][..8].copy_from_slice(&value.to_ne_bytes());
    };
    set(0, MAGIC);
    set(FILES_WORD, 2);
    for (index, late) in lates().iter().enumerate() {
        // Place 1 was given up.
        let first = record_word(2 * index).unwrap();
        for (word, value) in (first..).zip(LateRecord::new(late, crc32c).words()) {
            set(word, value);
        }
    }
    Golden {
        start: at.get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn memfd_late() {
    let golden = file("memfd-late");
    let page = golden.mem.pages[&golden.start].as_bytes();
    let page = LatePage::ref_from_bytes(page).unwrap();

    assert_eq!((page.next(), page.files()), (Ok(None), 2));
    let records = page.records().iter();
    let found: Vec<_> = records.filter_map(|r| r.parse(crc32c).unwrap()).collect();
    assert_eq!(found, lates());
}

/// More than a block of each.
fn huge_lists() -> (Vec<Extent>, Vec<ReservedRange>) {
    let extent = |number: u64| {
        let start = Phys::from_pfn(0x10_0000 + 0x400 * number).unwrap();
        Extent::folio(start, 0x400 * number, 9).unwrap()
    };
    let range = |number: u64| ReservedRange {
        index: 0x400 * number + 0x200,
        pages: 0x200,
    };
    let mut extents: Vec<_> = (0..171).map(extent).collect();
    extents[170].pages = 1024;
    (extents, (0..256).map(range).collect())
}

fn huge_memfd() -> HugetlbMemfd {
    let plain = memfd(300 << 22);
    let (extents, reserved) = huge_lists();

    HugetlbMemfd {
        pos: 5,
        size: plain.size,
        seals: 0x3f,
        open: OpenFlags::from_bits(OpenFlags::READ | OpenFlags::APPEND).unwrap(),
        mode: 0o640,
        uid: 1000,
        gid: 100,
        name: plain.name,
        order: 9,
        nr_extents: extents.len() as u64,
        nr_pages: 172 * 512,
        extents: Phys::new(0x100_000),
        nr_reserved: reserved.len() as u64,
        reserved: Phys::new(0x104_000),
        late: Phys::new(0x8000_0000),
    }
}

fn hugetlb() -> Golden {
    let (mut mem, (extents, reserved)) = (PhysMem::default(), huge_lists());
    let record = |extent: &Extent| SummedExtentRecord(ExtentRecord::new(extent));
    let extents: Vec<_> = extents.iter().map(record).collect();
    let reserved: Vec<_> = reserved.iter().map(ReservedRecord::new).collect();

    let mut next = common::emit_chain(&mut mem, &extents, usize::MAX);
    while let Some(at) = next {
        mem.block(at).set_sum::<SummedExtentRecord>(crc32c);
        next = mem.block(at).next();
    }
    let mut next = common::emit_chain(&mut mem, &reserved, usize::MAX);
    while let Some(at) = next {
        mem.block(at).set_sum::<ReservedRecord>(crc32c);
        next = mem.block(at).next();
    }
    let at = mem.page();
    *HugetlbHeader::of_mut(mem.block(at)).unwrap() = HugetlbHeader::new(&huge_memfd(), crc32c);
    Golden {
        start: at.get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn hugetlb_memfd() {
    let golden = file(COMPATIBLE_HUGETLB.to_str().unwrap());
    let mem = Shared(&golden.mem);
    let header = HugetlbHeader::of(&golden.mem.pages[&golden.start]).unwrap();
    let memfd = header.parse(crc32c).unwrap();
    assert_eq!(memfd, huge_memfd());

    let mut check = HugeExtentCheck::new(&memfd);
    let mut extents = Vec::new();
    walk_summed(
        &mem,
        memfd.extents,
        2,
        crc32c,
        |_, r: &SummedExtentRecord| {
            extents.push(check.check(&r.0).unwrap());
            Ok(())
        },
    )
    .unwrap();
    check.finish().unwrap();
    let mut check = ReservedCheck::new(&memfd);
    let mut reserved = Vec::new();
    walk_summed(&mem, memfd.reserved, 2, crc32c, |_, r: &ReservedRecord| {
        reserved.push(check.check(r).unwrap());
        Ok(())
    })
    .unwrap();
    check.finish().unwrap();
    assert_eq!((extents, reserved), huge_lists());
}

fn handed() -> [Handed; 2] {
    [(0x4000_0000, 9, 5), (0x1_0000_0000, 18, 2)].map(|(at, order, folios)| Handed {
        at: Phys::new(at).unwrap(),
        order,
        folios,
    })
}

fn pool() -> Golden {
    let mut mem = PhysMem::default();
    let at = mem.page();
    let page = PoolPage::mut_from_bytes(mem.bytes(at)).unwrap();

    page.write(handed().into_iter(), crc32c);
    Golden {
        start: at.get(),
        mem,
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn hugetlb_pool() {
    let golden = file(COMPATIBLE_POOL.to_str().unwrap());
    let page = PoolPage::ref_from_bytes(golden.mem.pages[&golden.start].as_bytes()).unwrap();

    let found: Result<Vec<_>, _> = page.read(crc32c).unwrap().collect();
    assert_eq!(found.unwrap(), handed());
}
