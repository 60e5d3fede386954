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

# In the first kernel, and in the next one. What is said if all is well is in SAID.
BEGIN = f"""
for program in luoctl luo-qemu luo-run luod; do $program --version >$report 2>&1; done
luoctl check /boot/kernel --initrd /boot/initrd --append kho=on >$report 2>&1 && echo checked >$report
hold preserve packages "{TEXT}" >/tmp/hold &
until grep -q preserved /tmp/hold; do sleep 0.1; done
luoctl show packages >$report 2>&1 && echo shown >$report
luoctl load /boot/kernel --initrd /boot/initrd --append kho=on >$report 2>&1 && luoctl kexec >$report 2>&1
"""
END = """
echo 'after the update' >$report
luoctl show packages >$report 2>&1
hold retrieve packages >$report 2>&1
luoctl show packages >$report 2>&1
echo "shown with $?" >$report
"""
# In this order; the numbers of versions may follow. 4 is luoctl's status if there is no such session.
SAID = ("luoctl ", "luo-qemu ", "luo-run ", "luod ", "checked", "shown", "after the update",
        "state      waiting", TEXT, "shown with 4")


def libraries(bench: Bench) -> list[Path]:
    """What the programs are linked with, of Debian's packages for the architecture."""
    folder = Path("/usr/lib") / bench.machine.triplet
    names = (f"ld-linux-{bench.machine.name}.so.1", "libc.so.6", "libgcc_s.so.1", "libm.so.6")
    return [folder / name for name in names]


def fill(archive: guest.Initramfs, script: str, root: Path, bench: Bench) -> None:
    """What is installed below `root` and built with it, with the libraries; and a script to run first."""
    busybox(archive, "export PATH=/usr/bin:/usr/sbin:$PATH\nmount -t sysfs sys /sys\n"
            f"mount -t debugfs debugfs /sys/kernel/debug\nmkdir -p /tmp\n{script}", bench.machine)
    for folder in ("usr", "usr/bin", "usr/sbin", "lib"):
        archive.folder(folder)
    for name in sorted(packages.expected(bench.machine)):
        if name.split("/")[1] in ("bin", "sbin"):
            archive.file(name, root / name, 0o755)
    archive.file("usr/bin/hold", root / "hold", 0o755)
    library = f"usr/lib/{bench.machine.triplet}/libliveupdate.so.1"
    archive.file(f"lib/{Path(library).name}", root / library)
    for path in libraries(bench):
        archive.file(f"lib/{path.name}", path, 0o755)


def unsaid(report: list[str]) -> list[str]:
    """What a machine should have said, and did not, with what it said instead."""
    rest = iter(report)
    for expected in SAID:
        if not any(line.startswith(expected) for line in rest):
            return [f"`{expected.strip()}' did not come", *report]
    return []


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
    found["install"] += root.trouble(bench.machine)
    if found["install"]:
        return found

    packages.example(root.path / "usr", root.path, root.path / "hold", bench.machine)
    with guest.Initramfs(folder / "inner.cpio") as inner:
        fill(inner, END, root.path, bench)
    with bench.archive() as archive:
        fill(archive, BEGIN, root.path, bench)
        archive.file("boot/kernel", bench.built.image)
        archive.file("boot/initrd", folder / "inner.cpio")
    outcome = bench.boot(folder, command_line="kho=on", timeout=180)
    found["update"] = unsaid(outcome.report) or \
        (story(outcome) if outcome.alarms() or outcome.trouble else [])
    return found
