"""Questions as batches: every choice after its prompt, plainly and in its instruction format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.data.encoding import Pair, chat_tokens, check_tokenizer, instructed_tokens, plain_tokens
from landscape.data.records import Question, is_question, read_question
from landscape.data.sources import check_load_options, is_running_text, read_records
from landscape.data.tokens import IGNORED, Example, TokenData
from landscape.errors import InputError, as_typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

PROMPT_FORMATS = ("auto", "chat", "plain")


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as tokens: an example for each choice, with a loss on the tokens of the choice alone.

    Attributes:
        plain: The choices, each after the prompt without an instruction.
        instructed: The same choices after the instruction format; empty where the question has no instruction.
        lengths: Characters of each choice.
        answer: Index of the right choice.
    """

    plain: tuple[Example, ...]
    instructed: tuple[Example, ...]
    lengths: tuple[int, ...]
    answer: int


@dataclass(frozen=True, eq=False, repr=False)
class Questions(TokenData):
    """Questions, all with choices or all with one completion, all with an instruction or all without.

    It is a `TokenData` whose examples are the right answers after their bare prompts, and serves wherever data does.
    `load_questions` makes it.

    Attributes:
        questions: The questions with all of their choices.
        prompt_format: "chat" where the prompts are turns of the user in the tokenizer's chat template, else "plain".
        lists_choices: Whether the prompts list the choices.

    Example:
        >>> right, wrong = Example((5, 7), (-100, 7)), Example((5, 8), (-100, 8))
        >>> question = EncodedQuestion(plain=(wrong, right), instructed=(), lengths=(3, 3), answer=1)
        >>> questions = Questions("quiz", (right,), questions=(question,))
        >>> questions.multiple_choice, questions.chance, questions.tokens
        (True, 0.5, 1)
    """

    questions: tuple[EncodedQuestion, ...] = ()
    prompt_format: str = "plain"
    lists_choices: bool = False

    @property
    def multiple_choice(self) -> bool:
        """Whether the questions have choices, rather than one completion each."""
        return len(self.questions[0].lengths) > 1

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing, the mean of 1 / number of choices; NaN for completions."""
        if not self.multiple_choice:
            return float("nan")
        return float(np.mean([1 / len(question.lengths) for question in self.questions]))

    @property
    def right(self) -> np.ndarray:
        """Number of the right choice of each question, counted over the choices of all questions."""
        counts = [len(question.lengths) for question in self.questions]
        return np.cumsum([0, *counts[:-1]]) + [question.answer for question in self.questions]

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
        """Return any of the examples as batches within the same budget."""
        return TokenData(self.source, tuple(examples), self.batch_tokens, self.padding_id)


def holds_questions(source: str | Path) -> bool:
    """Whether one record of `source` has choices, or a prompt and a completion with an instruction."""
    if is_running_text(source):
        return False
    _, records = read_records(source, 1, 0)
    return is_question(next(records)[1])


def load_questions(
    source: str | Path | Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    max_length: int = 512,
    limit: int | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    prompt_format: str = "auto",
    list_choices: bool = False,
) -> Questions:
    """Read questions that are scored without generation, by the losses of their choices.

    Records are `{"prompt" or "question", "choices": [text, ...], "answer": index from 0, text or letter of a choice}`
    or `{"prompt", "completion"}`. With an `instruction`, the question is also asked in its instruction format: the
    instruction stands on a line before the prompt, or both make one turn of the user where the tokenizer has a chat
    template (whatever `prompt_format` says of the questions without it). The tokens of choices are those of
    lm-evaluation-harness (see `encoding.choice_tokens`).

    Args:
        source: A `.jsonl` or `.parquet` file, a data set, or a list of records, as in `load_data`.
        tokenizer: The tokenizer of the model that will be measured.
        max_length: Maximum tokens per example. A longer question loses the beginning of its prompt, because every
            choice must be whole.
        limit: Maximum number of questions, drawn with `seed`; None reads all of them.
        batch_tokens: Maximum tokens per batch. It changes memory use, never results.
        seed: Seed for drawing the questions.
        prompt_format: "chat" asks each question as a turn of the user in the tokenizer's chat template, "plain" as bare
            text; "auto" takes the template where there is one. A model that was tuned for chats often knows in its
            format what it does not say in plain text.
        list_choices: Whether the prompt lists the choices, each on a line after "- ", before they are scored.

    Returns:
        The questions, in the order of their source.

    Raises:
        InputError: The source cannot be read (the message names file and line), its records are of different kinds, or
            a choice alone is longer than `max_length`.

    Example:
        >>> import json, tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "two": 1, "and": 2, "four": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> record = {"question": "two and two", "choices": ["two", "four"], "answer": "four"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "quiz.jsonl").write_text(json.dumps(record))
        ...     questions = load_questions(Path(folder, "quiz.jsonl"), tokenizer)
        >>> questions.chance, questions.examples[0].input_ids
        (0.5, (1, 2, 1, 3))
    """
    check_load_options(max_length, batch_tokens, limit, seed)
    check_tokenizer(tokenizer)
    in_chat = _asks_in_chat(tokenizer, prompt_format)
    if is_running_text(source):
        raise InputError(f"{source} is running text, without questions.")
    name, records = read_records(source, limit, seed)
    encoded: list[EncodedQuestion] = []
    truncated = 0
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
        if list_choices:
            question = _with_list(question, where)
        if in_chat:
            pairs = [chat_tokens(tokenizer, question.prompt, question, choice, where) for choice in question.choices]
        else:
            pairs = [plain_tokens(tokenizer, question, choice) for choice in question.choices]
        if question.instruction is not None:
            pairs += [instructed_tokens(tokenizer, question, choice, where) for choice in question.choices]
        examples = tuple(_example(pair, max_length, where) for pair in pairs)
        truncated += any(len(before) + len(choice) > max_length for before, choice in pairs)
        count = len(question.choices)
        lengths = tuple(len(choice) for choice in question.choices)
        encoded.append(EncodedQuestion(examples[:count], examples[count:], lengths, question.answer))
    return Questions(
        name,
        tuple(question.plain[question.answer] for question in encoded),
        batch_tokens,
        0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        truncated=truncated,
        questions=tuple(encoded),
        prompt_format="chat" if in_chat else "plain",
        lists_choices=list_choices,
    )


def _asks_in_chat(tokenizer: Tokenizer, prompt_format: str) -> bool:
    """Whether the questions are turns of the user in a chat; raise InputError where the tokenizer has no template."""
    if prompt_format not in PROMPT_FORMATS:
        raise InputError(f"prompt_format={prompt_format!r} is none of {', '.join(PROMPT_FORMATS)}.")
    if prompt_format == "chat" and tokenizer.chat_template is None:
        raise InputError("prompt_format='chat' needs a tokenizer with a chat template, which this one lacks.")
    return prompt_format != "plain" and tokenizer.chat_template is not None


def _with_list(question: Question, where: str) -> Question:
    """Return the question with its choices listed at the end of its prompt."""
    if not question.multiple_choice:
        raise InputError(f"{where} has no choices to list.")
    listed = "".join(f"\n- {choice}" for choice in question.choices)
    return replace(question, prompt=f"{question.prompt}{listed}\n")


def _example(pair: Pair, max_length: int, where: str) -> Example:
    """Make an example with a loss on the choice; what is too long loses the beginning of its prompt."""
    before, choice = pair
    if not before or not choice:
        raise InputError(f"{where} has a {'prompt' if choice else 'choice'} without a token of its own.")
    if len(choice) >= max_length:
        raise InputError(
            f"{where} has a choice of {len(choice)} tokens, which {as_typed('max_length', max_length)} cannot hold."
        )
    before = before[-(max_length - len(choice)) :]
    return Example((*before, *choice), (*[IGNORED] * len(before), *choice))
