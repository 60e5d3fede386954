// SPDX-License-Identifier: GPL-2.0

//! Tests of memfds of huge pages. Each has a machine for itself, as they count what the pools have.

use crate::{
    harness::{
        Part,
        Test, //
    },
    tests::hugetlb::{
        absent,
        attributes,
        content,
        counts,
        gigantic,
        late,
        limits,
        repeated, //
    }, //
};

const fn test(name: &'static str, parts: &'static [Part]) -> Test {
    Test::new(name, parts).needs("LIVEUPDATE_HUGETLB").alone()
}

/// In the order in which they run.
pub const TESTS: &[Test] = &[
    test("hugetlb-frozen", &[counts::frozen]),
    test("hugetlb-mounted", &[counts::mounted]),
    test("hugetlb-poisoned", &[limits::poisoned])
        .needs("LIVEUPDATE_HUGETLB,MEMORY_FAILURE")
        .long(),
    test(
        "kexec-hugetlb-content",
        &[content::content_before, content::content_after],
    ),
    test(
        "kexec-hugetlb-sized",
        &[counts::sized_before, counts::sized_after],
    ),
    test(
        "kexec-hugetlb-discarded",
        &[counts::sized_before, counts::discarded_after],
    ),
    test(
        "kexec-hugetlb-exhausted",
        &[counts::before, counts::exhausted_after],
    )
    .c_differs(),
    test(
        "kexec-hugetlb-surplus",
        &[counts::surplus_before, counts::surplus_after],
    ),
    test(
        "kexec-hugetlb-attributes",
        &[attributes::before, attributes::after],
    ),
    test(
        "kexec-hugetlb-preserved",
        &[late::preserved_before, late::preserved_after],
    ),
    test(
        "kexec-hugetlb-late",
        &[late::frozen_before, late::frozen_after],
    )
    .c_differs(),
    test(
        "kexec-hugetlb-called-off",
        &[late::called_off_before, late::called_off_after],
    ),
    test(
        "kexec-hugetlb-used",
        &[limits::used_before, limits::used_after],
    ),
    test(
        "kexec-hugetlb-vmemmap",
        &[content::content_before, content::vmemmap_after],
    )
    .needs("LIVEUPDATE_HUGETLB,HUGETLB_PAGE_OPTIMIZE_VMEMMAP")
    .parameters("hugetlb_free_vmemmap=on"),
    test(
        "kexec-hugetlb-charged",
        &[limits::charged_before, limits::charged_after],
    )
    .needs("LIVEUPDATE_HUGETLB,CGROUP_HUGETLB"),
    test(
        "kexec-hugetlb-counted",
        &[limits::charged_before, limits::counted_after],
    )
    .needs("LIVEUPDATE_HUGETLB,MEMCG"),
    test(
        "kexec-hugetlb-nodes",
        &[limits::nodes_before, limits::nodes_after],
    )
    .needs("LIVEUPDATE_HUGETLB,NUMA")
    .memory(2048)
    .machine("numa")
    .long(),
    test(
        "kexec-hugetlb-corrupt",
        &[limits::corrupt_before, limits::corrupt_after],
    )
    .needs("LIVEUPDATE_HUGETLB,LIVEUPDATE_TEST_CORRUPT")
    .parameters("liveupdate.corrupt=huge:33:7"),
    test(
        "kexec-hugetlb-default",
        &[gigantic::default_before, gigantic::default_after],
    )
    .machine("max"),
    test(
        "kexec-hugetlb-gigantic",
        &[gigantic::before, gigantic::after],
    )
    .memory(10240)
    .parameters("hugepagesz=1G hugepages=2")
    .machine("max"),
    test(
        "kexec-hugetlb-gigantic-discarded",
        &[gigantic::before, gigantic::discarded_after],
    )
    .memory(10240)
    .parameters("hugepagesz=1G hugepages=2")
    .machine("max"),
    test(
        "kexec-hugetlb-missing",
        &[gigantic::missing_before, gigantic::missing_after],
    )
    .needs("LIVEUPDATE_HUGETLB,X86")
    .memory(10240)
    .parameters("hugepagesz=1G hugepages=2")
    .machine("max"),
    test(
        "kexec-hugetlb-crossing",
        &[
            gigantic::missing_before,
            gigantic::crossing_between,
            gigantic::after,
        ],
    )
    .needs("LIVEUPDATE_HUGETLB,X86")
    .c_differs()
    .memory(10240)
    .parameters("hugepagesz=1G hugepages=2")
    .machine("max"),
    test(
        "kexec-hugetlb-absent",
        &[repeated::before, absent::between, repeated::after],
    )
    .c_differs(),
    test(
        "kexec-hugetlb-absent-discarded",
        &[repeated::before, absent::discarded],
    ),
    test(
        "kexec-hugetlb-unclaimed",
        &[
            repeated::before,
            repeated::unclaimed_between,
            repeated::after,
        ],
    )
    .c_differs(),
    test(
        "kexec-hugetlb-retrieved",
        &[
            repeated::before,
            repeated::retrieved_between,
            repeated::after,
        ],
    )
    .c_differs(),
];
