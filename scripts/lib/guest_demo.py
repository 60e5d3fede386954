# SPDX-License-Identifier: GPL-2.0
"""Virtual machines that run on while the kernel of their host changes, as a person would want to see it.

The host is a Debian of its own in a virtual machine, see vm_host.py: two guests run in it under KVM, by
luo-qemu, and a memcached, by luo-run. Its kernel is updated by `luoctl update' while they run.
"""

from pathlib import Path

from common import say
from debian_guest import Lost
from luod_tests import HOST, Wrong
from vm_host import KEYS, STOCK_HOST, Guest, Host, Scene, make


def told(host: Host, name: str) -> str:
    """Where the time went in which a guest stood still."""
    pause = host.pause(name)
    parts = {"save its state": pause.save,
             "host down, and into the next kernel": pause.whole - pause.save - pause.goes_on,
             "host up": pause.goes_on - pause.retrieve - pause.start - pause.load,
             "retrieve": pause.retrieve, "start QEMU": pause.start, "load its state": pause.load}
    return "\n".join([f"      stood still for {pause.whole:.2f} s by the host's clock, of these",
                      *(f"      {seconds:8.3f} s  {what}" for what, seconds in parts.items())])


class Story:
    """What the guests live through."""

    def __init__(self, host: Host):
        self.host = host
        self.frames: dict[str, dict[str, str]] = {}

    def begin(self) -> None:
        """Waits until all runs."""
        boot = self.host.boot(300)
        print(f"\nThe host runs Linux {boot.release}.", flush=True)
        self.host.subscribed(set(self.host.guests))
        for name, heart in self.host.hearts.items():
            heart.wait(10, self.host.patience)
            last = heart.beats[-1]
            print(f"  {name}: boot {last.boot}, up for {last.uptime:.1f} s, counted to {last.number}", flush=True)
        if self.host.cached("ask") != 0 or self.host.cached("fill") != KEYS:
            raise Wrong("memcached does not take what it is given")
        print(f"  memcached: {KEYS} keys stored", flush=True)

    def update(self) -> None:
        """The host's kernel changes."""
        self.frames = {name: self.host.frames(name) for name in self.host.guests}
        before = {name: heart.beats[-1] for name, heart in self.host.hearts.items()}
        print("\nluoctl update", flush=True)
        self.host.update()
        boot = self.host.machine.boots[-1]
        print(f"\nThe host runs Linux {boot.release}, another boot.", flush=True)
        self.host.go_on()
        for name, heart in self.host.hearts.items():
            last = heart.beats[-1]
            print(f"  {name}: boot {last.boot}, up for {last.uptime:.1f} s, counted on from "
                  f"{before[name].number} to {last.number}")
        # Once they are in luod's hands again, their RAM is where it will stay.
        self.host.subscribed(set(self.host.guests))
        for name, frames in self.frames.items():
            last = self.host.hearts[name].beats[-1]
            moved = len(self.host.moved(name, frames))
            print(f"  {name}: its memory is as it was ({last.checks - before[name].checks} checks since), "
                  f"{len(frames) - moved} pages in the same frames, {moved} migrated since for the next "
                  f"update\n{told(self.host, name)}", flush=True)
        if (hits := self.host.cached("ask")) != KEYS:
            raise Wrong(f"memcached has {hits} of {KEYS} keys")
        print(f"  memcached: {hits} of {KEYS} keys are there", flush=True)


def demo(folder: Path, there_and_back: bool) -> int:
    """Shows it; returns the status to end with."""
    scene = Scene((), (Guest(), Guest()), kernels=(STOCK_HOST, HOST) if there_and_back else (HOST,))
    host = Host(folder / "host", make(folder, scene), scene)
    say("booting a host with two guests, emulated, so not at full speed; this takes some minutes")
    why: list[str] = []
    with host.machine:
        story = Story(host)
        try:
            story.begin()
            for _ in scene.kernels:
                story.update()
        except (Wrong, Lost) as what:
            why = [str(what), *host.story()]
        why = why or host.machine.outcome().alarms()
    if why:
        print("\nLIVE UPDATE FAILED: " + "\n  ".join(why))
        return 1
    pauses = [f"{heart.pause():.1f} s" for heart in host.hearts.values()]
    print(f"\nLIVE UPDATE PASSED: the host has another kernel, and no guest has booted; seen from here, their "
          f"longest silence was {' and '.join(pauses)}")
    return 0
