"""A trial product over one row of the data: whether products can be had and trusted, and how much memory they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from landscape.curvature.operators.agreement import agreement, widened
from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.curvature.operators.memory import available_memory, counting_saved_bytes, rows_that_fit
from landscape.data.batches import Batch, on_device, rows_of, take_rows
from landscape.errors import InputError, as_typed
from landscape.objective.loss_functions import OutputLoss
from landscape.objective.objective import Objective
from landscape.weights.flat import Layout
from landscape.weights.parameters import Parameters

_KEPT_SHARE = 0.4  # of the available memory may hold kept graphs
_CHECKED = 10_000_000  # weights in which second derivatives are compared with differences


def tried(operator: CurvatureOperator) -> CurvatureOperator:
    """Return the operator after a product over one row, which measures the memory that a graph holds.

    Raises:
        InputError: The operator is a Gauss-Newton matrix of outputs from which the loss is not computed.
        RuntimeError: Products cannot be taken, or they are not the derivatives of the gradient.
    """
    objective, layout = operator.objective, operator.layout
    row, rows, all_rows, samples = _survey(objective)
    views = layout.views(layout.random(0, "probe"))
    with counting_saved_bytes(objective.model.parameters()) as count:
        graph, _ = operator.build(row)
        graph([v.to(t.device, t.dtype) for v, t in zip(views, operator.parameters.tensors, strict=True)], False)
    del graph, views
    if operator.hvp == "ggn":
        _check_outputs(objective, row)
    else:
        _check_against_differences(operator, samples)
    most = rows_that_fit(operator, count[0])
    if most is not None:
        operator.keeps_graphs &= all_rows <= most
        if rows > most:
            operator.objective = objective.restricted(objective.data)
            operator.objective.rows_limit, rows = most, most
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


def _check_against_differences(operator: CurvatureOperator, samples: Sequence[Sequence[Batch]]) -> None:
    """Set `operator.unverified`, and raise RuntimeError where a product is not the derivative of the gradient.

    Custom functions with a backward that autograd cannot see through lose second derivatives in silence. Two vectors
    are compared, each on a row or two: one that moves every tensor in proportion to its weights, and its product, which
    leans towards the sharpest directions. The vectors live in the smallest tensors, up to ten million weights: gains
    and biases sit at every depth, and with them come the smaller matrices.

    Weights in half precision have no difference to compare with. Their model is compared in a float32 copy, and what
    rounding does to it afterwards is another matter.
    """
    objective, selected = operator.objective, operator.parameters
    names: list[str] = []
    for entry in sorted(selected, key=lambda e: e.tensor.numel()):
        if names and sum(selected[name].numel() for name in names) + entry.tensor.numel() > _CHECKED:
            break
        names.append(entry.name)
    small = Parameters(objective.model, names)
    half = any(tensor.dtype.itemsize < 4 for tensor in small.tensors)
    vector = None
    for sample in samples:
        single, chosen = objective.restricted(sample), small
        if half:
            twin = widened(single, small, torch.float32)
            if isinstance(twin, str):
                operator.unverified = f"there is no float32 copy to compare second derivatives in, because {twin}"
                return
            single, chosen = twin
        checked = CurvatureOperator(single, chosen, operator.hvp)
        vector = _in_proportion(chosen, checked.layout) if vector is None else checked(vector[None])[0]
        product = checked(vector[None])[0]
        if not (product.any() or vector.any()) or not torch.isfinite(product).all():
            return  # nothing to compare; what is not finite is refused where it is used
        found = agreement(single, chosen, vector, product)
        operator.checking_gradients += found.gradients
        if found.right is False:
            raise RuntimeError(f"second derivatives disagree with differences of gradients ({found.words})")
        if found.right is None:
            operator.unverified = f"differences of gradients neither confirm nor refute it, {found.words}"


def _in_proportion(parameters: Parameters, layout: Layout) -> Tensor:
    """Return a random vector in which every tensor has a length in proportion to that of its weights."""
    vector = layout.random(0, "probe")
    total = 0.0
    for tensor in parameters.tensors:
        total += float(tensor.detach().float().square().sum())
    typical = (total / layout.size) ** 0.5 or 1.0
    for part, tensor in zip(layout.views(vector), parameters.tensors, strict=True):
        own = float(tensor.detach().float().square().mean()) ** 0.5
        part.mul_(max(own, 0.1 * typical))
    return vector


class _Survey(NamedTuple):
    """What one reading of the data says of it.

    A graph of so many rows as long as the longest holds at least what the data's does: what attention keeps grows
    faster than a row.

    Attributes:
        longest: The longest row.
        largest: The largest batch, counted in rows of that length.
        total: All batches, counted in rows of that length.
        samples: A few rows with a loss, in two lists: the longest, and one from each end of the data.
    """

    longest: Batch
    largest: float
    total: float
    samples: list[list[Batch]]


def _survey(objective: Objective) -> _Survey:
    """Read the data once and return what a trial needs to know of it."""
    longest, first, last, length, most, total = None, None, None, -1.0, 0, 0
    for batch in objective.data:
        first, last = batch if first is None else first, batch
        elements = _elements(batch)
        most, total = max(most, elements), total + elements
        of_row = elements / (rows_of(batch) or 1)
        if of_row > length:
            longest, length = batch, of_row
    row = _row_of(objective, longest, 0)
    lists = [[row], [_row_of(objective, first, 0), _row_of(objective, last, -1)]]
    with torch.no_grad():
        lists = [[part for part in parts if float(objective.evaluate(part)[1]) > 0] for parts in lists]
        if not any(lists):
            found = (on_device(batch, objective.device) for batch in objective.data)
            lists = [[batch] for batch in found if float(objective.evaluate(batch)[1]) > 0][:1]
    lists = [parts for parts in lists if parts]
    return _Survey(row, most / max(length, 1), total / max(length, 1), (lists * 2)[:2])


def _row_of(objective: Objective, batch: Batch, index: int) -> Batch:
    """Return the first (0) or the last (-1) row of a batch, on the device; all of a batch that has no rows."""
    batch = on_device(batch, objective.device)
    rows = rows_of(batch)
    if not rows:
        return batch
    return take_rows(batch, slice(0, 1) if index == 0 else slice(rows - 1, rows), rows)


def _elements(batch: Batch) -> int:
    """Return the number of elements of the largest tensor of a batch."""
    if isinstance(batch, Tensor):
        return batch.numel()
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return max((_elements(part) for part in parts), default=0)
