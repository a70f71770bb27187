"""Opening the curvature of an objective: which way of taking products, whether it can be trusted, whether it fits."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from landscape.curvature.differences import central_difference
from landscape.curvature.memory import MemoryEstimate, available_memory, counting_saved_bytes
from landscape.curvature.operators import CurvatureOperator
from landscape.data.batches import Batch, on_device, rows_of, take_rows
from landscape.errors import InputError, MeasurementWarning, first_line
from landscape.objective.loss_functions import OutputLoss
from landscape.objective.objective import Objective
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import is_sharded, own_part
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved

HVPS = ("auto", "exact", "forward_over_reverse", "finite_difference")
CURVATURES = ("hessian", "ggn")
_KEPT_SHARE = 0.4  # of the available memory may hold kept graphs
WORKING_VECTORS = 3  # beside those a method keeps: a product, what it is summed from, a remainder
_CHECKED = 1_000_000  # weights in which second derivatives are compared with differences


@contextlib.contextmanager
def curvature_of(
    objective: Objective,
    parameters: Parameters,
    *,
    curvature: str = "hessian",
    hvp: str = "auto",
    keep_graphs: bool = True,
) -> Iterator[CurvatureOperator]:
    """The Hessian (or, with curvature="ggn", the Gauss-Newton matrix) of `objective` in `parameters`.

    hvp  "exact", "forward_over_reverse", "finite_difference", or "auto": exact where a trial on one row works and
         agrees with differences of gradients, else finite differences

    keep_graphs  keep the gradients' graphs between calls where all of them fit in 40% of the free memory: a product
                 from a kept graph costs 1.9 gradients, from a fresh one 3.1

    Inside the block the model is in evaluation mode and only `parameters` take gradients; afterwards it is bit for
    bit what it was. Warns where weights are in half precision: products then carry errors of a percent.

    Raises InputError for unknown names, and for ways that the model or the loss does not allow.
    """
    if hvp not in HVPS:
        raise InputError(f"hvp={hvp!r} is none of {', '.join(HVPS)}.")
    if curvature not in CURVATURES:
        raise InputError(f"curvature={curvature!r} is none of {', '.join(CURVATURES)}.")
    model = objective.model
    with preserved(model):
        chosen = {id(tensor) for tensor in parameters.tensors}
        for tensor in model.parameters():
            tensor.requires_grad_(id(tensor) in chosen)
        operator = _open_as_others(objective, parameters, curvature, hvp, keep_graphs)
        half = {str(t.dtype).removeprefix("torch.") for t in parameters.tensors if t.dtype.itemsize < 4}
        if half:
            warnings.warn(
                f"products with {', '.join(sorted(half))} weights carry errors of about a percent; load the model in "
                "float32.",
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
    """The operator of `_open`, tried by each process alone; differences where one of them found that only they work."""
    opened: list[CurvatureOperator] = []

    def attempt(_: Share) -> tuple[str, str]:
        opened.append(_open(objective, parameters, curvature, hvp, keep_graphs))
        return opened[0].hvp, opened[0].reason

    for found, reason in distributed.gathered(attempt):
        if found != opened[0].hvp and found == "finite_difference":
            opened = [CurvatureOperator(objective, parameters, found)]
            opened[0].reason = reason
    return opened[0]


def _open(
    objective: Objective, parameters: Parameters, curvature: str, hvp: str, keep_graphs: bool
) -> CurvatureOperator:
    compiled = any(hasattr(module, "_orig_mod") for module in objective.model.modules())
    if is_sharded(objective.model):
        if curvature == "ggn" or hvp not in ("auto", "finite_difference"):
            what = "Gauss-Newton products" if curvature == "ggn" else f"products by hvp={hvp!r}"
            raise InputError(
                f"a sharded model (fully_shard) has no {what}, as FSDP2 has no second derivative; curvature='hessian' "
                "and hvp='auto' take differences of gradients."
            )
        differences = CurvatureOperator(objective, parameters, "finite_difference")
        differences.reason = "FSDP2 has no second derivative"
        return differences
    if curvature == "ggn":
        if not isinstance(objective.loss_fn, OutputLoss):
            raise InputError(
                "curvature='ggn' needs to know the model's outputs: use the default loss, "
                "supervised_loss(criterion), or a loss_fn with outputs(), of_outputs() and output_hessian()."
            )
        if hvp not in ("auto", "exact"):
            raise InputError(f"hvp={hvp!r} has no Gauss-Newton products; leave it at 'auto'.")
        return _tried(CurvatureOperator(objective, parameters, "ggn", keep_graphs))
    differences = CurvatureOperator(objective, parameters, "finite_difference")
    if hvp == "finite_difference":
        return differences
    if compiled:
        differences.reason = "a compiled module has no trustworthy second derivative (pytorch#91469)"
        if hvp != "auto":
            raise InputError(f"{differences.reason}; use hvp='finite_difference', or the module before torch.compile.")
        return differences
    try:
        return _tried(CurvatureOperator(objective, parameters, "exact" if hvp == "auto" else hvp, keep_graphs))
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if hvp != "auto":
            raise InputError(f"hvp={hvp!r} does not work for this model: {first_line(error)}") from error
        differences.reason = f"exact products do not work for this model: {first_line(error)}"
    return differences


def _tried(operator: CurvatureOperator) -> CurvatureOperator:
    """Take a product over one row: counts the memory a graph holds, and says whether products can be had."""
    objective, layout = operator.objective, operator.layout
    row, rows, all_rows = _longest_row(objective)
    views = layout.views(layout.random(0, "probe"))
    with counting_saved_bytes(objective.model.parameters()) as count:
        graph, weight = operator.build(row)
        graph([v.to(t.device, t.dtype) for v, t in zip(views, operator.parameters.tensors, strict=True)], False)
    del graph, views
    if operator.hvp == "ggn":
        _check_outputs(objective, row)
    elif weight > 0:
        _check_against_differences(operator, row)
    operator.graph_bytes = int(count[0] * rows)
    available = available_memory(operator.device)
    operator.keeps_graphs &= (
        operator.hvp in ("exact", "ggn") and available is not None and count[0] * all_rows <= _KEPT_SHARE * available
    )
    if operator.keeps_graphs:
        operator.graph_bytes = int(count[0] * all_rows)
    return operator


def _check_outputs(objective: Objective, row: Batch) -> None:
    loss_fn = objective.loss_fn
    assert isinstance(loss_fn, OutputLoss)
    with torch.no_grad():
        whole, _ = objective.evaluate(row)
        part, _ = loss_fn.of_outputs(loss_fn.outputs(objective.model, row), row)
    if not torch.isclose(whole, part.to(whole), rtol=1e-2, equal_nan=True):
        raise InputError(
            "curvature='ggn': the model's loss is more than the cross-entropy of its logits; pass loss_fn."
        )


def _check_against_differences(operator: CurvatureOperator, row: Batch) -> None:
    """Raise RuntimeError where a product is not the derivative of the gradient.

    Custom functions with a backward that autograd cannot see through do that in silence. The comparison is over one
    row of data, in the smallest tensors: gains and biases sit at every depth, and vectors of them cost nothing.
    """
    model = operator.objective.model
    names: list[str] = []
    for entry in sorted(operator.parameters, key=lambda e: e.tensor.numel()):
        if names and sum(operator.parameters[name].numel() for name in names) + entry.tensor.numel() > _CHECKED:
            break
        names.append(entry.name)
    small = Parameters(model, names)
    if any(t.dtype.itemsize < 4 for t in small.tensors):
        return  # half precision has no difference to compare with
    single = Objective(model, [row], operator.objective.loss_fn)
    checked = CurvatureOperator(single, small, operator.hvp)
    vector = checked.layout.random(0, "probe")
    product = checked(vector[None])[0]
    difference = central_difference(single, small, vector, 0.1)
    larger = max(float(torch.linalg.vector_norm(v)) for v in (product, difference.product))
    apart = float(torch.linalg.vector_norm(product - difference.product))
    if difference.error < 0.05 and apart > 0.2 * larger:
        raise RuntimeError("second derivatives disagree with differences of gradients")


def _longest_row(objective: Objective) -> tuple[Batch, float, float]:
    """The longest row of the data; the largest batch, and all batches, in rows of that length.

    A graph of so many such rows holds at least what the batch's does: what attention keeps grows faster than a row.
    """
    longest, length, most, total = None, -1.0, 0, 0
    for batch in objective.data:
        elements = _elements(batch)
        most, total = max(most, elements), total + elements
        of_row = elements / (rows_of(batch) or 1)
        if of_row > length:
            longest, length = batch, of_row
    batch = on_device(longest, objective.device)
    rows = rows_of(batch)
    row = batch if rows is None else take_rows(batch, slice(0, 1), rows)
    return row, most / max(length, 1), total / max(length, 1)


def _elements(batch: Batch) -> int:
    if isinstance(batch, Tensor):
        return batch.numel()
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return max((_elements(part) for part in parts), default=0)


def vectors_that_fit(operator: CurvatureOperator, wanted: int, least: int, basis_device: str | None = None) -> int:
    """How many of the `wanted` vectors there is room for, and not fewer than `least`: fewer cost more products."""
    home = torch.device(basis_device) if basis_device is not None else operator.device

    def fitting(_: Share) -> int:
        available = available_memory(home)
        if available is None:
            return min(wanted, operator.size)
        taken = operator.graph_bytes if home.type == operator.device.type else 0
        room = int((available - taken) // (operator.layout.own_size * operator.dtype.itemsize)) - WORKING_VECTORS
        return min(max(least, min(wanted, room)), operator.size)

    return min(distributed.gathered(fitting))


def require_memory(operator: CurvatureOperator, vectors: int, basis_device: str | None = None, *, told: bool) -> None:
    """Say what the run will hold (with `told`) and refuse it where that cannot fit."""
    host = basis_device is not None and torch.device(basis_device).type != operator.device.type
    estimate = MemoryEstimate(
        weights=sum(own_part(p).numel() * p.element_size() for p in operator.objective.model.parameters()),
        graph=operator.graph_bytes,
        vectors=vectors * operator.layout.own_size * operator.dtype.itemsize,
        vectors_on_device=not host,
        available=available_memory(operator.device),
    )
    if told:
        tqdm.write(f"{estimate.describe()}; products: {operator.hvp} {operator.reason}".rstrip(), file=sys.stderr)
    distributed.gathered(lambda _: estimate.require())
