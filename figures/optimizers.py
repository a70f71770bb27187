"""What each method keeps and what it learns, against the start, as one figure.

python figures/optimizers.py OUT [FIGURE]

Reads OUT/optimizers.csv of analyses/optimizers.py, writes FIGURE.pdf and FIGURE.png (default: OUT/optimizers).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas

COLOURS = {"AdamW": "#0072b2", "SAM": "#d55e00", "start": "black"}  # Okabe and Ito 2008
MARKERS = {"": "o", "half": "D", "WiSE-FT": "s", "rehearsal": "^", "start": "*"}


def main(folder: str, figure: str | None = None) -> None:
    """Draw the figure of the table in `folder`."""
    path = Path(folder) / "optimizers.csv"
    if not path.exists():
        sys.exit(f"error: there is no {path}; make it with python analyses/optimizers.py --output {folder}")
    drawn = draw(pandas.read_csv(path))
    for suffix in ("pdf", "png"):
        drawn.savefig(f"{figure or Path(folder) / 'optimizers'}.{suffix}", bbox_inches="tight", dpi=200)


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method."""
    colour = next(colour for name, colour in COLOURS.items() if method.startswith(name))
    marker = next(marker for name, marker in reversed(MARKERS.items()) if name in method)
    return colour, marker


def draw(table: pandas.DataFrame) -> plt.Figure:
    """The figure: losses on old and new text, and forgetting against the start."""
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, (plane, bars) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=[1.1, 1])
    methods = list(dict.fromkeys(table["method"]))
    seeds = table["seed"].nunique()
    for method in methods:
        part = table[table["method"] == method]
        colour, marker = look(method)
        plane.scatter(part["new_loss"], part["old_loss"], s=9, marker=marker, color=colour, alpha=0.35, lw=0)
        plane.plot(
            part["new_loss"].mean(), part["old_loss"].mean(), marker, color=colour, ms=8,
            mfc=colour if method == "start" else "white", mew=1.4, ls="none", label=method,
        )  # fmt: skip
    plane.set_xlabel("loss on new text (nats per token)")
    plane.set_ylabel("loss on old text (nats per token)")
    plane.legend(frameon=False, fontsize=7)
    plane.set_title("a  kept (down) and learned (left)", loc="left", fontweight="bold")
    rows = [method for method in methods if method != "start"][::-1]
    for height, method in enumerate(rows):
        forgotten = table[table["method"] == method]["forgetting"]
        colour, marker = look(method)
        bars.plot(forgotten, [height] * len(forgotten), marker, color=colour, alpha=0.35, ms=3.5, mew=0, ls="none")
        bars.errorbar(
            forgotten.mean(), height, xerr=forgotten.std(), fmt=marker, color=colour, mfc="white", ms=6, capsize=2
        )
    bars.axvline(0, color="black", lw=0.6)
    bars.set_yticks(range(len(rows)), rows)
    bars.set_ylim(-0.6, len(rows) - 0.4)
    bars.set_xlabel(f"forgetting against the start (nats per token); bars: SD over {seeds} seeds")
    bars.set_title("b  nothing lies left of the start", loc="left", fontweight="bold")
    if (table["forgetting"] < 0).any():
        bars.set_title("b  against the start", loc="left", fontweight="bold")
    return figure


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
