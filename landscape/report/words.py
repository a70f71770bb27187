"""Words and tables that several chapters share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from landscape.plotting.basics import number, with_minus_sign
from landscape.plotting.page import Cell, Table
from landscape.report.reading import Found
from landscape.results import Result, to_plain

FEW = 4  # So many checkpoints are named one by one in a sentence.


def of_interval(value: float, interval: Sequence[float], text: str | None = None) -> Cell:
    """A cell with a number and its interval, either end of which may be missing."""
    low, high = interval
    shown = text or f"{value:.4g}"
    if math.isfinite(low) and math.isfinite(high):
        shown += f" [{low:.4g}, {high:.4g}]"
    return Cell(with_minus_sign(shown), value, low, high)


def of_error(value: float, error: float | None, mark: str = "") -> Cell:
    """A cell with a number and the error to both sides of it, which may be missing."""
    if error is None or not math.isfinite(error):
        return Cell(number(value, 5) + mark, value)
    return Cell(f"{number(value, 5)}{mark} ± {error:.2g}", value, value - error, value + error)


def signed_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A difference with its interval, in words."""
    return with_minus_sign(f"{value:+.{digits}g} [{low:+.{digits}g}, {high:+.{digits}g}]")


def mark_of(converged: bool | None, unknown: str = "?") -> str:
    """What follows a number that has not met its tolerance, or of which that cannot be shown."""
    return {True: "", False: "*", None: unknown}[converged]


# --- provenance ---------------------------------------------------------------------------------------------


def provenance_tables(found: Sequence[Found[Result]]) -> list[Table]:
    """Where results come from: what is the same for all, and what each has of its own.

    Args:
        found: The results.

    Returns:
        Tables to be folded away.
    """
    flat = [_flat(to_plain(one.content.provenance)) for one in found]  # type: ignore[attr-defined]
    names = list(dict.fromkeys(name for one in flat for name in one))
    shared = {name for name in names if len({one.get(name, "") for one in flat}) == 1}
    tables = []
    if shared:
        rows = [[name, flat[0].get(name, "")] for name in names if name in shared]
        of = "this result" if len(found) == 1 else f"all {len(found)} results"
        tables.append(Table(["", "value"], rows, f"Settings and provenance of {of}"))
    own = [name for name in names if name not in shared]
    if own and len(found) > 1:
        rows = [[one.file.path.name, *(it.get(name, "") for name in own)] for one, it in zip(found, flat, strict=True)]
        tables.append(Table(["file", *own], rows, "Settings and provenance of each result"))
    return tables


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """The entries of nested dicts by dotted names, as texts."""
    if isinstance(value, Mapping):
        parts = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    if value is None:
        return {}
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return {name: text if len(text) <= 200 else f"{text[:199]}…"}
