// SPDX-License-Identifier: MIT OR Apache-2.0

//! Gives the shared library its name, by which programs find it: it changes when the interface does.

fn main() {
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();

    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libliveupdate.so.{major}");
    println!("cargo:rerun-if-changed=build.rs");
}
