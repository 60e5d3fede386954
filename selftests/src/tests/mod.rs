// SPDX-License-Identifier: GPL-2.0

//! All tests. Those that the C LUO of Linux 7.3 is known to fail are marked so; what it does
//! instead stands in the documentation of this project as a difference.

mod borders;
mod client32;
mod corrupt;
mod device;
mod driver;
mod endurance;
mod faults;
mod freeze;
mod kexec;
mod killed;
mod late;
mod lifetime;
mod limits;
mod look;
mod machine;
mod memfd;
mod memfd_use;
mod poison;
mod preserve;
mod pressure;
mod race;
mod reboot;
mod sample;
mod session;
mod subsystem;
mod sysfs;
mod tmpfs;

use crate::harness::Test;

/// An option that only the suite's kernel `distro` has, for what is only to run there.
const DISTRO: &str = "NUMA";

/// The table.
pub fn all() -> &'static [Test] {
    TESTS
}

const TESTS: &[Test] = &[
    // In one kernel.
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
    // Across kexecs.
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
        "limits-unprivileged-incoming",
        &[limits::handed_before, limits::handed_after],
    )
    .rust_memfd(),
    Test::new(
        "limits-retrieved",
        &[limits::retrieved_before, limits::retrieved_after],
    )
    .needs("MEMCG"),
    Test::new(
        "limits-retrieved-full",
        &[limits::full_retriever_before, limits::full_retriever_after],
    )
    .needs("MEMCG")
    .rust_memfd()
    .alone(),
    Test::new("poison", &[poison::before, poison::middle, poison::after])
        .needs("MEMORY_FAILURE")
        .c_differs()
        .rust_memfd()
        .alone(),
    Test::new("poison-refused", &[poison::refused])
        .needs("MEMORY_FAILURE")
        .rust_memfd()
        .alone(),
    Test::new("poison-luo-v5", &[poison::told_before, poison::told_after])
        .needs("MEMORY_FAILURE")
        .c_differs()
        .rust_memfd()
        .alone(),
    Test::new(
        "freeze-close",
        &[
            freeze::sessions::close_before,
            freeze::sessions::ended_after,
        ],
    )
    .timeout(30)
    .c_differs()
    .alone(),
    Test::new(
        "freeze-die",
        &[freeze::sessions::die_before, freeze::sessions::ended_after],
    )
    .timeout(30)
    .c_differs()
    .alone(),
    Test::new(
        "freeze-preserve-fails",
        &[
            freeze::sessions::preserve_fails_before,
            freeze::sessions::preserve_fails_after,
        ],
    )
    .timeout(30)
    .needs("FAULT_INJECTION")
    .c_differs()
    .alone(),
    Test::new(
        "freeze-same-name",
        &[
            kexec::three_before,
            freeze::sessions::same_name_middle,
            freeze::sessions::same_name_after,
        ],
    )
    .timeout(30)
    .c_differs()
    .alone(),
    Test::new(
        "freeze-touch",
        &[freeze::memory::touch_before, freeze::memory::touch_after],
    )
    .timeout(30)
    .processors(4)
    .needs("USERFAULTFD")
    .rust_memfd(),
    Test::new(
        "freeze-touch-huge",
        &[
            freeze::memory::touch_huge_before,
            freeze::memory::touch_huge_after,
        ],
    )
    .timeout(30)
    .rust_memfd()
    .alone(),
    Test::new(
        "freeze-write",
        &[freeze::memory::write_before, freeze::memory::write_after],
    )
    .timeout(30)
    .c_differs()
    .alone(),
    Test::new(
        "freeze-driver",
        &[freeze::memory::driver_before, freeze::memory::driver_after],
    )
    .timeout(30)
    .c_differs()
    .alone(),
    Test::new(
        "freeze-shutdown",
        &[
            freeze::memory::shutdown_before,
            freeze::memory::shutdown_after,
        ],
    )
    .timeout(30)
    .alone(),
    Test::new(
        "freeze-state",
        &[
            freeze::sessions::state_before,
            freeze::sessions::state_middle,
            freeze::sessions::state_after,
        ],
    )
    .timeout(30)
    .c_differs()
    .alone(),
    Test::new("late-preempted", &[late::preempted_before, late::after])
        .memory(2048)
        .processors(4)
        .parameters("preempt=full")
        .rust_memfd(),
    Test::new("late-outranked", &[late::outranked_before, late::after])
        .memory(2048)
        .processors(4)
        .rust_memfd(),
    Test::new("late-throttled", &[late::throttled_before, late::after])
        .memory(2048)
        .processors(4)
        .parameters("brd.rd_nr=1 brd.rd_size=262144")
        .needs("MEMCG")
        .rust_memfd(),
    Test::new(
        "killed-incoming",
        &[
            killed::incoming_before,
            killed::incoming_middle,
            killed::incoming_after,
        ],
    )
    .c_differs(),
    Test::new(
        "pressure-retrieve",
        &[pressure::before, pressure::all_after],
    )
    .timeout(180)
    .memory(1536)
    .processors(4),
    Test::new(
        "pressure-held",
        &[pressure::before, pressure::dropped_after],
    )
    .timeout(180)
    .processors(4)
    .parameters("nokaslr")
    .hold("shmem_restore_pages,store_pages,rust_helper_shmem_insert_pages")
    .rust_memfd(),
    Test::new("limits-full", &[limits::full_before, limits::full_after])
        .parameters("brd.rd_nr=1 brd.rd_size=65536")
        .needs("MEMCG")
        .rust_memfd(),
    Test::new("client32", &[client32::before, client32::after])
        .c_differs()
        .needs("IA32_EMULATION"),
    Test::new(
        "machine-later",
        &[machine::later_before, machine::later_after],
    )
    .machine("hotplug")
    .parameters("memhp_default_state=offline")
    .needs("MEMORY_HOTPLUG")
    .c_differs()
    .rust_memfd(),
    Test::new(
        "machine-records",
        &[machine::records_before, machine::records_after],
    )
    .memory(8192)
    .needs("DEFERRED_STRUCT_PAGE_INIT")
    .alone(),
    Test::new("machine-movable", &[machine::movable])
        .memory(1280)
        .parameters("movablecore=800M")
        .needs("MEMORY_HOTPLUG")
        .rust_memfd(),
    Test::new(
        "machine-scratch-odd",
        &[machine::scratch_before, machine::scratch_after],
    )
    .parameters("kho_scratch=133M,3M,5M")
    .needs(DISTRO),
    Test::new(
        "machine-scratch-none",
        &[machine::scratch_before, machine::scratch_after],
    )
    .parameters("kho_scratch=0M,0M,0M")
    .needs(DISTRO)
    .long(),
    Test::new(
        "machine-scratch-much",
        &[machine::scratch_before, machine::scratch_after],
    )
    .parameters("kho_scratch=16G,16G,16G")
    .needs(DISTRO)
    .long(),
    Test::new(
        "machine-scratch-nonsense",
        &[machine::scratch_before, machine::scratch_after],
    )
    .parameters("kho_scratch=all")
    .needs(DISTRO)
    .long(),
    Test::new(
        "machine-nodes",
        &[machine::nodes_before, machine::nodes_after],
    )
    .machine("numa")
    .processors(4)
    .needs(DISTRO),
    Test::new(
        "machine-nodes-off",
        &[machine::nodes_off_before, machine::nodes_off_after],
    )
    .machine("numa")
    .processors(4)
    .needs(DISTRO)
    .long(),
    Test::new(
        "machine-crash",
        &[machine::crash_before, machine::crash_after],
    )
    .memory(1536)
    // By default KHO's areas are as large as all that is reserved, and so would not fit beside this.
    .parameters("crashkernel=320M kho_scratch=64M,64M,64M")
    .needs("MAGIC_SYSRQ"),
    Test::new("machine-comes-back", &[machine::comes_back])
        .needs("KEXEC_JUMP")
        .alone(),
    Test::new(
        "machine-unplugged",
        &[machine::unplugged_before, machine::unplugged_after],
    )
    .needs("HIBERNATION")
    .timeout(120)
    .alone(),
    Test::new("machine-told", &machine::TOLD)
        .needs(DISTRO)
        .alone(),
    Test::new(
        "machine-off",
        &[
            machine::off_before,
            machine::off_between,
            machine::off_after,
        ],
    )
    .needs(DISTRO)
    .alone(),
    Test::new(
        "machine-no-handover",
        &[
            machine::no_handover_before,
            machine::off_between,
            machine::off_after,
        ],
    )
    .needs(DISTRO)
    .long(),
    Test::new(
        "machine-levels",
        &[
            machine::levels_before,
            machine::levels_between,
            machine::levels_after,
        ],
    )
    .machine("max")
    .needs(DISTRO)
    .c_differs()
    .long(),
    Test::new(
        "machine-early",
        &[machine::early_before, machine::early_after],
    )
    .memory(4096)
    .timeout(240)
    .processors(4)
    .needs("DEFERRED_STRUCT_PAGE_INIT")
    .long(),
    Test::new(
        "machine-many-processors",
        &[kexec::agents::busy_before, kexec::agents::busy_after],
    )
    .processors(8)
    .needs(DISTRO)
    .long(),
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
