"""The journal of a long run: a killed run leaves it, and the next run continues from it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from landscape.errors import InputError
from landscape.parallel import distributed
from landscape.results.files import PARTIAL, lock, noticing_a_full_disk, remove
from landscape.results.plain import FORMAT_VERSION, digest_of, to_plain

_log = logging.getLogger(__name__)


class Journal:
    """The finished points of a long run, one JSON line each, from which the next run continues.

    The first line names the settings. A last line that a kill tore is dropped. Of several processes the first holds the
    file, and the others are told what is in it.

    Attributes:
        path: Where the journal is.
        done: The value of each finished point, by its key.

    Args:
        path: The file; it is made where it does not exist.
        settings: What the points depend on.
        by_first: Calls a function in the first process and returns in all processes what it returned.

    Raises:
        InputError: The journal belongs to other settings, is written by another process now, or is damaged in the
            middle.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal(Path(folder, "run.journal"), {"seed": 0}) as journal:
        ...         journal.append("first point", 0.5)
        ...     with Journal(Path(folder, "run.journal"), {"seed": 0}) as journal:
        ...         journal.done
        {'first point': 0.5}
    """

    def __init__(
        self,
        path: Path | str,
        settings: Mapping[str, Any],
        by_first: Callable[[Callable[[], Any]], Any] = distributed.by_first,
    ):
        self.path = Path(path)
        self.done: dict[str, Any] = {}
        self._file: Any = None  # open in the first process only
        self.done = by_first(lambda: self._open(settings))

    def _open(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Open and lock the file, and read what is in it."""
        with noticing_a_full_disk(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - held open, and locked, as long as the journal
            except (IsADirectoryError, PermissionError) as error:
                raise InputError(f"{self.path} cannot be written: {error.strerror}.") from error
        try:
            lock(self._file.fileno(), self.path)
            self._read(digest_of(settings))
            self._clear_beside()
        except BaseException:
            self.close()
            raise
        return self.done

    def _read(self, settings_digest: str) -> None:
        """Fill `done` from the lines of the file; a new file gets its first line."""
        self._file.seek(0)
        content = self._file.readall()
        whole = content[: content.rfind(b"\n") + 1]  # What follows the last newline was torn by a kill.
        self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    held_digest = record["settings"]
                else:
                    self.done[record["key"]] = record["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path} is damaged at line {number}; delete it to start over.") from error
            if number == 1 and held_digest != settings_digest:
                raise InputError(f"{self.path} belongs to a run of other settings; choose another output.")
        if self.done:
            _log.info(
                "%s: %d points or probes of an earlier run are kept, and not measured again.", self.path, len(self.done)
            )
        if not whole:
            self._append({"settings": settings_digest, "format_version": FORMAT_VERSION})

    def append(self, key: str, value: Any) -> None:
        """Record that the point `key` is done. In the first process, no kill can undo it once this returns.

        Args:
            key: Name of the point.
            value: Its value, anything that can be stored as JSON (see `plain.to_plain`).

        Raises:
            DiskFull: There is no room for the line; the journal is as it was.
        """
        value = to_plain(value)
        if self._file is not None:
            self._append({"key": key, "value": value})
        self.done[key] = value

    def _append(self, record: dict) -> None:
        """Write one line, or nothing of it."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        size = self._file.seek(0, os.SEEK_END)
        with noticing_a_full_disk(self.path.parent):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(size)
                raise

    def _clear_beside(self) -> None:
        """Remove the files that a kill left beside the journal and that no line of it names."""
        named = {value["file"] for value in self.done.values() if isinstance(value, dict) and "file" in value}
        for path in _beside(self.path):
            if path.name not in named:
                path.unlink()

    def close(self) -> None:
        """Close the file, which ends the lock on it."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def journaled(path: Path, make: Callable[[Path], object]) -> None:
    """Let `make` write the file `path` if it is not there yet.

    Args:
        path: The file.
        make: Is called with the path of a journal, which a killed run leaves beside the file and from which the next
            run continues. The journal is removed when the file is there.
    """
    journal = path.with_name(f".{path.stem}.journal")
    if not path.exists():
        make(journal)
    journal.unlink(missing_ok=True)
    for file in _beside(journal):
        remove(file)


def _beside(journal: Path) -> list[Path]:
    """Return the files that belong to a journal and lie beside it."""
    starts = (f"{journal.name}.", f"{PARTIAL}{journal.name}.")
    return [path for path in journal.parent.iterdir() if path.name.startswith(starts)]
