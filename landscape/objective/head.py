"""Cross-entropy of a linear head, without ever holding the logits of all positions: value, gradient and curvature.

With logits z = W h + b, p = softmax(z) and one-hot targets y, the summed loss has the gradient g = p - y in z, and its
change along dz is dg = p * dz - p (p'dz). Everything below is these two equations, pulled through the linear map by
hand and computed a chunk of positions at a time. The memory is that of a chunk's logits, where autograd would keep
several tensors of shape (positions, vocabulary). Logits are computed once for value and gradient together, and once
more for every product with the curvature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import cross_entropy, linear

from landscape.linalg.precision import wide_dtype

_CHUNK = 2**22  # logits computed at a time: 16 MiB in float32


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the sum over positions of the cross-entropy of the logits hidden @ weight.T + bias.

    Args:
        hidden: Hidden states, shape (positions, width).
        weight: Weight of the head, shape (vocabulary, width).
        bias: Bias of the head, shape (vocabulary,), or None.
        targets: Token ids, shape (positions,).

    Returns:
        A scalar in float32 or wider, which is twice differentiable in hidden, weight and bias. The softmax is computed
        in float32 or wider.

    Example:
        >>> hidden, weight = torch.zeros(2, 3), torch.zeros(4, 3)
        >>> linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1]))  # 2 log 4: all logits are equal
        tensor(2.7726, dtype=torch.float64)
    """
    # A Function does not see no_grad. It would take the gradients too, which is twice the work of the value.
    if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, weight, bias) if t is not None):
        return _Value.apply(hidden, weight, bias, targets)
    total = _zero(hidden)
    for piece in _pieces(len(hidden), len(weight)):
        logits = _logits(hidden[piece], weight, bias)
        total += cross_entropy(logits, targets[piece], reduction="none").to(total.dtype).sum()
    return total


def _zero(like: Tensor) -> Tensor:
    """Return a zero in the widest float of the device of `like`."""
    return torch.zeros((), dtype=wide_dtype(like.device), device=like.device)


def _pieces(positions: int, vocabulary: int) -> Iterator[slice]:
    """Yield chunks of positions whose logits together are about `_CHUNK` numbers."""
    step = max(1, _CHUNK // vocabulary)
    for start in range(0, positions, step):
        yield slice(start, start + step)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the logits in float32 or wider."""
    logits = linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax, written over `logits`."""
    return logits.sub_(torch.logsumexp(logits, dim=-1, keepdim=True)).exp_()


class _Value(Function):
    """The summed loss. Its gradients are taken in the same pass over the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        total = _zero(hidden)
        gradients: list[Tensor | None] = [torch.empty_like(hidden), torch.zeros_like(weight)]
        gradients.append(None if bias is None else torch.zeros_like(bias))
        for piece in _pieces(len(hidden), len(weight)):
            h, y = hidden[piece], targets[piece, None]
            logits = _logits(h, weight, bias)
            at_target = logits.gather(1, y)
            sums = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += (sums - at_target).to(total.dtype).sum()
            slope = logits.sub_(sums).exp_().scatter_add_(1, y, torch.full_like(at_target, -1.0))
            _pull(gradients, piece, slope.to(weight.dtype), h, weight)
        ctx.save_for_backward(hidden, weight, bias, targets, *gradients)
        ctx.save_for_forward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Gradient.apply(scale, *ctx.saved_tensors), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        pairs = zip(ctx.saved_tensors, tangents[:3], strict=True)
        parts = [(g.double() * t).sum() for g, t in pairs if g is not None and t is not None]
        return torch.stack(parts).sum()


def _pull(into: list[Tensor | None], piece: slice, slope: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """Pull a cotangent of the logits of `piece` back to hidden, weight and bias, and add it to `into`."""
    d_hidden, d_weight, d_bias = into
    torch.mm(slope, weight, out=d_hidden[piece])  # type: ignore[index]
    d_weight.addmm_(slope.T, hidden)  # type: ignore[union-attr]
    if d_bias is not None:
        d_bias += slope.sum(0)


class _Gradient(Function):
    """Scales the gradient that the value's pass took; its own derivative is the curvature."""

    @staticmethod
    def forward(
        ctx: Any,
        scale: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        *gradients: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(scale, hidden, weight, bias, targets, *gradients)
        ctx.save_for_forward(scale, hidden, weight, bias, targets, *gradients)
        ctx.set_materialize_grads(False)
        return tuple(None if g is None else g * scale.to(g.dtype) for g in gradients)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        # The Hessian is symmetric, so pulling a vector back through the gradient multiplies the vector by it.
        scale, *inputs, d_hidden, d_weight, d_bias = ctx.saved_tensors
        products = [None if d is None else d.mul_(scale.to(d.dtype)) for d in _curvature(*inputs, *along)]
        d_scale = None
        if ctx.needs_input_grad[0]:
            pairs = zip(along, (d_hidden, d_weight, d_bias), strict=True)
            parts = [(a.to(scale.dtype) * d).sum() for a, d in pairs if a is not None and d is not None]
            d_scale = torch.stack(parts).sum() if parts else None
        return (d_scale, *products, *([None] * 4))

    @staticmethod
    def jvp(ctx: Any, scale_tangent: Tensor | None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        scale, *inputs, d_hidden, d_weight, d_bias = ctx.saved_tensors
        products = [None if d is None else d.mul_(scale.to(d.dtype)) for d in _curvature(*inputs, *tangents[:3])]
        if scale_tangent is not None:
            for product, d in zip(products, (d_hidden, d_weight, d_bias), strict=True):
                if product is not None and d is not None:
                    product += d * scale_tangent.to(d.dtype)
        return tuple(products)


def _curvature(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    along_hidden: Tensor | None,
    along_weight: Tensor | None,
    along_bias: Tensor | None = None,
) -> list[Tensor | None]:
    """Multiply the Hessian of the summed loss in (hidden, weight, bias) by a vector in them; None stands for zero."""
    out: list[Tensor | None] = [torch.empty_like(hidden), torch.zeros_like(weight)]
    out.append(None if bias is None else torch.zeros_like(bias))
    for piece in _pieces(len(hidden), len(weight)):
        h, y = hidden[piece], targets[piece]
        p = _softmax(_logits(h, weight, bias))
        dz = torch.zeros_like(p, dtype=weight.dtype)
        if along_hidden is not None:
            dz.addmm_(along_hidden[piece], weight.T)
        if along_weight is not None:
            dz.addmm_(h, along_weight.T)
        if along_bias is not None:
            dz += along_bias
        bent = dz.to(p.dtype).mul_(p)
        bent.addcmul_(p, bent.sum(-1, keepdim=True), value=-1)
        _pull(out, piece, bent.to(weight.dtype), h, weight)
        p = p.to(weight.dtype)  # This is p - y, whose second part is applied by index.
        if along_hidden is not None:
            out[1].addmm_(p.T, along_hidden[piece])  # type: ignore[union-attr]
            out[1].index_add_(0, y, along_hidden[piece], alpha=-1)  # type: ignore[union-attr]
        if along_weight is not None:
            out[0][piece].addmm_(p, along_weight).sub_(along_weight[y])  # type: ignore[index]
    return out
