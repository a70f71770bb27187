"""What a record asks: a prompt, the choices that may follow it, the right one, and the instruction it may come with."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

from landscape.errors import InputError

QUESTION_KEYS = ("question", "choices", "answer", "instruction")


@dataclass(frozen=True)
class Question:
    """What one record asks.

    Attributes:
        prompt: The text before the choices.
        choices: Texts that may follow the prompt; a record without choices has its completion as the only one.
        answer: Index of the right choice.
        instruction: Text that goes before the prompt in the instruction format; None where the record has none.
        multiple_choice: Whether the record has choices, rather than a completion.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    instruction: str | None
    multiple_choice: bool


def is_multiple_choice(record: Any) -> bool:
    """Whether a record has `choices` and an `answer`."""
    return isinstance(record, dict) and record.get("choices") is not None and record.get("answer") is not None


def shape_of(record: Any) -> str:
    """Return the keys that make a record what it is, as `load_data` reads it; of the first shape that it has.

    Example:
        >>> shape_of({"prompt": "2 + 2 =", "completion": "4", "text": None})
        '{"prompt", "completion"}'
    """
    shapes = (("messages",), ("choices", "answer"), ("prompt", "completion"), ("text",))
    keys = {key for key, value in record.items() if value is not None} if isinstance(record, dict) else set()
    shape = next((shape for shape in shapes if keys >= set(shape)), ())
    if "choices" in shape:
        shape = ("prompt", *shape)
    return "{" + ", ".join(f'"{key}"' for key in shape) + "}"


def is_question(record: Any) -> bool:
    """Whether a record has choices and an answer, or a prompt and completion with an instruction."""
    completion = isinstance(record, dict) and all(
        record.get(key) is not None for key in ("prompt", "completion", "instruction")
    )
    return completion or is_multiple_choice(record)


def read_question(record: dict, where: str) -> Question:
    """Read the question in a record.

    Args:
        record: `{"prompt" or "question", "choices", "answer"}` or `{"prompt", "completion"}`, either of them with an
            `instruction`. The answer is the text of a choice, its letter, or its index from 0 (looked for in this
            order).
        where: File and line of the record, for messages.

    Raises:
        InputError: The record is neither, or a value of it is not what it has to be.

    Example:
        >>> question = read_question({"question": "2 + 2 =", "choices": ["3", "4"], "answer": "B"}, "line 1")
        >>> question.choices[question.answer]
        '4'
    """
    given = record.get("instruction")
    instruction = None if given is None else checked_text(given, "'instruction'", where)
    if not is_multiple_choice(record):
        prompt, completion = (checked_text(record.get(key), repr(key), where) for key in ("prompt", "completion"))
        return Question(prompt, (completion,), 0, instruction, False)
    key = "question" if record.get("prompt") is None else "prompt"
    prompt = checked_text(record.get(key), repr(key), where)
    if not prompt.strip():
        raise InputError(f"{where} has an empty {key!r}.")
    choices = record["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise InputError(f"{where} has 'choices' that are not a list of at least two texts.")
    texts = tuple(checked_text(choice, f"choice {i + 1}", where) for i, choice in enumerate(choices))
    if not all(texts):
        raise InputError(f"{where} has an empty text as choice {texts.index('') + 1}.")
    return Question(prompt, texts, _answer(record["answer"], texts, where), instruction, True)


def _answer(answer: Any, choices: tuple[str, ...], where: str) -> int:
    """Return the index of the right choice, which a record names by its text, letter or index."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer in string.ascii_uppercase[: len(choices)]:
        return string.ascii_uppercase.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise InputError(f"{where} has {answer!r} as 'answer', which is no index, text or letter of its choices.")


def checked_text(value: Any, what: str, where: str) -> str:
    """Return `value` where it is a string that can be encoded.

    Args:
        value: Anything that a record holds.
        what: What the value is in the record, for messages, such as "'prompt'".
        where: File and line of the record, for messages.

    Raises:
        InputError: The value is no string, or no valid Unicode.
    """
    if not isinstance(value, str):
        raise InputError(f"{where} has no string as {what}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair.
        raise InputError(f"{where} has a {what} that is not valid Unicode.") from error
    return value
