"""`landscape measure`: everything about every checkpoint, one row each, in a table for `landscape correlate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.checks import check_inputs
from landscape.cli.options.checkpoints import Base, TunedCheckpoints
from landscape.cli.options.data import BatchTokens, LimitInHalves, MaxLength, NewData, OldData, Seed
from landscape.cli.options.measurement import FlatnessOn
from landscape.cli.options.metrics import Metric, parse_metric
from landscape.cli.options.model import Device, Dtype, Trust
from landscape.cli.options.output import Json, OutputTable, Quiet
from landscape.cli.tables import (
    open_console,
    print_json,
    print_note,
    print_table,
    print_written,
    quiet_libraries,
    with_interval,
    with_stderr,
)
from landscape.sharpness.options import declared_metrics
from landscape.study.request import DEFAULT_METRICS, check_table_path, chosen_metrics

if TYPE_CHECKING:
    import pandas


def measure(
    base: Base,
    checkpoints: TunedCheckpoints,
    old: OldData,
    new: NewData,
    seed: Seed = 0,
    limit: LimitInHalves = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    metric: Metric = None,
    flatness_on: FlatnessOn = "both",
    dtype: Dtype = "float32",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    output: OutputTable = Path("landscape-measure.csv"),
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure tuned checkpoints and write a CSV table with one row for each.

    The row holds flatness, distance from the base, losses, forgetting and KL divergence. Records with choices count as
    texts with their right answer; `landscape forgetting` asks them as questions. Flatness is measured on one
    half of the examples, losses and forgetting on the other half. Finished measurements are kept beside the table: an
    interrupted run continues, and adding checkpoints measures only the new ones.

    `--metric instruction_vector:tasks=FILE` adds what tuning changed of the instruction vectors of in-context tasks,
    and `--metric own_kl` the KL divergence on what the base itself says to the prompts of the data.

        landscape measure base runs/* --old alpaca.jsonl --new tasks.jsonl
        landscape measure base runs/* --old alpaca.jsonl --new tasks.jsonl --metric trace
    """
    metrics = [parse_metric(text)[1] for text in metric] if metric else None
    chosen_metrics(metrics or DEFAULT_METRICS, declared_metrics())
    check_table_path(output)
    check_inputs([base, *checkpoints], [f"old={old}", f"new={new}"], output.parent)
    quiet_libraries()
    import pandas

    from landscape.checkpoints import LoadOptions
    from landscape.data.tokens import DataOptions
    from landscape.study.table import details_path, measure_checkpoints

    table = measure_checkpoints(
        base,
        checkpoints,
        old,
        new,
        output,
        metrics=metrics,
        flatness_on=flatness_on,
        seed=seed,
        data_options=DataOptions(max_length, limit, batch_tokens),
        load_options=LoadOptions(dtype, device, trust_remote_code=trust_remote_code),
        progress=not quiet,
    )
    details = pandas.DataFrame(table.attrs["details"])
    if json_output:
        print_json({"rows": _records(table), "details": _records(details)})
    else:
        _print_study(table, details, output)
    print_written(output, details_path(output), f"(cells in {output}.cells)")


def _records(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _print_study(table: pandas.DataFrame, details: pandas.DataFrame, output: Path) -> None:
    console = open_console()
    settings = [name for name in ("optimizer", "rho", "lr", "seed") if table[name].notna().any()]
    intervals = {row["digest"]: row for _, row in details[details["column"] == "forgetting"].iterrows()}
    outcomes = []
    for _, row in table.iterrows():
        interval = intervals[row["digest"]]
        outcomes.append(
            [
                row["name"],
                *("" if row[name] != row[name] else f"{row[name]}" for name in settings),
                with_interval(f"{row['forgetting']:+.4f}", f"{interval['low']:+.4f}", f"{interval['high']:+.4f}"),
                *(f"{row[f'loss_before_{data}']:.4f} to {row[f'loss_after_{data}']:.4f}" for data in ("old", "new")),
                *(f"{row[f'kl_{data}']:.4f}" for data in ("old", "new")),
                f"{row['distance']:.4g}",
            ]
        )
    headings = ["forgetting", "old loss", "new loss", "KL old", "KL new", "distance"]
    for column in (name for name in table if name.startswith("own_kl")):
        headings.append(column.replace("own_kl", "own KL").replace("_", " "))
        for cells_of_row, value in zip(outcomes, table[column], strict=True):
            cells_of_row.append(f"{value:.4f}")
    if "instruction_vector_cosine" in table:
        headings += ["IV cosine", "few-shot lost"]
        for cells_of_row, (_, row) in zip(outcomes, table.iterrows(), strict=True):
            shown_of_row = (f"{row['instruction_vector_cosine']:.3f}", f"{row['accuracy_loss_few_shot']:+.1%}")
            cells_of_row.extend(shown_of_row)
    print_table(console, ["checkpoint", *settings, *headings], outcomes, file=output.name)
    console.print()
    shown = details[[_is_shown(row) for _, row in details.iterrows()]]
    data_sets = shown["data"].drop_duplicates().tolist()
    columns = list(dict.fromkeys(row["column"].removesuffix(f"_{row['data']}") for _, row in shown.iterrows()))
    cells = {(row["digest"], row["column"]): _cell(row) for _, row in shown.iterrows()}
    flatness = [
        [row["name"], data, *(cells[row["digest"], f"{column}_{data}"] for column in columns)]
        for _, row in table.iterrows()
        for data in data_sets
    ]
    headings = ["checkpoint", "on", *(column.replace("_", " ") for column in columns)]
    print_table(console, headings, flatness, left=("on",), file=output.name)
    print_note(
        console,
        f"Tuned from {table['base'].iloc[0]}. Flatness on one half of each data's examples, everything else on the "
        "other half. Losses, forgetting (rise of the old loss, 95% interval over examples) and KL(base || tuned) in "
        "nats per token; +- is a standard error; * has not met its tolerance.",
    )


def _is_shown(row: Any) -> bool:
    """Whether a number is flatness, and of a surface its curvature: the file has the others."""
    if row["metric"] == "surface":
        return row["column"].endswith(f"_curvature_{row['data']}") and "_center_" not in row["column"]
    return row["metric"] not in ("forgetting", "distance", "own_kl", "instruction_vector")


def _cell(row: Any) -> str:
    return with_stderr(f"{row['value']:.4g}{'*' if str(row['converged']) == 'False' else ''}", row["stderr"])
