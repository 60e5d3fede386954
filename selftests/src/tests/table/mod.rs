// SPDX-License-Identifier: GPL-2.0

//! The table of all tests, a file for each subject.

mod drivers;
mod hugetlb;
mod machine;
mod memfd;
mod one_kernel;
mod sessions;

use crate::harness::Test;

/// All tests, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Test> {
    [
        one_kernel::TESTS,
        sessions::TESTS,
        machine::TESTS,
        memfd::TESTS,
        drivers::TESTS,
        hugetlb::TESTS,
    ]
    .into_iter()
    .flatten()
}
