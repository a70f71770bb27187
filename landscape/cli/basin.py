"""`landscape basin`: how far a capability holds, a row per checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.checks import check_inputs, check_tasks
from landscape.cli.options.basins import BasinBase, Directions, Drop, Sigma
from landscape.cli.options.checkpoints import Checkpoints
from landscape.cli.options.data import BatchTokens, Data, Limit, MaxLength, Seed
from landscape.cli.options.model import Adapter, Device, Dtype, Parameters, Trust
from landscape.cli.options.output import Json, OutputFolder, Quiet
from landscape.cli.options.surfaces import Height, Normalize
from landscape.cli.tables import (
    open_console,
    print_adapters,
    print_data,
    print_json,
    print_note,
    print_table,
    print_written,
    quiet_libraries,
    with_interval,
    with_stderr,
)
from landscape.errors import InputError
from landscape.heights.options import LOSS, benchmark_names, parse_heights

if TYPE_CHECKING:
    from landscape.basins.result import Basin


def basin(
    checkpoints: Checkpoints,
    seed: Seed = 0,
    data: Data = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    height: Height = LOSS,
    drop: Drop = None,
    directions: Directions = 16,
    base: BasinBase = None,
    sigma: Sigma = None,
    normalize: Normalize = None,
    parameters: Parameters = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    adapter: Adapter = "merge",
    trust_remote_code: Trust = False,
    output: OutputFolder = Path("landscape-basin"),
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far from checkpoints a capability holds, along random directions, the worst case and their own step.

    The command prints a table and writes it to basin.csv, with one more file for each basin and how it was measured.
    With --base it also says whether fine-tuning left the base's basin.

        landscape basin runs/adamw runs/sam --data quiz=questions.jsonl --height accuracy
        landscape basin runs/adamw runs/sam --data old=alpaca.jsonl --base base
    """
    (name, *others) = parse_heights(height) or [LOSS]
    if others:
        raise InputError(f"--height {height} names several heights; a basin is of one.")
    check_tasks(",".join(benchmark_names([name])))
    check_inputs([*checkpoints, base], data, output)
    quiet_libraries()
    from landscape.checkpoints import LoadOptions, load_checkpoint
    from landscape.data.tokens import DataOptions
    from landscape.objective.scope import Run, Scope
    from landscape.results import results_folder, write_csv, write_json
    from landscape.study.basins import basin_row, basin_task
    from landscape.study.comparison import open_comparison, with_questions
    from landscape.study.runner import file_names, run_tasks

    comparison = open_comparison(
        checkpoints,
        data or (),
        seed=seed,
        data_options=DataOptions(max_length, limit, batch_tokens),
        load_options=LoadOptions(dtype, device, adapter, trust_remote_code=trust_remote_code),
    )
    if name != LOSS:
        comparison = with_questions(comparison)
    print_data(tokens.describe() for tokens in comparison.data.values())
    load: dict[str, Any] = {"dtype": dtype, "device": comparison.load_options.device, "adapter": adapter}
    origin = None if base is None else load_checkpoint(base, trust_remote_code=trust_remote_code, **load)
    measured: dict[str, Any] = {"height": name, "drop": drop, "directions": directions, "sigma": sigma}
    measured |= {"normalize": normalize or "filter"}
    scope = Scope(parameters=tuple(parameters) if parameters else None)
    task = basin_task("basin", measured, base=origin, seed=seed, scope=scope, run=Run(progress=not quiet))
    settings = {"command": "basin", **comparison.settings(), **measured, "parameters": scope.parameters, "seed": seed}
    settings |= {"base": origin.describe() if origin else None}
    files = ["basin.csv", "summary.json"]
    with results_folder(output, settings, [*files, *file_names(comparison, [task])]):
        results = list(run_tasks(comparison, output, [task])[task.name].values())
        rows = [basin_row(result) for result in results]
        summary = {"settings": settings, "basins": rows}
        write_csv(output / "basin.csv", rows)
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_basins(results)
    print_written(*(output / name for name in files))


def _print_basins(basins: list[Basin]) -> None:
    """A row for each basin: radii in units of the weights' norm, and of the step where there is a base."""
    first, rows = basins[0], []
    has_steps = any(b.step is not None for b in basins)
    for b in basins:
        center = with_stderr(f"{b.center:.4g}", b.center_stderr)
        median = with_interval(_text(b.median), *(f"{end:.3g}" for end in b.interval))
        row = [b.name, b.data, center, f"{b.drop:.3g}", median, f"{b.censored} of {len(b.radii)}"]
        row.append("-" if b.worst is None else _text(b.worst.value))
        if b.step is not None and b.steps is not None:
            left = "left" if b.has_left else "stayed"
            row += [f"{b.steps:.3g}", f"{_text(b.step.value)} of the step: {left}"]
        elif has_steps:
            row += ["-", "-"]  # the base itself
        if b.bound is not None:
            row.append(f"{b.bound.smoothed:.3f}; >= {b.bound.bound:.3f}")
        rows.append(row)
    headings = ["checkpoint", "data", f"{first.height} at centre", "drop", "median radius", "held to |w|", "worst case"]
    headings += ["median in steps", "along its own step"] if has_steps else []
    headings += ["with noise; after the step"] if first.bound is not None else []
    console = open_console()
    print_table(console, headings, rows, left=("data",), file="summary.json")
    print_note(
        console,
        "Radii are steps over the norm of the weights, with the 95% interval of the median over random directions; "
        "inf: the height held as far as a step as long as the weights. The worst case is the one found by "
        "repeated gradients of the loss; there may be worse.",
    )
    print_adapters(console, (b.provenance.checkpoint for b in basins))


def _text(radius: float) -> str:
    return f"{radius:.3g}"
