// SPDX-License-Identifier: GPL-2.0

//! The fuzz target of `fuzz/`, for a short while: its corpus, and mutations of that.

#[allow(unreachable_pub)]
#[path = "../fuzz/src/lib.rs"]
mod handover;

use std::{
    env,
    fs,
    path::PathBuf, //
};

fn corpus() -> Vec<Vec<u8>> {
    // Not that of the build, which may have been another clone's.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let folder = root.join("fuzz/corpus/handover");
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn corpus_and_mutations() {
    let corpus = corpus();
    assert!(corpus.len() > 5);
    for input in &corpus {
        handover::run(input);
    }
    let mut random = handover::Random::new(1);
    for _ in 0..20_000 {
        let input = random.input(&corpus);
        // Shown if it fails.
        println!("{input:?}");
        handover::run(&input);
    }
}
