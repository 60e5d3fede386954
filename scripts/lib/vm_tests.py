# SPDX-License-Identifier: GPL-2.0
"""Tests of virtual machines that live through updates of their host, see vm_host.py."""

import re
import time
from pathlib import Path

import kernel
from common import Failed, say
from debian_guest import Lost
from luod_tests import Wrong
from report import Results
from vm_host import DISK, KEYS, MIB, ROOT, SCENES, Host, make, qemu


class VmTests:
    """All of them."""

    # The acts, in order. Each begins where the one before ended.
    ACTS = ("refused", "start", "abort", "update", "same-frames", "nothing-copied", "memcached",
            "update-again", "shutdown")

    def __init__(self, results: Results, folder: Path, long: bool):
        self.results, self.folder, self.long = results, folder, long
        self.files: dict[str, Path] = {}
        self.before: dict[str, dict[str, str]] = {}

    def wanted(self) -> list[str]:
        """The scenes of which tests are wanted. A host takes too long for every day, as it is emulated."""
        if not (self.long or self.results.pattern):
            return []
        return [scene for scene in SCENES
                if any(self.results.wants(f"vm/{scene}/{act}") for act in self.ACTS)]

    def roots(self) -> list[str]:
        """The root file systems of Debian that they need."""
        return [ROOT] if self.wanted() else []

    def run(self) -> None:
        if not self.wanted():
            return
        try:
            built, self.files = make(self.folder)
        except Failed as why:
            self.results.verdict("vm/build", str(why))
            return
        say("running the tests of virtual machines that live through updates")
        for name in self.wanted():
            self.scene(name, built)

    def guests(self, name: str) -> dict[str, bytes]:
        """The guests of a scene: one, or one that writes all its memory all the time and one with a disk."""
        accel = SCENES[name].accel
        if name != "load":
            return {"vm-0": qemu("vm-0", accel)}
        disk = f"-drive if=virtio,format=raw,cache=none,file={DISK}"
        return {"vm-0": qemu("vm-0", accel, 2, variables="BEAT_LOAD=16"),
                "vm-1": qemu("vm-1", accel, 3, disk, "BEAT_DISK=1")}

    def scene(self, name: str, built: kernel.Kernel) -> None:
        """Runs all acts on a host, until one fails."""
        begin, scene = time.monotonic(), SCENES[name]
        try:
            host = Host(self.folder / f"vm-{name}", self.files, built, self.guests(name), scene)
        except Failed as why:
            self.results.verdict(f"vm/{name}/start", str(why))
            return
        with host.machine:
            for number, act in enumerate(self.ACTS):
                trouble: list[str] = []
                try:
                    getattr(self, act.replace("-", "_"))(host)
                except (Wrong, Lost) as what:
                    trouble = [str(what), *host.story()]
                now = time.monotonic()
                self.results.add(f"vm/{name}/{act}", trouble or None, now - begin)
                begin = now
                if trouble:
                    for rest in self.ACTS[number + 1:]:
                        self.results.add(f"vm/{name}/{rest}", "did not run: one before it failed")
                    return
            self.results.verdict(f"vm/{name}/console", host.machine.outcome().alarms() or None)

    def refused(self, host: Host) -> None:
        """A guest that could not survive is not started."""
        host.machine.up(180)
        host.machine.until("luod-say STATUS", 90)
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

    def start(self, host: Host) -> None:
        """The guests run, and find their memory as it should be."""
        host.subscribed(set(host.guests))
        for heart in host.hearts.values():
            heart.wait(10, 240)
        if (hits := host.cached("ask")) != 0 or (hits := host.cached("fill")) != KEYS:
            raise Wrong(f"memcached began with, or took, {hits} keys of {KEYS}")

    def abort(self, host: Host) -> None:
        """An update that is aborted late costs a pause."""
        host.machine.sh("systemd-run -u painter --collect luod-client painter --class devices --fault fails "
                        "--no-claim")
        host.machine.until("luod-say STATUS | grep -q painter", 60)
        done = host.machine.ask("luod-say", "update", "/additions/kernel", host.machine.command_line,
                                timeout=180)
        if "out of paint" not in done.out:
            raise Wrong(f"the update was not aborted: {done}")
        host.machine.sh("systemctl stop painter")
        for name in host.guests:
            log = host.log(name)
            if "the guest is stopped" not in log or "the guest goes on in this kernel: " not in log:
                raise Wrong(f"{name} was not stopped and continued: {log}")
        host.subscribed(set(host.guests))
        host.go_on(60)

    def update(self, host: Host) -> None:
        """The host changes its kernel, and the guests go on."""
        self.before = {name: host.frames(name) for name in host.guests}
        for heart in host.hearts.values():
            heart.listen()
        host.update()
        host.go_on(240)
        host.subscribed(set(host.guests))
        for name, heart in host.hearts.items():
            say(f"{name} was silent for {heart.pause():.1f} s")
            for line in host.log(name).splitlines():
                if "the guest goes on after" in line:
                    say(line)

    def same_frames(self, host: Host) -> None:
        """Each page of their memory is where it was."""
        for name, before in self.before.items():
            moved = host.moved(name, before)
            if 2 * len(moved) > len(before):
                raise Wrong(f"{len(moved)} of {len(before)} pages of {name} were migrated: "
                            + "; ".join(moved[:5]))

    def nothing_copied(self, host: Host) -> None:
        """What QEMU saved has no room for the guest's memory."""
        for name in host.guests:
            log = host.machine.run("journalctl", "--no-pager", "-b", "-1", "-o", "cat", "-u", f"luo-qemu@{name}")
            sizes = [int(size) for size in re.findall(r"its state of (\d+) bytes", log)]
            if not sizes or max(sizes) > 4 * MIB:
                raise Wrong(f"the states had {sizes} bytes: {log}")

    def memcached(self, host: Host) -> None:
        """A cache that was warm is warm."""
        if (hits := host.cached("ask")) != KEYS:
            raise Wrong(f"of {KEYS} keys {hits} are there after the update: "
                        + host.machine.run("journalctl", "--no-pager", "-b", "-o", "cat", "-u", "cache"))

    def update_again(self, host: Host) -> None:
        """The second update in a row is like the first one."""
        self.update(host)
        self.same_frames(host)
        self.memcached(host)

    def shutdown(self, host: Host) -> None:
        """Stopped like any service, a guest is not kept, and nothing is left in the kernel."""
        for name in host.guests:
            host.machine.sh(f"systemctl stop luo-qemu@{name} & sleep 1; "
                            f"systemctl kill --kill-whom=main luo-qemu@{name}; wait", 60)
        host.machine.until("grep -qx 'sessions 0' /sys/kernel/liveupdate/incoming && "
                           "grep -qx 'sessions 0' /sys/kernel/liveupdate/outgoing", 30)
