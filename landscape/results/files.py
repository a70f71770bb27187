"""Files that are there completely or not at all, and a disk that is full."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from landscape.errors import DiskFull, InputError, first_line
from landscape.parallel import distributed
from landscape.results.plain import to_plain

PARTIAL = ".partial-"  # starts the name of a file that is being written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit on the size of files


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write a file that is there completely or not at all.

    Inside `distributed.shared_work` this happens in the first process; what the others write is thrown away.

    Yields:
        A temporary path beside `path` to write to. It takes the name `path` when the body ends without an exception.

    Raises:
        DiskFull: There is no room for the file.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     Path(folder, "a.txt").read_text()
        'all of it'
    """
    path = Path(path)
    distributed.meet()  # All processes that looked whether there is such a file have seen the same.
    if distributed.share().rank == 0:
        with replacing_alone(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
    distributed.meet()  # From here on they all see the file.


@contextlib.contextmanager
def replacing_alone(path: Path) -> Iterator[Path]:
    """Do what `replacing` does in this process alone, whatever the others do."""
    with noticing_a_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{PARTIAL}{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            with open(temporary, "rb") as written:
                os.fsync(written)  # After a loss of power, the name must not be there without the content.
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's mask of file permissions, which can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Write a text file that is there completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that share their columns as CSV to a file that is there completely or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as JSON (see `plain.to_plain`) to a file that is there completely or not at all."""
    write_text(path, json.dumps(to_plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict:
    """Read the JSON object in a file. Raises InputError, naming the file, where there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return content


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file or folder until its descriptor is closed, which the end of the process does too.

    The lock is on the file itself, not on a lock file beside it: a killed run leaves nothing behind, and two runs
    cannot hold locks on different files of the same name.

    Args:
        descriptor: Of the open file or folder.
        path: Its path, for the message.

    Raises:
        InputError: Another process holds the lock.
    """
    try:
        locked = filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return  # Some network file systems have no locks. There the user has to take care that only one run writes.
    if not locked:
        raise InputError(f"{path} is in use by another run.")


@contextlib.contextmanager
def noticing_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise DiskFull naming `folder` where the body fails because there is no room to write."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if (number := _full(error)) is not None:
            raise DiskFull(number, os.strerror(number), str(folder)) from error
        raise


def _full(error: BaseException | None) -> int | None:
    """Return the error number of a full disk that `error`, or the error that caused it, speaks of; else None."""
    while error is not None:
        numbers = [error.errno] if isinstance(error, OSError) else []
        numbers += [int(n) for n in re.findall(r"os error (\d+)", str(error))]  # the words of safetensors
        if re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+", str(error)):
            numbers.append(errno.ENOSPC)  # torch.save does not say why it cannot write.
        for number in numbers:
            if number in _FULL:
                return number
        error = error.__cause__ or error.__context__
    return None


def save_tensors(tensors: Mapping[str, Any], temporary: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors to a path that `replacing` gave.

    safetensors writes a file of its own beside the path first, under a name that nobody knows after a kill. Here that
    happens in a folder that is removed with what else a killed run was writing.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix=f"{temporary.name}.", dir=temporary.parent) as folder:
        written = Path(folder, "tensors")
        save_file(dict(tensors), written, metadata=metadata)
        os.replace(written, temporary)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
