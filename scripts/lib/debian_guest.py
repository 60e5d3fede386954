# SPDX-License-Identifier: GPL-2.0
"""Virtual machines with a Debian root file system, over all kernels that they see.

Such a guest has two disks. The first is the Debian root (scripts/debian); what the guest
writes there stays for its life and is dropped then. The second, `additions', is made for each
test in a moment: it has what the test brings, and says what the first process is.

Two serial ports: the kernel's console goes to a file. On the other one the test talks to
`guest-agent' (selftests/luod), which every kernel's user space starts again.
"""

import json
import os
import queue
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import guest
from common import REPO, Failed, quiet
from machine import X86, Machine

# Units of Debian's that a test has no use for, and that take time; systemd-modules-load fails in
# Debian 13, as neither libkmod nor a module is there.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "dpkg-db-backup.timer",
          "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target",
          "systemd-logind.service", "systemd-logind-varlink.socket", "systemd-modules-load.service",
          "systemd-networkd-persistent-storage.service",
          "systemd-random-seed.service", "systemd-tmpfiles-clean.timer", "systemd-update-utmp.service",
          "systemd-hibernate-clear.service", "systemd-pcrlock-make-policy.service")
AGENT = """\
[Unit]
Description=Commands of the test outside
DefaultDependencies=no
After=sysinit.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/local/bin/guest-agent /dev/PORT
Restart=always
RestartSec=0
StandardOutput=journal
"""
SYSTEMD_INIT = """\
#!/bin/sh
cp -rP --preserve=mode /additions/root/. / && exec /sbin/init
"""


def images(*names: str) -> list[Path]:
    """The root file systems of these names, as scripts/debian knows them: made before, outside."""
    found = []
    for name in names:
        done = subprocess.run([REPO / "scripts/debian", "--find", name], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"there is no root file system of Debian {name}: "
                         f"`scripts/debian {name}' makes it\n{done.stderr.strip()}")
        found.append(Path(done.stdout.strip()))
    return found


class Additions:
    """The second disk of a guest, in the making."""

    def __init__(self, agent: Path, init: str = SYSTEMD_INIT, machine: Machine = X86):
        """`agent` is the program guest-agent. Without an `init', the initramfs of the guest does it all."""
        self.files: dict[str, tuple[Path | bytes, int]] = {}
        self.links: dict[str, str] = {}
        if not init:
            return
        self.bytes("init", init.encode(), 0o755)
        self.file("root/usr/local/bin/guest-agent", agent, 0o755)
        if init == SYSTEMD_INIT:
            self.unit("guest-agent.service", AGENT.replace("PORT", machine.report), "sysinit.target")
            self.bytes("root/etc/machine-id", b"10000000000000000000000000000001\n")
            self.bytes("root/var/log/journal/.keep", b"")
            for unit in MASKED:
                self.link(f"root/etc/systemd/system/{unit}", "/dev/null")

    def file(self, name: str, path: Path, mode: int = 0o644) -> None:
        """Adds a copy of a file. What is below `root/` is copied to / at every boot."""
        self.files[name] = (path, mode)

    def bytes(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self.files[name] = (content, mode)

    def link(self, name: str, target: str) -> None:
        self.links[name] = target

    def unit(self, name: str, text: str, wanted_by: str = "") -> None:
        """Adds a unit of systemd, and enables it."""
        self.bytes(f"root/etc/systemd/system/{name}", text.encode())
        if wanted_by:
            self.enable(name, wanted_by)

    def enable(self, name: str, wanted_by: str, instance: str = "") -> None:
        """Enables a unit; for a template, one instance of it."""
        as_name = name.replace("@.", f"@{instance}.")
        self.link(f"root/etc/systemd/system/{wanted_by}.wants/{as_name}", f"../{name}")

    def write(self, image: Path) -> Path:
        """Writes the file system."""
        tree = image.with_suffix(".tree")
        shutil.rmtree(tree, ignore_errors=True)
        size = 0
        for name, (content, mode) in self.files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
            path.chmod(mode)
            size += path.stat().st_size
        for name, target in self.links.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        image.unlink(missing_ok=True)
        quiet(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(image),
               f"{size * 5 // 4 // 1024 + 4096}k"], "writing a guest's second disk")
        shutil.rmtree(tree)
        return image


class Lost(Exception):
    """The guest did not do what was asked for; the message says what."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass
class Boot:
    """One kernel of a guest."""

    boot_id: str
    release: str
    # Seconds since the guest was started, when its agent was there.
    at: float
    answers: dict[int, "queue.SimpleQueue[dict | None]"] = field(default_factory=dict)


class DebianGuest:
    """A running guest. Several tests can share one; each waits for what it needs."""

    def __init__(self, kernel: Path, root: Path | None, additions: Path, folder: Path, *,
                 initrd: Path | None = None, command_line: str = "", memory: int = 1536,
                 processors: int = 2, options: tuple[str, ...] = (), machine: Machine = X86):
        """Starts it. Without a root file system it has the initrd alone, and one disk."""
        folder.mkdir(parents=True, exist_ok=True)
        disks = [f"file={additions},format=raw,if=none,id=more,readonly=on",
                 *([f"file={root},format=raw,if=none,id=root,snapshot=on"] if root else [])]
        drives = [word for disk in reversed(disks) for word in
                  ("-drive", disk, "-device", f"virtio-blk-pci,drive={disk.split('id=')[1].split(',')[0]}")]
        boot = "root=/dev/vda rw rootfstype=ext4 init=/sbin/guest-init" if root else ""
        self.folder, self.console_file = folder, folder / "console.log"
        self.command_line = " ".join(f"{boot} console={machine.console} {machine.steady} "
                                     f"liveupdate=on panic=-1 "
                                     f"{command_line}".split())
        self.boots: list[Boot] = []
        self.news: queue.SimpleQueue[Boot | None] = queue.SimpleQueue()
        self.number = 0
        self.lock = threading.Lock()
        # A path of a socket has little room, and this one may be long.
        ours, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        self.port = ours
        self.begin = time.monotonic()
        with open(folder / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                [*machine.qemu, "-accel", "tcg", "-m", f"{memory}M",
                 "-smp", str(processors), "-nodefaults", "-no-user-config", "-display", "none",
                 "-no-reboot", "-serial", f"file:{self.console_file}",
                 "-chardev", f"socket,id=agent,fd={theirs.fileno()}", "-serial", "chardev:agent",
                 *drives, *(["-initrd", str(initrd)] if initrd else []),
                 "-kernel", str(kernel), "-append", self.command_line, *options],
                stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(),),
                # What the guest writes to its root is not to fill a file system in memory.
                env={**os.environ, "TMPDIR": str(folder)})
        theirs.close()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "DebianGuest":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    # ---- the agent ----

    def _read(self) -> None:
        """Reads what the agents say, to the end of the guest."""
        with self.port.makefile("rb") as lines:
            try:
                for line in lines:
                    try:
                        message = json.loads(line)
                        self._take(message)
                    except (ValueError, KeyError, TypeError, AttributeError):
                        continue
            except OSError:
                pass
        self._forget()
        self.news.put(None)

    def _take(self, message: dict) -> None:
        if "hello" in message:
            self._forget()
            boot = Boot(message["hello"], message["release"], time.monotonic() - self.begin)
            with self.lock:
                self.boots.append(boot)
            self.news.put(boot)
        else:
            with self.lock:
                waiting = self.boots[-1].answers.pop(message["id"], None) if self.boots else None
            if waiting:
                waiting.put(message)

    def _forget(self) -> None:
        """Nobody answers what the agent before was asked."""
        with self.lock:
            waiting = list(self.boots[-1].answers.values()) if self.boots else []
            if self.boots:
                self.boots[-1].answers.clear()
        for one in waiting:
            one.put(None)

    def up(self, timeout: float = 120) -> Boot:
        """Waits for the next kernel's agent (at the start of the guest, the first one's)."""
        before = self.boots[-2].boot_id if len(self.boots) > 1 else None
        end = time.monotonic() + timeout
        while True:
            try:
                boot = self.news.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise Lost(f"no new kernel is up after {timeout:.0f} s") from None
            if boot is None:
                self.process.wait()
                raise Lost("the guest ended")
            # An agent that was restarted in the same kernel says hello, too.
            if boot.boot_id not in (before, *(one.boot_id for one in self.boots[:-1])):
                return boot

    def ask(self, *argv: str, stdin: str = "", timeout: float = 60) -> Done:
        """Runs a command as root in the current kernel, to its end."""
        answer: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        with self.lock:
            if not self.boots:
                raise Lost("the guest is not up")
            self.number += 1
            number = self.number
            self.boots[-1].answers[number] = answer
        request = {"id": number, "argv": argv, "stdin": stdin, "timeout": int(timeout)}
        what = " ".join(argv)[:200]
        try:
            self.port.sendall(json.dumps(request).encode() + b"\n")
            message = answer.get(timeout=timeout + 20)
        except OSError:
            message = None
        except queue.Empty:
            raise Lost(f"`{what}': no answer from the guest") from None
        if message is None:
            raise Lost(f"`{what}': the kernel went away meanwhile")
        if "error" in message:
            raise Lost(f"`{what}': {message['error']}")
        return Done(message["status"], message["out"], message["err"])

    def run(self, *argv: str, stdin: str = "", timeout: float = 60) -> str:
        """The same for a command that is to succeed; returns what it prints."""
        done = self.ask(*argv, stdin=stdin, timeout=timeout)
        if done.status:
            raise Lost(f"`{' '.join(argv)[:200]}' ended with {done.status}: "
                       f"{(done.err or done.out).strip()}")
        return done.out

    def sh(self, script: str, timeout: float = 60) -> str:
        """The same for a line of shell."""
        return self.run("sh", "-c", script, timeout=timeout)

    def until(self, script: str, timeout: float = 60) -> None:
        """Waits until a line of shell succeeds."""
        loop = f"until {{ {script}; }} >/dev/null 2>&1; do sleep 0.2; done"
        try:
            self.sh(loop, timeout)
        except Lost as why:
            done = self.ask("sh", "-c", script)
            raise Lost(f"after {timeout:.0f} s still not: `{script}' ({why}): "
                       f"{(done.out + done.err).strip()[-500:]}") from None

    # ---- what it leaves ----

    def journal(self, *arguments: str) -> str:
        """The journal of this boot, or what the arguments of journalctl say."""
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic",
                        *(arguments or ("-b",)))

    def outcome(self) -> guest.Outcome:
        """The console so far, in the form of other guests."""
        return guest.Outcome(guest.read_lines(self.console_file), [],
                             time.monotonic() - self.begin, "")

    def story(self, units: tuple[str, ...] = ("luod.service",)) -> list[str]:
        """What to show if a test failed: alarms, the end of the journal and of the console."""
        told = self.outcome().alarms()
        try:
            names = [word for unit in units for word in ("-u", unit)]
            told += ["the end of the journal:",
                     *self.journal("-n", "60", *names).splitlines()]
        except Lost as why:
            told.append(f"no journal: {why}")
        console = [line for line in self.outcome().console if line.strip()]
        return [*told, "the end of the console:", *console[-15:]]

    def stop(self) -> None:
        """Switches the guest off. What it had not written is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.port.close()
