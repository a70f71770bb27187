"""A sweep evaluates a model's loss at many places around it, each from the exact base, and remembers what is done."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.heights.height import Height, Reading
from landscape.heights.reading import HeightReader
from landscape.objective.loss_functions import LossFunction
from landscape.objective.objective import Objective
from landscape.objective.scope import Run
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.results import Journal
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import EXACT, Excursion, Fidelity, excursion
from landscape.weights.preservation import preserved
from landscape.weights.vectors import Vector

# Where a point lies: the coefficient of the base weights, and of each vector added to them.
Place = tuple[float, list[tuple[float, Vector]]]


@dataclasses.dataclass(frozen=True)
class Autocast:
    """The type that forward passes computed in, and what that did to the loss of the unperturbed model."""

    dtype: str
    deviation: float  # loss there minus that in the weights' own type, nats per term


class Sweep:
    """Losses and heights by coordinates, each point evaluated once; what a journal knows is not evaluated again.

    Inside `distributed.shared_work` each process evaluates other points, on all of the data, so that the loss of a
    point has the same bits whichever process evaluated it. The processes meet after every point, so that the journal of
    the first process knows what all of them have done.
    """

    def __init__(
        self,
        objective: Objective,
        trip: Excursion,
        place: Callable[[Sequence[float]], Place],
        journal: Journal | None,
        reader: HeightReader | None = None,
    ):
        self.objective = objective
        self._reader = reader
        self._trip, self._place, self._journal = trip, place, journal
        self._done: dict[str, Any] = journal.done if journal else {}
        self._started = time.perf_counter()
        self.fidelity = EXACT
        self.weight = 0.0

    def loss_at(self, coordinates: Sequence[float]) -> float:
        """Loss at the point with these coordinates; NaN or infinite where the model's is."""
        return self.losses([coordinates])[0]

    def losses(self, places: Sequence[Sequence[float]], progress: Callable[[int], Any] = lambda _: None) -> list[float]:
        """Losses at several points.

        Args:
            places: Coordinates of each point.
            progress: Called with the number of points that have become known since the last call.
        """
        keys = [_key(coordinates) for coordinates in places]
        missing = {key: place for key, place in zip(keys, places, strict=True) if key not in self._done}
        progress(len(places) - len(missing))
        processes = distributed.share().size
        for start in range(0, len(missing), processes):
            round_of = list(missing)[start : start + processes]

            def measure(share: Share, keys: Sequence[str] = round_of) -> list[Any]:
                return self._measure(missing[keys[share.rank]]) if share.rank < len(keys) else []

            for key, record in zip(round_of, distributed.gathered(measure), strict=False):
                self._keep(key, record)
            progress(len(round_of))
        losses = []
        for key in keys:
            loss, self.weight, norm_ratio, cosine = (float(value) for value in self._done[key][:4])
            self.fidelity = self.fidelity.worse(Fidelity(norm_ratio, cosine))
            losses.append(loss)
        return losses

    def _measure(self, coordinates: Sequence[float]) -> list[Any]:
        base_coefficient, terms = self._place(coordinates)
        fidelity = self._trip.move(terms, base_coefficient)
        if self._reader is None:
            loss = self.objective.loss()
            return [loss.mean, loss.weight, fidelity.norm_ratio, fidelity.cosine]
        loss, readings = self._reader.read()
        heights = {name: list(reading) for name, reading in readings.items()}
        return [loss.mean, loss.weight, fidelity.norm_ratio, fidelity.cosine, heights]

    def restore(self) -> None:
        """Put the model back to the centre."""
        self._trip.restore()

    def reading_at(self, coordinates: Sequence[float], height: str) -> Reading:
        """The reading of a height at the point with these coordinates."""
        self.losses([coordinates])
        return Reading(*(float(number) for number in self._done[_key(coordinates)][4][height]))

    def over(self, axes: Sequence[np.ndarray], title: str, progress: bool) -> np.ndarray:
        """Losses over the grid of `axes`: shape tuple(len(axis) for axis in axes), 'ij' order.

        Raises:
            InputError: The type of the weights holds less than half of even the farthest step.
        """
        self._refuse_lost_steps([float(axis[np.abs(axis).argmax()]) for axis in axes])
        shape = tuple(len(axis) for axis in axes)
        hidden = not progress or distributed.share().rank > 0
        with tqdm(desc=title, total=int(np.prod(shape)), unit="pt", disable=hidden) as bar:
            losses = np.array(self.losses(list(product(*axes)), bar.update)).reshape(shape)
        bad = int((~np.isfinite(losses)).sum())
        if bad:
            warnings.warn(
                f"{title}: {bad} of {losses.size} losses are not finite; they stay as they are.",
                MeasurementWarning,
                stacklevel=4,
            )
        return losses

    def _refuse_lost_steps(self, farthest: Sequence[float]) -> None:
        """Raise InputError where the weights hold less than half of the step to the farthest point of a grid.

        Losses of such a grid are those of other steps than its axes say, and its curvature is rounding over the square
        of a spacing.
        """
        base_coefficient, terms = self._place(farthest)
        fidelity = self._trip.move(terms, base_coefficient)
        held = fidelity.norm_ratio * fidelity.cosine  # the part of the step that is along it
        if held < 0.5:
            raise InputError(
                f"the weights' type holds {held:.0%} of even the farthest step of the grid, and the rest is lost to "
                f"rounding; widen the {as_typed('span')} or load the model in a wider type."
            )

    def autocast(self, center: float) -> Autocast | None:
        """What autocast did to `center`, the loss of the unperturbed model under it; None without autocast."""
        dtype, key = self.objective.autocast, "center without autocast"
        if dtype is None:
            return None
        if key not in self._done:
            self._trip.restore()
            self.objective.autocast = None
            try:
                exact = self.objective.loss()
            finally:
                self.objective.autocast = dtype
            self._keep(key, [exact.mean, exact.weight, 1.0, 1.0])
        return Autocast(dtype, center - float(self._done[key][0]))

    def _keep(self, key: str, record: list[Any]) -> None:
        if self._journal:
            self._journal.append(key, record)
        else:
            self._done[key] = record

    def checked_fidelity(self) -> Fidelity:
        """The worst fidelity of all points so far; MeasurementWarning where rounding swallowed part of a step."""
        if not self.fidelity.faithful:
            warnings.warn(
                f"rounding to the weights' type changed the steps (worst cosine {self.fidelity.cosine:.4f}, norm "
                f"ratio {self.fidelity.norm_ratio:.4f}); load the model in float32 "
                f"or widen the {as_typed('span')}.",
                MeasurementWarning,
                stacklevel=4,
            )
        return self.fidelity

    @property
    def seconds(self) -> float:
        """Wall time since the sweep began."""
        return time.perf_counter() - self._started


def _key(coordinates: Sequence[float]) -> str:
    """What a journal calls the point with these coordinates."""
    return ",".join(repr(float(coordinate)) for coordinate in coordinates)


@contextlib.contextmanager
def sweeping(
    parameters: Parameters,
    data: Iterable[Batch],
    place: Callable[[Sequence[float]], Place],
    *,
    loss_fn: LossFunction | None,
    run: Run,
    open_journal: Callable[[Objective], Journal] | None = None,
    heights: Sequence[Height] = (),
    model: nn.Module | Checkpoint | None = None,
) -> Iterator[Sweep]:
    """A `Sweep` of a model in evaluation mode; on leaving, the model is bit for bit what it was.

    Args:
        parameters: The parameters that move.
        data: Batches.
        place: The point of weight space that belongs to coordinates.
        loss_fn: As in `Scope`.
        run: `autocast` and `offload_base` of it are used.
        open_journal: Opens the journal of finished points.
        heights: What is read at each point beside the loss.
        model: The model with its tokenizer, for heights that need one; None takes the module of the parameters.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved(parameters.model))
        objective = Objective(parameters.model, data, loss_fn, run.autocast)
        journal = stack.enter_context(open_journal(objective)) if open_journal else None
        reader = HeightReader(heights, model or parameters.model, objective) if heights else None
        trip = stack.enter_context(excursion(parameters, offload_base=run.offload_base))
        yield Sweep(objective, trip, place, journal, reader)
