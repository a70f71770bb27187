"""The trace of the Hessian: v'Hv for random probes v, by Hessian-vector products or by losses alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.probing import BLOCK, TraceEstimator
from landscape.curvature.results import TraceEstimate
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.linalg.sampling import check_precision
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, progress_bar

METHODS = ("auto", "hutchinson", "hutch++", "forward")
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
        max_probes: The largest number of probes; for "hutch++", of all products.
        weighting: None for the trace; "adaptive" for sum_i w_i^2 H_ii; "filter", "unit", "head" or "layer" for the mean
            curvature along random directions of that normalization, which one random plane samples once.
        seed: Seed of the probes.
        scope: `parameters`, `loss_fn` and `curvature` ("ggn" for the Gauss-Newton matrix) are taken.
        run: `method`, `hvp`, `journal` and `progress` are taken. `method` is "hutchinson" (Hessian-vector products,
            with a table by layer for free), "hutch++" (the same, after the part of the trace in a subspace of 16 to 64
            dimensions, close to the dominant eigenvectors, was taken exactly: far fewer probes where a few eigenvalues
            dominate, and more products where few probes are enough anyway), "forward" (v'Hv from three losses, without
            a backward pass, in the memory of inference; the error of the differences is measured and added to the
            interval) or "auto" (the default: forward where that error is at most a quarter of rtol, else hutchinson;
            hutch++ where the spread of the first 16 probes means that hundreds more would be needed, if its vectors
            fit in memory and the model has fewer than 50 million weights; those 16 are left out of the mean then,
            unless they are enough alone). `journal` keeps finished probes; a killed run that is started again with it
            continues.

    Returns:
        The estimate. MeasurementWarning where its interval is wider than asked for after `max_probes`. Near zero a
        relative width cannot be reached: the Hessian is indefinite, whereas `curvature="ggn"` is not.

    Raises:
        InputError: Arguments make no sense, the loss at the weights is not finite, or products are not ("auto" and
            "hutch++").

    Source:
        M. Hutchinson 1990, Communications in Statistics 19. Hutch++: Meyer, Musco, Musco and Woodruff 2021 (arXiv
        2010.09649). The number of probes: C. Stein 1945, Ann. Math. Statist. 16.

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
    if method not in METHODS:
        raise InputError(f"method={method!r} is none of {', '.join(METHODS)}.")
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
        estimator = TraceEstimator(subject, weighting, seed, (rtol, confidence, max_probes), journal, bar)
        low_precision = any(t.dtype.itemsize < 4 for t in subject.parameters.tensors)
        forward = method == "forward" or (
            method == "auto" and curvature == "hessian" and run.hvp == "auto" and not low_precision
        )
        estimate = estimator.from_losses(must=method == "forward") if forward else None
        if estimate is None:
            estimate = estimator.from_products(run.hvp, method) or estimator.from_losses(must=True)
            assert estimate is not None
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
