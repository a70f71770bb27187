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


def main(rows: str, folder: str) -> None:
    """Draw the figure and print the table."""
    results_file = Path(folder) / "results.json"
    for path in (Path(rows), results_file):
        if not path.exists():
            sys.exit(f"error: there is no {path}; make it with python analyses/smollm2.py --output {folder}")
    results = json.loads(results_file.read_text("utf-8"))
    read = [json.loads(line) for line in Path(rows).read_text("utf-8").splitlines()]
    drawn = draw(pandas.DataFrame([row for row in read if row["kind"] == "run"]), results)
    for suffix in ("pdf", "png"):
        drawn.savefig(Path(folder) / f"smollm2.{suffix}", bbox_inches="tight", dpi=200)
    print(markdown(results))


def draw(runs: pandas.DataFrame, results: dict) -> Any:
    """What each checkpoint forgot and learned; differences between methods; surface curvature beside forgetting."""
    figure, (kept, differences, flat) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    tasks = sorted(runs["task"].unique())
    for axes, column, label in (
        (kept, "learned", "learned: fall of the new task's loss (nats per token)"),
        (flat, "surface_curvature_old", "surface curvature on old text (our reconstruction)"),
    ):
        for task, mark in zip(tasks, MARKS, strict=False):
            for method, (colour, _) in METHODS.items():
                at = runs[(runs["task"] == task) & (runs["method"] == method)]
                axes.plot(at[column], at["forgetting"], mark, color=colour, alpha=0.8, markersize=6)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xlabel(label)
        axes.set_ylabel("forgetting (nats per answer, six old tasks)")
    flat.ticklabel_format(axis="x", useOffset=False)
    for colour, words in METHODS.values():
        kept.plot([], [], "s", color=colour, label=words)
    for task, mark in zip(tasks, MARKS, strict=False):
        kept.plot([], [], mark, color="0.5", label=task)
    kept.legend(fontsize=7)
    shown = [each for each in results["forgetting"] if each["difference"] is not None]
    for place, each in enumerate(reversed(shown)):
        colour = METHODS[each["first"]][0]
        differences.plot([each["low"], each["high"]], [place, place], color=colour, linewidth=2)
        differences.plot(each["difference"], place, "|", color=colour, markersize=14, markeredgewidth=2)
        for task, mark in zip(tasks, MARKS, strict=False):
            points = each["by_task"].get(task, [])
            differences.plot(points, np.full(len(points), place + 0.15), mark, color="0.6", markersize=4)
    names = [f"{METHODS[each['first']][1]}\n- {METHODS[each['second']][1]}" for each in reversed(shown)]
    differences.set_yticks(range(len(shown)), names, fontsize=8)
    differences.set_ylim(-0.6, len(shown) - 0.2)
    differences.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    differences.set_xlabel("difference in forgetting, with 95% interval\n(small marks: pairs of one task and seed)")
    return figure


def markdown(results: dict) -> str:
    lines = ["| contrast | forgetting | corrected p | learned |", "|---|---|---|---|"]
    for each, learned in zip(results["forgetting"], results["learned"], strict=True):
        if each["difference"] is not None:
            cells = [f"{of['difference']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]" for of in (each, learned)]
            words = f"{METHODS[each['first']][1]} - {METHODS[each['second']][1]}"
            lines.append(f"| {words} | {cells[0]} | {each['p_holm']:.3g} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
