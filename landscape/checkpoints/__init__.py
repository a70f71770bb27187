"""Checkpoints on disk: inspected before they are trusted, loaded without running their code, written completely.

`inspection` reads a folder and finds it whole, and `kinds` finds it of a causal model. `loading` builds models and
tokenizers of it, `saving` writes a folder. `merging` writes weights between two checkpoints, with the help of
`streaming`, which reads and writes weight files one tensor at a time.
"""

from landscape.checkpoints.inspection import METADATA_FILE, CheckpointFiles, distinct_names, inspect_checkpoint
from landscape.checkpoints.loading import (
    Checkpoint,
    LoadOptions,
    identify,
    load_checkpoint,
    load_files,
    load_tokenizer,
    resolve_device,
)
from landscape.checkpoints.saving import save_checkpoint

__all__ = [
    "METADATA_FILE",
    "Checkpoint",
    "CheckpointFiles",
    "LoadOptions",
    "distinct_names",
    "identify",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_files",
    "load_tokenizer",
    "resolve_device",
    "save_checkpoint",
]
