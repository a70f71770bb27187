"""What every result shares: saving and loading, provenance, the journal of a long run, the output folder.

Results are JSON: readable next year without this package, floats written so that they come back bit for bit.
Non-finite numbers are the strings "nan", "inf" and "-inf", because JSON has no others.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import errno
import hashlib
import html
import json
import math
import os
import platform
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from landscape import distributed
from landscape.errors import InputError, first_line

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
_RECORDED_PACKAGES = ("landscape-lm", "torch", "transformers", "numpy", "scipy")


# --- JSON ---------------------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses become dicts, arrays become nested lists, NaN becomes "nan".

    Fields declared with `metadata={"stored": False}` are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        stored = [f.name for f in dataclasses.fields(value) if f.metadata.get("stored", True)]
        return {name: to_plain(getattr(value, name)) for name in stored}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot store {type(value).__name__} in a result")


def from_plain(hint: Any, value: Any) -> Any:
    """The inverse of `to_plain`, guided by the type annotation `hint`.

    Raises TypeError or ValueError where `value` does not fit it.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return from_plain(next(a for a in arguments if a is not types.NoneType), value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        known = {f.name for f in dataclasses.fields(hint)}
        fields = {k: _field(k, hints[k], v) for k, v in _checked(dict, value).items() if k in known}
        return hint(**fields)  # type: ignore[operator]
    if origin is tuple:
        return tuple(from_plain(arguments[0], item) for item in _checked(list, value))
    if hint is np.ndarray or origin is np.ndarray:
        return np.array(_checked(list, value), dtype=np.float64)
    if hint is float:
        return float(_checked((int, float, str), value))
    kind = origin or hint
    return _checked(kind, value) if kind in (str, int, bool, dict, list) else value


def _field(name: str, hint: Any, value: Any) -> Any:
    try:
        return from_plain(hint, value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {first_line(error).rstrip('.')}") from error


def _checked(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{str(value)[:40]!r} is out of place")
    return value


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` only when the body ends well.

    Inside `distributed.shared_work` that is so in the first process; what the others write is thrown away.
    """
    path = Path(path)
    distributed.meet()  # whoever looked whether there is such a file has seen the same
    if distributed.share().rank == 0:
        with _replacing(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
    distributed.meet()  # and sees the same from here on


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Write a file that is there completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(to_plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict:
    """The JSON object in a file. Raises InputError naming the file where there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return content


# --- provenance and results ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to repeat it, or to see why a repetition differs."""

    settings: dict
    seed: int | None
    checkpoint: dict | None  # source, digest, ...; None for a model that came from memory
    data: dict | None  # source, digest, supervised tokens, ...
    device: str
    dtype: str  # of the weights; losses are always accumulated in float32 or wider
    seconds: float
    versions: dict = dataclasses.field(default_factory=lambda: installed_versions())
    created: str = dataclasses.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


class Result(abc.ABC):
    """Base of every result: a frozen dataclass that saves, loads, prints and plots itself."""

    kind_of_result: ClassVar[str]

    def to_dict(self) -> dict:
        header = {"format": f"landscape/{self.kind_of_result}", "format_version": FORMAT_VERSION}
        return header | to_plain(self)

    def save(self, path: Path | str) -> Path:
        """Write the result to `path` (JSON).

        Raises InputError where `path` exists and holds anything but a result of the same settings.
        """
        path = Path(path)
        if path.exists():
            existing = type(self).load(path)
            if existing.identity() != self.identity():
                raise InputError(f"{path} already holds a result of other settings; choose another name.")
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote. Raises InputError where the file is not such a result."""
        content = read_json(path)
        expected = f"landscape/{cls.kind_of_result}"
        if content.get("format") != expected:
            raise InputError(f"{path} is not a {expected} file.")
        version = content.get("format_version")
        if not isinstance(version, int):
            raise InputError(f"{path} is a damaged {expected} file: format_version is {version!r}.")
        if version > FORMAT_VERSION:
            raise InputError(f"{path} was written by a newer landscape; upgrade to read it.")
        try:
            return from_plain(cls, content)
        except Exception as error:  # a subclass may check itself in __post_init__, and meet what it did not expect
            raise InputError(f"{path} is a damaged {expected} file: {first_line(error)}") from error

    def identity(self) -> str:
        """Digest of what was measured and how; equal for two runs of the same measurement."""
        provenance: Provenance = self.provenance  # type: ignore[attr-defined]
        return digest_of([provenance.settings, provenance.seed, provenance.checkpoint, provenance.data])

    @abc.abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Name and value of what a person wants to see first."""

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure of the result."""
        from landscape import plotting  # the one upward import: results can be drawn, numerics cannot draw

        return plotting.plot(self, **options)

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{cells}</table>"


# --- long runs ----------------------------------------------------------------------------------------------


class Journal:
    """The finished points of a long run, one JSON line each, so that a killed run continues.

    The first line names the settings. A last line that the kill tore is dropped. A journal of other settings,
    one that another process is writing, and one damaged in the middle are refused with InputError. Inside
    `distributed.shared_work` the first process holds the file; the others hear what is in it.
    """

    def __init__(self, path: Path | str, settings: Mapping[str, Any]):
        self.path = Path(path)
        self.done: dict[str, Any] = {}
        self._file: Any = None  # of the first process
        self.done = distributed.by_first(lambda: self._open(settings))

    def _open(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - held open, and locked, for the life of the journal
        try:
            _lock(self._file, self.path)
            self._read(digest_of(settings))
        except BaseException:
            self.close()
            raise
        return self.done

    def _read(self, settings_digest: str) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]  # what follows the last newline was torn by a kill
        self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    found = record["settings"]
                else:
                    self.done[record["key"]] = record["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path} is damaged at line {number}; delete it to start over.") from error
            if number == 1 and found != settings_digest:
                raise InputError(f"{self.path} belongs to a run of other settings; choose another output.")
        if not whole:
            self._append({"settings": settings_digest, "format_version": FORMAT_VERSION})

    def append(self, key: str, value: Any) -> None:
        """Record that the point `key` is done. It is on disk when this returns in the first process."""
        self.done[key] = to_plain(value)
        if self._file is not None:
            self._append({"key": key, "value": self.done[key]})

    def _append(self, record: dict) -> None:
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def results_folder(folder: Path | str, settings: Mapping[str, Any], files: Iterable[str] = ()) -> Iterator[Path]:
    """Make `folder` the home of the results of one set of settings, or recognize it as that already.

    Where the body raises before there is any result, what was made here is removed: bad input leaves nothing
    behind. What is finished stays, whatever happens.

    Inside `distributed.shared_work` the first process does all that, and the others hear of it.

    Raises InputError, before anything is written, where the folder belongs to other settings, holds one of
    `files` from elsewhere, is in use by another run or cannot be written.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(_claimed(Path(folder), settings, files))

        distributed.by_first(claim)
        yield Path(folder)


@contextlib.contextmanager
def _claimed(folder: Path, settings: Mapping[str, Any], files: Iterable[str]) -> Iterator[None]:
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        if not made and not folder.is_dir():
            raise InputError(f"--output {folder} is a file, not a folder.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder} cannot be made: {error.strerror}.") from error
    with _locked(folder):
        claimed = False
        try:
            claimed = _claim(folder, to_plain(settings), files)
            yield
        except BaseException:
            if claimed or made:
                _withdraw(folder, made)
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if fcntl is not None:
            raise InputError(f"--output {folder} cannot be read: {error.strerror}.") from error
        yield  # Windows opens no folders
        return
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(file: Any, path: Path) -> None:
    """Lock an open file or folder until it is closed; InputError where another process holds the lock."""
    if fcntl is None:
        return  # no lock, one writer is the user's care
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path} is in use by another run.") from error
    except OSError:
        return  # some network file systems have none


def _claim(folder: Path, settings: dict, files: Iterable[str]) -> bool:
    """Whether settings.json had to be written: False where it says the same already."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--output {folder} cannot be written: {os.strerror(errno.EACCES)}.")
    record = folder / "settings.json"
    is_new = not record.exists()
    if is_new:
        taken = [name for name in files if (folder / name).exists()]
        if taken:
            raise InputError(f"{folder} holds a {taken[0]} from elsewhere; choose another --output.")
    else:
        existing = read_json(record)
        if existing != settings:
            keys = [key for key in sorted({*existing, *settings}) if existing.get(key) != settings.get(key)]
            raise InputError(
                f"{folder} holds results of other settings ({', '.join(keys)} differ); choose another --output."
            )
    if is_new:
        try:
            write_json(record, settings)
        except OSError as error:
            raise InputError(f"--output {folder} cannot be written: {error.strerror}.") from error
    return is_new


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
    return path.suffix == ".journal" and path.read_bytes().count(b"\n") <= 1  # the first line names the settings
