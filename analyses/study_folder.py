"""The folder a study fills: what it is of, and files that are there completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import landscape


def claim(path: Path, **said: Any) -> None:
    """Write down in `path` what the folder is of, or see that it is what was begun there.

    Raises InputError where the file says something else under one of the names.
    """
    begun = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in said.items():
        if begun.get(name, value) != value:
            raise landscape.InputError(f"{path} was made with other {name}; choose another --output.")
    if begun | said != begun:
        write_json(path, begun | said)


def versions() -> dict[str, str]:
    """Of the packages whose change may change a number."""
    return {name: metadata.version(name) for name in ("landscape-lm", "torch", "transformers", "numpy")}


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A file that is there completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    write_lines(path, [json.dumps(value, indent=1)])
