"""The study of flatness against forgetting as one figure.

python figures/flatness_vs_forgetting.py OUT [FIGURE]

Reads OUT/table.csv and OUT/results.json of analyses/flatness_vs_forgetting.py, writes FIGURE.pdf and FIGURE.png
(default: OUT/flatness_vs_forgetting), and prints the numbers of the README's table in Markdown.
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

OPTIMIZERS = {"adamw": ("AdamW", "#0072b2"), "sam": ("SAM", "#d55e00")}  # Okabe and Ito 2008
KINDS = {  # of a metric, by where it was measured: colour and words
    "old": ("#0072b2", "flatness on old text"),
    "new": ("#e69f00", "flatness on new text"),
    "rival": ("#009e73", "rivals"),
    "control": ("#7f7f7f", "negative controls"),
}
WAYS = ("equal steps", "equal gradient evaluations", "equal new-task loss")


def main(folder: str, figure: str | None = None) -> None:
    """Draw the figure of the results in `folder`, and print the table."""
    results_file, table_file = Path(folder) / "results.json", Path(folder) / "table.csv"
    for path in (results_file, table_file):
        if not path.exists():
            sys.exit(f"error: there is no {path}; make it with python analyses/flatness_vs_forgetting.py")
    results = json.loads(results_file.read_text("utf-8"))
    table = pandas.read_csv(table_file)
    drawn = draw(results, table[table["arm"] == "full"])
    for suffix in ("pdf", "png"):
        drawn.savefig(f"{figure or Path(folder) / 'flatness_vs_forgetting'}.{suffix}", bbox_inches="tight", dpi=200)
    print(markdown(results))


def words(metric: str) -> str:
    """The name of a metric for readers."""
    name = metric.removesuffix("_old").removesuffix("_new")
    known = {"kl_old": "KL to base, old text", "kl_new": "KL to base, new text", "weight_norm": "norm of the weights"}
    known |= {"predicted_forgetting": "second-order prediction", "displacement_curvature": "curvature along the step"}
    known |= {"distance": "distance from base", "random": "random number"}
    return known.get(metric, name.replace("_", " ").replace("sam", "SAM").replace("fisher rao", "Fisher-Rao"))


def draw(results: dict, full: pandas.DataFrame) -> Any:
    """The figure: all correlations, two metrics against forgetting, SAM against AdamW, and the rescaled checkpoints."""
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10, 7.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    forest(left.subplots(), results)
    upper, middle, lower = right.subfigures(3, 1, height_ratios=[1.25, 0.8, 1])
    near, far = upper.subplots(1, 2, sharey=True)
    scatter(near, full, "kl_new", results)
    flattest = max(
        (row for row in results["correlations"] if row["kind"] in ("old", "new") and row["estimate"]),
        key=lambda row: abs(row["estimate"]),
    )
    scatter(far, full, flattest["metric"], results)
    near.set_ylabel("forgetting (nats per token)")
    near.legend(frameon=False, fontsize=7)
    differences(middle.subplots(), results["H3"])
    shams(lower.subplots(), results["sham"])
    return figure


def forest(axes: Any, results: dict) -> None:
    """Correlation of everything with forgetting, strongest first."""
    rows = sorted(results["correlations"], key=lambda row: abs(row["estimate"] or 0))
    for height, row in enumerate(rows):
        colour, _ = KINDS[row["kind"]]
        if row["estimate"] is None:
            continue
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [height, height], color=colour, lw=1.4, solid_capstyle="butt")
        significant = row["q"] is not None and row["q"] < 0.05
        axes.plot(row["estimate"], height, "o", color=colour, mfc=colour if significant else "white", ms=4.5)
        if row.get("partial") is not None:
            axes.plot(row["partial"], height, "|", color="black", ms=6, mew=1.2)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_yticks(range(len(rows)), [words(row["metric"]) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(KINDS[row["kind"]][0])
    axes.set(xlim=(-1.02, 1.02), ylim=(-0.7, len(rows) - 0.3))
    axes.set_xlabel(
        f"Spearman correlation with forgetting, {results['checkpoints']} checkpoints; 95% interval over "
        f"{results['bases']} bases\nfilled: q < 0.05 within bases.  |: given new-task loss and distance"
    )
    for colour, name in KINDS.values():
        axes.plot([], [], "o", color=colour, label=name)
    axes.legend(frameon=False, loc="upper left", fontsize=7)
    axes.set_title("a  what goes with forgetting", loc="left", fontweight="bold")


def scatter(axes: Any, full: pandas.DataFrame, metric: str, results: dict) -> None:
    """One metric against forgetting, a point per checkpoint."""
    markers = dict(zip(sorted(full["lr"].unique()), "o^sD", strict=False))
    for (optimizer, lr), part in full.groupby(["optimizer", "lr"]):
        name, colour = OPTIMIZERS[optimizer]
        axes.scatter(
            part[metric], part["forgetting"], s=14, marker=markers[lr], facecolor="none", edgecolor=colour, lw=0.9,
            label=f"{name}, lr {lr:g}",
        )  # fmt: skip
    row = next(row for row in results["correlations"] if row["metric"] == metric)
    where = {"old": ", old text", "new": ", new text"}.get(row["kind"], "")
    if full[metric].min() > 0 and full[metric].max() > 20 * full[metric].min():
        axes.set_xscale("log")
    axes.set_xlabel(words(metric) + where)
    letter = "b" if metric == "kl_new" else "c"
    axes.set_title(f"{letter}  rho = {row['estimate']:+.2f}", loc="left", fontweight="bold")


def differences(axes: Any, h3: dict) -> None:
    """Forgetting of SAM minus that of AdamW, three ways."""
    for height, way in enumerate(reversed(WAYS)):
        estimate = h3[way]
        axes.plot([estimate["low"], estimate["high"]], [height, height], color=OPTIMIZERS["sam"][1], lw=2)
        axes.plot(estimate["value"], height, "o", color=OPTIMIZERS["sam"][1], ms=5)
        for marker, value in zip("o^sD", estimate["by_lr"].values(), strict=False):
            axes.plot(value, height + 0.22, marker, color="0.5", mfc="none", ms=4)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_yticks(range(len(WAYS)), [f"at {way}" for way in reversed(WAYS)])
    axes.set(
        ylim=(-0.5, len(WAYS) - 0.4), xlabel="forgetting of SAM minus AdamW (nats per token; grey: by learning rate)"
    )
    axes.set_title("d  SAM against AdamW, paired by base", loc="left", fontweight="bold")


def shams(axes: Any, sham: dict) -> None:
    """The correlation of each metric before and after a symmetry was applied to half of the checkpoints."""
    rows = [(name, row) for name, row in sham.items() if "after" in row][::-1]
    for height, (_, row) in enumerate(rows):
        colour = "#009e73" if row["invariant"] else "#cc79a7"
        axes.annotate(
            "", (row["after"], height), (row["before"], height), arrowprops={"arrowstyle": "->", "color": colour}
        )
        axes.plot(row["before"], height, "o", color=colour, ms=4)
        moved = "x1" if row["largest_change"] < 1e-3 else f"x{row['median_ratio']:.2g}"
        axes.text(1.02, height, moved, transform=axes.get_yaxis_transform(), va="center", fontsize=7)
    axes.axvline(0, color="black", lw=0.6)
    axes.set_yticks(range(len(rows)), [words(f"{name}_old") for name, _ in rows])
    axes.set(xlim=(-1, 1), ylim=(-0.6, len(rows) - 0.4))
    axes.set_xlabel("correlation with forgetting, before (dot) and after (arrow);\nright: median change of the metric")
    axes.set_title("e  half of the weights rescaled, no function changed", loc="left", fontweight="bold")


def markdown(results: dict) -> str:
    """Each metric's correlation with forgetting, strongest first."""
    lines = ["| metric | on | rho [95% interval] | q | given new-task loss, distance |", "|---|---|---|---|---|"]
    for row in sorted(results["correlations"], key=lambda row: -abs(row["estimate"] or 0)):
        if row["estimate"] is None:
            lines.append(f"| {words(row['metric'])} | | - | - | {row['note']} |")
            continue
        interval = f"{row['estimate']:+.2f}"
        if row["low"] is not None:
            interval += f" [{row['low']:+.2f}, {row['high']:+.2f}]"
        q = "-" if row["q"] is None else f"{row['q']:.3f}"
        partial = "-" if row["partial"] is None else f"{row['partial']:+.2f}"
        lines.append(f"| {words(row['metric'])} | {row['kind']} | {interval} | {q} | {partial} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
