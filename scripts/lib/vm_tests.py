# SPDX-License-Identifier: GPL-2.0
"""Tests of virtual machines that live through updates of their host (luo-qemu).

The host is itself a virtual machine, with Debian, systemd, luod and luo-qemu. Its guests run one
program, vm-beat, which says ten times a second how far it has counted, on a serial port that leads
through the host to a file here: so what a guest sees is timed by the clock of this machine, which
no kexec stops.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import debian_guest
import guest
import kernel
import programs
from common import REPO, Failed, lock, say
from debian_guest import Additions, DebianGuest, Lost
from luod_tests import HOST, Wrong
from report import Results

ROOT = "sid+guests"
MIB = 1 << 20
# Written by vm-beat; the rest of a line is cut off where a kernel died in the middle.
BEAT = re.compile(r"beat (\d+) ([\d.]+) ([0-9a-f-]{36}) (\d+) (\d+)")
# In the host: where each page of a guest's RAM is. The data of the memfd is mapped and read, so
# that there is something to be looked up.
FRAMES = """\
import mmap, os, struct, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().decode().split("\\0")
    except OSError:
        continue        # it has ended
    if words[0].startswith("qemu-system") and words[1:3] == ["-name", sys.argv[1]]:
        path = f"/proc/{pid}/fd/3"
with open(path, "rb") as ram, open("/proc/self/pagemap", "rb", 0) as pagemap:
    size = os.fstat(ram.fileno()).st_size
    view = mmap.mmap(ram.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ)
    maps = [line.split() for line in open("/proc/self/maps") if "/memfd:" in line]
    begin = int(maps[0][0].split("-")[0], 16)
    at = 0
    while True:
        try:
            at = os.lseek(ram.fileno(), at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(ram.fileno(), at, os.SEEK_HOLE)
        while at < end:
            view[at]
            pagemap.seek((begin + at) // 4096 * 8)
            entry, = struct.unpack("Q", pagemap.read(8))
            print(f"{at // 4096:x} {entry & (1 << 55) - 1:x}" if entry >> 63 else f"{at // 4096:x} none")
            at += 4096
"""
# A restartable program beside the guests.
CACHE_UNIT = """\
[Unit]
Description=memcached, over live updates
Requires=luod.socket
After=luod.socket luod.service

[Service]
Type=notify
ExecStart=/usr/bin/luo-run cache --file memory=64M --stop-signal USR1 -- \
 memcached -u root -m 64 -l 127.0.0.1 -p 11311 -e /run/luo-run/cache/memory
KillMode=mixed
"""
# In the host: `fill' stores keys whose values follow from them, `ask' counts those that are there.
CACHE_CLIENT = """\
import socket, sys
server = socket.create_connection(("127.0.0.1", 11311), 60).makefile("rwb")
hits = 0
for number in range(2000):
    value = f"value {number} ".encode() * 20
    if sys.argv[1] == "fill":
        server.write(b"set key%d 0 0 %d\\r\\n%s\\r\\n" % (number, len(value), value))
        server.flush()
        hits += server.readline() == b"STORED\\r\\n"
    else:
        server.write(b"get key%d\\r\\n" % number)
        server.flush()
        if server.readline().startswith(b"VALUE"):
            hits += server.readline() == value + b"\\r\\n"
            server.readline()
print(hits)
"""
POLICY = """\
operators = ["root"]
[update]
ready-timeout = 120
[[client]]
id = "*"
user = "root"
"""


@dataclass(frozen=True)
class Beat:
    """What a guest said, and when."""

    at: float
    number: int
    uptime: float
    boot: str
    checks: int
    passes: int


class Heart:
    """What a guest says, as it comes."""

    def __init__(self, path: Path):
        self.path = path
        self.seen = 0
        self.rest = ""
        self.beats: list[Beat] = []
        self.wrong: list[str] = []

    def listen(self) -> None:
        """Takes in what has been said since."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.seen)
            data = file.read()
        self.seen += len(data)
        now = time.monotonic()
        *lines, self.rest = (self.rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            if found := BEAT.search(line):
                number, uptime, boot, checks, passes = found.groups()
                self.beats.append(Beat(now, int(number), float(uptime), boot, int(checks), int(passes)))
            elif line.startswith("wrong"):
                self.wrong.append(line.strip())

    def wait(self, more: int, timeout: float) -> None:
        """Waits until there are some more beats, with a check of all memory among them."""
        self.listen()
        wanted = len(self.beats) + more
        checks = self.beats[-1].checks if self.beats else 0
        end = time.monotonic() + timeout
        while len(self.beats) < wanted or self.beats[-1].checks <= checks:
            if self.wrong:
                raise Wrong(f"the guest found: {self.wrong[0]}")
            if time.monotonic() > end:
                raise Wrong(f"the guest said {len(self.beats) + more - wanted} of {more} more beats in "
                            f"{timeout:.0f} s, the last: {self.beats[-1:] or 'none'}")
            time.sleep(0.02)
            self.listen()

    def trouble(self) -> list[str]:
        """What a guest that never stopped cannot have said."""
        found = list(self.wrong)
        for one, other in zip(self.beats, self.beats[1:], strict=False):
            if other.boot != one.boot:
                found.append(f"boot id {one.boot} became {other.boot}: it booted again")
            elif other.number <= one.number or other.uptime < one.uptime:
                found.append(f"it went back from {one} to {other}")
            # The port of a host that goes down may swallow some.
            elif other.number > one.number + 20:
                found.append(f"it counted on without us from {one} to {other}")
            elif other.uptime - one.uptime > 10:
                found.append(f"its clock jumped from {one} to {other}")
        return found[:5]

    def pause(self) -> float:
        """The longest silence, in seconds."""
        return max((other.at - one.at for one, other in zip(self.beats, self.beats[1:], strict=False)),
                   default=0)


def qemu(name: str, port: str, accel: str, more: str = "", variables: str = "") -> bytes:
    """The configuration of a guest: /etc/luo-qemu/NAME.conf."""
    append = f"console=ttyS0 quiet no_timer_check liveupdate=off kho=off panic=-1 rdinit=/init {variables}"
    words = f"""qemu-system-x86_64 -name {name} -nodefaults -no-user-config -display none \
-machine q35 -accel {accel} -smp 1 -chardev {port} -serial chardev:con {more} \
-kernel /additions/kernel -initrd /additions/guest.cpio -append "{append.strip()}" """
    return f"MEMORY=128M\nQEMU='{words.strip()}'\n".encode()


class Host:
    """A machine with guests in it."""

    def __init__(self, folder: Path, files: dict[str, Path], built: kernel.Kernel,
                 guests: dict[str, bytes], scene: "Scene", memory: int = 2048):
        folder.mkdir()
        self.guests = guests
        additions = Additions(files["guest-agent"])
        for program in ("luod-client", "luod-say", "luoctl"):
            additions.file(f"root/usr/local/bin/{program}", files[program], 0o755)
        additions.file("root/usr/sbin/luod", files["luod"], 0o755)
        additions.file("root/usr/bin/luo-qemu", files["luo-qemu"], 0o755)
        for unit in ("luod.service", "luod.socket"):
            additions.unit(unit, (REPO / "tools/luod/systemd" / unit).read_text())
        additions.enable("luod.service", "multi-user.target")
        additions.enable("luod.socket", "sockets.target")
        additions.unit("luo-qemu@.service",
                       (REPO / "tools/luo-qemu/systemd/luo-qemu@.service").read_text())
        additions.file("root/usr/bin/luo-run", files["luo-run"], 0o755)
        additions.unit("cache.service", CACHE_UNIT, "multi-user.target")
        additions.link("root/etc/systemd/system/memcached.service", "/dev/null")
        additions.bytes("root/usr/local/lib/cache.py", CACHE_CLIENT.encode())
        for name, configuration in guests.items():
            additions.bytes(f"root/etc/luo-qemu/{name}.conf", configuration)
            additions.enable("luo-qemu@.service", "multi-user.target", name)
        additions.bytes("root/etc/luod.toml", POLICY.encode())
        additions.bytes("root/usr/local/lib/frames.py", FRAMES.encode())
        additions.link("root/etc/systemd/system/default.target",
                       "/usr/lib/systemd/system/multi-user.target")
        # One image serves as host and as guest.
        additions.file("kernel", built.image)
        with guest.Initramfs(folder / "guest.cpio") as archive:
            archive.file("init", files["vm-beat"], 0o755)
        additions.file("guest.cpio", folder / "guest.cpio")
        image = additions.write(folder / "additions.ext4")
        root = debian_guest.images(ROOT)[0]
        port = folder / "guest.log"
        self.heart = Heart(port)
        self.machine = DebianGuest(built.image, root, image, folder,
                                   command_line=f"quiet {scene.command_line}", memory=memory,
                                   cpu=scene.cpu, options=("-serial", f"file:{port}"))

    def log(self, name: str) -> str:
        """What luo-qemu said of a guest in this kernel."""
        return self.machine.run("journalctl", "--no-pager", "-b", "-o", "cat", "-u", f"luo-qemu@{name}")

    def frames(self, name: str) -> dict[str, str]:
        """Where each page of a guest is."""
        out = self.machine.run("python3", "/usr/local/lib/frames.py", name, timeout=180)
        return dict(line.split() for line in out.splitlines())

    def cached(self, what: str) -> int:
        """How many keys memcached took or has, of 2000."""
        self.machine.until("systemctl is-active cache", 90)
        return int(self.machine.run("python3", "/usr/local/lib/cache.py", what, timeout=120))

    def update(self) -> None:
        """Updates the kernel, as an operator does."""
        try:
            done = self.machine.ask("luoctl", "update", "/additions/kernel", "--cmdline",
                                    self.machine.command_line, timeout=180)
        except Lost:
            done = None     # its answer did not make it out of the old kernel
        if done and done.status:
            raise Wrong(f"luoctl update ended with {done.status}: {done.out}{done.err}")
        self.machine.up(300)

    def subscribed(self, names: set[str], timeout: float = 120) -> None:
        """Waits until these guests are part of updates, with their RAM preserved early."""
        said = " && ".join(f"luod-say STATUS | grep -q '\"id\":\"{name}\"[^}}]*\"state\":\"prepared\"'"
                           for name in names)
        self.machine.until(said, timeout)

    def story(self) -> list[str]:
        """What to show if a test failed."""
        units = tuple(f"luo-qemu@{name}.service" for name in self.guests)
        return [*self.machine.story(("luod.service", *units)),
                "the guest said last:", *(str(beat) for beat in self.heart.beats[-3:])]


@dataclass(frozen=True)
class Scene:
    """A kind of guests, and of the host that they need."""

    accel: str
    cpu: str = "qemu64"
    command_line: str = ""


# Under the emulator a host cannot have an invariant TSC, so the next kernel measures another rate; KVM would
# refuse that of the guest.
SCENES = {"tcg": Scene("tcg,tb-size=64"),
          "kvm": Scene("kvm -cpu host", "max", "kvm.tsc_tolerance_ppm=50000")}
# What takes too long for every day: a guest in an emulated host, the more so if it is emulated, too.
LONG = ("kvm", "tcg")


class VmTests:
    """All of them."""

    # The acts, in order. Each begins where the one before ended.
    ACTS = ("refused", "start", "abort", "update", "same-frames", "nothing-copied", "memcached",
            "shutdown")

    def __init__(self, results: Results, folder: Path, long: bool):
        self.results, self.folder, self.long = results, folder, long
        self.files: dict[str, Path] = {}
        self.before: dict[str, str] = {}

    def wanted(self) -> list[str]:
        """The scenes of which tests are wanted."""
        return [scene for scene in SCENES
                if any(self.results.wants(f"vm/{scene}/{act}") for act in self.ACTS)
                and (self.long or scene not in LONG or self.results.pattern)]

    def roots(self) -> list[str]:
        """The root file systems of Debian that they need."""
        return [ROOT] if self.wanted() else []

    def run(self) -> None:
        if not self.wanted():
            return
        try:
            with lock():
                built = kernel.build(HOST)
                for package, program in (("luod-tests", "guest-agent"), ("luod-tests", "luod-client"),
                                         ("luod-tests", "luod-say"), ("luod-tests", "vm-beat"),
                                         ("luoctl", "luoctl"), ("luod", "luod"), ("luo-qemu", "luo-qemu"),
                                         ("luo-run", "luo-run")):
                    self.files[program] = programs.crate_program(package, program, self.folder)
        except Failed as why:
            self.results.verdict("vm/build", str(why))
            return
        say("running the tests of virtual machines that live through updates")
        self.run_on(built)

    def run_on(self, built: kernel.Kernel) -> None:
        """Runs them on a kernel."""
        for name in self.wanted():
            self.scene(name, built)

    def scene(self, name: str, built: kernel.Kernel) -> None:
        """Runs all acts on a host, until one fails."""
        begin, scene = time.monotonic(), SCENES[name]
        try:
            guests = {"vm-0": qemu("vm-0", "serial,id=con,path=/dev/ttyS2", scene.accel)}
            host = Host(self.folder / f"vm-{name}", self.files, built, guests, scene)
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
        """The guest runs, and finds its memory as it should be."""
        host.subscribed({"vm-0"})
        host.heart.wait(10, 240)
        if (hits := host.cached("ask")) != 0 or (hits := host.cached("fill")) != 2000:
            raise Wrong(f"memcached began with, or took, {hits} keys of 2000")

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
        log = host.log("vm-0")
        if "the guest is stopped" not in log or "the guest goes on in this kernel: " not in log:
            raise Wrong(f"the guest was not stopped and continued: {log}")
        host.subscribed({"vm-0"})
        host.heart.wait(10, 60)
        if trouble := host.heart.trouble():
            raise Wrong(trouble[0])

    def update(self, host: Host) -> None:
        """The host changes its kernel, and the guest goes on."""
        self.before = host.frames("vm-0")
        host.heart.listen()
        host.update()
        host.heart.wait(10, 240)
        if trouble := host.heart.trouble():
            raise Wrong(trouble[0])
        host.subscribed({"vm-0"})
        say(f"the guest was silent for {host.heart.pause():.1f} s")
        for line in host.log("vm-0").splitlines():
            if "the guest goes on after" in line:
                say(line)

    def same_frames(self, host: Host) -> None:
        """Each page of its memory is where it was."""
        after = host.frames("vm-0")
        # Of what the guest has, and not only of what its program does.
        if len(self.before) < 16 * MIB // 4096 or "none" in self.before.values():
            raise Wrong(f"only {len(self.before)} pages of the guest were found before the update")
        moved = [page for page, frame in self.before.items() if after.get(page) != frame]
        if moved:
            raise Wrong(f"{len(moved)} of {len(self.before)} pages are elsewhere, the first is {moved[0]}: "
                        f"{self.before[moved[0]]}, now {after.get(moved[0])}")

    def nothing_copied(self, host: Host) -> None:
        """What QEMU saved has no room for the guest's memory."""
        log = host.machine.run("journalctl", "--no-pager", "-b", "-1", "-o", "cat", "-u", "luo-qemu@vm-0")
        sizes = [int(size) for size in re.findall(r"its state of (\d+) bytes", log)]
        if not sizes or max(sizes) > 4 * MIB:
            raise Wrong(f"the states had {sizes} bytes: {log}")

    def memcached(self, host: Host) -> None:
        """A cache that was warm is warm."""
        if (hits := host.cached("ask")) != 2000:
            raise Wrong(f"of 2000 keys {hits} are there after the update: "
                        + host.machine.run("journalctl", "--no-pager", "-b", "-o", "cat", "-u", "cache"))

    def shutdown(self, host: Host) -> None:
        """Stopped like any service, the guest is not kept, and nothing is left in the kernel."""
        host.machine.sh("systemctl stop luo-qemu@vm-0 & sleep 1; systemctl kill --kill-whom=main luo-qemu@vm-0; "
                        "wait", 60)
        host.machine.until("grep -qx 'sessions 0' /sys/kernel/liveupdate/incoming && "
                           "grep -qx 'sessions 0' /sys/kernel/liveupdate/outgoing", 30)
