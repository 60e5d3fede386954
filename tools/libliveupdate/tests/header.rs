// SPDX-License-Identifier: MIT OR Apache-2.0

//! The header is what the source says.

use std::{
    env,
    fs,
    path::PathBuf, //
};

#[test]
fn is_up_to_date() {
    // Not that of the build, which may have been another clone's.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let header = root.join("include/liveupdate.h");
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut generated = Vec::new();
    cbindgen::Builder::new()
        .with_src(root.join("src/lib.rs"))
        .with_config(config)
        .generate()
        .unwrap()
        .write(&mut generated);

    if env::var_os("LUO_WRITE_HEADER").is_some() {
        fs::write(&header, &generated).unwrap();
    }
    let found = fs::read(&header).unwrap_or_default();
    assert!(
        found == generated,
        "run with LUO_WRITE_HEADER=1 to bring it up to date"
    );
}
