# SPDX-License-Identifier: GPL-2.0
"""Tests of luod: clients over live updates, in machines with systemd and without.

A scene is a machine with luod and what differs between machines: how programs are started, and
how luod is killed. The acts are the same on all of them.
"""

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import debian_guest
import guest
import kernel
import programs
from common import REPO, Failed, lock, say
from debian_guest import Additions, DebianGuest, Lost
from report import Results

HOST = kernel.Variant("rust", purpose="host")
# Where luod looks when it is to be killed (tools/luod/src/crash.rs).
ORDER = "/var/lib/luod-crash/order"
CLASSES = {**{f"c{n}": "memory" for n in range(2)}, **{f"c{n}": "vm" for n in range(2, 8)},
           **{f"c{n}": "devices" for n in range(8, 10)}}
# One of the ten speaks the published protocol only.
PLAIN = "c5"
CLIENTS = {name: "" if name == PLAIN else f"--class {kind}" for name, kind in CLASSES.items()}
CLIENTS["c3"] += " --prepare"
# An example, in another language, where that is there.
PYTHON = "python"
PYTHON_UNIT = f"""\
[Unit]
Description=A client that speaks the published protocol only
After=luod.service
Wants=luod.service

[Service]
ExecStart=/usr/local/bin/plain_client.py {PYTHON}
StandardOutput=append:/run/luod-tests/{PYTHON}
"""
# It says READY and ends: its session is complete, and nobody claims it at first.
ORPHAN = "orphan"
POLICY = """\
operators = ["root"]
[update]
ready-timeout = 60
[unclaimed]
warn-after = 1
[[client]]
id = "slow"
ready-timeout = 3
[[client]]
id = "big"
files = 2
bytes = "64K"
[[client]]
id = "*"
user = "root"
"""
# Where luod dies before an update is committed: it is aborted.
BEFORE = ("before check", "checked", "before create", "created", "before send start",
          "before write", "written")
# Where it dies after that: the kexec happens all the same.
AFTER = {"no-systemd": "kexec", "systemd-262": "before kexec", "systemd-257": "before send committed"}

SCENES = ("no-systemd", "systemd-262", "systemd-257")
# What takes too long for every day.
LONG = ("systemd-257",)
DEBIAN = {"systemd-262": "sid", "systemd-257": "trixie"}
# Where the watchdog is tried, and its seconds there: the unit's own are too many for a test.
WATCHED = ("systemd-262",)
WATCHDOG = 10
# The acts, in order. Each begins where the one before ended.
ACTS = ("start", "never-ready", "dies", "fails", "over-limit", "image-refused", "kexec-refused",
        "killed-before-commit",
        "first-kexec", "unclaimed-listed", "foreign-claim-refused", "killed-in-new-kernel", "hangs",
        "claimed-again-after-death", "second-kexec", "unclaimed-again", "claimed-at-last", "all-over")

CLIENT_UNIT = """\
[Unit]
Description=Client %i of luod
After=luod.service
Wants=luod.service

[Service]
EnvironmentFile=/etc/luod-clients/%i
ExecStart=/usr/local/bin/luod-client %i $ARGUMENTS
StandardOutput=append:/run/luod-tests/%i
StandardError=inherit
"""
# The test brings what the packages would.
CRASH_DROPIN = f"""\
[Service]
ReadWritePaths={Path(ORDER).parent}
"""
INIT = """\
#!/bin/busybox sh
export PATH=/bin:/sbin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debugfs /sys/kernel/debug
mkdir -p /run/luod-tests /var/lib/luod-crash /additions
mount -t ext4 -o ro /dev/vda /additions
for word in $(cat /proc/cmdline); do
	case $word in crash=*) echo "${word#crash=}" >/var/lib/luod-crash/order;; esac
done
luod --supervise 2>/run/luod.log &
while :; do guest-agent /dev/ttyS1; done
"""


class Wrong(Exception):
    """Something is not as it should be."""


class Scene:
    """A machine with luod in it."""

    def __init__(self, name: str, tests: "LuodTests"):
        self.name, self.tests = name, tests
        self.is_systemd = name != "no-systemd"
        self.counted = 0
        folder = tests.folder / name
        folder.mkdir()
        files = tests.files
        if self.is_systemd:
            additions = Additions(files["guest-agent"])
            for program in ("luod-client", "luod-say", "luoctl"):
                additions.file(f"root/usr/local/bin/{program}", files[program], 0o755)
            additions.file("root/usr/sbin/luod", files["luod"], 0o755)
            for unit in ("luod.service", "luod.socket"):
                additions.unit(unit, (REPO / "tools/luod/systemd" / unit).read_text())
            additions.enable("luod.service", "multi-user.target")
            additions.enable("luod.socket", "sockets.target")
            additions.bytes("root/etc/systemd/system/luod.service.d/crash.conf",
                            CRASH_DROPIN.encode())
            additions.unit("luod-client@.service", CLIENT_UNIT)
            additions.file("root/usr/local/bin/plain_client.py",
                           REPO / "tools/luod/examples/plain_client.py", 0o755)
            additions.unit(f"luod-{PYTHON}.service", PYTHON_UNIT, "multi-user.target")
            for client, arguments in {**CLIENTS, ORPHAN: ""}.items():
                additions.bytes(f"root/etc/luod-clients/{client}",
                                f'ARGUMENTS="{arguments}"\n'.encode())
            additions.bytes("root/etc/tmpfiles.d/luod-tests.conf", b"d /run/luod-tests 0755\n")
            additions.bytes(f"root{Path(ORDER).parent}/.keep", b"")
            additions.bytes("root/etc/luod.toml", POLICY.encode())
            # On the way to a prompt there is nothing to wait for.
            additions.link("root/etc/systemd/system/default.target",
                           "/usr/lib/systemd/system/multi-user.target")
        else:
            additions = Additions(files["guest-agent"], "")
            with guest.Initramfs(folder / "initrd.cpio") as archive:
                for path in ("bin", "sbin", "etc", "run", "run/luod", "var", "var/lib"):
                    archive.folder(path)
                archive.bytes("init", INIT.encode(), 0o755)
                archive.file("bin/busybox", Path(shutil.which("busybox") or "/bin/busybox"), 0o755)
                for program in ("guest-agent", "luod-client", "luod-say", "luoctl"):
                    archive.file(f"bin/{program}", files[program], 0o755)
                archive.file("sbin/luod", files["luod"], 0o755)
                archive.bytes("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
                archive.bytes("etc/luod.toml", POLICY.encode())
            additions.file("initrd", folder / "initrd.cpio")
        assert tests.built
        additions.file("kernel", tests.built.image)
        image = additions.write(folder / "additions.ext4")
        root = debian_guest.images(DEBIAN[name])[0] if self.is_systemd else None
        self.guest = DebianGuest(tests.built.image, root, image, folder,
                                 initrd=None if root else folder / "initrd.cpio",
                                 command_line="quiet" if root else "rdinit=/init quiet")

    # ---- what differs ----

    def start(self, client: str, arguments: str = "") -> None:
        if self.is_systemd:
            self.guest.sh(f"echo 'ARGUMENTS=\"{arguments}\"' >/etc/luod-clients/{client}; "
                          f"systemctl restart luod-client@{client}")
        else:
            self.guest.sh(f"setsid luod-client {client} {arguments} >>/run/luod-tests/{client} "
                          f"2>&1 & echo $! >/run/luod-tests/{client}.pid")

    def stop(self, client: str) -> None:
        if self.is_systemd:
            self.guest.sh(f"systemctl kill -s KILL luod-client@{client}; "
                          f"systemctl stop luod-client@{client}; systemctl reset-failed")
        else:
            self.guest.ask("sh", "-c", f"kill -9 $(cat /run/luod-tests/{client}.pid)")
        self.guest.sh(f"rm -f /run/luod-tests/{client}")

    @property
    def log_command(self) -> tuple[str, ...]:
        """The command that prints luod's log."""
        if self.is_systemd:
            return "journalctl", "--no-pager", "-b", "-o", "cat", "-u", "luod"
        return "cat", "/run/luod.log"

    def luod_log(self) -> str:
        return self.guest.run(*self.log_command)

    def story(self) -> list[str]:
        if self.is_systemd:
            return self.guest.story(("luod.service", f"luod-{PYTHON}.service"))
        try:
            told = self.luod_log().splitlines()[-40:]
        except Lost as why:
            told = [str(why)]
        console = [line for line in self.guest.outcome().console if line.strip()]
        return [*self.guest.outcome().alarms(), "luod:", *told, "the console:", *console[-15:]]

    # ---- what is the same ----

    def heard(self, client: str) -> list[str]:
        return self.guest.ask("cat", f"/run/luod-tests/{client}").out.splitlines()

    def wait(self, client: str, line: str, times: int = 1, timeout: float = 60) -> None:
        """Waits until a client has said a line so often."""
        self.guest.until(f"test $(grep -c '^{line}' /run/luod-tests/{client}) -ge {times}", timeout)

    def count(self, line: str) -> dict[str, int]:
        return {client: sum(said.startswith(line) for said in self.heard(client))
                for client in CLIENTS}

    def status(self) -> dict:
        """luod's status; waits while it is being started again."""
        end = time.monotonic() + 60
        while True:
            done = self.guest.ask("luod-say", "STATUS")
            if not done.status:
                return json.loads(done.out)
            if time.monotonic() > end:
                raise Wrong(f"luod does not tell its status: {done.out}{done.err}")
            time.sleep(0.2)

    def subscribed(self, clients: set[str], timeout: float = 60) -> None:
        """Waits until these and no others are subscribed, and nothing is under way."""
        if self.is_systemd:
            clients = {*clients, PYTHON}
        end = time.monotonic() + timeout
        while True:
            status = self.status()
            there = {one["id"] for one in status["clients"]}
            if there == clients and status["state"] == "idle":
                return
            if time.monotonic() > end:
                raise Wrong(f"subscribed: {sorted(there)}, not {sorted(clients)}; {status}")
            time.sleep(0.3)

    def remember(self) -> None:
        """How far the example in Python has counted."""
        if self.is_systemd:
            self.wait(PYTHON, f"{PYTHON}: ")
            self.counted = int(self.heard(PYTHON)[-1].split()[-1])

    def kill_at(self, point: str) -> None:
        self.guest.sh(f"echo '{point}' >{ORDER}")

    def killed(self, timeout: float = 60) -> None:
        """Waits until luod has been killed at the point."""
        self.guest.until(f"! test -e {ORDER}", timeout)

    def update(self, kernel: str = "/additions/kernel", more: str = "") -> debian_guest.Done:
        """An update, to its end in this kernel."""
        initrd = () if self.is_systemd else ("/additions/initrd",)
        return self.guest.ask("luod-say", "update", kernel,
                              f"{self.guest.command_line} {more}".strip(), *initrd, timeout=120)

    def aborted(self, done: debian_guest.Done, why: str) -> None:
        """An update that was to be aborted, with a reason that everybody knows."""
        events = [json.loads(line) for line in done.out.splitlines()]
        last = events[-1] if events else {}
        if last.get("outcome") != "aborted" or why not in (last.get("reason") or ""):
            raise Wrong(f"the update ended with {last or done}, not aborted for `{why}'")
        told = self.status()["last"]
        if told["outcome"] != "aborted" or why not in told["reason"]:
            raise Wrong(f"the status has {told}")
        if why not in self.luod_log():
            raise Wrong("the log does not have the reason")

    def kexec(self) -> None:
        """An update that leads to the next kernel, as an operator does it."""
        initrd = () if self.is_systemd else ("--initrd", "/additions/initrd")
        try:
            done = self.guest.ask("luoctl", "update", "/additions/kernel", *initrd, "--cmdline",
                                  self.guest.command_line, timeout=120)
        except Lost:
            done = None     # its answer did not make it out of the old kernel
        if done and done.status:
            raise Wrong(f"luoctl update ended with {done.status}: {done.out}{done.err}")
        self.guest.up(240)


class LuodTests:
    """All of them."""

    def __init__(self, results: Results, folder: Path, long: bool):
        self.results, self.folder, self.long = results, folder, long
        self.files: dict[str, Path] = {}
        self.built: kernel.Kernel | None = None

    @staticmethod
    def acts(scene: str) -> list[str]:
        return [act for act in ACTS if act != "hangs" or scene in WATCHED]

    @staticmethod
    def names(scene: str) -> list[str]:
        return [f"luod/{scene}/{act}" for act in LuodTests.acts(scene)]

    def wanted(self) -> list[str]:
        """The scenes of which tests are wanted."""
        return [scene for scene in SCENES
                if any(map(self.results.wants, self.names(scene)))
                and (self.long or scene not in LONG or self.results.pattern)]

    def roots(self) -> list[str]:
        """The root file systems of Debian that they need."""
        return [DEBIAN[scene] for scene in self.wanted() if scene in DEBIAN]

    def run(self) -> None:
        scenes = self.wanted()
        if not scenes:
            return
        try:
            with lock():
                self.built = kernel.build(HOST).copied(self.folder / "luod-kernel")
                for package, program, features in (
                        ("luod-tests", "guest-agent", ""), ("luod-tests", "luod-client", ""),
                        ("luod-tests", "luod-say", ""), ("luoctl", "luoctl", ""),
                        ("luod", "luod", "crash-test")):
                    self.files[program] = programs.crate_program(package, program, self.folder,
                                                                 features)
        except Failed as why:
            self.results.verdict("luod/build", str(why))
            return
        say(f"running the tests of luod: {', '.join(scenes)}")
        guest.side_by_side([partial(self.scene, scene) for scene in scenes])

    def scene(self, name: str) -> None:
        """Runs all acts of a scene, until one fails."""
        begin = time.monotonic()
        try:
            scene = Scene(name, self)
        except Failed as failure:
            self.results.verdict(f"luod/{name}/start", str(failure))
            return
        acts = self.acts(name)
        with scene.guest:
            for number, act in enumerate(acts):
                why: list[str] = []
                try:
                    getattr(Acts, act.replace("-", "_"))(scene)
                except (Wrong, Lost) as what:
                    why = [str(what), *scene.story()]
                now = time.monotonic()
                self.results.add(f"luod/{name}/{act}", why or None, now - begin)
                begin = now
                if why:
                    for rest in acts[number + 1:]:
                        self.results.add(f"luod/{name}/{rest}", "did not run: one before it failed")
                    return
            alarms = scene.guest.outcome().alarms()
            self.results.verdict(f"luod/{name}/console", alarms or None)


def everybody(scene: Scene, check: Callable[[str], bool], what: str) -> None:
    wrong = [client for client in CLIENTS if not check(client)]
    if wrong:
        raise Wrong(f"{what}: {wrong[0]} said {scene.heard(wrong[0])[-6:]}")


class Acts:
    """What happens, in order."""

    @staticmethod
    def start(scene: Scene) -> None:
        """Ten clients subscribe."""
        scene.guest.up(120)
        scene.guest.until("luod-say STATUS", 90)
        for client, arguments in CLIENTS.items():
            scene.start(client, arguments)
        if scene.is_systemd:
            names = " ".join(f"luod-client@{client}.service" for client in CLIENTS)
            scene.guest.sh(f"mkdir -p /etc/systemd/system/multi-user.target.wants; for one in {names}; do "
                           "ln -sf ../luod-client@.service /etc/systemd/system/multi-user.target.wants/$one; "
                           "done")
        scene.subscribed(set(CLIENTS))
        expected = {"no-systemd": ("supervisor", "direct"), "systemd-257": ("systemd", "direct"),
                    "systemd-262": ("systemd-kexec", "systemctl")}[scene.name]
        status = scene.status()
        if (status["store"], status["kexec"]) != expected:
            raise Wrong(f"store and kexec are {status['store']}, {status['kexec']}")
        scene.remember()

    @staticmethod
    def _one_that_fails(scene: Scene, client: str, arguments: str, why: str) -> None:
        before = scene.count("aborted")
        scene.start(client, arguments)
        scene.wait(client, "subscribed")
        scene.aborted(scene.update(), why)
        # A client of a later class may not have been told yet, and then has nothing to abort.
        told = [one for one, kind in CLASSES.items() if kind != "devices"]
        for one in told:
            scene.wait(one, "aborted", before[one] + 1)
        everybody(scene, lambda one: not any(line.startswith("wrong") for line in scene.heard(one)),
                  "an aborted update left a mark")
        scene.stop(client)
        scene.subscribed(set(CLIENTS))

    @staticmethod
    def never_ready(scene: Scene) -> None:
        Acts._one_that_fails(scene, "slow", "--class vm --fault never", "'slow' was not ready after 3 s")

    @staticmethod
    def dies(scene: Scene) -> None:
        Acts._one_that_fails(scene, "mortal", "--class vm --fault dies",
                             "'mortal' ended before it was ready")

    @staticmethod
    def fails(scene: Scene) -> None:
        Acts._one_that_fails(scene, "painter", "--class vm --fault fails", "out of paint")

    @staticmethod
    def over_limit(scene: Scene) -> None:
        Acts._one_that_fails(scene, "big", "--class vm --files 2 --pages 10",
                             "more than the policy allows")

    @staticmethod
    def image_refused(scene: Scene) -> None:
        """A bad image is found before anybody is told."""
        before = scene.count("start")
        scene.aborted(scene.update("/etc/passwd"), "no kernel image")
        done = scene.guest.ask("luod-say", "update", "/additions/kernel", "quiet")
        scene.aborted(done, "liveupdate=on")
        done = scene.guest.ask("luoctl", "update", "--dry-run", "/etc/passwd")
        if not done.status or "no kernel" not in done.out + done.err:
            raise Wrong(f"luoctl update --dry-run: {done}")
        if scene.count("start") != before:
            raise Wrong("clients were told of an update that could not succeed")

    @staticmethod
    def kexec_refused(scene: Scene) -> None:
        """Where the kexec fails after all, everybody goes on."""
        Acts._one_that_fails(scene, "saboteur", "--class vm --fault unloads",
                             "the kexec did not happen")

    @staticmethod
    def killed_before_commit(scene: Scene) -> None:
        """luod is killed at each step before the commit: aborted, everybody goes on."""
        for point in BEFORE:
            before = scene.count("lost")
            scene.kill_at(point)
            scene.update()
            scene.killed()
            for client in CLIENTS:
                scene.wait(client, "lost", before[client] + 1)
            try:
                scene.subscribed(set(CLIENTS))
            except Wrong as why:
                raise Wrong(f"killed at `{point}': {why}") from None
            outgoing = scene.guest.run("cat", "/sys/kernel/liveupdate/outgoing")
            # That which asked for its session early has it again.
            scene.guest.until("grep -qx 'sessions 1' /sys/kernel/liveupdate/outgoing", 30)
            everybody(scene, lambda one: not any(line.startswith("wrong")
                                                 for line in scene.heard(one)),
                      f"killed at `{point}' ({outgoing})")

    @staticmethod
    def first_kexec(scene: Scene) -> None:
        """luod is killed once more when the update is committed; the kexec happens all the same."""
        scene.start(ORPHAN, "--class vm --fault dies-ready")
        scene.wait(ORPHAN, "subscribed")
        scene.kill_at(AFTER[scene.name])
        # And in the next kernel, when it has taken the first session that is claimed.
        more = "" if scene.is_systemd else "crash=retrieved"
        with contextlib.suppress(Lost):
            scene.update(more=more)
        scene.guest.up(240)
        Acts._arrive(scene, 1)

    @staticmethod
    def _arrive(scene: Scene, updates: int) -> None:
        scene.guest.until("luod-say STATUS", 90)
        if not scene.is_systemd:
            for client, arguments in CLIENTS.items():
                scene.start(client, arguments)
        for client in CLIENTS:
            scene.wait(client, f"restored {updates}")
        scene.subscribed(set(CLIENTS))
        if scene.is_systemd:
            # Its counter goes on.
            first = scene.heard(PYTHON)[0].split()
            if not first[-1].isdigit() or int(first[-1]) <= scene.counted:
                raise Wrong(f"{PYTHON} said {first}, and was at {scene.counted}")
        scene.remember()

    @staticmethod
    def _orphan(scene: Scene, updates: int) -> None:
        sessions = scene.status()["sessions"]
        if [(one["id"], one["state"], one["updates"]) for one in sessions] != \
                [(ORPHAN, "unclaimed", updates)]:
            raise Wrong(f"luod lists {sessions}")
        # luod gives clients some time before it warns.
        log = shlex.join(scene.log_command)
        scene.guest.until(f"{log} | grep -qF \"client '{ORPHAN}' (user 0) is unclaimed\"", 30)

    @staticmethod
    def unclaimed_listed(scene: Scene) -> None:
        Acts._orphan(scene, 1)

    @staticmethod
    def foreign_claim_refused(scene: Scene) -> None:
        """Neither another user nor, with systemd, another service gets the session."""
        claim = f"luod-client {ORPHAN} --claim-only"
        tries = [f"{claim} --uid 1000", *([claim] if scene.is_systemd else [])]
        for one in tries:
            said = scene.guest.sh(one)
            if said.strip() != "refused EACCES":
                raise Wrong(f"`{one}' said {said!r}")
        Acts._orphan(scene, 1)

    @staticmethod
    def killed_in_new_kernel(scene: Scene) -> None:
        """luod is killed while nothing goes on, and knows everything again."""
        before = scene.status()
        scene.guest.sh("kill -9 $(pidof luod | tr ' ' '\\n' | sort -n | tail -n 1)")
        scene.subscribed(set(CLIENTS))
        after = scene.status()
        if after["sessions"] != before["sessions"]:
            raise Wrong(f"it knew {before['sessions']}, and knows {after['sessions']}")

    @staticmethod
    def hangs(scene: Scene) -> None:
        """luod hangs in an update, and is ended by systemd's watchdog: aborted, everybody goes on."""
        sh = scene.guest.sh
        if (found := sh("systemctl show -P WatchdogUSec luod").strip()) != "1min":
            raise Wrong(f"the watchdog of the unit is {found}")
        sh("systemd-run -q -u script -p Type=notify luoctl subscribe script 1=/etc/hostname")
        clients = {*CLIENTS, "script"}
        dropin = "/run/systemd/system/luod.service.d/watchdog.conf"
        sh(f"mkdir -p $(dirname {dropin}); printf '[Service]\\nWatchdogSec={WATCHDOG}\\n' >{dropin}; "
           "systemctl daemon-reload; systemctl restart luod")
        scene.subscribed(clients)
        # As long as it does not hang, nothing happens to it.
        pid = sh("systemctl show -P MainPID luod").strip()
        sh(f"sleep {WATCHDOG * 3 // 2}; test $(systemctl show -P MainPID luod) = {pid}")

        scene.start("stuck", "--class vm --fault never")
        scene.wait("stuck", "subscribed")
        before = scene.count("lost")
        sh("systemd-run -q -G -u update luod-say update /additions/kernel "
           f"{shlex.quote(scene.guest.command_line)}")
        scene.wait("stuck", "start")
        sh(f"kill -STOP {pid}")
        for client in CLIENTS:
            scene.wait(client, "lost", before[client] + 1)
        scene.stop("stuck")
        scene.subscribed(clients)
        if "Watchdog timeout" not in scene.luod_log():
            raise Wrong("it was not the watchdog that ended luod")
        last = scene.status()["last"]
        if (last["outcome"], last["reason"]) != ("aborted", "luod was restarted in the middle of it"):
            raise Wrong(f"the status has {last}")
        everybody(scene, lambda one: not any(line.startswith("wrong") for line in scene.heard(one)),
                  "the update that was aborted left a mark")
        sh("journalctl -b -o cat -u script | grep -qx 'aborted: the agent was restarted'")
        # Clients that connect start it again, with what was in its store.
        sh(f"rm {dropin}; systemctl daemon-reload; systemctl stop script luod")
        scene.subscribed(set(CLIENTS))
        Acts._orphan(scene, 1)

    @staticmethod
    def claimed_again_after_death(scene: Scene) -> None:
        """A client that dies after the claim has lost nothing; luod dies at the same time."""
        if scene.is_systemd:
            scene.kill_at("before probe")
            scene.start(ORPHAN, "--claim-only")
            scene.wait(ORPHAN, "claimed")
        else:
            scene.kill_at("before probe")
            scene.guest.sh(f"luod-client {ORPHAN} --claim-only")
        scene.killed()
        scene.subscribed(set(CLIENTS))
        Acts._orphan(scene, 1)

    @staticmethod
    def second_kexec(scene: Scene) -> None:
        scene.kexec()
        Acts._arrive(scene, 2)

    @staticmethod
    def unclaimed_again(scene: Scene) -> None:
        Acts._orphan(scene, 2)

    @staticmethod
    def claimed_at_last(scene: Scene) -> None:
        """Its content is as it was before the first kexec. luod is killed as it is finished."""
        scene.kill_at("before release")
        scene.start(ORPHAN, "--class vm")
        scene.wait(ORPHAN, "restored 1")
        scene.killed()
        scene.subscribed({*CLIENTS, ORPHAN})

    @staticmethod
    def all_over(scene: Scene) -> None:
        """Nothing is left: not in luod, not in the kernel, not in a store."""
        scene.guest.until("grep -qx 'sessions 0' /sys/kernel/liveupdate/incoming", 30)
        status = scene.status()
        if status["sessions"] or status["last"]["outcome"] != "completed":
            raise Wrong(f"luod has {status}")
        if scene.is_systemd:
            scene.guest.until("test \"$(systemctl show -P NFileDescriptorStore luod)\" = 1", 30)
