# SPDX-License-Identifier: GPL-2.0
"""Measures what live updates cost: loads, guests that carry them, and the table.

A guest has one processor whose counter counts instructions (TCG with -icount),
so the figures are numbers of instructions and repeat exactly. Each load has a
guest of its own, on each kernel. Its program is in bench/.
"""

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import exp, inf, log
from pathlib import Path
from statistics import median

import guest
from common import JOBS, Failed, say

GROWTH = (0, 100, 1_000, 10_000)        # as in bench/src/stages.rs
# What one more may take with the most there, as a multiple of what it takes with few: instructions
# repeat exactly, and a tree of ten thousand is seven levels deeper than one of a hundred.
GROWTH_LIMIT = 1.1
MIB = 256                               # pages


@dataclass(frozen=True)
class Load:
    """What crosses the kexec, and the guest that carries it."""

    sessions: int = 0
    files: int = 0
    pages: int = 0
    fill: str = "order"
    undo: bool = False          # nothing crosses: all is given up again
    memory: int = 4096          # of the guest, in MiB
    options: str = ""           # of the kernel
    seed: int = 1

    @property
    def command_line(self) -> str:
        words = [f"bench.{key}={getattr(self, key)}"
                 for key in ("sessions", "files", "pages", "fill")]
        return " ".join([*words, *(["bench.undo=1"] if self.undo else []), self.options]).strip()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    load: Load
    figure: str
    per: int = 1                # the figure is divided by this
    unit: str = ""
    watched: bool = False       # no aim, but it must not become worse


def empty(load: Load, seed: int = 1) -> Load:
    """The same guest with nothing to carry."""
    return Load(memory=load.memory, options=load.options, seed=seed)


HUGE = "transparent_hugepage_shmem=always"
# Areas of KHO where little else comes from: nearly nothing has to be moved out of them.
CLEAR = "kho_scratch=96M,16M,0M"
SESSIONS = Load(10_000, undo=True)
SMALL = Load(1, 10_000, 1)
LARGE = {"64 MiB": Load(1, 1, 64 * MIB), "1 GiB": Load(1, 1, 1024 * MIB),
         "1 GiB clear of KHO's areas": Load(1, 1, 1024 * MIB, options=CLEAR),
         "4 GiB": Load(1, 1, 4096 * MIB, memory=9216)}
FRAGMENTED = {"64 MiB, touched in random order": Load(1, 1, 64 * MIB, "random"),
              "64 MiB in fragmented single pages": Load(1, 1, 64 * MIB, "fragmented")}
HUGE_PAGES = {"64 MiB in huge pages": Load(1, 1, 64 * MIB, options=HUGE),
              "1 GiB in huge pages": Load(1, 1, 1024 * MIB, options=HUGE),
              "1 GiB in huge pages clear of KHO's areas":
                  Load(1, 1, 1024 * MIB, options=f"{HUGE} {CLEAR}")}
# In C this is the C LUO with our handler: it has none for such files.
HUGETLB = {"64 MiB in HugeTLB pages": Load(1, 1, 64 * MIB, "hugetlb"),
           "1 GiB in HugeTLB pages": Load(1, 1, 1024 * MIB, "hugetlb")}
SPARSE = Load(1, 1, 256 * MIB, "holes")
# Whose mappings may be touched while they are frozen.
MAPPED = Load(1, 10_000, 16, "mapped")
LATE = {"64 MiB that was written late": Load(1, 1, 64 * MIB, "late"),
        "1 GiB that was written late": Load(1, 1, 1024 * MIB, "late")}
MANY = {"64 sessions of one file of 4 MiB": Load(64, 1, 4 * MIB),
        "2 000 sessions of one small file": Load(2_000, 1, 1),
        "100 sessions of 100 small files": Load(100, 100, 1)}


def rows() -> list[Row]:
    def growth(what: str, load: Load, figure: str) -> list[Row]:
        return [Row(f"{what}, {spaced(n)} there", load, f"{figure}@{n}") for n in GROWTH]

    table = [
        *growth("create a session", SESSIONS, "create"),
        Row("create 10 000 sessions", SESSIONS, "create"),
        *growth("preserve a 4 KiB memfd", SMALL, "preserve"),
        Row("preserve 10 000 small files", SMALL, "preserve"),
        *growth("retrieve a 4 KiB memfd", SMALL, "retrieve"),
        Row("retrieve 10 000 small files", SMALL, "retrieve"),
    ]
    files = LARGE | FRAGMENTED | HUGE_PAGES | HUGETLB
    for figure in ("preserve", "retrieve"):
        table += [Row(f"{figure} {name}", load, figure, load.pages, "a page")
                  for name, load in files.items()]
    table += [Row("preserve 256 MiB with two pages", SPARSE, "preserve"),
              Row("retrieve 256 MiB with two pages", SPARSE, "retrieve")]
    loads = files | LATE | {"256 MiB with two pages": SPARSE,
                            "10 000 mapped files of 64 KiB with two pages": MAPPED,
                            "10 000 small files in one session": SMALL} | MANY
    table += [Row(f"blackout of {name}", load, "blackout") for name, load in loads.items()]
    gigabytes = {name: load for name, load in files.items() if name.startswith("1 GiB")}
    for name, load, per in (("a small file", SMALL, SMALL.files),
                            *((name, load, 1) for name, load in gigabytes.items()),
                            ("256 MiB with two pages", SPARSE, 1),
                            ("an empty session", SESSIONS, SESSIONS.sessions)):
        table += [Row(f"metadata for {name}", load, "metadata", per, "bytes"),
                  Row(f"all memory for {name}", load, "memory", per, "bytes", watched=True)]
    table += [Row(f"pages moved to preserve {name}", load, "moved", watched=True)
              for name, load in gigabytes.items()]
    for name, load in {"10 000 small files": SMALL, "1 GiB": LARGE["1 GiB"],
                       "1 GiB in huge pages": HUGE_PAGES["1 GiB in huge pages"]}.items():
        for figure, what in (("load", "load the next kernel with"), ("read", "read all of"),
                             ("finish", "finish"), ("free", "free")):
            table.append(Row(f"{what} {name}", load, figure, watched=True))
    for name, load in {"10 000 small files": Load(1, 10_000, 1, undo=True),
                       "1 GiB": Load(1, 1, 1024 * MIB, undo=True),
                       "10 000 sessions": SESSIONS}.items():
        table.append(Row(f"give up {name} before the reboot", load, "undo", watched=True))
    return table


def spaced(number: float) -> str:
    """A number for people."""
    return f"{number:,.0f}".replace(",", " ")


@dataclass
class Kernel:
    """A kernel under measurement."""

    name: str
    image: Path
    initramfs: Path
    folder: Path
    found: dict[Load, dict[str, int] | str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, load: Load) -> None:
        """Runs the guest of a load: figures by name, or why there are none."""
        folder = self.folder / f"{next(self.numbers)}-{load.sessions}-{load.files}-{load.pages}"
        folder.mkdir()
        outcome = guest.run(
            self.image, self.initramfs, folder, memory=load.memory, processors=1, timeout=1800,
            start=inf,
            command_line=f"nokaslr loglevel=6 printk.time=1 {load.command_line}",
            options=("-icount", "shift=0,sleep=off", "-cpu", "max,-erms", "-seed", str(load.seed)))
        words = [line.split() for line in outcome.report]
        figures = {word[0]: int(word[1]) for word in words
                   if len(word) == 2 and word[1].isdigit()}
        failed = [line for line in outcome.report if line.startswith("failed")]
        done = "undo" in figures or "end" in figures
        if outcome.trouble or outcome.alarms() or failed or not done:
            why = outcome.trouble or "; ".join(failed) or (outcome.alarms() or ["it ended early"])[0]
            self.found[load] = why
            say(f"{self.name}: {load.command_line}: {why} (see {folder})")
            return
        self.found[load] = figures | phases(figures, outcome.console)

    def figure(self, load: Load, name: str) -> float | None:
        """A figure of a load; those of the blackout are what it adds to an empty one's."""
        found = self.found.get(load)
        if not isinstance(found, dict) or name not in found:
            return None
        if name not in PHASES:
            return found[name]
        nothing = [each for seed in SEEDS
                   if isinstance(each := self.found.get(empty(load, seed)), dict)]
        if len(nothing) != len(SEEDS):
            return None
        return found[name] - median(each[name] for each in nothing)


# An empty kexec has two modes a quarter of a million apart.
SEEDS, NOISE = (1, 2, 3), 250_000
# What a blackout consists of, and all of it.
PHASES = {"handover": "old kernel: reboot() until it jumps", "boot": "new kernel, until its init",
          "retrieving": "retrieve", "touching": "first bytes", "blackout": "all"}


def phases(figures: dict[str, int], console: list[str]) -> dict[str, int]:
    """Takes the blackout apart; the old kernel's part by the times in its log."""
    if "end" not in figures:
        return {}
    offset = jump = None
    for line in console:
        if not (match := re.match(r"\[ *(\d+)\.(\d+)\] (.*)", line)):
            continue
        time = int(match[1] + match[2]) * 1000
        if clock := re.match(r"bench: clock (\d+)", match[3]):
            offset = offset if offset is not None else int(clock[1]) - time
        elif "Starting new kernel" in match[3] and offset is not None:
            jump = time + offset
    if jump is None:
        raise Failed("the old kernel's log does not say when it ended:\n" + "\n".join(console[-20:]))
    parts = {"handover": jump - figures["reboot"], "boot": figures["start"] - jump,
             "retrieving": figures["retrieved"] - figures["start"] - figures["waited"],
             "touching": figures["end"] - figures["retrieved"]}
    return parts | {"blackout": sum(parts.values())}


def measure(kernels: list[Kernel], wanted: list[Row]) -> None:
    """Runs all guests that some rows need, those with much memory alone."""
    loads: dict[Load, None] = {}
    for row in wanted:
        if row.figure in PHASES:
            loads |= {empty(row.load, seed): None for seed in SEEDS}
        loads[row.load] = None
    jobs = [(kernel, load) for load in loads for kernel in kernels if load not in kernel.found]
    small = [job for job in jobs if job[1].memory <= 4096]
    for workers, part in ((int(JOBS), small), (1, [job for job in jobs if job not in small])):
        with ThreadPoolExecutor(workers) as pool:
            for number, _ in enumerate(pool.map(lambda job: job[0].run(job[1]), part), 1):
                say(f"{number} of {len(part)} guests have run")


@dataclass(frozen=True)
class Result:
    """What a row has come to."""

    row: Row
    c: float | None
    ours: float | None

    @property
    def ratio(self) -> float | None:
        if self.c is None or self.ours is None:
            return None
        # What is less than an empty kexec varies by itself says nothing.
        least = NOISE if self.row.figure in PHASES else 1
        return max(self.c, least) / max(self.ours, least)

    def cells(self) -> tuple[str, str, str, str]:
        def show(value: float | None) -> str:
            if value is None:
                return "-"
            return f"{spaced(value / self.row.per)} {self.row.unit}".strip()

        ratio = f"{self.ratio:.1f}" if self.ratio is not None else "-"
        return self.row.name, show(self.c), show(self.ours), ratio


def growth_trouble(kernel: Kernel) -> dict[str, str]:
    """Whether one more costs about the same when there are many: what is wrong, by operation."""
    few, many = GROWTH[1], GROWTH[-1]
    trouble = {}
    for figure, load in (("create", SESSIONS), ("preserve", SMALL), ("retrieve", SMALL)):
        if load not in kernel.found:
            kernel.run(load)
        first, last = (kernel.figure(load, f"{figure}@{n}") for n in (few, many))
        if first is None or last is None:
            trouble[figure] = str(kernel.found[load])
        elif last > GROWTH_LIMIT * first:
            trouble[figure] = f"{first:.0f} instructions with {few} there, {last:.0f} with {many}"
        else:
            trouble[figure] = ""
    return trouble


def mean(results: list[Result]) -> float | None:
    """The geometric mean of the ratios."""
    ratios = [result.ratio for result in results if result.ratio is not None]
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else None
