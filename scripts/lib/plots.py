#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Draws the figures that `make bench' leaves, as SVG: plots.py FOLDER.

It needs matplotlib, which the toolchain does not have.
"""

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "luo"         # the same figures give the same file
import matplotlib.pyplot as plt  # noqa: E402

KERNELS = {"c": ("C", "tab:gray"), "rust": ("Rust", "tab:orange")}


def save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    # A patch must not have blanks at the ends of lines.
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE))
    print(path)


def growth(rows: list[dict], folder: Path) -> None:
    """What one operation takes, over how many there are already."""
    series: dict[str, list[dict]] = {}
    for row in rows:
        if match := re.fullmatch(r"(.*), ([\d ]+) there", row["case"]):
            series.setdefault(match[1], []).append(row | {"n": int(match[2].replace(" ", ""))})
    if not series:
        return
    figure, axes = plt.subplots(1, len(series), figsize=(4 * len(series), 3.2), squeeze=False)
    for axis, (name, points) in zip(axes[0], series.items(), strict=True):
        for kernel, (label, color) in KERNELS.items():
            known = [point for point in points if point[kernel] is not None]
            axis.plot([max(point["n"], 1) for point in known],
                      [point[kernel] for point in known], "o-", label=label, color=color)
        axis.set(title=name, xscale="log", yscale="log", xlabel="there already",
                 ylabel="instructions")
        axis.legend()
    save(figure, folder / "growth.svg")


def blackout(rows: list[dict], folder: Path) -> None:
    """What a load adds to an empty kexec, by phase."""
    rows = [row for row in rows if row.get("phases")]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(9, 0.7 * len(rows) + 1.5))
    phases = list(rows[0]["phases"])
    colors = plt.get_cmap("tab10").colors
    for place, row in enumerate(rows):
        for offset, kernel in ((-0.2, "c"), (0.2, "rust")):
            left = 0.0
            for phase, color in zip(phases, colors, strict=False):
                width = max(row["phases"][phase].get(kernel) or 0, 0) / 1e6
                axis.barh(place + offset, width, 0.36, left=left, color=color,
                          label=phase if place == 0 and kernel == "c" else None)
                left += width
            axis.text(left, place + offset, f" {KERNELS[kernel][0]}", va="center", fontsize=7)
    axis.set(xscale="symlog", xlabel="million instructions more than with nothing to carry")
    axis.set_yticks(range(len(rows)), [row["case"].removeprefix("blackout of ") for row in rows])
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    save(figure, folder / "blackout.svg")


def main() -> None:
    folder = Path(sys.argv[1])
    rows = json.loads((folder / "figures.json").read_text())
    growth(rows, folder)
    blackout(rows, folder)


if __name__ == "__main__":
    main()
