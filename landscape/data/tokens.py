"""Texts and records as batches of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from landscape.data.chat import assistant_spans
from landscape.data.corpora import builtin_corpus
from landscape.data.records import checked_text, is_multiple_choice, plain_tokens, read_question
from landscape.data.sources import (
    SHAPES,
    check_load_options,
    check_positive,
    choose,
    is_running_text,
    read_records,
    read_text,
    shuffled,
)
from landscape.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

IGNORED = -100  # the label of a position where no loss is taken


@dataclass(frozen=True)
class DataOptions:
    """How data is read and batched.

    The fields mean what the arguments of `load_data` of the same names mean. They are together here for functions that
    read several data sets in the same way.

    Attributes:
        max_length: Maximum tokens per example.
        limit: Maximum number of examples, drawn at random; None reads all of them.
        batch_tokens: Maximum tokens per batch. It changes memory use, never results.

    Example:
        >>> DataOptions(limit=100)
        DataOptions(max_length=512, limit=100, batch_tokens=4096)
    """

    max_length: int = 512
    limit: int | None = None
    batch_tokens: int = 4096


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
    """Examples as batches that can be read again and again, first those that take most memory.

    A batch is what `pad_examples` makes of examples of similar length; rows * longest row <= batch_tokens, except where
    one example alone is longer. Raises InputError unless `batch_tokens` is positive.
    """

    source: str
    examples: tuple[Example, ...]
    batch_tokens: int = 4096
    padding_id: int = 0
    truncated: int = 0  # examples that lost their end to max_length
    dropped: int = 0  # examples left out because no supervised token was in them, or remained

    def __post_init__(self) -> None:
        check_positive("batch_tokens", self.batch_tokens)

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
        return [pad_examples([self.examples[i] for i in group], self.padding_id) for group in self._groups]

    @property
    def order(self) -> list[int]:
        """Which of the examples each row is, batch after batch."""
        return [index for group in self._groups for index in group]

    @cached_property
    def _groups(self) -> list[list[int]]:
        lengths = [len(example.input_ids) for example in self.examples]
        falling = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        ends = _batch_ends([lengths[index] for index in falling], self.batch_tokens)
        groups = [falling[start:end] for start, end in pairwise([0, *ends])]
        return sorted(groups, key=lambda group: -len(group) * lengths[group[0]] ** 2)

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


def _batch_ends(lengths: Sequence[int], budget: int) -> list[int]:
    """Where to cut falling `lengths` into batches, so that padded tokens and the costs of batches are fewest in all.

    A batch more must save as much padding as 128 tokens, or a sixteenth of the budget: who can afford large batches
    has a machine on which small ones are not cheap.
    """
    if not lengths:
        return []
    count, extra = len(lengths), max(128, budget // 16)
    least = np.full(count + 1, np.inf)  # what the first n examples cost in all
    start = np.zeros(count + 1, dtype=int)  # where the last batch of the first n begins
    least[0] = 0
    for first, width in enumerate(lengths):
        rows = min(count - first, max(1, budget // max(1, width)))
        ending = slice(first + 1, first + rows + 1)
        cost = least[first] + extra + width * np.arange(1, rows + 1)
        start[ending] = np.where(cost < least[ending], first, start[ending])
        least[ending] = np.minimum(cost, least[ending])
    ends = [count]
    while start[ends[-1]]:
        ends.append(int(start[ends[-1]]))
    return ends[::-1]


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
        encoded = _windows(tokenizer, [read_text(source)], max_length, limit, seed)
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
    raise InputError(f"{where} is none of {SHAPES}.")


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


def _windows(
    tokenizer: Tokenizer,
    pieces: list[str],
    max_length: int,
    limit: int | None,
    seed: int,
) -> list[_Encoded]:
    """Consecutive windows of each piece's tokens, in order, without a last one of a single token."""
    found: list[tuple[int, int, list[int]]] = []
    for piece in range(len(pieces)) if limit is None else shuffled(len(pieces), seed):
        ids = _tokenize(tokenizer, pieces[piece])
        starts = range(0, len(ids) - 1, max_length)
        found += [(piece, start, ids[start : start + max_length]) for start in starts]
        if limit is not None and len(found) >= limit:
            break
    chosen = sorted(found[index] for index in choose(len(found), limit, seed))
    return [_Encoded(ids, [True] * len(ids)) for _, _, ids in chosen]
