# SPDX-License-Identifier: GPL-2.0
"""The overlay as a series of patches.

scripts/series.toml says which patches there are, in their order, and which files of the overlay
belong to each. What a patch changes in a file of the tree follows from that: a line that names a
file (`pub mod kho;`, `#include "shmem.c"`, `obj-y += liveupdate/`) comes with it, and any other
line with the patch that has the file it is in. So each file and each line is in the overlay once,
and in one patch.
"""

import fnmatch
import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import overlay
from common import REPO, Failed, quiet
from overlay import Hunk

DATA = REPO / "scripts/series.toml"

# Ways to name a file, in lines that are put into a file of the tree.
NAMES = (
    (re.compile(r"pub mod (\w+);"), ("{folder}/{name}.rs",)),
    (re.compile(r'#include "(\S+)"'), ("{folder}/{name}",)),
    (re.compile(r"#include <(\S+)>"), ("include/{name}",)),
    (re.compile(r'source "(\S+)"'), ("{name}",)),
    (re.compile(r"obj-\S+\s*\+= (\S+)/$"), ("{folder}/{name}/Kbuild", "{folder}/{name}/Makefile")),
    (re.compile(r"obj-\S+\s*\+= (\S+)\.o$"), ("{folder}/{name}.c",)),
    (re.compile(r"   ([\w/-]+)$"), ("{folder}/{name}.rst",)),
)
# Lines that belong to the one after them, or to the one before.
OPENS = re.compile(r"#\[|#?\s*if")
CLOSES = re.compile(r"#?\s*endif\b|$")


@dataclass(frozen=True)
class Patch:
    """One step of the series."""

    subject: str
    body: str
    # Which files of the tree are its own, as patterns.
    paths: tuple[str, ...]
    # Edits that only the series makes, as a table like overlay.edits.
    edits: str = ""


@dataclass(frozen=True)
class Series:
    """All patches, and what is said of them together."""

    subject: str
    cover: str
    patches: tuple[Patch, ...]

    @staticmethod
    def read() -> "Series":
        try:
            table = tomllib.loads(DATA.read_text())
            patches = tuple(Patch(entry["subject"], entry["body"], tuple(entry.get("paths", ())),
                                  entry.get("edits", ""))
                            for entry in table["patch"])
            return Series(table["subject"], table["cover"], patches)
        except (tomllib.TOMLDecodeError, KeyError) as why:
            raise Failed(f"{DATA.relative_to(REPO)}: {why}") from None

    def claims(self, path: str) -> int | None:
        """The patch that claims a file: where several do, the one that says most about it."""
        found = [(len(pattern), number) for number, patch in enumerate(self.patches)
                 for pattern in patch.paths if fnmatch.fnmatchcase(path, pattern)]
        return max(found)[1] if found else None

    def owner(self, path: str) -> int:
        """The same; each file must be claimed."""
        number = self.claims(path)
        if number is None:
            raise Failed(f"{DATA.relative_to(REPO)}: no patch has {path}")
        return number

    def early_includes(self) -> list[str]:
        """Which files of ours include a header that only a later patch has."""
        ours = overlay.files()
        headers = {path.as_posix().removeprefix("include/"): self.owner(path.as_posix())
                   for path in ours if path.is_relative_to("include")}
        found = []
        for path, source in ours.items():
            if path.suffix not in (".c", ".h"):
                continue
            own = self.owner(path.as_posix())
            found += [f"{path} is in patch {own + 1}, but <{name}>, which it includes, in {headers[name] + 1}"
                      for name in re.findall(r"(?m)^#include <(\S+)>", source.read_text())
                      if headers.get(name, own) > own]
        return found

    def line_owner(self, file: str, line: str, ours: set[str]) -> int:
        """The patch of a line: that of the file it names, else that of the file it is in."""
        for expression, places in NAMES:
            if match := expression.match(line):
                for place in places:
                    path = place.format(folder=Path(file).parent.as_posix(), name=match[1])
                    if path in ours:
                        return self.owner(path)
        return self.owner(file)

    def hunk_owners(self, file: str, hunk: Hunk, ours: set[str]) -> list[int | None]:
        """The patch of each line that a hunk changes."""
        owners: list[int | None] = []
        for number, (mark, text) in enumerate(hunk.lines):
            if mark == " ":
                owners.append(None)
            elif CLOSES.match(text) and number and owners[-1] is not None:
                owners.append(owners[-1])
            else:
                said = next((later for _, later in hunk.lines[number:] if not OPENS.match(later)), text)
                owners.append(self.line_owner(file, said, ours))
        return owners

    def step(self, tree: Path, count: int, author: str = "") -> dict[str, bytes]:
        """What differs between the pristine `tree` and one with the first `count` patches."""
        files = overlay.everything()
        ours = {path.as_posix() for path in files}
        edits = {}
        for name, hunks in overlay.parse(overlay.EDITS.read_text()).items():
            parts = [part(hunk, self.hunk_owners(name, hunk, ours), count) for hunk in hunks]
            edits[name] = [hunk for hunk in parts if hunk.side(False) != hunk.side(True)]
        if author:
            for patch in self.patches[:count]:
                edits |= overlay.parse(patch.edits.replace("@AUTHOR@", author))
        new = {path: data for path, data in files.items() if self.owner(path.as_posix()) < count}
        return overlay.contents(tree, new, {name: hunks for name, hunks in edits.items() if hunks})


def part(hunk: Hunk, owners: list[int | None], count: int) -> Hunk:
    """What the first `count` patches do of a hunk."""
    lines = []
    for (mark, text), owner in zip(hunk.lines, owners, strict=True):
        if owner is None or owner < count:
            lines.append((mark, text))
        elif mark == "-":
            lines.append((" ", text))
    return Hunk(lines)


@dataclass(frozen=True)
class Author:
    """Who signs the patches."""

    name: str
    email: str

    @staticmethod
    def from_environment() -> "Author":
        """As scripts/patches has asked git; somebody else's name is good enough for checks."""
        return Author(os.environ.get("GIT_AUTHOR_NAME") or "A. N. Author",
                      os.environ.get("GIT_AUTHOR_EMAIL") or "author@example.org")

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"


class Repository:
    """A git repository with the few files of a kernel tree that the series touches."""

    def __init__(self, folder: Path, pristine: Path, author: Author):
        self.folder, self.author = folder, author
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "series")
        series = Series.read()
        changed = set(overlay.parse(overlay.EDITS.read_text()))
        for patch in series.patches:
            changed |= set(overlay.parse(patch.edits))
        for name in {"Makefile", *changed}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pristine / name, folder / name)
        self.commit(f"Linux {version(pristine)}")

    def git(self, *words: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder),
                       "GIT_CONFIG_NOSYSTEM": "1"}
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_NAME": self.author.name,
                            f"GIT_{role}_EMAIL": self.author.email}
        return quiet(["git", *words], f"git {words[0]}", cwd=self.folder, env=environment)

    def commit(self, message: str, *options: str) -> None:
        self.git("add", "--all", "--force")
        self.git("commit", "-q", *options, "-m", message)

    def contents(self) -> dict[str, bytes]:
        """All files in it."""
        return {name: (self.folder / name).read_bytes()
                for name in self.git("ls-files", "-z").split("\0") if name}


def version(tree: Path) -> str:
    """The release of a kernel tree."""
    words = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$",
                            (tree / "Makefile").read_text(), re.MULTILINE))
    return f"{words['VERSION']}.{words['PATCHLEVEL']}.{words['SUBLEVEL']}"


def write(pristine: Path, work: Path, out: Path, author: Author) -> list[Path]:
    """Writes the series as mails to `out`, the cover letter first."""
    series = Series.read()
    if early := series.early_includes():
        raise Failed(f"{DATA.relative_to(REPO)}:\n" + "\n".join(early))
    repository = Repository(work, pristine, author)
    for count, patch in enumerate(series.patches, 1):
        for name, data in series.step(pristine, count, str(author)).items():
            path = work / name
            if not path.exists() or path.read_bytes() != data:
                overlay.write(path, data)
        if not repository.git("status", "--porcelain"):
            raise Failed(f"{DATA.relative_to(REPO)}: nothing is in `{patch.subject}'")
        repository.commit(f"{patch.subject}\n\n{patch.body}", "--signoff")
    shutil.rmtree(out, ignore_errors=True)
    cover = series.cover.replace("@RELEASE@", version(pristine))
    repository.git("config", "branch.series.description", f"{series.subject}\n\n{cover}")
    repository.git("format-patch", "-q", "--cover-letter", "--cover-from-description=subject",
                   "--no-signature", "--output-directory", str(out), f"-{len(series.patches)}")
    return sorted(out.glob("*.patch"))


def difference(pristine: Path, folder: Path) -> list[str]:
    """How the series, applied by `git am`, differs from the overlay."""
    author = Author("A. N. Author", "author@example.org")
    mails = write(pristine, folder / "made", folder / "mails", author)
    repository = Repository(folder / "applied", pristine, author)
    before = repository.contents()
    repository.git("am", "-q", *map(str, mails[1:]))
    applied = {name: data for name, data in repository.contents().items()
               if before.get(name) != data}
    wanted = overlay.contents(pristine)
    only = {name for patch in Series.read().patches for name in overlay.parse(patch.edits)}
    return [f"{name} is not as in the overlay" for name in sorted(applied.keys() | wanted.keys())
            if name not in only and applied.get(name) != wanted.get(name)]
