"""The table of `landscape measure`: a row for each checkpoint, with its flatness, its distance and what it forgot."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.checkpoints import LoadOptions
from landscape.data.tokens import DataOptions, TokenData
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.forgetting.own_samples import has_prompts
from landscape.instruction_vectors.prompts import VectorOptions
from landscape.instruction_vectors.vector import Statistics
from landscape.objective.scope import Run
from landscape.results import digest_of, results_folder, write_csv
from landscape.sharpness import SHARPNESS_METRICS
from landscape.study.basins import basin_task
from landscape.study.comparison import Comparison, open_comparison
from landscape.study.halves import disjoint_halves
from landscape.study.instruction_vectors import change_task, load_all_tasks
from landscape.study.measurements import (
    distance_task,
    forgetting_task,
    numbers_of,
    own_kl_task,
    random_surface_task,
    sharpness_task,
)
from landscape.study.request import DEFAULT_METRICS, Metrics, cells_folder, check_table_path, chosen_metrics
from landscape.study.runner import Cell, Task, run_cells

if TYPE_CHECKING:
    import pandas

FLATNESS_ON = {"old": ("old",), "new": ("new",), "both": ("old", "new")}
_IDENTITY = ("name", "source", "digest", "base", "base_digest", "optimizer", "rho", "lr", "seed", "steps")


_TEXT = frozenset(("name", "source", "digest", "base", "base_digest", "optimizer"))


def measure_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    old: str,
    new: str,
    output: str | Path,
    *,
    metrics: Metrics | None = None,
    flatness_on: str = "both",
    seed: int = 0,
    data_options: DataOptions = DataOptions(),
    load_options: LoadOptions = LoadOptions(),
    progress: bool = False,
) -> pandas.DataFrame:
    """Measure checkpoints that were tuned from `base`: a row for each, written to a CSV file.

    Each data set is split by `disjoint_halves`: flatness is measured on the first half, everything else on the second.

    Every measurement of a checkpoint is kept in a file of the folder `<output>.cells`, which is named by the digest of
    the checkpoint. A killed run therefore continues, and another list of checkpoints measures only what is new. What is
    finished stays, whatever happens. Adapters are merged into their base.

    Args:
        base: The checkpoint that the others were tuned from: a folder or hub id.
        checkpoints: The tuned checkpoints.
        old: Data of what the base knew, as `load_data` takes them.
        new: Data of what the checkpoints were tuned on.
        output: The CSV file. It is rewritten after every checkpoint, with those of this call that are finished.
            `<output without .csv>.details.csv` says how sure each number is, in long form: checkpoint, digest, column,
            data, metric, options, value, stderr, low and high (95%), converged, tokens, seconds.
        metrics: Names of flatness metrics, or pairs (name, options); `SHARPNESS_METRICS` has both. "surface" stands for
            the metrics of a surface along random directions, "basin" for the radius of `compute_basin`, "own_kl" for
            the KL on what the base says to the prompts of data that have some (see `own_samples`),
            ("instruction_vector", {"tasks": file}) for what changed of the instruction vectors of in-context tasks (see
            `compare_instruction_vectors`), the others are those of `compute_sharpness`. Default: `DEFAULT_METRICS`,
            cheap ones of every kind.
        flatness_on: Whether flatness is that of the loss on "old" data, on "new" data, or on "both".
        seed: Seed for random directions and for sampling examples.
        data_options: How both data sets are read.
        load_options: How all checkpoints are loaded; `adapter` must be "merge".
        progress: Show progress bars.

    Returns:
        The table, whose `attrs["details"]` holds the rows of the details. In its columns, `_old` and `_new` say on
        which data:

        - name, source, digest: of the checkpoint
        - base: the name of `base`
        - base_digest, optimizer, rho, lr, seed, steps: as the checkpoint's `landscape.json` says; blank where it does
          not
        - forgetting: loss_after_old - loss_before_old, in nats per token as all losses and kl
        - loss_before_*, loss_after_*: of the base and of the checkpoint
        - accuracy_before_*, accuracy_after_*, accuracy_loss_*: of the next token; the fall from before to after
        - kl_*: KL(base || checkpoint)
        - own_kl_*: the same on the base's own samples
        - distance, weight_norm: |w - w_base| and |w|, l2 over all parameters
        - METRIC_*, METRIC-option_value_*: flatness; the options tell two of the same metric apart
        - predicted_rise_*: g'D + D'HD / 2 at the base, for the step D from there, with displacement_curvature
        - surface_*_*: see `SurfaceMetrics`
        - basin_*, basin_worst_*: radii along random rays (median) and along the worst, over the norm of the weights;
          one beyond the end of its ray counts as 1, and its detail says that it has not converged
        - instruction_vector_cosine, instruction_vector_heads_kept, instruction_vector_effect_lost,
          accuracy_loss_few_shot, accuracy_loss_zero_shot, accuracy_before_*_shot, accuracy_after_*_shot: means over
          in-context tasks, see `TaskChange`

    Raises:
        InputError: Arguments are wrong, tensors or tokenizers of a checkpoint differ from the base's, the folder holds
            results of other data, another base or other metrics, or `output` was not made by this function.

    Warns:
        MeasurementWarning: A checkpoint says it was tuned from another base, is the base, or is given twice.

    Example:
        One checkpoint, whose flatness is measured by the norm of its gradient:

        >>> import tempfile
        >>> from pathlib import Path
        >>> from tokenizers import ByteLevelBPETokenizer
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from landscape import DataOptions, LoadOptions, measure_checkpoints, save_checkpoint
        >>> trained = ByteLevelBPETokenizer()
        >>> trained.train_from_iterator(["bytes"], show_progress=False)
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
        >>> config = LlamaConfig(
        ...     vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("base", "tuned"):
        ...         _ = save_checkpoint(LlamaForCausalLM(config), tokenizer, f"{folder}/{name}")
        ...     for name in ("old", "new"):
        ...         _ = Path(f"{folder}/{name}.txt").write_text(" ".join(f"{name} {n}" for n in range(99)))
        ...     table = measure_checkpoints(
        ...         f"{folder}/base", [f"{folder}/tuned"], f"{folder}/old.txt", f"{folder}/new.txt",
        ...         f"{folder}/table.csv", metrics=["gradient_norm"], data_options=DataOptions(max_length=16),
        ...         load_options=LoadOptions(device="cpu"),
        ...     )
        >>> rise = table["loss_after_old"] - table["loss_before_old"]
        >>> table["name"][0], bool(abs(table["forgetting"] - rise)[0] < 1e-6)
        ('tuned', True)
    """
    output = Path(output)
    check_table_path(output)
    if not checkpoints:
        raise InputError("there is no checkpoint to measure.")
    if flatness_on not in FLATNESS_ON:
        raise InputError(f"{as_typed('flatness_on', flatness_on)} is none of {', '.join(FLATNESS_ON)}.")
    if load_options.adapter != "merge":
        raise InputError(f"adapter={load_options.adapter!r}: adapters are merged into their base to be measured.")
    chosen = chosen_metrics(DEFAULT_METRICS if metrics is None else metrics, SHARPNESS_METRICS)
    comparison = open_comparison(
        [str(base), *map(str, checkpoints)],
        (f"old={old}", f"new={new}"),
        seed=seed,
        data_options=data_options,
        load_options=load_options,
    )
    halves = {name: disjoint_halves(tokens) for name, tokens in comparison.data.items()}
    settings = {
        "command": "measure",
        "base": comparison.files[0].digest,
        "data": {name: tokens.digest for name, tokens in comparison.data.items()},
        "flatness_on": flatness_on,
        "metrics": {column: {"metric": name, **options} for column, (name, options) in chosen.items()},
        "dtype": comparison.load_options.dtype,
        "device": comparison.load_options.device,
        "seed": seed,
    }
    folder = cells_folder(output)
    columns = _columns(halves, chosen, FLATNESS_ON[flatness_on], seed, Run(progress=progress))
    with results_folder(folder, settings):
        _warn_of_checkpoints(comparison)
        rows = _measure_rows(comparison, columns, folder, output)
    table = _frame([row for row, _ in rows])
    table.attrs["details"] = [detail for _, details in rows for detail in details]
    return table


def details_path(output: Path | str) -> Path:
    """Return where `measure_checkpoints` says how sure each number of the table `output` is."""
    return Path(output).with_name(f"{Path(output).stem}.details.csv")


# --- cells --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
    """One measurement of every checkpoint: the numbers of a result get columns of this name.

    Attributes:
        name: The start of the columns' names.
        metric: What is measured.
        options: The options of the metric.
        data: The name of the data set; empty for none.
        tokens: The half of the data set that it is measured on; None for none.
        task: How it is measured.
    """

    name: str
    metric: str
    options: dict[str, Any]
    data: str
    tokens: TokenData | Mapping[str, TokenData] | None
    task: Task

    def file_name(self, digest: str) -> str:
        """Return the name of its file for the checkpoint with that digest, with a digest of the options in it."""
        options = [digest_of(self.options)[:8]] if self.options else []
        return "-".join([self.metric, *options, *filter(None, [self.data]), digest]) + ".json"


def _columns(
    halves: Mapping[str, tuple[TokenData, TokenData]],
    chosen: Mapping[str, tuple[str, dict[str, Any]]],
    flatness_on: Sequence[str],
    seed: int,
    run: Run,
) -> list[_Column]:
    """Return what is measured of every checkpoint: outcomes on the second halves, flatness on the first ones."""
    columns = []
    for data, (_, second) in halves.items():
        columns.append(
            _Column("forgetting", "forgetting", {}, data, {data: second}, forgetting_task(seed=seed, run=run))
        )
    columns.append(_Column("distance", "distance", {}, "", None, distance_task()))
    for name, (metric, options) in chosen.items():
        if metric == "instruction_vector":
            columns.append(_instruction_column(name, options, seed, run))
        if metric == "own_kl":
            columns += _own_kl_columns(halves, name, options, seed, run)
    for data in flatness_on:
        for name, (metric, options) in chosen.items():
            if metric in ("instruction_vector", "own_kl"):  # They are not of the loss on the first half of a data set.
                continue
            make = {"surface": random_surface_task, "basin": basin_task}.get(metric)
            if make is not None:
                task = make(name, options, seed=seed, run=run)
            else:
                task = sharpness_task(name, metric, options, seed=seed, run=run)
            columns.append(_Column(name, metric, options, data, halves[data][0], task))
    return columns


def _instruction_column(name: str, options: Mapping[str, Any], seed: int, run: Run) -> _Column:
    """Return the measurement of what changed of instruction vectors."""
    tasks = load_all_tasks([options["tasks"]])
    of_file = dict(options) | {"digest": digest_of([task.digest for task in tasks.values()])[:16]}
    vector_options = VectorOptions(options["shots"], options["prompts"], options["heads"])
    statistics = Statistics(confidence=0.95, resamples=9999, seed=seed)
    task = change_task(vector_options, statistics, batch_tokens=4096, tasks=tasks, progress=run.progress)
    return _Column(name, "instruction_vector", of_file, "", None, task)


def _own_kl_columns(
    halves: Mapping[str, tuple[TokenData, TokenData]], name: str, options: dict[str, Any], seed: int, run: Run
) -> list[_Column]:
    """Return the divergence on the base's own samples for each data set that has prompts, on its second half."""
    prompted = {data: second for data, (_, second) in halves.items() if has_prompts(second)}
    if not prompted:
        raise InputError(
            f"{as_typed('metric', 'own_kl')} continues prompts, and neither the old nor the new data have records with "
            "a prompt and a completion, or chats."
        )
    task = own_kl_task(name, options, seed=seed, run=run)
    return [_Column(name, "own_kl", options, data, {data: second}, task) for data, second in prompted.items()]


def _warn_of_checkpoints(comparison: Comparison) -> None:
    """Warn where a checkpoint is the base, is another one again, or was tuned from another base."""
    base, *tuned = comparison.files
    first = {base.digest: "the base itself"}
    for files in tuned:
        if files.digest in first:
            warnings.warn(
                f"{files.source} is {first[files.digest]}; its row is no further evidence.",
                MeasurementWarning,
                stacklevel=3,
            )
        first.setdefault(files.digest, f"{files.source} again")
    for files in tuned:
        tuned_from = files.base.digest if files.base else _entry(files.metadata, "base", "digest")
        if tuned_from not in (None, base.digest):
            warnings.warn(
                f"{files.source} was tuned from another base than {base.source}.", MeasurementWarning, stacklevel=3
            )


# --- rows ---------------------------------------------------------------------------------------------------

Row = tuple[dict[str, Any], list[dict[str, Any]]]  # of the table, and of its details


def _measure_rows(comparison: Comparison, columns: Sequence[_Column], folder: Path, output: Path) -> list[Row]:
    """Measure what is missing, and write both tables whenever a checkpoint is finished."""
    places = {}
    for index in range(1, len(comparison.files)):
        for column in columns:
            path = folder / column.file_name(comparison.files[index].digest)
            places[Cell(column.task, (0, index), column.data, column.tokens, path)] = index, column
    unfinished = {index for cell, (index, _) in places.items() if not cell.path.exists()}
    results: dict[int, dict[_Column, Any]] = {index: {} for index, _ in places.values()}
    rows: dict[int, Row] = {}

    def write() -> None:
        finished = [rows[index] for index in sorted(rows)]
        write_csv(details_path(output), [detail for _, details in finished for detail in details])
        write_csv(output, [row for row, _ in finished])

    for cell, result in run_cells(comparison, list(places)):
        index, column = places[cell]
        results[index][column] = result
        if len(results[index]) == len(columns):
            rows[index] = _row(comparison, index, {column: results[index][column] for column in columns})
            if index in unfinished:
                write()
    if not unfinished:  # the table may have been of other checkpoints
        write()
    return [rows[index] for index in sorted(rows)]


def _row(comparison: Comparison, index: int, results: Mapping[_Column, Any]) -> Row:
    """Return the row of a finished checkpoint, and how sure its numbers are."""
    row = _identity(comparison, index)
    details = []
    for column, result in results.items():
        for number in numbers_of(result, column.name, column.data):
            row[number.column] = number.value
            low, high = number.interval or (None, None)
            details.append(
                {
                    "checkpoint": comparison.names[index],
                    "digest": comparison.files[index].digest,
                    "column": number.column,
                    "data": column.data or None,
                    "metric": column.metric,
                    "options": " ".join(f"{k}={v}" for k, v in column.options.items() if v is not None) or None,
                    "value": number.value,
                    "stderr": number.stderr,
                    "low": low,
                    "high": high,
                    "converged": number.converged,
                    "tokens": number.tokens,
                    "seconds": result.provenance.seconds,
                }
            )
    return row, details


def _identity(comparison: Comparison, index: int) -> dict[str, Any]:
    """Return where a checkpoint comes from."""
    files = comparison.files[index]
    metadata = files.metadata
    # a checkpoint along a run says its step, one at the end how many were taken
    steps = next((metadata[key] for key in ("step", "steps_taken", "steps") if metadata.get(key) is not None), None)
    values = (
        comparison.names[index],
        files.source,
        files.digest,
        comparison.names[0],
        _entry(metadata, "base", "digest"),
        *(metadata.get(key) for key in ("optimizer", "rho", "lr", "seed")),
        steps,
    )
    plain = (value if isinstance(value, (str, int, float)) else None for value in values)
    return dict(zip(_IDENTITY, plain, strict=True))


def _entry(metadata: Mapping[str, Any], key: str, part: str) -> Any:
    inner = metadata.get(key)
    return inner.get(part) if isinstance(inner, Mapping) else None


def _frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return rows as a table in which what is missing is NaN, as when its CSV file is read."""
    import pandas

    table = pandas.DataFrame(list(rows))
    for name in table.columns:
        if name in _TEXT:
            table[name] = table[name].where(table[name].notna(), math.nan)
        elif table[name].isna().all():
            table[name] = table[name].astype("float64")
    return table
