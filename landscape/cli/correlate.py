"""`landscape correlate`: flatness against forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.options import (
    Color,
    Confidence,
    Control,
    Flatness,
    ForgettingColumn,
    Groups,
    Hyperparameter,
    Json,
    Method,
    OutputFolder,
    Resamples,
    Seed,
    Table,
)
from landscape.cli.tables import open_console, print_json, print_note, print_table, print_written, with_interval

if TYPE_CHECKING:
    import pandas

FILES = (
    *("correlate.csv", "forest.png", "forest.pdf", "scatter.png", "scatter.pdf", "correlate.html"),
    "summary.json",
)


def correlate(
    table: Table,
    seed: Seed = 0,
    flatness: Flatness = None,
    forgetting: ForgettingColumn = "forgetting",
    method: Method = "spearman",
    control: Control = None,
    groups: Groups = None,
    hyperparameter: Hyperparameter = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 9999,
    color: Color = None,
    output: OutputFolder = Path("landscape-correlate"),
    json_output: Json = False,
) -> None:
    """Correlate flatness with forgetting over the checkpoints of a table.

    The command prints correlations with intervals and p-values, alone and with other columns held fixed, and draws
    scatter plots and a forest plot.

        landscape correlate table.csv --groups base --control loss_after_new
    """
    from landscape.correlation import Resampling, read_table
    from landscape.correlation import correlate as run
    from landscape.plotting import write_correlation_figures
    from landscape.results import digest_of, results_folder, write_json, write_text

    frame = read_table(table)
    correlations = run(
        frame,
        flatness=flatness,
        forgetting=forgetting,
        method=method,
        controls=control or (),
        groups=groups,
        hyperparameters=hyperparameter or (),
        resampling=Resampling(resamples=resamples, confidence=confidence, seed=seed),
    )
    settings = {
        "command": "correlate",
        "table": str(table),
        "digest": digest_of(frame.to_csv(index=False)),
        "flatness": list(correlations["metric"]),
        **correlations.attrs,
    }
    summary = {"settings": settings, "rows": correlations.to_dict("records")}
    with results_folder(output, settings, FILES):
        write_correlation_figures(correlations, frame, output, color=color)
        write_text(output / "correlate.csv", correlations.to_csv(index=False))
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_correlations(correlations, confidence)
    print_written(*(output / name for name in FILES))


def _print_correlations(correlations: pandas.DataFrame, confidence: float) -> None:
    always = ("metric", "n", "estimate", "p", "q", "note")
    columns = [
        name
        for name in correlations.columns
        if (name in always or correlations[name].notna().any()) and not name.endswith(("low", "high"))
    ]
    console = open_console()
    print_table(
        console,
        [name.replace("_", " ") for name in columns],
        [[_cell(row, name) for name in columns] for _, row in correlations.iterrows()],
        left=("note",),
    )
    print_note(
        console, f"{confidence:.0%} intervals; p by permutation; q controls the false-discovery rate over these rows."
    )


def _cell(row: Any, name: str) -> str:
    value = row[name]
    if isinstance(value, str):
        return value
    if value != value:
        return "-"
    if name in ("estimate", "partial"):
        ends = ("low", "high") if name == "estimate" else ("partial_low", "partial_high")
        low, high = (row[end] for end in ends)
        return (
            with_interval(f"{value:+.2f}", f"{low:+.2f}", f"{high:+.2f}")
            if low == low
            else f"{value:+.2f}\nno interval"
        )
    return f"{value:.0f}" if name in ("n", "n_groups") else f"{value:.3g}"
