// SPDX-License-Identifier: GPL-2.0

//! Tests across kexecs where resources are limited, memory is poisoned, processes are killed or user
//! space runs on, and on machines of many kinds.

use crate::{
    harness::Test,
    tests::{
        client32,
        freeze,
        kexec,
        killed,
        late,
        limits,
        machine,
        pages,
        poison,
        pressure, //
    }, //
};

/// An option that only the suite's kernel `distro` has, for what is only to run there.
const DISTRO: &str = "NUMA";

/// In the order in which they run.
pub const TESTS: &[Test] = &[
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
    Test::new(
        "machine-pages",
        &[pages::before, pages::middle, pages::after],
    )
    .memory(4096)
    .timeout(120)
    .c_differs()
    .rust_memfd()
    .alone(),
    Test::new(
        "machine-pages-refused",
        &[pages::refused_before, kexec::three_after],
    )
    .needs("ARM64")
    .c_differs()
    .alone(),
    Test::new("machine-movable", &[machine::movable])
        .memory(1280)
        .parameters("movablecore=800M")
        .needs("MEMORY_HOTPLUG")
        .rust_memfd(),
    Test::new("machine-zones", &[machine::zones])
        .memory(4608)
        .timeout(180)
        .parameters("kho_scratch=64M,64M,384M")
        // There an area has 512 MiB or more.
        .needs("!ARM64_64K_PAGES")
        .rust_memfd()
        .alone(),
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
];
