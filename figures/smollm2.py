"""The study of SmolLM2 as one figure.

python figures/smollm2.py ROWS OUT

Reads the rows of analyses/smollm2.py and OUT/results.json of analyses/smollm2_results.py, writes OUT/smollm2.pdf
and OUT/smollm2.png, and prints the contrasts as a Markdown table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas

METHODS = {  # colour (Okabe and Ito 2008) and words
    "adamw": ("#0072b2", "AdamW"),
    "sam": ("#d55e00", "SAM"),
    "sam-wide": ("#e69f00", "SAM, 3x radius"),
    "rehearsal": ("#009e73", "AdamW + rehearsal"),
    "wise-ft": ("#56b4e9", "AdamW + WiSE-FT"),
    "lora-adamw": ("#000000", "LoRA, AdamW"),
    "lora-sam": ("#cc79a7", "LoRA, SAM"),
}
MARKS = ("o", "^")  # of the tasks, in the order of their names
FILL = {"o": "full", "^": "none"}
FLATNESS = "surface_curvature_old"


def main(rows: str, folder: str) -> None:
    """Draw the figure and print the table."""
    results_file = Path(folder) / "results.json"
    for path in (Path(rows), results_file):
        if not path.exists():
            sys.exit(f"error: there is no {path}; make it with python analyses/smollm2.py --output {folder}")
    results = json.loads(results_file.read_text("utf-8"))
    read = [json.loads(line) for line in Path(rows).read_text("utf-8").splitlines()]
    base = next(row for row in read if row["kind"] == "base")
    drawn = draw(pandas.DataFrame([row for row in read if row["kind"] == "run"]), base, results)
    for suffix in ("pdf", "png"):
        drawn.savefig(Path(folder) / f"smollm2.{suffix}", bbox_inches="tight", dpi=200)
    print(markdown(results))


def draw(runs: pandas.DataFrame, base: dict, results: dict) -> Any:
    """What each checkpoint forgot and learned; differences between methods in both; flatness beside forgetting."""
    figure, places = plt.subplot_mosaic(
        [["kept"] * 3 + ["flat"] * 3, ["differences"] * 4 + ["learning"] * 2], figsize=(9.5, 8), layout="constrained"
    )
    kept, flat, differences, learning = (places[name] for name in ("kept", "flat", "differences", "learning"))
    tasks = sorted(runs["task"].unique())
    points(kept, runs, "learned", "learned: fall of the new task's loss (nats per token)")
    points(flat, runs, FLATNESS, "surface curvature on old text (our reconstruction)")
    flat.ticklabel_format(axis="x", useOffset=False)
    flat.axvline(base[FLATNESS], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    flat.annotate(
        "base", (base[FLATNESS], 1.0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom", ha="center"
    )
    for method, (colour, words) in METHODS.items():
        if (runs["method"] == method).any():
            kept.plot([], [], "s", color=colour, label=words)
    for task, mark in zip(tasks, MARKS, strict=False):
        kept.plot([], [], mark, color="0.5", fillstyle=FILL[mark], label=task)
    kept.legend(fontsize=7)
    contrasts(differences, results["forgetting"], tasks)
    contrasts(learning, results["learned"], tasks)
    differences.set_yticks(
        range(len(results["forgetting"])),
        [f"{METHODS[each['first']][1]}\n- {METHODS[each['second']][1]}" for each in reversed(results["forgetting"])],
        fontsize=8,
    )
    differences.set_xlabel(
        "difference in forgetting, mean over tasks; 95% intervals over\n"
        "seeds, the tasks' variances pooled, and apart (thin)\n"
        f"full circle: corrected p < {results['level']:g} by both; small: single pairs",
        fontsize=8,
    )
    learning.set_yticks([])
    learning.axvline(results["as_much"], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    learning.set_xlabel(f"difference in learned\n(dots: {results['as_much']:g})", fontsize=8)
    return figure


def points(axes: Any, runs: pandas.DataFrame, column: str, label: str) -> None:
    """One mark for each checkpoint; its shape says the task, and its colour the method."""
    for task, mark in zip(sorted(runs["task"].unique()), MARKS, strict=False):
        for method, (colour, _) in METHODS.items():
            at = runs[(runs["task"] == task) & (runs["method"] == method)]
            axes.plot(at[column], at["forgetting"], mark, color=colour, fillstyle=FILL[mark], alpha=0.8, markersize=6)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("forgetting (nats per answer, six old tasks)", fontsize=9)


def contrasts(axes: Any, rows: list[dict], tasks: list[str]) -> None:
    """Every contrast on a line of its own, with its pairs; without an interval where there are too few of them."""
    for place, each in enumerate(reversed(rows)):
        colour = METHODS[each["first"]][0]
        for task, mark in zip(tasks, MARKS, strict=False):
            pairs = each["by_task"].get(task, [])
            axes.plot(pairs, np.full(len(pairs), place + 0.2), mark, color="0.6", fillstyle=FILL[mark], markersize=4)
        if each["low"] is None:
            words = f"no interval ({each['pairs']} pairs)"
            axes.annotate(words, (0.5, place - 0.15), xycoords=("axes fraction", "data"), fontsize=7, ha="center")
            continue
        shown = each.get("evidence", False)
        if each["apart_low"] is not None:
            axes.plot([each["apart_low"], each["apart_high"]], [place, place], color=colour, linewidth=0.8)
        axes.plot([each["low"], each["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(each["difference"], place, "o", color=colour, fillstyle="full" if shown else "none", markersize=7)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)


def markdown(results: dict) -> str:
    """The contrasts as a table, those without an interval as well."""
    lines = ["| contrast | pairs | forgetting | corrected p | variances apart | learned |", "|---|---|---|---|---|---|"]
    for each, learned in zip(results["forgetting"], results["learned"], strict=True):
        words = f"{METHODS[each['first']][1]} - {METHODS[each['second']][1]}"
        p, apart = ("" if each[of] is None else f"{each[f'{of}_holm']:.3g}" for of in ("p", "apart_p"))
        lines.append(f"| {words} | {each['pairs']} | {cell(each)} | {p} | {apart} | {cell(learned)} |")
    return "\n".join(lines)


def cell(of: dict) -> str:
    """A difference with its interval, as far as there are any."""
    if of["difference"] is None:
        return "not in every task"
    interval = "no interval" if of["low"] is None else f"[{of['low']:+.3f}, {of['high']:+.3f}]"
    return f"{of['difference']:+.3f} {interval}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
