"""What every result shares: saving and loading, provenance, the journal of a long run, the output folder.

Results are JSON: readable next year without this package, floats written so that they come back bit for bit.
Non-finite numbers are the strings "nan", "inf" and "-inf", because JSON has no others.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import html
import json
import math
import os
import platform
import shutil
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from landscape.errors import InputError, first_line

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
    """The inverse of `to_plain`, guided by the type annotation `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return from_plain(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        known = {f.name for f in dataclasses.fields(hint)}
        return hint(**{k: from_plain(hints[k], v) for k, v in value.items() if k in known})  # type: ignore[operator]
    if origin is tuple:
        return tuple(from_plain(arguments[0], item) for item in value)
    if hint is np.ndarray or origin is np.ndarray:
        return np.array(value, dtype=np.float64)
    if hint is float:
        return float(value)
    return value


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` only when the body ends well."""
    path = Path(path)
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
    except (OSError, ValueError) as error:
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
        if content.get("format_version", 0) > FORMAT_VERSION:
            raise InputError(f"{path} was written by a newer landscape; upgrade to read it.")
        try:
            return from_plain(cls, content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged {expected} file: {error}.") from error

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
    one that another process is writing, and one damaged in the middle are refused with InputError.
    """

    def __init__(self, path: Path | str, settings: Mapping[str, Any]):
        self.path = Path(path)
        self.done: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - held open, and locked, for the life of the journal
        try:
            self._lock()
            self._read(digest_of(settings))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not a POSIX system: no lock, one writer is the user's care
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{self.path} is in use by another run.") from error

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
        """Record that the point `key` is done. It is on disk when this returns."""
        self.done[key] = to_plain(value)
        self._append({"key": key, "value": self.done[key]})

    def _append(self, record: dict) -> None:
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def results_folder(folder: Path | str, settings: Mapping[str, Any], files: Iterable[str] = ()) -> Iterator[Path]:
    """Make `folder` the home of the results of one set of settings, or recognize it as that already.

    Where the body raises InputError and the folder is new, it is removed: bad input leaves nothing behind.

    Raises InputError, before anything is written, where the folder belongs to other settings or holds one of
    `files` from elsewhere.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file, not a folder.")
    record = folder / "settings.json"
    plain = to_plain(settings)
    is_new = not folder.exists()
    if record.exists():
        existing = read_json(record)
        if existing != plain:
            keys = [key for key in sorted(set(existing) | set(plain)) if existing.get(key) != plain.get(key)]
            raise InputError(
                f"{folder} holds results of other settings ({', '.join(keys)} differ); choose another --output."
            )
    else:
        taken = [name for name in files if (folder / name).exists()]
        if taken:
            raise InputError(f"{folder} holds a {taken[0]} from elsewhere; choose another --output.")
        try:
            write_json(record, plain)
        except OSError as error:
            raise InputError(f"--output {folder} cannot be written: {error.strerror}.") from error
    try:
        yield folder
    except InputError:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
