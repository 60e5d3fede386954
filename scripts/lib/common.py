# SPDX-License-Identifier: GPL-2.0
"""What all steps share: places, messages, the lock, long commands."""

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ["LUO_CACHE"])
JOBS = os.environ.get("LUO_JOBS") or str(len(os.sched_getaffinity(0)))


class Failed(Exception):
    """A step failed; the message is for the user and complete."""


def say(text: str) -> None:
    """Progress and remarks go to stderr: stdout carries results only."""
    print(f"==> {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock():
    """One process at a time makes things in the cache (the lock of env.sh)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is making things in {CACHE}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        # A script that is called meanwhile must not wait for its caller.
        os.environ["LUO_LOCKED"] = "1"
        try:
            yield
        finally:
            del os.environ["LUO_LOCKED"]


class Progress:
    """Says how far a long step is: in place on a terminal, else now and then."""

    def __init__(self, what: str, total: int | None):
        self.what, self.total = what, total
        self.count = 0
        self.begin = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def step(self) -> None:
        self.count += 1
        now = time.monotonic()
        if now - self.shown < (0.5 if self.terminal else 20):
            return
        self.shown = now
        of = f" of about {self.total}" if self.total and self.count < self.total else ""
        text = f"==> {self.what}: {self.count}{of} steps, {now - self.begin:.0f} s"
        if self.terminal:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> float:
        if self.terminal and self.shown != self.begin:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return time.monotonic() - self.begin


def run(command: list[str], what: str, log: Path, total: int | None = None,
        step: str = r"^  [A-Z]", **options) -> None:
    """Runs a long command: output to `log`, progress to the user."""
    progress = Progress(what, total)
    tail: list[str] = []
    warnings = 0
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, text=True, errors="replace",
                                   **options)
        try:
            for line in process.stdout or ():
                out.write(line)
                tail = tail[-400:] + [line.rstrip()]
                if re.match(step, line):
                    progress.step()
                elif re.match(r"warning: (?!\d)", line) or ": warning: " in line:
                    warnings += 1
        finally:
            if process.poll() is None and sys.exc_info()[0]:
                process.kill()
            process.wait()
    took = progress.end()
    if process.returncode:
        raise Failed(f"{what} failed; the whole log is {log}\n" + "\n".join(excerpt(tail)))
    if progress.count:
        say(f"{what}: done, {progress.count} steps in {took:.0f} s")
    if warnings:
        say(f"{what}: {warnings} warnings in {log}")


def excerpt(tail: list[str]) -> list[str]:
    """The part of a failed build's output that says why."""
    bad = [i for i, line in enumerate(tail)
           if re.search(r"(^error|\berror[:\[]|undefined symbol|\*\*\*|No rule)", line)]
    begin = max(0, bad[0] - 2) if bad else 0
    return tail[max(begin, len(tail) - 400):][:60] if bad else tail[-25:]


def quiet(command: list[str], what: str, **options) -> str:
    """Runs a short command and returns its output; its words are shown if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        raise Failed(f"{what} failed:\n" + "\n".join(excerpt(done.stdout.splitlines())))
    return done.stdout


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table: names to the left, and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]),
                       *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
            for line in lines]


def main(function) -> None:
    """Runs a script's main function; turns failures into a message and a status."""
    try:
        sys.exit(function())
    except Failed as why:
        print(f"error: {why}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
