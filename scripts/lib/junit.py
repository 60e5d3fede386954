# SPDX-License-Identifier: GPL-2.0
"""Results in the form that forges read: JUnit's XML."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

# What XML cannot hold, even escaped: a kernel's console may have it.
UNFIT = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Result:
    """What became of a test."""

    name: str
    how: str                    # `ok`, `FAIL` or `skip`
    why: str = ""
    seconds: float | None = None


def write(path: Path, results: Iterable[Result]) -> None:
    """Writes a report; the groups of tests, before the last slash, are its classes."""
    results = list(results)
    suite = ElementTree.Element("testsuite", name="luo", tests=str(len(results)))
    for what, how in (("failures", "FAIL"), ("skipped", "skip")):
        suite.set(what, str(sum(result.how == how for result in results)))
    for result in results:
        group, _, name = result.name.rpartition("/")
        case = ElementTree.SubElement(suite, "testcase", classname=group.replace("/", "."), name=name)
        if result.seconds is not None:
            case.set("time", f"{result.seconds:.3f}")
        if result.how == "ok":
            continue
        why = UNFIT.sub("\N{REPLACEMENT CHARACTER}", result.why)
        tag = "failure" if result.how == "FAIL" else "skipped"
        told = ElementTree.SubElement(case, tag, message=why.partition("\n")[0][:200])
        told.text = why
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(suite)
    ElementTree.ElementTree(suite).write(path, encoding="unicode", xml_declaration=True)
