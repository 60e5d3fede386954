# SPDX-License-Identifier: GPL-2.0
"""The layers of the crates: the pictures in architecture.rst, and what modules import.

A module may import from modules in the rows below its own, and so may its
parts in the folder beside it. So there are no circles, and nothing depends on
what is built on top of it. What a module re-exports of its own children is not
an import; neither is what KUnit tests use.
"""

import re
from pathlib import Path

from common import REPO

PICTURE = REPO / "Documentation/core-api/liveupdate/architecture.rst"
ROOMS = ("ffi", "luo_core", "luo_session", "luo_file", "luo_flb", "records", "hugetlb_luo",
         "memfd_luo")
# Rooms whose root is that of a crate, and names modules only.
ROOTS = ("luo_core", "hugetlb_luo", "memfd_luo")
# Rooms that compile modules of another one as their own.
SHARE = {"hugetlb_luo": "memfd_luo"}
# Crates of their own, which know nothing of the orchestrator.
BELOW = ("abi", "uapi")


def modules() -> dict[str, Path]:
    """The modules of the orchestrator by name, as `luo_file/tokens'; not the root."""
    found = {}
    for room in ROOMS:
        root = REPO / f"{room}.rs"
        if room not in ROOTS and root.exists():
            found[room] = root
        for path in (REPO / room).glob("*.rs"):
            if path.stem != "mod":
                found[f"{room}/{path.stem}"] = path
    return found


def rows(text: str) -> dict[str, int]:
    """The row of each module in the picture; the topmost is 0."""
    blocks = [re.search(rf"^ {{3}}{first} .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
              for first in ("ffi/exports", "hugetlb_luo/handler", "memfd_luo/small")]
    found: dict[str, int] = {}
    # Of what several crates have, the row in the last picture counts: below all of them.
    for number, line in enumerate("".join(block[0] for block in blocks if block).splitlines()):
        # What is behind two blanks is said to people.
        names = line.strip().split("  ")[0] if line.startswith("   ") and line[3:4] != " " else ""
        found |= {name: number for name in names.split() if not name.startswith("-")}
    return found


def without_tests(source: str) -> str:
    """The source without comments and without its KUnit tests, which end a file."""
    source = re.sub(r"//[^\n]*", "", source)
    return re.split(r"#\[(?:kernel::prelude::)?kunit_tests\(", source)[0]


def paths(tree: str) -> list[str]:
    """The paths that a use tree names: `a::{b, c::d}' is a::b and a::c::d."""
    found, prefix, word = [], [], ""
    for char in tree:
        if char == "{":
            prefix.append(word)
            word = ""
        elif char in ",}":
            if word:
                found.append("".join([*prefix, word]))
            word = ""
            if char == "}" and prefix:
                prefix.pop()
        else:
            word += char
    if word:
        found.append("".join([*prefix, word]))
    return found


def imports(name: str, parent: str, source: str) -> set[str]:
    """The modules from which a file of a module imports, whose `super' is this parent."""
    known = modules()
    room = name.split("/")[0]
    found = set()
    source = without_tests(source)
    uses = re.findall(r"(?<!pub\(crate\) )\buse\s+([^;]+);", source)
    rest = re.sub(r"\buse\s+[^;]+;", "", source)
    inline = re.findall(r"\b((?:crate|super)(?:::\w+)+)", rest)
    for path in [p for use in uses for p in paths(re.sub(r"\s+", "", use))] + inline:
        steps = re.sub(r" as \w+$", "", path).split("::")
        if steps[0] == "super" and room in ROOTS and steps[1] in BELOW:
            steps = ["crate", *steps[1:]]
        elif steps[0] == "super":
            steps = ["crate", *parent.split("/"), *steps[1:]]
        elif steps[0] in {key.split("/")[1] for key in known if key.startswith(f"{name}/")}:
            steps = ["crate", name, *steps]
        if steps[0] != "crate":
            continue
        at = "/".join(steps[1:3])
        if at not in known and steps[1] in SHARE:
            at = "/".join([SHARE[steps[1]], *steps[2:3]])
        target = at if at in known else steps[1] if len(steps) > 1 else ""
        if target in known or target in BELOW:
            found.add(target)
        elif target:
            # Re-exports and items of a room without a root of its own.
            found.add(f"?{'::'.join(steps)}")
    return found - {name}


def trouble() -> list[str]:
    """What contradicts the picture."""
    table, known = rows(PICTURE.read_text()), modules()
    if not table:
        return [f"{PICTURE.name} has no picture of the layers"]
    wrong = [f"{name} is not in the picture" for name in known if name not in table]
    wrong += [f"the picture has {name}, which is no module" for name in table
              if name not in known and name not in BELOW]
    # The parent of a module is its room, that of its parts the module.
    files = [(name, name.split("/")[0], path) for name, path in known.items()]
    files += [(name, name, path) for name in known if "/" in name
              for path in (REPO / name).glob("*.rs")]
    for name, parent, path in files:
        for target in sorted(imports(name, parent, path.read_text())):
            if target.startswith("?"):
                wrong.append(f"{name} imports {target[1:]}, which is in no module")
            elif table.get(target, -1) <= table.get(name, 1 << 30):
                wrong.append(f"{name} imports from {target}, which is not below it")
    root = without_tests((REPO / "luo_core.rs").read_text())
    elsewhere = "|".join((*ROOMS, *BELOW))
    for name, _, path in files:
        if re.search(rf"\bcrate::(?!(?:{elsewhere})\b)\w", without_tests(path.read_text())):
            wrong.append(f"{name} imports from the root")
    return wrong if "mod luo_core;" in root else [*wrong, "luo_core.rs is not the root"]
