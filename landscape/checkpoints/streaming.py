"""Weight files (safetensors) read and written one tensor at a time, so that no whole model is in memory."""

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


class FileTensors:
    """The tensors of a checkpoint folder's files, read one at a time.

    Attributes:
        files: Names of the tensors in each file, by the file's name.

    Args:
        folder: A folder that was inspected.
        stack: Closes the files.
    """

    def __init__(self, folder: Path, stack: ExitStack):
        single = folder / "model.safetensors"
        if single.exists():  # Transformers chooses so too; the inspection found the rest in order.
            files = [single.name]
        else:
            files = sorted(set(read_json(folder / "model.safetensors.index.json")["weight_map"].values()))
        opened = {file: stack.enter_context(safe_open(folder / file, framework="pt")) for file in files}
        self.files = {file: list(shard.keys()) for file, shard in opened.items()}
        self._shard = {name: opened[file] for file, names in self.files.items() for name in names}

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._shard)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._shard[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Return the type in which a tensor is stored; raise InputError for one that cannot be merged."""
        stored = self._shard[name].get_slice(name).get_dtype()
        if stored not in _TYPES:
            raise InputError(f"tensor {name} is stored as {stored}, which cannot be merged.")
        return _TYPES[stored]

    def get(self, name: str) -> Tensor:
        """Read a tensor."""
        return self._shard[name].get_tensor(name)


class ModelTensors:
    """The tensors of a model in memory, because an adapter has no file of the weights that it makes.

    Args:
        model: A transformers model.
    """

    def __init__(self, model: Any):
        self._state = model.state_dict()

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._state[name].shape)

    def get(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._state[name]


Tensors = FileTensors | ModelTensors


def write_safetensors(
    path: Path, header: dict[str, tuple[torch.dtype, tuple[int, ...]]], pieces: Callable[[str], Iterator[Tensor]]
) -> None:
    """Write a safetensors file of tensors that are made one after another.

    Args:
        path: The file.
        header: Type and shape of each tensor.
        pieces: Makes the parts of a tensor in the order in which they are stored.

    Source:
        https://huggingface.co/docs/safetensors, "Format": the header's length as 8 bytes, little-endian; the header as
        JSON, padded with spaces to a multiple of 8 bytes; the data.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     pieces = [torch.ones(1), torch.zeros(1)]
        ...     write_safetensors(file, {"w": (torch.float32, (2,))}, lambda name: iter(pieces))
        ...     with safe_open(file, framework="pt") as opened:
        ...         opened.get_tensor("w")
        tensor([1., 0.])
    """
    # By hand, because safetensors' own writer (0.8) takes all tensors of a file at once: a file may hold the whole
    # model, and merging promises to hold no more than one tensor and its partner. Giving the writer a memory-mapped
    # scratch file would need the disk twice, and a full disk would then kill the process instead of raising.
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    ordered = sorted(
        header, key=lambda name: (-header[name][0].itemsize, name)
    )  # Wide types come first, so that data is aligned.
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
