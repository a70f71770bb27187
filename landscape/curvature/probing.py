"""The samples of a trace: v'Hv for random probes v, by products (deflated where their spread is large) or by losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.curvature.operators.differences import SecondDifferences
from landscape.curvature.operators.memory import LARGE, fits, is_large, require_memory
from landscape.curvature.operators.opening import curvature_of
from landscape.curvature.results import LayerTrace
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.linalg.deflation import Deflation
from landscape.linalg.operator import ScaledOperator, finite_product
from landscape.linalg.sampling import (
    EARLY,
    FIRST_LOOK,
    SampleMean,
    interval_of,
    planned_samples,
    sample_mean,
    student_interval,
)
from landscape.objective.subject import Subject, group_by_layer
from landscape.parallel.sharding import whole
from landscape.results import Journal
from landscape.weights.flat import Layout, probe_scale
from landscape.weights.perturbation import excursion
from landscape.weights.preservation import preserved

BLOCK = 8  # probes that share a graph
SKETCH = 16, 64  # the smallest and the largest number of products that a basis of deflation is made of
# The number of further probes from which deflation is tried. Its basis costs twice as many products as it has vectors,
# and on the Hessians of small language models 16 vectors took away only two fifths of the variance, whereas a few
# dominant eigenvalues are taken away whole. A probe by losses costs a third of a product.
PLANNED = {"products": 200, "losses": 600}


class TraceEstimator:
    """v'Hv for the probes of one trace, by products or by losses, each kept in a journal.

    Args:
        subject: What the trace is of.
        weighting: The diagonal D of tr(D H D); None for 1.
        seed: Seed of the probes.
        precision: (rtol, confidence, max_probes).
        journal: Where finished probes are kept; None for nowhere.
        bar: The progress bar, which counts probes.
    """

    def __init__(
        self,
        subject: Subject,
        weighting: str | None,
        seed: int,
        precision: tuple[float, float, int],
        journal: Journal | None,
        bar: tqdm,
    ):
        self._objective, self._parameters = subject.objective, subject.parameters
        self._curvature, self._seed = subject.scope.curvature, seed
        self._rtol, self._confidence, self._max_probes = precision
        self._layout = Layout(self._parameters)
        self._layers = group_by_layer(self._layout.names)
        self._stream = "probe" if weighting is None else f"{weighting} probe"
        self._scale = None if weighting is None else probe_scale(self._parameters, weighting)
        self._done: dict[str, Any] = journal.done if journal else {}
        self._journal = journal
        self._losses_will_do = False
        self._bar = bar

    def _probe(self, index: int) -> Tensor:
        """Return the probe D v, shape (size,); the signs v are those of this weighting alone."""
        probe = self._layout.random(self._seed, f"{self._stream} {index}", rademacher=True)
        return probe if self._scale is None else probe * self._scale

    def _record(self, key: str, value: Any) -> None:
        """Remember what was measured, in the journal if there is one."""
        if self._journal:
            self._journal.append(key, value)
        else:
            self._done[key] = value

    def _set_total(self, count: int) -> None:
        """Tell the progress bar how many probes are planned."""
        self._bar.total = count
        self._bar.refresh()

    # --- by products ----------------------------------------------------------------------------------------

    def from_products(self, hvp: str, method: str) -> dict[str, Any] | None:
        """Estimate the trace from products; return the fields of `TraceEstimate` that the method decides.

        `method` is "hutchinson", "hutch++", or "auto" for the second where the first would take very many probes. None
        where losses could do it, and were left only for a deflation that cannot be had.
        """
        with curvature_of(self._objective, self._parameters, curvature=self._curvature, hvp=hvp) as operator:
            if self._losses_will_do and not fits(operator, SKETCH[1] + 3 * BLOCK):
                return None
            require_memory(operator, 3 * BLOCK, show=not self._bar.disable)
            if method == "hutch++" and operator.hvp == "finite_difference":
                raise InputError(
                    f"{as_typed('method', 'hutch++')} takes exact products, and those of this model are differences of "
                    f"gradients {operator.reason}".rstrip()
                    + f"; take {as_typed('method', 'hutchinson')}."
                )
            vectors, pilot = self._plan(operator, method)
            if self._losses_will_do and not vectors:
                return None
            before = pilot + 2 * vectors
            start = 0 if vectors else pilot
            draw = self._deflated(operator, vectors) if vectors else self._plain(operator)
            mean = self._mean_of(
                lambda first, last: draw(start + first, start + last),
                self._rtol,
                self._max_probes - before,
                block=BLOCK,
            )
        key = "deflated" if vectors else "v'Hv"
        parts = np.array([self._parts_of(key, start + i) for i in range(mean.samples)])
        return self._fields(mean, operator.error, parts.sum(1)) | {
            "method": "hutch++" if vectors else "hutchinson",
            "hvp": operator.hvp,
            "layers": self._layer_traces(parts, mean),
            "matvecs": before + mean.samples,
        }

    def _plan(self, operator: CurvatureOperator, method: str) -> tuple[int, int]:
        """Return how many vectors to deflate with, 0 for none, and how many probes decided that and leave the mean.

        A run that is taken up again keeps to its first choice. A sixteenth of the planned probes is cheap beside them,
        and takes much less memory than the third of all products that is best for eigenvalues which decay fast.

        Probes without deflation are taken where the first 16 planned few, and so mostly where the mean of these 16 is
        high. With them in it the mean was up to 2.3% too high at rtol 0.2 and 1.3% at 0.1, in 3000 simulations each of
        normal samples that take 100 to 300 probes; without them at most 0.4%, within twice its error. They stay in it
        only where they are all that it takes.
        """
        if method == "hutchinson" or operator.hvp == "finite_difference":
            return 0, 0
        must = method == "hutch++"
        least, most = (min(bound, operator.size) for bound in SKETCH)
        few = self._max_probes < PLANNED["products"]
        if not must and (few or is_large(operator) or not fits(operator, least + 3 * BLOCK)):
            return 0, 0
        if "plan" not in self._done:
            first = self._plain(operator, finite=True)(0, min(FIRST_LOOK, self._max_probes))
            self._bar.reset()
            planned = min(planned_samples(first, self._rtol, self._confidence), self._max_probes)
            vectors, pilot = max(least, min(most, int(planned / 16))), FIRST_LOOK
            together = vectors + 3 * BLOCK
            if must:
                require_memory(operator, together, show=False)
            elif planned < PLANNED["products"] or not fits(operator, together):
                vectors = 0
                if planned <= EARLY**2 * FIRST_LOOK:
                    pilot = 0
            self._record("plan", [vectors, pilot])
        vectors, pilot = (int(count) for count in self._done["plan"])
        before = pilot + 2 * vectors
        if vectors and self._max_probes < before + FIRST_LOOK:
            raise InputError(
                f"{as_typed('max_probes', self._max_probes)} is too few for {as_typed('method', 'hutch++')}, which "
                f"takes {before} products before the first of at least {FIRST_LOOK} probes."
            )
        return vectors, pilot

    def _plain(self, operator: CurvatureOperator, finite: bool = False) -> Callable[[int, int], np.ndarray]:
        """Return the function that draws v'Hv of some probes, and raises InputError where Hv must be `finite`."""
        # differences share nothing, and what one learns of the step the next goes on from, also after a kill
        block = 1 if operator.hvp == "finite_difference" else BLOCK

        def draw(start: int, stop: int) -> np.ndarray:
            for first in range(start, stop, block):
                ahead = range(first, min(first + block, stop))
                indices = [i for i in ahead if f"v'Hv {i}" not in self._done]
                if indices:
                    probes = torch.stack([self._probe(i) for i in indices])
                    products = finite_product(operator, probes) if finite else operator(probes)
                    for i, probe, product in zip(indices, probes, products, strict=True):
                        by_layer = self._by_layer(probe, product).tolist()
                        self._record(f"v'Hv {i}", {"layers": by_layer, "learnt": operator.learnt()})
                operator.recall(self._done[f"v'Hv {ahead[-1]}"]["learnt"])
                self._bar.update(len(ahead))
            return self._sums_of("v'Hv", start, stop)

        return draw

    def _deflated(self, operator: CurvatureOperator, vectors: int) -> Callable[[int, int], np.ndarray]:
        """Return the function that draws estimates of the trace by Hutch++, with a basis from so many products.

        The basis is made when it is first needed: a run that is taken up again makes it only for what it still draws.
        """
        scaled = operator if self._scale is None else ScaledOperator(operator, self._scale)
        made: list[Deflation] = []

        def deflation() -> Deflation:
            if not made:
                new = Deflation(scaled, vectors, self._by_layer)
                for first in range(0, vectors, BLOCK):
                    new.add(scaled(self._signs("sketch", range(first, min(first + BLOCK, vectors)))))
                new.capture(BLOCK)
                made.append(new)
            return made[0]

        def draw(start: int, stop: int) -> np.ndarray:
            for first in range(start, stop, BLOCK):
                ahead = range(first, min(first + BLOCK, stop))
                indices = [i for i in ahead if f"deflated {i}" not in self._done]
                if indices:
                    samples = deflation().samples(self._signs("deflated probe", indices))
                    for i, sample in zip(indices, samples, strict=True):
                        self._record(f"deflated {i}", {"layers": sample.tolist()})
                self._bar.update(len(ahead))
            return self._sums_of("deflated", start, stop)

        return draw

    def _signs(self, stream: str, indices: Iterable[int]) -> Tensor:
        """Return random signs, shape (indices, size), of a stream of this weighting."""
        name = f"{self._stream} {stream}"
        return torch.stack([self._layout.random(self._seed, f"{name} {i}", rademacher=True) for i in indices])

    def _parts_of(self, key: str, probe: int) -> list[float]:
        """Return what each layer adds to the sample of a probe."""
        return [float(part) for part in self._done[f"{key} {probe}"]["layers"]]

    def _sums_of(self, key: str, start: int, stop: int) -> np.ndarray:
        """Return the samples of some probes, shape (stop - start,)."""
        return np.array([sum(self._parts_of(key, i)) for i in range(start, stop)])

    def _by_layer(self, probe: Tensor, product: Tensor) -> np.ndarray:
        """Return what each layer adds to v'Hv, for the probe v and its product Hv, shape (layers,)."""
        pairs = list(zip(self._layout.views(probe), self._layout.views(product), strict=True))
        products = [float(whole((left.double() * right.double()).sum())) for left, right in pairs]
        return np.array([sum(products[i] for i in members) for members in self._layers.values()])

    def _layer_traces(self, parts: np.ndarray, mean: SampleMean) -> tuple[LayerTrace, ...]:
        """Return the trace of every layer's block from what it added to each probe, shape (probes, layers).

        Each interval is of the confidence 1 - (1 - confidence) / layers, so that by Bonferroni's inequality all of them
        hold together with the confidence asked for, however the layers depend on each other.
        """
        together = 1 - (1 - self._confidence) / len(self._layers)
        rows = []
        for column, (name, members) in enumerate(self._layers.items()):
            size = sum(self._layout.lengths[i] for i in members)
            value = float(mean.weights @ parts[:, column])
            _, stderr, _ = interval_of(parts[:, column], self._confidence)
            interval = student_interval(value, stderr, mean.pilot, together)
            rows.append(LayerTrace(name, size, value, stderr, interval))
        return tuple(rows)

    # --- by losses ------------------------------------------------------------------------------------------

    def from_losses(self, must: bool) -> dict[str, Any] | None:
        """Estimate the trace from losses alone; return None where it should be taken from products, unless it `must`.

        That is where losses are too coarse for it, and where it takes so many probes that deflation is worth a try.
        """
        with preserved(self._objective.model), excursion(self._parameters) as moved:
            losses = SecondDifferences(self._objective, self._parameters, moved)
            if "step" not in self._done:
                losses.find_step(self._probe(0))
                error, first = self._truncation(losses)
                self._record("step", [losses.step, error, *first])
            losses.step, error, *known = (float(x) for x in self._done["step"])
            self._done |= {f"loss {i}": value for i, value in enumerate(known)}
            if error > self._rtol / 4 and not must:
                return None

            def draw(start: int, stop: int) -> np.ndarray:
                for i in range(start, stop):
                    if f"loss {i}" not in self._done:
                        self._record(f"loss {i}", losses.value(self._probe(i)))
                    self._bar.update(1)
                return np.array([float(self._done[f"loss {i}"]) for i in range(start, stop)])

            rtol = max(self._rtol - error, self._rtol / 2)
            if not must and self._layout.own_size < LARGE:
                pilot = draw(0, min(FIRST_LOOK, self._max_probes))
                self._bar.reset()
                if min(planned_samples(pilot, rtol, self._confidence), self._max_probes) >= PLANNED["losses"]:
                    self._losses_will_do = True
                    return None
            mean = self._mean_of(draw, rtol, self._max_probes)
            if not losses.fidelity.faithful:
                warnings.warn(
                    f"rounding to the weights' type changed the steps (worst cosine {losses.fidelity.cosine:.4f}); "
                    "load the model in float32.",
                    MeasurementWarning,
                    stacklevel=4,
                )
        samples = np.array([float(self._done[f"loss {i}"]) for i in range(mean.samples)])
        return self._fields(mean, error, samples) | {
            "method": "forward",
            "hvp": "loss differences",
            "layers": (),
            "matvecs": sum(key.startswith("v'Hv ") for key in self._done),
        }

    def _truncation(self, losses: SecondDifferences) -> tuple[float, list[float]]:
        """Return the relative error of the mean of four probes at the step, and their values.

        The step is halved while its length is what is wrong.
        """
        best: tuple[float, float, list[float]] = (math.inf, losses.step, [])
        for _ in range(4):
            pairs = np.array([losses.at_both_steps(self._probe(i)) for i in range(4)])
            # the leading error is quadratic in the step: a third of the change at twice the step is what is left
            error = abs(float((pairs[:, 1] - pairs[:, 0]).mean())) / 3 / max(abs(float(pairs[:, 0].mean())), 1e-300)
            if error < best[0] or not best[2]:
                best = (error, losses.step, pairs[:, 0].tolist())
            if error <= self._rtol / 8:
                break
            losses.step /= 2
        error, losses.step, values = best
        return error, values

    # --- either way -----------------------------------------------------------------------------------------

    def _mean_of(self, draw: Any, rtol: float, most: int, block: int = 1) -> SampleMean:
        """Return the mean of as many samples as `rtol` takes."""
        return sample_mean(
            draw,
            rtol=rtol,
            confidence=self._confidence,
            max_samples=most,
            block=block,
            set_total=self._set_total,
        )

    def _fields(self, mean: SampleMean, error: float, samples: np.ndarray) -> dict[str, Any]:
        """Return the fields of a result that say how well it is known; `error` is the relative one of differences."""
        bias = error * abs(mean.value)
        reached = (mean.half_width + bias) / abs(mean.value) if mean.value else math.inf
        return {
            "value": mean.value,
            "stderr": mean.stderr,
            "confidence_interval": (mean.interval[0] - bias, mean.interval[1] + bias),
            "probes": mean.samples,
            "converged": reached <= self._rtol,
            "hvp_error": error,
            "samples": samples,
        }
