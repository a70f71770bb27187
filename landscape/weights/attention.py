"""The attention heads of a transformers model: where their outputs pass, to be read, replaced or added to by hooks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from landscape.errors import InputError
from landscape.weights.filters import HEAD_OUTPUTS


@dataclasses.dataclass(frozen=True)
class Attention:
    """The output projections of a model's attention, one for each layer.

    The input of a projection holds the outputs of all heads side by side, whatever the number of keys and values that
    they share: (batch, positions, heads * size). Its output is what attention adds to the residual stream, in
    models with a norm after attention (Gemma 2, OLMo 2) before that norm.

    Attributes:
        projections: The modules, in the order of the layers.
        heads: Heads in each layer.
        size: Numbers that a head puts out.
    """

    projections: tuple[nn.Module, ...]
    heads: int
    size: int

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.projections)

    def describe(self) -> str:
        """Say the shape in words."""
        return f"{self.layers} layers of {self.heads} heads of size {self.size}"

    @contextlib.contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Read what every head puts out at the last position.

        Yields:
            A list that holds, after a forward pass inside the block, one tensor for each layer, (batch, heads, size).
        """
        read: list[Any] = [None] * self.layers

        def hook_of(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                read[layer] = inputs[0][:, -1].unflatten(-1, (self.heads, self.size)).detach()

            return hook

        with self._hooked(lambda module, layer: module.register_forward_pre_hook(hook_of(layer))):
            yield read

    @contextlib.contextmanager
    def replacing(self, where: Tensor, outputs: Tensor) -> Iterator[None]:
        """Replace what some heads put out at the last position, in the forward passes inside the block.

        Args:
            where: Which heads are replaced in each row of the batch, bool, (batch, layers, heads).
            outputs: What takes the place of their outputs, (layers, heads, size).
        """

        def hook_of(layer: int) -> Callable[..., Any]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
                states = inputs[0]
                last = states[:, -1].unflatten(-1, (self.heads, self.size))
                last = torch.where(where[:, layer, :, None], outputs[layer].to(last), last).flatten(1)
                return (torch.cat([states[:, :-1], last[:, None]], dim=1), *inputs[1:])

            return hook

        with self._hooked(lambda module, layer: module.register_forward_pre_hook(hook_of(layer))):
            yield

    @contextlib.contextmanager
    def adding(self, layer: int, vectors: Tensor, positions: Tensor | None = None) -> Iterator[None]:
        """Add a vector to what the attention of one layer puts out, in the forward passes inside the block.

        Args:
            layer: Index of the layer.
            vectors: The vector, (width,), or one for each row of the batch, (batch, width).
            positions: The position in each row, (batch,); None stands for the last one.
        """

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            rows = torch.arange(len(output), device=output.device)
            places = torch.full_like(rows, output.shape[1] - 1) if positions is None else positions.to(output.device)
            return output.index_put((rows, places), vectors.to(output).expand(len(output), -1), accumulate=True)

        with self._hooked(lambda module, at: module.register_forward_hook(hook) if at == layer else None):
            yield

    @torch.no_grad()
    def written(self, outputs: Tensor, chosen: Sequence[tuple[int, ...]]) -> Tensor:
        """Return what chosen heads write into the residual stream, summed over them: the sum of W_O h.

        Args:
            outputs: Outputs of all heads, (..., layers, heads, size).
            chosen: Layer and head of each chosen head.

        Returns:
            Vectors as wide as the model, (..., width). A bias of the projection is not in them.
        """
        total: Any = 0
        for layer in sorted({layer for layer, _ in chosen}):
            kept = torch.zeros_like(outputs[..., layer, :, :])
            heads = [head for at, head in chosen if at == layer]
            kept[..., heads, :] = outputs[..., layer, heads, :]
            flat = kept.flatten(-2)
            projection = self.projections[layer]
            total = total + projection(flat) - projection(torch.zeros_like(flat))
        return total

    @contextlib.contextmanager
    def _hooked(self, register: Callable[[nn.Module, int], Any]) -> Iterator[None]:
        """Register a hook for every layer, and remove them at the end of the block."""
        handles = [register(module, layer) for layer, module in enumerate(self.projections)]
        try:
            yield
        finally:
            for handle in handles:
                if handle is not None:
                    handle.remove()


def attention_of(model: nn.Module) -> Attention:
    """Find the attention heads of a transformers model.

    It is known of models whose attention ends in one linear layer over the outputs of all heads, such as Llama, Qwen,
    Mistral, Gemma, GPT-2 and GPT-NeoX.

    Raises:
        InputError: The model has another layout.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> attention_of(LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=3))).describe()
        '3 layers of 2 heads of size 4'
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads, layers = (getattr(config, name, None) for name in ("num_attention_heads", "num_hidden_layers"))
    kind = type(model).__name__
    found = []
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if leaf in HEAD_OUTPUTS and "att" in parent.rpartition(".")[2].lower():
            found.append(module)
    widths = {_input_width(module) for module in found}
    width = next(iter(widths), 0)
    size = getattr(config, "head_dim", None) or (width // heads if heads else 0)
    if not heads or len(found) != layers or len(widths) != 1 or width != heads * size:
        raise InputError(
            f"{kind} has not the attention layout that instruction vectors need: in each layer one output projection "
            "over the outputs of all heads, as in Llama, Qwen, Mistral, Gemma, GPT-2 and GPT-NeoX."
        )
    return Attention(tuple(found), heads, size)


def _input_width(module: Any) -> int:
    """Return how many numbers a linear map takes; 0 for what is none."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        return 0
    return weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
