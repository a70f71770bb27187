"""What every result shares: its provenance, saving and loading, and how it shows itself."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import html
import pkgutil
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

from landscape.errors import InputError, first_line
from landscape.results.files import read_json, write_json
from landscape.results.plain import FORMAT_VERSION, digest_of, from_plain, to_plain

_RECORDED_PACKAGES = ("landscape-lm", "torch", "transformers", "numpy", "scipy")


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
        # By name and only when called: results can be drawn, and no room of numbers imports the room of pictures.
        return pkgutil.resolve_name("landscape.plotting:plot")(self, **options)

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
