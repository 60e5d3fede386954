# SPDX-License-Identifier: GPL-2.0
"""Mutants: ways to break the code, each with the tests that must notice.

They are in selftests/mutants/, in one file those that are made together, in
one kernel: what one of them breaks must not hide what another does. The tests
are ours from user space, by their names alone on the kernel `rust', on another
kernel as `distro/NAME'.
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


@dataclass(frozen=True)
class MutationSet:
    """The mutants of one kernel."""

    name: str
    mutants: tuple[Mutant, ...]

    @staticmethod
    def read(path: Path) -> "MutationSet":
        try:
            table = tomllib.loads(path.read_text())
            return MutationSet(path.stem, tuple(
                Mutant(entry["what"], entry["file"], entry["old"], entry["new"],
                       tuple(entry["caught-by"].split()))
                for entry in table["mutant"]))
        except (tomllib.TOMLDecodeError, KeyError) as why:
            raise Failed(f"{path.relative_to(REPO)}: {why}") from None

    def tests(self) -> list[str]:
        """The tests that must fail, each once."""
        return list(dict.fromkeys(test for mutant in self.mutants for test in mutant.caught_by))

    def broken(self) -> dict[str, str]:
        """The files that change, with all mutants in them. Fails if some do not fit."""
        texts: dict[str, str] = {}
        misfits = []
        for mutant in self.mutants:
            path = REPO / mutant.file
            text = texts.get(mutant.file) or (path.read_text() if path.exists() else "")
            if (count := text.count(mutant.old)) != 1:
                misfits.append(f"{self.name}: {mutant.what}: {mutant.file} has its text {count} times")
            texts[mutant.file] = text.replace(mutant.old, mutant.new)
        if misfits:
            raise Failed("\n".join(misfits))
        return texts


def pattern(test: str) -> str:
    """What selects a test in the suite."""
    group, _, name = test.rpartition("/")
    return f"{group or 'rust'}/self/{name}"


def test_of(result: str) -> str:
    """The test that a result of the suite is about; the opposite of `pattern`."""
    group, _, name = result.partition("/self/")
    return name if group == "rust" else f"{group}/{name}"


def mutation_sets() -> list[MutationSet]:
    return [MutationSet.read(path) for path in sorted(FOLDER.glob("*.toml"))]


def trouble(tests: set[str]) -> list[str]:
    """What is wrong with the mutants of a suite that has these tests: none may be left out."""
    caught: set[str] = set()
    misfits: list[str] = []
    try:
        for each in mutation_sets():
            caught.update(test.rpartition("/")[2] for test in each.tests())
            try:
                each.broken()
            except Failed as why:
                misfits += str(why).splitlines()
    except Failed as why:
        return [str(why)]
    return [*misfits, *(f"mutants name {test}, which is no test" for test in sorted(caught - tests)),
            *(f"no mutant shows that {test} can fail" for test in sorted(tests - caught))]
