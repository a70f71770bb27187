"""The names that other rooms use, each with the module it lives in; `__init__.py` reads this file."""

from .inspection import METADATA_FILE as METADATA_FILE
from .inspection import CheckpointFiles as CheckpointFiles
from .inspection import distinct_names as distinct_names
from .inspection import inspect_checkpoint as inspect_checkpoint
from .loading import Checkpoint as Checkpoint
from .loading import LoadOptions as LoadOptions
from .loading import identify as identify
from .loading import load_checkpoint as load_checkpoint
from .loading import load_files as load_files
from .loading import load_tokenizer as load_tokenizer
from .loading import resolve_device as resolve_device
from .saving import save_checkpoint as save_checkpoint
