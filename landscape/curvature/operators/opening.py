"""Opening the curvature of an objective: choosing a way of taking products that works for the model and the loss."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.curvature.operators.trial import tried
from landscape.errors import InputError, MeasurementWarning, as_typed, first_line
from landscape.objective.loss_functions import OutputLoss
from landscape.objective.objective import Objective
from landscape.objective.scope import CURVATURES
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import is_sharded
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved

HVPS = ("auto", "exact", "forward_over_reverse", "finite_difference")


@contextlib.contextmanager
def curvature_of(
    objective: Objective,
    parameters: Parameters,
    *,
    curvature: str = "hessian",
    hvp: str = "auto",
    keep_graphs: bool = True,
) -> Iterator[CurvatureOperator]:
    """Open the Hessian or the Gauss-Newton matrix of `objective` in `parameters` as a symmetric operator.

    Inside the block the model is in evaluation mode and only `parameters` take gradients; afterwards it is bit for
    bit what it was. MeasurementWarning where weights are in half precision, whose products carry errors of a percent,
    and where products could not be compared with differences of gradients.

    Args:
        objective: The loss whose second derivatives are taken.
        parameters: The weights in question; the others are constants.
        curvature: "hessian" or "ggn", the Gauss-Newton matrix.
        hvp: "exact", "forward_over_reverse", "finite_difference", or "auto": exact where a trial works and agrees with
            differences of gradients on a row or two, else finite differences.
        keep_graphs: Keep the gradients' graphs between calls where all of them fit in 40% of the free memory. A product
            from a kept graph costs 1.9 gradients, one from a fresh graph 3.1.

    Yields:
        The operator.

    Raises:
        InputError: A name is unknown, or the model or the loss does not allow that way of taking products.
    """
    if hvp not in HVPS:
        raise InputError(f"{as_typed('hvp', hvp)} is none of {', '.join(HVPS)}.")
    if curvature not in CURVATURES:
        raise InputError(f"{as_typed('curvature', curvature)} is none of {', '.join(CURVATURES)}.")
    model = objective.model
    with preserved(model):
        chosen = {id(tensor) for tensor in parameters.tensors}
        for tensor in model.parameters():
            tensor.requires_grad_(id(tensor) in chosen)
        objective.require_gradients()
        operator = _open_as_others(objective, parameters, curvature, hvp, keep_graphs)
        half = {str(t.dtype).removeprefix("torch.") for t in parameters.tensors if t.dtype.itemsize < 4}
        if half:
            warnings.warn(
                f"products with {', '.join(sorted(half))} weights carry errors of about a percent; load the model in "
                "float32.",
                MeasurementWarning,
                stacklevel=3,
            )
        if operator.unverified:
            warnings.warn(
                f"whether products with second derivatives are right is unknown: {operator.unverified}. "
                f"{as_typed('hvp', 'finite_difference')} does not depend on them.",
                MeasurementWarning,
                stacklevel=3,
            )
        yield operator
        if not operator.fidelity.faithful:
            warnings.warn(
                f"rounding to the weights' type changed the steps of finite differences (worst cosine "
                f"{operator.fidelity.cosine:.4f}); load the model in float32.",
                MeasurementWarning,
                stacklevel=3,
            )


def _open_as_others(
    objective: Objective, parameters: Parameters, curvature: str, hvp: str, keep_graphs: bool
) -> CurvatureOperator:
    """Return the operator of `_open`, which each process tries alone.

    Where one of them had to fall back to finite differences, all of them do.
    """
    opened: list[CurvatureOperator] = []

    def attempt(_: Share) -> tuple[str, str, str]:
        opened.append(_open(objective, parameters, curvature, hvp, keep_graphs))
        return opened[0].hvp, opened[0].reason, opened[0].unverified

    for chosen, reason, unverified in distributed.gathered(attempt):
        opened[0].unverified = opened[0].unverified or unverified
        if chosen != opened[0].hvp and chosen == "finite_difference":
            opened = [CurvatureOperator(objective, parameters, chosen)]
            opened[0].reason = reason
    if opened[0].hvp == "finite_difference":
        opened[0].unverified = ""  # none of autograd's second derivatives are in use
    return opened[0]


def _open(
    objective: Objective, parameters: Parameters, curvature: str, hvp: str, keep_graphs: bool
) -> CurvatureOperator:
    """Return an operator that works for the model and the loss, by the way `hvp` or the best one that works."""
    compiled = any(hasattr(module, "_orig_mod") for module in objective.model.modules())
    if is_sharded(objective.model):
        if curvature == "ggn" or hvp not in ("auto", "finite_difference"):
            what = "Gauss-Newton products" if curvature == "ggn" else f"products by hvp={hvp!r}"
            raise InputError(
                f"a sharded model (fully_shard) has no {what}, as FSDP2 has no second derivative; "
                f"{as_typed('curvature', 'hessian')} and {as_typed('hvp', 'auto')} take differences of gradients."
            )
        differences = CurvatureOperator(objective, parameters, "finite_difference")
        differences.reason = "FSDP2 has no second derivative"
        return differences
    if curvature == "ggn":
        if not isinstance(objective.loss_fn, OutputLoss):
            raise InputError(
                f"{as_typed('curvature', 'ggn')} needs to know the model's outputs: use the default loss, "
                "supervised_loss(criterion), or a loss_fn with outputs(), of_outputs() and output_hessian()."
            )
        if hvp not in ("auto", "exact"):
            raise InputError(f"{as_typed('hvp', hvp)} has no Gauss-Newton products; leave it at 'auto'.")
        return tried(CurvatureOperator(objective, parameters, "ggn", keep_graphs))
    differences = CurvatureOperator(objective, parameters, "finite_difference")
    if hvp == "finite_difference":
        return differences
    if compiled:
        differences.reason = "a compiled module has no trustworthy second derivative (pytorch#91469)"
        if hvp != "auto":
            raise InputError(
                f"{differences.reason}; use {as_typed('hvp', 'finite_difference')}, or the module before torch.compile."
            )
        return differences
    try:
        return tried(CurvatureOperator(objective, parameters, "exact" if hvp == "auto" else hvp, keep_graphs))
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if hvp != "auto":
            raise InputError(f"{as_typed('hvp', hvp)} does not work for this model: {first_line(error)}") from error
        differences.reason = f"exact products do not work for this model: {first_line(error)}"
    return differences
