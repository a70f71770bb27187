"""Where a checkpoint is and which files hold its weights, seen from the names of files and its config.json.

Nothing here imports torch, so that a command can refuse a mistyped name at once.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from landscape.checkpoints.gguf import SUFFIX, is_gguf, require_gguf
from landscape.checkpoints.kinds import check_causal_adapter, check_named_kind
from landscape.errors import InputError, nearest_path
from landscape.results import read_json

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_checkpoint(source: str | Path) -> None:
    """Check a checkpoint as far as the names of its files and its config.json tell. What is on the hub is downloaded.

    Args:
        source: A folder, a GGUF file, or a hub id with optional `@revision`.

    Raises:
        InputError: There is no such checkpoint, it lacks a configuration or weights, or it is not a causal model.
    """
    folder, _ = find_checkpoint(str(source), None)
    if is_gguf(folder):
        require_gguf(folder)
        return
    if is_adapter(folder):
        check_causal_adapter(str(source), read_json(folder / "adapter_config.json"))
        weight_files(str(source), folder, "adapter_model")
        return
    config = read_json(check_config(str(source), folder))
    named = config.get("architectures")
    check_named_kind(str(source), named if isinstance(named, list) else (), config.get("is_encoder_decoder") is True)
    weight_files(str(source), folder, "model")


def check_config(source: str, folder: Path) -> Path:
    """Return the configuration of a checkpoint; raise InputError where its folder has none."""
    path = folder / "config.json"
    if not path.exists():
        gguf = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
        advice = f" Name the GGUF file in it, such as {folder / gguf[0]}." if gguf else ""
        raise InputError(f"{source} is not a checkpoint: it has no config.json.{advice}")
    return path


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; raise InputError where it holds a whole model too."""
    if not (folder / "adapter_config.json").exists():
        return False
    if any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
        # Transformers would load the adapter's base, whatever the weights beside it are.
        raise InputError(f"{folder} holds a whole model and an adapter_config.json; keep one of them there.")
    return True  # This is so also where the config.json of the base lies beside it.


def find_checkpoint(source: str, revision: str | None) -> tuple[Path, tuple[str, ...]]:
    """Return the local folder (or GGUF file) of a checkpoint and the parts of its name.

    Where `source` is an id and no folder, its files are downloaded from the hub.
    """
    folder = _local_folder(source)
    if folder is not None:
        return folder, folder.parts
    repository, _, tag = source.partition("@")
    from huggingface_hub import snapshot_download

    tag = tag or revision or ""
    try:
        folder = Path(snapshot_download(repository, revision=tag or None, allow_patterns=_HUB_FILES))
    except Exception as error:
        # Hub errors are many classes of several libraries, and each means the same to the user.
        raise InputError(
            f"{source} is not a folder here, and the Hugging Face hub did not give it.{nearest_path(source)}"
        ) from error
    *owner, name = repository.split("/")
    return folder, (*owner, f"{name}@{tag}" if tag else name)  # The folder itself is named by a commit's hash.


def _local_folder(source: str) -> Path | None:
    """Return the folder or GGUF file that `source` names; None where it can only be a hub id."""
    path = Path(os.path.expanduser(source))
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"{source} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{source!r} is not the name of a file.") from error
    else:
        if is_gguf(path):
            return path.resolve()
        if not path.is_dir():
            raise InputError(
                f"{source} is a file; a checkpoint is a folder with config.json and safetensors, or a {SUFFIX} file."
            )
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f"{source} cannot be read: {os.strerror(errno.EACCES)}.")
        return path.resolve()
    if not _is_hub_id(source):
        raise InputError(f"{source} does not exist.{nearest_path(source)}")
    return None


def _is_hub_id(source: str) -> bool:
    """Return whether a source has the form of a hub id."""
    repository = source.partition("@")[0]
    return bool(_HUB_ID.fullmatch(repository)) and not repository.startswith((".", "-"))


def weight_files(source: str, folder: Path, stem: str) -> dict[Path, list[str] | None]:
    """Find the weight files of a folder, as transformers and peft choose them.

    Both prefer a single file, and peft knows no other.

    Args:
        source: The checkpoint, as the user named it.
        folder: Its folder.
        stem: Start of the files' names: "model" or "adapter_model".

    Returns:
        Each file with the tensors that an index promises in it; None where there is no index.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.exists():
        return {single: None}
    if index.exists() and stem == "model":
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map.")
        shards: dict[Path, list[str] | None] = {}
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or not file:
                raise InputError(f"{index} names no file for {tensor}.")
            if Path(file).name != file or file == "..":
                raise InputError(f"{index} points outside its folder: {file}.")
            if not os.path.exists(folder / file):
                raise InputError(f"{folder / file} is missing, though {index.name} lists it.")
            names = shards.setdefault(folder / file, [])
            assert names is not None
            names.append(tensor)
        return shards
    pickled = [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
    pickled = [name for name in pickled if name != "training_args.bin"]
    if pickled:
        raise InputError(
            f"{source} holds only pickled weights ({pickled[0]}), which can run code when loaded; where you trust "
            "them, load them with transformers and save_pretrained() a safetensors copy."
        )
    raise InputError(f"{source} is not a checkpoint: it has no {stem}.safetensors.")
