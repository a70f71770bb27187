"""Changes of a Llama's weights that leave its function alone: what a measure of the function has no right to see.

Dinh et al. 2017 (arXiv 1703.04933) for rectifier networks; here those of RMSNorm, rotary grouped-query attention and
SwiGLU. Factors are powers of two, so that rounding commutes with them and log-probabilities stay the same bit for bit,
wherever the symmetry is a rescaling and not a mixing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscape import InputError


class Draws:
    """The random factors of one symmetry: the same sequence for every model of one shape."""

    def __init__(self, seed: int, strength: int):
        self._generator = torch.Generator().manual_seed(seed)
        self.strength = strength

    def powers(self, *shape: int) -> Tensor:
        """Powers of two between 2^-strength and 2^strength."""
        low, high = -self.strength, self.strength + 1
        return 2.0 ** torch.randint(low, high, shape, generator=self._generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator)

    def mixing(self, size: int) -> Tensor:
        """An invertible matrix with singular values that are powers of two, and no preferred axes."""
        left, right = (torch.linalg.qr(self.normal(size, size))[0] for _ in range(2))
        return left @ torch.diag(self.powers(size)) @ right


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """A function-preserving change, `act(model, draws)`, in place.

    commutes  scales of random perturbations that move with the weights: for these the same random numbers, before and
              after, are the same perturbation of the function, and the ratio of two estimates has no sampling error
    """

    name: str
    act: Callable[[Any, Draws], None]
    commutes: frozenset[str]

    @torch.no_grad()
    def apply(self, model: Any, seed: int, strength: int) -> None:
        self.act(model, Draws(seed, strength))


def symmetries_of(model: Any) -> list[Symmetry]:
    """Those that `model` has. Raises InputError where it is no Llama."""
    if getattr(getattr(model, "config", None), "model_type", None) != "llama":
        raise InputError(f"{type(model).__name__} is not a Llama; its symmetries are others.")
    groups, per_group, _ = _attention_shape(model)
    found = [
        Symmetry("norm gain, one factor", _uniform_gain, frozenset({"adaptive", "filter", "unit", "layer"})),
        Symmetry("norm gain, per channel", _gain, frozenset({"adaptive"})),
        Symmetry("Q-K, per rotary pair", _query_key, frozenset({"adaptive", "filter", "unit"})),
        Symmetry("V-O, diagonal", _value_output, frozenset({"adaptive", "unit"})),
        Symmetry("V-O, mixing", _value_output_mixing, frozenset()),
        Symmetry("up-down, per unit", _up_down, frozenset({"adaptive", "unit"})),
        Symmetry("MLP units permuted", _permute_units, frozenset()),
    ]
    if per_group > 1:
        found.append(Symmetry("heads permuted in groups", _permute_heads, frozenset()))
    if groups > 1:
        found.append(Symmetry("K-V groups permuted", _permute_groups, frozenset()))
    if not is_tied(model):
        found.append(
            Symmetry("residual stream, one factor", _residual, frozenset({"adaptive", "filter", "unit", "layer"}))
        )
        found.append(Symmetry("logit shift", _logit_shift, frozenset({"none"})))
    return found


def is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


# --- rescalings ---------------------------------------------------------------------------------------------


def _gain(model: Any, draws: Draws) -> None:
    for norm, readers in _norms(model):
        _move_gain(norm, readers, draws.powers(len(norm.weight)))


def _uniform_gain(model: Any, draws: Draws) -> None:
    factor = torch.tensor([2.0**draws.strength], dtype=torch.float64)
    for norm, readers in _norms(model):
        _move_gain(norm, readers, factor.expand(len(norm.weight)))


def _norms(model: Any) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    """Each RMSNorm and the linear maps that read it: all of them, or the function changes."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]
        yield layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]
    if not is_tied(model):  # a tied head is the embedding too, which no norm precedes
        yield model.model.norm, [model.lm_head]


def _move_gain(norm: Any, readers: list[nn.Linear], factors: Tensor) -> None:
    norm.weight.mul_(_like(factors, norm.weight))
    for linear in readers:
        _scale_inputs(linear, 1 / factors)


def _query_key(model: Any, draws: Draws) -> None:
    """A factor for each pair of dimensions that the rotary embedding turns into each other, (j, j + size / 2)."""
    groups, per_group, size = _attention_shape(model)
    for layer in model.model.layers:
        pairs = draws.powers(groups, size // 2)
        factors = torch.cat([pairs, pairs], dim=1)
        _scale_outputs(layer.self_attn.q_proj, _per_head(factors, per_group))
        _scale_outputs(layer.self_attn.k_proj, 1 / factors.flatten())


def _value_output(model: Any, draws: Draws) -> None:
    groups, per_group, size = _attention_shape(model)
    for layer in model.model.layers:
        factors = draws.powers(groups, size)
        _scale_outputs(layer.self_attn.v_proj, factors.flatten())
        _scale_inputs(layer.self_attn.o_proj, 1 / _per_head(factors, per_group))


def _value_output_mixing(model: Any, draws: Draws) -> None:
    groups, per_group, size = _attention_shape(model)
    for layer in model.model.layers:
        mixings = [draws.mixing(size) for _ in range(groups)]
        value, output = layer.self_attn.v_proj, layer.self_attn.o_proj
        mixed = torch.block_diag(*mixings)
        value.weight.copy_(_like(mixed, value.weight, torch.float64) @ value.weight.double())
        if value.bias is not None:
            value.bias.copy_(_like(mixed, value.bias, torch.float64) @ value.bias.double())
        undone = torch.block_diag(*(torch.linalg.inv(m) for m in mixings for _ in range(per_group)))
        output.weight.copy_(output.weight.double() @ _like(undone, output.weight, torch.float64))


def _up_down(model: Any, draws: Draws) -> None:
    for layer in model.model.layers:
        factors = draws.powers(layer.mlp.up_proj.out_features)
        _scale_outputs(layer.mlp.up_proj, factors)
        _scale_inputs(layer.mlp.down_proj, 1 / factors)


def _residual(model: Any, draws: Draws) -> None:
    """Everything that writes into the residual stream; RMSNorm takes the factor out again, up to its epsilon."""
    factor = 2.0**draws.strength
    model.get_input_embeddings().weight.mul_(factor)
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            _scale_outputs(linear, torch.full((linear.out_features,), factor))


def _logit_shift(model: Any, draws: Draws) -> None:
    """The same vector on every row of the head, as long as its rows are: the softmax takes it out again."""
    head = model.get_output_embeddings().weight
    head.add_(_like(draws.normal(head.shape[1]), head) * head.square().mean().sqrt())


# --- permutations -------------------------------------------------------------------------------------------


def _permute_units(model: Any, draws: Draws) -> None:
    for layer in model.model.layers:
        mlp = layer.mlp
        order = draws.order(mlp.up_proj.out_features)
        _permute_outputs([mlp.gate_proj, mlp.up_proj], order)
        _permute_inputs(mlp.down_proj, order)


def _permute_heads(model: Any, _: Draws) -> None:
    """Query heads within the group that shares their keys and values: each takes its neighbour's place."""
    groups, per_group, size = _attention_shape(model)
    order = torch.arange(groups * per_group * size).view(groups, per_group, size).roll(1, 1).flatten()
    for layer in model.model.layers:
        _permute_outputs([layer.self_attn.q_proj], order)
        _permute_inputs(layer.self_attn.o_proj, order)


def _permute_groups(model: Any, _: Draws) -> None:
    """Key-value heads, with the query heads that read them."""
    groups, per_group, size = _attention_shape(model)
    order = torch.arange(groups * per_group * size).view(groups, -1).roll(1, 0).flatten()
    shared = torch.arange(groups * size).view(groups, -1).roll(1, 0).flatten()
    for layer in model.model.layers:
        attention = layer.self_attn
        _permute_outputs([attention.q_proj], order)
        _permute_outputs([attention.k_proj, attention.v_proj], shared)
        _permute_inputs(attention.o_proj, order)


# --- acting on a linear map ---------------------------------------------------------------------------------


def _attention_shape(model: Any) -> tuple[int, int, int]:
    """Key-value groups, query heads in each, dimensions of a head."""
    config = model.config
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    return groups, heads // groups, getattr(config, "head_dim", None) or config.hidden_size // heads


def _per_head(factors: Tensor, per_group: int) -> Tensor:
    """Factors of the key-value groups, (groups, size), for each dimension of each query head, flat."""
    return factors[:, None].expand(-1, per_group, -1).flatten()


def _like(values: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return values.to(other.device, dtype or other.dtype)


def _scale_outputs(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.mul_(_like(factors, linear.weight)[:, None])
    if linear.bias is not None:
        linear.bias.mul_(_like(factors, linear.bias))


def _scale_inputs(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.mul_(_like(factors, linear.weight))


def _permute_outputs(linears: list[nn.Linear], order: Tensor) -> None:
    for linear in linears:
        for tensor in (linear.weight, linear.bias):
            if tensor is not None:
                tensor.copy_(tensor[order.to(tensor.device)])


def _permute_inputs(linear: nn.Linear, order: Tensor) -> None:
    linear.weight.copy_(linear.weight[:, order.to(linear.weight.device)])
