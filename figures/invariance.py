"""The invariance table as a figure: metrics by transformations that leave the function alone.

python figures/invariance.py OUT [FIGURE]

Reads OUT/invariance.csv of analyses/invariance.py, writes FIGURE.pdf and FIGURE.png (default: OUT/invariance), and
prints the table in Markdown.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

SAME = 1e-6  # rounding: twelve digits of the weights, seven of what transformers computes in float32
WITHIN = 2  # standard errors
DEEPEST = 5  # |log2 ratio| at which the colours end


def main(folder: str, figure: str | None = None) -> None:
    """Draw the figure of the table in `folder`, and print it in Markdown."""
    table = Path(folder) / "invariance.csv"
    if not table.exists():
        sys.exit(f"error: there is no {table}; make it with python analyses/invariance.py --output {folder}")
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["transformation"] != "none"]
    columns = list(dict.fromkeys(row["transformation"] for row in rows))
    cells = {(label(row), row["transformation"]): row for row in rows}
    metrics = list(dict.fromkeys(name for name, _ in cells))
    draw(cells, metrics, columns).savefig(f"{figure or Path(folder) / 'invariance'}.pdf", bbox_inches="tight")
    plt.savefig(f"{figure or Path(folder) / 'invariance'}.png", bbox_inches="tight", dpi=200)
    print(markdown(cells, metrics, columns))


# --- texts and colours of cells -----------------------------------------------------------------------------


def label(row: dict) -> str:
    """The metric with those of its options that change what is measured, without those of its accuracy."""
    kept = [
        name if value is True else value
        for name, value in json.loads(row["options"]).items()
        if value is True or (isinstance(value, str) and name != "method")
    ]
    name, _, detail = row["metric"].partition(": ")
    return (detail or name.replace("_", " ")) + (f" ({', '.join(kept)})" if kept else "")


def ratio_and_error(row: dict) -> tuple[float, float]:
    """The ratio, and its standard error where it has one: that of a quotient of independent estimates."""
    ratio = float(row["ratio"])
    if row["exact"] == "True":
        return ratio, 0.0
    parts = [(float(row[f"stderr_{when}"] or 0), float(row[when])) for when in ("before", "after")]
    return ratio, abs(ratio) * math.hypot(*(error / value for error, value in parts))


def text_of(row: dict | None) -> str:
    """The ratio in words, "1" for the same number, and "≈1" for no difference beyond the error of sampling."""
    if row is None:
        return ""
    ratio, error = ratio_and_error(row)
    if abs(ratio - 1) < SAME:
        return "1"
    if error and abs(ratio - 1) <= WITHIN * error:
        return "≈1"
    return f"{ratio:.3f}" if abs(ratio - 1) < 0.01 else f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.0f}"


def depth(row: dict | None) -> float:
    """|log2 ratio|, and zero where the text of the cell is one."""
    if row is None:
        return math.nan
    ratio = float(row["ratio"])
    if not ratio > 0:
        return math.nan
    return 0.0 if text_of(row) in ("1", "≈1") else abs(math.log2(ratio))


# --- the figure and the table -------------------------------------------------------------------------------


def draw(cells: dict, metrics: list[str], columns: list[str]) -> plt.Figure:
    """The table as a figure, with darker cells where a number moved further."""
    values = np.array([[depth(cells.get((metric, column))) for column in columns] for metric in metrics])
    figure, axes = plt.subplots(figsize=(0.62 * len(columns) + 2.4, 0.27 * len(metrics) + 1.6))
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=DEEPEST, aspect="auto")
    for y, metric in enumerate(metrics):
        for x, column in enumerate(columns):
            text = text_of(cells.get((metric, column)))
            dark = values[y, x] > 0.55 * DEEPEST
            same = text in ("1", "≈1")
            axes.text(
                x, y, text, ha="center", va="center", fontsize=7,
                color="white" if dark else "0.55" if same else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor", fontsize=7.5)
    axes.set_yticks(range(len(metrics)), metrics, fontsize=7.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(metrics) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, extend="max", pad=0.015, fraction=0.025)
    bar.set_label("moved by a factor of", fontsize=7.5)
    bar.set_ticks(range(DEEPEST + 1), labels=[f"{2**k}" for k in range(DEEPEST + 1)], fontsize=7)
    bar.outline.set_visible(False)
    axes.set_xlabel(
        "After / before. 1: to a millionth; ≈1: within two standard errors of sampling. "
        "The function is the same in every column.",
        fontsize=7.5, labelpad=6,
    )  # fmt: skip
    return figure


def markdown(cells: dict, metrics: list[str], columns: list[str]) -> str:
    """The table in Markdown."""
    lines = [["metric", *columns], ["---"] * (len(columns) + 1)]
    lines += [[metric, *(text_of(cells.get((metric, column))) for column in columns)] for metric in metrics]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main(*sys.argv[1:3])
