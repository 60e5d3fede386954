# SPDX-License-Identifier: GPL-2.0
"""The Debian packages for an architecture that is not this machine's: what is in them, and that it runs there.

Nothing of them can be run here. A virtual machine of that architecture runs all
programs, and carries a file over a live update with them and with the C library.
"""

from pathlib import Path

import guest
import packages
from common import lock, quiet
from guest_tests import Bench, busybox, story

TEXT = "carried by the packages"

# In the first kernel, and in the next one. What is to be read in the report is in checks().
BEGIN = f"""
for program in luoctl luo-qemu luo-run luod; do $program --version >$report 2>&1; done
luoctl check /boot/kernel --initrd /boot/initrd --append kho=on >$report 2>&1
hold preserve packages "{TEXT}" >/tmp/hold &
until grep -q preserved /tmp/hold; do sleep 0.1; done
luoctl list >$report 2>&1
luoctl load /boot/kernel --initrd /boot/initrd --append kho=on >$report 2>&1 && luoctl kexec >$report 2>&1
"""
END = """
echo 'after the update:' >$report
luoctl list >$report 2>&1
hold retrieve packages >$report 2>&1
luoctl list >$report 2>&1
"""


def libraries(bench: Bench) -> list[Path]:
    """What the programs are linked with, of Debian's packages for the architecture."""
    folder = Path("/usr/lib") / bench.machine.triplet
    names = (f"ld-linux-{bench.machine.name}.so.1", "libc.so.6", "libgcc_s.so.1", "libm.so.6")
    return [folder / name for name in names]


def example(root: Path, bench: Bench) -> Path:
    """The example in C, built with what the packages install."""
    library = root / "usr/lib" / bench.machine.triplet
    quiet([*bench.machine.compiler, "-Wall", "-Werror",
           str(root / "usr/share/doc/libliveupdate-dev/examples/hold.c"),
           *packages.flags(library / "pkgconfig/liveupdate.pc", root), "-o", str(root / "hold")],
          "building the example")
    return root / "hold"


def fill(archive: guest.Initramfs, script: str, root: Path, bench: Bench) -> None:
    """What is installed below `root`, with the libraries, and a script to run first."""
    busybox(archive, f"export PATH=/usr/bin:/usr/sbin:$PATH\nmount -t sysfs sys /sys\nmkdir -p /tmp\n{script}",
            bench.machine)
    for folder in ("usr", "usr/bin", "usr/sbin", "lib"):
        archive.folder(folder)
    for name in sorted(packages.expected(bench.machine)):
        if name.split("/")[1] in ("bin", "sbin"):
            archive.file(name, root / name, 0o755)
    archive.file("usr/bin/hold", example(root, bench), 0o755)
    library = f"usr/lib/{bench.machine.triplet}/libliveupdate.so.1"
    archive.file(f"lib/{Path(library).name}", root / library)
    for path in libraries(bench):
        archive.file(f"lib/{path.name}", path, 0o755)


def checks(report: list[str]) -> list[str]:
    """What is wrong with what the machine told."""
    if "after the update:" not in report:
        return ["the next kernel said nothing", *report[-10:]]
    at = report.index("after the update:")
    before, after = report[:at], report[at:]
    trouble = [f"{program} did not tell its version" for program in ("luoctl", "luo-qemu", "luo-run", "luod")
               if not any(line.startswith(f"{program} ") for line in before)]
    if not any("packages" in line for line in before):
        trouble.append("the session was not listed")
    if TEXT not in after:
        trouble.append("the next kernel did not have the file's content")
    return [*trouble, *report] if trouble else []


def trouble(bench: Bench, folder: Path) -> dict[str, list[str]]:
    """Makes the packages for the architecture of `bench`, in `folder`; what is wrong, by test."""
    architecture = packages.ARCHITECTURES[bench.machine.name]
    with lock():
        packages.make(folder / "debs", bench.machine)
    found: dict[str, list[str]] = {"install": []}
    root = packages.Root(folder / "root")
    debs = sorted((folder / "debs").glob("*.deb"))
    for deb in debs:
        text = quiet(["dpkg-deb", "--field", str(deb), "Architecture"], "reading a package").strip()
        if text != architecture:
            found["install"].append(f"{deb.name} is for {text}")
    root.dpkg("--force-architecture", "--install", *map(str, debs))
    missing = packages.expected(bench.machine) - root.files()
    found["install"] += [f"{name} is missing" for name in sorted(missing)]
    found["install"] += [line for line in root.installed() if not line.endswith(" installed")]
    if missing:
        return found

    with guest.Initramfs(folder / "inner.cpio") as inner:
        fill(inner, END, root.path, bench)
    with bench.archive() as archive:
        fill(archive, BEGIN, root.path, bench)
        archive.file("boot/kernel", bench.built.image)
        archive.file("boot/initrd", folder / "inner.cpio")
    outcome = bench.boot(folder, command_line="kho=on", timeout=180)
    found["update"] = checks(outcome.report) or \
        (story(outcome) if outcome.alarms() or outcome.trouble else [])
    return found
