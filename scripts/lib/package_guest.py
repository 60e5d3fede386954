# SPDX-License-Identifier: GPL-2.0
"""The packages in a running Debian: installed, used as README says, upgraded, and purged.

The guest is Debian 13 as it is delivered, with systemd 257 as its first process and nothing of
ours beside the packages. What README shows under "From an agent" is taken from there, and typed
as it stands.
"""

import json
from pathlib import Path

import debian_guest
import guest
import kernel
from common import REPO
from debian_guest import Additions, DebianGuest, Lost
from report import Results

SUITE = "trixie"
# In this order: README's claim comes after the upgrade, which has to keep something.
TESTS = ("start", "readme-update", "restart", "readme-claim", "stop")
PACKAGES = "luod luoctl libliveupdate-dev libliveupdate1"
# Where the commands are typed: beside the packages, and the kernel.
PLACE = "/additions/here"


def readme() -> list[list[str]]:
    """The commands under "From an agent", those before the update and those after it."""
    text = (REPO / "README.md").read_text()
    section = text.split("\n## From an agent\n")[1].split("\n## ")[0]
    blocks: list[list[str]] = [[]]
    for line in section.splitlines():
        if line.startswith("    "):
            blocks[-1].append(line.split("  # ")[0].strip())
        elif line.strip() and blocks[-1]:
            blocks.append([])
    return blocks[:2]


class Wrong(Exception):
    """Something is not as it should be."""


class Story:
    """What happens, in order."""

    def __init__(self, built: kernel.Kernel, agent: Path, debs: Path, newer: Path, folder: Path):
        folder.mkdir()
        with guest.Initramfs(folder / "initrd.img") as archive:
            archive.folder("run")
        additions = Additions(agent)
        for deb in debs.glob("*.deb"):
            additions.file(f"here/{deb.name}", deb)
        for deb in newer.glob("*.deb"):
            additions.file(f"newer/{deb.name}", deb)
        additions.file("here/bzImage", built.image)
        additions.file("here/initrd.img", folder / "initrd.img")
        additions.link("root/etc/systemd/system/default.target",
                       "/usr/lib/systemd/system/multi-user.target")
        self.guest = DebianGuest(built.image, debian_guest.images(SUITE)[0],
                                 additions.write(folder / "additions.ext4"), folder,
                                 command_line="quiet")

    def type(self, line: str) -> str:
        return self.guest.sh(f"cd {PLACE} && {line}", 120)

    def says(self, line: str, *words: str) -> str:
        """Types a line, and looks for words in what it prints."""
        out = self.type(line)
        for word in words:
            if word not in out:
                raise Wrong(f"`{line}' does not say `{word}', but: {out}")
        return out

    def listed(self, kind: str) -> dict[str, dict]:
        """What luod has, by id."""
        agent = json.loads(self.type("luoctl --json status"))["agent"]
        return {one["id"]: one for one in agent[kind]}

    # ---- the tests ----

    def start(self) -> None:
        """The first line of README installs; luod runs, and will after a boot."""
        self.guest.up(240)
        self.before, self.after = readme()
        if not self.before[0].startswith("dpkg -i luod"):
            raise Wrong(f"README begins with `{self.before[0]}'")
        self.type(self.before[0])
        self.type("systemctl is-active luod.socket luod.service")
        self.type("systemctl is-enabled luod.socket luod.service")
        self.type("luod --check-policy")
        # By systemd's own measure; what it has no need of may not come back.
        self.type("systemd-analyze security --threshold=20 --no-pager luod.service")
        self.says("luoctl status", "live update  normal", "agent        luod")
        if (failed := self.type("systemctl --failed --plain --no-legend")).strip():
            raise Wrong(f"these failed: {failed}")

    def readme_update(self) -> None:
        """The others lead to the next kernel."""
        for line in self.before[1:-1]:
            self.type(line)
        self.type("systemd-run --unit=other -p Type=notify luoctl subscribe other 1=/etc/os-release")
        if set(self.listed("clients")) != {"app", "other"}:
            raise Wrong(f"the clients are {self.listed('clients')}")
        try:
            said = self.type(self.before[-1])
            if "committed" not in said:
                raise Wrong(f"`{self.before[-1]}' says: {said}")
        except Lost:
            pass    # its answer did not make it out of the old kernel
        self.guest.up(300)
        self.guest.until("luoctl status | grep -q 'agent        luod'", 120)
        self.says("luoctl status", "live update  updated", "last update  completed")

    def restart(self) -> None:
        """An upgrade restarts luod, which loses nothing: not what is in its store either."""
        self.type("luoctl retrieve luod.app 1=/tmp/kept --keep")
        before = self.type("systemctl show -P MainPID luod")
        if self.listed("sessions")["app"]["state"] != "unclaimed":
            raise Wrong("the session is not back with luod")
        self.type("dpkg -i ../newer/*.deb")
        if self.type("systemctl show -P MainPID luod") == before:
            raise Wrong("luod was not restarted")
        self.guest.until("luoctl status | grep -q 'agent        luod'")
        if self.listed("sessions")["app"]["state"] != "unclaimed":
            raise Wrong("the session is lost")

    def readme_claim(self) -> None:
        """What README takes out is what it put in. What nobody wants is discarded."""
        self.says("luoctl list", "luod.other")
        self.type("luoctl discard luod.other --yes")
        for line in self.after:
            self.type(line)
        self.type("cmp /etc/os-release /tmp/os-release")
        if self.listed("sessions"):
            raise Wrong("the session is not finished")
        self.says("luoctl status", "live update  normal")

    def stop(self) -> None:
        """Purged, nothing of it runs, or is there."""
        self.type(f"dpkg --purge {PACKAGES}")
        self.type("! pidof luod")
        left = self.type("find /etc /run /usr /var/lib/systemd -name '*luod*' -o -name '*luoctl*' "
                         "-o -name 'libliveupdate*' | grep -v /dpkg/ || true")
        if left.strip():
            raise Wrong(f"these are left: {left}")
        if (failed := self.type("systemctl --failed --plain --no-legend")).strip():
            raise Wrong(f"these failed: {failed}")


def run(results: Results, built: kernel.Kernel, agent: Path, debs: Path, newer: Path,
        folder: Path) -> None:
    """Runs all tests, until one fails."""
    story = Story(built, agent, debs, newer, folder)
    with story.guest:
        why: list[str] = []
        for test in TESTS:
            if why:
                results.add(f"packages/{test}", "did not run: one before it failed")
                continue
            try:
                getattr(story, test.replace("-", "_"))()
            except (Wrong, Lost) as what:
                why = [str(what), *story.guest.story()]
            results.add(f"packages/{test}", why or None)
        results.verdict("packages/console", story.guest.outcome().alarms() or None)
