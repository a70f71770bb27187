"""The trace of the Hessian: v'Hv for random probes v, by Hessian-vector products or by losses alone."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.curvature.differences import SecondDifferences
from landscape.curvature.opening import curvature_of, require_memory
from landscape.curvature.results import LayerTrace, TraceEstimate
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning
from landscape.linalg.sampling import SampleMean, check_precision, interval_of, sample_mean
from landscape.objective.identity import journal_of
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, group_by_layer, progress_bar
from landscape.parallel.sharding import whole
from landscape.results import Journal
from landscape.weights.flat import Layout, probe_scale
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import excursion
from landscape.weights.preservation import preserved

BLOCK = 8  # probes that share a graph
WEIGHTINGS = ("adaptive", "filter", "unit", "head", "layer")


def hessian_trace(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    rtol: float = 0.05,
    confidence: float = 0.95,
    max_probes: int = 1000,
    weighting: str | None = None,
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> TraceEstimate:
    """The trace of the Hessian of the weighted mean loss, to a requested half-width of its confidence interval.

    Hutchinson 1990 with Rademacher probes: the mean of v'Hv. How many probes: see `estimation.sample_mean`.

    rtol        half the confidence interval over the value
    weighting   None for the trace; "adaptive" for sum_i w_i^2 H_ii; "filter", "unit", "head" or "layer" for the mean
                curvature along random directions of that normalization: what one random plane samples once. See
                `vectors.probe_scale`
    method      "hutchinson": Hessian-vector products, a table by layer for free; "forward": v'Hv from three losses,
                without a backward pass, in the memory of inference, its finite-difference error measured and added
                to the interval; "auto": forward where that error is at most a quarter of rtol, else hutchinson
    curvature, hvp, parameters   as for `hessian_eigenvalues`
    journal     a file that keeps finished probes; a killed run started again with it continues

    MeasurementWarning where the interval is wider than asked after `max_probes`. Near zero a relative width cannot
    be reached: the Hessian is indefinite, curvature="ggn" is not.
    """
    check_precision(rtol, confidence, max_probes)
    scope.only("hessian_trace", "parameters", "loss_fn", "curvature")
    run.only("hessian_trace", "journal", "method", "hvp")
    method = "auto" if run.method is None else run.method
    if method not in ("auto", "hutchinson", "forward"):
        raise InputError(f"method={method!r} is none of auto, hutchinson, forward.")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise InputError(f"weighting={weighting!r} is none of {', '.join(WEIGHTINGS)}.")
    if method == "forward" and scope.curvature != "hessian":
        raise InputError("method='forward' measures the Hessian; it has no Gauss-Newton form.")
    subject = Subject(model, data, scope)
    name, objective, selected = subject.name, subject.objective, subject.parameters
    settings = {
        "rtol": rtol,
        "confidence": confidence,
        "max_probes": max_probes,
        "weighting": weighting,
        "method": method,
        "curvature": scope.curvature,
        "hvp": run.hvp,
        "parameters": scope.parameters,
    }
    with contextlib.ExitStack() as stack:
        log = None
        if run.journal is not None:
            said = {"settings": settings, "seed": seed}
            log = stack.enter_context(journal_of(run.journal, objective, selected, subject.loss, said))
        bar = stack.enter_context(progress_bar(f"{name} trace", BLOCK, "probe", run.progress))
        estimator = TraceRun(objective, selected, weighting, seed, log, bar)
        low_precision = any(t.dtype.itemsize < 4 for t in selected.tensors)
        forward = method == "forward" or (
            method == "auto" and scope.curvature == "hessian" and run.hvp == "auto" and not low_precision
        )
        found = None
        if forward:
            found = estimator.forward(rtol, confidence, max_probes, must=method == "forward")
        if found is None:
            found = estimator.hutchinson(rtol, confidence, max_probes, scope.curvature, run.hvp)
    if not found["converged"]:
        warnings.warn(
            f"{name}: the trace is known to {found.pop('reached'):.1%} after {found['probes']} probes, not to "
            f"{rtol:.1%}; raise max_probes or rtol.",
            MeasurementWarning,
            stacklevel=2,
        )
    found.pop("reached", None)
    return TraceEstimate(
        curvature=scope.curvature,
        weighting=weighting,
        confidence=confidence,
        rtol=rtol,
        parameters=selected.numel,
        **subject.result_fields(settings, seed),
        **found,
    )


class TraceRun:
    """Draws v'Hv for the probes of one trace, by products or by losses."""

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weighting: str | None,
        seed: int,
        journal: Journal | None,
        bar: tqdm,
    ):
        self._objective, self._parameters, self._seed = objective, parameters, seed
        self._layout = Layout(parameters)
        self._scale = None if weighting is None else probe_scale(parameters, weighting)
        self._done: dict[str, Any] = journal.done if journal else {}
        self._journal = journal
        self._bar = bar

    def _probe(self, index: int) -> Tensor:
        probe = self._layout.random(self._seed, f"probe {index}", rademacher=True)
        return probe if self._scale is None else probe * self._scale

    def _keep(self, key: str, value: Any) -> None:
        if self._journal:
            self._journal.append(key, value)
        else:
            self._done[key] = value

    def _expecting(self, count: int) -> None:
        self._bar.total = count
        self._bar.refresh()

    def hutchinson(self, rtol: float, confidence: float, max_probes: int, curvature: str, hvp: str) -> dict[str, Any]:
        layers = group_by_layer(self._layout.names)
        with curvature_of(self._objective, self._parameters, curvature=curvature, hvp=hvp) as operator:
            require_memory(operator, 3 * BLOCK, told=not self._bar.disable)
            # differences share nothing, and what one learns of the step the next goes on from, also after a kill
            block = 1 if operator.hvp == "finite_difference" else BLOCK

            def draw(start: int, stop: int) -> np.ndarray:
                for first in range(start, stop, block):
                    ahead = range(first, min(first + block, stop))
                    indices = [i for i in ahead if f"v'Hv {i}" not in self._done]
                    if indices:
                        probes = torch.stack([self._probe(i) for i in indices])
                        products = operator(probes)
                        for i, probe, product in zip(indices, probes, products, strict=True):
                            by_layer = self._by_layer(probe, product, layers)
                            self._keep(f"v'Hv {i}", {"layers": by_layer, "learnt": operator.learnt()})
                    operator.recall(self._done[f"v'Hv {ahead[-1]}"]["learnt"])
                    self._bar.update(len(ahead))
                return np.array([sum(self._layers_of(i)) for i in range(start, stop)])

            mean = sample_mean(
                draw,
                rtol=rtol,
                confidence=confidence,
                max_samples=max_probes,
                block=BLOCK,
                expecting=self._expecting,
            )
        parts = np.array([self._layers_of(i) for i in range(mean.samples)])
        rows = []
        for column, (name, members) in enumerate(layers.items()):
            size = sum(self._layout.lengths[i] for i in members)
            value, stderr, _ = interval_of(parts[:, column], confidence)
            rows.append(LayerTrace(name, size, value, stderr))
        return self._finished(mean, operator.error, rtol, parts.sum(1)) | {
            "method": "hutchinson",
            "hvp": operator.hvp,
            "layers": tuple(rows),
        }

    def _layers_of(self, probe: int) -> list[float]:
        return [float(part) for part in self._done[f"v'Hv {probe}"]["layers"]]

    @staticmethod
    def _finished(mean: SampleMean, error: float, rtol: float, samples: np.ndarray) -> dict[str, Any]:
        """The fields of a result that say how well it is known; `error` is the relative one of differences."""
        bias = error * abs(mean.value)
        reached = (mean.half_width + bias) / abs(mean.value) if mean.value else math.inf
        return {
            "value": mean.value,
            "stderr": mean.stderr,
            "confidence_interval": (mean.interval[0] - bias, mean.interval[1] + bias),
            "probes": mean.samples,
            "converged": reached <= rtol,
            "reached": reached,
            "hvp_error": error,
            "samples": samples,
        }

    def _by_layer(self, probe: Tensor, product: Tensor, layers: dict[str, list[int]]) -> list[float]:
        pairs = list(zip(self._layout.views(probe), self._layout.views(product), strict=True))
        products = [float(whole((left.double() * right.double()).sum())) for left, right in pairs]
        return [sum(products[i] for i in members) for members in layers.values()]

    def forward(self, rtol: float, confidence: float, max_probes: int, must: bool) -> dict[str, Any] | None:
        """The trace from losses alone; None where their differences are too coarse for it, unless it `must`."""
        with preserved(self._objective.model), excursion(self._parameters) as trip:
            losses = SecondDifferences(self._objective, self._parameters, trip)
            if "step" not in self._done:
                losses.find_step(self._probe(0))
                error, first = self._truncation(losses, rtol)
                self._keep("step", [losses.step, error, *first])
            losses.step, error, *first = (float(x) for x in self._done["step"])
            self._done |= {f"loss {i}": value for i, value in enumerate(first)}
            if error > rtol / 4 and not must:
                return None

            def draw(start: int, stop: int) -> np.ndarray:
                for i in range(start, stop):
                    if f"loss {i}" not in self._done:
                        self._keep(f"loss {i}", losses.value(self._probe(i)))
                    self._bar.update(1)
                return np.array([float(self._done[f"loss {i}"]) for i in range(start, stop)])

            left = max(rtol - error, rtol / 2)
            mean = sample_mean(
                draw, rtol=left, confidence=confidence, max_samples=max_probes, expecting=self._expecting
            )
            if not losses.fidelity.faithful:
                warnings.warn(
                    f"rounding to the weights' type changed the steps (worst cosine {losses.fidelity.cosine:.4f}); "
                    "load the model in float32.",
                    MeasurementWarning,
                    stacklevel=3,
                )
        samples = np.array([float(self._done[f"loss {i}"]) for i in range(mean.samples)])
        return self._finished(mean, error, rtol, samples) | {
            "method": "forward",
            "hvp": "loss differences",
            "layers": (),
        }

    def _truncation(self, losses: SecondDifferences, rtol: float) -> tuple[float, list[float]]:
        """Relative error of the mean of four probes at the step, and their values.

        Halves the step while that is what is wrong.
        """
        best: tuple[float, float, list[float]] = (math.inf, losses.step, [])
        for _ in range(4):
            pairs = np.array([losses.at_both_steps(self._probe(i)) for i in range(4)])
            # the leading error is quadratic in the step: a third of the change at twice the step is what is left
            error = abs(float((pairs[:, 1] - pairs[:, 0]).mean())) / 3 / max(abs(float(pairs[:, 0].mean())), 1e-300)
            if error < best[0] or not best[2]:
                best = (error, losses.step, pairs[:, 0].tolist())
            if error <= rtol / 8:
                break
            losses.step /= 2
        error, losses.step, values = best
        return error, values
