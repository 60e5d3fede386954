// SPDX-License-Identifier: GPL-2.0

//! Points at which a test has luod killed.
//!
//! Only with the feature `crash-test`, which no package has. If the file `ORDER` names a point,
//! luod dies there as by `kill -9`, once.

/// Where the point is named.
#[cfg(feature = "crash-test")]
const ORDER: &str = "/var/lib/luod-crash/order";

/// A point.
#[cfg(feature = "crash-test")]
pub fn point(name: &str) {
    use nix::{
        sys::signal::{
            kill,
            Signal, //
        },
        unistd::Pid,
    };

    if std::fs::read_to_string(ORDER).is_ok_and(|order| order.trim() == name) {
        // Else it would die there again after its restart.
        let _ = std::fs::remove_file(ORDER);
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}

/// A point.
#[cfg(not(feature = "crash-test"))]
pub fn point(_: &str) {}
