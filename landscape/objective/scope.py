"""What is measured and how it is run: two groups of options that travel together through every measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import InputError
from landscape.objective.loss_functions import LossFunction

CURVATURES = ("hessian", "ggn")


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is measured: which loss, as a function of which weights.

    Args:
        parameters: Shell patterns over parameter names, such as `"model.layers.*.mlp.*"`; None takes every trainable
            parameter.
        loss_fn: `loss_fn(model, batch) -> (loss_sum, weight)`; None takes the loss that the data call for.
        curvature: `"hessian"`, or `"ggn"` for the Gauss-Newton part of it. Only second derivatives have this choice.
        include_1d: Random directions also move one-dimensional tensors (gains and biases), each as one filter.
            Li et al. 2018 leave them out.

    Example:
        >>> Scope(parameters="model.layers.*.mlp.*").curvature
        'hessian'
    """

    parameters: str | Sequence[str] | None = None
    loss_fn: LossFunction | None = None
    curvature: str = "hessian"
    include_1d: bool = False

    def only(self, function: str, *names: str) -> Scope:
        """Return this scope where nothing but the named options is set; see `Run.only`."""
        _require_only(self, function, names)
        return self


@dataclasses.dataclass(frozen=True)
class Run:
    """How a measurement is run: none of this changes what is measured, beyond its stated precision.

    Every function takes the options that it has a use for, and refuses the others.

    Args:
        journal: A file that keeps finished work. A run that was killed and is started again with it continues.
        progress: Show a progress bar.
        method: The name of the algorithm, where a function has several; None takes the function's default.
        hvp: How products with the curvature are taken: `"auto"`, `"exact"`, `"forward_over_reverse"` or
            `"finite_difference"`.
        basis_device: The device that keeps Lanczos vectors; None keeps them beside the weights, `"cpu"` on the host.
        offload_base: Keep the exact copy of the weights on the host, so that the device holds them once.
        autocast: `"bfloat16"` takes forward passes in that type; the result says what that did to the loss.

    Example:
        >>> Run(progress=True).hvp
        'auto'
    """

    journal: Path | str | None = None
    progress: bool = False
    method: str | None = None
    hvp: str = "auto"
    basis_device: str | None = None
    offload_base: bool = False
    autocast: str | None = None

    def only(self, function: str, *names: str) -> Run:
        """Return this run where only the named options are set.

        Args:
            function: The name of the function that takes it, for the message.
            *names: The options that the function has a use for; every function has one for `progress`.

        Raises:
            InputError: Another option is set.
        """
        _require_only(self, function, (*names, "progress"))
        return self


def _require_only(options: Scope | Run, function: str, names: Sequence[str]) -> None:
    """Raise InputError where an option is set that `function` has no use for."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in names and value != field.default:
            raise InputError(f"{function} has no use for {type(options).__name__}({field.name}={value!r}).")
