// SPDX-License-Identifier: GPL-2.0

//! Checks: corruption is found wherever it is, and costs what it hit.

mod common;

use std::collections::BTreeMap;

use common::{
    compatible,
    crc32c,
    emit,
    emit_checks,
    read_checked,
    session_name,
    Content,
    Image,
    MapTree,
    PhysMem,
    Spans, //
};
use luo_abi::{
    root::{
        Extras,
        Root,
        RootChecks,
        RootError,
        CHECKS_PROPERTY,
        CRC_PROPERTY,
        FLB_CHECKS_PROPERTY,
        FLB_COUNT_PROPERTY,
        FLB_PATH,
        FLB_PROPERTY,
        NUMBER_PROPERTY,
        ROOT_PATH,
        SESSION_CHECKS_PROPERTY,
        SESSION_COUNT_PROPERTY,
        SESSION_PATH,
        SESSION_PROPERTY, //
    },
    Phys, //
};
use zerocopy::IntoBytes;

/// Sessions with files of a handler that is not known, and FLBs.
fn image(sessions: u64, files: u64) -> Image {
    let files = |session: u64| {
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
        number: 7,
        sessions: (0..sessions)
            .map(|number| (session_name(&format!("s{number:06}")), files(number)))
            .collect(),
        flbs: (0..5)
            .map(|number| (compatible(&format!("flb{number}")), (number, 1)))
            .collect(),
    }
}

fn emitted(sessions: u64, files: u64) -> (Image, PhysMem, Root, Spans) {
    let mut image = image(sessions, files);
    let mut mem = PhysMem::default();
    let root = emit(&mut image, &mut mem, 99);
    let spans = emit_checks(&root, &mut mem);
    (image, mem, root, spans)
}

/// Writes and reads a root with its checks.
fn tree(root: &Root, spans: &Spans) -> MapTree {
    let mut tree = MapTree::default();
    root.write_tree(
        &mut tree,
        Some(&spans.of_root()),
        &Extras::default(),
        crc32c,
    )
    .unwrap();
    tree
}

fn reads(tree: &MapTree) -> Result<Option<RootChecks<'_>>, RootError> {
    RootChecks::from_tree(tree, &Root::from_tree(tree)?, crc32c)
}

#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
}

#[test]
fn what_was_written_is_whole() {
    let sizes = [
        (0, 0),
        (1, 0),
        (1, 64),
        (52, 1),
        (51, 63),
        (52, 64),
        (120, 3),
        (2, 3000),
    ];
    // The others take too long there.
    let some = if cfg!(miri) { 4 } else { sizes.len() };
    for (sessions, files) in sizes.into_iter().take(some) {
        let (image, mem, root, spans) = emitted(sessions, files);
        assert_eq!(spans.sessions.count, sessions);
        assert_eq!(read_checked(&root, Some(&spans), &mem), (image, vec![]));
        assert_eq!(reads(&tree(&root, &spans)), Ok(Some(spans.of_root())));
    }
}

#[test]
fn the_table_as_documented() {
    let (_, mem, root, spans) = emitted(2, 1);
    let bytes = |at: Option<Phys>| mem.pages[&at.unwrap().get()].as_bytes().to_vec();
    let table = bytes(Phys::new(u64::from_ne_bytes(spans.pages[0])));
    let check = |index: usize| u32::from_ne_bytes(table[4 * index..][..4].try_into().unwrap());
    let sessions = bytes(root.sessions);
    let files = |session: usize| {
        let at = sessions[16 + 80 * session + 64..][..8].try_into().unwrap();
        bytes(Phys::new(u64::from_ne_bytes(at)))
    };

    for session in 0..2 {
        let files = files(session);
        assert_eq!(check(2 * session), crc32c(0, &files[..16]));
        assert_eq!(check(2 * session + 1), crc32c(0, &files[16..80]));
    }
    assert_eq!(spans.sessions.first, 4);
    assert_eq!(check(4), crc32c(0, &sessions[..16]));
    for session in 0..2 {
        let link = 2 * session;
        assert_eq!(check(5 + 2 * session), link as u32);
        let mut record = sessions[16 + 80 * session..][..80].to_vec();
        record.extend((link as u32).to_ne_bytes());
        assert_eq!(check(6 + 2 * session), crc32c(0, &record));
    }
    assert_eq!((spans.flbs.first, spans.flbs.count), (9, 5));
    let flbs = bytes(root.flbs);
    assert_eq!(check(9), crc32c(0, &flbs[..16]));
    assert_eq!(check(14), crc32c(0, &flbs[16 + 4 * 64..][..64]));
}

#[test]
fn a_corrupt_root_is_found() {
    let (_, _, root, spans) = emitted(60, 2);
    let good = tree(&root, &spans);
    for (node, property) in [
        (ROOT_PATH, NUMBER_PROPERTY),
        (ROOT_PATH, CHECKS_PROPERTY),
        (ROOT_PATH, CRC_PROPERTY),
        (SESSION_PATH, SESSION_PROPERTY),
        (SESSION_PATH, SESSION_COUNT_PROPERTY),
        (SESSION_PATH, SESSION_CHECKS_PROPERTY),
        (FLB_PATH, FLB_PROPERTY),
        (FLB_PATH, FLB_COUNT_PROPERTY),
        (FLB_PATH, FLB_CHECKS_PROPERTY),
    ] {
        let value = good.properties[&(
            node.to_str().unwrap().to_string(),
            property.to_str().unwrap().to_string(),
        )]
            .clone();
        let every = if cfg!(miri) { 29 } else { 1 };
        for bit in (0..8 * value.len()).step_by(every) {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut tree = good.clone();
            tree.set(node, property, &bad);
            let error = reads(&tree).unwrap_err();
            // An address may have become none before it is compared.
            assert!(
                matches!(
                    error,
                    RootError::Checksum { .. } | RootError::Misaligned { .. }
                ),
                "{error}"
            );
        }
        let mut short = good.clone();
        short.set(node, property, &value[1..]);
        assert!(matches!(reads(&short), Err(RootError::Size { .. })));
        let mut without = good.clone();
        without.remove(node, property);
        assert_eq!(reads(&without), Err(RootError::Missing { node, property }));
    }
}

#[test]
fn a_count_has_an_address() {
    let (_, _, root, spans) = emitted(1, 1);
    for root in [
        Root {
            sessions: None,
            ..root
        },
        Root { flbs: None, ..root },
    ] {
        assert!(matches!(
            reads(&tree(&root, &spans)),
            Err(RootError::Total { .. })
        ));
    }
}

#[test]
fn an_older_root_has_none() {
    let (_, _, root, _) = emitted(1, 1);
    let mut tree = MapTree::default();
    root.write_tree(&mut tree, None, &Extras::default(), crc32c)
        .unwrap();
    assert_eq!(reads(&tree), Ok(None));
}

/// What may be missing after corruption at an offset of a page.
enum Cost {
    Nothing,
    Session(usize),
    File(usize, u64),
    /// All sessions from this one on.
    Sessions(usize),
    Flb(usize),
}

fn without(image: &Image, cost: &Cost) -> Image {
    let mut left = image.clone();
    let name = |n: usize| *image.sessions.keys().nth(n).unwrap();
    match cost {
        Cost::Nothing => {}
        Cost::Session(n) => {
            left.sessions.remove(&name(*n));
        }
        Cost::File(n, token) => {
            let files = left.sessions.get_mut(&name(*n)).unwrap();
            files.remove(token).unwrap();
        }
        Cost::Sessions(n) => left.sessions = image.sessions.clone().into_iter().take(*n).collect(),
        Cost::Flb(n) => {
            let name = *image.flbs.keys().nth(*n).unwrap();
            left.flbs.remove(&name);
        }
    }
    left
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn corruption_costs_what_it_hit() {
    let (image, mut mem, root, spans) = emitted(70, 2);
    let chain = |head: Option<Phys>| {
        std::iter::successors(head, |at| mem.pages[&at.get()].next()).collect::<Vec<_>>()
    };
    let sessions = chain(root.sessions);
    let mut cases: Vec<(Phys, usize, Cost)> = Vec::new();

    assert_eq!(sessions.len(), 2);
    for offset in 0..16 {
        cases.push((sessions[0], offset, Cost::Sessions(51)));
        cases.push((sessions[1], offset, Cost::Nothing));
        cases.push((root.flbs.unwrap(), offset, Cost::Nothing));
    }
    for (n, at) in [(0, 16), (50, 16 + 50 * 80), (51, 16), (69, 16 + 18 * 80)] {
        for offset in [0, 7, 63, 64, 70, 72, 79] {
            cases.push((sessions[n / 51], at + offset, Cost::Session(n)));
        }
    }
    for offset in (16 + 19 * 80..4096).step_by(61) {
        cases.push((sessions[1], offset, Cost::Nothing));
    }
    for n in [0, 69] {
        let block = mem.pages[&sessions[n / 51].get()].records::<luo_abi::session::SessionRecord>();
        let files = block.unwrap()[n % 51].parse().unwrap().files.unwrap();
        for offset in 0..16 {
            cases.push((files, offset, Cost::Nothing));
        }
        for offset in 0..64 {
            cases.push((files, 16 + offset, Cost::File(n, 0)));
            cases.push((files, 80 + offset, Cost::File(n, 1)));
        }
        cases.push((files, 16 + 128, Cost::Nothing));
    }
    for n in 0..5 {
        for offset in 0..64 {
            cases.push((root.flbs.unwrap(), 16 + 64 * n + offset, Cost::Flb(n)));
        }
    }

    for (at, offset, cost) in cases {
        for flip in [0x01, 0x80, 0xff] {
            mem.bytes(at)[offset] ^= flip;
            let (found, _) = read_checked(&root, Some(&spans), &mem);
            assert_eq!(found, without(&image, &cost), "{at}, {offset:#x}");
            mem.bytes(at)[offset] ^= flip;
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn a_corrupt_check_costs_what_it_covers() {
    let (image, mut mem, root, spans) = emitted(70, 2);
    let table = Phys::new(u64::from_ne_bytes(spans.pages[0])).unwrap();
    let used = spans.flbs.first + 1 + 5;

    for index in 0..used {
        let offset = 4 * index as usize + 1;
        mem.bytes(table)[offset] ^= 0x10;
        let (found, wrong) = read_checked(&root, Some(&spans), &mem);
        mem.bytes(table)[offset] ^= 0x10;
        let files = |image: &Image| image.sessions.values().map(BTreeMap::len).sum::<usize>();
        let lost = files(&image) - files(&found) + image.flbs.len() - found.flbs.len();
        if index == spans.sessions.first {
            // The header of the first of two blocks: what stands behind it.
            assert_eq!(found.sessions.len(), 51);
        } else {
            assert!(lost <= 2, "check {index}: {wrong:?}");
        }
    }
}
