"""Building models and tokenizers of inspected checkpoints, without running their code unless asked to."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.checkpoints.gguf import forget_quantization
from landscape.checkpoints.inspection import CheckpointFiles, inspect_checkpoint, is_finite, reason_of
from landscape.errors import InputError, MeasurementWarning, as_typed, first_line
from landscape.parallel import distributed

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How checkpoints are loaded: the type and place of their weights.

    The fields mean what the arguments of `load_checkpoint` of the same names mean. They are together here for functions
    that load several checkpoints in the same way.

    Attributes:
        dtype: Type of the weights in memory: "float32", "bfloat16", "float16", "float64" or "auto" (as stored).
        device: "auto" (CUDA, else MPS, else CPU) or the name of a torch device.
        adapter: "merge" folds a PEFT adapter into its base; "keep" leaves it apart and measures in adapter space.
        device_map: How accelerate spreads a model over several devices; None puts it on `device`.
        trust_remote_code: Whether code that comes with a checkpoint may run.

    Example:
        >>> LoadOptions(dtype="bfloat16").device
        'auto'
    """

    dtype: str = "float32"
    device: str = "auto"
    adapter: str = "merge"
    device_map: str | dict[str, Any] | None = None
    trust_remote_code: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpoint:
    """A loaded checkpoint. `load_checkpoint` makes it.

    Attributes:
        model: The model, in evaluation mode.
        files: What was read of its folder.
        name: A short name, for plots and tables.
        adapter: "merged" for an adapter that was folded into its base, "kept" for one that is measured in adapter
            space, None for a checkpoint that is no adapter.
        dtype: Type of the weights in memory, such as "float32".
        device: The torch device of the weights, or several devices parted by commas.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(folder)
        ...     checkpoint = load_checkpoint(folder, device="cpu")
        >>> checkpoint.adapter, checkpoint.metadata, sorted(checkpoint.describe())
        (None, {}, ['digest', 'source'])
    """

    model: nn.Module
    files: CheckpointFiles
    name: str
    adapter: str | None
    dtype: str
    device: str
    trust_remote_code: bool = False

    @property
    def source(self) -> str:
        """The folder or hub id, as the caller named it."""
        return self.files.source

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the stored tensors and of the configuration that they are computed with."""
        return self.files.digest

    @property
    def metadata(self) -> dict:
        """The content of `landscape.json`, or an empty dict."""
        return self.files.metadata

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first asked for; raises InputError where the folder has none."""
        return load_tokenizer(self.files, trust_remote_code=self.trust_remote_code)

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        kind = f"{type(self.model).__name__}, {count:,} parameters, {self.dtype} on {self.device}"
        return f"Checkpoint({self.source!r}, {kind})"

    def describe(self) -> dict:
        """Return what a result's provenance says of the checkpoint.

        That is its source and digest, the quantization of a GGUF file, and what became of an adapter.
        """
        description = {"source": self.source, "digest": self.digest}
        if whole := (self.files.base or self.files).quantization:
            description["dequantized_from"] = whole
        return description | ({"adapter": self.adapter} if self.adapter else {})


def load_checkpoint(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    adapter: str = "merge",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a causal language model from a Hugging Face folder, a PEFT adapter folder, a GGUF file or a hub id.

    Tensors go from the files to their device one by one, in `dtype`. The peak of memory is the weights and, where
    `dtype` is not what is stored, pages of the files, which the system may take back.

    Args:
        source: A folder, a GGUF file (whose weights are dequantized), or a hub id with optional `@revision`.
        dtype: Type of the weights in memory: "float32", "bfloat16", "float16", "float64" or "auto" (as stored).
        device: "auto" (CUDA, else MPS, else CPU) or the name of a torch device.
        device_map: Is given instead of `device` for a model that is larger than one device: "auto", "balanced",
            "balanced_low_0" or "sequential" spread it over the GPUs with accelerate; a mapping of module names to
            devices is taken as it is. Accelerate keeps on the host what does not fit on the GPUs. Such a model can be
            evaluated, but its weights cannot be perturbed, and measurements that perturb them raise InputError.
        revision: Branch, tag or commit of a hub id.
        adapter: "merge" folds a PEFT adapter into its base, so that perturbations act in the full space. "keep" leaves
            it apart, so that only adapter tensors are parameters; what is flat there may be sharp in the full space.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        The checkpoint, with its model in evaluation mode.

    Raises:
        InputError: The source is no checkpoint, holds only pickled weights, is truncated or incomplete, has values that
            are not finite (in `dtype`), or needs code of its own while `trust_remote_code` is off.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(f"{runs}/tiny")
        ...     checkpoint = load_checkpoint(f"{runs}/tiny", dtype="bfloat16", device="cpu")
        >>> checkpoint.name, checkpoint.dtype, checkpoint.model.config.hidden_size
        ('tiny', 'bfloat16', 8)
    """
    files = inspect_checkpoint(source, revision=revision, trust_remote_code=trust_remote_code)
    return load_files(
        files,
        dtype=dtype,
        device=device,
        device_map=device_map,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
    )


def load_files(
    files: CheckpointFiles,
    *,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    adapter: str = "merge",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Build the model of an inspected checkpoint.

    Args:
        files: What `inspect_checkpoint` returned.
        dtype: As in `load_checkpoint`, and so are the other arguments.
        device: See there.
        device_map: See there.
        adapter: See there.
        trust_remote_code: See there.

    Raises:
        InputError: An option is unknown, or the model cannot be built of the files.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise InputError(f"{as_typed('dtype', dtype)} is none of {', '.join(_DTYPES)}, auto.")
    if adapter not in ("merge", "keep"):
        raise InputError(f"{as_typed('adapter', adapter)} is neither 'merge' nor 'keep'.")
    place = None if device_map is not None else resolve_device(device)
    if device_map is not None:
        _check_device_map(device_map)
        placement: Any = device_map
    else:  # A GPU gets the tensors without a stop on the host, which need not have the room.
        placement = {"": place} if place is not None and place.type == "cuda" and _has_accelerate() else None
    model = _build(files.base or files, _DTYPES.get(dtype, dtype), trust_remote_code, placement)
    adapter_state = None
    frozen = _frozen_names(model)
    if files.base is not None:
        model = _with_adapter(model, files, merge=adapter == "merge")
        adapter_state = "merged" if adapter == "merge" else "kept"
    model = (model if place is None else model.to(place)).eval()
    _multiply_expert_by_expert(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    held_dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    for name, tensor in model.named_parameters():
        # The stored values are finite, but need not be in another type.
        if tensor.is_floating_point() and not tensor.is_meta and not is_finite(tensor.detach()):
            raise InputError(f"{files.source}: tensor {name} has values that are not finite in {held_dtype}.")
    devices = str(place) if place is not None else ",".join(dict.fromkeys(str(t.device) for t in model.parameters()))
    return Checkpoint(model, files, files.name, adapter_state, held_dtype, devices, trust_remote_code)


def _frozen_names(model: Any) -> set[str]:
    """Return the names of the parameters that an architecture freezes, such as tables of sinusoidal positions.

    Transformers' from_pretrained lets all of them take gradients.
    """
    try:
        with torch.device("meta"):
            skeleton = type(model)(copy.deepcopy(model.config))
    except Exception:  # Code of others need not build without values; then nothing is known of it.
        return set()
    return {name for name, parameter in skeleton.named_parameters() if not parameter.requires_grad}


def _multiply_expert_by_expert(model: Any) -> None:
    """Let a mixture of experts in float64 multiply one expert after the other: torch has groups up to float32 only."""
    if any(tensor.dtype == torch.float64 for tensor in model.parameters()) and grouped_experts(model):
        model.set_experts_implementation("eager")


def grouped_experts(model: Any) -> bool:
    """Whether a mixture of experts multiplies its experts in groups."""
    return getattr(getattr(model, "config", None), "_experts_implementation", None) == "grouped_mm"


def _has_accelerate() -> bool:
    """Whether accelerate is installed."""
    return importlib.util.find_spec("accelerate") is not None


def _check_device_map(device_map: str | dict[str, Any]) -> None:
    """Raise InputError where a device map is unknown or cannot be used here."""
    if isinstance(device_map, str) and device_map not in _DEVICE_MAPS:
        raise InputError(
            f"{as_typed('device_map', device_map)} is none of {', '.join(_DEVICE_MAPS)}, nor a mapping of modules."
        )
    if not _has_accelerate():
        raise InputError(f"{as_typed('device_map')} needs accelerate: pip install 'landscape-lm[train]'.")
    if distributed.share().size > 1:
        raise InputError(
            f"{as_typed('device_map')} gives all GPUs to one process; start it without torchrun, or leave it out."
        )


def _build(
    files: CheckpointFiles, dtype: torch.dtype | str, trust_remote_code: bool, device_map: Any = None
) -> nn.Module:
    """Build a model with transformers; raise InputError where a tensor is missing or has another shape."""
    from transformers import AutoModelForCausalLM

    stored = {"use_safetensors": True} if files.gguf is None else {"gguf_file": files.gguf.name}
    try:
        built: Any = AutoModelForCausalLM.from_pretrained(
            str(files.folder),
            **stored,
            dtype=dtype,
            device_map=device_map,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # They are refused below, in our own words.
        )
    except Exception as error:  # Each architecture raises what it likes about its configuration.
        raise InputError(f"{files.source} cannot be loaded: {reason_of(error)}") from error
    model, report = built
    if files.gguf is not None:
        forget_quantization(model)
    if report["mismatched_keys"]:
        name, stored, wanted = min(report["mismatched_keys"])
        raise InputError(
            f"{files.source}: tensor {name} is stored as {_shape(stored)}, but config.json makes it {_shape(wanted)}."
        )
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


def _with_adapter(model: Any, files: CheckpointFiles, merge: bool) -> nn.Module:
    """Put the adapter on `model`; raise InputError where its file does not hold exactly its tensors."""
    import peft

    try:
        config = peft.PeftConfig.from_pretrained(str(files.folder))
        config.inference_mode = merge
        mapping = getattr(model, "_checkpoint_conversion_mapping", None)
        adapted = peft.get_peft_model(model, config)
        # PeftModel.from_pretrained does this too, but keeps the report to itself and goes on with random tensors.
        report = adapted.load_adapter(str(files.folder), "default", is_trainable=not merge, key_mapping=mapping)
        for names, words in ((report.missing_keys, "lacks"), (report.unexpected_keys, "holds, but its model lacks,")):
            if names:
                raise InputError(f"adapter {files.source} {words} {len(names)} tensor(s), the first {min(names)}.")
        if not merge:
            return adapted
        # peft froze the base. Once merged, all of it is the model again, and all of it is perturbed.
        merged: Any = adapted.merge_and_unload()
        return merged.requires_grad_(True)
    except InputError:
        raise
    except Exception as error:  # There are many kinds of adapters, each with values and limits of its own.
        raise InputError(f"{files.source} cannot be applied to its base: {reason_of(error)}") from error


def _shape(shape: torch.Size) -> str:
    """Return a shape in words, such as "3x4"."""
    return "x".join(map(str, shape)) or "a scalar"


def load_tokenizer(files: CheckpointFiles, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer in a checkpoint's folder; an adapter without one takes that of its base.

    Raises:
        InputError: There is none, or it cannot be used.
    """
    from transformers import AutoTokenizer

    if files.base is not None and not (files.folder / "tokenizer_config.json").exists():
        files = files.base
    more = {} if files.gguf is None else {"gguf_file": files.gguf.name}
    try:
        # Explicit, because transformers would otherwise ask on the terminal whether to run the code.
        tokenizer = AutoTokenizer.from_pretrained(
            str(files.folder), local_files_only=True, trust_remote_code=trust_remote_code, **more
        )
        tokenizer("a", verbose=False)  # some wrong entries of its configuration are only met in use
        return tokenizer
    except Exception as error:  # There are many formats, and each reader raises errors of its own.
        raise InputError(f"{files.source} has no usable tokenizer: {reason_of(error)}") from error


def resolve_device(device: str) -> torch.device:
    """Return the torch device that `device` names.

    Args:
        device: "auto" (CUDA, else MPS, else CPU) or the name of a torch device. "cuda" is this process's own GPU where
            several processes share work on a machine.

    Raises:
        InputError: The device is unknown or absent.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        if torch.cuda.is_available():
            distributed.claim_gpu(None)
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        if place.type == "cuda" and torch.cuda.is_available():
            distributed.claim_gpu(place.index)
        torch.zeros(1, device=place).item()  # This fails on the meta device, which has no values.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"{as_typed('device', device)} cannot be used here: {first_line(error)}") from error
    return place


def identify(model: nn.Module | Checkpoint) -> tuple[nn.Module, str, dict | None]:
    """Return the module, a name and the provenance of what a caller passed as `model`.

    Raises:
        InputError: It is neither a module nor a checkpoint; the message names the call that makes one of it.
    """
    if isinstance(model, Checkpoint):
        return model.model, model.name, model.describe()
    if isinstance(model, (str, Path)):
        raise InputError(f"the model is the path {str(model)!r}; give load_checkpoint({str(model)!r}).")
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; give a Checkpoint (see load_checkpoint) or a module.")
    return model, type(model).__name__, None
