"""The columns of a table of checkpoints: which of them are numbers, and which rows can be used."""

from __future__ import annotations

import csv
import fnmatch
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError, MeasurementWarning, first_line, nearest

if TYPE_CHECKING:
    import pandas


# Columns of `landscape measure` that say which checkpoint a row is (a folder's name may be a number of steps), how it
# was made, or what was forgotten in another form.
_NO_METRICS = (
    *("name", "source", "digest", "base", "base_digest"),
    *("rho", "lr", "seed", "steps", "forgetting", "forgetting_*", "loss_before_*", "loss_after_*", "accuracy_*"),
)


def read_table(table: pandas.DataFrame | Path | str) -> pandas.DataFrame:
    """Return the table itself, or what a CSV file holds.

    Raises:
        InputError: The file cannot be read, a row has other fields than the header, two columns have one name, or there
            are no rows.
    """
    import pandas

    if isinstance(table, pandas.DataFrame):
        frame, source = table, "the table"
        names = [str(name) for name in frame.columns]
    else:
        source = str(table)
        text = _read_text(table)
        names = _checked_header(text, source)
        try:
            frame = pandas.read_csv(io.StringIO(text))
        except (OSError, ValueError) as error:
            raise InputError(f"{table} cannot be read as a CSV table: {first_line(error)}") from error
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise InputError(f"{source} has more than one column {repeated[0]!r}; rename one of them.")
    if frame.empty:
        raise InputError("the table has no rows.")
    return frame


def _read_text(table: Path | str) -> str:
    """Read a file of text, or raise InputError that names it."""
    try:
        text = Path(table).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{table} cannot be read as a CSV table: it is not valid UTF-8.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{table} cannot be read as a CSV table: {reason}.") from error
    if "\0" in text:
        raise InputError(f"{table} cannot be read as a CSV table: it holds a NUL character, as no text does.")
    return text


def _checked_header(text: str, source: str) -> list[str]:
    """Return the names of the columns; raise InputError where a row has another number of fields.

    The reader of pandas takes the first column for an index where rows have one field more, and all names move by one.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    names: list[str] = []
    try:
        for row in reader:
            if not names:
                names = row
            elif row and len(row) != len(names):
                raise InputError(f"{source} line {reader.line_num} has {len(row)} fields, but {len(names)} columns.")
    except csv.Error as error:
        raise InputError(f"{source} line {reader.line_num} cannot be read as CSV: {error}.") from error
    return names


def numbers_of(frame: pandas.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, shape (rows,), NaN where it is empty; text that is a number counts as one.

    Raises:
        InputError: The column holds other text.
    """
    values, text = _parse(frame[name])
    if text is not None:
        raise InputError(f"column {name!r} does not hold numbers but {text!r}.")
    return values


def usable_rows(frame: pandas.DataFrame, columns: Sequence[str], labels: Sequence[str] = ()) -> np.ndarray:
    """Return which rows have a finite number in each of `columns`, and a value in each of `labels`; bool, (rows,)."""
    usable = np.isfinite([numbers_of(frame, name) for name in columns]).all(axis=0)
    for name in labels:
        usable &= frame[name].notna().to_numpy()
    return np.asarray(usable)


def checked_metrics(
    frame: pandas.DataFrame,
    flatness: Sequence[str] | None,
    forgetting: str,
    controls: Sequence[str],
    factors: Sequence[str],
    levels: Sequence[str],
    hyperparameters: Sequence[str] = (),
) -> list[str]:
    """Return the columns of flatness metrics, and raise InputError where a column is missing or has two roles.

    Args:
        frame: The table.
        flatness: The columns asked for; None takes every column of numbers that has no other role.
        forgetting: Column of the outcome.
        controls: Columns of numbers held fixed.
        factors: Columns of categories held fixed.
        levels: Columns of nested groups, the widest first.
        hyperparameters: Other columns that cannot be metrics.
    """
    roles = [forgetting, *controls, *factors, *levels, *hyperparameters]
    metrics = list(flatness) if flatness is not None else number_columns(frame, roles)
    for name in [*roles, *metrics]:
        if name not in frame.columns:
            raise InputError(
                f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns))}."
                f"{nearest(name, map(str, frame.columns))}"
            )
    numeric = [forgetting, *controls, *metrics]
    for name in numeric:
        if numeric.count(name) > 1:
            raise InputError(f"column {name!r} is asked for twice among flatness, forgetting and controls.")
    for name in levels:
        if name in numeric or name in factors or levels.count(name) > 1:
            raise InputError(f"column {name!r} is the groups; it cannot be a metric, an outcome or a control as well.")
    for name in factors:
        if name in numeric:
            raise InputError(f"column {name!r} is a factor; it cannot be a metric, an outcome or a control as well.")
    if not metrics:
        raise InputError("the table has no numeric column to correlate with forgetting.")
    return metrics


def group_levels(frame: pandas.DataFrame, groups: str | None) -> list[str]:
    """Return the columns of nested groups, the widest first: "recipe/base" means bases within recipes.

    A column whose own name holds a slash is meant itself.
    """
    if not groups:
        return []
    return [groups] if groups in frame.columns else groups.split("/")


def codes_within(frame: pandas.DataFrame, names: Sequence[str]) -> list[np.ndarray]:
    """Return whole-number labels of nested groups, each of shape (rows,); a base of each recipe is its own group."""
    return [frame.groupby(list(names[: depth + 1]), sort=False).ngroup().to_numpy() for depth in range(len(names))]


def _parse(column: pandas.Series) -> tuple[np.ndarray, str | None]:
    """Return the numbers of a column, NaN where there is none, and the first entry that is not one."""
    import pandas

    kinds = pandas.api.types
    if kinds.is_numeric_dtype(column) and not kinds.is_complex_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan), None
    if not (kinds.is_object_dtype(column) or kinds.is_string_dtype(column)):
        return np.full(len(column), np.nan), str(column.iloc[0])
    try:
        numbers = pandas.to_numeric(column, errors="coerce")
    except OverflowError:  # a whole number that no float is as large as, which pandas does not coerce
        numbers = pandas.to_numeric(
            column.mask(column.astype(str).str.fullmatch(r"\s*[+-]?\d{309,}\s*")), errors="coerce"
        )
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
