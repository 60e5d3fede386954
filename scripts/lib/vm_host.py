# SPDX-License-Identifier: GPL-2.0
"""A host of virtual machines that live through updates of its kernel (luo-qemu).

The host is itself a virtual machine, with Debian, systemd, luod and luo-qemu. Its guests run one
program, vm-beat, which says ten times a second how far it has counted, on a serial port that leads
through the host to a file here: so what a guest sees is timed by the clock of this machine, which
no kexec stops. Beside them runs a memcached.
"""

import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import debian_guest
import guest
import kernel
import programs
from common import REPO, lock
from debian_guest import Additions, DebianGuest, Lost
from luod_tests import HOST, Wrong
from machine import ARM64, X86, Machine

# The root file systems of hosts; of their guests the machine in QEMU, and what their kernels are told.
ROOTS = {X86: "sid+guests", ARM64: "sid+guests@arm64"}
MACHINES = {X86: ("q35", "no_timer_check "), ARM64: ("virt", "")}
MIB = 1 << 20
# Of a guest, in the host.
DISK = "/var/lib/disk.img"
# Written by vm-beat; the rest of a line is cut off where a kernel died in the middle.
BEAT = re.compile(r"beat (\d+) ([\d.]+) ([0-9a-f-]{36}) (\d+) (\d+)")
# In the host: where each page of a guest's RAM is (`frames'), how many KiB of it are in huge pages (`held'),
# and in how many QEMU maps them as such (`mapped'). The data of the memfd is mapped and read, so that there
# is something to be looked up.
FRAMES = """\
import mmap, os, struct, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().decode().split("\\0")
    except OSError:
        continue        # it has ended
    if words[0].startswith("qemu-system") and words[1:3] == ["-name", sys.argv[1]]:
        qemu = pid
with open(f"/proc/{qemu}/fd/3", "rb") as ram, open("/proc/self/pagemap", "rb", 0) as pagemap:
    size, inode = os.fstat(ram.fileno()).st_size, str(os.fstat(ram.fileno()).st_ino)
    view = mmap.mmap(ram.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ)
    # Not by its name: Linux 7.2 hands none over.
    begin, = (int(line.split("-")[0], 16) for line in open("/proc/self/maps") if line.split()[4] == inode)
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
            if sys.argv[2] == "frames":
                print(f"{at // 4096:x} {entry & (1 << 55) - 1:x}" if entry >> 63 else f"{at // 4096:x} none")
            at += 4096
    if sys.argv[2] != "frames":
        with open(f"/proc/{qemu if sys.argv[2] == 'mapped' else 'self'}/smaps_rollup") as smaps:
            print(*(line.split()[1] for line in smaps if line.startswith("ShmemPmdMapped:")))
"""
# In the host: what its counter says, and what its clocks say at that time.
CLOCK = """\
import ctypes, mmap, time
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("0f3148c1e2204809d0c3"))       # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
now = counter()
print(now, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
with open("/dev/kmsg", "wb", 0) as log:
    log.write(b"pause: clock %d\\n" % now)
"""
# What luo-qemu says in its journal, before and after.
STOPPED = re.compile(r"the guest is stopped at ([\d.]+) s of this kernel, .* preserved in (\d+) ms")
GOES_ON = re.compile(r"the guest goes on after ([\d.]+) s by the host's clock; at ([\d.]+) s of this kernel: "
                     r"retrieve (\d+) ms, QEMU (\d+) ms, load (\d+) ms")
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
# Of memcached.
KEYS = 2000
# In the host: `fill' stores keys whose values follow from them, `ask' counts those that are there.
CACHE_CLIENT = """\
import socket, sys
server = socket.create_connection(("127.0.0.1", 11311), 60).makefile("rwb")
hits = 0
for number in range(KEYS):
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
""".replace("KEYS", str(KEYS))
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

    @property
    def behind(self) -> float:
        """How far its clock is behind ours. What it says late seems to be further behind."""
        return self.at - self.uptime


class Heart:
    """What a guest says, as it comes."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        self.seen = 0
        self.rest = ""
        self.beats: list[Beat] = []
        self.wrong: list[str] = []
        # Of its kernel, mostly.
        self.other: list[str] = []

    def listen(self) -> None:
        """Takes in what has been said since."""
        with self.lock:
            self._listen()

    def _listen(self) -> None:
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
            elif line.strip():
                self.other.append(line.strip())

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
        beats = self.beats[:]
        least = beats[0].behind if beats else 0
        for one, other in zip(beats, beats[1:], strict=False):
            if other.boot != one.boot:
                found.append(f"boot id {one.boot} became {other.boot}: it booted again")
            elif other.number <= one.number or other.uptime < one.uptime:
                found.append(f"it went back from {one} to {other}")
            # The port of a host that goes down may swallow some.
            elif other.number > one.number + 20:
                found.append(f"it counted on without us from {one} to {other}")
            elif other.behind < least - 10:
                found.append(f"its clock went ahead from {one} to {other}")
            least = min(least, other.behind)
        return found[:5]

    def silence(self, since: int = 0) -> tuple[Beat, Beat]:
        """What it said before its longest silence since a beat, and after it."""
        beats = self.beats[since:]
        return max(zip(beats, beats[1:], strict=False), key=lambda pair: pair[1].at - pair[0].at)

    def pause(self, since: int = 0) -> float:
        """The longest silence since a beat, in seconds."""
        one, other = self.silence(since)
        return other.at - one.at

    def stood_still(self, since: int = 0) -> float:
        """For how many seconds of it the guest's clock stood still."""
        one, other = self.silence(since)
        before = self.beats.index(one)
        late = one.behind - min(beat.behind for beat in self.beats[max(0, before - 100):before + 1])
        return other.behind - one.behind + late


STOCK_HOST = kernel.Variant("c", release=kernel.PREVIOUS, purpose="host")


@dataclass(frozen=True)
class Pause:
    """How long a guest stood still, as luo-qemu saw it. All in seconds."""

    whole: float                # by the clock of the host, which may count in whole seconds over a kexec
    stopped: float              # since the boot of the old kernel, when it was saved
    goes_on: float              # since that of the new one
    save: float
    retrieve: float
    start: float                # of QEMU
    load: float


@dataclass(frozen=True)
class Guest:
    """What a guest has besides memory, and what it does besides counting (see vm-beat)."""

    devices: str = ""
    variables: str = ""
    memory: str = "128M"
    options: str = ""           # of luo-qemu


# Under the emulator a host cannot have an invariant TSC, so the next kernel measures another rate; KVM
# would refuse that of the guest.
TSC = "kvm.tsc_tolerance_ppm=50000"
# How many huge pages of 2 MiB a host has, if its guests have any. One guest takes more than half of them.
POOL = 96
# RAM in huge pages of shmem, and how much of it a guest fills then, in MiB.
HUGE = "transparent_hugepage_shmem=always"
FILLED = 64


@dataclass(frozen=True)
class Scene:
    """A host, its guests, and what they live through (see vm_tests.py)."""

    acts: tuple[str, ...]
    guests: tuple[Guest, ...] = (Guest(),)
    # QEMU's in the host.
    accel: str = "kvm -cpu host"
    # The host's processor, if it is not what its machine has anyway.
    cpu: str = "max"
    command_line: str = TSC
    memory: int = 2048
    # The host's, one update after the other.
    kernels: tuple[kernel.Variant, ...] = (HOST,)
    # Further options of the QEMU that the host runs in.
    options: tuple[str, ...] = ()
    # Further files of the host that have no content.
    masked: tuple[str, ...] = ()
    processors: int = 2
    # For what all guests do at once, in seconds, if it does not follow from their number.
    patience: int = 0
    daily: bool = False

    @property
    def machine(self) -> Machine:
        return self.kernels[0].machine

    @property
    def guest_kernel(self) -> kernel.Variant:
        """What its guests run: one image serves as host and as guest."""
        return replace(HOST, machine=self.machine)


UPDATE = ("update", "same-frames", "nothing-copied", "memcached")
SCENES = {
    # The short one. Its host has no virtualization.
    "tcg": Scene(("start", *UPDATE), accel="tcg,tb-size=64", cpu="qemu64", command_line="", daily=True),
    "kvm": Scene(("refused", "tried-again", "start", "abort", *UPDATE, "update-again", "shutdown")),
    # One that writes all its memory all the time, and one with a disk.
    "load": Scene(("start", "abort", *UPDATE, "update-again"),
                  (Guest(variables="BEAT_LOAD=16"),
                   Guest(f"-drive if=virtio,format=raw,cache=none,file={DISK}", "BEAT_DISK=1"))),
    # RAM in huge pages of shmem, which are allocated after it was preserved.
    "huge": Scene(("start", "huge-pages", *UPDATE, "huge-pages-after", "update-again", "shutdown"),
                  (Guest(variables=f"BEAT_FILL={FILLED}"),),
                  command_line=f"{TSC} {HUGE}"),
    # RAM in HugeTLB pages of both sizes.
    "hugetlb": Scene(("start", "abort", *UPDATE, "pool", "update-again", "shutdown"),
                     (Guest(options="--huge-pages 2M"),),
                     command_line=f"{TSC} hugepages={POOL}"),
    "hugetlb-1G": Scene(("start", *UPDATE, "shutdown"), (Guest(memory="1G", options="--huge-pages 1G"),),
                        command_line=f"{TSC} hugepagesz=1G hugepages=1", memory=5120),
    # With two processors the emulator resets the host, without a word of it. All guests share one, so each
    # says something once a second.
    "eight": Scene(("start", "abort", *UPDATE, "shutdown"), (Guest(variables="BEAT_EVERY=1000"),) * 8,
                   memory=3072, processors=1),
    "crash": Scene(("start", "crash", "update"), options=("-action", "reboot=reset")),
    # There and back.
    "7.2": Scene(("start", *UPDATE, "update-again"), kernels=(STOCK_HOST, HOST)),
}
ARM64_HOST = replace(HOST, machine=ARM64)
# On hosts of arm64, which are emulated like all others; the second one has virtualization.
ARM64_SCENES = {
    "tcg": Scene(("start", *UPDATE), accel="tcg,tb-size=64 -cpu cortex-a57", cpu="", command_line="",
                 kernels=(ARM64_HOST,)),
    "kvm": Scene(("start", "abort", *UPDATE, "update-again"), accel="kvm -cpu host", cpu="", command_line="",
                 options=("-machine", "virtualization=on,gic-version=3"), kernels=(ARM64_HOST,)),
}


# Of the host's: what is before is the host's own, or what a PC may have.
FIRST_PORT = {X86: 4, ARM64: 0}


def make(folder: Path, *scenes: Scene) -> dict[str, Path]:
    """Builds the kernels of hosts of one architecture, and the programs of them and their guests."""
    crates = {"guest-agent": "luod-tests", "luod-client": "luod-tests", "luod-say": "luod-tests",
              "vm-beat": "luod-tests", "luoctl": "luoctl", "luod": "luod", "luo-qemu": "luo-qemu",
              "luo-run": "luo-run"}
    machine = scenes[0].machine
    with lock():
        files = {program: programs.crate_program(crate, program, folder, machine=machine)
                 for program, crate in crates.items()}
        for variant in {variant for scene in scenes for variant in (scene.guest_kernel, *scene.kernels)}:
            name = f"kernel-{variant.name}"
            files[name] = kernel.build(variant).copied(folder / name).image
    return files


def qemu(name: str, scene: Scene, port: int, kind: Guest) -> bytes:
    """The configuration of a guest, /etc/luo-qemu/NAME.conf. Its console is a port of the host's."""
    machine = scene.machine
    kind_of_machine, told = MACHINES[machine]
    append = f"console={machine.console} quiet {told}liveupdate=off kho=off panic=-1 rdinit=/init {kind.variables}"
    words = f"""{machine.qemu[0]} -name {name} -nodefaults -no-user-config -display none \
-machine {kind_of_machine} -accel {scene.accel} -smp 1 -chardev serial,id=con,path=/dev/ttyS{port} \
-serial chardev:con {kind.devices} -kernel /additions/kernel-{scene.guest_kernel.name} \
-initrd /additions/guest.cpio -append "{append.strip()}" """
    options = f"OPTIONS={kind.options}\n" if kind.options else ""
    return f"MEMORY={kind.memory}\n{options}QEMU='{words.strip()}'\n".encode()


class Host:
    """A machine with guests in it."""

    def __init__(self, folder: Path, files: dict[str, Path], scene: Scene):
        folder.mkdir()
        self.kernels = [f"kernel-{variant.name}" for variant in scene.kernels]
        self.updates = 0
        self.guests = [f"vm-{number}" for number in range(len(scene.guests))]
        self.patience = scene.patience or 180 + 60 * len(self.guests)
        additions = Additions(files["guest-agent"], machine=scene.machine)
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
        # There from the first boot on.
        additions.bytes("root/etc/systemd/system/luo-qemu@.service.d/disk.conf",
                        f"[Service]\nExecStartPre=truncate -s 16M {DISK}\n".encode())
        additions.file("root/usr/bin/luo-run", files["luo-run"], 0o755)
        additions.unit("cache.service", CACHE_UNIT, "multi-user.target")
        additions.link("root/etc/systemd/system/memcached.service", "/dev/null")
        for name in scene.masked:
            additions.link(f"root/{name}", "/dev/null")
        for port, (name, kind) in enumerate(zip(self.guests, scene.guests, strict=True), FIRST_PORT[scene.machine]):
            additions.bytes(f"root/etc/luo-qemu/{name}.conf", qemu(name, scene, port, kind))
            additions.enable("luo-qemu@.service", "multi-user.target", name)
        additions.bytes("root/etc/luod.toml", POLICY.encode())
        for name, script in {"cache": CACHE_CLIENT, "clock": CLOCK, "frames": FRAMES}.items():
            additions.bytes(f"root/usr/local/lib/{name}.py", script.encode())
        additions.link("root/etc/systemd/system/default.target",
                       "/usr/lib/systemd/system/multi-user.target")
        for name in {f"kernel-{scene.guest_kernel.name}", *self.kernels}:
            additions.file(name, files[name])
        with guest.Initramfs(folder / "guest.cpio") as archive:
            archive.file("init", files["vm-beat"], 0o755)
        additions.file("guest.cpio", folder / "guest.cpio")
        image = additions.write(folder / "additions.ext4")
        root = debian_guest.images(ROOTS[scene.machine])[0]
        self.hearts = {name: Heart(folder / f"{name}.log") for name in self.guests}
        ports = [word for name, heart in self.hearts.items()
                 for word in ("-chardev", f"file,id={name},path={heart.path}",
                              "-device", f"pci-serial,chardev={name}")]
        self.machine = DebianGuest(files[self.kernels[0]], root, image, folder,
                                   command_line=f"quiet {scene.command_line}", memory=scene.memory,
                                   processors=scene.processors, machine=scene.machine,
                                   options=(*ports, *(("-cpu", scene.cpu) if scene.cpu else ()),
                                            *scene.options))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Listens to all guests at the time when they speak, whatever a test is waiting for."""
        while self.machine.process.poll() is None:
            for heart in self.hearts.values():
                heart.listen()
            time.sleep(0.02)

    def log(self, name: str, boot: int = 0) -> str:
        """What luo-qemu said of a guest in this kernel, or with -1 in the one before."""
        return self.machine.run("journalctl", "--no-pager", "-b", str(boot), "-o", "cat", "-u", f"luo-qemu@{name}",
                                timeout=180)

    def boot(self, timeout: float) -> debian_guest.Boot:
        """Waits until the host is up, and its luod answers."""
        boot = self.machine.up(timeout)
        self.machine.until("luod-say STATUS", timeout)
        return boot

    def pause(self, name: str) -> Pause:
        """How long a guest stood still in the last update."""
        stopped, goes_on = STOPPED.findall(self.log(name, -1)), GOES_ON.findall(self.log(name))
        if not stopped or not goes_on:
            raise Wrong(f"luo-qemu does not say how long {name} stood still")
        whole, at, *parts = goes_on[-1]
        save, retrieve, start, load = (int(number) / 1000 for number in (stopped[-1][1], *parts))
        return Pause(float(whole), float(stopped[-1][0]), float(at), save, retrieve, start, load)

    def frames(self, name: str) -> dict[str, str]:
        """Where each page of a guest is."""
        out = self.machine.run("python3", "/usr/local/lib/frames.py", name, "frames", timeout=180)
        return dict(line.split() for line in out.splitlines())

    def huge(self, name: str, what: str) -> int:
        """How much of a guest's RAM is in huge pages of shmem (`held'), or mapped so by QEMU (`mapped'), in KiB."""
        return int(self.machine.run("python3", "/usr/local/lib/frames.py", name, what, timeout=180))

    def moved(self, name: str, before: dict[str, str]) -> list[str]:
        """What has other frames than before an update. Nothing, but what was migrated since: fragmented
        pages are, when the guest's RAM is preserved for the next update."""
        # Of what the guest has, and not only of what its program does.
        if len(before) < 16 * MIB // 4096 or "none" in before.values():
            raise Wrong(f"only {len(before)} pages of {name} were found before the update")
        after = self.frames(name)
        moved = [f"{page}: {frame}, now {after.get(page)}" for page, frame in before.items()
                 if after.get(page) != frame]
        migrated = int(self.machine.sh("sed -n 's/^pgmigrate_success //p' /proc/vmstat"))
        if len(moved) > migrated:
            raise Wrong(f"{len(moved)} of {len(before)} pages of {name} are elsewhere, but only {migrated} were "
                        f"migrated: {'; '.join(moved[:5])}")
        return moved

    def cached(self, what: str) -> int:
        """How many of its keys memcached took or has."""
        self.machine.until("systemctl is-active cache", 90)
        return int(self.machine.run("python3", "/usr/local/lib/cache.py", what, timeout=120))

    def next(self) -> str:
        """The kernel to come."""
        return f"/additions/{self.kernels[(self.updates + 1) % len(self.kernels)]}"

    def update(self) -> None:
        """Updates the kernel, as an operator does."""
        try:
            done = self.machine.ask("luoctl", "update", self.next(), "--cmdline",
                                    self.machine.command_line, timeout=self.patience + 60)
        except Lost:
            done = None     # its answer did not make it out of the old kernel
        if done and done.status:
            raise Wrong(f"luoctl update ended with {done.status}: {done.out}{done.err}")
        self.machine.up(self.patience + 60)
        self.updates += 1

    def subscribed(self, names: set[str]) -> None:
        """Waits until these guests are part of updates, with their RAM preserved early."""
        said = " && ".join(f"luod-say STATUS | grep -q '\"id\":\"{name}\"[^}}]*\"state\":\"prepared\"'"
                           for name in names)
        self.machine.until(said, self.patience)

    def go_on(self) -> None:
        """Waits until all guests go on. None has booted, or lost anything."""
        for name, heart in self.hearts.items():
            passes = heart.beats[-1].passes if heart.beats else 0
            heart.wait(10, self.patience)
            if trouble := heart.trouble():
                raise Wrong(f"{name}: {trouble[0]}")
            if passes and heart.beats[-1].passes <= passes:
                raise Wrong(f"{name} writes its memory no more: {heart.beats[-1]}")

    def story(self) -> list[str]:
        """What to show if a test failed."""
        units = tuple(f"luo-qemu@{name}.service" for name in self.guests)
        return [*(f"{name} said: {what}" for name, heart in self.hearts.items()
                  for what in (*heart.beats[-3:], *heart.other[-10:])),
                *self.machine.story(("luod.service", *units))]
