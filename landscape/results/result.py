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
    """Where a number comes from: enough to repeat it, or to see why a repetition differs.

    Attributes:
        settings: The options of the measurement.
        seed: Seed of its random draws; None where it draws nothing.
        checkpoint: Source, digest and more of the checkpoint, or a digest of the weights of a model in memory.
        data: Source, digest and number of supervised tokens of the data.
        device: The torch device of the model.
        dtype: Type of the weights. Losses are always accumulated in float32 or wider.
        seconds: Wall time of the measurement.
        versions: Versions of Python and of the packages that can change a number.
        created: Date and time (UTC, ISO 8601).

    When it was measured and how long that took make no difference to whether two of them are equal.
    """

    settings: dict
    seed: int | None
    checkpoint: dict | None
    data: dict | None
    device: str
    dtype: str
    seconds: float = dataclasses.field(compare=False)
    versions: dict = dataclasses.field(default_factory=lambda: installed_versions())
    created: str = dataclasses.field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"), compare=False
    )


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


class Result(abc.ABC):
    """Base of every result: a frozen dataclass that saves, loads, compares, prints and plots itself.

    Two results are equal where the same measurement gave the same numbers to the last bit, with NaN equal to NaN. When
    it ran and how long it took do not count, nor does what a result does not save: one that was read back equals the
    one that was saved.
    """

    kind_of_result: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the class these comparisons before `dataclass` makes its own, which fail on arrays and on dicts."""
        super().__init_subclass__(**options)
        cls.__eq__ = Result.__eq__  # type: ignore[method-assign]
        cls.__hash__ = Result.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash((type(self), self.identity()))

    def _compared(self) -> dict:
        """Return what equality depends on: what is stored, where NaN is a text and equals itself, but for the time."""
        stored = to_plain(self)
        own = {f.name for f in dataclasses.fields(Provenance) if f.compare}
        return stored | {"provenance": {key: value for key, value in stored["provenance"].items() if key in own}}

    def to_dict(self) -> dict:
        """Return the result as JSON types, with the name and the version of its format."""
        header = {"format": f"landscape/{self.kind_of_result}", "format_version": FORMAT_VERSION}
        return header | to_plain(self)

    def save(self, path: Path | str) -> Path:
        """Write the result to a JSON file.

        Args:
            path: The file. A result of the same settings that is there already is replaced.

        Returns:
            The path.

        Raises:
            InputError: The file exists and holds anything else.
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
        """Read what `save` wrote.

        Raises:
            InputError: The file is not a result of this class, is damaged, or was written by a newer version.
        """
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
        except (
            Exception
        ) as error:  # A subclass checks itself in __post_init__, where damaged content can raise anything.
            raise InputError(f"{path} is a damaged {expected} file: {first_line(error)}") from error

    def identity(self) -> str:
        """Return a digest of what was measured and how, which is equal for two runs of the same measurement."""
        provenance: Provenance = self.provenance  # type: ignore[attr-defined]
        return digest_of([provenance.settings, provenance.seed, provenance.checkpoint, provenance.data])

    @abc.abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Return the names and values that a person wants to see first."""

    def plot(self, **options: Any) -> Any:
        """Draw the result.

        Args:
            **options: Options of `landscape.plotting.plot`.

        Returns:
            A matplotlib figure.
        """
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
