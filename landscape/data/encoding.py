"""Records and running text as token ids, each with whether a loss is taken on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from landscape.data.chat import assistant_spans
from landscape.data.prefixes import first_token_ids, token_ids
from landscape.data.records import Question, checked_text, is_multiple_choice, read_question
from landscape.data.sources import SHAPES, choose, shuffled
from landscape.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Pair = tuple[list[int], list[int]]  # token ids of a context, and of what follows it


class Encoded(NamedTuple):
    """Token ids, and for each of them whether a loss is taken on it."""

    ids: list[int]
    supervised: list[bool]


# --- records ------------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: Any) -> None:
    """Raise InputError, naming the right call, where something else was given as the tokenizer."""
    if isinstance(tokenizer, (str, Path)):
        raise InputError(
            f"the tokenizer is the path {str(tokenizer)!r}; give load_checkpoint({str(tokenizer)!r}).tokenizer, or "
            f"transformers.AutoTokenizer.from_pretrained({str(tokenizer)!r})."
        )
    if hasattr(tokenizer, "files") and hasattr(tokenizer, "model"):
        raise InputError("the tokenizer is a Checkpoint; give its .tokenizer.")
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token_id"):
        raise InputError(f"the tokenizer is a {type(tokenizer).__name__}, not a tokenizer of transformers.")


def encode_record(
    tokenizer: Tokenizer, record: Any, where: str, eos: list[int], max_length: int | None = None
) -> Encoded:
    """Encode one record: a chat, a question, a prompt with its completion, or a text (looked for in this order).

    Args:
        tokenizer: A transformers tokenizer.
        record: The record as it was read, a mapping; values that are None count as absent.
        where: File and line of the record, for messages.
        eos: Token ids that end a text or a completion, with a loss on them; empty for none.
        max_length: So many tokens will be kept, so that of a longer text no more than its beginning need be tokenized;
            None wants all of them.

    Returns:
        Token ids, with a loss on assistant turns, the right choice, the completion or all of the text.

    Raises:
        InputError: The record has none of these shapes, or a value of it is not what it has to be.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object.")
    record = {key: value for key, value in record.items() if value is not None}  # Tables fill gaps with null.
    if "messages" in record:
        return _encode_messages(tokenizer, record["messages"], where)
    if is_multiple_choice(record):
        question = read_question(record, where)
        prompt, right = plain_tokens(tokenizer, question, question.choices[question.answer])
        return Encoded(prompt + right, [False] * len(prompt) + [True] * len(right))
    if "prompt" in record and "completion" in record:
        prompt = first_token_ids(tokenizer, _string(record, "prompt", where), max_length)
        completion = first_token_ids(
            tokenizer, _string(record, "completion", where), max_length, add_special_tokens=False
        )
        completion += eos
        return Encoded(prompt + completion, [False] * len(prompt) + [True] * len(completion))
    if "text" in record:
        ids = first_token_ids(tokenizer, _string(record, "text", where), max_length) + eos
        return Encoded(ids, [True] * len(ids))
    raise InputError(f"{where} is none of {SHAPES}.")


def _string(record: dict, key: str, where: str) -> str:
    """Return the text that `record` has under `key`; raise InputError where it is none."""
    return checked_text(record.get(key), repr(key), where)


def _encode_messages(tokenizer: Tokenizer, messages: Any, where: str) -> Encoded:
    """Encode a chat with the tokenizer's template, with a loss on the turns of the assistant."""
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
    supervised = [any(first <= start < end for first, end in spans) for start, _ in encoding["offset_mapping"]]
    return Encoded(list(encoding["input_ids"]), supervised)


# --- running text -------------------------------------------------------------------------------------------


def encode_windows(
    tokenizer: Tokenizer, pieces: list[str], max_length: int, limit: int | None, seed: int
) -> list[Encoded]:
    """Encode running text as consecutive windows of each piece's tokens, in order, with a loss on all tokens.

    Args:
        tokenizer: A transformers tokenizer.
        pieces: Texts; no window reaches from one into the next.
        max_length: Tokens per window. The last window of a piece may be shorter; one of a single token is left out,
            because nothing in it can be predicted.
        limit: Maximum number of windows, drawn out of whole pieces that are drawn until there are enough.
        seed: Seed of both draws.
    """
    windows: list[tuple[int, int, list[int]]] = []
    for piece in range(len(pieces)) if limit is None else shuffled(len(pieces), seed):
        ids = token_ids(tokenizer, pieces[piece])
        starts = range(0, len(ids) - 1, max_length)
        windows += [(piece, start, ids[start : start + max_length]) for start in starts]
        if limit is not None and len(windows) >= limit:
            break
    chosen = sorted(windows[index] for index in choose(len(windows), limit, seed))
    return [Encoded(ids, [True] * len(ids)) for _, _, ids in chosen]


# --- questions ----------------------------------------------------------------------------------------------


def choice_tokens(tokenizer: Tokenizer, prompt: str, choice: str) -> Pair:
    """Return the token ids of the prompt and of the choice as lm-evaluation-harness makes them.

    One space parts the two where neither has white space there; white space that ends the prompt is counted to the
    choice. Prompt and choice are one text, tokenized together and cut where the prompt's own tokens end.

    Source:
        EleutherAI lm-evaluation-harness, `TemplateLM._encode_pair`.
    """
    kept = prompt.rstrip()
    gap = prompt[len(kept) :] or ("" if choice[0].isspace() else " ")
    return _cut(tokenizer, kept, gap + choice)


def instructed_tokens(tokenizer: Tokenizer, question: Question, choice: str, where: str) -> Pair:
    """Return the token ids of the question in its instruction format, and of the choice.

    The instruction stands on a line before the prompt. Where the tokenizer has a chat template, the two make one turn
    of the user, which the choice answers.

    Raises:
        InputError: The chat template cannot render the turn; the message names `where`.
    """
    assert question.instruction is not None
    gap = "" if question.instruction[-1:].isspace() else "\n"
    asked = f"{question.instruction}{gap}{question.prompt}"
    if tokenizer.chat_template is not None:
        return chat_tokens(tokenizer, asked, question, choice, where)
    if question.multiple_choice:
        return choice_tokens(tokenizer, asked, choice)
    return token_ids(tokenizer, asked), token_ids(tokenizer, choice, add_special_tokens=False)


def chat_tokens(tokenizer: Tokenizer, asked: str, question: Question, choice: str, where: str) -> Pair:
    """Return the token ids of a turn of the user who asks, up to where the assistant answers, and of the choice.

    These are the tokens of lm-evaluation-harness with `--apply_chat_template`: no space parts the template from the
    choice, and no special token is added to the template's own.

    Raises:
        InputError: The chat template cannot render the turn; the message names `where`.
    """
    try:
        turn = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # A template is a program, and fails in as many ways.
        raise InputError(f"{where} cannot be rendered by the chat template: {first_line(error)}") from error
    if question.multiple_choice:
        return _cut(tokenizer, str(turn), choice, add_special_tokens=False)  # The template has its own.
    return tuple(token_ids(tokenizer, text, add_special_tokens=False) for text in (str(turn), choice))  # type: ignore


def plain_tokens(tokenizer: Tokenizer, question: Question, choice: str) -> Pair:
    """Return the token ids of the bare question and of the choice; those of a completion are as in `load_data`."""
    if question.multiple_choice:
        return choice_tokens(tokenizer, question.prompt, choice)
    return token_ids(tokenizer, question.prompt), token_ids(tokenizer, choice, add_special_tokens=False)


def _cut(tokenizer: Tokenizer, context: str, continuation: str, **options: bool) -> Pair:
    """Tokenize both as one text, and cut it where the tokens of the context alone end."""
    before = token_ids(tokenizer, context, **options)
    return before, token_ids(tokenizer, context + continuation, **options)[len(before) :]
