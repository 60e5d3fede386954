// SPDX-License-Identifier: GPL-2.0

//! `cargo fuzz run handover`, or any other driver of libFuzzer targets.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luo_abi_fuzz::run(data));
