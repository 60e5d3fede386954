// SPDX-License-Identifier: GPL-2.0

//! Tests of sessions across kexecs.

use crate::{
    harness::Test,
    tests::{
        borders,
        device,
        endurance,
        kexec,
        race, //
    }, //
};

/// In the order in which they run.
pub const TESTS: &[Test] = &[
    Test::new(
        "kexec-empty",
        &[kexec::sets::empty_before, kexec::sets::empty_after],
    ),
    Test::new(
        "kexec-nothing",
        &[kexec::sets::nothing_before, kexec::sets::nothing_after],
    )
    .alone(),
    Test::new(
        "kexec-late-format",
        &[
            kexec::sets::late_format_before,
            kexec::sets::late_format_after,
        ],
    )
    .alone(),
    Test::new(
        "kexec-sessions",
        &[kexec::sets::sessions_before, kexec::sets::sessions_after],
    )
    .timeout(120),
    Test::new(
        "kexec-files",
        &[kexec::sets::files_before, kexec::sets::files_after],
    )
    .timeout(120),
    Test::new(
        "kexec-again",
        &[kexec::three_before, kexec::retrieve::again_after],
    ),
    Test::new(
        "kexec-finish",
        &[kexec::three_before, kexec::retrieve::finish_after],
    ),
    Test::new(
        "kexec-taken",
        &[kexec::three_before, kexec::retrieve::taken_after],
    ),
    Test::new(
        "kexec-closed",
        &[kexec::three_before, kexec::retrieve::closed_after],
    ),
    Test::new(
        "kexec-incoming",
        &[kexec::three_before, kexec::retrieve::incoming_after],
    ),
    Test::new(
        "kexec-unwritable-session",
        &[
            kexec::three_before,
            kexec::retrieve::unwritable_session_after,
        ],
    )
    .c_differs(),
    Test::new(
        "kexec-unwritable-file",
        &[kexec::three_before, kexec::retrieve::unwritable_file_after],
    ),
    Test::new(
        "kexec-half-writable-file",
        &[
            kexec::three_before,
            kexec::retrieve::half_writable_file_after,
        ],
    )
    .c_differs(),
    Test::new(
        "kexec-no-file",
        &[kexec::three_before, kexec::retrieve::no_file_after],
    )
    .c_differs()
    .rust_memfd(),
    Test::new(
        "kexec-race",
        &[kexec::retrieve::race_before, kexec::retrieve::race_after],
    ),
    Test::new(
        "race-kexec-killed",
        &[race::killed_before, race::killed_after],
    )
    .c_differs(),
    Test::new(
        "race-retrieve",
        &[race::retrieve_before, race::retrieve_after],
    )
    .c_differs()
    .alone(),
    Test::new("race-reboot", &[race::reboot_before, race::reboot_after])
        .c_differs()
        .alone(),
    Test::new(
        "kexec-names",
        &[kexec::sets::names_before, kexec::sets::names_after],
    ),
    Test::new(
        "kexec-once-more",
        &[
            kexec::three_before,
            kexec::repeated::once_more_middle,
            kexec::repeated::once_more_after,
        ],
    )
    .parameters("panic_on_warn=1"),
    Test::new("kexec-borders", &borders::CHAIN)
        .c_differs()
        .alone(),
    Test::new("kexec-borders-v5", &borders::CHAIN)
        .parameters("liveupdate.abi=luo-v5")
        .c_differs(),
    Test::new(
        "kexec-too-long",
        &[borders::too_long_before, borders::too_long_after],
    )
    .memory(3072)
    .timeout(1200)
    .parameters("liveupdate.abi=luo-v5")
    .c_differs()
    .long(),
    Test::new("endurance", &endurance::SHORT)
        .c_differs()
        .alone(),
    Test::new("endurance-long", &endurance::LONG)
        .c_differs()
        .long(),
    // The C LUO gives its root back while debugfs still shows it.
    Test::new(
        "kexec-shown",
        &[kexec::shown::shown_before, kexec::shown::shown_after],
    )
    .timeout(180)
    .c_differs(),
    Test::new(
        "kexec-full-blocks",
        &[
            kexec::sets::full_blocks_before,
            kexec::sets::full_blocks_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "kexec-gone",
        &[kexec::agents::gone_before, kexec::agents::gone_after],
    ),
    Test::new(
        "kexec-manager",
        &[kexec::agents::manager_before, kexec::agents::manager_after],
    ),
    Test::new("kexec-chain", &kexec::repeated::CHAIN).alone(),
    Test::new(
        "kexec-unclaimed",
        &[
            kexec::three_before,
            kexec::repeated::unclaimed_middle,
            kexec::three_after,
        ],
    )
    .c_differs(),
    Test::new(
        "kexec-unfinished",
        &[
            kexec::three_before,
            kexec::repeated::unfinished_middle,
            kexec::three_after,
        ],
    )
    .c_differs(),
    Test::new(
        "kexec-held",
        &[
            kexec::three_before,
            kexec::repeated::held_middle,
            kexec::repeated::held_after,
        ],
    )
    .c_differs(),
    Test::new(
        "kexec-unclaimed-many",
        &[
            kexec::sets::sessions_before,
            kexec::repeated::unclaimed_middle,
            kexec::repeated::unclaimed_middle,
            kexec::sets::sessions_after,
        ],
    )
    .timeout(120)
    .c_differs(),
    Test::new(
        "kexec-same-name",
        &[
            kexec::three_before,
            kexec::repeated::same_name_middle,
            kexec::repeated::same_name_after,
        ],
    ),
    Test::new(
        "kexec-finished",
        &[
            kexec::three_before,
            kexec::repeated::finished_middle,
            kexec::repeated::finished_after,
        ],
    ),
    Test::new(
        "kexec-busy",
        &[kexec::agents::busy_before, kexec::agents::busy_after],
    )
    .alone(),
    Test::new(
        "kexec-switched-off",
        &[device::leave_for_nobody, device::switched_off],
    )
    .next_parameters(&[("liveupdate", "off")]),
];
