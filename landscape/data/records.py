"""What a record asks: a prompt, the choices that may follow it, the right one, and the instruction it may come with."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

QUESTION_KEYS = ("question", "choices", "answer", "instruction")

Pair = tuple[list[int], list[int]]  # token ids of a context, and of what follows it


@dataclass(frozen=True)
class Question:
    """One record. Without `choices` of its own it is a completion, the only choice."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    instruction: str | None
    multiple_choice: bool


def is_multiple_choice(record: Any) -> bool:
    """Whether a record has `choices` and an `answer`."""
    return isinstance(record, dict) and record.get("choices") is not None and record.get("answer") is not None


def is_question(record: Any) -> bool:
    """Whether a record has choices and an answer, or a prompt and completion with an instruction."""
    completion = isinstance(record, dict) and all(
        record.get(key) is not None for key in ("prompt", "completion", "instruction")
    )
    return completion or is_multiple_choice(record)


def read_question(record: dict, where: str) -> Question:
    """The question in a record.

    `{"prompt" or "question", "choices", "answer"}`, the answer an index from 0, the text of a choice or its letter
    (looked for in this order), or `{"prompt", "completion"}`; either with an `instruction`. Raises InputError naming
    `where` for a record that is neither.
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
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer in string.ascii_uppercase[: len(choices)]:
        return string.ascii_uppercase.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise InputError(f"{where} has {answer!r} as 'answer', which is no index, text or letter of its choices.")


def checked_text(value: Any, what: str, where: str) -> str:
    """`value`, if it is a string that can be encoded; else InputError saying `what` it is of the record `where`."""
    if not isinstance(value, str):
        raise InputError(f"{where} has no string as {what}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise InputError(f"{where} has a {what} that is not valid Unicode.") from error
    return value


# --- tokens -------------------------------------------------------------------------------------------------


def choice_tokens(tokenizer: Tokenizer, prompt: str, choice: str) -> Pair:
    """Token ids of the prompt and of the choice, as lm-evaluation-harness makes them (`TemplateLM._encode_pair`).

    One space parts them where neither has white space there; white space that ends the prompt is the choice's. Prompt
    and choice are one text, tokenized together and cut where the prompt's own tokens end.
    """
    kept = prompt.rstrip()
    gap = prompt[len(kept) :] or ("" if choice[0].isspace() else " ")
    return _cut(tokenizer, kept, gap + choice)


def instructed_tokens(tokenizer: Tokenizer, question: Question, choice: str, where: str) -> Pair:
    """Token ids of the question in its instruction format, and of the choice.

    The instruction stands on a line before the prompt; a tokenizer with a chat template makes the two one turn of the
    user, which the choice answers.
    """
    assert question.instruction is not None
    gap = "" if question.instruction[-1:].isspace() else "\n"
    asked = f"{question.instruction}{gap}{question.prompt}"
    if tokenizer.chat_template is None:
        if question.multiple_choice:
            return choice_tokens(tokenizer, asked, choice)
        return _ids(tokenizer, asked), _ids(tokenizer, choice, add_special_tokens=False)
    try:
        turn = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program, and fails in as many ways
        raise InputError(f"{where} cannot be rendered by the chat template: {first_line(error)}") from error
    if question.multiple_choice:
        return _cut(tokenizer, str(turn), choice, add_special_tokens=False)  # the template has its own
    return tuple(_ids(tokenizer, text, add_special_tokens=False) for text in (str(turn), choice))  # type: ignore


def plain_tokens(tokenizer: Tokenizer, question: Question, choice: str) -> Pair:
    """Token ids of the bare question and of the choice; a completion's as `load_data` makes them."""
    if question.multiple_choice:
        return choice_tokens(tokenizer, question.prompt, choice)
    return _ids(tokenizer, question.prompt), _ids(tokenizer, choice, add_special_tokens=False)


def _cut(tokenizer: Tokenizer, context: str, continuation: str, **options: bool) -> Pair:
    before = _ids(tokenizer, context, **options)
    return before, _ids(tokenizer, context + continuation, **options)[len(before) :]


def _ids(tokenizer: Tokenizer, text: str, **options: bool) -> list[int]:
    return list(tokenizer(text, verbose=False, **options)["input_ids"])
