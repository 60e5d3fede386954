# SPDX-License-Identifier: GPL-2.0
"""What depends on the architecture: how programs and kernels are built for it, and how a guest boots.

All else asks a Machine, so that this is the one place to look at for another one.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from common import Failed


@dataclass(frozen=True)
class Registers:
    """How gdb's protocol numbers two registers of a processor."""

    pc: int
    back: int               # where a function that is called finds the address of its caller
    stacked: bool           # or on which stack


@dataclass(frozen=True)
class Machine:
    """An architecture, and the virtual machine of it."""

    name: str               # as `uname -m` says
    arch: str               # as the kernel's make says
    image: str              # the kernel that is booted, below arch/ in a build folder
    qemu: tuple[str, ...]   # the program, with what makes the machine
    console: str            # the first serial port, where the kernel has its say
    report: str             # the second one
    # What keeps a guest from depending on how fast its host is, for the kernel's command line.
    steady: str
    busybox: Path           # linked statically
    slow: int               # how many times as long the emulator may take
    # The fragment of the tree's live update tests, and what else only this architecture has.
    fragments: tuple[str, str]
    registers: Registers
    page: int = 4096        # in bytes, of its kernels
    memory: int = 0         # what a guest needs at least, in MiB

    @property
    def target(self) -> str:
        """What compilers call it."""
        return f"{self.name}-unknown-linux-gnu"

    @property
    def triplet(self) -> str:
        """What Debian calls it."""
        return f"{self.name}-linux-gnu"

    @property
    def is_host(self) -> bool:
        """Whether what is built for it runs here."""
        return os.uname().machine == self.name

    @property
    def compiler(self) -> list[str]:
        """The C compiler, linking with the libraries of this architecture."""
        return ["gcc"] if self.is_host else ["clang", f"--target={self.triplet}", "-fuse-ld=lld"]

    @property
    def cargo(self) -> dict[str, str]:
        """What cargo needs in its environment."""
        if self.is_host:
            return {}
        # Our tests count in pages.
        pages = {} if self.page == 4096 else {"LUO_PAGE_SIZE": str(self.page)}
        name = self.target.upper().replace("-", "_")
        return {**pages, "CARGO_BUILD_TARGET": self.target,
                f"CARGO_TARGET_{name}_LINKER": "clang",
                # Variables of this kind add nothing to .cargo/config.toml, but replace it.
                f"CARGO_TARGET_{name}_RUSTFLAGS": "-Ctarget-feature=+crt-static "
                f"-Clink-arg=--target={self.triplet} -Clink-arg=-fuse-ld=lld",
                # C code in crates.
                f"CC_{self.target.replace('-', '_')}": "clang",
                f"AR_{self.target.replace('-', '_')}": "llvm-ar"}


# On a loaded host the timer comes too late for its check, and to calibrate delays by it gives delays
# that never end. The watchdog of clocksources times its wait for another processor by a clock that may
# be jiffies; if that processor is the one that counts them, and waits for this one to change the
# clocksource (stop_machine()), the boot ends there.
X86 = Machine(
    name="x86_64", arch="x86", image="x86/boot/bzImage",
    qemu=("qemu-system-x86_64",), console="ttyS0", report="ttyS1",
    steady="no_timer_check lpj=5000000 tsc=reliable", slow=1,
    busybox=Path(shutil.which("busybox") or "/usr/bin/busybox"), fragments=("config.x86_64", "x86"),
    registers=Registers(pc=16, back=7, stacked=True))
# Signing pointers as the architecture defines it takes an emulator much time.
ARM64 = Machine(
    name="aarch64", arch="arm64", image="arm64/boot/Image",
    qemu=("qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"),
    console="ttyAMA0", report="ttyAMA1", steady="", slow=2,
    busybox=Path("/usr/aarch64-linux-gnu/usr/bin/busybox"), fragments=("config.aarch64", "arm64"),
    registers=Registers(pc=32, back=30, stacked=False))
ARM64_16K = replace(ARM64, page=16 << 10)
# Each of KHO's three areas is at least as large as the largest block of memory, half a GiB. By default the
# third is twice as large as what is reserved by then, the other two areas included.
ARM64_64K = replace(ARM64, page=64 << 10, memory=6144, steady="kho_scratch=512M,512M,512M")
NAMES = {"x86_64": X86, "x86": X86, "arm64": ARM64}


def from_environment() -> Machine:
    """The one that ARCH names, by default the first."""
    name = os.environ.get("ARCH") or "x86_64"
    if name not in NAMES:
        raise Failed(f"ARCH={name}: it is x86_64 (or x86), or arm64")
    return NAMES[name]
