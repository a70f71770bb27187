"""Measuring a sharpness: any metric, at the weights of a model, on any data."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.errors import MeasurementWarning
from landscape.objective.given import batches_of
from landscape.objective.loss_functions import NormalizedLogits
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import progress_bar
from landscape.sharpness.registered import check_metric
from landscape.sharpness.result import Sharpness
from landscape.sharpness.site import Site
from landscape.weights.directions import Direction, check_same_tensors
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest


def compute_sharpness(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    metric: str = "worst_case",
    seed: int = 0,
    base: nn.Module | Checkpoint | None = None,
    normalize_logits: bool = False,
    scope: Scope = Scope(),
    run: Run = Run(),
    **options: Any,
) -> Sharpness:
    """Measure one sharpness of a model on data, by any metric of `SHARPNESS_METRICS`.

    The command `landscape metrics` prints every metric with its formula, options, cost, invariances and source. The
    model comes back bit-identical.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        metric: The name of the metric.
        seed: Seed of perturbations, probes and starting vectors.
        base: The checkpoint that the model was tuned from, for displacement metrics and directions. Displacement
            metrics measure at the base, along the step to the model.
        normalize_logits: Measure the loss of logits divided by their standard deviation over the vocabulary, which
            takes confidence out of it (Andriushchenko et al. 2023, section 3.1).
        scope: `parameters` (the others stay as they are) and `loss_fn` are taken.
        run: `journal`, `offload_base` and `progress` are taken. `journal` keeps finished perturbations of random noise,
            finished probes of traces and the vectors of eigenvalues; other metrics keep nothing. A killed run that is
            started again with it continues. `offload_base` keeps the exact copy of the weights on the host: metrics of
            random perturbations then need the weights once on the device; others hold vectors as large as the model
            besides, in float32 or wider.
        **options: The options of the metric, which `SHARPNESS_METRICS[metric].options` lists with their defaults.

    Returns:
        The sharpness, with its standard error and interval where it is an estimate. MeasurementWarning where rounding
        to the weights' type swallowed part of a perturbation (see `fidelity`), or where an eigenvalue or a trace did
        not meet its tolerance.

    Raises:
        InputError: A metric or an option does not exist or makes no sense, the model has no trainable parameter, or the
            data has no loss.

    Source:
        Each metric names its own.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1).

        >>> import torch
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> round(compute_sharpness(model, data, metric="top_eigenvalue", scope=scope).value, 4)
        4.0
    """
    scope.only("compute_sharpness", "parameters", "loss_fn")
    run.only("compute_sharpness", "journal", "offload_base")
    chosen, settings = check_metric(metric, options, has_base=base is not None)
    at = base if chosen.needs_base else model
    assert at is not None
    identity: dict[str, Any] = {"metric": metric, "options": {name: _plain(value) for name, value in settings.items()}}
    identity |= {"parameters": scope.parameters, "normalize_logits": normalize_logits}
    module, _, _ = identify(at)
    data = batches_of(data, at)
    with progress_bar(metric, None, "eval", run.progress) as bar, preserved(module):
        loss = NormalizedLogits.around(module, data, scope.loss_fn) if normalize_logits else scope.loss_fn
        measured = dataclasses.replace(scope, loss_fn=loss)
        site = Site(at, data, measured, run, seed=seed, bar=bar, identity=identity)
        if base is not None:
            site.displacement = displacement_between(site, base, model)
        try:
            measurement = chosen.measure(site, **settings)
            center = site.center
        finally:
            site.close()
    if not site.fidelity.faithful:
        warnings.warn(
            f"{metric}: rounding to the weights' type changed the perturbation (worst cosine "
            f"{site.fidelity.cosine:.4f}, norm ratio {site.fidelity.norm_ratio:.4f}); load the model in float32.",
            MeasurementWarning,
            stacklevel=2,
        )
    if not math.isfinite(center):
        warnings.warn(
            f"{metric}: the loss of {site.name} is {center}, so that its sharpness has no meaning.",
            MeasurementWarning,
            stacklevel=2,
        )
    return Sharpness(
        metric=metric,
        value=float(measurement.value),
        stderr=measurement.stderr,
        loss=center,
        perturbed_loss=measurement.perturbed_loss,
        rho=settings.get("rho"),
        adaptive=settings.get("adaptive"),
        converged=measurement.converged,
        samples=measurement.samples,
        fidelity=site.fidelity,
        details=measurement.details,
        options=identity["options"],
        invariance=chosen.invariance,
        normalized_logits=normalize_logits,
        parameters=site.parameters.numel,
        confidence_interval=measurement.confidence_interval,
        **_result_fields(site, model, base, at_base=chosen.needs_base),
    )


def _plain(value: Any) -> Any:
    """Return an option as it is saved: a direction by its label, other objects by the name of their type."""
    if isinstance(value, Direction):
        return value.label
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def displacement_between(site: Site, base: nn.Module | Checkpoint, model: nn.Module | Checkpoint) -> Tensor:
    """Return the step from the base to the model in the selected parameters, shape (size,)."""
    tuned, origin = (Parameters(identify(m)[0], frozen=True).values() for m in (model, base))
    check_same_tensors(origin, tuned)
    dtype = site.layout.dtype
    names = site.parameters.names
    return site.layout.flat({n: tuned[n].to(origin[n].device, dtype) - origin[n].to(dtype) for n in names})


def _result_fields(
    site: Site, model: nn.Module | Checkpoint, base: nn.Module | Checkpoint | None, *, at_base: bool
) -> dict[str, Any]:
    """Return name, data, weight and provenance of the result, which is of the model also where the site is the base."""
    settings = dict(site.identity)
    if base is not None:
        _, base_name, described = identify(base)
        settings["base"] = described or base_name
    if not at_base:
        return site.result_fields(settings, site.seed)
    module, name, described = identify(model)
    checkpoint = described or {"weights": vector_digest(Parameters(module, frozen=True).values())}
    return site.result_fields(settings, site.seed, checkpoint) | {"name": name}
