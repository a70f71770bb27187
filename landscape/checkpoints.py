"""Checkpoints on disk: inspected before they are trusted, loaded without running their code, written whole."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from landscape.errors import InputError, MeasurementWarning, first_line
from landscape.parameters import tensor_bytes
from landscape.results import read_json, write_json

METADATA_FILE = "landscape.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint folder whose files were read and found whole, before any model is built from them."""

    source: str  # as the user named it
    folder: Path
    shapes: dict[str, tuple[int, ...]]  # of the stored tensors; of the base for an adapter
    digest: str  # SHA-256 over names, types, shapes and bytes of all tensors; the same however they are sharded
    metadata: dict  # landscape.json, or empty
    config: Any  # transformers configuration
    base: CheckpointFiles | None = None  # of an adapter

    @property
    def name(self) -> str:
        return self.folder.name if self.folder.name else self.source

    @property
    def vocabulary_size(self) -> int | None:
        return getattr(self.config.get_text_config(), "vocab_size", None)

    @property
    def max_positions(self) -> int | None:
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    model: nn.Module
    files: CheckpointFiles
    name: str
    adapter: str | None  # None, "merged" or "kept" (measured in adapter space)
    dtype: str
    device: str

    @property
    def source(self) -> str:
        return self.files.source

    @property
    def digest(self) -> str:
        return self.files.digest

    @property
    def metadata(self) -> dict:
        return self.files.metadata

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.files)

    def describe(self) -> dict:
        """What a result's provenance says of the checkpoint."""
        said = {"source": self.source, "digest": self.digest}
        return said | ({"adapter": self.adapter} if self.adapter else {})


def load_checkpoint(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    adapter: str = "merge",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a causal language model from a Hugging Face folder, a PEFT adapter folder or a hub id.

    source   a folder, or a hub id with optional `@revision`
    dtype    of the weights in memory: "float32" | "bfloat16" | "float16" | "float64" | "auto" (as stored)
    device   "auto" (CUDA, else MPS, else CPU) or a torch device
    adapter  "merge" folds a PEFT adapter into its base, so that perturbations act in the full space; "keep"
             leaves it apart: only adapter tensors are parameters (flat there may be sharp in full space)

    Raises InputError (one sentence) where the source is no checkpoint, holds only pickled weights, is truncated,
    incomplete or not finite, or needs code of its own while `trust_remote_code` is off.
    """
    files = inspect_checkpoint(source, revision=revision, trust_remote_code=trust_remote_code)
    return load_files(files, dtype=dtype, device=device, adapter=adapter, trust_remote_code=trust_remote_code)


def load_files(
    files: CheckpointFiles,
    *,
    dtype: str = "float32",
    device: str = "auto",
    adapter: str = "merge",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Build the model of an inspected checkpoint; arguments as in `load_checkpoint`."""
    if dtype != "auto" and dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}, auto.")
    if adapter not in ("merge", "keep"):
        raise InputError(f"adapter={adapter!r} is neither 'merge' nor 'keep'.")
    place = resolve_device(device)
    model = _build(files.base or files, _DTYPES.get(dtype, dtype), trust_remote_code)
    how = None
    if files.base is not None:
        peft = _peft()
        try:
            model = peft.PeftModel.from_pretrained(model, str(files.folder), is_trainable=adapter == "keep")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{files.source} cannot be applied to its base: {first_line(error)}") from error
        how = "kept"
        if adapter == "merge":
            # peft froze the base; merged, all of it is the model again and all of it is perturbed
            model, how = model.merge_and_unload().requires_grad_(True), "merged"
    model = model.to(place).eval()
    found = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Checkpoint(model, files, files.name, how, found, str(place))


def _build(files: CheckpointFiles, dtype: torch.dtype | str, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        built: Any = AutoModelForCausalLM.from_pretrained(
            str(files.folder),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"{files.source} cannot be loaded: {first_line(error)}") from error
    model, report = built
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{files.source} lacks {len(missing)} tensor(s) of its architecture, the first {missing[0]}; "
            "they would be random."
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        warnings.warn(
            f"{files.source}: {len(unexpected)} stored tensor(s) are not part of the model, the first {unexpected[0]}.",
            MeasurementWarning,
            stacklevel=2,
        )
    return model


def load_tokenizer(files: CheckpointFiles) -> Any:
    """The tokenizer in the checkpoint's folder (an adapter's base serves where the adapter has none)."""
    from transformers import AutoTokenizer

    folder = files.folder
    if files.base is not None and not (folder / "tokenizer_config.json").exists():
        folder = files.base.folder
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"{files.source} has no usable tokenizer: {first_line(error)}") from error


def resolve_device(device: str) -> torch.device:
    """The torch device that `device` names. Raises InputError where it is unknown or absent."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {first_line(error)}") from error
    return place


def identify(model: nn.Module | Checkpoint) -> tuple[nn.Module, str, dict | None]:
    """The module, a name and the provenance of what a caller passed as `model`."""
    if isinstance(model, Checkpoint):
        return model.model, model.name, model.describe()
    return model, type(model).__name__, None


# --- inspection ---------------------------------------------------------------------------------------------


def inspect_checkpoint(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> CheckpointFiles:
    """Read every file of a checkpoint once: shapes, digest, finiteness. Raises InputError naming what is wrong."""
    source = str(source)
    folder = _find(source, revision)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        return _inspect_adapter(source, folder, trust_remote_code)
    if not (folder / "config.json").exists():
        raise InputError(f"{source} is not a checkpoint: it has no config.json.")
    read_json(folder / "config.json")  # for the sentence; transformers' own is a page
    shards = _shards(source, folder, "model")
    shapes, digest = _read_tensors(shards)
    return CheckpointFiles(
        source, folder, shapes, digest, _metadata(folder), _load_config(source, folder, trust_remote_code)
    )


def _inspect_adapter(source: str, folder: Path, trust_remote_code: bool) -> CheckpointFiles:
    _peft()
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise InputError(f"{folder / 'adapter_config.json'} does not name its base model.")
    beside = folder / named
    base = inspect_checkpoint(
        str(beside) if beside.is_dir() and not Path(named).is_dir() else named,
        trust_remote_code=trust_remote_code,
    )
    _, own = _read_tensors(_shards(source, folder, "adapter_model"))
    digest = hashlib.sha256(f"{base.digest} {own}".encode()).hexdigest()
    return CheckpointFiles(source, folder, base.shapes, digest, _metadata(folder), base.config, base)


def _find(source: str, revision: str | None) -> Path:
    """The local folder of a checkpoint, downloading it from the hub where `source` is an id and no folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise InputError(f"{source} is a file; a checkpoint is a folder with config.json and safetensors.")
    repository, _, tag = source.partition("@")
    if not _HUB_ID.fullmatch(repository) or repository.startswith((".", "-")):
        raise InputError(f"{source} does not exist.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=tag or revision, allow_patterns=_HUB_FILES))
    except Exception as error:
        # hub errors are many classes of several libraries; each means the same to the user
        raise InputError(f"{source} is not a folder here, and the Hugging Face hub did not give it.") from error


def _load_config(source: str, folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source} has an unusable config.json: {first_line(error)}") from error


def _shards(source: str, folder: Path, stem: str) -> dict[Path, list[str] | None]:
    """Weight files, each with the tensors that the index promises in it (None: no index)."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map.")
        shards: dict[Path, list[str] | None] = {}
        for tensor, file in weight_map.items():
            if Path(file).name != file:
                raise InputError(f"{index} points outside its folder: {file}.")
            if not (folder / file).exists():
                raise InputError(f"{folder / file} is missing, though {index.name} lists it.")
            names = shards.setdefault(folder / file, [])
            assert names is not None
            names.append(tensor)
        return shards
    single = folder / f"{stem}.safetensors"
    if single.exists():
        return {single: None}
    pickled = [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
    pickled = [name for name in pickled if name != "training_args.bin"]
    if pickled:
        raise InputError(
            f"{source} holds only pickled weights ({pickled[0]}), which can run code when loaded; where you trust "
            "them, load them with transformers and save_pretrained() a safetensors copy."
        )
    raise InputError(f"{source} is not a checkpoint: it has no {stem}.safetensors.")


def _read_tensors(shards: dict[Path, list[str] | None]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Shapes and digest of all tensors; raises InputError for damaged files and non-finite values."""
    shapes: dict[str, tuple[int, ...]] = {}
    digests: dict[str, str] = {}
    for path, promised in shards.items():
        try:
            with safe_open(path, framework="pt") as shard:
                stored = list(shard.keys())
                for name in promised or ():
                    if name not in stored:
                        raise InputError(f"{path} lacks tensor {name}, though the index lists it there.")
                for name in stored:
                    tensor = shard.get_tensor(name)
                    if tensor.is_floating_point() and not bool(_is_finite(tensor)):
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


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.element_size() == 1:  # 8-bit floats have no isfinite of their own
        tensor = tensor.to(torch.float32)
    return torch.isfinite(tensor).all()


def check_same_shapes(a: CheckpointFiles, b: CheckpointFiles) -> None:
    """Raise InputError naming the first tensor that two checkpoints do not share, with both shapes."""
    for name in sorted(set(a.shapes) | set(b.shapes)):
        shape_a, shape_b = a.shapes.get(name), b.shapes.get(name)
        if shape_a != shape_b:
            raise InputError(
                f"{a.source} and {b.source} differ in architecture: tensor {name} is "
                f"{_shape(shape_a)} in the first and {_shape(shape_b)} in the second."
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a scalar"


def distinct_names(checkpoints: Sequence[CheckpointFiles]) -> list[str]:
    """A name for each: the folder's, with as many parents as it takes to tell them apart.

    The same folder given twice keeps its name with a counter: "run", "run (2)".
    """
    parts = [c.folder.parts for c in checkpoints]
    longest = max(len(p) for p in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names


# --- writing ------------------------------------------------------------------------------------------------


def save_checkpoint(model: Any, tokenizer: Any, folder: Path | str, metadata: dict | None = None) -> Path:
    """Write a Hugging Face folder (safetensors, tokenizer, landscape.json) that is complete or not there at all.

    Raises InputError where `folder` exists already.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another name.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(str(temporary))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(temporary))
        if metadata is not None:
            write_json(temporary / METADATA_FILE, metadata)
        os.chmod(temporary, 0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


# --- small readers ------------------------------------------------------------------------------------------


def _metadata(folder: Path) -> dict:
    path = folder / METADATA_FILE
    return read_json(path) if path.exists() else {}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("adapters need peft: pip install 'landscape-lm[train]'.") from error
    return peft
