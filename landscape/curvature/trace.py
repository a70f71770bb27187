"""The trace of the Hessian: v'Hv for random probes v, by Hessian-vector products or by losses alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.curvature.operators.differences import SecondDifferences
from landscape.curvature.operators.memory import require_memory
from landscape.curvature.operators.opening import curvature_of
from landscape.curvature.results import LayerTrace, TraceEstimate
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.linalg.sampling import SampleMean, check_precision, interval_of, sample_mean, student_interval
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, group_by_layer, progress_bar
from landscape.parallel.sharding import whole
from landscape.results import Journal
from landscape.weights.flat import Layout, probe_scale
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
    """Estimate the trace of the Hessian of the weighted mean loss, to a requested half-width of its interval.

    tr H = E[v'Hv] for probes v of independent random signs. With a weighting D it is tr(D H D). How many probes are
    drawn is planned from the spread of the first ones, and the bias that such a plan has is taken out by the weights of
    the probes in the mean; see `sampling.sample_mean`. Every weighting draws probes of its own, so that the intervals
    of several weightings miss independently of each other. Layers share each probe, and `LayerTrace` says what follows.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        rtol: Half the confidence interval over the absolute value.
        confidence: The confidence of the interval.
        max_probes: The largest number of probes.
        weighting: None for the trace; "adaptive" for sum_i w_i^2 H_ii; "filter", "unit", "head" or "layer" for the mean
            curvature along random directions of that normalization, which one random plane samples once.
        seed: Seed of the probes.
        scope: `parameters`, `loss_fn` and `curvature` ("ggn" for the Gauss-Newton matrix) are taken.
        run: `method`, `hvp`, `journal` and `progress` are taken. `method` is "hutchinson" (Hessian-vector products,
            with a table by layer for free), "forward" (v'Hv from three losses, without a backward pass, in the memory
            of inference; the error of the differences is measured and added to the interval) or "auto" (the default:
            forward where that error is at most a quarter of rtol, else hutchinson). `journal` keeps finished probes; a
            killed run that is started again with it continues.

    Returns:
        The estimate. MeasurementWarning where its interval is wider than asked for after `max_probes`. Near zero a
        relative width cannot be reached: the Hessian is indefinite, whereas `curvature="ggn"` is not.

    Raises:
        InputError: Arguments make no sense, or the loss at the weights is not finite.

    Source:
        M. Hutchinson 1990, Communications in Statistics 19. The number of probes: C. Stein 1945, Ann. Math. Statist.
        16.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1). Random signs are exact for a diagonal.

        >>> import torch
        >>> from landscape import Run, Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> trace = hessian_trace(model, data, scope=scope, run=Run(method="hutchinson"))
        >>> round(trace.value, 4), trace.probes, trace.converged
        (5.0, 16, True)
    """
    scope.only("hessian_trace", "parameters", "loss_fn", "curvature")
    run.only("hessian_trace", "journal", "method", "hvp")
    subject = Subject(model, data, scope)
    trace = trace_of(
        subject, rtol=rtol, confidence=confidence, max_probes=max_probes, weighting=weighting, seed=seed, run=run
    )
    warn_unless_converged(trace, stacklevel=3)
    return trace


def _check_trace(
    rtol: float, confidence: float, max_probes: int, weighting: str | None, curvature: str, run: Run
) -> None:
    """Raise InputError for a trace that cannot be asked for."""
    check_precision(rtol, confidence, max_probes)
    method = _method_of(run)
    if method not in ("auto", "hutchinson", "forward"):
        raise InputError(f"method={method!r} is none of auto, hutchinson, forward.")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise InputError(f"weighting={weighting!r} is none of {', '.join(WEIGHTINGS)}.")
    if method == "forward" and curvature != "hessian":
        raise InputError("method='forward' measures the Hessian; it has no Gauss-Newton form.")


def trace_of(
    subject: Subject,
    *,
    rtol: float,
    confidence: float = 0.95,
    max_probes: int,
    weighting: str | None = None,
    seed: int,
    run: Run,
) -> TraceEstimate:
    """Estimate a trace on an opened subject, without a warning; the arguments are those of `hessian_trace`."""
    curvature, method = subject.scope.curvature, _method_of(run)
    _check_trace(rtol, confidence, max_probes, weighting, curvature, run)
    settings = {
        "rtol": rtol,
        "confidence": confidence,
        "max_probes": max_probes,
        "weighting": weighting,
        "method": method,
        "curvature": curvature,
        "hvp": run.hvp,
        "parameters": subject.scope.parameters,
    }
    with (
        subject.open_journal(run.journal, settings, seed) as journal,
        progress_bar(f"{subject.name} trace", BLOCK, "probe", run.progress) as bar,
    ):
        estimator = _Estimator(subject, weighting, seed, (rtol, confidence, max_probes), journal, bar)
        low_precision = any(t.dtype.itemsize < 4 for t in subject.parameters.tensors)
        forward = method == "forward" or (
            method == "auto" and curvature == "hessian" and run.hvp == "auto" and not low_precision
        )
        estimate = estimator.from_losses(must=method == "forward") if forward else None
        if estimate is None:
            estimate = estimator.from_products(run.hvp)
    return TraceEstimate(
        curvature=curvature,
        weighting=weighting,
        confidence=confidence,
        rtol=rtol,
        parameters=subject.parameters.numel,
        **subject.result_fields(settings, seed),
        **estimate,
    )


def warn_unless_converged(trace: TraceEstimate, *, stacklevel: int) -> None:
    """Warn, on behalf of the caller `stacklevel` levels up, where a trace is not known as well as was asked for."""
    if trace.converged:
        return
    low, high = trace.confidence_interval
    reached = (high - low) / 2 / abs(trace.value) if trace.value else math.inf
    warnings.warn(
        f"{trace.name}: the trace is known to {reached:.1%} after {trace.probes} probes, not to {trace.rtol:.1%}; "
        f"raise {as_typed('max_probes')} or {as_typed('rtol')}.",
        MeasurementWarning,
        stacklevel=stacklevel,
    )


def _method_of(run: Run) -> str:
    """Return the name of the method, with the default filled in."""
    return "auto" if run.method is None else run.method


class _Estimator:
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
        self._stream = "probe" if weighting is None else f"{weighting} probe"
        self._scale = None if weighting is None else probe_scale(self._parameters, weighting)
        self._done: dict[str, Any] = journal.done if journal else {}
        self._journal = journal
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

    def from_products(self, hvp: str) -> dict[str, Any]:
        """Estimate the trace by Hutchinson's method; return the fields of `TraceEstimate` that the method decides."""
        layers = group_by_layer(self._layout.names)
        with curvature_of(self._objective, self._parameters, curvature=self._curvature, hvp=hvp) as operator:
            require_memory(operator, 3 * BLOCK, show=not self._bar.disable)
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
                            self._record(f"v'Hv {i}", {"layers": by_layer, "learnt": operator.learnt()})
                    operator.recall(self._done[f"v'Hv {ahead[-1]}"]["learnt"])
                    self._bar.update(len(ahead))
                return np.array([sum(self._layers_of(i)) for i in range(start, stop)])

            mean = self._mean_of(draw, self._rtol, block=BLOCK)
        parts = np.array([self._layers_of(i) for i in range(mean.samples)])
        return self._fields(mean, operator.error, parts.sum(1)) | {
            "method": "hutchinson",
            "hvp": operator.hvp,
            "layers": self._layer_traces(layers, parts, mean),
        }

    def _layers_of(self, probe: int) -> list[float]:
        """Return what each layer adds to v'Hv of a probe."""
        return [float(part) for part in self._done[f"v'Hv {probe}"]["layers"]]

    def _by_layer(self, probe: Tensor, product: Tensor, layers: dict[str, list[int]]) -> list[float]:
        """Return what each layer adds to v'Hv, for the probe v and its product Hv."""
        pairs = list(zip(self._layout.views(probe), self._layout.views(product), strict=True))
        products = [float(whole((left.double() * right.double()).sum())) for left, right in pairs]
        return [sum(products[i] for i in members) for members in layers.values()]

    def _layer_traces(
        self, layers: dict[str, list[int]], parts: np.ndarray, mean: SampleMean
    ) -> tuple[LayerTrace, ...]:
        """Return the trace of every layer's block from what it added to each probe, shape (probes, layers).

        Each interval is of the confidence 1 - (1 - confidence) / layers, so that by Bonferroni's inequality all of them
        hold together with the confidence asked for, however the layers depend on each other.
        """
        together = 1 - (1 - self._confidence) / len(layers)
        rows = []
        for column, (name, members) in enumerate(layers.items()):
            size = sum(self._layout.lengths[i] for i in members)
            value = float(mean.weights @ parts[:, column])
            _, stderr, _ = interval_of(parts[:, column], self._confidence)
            interval = student_interval(value, stderr, mean.pilot, together)
            rows.append(LayerTrace(name, size, value, stderr, interval))
        return tuple(rows)

    # --- by losses ------------------------------------------------------------------------------------------

    def from_losses(self, must: bool) -> dict[str, Any] | None:
        """Estimate the trace from losses alone; return None where these are too coarse for it, unless it `must`."""
        with preserved(self._objective.model), excursion(self._parameters) as moved:
            losses = SecondDifferences(self._objective, self._parameters, moved)
            if "step" not in self._done:
                losses.find_step(self._probe(0))
                error, first = self._truncation(losses)
                self._record("step", [losses.step, error, *first])
            losses.step, error, *first = (float(x) for x in self._done["step"])
            self._done |= {f"loss {i}": value for i, value in enumerate(first)}
            if error > self._rtol / 4 and not must:
                return None

            def draw(start: int, stop: int) -> np.ndarray:
                for i in range(start, stop):
                    if f"loss {i}" not in self._done:
                        self._record(f"loss {i}", losses.value(self._probe(i)))
                    self._bar.update(1)
                return np.array([float(self._done[f"loss {i}"]) for i in range(start, stop)])

            mean = self._mean_of(draw, max(self._rtol - error, self._rtol / 2))
            if not losses.fidelity.faithful:
                warnings.warn(
                    f"rounding to the weights' type changed the steps (worst cosine {losses.fidelity.cosine:.4f}); "
                    "load the model in float32.",
                    MeasurementWarning,
                    stacklevel=4,
                )
        samples = np.array([float(self._done[f"loss {i}"]) for i in range(mean.samples)])
        return self._fields(mean, error, samples) | {"method": "forward", "hvp": "loss differences", "layers": ()}

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

    def _mean_of(self, draw: Any, rtol: float, block: int = 1) -> SampleMean:
        """Return the mean of as many samples as `rtol` takes."""
        return sample_mean(
            draw,
            rtol=rtol,
            confidence=self._confidence,
            max_samples=self._max_probes,
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
