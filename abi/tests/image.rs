// SPDX-License-Identifier: GPL-2.0

//! Whole handovers: what was emitted is read, and corruption costs no more than it has to.

mod common;

use std::{
    collections::BTreeMap,
    ffi::CStr, //
};

use common::{
    cases,
    compatible,
    crc32c,
    emit,
    memfd,
    read,
    session_name,
    Content,
    Image,
    MapTree,
    PhysMem, //
};
use luo_abi::{
    memfd::{
        Extent,
        ExtentKind,
        OpenFlags,
        SummedExtentRecord,
        COMPATIBLE_EXTENTS,
        SEALS_KNOWN, //
    },
    name::SessionName,
    root::{
        Extras,
        Root, //
    },
    Phys, //
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;

/// Where an extent is before [`emit`] says so.
fn somewhere() -> Phys {
    Phys::new(PAGE).unwrap()
}

/// A file of `memfd-extents-v3`: extents as pairs of a hole and a length, or of an order.
fn any_extents() -> impl Strategy<Value = Content> {
    (
        prop::collection::vec((0_u64..5, 1_u32..5, prop::option::of(0_u16..4)), 0..12),
        (0_u64..PAGE, any::<u32>(), any::<u32>(), 0_u32..1000),
    )
        .prop_map(|(parts, (rest, seals, mode, owner))| {
            let mut index = 0;
            let mut extents = Vec::new();
            for (hole, pages, order) in parts {
                index += hole;
                let extent = match order {
                    None => Extent {
                        start: somewhere(),
                        index,
                        pages,
                        kind: ExtentKind::Pages,
                    },
                    Some(order) => {
                        index = index.next_multiple_of(1 << order);
                        Extent::folio(somewhere(), index, order).unwrap()
                    }
                };
                index += u64::from(extent.pages);
                extents.push(extent);
            }
            let mut memfd = memfd(index * PAGE + rest);
            memfd.pos = rest;
            memfd.seals = seals & SEALS_KNOWN;
            memfd.mode = mode & 0o7777;
            memfd.uid = owner;
            memfd.open = OpenFlags::from_bits(OpenFlags::READ).unwrap();
            Content::Extents(Box::new(memfd), extents)
        })
}

/// A file of `memfd-v2`: folios as pairs of a hole and an order.
fn any_v2() -> impl Strategy<Value = Content> {
    (
        prop::collection::vec((0_u64..3, 0_u16..3), 0..300),
        any::<u32>(),
    )
        .prop_map(|(parts, seals)| {
            let mut index: u64 = 0;
            let mut folios = Vec::new();
            for (hole, order) in parts {
                index = (index + hole).next_multiple_of(1 << order);
                folios.push((index, 1 << order));
                index += 1 << order;
            }
            Content::V2(5, index * PAGE, seals & SEALS_KNOWN, folios)
        })
}

fn any_content() -> impl Strategy<Value = Content> {
    prop_oneof![
        4 => ("[a-z]{1,40}", any::<u64>())
            .prop_map(|(name, data)| Content::Other(compatible(&format!("x-{name}")), data)),
        2 => any_extents(),
        1 => any_v2(),
    ]
}

fn any_image() -> impl Strategy<Value = Image> {
    let name = prop::collection::vec(1_u8.., 1..64)
        .prop_map(|text| SessionName::from_str_bytes(&text).unwrap());
    let files = prop::collection::btree_map(any::<u64>(), any_content(), 0..6);
    let flbs = prop::collection::btree_map(
        "[a-z]{1,20}".prop_map(|text| compatible(&text)),
        (any::<u64>(), 1_u64..),
        0..5,
    );
    (
        any::<u64>(),
        prop::collection::btree_map(name, files, 0..8),
        flbs,
    )
        .prop_map(|(number, sessions, flbs)| Image {
            number,
            sessions,
            flbs,
        })
}

/// An image with `sessions` sessions of `files` files each.
fn plain(sessions: u64, files: u64) -> Image {
    let contents = |session: u64| {
        (0..files)
            .map(|token| {
                (
                    token,
                    Content::Other(compatible("x"), (session << 32) | token),
                )
            })
            .collect()
    };
    Image {
        number: 1,
        sessions: (0..sessions)
            .map(|number| (session_name(&format!("s{number:06}")), contents(number)))
            .collect(),
        flbs: BTreeMap::new(),
    }
}

/// Writes the root in both forms and reads it back.
fn through_root(root: &Root) -> Root {
    let mut tree = MapTree::default();
    root.write_tree(&mut tree, None, &Extras::default(), crc32c)
        .unwrap();
    let read = Root::from_tree(&tree).unwrap();
    assert_eq!(Root::from_v5(root.to_v5().as_bytes()), Ok(read));
    read
}

#[test]
fn nothing() {
    let mut image = Image::default();
    let mut mem = PhysMem::default();
    let root = emit(&mut image, &mut mem, 99);
    assert_eq!(root, Root::default());
    assert_eq!(read(&through_root(&root), &mem), (image, vec![]));
    assert!(mem.pages.is_empty());
}

#[test]
fn thousands() {
    let (sessions, files) = if cfg!(miri) { (4, 70) } else { (5000, 100) };
    let mut image = plain(sessions, files);
    image
        .sessions
        .insert(session_name("empty"), BTreeMap::new());
    let mut mem = PhysMem::default();
    let root = emit(&mut image, &mut mem, 99);
    assert_eq!(read(&root, &mem), (image, vec![]));
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn blocks_that_are_exactly_full() {
    // Where the C implementation leaves an empty block behind, there is none here.
    let mut image = plain(2 * 51, 63);
    let mut mem = PhysMem::default();
    let root = emit(&mut image, &mut mem, 99);
    assert_eq!(mem.pages.len(), 2 + 2 * 51);
    assert!(mem.pages.values().all(|page| page.raw_count() > 0));
    assert_eq!(read(&root, &mem), (image, vec![]));
}

#[test]
fn one_bad_session_costs_that_one() {
    let mut image = plain(60, 2);
    let mut mem = PhysMem::default();
    let root = emit(&mut image, &mut mem, 51);
    // The name of session 7 has no end, and session 9 is there twice.
    let head = root.sessions.unwrap();
    mem.bytes(head)[16 + 7 * 80..][..64].fill(b'x');
    let twin: [u8; 64] = mem.bytes(head)[16 + 9 * 80..][..64].try_into().unwrap();
    mem.bytes(head)[16 + 10 * 80..][..64].copy_from_slice(&twin);

    let (found, wrong) = read(&root, &mem);
    assert_eq!(
        wrong,
        ["session 7: name has no end", "session s000009: there twice"]
    );
    assert_eq!(found.sessions.len(), 58);
    assert!(!found.sessions.contains_key(&session_name("s000007")));
}

#[test]
fn one_page_in_two_files() {
    let file = || {
        let extent = Extent {
            start: somewhere(),
            index: 0,
            pages: 3,
            kind: ExtentKind::Pages,
        };
        Content::Extents(Box::new(memfd(3 * PAGE)), vec![extent])
    };
    let mut image = Image::default();
    for name in ["a", "b"] {
        image
            .sessions
            .insert(session_name(name), BTreeMap::from([(1, file())]));
    }
    let mut mem = PhysMem::default();
    let root = emit(&mut image, &mut mem, 51);

    // The second's extent is that of the first.
    let mut headers = mem
        .pages
        .iter()
        .filter(|(_, page)| page.as_bytes()[64..75] == *b"memfd:test\0");
    let first = *headers.next().unwrap().0;
    let second = *headers.next().unwrap().0;
    let block = |mem: &PhysMem, header| {
        let bytes = mem.pages[&header].as_bytes();
        Phys::new(u64::from_ne_bytes(bytes[32..40].try_into().unwrap())).unwrap()
    };
    let (from, to) = (block(&mem, first), block(&mem, second));
    let pfn: [u8; 8] = mem.bytes(from)[16..24].try_into().unwrap();
    mem.bytes(to)[16..24].copy_from_slice(&pfn);
    mem.block(to).set_sum::<SummedExtentRecord>(common::crc32c);

    let (found, wrong) = read(&root, &mem);
    assert_eq!(found.sessions.len(), 1);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].starts_with("session b: token 1: "), "{wrong:?}");
    assert!(wrong[0].ends_with(": Claimed"), "{wrong:?}");
}

/// One change: to one of the pages, at an offset, to a value of a size.
type Change = (prop::sample::Index, prop::sample::Index, u64, u8);

fn any_change() -> impl Strategy<Value = Change> {
    (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        prop_oneof![
            any::<u64>(),
            0_u64..300,
            (0_u64..300).prop_map(|pfn| pfn << 12)
        ],
        0_u8..4,
    )
}

/// Changes a byte or a number somewhere in the metadata, most often where something stands.
fn change(mem: &mut PhysMem, (page, offset, value, how): &Change) {
    let addresses: Vec<_> = mem.pages.keys().copied().collect();
    if addresses.is_empty() {
        return;
    }
    let bytes = mem.bytes(Phys::new(addresses[page.index(addresses.len())]).unwrap());
    match how {
        0 => bytes[offset.index(4096)] = value.to_ne_bytes()[0],
        1 => bytes[8 * offset.index(512)..][..8].copy_from_slice(&value.to_ne_bytes()),
        2 => bytes[8 * offset.index(16)..][..8].copy_from_slice(&value.to_ne_bytes()),
        _ => {
            // One that is not 0: a link, a count, a name, a page.
            let used: Vec<_> = (0..512)
                .filter(|slot| bytes[8 * slot..][..8] != [0; 8])
                .collect();
            if !used.is_empty() {
                let slot = used[offset.index(used.len())];
                bytes[8 * slot..][..8].copy_from_slice(&value.to_ne_bytes());
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn what_was_emitted_is_read(image in any_image(), per_block in 1_usize..100) {
        let mut image = image;
        let mut mem = PhysMem::default();
        let root = emit(&mut image, &mut mem, per_block);
        let (found, wrong) = read(&through_root(&root), &mem);
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
        prop_assert_eq!(found, image);
    }

    #[test]
    fn corruption_is_survived(
        image in any_image(),
        per_block in 1_usize..100,
        changes in prop::collection::vec(any_change(), 1..6),
    ) {
        let mut image = image;
        let mut mem = PhysMem::default();
        let root = emit(&mut image, &mut mem, per_block);
        for one in &changes {
            change(&mut mem, one);
        }
        // Overlaps are looked for where extents are accepted.
        let (found, wrong) = read(&root, &mem);
        prop_assert_eq!(found.number, image.number);
        prop_assert!(wrong.iter().all(|error| error.len() < 600));
    }

    #[test]
    fn corruption_of_a_file_costs_its_session_at_most(
        image in any_image(),
        which in any::<prop::sample::Index>(),
        offset in 0_usize..512,
        value in any::<u64>(),
    ) {
        let mut image = image;
        let mut mem = PhysMem::default();
        let root = emit(&mut image, &mut mem, 99);
        let headers: Vec<_> = image
            .sessions
            .iter()
            .flat_map(|(name, files)| files.iter().map(move |(token, content)| (name, token, content)))
            .filter(|(_, _, content)| matches!(content, Content::Extents(..)))
            .map(|(name, token, _)| (*name, *token))
            .collect();
        prop_assume!(!headers.is_empty());
        let (name, token) = headers[which.index(headers.len())];

        // Its header is what the record's data says.
        let at = data_of(&mem, &root, &name, token);
        mem.bytes(at)[8 * offset..][..8].copy_from_slice(&value.to_ne_bytes());

        let (mut found, _) = read(&root, &mem);
        let mut expected = image;
        found.sessions.remove(&name);
        expected.sessions.remove(&name);
        prop_assert_eq!(found, expected);
    }
}

/// The handler's data of a file of `memfd-extents-v3`.
fn data_of(mem: &PhysMem, root: &Root, name: &SessionName, token: u64) -> Phys {
    use luo_abi::{
        chain::walk,
        session::{
            FileRecord,
            SessionRecord, //
        }, //
    };

    let expected: &CStr = COMPATIBLE_EXTENTS;
    let mem = common::Shared(mem);
    let mut files = None;
    walk::<SessionRecord, _>(&mem, root.sessions, 99, |_, record| {
        let session = record.parse().unwrap();
        if session.name == *name {
            files = session.files;
        }
        Ok(())
    })
    .unwrap();
    let mut data = None;
    walk::<FileRecord, _>(&mem, files, 99, |_, record| {
        let file = record.parse().unwrap();
        if file.token == token {
            assert_eq!(file.compatible.as_cstr(), expected);
            data = Phys::new(file.data);
        }
        Ok(())
    })
    .unwrap();
    data.unwrap()
}
