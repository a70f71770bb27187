"""The same measurements of every checkpoint on every data set, each kept in its own file of one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.comparison import Comparison
from landscape.data import TokenData
from landscape.results import Result

Measure = Callable[[Checkpoint, TokenData, Path], Any]  # the path is for a journal that a killed run continues


def measure_each(
    comparison: Comparison, folder: Path, measures: Mapping[str, tuple[type[Result], Measure]]
) -> dict[str, dict[tuple[str, str], Any]]:
    """Results by measure and by (checkpoint name, data name); what `folder` holds already is read.

    measures  name of the measure -> type of its results, and what takes it

    Every checkpoint is built once before the first is measured: what cannot be loaded is better said now than after
    hours. Raises InputError where a file in `folder` is of something else.
    """
    files = {measure: comparison.file_names(measure, of_all=False) for measure in measures}
    wanted = [(index, data) for index in range(len(comparison.names)) for data in comparison.data]
    missing = {}
    for measure, (kind, _) in measures.items():
        for key in wanted:
            path = folder / files[measure][key]
            if path.exists():
                found: Any = kind.load(path)
                comparison.check_origin(path, found.provenance, [key[0]], key[1])
            else:
                missing[measure, key] = path
    unfinished = sorted({index for _, (index, _) in missing})
    for index in unfinished[1:]:
        comparison.load(index)
    for index in unfinished:
        checkpoint = comparison.load(index)
        for (measure, (owner, data)), path in missing.items():
            if owner == index:
                journal = path.with_name(f".{path.stem}.journal")
                result = measures[measure][1](checkpoint, comparison.data[data], journal)
                dataclasses.replace(result, data=data).save(path)
                journal.unlink(missing_ok=True)
    return {
        measure: {(comparison.names[i], data): kind.load(folder / files[measure][i, data]) for i, data in wanted}
        for measure, (kind, _) in measures.items()
    }


def result_files(comparison: Comparison, measures: Mapping[str, Any]) -> list[str]:
    """The names of the files that `measure_each` keeps."""
    return [name for measure in measures for name in comparison.file_names(measure, of_all=False).values()]
