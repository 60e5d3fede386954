# SPDX-License-Identifier: GPL-2.0
"""Makes the documentation with Sphinx: by itself, and as the kernel tree has it."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import overlay
from common import CACHE, JOBS, REPO, Failed
from kernel import RELEASE

def html() -> Path:
    """The pages by themselves, as HTML. Needs the lock."""
    work, out = CACHE / "build/docs", CACHE / "docs"
    source = work / "source"
    shutil.rmtree(source, ignore_errors=True)
    # Laid out as in a kernel tree, as they include other files of it.
    laid_out = {path: file for path, file in overlay.files().items()
                if path.is_relative_to(overlay.DOCUMENTS) or path.is_relative_to(overlay.SAMPLES)}
    for name in ("conf.py", "index.rst"):
        laid_out[overlay.DOCUMENTS / name] = REPO / overlay.DOCUMENTS / name
    for path, file in laid_out.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).symlink_to(file)
    sphinx(source / overlay.DOCUMENTS, out, "-E", "-W", "--keep-going", "-d", str(work / "doctrees"))
    return out


def sphinx(source: Path, out: Path, *options: str, **environment: str) -> str:
    """Makes HTML; returns what Sphinx warns of."""
    done = subprocess.run(["sphinx-build", "-q", "-j", JOBS, "-b", "html", *options, source, out],
                          env={**os.environ, **environment}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    # Named as they are in the repository.
    words = done.stdout.replace(f"{source.parent}/", "")
    if done.returncode:
        raise Failed(f"the documentation cannot be made, or not without a warning:\n{words}")
    return words


def trouble_in_tree(tree: Path) -> list[str]:
    """What the kernel's Sphinx configuration says about our pages in a tree with the overlay.

    Only these are read and the indexes and stock pages that lead to them: all of the kernel's
    pages take hours, and their warnings are not ours.
    """
    def pages_of(names: Iterable[str]) -> set[str]:
        return {name.removeprefix("Documentation/") for name in names
                if name.startswith("Documentation/") and name.endswith(".rst")}

    pages = pages_of(path.as_posix() for path in overlay.files())
    edited = pages_of(overlay.parse(overlay.EDITS.read_text()))
    if not pages or not edited:
        raise Failed("the overlay has no documentation")
    out = CACHE / "build/docs-tree"
    words = sphinx(tree / overlay.DOCUMENTS, out / "html", "-E", "-d", str(out / "doctrees"),
                   "-D", "include_patterns=" + ",".join(sorted({"index.rst"} | pages | edited)),
                   "-D", f"version={RELEASE}", "-D", f"release={RELEASE}", srctree=str(tree))
    about = tuple(f"Documentation/{page}:" for page in pages)
    missing = [page for page in sorted(pages)
               if not (out / "html" / page).with_suffix(".html").exists()]
    return [*(line for line in words.splitlines() if line.startswith(about)),
            *(f"Documentation/{page} was not made" for page in missing)]
