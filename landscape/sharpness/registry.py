"""What a sharpness metric is: a function of a site, registered under a name; and what measuring it returns."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.objective.identity import journal_of
from landscape.objective.objective import Loss
from landscape.objective.scope import Scope
from landscape.objective.subject import Subject
from landscape.parallel.sharding import whole
from landscape.results import Journal, Provenance, Result, from_plain
from landscape.weights.flat import Layout, RandomStep, probe_scale
from landscape.weights.perturbation import EXACT, Excursion, Fidelity

Step = Tensor | RandomStep


@dataclasses.dataclass(frozen=True)
class Sharpness(Result):
    """One sharpness of one model on one data set."""

    kind_of_result: ClassVar[str] = "sharpness"

    metric: str
    name: str  # of the checkpoint
    data: str  # name of the data set
    value: float
    stderr: float | None  # over samples; None where nothing is sampled
    loss: float  # of the unperturbed model, nats per term
    perturbed_loss: float | None  # at the place the value speaks of; the mean over places for averages
    rho: float | None  # size of the perturbation, where the metric has one
    adaptive: bool | None  # whether that size is relative to |w|; None where the metric has no choice
    converged: bool | None  # whether the metric met its tolerance; None where it has none
    samples: int | None
    fidelity: Fidelity  # the worst of all perturbations
    details: dict  # what else the metric says: certificates, parts, other forms of the same number
    options: dict  # the metric's settings
    invariance: str  # which function-preserving changes of the weights leave the value alone
    normalized_logits: bool
    parameters: int  # number of weights
    weight: float  # number of loss terms (supervised tokens)
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        spread = "" if self.stderr is None else f" +- {self.stderr:.2g}"
        said = "  NOT CONVERGED" if self.converged is False else ""
        settings = ", ".join(f"{key}={value}" for key, value in self.options.items() if value is not None)
        logits = ", logits normalized" if self.normalized_logits else ""
        rows = [
            (self.metric, f"{self.name} on {self.data}"),
            ("value", f"{self.value:.6g}{spread}{said}"),
            ("loss", f"{self.loss:.6f} nats per token over {self.weight:.0f} tokens"),
            ("settings", f"{settings or 'none'}{logits}"),
            *((key, f"{value:.6g}" if isinstance(value, float) else str(value)) for key, value in self.details.items()),
            ("invariance", self.invariance),
        ]
        if self.perturbed_loss is not None:
            rows.insert(3, ("perturbed loss", f"{self.perturbed_loss:.6f}"))
        if not self.fidelity.faithful:
            rows.append(
                (
                    "rounding",
                    f"cosine {self.fidelity.cosine:.4f}, norm x{self.fidelity.norm_ratio:.4f} of what was meant",
                )
            )
        return rows


@dataclasses.dataclass(frozen=True)
class Found:
    """What a metric's function returns; see `Sharpness`."""

    value: float
    stderr: float | None = None
    perturbed_loss: float | None = None
    converged: bool | None = None
    samples: int | None = None
    details: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and its options with their defaults."""

    name: str
    measure: Callable[..., Found]
    invariance: str
    needs_base: bool

    @property
    def options(self) -> dict[str, Any]:
        parameters = inspect.signature(self.measure).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


SHARPNESS_METRICS: dict[str, Metric] = {}


def metric(name: str, *, invariance: str, needs_base: bool = False) -> Callable[[Callable[..., Found]], Any]:
    """Register a function `measure(site, *, option=default, ...) -> Found` as a sharpness metric.

    invariance  for the reader of a table: which function-preserving changes of the weights leave the value alone
    needs_base  the site is then at the base checkpoint, and `site.displacement` leads to the tuned one
    """

    def register(measure: Callable[..., Found]) -> Callable[..., Found]:
        SHARPNESS_METRICS[name] = Metric(name, measure, invariance, needs_base)
        return measure

    return register


class Site(Subject):
    """A model at its weights w, and its loss and gradient at w + step for steps, flat of shape (size,) or by name."""

    def __init__(
        self,
        model: nn.Module | Checkpoint,
        data: Iterable[Batch],
        scope: Scope,
        *,
        seed: int,
        bar: tqdm | None = None,
        offload_base: bool = False,
    ):
        super().__init__(model, data, scope)
        self.model_as_given = model
        self.data = data
        self.scope = scope
        self.seed = seed
        self.layout = Layout(self.parameters)
        self.fidelity: Fidelity = EXACT
        self.displacement: Tensor | None = None
        self.trip = Excursion(self.parameters, offload_base)
        self.progress = bar is not None and not bar.disable
        self.journal: Path | str | None = None  # for `remembered`, or for a measurement that keeps one itself
        self.identity: dict = {}  # of that journal, beside the weights, the data and the loss
        self._log: Journal | None = None
        self._bar = bar
        self._center: Loss | None = None

    @property
    def center(self) -> float:
        """Loss at w."""
        if self._center is None:
            self.trip.restore()
            self._center = self.objective.loss()
        return self._center.mean

    def loss_at(self, step: Step, times: float = 1.0) -> float:
        """Loss at w + times * step."""
        self._move(step, times)
        return self.objective.loss().mean

    def gradient_at(self, step: Step | None = None) -> tuple[float, Tensor]:
        """Loss and gradient at w + step, or at w."""
        if step is None:
            self.trip.restore()
        else:
            self._move(step, 1.0)
        loss, gradient = self.objective.gradient(self.parameters)
        return loss.mean, self.layout.flat(gradient)

    def _move(self, step: Step, times: float) -> None:
        named = self.layout.named(step) if isinstance(step, Tensor) else step
        self.fidelity = self.fidelity.worse(self.trip.move([(times, named)]))
        if self._bar is not None:
            self._bar.update(1)

    def remembered(self, key: str, evaluate: Callable[[], float]) -> float:
        """What `evaluate` returns; where the journal knows that of `key`, it is not called."""
        if self.journal is None:
            return evaluate()
        if self._log is None:
            self.trip.restore()
            said = {"seed": self.seed, "metric": self.identity}
            self._log = journal_of(self.journal, self.objective, self.parameters, self.loss, said)
        if key not in self._log.done:
            value = evaluate()
            self._log.append(key, {"value": value, "fidelity": self.fidelity})
        known = self._log.done[key]
        self.fidelity = self.fidelity.worse(from_plain(Fidelity, known["fidelity"]))
        return float(known["value"])

    def close(self) -> None:
        """Bring the weights back and close the journal."""
        self.trip.restore()
        if self._log is not None:
            self._log.close()

    def expect(self, evaluations: int) -> None:
        """Tell the progress bar how many evaluations it looks like."""
        if self._bar is not None:
            self._bar.total = evaluations
            self._bar.refresh()

    def scale(self, weighting: str | None) -> Tensor:
        """The diagonal of a weighting (`vectors.probe_scale`), shape (size,); ones for None."""
        if weighting is None:
            return self.layout.empty().fill_(1)
        return probe_scale(self.parameters, weighting)

    def weights(self) -> Tensor:
        """w itself, shape (size,)."""
        self.trip.restore()
        return self.layout.flat(self.parameters.values())

    def noise(self, stream: str, index: int) -> Tensor:
        """Standard normal, shape (size,), from the seed, the stream, the index and tensor names alone."""
        return self.layout.random(self.seed, f"{stream} {index}")

    def random_step(self, stream: str, index: int, rho: float, weighting: str | None) -> RandomStep:
        """rho times `scale(weighting)` times `noise`, a tensor at a time."""
        named = f"{stream} {index}"
        return RandomStep(self.parameters, self.trip, rho=rho, weighting=weighting, seed=self.seed, stream=named)


def check_positive(**numbers: float) -> None:
    """Raise InputError naming the first option that is not a positive finite number."""
    for name, value in numbers.items():
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise InputError(f"{name}={value} must be positive and finite.")


def norm_of(vector: Tensor) -> float:
    """l2 norm in float64."""
    return float(whole(torch.linalg.vector_norm(vector.double())))


def same(u: Tensor, v: Tensor) -> bool:
    """Whether two vectors are equal, in all processes that hold them."""
    return not int(whole((u != v).sum()))


def dot(u: Tensor, v: Tensor) -> float:
    """Inner product in float64."""
    return float(whole(u.double() @ v.double()))
