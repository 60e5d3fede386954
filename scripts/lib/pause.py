# SPDX-License-Identifier: GPL-2.0
"""Measures how long guests stand still while the kernel of their host is updated.

The host of vm_host.py has one processor here, whose counter counts instructions (TCG with -icount) and
goes on over the kexec: all times are numbers of instructions. Its guests are emulated, since under KVM
they do not get through their boot then. What waits, for a timer or a disk, costs as much as it takes, at a
thousand instructions a microsecond.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import kernel
from common import aligned, say
from debian_guest import Lost
from luod_tests import HOST, Wrong
from vm_host import HUGE, Guest, Host, Scene, make

VARIANTS = {"c": kernel.Variant("c", purpose="host"), "rust": HOST}
# What an operator can choose: parameters of the kernel, and files that are masked.
CHOICES = (("with all messages on the console", "loglevel=8 systemd.show_status=yes", ()),
           ("without the status of systemd", "systemd.show_status=no", ()),
           ("without generators", "", tuple(f"etc/systemd/system-generators/systemd-{name}-generator" for name in (
               "debug", "factory-reset", "fstab", "getty", "gpt-auto", "hibernate-resume", "run", "ssh",
               "system-update"))),
           ("without units that prepare what is there already", "", tuple(
               f"etc/systemd/system/{name}" for name in (
                   "kmod-static-nodes.service", "ldconfig.service", "proc-sys-fs-binfmt_misc.automount",
                   "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-tracing.mount",
                   "systemd-binfmt.service", "systemd-firstboot.service", "systemd-journal-catalog-update.service",
                   "systemd-journal-flush.service", "systemd-machine-id-commit.service", "systemd-sysusers.service",
                   "systemd-tmpfiles-setup-dev-early.service", "systemd-tmpfiles-setup-dev.service",
                   "systemd-tmpfiles-setup.service", "systemd-update-done.service"))))
PARTS = ("stop, and save the devices", "freeze, serialize, and the host's way down",
         "jump, and decompress the next kernel", "boot, until its init", "systemd, until luo-qemu",
         "retrieve", "start QEMU", "load the devices")


@dataclass(frozen=True)
class Load:
    """The guests of a host."""

    name: str
    guests: int = 1
    size: int = 256             # of each, in MiB
    options: str = ""           # of the host's kernel
    masked: tuple[str, ...] = ()
    kernels: tuple[str, ...] = tuple(VARIANTS)

    def scene(self, variant: kernel.Variant) -> Scene:
        """The host that carries it."""
        one = Guest(variables=f"BEAT_FILL={self.size * 3 // 4}", memory=f"{self.size}M")
        return Scene((), (one,) * self.guests, kernels=(variant,), processors=1,
                     memory=2048 + self.guests * self.size * 3 // 2,
                     accel="tcg,tb-size=64", cpu="qemu64", masked=self.masked, patience=1140,
                     command_line=f"printk.time=1 loglevel=6 {self.options}".strip(),
                     # With sleep=off the clock runs from timer to timer while a disk is waited for.
                     options=("-icount", "shift=0", "-rtc", "clock=vm"))


LOADS = (Load("no guest", 0), Load("256 MiB"), Load("1 GiB", size=1024), Load("4 GiB", size=4096),
         Load("256 MiB in huge pages", options=HUGE), Load("1 GiB in huge pages", size=1024, options=HUGE),
         Load("4 GiB in huge pages", size=4096, options=HUGE), Load("eight of 256 MiB", 8),
         Load("eight of 256 MiB in huge pages", 8, options=HUGE),
         *(Load(f"no guest, {name}", 0, options=options, masked=masked, kernels=("rust",))
           for name, options, masked in CHOICES))


def instructions(seconds: float) -> int:
    return round(seconds * 1e9)


class Clock:
    """Turns the times of one kernel of a host into its counter's."""

    def __init__(self, host: Host):
        counter, boot_time = map(int, host.machine.run("python3", "/usr/local/lib/clock.py", timeout=180).split())
        self.log = host.machine.run("dmesg", timeout=180)
        line = re.search(rf"^\[ *(\d+)\.(\d+)\] pause: clock {counter}$", self.log, re.MULTILINE)
        if not line:
            raise Wrong(f"the log does not have what was written to it: {self.log[-500:]}")
        # When its clock, and that of its log, was zero.
        self.zero, self.log_zero = counter - boot_time, counter - int(line[1] + line[2]) * 1000

    def at(self, seconds: float) -> int:
        """A time since its boot."""
        return self.zero + instructions(seconds)

    def logged(self, what: str, log: str) -> int:
        """When a line was logged last."""
        # What a program sends to a terminal may stand before it.
        found = re.findall(rf"\[ *(\d+)\.(\d+)\] [^\[\n]*{what}", log)
        if not found:
            raise Wrong(f"the log has no `{what}'")
        return self.log_zero + int("".join(found[-1])) * 1000


def measure(host: Host) -> list[int]:
    """One update: the parts of the pause, from the first guest that stops to the last that goes on."""
    machine = host.machine
    host.boot(900)
    if host.guests:
        host.subscribed(set(host.guests))
    for heart in host.hearts.values():
        heart.wait(3, host.patience)
    old = Clock(host)
    host.update()
    machine.until("systemctl is-active multi-user.target", 900)
    if host.guests:
        # Once they are in luod's hands again.
        host.subscribed(set(host.guests))
        host.go_on()
    new = Clock(host)
    jump = old.logged("Starting new kernel", "\n".join(machine.outcome().console))
    init = new.logged("as init process", new.log)

    if not host.guests:
        up = machine.run("systemctl", "show", "--value", "-p", "ActiveEnterTimestampMonotonic", "luod.service")
        return [0, 0, new.log_zero - jump, init - new.log_zero, new.zero + int(up) * 1000 - init, 0, 0, 0]
    pauses = [host.pause(name) for name in host.guests]
    # What the others take to be saved is on the host's way down, and to be loaded on its way up.
    first = min(pauses, key=lambda pause: pause.stopped - pause.save)
    last = max(pauses, key=lambda pause: pause.goes_on)
    return [instructions(first.save), jump - old.at(first.stopped), new.log_zero - jump, init - new.log_zero,
            new.at(last.goes_on - last.retrieve - last.start - last.load) - init,
            *map(instructions, (last.retrieve, last.start, last.load))]


def run(wanted: list[Load], folder: Path) -> dict[str, dict[str, list[int]]]:
    """The parts by load and kernel, where they could be measured."""
    files = make(folder, *(load.scene(VARIANTS[name]) for load in wanted for name in load.kernels))
    found: dict[str, dict[str, list[int]]] = {}
    for load in wanted:
        for name in load.kernels:
            host = Host(folder / f"{name}-{LOADS.index(load)}", files, load.scene(VARIANTS[name]))
            with host.machine:
                try:
                    found.setdefault(load.name, {})[name] = measure(host)
                    say(f"{name}: {load.name}: {sum(found[load.name][name]) / 1e6:,.0f} million instructions")
                except (Wrong, Lost) as why:
                    say("\n  ".join([f"{name}: {load.name}: {why}", *host.story()]))
    return found


def table(found: dict[str, dict[str, list[int]]]) -> str:
    """The figures as text, in millions."""
    lines: list[tuple[str, ...]] = [("pause, in millions of instructions", "C", "ours", "ratio")]
    for load, figures in found.items():
        parts = [[figures[name][number] if name in figures else None for name in VARIANTS]
                 for number in range(len(PARTS))]
        whole = [sum(figures[name]) if name in figures else None for name in VARIANTS]
        for what, (c, ours) in ((load, whole), *zip((f"  {part}" for part in PARTS), parts, strict=True)):
            ratio = f"{c / ours:.2f}" if c and ours else "-"
            lines.append((what, *("-" if value is None else f"{value / 1e6:.1f}" for value in (c, ours)), ratio))
    return "\n".join(aligned(lines))
