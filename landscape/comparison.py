"""Several checkpoints on the same data sets: what is compared is comparable (DESIGN, law 9)."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoints import (
    Checkpoint,
    CheckpointFiles,
    check_same_shapes,
    distinct_names,
    inspect_checkpoint,
    load_files,
    load_tokenizer,
)
from landscape.data import TokenData, check_vocabulary, load_data, parse_named_source
from landscape.directions import random_directions
from landscape.errors import InputError, MeasurementWarning
from landscape.surface import Span, Surface, auto_span, compute_interpolation, compute_plane, compute_surface

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

    def load(self, index: int) -> Checkpoint:
        """Build the model of checkpoint `index`, under its name in this comparison."""
        checkpoint = load_files(
            self.files[index],
            dtype=self.dtype,
            device=self.device,
            adapter=self.adapter,
            trust_remote_code=self.trust_remote_code,
        )
        return dataclasses.replace(checkpoint, name=self.names[index])

    def settings(self) -> dict:
        """What identifies the comparison: two runs that agree on it measure the same."""
        return {
            "checkpoints": [
                {"name": n, "source": f.source, "digest": f.digest} for n, f in zip(self.names, self.files, strict=True)
            ],
            "data": {name: {"source": d.source, "digest": d.digest} for name, d in self.data.items()},
            "dtype": self.dtype,
            "device": self.device,
            "adapter": self.adapter if any(f.base for f in self.files) else None,
        }

    def file_names(self, prefix: str, of_all: bool) -> dict[tuple[int, str], str]:
        """A file name for each (checkpoint, data set), or for each data set where a result is of all checkpoints."""
        stems = [_safe(name) for name in self.names]
        if len(set(stems)) < len(stems):
            stems = [f"{stem}-{index + 1}" for index, stem in enumerate(stems)]
        names = {}
        for index in [0] if of_all else range(len(stems)):
            for data_name in self.data:
                parts = [
                    prefix,
                    *([] if of_all else [stems[index]]),
                    *([_safe(data_name)] if len(self.data) > 1 else []),
                ]
                names[index, data_name] = "-".join(parts) + ".json"
        return names


def _safe(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text).strip("_.") or "unnamed"


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
) -> Comparison:
    """Inspect `sources` and tokenize every data set; arguments as `load_checkpoint` and `load_data` take them.

    data  `name=source` or `source` each; default: what the first checkpoint says it was evaluated on, else
          `builtin:docs`

    Raises InputError for anything wrong with checkpoints or data, and where the checkpoints' tokenizers turn the
    data into different tokens: losses per token would not compare.
    """
    files = tuple(inspect_checkpoint(source, trust_remote_code=trust_remote_code) for source in sources)
    named = [parse_named_source(argument) for argument in data or [_default_data(files)]]
    repeated = {name for name, _ in named if [n for n, _ in named].count(name) > 1}
    if repeated:
        raise InputError(f"two data sets are named {sorted(repeated)[0]}; name them apart: --data name=source.")
    lengths = [max_length, *(f.max_positions for f in files if f.max_positions)]
    loaded: dict[str, TokenData] = {}
    for position, file in enumerate(files):
        tokenizer = load_tokenizer(file)
        for name, source in named:
            tokens = load_data(
                source, tokenizer, max_length=min(lengths), limit=limit, batch_tokens=batch_tokens, seed=seed
            )
            if file.vocabulary_size is not None:
                check_vocabulary(tokens, file.vocabulary_size, file.source)
            if position == 0:
                loaded[name] = tokens
            elif tokens.digest != loaded[name].digest:
                raise InputError(
                    f"{files[0].source} and {file.source} have different tokenizers: {name} is not the same tokens "
                    "for both, so their losses do not compare."
                )
    names = tuple(distinct_names(files))
    return Comparison(files, names, loaded, dtype, device, adapter, trust_remote_code)


def _default_data(files: Sequence[CheckpointFiles]) -> str:
    said = [f.metadata.get("evaluated_on", {}).get("source") for f in files]
    if said[0] is None:
        warnings.warn(f"no --data given; measuring on {DEFAULT_DATA}.", MeasurementWarning, stacklevel=3)
        return DEFAULT_DATA
    chosen = f"measuring on {said[0]}, which {files[0].source} was evaluated on"
    others = "" if len(set(said)) == 1 else " (not all checkpoints were)"
    warnings.warn(f"no --data given; {chosen}{others}.", MeasurementWarning, stacklevel=3)
    return said[0]


# --- surfaces -----------------------------------------------------------------------------------------------


def compare_surfaces(
    comparison: Comparison,
    folder: Path,
    *,
    kind: str = "random",
    dim: int = 2,
    points: Sequence[int] = (25, 25),
    span: Span = 1.0,
    normalize: str = "filter",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Surface]:
    """Surfaces of every checkpoint on every data set, by the name of the file in `folder` that keeps each.

    "random" gives one per checkpoint, along the same draw of directions on the same axes; "interpolate" one for
    two checkpoints; "plane" one for three (`span` is then its margin). What `folder` holds already is read, what a
    killed run left half done is finished. Raises InputError where checkpoints and kind do not fit together.
    """
    wanted = {"interpolate": 2, "plane": 3}.get(kind)
    if wanted not in (None, len(comparison.files)):
        raise InputError(f"--kind {kind} takes {wanted} checkpoints, got {len(comparison.files)}.")
    for other in comparison.files[1:] if wanted else ():
        check_same_shapes(comparison.files[0], other)
    names = comparison.file_names("surface", of_all=wanted is not None)
    members = {0: list(range(wanted))} if wanted else {i: [i] for i in range(len(comparison.files))}
    missing = [key for key, name in names.items() if not (folder / name).exists()]
    unfinished = sorted({index for index, _ in missing})
    for index in unfinished[1:]:
        comparison.load(index)  # what cannot be loaded is better said now than after hours on the first
    if span == "auto" and missing:
        span = max(_auto_spans(comparison, dim, normalize, seed))
    for index in unfinished:
        models = [comparison.load(member) for member in members[index]]
        for data_name in [name for i, name in missing if i == index]:
            path = folder / names[index, data_name]
            journal = path.with_name(f".{path.stem}.journal")
            how: dict[str, Any] = {"journal": journal, "progress": progress}
            data = comparison.data[data_name]
            if kind == "interpolate":
                surface = compute_interpolation(*models, data, points=points[0], span=span, **how)  # type: ignore[misc, arg-type]
            elif kind == "plane":
                surface = compute_plane(models, data, points=points, margin=span, **how)  # type: ignore[arg-type]
            else:
                how |= {"dim": dim, "normalize": normalize, "seed": seed}
                surface = compute_surface(models[0], data, points=points, span=span, **how)
            dataclasses.replace(surface, data=data_name).save(path)
            journal.unlink(missing_ok=True)
    return {name: Surface.load(folder / name) for name in names.values()}


def _auto_spans(comparison: Comparison, dim: int, normalize: str, seed: int) -> Iterator[float]:
    for index in range(len(comparison.files)):
        model = comparison.load(index)
        directions = random_directions(model.model, dim, normalize=normalize, seed=seed)
        for data in comparison.data.values():
            yield auto_span(model, data, directions)


def summarize(file: str, surface: Surface) -> dict:
    """A surface in a few numbers, for `summary.json`: what a script reads without loading the grid."""
    return {
        "file": file,
        "checkpoint": surface.name,
        "data": surface.data,
        "loss_at_center": surface.center,
        "markers": surface.markers,
        "metrics": surface.metrics(),
        "supervised_tokens": surface.weight,
        "nonfinite": surface.nonfinite,
        "fidelity": surface.fidelity,
        "seconds": surface.provenance.seconds,
    }
