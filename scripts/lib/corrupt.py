# SPDX-License-Identifier: GPL-2.0
"""Corruption on the way: what the first kernel corrupts, the second must take well.

The first kernel says on its console which bytes it has changed (CONFIG_LIVEUPDATE_TEST_CORRUPT),
the guest's test says what did not come back; here it is decided whether that is right: nothing
is lost that the corruption did not touch.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import guest
from guest_tests import Bench, ktap, story
from report import Results

# As in selftests/src/tests/corrupt.rs.
SESSIONS, FILES = 60, 3
# As in Documentation/core-api/liveupdate/abi.rst.
HEADER, SESSION, FILE, PER_BLOCK = 16, 80, 64, 51
# What memfd handlers left, see luo_core/corrupt_memfd.rs. The last file of a session has extents.
MEMFD, EXTENT, SLOT = 336, 40, 128

SEEDS = 24
BYTES = (1, 2, 4, 16, 64)       # corrupted at once, in turn


@dataclass(frozen=True)
class Place:
    """One byte with a known outcome."""

    name: str
    where: str                  # REGION:OFFSET:VALUE
    words: str                  # what the second kernel says
    checked: bool = True        # False: luo-v5, which has no checksums
    first: str = ""             # for the command line of the second kernel
    panics: bool = False
    memory: int = 1024          # of the guest, in MiB


def session_byte(number: int, offset: int) -> int:
    """Where in the region of the sessions a byte of a record is."""
    block = number // PER_BLOCK
    return (block + 1) * HEADER + number * SESSION + offset


PLACES = (
    Place("root-number", "root:100:77", "live update is off for this boot"),
    Place("root-magic", "root:0:0", "root of unknown format"),
    Place("root-panic", "root:100:77", "corrupt incoming state", first="liveupdate.panic=on",
          panics=True),
    Place("session-panic", f"sessions:{session_byte(3, 9)}:1", "corrupt incoming state",
          first="liveupdate.panic=on", panics=True),
    Place("session-name", f"sessions:{session_byte(3, 9)}:1",
          "incoming session 3: checksum does not match"),
    Place("session-link", f"sessions:{session_byte(55, 65)}:1",
          "incoming session 55: checksum does not match"),
    Place("session-block-next", "sessions:1:255", "checksum of the header does not match"),
    Place("session-block-count", f"sessions:{session_byte(50, 80) + 8}:60",
          "header of the last block is corrupt, nothing is lost"),
    Place("file-token", f"files:{HEADER + 56}:9", "file 0: checksum does not match"),
    Place("file-data", f"files:{HEADER + FILE + 49}:9", "file 1: checksum does not match"),
    Place("file-block", "files:3:9", "header of the last file block is corrupt, nothing is lost"),
    Place("flb", f"flbs:{HEADER + 3}:9", "incoming FLB 0: checksum does not match"),
    Place("flb-header", "flbs:8:99", "incoming FLBs: header is corrupt, nothing is lost"),
    Place("file-header-panic", "files:3:9", "corrupt incoming state", first="liveupdate.panic=on",
          panics=True),
    Place("v5-flb-count", "flbs:8:99", "live update is off for this boot", False),
    Place("v5-flb-name", f"flbs:{HEADER}:0", "incoming FLB: name is empty", False),
    Place("memfd-header", f"memfds:{3 * MEMFD + 33}:7",
          "memfd description: checksum does not match"),
    Place("memfd-extent", f"extents:{3 * EXTENT + 17}:7",
          "memfd extent block 0: checksum does not match"),
    Place("memfd-slot", f"slots:{7 * SLOT + 17}:7", ": checksum does not match"),
    Place("memfd-slot-page", "slot-pages:1:7", "checksum of the page does not match"),
    Place("checks", "checks:5:77", "file 0: checksum does not match"),
    # The same without checksums: what contradicts itself, KHO or the rest.
    Place("v5-root-address", "root:16:1", "is not that of a page", False),
    Place("v5-root-outside-ram", "root:23:127", "sessions from here on are lost: session block 0: "
          "no preserved page at", False),
    Place("v5-count", "sessions:8:77", "session block 0: count 77 exceeds 51", False),
    Place("v5-name-without-end", f"sessions:{session_byte(3, 63)}:120",
          "incoming session 3: name has no end", False),
    Place("v5-name-empty", f"sessions:{session_byte(3, 0)}:0",
          "incoming session 3: name is empty", False),
    Place("v5-name-twice", f"sessions:{session_byte(3, 62)}:{ord('4')}",
          "there are two of that name", False),
    Place("v5-files-outside-ram", f"sessions:{session_byte(3, 71)}:127",
          "file block 0: no preserved page at", False),
    Place("v5-files-count", f"sessions:{session_byte(3, 72)}:9", "3 files where 9 are counted",
          False),
    Place("v5-files-nowhere", f"sessions:{session_byte(3, 72)}:0", "files at", False),
    # Just behind the last page that there is, in a machine with memory above 4 GiB.
    Place("v5-root-behind-ram", "root:20:3", "sessions from here on are lost: session block 0: "
          "no preserved page at", False, memory=9216),
    Place("v5-files-behind-ram", f"sessions:{session_byte(3, 68)}:3",
          "file block 0: no preserved page at", False, memory=9216),
    Place("v5-token-twice", f"files:{HEADER + 56}:1", "is there twice", False),
)


def touched(console: list[str]) -> tuple[set[str], bool]:
    """What the corruption may have cost, in the words of the guest's test; and whether all."""
    lost: set[str] = set()

    def session(number: int) -> None:
        lost.add(f"session {number}")

    def block(number: int) -> None:
        # The header of the first block leads to the second, that of the second to nothing.
        if number == 0:
            for behind in range(PER_BLOCK, SESSIONS):
                session(behind)

    for line in console:
        match = re.search(r"luo: corrupted: ([\w-]+) (\d+): (\S+) -> (\S+)", line)
        if not match or match[3] == match[4]:
            continue
        region, at = match[1], int(match[2])
        if region == "root":
            return lost, True
        if region == "sessions":
            first = HEADER + PER_BLOCK * SESSION
            number, at = (0, at) if at < first else (1, at - first)
            if at < HEADER:
                block(number)
            else:
                session(number * PER_BLOCK + (at - HEADER) // SESSION)
        elif region == "files":
            number, at = divmod(at, HEADER + FILES * FILE)
            if at >= HEADER:
                lost.add(f"file {number} {(at - HEADER) // FILE}")
        elif region == "memfds":
            lost.add(f"file {at // MEMFD} {FILES - 1}")
        elif region == "extents":
            lost.add(f"file {at // EXTENT} {FILES - 1}")
        elif region == "slots":
            number, token = divmod(at // SLOT, FILES - 1)
            lost.add(f"file {number} {token}")
        elif region == "checks":
            index = at // 4
            if index < SESSIONS * (1 + FILES):
                number, index = divmod(index, 1 + FILES)
                if index:
                    lost.add(f"file {number} {index - 1}")
                continue
            index -= SESSIONS * (1 + FILES)
            number, index = divmod(index, 1 + 2 * PER_BLOCK)
            which = number * PER_BLOCK + (index - 1) // 2
            if index == 0:
                block(number)
            elif which < SESSIONS:
                session(which)
    return lost, False


def judge(outcome: guest.Outcome, test: str, checked: bool) -> list[str]:
    """What is wrong with a boot."""
    results = {name: (how, remarks) for how, name, remarks in ktap(outcome.report)}
    how, remarks = results.get(test, ("", []))
    if how != "ok" or outcome.alarms() or outcome.trouble:
        return [*remarks, *story(outcome)]
    if not any("luo: corrupted: " in line for line in outcome.console):
        return ["nothing was corrupted", *story(outcome)]
    missing = {match[1] for line in outcome.report
               if (match := re.search(r"# [\w-]+: lost: (.*)", line))}
    may, everything = touched(outcome.console)
    if not checked or everything:
        return []
    # A file is lost with its session.
    bad = [what for what in missing - may
           if not (what.startswith("file ") and f"session {what.split()[1]}" in may)]
    # And what is lost must be known as such: corruption is found.
    return [f"lost, but not corrupted: {what}" for what in sorted(bad)] + \
        [f"corrupted, but not lost: {what}" for what in sorted(may - missing)
         if not (what.startswith("file ") and f"session {what.split()[1]}" in missing)]


class Corrupt:
    """The group `corrupt'."""

    def __init__(self, bench: Bench, program: Path, results: Results):
        self.bench, self.results = bench, results
        with guest.Initramfs(bench.folder / "corrupt.cpio") as archive:
            archive.file("init", program, 0o755)
            archive.file("boot/kernel", bench.built.image)

    def boot(self, name: str, test: str, options: str, memory: int = 1024) -> guest.Outcome:
        folder = self.bench.folder / f"corrupt-{name}"
        folder.mkdir(exist_ok=True)
        return guest.run(self.bench.built.image, self.bench.folder / "corrupt.cpio", folder,
                         command_line=f"luo.test={test} {options}", memory=memory, timeout=180,
                         processors=1)

    def place(self, place: Place) -> None:
        test = "corrupt-checked" if place.checked else "corrupt-unchecked"
        options = f"liveupdate.corrupt={place.where} {place.first}"
        if not place.checked:
            options += " liveupdate.abi=luo-v5"
        outcome = self.boot(place.name, test, options, place.memory)
        if place.panics:
            panic = f"Kernel panic - not syncing: luo: {place.words}"
            why = None if any(panic in line for line in outcome.console) else story(outcome)
        else:
            why = judge(outcome, test, place.checked)
            if not why and not any(place.words in line for line in outcome.console):
                why = [f"the kernel does not say `{place.words}'", *story(outcome)]
        self.results.add(f"corrupt/place/{place.name}", why, outcome.seconds)

    def seed(self, number: int) -> None:
        count = BYTES[number % len(BYTES)]
        checked = number % 4 != 3
        test = "corrupt-checked" if checked else "corrupt-unchecked"
        options = f"liveupdate.corrupt=seed:{number},count:{count}"
        if not checked:
            options += " liveupdate.abi=luo-v5"
        outcome = self.boot(f"seed-{number}", test, options)
        self.results.add(f"corrupt/seed/{number}", judge(outcome, test, checked), outcome.seconds)

    def run(self) -> None:
        seeds = int(os.environ.get("LUO_SEEDS") or SEEDS)
        jobs = [partial(self.place, place) for place in PLACES
                if self.results.wants(f"corrupt/place/{place.name}")]
        jobs += [partial(self.seed, number) for number in range(seeds)
                 if self.results.wants(f"corrupt/seed/{number}")]
        guest.side_by_side(jobs)
