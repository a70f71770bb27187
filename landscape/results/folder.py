"""The folder that a command writes to: it belongs to one set of settings, and to one run at a time."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.errors import InputError, as_typed
from landscape.parallel import distributed
from landscape.results.files import PARTIAL, lock, noticing_a_full_disk, read_json, remove, write_json
from landscape.results.plain import to_plain

_log = logging.getLogger(__name__)


def check_folder(folder: Path | str) -> None:
    """Check that results can go into a folder, as far as that is seen without making it.

    Raises:
        InputError: There is a file in its place, or in that of a folder above it, or it cannot be written.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        below = "" if there == folder else f", as {there} is a file"
        raise InputError(f"{as_typed('output', str(folder))} is a file, not a folder{below}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{as_typed('output', str(folder))} cannot be written: {os.strerror(errno.EACCES)}.")


@contextlib.contextmanager
def results_folder(folder: Path | str, settings: Mapping[str, Any], files: Iterable[str] = ()) -> Iterator[Path]:
    """Make `folder` the home of the results of one set of settings, or recognize it as that already.

    Where the body raises before there is any result, what was made here is removed, so that bad input leaves nothing
    behind. What is finished stays, whatever happens. Files that a killed run was in the middle of writing are removed.

    Inside `distributed.shared_work` the first process does all this, and the others wait for it.

    Args:
        folder: The folder; it is made where it does not exist.
        settings: What the results depend on, written to `settings.json`.
        files: Names of the files that the run will write.

    Yields:
        The folder.

    Raises:
        InputError: The folder belongs to other settings, holds one of `files` from elsewhere, is in use by another run
            or cannot be written. Nothing was written then.
        DiskFull: The body met a full disk; the message names the folder.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(_claimed(Path(folder), settings, files))

        distributed.by_first(claim)
        yield Path(folder)


@contextlib.contextmanager
def _claimed(folder: Path, settings: Mapping[str, Any], files: Iterable[str]) -> Iterator[None]:
    """Do what `results_folder` does, in the first process."""
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        if not made and not folder.is_dir():
            raise InputError(f"{as_typed('output', str(folder))} is a file, not a folder.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{as_typed('output', str(folder))} cannot be made: {error.strerror}.") from error
    with _locked(folder):
        claimed = False
        try:
            claimed = _claim(folder, to_plain(settings), files)
            if not claimed:
                _clear_partial(folder)
            with noticing_a_full_disk(folder):
                yield
        except BaseException:
            if claimed or made:
                _withdraw(folder, made)
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder inside the block."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if os.name != "nt":
            raise InputError(f"{as_typed('output', str(folder))} cannot be read: {error.strerror}.") from error
        yield  # Windows opens no folders, so there is nothing to lock.
        return
    try:
        lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _claim(folder: Path, settings: dict, files: Iterable[str]) -> bool:
    """Write settings.json, or find that it says the same already; returns whether it had to be written."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{as_typed('output', str(folder))} cannot be written: {os.strerror(errno.EACCES)}.")
    record = folder / "settings.json"
    is_new = not record.exists()
    if is_new:
        taken = [name for name in files if (folder / name).exists()]
        if taken:
            raise InputError(f"{folder} holds a {taken[0]} from elsewhere; choose another {as_typed('output')}.")
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if foreign:
            others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            _log.warning("%s is not empty: results are written beside %s%s.", folder, foreign[0], others)
    else:
        existing = read_json(record)
        if existing != settings:
            keys = [key for key in sorted({*existing, *settings}) if existing.get(key) != settings.get(key)]
            raise InputError(
                f"{folder} holds results of other settings ({', '.join(keys)} differ); choose another "
                f"{as_typed('output')}."
            )
    if is_new:
        try:
            write_json(record, settings)
        except OSError as error:
            raise InputError(f"{as_typed('output', str(folder))} cannot be written: {error.strerror}.") from error
    return is_new


def _clear_partial(folder: Path) -> None:
    """Remove what a killed run was writing."""
    for path in folder.iterdir():
        if path.name.startswith(PARTIAL):
            remove(path)


def _withdraw(folder: Path, made: Sequence[Path]) -> None:
    """Remove settings.json, and the folders that were made for it, where nothing else was written."""
    with contextlib.suppress(OSError):
        written = list(folder.iterdir())
        if all(path.name == "settings.json" or _is_empty_journal(path) for path in written):
            for path in written:
                path.unlink()
            for path in made:
                path.rmdir()


def _is_empty_journal(path: Path) -> bool:
    """Whether a file is a journal without a point: its first line names the settings."""
    return path.suffix == ".journal" and path.read_bytes().count(b"\n") <= 1
