# SPDX-License-Identifier: GPL-2.0
"""Tests of what the suite itself decides: none of it may hide a failure.

The suite runs them as `source/scripts/...` (host_tests.scripts).
"""

import contextlib
import io
import unittest
import unittest.mock
from pathlib import Path

import bench
import corrupt
import guest
import guest_tests
import kernel
import mutants
import package_guest
import packages
import vm_host
from common import REPO
from report import Pattern, Results


def outcome(console: str = "", report: str = "", trouble: str = "") -> guest.Outcome:
    """How a guest ended that said this."""
    return guest.Outcome(console.splitlines(), report.splitlines(), 1.0, trouble)


class Counted(unittest.TestCase):
    """report.Results."""

    def words(self, results: Results, status: int) -> list[str]:
        """The words at the end, of a run that must end with this status."""
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                unittest.mock.patch("report.junit.write"):
            self.assertEqual(results.end(), status)
        return out.getvalue().splitlines()

    def take(self, results: Results, method: str, *arguments) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(results, method)(*arguments)

    def test_a_pattern_picks_tests_but_not_verdicts(self):
        results = Results("rust/self/session-*")
        self.take(results, "add", "rust/self/session-names")
        self.take(results, "add", "rust/self/device-node", "not asked for")
        self.assertEqual((results.passed, results.failed), (1, 0))
        self.take(results, "verdict", "rust/self/@live/kernel-log", ["WARNING: here"])
        self.assertEqual(self.words(results, 1)[-1], "1 passed, 1 failed, 0 skipped")

    def test_the_skipped_are_named_and_counted(self):
        results = Results(None)
        self.take(results, "add", "host/abi/one")
        self.take(results, "skip", "7.2-to-rust/self/kexec-empty", "it is too late")
        self.take(results, "skip", "7.2-to-rust/self/kexec-files", "it is too late")
        words = self.words(results, 0)
        self.assertIn("skip  7.2-to-rust/self/kexec-files  (it is too late)", words)
        self.assertEqual(words[-1], "1 passed, 0 failed, 2 skipped")

    def test_nothing_is_no_success(self):
        self.words(Results("no-such-test"), 1)

    def test_patterns(self):
        for text, name, taken in (
                ("c", "c/self/kexec-empty", True),
                ("c", "rust/self/race-device", False),
                ("kexec-", "rust/self/kexec-empty", True),
                ("rust/self/kexec-*", "rust/self/kexec-empty", True),
                ("rust/self/kexec-*", "rust-memfd-c/self/kexec-empty", False)):
            self.assertEqual(Pattern(text).takes(name), taken, (text, name))


class Read(unittest.TestCase):
    """What guests say."""

    def test_ktap(self):
        for line, how, name in (
                ("ok 1 a-test", "ok", "a-test"),
                ("ok 2 - global.a_test", "ok", "global.a_test"),
                ("    not ok 3 a name with blanks # why", "not ok", "a name with blanks"),
                ("not ok 4", "not ok", "4"),
                ("ok 5 a-test # SKIP no such device", "skip", "a-test")):
            found = guest_tests.ktap([line])
            self.assertEqual([(each[0], each[1]) for each in found], [(how, name)], line)
        self.assertEqual(guest_tests.ktap(["# why", "not ok 1 x # more"])[0][2], ["why", "more"])
        self.assertEqual(guest_tests.ktap(["okay 1 x", "1..3", "ok x"]), [])

    def test_logs(self):
        good = {"kernel-log": None}
        self.assertIsNone(guest_tests.log_trouble(good, outcome("[ 0.1] fine")))
        # Before the guest's first program, or after its last word.
        for line in ("WARNING: mm/page_alloc.c:852", "BUG: KCSAN: data-race in shmem_record / f",
                     "BUG: unable to handle page fault", "Kernel panic - not syncing: Fatal"):
            self.assertTrue(guest_tests.log_trouble(good, outcome(line)), line)
        for line in ("BUG: KCSAN: data-race in tick_sched_do_timer / tick_nohz_next_event",
                     "Kernel panic - not syncing: sysrq triggered crash"):
            self.assertIsNone(guest_tests.log_trouble(good, outcome(line)), line)
        self.assertTrue(guest_tests.log_trouble({"kernel-log": ["boot 1: lost"]}, outcome()))
        self.assertTrue(guest_tests.log_trouble({}, outcome()))

    def test_alarms_are_those_of_the_guest(self):
        """What the guest's own tests look for, the console is searched for, too."""
        source = (kernel.REPO / "selftests/src/init/kernel_log.rs").read_text()
        words = source.split("const ALARMS")[1].split("];")[0].split('"')[1::2]
        self.assertGreater(len(words), 10)
        for word in words:
            self.assertTrue(outcome(f"x {word} y").alarms(), word)

    def test_own_tests(self):
        test = guest_tests.OwnTest.parse(
            "a-test kexecs=1 mem=2048 timeout=90 boot=a-test c=differs needs=MEMCG cpus=4 "
            "-- preempt=full kho_scratch=16M,1M,1M")
        self.assertEqual((test.name, test.memory, test.timeout), ("a-test", 2048, 90))
        self.assertEqual((test.processors, test.parameters),
                         (4, "preempt=full kho_scratch=16M,1M,1M"))
        self.assertFalse(test.passes("c", "c"))
        self.assertTrue(test.passes("rust", "c"))

    def test_needs(self):
        config = {"CONFIG_MEMCG": "y", "CONFIG_SWAP": "m"}
        for need, met in {"MEMCG": True, "SWAP": False, "NUMA": False,
                          "!MEMCG": False, "!NUMA": True}.items():
            self.assertEqual(guest_tests.is_met(config, need), met, need)

    def test_corruption(self):
        """What is lost must have been corrupted, and what was corrupted must be lost."""
        def judge(console: str, lost: str) -> list[str]:
            report = "".join(f"# corrupt-checked: lost: {each}\n" for each in lost.split(", ") if each)
            return corrupt.judge(outcome(console, f"{report}ok 1 corrupt-checked"),
                                 "corrupt-checked", True)

        hit = f"luo: corrupted: sessions {corrupt.session_byte(3, 9)}: 0x00 -> 0x01"
        self.assertEqual(judge(hit, "session 3"), [])
        self.assertTrue(judge(hit, ""))
        self.assertTrue(judge(hit, "session 3, session 4"))
        self.assertTrue(judge("nothing", ""))


class Mutants(unittest.TestCase):
    """mutants: names of tests."""

    def test_names_of_mutants_tests(self):
        for test, pattern, result in (
                ("race-killed", "rust/self/race-killed", "rust/self/race-killed"),
                ("distro/client32", "distro/self/client32", "distro/self/client32")):
            self.assertEqual(mutants.pattern(test), pattern)
            self.assertTrue(Pattern(pattern).takes(result))
            self.assertEqual(mutants.test_of(result), test)


class Measured(unittest.TestCase):
    """bench.growth_trouble."""

    def trouble(self, few: int, many: int) -> str:
        figures = {f"{name}@{count}": value for name in ("create", "preserve", "retrieve")
                   for count, value in ((100, few), (10_000, many))}
        measured = bench.Kernel("rust", Path(), Path(), Path(),
                                {bench.SESSIONS: figures, bench.SMALL: figures})
        return bench.growth_trouble(measured)["create"]

    def test_growth(self):
        self.assertEqual(self.trouble(2500, 2500), "")
        self.assertEqual(self.trouble(2500, int(2500 * (bench.GROWTH_LIMIT - 0.01))), "")
        self.assertTrue(self.trouble(2500, int(2500 * (bench.GROWTH_LIMIT + 0.01))))


class Heard(unittest.TestCase):
    """vm_host.Heart."""

    def heart(self, *told: tuple[float, float]) -> vm_host.Heart:
        """Of a guest that told its uptime at these times."""
        heart = vm_host.Heart(Path("none"))
        heart.beats = [vm_host.Beat(at, number, uptime, "boot", 0, 0)
                       for number, (at, uptime) in enumerate(told)]
        return heart

    def test_a_pause(self):
        # The guest was paused for 20 s; before that it had to wait for a processor.
        heart = self.heart((100, 1), (101, 2), (115.9, 3), (116, 17), (136.1, 17.1), (137, 18))
        self.assertEqual(heart.trouble(), [])
        self.assertAlmostEqual(heart.pause(), 20.1)
        self.assertAlmostEqual(heart.stood_still(), 20)

    def test_a_clock_that_jumps(self):
        heart = self.heart((100, 1), (101, 2), (121, 21.9), (122, 23))
        self.assertAlmostEqual(heart.stood_still(), 0.1)
        self.assertEqual(len(self.heart((100, 1), (101, 2), (102, 22)).trouble()), 1)

    def test_another_boot(self):
        self.assertIn("went back", self.heart((100, 9), (101, 1)).trouble()[0])


class Packaged(unittest.TestCase):
    """package_guest and packages: what they take out of texts. They themselves run in test-long."""

    def test_readme(self):
        before, after = package_guest.readme()
        self.assertTrue(before[0].startswith("dpkg -i luod_*.deb "))
        self.assertTrue(before[-1].startswith("luoctl update bzImage "))
        self.assertEqual([line.split()[:2] for line in after], [["luoctl", "retrieve"]])

    def test_flags(self):
        found = packages.flags(REPO / "tools/libliveupdate/liveupdate.pc.in", Path("/root"))
        self.assertEqual(found, ["-L/root@LIBDIR@", "-lliveupdate", "-I/root@PREFIX@/include"])


if __name__ == "__main__":
    unittest.main()
