"""`landscape sharpness`: a row per checkpoint, a column per metric."""

from __future__ import annotations

import csv
import functools
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from landscape.cli.common import (
    Adapter,
    BatchTokens,
    Data,
    Device,
    DeviceMap,
    Dtype,
    DtypeOption,
    Json,
    Limit,
    MaxLength,
    OffloadBase,
    Quiet,
    Seed,
    Trust,
    adapters_in,
    app,
    check_device,
    quiet_libraries,
    table_console,
)
from landscape.cli.metric_options import parse_metric, print_metrics

if TYPE_CHECKING:
    from landscape.sharpness import Sharpness

Key = tuple[str, str]  # checkpoint, data set

# Cheap, of different kinds, and with the ones that rescaling the weights does not move (SCIENCE (a)).
DEFAULT_METRICS = (
    "worst_case:steps=1",
    "worst_case:steps=1,adaptive=true,rho=0.5",
    "average_case:adaptive=true",
    "gradient_norm",
    "fisher_rao",
    "adaptive_trace:rtol=0.1,max_probes=200",
)


@app.command()
def sharpness(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Checkpoint or adapter folders, or hub ids.")
    ],
    data: Data = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, or NAME:option=value,option=value; again for more. Names and options: `--metric help`. "
            f"Default: {' '.join(DEFAULT_METRICS)}"
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The checkpoint these were tuned from; adds the second-order account of forgetting."),
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option(help="Only parameters whose names match, such as 'model.layers.*.mlp.*'.")
    ] = None,
    normalize_logits: Annotated[
        bool, typer.Option("--normalize-logits", help="Divide logits by their standard deviation first.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "landscape-sharpness"
    ),
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    device_map: DeviceMap = None,
    offload_base: OffloadBase = False,
    seed: Seed = 0,
    adapter: Annotated[Adapter, typer.Option(help="Fold adapters into their base, or perturb them alone.")] = (
        Adapter.merge
    ),
    json_output: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Sharpness of checkpoints by every definition papers use: a table, sharpness.csv, and a file for each number."""
    check_device(device, device_map)
    quiet_libraries()
    from landscape.checkpoints import load_checkpoint, resolve_device
    from landscape.objective.scope import Run, Scope
    from landscape.results import results_folder, write_json, write_text
    from landscape.sharpness import SHARPNESS_METRICS, Sharpness, check_metric, compute_sharpness
    from landscape.study.comparison import open_comparison
    from landscape.study.measurements import measure_each, result_files

    if metric == ["help"]:
        print_metrics({name: known.options for name, known in SHARPNESS_METRICS.items()})
        return
    asked = [*(metric or DEFAULT_METRICS), *(["displacement_curvature"] if base and not metric else [])]
    chosen = {column: parsed for text in asked for column, parsed in [parse_metric(text)]}
    for name, options in chosen.values():
        check_metric(name, options, has_base=base is not None)
    comparison = open_comparison(
        checkpoints,
        data or (),
        limit=limit,
        max_length=max_length,
        batch_tokens=batch_tokens,
        seed=seed,
        dtype=dtype.value,
        device=str(resolve_device(device)),
        adapter=adapter.value,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
    )
    for described in comparison.data.values():
        print(described.describe(), file=sys.stderr)
    origin = None
    if base is not None:
        origin = load_checkpoint(
            base,
            dtype=dtype.value,
            device=comparison.device,
            device_map=device_map,
            adapter=adapter.value,
            trust_remote_code=trust_remote_code,
        )
    shared: dict[str, Any] = {
        "seed": seed,
        "parameters": tuple(parameters) if parameters else None,
        "normalize_logits": normalize_logits,
    }

    def take(name: str, options: dict[str, Any], checkpoint: Any, data: Any, journal: Path) -> Sharpness:
        run = Run(journal=journal, progress=not quiet, offload_base=offload_base)
        where: dict[str, Any] = {"scope": Scope(parameters=shared["parameters"]), "run": run}
        measured: dict[str, Any] = {"seed": seed, "base": origin, "normalize_logits": normalize_logits}
        return compute_sharpness(checkpoint, data, metric=name, **measured, **where, **options)

    measures = {
        column: (Sharpness, functools.partial(take, name, options)) for column, (name, options) in chosen.items()
    }
    settings = {
        "command": "sharpness",
        **comparison.settings(),
        **shared,
        "metrics": {column: {"metric": name, **options} for column, (name, options) in chosen.items()},
        "base": origin.describe() if origin else None,
    }
    files = ["sharpness.csv", "summary.json"]
    with results_folder(output, settings, [*files, *result_files(comparison, measures)]):
        found = measure_each(comparison, output, measures)
        rows = _rows(found)
        write_text(output / "sharpness.csv", _csv(rows))
        write_json(output / "summary.json", {"settings": settings, "rows": rows})
    if json_output:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        _print(found)
    print("wrote " + "  ".join(str(output / name) for name in files), file=sys.stderr)


def _rows(found: dict[str, dict[Key, Sharpness]]) -> list[dict[str, Any]]:
    """One row per number: what a script or a spreadsheet wants."""
    return [
        {
            "checkpoint": key[0],
            "data": key[1],
            "metric": result.metric,
            "options": " ".join(f"{name}={value}" for name, value in result.options.items() if value is not None),
            "value": result.value,
            "stderr": result.stderr,
            "converged": result.converged,
            "loss": result.loss,
            "supervised_tokens": result.weight,
            "fidelity_cosine": result.fidelity.cosine,
            "seconds": result.provenance.seconds,
        }
        for results in found.values()
        for key, result in results.items()
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print(found: dict[str, dict[Key, Sharpness]]) -> None:
    from rich.table import Table

    console = table_console()
    columns = {column: next(iter(results.values())) for column, results in found.items()}
    heads = _headings(list(columns.values()))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    table.add_column("data")
    table.add_column("loss", justify="right")
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    for key, first in next(iter(found.values())).items():
        cells = [_cell(results[key]) for results in found.values()]
        table.add_row(escape(key[0]), escape(key[1]), f"{first.loss:.4f}", *cells)
    console.print(table)
    console.print("+- is a standard error; * has not met its tolerance.", highlight=False)
    for head, result in zip(heads, columns.values(), strict=True):
        settings = ", ".join(f"{name}={value}" for name, value in result.options.items() if value is not None)
        console.print(
            escape(f"{head}: {settings or 'no settings'}; unchanged by: {result.invariance}"),
            highlight=False,
            soft_wrap=True,
        )
    adapters = {how for r in next(iter(found.values())).values() for how in adapters_in(r.provenance.checkpoint)}
    if adapters:
        console.print(f"adapters: {', '.join(sorted(adapters))}", highlight=False)
    if next(iter(columns.values())).normalized_logits:
        console.print("logits divided by their standard deviation over the vocabulary", highlight=False)


def _headings(results: list[Sharpness]) -> list[str]:
    """Metric names, numbered where one comes more than once."""
    names = [result.metric for result in results]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _cell(result: Sharpness) -> str:
    spread = "" if result.stderr is None else f"\n+- {result.stderr:.2g}"
    return f"{result.value:.5g}{'*' if result.converged is False else ''}{spread}"
