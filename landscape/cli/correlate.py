"""`landscape correlate`: flatness against forgetting."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from landscape.cli.common import Seed, app

if TYPE_CHECKING:
    import pandas


class Method(enum.StrEnum):
    spearman = "spearman"
    pearson = "pearson"
    kendall = "kendall"


@app.command()
def correlate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV file, a row per checkpoint.")],
    flatness: Annotated[
        list[str] | None, typer.Option(help="A column to correlate; again for more. Default: all that hold numbers.")
    ] = None,
    forgetting: Annotated[str, typer.Option(help="The column of what was forgotten.")] = "forgetting",
    method: Annotated[Method, typer.Option(help="Which correlation.")] = Method.spearman,
    control: Annotated[list[str] | None, typer.Option(help="A column held fixed in the partial correlation.")] = None,
    groups: Annotated[
        str | None, typer.Option(help="The column that says which checkpoints belong together, such as their base.")
    ] = None,
    hyperparameter: Annotated[
        list[str] | None, typer.Option(help="A column of a factorial design, for granulated Kendall.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Of bootstraps and permutations.")] = 9999,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write it to this CSV file.")] = None,
) -> None:
    """Correlations of flatness with forgetting: intervals, permutation p-values, what is left given controls."""
    from landscape.correlation import correlate as run
    from landscape.results import write_text

    found = run(
        table,
        flatness=flatness,
        forgetting=forgetting,
        method=method.value,
        controls=control or (),
        groups=groups,
        hyperparameters=hyperparameter or (),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    _print(found, confidence)
    if output is not None:
        write_text(output, found.to_csv(index=False))
        print(f"wrote {output}", file=sys.stderr)


def _print(found: pandas.DataFrame, confidence: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or pipe has no width to fit
    shown = [c for c in found.columns if c in ("metric", "n", "estimate", "p", "q", "note") or found[c].notna().any()]
    shown = [c for c in shown if c not in ("low", "high", "logo_low", "logo_high")]
    table = Table(show_edge=False, pad_edge=False)
    for name in shown:
        table.add_column(
            name.replace("_", " "), justify="left" if name in ("metric", "note") else "right", overflow="fold"
        )
    for _, row in found.iterrows():
        cells = []
        for name in shown:
            value = row[name]
            if name == "estimate" and value == value:
                cells.append(f"{value:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
            elif isinstance(value, str):
                cells.append(escape(value))
            elif value != value:
                cells.append("-")
            else:
                cells.append(f"{value:.0f}" if name in ("n", "n_groups") else f"{value:.3g}")
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"{confidence:.0%} intervals; p by permutation; q controls the false-discovery rate over these rows.",
        highlight=False,
        soft_wrap=True,
    )
