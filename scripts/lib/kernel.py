# SPDX-License-Identifier: GPL-2.0
"""Builds kernels: source tree, configuration, build folder.

In the cache are, for each kernel source, one tree with the overlay in it and
any number of build folders (`O=`) that share it. The tree is made of hard
links to the pristine source, and is brought to the content of this clone's
overlay before each build. A file whose content stays is not touched, so what
another clone (or an earlier run) built from the same content is built
already.

Beside them is Linux 7.2, from which and back to which machines are updated. It
stays as it is, so its source needs no copy.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import overlay
import series
from common import CACHE, JOBS, REPO, Failed, lock, quiet, run, say
from machine import X86, Machine

STOCK_TESTS = Path("tools/testing/selftests/liveupdate")
# The Linux that the overlay is for, and the one before.
RELEASE, PREVIOUS = "7.3", "7.2"
# How many steps a build from nothing has, to say how far it is.
STEPS = {RELEASE: 1900, PREVIOUS: 1850}


def source(release: str = RELEASE) -> Path:
    """The pristine source (fetched if need be)."""
    done = subprocess.run([REPO / "scripts/ksrc", release], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"there is no source of Linux {release}")
    path = Path(done.stdout.splitlines()[-1])
    if (path / ".config").exists() or (path / "include/config").exists():
        raise Failed(f"{path} holds a build; a kernel source to build from must be clean "
                     "(make mrproper)")
    return path


def pinned_package(release: str) -> str:
    """The Debian package that scripts/ksrc takes that Linux from."""
    versions = re.findall(r"VERSION=(\S+)", (REPO / "scripts/ksrc").read_text())
    return next(f"linux-source-{release}_{version}_all.deb"
                for version in versions if version.startswith(f"{release}."))


def name_of(pristine: Path) -> str:
    """What the cache calls a kernel source: two elsewhere may have the same name."""
    cached = pristine.is_relative_to(CACHE)
    return pristine.name if cached else hashlib.sha256(str(pristine).encode()).hexdigest()[:12]


def place(old: Path, new: Path) -> None:
    """Makes `new` the same file as `old`, or a copy on another file system."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def link_tree(pristine: Path, tree: Path, leave: set[str]) -> None:
    """Makes `tree` a copy of `pristine`, except for the paths in `leave`.

    Also brings an old copy up to date, and goes on where it was interrupted.
    """
    def same(a: os.stat_result, b: os.stat_result) -> bool:
        return (a.st_ino, a.st_dev) == (b.st_ino, b.st_dev) or \
            (a.st_mtime_ns, a.st_size) == (b.st_mtime_ns, b.st_size)

    for folder, folders, names in os.walk(pristine):
        folders[:] = [f for f in folders if f != ".git"]
        relative = os.path.relpath(folder, pristine)
        (tree / relative).mkdir(parents=True, exist_ok=True)
        # Symbolic links to folders are copied as what they are.
        for name in names + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            path = os.path.normpath(os.path.join(relative, name))
            if path in leave:
                continue
            if os.path.lexists(tree / path):
                if same(os.lstat(pristine / path), os.lstat(tree / path)):
                    continue
                (tree / path).unlink()
            place(pristine / path, tree / path)


def overlaid(pristine: Path, step: int | None = None) -> Path:
    """The tree in the cache that has the overlay of this clone. Needs the lock.

    With `step`, that one of which so many patches of the series have been applied to.
    """
    name = name_of(pristine) + ("-patches" if step is not None else "")
    tree = CACHE / "tree" / name
    # What the overlay has brought so far; its existence says that the copy is complete.
    stamp = CACHE / "tree" / f"{name}.overlay"
    if (pristine / overlay.MANIFEST).exists():
        raise Failed(f"{pristine} has the overlay installed already; "
                     f"`make uninstall-tree KSRC={pristine}' takes it out")
    try:
        wanted = overlay.contents(pristine) if step is None else \
            series.Series.read().step(pristine, step)
    except overlay.Refused as why:
        raise Failed(f"the overlay does not fit {pristine}: {why}") from None

    before = set(stamp.read_text().splitlines()) if stamp.exists() else set()
    if not pristine.is_relative_to(CACHE) or not stamp.exists():
        say(f"making a copy of {pristine} to build from")
        link_tree(pristine, tree, before | set(wanted))
    # Noted before it is done, so that what an interrupted run did is known.
    stamp.write_text("\n".join(sorted(before | set(wanted))) + "\n")
    for path in before - set(wanted):
        (tree / path).unlink(missing_ok=True)
        # A new file: what was built from the changed one is older, and must be built again.
        if (pristine / path).exists():
            overlay.write(tree / path, (pristine / path).read_bytes())
    for path, data in wanted.items():
        if not (tree / path).is_file() or (tree / path).read_bytes() != data:
            overlay.write(tree / path, data)
    stamp.write_text("\n".join(sorted(wanted)) + "\n")
    return tree


def read_config(path: Path) -> dict[str, str]:
    """Options and values of a Kconfig fragment; `n` for one that is not set."""
    options = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if match := re.fullmatch(r"(CONFIG_\w+)=(.*)", line):
            options[match[1]] = match[2]
        elif match := re.fullmatch(r"# (CONFIG_\w+) is not set", line):
            options[match[1]] = "n"
        elif line and not line.startswith("#"):
            raise Failed(f"{path}:{number}: `{line}' is no line of a Kconfig fragment "
                         "(CONFIG_NAME=value)")
    return options


@dataclass(frozen=True)
class Variant:
    """What is built: the implementations, fragments of the user's, of which Linux, for what and for where."""

    core: str = "rust"
    memfd: str = ""
    fragments: tuple[Path, ...] = ()
    release: str = RELEASE
    # A fragment of the project's: `debug' is a debug kernel, `bench' is measured.
    purpose: str = ""
    machine: Machine = X86

    @staticmethod
    def from_environment() -> "Variant":
        core = os.environ.get("LUO_IMPL") or "rust"
        memfd = os.environ.get("LUO_MEMFD") or ""
        for name, value in (("LUO_IMPL", core), ("LUO_MEMFD", memfd or core)):
            if value not in ("rust", "c"):
                raise Failed(f"{name} is `rust' or `c', not `{value}'")
        fragments = tuple(map(Path, os.environ.get("FRAGMENT", "").split()))
        for path in fragments:
            if not path.is_file():
                raise Failed(f"FRAGMENT={path}: there is no such file")
        return Variant(core, memfd, fragments, machine=machine.from_environment())

    @property
    def memfd_impl(self) -> str:
        return self.memfd or self.core

    @property
    def ours(self) -> list[Path]:
        """The project's fragments that make it."""
        names = ["base", self.machine.fragments[1], self.release]
        if self.release == RELEASE:
            names += [self.core, f"memfd-{self.memfd_impl}"]
        if self.purpose:
            names.append(self.purpose)
            # What it has on this architecture alone, if anything.
            more = f"{self.purpose}-{self.machine.fragments[1]}"
            names += [more] if (REPO / f"configs/{more}.config").exists() else []
        return [REPO / "selftests/config", *(REPO / f"configs/{name}.config" for name in names)]

    @property
    def name(self) -> str:
        return self.kind if self.machine == X86 else f"{self.machine.arch}-{self.kind}"

    @property
    def kind(self) -> str:
        """Its name, leaving out the machine."""
        if self.release != RELEASE:
            return f"{self.release}-{self.purpose}" if self.purpose else self.release
        if self.purpose:
            return self.purpose if self.core == "rust" else f"{self.core}-{self.purpose}"
        return self.core if self.memfd_impl == self.core else f"{self.core}-memfd-{self.memfd}"


# The kernel to come from and to go back to.
STOCK = Variant("c", release=PREVIOUS)


@dataclass(frozen=True)
class Kernel:
    """A built kernel, in its build folder."""

    variant: Variant
    tree: Path
    folder: Path
    image: Path

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def modules(self) -> list[Path]:
        """The modules of ours that are part of it."""
        return [path for home in (overlay.SAMPLES, overlay.HOME / "selftests/modules")
                for path in sorted((self.folder / home).glob("*.ko"))]

    def copied(self, image: Path) -> "Kernel":
        """The same with a copy of its image: another run may build over it. Needs the lock."""
        return replace(self, image=Path(shutil.copy2(self.image, image)))

    @property
    def release(self) -> str:
        """Its full version, as `uname -r` will say."""
        return (self.folder / "include/config/kernel.release").read_text().strip()


def make(tree: Path, folder: Path, target: Machine = X86) -> list[str]:
    """The command that all kernel builds begin with."""
    compiler = "ccache clang" if shutil.which("ccache") else "clang"
    return ["make", "-C", str(tree), f"O={folder}", f"ARCH={target.arch}", "LLVM=1", f"CC={compiler}",
            f"-j{JOBS}",
            # The same input gives the same kernel.
            "KBUILD_BUILD_TIMESTAMP=2026-01-01", "KBUILD_BUILD_USER=luo", "KBUILD_BUILD_HOST=luo"]


def stock_fragments(tree: Path, target: Machine) -> list[Path]:
    """What the tree's own live update tests need; it has no file of what needs nothing."""
    tests = tree / STOCK_TESTS
    return list(filter(Path.exists, (tests / "config", tests / target.fragments[0])))


def configure(tree: Path, folder: Path, variant: Variant) -> None:
    """Writes the folder's .config, and checks that what was asked for took effect."""
    ours: dict[str, str] = {}
    for path in (*stock_fragments(tree, variant.machine), *variant.ours):
        ours |= read_config(path)
    asked: dict[str, str] = {}
    for path in variant.fragments:
        asked |= read_config(path)
    wanted = ours | asked
    text = "".join(f"{name}={value}\n" if value != "n" else f"# {name} is not set\n"
                   for name, value in wanted.items())

    # Left alone if nothing changed, as a new .config makes all of Kconfig run again.
    given, config = folder / "luo.config", folder / ".config"
    if not config.exists() or not given.exists() or given.read_text() != text:
        config.write_text(text)
        given.unlink(missing_ok=True)
        quiet([*make(tree, folder, variant.machine), "olddefconfig"], "configuring the kernel")
        given.write_text(text)

    is_set = read_config(config)
    lost = {name: value for name, value in wanted.items() if is_set.get(name, "n") != value}
    for name, value in lost.items():
        if name in asked:
            where = next(p for p in variant.fragments if name in read_config(p))
            given.unlink(missing_ok=True)
            raise Failed(f"{name}={value}, asked for in {where}, did not take effect: it is "
                         f"{is_set.get(name, 'not set')} (an unmet dependency, or no such option)")
    if lost and not asked:
        raise Failed("the kernel's configuration lacks " + ", ".join(lost))


def build_folder(tree: Path, variant: Variant) -> Path:
    """Where a variant of what is in `tree` is built."""
    key = hashlib.sha256()
    for path in (*variant.ours, *variant.fragments):
        key.update(path.read_bytes())
    return CACHE / "build" / name_of(tree) / f"{variant.name}-{key.hexdigest()[:8]}"


def is_built(variant: Variant) -> bool:
    """Whether a kernel of that kind has been built, from whatever source."""
    return any((CACHE / "build").glob(f"*/{variant.name}-{'?' * 8}/.luo-done"))


def build(variant: Variant, *targets: str, extra: tuple[str, ...] = ()) -> Kernel:
    """Builds a kernel, or makes sure that it is built. Needs the lock."""
    tree = source(variant.release)
    if variant.release == RELEASE:
        tree = overlaid(tree)
    folder = build_folder(tree, variant)
    done = folder / ".luo-done"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        others = [path.parent for path in folder.parent.glob("*/.luo-done")
                  if (path.parent / "arch" / variant.machine.arch).exists()]
        if others:
            # Kbuild knows what another configuration changes, and makes only that again.
            nearest = max(others, key=lambda path: path.stat().st_mtime)
            new = folder.with_name(folder.name + ".new")
            shutil.rmtree(new, ignore_errors=True)
            quiet(["cp", "-a", str(nearest), str(new)], "copying a build folder")
            new.rename(folder)
        else:
            folder.mkdir()
    if os.environ.get("LUO_TOOLCHAIN") == "host" and variant.release == RELEASE \
            and not (folder / ".config").exists():
        quiet([*make(tree, folder, variant.machine), "rustavailable"], "the check of the host's Rust tools")
    first = not (folder / "vmlinux").exists()
    done.unlink(missing_ok=True)
    configure(tree, folder, variant)
    what = f"building the kernel ({variant.name})"
    if first:
        say(f"{what}; from nothing this takes a quarter of an hour on two processors")
    run([*make(tree, folder, variant.machine), *extra, *(targets or ("all",))], what,
        folder / "luo-build.log", STEPS[variant.release] if first else None)
    done.touch()
    return Kernel(variant, tree, folder, folder / "arch" / variant.machine.image)


def build_step(pristine: Path, step: int) -> None:
    """Builds a kernel with the first patches of the series. Needs the lock.

    What an option needs may come with a later patch: then it is not set yet.
    """
    tree = overlaid(pristine, step)
    folder = CACHE / "build" / tree.name
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, str] = {}
    for path in (*stock_fragments(tree, X86), *Variant("rust").ours):
        options |= read_config(path)
    (folder / ".config").write_text("".join(f"{name}={value}\n" for name, value in options.items()))
    quiet([*make(tree, folder), "olddefconfig"], "configuring the kernel")
    run([*make(tree, folder), "all"], f"building the kernel after patch {step}",
        folder / "luo-build.log", STEPS[RELEASE])


def build_locked(variant: Variant) -> Kernel:
    with lock():
        return build(variant)
