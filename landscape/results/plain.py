"""Results as JSON, which can be read without this package and whose floats come back bit for bit.

Non-finite numbers are the strings "nan", "inf" and "-inf", because JSON has no numbers for them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import first_line

FORMAT_VERSION = 1


def to_plain(value: Any) -> Any:
    """Turn `value` into JSON types: dataclasses become dicts, arrays nested lists, and NaN the string "nan".

    Fields of dataclasses that are declared with `metadata={"stored": False}` are left out.

    Raises:
        TypeError: The value holds something that cannot be stored.

    Example:
        >>> to_plain({"loss": np.array([1.5, np.nan]), "points": (3, 4)})
        {'loss': [1.5, 'nan'], 'points': [3, 4]}
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
    """Turn what `to_plain` returned back into a value of the type `hint`.

    Args:
        hint: A type annotation: a dataclass, a union with None, tuple[T, ...], np.ndarray or a plain type.
        value: JSON types.

    Raises:
        TypeError: `value` does not fit the annotation.
        ValueError: A field of a dataclass does not fit its annotation; the message names the field.

    Example:
        >>> from_plain(tuple[float, ...], [1, "inf"])
        (1.0, inf)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return from_plain(next(a for a in arguments if a is not types.NoneType), value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        known = {f.name: f for f in dataclasses.fields(hint) if f.init}
        fields = {k: _field(k, hints[k], v) for k, v in _checked(dict, value).items() if k in known}
        unset = dataclasses.MISSING
        for name, field in known.items():
            if name not in fields and field.default is unset and field.default_factory is unset:
                raise ValueError(f"{name} is missing")
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
    """Convert a field of a dataclass; errors name it."""
    try:
        return from_plain(hint, value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {first_line(error).rstrip('.')}") from error


def _checked(kind: Any, value: Any) -> Any:
    """Return `value` where it is of the type `kind`; a bool is not a number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{str(value)[:40]!r} is out of place")
    return value


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`.

    Example:
        >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
