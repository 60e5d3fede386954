// SPDX-License-Identifier: GPL-2.0

//! Tests of memfds, and of files of a tmpfs, across kexecs.

use crate::{
    harness::Test,
    tests::{
        memfd,
        memfd_use,
        target,
        tmpfs, //
    }, //
};

/// In the order in which they run.
pub const TESTS: &[Test] = &[
    Test::new(
        "memfd-advised",
        &[memfd_use::advised_before, memfd_use::advised_after],
    )
    .rust_memfd(),
    Test::new(
        "memfd-collapsed",
        &[memfd_use::collapsed_before, memfd_use::collapsed_after],
    )
    .rust_memfd(),
    Test::new(
        "memfd-used",
        &[memfd_use::used_before, memfd_use::used_after],
    )
    .rust_memfd()
    .alone(),
    Test::new(
        "memfd-compressed",
        &[memfd_use::compressed_before, memfd_use::compressed_after],
    )
    .needs("ZRAM")
    .rust_memfd()
    .alone(),
    Test::new(
        "memfd-content",
        &[
            memfd::content::content_before,
            memfd::content::content_after,
        ],
    ),
    Test::new(
        "memfd-late",
        &[memfd::content::late_before, memfd::content::late_after],
    ),
    Test::new(
        "memfd-seals",
        &[
            memfd::attributes::seals_before,
            memfd::attributes::seals_after,
        ],
    ),
    Test::new(
        "memfd-allocated",
        &[
            memfd::holes::allocated_before,
            memfd::holes::allocated_after,
        ],
    ),
    Test::new(
        "memfd-folios",
        &[memfd::folios::folios_before, memfd::folios::folios_after],
    )
    .alone(),
    Test::new(
        "memfd-filled",
        &[memfd::folios::filled_before, memfd::folios::filled_after],
    )
    .rust_memfd()
    .alone(),
    Test::new(
        "memfd-live",
        &[memfd::content::live_before, memfd::content::live_after],
    )
    .alone(),
    Test::new(
        "memfd-live-holes",
        &[
            memfd::content::live_holes_before,
            memfd::content::live_after,
        ],
    )
    .alone(),
    Test::new(
        "memfd-swapped",
        &[memfd::memory::swapped_before, memfd::memory::swapped_after],
    )
    .alone(),
    Test::new(
        "memfd-overcommit",
        &[
            memfd::memory::overcommit_before,
            memfd::memory::overcommit_after,
        ],
    )
    .rust_memfd()
    .c_differs(),
    Test::new(
        "memfd-sparse",
        &[memfd::holes::sparse_before, memfd::holes::sparse_after],
    ),
    Test::new(
        "memfd-fragmented",
        &[
            memfd::folios::fragmented_before,
            memfd::folios::fragmented_after,
        ],
    )
    .rust_memfd(),
    Test::new(
        "memfd-late-in-place",
        &[
            memfd::folios::late_in_place_before,
            memfd::folios::late_in_place_after,
        ],
    )
    .rust_memfd()
    .alone(),
    Test::new("memfd-given-up", &[memfd::folios::given_up])
        .rust_memfd()
        .alone(),
    Test::new(
        "memfd-large",
        &[memfd::memory::large_before, memfd::memory::large_after],
    )
    .memory(1536)
    .alone(),
    Test::new(
        "memfd-discarded",
        &[memfd::memory::large_before, memfd::memory::discarded_after],
    )
    .memory(1536)
    .alone(),
    Test::new(
        "memfd-late-seals",
        &[
            memfd::attributes::late_seals_before,
            memfd::attributes::late_seals_after,
        ],
    )
    .rust_memfd(),
    Test::new(
        "memfd-noexec",
        &[
            memfd::attributes::noexec_before,
            memfd::attributes::noexec_after,
        ],
    )
    .rust_memfd(),
    Test::new(
        "memfd-owner",
        &[
            memfd::attributes::owner_before,
            memfd::attributes::owner_after,
        ],
    )
    .rust_memfd(),
    Test::new(
        "memfd-access",
        &[
            memfd::attributes::access_before,
            memfd::attributes::access_after,
        ],
    )
    .rust_memfd(),
    Test::new(
        "memfd-name",
        &[
            memfd::attributes::name_before,
            memfd::attributes::name_after,
        ],
    )
    .rust_memfd(),
    Test::new(
        "memfd-holes",
        &[memfd::holes::sparse_before, memfd::holes::holes_after],
    )
    .rust_memfd(),
    Test::new(
        "memfd-huge",
        &[memfd::holes::huge_before, memfd::holes::huge_after],
    )
    .rust_memfd(),
    Test::new("tmpfs-file", &[tmpfs::before, tmpfs::after]).rust_memfd(),
    Test::new("tmpfs-file-v2", &[tmpfs::v2_before, tmpfs::v2_after])
        .parameters("liveupdate.abi=luo-v5")
        .rust_memfd(),
    Test::new(
        "target-file",
        &[target::before, target::after, target::after_again],
    )
    .rust_memfd()
    .c_differs(),
    Test::new("target-file-v2", &[target::v2_before, target::v2_after])
        .parameters("liveupdate.abi=luo-v5")
        .rust_memfd()
        .c_differs(),
];
