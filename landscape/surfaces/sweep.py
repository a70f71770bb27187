"""Evaluating a model's loss at many places around it, each from the exact base, remembering what is done."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from landscape.data.batches import Batch
from landscape.errors import MeasurementWarning
from landscape.objective.identity import journal_of, provenance_of
from landscape.objective.loss_functions import LossFunction, loss_name
from landscape.objective.objective import Objective
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.results import Journal, Provenance
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import EXACT, Excursion, Fidelity, excursion
from landscape.weights.preservation import preserved
from landscape.weights.vectors import Vector, vector_digest

# Where a point lies: the coefficient of the base weights, and of each vector added to them.
Place = tuple[float, list[tuple[float, Vector]]]


@dataclasses.dataclass(frozen=True)
class Autocast:
    """The type that forward passes computed in, and what that did to the loss of the unperturbed model."""

    dtype: str
    deviation: float  # loss there minus that in the weights' own type, nats per term


class Sweep:
    """Losses by coordinates, each evaluated once; what a journal already knows is not evaluated again.

    Inside `distributed.shared_work` each process takes other points, on all data; so a point's loss has the same bits
    whoever evaluated it. They meet after every point: the journal of the first knows what all have done.
    """

    def __init__(
        self,
        objective: Objective,
        trip: Excursion,
        place: Callable[[Sequence[float]], Place],
        weights: str,
        journal: Journal | None,
    ):
        self._objective, self._trip, self._place, self._journal = objective, trip, place, journal
        self._weights = weights  # digest of the base
        self._done: dict[str, Any] = journal.done if journal else {}
        self._started = time.perf_counter()
        self.fidelity = EXACT
        self.weight = 0.0

    def loss_at(self, coordinates: Sequence[float]) -> float:
        """Loss at the point with these coordinates; NaN or infinite where the model's is."""
        return self._losses([coordinates])[0]

    def _losses(self, places: Sequence[Sequence[float]], told: Callable[[int], Any] = lambda _: None) -> list[float]:
        """Losses at all `places`; `told` how many more are known."""
        keys = [",".join(repr(float(c)) for c in coordinates) for coordinates in places]
        missing = {key: place for key, place in zip(keys, places, strict=True) if key not in self._done}
        told(len(places) - len(missing))
        processes = distributed.share().size
        for start in range(0, len(missing), processes):
            round_of = list(missing)[start : start + processes]

            def measure(share: Share, keys: Sequence[str] = round_of) -> list[float]:
                return self._measure(missing[keys[share.rank]]) if share.rank < len(keys) else []

            for key, record in zip(round_of, distributed.gathered(measure), strict=False):
                self._keep(key, record)
            told(len(round_of))
        losses = []
        for key in keys:
            loss, self.weight, norm_ratio, cosine = (float(value) for value in self._done[key])
            self.fidelity = self.fidelity.worse(Fidelity(norm_ratio, cosine))
            losses.append(loss)
        return losses

    def _measure(self, coordinates: Sequence[float]) -> list[float]:
        base_coefficient, terms = self._place(coordinates)
        fidelity = self._trip.move(terms, base_coefficient)
        loss = self._objective.loss()
        return [loss.mean, loss.weight, fidelity.norm_ratio, fidelity.cosine]

    def over(self, axes: Sequence[np.ndarray], title: str, progress: bool) -> np.ndarray:
        """Losses over the grid of `axes`: shape tuple(len(axis) for axis in axes), 'ij' order."""
        shape = tuple(len(axis) for axis in axes)
        hidden = not progress or distributed.share().rank > 0
        with tqdm(desc=title, total=int(np.prod(shape)), unit="pt", disable=hidden) as bar:
            losses = np.array(self._losses(list(product(*axes)), bar.update)).reshape(shape)
        bad = int((~np.isfinite(losses)).sum())
        if bad:
            warnings.warn(
                f"{title}: {bad} of {losses.size} losses are not finite; they stay as they are.",
                MeasurementWarning,
                stacklevel=3,
            )
        return losses

    def autocast(self, center: float) -> Autocast | None:
        """What autocast did to `center`, the loss of the unperturbed model under it; None without autocast."""
        dtype, key = self._objective.autocast, "center without autocast"
        if dtype is None:
            return None
        if key not in self._done:
            self._trip.restore()
            self._objective.autocast = None
            try:
                exact = self._objective.loss()
            finally:
                self._objective.autocast = dtype
            self._keep(key, [exact.mean, exact.weight, 1.0, 1.0])
        return Autocast(dtype, center - float(self._done[key][0]))

    def _keep(self, key: str, record: list[float]) -> None:
        if self._journal:
            self._journal.append(key, record)
        else:
            self._done[key] = record

    def distance_of_rise(self, dim: int, rise: float = 1.0) -> float:
        """The distance along each of `dim` axes where the loss has risen by `rise` nats, see `surface.auto_span`."""
        center = self.loss_at((0.0,) * dim)

        def risen(s: float) -> bool:
            steps = [tuple(sign * s * (i == k) for i in range(dim)) for k in range(dim) for sign in (1, -1)]
            mean = float(np.mean(self._losses(steps)))
            return not mean - center < rise  # NaN counts as risen

        low, high = 0.0, 0.25
        while not risen(high):
            if high >= 2**8:
                warnings.warn(
                    f"the loss does not rise by {rise} within a distance of {high}; the span is that distance.",
                    MeasurementWarning,
                    stacklevel=3,
                )
                return high
            low, high = high, 2 * high
        if low == 0:
            while risen(high / 2) and high > 2**-20:
                high /= 2
            low = high / 2
        while high / low > 1.05:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if risen(middle) else (middle, high)
        return float(f"{high:.3g}")  # a round number, so that axes read well

    def checked_fidelity(self) -> Fidelity:
        """The worst fidelity of all points so far; MeasurementWarning where rounding swallowed part of a step."""
        if not self.fidelity.faithful:
            warnings.warn(
                f"rounding to the weights' type changed the steps (worst cosine {self.fidelity.cosine:.4f}, norm "
                f"ratio {self.fidelity.norm_ratio:.4f}); load the model in float32 or widen the span.",
                MeasurementWarning,
                stacklevel=3,
            )
        return self.fidelity

    def provenance(self, settings: Mapping[str, Any], seed: int | None, checkpoint: dict | None) -> Provenance:
        """Provenance of a result of this sweep; the base weights' digest stands in for an unnamed checkpoint."""
        seconds = time.perf_counter() - self._started
        return provenance_of(self._objective, settings, seed, checkpoint or {"weights": self._weights}, seconds)


@contextlib.contextmanager
def sweeping(
    model: nn.Module,
    data: Iterable[Batch],
    place: Callable[[Sequence[float]], Place],
    parameters: Parameters,
    *,
    loss_fn: LossFunction | None = None,
    autocast: str | None = None,
    settings: Mapping[str, Any] | None = None,
    others: Sequence[Vector] = (),
    journal: Path | str | None = None,
    offload_base: bool = False,
) -> Iterator[Sweep]:
    """A `Sweep` of `model` in evaluation mode; on leaving, the model is bit for bit what it was.

    `offload_base` keeps the copy of the weights that this takes on the host.

    `settings`, the loss, the weights, the vectors in `others` and the data identify the journal.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved(model))
        objective = Objective(model, data, loss_fn, autocast)
        weights = vector_digest(parameters.values())
        log = None
        if journal is not None:
            said = {"settings": dict(settings or {}), "others": [vector_digest(vector) for vector in others]}
            log = stack.enter_context(journal_of(journal, objective, parameters, loss_name(loss_fn), said))
        trip = stack.enter_context(excursion(parameters, offload_base=offload_base))
        yield Sweep(objective, trip, place, weights, log)
