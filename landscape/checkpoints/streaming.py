"""Safetensors files read and written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from landscape.errors import InputError
from landscape.results import read_json
from landscape.weights.vectors import tensor_bytes

_STORED_AS = {  # names of types in a safetensors header
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


_TYPES = {name: dtype for dtype, name in _STORED_AS.items()}


class _FileTensors:
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path, stack: ExitStack):
        single = folder / "model.safetensors"
        if single.exists():  # as transformers chooses; the inspection found the rest in order
            files = [single.name]
        else:
            files = sorted(set(read_json(folder / "model.safetensors.index.json")["weight_map"].values()))
        opened = {file: stack.enter_context(safe_open(folder / file, framework="pt")) for file in files}
        self.files = {file: list(shard.keys()) for file, shard in opened.items()}
        self._shard = {name: opened[file] for file, names in self.files.items() for name in names}

    @property
    def names(self) -> list[str]:
        return list(self._shard)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shard[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        stored = self._shard[name].get_slice(name).get_dtype()
        if stored not in _TYPES:
            raise InputError(f"tensor {name} is stored as {stored}, which cannot be merged.")
        return _TYPES[stored]

    def get(self, name: str) -> Tensor:
        return self._shard[name].get_tensor(name)


class _ModelTensors:
    """The tensors of a model in memory: an adapter has no file of the weights it makes."""

    def __init__(self, model: Any):
        self._state = model.state_dict()

    @property
    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def get(self, name: str) -> Tensor:
        return self._state[name]


_Tensors = _FileTensors | _ModelTensors


def _write_safetensors(
    path: Path, header: dict[str, tuple[torch.dtype, tuple[int, ...]]], pieces: Callable[[str], Iterator[Tensor]]
) -> None:
    """A safetensors file of tensors made one after another; the library's own writer wants them all at once.

    Format: the header's length as 8 bytes, little-endian; JSON padded with spaces to a multiple of 8 bytes; data
    (https://huggingface.co/docs/safetensors, "Format").
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    ordered = sorted(header, key=lambda name: (-header[name][0].itemsize, name))  # wide types first: data is aligned
    for name in ordered:
        dtype, shape = header[name]
        begin, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _STORED_AS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in ordered:
            for piece in pieces(name):
                file.write(tensor_bytes(piece.contiguous()))
