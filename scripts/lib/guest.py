# SPDX-License-Identifier: GPL-2.0
"""Virtual machines: initramfs archives, QEMU, and what a kernel's log tells.

A guest has two serial ports: the first is the kernel's console, the second is
where the program under test reports. Both go to files in the run's folder.
"""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from machine import X86, Machine

# Words that no kernel log of a passing test contains. (The guest's own tests
# look for the same in selftests/src/init/kernel_log.rs.) Of races between
# accesses to memory those count that have to do with live update: the tree has
# others, and lives with them. The crash of a test of crashes is none.
ALARMS = re.compile(
    r"WARNING:|BUG:(?! KCSAN:)|KCSAN:.*(?:luo|liveupdate|kho|memfd|shmem|rust|_R)|Oops:|"
    r"Kernel panic(?! - not syncing: sysrq triggered crash)|INFO: task|INFO: rcu|KASAN:|KFENCE:|UBSAN:|"
    r"general protection fault|unable to handle|refcount_t:|list_(?:add|del) corruption|"
    r"possible (?:circular|recursive) locking|page allocation failure|INFO: trying to register|"
    r"new suspected memory leaks|invoked oom-killer|page dumped because(?!: unmovable page)"
)


class Initramfs:
    """Writes a cpio archive ("newc") as the kernel unpacks it."""

    def __init__(self, path: Path):
        self.out = open(path, "wb")  # noqa: SIM115, closed by __exit__
        self.inode = 0

    def entry(self, name: str, mode: int, size: int = 0, device: tuple[int, int] = (0, 0)) -> None:
        self.inode += 1
        words = (self.inode, mode, 0, 0, 1, 0, size, 0, 0, *device, len(name) + 1, 0)
        self.out.write(b"070701" + "".join(f"{word:08X}" for word in words).encode())
        self.out.write(name.encode() + b"\0")
        self.pad()

    def pad(self) -> None:
        self.out.write(bytes(-self.out.tell() % 4))

    def folder(self, name: str) -> None:
        self.entry(name, 0o040755)

    def device(self, name: str, major: int, minor: int) -> None:
        self.entry(name, 0o020600, device=(major, minor))

    def bytes(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.entry(name, 0o100000 | mode, len(data))
        self.out.write(data)
        self.pad()

    def file(self, name: str, path: Path, mode: int = 0o644) -> None:
        with open(path, "rb") as source:
            size = path.stat().st_size
            self.entry(name, 0o100000 | mode, size)
            shutil.copyfileobj(source, self.out, 1 << 20)
        self.pad()

    def __enter__(self) -> "Initramfs":
        for name in ("dev", "proc", "sys", "boot", "debugfs"):
            self.folder(name)
        self.device("dev/console", 5, 1)
        return self

    def __exit__(self, *_) -> None:
        self.entry("TRAILER!!!", 0)
        self.out.close()


@dataclass
class Outcome:
    """How a guest ended."""

    console: list[str]      # the kernel's log, of all its boots
    report: list[str]       # what came over the second serial port
    seconds: float
    trouble: str            # why it was stopped, empty if it ended by itself

    def alarms(self) -> list[str]:
        """Lines of the console that no good run has, with some context."""
        shown: list[str] = []
        end = 0
        for number, line in enumerate(self.console):
            if ALARMS.search(line):
                shown += self.console[max(end, number):number + 12]
                end = max(end, number + 12)
                if len(shown) > 60:
                    break
        return shown


def read_lines(path: Path) -> list[str]:
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    return [line.rstrip("\r") for line in text.split("\n")]


# How long a guest may take from power on to its first program, in seconds.
START = 40


def started(console: Path) -> bool:
    return console.exists() and b" as init process" in console.read_bytes()


def run(kernel: Path, initramfs: Path, folder: Path, *, command_line: str = "",
        memory: int = 1024, processors: int = 2, timeout: float = 60, silence: float = 0,
        start: float = START, on_line: Callable[[str], None] = lambda line: None,
        options: Iterable[str] = (), machine: Machine = X86) -> Outcome:
    """Runs a guest to its end: until it powers off or resets, or `timeout` seconds passed.

    `silence` is how long the second serial port may be quiet, `start` how long the kernel may
    take until it runs a program, which it tells at the log level for that. `on_line` gets each
    line of the second port as it comes.
    """
    console, report = folder / "console.log", folder / "report.log"
    for path in (console, report):
        path.unlink(missing_ok=True)
    command = [
        *machine.qemu, "-accel", "tcg", "-m", f"{memory}M", "-smp", str(processors),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{console}", "-serial", f"file:{report}",
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", f"console={machine.console} {machine.steady} liveupdate=on panic=-1 {command_line}".strip(),
        *options,
    ]
    begin = last = time.monotonic()
    seen, trouble, partial = 0, "", ""
    done_at, is_up = None, start == math.inf
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    try:
        while True:
            ended = process.poll() is not None
            now = time.monotonic()
            if report.exists() and report.stat().st_size > seen:
                with open(report, "rb") as file:
                    file.seek(seen)
                    data = file.read()
                seen += len(data)
                last = now
                *lines, partial = (partial + data.decode(errors="replace")).split("\n")
                for line in lines:
                    on_line(line.rstrip("\r"))
                    if line.rstrip("\r") == "done":
                        done_at = now
            if ended:
                break
            is_up = is_up or started(console)
            if not is_up and now - begin > start:
                trouble = f"no first program after {start:.0f} s"
            elif now - begin > timeout:
                trouble = f"no end after {timeout:.0f} s"
            elif silence and now - last > silence:
                trouble = f"no word for {silence:.0f} s"
            elif done_at and now - done_at > 10:
                break               # it has said all and is slow to go
            if trouble:
                break
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            process.kill()
        words = process.communicate()[0]
    if process.returncode and not trouble and not done_at:
        trouble = f"QEMU: {words.strip() or process.returncode}"
    return Outcome(read_lines(console), read_lines(report), time.monotonic() - begin, trouble)


def side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Runs jobs that spend their time with a guest each, two at a time: one is seldom busy."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
