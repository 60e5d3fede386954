// SPDX-License-Identifier: GPL-2.0

//! Tests that need no kexec.

use crate::{
    harness::Test,
    tests::{
        device,
        driver,
        killed,
        lifetime,
        limits,
        memfd,
        preserve,
        race,
        reboot,
        session,
        sysfs, //
    }, //
};

/// In the order in which they run.
pub const TESTS: &[Test] = &[
    Test::new("device-node", &[device::node]),
    Test::new("device-exclusive", &[device::exclusive]),
    Test::new("device-inherited", &[device::inherited]),
    Test::new("device-sessions-stay", &[device::sessions_stay]),
    Test::new("device-unknown-requests", &[device::unknown_requests]),
    Test::new("device-mangled-requests", &[device::mangled_requests]),
    Test::new("device-sizes", &[device::sizes]),
    Test::new("device-unreadable", &[device::unreadable]),
    Test::new("device-no-descriptor", &[device::no_descriptor]),
    Test::new("device-other-calls", &[device::other_calls]),
    Test::new("session-names", &[session::names]),
    Test::new("session-duplicates", &[session::duplicates]),
    Test::new("session-answer-unwritable", &[session::answer_unwritable]),
    Test::new(
        "session-answer-half-writable",
        &[session::answer_half_writable],
    )
    .c_differs(),
    Test::new("session-no-file", &[session::no_file]),
    Test::new("session-many", &[session::many]).timeout(120),
    Test::new("session-descriptor", &[session::descriptor]),
    Test::new("session-other-calls", &[session::other_calls]),
    Test::new("session-get-name", &[session::get_name]),
    Test::new("session-not-incoming", &[session::not_incoming]),
    Test::new("session-unknown-requests", &[session::unknown_requests]),
    Test::new("session-sizes", &[session::sizes]),
    Test::new("session-retrieve-unknown", &[session::retrieve_unknown]),
    Test::new("preserve-bad-descriptor", &[preserve::bad_descriptor]),
    Test::new("preserve-unsupported", &[preserve::unsupported]),
    Test::new("preserve-token-taken", &[preserve::token_taken]),
    Test::new("preserve-token-values", &[preserve::token_values]),
    Test::new("preserve-twice", &[preserve::twice]),
    Test::new("preserve-answer-unwritable", &[preserve::answer_unwritable]).c_differs(),
    Test::new("preserve-frozen", &[preserve::frozen]),
    Test::new("preserve-many", &[preserve::many]).timeout(120),
    Test::new("preserve-no-leak", &[preserve::no_leak]),
    Test::new("preserve-rounds", &[preserve::rounds])
        .timeout(180)
        .alone(),
    Test::new("preserve-killed", &[preserve::killed]),
    Test::new("preserve-sealed", &[preserve::sealed]),
    Test::new("preserve-access-modes", &[preserve::access_modes]),
    Test::new("preserve-huge-sparse", &[preserve::huge_sparse]).rust_memfd(),
    Test::new("memfd-raced", &[memfd::content::raced]).rust_memfd(),
    Test::new("lifetime-shared", &[lifetime::shared]),
    Test::new("lifetime-used-by-child", &[lifetime::used_by_child]),
    Test::new("lifetime-killed", &[lifetime::killed]),
    Test::new("lifetime-passed", &[lifetime::passed]),
    Test::new("lifetime-taken", &[lifetime::taken]),
    Test::new("lifetime-contended", &[lifetime::contended]),
    Test::new("lifetime-closed-in-use", &[lifetime::closed_in_use]),
    Test::new("limits-unprivileged", &[limits::unprivileged]),
    Test::new("limits-charged", &[limits::charged])
        .c_differs()
        .needs("MEMCG"),
    Test::new("race-device", &[race::device]),
    Test::new("race-killed", &[race::killed]),
    Test::new("race-passed", &[race::passed]),
    Test::new("reboot-no-image", &[reboot::no_image]).alone(),
    Test::new("driver-interface", &[driver::outgoing::interface]),
    Test::new("driver-unload", &[driver::outgoing::unload]),
    Test::new("driver-choice", &[driver::outgoing::choice]),
    Test::new("driver-same-file", &[driver::outgoing::same_file]),
    Test::new("driver-preserve-again", &[driver::outgoing::preserve_again]),
    Test::new(
        "driver-choice-unloading",
        &[driver::outgoing::choice_unloading],
    )
    .c_differs(),
    Test::new("driver-preserve-fails", &[driver::outgoing::preserve_fails]),
    // Alone, as what others made the kernel say counts as well.
    Test::new("driver-quiet", &[driver::outgoing::quiet])
        .c_differs()
        .alone(),
    Test::new("driver-shared-undone", &[driver::shared::shared_undone]),
    Test::new("killed-outgoing", &[killed::outgoing])
        .c_differs()
        .alone(),
    Test::new("sysfs-files", &[sysfs::files])
        .c_differs()
        .alone(),
    Test::new("sysfs-cold", &[sysfs::cold]).c_differs().alone(),
    Test::new("sysfs-writes", &[sysfs::writes])
        .c_differs()
        .alone(),
];
