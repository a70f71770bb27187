"""`landscape measure`: everything about every checkpoint, one row each, in a table for `landscape correlate`."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from landscape.cli.common import (
    BatchTokens,
    Device,
    Dtype,
    DtypeOption,
    Json,
    MaxLength,
    Quiet,
    Seed,
    Trust,
    app,
    quiet_libraries,
    table_console,
)
from landscape.cli.metric_options import parse_metric, print_metrics

if TYPE_CHECKING:
    import pandas


class FlatnessOn(enum.StrEnum):
    old = "old"
    new = "new"
    both = "both"


@app.command()
def measure(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that the others were tuned from.")],
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Tuned checkpoint or adapter folders, or hub ids.")
    ],
    old: Annotated[str, typer.Option(help="Data of what the base knew, as --data of other commands.")],
    new: Annotated[str, typer.Option(help="Data of what the checkpoints were tuned on.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Flatness: NAME, or NAME:option=value,option=value; again for more. Names and options: "
            "`--metric help`. Default: a cheap one of every kind."
        ),
    ] = None,
    flatness_on: Annotated[FlatnessOn, typer.Option(help="The data whose loss is to be flat.")] = FlatnessOn.both,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file for the table.")] = Path(
        "landscape-measure.csv"
    ),
    limit: Annotated[
        int | None,
        typer.Option(help="At most this many examples of each data; half are for flatness, half for losses."),
    ] = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    seed: Seed = 0,
    json_output: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Flatness, distance from the base, losses, forgetting and KL of checkpoints: a row each, in a CSV file.

    Half of the examples are for flatness, the others for losses and forgetting. What is finished is kept beside the
    table: a killed run continues, and more checkpoints measure only what is new.
    """
    quiet_libraries()
    import pandas

    from landscape.study.measure import FLATNESS_METRICS, details_path, measure_checkpoints

    if metric == ["help"]:
        print_metrics(FLATNESS_METRICS)
        return
    table = measure_checkpoints(
        base,
        checkpoints,
        old,
        new,
        output,
        metrics=[parse_metric(text)[1] for text in metric] if metric else None,
        flatness_on=flatness_on.value,
        limit=limit,
        max_length=max_length,
        batch_tokens=batch_tokens,
        dtype=dtype.value,
        device=device,
        seed=seed,
        trust_remote_code=trust_remote_code,
        progress=not quiet,
    )
    text = dict.fromkeys(("checkpoint", "digest", "data", "options"), str)
    details = pandas.read_csv(details_path(output), dtype=text)
    if json_output:
        found = {"rows": _records(table), "details": _records(details)}
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        _print(table, details)
    print(f"wrote {output}  {details_path(output)}  (cells in {output}.cells)", file=sys.stderr)


def _records(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    from landscape.results import to_plain

    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [to_plain({str(name): value for name, value in row.items()}) for row in rows]


def _print(table: pandas.DataFrame, details: pandas.DataFrame) -> None:
    from rich.table import Table

    console = table_console()
    said = [name for name in ("optimizer", "rho", "lr", "seed") if table[name].notna().any()]
    intervals = {
        row["digest"]: f"\n[{row['low']:+.4f}, {row['high']:+.4f}]"
        for _, row in details[details["column"] == "forgetting"].iterrows()
    }
    outcomes = Table(show_edge=False, pad_edge=False)
    outcomes.add_column("checkpoint", overflow="fold")
    headings = ("forgetting", "old loss", "new loss", "KL old", "KL new", "distance")
    for heading in (*said, *headings):
        outcomes.add_column(heading, justify="right")
    for _, row in table.iterrows():
        outcomes.add_row(
            escape(row["name"]),
            *("" if row[name] != row[name] else escape(f"{row[name]}") for name in said),
            escape(f"{row['forgetting']:+.4f}{intervals[row['digest']]}"),
            *(f"{row[f'loss_before_{on}']:.4f} to {row[f'loss_after_{on}']:.4f}" for on in ("old", "new")),
            *(f"{row[f'kl_{on}']:.4f}" for on in ("old", "new")),
            f"{row['distance']:.4g}",
        )
    console.print(outcomes)
    console.print()
    shown = details[[_is_shown(row) for _, row in details.iterrows()]]
    on = shown["data"].drop_duplicates().tolist()
    columns = list(dict.fromkeys(row["column"].removesuffix(f"_{row['data']}") for _, row in shown.iterrows()))
    flatness = Table(show_edge=False, pad_edge=False)
    flatness.add_column("checkpoint", overflow="fold")
    flatness.add_column("on")
    for column in columns:
        flatness.add_column(column.replace("_", " "), justify="right", overflow="fold")
    cells = {(row["digest"], row["column"]): row for _, row in shown.iterrows()}
    for _, row in table.iterrows():
        for data in on:
            found = [cells[row["digest"], f"{column}_{data}"] for column in columns]
            flatness.add_row(escape(row["name"]), data, *map(_cell, found))
    console.print(flatness)
    console.print(
        f"Tuned from {escape(str(table['base'].iloc[0]))}. Flatness on one half of each data's examples, everything "
        "else on the other half. Losses, forgetting (rise of the old loss, 95% interval over examples) and "
        "KL(base || tuned) in nats per token; +- is a standard error; * has not met its tolerance.",
        highlight=False,
        soft_wrap=True,
    )


def _is_shown(row: Any) -> bool:
    """Whether a number is flatness, and of a surface its curvature: the file has the others."""
    if row["metric"] == "surface":
        return row["column"].endswith(f"_curvature_{row['data']}") and "_center_" not in row["column"]
    return row["metric"] not in ("forgetting", "distance")


def _cell(row: Any) -> str:
    spread = f"\n+- {row['stderr']:.2g}" if row["stderr"] == row["stderr"] else ""
    return f"{row['value']:.4g}{'*' if str(row['converged']) == 'False' else ''}{spread}"
