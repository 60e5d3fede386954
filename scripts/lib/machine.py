# SPDX-License-Identifier: GPL-2.0
"""What depends on the architecture: how programs and kernels are built for it, and how a guest boots.

All else asks a Machine, so that this is the one place to look at for another one.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from common import Failed


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
        name = self.target.upper().replace("-", "_")
        return {"CARGO_BUILD_TARGET": self.target,
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
X86 = Machine("x86_64", "x86", "x86/boot/bzImage", ("qemu-system-x86_64",), "ttyS0", "ttyS1",
              "no_timer_check lpj=5000000 tsc=reliable", Path(shutil.which("busybox") or "/usr/bin/busybox"),
              1, ("config.x86_64", "x86"))
# Signing pointers as the architecture defines it takes an emulator much time.
ARM64 = Machine("aarch64", "arm64", "arm64/boot/Image",
                ("qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0", "ttyAMA1",
                "", Path("/usr/aarch64-linux-gnu/bin/busybox"), 2, ("config.aarch64", "arm64"))
NAMES = {"x86_64": X86, "x86": X86, "arm64": ARM64}


def from_environment() -> Machine:
    """The one that ARCH names, by default the first."""
    name = os.environ.get("ARCH") or "x86_64"
    if name not in NAMES:
        raise Failed(f"ARCH={name}: it is x86_64 (or x86), or arm64")
    return NAMES[name]
