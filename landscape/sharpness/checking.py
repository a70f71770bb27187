"""Whether a sharpness can be measured with certain settings, seen without evaluating a loss."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NoReturn

from torch import nn

from landscape.checkpoints import Checkpoint, identify
from landscape.objective.causal import CausalLoss
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import progress_bar
from landscape.sharpness.compute import displacement_between
from landscape.sharpness.registered import check_metric
from landscape.sharpness.site import Site
from landscape.weights.preservation import preserved


def check_sharpness(
    model: nn.Module | Checkpoint,
    data: Any,
    *,
    metric: str,
    base: nn.Module | Checkpoint | None = None,
    scope: Scope = Scope(),
    **options: Any,
) -> None:
    """Raise InputError where `compute_sharpness` would refuse the metric or its options for this model.

    The metric's own function is run up to where it first asks for a loss, a gradient or a product with the Hessian.

    Args:
        model: The model to measure.
        data: Batches, as for `compute_sharpness`.
        metric: The name of the metric.
        base: The checkpoint that the model was tuned from, for metrics that need one.
        scope: Which weights and which loss.
        **options: The options of the metric.

    Raises:
        InputError: The metric does not exist or refuses an option.
    """
    chosen, settings = check_metric(metric, options, has_base=base is not None)
    at = base if base is not None and chosen.needs_base else model
    module, _, _ = identify(at)
    # The form of a language model's loss is found by evaluating it, and does not matter here.
    loss_fn = scope.loss_fn or CausalLoss(at_supervised=True, linear_head=True)
    with progress_bar(metric, None, "eval", False) as bar, preserved(module):
        site = Site(at, data, dataclasses.replace(scope, loss_fn=_unevaluated), Run(), seed=0, bar=bar, identity={})
        site.scope = dataclasses.replace(scope, loss_fn=loss_fn)
        if base is not None:
            site.displacement = displacement_between(site, base, model)
        site.objective = _Unevaluated(loss_fn)  # type: ignore[assignment]
        with contextlib.suppress(_Evaluated):
            chosen.measure(site, **settings)


def _unevaluated(*_: Any) -> NoReturn:
    """Stands for a loss function while the site is opened, so that nothing is evaluated there either."""
    raise RuntimeError("the loss is not evaluated where only options are checked")


class _Evaluated(Exception):
    """A metric asked for something that takes an evaluation: its settings were in order."""


class _Unevaluated:
    """Stands for an objective, and ends the check as soon as anything but its loss function is asked of it."""

    def __init__(self, loss_fn: Any):
        self.loss_fn = loss_fn

    def __getattr__(self, name: str) -> NoReturn:
        raise _Evaluated
