"""Several checkpoints on the same data sets: what is compared is comparable (DESIGN, law 9)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoints import (
    METADATA_FILE,
    Checkpoint,
    CheckpointFiles,
    distinct_names,
    inspect_checkpoint,
    load_files,
    load_tokenizer,
)
from landscape.data.sources import parse_named_source
from landscape.data.tokens import TokenData, check_vocabulary, load_data
from landscape.errors import InputError, MeasurementWarning
from landscape.results import Provenance

DEFAULT_DATA = "builtin:docs"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Inspected checkpoints and tokenized data sets."""

    files: tuple[CheckpointFiles, ...]
    names: tuple[str, ...]
    data: dict[str, TokenData]
    dtype: str
    device: str
    adapter: str
    trust_remote_code: bool
    device_map: str | None = None

    def load(self, index: int) -> Checkpoint:
        """Build the model of checkpoint `index`, under its name in this comparison."""
        checkpoint = load_files(
            self.files[index],
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            adapter=self.adapter,
            trust_remote_code=self.trust_remote_code,
        )
        return dataclasses.replace(checkpoint, name=self.names[index])

    def describe(self, index: int) -> dict:
        """What the provenance of a result of checkpoint `index` says of it."""
        file = self.files[index]
        how = {"merge": "merged", "keep": "kept"}[self.adapter]
        return {"source": file.source, "digest": file.digest} | ({"adapter": how} if file.base else {})

    def settings(self) -> dict:
        """What identifies the comparison: two runs that agree on it measure the same."""
        return {
            "checkpoints": [
                {"name": n, "source": f.source, "digest": f.digest} for n, f in zip(self.names, self.files, strict=True)
            ],
            "data": {name: {"source": d.source, "digest": d.digest} for name, d in self.data.items()},
            "dtype": self.dtype,
            "device": self.device if self.device_map is None else f"{self.device_map} over devices",
            "adapter": self.adapter if any(f.base for f in self.files) else None,
        }

    def check_origin(
        self, path: Path, found: Provenance, members: Sequence[int], data_name: str, differing: Sequence[str] = ()
    ) -> None:
        """Raise InputError unless a result that was there already is of these checkpoints and this data set.

        members    the checkpoints that it must be of
        differing  names of settings that the caller found to be others
        """
        checkpoints = [self.describe(member) for member in members]
        expected = {
            "checkpoint": checkpoints[0] if len(checkpoints) == 1 else dict(zip("abc", checkpoints, strict=False)),
            "data": self.data[data_name].digest,
            "dtype": found.dtype if self.dtype == "auto" else self.dtype,
        }
        actual = {"checkpoint": found.checkpoint, "data": (found.data or {}).get("digest"), "dtype": found.dtype}
        differing = [key for key in expected if actual[key] != expected[key]] + list(differing)
        if differing:
            raise InputError(
                f"{path} is not a result of this run ({', '.join(differing)} differ); move it away or choose another "
                "--output."
            )

    def file_names(self, prefix: str, of_all: bool) -> dict[tuple[int, str], str]:
        """A file name for each (checkpoint, data set), or for each data set where a result is of all checkpoints."""
        stems, data_stems = _safe(self.names), _safe(list(self.data))
        names = {}
        for index in [0] if of_all else range(len(stems)):
            for data_name, data_stem in zip(self.data, data_stems, strict=True):
                parts = [prefix, *([] if of_all else [stems[index]]), *([data_stem] if len(self.data) > 1 else [])]
                names[index, data_name] = "-".join(parts) + ".json"
        return names


_LONGEST_STEM = 80  # bytes, of the 255 that file systems allow a name: two fit, with what is written beside


def _safe(names: Sequence[str]) -> list[str]:
    """Names as parts of file names: no separators, not too long, and as distinct as they were."""
    stems = [re.sub(r"[^\w.]+", "_", name).strip("_.") or "unnamed" for name in names]
    for index, stem in enumerate(stems):
        if len(stem.encode()) > _LONGEST_STEM:
            start = stem.encode()[: _LONGEST_STEM - 9].decode(errors="ignore")
            stems[index] = f"{start}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    if len({stem.casefold() for stem in stems}) < len(stems):  # some file systems do not tell a from A
        stems = [f"{stem}-{index + 1}" for index, stem in enumerate(stems)]
    return stems


def open_comparison(
    sources: Sequence[str],
    data: Sequence[str] = (),
    *,
    limit: int | None = None,
    max_length: int = 512,
    batch_tokens: int = 4096,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    adapter: str = "merge",
    trust_remote_code: bool = False,
    device_map: str | None = None,
) -> Comparison:
    """Inspect `sources` and tokenize every data set; arguments as `load_checkpoint` and `load_data` take them.

    data  `name=source` or `source` each; default: what the first checkpoint says it was evaluated on, else
          `builtin:docs`

    Raises InputError for anything wrong with checkpoints or data, and where the checkpoints' tokenizers turn the
    data into different tokens: losses per token would not compare.
    """
    files = tuple(inspect_checkpoint(source, trust_remote_code=trust_remote_code) for source in sources)
    said = _evaluated_on(files[0]) if not data else None
    named = [parse_named_source(argument) for argument in data or [said["source"] if said else DEFAULT_DATA]]
    repeated = {name for name, _ in named if [n for n, _ in named].count(name) > 1}
    if repeated:
        raise InputError(f"two data sets are named {sorted(repeated)[0]}; name them apart: --data name=source.")
    lengths = [max_length, *(f.max_positions for f in files if f.max_positions)]
    options: dict[str, Any] = {
        "max_length": min(lengths),
        "limit": limit,
        "batch_tokens": batch_tokens,
        "seed": seed,
    }
    loaded: dict[str, TokenData] = {}
    for position, file in enumerate(files):
        tokenizer = load_tokenizer(file, trust_remote_code=trust_remote_code)
        for name, source in named:
            try:
                tokens = load_data(source, tokenizer, **options)
            except InputError as error:
                if said is None:
                    raise
                raise InputError(f"no --data given, and what {files[0].source} was evaluated on: {error}") from error
            if file.vocabulary_size is not None:
                check_vocabulary(tokens, file.vocabulary_size, file.source)
            if position == 0:
                loaded[name] = tokens
            elif tokens.digest != loaded[name].digest:
                raise InputError(
                    f"{files[0].source} and {file.source} have different tokenizers: {name} is not the same tokens "
                    "for both, so their losses do not compare."
                )
    if not data:
        _say_what_is_measured(files, said, next(iter(loaded.values())))
    names = tuple(distinct_names(files))
    return Comparison(files, names, loaded, dtype, device, adapter, trust_remote_code, device_map)


def _evaluated_on(file: CheckpointFiles) -> dict | None:
    """The `source` of the data that a checkpoint says it was evaluated on, and what else it says of them."""
    said = file.metadata.get("evaluated_on")
    if said is None:
        return None
    source = said.get("source") if isinstance(said, dict) else None
    if not isinstance(source, str) or not source:
        raise InputError(f"{file.folder / METADATA_FILE} names no source as evaluated_on; give --data.")
    beside = str(file.folder / source)  # a relative path may have been meant from anywhere
    return said | {"source": beside if os.path.isfile(beside) and not os.path.exists(source) else source}


def _say_what_is_measured(files: Sequence[CheckpointFiles], said: dict | None, tokens: TokenData) -> None:
    words = f"no --data given; measuring on {tokens.source}"
    if said is not None:
        words += f", which {files[0].source} was evaluated on"
        if said.get("digest", tokens.digest) != tokens.digest:
            words += ", though not on the same tokens (its content, tokenizer, limit or length differs)"
        others = [_evaluated_on(file) or {} for file in files[1:]]
        key = "digest" if "digest" in said else "source"
        if any(other.get(key) != said[key] for other in others):
            words += " (not all checkpoints were)"
    warnings.warn(f"{words}.", MeasurementWarning, stacklevel=3)
