"""The study of flatness and forgetting within recipes as one figure.

python figures/within_recipe.py OUT [FIGURE]

Reads OUT/runs.csv and OUT/results.json of analyses/within_recipe.py, writes FIGURE.pdf and FIGURE.png (default:
OUT/within_recipe), and prints the correlations as a Markdown table.
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

METHODS = {  # (method, optimizer): name, colour (Okabe and Ito 2008), line
    ("plain", "adamw"): ("AdamW", "#0072b2", "-"),
    ("plain", "sam"): ("SAM, tuned radius", "#d55e00", "-"),
    ("plain", "sam-wide"): ("SAM, wide radius", "#e69f00", "-"),
    ("wise-ft", "adamw"): ("AdamW + WiSE-FT", "#0072b2", ":"),
    ("wise-ft", "sam"): ("SAM + WiSE-FT", "#d55e00", ":"),
    ("rehearsal", "adamw"): ("AdamW + rehearsal", "#0072b2", "--"),
    ("rehearsal", "sam"): ("SAM + rehearsal", "#d55e00", "--"),
}
KINDS = {  # of a metric, by where it was measured: colour and words
    "old": ("#0072b2", "flatness on old text"),
    "new": ("#e69f00", "flatness on new text"),
    "rival": ("#009e73", "rivals"),
    "control": ("#7f7f7f", "random number"),
}
WORDS = {
    "kl_old": "KL to base, old text", "kl_new": "KL to base, new text", "distance": "distance from base",
    "predicted_forgetting": "second-order prediction", "displacement_curvature": "curvature along the step",
    "random": "random number",
}  # fmt: skip
WITHIN = "within recipe"


def main(folder: str, figure: str | None = None) -> None:
    """Draw the figure of the results in `folder`, and print the table."""
    results_file, runs_file = Path(folder) / "results.json", Path(folder) / "runs.csv"
    for path in (results_file, runs_file):
        if not path.exists():
            sys.exit(f"error: there is no {path}; make it with python analyses/within_recipe.py --output {folder}")
    results = json.loads(results_file.read_text("utf-8"))
    drawn = draw(results, pandas.read_csv(runs_file))
    for suffix in ("pdf", "png"):
        drawn.savefig(f"{figure or Path(folder) / 'within_recipe'}.{suffix}", bbox_inches="tight", dpi=200)
    print(markdown(results))


def words(metric: str) -> str:
    """The name of a metric for readers, without the text it was measured on."""
    name = metric.removesuffix("_old").removesuffix("_new")
    return WORDS.get(metric, name.replace("_", " ").replace("sam", "SAM").replace("fisher rao", "Fisher-Rao"))


def kind_of(metric: str) -> str:
    return "control" if metric == "random" else "rival" if metric in WORDS else metric.rpartition("_")[2]


def draw(results: dict, runs: pandas.DataFrame) -> Any:
    """The figure: what is kept and learned, by pair; correlations within recipes; differences between methods."""
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10, 8.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.7])
    pairs = list(dict.fromkeys(runs["pair"]))
    panels = np.atleast_1d(upper.subplots(1, len(pairs)))
    for letter, axes, pair in zip("abc", panels, pairs, strict=False):
        kept_and_learned(axes, runs[runs["pair"] == pair])
        axes.set_title(f"{letter}  {pair.replace('-', ', then ')}", loc="left", fontweight="bold")
    panels[0].set_ylabel("forgetting (nats per token of old text)")
    panels[0].legend(frameon=False, fontsize=6.5, loc="upper left")
    left, right = lower.subfigures(1, 2, width_ratios=[1.25, 1])
    forest(left.subplots(), results)
    differences(right.subplots(), results)
    return figure


def kept_and_learned(axes: Any, runs: pandas.DataFrame) -> None:
    """Every run as a point, and for each method the mean over bases of the best that was kept, by what was learned."""
    first = runs[runs["tuning_seed"] == runs["tuning_seed"].min()]
    for (method, optimizer), (name, colour, line) in METHODS.items():
        part = first[(first["method"] == method) & (first["optimizer"] == optimizer)]
        if not len(part):
            continue
        if method == "plain":
            axes.scatter(part["learned"], part["forgetting"], s=4, color=colour, alpha=0.25, lw=0)
        mean = part.groupby(["lr", "steps"])[["learned", "forgetting"]].mean().sort_values("learned")
        best = mean[mean["forgetting"][::-1].cummin()[::-1] >= mean["forgetting"]]
        axes.plot(np.r_[0, best["learned"]], np.r_[0, best["forgetting"]], line, color=colour, lw=1.3, label=name)
    axes.axhline(0, color="black", lw=0.5)
    axes.set_xlabel("learned (nats per token of the new task)")
    axes.set_xlim(left=0)


def forest(axes: Any, results: dict) -> None:
    """Correlation of everything with forgetting within a recipe, strongest first; pooled beside it."""
    rows = [row for row in results["P1"]["estimands"] if row.get(WITHIN) is not None]
    rows.sort(key=lambda row: abs(row[WITHIN]))
    for height, row in enumerate(rows):
        colour, _ = KINDS[kind_of(row["metric"])]
        if row[f"{WITHIN}_low"] is not None:
            ends = row[f"{WITHIN}_low"], row[f"{WITHIN}_high"]
            axes.plot(ends, [height, height], color=colour, lw=1.4, solid_capstyle="butt")
        filled = colour if row[f"{WITHIN}_evidence"] else "white"
        axes.plot(row[WITHIN], height, "o", color=colour, mfc=filled, ms=4.5)
        if row["pooled"] is not None:
            axes.plot(row["pooled"], height, "|", color="black", ms=6, mew=1.2)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_yticks(range(len(rows)), [words(row["metric"]) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(KINDS[kind_of(row["metric"])][0])
    axes.set(xlim=(-1.02, 1.02), ylim=(-0.7, len(rows) - 0.3))
    axes.set_xlabel(
        "Spearman correlation with forgetting within a recipe, among runs tuned alike,\n"
        f"given what was learned; 95% interval over {results['recipes']} recipes.\n"
        "Filled: evidence at a family-wise 5%.  |: pooled over everything"
    )
    for colour, name in KINDS.values():
        axes.plot([], [], "o", color=colour, label=name)
    axes.legend(frameon=False, loc="upper left", fontsize=7)
    axes.set_title("d  what goes with forgetting", loc="left", fontweight="bold")


def differences(axes: Any, results: dict) -> None:
    """Differences of forgetting at matched learning, over recipes and by pair."""
    rows = [row for row in results["P3"] if row["value"] is not None][::-1]
    for height, row in enumerate(rows):
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [height, height], color="black", lw=1.4)
        axes.plot(row["value"], height, "o", color="black", mfc="white", ms=5)
        axes.plot(list(row["by_pair"].values()), [height - 0.2] * len(row["by_pair"]), "x", color="#7f7f7f", ms=4)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(
        "forgetting at matched learning, minus that of AdamW with the\nsame remedy (lower two: of AdamW alone), nats "
        "per token;\n95% interval over recipes.  x: pairs of tasks"
    )
    axes.set_title("e  at matched learning", loc="left", fontweight="bold")


def markdown(results: dict) -> str:
    """The correlations as a table, strongest within recipes first."""
    lines = [
        "| metric | text | within a recipe, given what was learned | family-wise p | tuned alike | pooled |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(results["P1"]["estimands"], key=lambda row: -abs(row.get(WITHIN) or 0)):
        kind = kind_of(row["metric"])
        cells = [words(row["metric"]), kind]
        for name in (WITHIN, "tuned alike", "pooled"):
            value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
            star = "*" if row.get(f"{name}_evidence") else ""
            ends = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
            cells.append("-" if value is None else f"{value:+.2f}{star}{ends}")
            if name == WITHIN:
                p = row.get(f"{name}_family_p")
                cells.append("-" if p is None else f"{p:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
