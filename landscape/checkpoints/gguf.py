"""GGUF files as checkpoints: quantized weights, configuration and tokenizer in one file, dequantized on loading.

Transformers reads them with the package gguf. What is measured is the dequantized model: its weights lie on the grid of
their quantization, which is not where training left them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

from landscape.errors import InputError, first_line

SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def require_gguf(path: Path) -> None:
    """Raise InputError where the package that reads GGUF files is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{path} is a GGUF file, which needs gguf: pip install 'landscape-lm[gguf]'.")


def read_gguf(path: Path) -> tuple[dict[str, tuple[int, ...]], str, str]:
    """Read the shapes, the digest and the quantization of a GGUF file; the weights stay on disk.

    Args:
        path: The file.

    Returns:
        The shapes of the tensors by the names that llama.cpp gives them; the SHA-256 (hex) of the file; and the type
        that most of its weights are stored in, such as "Q4_1".

    Raises:
        InputError: The package gguf is missing, the file is truncated or damaged, or it holds no tensor.
    """
    require_gguf(path)
    from gguf import GGUFReader

    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        tensors = GGUFReader(path).tensors
    except Exception as error:  # The reader raises what numpy raises on whatever bytes it meets.
        raise InputError(f"{path} is truncated or damaged: {first_line(error)}") from error
    if not tensors:
        raise InputError(f"{path} holds no tensor.")
    stored = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in tensors}
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    return stored, digest, weights.most_common(1)[0][0]


def forget_quantization(model: Any) -> None:
    """Make a dequantized model an ordinary one, so that it can be trained and saved.

    Transformers keeps the quantization in its configuration, and refuses to save such a model.
    """
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
