"""Where data comes from: the names of sources, and what is read from them as records or running text."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from landscape.data.corpora import name_and_part
from landscape.data.records import QUESTION_KEYS
from landscape.errors import InputError, as_typed, first_line, nearest_path

Source = str | Path | Sequence[Mapping[str, Any]]
Records = Iterator[tuple[str, Any]]  # each with the words that say where it is: its file and line

SHAPES = '{"text"}, {"prompt", "completion"}, {"prompt", "choices", "answer"} or {"messages"}'
_RECORD_KEYS = ("text", "prompt", "completion", "messages", *QUESTION_KEYS)
_FILE_SUFFIXES = (".jsonl", ".txt", ".parquet", ".json", ".csv")  # A source with such a suffix is meant as a file.


def parse_named_source(value: str) -> tuple[str, str]:
    """Split `name=source` into the name and the source; a bare source is named after its file or data set.

    Raises:
        InputError: The name or the source is empty.

    Example:
        >>> parse_named_source("old=builtin:docs"), parse_named_source("runs/tasks.jsonl")
        (('old', 'builtin:docs'), ('tasks', 'runs/tasks.jsonl'))
    """
    name, equals, source = value.partition("=")
    if equals and "/" not in name and not os.path.exists(value):
        if not name or not source:
            raise InputError(f"{value!r} does not name a source of data; write name=source.")
        return name, source
    if _is_file_name(value):
        return Path(value).stem, value
    return value.removeprefix("builtin:").rstrip("/").rpartition("/")[2], value


def parse_named_sources(values: Sequence[str]) -> list[tuple[str, str]]:
    """Return name and source of each `source` or `name=source`.

    Raises:
        InputError: A name or a source is empty, or two have the same name.
    """
    named = [parse_named_source(value) for value in values]
    names = [name for name, _ in named]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"two data sets are named {repeated[0]}; name them apart: {as_typed('data')} name=source.")
    return named


def check_source(source: str) -> None:
    """Check a source as far as that can be seen without reading it; ids are not asked for.

    Raises:
        InputError: There is no such file or built-in corpus, or the file is of another kind.
    """
    if source.startswith("builtin:"):
        name_and_part(source)
    elif _is_file_name(source):
        _file_suffix(source)


def check_load_options(max_length: int, batch_tokens: int, limit: int | None, seed: int) -> None:
    """Raise InputError unless the options of a loader are in their ranges."""
    for option, value in (("max_length", max_length), ("batch_tokens", batch_tokens), ("limit", limit)):
        if value is not None:
            check_positive(option, value)
    if not isinstance(seed, Integral) or seed >= 2**128:  # the key of the Philox generator
        raise InputError(f"{as_typed('seed')} must be a whole number below 2**128, but is {seed!r}.")
    if seed < 0:
        raise InputError(f"{as_typed('seed')} must not be negative, but is {seed}.")


def check_positive(option: str, value: int) -> None:
    """Raise InputError unless a number is a positive whole one."""
    if not isinstance(value, Integral):
        raise InputError(f"{as_typed(option)} must be a whole number, but is {value!r}.")
    if value < 1:
        raise InputError(f"{as_typed(option)} must be positive, but is {value}.")


def _is_file_name(source: str) -> bool:
    """Whether `source` is a file, or is named as if it were one."""
    named_so = Path(source).suffix.lower() in _FILE_SUFFIXES
    return os.path.isfile(source) or (named_so and not os.path.isdir(source))


def _file_suffix(source: str) -> str:
    """Return the suffix of a file of data; raise InputError where it cannot be read or is of another kind."""
    try:
        os.stat(source)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {source}.{nearest_path(source)}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {getattr(error, 'strerror', error)}.") from error
    suffix = Path(source).suffix.lower()
    if suffix not in (".jsonl", ".txt", ".parquet"):
        raise InputError(f"{source} is not a .jsonl, .txt or .parquet file.")
    return suffix


# --- random draws ---------------------------------------------------------------------------------------------


def shuffled(count: int, seed: int) -> list[int]:
    """Return the indices below `count` in an order drawn with `seed`.

    The order is made from the generator's raw stream, which no version of NumPy changes.
    """
    return np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable").tolist()


def choose(count: int, limit: int | None, seed: int) -> list[int]:
    """Draw at most `limit` of the indices below `count`, in increasing order; a smaller limit draws a subset.

    Example:
        >>> choose(3, None, seed=0)
        [0, 1, 2]
        >>> set(choose(100, 5, seed=0)) < set(choose(100, 10, seed=0))
        True
    """
    return list(range(count)) if limit is None else sorted(shuffled(count, seed)[:limit])


# --- records ------------------------------------------------------------------------------------------------


def is_builtin(source: Source) -> bool:
    """Whether `source` names a built-in corpus."""
    return isinstance(source, str) and source.startswith("builtin:")


def is_running_text(source: Source) -> bool:
    """Whether `source` is text rather than records."""
    if not isinstance(source, (str, Path)):
        return False
    return is_builtin(source) or (_is_file_name(str(source)) and _file_suffix(str(source)) == ".txt")


def read_records(source: Source, limit: int | None, seed: int) -> tuple[str, Records]:
    """Read records from a file or a data set, or take them as they are given.

    Args:
        source: A `.jsonl` or `.parquet` file, `ID[:CONFIG][@SPLIT]` of a data set, or a list of records.
        limit: Maximum number of records, drawn at random; None reads all of them.
        seed: Seed of the draw.

    Returns:
        The full name of the source (with the split that was read), and the records, each with its file and line.

    Raises:
        InputError: The source cannot be read or is empty. A damaged record is refused when its turn comes.
    """
    if not isinstance(source, (str, Path)):
        return "records", _given_records(source, limit, seed)
    source = str(source)
    if not _is_file_name(source):
        return _dataset_records(source, limit, seed)
    read = _jsonl_records if _file_suffix(source) == ".jsonl" else _parquet_records
    return source, read(source, limit, seed)


def _given_records(records: Sequence[Mapping[str, Any]], limit: int | None, seed: int) -> Records:
    """Yield records that the caller holds already."""
    if not isinstance(records, Sequence):
        raise InputError(f"the source of data is a {type(records).__name__}, but no file, name or list of records.")
    if not records:
        raise InputError("the list of records is empty.")
    for index in choose(len(records), limit, seed):
        record = records[index]
        yield f"record {index + 1}", dict(record) if isinstance(record, Mapping) else record


def _jsonl_records(source: str, limit: int | None, seed: int) -> Records:
    """Yield the records of a file of JSON lines. Lines that were not drawn are not parsed."""
    lines = [(number, line) for number, line in enumerate(_read(source).split(b"\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{source} is empty.")
    for index in choose(len(lines), limit, seed):
        number, line = lines[index]
        where = f"{source} line {number}"
        try:
            yield where, json.loads(line.decode("utf-8-sig"))  # A file may start with a byte-order mark.
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not valid UTF-8.") from error
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "a number too long or nesting too deep")
            raise InputError(f"{where} is not valid JSON ({reason}).") from error


def _parquet_records(source: str, limit: int | None, seed: int) -> Records:
    """Return the records of a parquet file."""
    pyarrow, parquet = _import("pyarrow", source), _import("pyarrow.parquet", source)
    try:
        with parquet.ParquetFile(source) as file:
            table = file.read(columns=_known_columns(source, file.schema_arrow.names))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source} cannot be read as parquet: {first_line(error)}") from error
    return _rows(source, choose(len(table), limit, seed), lambda chosen: table.take(chosen).to_pylist())


def _dataset_records(source: str, limit: int | None, seed: int) -> tuple[str, Records]:
    """Return the full name and the records of what `datasets` loads by an id or from a local folder."""
    name, _, split = (source, "", "") if os.path.isdir(source) else source.partition("@")
    identifier, _, config = (name, "", "") if os.path.isdir(name) else name.partition(":")
    if not identifier or (identifier.startswith(("/", ".", "~")) and not os.path.isdir(identifier)):
        raise InputError(f"there is no file or folder {source!r}.{nearest_path(source)}")
    datasets = _import("datasets", source)
    if not os.path.isdir(identifier):
        _check_hub_answers(identifier)
    try:
        dataset = datasets.load_dataset(identifier, config or None, split=split or "train")
    except Exception as error:  # Builders, file systems and HTTP clients raise what they like.
        raise InputError(f"{source} cannot be loaded as a data set: {first_line(error)}") from error
    dataset = dataset.select_columns(_known_columns(source, dataset.column_names))
    return f"{name}@{split or 'train'}", _rows(source, choose(len(dataset), limit, seed), dataset.select)


def _check_hub_answers(identifier: str) -> None:
    """Ask the Hub once, because its client would retry for half a minute before it says that there is no network."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:  # With this the user says: read it from the cache.
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # These are the HTTP client's own errors, whichever client it is.
        raise InputError(
            f"{identifier!r} is no local file or folder, and {constants.ENDPOINT} cannot be reached to look "
            "for a data set of that name (HF_HUB_OFFLINE=1 reads one that was downloaded before)."
        ) from error


def _known_columns(source: str, columns: Sequence[str]) -> list[str]:
    """Return the columns of a table that records are made of; raise InputError where these make no record."""
    known = [column for column in columns if column in _RECORD_KEYS]
    if not set(known) - {"question", "answer", "instruction"}:  # which say nothing without choices or a prompt
        raise InputError(f"{source} has columns {', '.join(columns)}, but none that make {SHAPES}.")
    return known


def _rows(source: str, chosen: list[int], take: Any) -> Records:
    """Return the rows that `take(chosen)` gives, each with its number in the table."""
    if not chosen:
        raise InputError(f"{source} is empty.")
    return ((f"{source} row {index + 1}", row) for index, row in zip(chosen, take(chosen), strict=True))


def _import(module: str, source: str) -> Any:
    """Import an optional library; raise InputError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{source} needs {module} to be read: pip install 'landscape-lm[train]'.") from error


# --- files --------------------------------------------------------------------------------------------------


def _read(source: str) -> bytes:
    """Read a file; raise InputError where that cannot be done."""
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}.") from error


def read_text(source: str | Path) -> str:
    """Read a file of text in UTF-8. Raises InputError where it cannot be read, is not UTF-8 text or is empty."""
    try:
        text = _read(str(source)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not valid UTF-8 at byte {error.start}.") from error
    if "\0" in text:  # Latin letters in UTF-16 are valid UTF-8, with a zero byte beside each of them.
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{source} holds a NUL character in line {line}, as files in UTF-16 or without text do.")
    if not text.strip():
        raise InputError(f"{source} is empty.")
    return text
