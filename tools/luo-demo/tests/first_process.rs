// SPDX-License-Identifier: GPL-2.0

//! The demonstration mounts file systems and powers the machine off, so it runs in its guest only.

use std::process::Command;

#[test]
fn refuses_to_run_elsewhere() {
    let done = Command::new(env!("CARGO_BIN_EXE_luo-demo"))
        .output()
        .unwrap();

    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("first process"));
}
