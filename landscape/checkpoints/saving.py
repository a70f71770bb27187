"""Writing a checkpoint folder that is complete or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from landscape.checkpoints.inspection import METADATA_FILE
from landscape.errors import InputError
from landscape.results import write_json
from landscape.results.files import noticing_a_full_disk


def save_checkpoint(model: Any, tokenizer: Any, folder: Path | str, metadata: dict | None = None) -> Path:
    """Write a Hugging Face folder (safetensors, tokenizer, landscape.json) that is complete or not there at all.

    Args:
        model: A transformers or PEFT model, or anything else with `save_pretrained`.
        tokenizer: Its tokenizer; None writes none.
        folder: The folder to write, which must not exist yet.
        metadata: What `landscape.json` says of the checkpoint, such as its base and the data that it is to be measured
            on; None writes no such file.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists already or cannot be made.
        DiskFull: There is no room for it; nothing is left there.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     folder = save_checkpoint(model, None, Path(runs, "tiny"), {"note": "not trained"})
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'generation_config.json', 'landscape.json', 'model.safetensors']
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; choose another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from error
    try:
        with noticing_a_full_disk(folder):
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
