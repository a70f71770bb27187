"""A trial product over one row of the data: whether products can be had and trusted, and how much memory they take."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.curvature.operators.differences import central_difference
from landscape.curvature.operators.memory import available_memory, counting_saved_bytes
from landscape.data.batches import Batch, on_device, rows_of, take_rows
from landscape.errors import InputError, as_typed
from landscape.objective.loss_functions import OutputLoss
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters

_KEPT_SHARE = 0.4  # of the available memory may hold kept graphs
_CHECKED = 1_000_000  # weights in which second derivatives are compared with differences


def tried(operator: CurvatureOperator) -> CurvatureOperator:
    """Return the operator after a product over one row, which measures the memory that a graph holds.

    Raises:
        InputError: The operator is a Gauss-Newton matrix of outputs from which the loss is not computed.
        RuntimeError: Products cannot be taken, or they are not the derivatives of the gradient.
    """
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
    """Raise InputError where the loss of a row is not what the loss function makes of the model's outputs."""
    loss_fn = objective.loss_fn
    assert isinstance(loss_fn, OutputLoss)
    with torch.no_grad():
        whole, _ = objective.evaluate(row)
        part, _ = loss_fn.of_outputs(loss_fn.outputs(objective.model, row), row)
    if not torch.isclose(whole, part.to(whole), rtol=1e-2, equal_nan=True):
        raise InputError(
            f"{as_typed('curvature', 'ggn')}: the model's loss is more than the cross-entropy of its logits; "
            "pass loss_fn."
        )


def _check_against_differences(operator: CurvatureOperator, row: Batch) -> None:
    """Raise RuntimeError where a product is not the derivative of the gradient.

    Custom functions with a backward that autograd cannot see through lose second derivatives in silence. The comparison
    is over one row of data, in the smallest tensors: gains and biases sit at every depth, and vectors of them cost
    nothing.
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
    single = operator.objective.restricted([row])
    checked = CurvatureOperator(single, small, operator.hvp)
    vector = checked.layout.random(0, "probe")
    product = checked(vector[None])[0]
    difference = central_difference(single, small, vector, 0.1)
    larger = max(float(torch.linalg.vector_norm(v)) for v in (product, difference.product))
    apart = float(torch.linalg.vector_norm(product - difference.product))
    if difference.error < 0.05 and apart > 0.2 * larger:
        raise RuntimeError("second derivatives disagree with differences of gradients")


def _longest_row(objective: Objective) -> tuple[Batch, float, float]:
    """Return the longest row of the data, and the largest batch and all batches counted in rows of that length.

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
    """Return the number of elements of the largest tensor of a batch."""
    if isinstance(batch, Tensor):
        return batch.numel()
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return max((_elements(part) for part in parts), default=0)
