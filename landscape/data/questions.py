"""Questions as batches: every choice after its prompt, plainly and in its instruction format."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape.data.records import Pair, instructed_tokens, is_question, plain_tokens, read_question
from landscape.data.sources import check_load_options, is_running_text, read_records
from landscape.data.tokens import IGNORED, Example, TokenData
from landscape.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Asked:
    """A question as tokens: an example for each choice, supervised on the choice alone."""

    plain: tuple[Example, ...]
    instructed: tuple[Example, ...]  # the same choices after the instruction format; none where there is no instruction
    lengths: tuple[int, ...]  # characters of the choices
    answer: int


@dataclass(frozen=True, eq=False, repr=False)
class Questions(TokenData):
    """Questions, all with choices or all with one completion, all with an instruction or all without.

    As `TokenData`, with the right answers after the bare prompts as its examples, it serves wherever data do.
    """

    questions: tuple[Asked, ...] = ()

    @property
    def multiple_choice(self) -> bool:
        return len(self.questions[0].lengths) > 1

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing, the mean of 1 / number of choices; NaN for completions."""
        if not self.multiple_choice:
            return float("nan")
        return float(np.mean([1 / len(question.lengths) for question in self.questions]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all choices in all formats, in the order of their source."""
        hashed = hashlib.sha256()
        for question in self.questions:
            hashed.update(repr((question.lengths, question.answer)).encode())
            for example in (*question.plain, *question.instructed):
                hashed.update(example.as_bytes())
        return hashed.hexdigest()

    def as_batches(self, examples: Sequence[Example]) -> TokenData:
        """Any of the examples as batches within the same budget."""
        return TokenData(self.source, tuple(examples), self.batch_tokens, self.padding_id)


def holds_questions(source: str | Path) -> bool:
    """Whether the records of `source` have choices, or prompts and completions with an instruction (by one of them)."""
    if is_running_text(str(source)):
        return False
    _, records = read_records(str(source), 1, 0)
    return is_question(next(records)[1])


def load_questions(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    max_length: int = 512,
    limit: int | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
) -> Questions:
    """Read questions for scoring without generation; arguments and sources of records as in `load_data`.

    Records are `{"prompt" or "question", "choices": [text, ...], "answer": index from 0, text or letter of a choice}`
    or `{"prompt", "completion"}`; with an `instruction`, the question is also asked in its instruction format: the
    instruction on a line before the prompt, or both as one user's turn where the tokenizer has a chat template.
    Tokens of choices are those of lm-evaluation-harness (`questions.choice_tokens`). A question longer than
    `max_length` loses the beginning of its prompt, since every choice must be whole.

    Raises InputError for a source that cannot be read (naming file and line), records of different kinds, and a choice
    that alone is longer than `max_length`.
    """
    check_load_options(max_length, batch_tokens, limit, seed)
    if is_running_text(str(source)):
        raise InputError(f"{source} is running text, without questions.")
    name, records = read_records(str(source), limit, seed)
    asked: list[Asked] = []
    cut = 0
    kinds: set[tuple[bool, bool]] = set()
    for where, record in records:
        if not isinstance(record, dict):
            raise InputError(f"{where} is not a JSON object.")
        question = read_question(record, where)
        kinds.add((question.multiple_choice, question.instruction is not None))
        if len(kinds) > 1:
            raise InputError(
                f"{where} is not of the kind before it: all need choices, or none; an instruction, or none."
            )
        pairs = [plain_tokens(tokenizer, question, choice) for choice in question.choices]
        if question.instruction is not None:
            pairs += [instructed_tokens(tokenizer, question, choice, where) for choice in question.choices]
        examples = tuple(_example(pair, max_length, where) for pair in pairs)
        cut += any(len(before) + len(choice) > max_length for before, choice in pairs)
        count = len(question.choices)
        lengths = tuple(len(choice) for choice in question.choices)
        asked.append(Asked(examples[:count], examples[count:], lengths, question.answer))
    return Questions(
        name,
        tuple(question.plain[question.answer] for question in asked),
        batch_tokens,
        0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        truncated=cut,
        questions=tuple(asked),
    )


def _example(pair: Pair, max_length: int, where: str) -> Example:
    before, choice = pair
    if not before or not choice:
        raise InputError(f"{where} has a {'prompt' if choice else 'choice'} without a token of its own.")
    if len(choice) >= max_length:
        raise InputError(f"{where} has a choice of {len(choice)} tokens, which max_length={max_length} cannot hold.")
    before = before[-(max_length - len(choice)) :]
    return Example((*before, *choice), (*[IGNORED] * len(before), *choice))
