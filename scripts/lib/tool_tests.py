# SPDX-License-Identifier: GPL-2.0
"""Tests of what people run: luoctl, and the library from C, in a virtual machine and across a kexec."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import guest
import programs
from common import CACHE, REPO, Failed, lock, quiet, run
from guest_tests import Bench, busybox, ktap, story
from machine import X86
from report import Results

SCRIPTS = REPO / "selftests/tools"


def names(script: str) -> list[str]:
    """The tests that a script runs."""
    text = (SCRIPTS / f"{script}.sh").read_text()
    if not (match := re.search(r"^run_tests ((?:[^\n\\]|\\\n)*)$", text, re.MULTILINE)):
        raise Failed(f"{script}.sh has no line with run_tests")
    return match[1].replace("\\\n", " ").split()


def c_example(folder: Path) -> Path:
    """The example in C, linked with the library as a static program."""
    with lock():
        run(programs.cargo("rustc", "--release", "--package", "libliveupdate", "--crate-type", "staticlib"),
            "building libliveupdate.a", CACHE / "log/libliveupdate.log",
            step=r"^ +(Compiling|Downloaded)", cwd=REPO)
        built = programs.CARGO_FOLDER / X86.target / "release"
        library = Path(shutil.copy2(built / "libliveupdate_c.a", folder))
    source = REPO / "tools/libliveupdate"
    quiet(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{source}/include",
           str(source / "examples/hold.c"), str(library), "-lpthread", "-ldl", "-lm",
           "-o", str(folder / "hold")], "building hold.c")
    return folder / "hold"


class Tools:
    """The tools on one kernel."""

    def __init__(self, bench: Bench, stock: Bench, older: Bench | None, results: Results):
        """`stock` has a kernel with the C LUO, `older` Linux 7.2, if it is built."""
        self.bench, self.stock, self.older, self.results = bench, stock, older, results
        self.prefix = f"{bench.name}/tools/"

    def wanted(self, *scripts: str) -> list[str]:
        return [name for script in scripts for name in names(script)
                if self.results.wants(self.prefix + name)]

    def run(self) -> None:
        across, off = self.wanted("old", "new"), self.wanted("off")
        if not self.older and "load_older" in across:
            across.remove("load_older")
            self.results.skip(f"{self.prefix}load_older", "Linux 7.2 is not built yet")
        if not across and not off:
            return
        folder = self.bench.folder / "tools"
        folder.mkdir(exist_ok=True)
        with lock():
            luoctl = programs.crate_program("luoctl", "luoctl", folder)
        hold = c_example(folder)

        def fill(archive: guest.Initramfs, script: str) -> None:
            busybox(archive, "mount -t sysfs sys /sys\nmount -t debugfs debugfs /sys/kernel/debug\n"
                    f"mkdir -p /tmp /run\n{script}")
            archive.file("bin/luoctl", luoctl, 0o755)
            archive.file("bin/hold", hold, 0o755)
            for path in SCRIPTS.glob("*.sh"):
                archive.file(path.name, path)

        if across:
            with guest.Initramfs(folder / "inner.cpio") as inner:
                fill(inner, "eval $(tr ' ' '\\n' </proc/cmdline | sed -n 's/^luo\\.\\(\\w*\\)=/luo_\\1=/p')\n"
                     ". /new.sh")
            with self.bench.archive() as archive:
                fill(archive, ". /old.sh")
                archive.file("boot/kernel", self.bench.built.image)
                archive.file("boot/initrd", folder / "inner.cpio")
                archive.file("boot/c", self.stock.built.image)
                if self.older:
                    archive.file("boot/older", self.older.built.image)
            # The description of the first session's file.
            self.judge("luoctl", across, "kho=on liveupdate.corrupt=memfds:33:7")
        if off:
            with self.bench.archive() as archive:
                fill(archive, ". /off.sh")
            self.judge("off", off, "liveupdate=off")

    def judge(self, boot: str, wanted: list[str], options: str) -> None:
        """Boots, and takes in the results."""
        outcome = self.bench.boot(command_line=options, memory=2048, timeout=240, silence=90)
        found = {name: (how, remarks) for how, name, remarks in ktap(outcome.report)}
        broken = [line.split(" ", 2)[1] for line in outcome.report
                  if line.startswith("JSON ") and not is_json(line.split(" ", 2)[2])]
        missing = 0
        for name in wanted:
            how, remarks = found.get(name, ("", []))
            if not how:
                missing += 1
            why = None if how == "ok" else remarks or \
                (story(outcome) if missing == 1 else ["did not run: the guest ended before"])
            self.results.add(self.prefix + name, why)
        if "kexec" in found:
            self.results.add(f"{self.prefix}kexec", found["kexec"][1])
        trouble = [f"the output of {name} is no JSON" for name in broken]
        trouble += story(outcome) if outcome.alarms() or outcome.trouble else []
        self.results.verdict(f"{self.prefix}{boot}-log", trouble, outcome.seconds)


# What is known of the kernels that the suite builds: roots that they read, and how that is known.
IMAGES = {"rust": ({"luo-v1", "luo-v5"}, "note"), "rust-memfd-c": ({"luo-v1", "luo-v5"}, "note"),
          "c": ({"luo-v5"}, "note"), "7.2": ({"luo-v5"}, "derived")}
# Those that can retrieve files of huge pages. What can only keep them must not say so.
WITH_HUGETLB = ("rust", "c")


def image_trouble(luoctl: Path, bench: Bench) -> list[str]:
    """What `luoctl check` says wrongly of a kernel's image, and of its vmlinux."""
    trouble = []
    for path in (bench.built.image, bench.built.vmlinux):
        done = subprocess.run([luoctl, "--json", "check", path, "--cmdline", "liveupdate=on"],
                              stdout=subprocess.PIPE, text=True)
        image = json.loads(done.stdout)["image"] or {}
        formats = image.get("formats", {"entries": [], "source": "?"})
        found = {entry["name"] for entry in formats["entries"] if entry["kind"] == "root"}
        if (found, formats["source"]) != IMAGES[bench.name]:
            trouble.append(f"{path.name}: reads {sorted(found)}, as is known from {formats['source']}")
        if not any(entry["name"] == "memfd-v2" for entry in formats["entries"]):
            trouble.append(f"{path.name}: reads no memfd-v2")
        if any(entry["name"] == "hugetlb-memfd-v1" for entry in formats["entries"]) \
                != (bench.name in WITH_HUGETLB):
            trouble.append(f"{path.name}: is wrong about huge pages")
        if image.get("release") != bench.built.release:
            trouble.append(f"{path.name}: is {image.get('release')}, not {bench.built.release}")
    return trouble


def images(benches: list[Bench], folder: Path, results: Results) -> None:
    """The images of all kernels that have been built."""
    wanted = [bench for bench in benches
              if bench.name in IMAGES and results.wants(f"{bench.name}/tools/image")]
    if not wanted:
        return
    with lock():
        luoctl = programs.crate_program("luoctl", "luoctl", folder)
    for bench in wanted:
        results.add(f"{bench.name}/tools/image", image_trouble(luoctl, bench))


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
