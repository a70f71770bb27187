"""How long a run will take at most, and what it will hold in memory: timed on one batch, and said before it starts."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.curvature.operators.memory import LARGE, WORKING_VECTORS, in_bytes
from landscape.linalg.basis import PACKED_RTOL, PACKED_SHARE
from landscape.linalg.lanczos import default_basis_size
from landscape.objective.ascent import ASCENT_GRADIENTS
from landscape.objective.objective import Objective
from landscape.parallel import distributed
from landscape.surfaces.kind import AlongDirections, SurfaceKind
from landscape.surfaces.kinds.eigen import EigenSurface
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import excursion
from landscape.weights.preservation import preserved

_log = logging.getLogger(__name__)

WORTH_SAYING = 60.0  # seconds: a shorter run needs no announcement
_PREPARED = 1.0  # seconds: in a longer pass, what it prepares for later ones is no part worth leaving out
# In passes of a loss: a gradient goes back through the model too, a product with the Hessian goes twice each way.
_GRADIENT, _PRODUCT = 3.0, 7.0
_STEP_VECTORS = 5  # that an ascent holds, as large as the weights: step, gradient, scale, the best so far, a trial
_SEARCH = 48  # evaluations along each axis until a rise is found, at most


@dataclasses.dataclass(frozen=True)
class Effort:
    """The most that one measurement does.

    Attributes:
        points: Losses, each at other weights.
        gradients: Gradients.
        products: Products of the Hessian or the Gauss-Newton matrix with a vector.
        vectors: What it holds beside the weights, in vectors as large as they are.
        eigenvalues: The most eigenvalues that it looks for at once: the Lanczos method holds vectors for them, and
            fewer for a large model, see `vectors_of`.

    Example:
        >>> Effort(points=25) + Effort(gradients=2, vectors=3)
        Effort(points=25, gradients=2, products=0, vectors=3, eigenvalues=0)
    """

    points: int = 0
    gradients: int = 0
    products: int = 0
    vectors: int = 0
    eigenvalues: int = 0

    def __add__(self, other: Effort) -> Effort:
        """Return the effort of two measurements, one after the other."""
        return Effort(
            self.points + other.points,
            self.gradients + other.gradients,
            self.products + other.products,
            max(self.vectors, other.vectors),
            max(self.eigenvalues, other.eigenvalues),
        )

    def vectors_of(self, weights: int) -> int:
        """Return how many vectors as large as the weights it holds, of a model of so many weights.

        Example:
            >>> Effort(eigenvalues=2).vectors_of(1_000_000), Effort(eigenvalues=2).vectors_of(135_000_000)
            (23, 6)
        """
        if not self.eigenvalues:
            return self.vectors
        packed = weights >= LARGE
        kept = default_basis_size(self.eigenvalues, packed)
        return max(self.vectors, WORKING_VECTORS + (math.ceil(kept * PACKED_SHARE) if packed else kept))

    def seconds(self, loss: float, move: float) -> float:
        """Return the time it takes, from the seconds of one loss over the data and of one change of all weights."""
        return self.points * (loss + move) + (self.gradients * _GRADIENT + self.products * _PRODUCT) * loss

    def describe(self) -> str:
        """Return what is done, in words: "625 points and 300 products"."""
        counts = (("points", self.points), ("gradients", self.gradients), ("products", self.products))
        return " and ".join(f"{count:,} {what}" for what, count in counts if count)


def surface_effort(kind: SurfaceKind, models: int) -> Effort:
    """Return the effort of one surface.

    Args:
        kind: Its kind and settings.
        models: The number of models that it is of.
    """
    points = math.prod(kind.counts) + 1
    if not isinstance(kind, AlongDirections):
        return Effort(points=points, vectors=models + 1)
    search = _SEARCH * kind.dim if kind.has_open_span else 0
    if isinstance(kind, EigenSurface):
        found = Effort(products=300, eigenvalues=kind.dim)
    else:
        found = Effort(gradients=ASCENT_GRADIENTS, vectors=_STEP_VECTORS) if kind.kept_directions else Effort()
    return found + Effort(points=points + search, vectors=kind.dim + 1)


def sharpness_effort(options: Mapping[str, Any]) -> Effort:
    """Return the most that a sharpness metric does, by its options.

    Args:
        options: All options of the metric. What is bounded by one of the names `steps`, `restarts`, `samples`,
            `max_probes` and `max_matvecs` is counted; every other metric takes some tens of passes.
    """
    most = Effort(points=20, gradients=2, products=2, vectors=3)
    if "steps" in options:
        # Where it is left to the metric, which takes one start for a single step, three starts are the most.
        starts = options.get("restarts", 1) or (1 if options["steps"] == 1 else 3)
        most += Effort(gradients=int(options["steps"]) * int(starts), vectors=_STEP_VECTORS)
    if "samples" in options:
        most += Effort(points=int(options["samples"]), vectors=1)
    if "max_probes" in options:
        most += Effort(products=int(options["max_probes"]), vectors=3)
    if "max_matvecs" in options:
        most += eigenvalues_effort(1, int(options["max_matvecs"]), float(options.get("rtol", PACKED_RTOL)))
    return most


def eigenvalues_effort(k: int, max_matvecs: int, rtol: float) -> Effort:
    """Return the effort of `k` eigenvalues to `rtol` by at most `max_matvecs` products."""
    if rtol < PACKED_RTOL:  # The basis is not packed then, however large the model is.
        return Effort(products=max_matvecs, vectors=default_basis_size(k) + WORKING_VECTORS)
    return Effort(products=max_matvecs, eigenvalues=k)


def trace_effort(max_probes: int) -> Effort:
    """Return the effort of a trace by at most `max_probes` probes."""
    return Effort(products=max_probes, vectors=3)


def effort_of_defaults(measure: Callable[..., Any], times: int = 1) -> Effort:
    """Return the most that a function of curvature does with the defaults of its options.

    Args:
        measure: `hessian_layers` or `hessian_density`.
        times: How often it looks for eigenvalues: once for each layer.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(measure).parameters.items()}
    if "steps" in defaults:
        return Effort(products=defaults["probes"] * defaults["steps"], vectors=4 * defaults["probes"])
    return Effort(products=defaults["max_probes"] + times * defaults["max_matvecs"], vectors=3, eigenvalues=1)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What measurements of one group of models will take.

    Attributes:
        results: Their number.
        effort: The most that they do.
        seconds: The most time that they take.
        weights: The bytes of the weights of the models.
        vectors: The number of vectors that they hold, each as large as the weights of one model.
        vector: The bytes of such a vector.
    """

    results: int
    effort: Effort
    seconds: float
    weights: int
    vectors: int
    vector: int

    @property
    def memory(self) -> int:
        """The bytes of the weights and of the vectors beside them."""
        return self.weights + self.vectors * self.vector


def estimate(models: Sequence[Checkpoint], measurements: Iterable[tuple[Effort, Any]]) -> Estimate:
    """Time one batch of each data set, and so estimate what measurements will take.

    Args:
        models: The models that are measured together; the last one is timed.
        measurements: The effort of each measurement, and its data.
    """
    module = models[-1].model
    move: float | None = None
    losses: dict[int, float] = {}
    seconds, effort, results = 0.0, Effort(), 0
    for one, tokens in measurements:
        sets = list(tokens.values()) if isinstance(tokens, Mapping) else [tokens]
        with distributed.alone():
            for data in sets:
                if id(data) not in losses:
                    losses[id(data)] = _seconds_of_loss(module, data)
            if move is None:
                move = _seconds_of_move(module)
        seconds += sum(one.seconds(losses[id(data)], move) for data in sets) / distributed.share().size
        effort, results = effort + one, results + 1
    parameters = [list(model.model.parameters()) for model in models]
    weights = sum(p.numel() * p.element_size() for of_model in parameters for p in of_model)
    vector = sum(p.numel() * max(p.element_size(), 4) for p in parameters[-1])
    vectors = effort.vectors_of(sum(p.numel() for p in parameters[-1]))
    return Estimate(results, effort, seconds, weights, vectors, vector)


def announce(estimates: Sequence[Estimate]) -> None:
    """Say what a run will take, if that is more than a minute."""
    seconds = sum(one.seconds for one in estimates)
    if seconds < WORTH_SAYING:
        return
    largest = max(estimates, key=lambda one: one.memory)
    effort = sum((one.effort for one in estimates), Effort())
    count = sum(one.results for one in estimates)
    _log.info(
        "%s to measure, with at most %s: at most about %s, judged by one batch%s; memory: about %s for weights and "
        "%d vectors as large, beside the activations of a batch.",
        "1 result" if count == 1 else f"{count} results",
        effort.describe(),
        duration(seconds),
        " (eigenvalues and traces end earlier once they have converged)" if effort.products else "",
        in_bytes(largest.memory),
        largest.vectors,
    )


def duration(seconds: float) -> str:
    """Return a time with its unit.

    Example:
        >>> duration(75), duration(5400), duration(200_000)
        ('1.2 minutes', '1.5 hours', '2.3 days')
    """
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 1.5 * length or (unit == "hours" and seconds >= length):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.1f} minutes"


def _seconds_of_loss(module: Any, data: Any) -> float:
    """Return the time of one loss over all batches, from that over the first one."""
    batches = list(data)
    with preserved(module):
        objective = Objective(module, batches[:1])
        seconds = _seconds_of(objective)
        if seconds < _PREPARED:
            seconds = _seconds_of(objective)  # the first pass also prepares what all later ones use
    sizes = [batch["input_ids"].numel() for batch in batches]
    return seconds * sum(sizes) / sizes[0]


def _seconds_of(objective: Objective) -> float:
    """Return the time of one evaluation."""
    started = time.perf_counter()
    objective.loss()
    return time.perf_counter() - started


def _seconds_of_move(module: Any) -> float:
    """Return the time of one change of all weights."""
    parameters = Parameters(module, frozen=True)
    with preserved(module), excursion(parameters) as trip:
        weights = {name: tensor.clone() for name, tensor in itertools.islice(parameters.values().items(), 1)}
        trip.move([(1e-3, weights)])
        started = time.perf_counter()
        trip.move([(1e-3, weights)])
        seconds = time.perf_counter() - started
    moved = sum(tensor.numel() for tensor in weights.values())
    return seconds * sum(p.numel() for p in module.parameters()) / moved
