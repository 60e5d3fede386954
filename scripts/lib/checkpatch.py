# SPDX-License-Identifier: GPL-2.0
"""The kernel's checkpatch, and what of it does not hold here (scripts/checkpatch.toml)."""

import fnmatch
import re
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import JOBS, REPO, Failed

DATA = REPO / "scripts/checkpatch.toml"
# As `--terse --show-types --showfile` says it.
REMARK = re.compile(r"(?P<file>[^:]*):(?P<line>\d*): (?:ERROR|WARNING|CHECK):(?P<type>\w+): (?P<text>.*)")


@dataclass(frozen=True)
class Excuse:
    """A remark that is let pass, in some files."""

    type: str
    paths: tuple[str, ...]
    says: str

    def takes(self, kind: str, path: str, text: str) -> bool:
        return kind == self.type and self.says in text and \
            any(fnmatch.fnmatchcase(path, pattern) for pattern in self.paths)


def exceptions() -> list[Excuse]:
    try:
        return [Excuse(entry["type"], tuple(entry["paths"]), entry.get("says", ""))
                for entry in tomllib.loads(DATA.read_text())["exception"] if entry["why"]]
    except (tomllib.TOMLDecodeError, KeyError) as why:
        raise Failed(f"{DATA.relative_to(REPO)}: {why}") from None


def trouble(tree: Path, patches: list[Path]) -> list[str]:
    """What checkpatch says of patches; and the exceptions that none of them needs."""
    def look(patch: Path) -> str:
        return subprocess.run(
            ["perl", "scripts/checkpatch.pl", "--strict", "--terse", "--show-types", "--showfile",
             "--no-summary", str(patch)],
            cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    known = exceptions()
    needed: set[Excuse] = set()
    found = []
    with ThreadPoolExecutor(int(JOBS)) as pool:
        words = list(pool.map(look, patches))
    for patch, text in zip(patches, words, strict=True):
        for line in text.splitlines():
            match = REMARK.fullmatch(line)
            if not match:
                found.append(f"{patch.name}: {line}")
                continue
            excuse = [each for each in known if each.takes(match["type"], match["file"], match["text"])]
            needed.update(excuse)
            if not excuse:
                found.append(f"{patch.name}: {line}")
    return found + [f"{DATA.relative_to(REPO)}: nothing needs the exception for {each.type} in "
                    f"{' '.join(each.paths)}" for each in known if each not in needed]
