"""Models whose curvature is known: in closed form, or small enough in float64 for a dense Hessian."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.curvature.operators.opening import curvature_of
from landscape.linalg.operator import MatrixOperator as MatrixOperator
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters

WORDS = 7


class RMSNorm(nn.Module):
    """Written out: torch 2.13's torch.func.hessian is wrong in nn.LayerNorm's gain (autograd.functional's is not)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class TinyTransformer(nn.Module):
    """A causal language model that is float64 throughout: a transformers Llama keeps norms and softmax in float32."""

    def __init__(self, seed: int = 0, width: int = 4):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(WORDS, width)
        self.norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.double()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        x = self.embedding(input_ids)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x)


def tiny_data(rows: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """Four rows of five words, three labels left out, in batches of `rows`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (4, 5), generator=generator)
    labels = ids.clone()
    labels[0, 2] = labels[2, 1] = labels[3, 4] = -100
    return [
        {"input_ids": ids[start : start + rows], "labels": labels[start : start + rows]} for start in range(0, 4, rows)
    ]


def dense_hessian(model: nn.Module, data: list[Any], loss_fn: Any = None) -> Tensor:
    """The Hessian by torch.func.hessian, in the order of the parameters: independent of everything under test."""
    loss_fn = loss_fn or plain_causal_loss
    parameters = Parameters(model)
    shapes = [t.shape for t in parameters.tensors]
    lengths = [t.numel() for t in parameters.tensors]
    flat = torch.cat([t.detach().reshape(-1) for t in parameters.tensors])

    def loss(vector: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(vector.split(lengths), shapes, strict=True)]
        values = dict(zip(parameters.names, parts, strict=True))
        total, weight = torch.zeros((), dtype=torch.float64), 0.0
        for batch in data:
            module = _Evaluated(model, loss_fn)
            named = {f"model.{name}": value for name, value in values.items()}
            total = total + torch.func.functional_call(module, named, (batch,))
            weight += float(loss_fn(model, batch)[1])
        return total / weight

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.hessian(loss)(flat)


def plain_causal_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Next-token cross-entropy written out: independent of the one under test."""
    targets = batch["labels"][:, 1:]
    kept = targets != -100
    logits = model(batch["input_ids"])[:, :-1][kept]
    return F.cross_entropy(logits, targets[kept], reduction="sum"), int(kept.sum())


class _Evaluated(nn.Module):
    def __init__(self, model: nn.Module, loss_fn: Any):
        super().__init__()
        self.model, self._loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self._loss_fn(self.model, batch)[0]


def matrix_of(model: nn.Module, data: Any, loss_fn: Any = None, **options: Any) -> Tensor:
    """The operator under test as a matrix, from its products with the unit vectors."""
    parameters = Parameters(model)
    with curvature_of(Objective(model, data, loss_fn), parameters, **options) as operator:
        return operator(torch.eye(parameters.numel, dtype=operator.dtype))


def with_spectrum(values: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A symmetric matrix with these eigenvalues, in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return ((basis * values) @ basis.T).to(dtype)


def start_vector(size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
