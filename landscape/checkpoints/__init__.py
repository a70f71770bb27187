"""Checkpoints on disk: inspected before they are trusted, loaded without running their code, written completely.

`finding` says where a checkpoint is and which files it consists of, `inspection` reads a folder and finds it whole,
`kinds` finds it of a causal model, and `gguf` reads GGUF files. `loading` builds models and tokenizers, `saving` writes
a folder. `merging` writes weights between two checkpoints, with the help of `streaming`, which reads and writes weight
files one tensor at a time.

The names of the room are listed in `__init__.pyi`. A name is loaded when it is first used, so that `finding` does not
wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

del lazy_loader
