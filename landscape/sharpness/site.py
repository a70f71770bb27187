"""Where a metric measures: a model at its weights w, and the loss and gradient at steps away from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.linalg.precision import wide_dot
from landscape.objective.identity import journal_of
from landscape.objective.objective import Loss
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject
from landscape.parallel.sharding import whole
from landscape.results import Journal, from_plain
from landscape.weights.flat import Layout, RandomStep, probe_scale
from landscape.weights.perturbation import EXACT, Excursion, Fidelity

Step = Tensor | RandomStep


class Site(Subject):
    """A model at its weights w, and its loss and gradient at w + step.

    Steps are flat vectors of shape (size,), or `RandomStep`s. The weights have to be brought back with `close`.

    Attributes:
        run: The journal and the progress bar that a metric may hand on to the functions of the room `curvature`.
        seed: Seed of all that is random.
        layout: The selected parameters as one flat vector.
        fidelity: What rounding left of the steps so far, at the worst.
        displacement: The step from the base to the tuned weights, shape (size,), where a base was given.
        excursion: What moves the weights.
        identity: What the journal is of, beside the weights, the data and the loss.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        scope: Which parameters and which loss.
        run: `journal`, `progress` and `offload_base` are taken.
        seed: Seed of all that is random.
        bar: The progress bar, which counts evaluations.
        identity: The settings of the measurement.
    """

    def __init__(
        self,
        model: nn.Module | Checkpoint,
        data: Iterable[Batch],
        scope: Scope,
        run: Run,
        *,
        seed: int,
        bar: tqdm,
        identity: dict[str, Any],
    ):
        super().__init__(model, data, scope)
        self.run = Run(journal=run.journal, progress=run.progress)
        self.seed = seed
        self.identity = identity
        self.layout = Layout(self.parameters)
        self.fidelity: Fidelity = EXACT
        self.displacement: Tensor | None = None
        self.excursion = Excursion(self.parameters, run.offload_base)
        self._journal: Journal | None = None
        self._bar = bar
        self._center: Loss | None = None

    @property
    def center(self) -> float:
        """The loss at w."""
        if self._center is None:
            self.excursion.restore()
            self._center = self.objective.loss()
        return self._center.mean

    def loss_at(self, step: Step, times: float = 1.0) -> float:
        """Return the loss at w + times * step."""
        self._move(step, times)
        return self.objective.loss().mean

    def gradient_at(self, step: Step | None = None) -> tuple[float, Tensor]:
        """Return loss and gradient at w + step, or at w."""
        if step is None:
            self.excursion.restore()
        else:
            self._move(step, 1.0)
        loss, gradient = self.objective.gradient(self.parameters)
        return loss.mean, self.layout.flat(gradient)

    def _move(self, step: Step, times: float) -> None:
        """Move the weights to w + times * step, and note what rounding left of it."""
        named = self.layout.named(step) if isinstance(step, Tensor) else step
        self.fidelity = self.fidelity.worse(self.excursion.move([(times, named)]))
        self._bar.update(1)

    def journaled(self, key: str, evaluate: Callable[[], float]) -> float:
        """Return what `evaluate` returns; where the journal knows that of `key`, it is not called."""
        if self.run.journal is None:
            return evaluate()
        if self._journal is None:
            self.excursion.restore()  # the journal is of the weights as they are at w
            settings = {"seed": self.seed, "metric": self.identity}
            self._journal = journal_of(self.run.journal, self.objective, self.parameters, self.loss, settings)
        if key not in self._journal.done:
            value = evaluate()
            self._journal.append(key, {"value": value, "fidelity": self.fidelity})
        known = self._journal.done[key]
        self.fidelity = self.fidelity.worse(from_plain(Fidelity, known["fidelity"]))
        return float(known["value"])

    def close(self) -> None:
        """Bring the weights back and close the journal."""
        self.excursion.restore()
        if self._journal is not None:
            self._journal.close()

    def set_total(self, evaluations: int) -> None:
        """Tell the progress bar how many evaluations are planned."""
        self._bar.total = evaluations
        self._bar.refresh()

    def scale(self, weighting: str | None) -> Tensor:
        """Return the diagonal of a weighting (`flat.probe_scale`), shape (size,); ones for None."""
        if weighting is None:
            return self.layout.empty().fill_(1)
        return probe_scale(self.parameters, weighting)

    def weights(self) -> Tensor:
        """Return w itself, shape (size,)."""
        self.excursion.restore()
        return self.layout.flat(self.parameters.values())

    def noise(self, stream: str, index: int) -> Tensor:
        """Return standard normal numbers, shape (size,), from seed, stream, index and tensor names alone."""
        return self.layout.random(self.seed, f"{stream} {index}")

    def random_step(self, stream: str, index: int, rho: float, weighting: str | None) -> RandomStep:
        """Return rho times `scale(weighting)` times `noise`, whose tensors are drawn one at a time."""
        named = f"{stream} {index}"
        return RandomStep(self.parameters, self.excursion, rho=rho, weighting=weighting, seed=self.seed, stream=named)


def check_positive(**numbers: float) -> None:
    """Raise InputError naming the first option that is not a positive finite number."""
    for name, value in numbers.items():
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise InputError(f"{name}={value} must be positive and finite.")


def norm_of(vector: Tensor) -> float:
    """Return the l2 norm, computed in float64."""
    if isinstance(vector, DTensor):
        return float(whole(torch.linalg.vector_norm(vector.double())))
    return math.sqrt(float(wide_dot(vector, vector)))


def same(u: Tensor, v: Tensor) -> bool:
    """Return whether two vectors are equal, in all processes that hold them."""
    return not int(whole((u != v).sum())) if isinstance(u, DTensor) else torch.equal(u, v)


def dot(u: Tensor, v: Tensor) -> float:
    """Return the inner product, computed in float64."""
    if isinstance(u, DTensor):
        return float(whole(u.double() @ v.double()))
    return float(wide_dot(u, v))
