"""`landscape sharpness`: a row per checkpoint, a column per metric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.checks import check_device, check_inputs
from landscape.cli.options.checkpoints import BaseOption, Checkpoints
from landscape.cli.options.data import BatchTokens, Data, Limit, MaxLength, Seed
from landscape.cli.options.measurement import NormalizeLogits
from landscape.cli.options.metrics import Metric, parse_metric
from landscape.cli.options.model import Adapter, Device, DeviceMap, Dtype, OffloadBase, Parameters, Trust
from landscape.cli.options.output import Json, OutputFolder, Quiet
from landscape.cli.tables import (
    open_console,
    print_adapters,
    print_data,
    print_json,
    print_note,
    print_table,
    print_written,
    quiet_libraries,
    with_stderr,
)
from landscape.sharpness.options import check_options, declared_metrics

if TYPE_CHECKING:
    from landscape.sharpness import Sharpness

Key = tuple[str, str]  # checkpoint, data set

# Cheap metrics of different kinds, among them those that do not change when weights are rescaled and the function
# stays the same.
DEFAULT_METRICS = (
    "worst_case:steps=1",
    "worst_case:steps=1,adaptive=true,rho=0.5",
    "average_case:adaptive=true",
    "gradient_norm",
    "fisher_rao",
    "adaptive_trace:rtol=0.1,max_probes=200",
)


def sharpness(
    checkpoints: Checkpoints,
    seed: Seed = 0,
    data: Data = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    metric: Metric = None,
    base: BaseOption = None,
    normalize_logits: NormalizeLogits = False,
    parameters: Parameters = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    device_map: DeviceMap = None,
    offload_base: OffloadBase = False,
    adapter: Adapter = "merge",
    trust_remote_code: Trust = False,
    output: OutputFolder = Path("landscape-sharpness"),
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the sharpness of checkpoints with one or more metrics.

    The command prints a table and writes it to sharpness.csv, with one more file for each number and how it was
    measured.

        landscape sharpness runs/adamw runs/sam --metric worst_case:rho=0.1
        landscape sharpness runs/sam --metric average_case:adaptive=true --metric trace
        landscape sharpness runs/adamw runs/sam --base base --data old=alpaca.jsonl
    """
    check_device(device, device_map)
    requested = [*(metric or DEFAULT_METRICS), *(["displacement_curvature"] if base and not metric else [])]
    chosen = dict(map(parse_metric, requested))
    for name, options in chosen.values():
        check_options(name, options, known=declared_metrics(), has_base=base is not None)
    check_inputs([*checkpoints, base], data, output)
    quiet_libraries()
    from landscape.checkpoints import LoadOptions, load_checkpoint
    from landscape.data.tokens import DataOptions
    from landscape.objective.scope import Run, Scope
    from landscape.results import results_folder, write_csv, write_json
    from landscape.study.comparison import open_comparison
    from landscape.study.measurements import sharpness_task
    from landscape.study.runner import file_names, run_tasks

    comparison = open_comparison(
        checkpoints,
        data or (),
        seed=seed,
        data_options=DataOptions(max_length, limit, batch_tokens),
        load_options=LoadOptions(dtype, device, adapter, device_map, trust_remote_code),
    )
    print_data(tokens.describe() for tokens in comparison.data.values())
    origin = None
    if base is not None:
        origin = load_checkpoint(
            base,
            dtype=dtype,
            device=comparison.load_options.device,
            device_map=device_map,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
        )
    shared: dict[str, Any] = {
        "seed": seed,
        "parameters": tuple(parameters) if parameters else None,
        "normalize_logits": normalize_logits,
    }

    run = Run(progress=not quiet, offload_base=offload_base)
    scope = Scope(parameters=shared["parameters"])
    common: dict[str, Any] = {"base": origin, "seed": seed, "normalize_logits": normalize_logits}
    tasks = [
        sharpness_task(column, name, options, **common, scope=scope, run=run)
        for column, (name, options) in chosen.items()
    ]
    settings = {
        "command": "sharpness",
        **comparison.settings(),
        **shared,
        "metrics": {column: {"metric": name, **options} for column, (name, options) in chosen.items()},
        "base": origin.describe() if origin else None,
    }
    files = ["sharpness.csv", "summary.json"]
    with results_folder(output, settings, [*files, *file_names(comparison, tasks)]):
        results = run_tasks(comparison, output, tasks)
        rows = _rows(results)
        summary = {"settings": settings, "rows": rows}
        write_csv(output / "sharpness.csv", rows)
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_sharpness(results)
    print_written(*(output / name for name in files))


def _rows(results: dict[str, dict[Key, Sharpness]]) -> list[dict[str, Any]]:
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
        for of_metric in results.values()
        for key, result in of_metric.items()
    ]


def _print_sharpness(results: dict[str, dict[Key, Sharpness]]) -> None:
    console = open_console()
    of_first = next(iter(results.values()))
    columns = [next(iter(of_metric.values())) for of_metric in results.values()]
    headings = _headings(columns)
    rows = [
        [*key, f"{first.loss:.4f}", *(_cell(of_metric[key]) for of_metric in results.values())]
        for key, first in of_first.items()
    ]
    headings_of_all = ["checkpoint", "data", "loss", *headings]
    print_table(console, headings_of_all, rows, left=("data",), spare=("loss",), file="sharpness.csv")
    print_note(console, "+- is a standard error; * has not met its tolerance.")
    for heading, result in zip(headings, columns, strict=True):
        options = ", ".join(f"{name}={value}" for name, value in result.options.items() if value is not None)
        print_note(console, f"{heading}: {options or 'no settings'}; unchanged by: {result.invariance}")
        if "bound" in result.details:
            print_note(console, f"{heading}: {result.details['bound']}; more steps may end higher")
    print_adapters(console, (result.provenance.checkpoint for result in of_first.values()))
    if columns[0].normalized_logits:
        print_note(console, "logits divided by their standard deviation over the vocabulary")


def _headings(results: list[Sharpness]) -> list[str]:
    """Metric names, numbered where one comes more than once."""
    names = [result.metric for result in results]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _cell(result: Sharpness) -> str:
    return with_stderr(f"{result.value:.5g}{'*' if result.converged is False else ''}", result.stderr)
