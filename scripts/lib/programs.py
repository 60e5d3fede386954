# SPDX-License-Identifier: GPL-2.0
"""Builds what runs in user space: our crates, and the stock tests of the tree."""

import hashlib
import os
import shutil
from pathlib import Path

import kernel
from common import CACHE, REPO, quiet, run
from machine import X86, Machine

# One for each clone: cargo goes by the time of a file, and believes that what another clone built
# later is of the sources here.
CARGO_FOLDER = CACHE / "cargo-target" / hashlib.sha256(bytes(REPO)).hexdigest()[:12]


def cargo(*words: str) -> list[str]:
    command, *rest = words
    return ["cargo", command, "--locked", "--target-dir", str(CARGO_FOLDER), *rest]


def crate_program(package: str, name: str, into: Path, features: str = "", machine: Machine = X86) -> Path:
    """Builds a program of the workspace and copies it to `into`. Needs the lock."""
    run(cargo("build", "--release", "--package", package, "--bin", name, "--features", features),
        f"building {name}", CACHE / "log" / f"{name}.log", step=r"^ +(Compiling|Downloaded)",
        cwd=REPO, env={**os.environ, **machine.cargo})
    path = into / name
    shutil.copy2(CARGO_FOLDER / machine.target / "release" / name, path)
    return path


def kselftest(built: kernel.Kernel, into: Path) -> Path:
    """Builds our tests as a kselftest of the tree. Needs the lock."""
    quiet(["make", "-C", str(built.tree / "tools/testing/selftests"), "TARGETS=liveupdate/rust",
           f"O={into}", f"CARGO_FOLDER={CARGO_FOLDER}", "FORCE_TARGETS=1"],
          "building tools/testing/selftests/liveupdate/rust")
    return into / "kselftest/liveupdate/rust/luo-selftest"


def client32(built: kernel.Kernel, headers: Path, into: Path) -> Path | None:
    """Builds the client of 32 bits, which needs no library beside it. Needs the lock.

    There is one where the kernel's machine is this one, on which the compiler has both widths.
    """
    if not built.variant.machine.is_host:
        return None
    path = into / "client32"
    quiet(["clang", "-m32", "-static", "-O2", "-Wall", "-Werror", "-nostdinc", "-nostdlib",
           "-fno-builtin", "-fno-stack-protector", "-fuse-ld=lld", f"-I{headers}",
           f"-I{built.tree}/tools/include/nolibc", str(REPO / "selftests/client32.c"),
           "-o", str(path)], "building client32.c")
    return path


class Stock:
    """The tree's own live update tests, built unchanged, as its vmtest.sh does."""

    KEXEC = ("luo_kexec_simple", "luo_multi_session", "luo_stress_files", "luo_stress_sessions")

    def __init__(self, built: kernel.Kernel, into: Path):
        """Needs the lock."""
        self.folder = into
        tests = built.tree / kernel.STOCK_TESTS
        headers = into / "headers"
        machine = built.variant.machine
        quiet([*kernel.make(built.tree, built.folder, machine), "headers_install",
               f"INSTALL_HDR_PATH={headers}"], "exporting the kernel's headers")
        self.headers = headers / "include"
        library = [f"-I{tests}/lib/include", f"{tests}/lib/lu_utils.c"]
        quiet([*machine.compiler, "-static", "-O2", "-D_GNU_SOURCE=", f"-I{self.headers}", f"-I{tests}/..", *library,
               f"{tests}/liveupdate.c", "-o", str(into / "liveupdate")], "building liveupdate.c")
        # clang makes one function of a library out of another, and nolibc has not all.
        bare = [*machine.compiler, "-static", "-O2", "-nostdinc", "-nostdlib", "-fno-stack-protector",
                "-fno-builtin",
                f"-I{self.headers}", f"-I{built.tree}/tools/include/nolibc"]
        for name in self.KEXEC:
            quiet([*bare, *library, f"{tests}/{name}.c", "-o", str(into / name)],
                  f"building {name}.c")
        quiet([*bare, f"{tests}/init.c", "-o", str(into / "init")], "building init.c")
