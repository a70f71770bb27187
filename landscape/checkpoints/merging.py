"""Merging a base and a model that was tuned from it (WiSE-FT), tensor by tensor."""

from __future__ import annotations

import fnmatch
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.checkpoints import METADATA_FILE, CheckpointFiles, inspect_checkpoint, load_files, save_checkpoint
from landscape.checkpoints.streaming import FileTensors, ModelTensors, Tensors, write_safetensors
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.results import installed_versions, read_json, to_plain, write_json

_CHUNK = 2**22  # elements in float64 at a time: 32 MiB for each temporary
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")  # configuration and tokenizer, but neither weights nor records
_NOT_COPIED = (METADATA_FILE, "*.index.json", "adapter_config.json", "trainer_state.json")
_NOT_COMPUTED_WITH = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id",
}  # fmt: skip


def merge_checkpoints(
    base: str | Path,
    tuned: str | Path,
    alpha: float,
    output: str | Path,
    *,
    trust_remote_code: bool = False,
) -> Path:
    """Write the checkpoint theta = (1 - alpha) theta_base + alpha theta_tuned.

    Weights go from file to file, and at most one tensor and its partner are in memory. Each value is computed in
    float64 and rounded once to the stored type, the wider one where the two differ. Configuration and tokenizer are
    those of `tuned` (an adapter's base lends what the adapter lacks), and `landscape.json` names both digests and
    alpha.

    Args:
        base: A checkpoint of a whole model.
        tuned: A checkpoint of the same architecture; or an adapter, which is folded into its own base in memory, in
            float32, while `output` keeps the type and the shards of `base`.
        alpha: Where to merge, in [0, 1]: 0 is the base and 1 the tuned model, both bit for bit.
        output: The folder to write.
        trust_remote_code: Whether code that comes with the checkpoints may run.

    Returns:
        The folder; at once where it already holds this merge.

    Raises:
        InputError: alpha is outside [0, 1], weights are quantized, `output` holds anything else, or the two models
            differ in a tensor (the message names the first one).

    Warns:
        MeasurementWarning: `tuned` says that it was made from another base, or the configurations differ.

    Source:
        Wortsman et al. 2022 (arXiv 2109.01903), equation 1, in the space of weights.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from landscape import load_checkpoint
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     for name, value in (("base", 1.0), ("tuned", 3.0)):
        ...         model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))
        ...         _ = model.model.norm.weight.data.fill_(value)
        ...         model.save_pretrained(f"{runs}/{name}")
        ...     folder = merge_checkpoints(f"{runs}/base", f"{runs}/tuned", 0.25, f"{runs}/merged")
        ...     merged = load_checkpoint(folder, device="cpu")
        >>> merged.model.model.norm.weight[0].item()  # 0.75 * 1 + 0.25 * 3
        1.5
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"{as_typed('alpha', alpha)} is not in [0, 1]: 0 is the base, 1 the tuned model.")
    output = Path(output)
    start, end = (inspect_checkpoint(source, trust_remote_code=trust_remote_code) for source in (base, tuned))
    if start.base is not None:
        raise InputError(f"{base} is an adapter; the base of a merge is a whole model.")
    for files in (start, end):
        if files.gguf is not None:
            raise InputError(
                f"{files.source} is a GGUF file, and a merge reads safetensors; load it with landscape.load_checkpoint "
                "and write its model and tokenizer with landscape.save_checkpoint first."
            )
    _check_alike(start, end)
    evaluated_on = end.metadata.get("evaluated_on")
    settings = {
        "base": {"source": start.source, "digest": start.digest},
        "tuned": {"source": end.source, "digest": end.digest},
        "alpha": float(alpha),
    }
    if os.path.lexists(output):
        made = read_json(output / METADATA_FILE) if (output / METADATA_FILE).exists() else {}
        if any(made.get(key) != value for key, value in to_plain(settings).items()):
            raise InputError(f"{output} exists already and is not this merge; choose another name.")
        inspect_checkpoint(output, trust_remote_code=trust_remote_code)  # This raises where the folder is not whole.
        return output
    with ExitStack() as stack:
        first = FileTensors(start.folder, stack)
        last: Tensors = first
        if end.base is None:
            last = FileTensors(end.folder, stack)
        else:
            last = ModelTensors(load_files(end, device="cpu", trust_remote_code=trust_remote_code).model)
        blend = _Blend(first, last, float(alpha), start, end, trust_remote_code)
        _warn_of_configurations(start, end)
        record = {"format": "landscape/checkpoint", **settings, "versions": installed_versions()}
        record |= {"evaluated_on": evaluated_on} if evaluated_on else {}
        return save_checkpoint(blend, None, output, record)


def _check_alike(base: CheckpointFiles, tuned: CheckpointFiles) -> None:
    """Raise InputError where two checkpoints cannot be merged; warn where `tuned` names another base."""
    for files in (base, tuned):
        if getattr(files.config, "quantization_config", None) is not None:
            raise InputError(f"{files.source} is quantized; merge the weights it was quantized from.")
    ours, theirs = (files.config.to_dict() for files in (base, tuned))
    for key in ("model_type", "tie_word_embeddings"):  # Tensors of one name and shape need not play the same role.
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"the models differ in {key}: {ours.get(key)} in the base, {theirs.get(key)} in the tuned."
            )
    recorded_base = tuned.base.digest if tuned.base else (tuned.metadata.get("base") or {}).get("digest")
    if recorded_base not in (None, base.digest):
        warnings.warn(
            f"{tuned.source} was made from another base than {base.source}; the line between them need not have low "
            "loss.",
            MeasurementWarning,
            stacklevel=3,
        )


def _warn_of_configurations(base: CheckpointFiles, tuned: CheckpointFiles) -> None:
    """Warn where the two configurations compute differently."""
    ours, theirs = (files.config.to_dict() for files in (base, tuned))
    differing = [key for key in sorted({*ours, *theirs} - _NOT_COMPUTED_WITH) if ours.get(key) != theirs.get(key)]
    if differing:
        warnings.warn(
            f"the configurations of {base.source} and {tuned.source} differ ({', '.join(differing)}); the merged "
            "checkpoint has that of the second.",
            MeasurementWarning,
            stacklevel=3,
        )


def _partners(
    first: Tensors, last: Tensors, base: CheckpointFiles, tuned: CheckpointFiles, trust: bool
) -> dict[str, tuple[str, str]]:
    """Return the names in `first` and in `last` of each tensor of the model, by its name in the model.

    Two folders of one architecture may use different names: with the prefix of the model's body or without (the hub's
    gpt2), with a copy of a tied head or without. Raises InputError, naming the first tensor that is not in both.
    """
    named: list[dict[str, str]] = [{name: name for name in tensors.names} for tensors in (first, last)]
    if named[0].keys() != named[1].keys():
        for index, (tensors, config) in enumerate(((first, base.config), (last, tuned.config))):
            model = _skeleton(config, trust)
            wanted, tied = set(model.state_dict()), set(model.all_tied_weights_keys)
            names = {n if n in wanted else f"{model.base_model_prefix}.{n}": n for n in tensors.names}
            named[index] = {name: own for name, own in names.items() if name in wanted and name not in tied}
    pairs = {}
    for name in dict.fromkeys((*named[0], *named[1])):
        shapes = [
            tensors.shape(own[name]) if name in own else "absent"
            for tensors, own in zip((first, last), named, strict=True)
        ]
        if shapes[0] != shapes[1]:
            raise InputError(f"the models differ: {name} is {shapes[0]} in the base and {shapes[1]} in the tuned.")
        pairs[name] = (named[0][name], named[1][name])
    return pairs


def _skeleton(config: Any, trust: bool) -> Any:
    """Build the model without weights, for its names and for which of them are tied."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


# --- the merged weights -------------------------------------------------------------------------------------


class _Blend:
    """The merged weights, which `save_checkpoint` writes like a model, with configuration and tokenizer."""

    def __init__(
        self,
        first: FileTensors,
        last: Tensors,
        alpha: float,
        base: CheckpointFiles,
        tuned: CheckpointFiles,
        trust: bool,
    ):
        self._first, self._last, self._alpha = first, last, alpha
        self._folders = [tuned.folder] if tuned.base is None else [base.folder, tuned.folder]
        self._layout = last if isinstance(last, FileTensors) else first
        pairs = _partners(first, last, base, tuned, trust)
        own = 1 if self._layout is last else 0  # which of the two names the written tensor has
        self._pairs = {pair[own]: pair for pair in pairs.values()}

    def _dtype(self, pair: tuple[str, str]) -> torch.dtype:
        """Return the type of a merged tensor: the wider of the two stored types."""
        dtype = self._first.dtype(pair[0])
        return torch.promote_types(dtype, self._last.dtype(pair[1])) if isinstance(self._last, FileTensors) else dtype

    def save_pretrained(self, folder: str) -> None:
        """Write weights, configuration and tokenizer to an empty folder."""
        target = Path(folder)
        written: dict[str, tuple[str, torch.dtype, tuple[int, ...]]] = {}
        for file, names in self._layout.files.items():
            kept = {name: self._pairs[name] for name in names if name in self._pairs}
            if kept:
                header = {name: (self._dtype(pair), self._first.shape(pair[0])) for name, pair in kept.items()}
                write_safetensors(target / file, header, self._pieces)
                written |= {name: (file, *stored_as) for name, stored_as in header.items()}
        if len(self._layout.files) > 1:
            size = sum(dtype.itemsize * torch.Size(shape).numel() for _, dtype, shape in written.values())
            weight_map = {name: file for name, (file, _, _) in written.items()}
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            write_json(target / "model.safetensors.index.json", index)
        for position, source in enumerate(self._folders):
            left_out = (
                *_NOT_COPIED,
                *(["config.json"] if position else []),
            )  # An adapter's folder may hold a copy of it.
            for path in sorted(source.iterdir()):
                if _matches(path, _COPIED) and not _matches(path, left_out):
                    shutil.copyfile(path, target / path.name)
        self._record_dtype(
            target / "config.json", {dtype for _, dtype, _ in written.values() if dtype.is_floating_point}
        )

    def _record_dtype(self, config: Path, dtypes: set[torch.dtype]) -> None:
        """Put the merged type into the copied configuration: loading by another type would round the weights."""
        content = read_json(config)
        for key in ("dtype", "torch_dtype"):
            if key in content and len(dtypes) == 1:
                (dtype,) = dtypes
                merged_dtype = str(dtype).removeprefix("torch.")
                if content[key] != merged_dtype:
                    write_json(config, content | {key: merged_dtype})

    def _pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the parts of a merged tensor in storage order."""
        first, last = self._pairs[name]
        dtype = self._dtype((first, last))
        a, b = self._first.get(first).reshape(-1), self._last.get(last).reshape(-1)
        if not dtype.is_floating_point and not torch.equal(a, b):
            raise InputError(f"the models differ: {first} holds whole numbers that are not the same in both.")
        for x, y in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True):
            if (
                self._alpha in (0, 1) or not dtype.is_floating_point
            ):  # This is an end itself, which takes no arithmetic.
                yield (y if self._alpha == 1 else x).to(dtype)
            else:
                # x + alpha (y - x): where the two are equal, the result equals them whatever alpha is.
                yield torch.lerp(x.double(), y.double(), self._alpha).to(dtype)


def _matches(path: Path, globs: Sequence[str]) -> bool:
    """Whether the file's name matches any of the globs."""
    return any(fnmatch.fnmatch(path.name, glob) for glob in globs)
