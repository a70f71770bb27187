"""The folder a study fills: what it is of, and files that are there completely or not at all."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

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


def kept_row(file: Path, make: Callable[[], dict]) -> dict:
    """The row in a file, made now if it is not there yet."""
    if not file.exists():
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


def read_settings(path: Path, quick: bool) -> dict:
    """The settings of a study's file, with its [quick] section laid over them or left out."""
    settings = tomllib.loads(path.read_text(encoding="utf-8"))
    changes = settings.pop("quick", {})
    if quick:
        without = changes.pop("without", [])
        for name, value in changes.items():
            settings[name] = settings[name] | value if isinstance(value, dict) else value
        if without:
            settings["metrics"] = [m for m in settings["metrics"] if m["column"] not in without]
    return settings


def plain(value: Any) -> Any:
    """The same with plain JSON types, and None where a number is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
