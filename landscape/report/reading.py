"""The files of a folder that a report may show, and what each of them holds."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from landscape.plotting.page import Section
from landscape.results import Result

_CHECKPOINT = ("config.json", "adapter_config.json")  # folders with one of these hold weights
_FORMAT = re.compile(r'"format": "(landscape/[^"]+)"')
_HEAD = 300  # characters of a JSON file in which a result says what it is


@dataclasses.dataclass(frozen=True)
class File:
    """A file that may hold something to show.

    Attributes:
        path: Where it is.
        place: The folder that it is in, seen from the folder of the report; empty for that folder itself.
        format: The format that a saved result names, such as "landscape/surface"; empty for other files.
    """

    path: Path
    place: str
    format: str


T = TypeVar("T", covariant=True)
Item = TypeVar("Item")
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Found(Generic[T]):
    """What was read from a file."""

    content: T
    file: File


@dataclasses.dataclass
class Part:
    """What a chapter adds to a report.

    Attributes:
        sections: The sections of the page.
        sentences: What the results say, in words that stay within their intervals.
        problems: What could not be shown, in words.
    """

    sections: list[Section] = dataclasses.field(default_factory=list)
    sentences: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Chapter:
    """How a report shows one kind of content.

    Attributes:
        read: Returns what a file holds for this chapter, or None. Several may read the same file. It raises InputError
            where the file is for this chapter and damaged.
        part: Makes the part of the page from all that was read.
    """

    read: Callable[[File], Any]
    part: Callable[[list[Found[Any]]], Part]


def results_of(*types: type[Result]) -> Callable[[File], Any]:
    """The `read` of a chapter on saved results of these types."""
    known = {f"landscape/{kind.kind_of_result}": kind for kind in types}
    return lambda file: known[file.format].load(file.path) if file.format in known else None


def files_in(folder: Path) -> Iterator[File]:
    """Yield the JSON and CSV files below a folder, in order of their names and of the numbers in them.

    Checkpoints, hidden folders, the states of training runs, and the cells of a table that is there too are left out.
    """
    for here, folders, names in os.walk(folder):
        if any(name in names for name in _CHECKPOINT):
            folders.clear()
            continue
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".") and not name.endswith((".cells", ".training"))),
            key=_by_number,
        )
        place = Path(here).relative_to(folder).as_posix().removeprefix(".")
        for name in sorted(names, key=_by_number):
            path = Path(here, name)
            if path.suffix in (".json", ".csv") and not name.startswith("."):
                yield File(path, place, _format_of(path) if path.suffix == ".json" else "")


def _by_number(name: str) -> list[tuple[int, str]]:
    """The key by which step-500 comes before step-1000."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _format_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            said = _FORMAT.search(file.read(_HEAD))
    except (OSError, ValueError):
        return ""
    return said[1] if said else ""


def by_place(found: Sequence[Found[T]]) -> dict[str, list[Found[T]]]:
    """What was found, folder by folder."""
    return grouped(found, lambda one: one.file.place)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key, in the order in which keys first come."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def titled(title: str, place: str, places: Sequence[str] | dict[str, Any]) -> str:
    """A title that names the folder where there are several."""
    return f"{title} ({place or 'the folder itself'})" if len(places) > 1 else title
