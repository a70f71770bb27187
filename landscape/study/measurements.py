"""What can be measured of one checkpoint, as tasks of the runner."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from landscape.basins.compute import END_OF_STEP
from landscape.basins.radius import MOST
from landscape.basins.result import Basin
from landscape.checkpoints import Checkpoint
from landscape.curvature.results import TraceEstimate
from landscape.errors import InputError
from landscape.forgetting.harness import BenchmarkForgetting
from landscape.forgetting.losses import Forgetting, measure_forgetting
from landscape.forgetting.own_samples import own_samples
from landscape.instruction_vectors.changed import InstructionVectorChange
from landscape.instruction_vectors.result import Estimate
from landscape.linalg.precision import wide_dtype
from landscape.objective.scope import Run, Scope
from landscape.results import Provenance, Result
from landscape.sharpness import SHARPNESS_METRICS, Sharpness, compute_sharpness
from landscape.sharpness.checking import check_sharpness
from landscape.study.effort import Effort, sharpness_effort
from landscape.study.request import SURFACE_OPTIONS
from landscape.study.runner import Task
from landscape.surfaces.compute import compute_surface
from landscape.surfaces.result import Surface
from landscape.weights.directions import check_same_tensors
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import vector_norm


def sharpness_task(
    name: str,
    metric: str,
    options: Mapping[str, Any],
    *,
    base: Checkpoint | None = None,
    seed: int = 0,
    normalize_logits: bool = False,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> Task:
    """Return the task of measuring one sharpness.

    Args:
        name: The name of the task.
        metric: The name of the metric, as `compute_sharpness` takes it.
        options: The options of the metric.
        base: The checkpoint that the others were tuned from. Where the task is done with two checkpoints, the first of
            them takes its place.
        seed: Seed for random perturbations.
        normalize_logits: Measure the loss of normalized logits.
        scope: Which weights and which loss.
        run: How it is run; the journal is the runner's.
    """

    def measure(models: Sequence[Checkpoint], tokens: Any, journal: Path) -> Sharpness:
        return compute_sharpness(
            models[-1],
            tokens,
            metric=metric,
            base=_base_of(models, base),
            seed=seed,
            normalize_logits=normalize_logits,
            scope=scope,
            run=dataclasses.replace(run, journal=journal),
            **options,
        )

    def check(models: Sequence[Checkpoint], tokens: Any) -> None:
        check_sharpness(models[-1], tokens, metric=metric, base=_base_of(models, base), scope=scope, **options)

    all_options = {**SHARPNESS_METRICS[metric].options, **options}
    return Task(name, Sharpness, measure, check, earlier_types=(TraceEstimate,), effort=sharpness_effort(all_options))


def _base_of(models: Sequence[Checkpoint], base: Checkpoint | None) -> Checkpoint | None:
    return models[0] if len(models) > 1 else base


def random_surface_task(name: str, options: Mapping[str, Any], *, seed: int = 0, run: Run = Run()) -> Task:
    """Return the task of measuring a surface along random directions; options as `compute_surface` takes them."""

    def measure(models: Sequence[Checkpoint], tokens: Any, journal: Path) -> Surface:
        return compute_surface(models[-1], tokens, seed=seed, run=dataclasses.replace(run, journal=journal), **options)

    settings = {**SURFACE_OPTIONS, **options}
    effort = Effort(points=int(settings["points"]) ** int(settings["dim"]), vectors=int(settings["dim"]) + 1)
    return Task(name, Surface, measure, effort=effort)


def forgetting_task(
    *,
    resamples: int = 9999,
    seed: int = 0,
    run: Run = Run(),
    benchmarks: Callable[[Checkpoint, Checkpoint], Sequence[BenchmarkForgetting]] | None = None,
) -> Task:
    """Return the task of measuring what the second of two checkpoints lost against the first, on data sets by name.

    Args:
        resamples: Number of bootstrap resamples of the examples.
        seed: Seed for the bootstrap.
        run: How it is run; only `progress` has a meaning.
        benchmarks: Called with base and tuned checkpoint for scores of benchmarks to be kept in the result.
    """

    def measure(models: Sequence[Checkpoint], tokens: Any, journal: Path) -> Forgetting:
        base, tuned = models
        scores = benchmarks(base, tuned) if benchmarks is not None else ()
        options: dict[str, Any] = {"resamples": resamples, "seed": seed, "progress": run.progress}
        return measure_forgetting(base, tuned, tokens, **options, benchmarks=scores)

    return Task("forgetting", Forgetting, measure)


def own_kl_task(name: str, options: Mapping[str, Any], *, seed: int = 0, run: Run = Run()) -> Task:
    """Return the task of measuring the KL of two checkpoints on what the first says to the prompts of a data set.

    Args:
        name: What the task is called.
        options: Those of `own_samples`.
        seed: Seed of the samples and of the bootstrap.
        run: How it is run; only `progress` has a meaning.
    """
    sampled: dict[tuple[str, str], Any] = {}  # the base and the prompts are the same for all checkpoints

    def measure(models: Sequence[Checkpoint], tokens: Any, journal: Path) -> Forgetting:
        base, tuned = models
        ((data, prompts),) = tokens.items()
        key = base.digest, prompts.digest
        if key not in sampled:
            sampled[key] = own_samples(base, prompts, seed=seed, **options)
        return measure_forgetting(base, tuned, {data: sampled[key]}, seed=seed, progress=run.progress)

    return Task(name, Forgetting, measure)


def distance_task() -> Task:
    """Return the task of measuring how far the second of two checkpoints is from the first."""

    def measure(models: Sequence[Checkpoint], tokens: Any, journal: Path) -> Distance:
        base, tuned = models
        return _distance(base, tuned)

    def check(models: Sequence[Checkpoint], tokens: Any) -> None:
        base, tuned = models
        try:
            check_same_tensors(*(Parameters(c.model, frozen=True).values() for c in (base, tuned)))
        except InputError as error:
            raise InputError(f"{base.source} is no base of {tuned.source}: {error}") from error

    return Task("distance", Distance, measure, check)


@dataclasses.dataclass(frozen=True)
class Distance(Result):
    """How far a tuned model is from its base, over all parameters.

    Attributes:
        name: The name of the tuned checkpoint.
        base: The name of its base.
        distance: The l2 norm of the difference of the weights.
        weight_norm: The l2 norm of the tuned weights.
        provenance: Where the numbers come from.
    """

    kind_of_result: ClassVar[str] = "distance"

    name: str
    base: str
    distance: float
    weight_norm: float
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values for a table."""
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
    described = {"base": base.describe(), "tuned": tuned.describe()}
    seconds = time.perf_counter() - started
    provenance = Provenance({}, None, described, None, tuned.device, tuned.dtype, seconds)
    return Distance(tuned.name, base.name, square**0.5, vector_norm(after), provenance)


@dataclasses.dataclass(frozen=True)
class Number:
    """One value of a table, and how sure it is.

    Attributes:
        column: The column that it is in.
        value: The value itself.
        stderr: Its standard error; None where it has none.
        interval: Its 95% interval; None where it has none.
        converged: Whether it met its tolerance; None where it has none.
        tokens: The number of supervised tokens behind it.
    """

    column: str
    value: float
    stderr: float | None = None
    interval: tuple[float, ...] | None = None
    converged: bool | None = None
    tokens: float | None = None


def numbers_of(result: Any, column: str, data: str) -> list[Number]:
    """Return what a result says, by columns of the table.

    Args:
        result: What a task of this module measured.
        column: The start of the columns' names, for results of which there may be several kinds.
        data: The name of the data set, which ends the columns' names.
    """
    if isinstance(result, Distance):
        return [Number("distance", result.distance), Number("weight_norm", result.weight_norm)]
    if isinstance(result, Forgetting):
        (task,) = result.tasks
        number = functools.partial(Number, tokens=task.tokens)
        if column != "forgetting":  # On the base's own samples; losses on those are no outcome.
            return [number(f"{column}_{data}", task.kl, interval=task.kl_interval)]
        rise = [number("forgetting", task.forgetting, interval=task.forgetting_interval)] if data == "old" else []
        return [
            *rise,
            number(f"loss_before_{data}", task.loss_before),
            number(f"loss_after_{data}", task.loss_after),
            number(f"accuracy_before_{data}", task.accuracy_before),
            number(f"accuracy_after_{data}", task.accuracy_after),
            number(f"accuracy_loss_{data}", task.accuracy_loss, interval=task.accuracy_interval),
            number(f"kl_{data}", task.kl, interval=task.kl_interval),
        ]
    if isinstance(result, InstructionVectorChange):
        return _instruction_numbers(result, column)
    number = functools.partial(Number, tokens=result.weight)
    if isinstance(result, Basin):
        low, high = result.interval
        numbers = [_length(f"{column}_{data}", result.median, MOST, result.weight, (low, high))]
        if result.worst is not None:
            numbers.append(_length(f"{column}_worst_{data}", result.worst.value, MOST, result.weight))
        if result.step is not None:
            numbers.append(_length(f"{column}_step_{data}", result.step.value, END_OF_STEP, result.weight))
        return numbers
    if isinstance(result, Surface):
        known = {name: value for name, value in result.metrics().values().items() if value is not None}
        return [number(f"{column}_{name.removeprefix('surface_')}_{data}", value) for name, value in known.items()]
    numbers = [number(f"{column}_{data}", result.value, result.stderr, result.confidence_interval, result.converged)]
    if isinstance(result, Sharpness) and "predicted_rise" in result.details:
        numbers.append(number(f"predicted_rise_{data}", float(result.details["predicted_rise"])))
    return numbers


def _length(
    column: str, radius: float, end: float, tokens: float, interval: tuple[float, float] | None = None
) -> Number:
    """Return a radius; one that is censored is the end of its ray, and has not converged."""
    return Number(column, min(radius, end), interval=interval, converged=not math.isinf(radius), tokens=tokens)


def _instruction_numbers(result: InstructionVectorChange, column: str) -> list[Number]:
    """Return the means over in-context tasks, with standard errors over tasks and, of a single task, its interval."""
    apart = column.removeprefix("instruction_vector")

    def number(name: str, estimates: Sequence[Estimate]) -> Number:
        values = [estimate.value for estimate in estimates]
        if len(values) == 1:
            return Number(name, values[0], interval=(estimates[0].low, estimates[0].high))
        return Number(name, statistics.fmean(values), stderr=statistics.stdev(values) / len(values) ** 0.5)

    tasks = result.tasks
    return [
        number(f"{column}_cosine", [task.cosine for task in tasks]),
        number(f"{column}_heads_kept", [task.overlap for task in tasks]),
        number(f"{column}_effect_lost", [task.effect_lost for task in tasks]),
        *(
            number(f"accuracy_loss_{shots}{apart}", [getattr(task, shots).lost for task in tasks])
            for shots in ("few_shot", "zero_shot")
        ),
        *(
            Number(f"accuracy_{when}_{shots}{apart}", statistics.fmean(getattr(getattr(t, shots), when) for t in tasks))
            for shots in ("few_shot", "zero_shot")
            for when in ("before", "after")
        ),
    ]
