"""Measurements of checkpoints on data sets, each kept in its own file of one folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from landscape.checkpoints import Checkpoint
from landscape.curvature.results import TraceEstimate
from landscape.curvature.trace import hessian_trace
from landscape.data.tokens import TokenData
from landscape.forgetting.losses import Forgetting, measure_forgetting
from landscape.objective.scope import Run, Scope
from landscape.results import Provenance, Result, digest_of, journaled
from landscape.sharpness import Sharpness, compute_sharpness
from landscape.study.comparison import Comparison
from landscape.surfaces.compute import compute_surface
from landscape.surfaces.result import Surface
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import vector_norm, wide_dtype

AnyResult = TypeVar("AnyResult", bound=Result)
Measure = Callable[[Checkpoint, TokenData, Path], Any]  # the path is for a journal that a killed run continues


def kept(path: Path, kind: type[AnyResult], take: Callable[[Path], AnyResult]) -> AnyResult:
    """The result in the file `path`; where there is none, what `take` returns is put there first.

    take  called with the path of a journal, see `results.journaled`

    Always read from the file, so that a result is the same in the run that took it and in the next. Raises InputError
    where the file is not a result of that kind.
    """
    journaled(path, lambda journal: take(journal).save(path))
    return kind.load(path)


def measure_each(
    comparison: Comparison, folder: Path, measures: Mapping[str, tuple[type[Result], Measure]]
) -> dict[str, dict[tuple[str, str], Any]]:
    """Results by measure and by (checkpoint name, data name); what `folder` holds already is read.

    measures  name of the measure -> type of its results, and what takes it

    Every checkpoint is built once before the first is measured: what cannot be loaded is better said now than after
    hours. Raises InputError where a file in `folder` is of something else.
    """
    files = {measure: comparison.file_names(measure, of_all=False) for measure in measures}
    wanted = [(index, data) for index in range(len(comparison.names)) for data in comparison.data]
    missing = {}
    for measure, (kind, _) in measures.items():
        for key in wanted:
            path = folder / files[measure][key]
            if path.exists():
                found: Any = kind.load(path)
                comparison.check_origin(path, found.provenance, [key[0]], key[1])
            else:
                missing[measure, key] = path
    unfinished = sorted({index for _, (index, _) in missing})
    for index in unfinished[1:]:
        comparison.load(index)
    for index in unfinished:
        checkpoint = comparison.load(index)
        for (measure, (owner, data)), path in missing.items():
            if owner == index:
                kind, take = measures[measure]
                kept(path, kind, functools.partial(_named, take, checkpoint, data, comparison.data[data]))
    return {
        measure: {(comparison.names[i], data): kind.load(folder / files[measure][i, data]) for i, data in wanted}
        for measure, (kind, _) in measures.items()
    }


def _named(take: Measure, checkpoint: Checkpoint, data: str, tokens: TokenData, journal: Path) -> Any:
    return dataclasses.replace(take(checkpoint, tokens, journal), data=data)


def result_files(comparison: Comparison, measures: Mapping[str, Any]) -> list[str]:
    """The names of the files that `measure_each` keeps."""
    return [name for measure in measures for name in comparison.file_names(measure, of_all=False).values()]


# --- what is measured of one checkpoint ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement of any checkpoint on one data set."""

    column: str
    metric: str
    options: dict[str, Any]
    data: str
    tokens: TokenData | None

    @property
    def kind(self) -> type[Result]:
        kinds: dict[str, type[Result]] = {"forgetting": Forgetting, "distance": Distance, "surface": Surface}
        return kinds.get(self.metric, TraceEstimate if self.is_trace else Sharpness)

    @property
    def is_trace(self) -> bool:
        return self.metric in ("trace", "adaptive_trace", "filter_trace")

    def path(self, folder: Path, digest: str) -> Path:
        """Its file for the checkpoint with that digest; the options are in the name, as a digest of theirs."""
        settings = [digest_of(self.options)[:8]] if self.options else []
        return folder / ("-".join([self.metric, *settings, *filter(None, [self.data]), digest]) + ".json")

    def take(self, base: Checkpoint, tuned: Checkpoint, seed: int, progress: bool, journal: Path) -> Any:
        if self.metric == "distance":
            return _distance(base, tuned)
        assert self.tokens is not None
        run = Run(journal=journal, progress=progress)
        result: Any
        if self.metric == "forgetting":
            return measure_forgetting(base, tuned, {self.data: self.tokens}, seed=seed, progress=progress)
        if self.metric == "surface":
            result = compute_surface(tuned, self.tokens, seed=seed, run=run, **self.options)
        elif self.is_trace:  # with its interval, which a sharpness does not have
            options = dict(self.options)
            weighting = "adaptive" if self.metric == "adaptive_trace" else options.pop("normalize", None)
            scope = Scope(curvature=options.pop("curvature"))
            run = dataclasses.replace(run, method=options.pop("method"))
            result = hessian_trace(tuned, self.tokens, weighting=weighting, seed=seed, scope=scope, run=run, **options)
        else:
            how: dict[str, Any] = {"metric": self.metric, "base": base, "seed": seed, "run": run}
            result = compute_sharpness(tuned, self.tokens, **how, **self.options)
        return dataclasses.replace(result, data=self.data)


@dataclasses.dataclass(frozen=True)
class Distance(Result):
    """How far a tuned model is from its base, over all parameters."""

    kind_of_result: ClassVar[str] = "distance"

    name: str
    base: str
    distance: float  # l2 norm of the difference of the weights
    weight_norm: float  # l2 norm of the tuned weights
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("distance", f"{self.name} from {self.base}"),
            ("|w - w_base|", f"{self.distance:.6g}"),
            ("|w|", f"{self.weight_norm:.6g}"),
        ]


def _distance(base: Checkpoint, tuned: Checkpoint) -> Distance:
    started = time.perf_counter()
    before, after = (Parameters(c.model, frozen=True).values() for c in (base, tuned))
    square = 0.0
    for name, tensor in after.items():
        wide = wide_dtype(tensor.device)
        square += float((tensor.to(wide) - before[name].to(wide)).square().sum())
    said = {"base": base.describe(), "tuned": tuned.describe()}
    seconds = time.perf_counter() - started
    provenance = Provenance({}, None, said, None, tuned.device, tuned.dtype, seconds)
    return Distance(tuned.name, base.name, square**0.5, vector_norm(after), provenance)


@dataclasses.dataclass(frozen=True)
class Number:
    """One value of a table, and how sure it is."""

    column: str
    value: float
    stderr: float | None = None
    interval: tuple[float, ...] | None = None  # 95%
    converged: bool | None = None
    tokens: float | None = None


def numbers_of(cell: Cell, found: Any) -> list[Number]:
    """What a result says, by column of the table."""
    on, head = f"_{cell.data}", cell.column
    if isinstance(found, Distance):
        return [Number("distance", found.distance), Number("weight_norm", found.weight_norm)]
    if isinstance(found, Forgetting):
        (task,) = found.tasks
        number = functools.partial(Number, tokens=task.tokens)
        rise = [number("forgetting", task.forgetting, interval=task.forgetting_interval)] if cell.data == "old" else []
        return [
            *rise,
            number(f"loss_before{on}", task.loss_before),
            number(f"loss_after{on}", task.loss_after),
            number(f"accuracy_before{on}", task.accuracy_before),
            number(f"accuracy_after{on}", task.accuracy_after),
            number(f"accuracy_loss{on}", task.accuracy_loss, interval=task.accuracy_interval),
            number(f"kl{on}", task.kl, interval=task.kl_interval),
        ]
    number = functools.partial(Number, tokens=found.weight)
    if isinstance(found, Surface):
        known = {name: value for name, value in found.metrics().values().items() if value is not None}
        return [number(f"{head}_{name.removeprefix('surface_')}{on}", value) for name, value in known.items()]
    interval = found.confidence_interval if isinstance(found, TraceEstimate) else None
    numbers = [number(f"{head}{on}", found.value, found.stderr, interval, found.converged)]
    if cell.metric == "displacement_curvature":
        numbers.append(number(f"predicted_rise{on}", float(found.details["predicted_rise"])))
    return numbers
