# SPDX-License-Identifier: GPL-2.0
"""Tests of virtual machines that live through updates of their host, see vm_host.py."""

import re
import time
from contextlib import suppress
from pathlib import Path

from common import Failed, say
from debian_guest import Lost
from luod_tests import Wrong
from machine import X86, Machine
from report import Results
from vm_host import ARM64_SCENES, FILLED, KEYS, MIB, POOL, ROOTS, SCENES, Host, make


class VmTests:
    """All of them."""

    def __init__(self, results: Results, folder: Path, long: bool, machine: Machine = X86):
        self.group, self.scenes = ("vm", SCENES) if machine == X86 else ("arm64-vm", ARM64_SCENES)
        self.results, self.folder, self.long, self.machine = results, folder / self.group, long, machine
        self.files: dict[str, Path] = {}
        self.before: dict[str, dict[str, str]] = {}

    def wanted(self) -> list[str]:
        """The scenes of which tests are wanted. A host takes minutes, as it is emulated: one every day."""
        return [name for name, scene in self.scenes.items() if (scene.daily or self.long or self.results.pattern)
                and any(map(self.results.wants, self.names(name)))]

    def names(self, scene: str) -> list[str]:
        """The tests of a scene."""
        return [f"{self.group}/{scene}/{what}" for what in (*self.scenes[scene].acts, "console")]

    def roots(self) -> list[str]:
        """The root file systems of Debian that they need."""
        return [ROOTS[self.machine]] if self.wanted() else []

    def run(self) -> None:
        try:
            self.folder.mkdir()
            self.files = make(self.folder, *(self.scenes[name] for name in self.wanted()))
        except Failed as why:
            self.results.verdict(f"{self.group}/build", str(why))
            return
        say("running the tests of virtual machines that live through updates")
        for name in self.wanted():
            self.scene(name)

    def scene(self, name: str) -> None:
        """Runs all acts on a host, until one fails."""
        begin, scene = time.monotonic(), self.scenes[name]
        try:
            host = Host(self.folder / name, self.files, scene)
        except Failed as why:
            self.results.verdict(f"{self.group}/{name}/start", str(why))
            return
        with host.machine:
            for number, act in enumerate(scene.acts):
                trouble: list[str] = []
                try:
                    if not number:
                        host.boot(240)
                    getattr(self, act.replace("-", "_"))(host)
                except (Wrong, Lost) as what:
                    trouble = [str(what), *host.story()]
                now = time.monotonic()
                self.results.add(f"{self.group}/{name}/{act}", trouble or None, now - begin)
                begin = now
                if trouble:
                    for rest in scene.acts[number + 1:]:
                        self.results.add(f"{self.group}/{name}/{rest}", "did not run: one before it failed")
                    return
            self.results.verdict(f"{self.group}/{name}/console", host.machine.outcome().alarms() or None)

    def refused(self, host: Host) -> None:
        """A guest that could not survive is not started."""
        done = host.machine.ask("luo-qemu", "run", "bad", "--memory", "64M", "--", "qemu-system-x86_64",
                                "-device", "virtio-balloon-pci")
        if done.status != 2 or "`-device virtio-balloon-pci'" not in done.err:
            raise Wrong(f"a balloon was not refused: {done}")
        # What only QEMU knows of.
        done = host.machine.ask("luo-qemu", "run", "bad", "--memory", "64M", "--", "qemu-system-x86_64",
                                "-nodefaults", "-display", "none", "-S", "-machine", "q35", "-accel", "tcg",
                                "-device", "ufs", timeout=90)
        if done.status != 1 or "migrat" not in done.err:
            raise Wrong(f"QEMU did not refuse: {done}")
        if host.machine.ask("luo-qemu", "resume", "bad").status != 1:
            raise Wrong("a guest was resumed that there never was")

    def tried_again(self, host: Host) -> None:
        """The service of a guest that cannot run does not give up, but if its command line is refused."""
        host.machine.sh(r"""
cd /etc/luo-qemu
printf 'MEMORY=64M\nQEMU=qemu-system-x86_64 -display none -S -machine no-such\n' >broken.conf
printf 'MEMORY=64M\nQEMU=qemu-system-x86_64 -device virtio-balloon-pci\n' >refused.conf
mkdir -p /etc/systemd/system/luo-qemu@broken.service.d
printf '[Service]\nRestartSec=10ms\nRestartSteps=0\n' >/etc/systemd/system/luo-qemu@broken.service.d/soon.conf
systemctl daemon-reload
systemctl start --no-block luo-qemu@broken luo-qemu@refused""")
        tried = "$(systemctl show --property NRestarts --value luo-qemu@broken)"
        host.machine.until(f"test {tried} -gt 8", 90)
        host.machine.until("systemctl is-failed luo-qemu@refused", 30)
        if host.machine.sh("systemctl show --property NRestarts --value luo-qemu@refused").strip() != "0":
            raise Wrong("a guest whose command line is refused was tried again")
        host.machine.sh("systemctl stop luo-qemu@broken; systemctl reset-failed")

    def start(self, host: Host) -> None:
        """The guests run, and find their memory as it should be."""
        host.subscribed(set(host.guests))
        for heart in host.hearts.values():
            heart.wait(10, host.patience)
            # Guests that start together make each other wait.
            del heart.beats[:-1]
        if (hits := host.cached("ask")) != 0 or (hits := host.cached("fill")) != KEYS:
            raise Wrong(f"memcached began with, or took, {hits} keys of {KEYS}")

    def abort(self, host: Host) -> None:
        """An update that is aborted late costs a pause."""
        host.machine.sh("systemd-run -u painter --collect luod-client painter --class devices --fault fails "
                        "--no-claim")
        host.machine.until("luod-say STATUS | grep -q painter", 60)
        done = host.machine.ask("luod-say", "update", host.next(), host.machine.command_line,
                                timeout=180)
        if "out of paint" not in done.out:
            raise Wrong(f"the update was not aborted: {done}")
        host.machine.sh("systemctl stop painter")
        for name in host.guests:
            host.machine.until(f"journalctl -b -o cat -u luo-qemu@{name} | grep -q 'the guest goes on in this "
                               "kernel: '", 120)
            if "the guest is stopped" not in (log := host.log(name)):
                raise Wrong(f"{name} was not stopped: {log}")
        host.subscribed(set(host.guests))
        host.go_on()
        self.memcached(host)

    def update(self, host: Host) -> None:
        """The host changes its kernel, and the guests go on."""
        self.before = {name: host.frames(name) for name in host.guests}
        begin = {name: len(heart.beats) - 1 for name, heart in host.hearts.items()}
        host.update()
        host.go_on()
        host.subscribed(set(host.guests))
        for name, heart in host.hearts.items():
            still, pause = heart.stood_still(begin[name]), host.pause(name).whole
            say(f"{name} was silent for {heart.pause(begin[name]):.1f} s")
            if still < pause - 5:
                raise Wrong(f"{name} was paused for {pause:.1f} s, but its clock stood still for {still:.1f} s")
            for line in host.log(name).splitlines():
                if "the guest goes on after" in line:
                    say(line)

    def same_frames(self, host: Host) -> None:
        """Each page of their memory is where it was."""
        for name, before in self.before.items():
            moved = host.moved(name, before)
            say(f"{name}: {len(before) - len(moved)} of {len(before)} pages are in the same frames, and "
                f"{len(moved)} were migrated since")
            if 10 * len(moved) > len(before):
                raise Wrong(f"{len(moved)} of {len(before)} pages of {name} were migrated: "
                            + "; ".join(moved[:5]))

    def nothing_copied(self, host: Host) -> None:
        """What QEMU saved has no room for the guest's memory."""
        for name in host.guests:
            log = host.log(name, -1)
            sizes = [int(size) for size in re.findall(r"its state of (\d+) bytes", log)]
            if not sizes or max(sizes) > 4 * MIB:
                raise Wrong(f"the states had {sizes} bytes: {log}")

    def huge_pages(self, host: Host, what: str = "mapped") -> None:
        """Most of what the guests have filled is in huge pages, and mapped as such."""
        for name in host.guests:
            # Of its RAM only: memcached's memory is from shmem, too.
            huge = host.huge(name, what)
            say(f"{name}: {huge >> 10} MiB of its RAM are {what} in huge pages")
            if huge < FILLED * 1024 * 3 // 4:
                raise Wrong(f"{name} has filled {FILLED} MiB, but only {huge} KiB are {what} in huge pages")

    def huge_pages_after(self, host: Host) -> None:
        """They stayed whole in the update. What the guest does not touch QEMU has not mapped again."""
        self.huge_pages(host, "held")

    def pool(self, host: Host) -> None:
        """The guest's 64 pages are of the pool, which is as large as the command line says."""
        pool = "/sys/kernel/mm/hugepages/hugepages-2048kB"
        numbers = host.machine.sh(f"cd {pool}; cat nr_hugepages free_hugepages resv_hugepages surplus_hugepages")
        total, free, reserved, surplus = map(int, numbers.split())
        if (total, free - reserved, surplus) != (POOL, POOL - 64, 0):
            raise Wrong(f"of {total} huge pages {free} are free, {reserved} of these reserved; {surplus} are "
                        "surplus")

    def memcached(self, host: Host) -> None:
        """A cache that was warm is warm."""
        if (hits := host.cached("ask")) != KEYS:
            raise Wrong(f"of {KEYS} keys {hits} are there: "
                        + host.machine.run("journalctl", "--no-pager", "-b", "-o", "cat", "-u", "cache"))

    def update_again(self, host: Host) -> None:
        """The second update in a row is like the first one."""
        self.update(host)
        self.same_frames(host)
        self.memcached(host)

    def crash(self, host: Host) -> None:
        """The host crashes when the guests are preserved: they are gone, and nothing is stuck."""
        before = {name: heart.beats[-1].boot for name, heart in host.hearts.items()}
        with suppress(Lost):
            host.machine.sh("echo c > /proc/sysrq-trigger")
        host.machine.up(180)
        for heart in host.hearts.values():
            heart.listen()
            heart.beats.clear()
        self.start(host)
        for name, heart in host.hearts.items():
            if heart.beats[-1].boot == before[name]:
                raise Wrong(f"{name} survived the crash of its host")
        host.machine.sh("grep -qx 'sessions 0' /sys/kernel/liveupdate/incoming")

    def shutdown(self, host: Host) -> None:
        """Stopped like any service, a guest is not kept, and nothing is left in the kernel."""
        for name in host.guests:
            host.machine.sh(f"systemctl stop luo-qemu@{name} & sleep 1; "
                            f"systemctl kill --kill-whom=main luo-qemu@{name}; wait", 60)
        host.machine.until("grep -qx 'sessions 0' /sys/kernel/liveupdate/incoming && "
                           "grep -qx 'sessions 0' /sys/kernel/liveupdate/outgoing", 30)
