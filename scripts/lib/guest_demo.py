# SPDX-License-Identifier: GPL-2.0
"""Virtual machines that run on while the kernel of their host changes, as a person would want to see it.

The host is a Debian of its own in a virtual machine, see vm_host.py: two guests run in it under KVM, by
luo-qemu, and a memcached, by luo-run. Its kernel is updated by `luoctl update' while they run.
"""

import re
from pathlib import Path

from common import say
from debian_guest import Lost
from luod_tests import Wrong
from vm_host import KEYS, SCENES, Host, make, qemu

GUESTS = ("vm-0", "vm-1")
# What luo-qemu says in its journal, before and after.
STOPPED = re.compile(r"the guest is stopped at ([\d.]+) s of this kernel, .* preserved in (\d+) ms")
GOES_ON = re.compile(r"the guest goes on after ([\d.]+) s by the host's clock; at ([\d.]+) s of this kernel: "
                     r"retrieve (\d+) ms, QEMU (\d+) ms, load (\d+) ms")


def pause(host: Host, name: str) -> str:
    """Where the time went in which a guest stood still."""
    before = host.machine.run("journalctl", "--no-pager", "-b", "-1", "-o", "cat", "-u", f"luo-qemu@{name}")
    stopped, goes_on = STOPPED.findall(before), GOES_ON.findall(host.log(name))
    if not stopped or not goes_on:
        raise Wrong(f"luo-qemu does not say how long {name} stood still")
    total, uptime = map(float, goes_on[-1][:2])
    retrieve, start, load = (int(number) / 1000 for number in goes_on[-1][2:])
    save = int(stopped[-1][1]) / 1000
    parts = {"save its state": save, "host down, and into the next kernel": total - save - uptime,
             "host up": uptime - retrieve - start - load, "retrieve": retrieve, "start QEMU": start,
             "load its state": load}
    return "\n".join([f"      stood still for {total:.2f} s by the host's clock, of these",
                      *(f"      {seconds:8.3f} s  {what}" for what, seconds in parts.items())])


class Story:
    """What the guests live through."""

    def __init__(self, host: Host):
        self.host = host
        self.frames: dict[str, dict[str, str]] = {}

    def begin(self) -> None:
        """Waits until all runs."""
        boot = self.host.machine.up(300)
        print(f"\nThe host runs Linux {boot.release}.", flush=True)
        self.host.subscribed(set(GUESTS), 300)
        for name, heart in self.host.hearts.items():
            heart.wait(10, 300)
            last = heart.beats[-1]
            print(f"  {name}: boot {last.boot}, up for {last.uptime:.1f} s, counted to {last.number}", flush=True)
        if self.host.cached("ask") != 0 or self.host.cached("fill") != KEYS:
            raise Wrong("memcached does not take what it is given")
        print(f"  memcached: {KEYS} keys stored", flush=True)

    def update(self) -> None:
        """The host's kernel changes."""
        self.frames = {name: self.host.frames(name) for name in GUESTS}
        for heart in self.host.hearts.values():
            heart.listen()
        before = {name: heart.beats[-1] for name, heart in self.host.hearts.items()}
        print("\nluoctl update", flush=True)
        self.host.update()
        boot = self.host.machine.boots[-1]
        print(f"\nThe host runs Linux {boot.release}, another boot.", flush=True)
        self.host.go_on(300)
        for name, heart in self.host.hearts.items():
            last = heart.beats[-1]
            print(f"  {name}: boot {last.boot}, up for {last.uptime:.1f} s, counted on from "
                  f"{before[name].number} to {last.number}")
        # Once they are in luod's hands again, their RAM is where it will stay.
        self.host.subscribed(set(GUESTS), 300)
        for name, frames in self.frames.items():
            last = self.host.hearts[name].beats[-1]
            moved = len(self.host.moved(name, frames))
            print(f"  {name}: its memory is as it was ({last.checks - before[name].checks} checks since), "
                  f"{len(frames) - moved} pages in the same frames, {moved} migrated since for the next "
                  f"update\n{pause(self.host, name)}", flush=True)
        if (hits := self.host.cached("ask")) != KEYS:
            raise Wrong(f"memcached has {hits} of {KEYS} keys")
        print(f"  memcached: {hits} of {KEYS} keys are there", flush=True)


def demo(folder: Path) -> int:
    """Shows it; returns the status to end with."""
    built, files = make(folder)
    scene = SCENES["kvm"]
    guests = {name: qemu(name, scene.accel, port) for port, name in enumerate(GUESTS, 2)}
    host = Host(folder / "host", files, built, guests, scene)
    say("booting a host with two guests, emulated, so not at full speed; this takes some minutes")
    why: list[str] = []
    with host.machine:
        story = Story(host)
        try:
            story.begin()
            story.update()
        except (Wrong, Lost) as what:
            why = [str(what), *host.story()]
        why = why or host.machine.outcome().alarms()
        pauses = [f"{heart.pause():.1f} s" for heart in host.hearts.values()]
    if why:
        print("\nLIVE UPDATE FAILED: " + "\n  ".join(why))
        return 1
    print(f"\nLIVE UPDATE PASSED: the host has another kernel, and no guest has booted; seen from here, their "
          f"longest silence was {' and '.join(pauses)}")
    return 0
