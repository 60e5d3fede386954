// SPDX-License-Identifier: GPL-2.0

//! What subsystems hand over, and the stamp: written, corrupted, read.

mod common;

use common::{
    cases,
    compatible,
    crc32c,
    MapTree, //
};
use luo_abi::{
    root::{
        Extras,
        Root,
        CRC_PROPERTY,
        ROOT_PATH, //
    },
    stamp::{
        PhaseTimes,
        Stamp,
        STAMP_PROPERTY,
        TIMES_PROPERTY, //
    },
    subsystem::{
        may_be_called,
        Subsystem,
        SubsystemError,
        Subsystems,
        MAX_SUBSYSTEMS,
        NAMES_PROPERTY,
        SUBSYSTEM_PATH, //
    }, //
};
use proptest::{
    collection::btree_map,
    prelude::*, //
};

fn write(subsystems: &[Subsystem], stamp: Option<Stamp>) -> MapTree {
    let mut tree = MapTree::default();
    let extras = Extras {
        stamp,
        times: stamp.map(|_| TIMES),
        subsystems,
    };
    Root::default()
        .write_tree(&mut tree, None, &extras, crc32c)
        .unwrap();
    tree
}

fn read(tree: &MapTree) -> Result<Vec<Subsystem>, SubsystemError> {
    Ok(Subsystems::from_tree(tree, crc32c)?
        .iter()
        .copied()
        .collect())
}

const TIMES: PhaseTimes = PhaseTimes {
    freeze: 12,
    serialize: u64::MAX,
};

fn subsystem(name: &str, data: u64) -> Subsystem {
    Subsystem {
        name: compatible(name),
        data,
    }
}

fn some() -> Vec<Subsystem> {
    vec![subsystem("one-v1", 1), subsystem("other-v2", u64::MAX)]
}

#[test]
fn without_subsystems_there_is_no_node() {
    let tree = write(&[], None);

    assert_eq!(read(&tree), Ok(vec![]));
    assert!(tree
        .properties
        .keys()
        .all(|(node, _)| node != "/luo-subsystems"));
}

#[test]
fn each_is_taken_once() {
    let mut found = Subsystems::from_tree(&write(&some(), None), crc32c).unwrap();

    assert_eq!(found.take(&compatible("one-v2")), None);
    assert_eq!(found.take(&compatible("one-v1")), Some(some()[0]));
    assert_eq!(found.take(&compatible("one-v1")), None);
    assert_eq!(found.iter().count(), 1);
}

#[test]
fn as_many_as_there_may_be() {
    let many: Vec<_> = (0..MAX_SUBSYSTEMS + 1)
        .map(|n| subsystem(&format!("{n:047}"), 7))
        .collect();
    let (fit, _) = many.split_at(MAX_SUBSYSTEMS);
    assert_eq!(read(&write(fit, None)).unwrap(), fit);

    // One more than fits, from a kernel that had room for it.
    let mut tree = write(fit, None);
    let mut names: Vec<u8> = Vec::new();
    for subsystem in &many {
        names.extend(subsystem.name.as_cstr().to_bytes_with_nul());
    }
    tree.set(SUBSYSTEM_PATH, NAMES_PROPERTY, &names);
    tree.set(
        SUBSYSTEM_PATH,
        many[MAX_SUBSYSTEMS].name.as_cstr(),
        &7u64.to_ne_bytes(),
    );
    assert_eq!(read(&tree), Err(SubsystemError::TooMany));
}

#[test]
fn no_subsystem_is_called_like_a_property() {
    for name in ["compatible", "luo-subsystem-names", "luo-crc32c"] {
        assert!(!may_be_called(&compatible(name)));
    }
    assert!(may_be_called(&compatible("luo-crc32c-v1")));
}

#[test]
fn any_change_is_found() {
    let whole = write(&some(), None);
    let keys: Vec<_> = whole
        .properties
        .keys()
        .filter(|(node, _)| node == "/luo-subsystems")
        .cloned()
        .collect();
    assert_eq!(keys.len(), 5);

    for key in keys {
        let mut tree = MapTree::default();
        tree.properties = whole.properties.clone();
        for at in 0..whole.properties[&key].len() {
            tree.properties = whole.properties.clone();
            tree.properties.get_mut(&key).unwrap()[at] ^= 0x10;
            assert!(read(&tree).is_err(), "{key:?} {at}");
        }
        tree.properties = whole.properties.clone();
        tree.properties.get_mut(&key).unwrap().pop();
        assert!(read(&tree).is_err(), "{key:?} is shorter");

        tree.properties.remove(&key);
        // Without the compatible string there is nothing at all.
        match &*key.1 {
            "compatible" => assert_eq!(read(&tree), Ok(vec![])),
            _ => assert!(read(&tree).is_err(), "{key:?} is missing"),
        }
    }
    let mut tree = whole;
    tree.set(SUBSYSTEM_PATH, CRC_PROPERTY, &[0; 5]);
    assert_eq!(read(&tree), Err(SubsystemError::Checksum));
}

const EARLIER: Stamp = Stamp {
    cycles: 5_000_000,
    khz: 1_000_000,
    seconds: 100,
};

#[test]
fn an_interval_is_told_if_both_clocks_agree() {
    let after = |cycles, khz, seconds| {
        Stamp {
            cycles: EARLIER.cycles + cycles,
            khz,
            seconds: EARLIER.seconds + seconds,
        }
        .micros_since(EARLIER)
    };
    const SECOND: u64 = 1_000_000_000;

    assert_eq!(after(0, 1_000_000, 0), Some(0));
    assert_eq!(after(SECOND, 1_000_000, 1), Some(1_000_000));
    assert_eq!(after(SECOND, 1_000_000, 3), Some(1_000_000));
    assert_eq!(after(SECOND, 1_000_000, 4), None);
    assert_eq!(after(7 * SECOND, 1_000_000, 4), None);
    assert_eq!(after(SECOND, 1_001_000, 1), Some(999_000));
    assert_eq!(after(SECOND, 1_100_000, 1), None);
    assert_eq!(after(SECOND, 0, 1), None);
}

#[test]
fn no_interval_if_a_clock_went_back() {
    assert_eq!(
        Stamp {
            cycles: 0,
            ..EARLIER
        }
        .micros_since(EARLIER),
        None
    );
    assert_eq!(
        Stamp {
            seconds: 0,
            ..EARLIER
        }
        .micros_since(EARLIER),
        None
    );
}

#[test]
fn a_stamp_of_another_size_is_none() {
    let mut tree = write(&[], Some(EARLIER));
    assert_eq!(Stamp::from_tree(&tree), Some(EARLIER));
    assert_eq!(PhaseTimes::from_tree(&tree), Some(TIMES));

    for len in [0, 7, 9, 23, 25, 32] {
        tree.set(ROOT_PATH, STAMP_PROPERTY, &vec![0; len]);
        assert_eq!(Stamp::from_tree(&tree), None);
        tree.set(ROOT_PATH, TIMES_PROPERTY, &vec![0; len]);
        assert_eq!(PhaseTimes::from_tree(&tree), None);
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn what_is_written_is_read(
        all in btree_map("[a-z]{1,46}0", any::<u64>(), 0..=MAX_SUBSYSTEMS),
    ) {
        let all: Vec<_> = all.iter().map(|(name, data)| subsystem(name, *data)).collect();
        prop_assert_eq!(read(&write(&all, None)).unwrap(), all);
    }

    #[test]
    fn no_stamps_make_trouble(numbers in any::<[u64; 6]>()) {
        let [cycles, khz, seconds, then, speed, when] = numbers;
        let now = Stamp { cycles, khz, seconds };
        let _ = now.micros_since(Stamp { cycles: then, khz: speed, seconds: when });
    }
}
