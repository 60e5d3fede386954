# SPDX-License-Identifier: GPL-2.0
"""Names of tests, the pattern that selects them, and what becomes of them."""

import fnmatch
import os
import re
import sys
import threading
import time
from dataclasses import dataclass

import junit
from common import CACHE

GROUPS = ("host", "source", "rust", "rust-memfd-c", "c", "rust-to-c", "c-to-rust", "alternating",
          "7.2-to-rust", "rust-to-7.2", "7.2-and-back", "distro", "patches", "corrupt", "luod", "vm",
          "debug", "c-debug", "kcsan", "hugetlb-absent", "arm64-rust", "arm64-c", "arm64-rust-to-c",
          "arm64-c-to-rust", "arm64-16k", "arm64-64k", "arm64-to-16k", "arm64-from-16k", "arm64-to-64k",
          "arm64-from-64k", "arm64-packages")
SHOWN = 40      # lines of explanation that one failure may take


@dataclass(frozen=True)
class Pattern:
    """Selects tests: by a part of their names, or with `*`."""

    text: str

    def takes(self, name: str) -> bool:
        if self.fixed() != self.text:
            return fnmatch.fnmatch(name, self.text)
        if self.text.split("/")[0] in GROUPS:
            # `c' and `c/stock' are about one kernel, not about all that has a c.
            whole = self.text if "/" in self.text else f"{self.text}/"
            return f"{name}/".startswith(whole)
        return self.text in name

    def asks_for(self, group: str) -> bool:
        """Whether it is about a group, of which the tests are not known yet."""
        fixed = self.fixed()
        return self.takes(group) or fixed.startswith(group) or \
            bool(fixed) and group.startswith(fixed)

    def may_take(self, group: str) -> bool:
        """The same for a group that is quick to ask for its tests: a part of a name will do."""
        return self.asks_for(group) or self.text not in GROUPS and \
            "/" not in self.text and self.fixed() in ("", self.text)

    def fixed(self) -> str:
        """What is before its first wildcard."""
        return re.split(r"[*?[]", self.text)[0]


class Results:
    """Counts and shows results as they come."""

    def __init__(self, pattern: str | None):
        self.pattern = pattern
        # Without any, all tests are to run.
        self.patterns = [Pattern(text) for text in (pattern or "").split()]
        self.passed = self.failed = 0
        self.told: list[junit.Result] = []
        # Names of tests that did not run, by the reason.
        self.skipped: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        self.begin = time.monotonic()

    def wants(self, name: str) -> bool:
        """Whether one of the user's patterns selects a test."""
        return not self.patterns or any(pattern.takes(name) for pattern in self.patterns)

    def asks_for(self, group: str) -> bool:
        """Whether a pattern is about a group, of which the tests are not known yet."""
        return not self.patterns or any(pattern.asks_for(group) for pattern in self.patterns)

    def may_want(self, group: str) -> bool:
        """The same for a group that is quick to ask for its tests."""
        return not self.patterns or any(pattern.may_take(group) for pattern in self.patterns)

    def add(self, name: str, why: str | list[str] | None = None, seconds: float | None = None,
            group: str = "") -> None:
        """Takes in the result of a test; `why` is empty if it passed.

        Not that of a test that was not named, by itself or by its group.
        """
        if self.wants(name) or group and self.wants(group):
            self.verdict(name, why, seconds)

    def verdict(self, name: str, why: str | list[str] | None = None,
                seconds: float | None = None) -> None:
        """Takes in a result that counts whatever tests were asked for.

        So do those on what wanted tests stand on: the boots that they share, a build.
        """
        with self.lock:
            self.show(name, why, seconds)

    def skip(self, name: str, why: str) -> None:
        """Notes that a wanted test did not run."""
        if self.wants(name):
            with self.lock:
                self.told.append(junit.Result(name, "skip", why))
                self.skipped.setdefault(why, []).append(name)

    def show(self, name: str, why: str | list[str] | None, seconds: float | None) -> None:
        text = why if isinstance(why, str) else "\n".join(why or ())
        self.told.append(junit.Result(name, "FAIL" if text else "ok", text, seconds))
        took = f"  ({seconds:.1f} s)" if seconds is not None else ""
        if not why:
            self.passed += 1
            print(f"ok    {name}{took}", flush=True)
            return
        self.failed += 1
        print(f"FAIL  {name}{took}", flush=True)
        lines = why.splitlines() if isinstance(why, str) else why
        for line in lines[:SHOWN]:
            print(f"        {line}")
        if len(lines) > SHOWN:
            print(f"        ... and {len(lines) - SHOWN} lines more")
        sys.stdout.flush()

    def end(self) -> int:
        """Says the last words; returns the exit status."""
        for why, names in self.skipped.items():
            for name in names:
                print(f"skip  {name}  ({why})")
        minutes, seconds = divmod(int(time.monotonic() - self.begin), 60)
        report = CACHE / "log/junit.xml"
        junit.write(report, self.told)
        print(f"\nas JUnit has it: {report}")
        print(f"{minutes} min {seconds} s on {os.cpu_count()} processors of {os.uname().machine}")
        if self.pattern and not self.passed + self.failed:
            print(f"no test has a name like `{self.pattern}'")
        skipped = sum(map(len, self.skipped.values()))
        print(f"{self.passed} passed, {self.failed} failed, {skipped} skipped", flush=True)
        return 1 if self.failed or not self.passed else 0
