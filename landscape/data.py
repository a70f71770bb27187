"""Texts and records as batches of tokens."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from landscape.chat import assistant_spans
from landscape.corpora import builtin_corpus
from landscape.errors import InputError, first_line
from landscape.questions import QUESTION_KEYS, checked_text, is_multiple_choice, plain_tokens, read_question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

IGNORED = -100  # the label of a position where no loss is taken
_FILE_SUFFIXES = (".jsonl", ".txt", ".parquet", ".json", ".csv")  # what is meant as a file, readable or not
_RECORD_KEYS = ("text", "prompt", "completion", "messages", *QUESTION_KEYS)
_SHAPES = '{"text"}, {"prompt", "completion"}, {"prompt", "choices", "answer"} or {"messages"}'


# --- token data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and as many labels: the id where a loss is taken, -100 where not.

    The label at position t is predicted from t-1, so the label at position 0 never counts; `load_data` makes
    it -100.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of supervised tokens."""
        return sum(label != IGNORED for label in self.labels[1:])

    def as_bytes(self) -> bytes:
        """What digests of data are made of: the length, the token ids and the labels as little-endian int64."""
        return np.array([len(self.input_ids), *self.input_ids, *self.labels], dtype="<i8").tobytes()


@dataclass(frozen=True, eq=False, repr=False)
class TokenData:
    """Examples as batches that can be read again and again, longest first so that memory peaks at once.

    A batch is what `pad_examples` makes; rows * longest row <= batch_tokens, except where one example alone
    is longer. Raises InputError unless `batch_tokens` is positive.
    """

    source: str
    examples: tuple[Example, ...]
    batch_tokens: int = 4096
    padding_id: int = 0
    truncated: int = 0  # examples that lost their end to max_length
    dropped: int = 0  # examples left out because no supervised token was in them, or remained

    def __post_init__(self) -> None:
        _check_positive("batch_tokens", self.batch_tokens)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    @cached_property
    def tokens(self) -> int:
        """Number of supervised tokens, the weight of the mean loss."""
        return sum(example.tokens for example in self.examples)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the examples in the order of their source; batches do not change it."""
        hashed = hashlib.sha256()
        for example in self.examples:
            hashed.update(example.as_bytes())
        return hashed.hexdigest()

    @cached_property
    def _batches(self) -> list[dict[str, torch.Tensor]]:
        groups: list[list[Example]] = []
        width = 0  # of the last group, set by its first and longest example
        for example in sorted(self.examples, key=lambda e: len(e.input_ids), reverse=True):
            if groups and (len(groups[-1]) + 1) * width <= self.batch_tokens:
                groups[-1].append(example)
            else:
                groups.append([example])
                width = len(example.input_ids)
        return [pad_examples(group, self.padding_id) for group in groups]

    def unseen_rows(self, vocabulary_size: int) -> int:
        """How many of a model's token ids are never an input that a loss depends on.

        Their rows of the input embedding are flat whatever the model: no evaluation of these data can tell. (Rows
        of the output embedding, and tied ones, matter for every token through the softmax.)
        """
        seen: set[int] = set()
        for example in self.examples:
            last = max((position for position, label in enumerate(example.labels) if label != IGNORED), default=0)
            seen.update(example.input_ids[:last])
        return vocabulary_size - len(seen)

    def describe(self, vocabulary_size: int | None = None) -> str:
        """One line for a terminal; with the size of a model's vocabulary, also how much of it is not in the data."""
        line = (
            f"{self.source}: {len(self.examples):,} examples, {self.tokens:,} supervised tokens, "
            f"{self.truncated:,} truncated, {self.dropped:,} dropped"
        )
        if vocabulary_size is None:
            return line
        return f"{line}; {self.unseen_rows(vocabulary_size):,} of {vocabulary_size:,} vocabulary rows are not in it"

    def with_batch_tokens(self, batch_tokens: int) -> TokenData:
        """The same examples in other batches."""
        return replace(self, batch_tokens=batch_tokens)


def pad_examples(examples: Sequence[Example], padding_id: int = 0) -> dict[str, torch.Tensor]:
    """One batch: `input_ids`, `attention_mask`, `labels`, int64 (rows, longest row), padded on the right."""
    shape = (len(examples), max(len(example.input_ids) for example in examples))
    input_ids = torch.full(shape, padding_id)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids)
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.tensor(example.labels)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def check_vocabulary(data: TokenData, vocabulary_size: int, where: str) -> None:
    """Raise InputError where an example holds a token id that `where`, a model, has no embedding for."""
    for index, example in enumerate(data.examples):
        largest = max(example.input_ids)
        if largest >= vocabulary_size:
            raise InputError(
                f"{data.source}, example {index}, has token id {largest}, but {where} has a vocabulary of "
                f"{vocabulary_size}; use the tokenizer that belongs to it."
            )


# --- loading ------------------------------------------------------------------------------------------------


def load_data(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    max_length: int = 512,
    limit: int | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    append_eos: bool = False,
    part: str = "heldout",
) -> TokenData:
    """Read `source` into batches of tokens.

    source       a `.jsonl`, `.txt` or `.parquet` file; `builtin:docs` or `builtin:code`, with `@train` or
                 `@heldout` in place of `part`; else `ID[:CONFIG][@SPLIT]`, a `datasets` id or a local folder
                 that `datasets` can read (split: train)
    max_length   tokens of an example; a longer record loses its end, running text is cut into windows
    limit        at most so many examples, drawn with `seed`: records before they are tokenized (lines not
                 drawn are not even parsed), windows out of whole pieces of text drawn until there are enough
    append_eos   end each text and completion with the tokenizer's EOS token, supervised (chats and running
                 text are left as they are)

    Records are `{"messages"}` (loss on assistant turns), `{"prompt" or "question", "choices", "answer"}` (loss on the
    right choice: `choices.load_questions` scores the others too), `{"prompt", "completion"}` (loss on the completion)
    or `{"text"}` (loss on all), looked for in this order; other keys are ignored. Tokens are the tokenizer's
    own: `tokenizer(text)`, `tokenizer(prompt)` then `tokenizer(completion, add_special_tokens=False)`, the
    chat template for messages. A `.txt` file and each piece of a built-in corpus is running text: consecutive
    windows of `tokenizer(text)`. The `source` of what is returned says which part or split was read.

    Raises InputError for a source that cannot be read (naming file and line) or holds no supervised token,
    and for an option that is not positive.
    """
    source = str(source)
    check_load_options(max_length, batch_tokens, limit, seed)
    if append_eos and tokenizer.eos_token_id is None:
        raise InputError("append_eos needs an EOS token, but the tokenizer has none.")

    encoded: Iterable[_Encoded]
    if source.startswith("builtin:"):
        source, pieces = builtin_corpus(source, part)
        encoded = _windows(tokenizer, pieces, max_length, limit, seed)
    elif is_running_text(source):
        encoded = _windows(tokenizer, [_read_text(source)], max_length, limit, seed)
    else:
        source, records = read_records(source, limit, seed)
        eos = [tokenizer.eos_token_id] if append_eos else []
        encoded = (_encode(tokenizer, record, where, eos) for where, record in records)

    examples, truncated, dropped = [], 0, 0
    for ids, supervised in encoded:
        labels = [i if s else IGNORED for i, s in zip(ids, supervised, strict=True)]
        example = Example(tuple(ids[:max_length]), (IGNORED, *labels[1:max_length]))
        truncated += len(ids) > max_length
        if example.tokens:
            examples.append(example)
        else:
            dropped += 1
    if not examples:
        raise InputError(f"{source} has no supervised token within max_length={max_length}.")
    padding_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return TokenData(source, tuple(examples), batch_tokens, padding_id, truncated, dropped)


def parse_named_source(value: str) -> tuple[str, str]:
    """The name and the source in `name=source`; a bare source is named after its file or data set.

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


def check_load_options(max_length: int, batch_tokens: int, limit: int | None, seed: int) -> None:
    """Raise InputError unless the options of a loader are in their ranges."""
    for option, value in (("max_length", max_length), ("batch_tokens", batch_tokens), ("limit", limit)):
        if value is not None:
            _check_positive(option, value)
    if not isinstance(seed, Integral) or seed >= 2**128:  # the key of the Philox generator
        raise InputError(f"seed must be a whole number below 2**128, but is {seed!r}.")
    if seed < 0:
        raise InputError(f"seed must not be negative, but is {seed}.")


def _check_positive(option: str, value: int) -> None:
    if not isinstance(value, Integral):
        raise InputError(f"{option} must be a whole number, but is {value!r}.")
    if value < 1:
        raise InputError(f"{option} must be positive, but is {value}.")


def _is_file_name(source: str) -> bool:
    named_so = Path(source).suffix.lower() in _FILE_SUFFIXES
    return os.path.isfile(source) or (named_so and not os.path.isdir(source))


def _file_suffix(source: str) -> str:
    try:
        os.stat(source)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {source}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {getattr(error, 'strerror', error)}.") from error
    suffix = Path(source).suffix.lower()
    if suffix not in (".jsonl", ".txt", ".parquet"):
        raise InputError(f"{source} is not a .jsonl, .txt or .parquet file.")
    return suffix


def _shuffled(count: int, seed: int) -> list[int]:
    """The indices below `count` in an order drawn with `seed` (a raw stream: no NumPy changes it)."""
    return np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable").tolist()


def _choose(count: int, limit: int | None, seed: int) -> list[int]:
    """At most `limit` of the indices below `count`, increasing; a smaller limit draws a subset."""
    return list(range(count)) if limit is None else sorted(_shuffled(count, seed)[:limit])


# --- records ------------------------------------------------------------------------------------------------

_Records = Iterator[tuple[str, Any]]  # each with the words that say where it is


def is_running_text(source: str) -> bool:
    """Whether `source` is text rather than records."""
    return source.startswith("builtin:") or (_is_file_name(source) and _file_suffix(source) == ".txt")


def read_records(source: str, limit: int | None, seed: int) -> tuple[str, _Records]:
    """The full name of a source of records, and the chosen records, each with the words that say where it is."""
    if not _is_file_name(source):
        return _dataset_records(source, limit, seed)
    read = _jsonl_records if _file_suffix(source) == ".jsonl" else _parquet_records
    return source, read(source, limit, seed)


def _jsonl_records(source: str, limit: int | None, seed: int) -> _Records:
    lines = [(number, line) for number, line in enumerate(_read(source).split(b"\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{source} is empty.")
    for index in _choose(len(lines), limit, seed):
        number, line = lines[index]
        where = f"{source} line {number}"
        try:
            yield where, json.loads(line.decode("utf-8-sig"))  # a file may start with a byte-order mark
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not valid UTF-8.") from error
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "a number too long or nesting too deep")
            raise InputError(f"{where} is not valid JSON ({reason}).") from error


def _parquet_records(source: str, limit: int | None, seed: int) -> _Records:
    pyarrow, parquet = _import("pyarrow", source), _import("pyarrow.parquet", source)
    try:
        with parquet.ParquetFile(source) as file:
            table = file.read(columns=_known_columns(source, file.schema_arrow.names))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source} cannot be read as parquet: {first_line(error)}") from error
    return _rows(source, _choose(len(table), limit, seed), lambda chosen: table.take(chosen).to_pylist())


def _dataset_records(source: str, limit: int | None, seed: int) -> tuple[str, _Records]:
    name, _, split = (source, "", "") if os.path.isdir(source) else source.partition("@")
    identifier, _, config = (name, "", "") if os.path.isdir(name) else name.partition(":")
    if not identifier or (identifier.startswith(("/", ".", "~")) and not os.path.isdir(identifier)):
        raise InputError(f"there is no file or folder {source!r}.")
    datasets = _import("datasets", source)
    if not os.path.isdir(identifier):
        _check_hub_answers(identifier)
    try:
        dataset = datasets.load_dataset(identifier, config or None, split=split or "train")
    except Exception as error:  # builders, file systems and HTTP clients raise what they like
        raise InputError(f"{source} cannot be loaded as a data set: {first_line(error)}") from error
    dataset = dataset.select_columns(_known_columns(source, dataset.column_names))
    return f"{name}@{split or 'train'}", _rows(source, _choose(len(dataset), limit, seed), dataset.select)


def _check_hub_answers(identifier: str) -> None:
    """Ask the Hub once: its client would retry for half a minute before it says that there is no network."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:  # the user's word for: read it from the cache
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # the HTTP client's own errors, whichever client it is
        raise InputError(
            f"{identifier!r} is no local file or folder, and {constants.ENDPOINT} cannot be reached to look "
            "for a data set of that name (HF_HUB_OFFLINE=1 reads one that was downloaded before)."
        ) from error


def _known_columns(source: str, columns: Sequence[str]) -> list[str]:
    known = [column for column in columns if column in _RECORD_KEYS]
    if not set(known) - {"question", "answer", "instruction"}:  # which say nothing without choices or a prompt
        raise InputError(f"{source} has columns {', '.join(columns)}, but none that make {_SHAPES}.")
    return known


def _rows(source: str, chosen: list[int], take: Any) -> _Records:
    if not chosen:
        raise InputError(f"{source} is empty.")
    return ((f"{source} row {index + 1}", row) for index, row in zip(chosen, take(chosen), strict=True))


def _import(module: str, source: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{source} needs {module} to be read: pip install 'landscape-lm[train]'.") from error


# --- tokens -------------------------------------------------------------------------------------------------


class _Encoded(NamedTuple):
    """Token ids, and for each whether a loss is taken on it."""

    ids: list[int]
    supervised: list[bool]


def _encode(tokenizer: Tokenizer, record: Any, where: str, eos: list[int]) -> _Encoded:
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object.")
    record = {key: value for key, value in record.items() if value is not None}  # tables fill gaps with null
    if "messages" in record:
        return _encode_messages(tokenizer, record["messages"], where)
    if is_multiple_choice(record):
        question = read_question(record, where)
        prompt, right = plain_tokens(tokenizer, question, question.choices[question.answer])
        return _Encoded(prompt + right, [False] * len(prompt) + [True] * len(right))
    if "prompt" in record and "completion" in record:
        prompt = _tokenize(tokenizer, _string(record, "prompt", where))
        completion = _tokenize(tokenizer, _string(record, "completion", where), add_special_tokens=False)
        completion += eos
        return _Encoded(prompt + completion, [False] * len(prompt) + [True] * len(completion))
    if "text" in record:
        ids = _tokenize(tokenizer, _string(record, "text", where)) + eos
        return _Encoded(ids, [True] * len(ids))
    raise InputError(f"{where} is none of {_SHAPES}.")


def _string(record: dict, key: str, where: str) -> str:
    return checked_text(record.get(key), repr(key), where)


def _tokenize(tokenizer: Tokenizer, text: str, **options: bool) -> list[int]:
    # verbose=False: what is longer than the model's positions is cut here, so no warning is due
    return list(tokenizer(text, verbose=False, **options)["input_ids"])


def _encode_messages(tokenizer: Tokenizer, messages: Any, where: str) -> _Encoded:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"{where} has 'messages' that are not a list of objects.")
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in messages:
        _string(message, "role", where)
        _string(message, "content", where)
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError(f"{where} has no assistant turn to take a loss on.")
    if not tokenizer.is_fast:
        raise InputError(f"{where} is a chat, which needs a fast tokenizer (with character offsets).")
    text, spans = assistant_spans(tokenizer, messages, where)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    supervised = [any(a <= start < b for a, b in spans) for start, _ in encoding["offset_mapping"]]
    return _Encoded(list(encoding["input_ids"]), supervised)


# --- running text -------------------------------------------------------------------------------------------


def _read(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}.") from error


def _read_text(source: str) -> str:
    try:
        text = _read(source).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not valid UTF-8 at byte {error.start}.") from error
    if not text.strip():
        raise InputError(f"{source} is empty.")
    return text


def _windows(
    tokenizer: Tokenizer,
    pieces: list[str],
    max_length: int,
    limit: int | None,
    seed: int,
) -> list[_Encoded]:
    """Consecutive windows of each piece's tokens, in order, without a last one of a single token."""
    found: list[tuple[int, int, list[int]]] = []
    for piece in range(len(pieces)) if limit is None else _shuffled(len(pieces), seed):
        ids = _tokenize(tokenizer, pieces[piece])
        starts = range(0, len(ids) - 1, max_length)
        found += [(piece, start, ids[start : start + max_length]) for start in starts]
        if limit is not None and len(found) >= limit:
            break
    chosen = sorted(found[index] for index in _choose(len(found), limit, seed))
    return [_Encoded(ids, [True] * len(ids)) for _, _, ids in chosen]
