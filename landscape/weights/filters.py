"""Filters: the parts of a weight that filter normalization scales together (Li et al. 2018, section 4)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from landscape.errors import InputError
from landscape.linalg.precision import wide_dtype
from landscape.parallel.sharding import whole

if TYPE_CHECKING:
    from landscape.weights.parameters import NamedParameter

NORMALIZATIONS = ("filter", "unit", "head", "layer", "none")

# Linear maps that write into the residual stream. Their units are inputs: multiplying an output of the value or up
# projection before them by c, and dividing the input unit here by c, leaves the model's function as it is.
_OUTPUT_PROJECTIONS = {
    "o_proj",
    "out_proj",
    "c_proj",
    "dense_4h_to_h",
    "down_proj",
    "fc2",
    "fc_out",
    "wo",
    "w2",
}
_HEAD_INPUTS = {
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "c_attn",
    "query_key_value",
    "query",
    "key",
    "value",
    "Wqkv",
}
HEAD_OUTPUTS = {"o_proj", "out_proj", "c_proj", "dense", "wo"}


@dataclasses.dataclass(frozen=True)
class Filters:
    """How one tensor divides into filters.

    Attributes:
        axes: There is one filter per index of these axes; with no axis the whole tensor is one filter.
        block: With a single axis, this many neighbouring indices make one filter.

    Example:
        >>> Filters(axes=(0,)).norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        tensor([[5.],
                [2.]])
    """

    axes: tuple[int, ...]
    block: int = 1

    def norms(self, tensor: Tensor) -> Tensor:
        """Return the l2 norm of each filter.

        Args:
            tensor: The tensor that divides into the filters.

        Returns:
            Norms in a shape that broadcasts against `tensor`; for a sharded tensor they are whole in every process.
        """
        others = [axis for axis in range(tensor.ndim) if axis not in self.axes]
        if others and tensor.dtype.itemsize >= 4:
            # Rows first, then all of them in float64: the float32 sum of 28 million squares was 0.3% short on a CPU.
            rows = torch.linalg.vector_norm(tensor, dim=others[-1:], keepdim=True)
            wide = torch.linalg.vector_norm(rows, dim=others, keepdim=True, dtype=wide_dtype(tensor.device))
            norms = whole(wide.to(tensor.dtype))
        else:
            norms = whole(torch.linalg.vector_norm(tensor, dim=others, keepdim=True) if others else tensor.abs())
        if self.block > 1:
            (axis,) = self.axes
            blocks = norms.unflatten(axis, (-1, self.block))
            merged = torch.linalg.vector_norm(blocks, dim=axis + 1, keepdim=True)
            norms = merged.expand_as(blocks).flatten(axis, axis + 1)
        return norms


def filters_of(entry: NamedParameter, mode: str, head_dimension: int | None = None) -> Filters:
    """Return the filters of one tensor.

    Args:
        entry: The tensor with its name and its module.
        mode: What a filter is. A 1-D tensor (a gain, a bias) is one filter in every mode.

            - "filter": an output unit. These are rows of Linear, tokens of embeddings and output heads, columns of
              GPT-2's Conv1D, output channels of convolutions, and (expert, row) of stacked experts.
            - "unit": as "filter", but an input unit for projections into the residual stream (o_proj, down_proj).
            - "head": as "unit", but an attention head where there is one: `head_dimension` output units of q, k, v, and
              as many input units of the attention output. A tensor that does not divide into heads keeps its units.
            - "layer": the whole tensor.
        head_dimension: Units per attention head, for "head".

    Raises:
        InputError: The mode is unknown.

    Source:
        "filter": Li et al. 2018 (arXiv 1712.09913), section 4. The other modes are variants for transformers.
    """
    if mode not in ("filter", "unit", "head", "layer"):
        raise InputError(f"normalize={mode!r} is none of {', '.join(NORMALIZATIONS)}.")
    tensor = entry.tensor
    if tensor.ndim < 2 or mode == "layer":
        return Filters(())
    out_axis, in_axis = _matrix_axes(entry)
    stack = (0,) if tensor.ndim == 3 and 0 not in (out_axis, in_axis) else ()  # stacked experts
    path = entry.name.split(".")
    leaf = path[-2] if path[-1] in ("weight", "bias") and len(path) > 1 else path[-1]
    parent = path[-3] if path[-1] in ("weight", "bias") and len(path) > 2 else ""
    in_attention = "att" in parent.lower()  # self_attn, attn, attention, SelfAttention
    writes_residual = leaf in _OUTPUT_PROJECTIONS or (leaf == "dense" and in_attention)
    if mode == "head" and head_dimension and not stack:
        axis = None
        if leaf in _HEAD_INPUTS:
            axis = out_axis
        elif leaf in HEAD_OUTPUTS and in_attention:
            axis = in_axis
        if axis is not None and tensor.shape[axis] % head_dimension == 0:
            return Filters((axis,), head_dimension)
    if mode in ("unit", "head") and writes_residual:
        return Filters((*stack, in_axis))
    return Filters((*stack, out_axis))


def _matrix_axes(entry: NamedParameter) -> tuple[int, int]:
    """Return the output axis and the input axis of a tensor of two or more dimensions."""
    owner, tensor = entry.owner, entry.tensor
    if isinstance(owner, Conv1D):
        return 1, 0
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 1, 0
    is_convolution = isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if tensor.ndim == 3 and not is_convolution:  # experts or heads, stacked along the first axis
        return (2, 1) if _is_transposed(entry) else (1, 2)
    return 0, 1


def _is_transposed(entry: NamedParameter) -> bool:
    """Whether stacked experts are (E, in, out) and not (E, out, in).

    Most of transformers says so; where it does not, the width of the model tells which axis is the input of gate and up
    projections and the output of down projections.
    """
    said = getattr(entry.owner, "is_transposed", None)
    if said is not None:
        return bool(said)
    width = getattr(entry.owner, "hidden_size", getattr(entry.owner, "hidden_dim", None))
    leaf = entry.name.rpartition(".")[2]
    outer, inner = entry.tensor.shape[1:]
    if leaf.startswith("down"):
        return inner == width != outer
    return leaf.startswith(("gate", "up")) and outer == width != inner


def head_dimension_of(model: nn.Module) -> int:
    """Return the units per attention head of a transformers model; raise InputError for other models."""
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise InputError("normalize='head' needs a transformers model whose config has num_attention_heads.")
    return getattr(config, "head_dim", None) or config.hidden_size // heads  # type: ignore[union-attr]
