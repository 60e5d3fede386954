// SPDX-License-Identifier: GPL-2.0

//! What the fuzzers run: a handover is built and corrupted as the input says, and taken over.
//!
//! The input is a stream of small numbers, zeros at its end: first what the handover consists of,
//! then changes to its bytes, until it is used up. Whatever they are, taking over ends, does not
//! panic, and claims no page twice; and where there are checks, what comes back is what was left.

// This file is also a module of `tests/fuzz.rs`.
#[path = "../../tests/common/mod.rs"]
mod common;

use common::{
    compatible,
    emit,
    emit_checks,
    memfd,
    read_checked,
    session_name,
    Content,
    Image,
    MapTree,
    PhysMem,
    Spans, //
};
use luo_abi::{
    memfd::{
        Extent,
        ExtentKind, //
    },
    root::{
        Extras,
        Root,
        RootChecks,
        RootFormat, //
    },
    stamp::{
        PhaseTimes,
        Stamp, //
    },
    subsystem::{
        Subsystem,
        Subsystems, //
    },
    Phys, //
};
use zerocopy::IntoBytes;

/// The input.
struct Numbers<'d>(&'d [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        let wide = match end {
            0..=256 => self.byte().into(),
            _ => (usize::from(self.byte()) << 8) | usize::from(self.byte()),
        };
        wide % end.max(1)
    }

    fn word(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from_ne_bytes(std::array::from_fn(|_| self.byte())),
            // Around the addresses in use, and around the limits of counts.
            1 => u64::from(self.byte()).wrapping_add(0x100) << 12,
            2 => self.byte().into(),
            _ => u64::MAX - u64::from(self.byte()),
        }
    }
}

/// A file of one of the known layouts, or another.
fn content(input: &mut Numbers<'_>) -> Content {
    match input.byte() % 3 {
        0 => Content::Other(compatible("x"), input.word()),
        1 => {
            let mut index = 0;
            let mut extents = Vec::new();
            for _ in 0..input.below(5) {
                let start = Phys::new(4096).expect("not 0");
                index += input.below(3) as u64;
                let extent = match input.byte() % 3 {
                    0 => {
                        index = index.next_multiple_of(4);
                        Extent::folio(start, index, 2).expect("a folio")
                    }
                    pages => Extent {
                        start,
                        index,
                        pages: pages.into(),
                        kind: ExtentKind::Pages,
                    },
                };
                index += u64::from(extent.pages);
                extents.push(extent);
            }
            let size = index * 4096 + u64::from(input.byte());
            Content::Extents(Box::new(memfd(size)), extents)
        }
        _ => {
            let mut index = 0;
            let folios: Vec<_> = (0..input.below(6))
                .map(|_| {
                    let at = index + u64::from(input.byte() % 2);
                    index = at + 1;
                    (at, 1)
                })
                .collect();
            Content::V2(0, index * 4096, 0, folios)
        }
    }
}

fn image(input: &mut Numbers<'_>) -> Image {
    let mut image = Image {
        number: input.word(),
        ..Image::default()
    };
    for session in 0..input.below(6) {
        let files = (0..input.below(5) as u64)
            .map(|token| (token, content(input)))
            .collect();
        let name = session_name(&format!("s{session}"));
        image.sessions.insert(name, files);
    }
    // Enough for a second block, now and then.
    if input.byte() % 8 == 1 {
        for session in 0..60 {
            let name = session_name(&format!("empty{session}"));
            image.sessions.insert(name, Default::default());
        }
    }
    for flb in 0..input.below(3) {
        let name = compatible(&format!("flb{flb}"));
        image.flbs.insert(name, (input.word(), 1));
    }
    image
}

/// Changes a byte, or a number, in one of the pages.
fn corrupt(mem: &mut PhysMem, input: &mut Numbers<'_>) {
    let pages: Vec<_> = mem.pages.keys().copied().collect();
    if pages.is_empty() {
        return;
    }
    let page = Phys::new(pages[input.below(pages.len())]).expect("not 0");
    let how = input.byte();
    let offset = match how & 1 {
        0 => input.below(160),
        _ => input.below(4096),
    };
    let bytes = mem.bytes(page);
    match (how >> 1) & 3 {
        0 => bytes[offset] ^= input.byte(),
        1 => bytes[offset & !7..][..8].copy_from_slice(&input.word().to_ne_bytes()),
        2 => bytes[offset] = 0,
        _ => {
            // What stands elsewhere: an address, a name, a record.
            let (from, len) = (input.below(4096), 1 << input.below(7));
            if from + len <= 4096 && offset + len <= 4096 {
                bytes.copy_within(from..from + len, offset);
            }
        }
    }
}

/// Writes the root as a tree, corrupts that, and reads it back, if that can be done.
fn through_tree(root: &Root, spans: Option<&Spans>, input: &mut Numbers<'_>) -> Option<()> {
    let crc32c = common::crc32c;
    let of_root = spans.map(Spans::of_root);
    let mut tree = MapTree::default();
    let checks = of_root.as_ref();
    let subsystems = ["one-v1", "other-v2"].map(|name| Subsystem {
        name: compatible(name),
        data: 7,
    });
    let extras = Extras {
        stamp: Some(Stamp {
            cycles: 1,
            khz: 2,
            seconds: 3,
        }),
        times: Some(PhaseTimes {
            freeze: 4,
            serialize: 5,
        }),
        subsystems: &subsystems,
    };
    root.write_tree(&mut tree, checks, &extras, crc32c).ok()?;

    let mut changed = false;
    for _ in 0..input.below(3) {
        let mut keys: Vec<_> = tree.properties.keys().cloned().collect();
        keys.sort();
        let key = &keys[input.below(keys.len())];
        let value = tree.properties.get_mut(key)?;
        match input.byte() % 3 {
            0 => drop(value.pop()),
            _ if value.is_empty() => {}
            _ => {
                let at = input.below(value.len());
                value[at] = value[at].wrapping_add(input.byte());
            }
        }
        changed = true;
    }
    // What subsystems said is whole or refused, whatever the root is. Of a stamp nothing depends.
    if let Ok(found) = Subsystems::from_tree(&tree, crc32c) {
        assert!(found.iter().eq(&subsystems));
    }
    let _ = Stamp::from_tree(&tree).and_then(|stamp| stamp.micros_since(stamp));
    let _ = PhaseTimes::from_tree(&tree);

    let found = Root::from_tree(&tree).ok()?;
    let found_checks = RootChecks::from_tree(&tree, &found, crc32c).ok()?;
    if spans.is_some() {
        // A change is found, or was none.
        assert_eq!((found, found_checks), (*root, of_root));
    }
    assert!(changed || found == *root);
    Some(())
}

/// Builds, corrupts and takes over a handover.
///
/// # Panics
///
/// If something is wrong with the code under test.
pub fn run(data: &[u8]) {
    let mut input = Numbers(data);
    let how = input.byte();
    let mut expected = image(&mut input);
    let mut mem = PhysMem::default();
    let root = emit(&mut expected, &mut mem, 1 + usize::from(how >> 1));
    // Those who make checks fill their blocks.
    let with_checks = how & 1 == 1;
    let (root, spans) = match with_checks {
        false => (root, None),
        true => {
            mem = PhysMem::default();
            let root = emit(&mut expected, &mut mem, usize::MAX);
            let spans = emit_checks(&root, &mut mem);
            (root, Some(spans))
        }
    };

    let _ = through_tree(&root, spans.as_ref(), &mut input);
    let mut v5 = root.to_v5().as_bytes().to_vec();
    for _ in 0..input.below(3) {
        let at = input.below(v5.len());
        v5[at] = v5[at].wrapping_add(input.byte());
    }
    let _ = RootFormat::expect_known(&v5).map_err(|error| error.to_string());
    let read_back = Root::from_v5(&v5).map_err(|error| error.to_string());

    let whole = input.0.is_empty();
    while !input.0.is_empty() && !mem.pages.is_empty() {
        corrupt(&mut mem, &mut input);
    }
    let (found, wrong) = read_checked(&root, spans.as_ref(), &mem);
    assert!(wrong.iter().all(|error| error.len() < 600));
    if whole {
        assert_eq!((&found, wrong.len()), (&expected, 0), "{wrong:?}");
    }
    if with_checks {
        for (name, files) in &found.sessions {
            let left = &expected.sessions[name];
            for (token, content) in files {
                match (content, &left[token]) {
                    // This layout has no checksums.
                    (Content::V2(..), Content::V2(..)) => {}
                    (found, left) => assert_eq!(found, left),
                }
            }
        }
        assert!(found
            .flbs
            .iter()
            .all(|flb| expected.flbs.get_key_value(flb.0) == Some(flb)));
    }
    if let Ok(read_back) = read_back {
        let _ = read_checked(&read_back, None, &mem);
    }
}

/// A cheap random number generator (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is smaller than a usize")
    }

    /// An input like those of `corpus`: pieces of them, with changes, or nothing but noise.
    pub fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = match self.below(4) {
            0 => (0..self.below(200)).map(|_| 0).collect(),
            _ => corpus[self.below(corpus.len())].clone(),
        };
        if self.below(3) == 0 {
            let other = &corpus[self.below(corpus.len())];
            input.truncate(self.below(input.len() + 1));
            input.extend(&other[self.below(other.len() + 1)..]);
        }
        for _ in 0..1 + self.below(24) {
            let byte = self.next().to_ne_bytes()[0];
            match self.below(4) {
                0 => input.push(byte),
                1 if !input.is_empty() => drop(input.remove(self.below(input.len()))),
                _ if !input.is_empty() => {
                    let at = self.below(input.len());
                    input[at] = byte;
                }
                _ => {}
            }
        }
        input
    }
}
