# SPDX-License-Identifier: GPL-2.0
"""Mutants: ways to break the code, each with the tests that must notice.

They are in selftests/mutants/, in one file those that are made together, in
one kernel: what one of them breaks must not hide what another does.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from common import REPO, Failed

FOLDER = REPO / "selftests/mutants"


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file."""

    what: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]

    def trouble(self) -> str | None:
        """Why the mutant does not fit the code."""
        path = REPO / self.file
        count = path.read_text().count(self.old) if path.exists() else 0
        return None if count == 1 else f"{self.what}: {self.file} has its text {count} times"

    def apply(self, repository: Path) -> None:
        path = repository / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


@dataclass(frozen=True)
class Brood:
    """The mutants of one kernel."""

    name: str
    mutants: tuple[Mutant, ...]

    @staticmethod
    def read(path: Path) -> "Brood":
        try:
            table = tomllib.loads(path.read_text())
            return Brood(path.stem, tuple(
                Mutant(entry["what"], entry["file"], entry["old"], entry["new"],
                       tuple(entry["caught-by"].split()))
                for entry in table["mutant"]))
        except (tomllib.TOMLDecodeError, KeyError) as why:
            raise Failed(f"{path.relative_to(REPO)}: {why}") from None

    def tests(self) -> list[str]:
        """The tests that must fail, each once."""
        return list(dict.fromkeys(test for mutant in self.mutants for test in mutant.caught_by))


def broods() -> list[Brood]:
    return [Brood.read(path) for path in sorted(FOLDER.glob("*.toml"))]


def trouble(tests: set[str]) -> list[str]:
    """What is wrong with the mutants of a suite that has these tests: none may be left out."""
    found: list[str] = []
    caught: set[str] = set()
    for brood in broods():
        caught.update(brood.tests())
        found += filter(None, (mutant.trouble() for mutant in brood.mutants))
    found += [f"mutants name {test}, which is no test" for test in sorted(caught - tests)]
    found += [f"no mutant shows that {test} can fail" for test in sorted(tests - caught)]
    return found
