"""PyHessian's power iteration (Yao et al. 2020, arXiv 1912.07145) on our objective, as the reference people know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.data.batches import on_device
from landscape.errors import InputError
from landscape.linalg.lanczos import RitzPairs
from landscape.linalg.operator import length


class _Unused(nn.Module):
    """A model for PyHessian whose output is its input: the loss is taken in the criterion."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def pyhessian_eigenvalues(
    operator: CurvatureOperator,
    k: int,
    which: str,
    tol: float,
    max_matvecs: int,
    seed: int,
    progress: Callable[[int], Any],
) -> RitzPairs:
    """Compute the `k` eigenvalues of largest magnitude as PyHessian does; residuals are measured afterwards.

    PyHessian weights batches by `inputs.size(0)`. It is given tensors of no memory with as many rows as a batch has
    loss terms, so that its mean is the token-weighted one; its code and its stopping rule (two successive Rayleigh
    quotients within `tol`) run as they are. Its random vectors come from the global generator, seeded here.

    Args:
        operator: The Hessian.
        k: The number of eigenvalues.
        which: Must be "LM": power iteration finds no others.
        tol: The relative change of a Rayleigh quotient at which PyHessian stops.
        max_matvecs: The largest number of products, over all eigenvalues.
        seed: Seed of PyHessian's random vectors.
        progress: A function that is called with the number of products just taken.

    Returns:
        The eigenvalues, with residuals and vectors.

    Raises:
        InputError: PyHessian cannot run: the weights are not float32, or the curvature is not the Hessian.
    """
    from pyhessian import hessian

    objective, tensors = operator.objective, operator.parameters.tensors
    if which != "LM" or operator.hvp == "ggn":
        raise InputError("method='pyhessian' finds Hessian eigenvalues of largest magnitude; set which='LM'.")
    if any(t.dtype != torch.float32 for t in tensors):
        raise InputError("method='pyhessian' works with float32 weights only.")
    batches = list(objective.data)
    weights = [float(weight) for weight in _weights(operator, batches)]
    if any(weight % 1 for weight in weights):
        raise InputError("method='pyhessian' weights batches by whole numbers; loss_fn gives others.")
    evaluations = 0

    def criterion(_: Tensor, index: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations % len(loader) == 0:
            progress(1)
        loss_sum, weight = objective.evaluate(on_device(batches[int(index)], objective.device))
        return (loss_sum / weight).float()

    loader = [(torch.empty(int(weight), 0), torch.tensor(index)) for index, weight in enumerate(weights) if weight > 0]
    for tensor in tensors:
        tensor.grad = None
    torch.manual_seed(seed)
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        reference = hessian(_Unused(objective.model), criterion, dataloader=loader, cuda=operator.device.type == "cuda")
        values, vectors = reference.eigenvalues(maxIter=max(1, max_matvecs // k), tol=tol, top_n=k)
    for tensor in tensors:
        tensor.grad = None  # with its graph, which refers back to the tensor
    matvecs = evaluations // len(loader)
    flat = torch.stack([torch.cat([part.reshape(-1) for part in vector]).to(operator.dtype) for vector in vectors])
    images = operator(flat)
    eigenvalues = np.array(values, dtype=np.float64)
    distance = images - torch.from_numpy(eigenvalues).to(images)[:, None] * flat
    residuals = np.array([float(length(row)) for row in distance])
    return RitzPairs(eigenvalues, residuals, residuals <= tol * np.abs(eigenvalues), flat, matvecs)


def _weights(operator: CurvatureOperator, batches: list) -> list[Tensor]:
    """Return the number of loss terms of each batch."""
    with torch.no_grad():
        return [operator.objective.evaluate(on_device(batch, operator.device))[1] for batch in batches]
