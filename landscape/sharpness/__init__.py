"""Sharpness: every definition papers use, through one call. A new one is a function with `@metric` in this package."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning, nearest
from landscape.objective.loss_functions import LossFunction, NormalizedLogits
from landscape.weights.directions import Direction, check_same_tensors
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest

# ruff: noqa: F401 - importing a module registers its metrics, in the order of tables
from landscape.sharpness import ascent, noise, second_order, directional  # isort: skip
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import progress_bar
from landscape.sharpness.registry import SHARPNESS_METRICS, Metric, Sharpness, Site

__all__ = ["SHARPNESS_METRICS", "Sharpness", "check_metric", "compute_sharpness"]


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
    """One sharpness of a model on data. `SHARPNESS_METRICS` lists the metrics; each has its own `options`.

    metric            worst_case (rho=0.05, adaptive=False, norm="l2", steps=20, restarts=1, m=None), average_case
                      (rho=0.05, adaptive=False, normalize=None, samples=32), keskar, low_pass, pac_bayes,
                      gradient_norm, fisher_rao, top_eigenvalue, trace, adaptive_trace, filter_trace,
                      relative_flatness, critical, budget_radius, displacement_curvature, displacement_fisher.
                      Definitions, options and sources: the docstrings in `landscape.sharpness`
    parameters        shell globs over parameter names; the others stay as they are
    base              the checkpoint that the model was tuned from, for displacement metrics and directions.
                      Displacement metrics measure at the base, along the step to the model
    normalize_logits  measure the loss of logits divided by their standard deviation over the vocabulary, which takes
                      confidence out of it (Andriushchenko et al. 2023, sec. 3.1)
    loss_fn           `loss_fn(model, batch) -> (loss_sum, weight)`
    offload_base      keep the exact copy of the weights on the host. Metrics of random perturbations (average_case,
                      low_pass, pac_bayes) then need the weights once on the device; others hold vectors as large as
                      the model besides, in float32 or wider
    journal           a file that keeps finished perturbations of average_case, low_pass and pac_bayes, finished probes
                      of traces and the vectors of top_eigenvalue; a killed run started again with it continues.
                      Other metrics keep nothing

    The model comes back bit-identical. MeasurementWarning where rounding to the weights' type swallowed part of a
    perturbation (`fidelity`) or a tolerance was not met. Raises InputError (a ValueError) for metrics and options that
    do not exist or make no sense, a model without trainable parameters, and data without a loss.
    """
    scope.only("compute_sharpness", "parameters", "loss_fn")
    run.only("compute_sharpness", "journal", "offload_base")
    chosen, settings = check_metric(metric, options, has_base=base is not None)
    at = base if chosen.needs_base else model
    assert at is not None
    module, _, _ = identify(at)
    with progress_bar(metric, None, "eval", run.progress) as bar, preserved(module):
        loss = NormalizedLogits.around(module, data, scope.loss_fn) if normalize_logits else scope.loss_fn
        measured = dataclasses.replace(scope, loss_fn=loss)
        site = Site(at, data, measured, seed=seed, bar=bar, offload_base=run.offload_base)
        site.journal = run.journal
        site.identity = {"metric": metric, "options": {name: _plain(value) for name, value in settings.items()}}
        site.identity |= {"parameters": scope.parameters, "normalize_logits": normalize_logits}
        if base is not None:
            site.displacement = _displacement(site, base, model)
        try:
            found = chosen.measure(site, **settings)
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
    identity = dict(site.identity)
    if base is not None:
        _, base_name, described = identify(base)
        identity["base"] = described or base_name
    common = site.result_fields(identity, seed)
    if chosen.needs_base:  # the site is at the base; the result is of the model
        of_model, name, described = identify(model)
        checkpoint = described or {"weights": vector_digest(Parameters(of_model, frozen=True).values())}
        common |= {"name": name, "provenance": dataclasses.replace(common["provenance"], checkpoint=checkpoint)}
    return Sharpness(
        metric=metric,
        value=float(found.value),
        stderr=found.stderr,
        loss=center,
        perturbed_loss=found.perturbed_loss,
        rho=settings.get("rho"),
        adaptive=settings.get("adaptive"),
        converged=found.converged,
        samples=found.samples,
        fidelity=site.fidelity,
        details=found.details,
        options=identity["options"],
        invariance=chosen.invariance,
        normalized_logits=normalize_logits,
        parameters=site.parameters.numel,
        **common,
    )


def check_metric(metric: str, options: dict[str, Any], *, has_base: bool) -> tuple[Metric, dict[str, Any]]:
    """The metric of that name, and its options with defaults filled in.

    Raises InputError for a name or an option that does not exist, and for a metric that lacks its base.
    """
    chosen = SHARPNESS_METRICS.get(metric)
    if chosen is None:
        raise InputError(
            f"metric={metric!r} is none of {', '.join(SHARPNESS_METRICS)}.{nearest(metric, SHARPNESS_METRICS)}"
        )
    own = chosen.options
    unknown = [name for name in options if name not in own]
    if unknown:
        raise InputError(
            f"metric={metric!r} has no option {unknown[0]}; it has {', '.join(own) if own else 'none'}."
            f"{nearest(unknown[0], own)}"
        )
    for name, value in options.items():
        default = own[name]
        numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
        if (numeric and (isinstance(value, (bool, str)) or value is None)) or (
            isinstance(default, bool) and not isinstance(value, bool)
        ):
            raise InputError(f"{name}={value!r} of metric {metric!r} must be like its default, {default!r}.")
    if chosen.needs_base and not has_base:
        raise InputError(f"metric={metric!r} measures along the step from a base checkpoint; give base.")
    return chosen, own | options


def _plain(value: Any) -> Any:
    if isinstance(value, Direction):
        return value.label
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def _displacement(site: Site, base: nn.Module | Checkpoint, model: nn.Module | Checkpoint) -> Any:
    """The step from the base to the model in the selected parameters, shape (size,)."""
    tuned, origin = (Parameters(identify(m)[0], frozen=True).values() for m in (model, base))
    check_same_tensors(origin, tuned)
    dtype = site.layout.dtype
    names = site.parameters.names
    return site.layout.flat({n: tuned[n].to(origin[n].device, dtype) - origin[n].to(dtype) for n in names})
