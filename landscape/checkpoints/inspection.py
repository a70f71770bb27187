"""Reading what a checkpoint folder holds, and checking that it is whole, before any model is built from it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from landscape.checkpoints.finding import check_config, find_checkpoint, is_adapter, weight_files
from landscape.checkpoints.gguf import is_gguf, read_gguf
from landscape.checkpoints.kinds import check_causal_adapter, check_causal_kind
from landscape.errors import InputError, first_line
from landscape.linalg.precision import all_finite
from landscape.results import digest_of, read_json
from landscape.weights.vectors import tensor_bytes

METADATA_FILE = "landscape.json"
# Keys that say where a configuration comes from, not what is computed with it.
_VOLATILE = {"_name_or_path", "transformers_version"}
_VOLATILE_OF_ADAPTER = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"}


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint folder whose files were read and are whole, before any model is built from them.

    Attributes:
        source: The folder or hub id, as the user named it.
        folder: The local folder.
        name_parts: Parts of the folder's path, or of the hub id with its revision; the last is the shortest name.
        stored: Shapes of the tensors in the folder, by name.
        digest: SHA-256 (hex) of the tensors, however they are sharded, and of the configuration that they are computed
            with.
        metadata: The content of `landscape.json`, or an empty dict.
        config: The transformers configuration.
        base: The files of an adapter's base; None for a whole model.
        gguf: The GGUF file that is the checkpoint, in `folder`; None where the checkpoint is the folder. The names in
            `stored` are then those of llama.cpp, and the digest is that of the file.
        quantization: Type that most weights of a GGUF file are stored in, such as "Q4_1".
    """

    source: str
    folder: Path
    name_parts: tuple[str, ...]
    stored: dict[str, tuple[int, ...]]
    digest: str
    metadata: dict
    config: Any
    base: CheckpointFiles | None = None
    gguf: Path | None = None
    quantization: str | None = None

    @property
    def name(self) -> str:
        """The last part of the folder's path or of the hub id."""
        return self.name_parts[-1]

    @property
    def vocabulary_size(self) -> int | None:
        """Number of token ids of the model, where its configuration says it."""
        return getattr(self.config.get_text_config(), "vocab_size", None)

    @property
    def max_positions(self) -> int | None:
        """Maximum number of positions of the model, where its configuration says it."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return positions if positions is None or positions > 0 else None  # -1 of an XLNet: it has no limit


def distinct_names(checkpoints: Sequence[CheckpointFiles]) -> list[str]:
    """Return a short name for each checkpoint, by which they can be told apart.

    A name is the last part of the folder or hub id, with as many parts before it as are needed. The same checkpoint
    given twice keeps its name with a counter: "run", "run (2)".

    Args:
        checkpoints: At least one checkpoint.
    """
    parts = [c.name_parts for c in checkpoints]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names


def reason_of(error: BaseException) -> str:
    """Return the first meaningful line of another library's message, as the end of one of our sentences."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which runs only with --trust-remote-code."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    heading = len(lines) > 1 and lines[0].endswith(":")
    return f"{lines[0]} {lines[1].rstrip('.')}." if heading else first_line(error)


def inspect_checkpoint(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> CheckpointFiles:
    """Read every weight file of a checkpoint once: its shapes and digest, and whether all values are finite.

    The values of a GGUF file are checked when they are dequantized, on loading.

    Args:
        source: A folder, a GGUF file, or a hub id with optional `@revision`.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether the code of the checkpoint's configuration may run.

    Raises:
        InputError: The source is no checkpoint or none of a causal language model, is damaged or incomplete, or holds
            only pickled weights; the message names what is wrong.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(folder)
        ...     files = inspect_checkpoint(folder)
        >>> files.vocabulary_size, files.stored["model.norm.weight"]
        (16, (8,))
    """
    source = str(source)
    folder, parts = find_checkpoint(source, revision)
    if is_adapter(folder):
        return _inspect_adapter(source, folder, parts, trust_remote_code)
    return _inspect_whole(source, folder, parts, trust_remote_code)


def _inspect_whole(source: str, path: Path, parts: tuple[str, ...], trust_remote_code: bool) -> CheckpointFiles:
    """Read a whole model: a folder, or a GGUF file."""
    if is_gguf(path):
        return _inspect_gguf(source, path, parts)
    return _inspect_model(source, path, parts, trust_remote_code)


def _inspect_gguf(source: str, path: Path, parts: tuple[str, ...]) -> CheckpointFiles:
    """Read a GGUF file."""
    stored, digest, quantization = read_gguf(path)
    config = _load_config(source, path.parent, trust_remote_code=False, gguf_file=path.name)
    check_causal_kind(source, config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # The model is dequantized.
    return CheckpointFiles(source, path.parent, parts, stored, digest, {}, config, gguf=path, quantization=quantization)


def _inspect_model(source: str, folder: Path, parts: tuple[str, ...], trust_remote_code: bool) -> CheckpointFiles:
    """Read the folder of a whole model."""
    path = check_config(source, folder)
    written = read_json(path)  # read here for a message of one sentence; transformers' own is a page
    if "transformers_weights" in written:
        raise InputError(f"{path} names a weight file of its own (transformers_weights); only the usual are read.")
    shards = weight_files(source, folder, "model")
    config = _load_config(source, folder, trust_remote_code)
    check_causal_kind(source, config)  # before gigabytes of weights are read
    stored, own = _read_tensors(shards)
    computes = {key: value for key, value in written.items() if key not in _VOLATILE}
    digest = hashlib.sha256(f"{own} {digest_of(computes)}".encode()).hexdigest()
    files = CheckpointFiles(source, folder, parts, stored, digest, _metadata(folder), config)
    for key in ("vocab_size", "max_position_embeddings", "num_hidden_layers"):
        value = getattr(config.get_text_config(), key, None)
        unlimited = value == -1 and isinstance(getattr(type(config), key, None), property)  # XLNet says so of itself
        if value is not None and not unlimited and not (isinstance(value, int) and value > 0):
            raise InputError(f"{source} has an unusable config.json: {key} is {value!r}.")
    return files


def _inspect_adapter(source: str, folder: Path, parts: tuple[str, ...], trust_remote_code: bool) -> CheckpointFiles:
    """Read the folder of an adapter, and that of its base."""
    path = folder / "adapter_config.json"
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError("adapters need peft: pip install 'landscape-lm[train]'.") from error
    shards = weight_files(source, folder, "adapter_model")
    written = read_json(path)
    check_causal_adapter(source, written)
    named, revision = written.get("base_model_name_or_path"), written.get("revision")
    if not isinstance(named, str) or not named:
        raise InputError(f"{path} does not name its base model.")
    beside = folder / named
    base_source = str(beside) if os.path.exists(beside) and not os.path.exists(named) else named
    base_folder, base_parts = find_checkpoint(base_source, revision if isinstance(revision, str) else None)
    if is_adapter(base_folder):
        raise InputError(f"{path} names {named} as its base, which is an adapter itself; merge that first.")
    base = _inspect_whole(base_source, base_folder, base_parts, trust_remote_code)
    stored, own = _read_tensors(shards)
    computes = {key: value for key, value in written.items() if key not in _VOLATILE_OF_ADAPTER}
    digest = hashlib.sha256(f"{base.digest} {own} {digest_of(computes)}".encode()).hexdigest()
    return CheckpointFiles(source, folder, parts, stored, digest, _metadata(folder), base.config, base)


def _load_config(source: str, folder: Path, trust_remote_code: bool, gguf_file: str | None = None) -> Any:
    """Load the transformers configuration in a folder, or in a GGUF file there."""
    from transformers import AutoConfig

    more = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        return AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code, **more
        )
    except Exception as error:  # Each architecture checks its values in its own way.
        what = "cannot be used as a model" if gguf_file else "has an unusable config.json"
        raise InputError(f"{source} {what}: {reason_of(error)}") from error


def _read_tensors(shards: dict[Path, list[str] | None]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shapes and the digest of all tensors; raise InputError for damaged files and non-finite values."""
    shapes: dict[str, tuple[int, ...]] = {}
    digests: dict[str, str] = {}
    for path, promised in shards.items():
        try:
            path.open("rb").close()
        except OSError as error:  # Safetensors says "no such file", whatever the reason is.
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            with safe_open(path, framework="pt") as shard:
                stored = list(shard.keys())
                for name in promised or ():
                    if name not in stored:
                        raise InputError(f"{path} lacks tensor {name}, though the index lists it there.")
                for name in stored:
                    tensor = shard.get_tensor(name)
                    if tensor.is_floating_point() and not is_finite(tensor):
                        raise InputError(f"{path}: tensor {name} has values that are not finite.")
                    shapes[name] = tuple(tensor.shape)
                    hashed = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                    hashed.update(tensor_bytes(tensor))
                    digests[name] = hashed.hexdigest()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is truncated or damaged: {first_line(error)}") from error
    if not shapes:
        raise InputError(f"{next(iter(shards))} holds no tensor.")
    total = hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode())
    return shapes, total.hexdigest()


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, also in 8-bit floats, which have no `isfinite` of their own."""
    if tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)
    return all_finite(tensor)


def _metadata(folder: Path) -> dict:
    """Read landscape.json where there is one."""
    path = folder / METADATA_FILE
    return read_json(path) if path.exists() else {}
