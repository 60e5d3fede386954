// SPDX-License-Identifier: GPL-2.0

//! Both forms of the root, the FDT through libraries that others wrote.

mod common;
#[path = "common/fdt.rs"]
mod tree;

use common::{
    cases,
    crc32c,
    MapTree, //
};
use fdt::Fdt;
use luo_abi::{
    root::{
        Extras,
        LuoSerV5,
        Root,
        RootError,
        RootFormat,
        COMPATIBLE_PROPERTY,
        ENTRY_NAME,
        FLB_PATH,
        FLB_PROPERTY,
        NUMBER_PROPERTY,
        ROOT_PATH,
        SESSION_PATH,
        SESSION_PROPERTY, //
    },
    Phys, //
};
use proptest::prelude::*;
use tree::{
    Reader,
    Writer, //
};
use zerocopy::IntoBytes;

fn write(root: &Root) -> Vec<u8> {
    let mut writer = Writer::new();
    root.write_tree(&mut writer, None, &Extras::default(), crc32c)
        .unwrap();
    writer.finish()
}

fn read(bytes: &[u8]) -> Result<Root, RootError> {
    Root::from_tree(&Reader(Fdt::new(bytes).unwrap()))
}

fn tree(root: &Root) -> MapTree {
    let mut tree = MapTree::default();
    root.write_tree(&mut tree, None, &Extras::default(), crc32c)
        .unwrap();
    tree
}

fn root(number: u64, sessions: u64, flbs: u64) -> Root {
    Root {
        number,
        sessions: Phys::new(sessions),
        flbs: Phys::new(flbs),
    }
}

#[test]
fn a_tree_as_documented() {
    let bytes = write(&root(3, 0x12_3000, 0x45_6000));
    assert_eq!(RootFormat::detect(&bytes), Some(RootFormat::Fdt));
    let fdt = Fdt::new(&bytes).unwrap();
    let node = fdt.find_node("/").unwrap();
    assert_eq!(node.property("compatible").unwrap().value, b"luo-v1\0");
    assert_eq!(
        node.property("liveupdate-number").unwrap().value,
        3_u64.to_ne_bytes()
    );
    let node = fdt.find_node("/luo-session").unwrap();
    assert_eq!(
        node.property("compatible").unwrap().value,
        b"luo-session-v2\0"
    );
    assert_eq!(
        node.property("luo-session-header").unwrap().value,
        0x12_3000_u64.to_ne_bytes()
    );
    let node = fdt.find_node("/luo-flb").unwrap();
    assert_eq!(node.property("compatible").unwrap().value, b"luo-flb-v1\0");
    assert_eq!(
        node.property("luo-flb-header").unwrap().value,
        0x45_6000_u64.to_ne_bytes()
    );
    assert_eq!(ENTRY_NAME, c"LUO");
}

#[test]
fn told_apart_by_the_first_bytes() {
    assert_eq!(
        RootFormat::detect(b"\xd0\x0d\xfe\xed\0\0"),
        Some(RootFormat::Fdt)
    );
    assert_eq!(
        RootFormat::detect(root(0, 0, 0).to_v5().as_bytes()),
        Some(RootFormat::V5)
    );
    // The C implementation compares as strings.
    assert_eq!(RootFormat::detect(b"luo-v5\0\xff"), Some(RootFormat::V5));
    for unknown in [
        &b""[..],
        b"\xd0\x0d\xfe",
        b"\xed\xfe\x0d\xd0",
        b"luo-v5",
        b"luo-v4\0\0",
        b"luo-v50\0",
    ] {
        assert_eq!(RootFormat::detect(unknown), None);
        assert!(RootFormat::expect_known(unknown).is_err());
    }
    assert_eq!(
        RootFormat::expect_known(b"luo-v6\0\0\x01\x02")
            .unwrap_err()
            .to_string(),
        "root of unknown format \"luo-v6\""
    );
    assert_eq!(
        RootFormat::expect_known(b"\xff\"garbage garbage")
            .unwrap_err()
            .to_string(),
        r#"root of unknown format "\xff\x22garbag""#
    );
}

#[test]
fn missing_properties() {
    for (node, property) in [
        (ROOT_PATH, COMPATIBLE_PROPERTY),
        (ROOT_PATH, NUMBER_PROPERTY),
        (SESSION_PATH, COMPATIBLE_PROPERTY),
        (SESSION_PATH, SESSION_PROPERTY),
        (FLB_PATH, COMPATIBLE_PROPERTY),
        (FLB_PATH, FLB_PROPERTY),
    ] {
        let mut tree = tree(&root(1, 0, 0));
        tree.remove(node, property);
        let error = Root::from_tree(&tree).unwrap_err();
        assert_eq!(error, RootError::Missing { node, property });
        assert!(error.to_string().contains(property.to_str().unwrap()));
    }
}

#[test]
fn other_versions() {
    for (node, found, text) in [
        (
            ROOT_PATH,
            &b"luo-v2\0"[..],
            "node /: compatible with \"luo-v2\", not with \"luo-v1\"",
        ),
        (
            SESSION_PATH,
            b"luo-session-v1\0",
            "node /luo-session: compatible with \"luo-session-v1\", not with \"luo-session-v2\"",
        ),
        (
            FLB_PATH,
            b"",
            "node /luo-flb: compatible with \"\", not with \"luo-flb-v1\"",
        ),
        (
            ROOT_PATH,
            b"luo-v1",
            "node /: compatible with \"luo-v1\", not with \"luo-v1\"",
        ),
    ] {
        let mut tree = tree(&root(1, 0, 0));
        tree.set(node, COMPATIBLE_PROPERTY, found);
        assert_eq!(Root::from_tree(&tree).unwrap_err().to_string(), text);
    }
}

#[test]
fn numbers_that_are_none() {
    for len in [0, 4, 7, 9, 16] {
        let mut tree = tree(&root(1, 0, 0));
        tree.set(SESSION_PATH, SESSION_PROPERTY, &vec![0; len]);
        assert_eq!(
            Root::from_tree(&tree),
            Err(RootError::Size {
                node: SESSION_PATH,
                property: SESSION_PROPERTY,
                len
            })
        );
    }
}

#[test]
fn addresses_that_are_none() {
    let odd = Phys::new(0x1001).unwrap();
    let sessions = Root {
        sessions: Some(odd),
        ..Root::default()
    };
    let flbs = Root {
        flbs: Some(odd),
        ..Root::default()
    };
    for root in [sessions, flbs] {
        assert!(matches!(
            Root::from_tree(&tree(&root)),
            Err(RootError::Misaligned { at, .. }) if at == odd
        ));
        assert!(matches!(
            Root::from_v5(root.to_v5().as_bytes()),
            Err(RootError::Misaligned { at, .. }) if at == odd
        ));
    }
    assert_eq!(
        Root::from_tree(&tree(&flbs)).unwrap_err().to_string(),
        "address 0x1001 of the FLBs is not that of a page"
    );
}

#[test]
fn additions_are_skipped() {
    let root = root(9, 0x1000, 0);
    let mut tree = tree(&root);
    tree.set(ROOT_PATH, c"later", b"whatever");
    tree.set(c"/luo-later", COMPATIBLE_PROPERTY, b"x\0");
    assert_eq!(Root::from_tree(&tree), Ok(root));
}

#[test]
fn v5_that_is_cut_off() {
    let ser = root(1, 0x1000, 0x2000).to_v5();
    let bytes = ser.as_bytes();
    for len in 0..bytes.len() {
        assert_eq!(
            Root::from_v5(&bytes[..len]),
            Err(RootError::TooShort { len })
        );
    }
    let mut longer = bytes.to_vec();
    longer.extend([0xff; 9]);
    assert_eq!(Root::from_v5(&longer), Ok(root(1, 0x1000, 0x2000)));
    longer[5] = b'4';
    assert!(Root::from_v5(&longer).is_err());
    assert_eq!(size_of::<LuoSerV5>(), bytes.len());
}

fn any_root() -> impl Strategy<Value = Root> {
    let page = || (0_u64..1 << 52).prop_map(|pfn| pfn << 12);
    (any::<u64>(), page(), page()).prop_map(|(number, sessions, flbs)| root(number, sessions, flbs))
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn what_was_written_is_read(root in any_root()) {
        prop_assert_eq!(read(&write(&root)), Ok(root));
        prop_assert_eq!(Root::from_tree(&tree(&root)), Ok(root));
        prop_assert_eq!(Root::from_v5(root.to_v5().as_bytes()), Ok(root));
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..80), v5 in any::<bool>()) {
        let mut bytes = bytes;
        if v5 && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"luo-v5\0\0");
        }
        let _ = RootFormat::expect_known(&bytes).map_err(|error| error.to_string());
        let _ = Root::from_v5(&bytes).map_err(|error| error.to_string());
    }

    #[test]
    fn any_properties(
        root in any_root(),
        which in 0_usize..6,
        value in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut tree = tree(&root);
        let mut keys: Vec<_> = tree.properties.keys().cloned().collect();
        keys.sort();
        prop_assert_eq!(keys.len(), 6);
        *tree.properties.get_mut(&keys[which]).unwrap() = value;
        if let Err(error) = Root::from_tree(&tree) {
            prop_assert!(error.to_string().len() < 300);
        }
    }
}
