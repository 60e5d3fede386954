# SPDX-License-Identifier: GPL-2.0
"""Tests that run in virtual machines: the tree's own, ours, and KUnit."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import guest
import hold
import overlay
import programs
from common import Failed
from kernel import STOCK_TESTS, Kernel, read_config
from machine import X86, Machine
from report import Results

# Virtual machines that a test may ask for, as options of QEMU, where {memory} is what it has in MiB.
MACHINES = {
    "": "",
    # With a module of memory that came later, and room for another.
    "hotplug": "-m {memory}M,slots=4,maxmem=16G -object memory-backend-ram,id=later,size=512M "
               "-device pc-dimm,id=module,memdev=later",
    # Two nodes with a half of the memory and of the processors each, and one with nothing.
    "numa": "-smp 4,sockets=2 -object memory-backend-ram,id=one,size={half}M "
            "-object memory-backend-ram,id=other,size={half}M "
            "-numa node,nodeid=0,memdev=one,cpus=0-1 -numa node,nodeid=1,memdev=other,cpus=2-3 "
            "-numa node,nodeid=2",
    # A processor with all that the emulator has.
    "max": "-cpu max",
}
FLBS = [f"liveupdate-test-flb-v{number}" for number in range(3)]


def busybox(archive: guest.Initramfs, script: str, machine: Machine = X86) -> None:
    """Gives an initramfs a shell script for its first process, in which $report is the second port."""
    archive.folder("bin")
    archive.file("bin/busybox", machine.busybox, 0o755)
    archive.bytes("init", f"""#!/bin/busybox sh
export PATH=/bin report=/dev/{machine.report}
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
stty -F $report raw
{script}
echo done >$report
reboot -f
""".encode(), 0o755)


def story(outcome: guest.Outcome) -> list[str]:
    """What to show of a guest that failed."""
    words = [outcome.trouble] if outcome.trouble else []
    words += [line for line in outcome.report if line.startswith("Bail out!")]
    if alarms := outcome.alarms():
        return [*words, "the kernel's log has:", *alarms]
    tail = [line for line in outcome.console if line.strip()][-15:]
    return [*(words or ["the guest ended early"]), "the end of the kernel's log:", *tail]


def log_trouble(found: Mapping[str, list[str] | None], outcome: guest.Outcome) -> list[str] | None:
    """What is wrong with the kernel's log of a guest that ran our tests, of all its boots.

    The guest's word counts, as it knows of lost memory; and what its console says, as that has
    the earliest boot and the way down, too.
    """
    if outcome.alarms() or outcome.trouble:
        return story(outcome)
    return found.get("kernel-log", ["the guest has not told"])


def ktap(lines: list[str]) -> list[tuple[str, str, list[str]]]:
    """Reads results (`ok`, `not ok` or `skip`; name; remarks) of the lowest level of a KTAP text."""
    results: list[tuple[str, str, list[str]]] = []
    remarks: list[str] = []
    for line in lines:
        if match := re.match(r"\s*(ok|not ok) (\d+)(?: - | |$)(.*?)(?:\s+#\s*(.*))?$", line):
            how = "skip" if (match[4] or "").upper().startswith("SKIP") else match[1]
            # A test need not have a name, and a name may have blanks.
            results.append((how, match[3].strip() or match[2],
                            remarks + ([match[4]] if match[4] else [])))
            remarks = []
        elif match := re.match(r"\s*#\s+(.*)", line):
            remarks.append(match[1])
    return results


def stock_names(tree: Path) -> list[str]:
    """The tests in the tree's liveupdate.c."""
    source = (tree / STOCK_TESTS / "liveupdate.c").read_text()
    names = re.findall(r"^TEST_F\((\w+), (\w+)\)", source, re.MULTILINE)
    return [f"{fixture}.{test}" for fixture, test in names]


@dataclass
class Bench:
    """One kernel under test, and where its runs leave their files."""

    name: str
    built: Kernel
    modules: list[Path]
    system_map: Path
    client32: Path | None
    folder: Path
    results: Results

    def archive(self, name: str = "initramfs") -> guest.Initramfs:
        return guest.Initramfs(self.folder / f"{name}.cpio")

    @property
    def machine(self) -> Machine:
        return self.built.variant.machine

    @property
    def slow(self) -> int:
        """How much slower it may be than an ordinary kernel."""
        return self.machine.slow * (8 if self.built.variant.purpose in ("debug", "kcsan") else 1)

    def boot(self, folder: Path | None = None, *, command_line: str = "", memory: int = 1024,
             timeout: float, silence: float = 0, start: float = guest.START, **options) -> guest.Outcome:
        """A guest with the bench's kernel and archive; its logs go to `folder`."""
        memory = max(memory, self.machine.memory)
        if self.built.variant.purpose == "debug":
            # KASAN sets an eighth of all memory aside. KHO would make its scratch area twice
            # that, for which there is no room, and the next kernel needs once that there.
            memory += 1024
            command_line = f"kho_scratch=16M,{memory // 8 + 256}M,64M {command_line}"
        return guest.run(self.built.image, self.folder / "initramfs.cpio", folder or self.folder,
                         command_line=command_line, memory=memory, timeout=timeout * self.slow,
                         silence=silence * self.slow, start=start * self.slow, machine=self.machine,
                         **options)

    def harness(self, stock: programs.Stock) -> None:
        """The tree's liveupdate.c: every test of it must pass."""
        prefix = f"{self.name}/stock/liveupdate/"
        wanted = [name for name in stock_names(self.built.tree) if self.results.wants(prefix + name)]
        if not wanted:
            return
        with self.archive() as archive:
            busybox(archive, "/liveupdate >$report 2>&1", self.machine)
            archive.file("liveupdate", stock.folder / "liveupdate", 0o755)
        outcome = self.boot(timeout=120)
        found = {name: (how, remarks) for how, name, remarks in ktap(outcome.report)}
        alarms = outcome.alarms()
        for name in wanted:
            how, remarks = found.get(name, ("", []))
            why = None if how == "ok" else remarks or story(outcome)
            self.results.add(prefix + name, why)
        self.results.verdict(f"{prefix}kernel-log",
                             story(outcome) if alarms or outcome.trouble else None, outcome.seconds)

    def kselftest(self, program: Path) -> None:
        """Our tests as an ordinary process runs them, which tells KTAP and a status."""
        name = f"{self.name}/kselftest"
        with self.archive() as archive:
            busybox(archive, "mount -t sysfs sys /sys\n/luo-selftest >$report 2>&1; echo status $? >$report",
                    self.machine)
            archive.file("luo-selftest", program, 0o755)
        outcome = self.boot(timeout=600)
        found = ktap(outcome.report)
        trouble = [f"{test}: {' '.join(remarks) or how}" for how, test, remarks in found
                   if how == "not ok"]
        if outcome.trouble or outcome.alarms():
            trouble += story(outcome)
        if f"1..{len(found)}" not in outcome.report or len(found) < 20:
            trouble.append(f"the plan is not what was told: {len(found)} results")
        if not all(line in outcome.report for line in ("KTAP version 1", "status 0")):
            trouble.append("there is no version, or the status is not 0")
        self.results.add(name, trouble, outcome.seconds)

    def kexec_tests(self, stock: programs.Stock, group: str = "", then: "Bench | None" = None,
                    options: str = "") -> None:
        """The tree's kexec tests, and the FLB test of its kernel as one of them runs.

        The kernel of `then` is the next one.
        """
        group, then = group or self.name, then or self
        for test in stock.KEXEC:
            name, flb = f"{group}/stock/{test}", f"{group}/stock/flb"
            with_flb = test == "luo_kexec_simple" and self.results.wants(flb)
            if not self.results.wants(name) and not with_flb:
                continue
            with self.archive("inner") as inner:
                inner.file("init", stock.folder / "init", 0o755)
                inner.file("test_binary", stock.folder / test, 0o755)
            with self.archive() as archive:
                archive.file("init", stock.folder / "init", 0o755)
                archive.file("test_binary", stock.folder / test, 0o755)
                archive.file("kernel", then.built.image)
                archive.file("initrd.img", self.folder / "inner.cpio")
            outcome = self.boot(command_line=options, timeout=180)
            # The kernel may speak in the middle of a line.
            passed = any("TEST PASSED" in line or "Stage 2 completed successfully" in line
                         for line in outcome.console)
            good = passed and not outcome.alarms() and not outcome.trouble
            self.results.add(name, None if good else story(outcome), outcome.seconds)
            if with_flb:
                self.results.add(flb, self.flb_trouble(outcome.console))

    @staticmethod
    def flb_trouble(console: list[str]) -> list[str]:
        """Checks what lib/tests/liveupdate.c says on both sides of a kexec."""
        text = [line for line in console if "liveupdate test: " in line]
        trouble = [line for line in text if "ERROR" in line or "ailed" in line]
        # The new kernel looks for them before it registers them.
        first = next((n for n, line in enumerate(text) if "found flb data" in line), len(text))
        for kernel, lines in (("old", text[:first]), ("new", text[first:])):
            if not any("Registered 3 FLBs" in line for line in lines):
                trouble.append(f"the {kernel} kernel registered none")
        for flb in FLBS:
            for word, lines in (("preserve was triggered", text[:first]),
                                ("found flb data from the previous boot", text[first:]),
                                ("finish was triggered", text[first:])):
                count = sum(line.endswith(f"{flb}: {word}") for line in lines)
                if count != 1:
                    trouble.append(f"`{flb}: {word}' came {count} times")
        return trouble

    def kunit(self) -> None:
        """The kernel's KUnit suites: ours, and of the documentation's examples those of ours."""
        group = f"{self.name}/kunit"
        if not self.results.asks_for(group):
            return
        with self.archive() as archive:
            busybox(archive, "", self.machine)
        outcome = self.boot(command_line="kunit.enable=1", timeout=300, start=300)
        # An example in rust/kernel/a/b.rs is called after its file.
        examples = tuple("rust_doctest_kernel_" + re.sub("[/.]", "_", name) + "_"
                         for path in overlay.files()
                         if (name := path.as_posix().removeprefix("rust/kernel/")) != path.as_posix())
        # Tests are one level below their suites.
        suite, found = "?", list[tuple[str, list[str]]]()
        for line in outcome.console:
            if match := re.match(r"\s+# Subtest: (\S+)", line):
                suite = match[1]
                found.append((suite, []))
            elif found and re.match(r"\s+\S", line):
                found[-1][1].append(line)
        count = 0
        for suite, lines in found:
            for how, name, remarks in ktap(lines):
                if suite == "rust_doctests_kernel" and not name.startswith(examples):
                    continue
                count += 1
                self.results.add(f"{group}/{suite}/{name}", None if how == "ok" else
                                 remarks or [how], group=group)
        alarms = outcome.alarms()
        why = story(outcome) if alarms or outcome.trouble else None
        if not count:
            why = ["no KUnit test ran", *story(outcome)]
        self.results.verdict(f"{group}/kernel-log", why, outcome.seconds)

    def own(self, program: Path, listed: list["OwnTest"], group: str = "",
            then: Sequence["Bench"] = (), options: str = "",
            pick: Callable[["OwnTest"], bool] | None = None) -> None:
        """Our tests from user space, those that can share a boot in one.

        The kernels of the benches in `then` are the next ones, in turn. Of the tests those
        are run that `pick` takes, by default all that each of the kernels should pass.
        """
        prefix = f"{group or self.name}/self/"
        variants = [bench.built.variant for bench in (self, *then)]
        core = "c" if any(variant.core == "c" for variant in variants) else "rust"
        memfd = "c" if any(variant.memfd_impl == "c" for variant in variants) else "rust"
        config = read_config(self.built.folder / ".config")
        listed = [test for test in listed
                  if all(is_met(config, need) for need in test.needs)]
        able = [test for test in listed if test.passes(core, memfd)]
        boots: dict[str, list[OwnTest]] = {}
        for test in filter(pick, listed) if pick else able:
            if self.results.wants(prefix + test.name):
                boots.setdefault(test.boot, []).append(test)
        with self.archive() as archive:
            archive.file("init", program, 0o755)
            if self.client32:
                archive.file("boot/client32", self.client32, 0o755)
            kernels = {"kernel": self, **{bench.name: bench for bench in then}}
            for name, bench in kernels.items():
                archive.file(f"boot/{name}", bench.built.image)
                for module in bench.modules:
                    archive.file(f"boot/{name}-{module.name}", module)
        if then:
            options += " luo.kernels=" + ",".join(f"/boot/{bench.name}" for bench in then)
        impl = f"luo.core={core} luo.memfd={memfd} luo.slow={self.slow} {options}"

        def run(boot: str, tests: list[OwnTest]) -> None:
            # A command line has no room for the names of many.
            whole = tests == [test for test in able if test.boot == boot]
            names = boot if whole else ",".join(test.name for test in tests)
            found: dict[str, list[str] | None] = {}
            try:
                holder = hold.Holder(self.system_map, tests[0].hold, self.machine.registers)
            except Failed as why:
                self.results.add(prefix + tests[0].name, str(why))
                return

            def result(line: str) -> None:
                for how, name, remarks in ktap([line]):
                    found[name] = None if how == "ok" else remarks or [how]
                    # With one alone, what is said of the kernel's log is said of the test.
                    if name != "kernel-log" and len(tests) > 1:
                        self.results.add(prefix + name, found[name])

            with tempfile.TemporaryDirectory(dir=self.folder, prefix="boot-") as folder, holder:
                outcome = self.boot(Path(folder), on_line=result,
                                    command_line=f"{impl} luo.test={names} {tests[0].parameters}",
                                    memory=max(test.memory for test in tests),
                                    processors=max(test.processors for test in tests),
                                    timeout=60 + sum(test.timeout for test in tests),
                                    silence=20 + max(test.timeout for test in tests),
                                    options=[*tests[0].machine_options, *holder.options])
            missing = [test.name for test in tests if test.name not in found]
            bad_log = ["see above"] if missing else log_trouble(found, outcome)
            for number, name in enumerate(missing):
                self.results.add(prefix + name, story(outcome) if not number else
                                 ["did not run: the guest ended before"])
            if len(tests) > 1:
                self.results.verdict(f"{prefix}{boot}/kernel-log", bad_log, outcome.seconds)
            elif not missing:
                self.results.add(prefix + tests[0].name,
                                 found[tests[0].name] or bad_log or holder.trouble,
                                 outcome.seconds)

        # The longest first, so that none is left to run alone.
        longest = sorted(boots.items(), key=lambda boot: -sum(test.timeout for test in boot[1]))
        guest.side_by_side([partial(run, *item) for item in longest])


def is_met(config: Mapping[str, str], need: str) -> bool:
    """Whether a kernel has the option that a test needs; or has not the one behind a `!`."""
    option = need.removeprefix("!")
    return (config.get(f"CONFIG_{option}") == "y") == (option == need)


@dataclass(frozen=True)
class OwnTest:
    """A line of `luo-selftest list`."""

    name: str
    boot: str
    memory: int
    timeout: int
    c_differs: bool
    rust_memfd: bool
    long: bool
    needs: list[str]            # options of the kernel: see is_met()
    processors: int
    hold: list[str]             # in which functions of the kernel to hold the first processor
    machine: str                # see MACHINES; such a test is alone in its boot, as
    parameters: str             # one with parameters for the kernel

    @property
    def machine_options(self) -> list[str]:
        """What QEMU needs to be told for its machine."""
        return MACHINES[self.machine].format(memory=self.memory, half=self.memory // 2).split()

    def passes(self, core: str, memfd: str) -> bool:
        """Whether it should pass under these implementations."""
        return not (core == "c" and self.c_differs or memfd == "c" and self.rust_memfd)

    @staticmethod
    def parse(line: str) -> "OwnTest":
        line, _, parameters = line.partition(" -- ")
        name, *words = line.split()
        word = dict(item.split("=", 1) for item in words if "=" in item)

        def listed(key: str) -> list[str]:
            return list(filter(None, word.get(key, "").split(",")))

        return OwnTest(name, word.get("boot", name), int(word.get("mem", 1024)),
                       int(word.get("timeout", 60)), word.get("c") == "differs",
                       word.get("memfd") == "rust", word.get("when") == "long",
                       listed("needs"), int(word.get("cpus", 2)),
                       listed("hold"), word.get("machine", ""), parameters)
