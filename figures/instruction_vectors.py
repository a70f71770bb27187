"""The experiment on instruction vectors as one figure.

python figures/instruction_vectors.py ROWS OUT

Reads the rows of analyses/instruction_vectors.py, which may be incomplete, and writes OUT/instruction_vectors.pdf and
OUT/instruction_vectors.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas

METHODS = {  # colour (Okabe and Ito 2008) and words
    "adamw": ("#0072b2", "AdamW"),
    "guided": ("#009e73", "AdamW, guided"),
    "lora": ("#000000", "LoRA"),
    "sam": ("#d55e00", "SAM"),
}
CONTROL = "the base itself"
VECTORS = {"base": "base's vector", "random": "random vector", "other_task": "other list's"}
LISTS = ("#0072b2", "#d55e00")  # of the layers' lines


def main(rows: str, folder: str) -> None:
    """Draw the figure."""
    if not Path(rows).exists():
        sys.exit(f"error: there is no {rows}; make it with python analyses/instruction_vectors.py --output {folder}")
    read = [json.loads(line) for line in Path(rows).read_text("utf-8").splitlines()]
    drawn = draw(read)
    for suffix in ("pdf", "png"):
        drawn.savefig(Path(folder) / f"instruction_vectors.{suffix}", bbox_inches="tight", dpi=200)


def draw(read: list[dict]) -> Any:
    """What was lost and brought back on each list; cosine beside what was lost; the layer that a vector is added to."""
    tuned = pandas.DataFrame([row for row in read if row["kind"] == "tuned"])
    tuned = tuned[tuned["rate"] == ("high" if "high" in set(tuned["rate"]) else "first")]
    methods = [method for method in METHODS if method in set(tuned["method"])]
    panels = {METHODS[method][1]: tuned[tuned["method"] == method] for method in methods}
    if control := [row for row in read if row["kind"] == "control"]:
        panels[CONTROL] = pandas.DataFrame(control)
    figure = plt.figure(figsize=(13, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1)
    upper = above.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, own) in zip(upper, panels.items(), strict=True):
        recovered(axes, own.sort_values("list"), title)
    above.legend(*upper[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    left, right = below.subplots(1, 2)
    similar(left, tuned, methods)
    by_layer(right, [row for row in read if row["kind"] == "layers"])
    return figure


def recovered(axes: Any, own: pandas.DataFrame, title: str) -> None:
    """Few-shot accuracy lost, and gained with each vector, with intervals over prompts."""
    marks = {"few_shot_lost": ("s", "0.4", "lost")}
    colours = ("#009e73", "#e69f00", "#cc79a7")
    for (vector, words), colour in zip(VECTORS.items(), colours, strict=True):
        marks[f"few_shot_gained_with_{vector}"] = ("o", colour, f"gained with {words}")
    for offset, (name, (mark, colour, words)) in enumerate(marks.items()):
        heights = [place + 0.3 - 0.2 * offset for place in range(len(own))]
        for height, (_, row) in zip(heights, own.iterrows(), strict=True):
            axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [height, height], color=colour, linewidth=1.2)
        axes.plot(own[name], heights, mark, color=colour, markersize=4, label=words)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(own)), own["list"], fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("few-shot accuracy (share)", fontsize=8)


def similar(axes: Any, tuned: pandas.DataFrame, methods: list[str]) -> None:
    """Cosine of the vectors of base and tuned model beside what was lost."""
    for method in methods:
        colour, words = METHODS[method]
        own = tuned[tuned["method"] == method]
        axes.plot(own["cosine"], own["few_shot_lost"], "o", color=colour, label=words, alpha=0.8)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("cosine of the base's and the tuned model's vector (one point a list)")
    axes.set_ylabel("few-shot accuracy lost (share)")
    axes.legend(fontsize=7)


def by_layer(axes: Any, rows: list[dict]) -> None:
    """Zero-shot accuracy of the base with its vector at each layer."""
    for row, colour in zip(rows, LISTS, strict=False):
        axes.plot(
            row["steered"], "o-", color=colour, markersize=3, label=f"{row['list']}, {row['questions']} questions"
        )
        axes.axhline(row["zero_shot"], color=colour, linewidth=0.8, linestyle=":")
    axes.set_xlabel("layer that the vector is added to (dotted: without it)")
    axes.set_ylabel("zero-shot accuracy of the base")
    axes.set_ylim(-0.03, 1.03)
    if rows:
        axes.legend(fontsize=7)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
