// SPDX-License-Identifier: GPL-2.0

//! Tests across kexecs of drivers, subsystems and what can fail or is shown.

use crate::{
    harness::Test,
    tests::{
        corrupt,
        device,
        driver,
        faults,
        kexec,
        look,
        reboot,
        sample,
        subsystem,
        sysfs,
        target, //
    }, //
};

/// In the order in which they run.
pub const TESTS: &[Test] = &[
    Test::new(
        "reboot-no-handover",
        &[reboot::no_handover_before, reboot::no_handover_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "reboot-memory",
        &[reboot::memory_before, reboot::memory_after],
    )
    .c_differs()
    .alone(),
    Test::new("sysfs-refused", &[sysfs::refused])
        .c_differs()
        .alone(),
    Test::new(
        "reboot-no-handover-incoming",
        &[
            kexec::three_before,
            reboot::no_handover_middle,
            kexec::three_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "reboot-refused",
        &[
            reboot::refused_before,
            reboot::refused_middle,
            reboot::refused_after,
        ],
    )
    .next_parameters(&[("liveupdate.abi", "luo-v5")])
    .c_differs()
    .rust_memfd(),
    Test::new(
        "reboot-late-requests",
        &[kexec::three_before, reboot::late_middle, reboot::late_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-freeze-fails",
        &[
            driver::incoming::freeze_fails_before,
            driver::incoming::freeze_fails_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-shared",
        &[driver::shared::shared_before, driver::shared::shared_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-shared-fails",
        &[
            driver::shared::shared_fails_before,
            driver::shared::shared_fails_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-late",
        &[driver::incoming::late_before, driver::incoming::late_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-unload-incoming",
        &[
            driver::incoming::unload_incoming_before,
            driver::incoming::unload_incoming_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-retrieve-fails",
        &[
            driver::incoming::retrieve_fails_before,
            driver::incoming::retrieve_fails_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-refuses",
        &[
            driver::incoming::refused_before,
            driver::incoming::refused_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-try-again",
        &[
            driver::incoming::try_again_before,
            driver::incoming::try_again_after,
        ],
    )
    .c_differs()
    .alone(),
    Test::new(
        "driver-target",
        &[target::driver_before, target::driver_after],
    )
    .c_differs()
    .alone(),
    Test::new("faults-open", &[faults::open])
        .timeout(300)
        .needs("FAULT_INJECTION"),
    Test::new("faults-create", &[faults::create])
        .timeout(300)
        .needs("FAULT_INJECTION"),
    Test::new("faults-preserve", &[faults::preserve])
        .timeout(600)
        .c_differs()
        .needs("FAULT_INJECTION"),
    Test::new("faults-driver", &[faults::driver])
        .timeout(300)
        .needs("FAULT_INJECTION"),
    Test::new(
        "faults-freeze",
        &[faults::freeze_before, faults::freeze_after],
    )
    .rust_memfd()
    .c_differs()
    .needs("FAULT_INJECTION")
    .alone(),
    Test::new("faults-kexec", &[faults::kexec_before, faults::kexec_after])
        .timeout(600)
        .rust_memfd()
        .c_differs()
        .needs("FAULT_INJECTION")
        .alone(),
    Test::new(
        "sample-rust-rust",
        &[sample::rust_before, sample::rust_after],
    )
    .alone(),
    Test::new("sample-rust-c", &[sample::rust_before, sample::c_after]).alone(),
    Test::new("sample-c-rust", &[sample::c_before, sample::rust_after]).alone(),
    Test::new("sample-c-c", &[sample::c_before, sample::c_after]).alone(),
    Test::new(
        "sample-back-and-forth",
        &[
            sample::rust_before,
            sample::c_between,
            sample::rust_between,
            sample::c_after,
        ],
    )
    .alone(),
    Test::new(
        "sample-discarded",
        &[sample::c_before, sample::discarded_after],
    )
    .alone(),
    Test::new("reboot-abi", &[reboot::abi_before, reboot::abi_after])
        .c_differs()
        .rust_memfd()
        .alone(),
    Test::new("reboot-auto", &[reboot::auto_before, reboot::auto_after])
        .c_differs()
        .rust_memfd()
        .alone(),
    Test::new("look-secret", &[look::secret])
        .c_differs()
        .alone(),
    Test::new("look-raced", &[look::raced]).c_differs().alone(),
    Test::new("look-many", &[look::before, look::after])
        .timeout(120)
        .c_differs()
        .alone(),
    Test::new("look-summary", &[look::summary_before, look::summary_after])
        .c_differs()
        .rust_memfd()
        .alone(),
    Test::new("look-traced-raced", &[look::traced_raced])
        .timeout(120)
        .c_differs()
        .needs("EVENT_TRACING")
        .alone(),
    Test::new(
        "look-traced",
        &[
            look::traced_before,
            look::traced_between,
            look::traced_after,
        ],
    )
    .next_parameters(&[
        ("trace_event", "liveupdate:*"),
        // The token of the first file.
        ("liveupdate.corrupt", "files:72:9"),
    ])
    .c_differs()
    .needs("EVENT_TRACING"),
    Test::new("subsystem-events", &[subsystem::events])
        .c_differs()
        .alone(),
    Test::new("subsystem-cancel-fails", &[subsystem::cancel_fails])
        .c_differs()
        .alone(),
    Test::new(
        "subsystem-refuse",
        &[subsystem::refuse_before, subsystem::refuse_after],
    )
    .c_differs()
    .alone(),
    Test::new("subsystem-chain", &subsystem::CHAIN)
        .c_differs()
        .alone(),
    Test::new(
        "subsystem-late",
        &[subsystem::late_before, subsystem::late_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "subsystem-version",
        &[subsystem::version_before, subsystem::version_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "subsystem-refused-state",
        &[subsystem::version_before, subsystem::refused_after],
    )
    .c_differs()
    .alone(),
    Test::new("subsystem-unload", &[subsystem::unload])
        .timeout(240)
        .c_differs()
        .alone(),
    Test::new(
        "subsystem-notifier",
        &[subsystem::notifier_before, subsystem::notifier_after],
    )
    .c_differs()
    .alone(),
    Test::new(
        "subsystem-nothing",
        &[subsystem::nothing_before, subsystem::nothing_after],
    )
    .c_differs()
    .alone(),
    Test::new("sysfs-update", &[sysfs::update_before, sysfs::update_after])
        .c_differs()
        .alone(),
    Test::new("sysfs-off", &[device::leave_for_nobody, sysfs::off])
        .next_parameters(&[("liveupdate", "off")])
        .c_differs(),
    // These two are there for the suite's group `corrupt'; without corruption they just pass.
    Test::new("corrupt-checked", &[corrupt::before, corrupt::after])
        .c_differs()
        .rust_memfd()
        .alone(),
    Test::new("corrupt-unchecked", &[corrupt::before, corrupt::survived])
        .c_differs()
        .rust_memfd()
        .alone(),
];
