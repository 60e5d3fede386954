# SPDX-License-Identifier: GPL-2.0
"""The overlay as data: which files it brings, which lines it changes.

`install()` and `uninstall()` work on a tree of the user's; `contents()` gives
the same result as a map of file contents, for the tree in the cache (see
kernel.py), which is never patched but brought to that state.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
EDITS = REPO / "scripts" / "overlay.edits"

# Our folders in the kernel tree, and the manifest in one of them.
HOME = Path("kernel/liveupdate/rust")
SAMPLES = Path("samples/liveupdate")
DOCUMENTS = Path("Documentation")
# The tests from user space, with the crates that they need, as a workspace of their own.
KSELFTEST = Path("tools/testing/selftests/liveupdate/rust")
# Kexec Handover, to which files of ours are added.
KHO = Path("kernel/liveupdate")
MANIFEST = HOME / ".overlay"

# What an in-tree build leaves in our folder.
BUILD_PRODUCT = re.compile(
    r".*\.(o|a|bc|d|ko|mod|mod\.c|rsi|s|ll|i|order)$|^\..*\.(cmd|d)$|^modules\.order$"
)


class Refused(Exception):
    """The tree does not fit; the message says why."""


@dataclass
class Hunk:
    """One run of lines of overlay.edits."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def side(self, installed: bool) -> list[str]:
        """The lines as they are in the tree with or without the overlay."""
        out = "-" if installed else "+"
        return [text for mark, text in self.lines if mark != out]

    def show(self) -> str:
        return " / ".join(t for m, t in self.lines if m != "+" and t) or "?"


def files() -> dict[Path, Path]:
    """Maps a path in the kernel tree to the file of the repository it holds."""
    found: dict[Path, Path] = {}

    def add(pattern: str, under: Path, base: Path = REPO) -> None:
        for path in sorted(filter(Path.is_file, base.glob(pattern))):
            found[under / path.relative_to(base)] = path

    for pattern in ("Kbuild", "Kconfig", "*.rs", "luo_*/*.rs", "memfd_luo/*.rs", "hugetlb_luo/*.rs",
                    "records/**/*.rs", "ffi/*", "abi/*.rs", "uapi/lib.rs", "selftests/modules/*"):
        add(pattern, HOME)
    add("*", KHO, REPO / "kho")
    for pattern in ("samples/liveupdate/*", "include/**/*.h", "mm/*.c", "rust/kernel/**/*.rs",
                    "rust/helpers/*.c"):
        add(pattern, Path())
    for pattern in ("**/*.rst", "**/*.svg", "ABI/*/*"):
        add(pattern, DOCUMENTS, REPO / DOCUMENTS)
    # The tree has an index of its own.
    del found[DOCUMENTS / "index.rst"]
    for crate in kselftest_crates():
        for pattern in ("Cargo.toml", "*.rs", "src/**/*.rs"):
            add(f"{crate}/{pattern}", KSELFTEST)
    for name in ("Makefile", "README.md", "config", "settings"):
        found[KSELFTEST / name] = REPO / "selftests" / name
    found[KSELFTEST / ".cargo/config.toml"] = REPO / ".cargo/config.toml"
    return found


def kselftest_crates() -> list[str]:
    """The folders of the crate with the tests, and of those of ours that it needs."""
    shared = tomllib.loads((REPO / "Cargo.toml").read_text())["workspace"]["dependencies"]
    found, new = [], ["selftests"]
    while new:
        crate = new.pop()
        found.append(crate)
        manifest = tomllib.loads((REPO / crate / "Cargo.toml").read_text())
        for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
            for name, wanted in manifest.get(kind, {}).items():
                given = shared[name] if isinstance(wanted, dict) and wanted.get("workspace") else wanted
                if isinstance(given, dict) and "path" in given:
                    base = REPO if given is shared.get(name) else REPO / crate
                    path = os.path.relpath(base / given["path"], REPO)
                    if path not in (*found, *new):
                        new.append(path)
    return sorted(found)


def generated() -> dict[Path, bytes]:
    """Files of the overlay that are parts of one of the repository: of which crates there are."""
    crates = kselftest_crates()
    members = ", ".join(f'"{crate}"' for crate in crates)
    workspace = re.sub(r"(?ms)^members = \[.*?\]\n(exclude = \[.*?\]\n)?", f"members = [{members}]\n",
                       (REPO / "Cargo.toml").read_text())
    head, *blocks = (REPO / "Cargo.lock").read_text().split("[[package]]\n")
    packages = {}
    for block in blocks:
        package = tomllib.loads(block)
        packages[package["name"], package["version"]] = (block, package.get("dependencies", []))
    wanted = [tomllib.loads((REPO / crate / "Cargo.toml").read_text())["package"]["name"]
              for crate in crates]
    kept = set()
    while wanted:
        name, _, version = wanted.pop().partition(" ")
        for key, (_, needs) in packages.items():
            if key[0] == name and version in ("", key[1]) and key not in kept:
                kept.add(key)
                wanted += needs
    lock = head + "[[package]]\n".join(["", *(packages[key][0] for key in sorted(kept))])
    return {KSELFTEST / "Cargo.toml": workspace.encode(),
            KSELFTEST / "Cargo.lock": (lock.rstrip("\n") + "\n").encode()}


def parse(text: str) -> dict[str, list[Hunk]]:
    """Reads the table of edits."""
    edits: dict[str, list[Hunk]] = {}
    hunks: list[Hunk] | None = None
    hunk = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            continue
        if line.startswith("file "):
            hunks = edits.setdefault(line[5:].strip(), [])
            hunk = None
        elif not line:
            hunk = None
        elif line[0] in " +-" and hunks is not None:
            if hunk is None:
                hunk = Hunk()
                hunks.append(hunk)
            hunk.lines.append((line[0], line[1:]))
        else:
            raise ValueError(f"overlay.edits:{number}: {line!r} is no line of a hunk")
    return edits


def read_lines(path: Path) -> list[str]:
    text = path.read_text()
    if not text.endswith("\n"):
        raise Refused(f"{path.name} does not end with a newline")
    return text[:-1].split("\n")


def places(lines: list[str], wanted: list[str]) -> list[int]:
    """Where `wanted` stands in `lines`."""
    size = len(wanted)
    return [i for i in range(len(lines) - size + 1) if lines[i:i + size] == wanted]


def edit(name: str, lines: list[str], hunks: list[Hunk]) -> list[str]:
    """Returns `lines` with the hunks applied."""
    for hunk in hunks:
        old, new = hunk.side(False), hunk.side(True)
        at = places(lines, old)
        if places(lines, new):
            raise Refused(f"already patched: {name} has the overlay's lines at `{hunk.show()}'")
        if len(at) != 1:
            often = "is not there" if not at else f"is there {len(at)} times"
            raise Refused(f"local changes: in {name}, `{hunk.show()}' {often}")
        lines = lines[:at[0]] + new + lines[at[0] + len(old):]
    return lines


def unedit(name: str, lines: list[str], hunks: list[Hunk]) -> list[str]:
    """Takes the hunks out; one that is not in (an interrupted install) is left."""
    for hunk in reversed(hunks):
        old, new = hunk.side(False), hunk.side(True)
        at = places(lines, new)
        if len(at) == 1:
            lines = lines[:at[0]] + old + lines[at[0] + len(new):]
        elif at or len(places(lines, old)) != 1:
            raise Refused(f"local changes: in {name}, the overlay's lines at `{hunk.show()}' "
                          "were changed")
    return lines


def check_tree(tree: Path) -> None:
    """Refuses what is not a Linux 7.3 tree."""
    makefile = tree / "Makefile"
    if not makefile.is_file() or not (tree / "rust/kernel/lib.rs").is_file() \
            or not (tree / "scripts/Kbuild.include").is_file():
        raise Refused("this is not a Linux source tree")
    version = {}
    for line in makefile.read_text().splitlines()[:10]:
        match = re.fullmatch(r"(VERSION|PATCHLEVEL|SUBLEVEL)\s*=\s*(\S*)\s*", line)
        if match:
            version[match[1]] = match[2]
    found = f"{version.get('VERSION', '?')}.{version.get('PATCHLEVEL', '?')}"
    if found != "7.3":
        raise Refused(f"wrong version: this is Linux {found}, the overlay is for 7.3")


def check_complete(table: dict[str, list[Hunk]], new: Iterable[Path]) -> None:
    """A file that no edit makes part of the build would be dead weight."""
    added = {text for hunks in table.values() for h in hunks for m, text in h.lines if m == "+"}
    for path in new:
        name = path.as_posix()
        wanted = None
        if re.fullmatch(r"rust/kernel/[^/]+\.rs", name):
            wanted = f"pub mod {path.stem};"
        elif path.parent.as_posix() == "rust/helpers":
            wanted = f'#include "{path.name}"'
        elif path.suffix == ".rst" and path.parent.parent == DOCUMENTS:
            wanted = f"   {path.stem}"
        elif path.parent.as_posix() == "mm":
            option = "HUGETLB" if path.stem.startswith("hugetlb") else "MEMFD"
            wanted = f"obj-$(CONFIG_LIVEUPDATE_{option}) += {path.stem}.o"
        elif path.parent == KHO and path.suffix == ".c":
            wanted = f"obj-$(CONFIG_KEXEC_HANDOVER)\t\t+= {path.stem}.o"
        if wanted and wanted not in added:
            raise Refused(f"{name} is not used: scripts/overlay.edits adds no `{wanted}'")


def edited(tree: Path, edits: dict[str, list[Hunk]]) -> dict[str, list[str]]:
    """The files that a table of edits changes, as they are after the change."""
    result = {}
    for name, hunks in edits.items():
        if not hunks:
            continue
        if not (tree / name).is_file():
            raise Refused(f"local changes: {name} is missing")
        result[name] = edit(name, read_lines(tree / name), hunks)
    return result


def everything() -> dict[Path, bytes]:
    """All files of the overlay."""
    return {path: source.read_bytes() for path, source in files().items()} | generated()


def contents(tree: Path, new: dict[Path, bytes] | None = None,
             edits: dict[str, list[Hunk]] | None = None) -> dict[str, bytes]:
    """Everything that differs between the pristine `tree` and one with the overlay.

    A part of the overlay may be asked for: some of its files, with some of its edits.
    """
    check_tree(tree)
    new = everything() if new is None else new
    edits = parse(EDITS.read_text()) if edits is None else edits
    check_complete(edits, new)
    result = {name: ("\n".join(lines) + "\n").encode()
              for name, lines in edited(tree, edits).items()}
    for path, held in new.items():
        if (tree / path).exists():
            raise Refused(f"{path} is there already")
        result[path.as_posix()] = held
    return result


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one step, as a new inode: others may be hard links to the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    if path.exists():
        temporary.chmod(path.stat().st_mode & 0o7777)
    os.replace(temporary, path)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def install(tree: Path) -> str:
    """Puts the overlay into `tree`."""
    if not tree.is_dir():
        raise Refused("there is no such folder")
    check_tree(tree)
    if (tree / HOME).is_dir() and any((tree / HOME).iterdir()):
        raise Refused(f"already patched: {HOME} is there")
    state = contents(tree)
    new = [path.as_posix() for path in everything()]
    # Only folders that the overlay makes may go with it.
    folders = sorted({str(d) for n in new for d in Path(n).parents if not (tree / d).exists()})
    manifest = {
        "files": {name: digest(state[name]) for name in new},
        "folders": folders,
        "edits": {name: [hunk.lines for hunk in hunks]
                  for name, hunks in parse(EDITS.read_text()).items() if hunks},
    }
    write(tree / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    for name, data in state.items():
        write(tree / name, data)
    return f"{len(new)} files and {len(state) - len(new)} edits are in {tree}"


def uninstall(tree: Path) -> str:
    """Takes the overlay out of `tree`."""
    if not (tree / MANIFEST).is_file():
        raise Refused(f"the overlay is not installed here (there is no {MANIFEST})")
    manifest = json.loads((tree / MANIFEST).read_text())
    ours = {tree / name for name in manifest["files"]} | {tree / MANIFEST}
    for name, known in manifest["files"].items():
        if (tree / name).is_file() and digest((tree / name).read_bytes()) != known:
            raise Refused(f"local changes: {name} was changed since it was installed")

    # Build products in our folders go too; anything else there is the user's.
    products = []
    for folder in manifest["folders"]:
        if not (tree / folder).is_dir():
            continue
        for path in (tree / folder).iterdir():
            if path in ours or path.is_dir() and str(path.relative_to(tree)) in manifest["folders"]:
                continue
            partial = re.fullmatch(r"\.(.*)\.new", path.name)
            if BUILD_PRODUCT.match(path.name) or partial and path.with_name(partial[1]) in ours:
                products.append(path)
            else:
                raise Refused(f"{path.relative_to(tree)} is not part of the overlay")
    state = {}
    for name, hunks in manifest["edits"].items():
        if not (tree / name).is_file():
            raise Refused(f"local changes: {name} is missing")
        lines = read_lines(tree / name)
        old = unedit(name, lines, [Hunk([tuple(line) for line in h]) for h in hunks])
        if old != lines:
            state[name] = old

    for name, lines in state.items():
        write(tree / name, ("\n".join(lines) + "\n").encode())
    # The manifest goes last: until then an interrupted run can be repeated.
    # (Half-written files are an interrupted installation's.)
    products += [(tree / name).with_name(f".{Path(name).name}.new") for name in manifest["edits"]]
    for path in products + sorted(ours - {tree / MANIFEST}) + [tree / MANIFEST]:
        path.unlink(missing_ok=True)
    for folder in sorted(manifest["folders"], key=len, reverse=True):
        if (tree / folder).is_dir():
            (tree / folder).rmdir()
    return f"the overlay is out of {tree}"
