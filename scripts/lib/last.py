# SPDX-License-Identifier: GPL-2.0
"""The last release: its kernel, built from its tag by the scripts that it has."""

import os
import shutil
import subprocess
from pathlib import Path

from common import CACHE, REPO, Failed, say
from kernel import Kernel, Variant

NONE = "there is no release before this one (LAST=commit takes a commit for it)"


def commit() -> str | None:
    """The commit that LAST names, or that of the newest tag before this one; None if there is none."""
    wanted = os.environ.get("LAST")
    found = wanted or git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^")
    if not found:
        return None
    name = git("rev-parse", "--verify", "--quiet", f"{found}^{{commit}}")
    if not name:
        raise Failed(f"there is no commit {found}")
    return name


def build(name: str) -> Kernel:
    """Builds the kernel of a commit, in a cache of its own that shares the sources: another run does not
    build over it. Needs the lock."""
    tree = CACHE / "last" / name
    if not tree.exists():
        shutil.rmtree(tree.parent, ignore_errors=True)
        new = tree.with_name(f"{name}.new")
        new.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", REPO, "archive", name], stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", new], input=archive.stdout, check=True)
        (new / "cache").mkdir()
        (new / "cache/ksrc").symlink_to(CACHE / "ksrc")
        new.rename(tree)
    say(f"building the kernel of the last release, {name[:12]}")
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("LUO_IMPL", "LUO_MEMFD", "FRAGMENT", "LUO_LOCKED")}
    done = subprocess.run([tree / "scripts/image"], env=environment | {"LUO_CACHE": str(tree / "cache")},
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"the scripts of {name[:12]} do not build its kernel")
    image = Path(done.stdout.splitlines()[-1])
    return Kernel(Variant("rust"), tree, image.parents[3], image)


def git(*arguments: str) -> str | None:
    """What git says, if it can."""
    done = subprocess.run(["git", "-C", REPO, *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
