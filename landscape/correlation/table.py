"""The columns of a table of checkpoints: which of them are numbers, and which rows can be used."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError, MeasurementWarning, first_line

if TYPE_CHECKING:
    import pandas


# Columns of `landscape measure` that say which checkpoint a row is (a folder's name may be a number of steps), how it
# was made, or what was forgotten in another form.
_NO_METRICS = (
    *("name", "source", "digest", "base", "base_digest"),
    *("rho", "lr", "seed", "steps", "forgetting_*", "loss_before_*", "loss_after_*", "accuracy_*"),
)


def read_table(table: pandas.DataFrame | Path | str) -> pandas.DataFrame:
    """Return the table itself, or what a CSV file holds.

    Raises:
        InputError: The file cannot be read, or there are no rows.
    """
    import pandas

    if isinstance(table, pandas.DataFrame):
        frame = table
    else:
        try:
            frame = pandas.read_csv(table)
        except (OSError, ValueError) as error:
            raise InputError(f"{table} cannot be read as a CSV table: {first_line(error)}") from error
    if frame.empty:
        raise InputError("the table has no rows.")
    return frame


def numbers_of(frame: pandas.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, shape (rows,), NaN where it is empty; text that is a number counts as one.

    Raises:
        InputError: The column holds other text.
    """
    values, text = _parse(frame[name])
    if text is not None:
        raise InputError(f"column {name!r} does not hold numbers but {text!r}.")
    return values


def usable_rows(frame: pandas.DataFrame, columns: Sequence[str], groups: str | None) -> np.ndarray:
    """Return which rows have a finite number in each of `columns`, and a group if there are `groups`; bool, (rows,)."""
    usable = np.isfinite([numbers_of(frame, name) for name in columns]).all(axis=0)
    if groups:
        usable &= frame[groups].notna().to_numpy()
    return np.asarray(usable)


def _parse(column: pandas.Series) -> tuple[np.ndarray, str | None]:
    """Return the numbers of a column, NaN where there is none, and the first entry that is not one."""
    import pandas

    kinds = pandas.api.types
    if kinds.is_numeric_dtype(column) and not kinds.is_complex_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan), None
    if not (kinds.is_object_dtype(column) or kinds.is_string_dtype(column)):
        return np.full(len(column), np.nan), str(column.iloc[0])
    numbers = pandas.to_numeric(column, errors="coerce")
    wrong = column[numbers.isna() & column.notna()]
    wrong = wrong[wrong.astype(str).str.strip().str.lower() != "nan"]
    return numbers.to_numpy(dtype=float, na_value=np.nan), str(wrong.iloc[0]) if len(wrong) else None


def number_columns(frame: pandas.DataFrame, roles: Sequence[str]) -> list[str]:
    """Return the columns that can be flatness metrics: they hold numbers and have no role.

    Columns that `landscape measure` writes for other ends are left out too.
    """
    import pandas

    names = []
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        if name in roles or pandas.api.types.is_bool_dtype(column):
            continue
        if any(fnmatch.fnmatchcase(str(name), pattern) for pattern in _NO_METRICS):
            continue
        values, text = _parse(column)
        if column.isna().all():
            continue
        if text is None:
            names.append(name)
        elif np.isfinite(values).any():  # One "diverged" among numbers must not leave a metric out in silence.
            warnings.warn(
                f"column {name!r} is left out: it holds {text!r} among its numbers.", MeasurementWarning, stacklevel=3
            )
    return names
