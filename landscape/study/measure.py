"""One row per checkpoint: where it comes from, how flat it is, how far from its base, what it forgot.

Flatness and outcomes are measured on disjoint examples of the same sources: the loss of the tuned model enters
forgetting with a plus and its sharpness too, so evaluation noise that both share would correlate them (SCIENCE 6).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.checkpoints import Checkpoint, CheckpointFiles, resolve_device
from landscape.data.tokens import Example, TokenData
from landscape.errors import InputError, MeasurementWarning, nearest
from landscape.results import results_folder, write_text
from landscape.sharpness import SHARPNESS_METRICS, check_metric
from landscape.study.comparison import Comparison, open_comparison
from landscape.study.measurements import Cell, Number, kept, numbers_of
from landscape.weights.directions import NORMALIZATIONS, check_same_tensors
from landscape.weights.parameters import Parameters

if TYPE_CHECKING:
    import pandas

Metrics = Sequence[str | tuple[str, Mapping[str, Any]]]

SURFACE_OPTIONS: dict[str, Any] = {"dim": 2, "points": 11, "span": 1.0, "normalize": "filter"}
FLATNESS_METRICS = {name: known.options for name, known in SHARPNESS_METRICS.items()} | {"surface": SURFACE_OPTIONS}
# Cheap, and of every kind: the SAM family, noise, curvature, what rescaling does not move, the picture's numbers.
DEFAULT_METRICS: Metrics = (
    ("worst_case", {"steps": 1}),
    ("worst_case", {"steps": 1, "adaptive": True, "rho": 0.5}),
    ("average_case", {"adaptive": True}),
    "gradient_norm",
    "fisher_rao",
    ("top_eigenvalue", {"rtol": 0.01, "max_matvecs": 100}),
    ("trace", {"rtol": 0.1, "max_probes": 200}),
    ("adaptive_trace", {"rtol": 0.1, "max_probes": 200}),
    "displacement_curvature",
    "surface",
)
FLATNESS_ON = {"old": ("old",), "new": ("new",), "both": ("old", "new")}
_IDENTITY = ("name", "source", "digest", "base", "base_digest", "optimizer", "rho", "lr", "seed", "steps")


def measure_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    old: str,
    new: str,
    output: str | Path,
    *,
    metrics: Metrics | None = None,
    flatness_on: str = "both",
    limit: int | None = None,
    max_length: int = 512,
    batch_tokens: int = 4096,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> pandas.DataFrame:
    """Measure checkpoints that were tuned from `base`: a row for each, written to the CSV file `output`.

    old, new     data of what the base knew and of what the checkpoints were tuned on, as `load_data` takes them.
                 `disjoint_halves` splits each: flatness is measured on the first half, outcomes on the second
    metrics      names, or (name, options); `FLATNESS_METRICS` lists both. Default: `DEFAULT_METRICS`. "surface" is the
                 metrics of a surface along random directions; the others are those of `compute_sharpness`
    flatness_on  "old", "new" or "both"

    Columns of the table; `_old` and `_new` say on which data:
    name, source, digest                      of the checkpoint
    base                                      the name of `base`
    base_digest, optimizer, rho, lr, seed, steps
                                              as `landscape.json` says; blank where it does not
    forgetting                                loss_after_old - loss_before_old: nats per token, as all losses and kl
    loss_before_*, loss_after_*               of the base and of the checkpoint
    accuracy_before_*, accuracy_after_*, accuracy_loss_*
                                              of the next token; the fall from before to after
    kl_*                                      KL(base || checkpoint)
    distance, weight_norm                     |w - w_base| and |w|, l2 over all parameters, adapters merged
    METRIC_*, METRIC-option_value_*           flatness; options that tell two of the same metric apart
    predicted_rise_*                          g'D + D'HD / 2 at the base, with displacement_curvature
    surface_*_*                               see `SurfaceMetrics`

    `<output without .csv>.details.csv` says how sure each number is, in long form: checkpoint, digest, column, data,
    metric, options, value, stderr, low and high (95%), converged, tokens, seconds.

    Every measurement of a checkpoint is a file in the folder `<output>.cells`, named by the checkpoint's digest: a
    killed run continues, and another list of checkpoints measures only what is new. Both tables are rewritten after
    every checkpoint, with those of this call that are finished. Adapters are merged into their base.

    Raises InputError for wrong arguments, checkpoints whose tensors or tokenizers differ from the base's, where the
    folder holds results of other data, base or metrics, and where `output` was not made by this function;
    MeasurementWarning where a checkpoint says it was tuned from another base, is the base, or is given twice.
    """
    import pandas

    output = Path(output)
    if output.is_dir():
        raise InputError(f"{output} is a folder; the output is a CSV file.")
    if not checkpoints:
        raise InputError("there is no checkpoint to measure.")
    if flatness_on not in FLATNESS_ON:
        raise InputError(f"flatness_on={flatness_on!r} is none of {', '.join(FLATNESS_ON)}.")
    chosen = _chosen(DEFAULT_METRICS if metrics is None else metrics)
    comparison = open_comparison(
        [str(base), *map(str, checkpoints)],
        (f"old={old}", f"new={new}"),
        limit=limit,
        max_length=max_length,
        batch_tokens=batch_tokens,
        seed=seed,
        dtype=dtype,
        device=str(resolve_device(device)),
        trust_remote_code=trust_remote_code,
    )
    halves = {name: disjoint_halves(tokens) for name, tokens in comparison.data.items()}
    cells = [Cell("forgetting", "forgetting", {}, name, second) for name, (_, second) in halves.items()]
    cells.append(Cell("distance", "distance", {}, "", None))
    for name in FLATNESS_ON[flatness_on]:
        cells += [Cell(column, metric, options, name, halves[name][0]) for column, (metric, options) in chosen.items()]
    settings = {
        "command": "measure",
        "base": comparison.files[0].digest,
        "data": {name: tokens.digest for name, tokens in comparison.data.items()},
        "flatness_on": flatness_on,
        "metrics": {column: {"metric": name, **options} for column, (name, options) in chosen.items()},
        "dtype": dtype,
        "device": comparison.device,
        "seed": seed,
    }
    folder = output.with_name(f"{output.name}.cells")
    is_new = not (folder / "settings.json").exists()
    if is_new and output.exists():
        raise InputError(f"{output} exists and was not made by this command; choose another --output.")
    with results_folder(folder, settings):
        try:
            study = _Study(comparison, folder, cells, seed, progress)
            study.check()
            for index in study.unfinished():
                study.measure(index)
                study.write(output)
            study.write(output)
        except InputError:
            if is_new and not output.exists():  # settings that cannot be measured must not bar better ones
                for path in folder.iterdir():
                    path.unlink(missing_ok=True)
            raise
    text = dict.fromkeys(("name", "source", "digest", "base", "base_digest", "optimizer"), str)
    return pandas.read_csv(output, dtype=text)


def details_path(output: Path | str) -> Path:
    """Where `measure_checkpoints` says how sure each number of the table `output` is."""
    return Path(output).with_name(f"{Path(output).stem}.details.csv")


def disjoint_halves(data: TokenData) -> tuple[TokenData, TokenData]:
    """Two halves of the examples that share none: for flatness, and for outcomes.

    Distinct examples sorted by the SHA-256 of their tokens go to the two halves in turn, and those that occur more
    than once stay together. Raises InputError where all examples are the same.
    """
    distinct = sorted(set(data.examples), key=_example_digest)
    if len(distinct) < 2:
        raise InputError(
            f"{data.source} has one distinct example; flatness and outcomes are measured on different ones."
        )
    first = set(distinct[::2])
    of_first = tuple(example for example in data.examples if example in first)
    of_second = tuple(example for example in data.examples if example not in first)
    return dataclasses.replace(data, examples=of_first), dataclasses.replace(data, examples=of_second)


def _example_digest(example: Example) -> str:
    return hashlib.sha256(repr((example.input_ids, example.labels)).encode()).hexdigest()


# --- metrics ------------------------------------------------------------------------------------------------


def _chosen(metrics: Metrics) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and all options of each metric, by the column it gets: options are in it where two differ in them."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for given in metrics:
        name, options = (given, {}) if isinstance(given, str) else given
        one = (name, _checked(name, dict(options)))
        if one not in asked:
            asked.append(one)
    if not asked:
        raise InputError("there is no metric to measure.")
    columns = {}
    for name, options in asked:
        others = [o for n, o in asked if n == name]
        apart = [option for option, value in options.items() if any(other[option] != value for other in others)]
        columns["-".join([name, *(f"{option}_{str(options[option]).lower()}" for option in apart)])] = (name, options)
    return columns


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a metric. Raises InputError for names, options and values that it does not have."""
    if name not in FLATNESS_METRICS:
        raise InputError(f"metric={name!r} is none of {', '.join(FLATNESS_METRICS)}.{nearest(name, FLATNESS_METRICS)}")
    if name != "surface":
        return check_metric(name, options, has_base=True)[1]
    unknown = [option for option in options if option not in SURFACE_OPTIONS]
    if unknown:
        raise InputError(
            f"metric='surface' has no option {unknown[0]}; it has {', '.join(SURFACE_OPTIONS)}."
            f"{nearest(unknown[0], SURFACE_OPTIONS)}"
        )
    dim, points, span, normalize = (SURFACE_OPTIONS | options).values()
    for option, is_valid, rule in (
        ("dim", dim in (1, 2), "1 or 2"),
        ("points", isinstance(points, int) and points >= 3, "a whole number of at least 3"),
        ("span", isinstance(span, (int, float)) and 0 < span < math.inf, "one positive number for all checkpoints"),
        ("normalize", normalize in NORMALIZATIONS, f"one of {', '.join(NORMALIZATIONS)}"),
    ):
        if not is_valid:
            raise InputError(f"{option}={options[option]!r} of metric 'surface' must be {rule}.")
    return SURFACE_OPTIONS | options


# --- rows ---------------------------------------------------------------------------------------------------


class _Study:
    """The cells of a base and its checkpoints in one folder, and the tables that they make."""

    def __init__(self, comparison: Comparison, folder: Path, cells: Sequence[Cell], seed: int, progress: bool):
        self._comparison, self._folder, self._cells = comparison, folder, cells
        self._seed, self._progress = seed, progress
        self._rows: dict[int, Any] = {}

    @functools.cached_property
    def _base(self) -> Checkpoint:
        return self._comparison.load(0)

    def unfinished(self) -> list[int]:
        return [i for i in range(1, len(self._comparison.files)) if not self._is_finished(i)]

    def _is_finished(self, index: int) -> bool:
        return all(self._path(cell, index).exists() for cell in self._cells)

    def _path(self, cell: Cell, index: int) -> Path:
        return cell.path(self._folder, self._comparison.files[index].digest)

    def check(self) -> None:
        """Build every checkpoint that is to be measured: what is wrong is better said now than after hours."""
        for index in self.unfinished()[1:]:
            self._load(index)
        first = {self._comparison.files[0].digest: "the base itself"}
        for files in self._comparison.files[1:]:
            if files.digest in first:
                warnings.warn(
                    f"{files.source} is {first[files.digest]}; its row is no further evidence.",
                    MeasurementWarning,
                    stacklevel=3,
                )
            first.setdefault(files.digest, f"{files.source} again")
        for files in self._comparison.files[1:]:
            said = files.base.digest if files.base else _said(files.metadata, "base", "digest")
            if said not in (None, self._comparison.files[0].digest):
                warnings.warn(
                    f"{files.source} was tuned from another base than {self._comparison.files[0].source}.",
                    MeasurementWarning,
                    stacklevel=3,
                )

    def _load(self, index: int) -> Checkpoint:
        checkpoint = self._comparison.load(index)
        try:
            check_same_tensors(*(Parameters(c.model, frozen=True).values() for c in (self._base, checkpoint)))
        except InputError as error:
            raise InputError(f"{self._base.source} is no base of {checkpoint.source}: {error}") from error
        return checkpoint

    def measure(self, index: int) -> None:
        """Take what is missing of one checkpoint."""
        checkpoint = self._load(index)
        for cell in self._cells:
            take = functools.partial(cell.take, self._base, checkpoint, self._seed, self._progress)
            kept(self._path(cell, index), cell.kind, take)

    def write(self, output: Path) -> None:
        """Write both tables, of the checkpoints that are finished."""
        finished = [self._row(i) for i in range(1, len(self._comparison.files)) if self._is_finished(i)]
        if finished:
            write_text(details_path(output), _csv([detail for _, details in finished for detail in details]))
            write_text(output, _csv([row for row, _ in finished]))

    def _row(self, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The row of a finished checkpoint, and how sure its numbers are."""
        if index not in self._rows:
            found: dict[str, float] = {}
            details = []
            for cell in self._cells:
                result: Any = cell.kind.load(self._path(cell, index))
                for number in numbers_of(cell, result):
                    found[number.column] = number.value
                    details.append(self._detail(index, cell, number, result.provenance.seconds))
            self._rows[index] = (self._identity(index) | found, details)
        return self._rows[index]

    def _identity(self, index: int) -> dict[str, Any]:
        files: CheckpointFiles = self._comparison.files[index]
        said = files.metadata
        # a checkpoint along a run says its step, one at the end how many were taken
        steps = next((said[key] for key in ("step", "steps_taken", "steps") if said.get(key) is not None), None)
        values = (
            self._comparison.names[index],
            files.source,
            files.digest,
            self._comparison.names[0],
            _said(said, "base", "digest"),
            *(said.get(key) for key in ("optimizer", "rho", "lr", "seed")),
            steps,
        )
        plain = (value if isinstance(value, (str, int, float)) else None for value in values)
        return dict(zip(_IDENTITY, plain, strict=True))

    def _detail(self, index: int, cell: Cell, number: Number, seconds: float) -> dict[str, Any]:
        return {
            "checkpoint": self._comparison.names[index],
            "digest": self._comparison.files[index].digest,
            "column": number.column,
            "data": cell.data,
            "metric": cell.metric,
            "options": " ".join(f"{name}={value}" for name, value in cell.options.items() if value is not None),
            "value": number.value,
            "stderr": number.stderr,
            "low": number.interval and number.interval[0],
            "high": number.interval and number.interval[1],
            "converged": number.converged,
            "tokens": number.tokens,
            "seconds": seconds,
        }


def _said(metadata: Mapping[str, Any], key: str, part: str) -> Any:
    inner = metadata.get(key)
    return inner.get(part) if isinstance(inner, Mapping) else None


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
