"""Products of the Hessian or the Gauss-Newton matrix of a model on data with a vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from landscape.checkpoints import Checkpoint, identify
from landscape.curvature.opening import curvature_of
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.weights.directions import Direction
from landscape.weights.flat import Layout
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector

VectorLike = TypeVar("VectorLike", Vector, Tensor, list[Tensor], tuple[Tensor, ...], Direction)


def hessian_vector_product(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    vector: VectorLike,
    *,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> VectorLike:
    """The Hessian of the weighted mean loss times `vector`, in the structure that `vector` has.

    vector  tensors by parameter name (absent names are zero, and so are they in the product's meaning: the full
            product is returned over all selected parameters), a `Direction`, one flat tensor of shape (size,), or a
            sequence of tensors in the order of the parameters
    hvp     see `curvature.curvature_of`

    Raises InputError where the vector does not fit the parameters.
    """
    scope.only("hessian_vector_product", "parameters", "loss_fn", "curvature")
    run.only("hessian_vector_product", "hvp")
    module, _, _ = identify(model)
    objective, selected = Objective(module, data, scope.loss_fn), Parameters(module, scope.parameters)
    layout = Layout(selected)
    flat = _flat(vector, layout)
    with curvature_of(objective, selected, curvature=scope.curvature, hvp=run.hvp, keep_graphs=False) as operator:
        product = operator(flat[None])[0]
    if isinstance(vector, Tensor):
        return product
    if isinstance(vector, Direction):
        return dataclasses.replace(vector, tensors=layout.named(product), label=f"H times {vector.label}")
    if isinstance(vector, (list, tuple)):
        return type(vector)(layout.views(product))
    return layout.named(product)


def _flat(vector: Any, layout: Layout) -> Tensor:
    if isinstance(vector, Direction):
        return layout.flat(vector.tensors)
    if isinstance(vector, Tensor):
        if vector.shape != (layout.size,):
            raise InputError(f"the vector has shape {tuple(vector.shape)}; the parameters make ({layout.size},).")
        return vector.to(layout.device, layout.dtype)
    if isinstance(vector, Sequence):
        if len(vector) != len(layout.names):
            raise InputError(f"the vector has {len(vector)} tensors, the parameters are {len(layout.names)}.")
        return layout.flat(dict(zip(layout.names, vector, strict=True)))
    return layout.flat(vector)
