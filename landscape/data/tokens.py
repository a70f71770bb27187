"""Examples of token ids, read from a source and held as batches that can be read again and again."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from landscape.data.corpora import builtin_corpus
from landscape.data.encoding import Encoded, check_tokenizer, encode_record, encode_windows
from landscape.data.records import shape_of
from landscape.data.sources import (
    check_load_options,
    check_positive,
    is_builtin,
    is_running_text,
    read_records,
    read_text,
)
from landscape.errors import InputError, MeasurementWarning, as_typed

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
    """One sequence of token ids with its labels.

    Attributes:
        input_ids: Token ids.
        labels: As many labels: the token id where a loss is taken, -100 where none is. The label at position t is
            predicted from the tokens before t, so the label at position 0 never counts; `load_data` makes it -100.

    Example:
        >>> Example(input_ids=(5, 7, 9), labels=(-100, -100, 9)).tokens
        1
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of supervised tokens."""
        return sum(label != IGNORED for label in self.labels[1:])

    def as_bytes(self) -> bytes:
        """Return what digests of data are made of: length, token ids and labels as little-endian int64."""
        return np.array([len(self.input_ids), *self.input_ids, *self.labels], dtype="<i8").tobytes()


@dataclass(frozen=True, eq=False, repr=False)
class TokenData:
    """Examples as batches that can be read again and again; the batches that take most memory come first.

    A batch is what `pad_examples` makes of examples of similar length: a mapping with `input_ids`, `attention_mask` and
    `labels`. Its rows times its longest row are at most `batch_tokens`, except where one example alone is longer.
    `load_data` makes it.

    Attributes:
        source: Where the examples come from.
        examples: The examples, in the order of their source.
        batch_tokens: Maximum tokens per batch, with padding.
        padding_id: Token id that fills the rows.
        truncated: Number of examples that lost their end to `max_length`.
        dropped: Number of examples that were left out because no supervised token was in them, or remained.

    Raises:
        InputError: `batch_tokens` is not a positive whole number.

    Example:
        >>> data = TokenData("two sentences", (Example((3, 4, 5), (-100, 4, 5)), Example((6, 7), (-100, 7))))
        >>> data.tokens, len(data)
        (3, 1)
        >>> next(iter(data))["input_ids"]
        tensor([[3, 4, 5],
                [6, 7, 0]])
    """

    source: str
    examples: tuple[Example, ...]
    batch_tokens: int = 4096
    padding_id: int = 0
    truncated: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        check_positive("batch_tokens", self.batch_tokens)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __repr__(self) -> str:
        counts = f"{len(self.examples)} examples, {self.tokens} supervised tokens, batch_tokens={self.batch_tokens}"
        return f"{type(self).__name__}({self.source!r}, {counts})"

    @cached_property
    def tokens(self) -> int:
        """Number of supervised tokens, the weight of the mean loss."""
        return sum(example.tokens for example in self.examples)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the examples in the order of their source; how they are batched does not change it."""
        hashed = hashlib.sha256()
        for example in self.examples:
            hashed.update(example.as_bytes())
        return hashed.hexdigest()

    @cached_property
    def _batches(self) -> list[dict[str, torch.Tensor]]:
        """The batches, made once."""
        return [pad_examples([self.examples[i] for i in group], self.padding_id) for group in self._groups]

    @property
    def order(self) -> list[int]:
        """Index of the example that each row is, batch after batch."""
        return [index for group in self._groups for index in group]

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Indices of the examples of each batch."""
        lengths = [len(example.input_ids) for example in self.examples]
        falling = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        ends = batch_ends([lengths[index] for index in falling], self.batch_tokens)
        groups = [falling[start:end] for start, end in pairwise([0, *ends])]
        return sorted(groups, key=lambda group: -len(group) * lengths[group[0]] ** 2)

    def unseen_rows(self, vocabulary_size: int) -> int:
        """Count the token ids of a model that are never an input on which a loss depends.

        The loss on this data does not change with their rows of the input embedding, whatever the model. (Rows of the
        output embedding, and tied ones, matter for every token through the softmax.)

        Args:
            vocabulary_size: Number of token ids of the model.
        """
        seen: set[int] = set()
        for example in self.examples:
            last = max((position for position, label in enumerate(example.labels) if label != IGNORED), default=0)
            seen.update(example.input_ids[:last])
        return vocabulary_size - len(seen)

    def describe(self, vocabulary_size: int | None = None) -> str:
        """Describe the data in one line for a terminal.

        Args:
            vocabulary_size: Number of token ids of a model; the line then also says how many are not in the data.
        """
        line = (
            f"{self.source}: {len(self.examples):,} examples, {self.tokens:,} supervised tokens, "
            f"{self.truncated:,} truncated, {self.dropped:,} dropped"
        )
        if vocabulary_size is None:
            return line
        return f"{line}; {self.unseen_rows(vocabulary_size):,} of {vocabulary_size:,} vocabulary rows are not in it"

    def with_batch_tokens(self, batch_tokens: int) -> TokenData:
        """Return the same examples in other batches."""
        return replace(self, batch_tokens=batch_tokens)


def batch_ends(lengths: Sequence[int], budget: int) -> list[int]:
    """Find where to cut falling `lengths` into batches so that padding and the costs of batches are least in all.

    One batch more must save 128 tokens of padding, or a sixteenth of the budget: where large batches are affordable,
    small ones waste the machine. The cuts are the optimum by dynamic programming over the first n examples.
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
    """Make one batch of examples.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each int64 of shape (rows, longest row), padded on the right.
    """
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
    """Check that a model has an embedding for every token id of `data`.

    Args:
        data: The examples.
        vocabulary_size: Number of token ids of the model.
        where: Name of the model, for the message.

    Raises:
        InputError: An example holds a token id beyond the vocabulary.
    """
    for index, example in enumerate(data.examples):
        largest = max(example.input_ids)
        if largest >= vocabulary_size:
            raise InputError(
                f"{data.source}, example {index}, has token id {largest}, but {where} has a vocabulary of "
                f"{vocabulary_size}; use the tokenizer that belongs to it."
            )


# --- loading ------------------------------------------------------------------------------------------------


def load_data(
    source: str | Path | Sequence[Mapping[str, Any]],
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

    Records are `{"messages"}` (loss on assistant turns), `{"prompt" or "question", "choices", "answer"}` (loss on the
    right choice; `load_questions` scores the others too), `{"prompt", "completion"}` (loss on the completion) or
    `{"text"}` (loss on all tokens), looked for in this order; other keys are ignored. Tokens are the tokenizer's own:
    `tokenizer(text)`; `tokenizer(prompt)` and then `tokenizer(completion, add_special_tokens=False)`; the chat template
    for messages. A `.txt` file and each piece of a built-in corpus are running text, which is cut into consecutive
    windows of `tokenizer(text)`.

    Args:
        source: A `.jsonl`, `.txt` or `.parquet` file; or `builtin:docs` or `builtin:code`, where `@train` or `@heldout`
            may stand in place of `part`; or `ID[:CONFIG][@SPLIT]`, a `datasets` id or a local folder that `datasets`
            can read (its split is "train" unless you name another); or a list of records.
        tokenizer: The tokenizer of the model that will be measured.
        max_length: Maximum tokens per example. A longer record loses its end, and the number of records that did is in
            the result.
        limit: Maximum number of examples, drawn with `seed`; None reads all of them. Records are drawn before they are
            tokenized (lines that were not drawn are not even parsed); windows are drawn out of whole pieces of text.
        batch_tokens: Maximum tokens per batch. It changes memory use, never results.
        seed: Seed for drawing examples.
        append_eos: Whether each text and completion ends with the tokenizer's EOS token, with a loss on it. Chats and
            running text are left as they are.
        part: The part of a built-in corpus, "train" or "heldout".

    Returns:
        The examples as batches. Its `source` says which part or split was read.

    Raises:
        InputError: The source cannot be read (the message names file and line) or holds no supervised token, an option
            is out of its range, or `tokenizer` is none.

    Warns:
        MeasurementWarning: The records are of several kinds, so that one loss is taken over all of them.

    Example:
        >>> import json, tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "two": 1, "and": 2, "four": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "sums.jsonl").write_text(json.dumps({"prompt": "two and two", "completion": "four"}))
        ...     data = load_data(Path(folder, "sums.jsonl"), tokenizer)
        >>> data.examples[0]
        Example(input_ids=(1, 2, 1, 3), labels=(-100, -100, -100, 3))
    """
    check_load_options(max_length, batch_tokens, limit, seed)
    check_tokenizer(tokenizer)
    if append_eos and tokenizer.eos_token_id is None:
        raise InputError("append_eos needs an EOS token, but the tokenizer has none.")

    encoded: Iterable[Encoded]
    shapes: Counter[str] = Counter()
    if isinstance(source, (str, Path)) and is_running_text(source):
        name, pieces = builtin_corpus(str(source), part) if is_builtin(source) else (str(source), [read_text(source)])
        encoded = encode_windows(tokenizer, pieces, max_length, limit, seed)
    else:
        name, records = read_records(source, limit, seed)
        eos = [tokenizer.eos_token_id] if append_eos else []

        def encode(where: str, record: Any) -> Encoded:
            shapes[shape_of(record)] += 1
            return encode_record(tokenizer, record, where, eos, max_length)

        encoded = (encode(where, record) for where, record in records)

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
        raise InputError(f"{name} has no supervised token within {as_typed('max_length', max_length)}.")
    if len(shapes) > 1:
        counts = " and ".join(f"{count} of {shape}" for shape, count in shapes.most_common())
        warnings.warn(
            f"{name} holds records of {len(shapes)} kinds, {counts}; the loss is the mean over the tokens of all.",
            MeasurementWarning,
            stacklevel=2,
        )
    padding_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return TokenData(name, tuple(examples), batch_tokens, padding_id, truncated, dropped)
