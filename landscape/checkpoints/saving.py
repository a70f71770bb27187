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


def save_checkpoint(model: Any, tokenizer: Any, folder: Path | str, metadata: dict | None = None) -> Path:
    """Write a Hugging Face folder (safetensors, tokenizer, landscape.json) that is complete or not there at all.

    Raises InputError where `folder` exists already or cannot be made.
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
