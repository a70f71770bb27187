"""What a command checks before it imports torch, so that a mistyped name is refused at once."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from landscape.errors import InputError, nearest, nearest_path


def check_inputs(
    checkpoints: Iterable[str | None], data: Sequence[str] | None = None, output: Path | None = None
) -> None:
    """Check the names that most commands are given.

    Args:
        checkpoints: Folders or hub ids; None among them is passed over.
        data: Sources, or name=source.
        output: The folder for results.

    Raises:
        InputError: Something that is named does not exist or is of another kind, or the folder cannot be written.
    """
    from landscape.checkpoints.finding import check_checkpoint
    from landscape.data.sources import check_source, parse_named_sources
    from landscape.results import check_folder

    if output is not None:
        check_folder(output)
    for _, source in parse_named_sources(data or ()):
        check_source(source)
    for checkpoint in checkpoints:
        if checkpoint is not None:
            check_checkpoint(checkpoint)


def check_tasks(tasks: str | None) -> list[str]:
    """Return the benchmarks in a list with commas; raise InputError where one does not exist."""
    from landscape.forgetting.task_names import check_task_names

    specs = [spec.strip() for spec in (tasks or "").split(",") if spec.strip()]
    files = [spec for spec in specs if spec.endswith((".yaml", ".yml"))]
    for spec in files:
        if not Path(spec).is_file():
            raise InputError(f"there is no task file {spec}.{nearest_path(spec)}")
    if names := [spec for spec in specs if spec not in files]:
        check_task_names(names)
    return specs


def check_table(table: Path, columns: Iterable[str | None], groups: str | None = None) -> None:
    """Check a table by its first line, before its reader is imported.

    Args:
        table: A CSV file.
        columns: Columns that it must have; None among them is passed over.
        groups: The column of the groups, or several with slashes between them.

    Raises:
        InputError: There is no such file, or it lacks a column.
    """
    if not table.exists():
        raise InputError(f"there is no file {table}.{nearest_path(table)}")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            there = next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error):
        return  # its reader says what is wrong
    wanted = [column for column in columns if column is not None]
    wanted += [groups] if groups in there else (groups or "").split("/")
    for column in filter(None, wanted):
        if column not in there:
            raise InputError(f"{table} has no column {column!r}; it has {', '.join(there)}.{nearest(column, there)}")


def check_new_checkpoint(output: Path) -> None:
    """Raise InputError where the folder of a new checkpoint holds something that no command of ours has made."""
    if output.is_dir() and not (output / "landscape.json").exists():
        raise InputError(f"{output} exists and was not made by this command; choose another --output.")


def check_device(device: str, device_map: str | None) -> None:
    """Raise InputError where both options say where the model goes."""
    if device_map is not None and device != "auto":
        raise InputError(f"--device-map takes the place of --device; leave out --device {device}.")
