"""Products of the Hessian or the Gauss-Newton matrix of a model on data with a vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.operators.opening import curvature_of
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject
from landscape.weights.directions import Direction
from landscape.weights.flat import Layout
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
    """Compute the product of the Hessian of the weighted mean loss with `vector`, in the structure that `vector` has.

    (H v)_i = sum_j d2 L / (dw_i dw_j) v_j, without ever forming H.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        vector: Tensors by parameter name, a `Direction`, one flat tensor of shape (size,), or a sequence of tensors in
            the order of the parameters. Absent names are zero; the product is over all selected parameters.
        scope: `parameters`, `loss_fn` and `curvature` ("ggn" for the Gauss-Newton matrix) are taken.
        run: `hvp` is taken: "exact", "forward_over_reverse", "finite_difference", or "auto" (the default: exact where a
            trial on one row works and agrees with differences of gradients, else finite differences).

    Returns:
        The product.

    Raises:
        InputError: The vector does not fit the parameters, or the model does not allow that way of taking products.

    Source:
        B. Pearlmutter 1994, "Fast exact multiplication by the Hessian", Neural Computation 6.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1).

        >>> import torch
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> hessian_vector_product(model, data, torch.tensor([1.0, 2.0]), scope=scope)
        tensor([4., 2.])
    """
    scope.only("hessian_vector_product", "parameters", "loss_fn", "curvature")
    run.only("hessian_vector_product", "hvp")
    subject = Subject(model, data, scope)
    layout = Layout(subject.parameters)
    flat = _flat(vector, layout)
    with curvature_of(
        subject.objective, subject.parameters, curvature=scope.curvature, hvp=run.hvp, keep_graphs=False
    ) as operator:
        product = operator(flat[None])[0]
    if isinstance(vector, Tensor):
        return product
    if isinstance(vector, Direction):
        return dataclasses.replace(vector, tensors=layout.named(product), label=f"H times {vector.label}")
    if isinstance(vector, (list, tuple)):
        return type(vector)(layout.views(product))
    return layout.named(product)


@torch.no_grad()  # the vector may be made of parameters
def _flat(vector: Any, layout: Layout) -> Tensor:
    """Return a vector of any structure as one flat tensor; raise InputError where it does not fit the parameters."""
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
