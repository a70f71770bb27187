"""Which part of a rendered chat the assistant says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

Spans = list[tuple[int, int]]  # of characters: first, and one past the last


def assistant_spans(tokenizer: Tokenizer, messages: list[dict], where: str) -> tuple[str, Spans]:
    """Render a chat, and find the spans of the text that the assistant says.

    Where the template has `{% generation %}` marks, the spans are what the marks enclose. (The token mask that
    transformers makes of them, `return_assistant_tokens_mask`, loses the end of a character of several tokens, and
    runs on over the following turns where a span ends in characters without a token: transformers issue 47325.)
    Without marks, the span of a turn is what the turn adds to the generation prompt of the turns before it.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The turns, each with "role" and "content".
        where: File and line of the record, for messages.

    Returns:
        The text, and pairs of the first character of a span and the one after its last.

    Raises:
        InputError: The tokenizer has no chat template, the template fails, or it does not show what the assistant says.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(f"{where} is a chat, but the tokenizer has no (default) chat template.") from error
    if not isinstance(template, str):
        raise InputError(f"{where} is a chat, but the tokenizer's chat template is {template!r}, not a text.")
    if _GENERATION_MARK.search(template):
        text, spans = _render(tokenizer, template, messages, where, return_assistant_tokens_mask=True)
        if not spans:
            raise InputError(f"{where}: the chat template's {{% generation %}} marks enclose nothing.")
        return text, spans

    text, spans = _render(tokenizer, template, messages, where)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, _ = _render(tokenizer, template, messages[:index], where, add_generation_prompt=True)
            through, _ = _render(tokenizer, template, messages[: index + 1], where)
            if not (text.startswith(before) and text.startswith(through) and len(before) <= len(through)):
                raise InputError(
                    f"{where}: the chat template rewrites earlier turns, so it needs {{% generation %}} "
                    "marks to say what is the assistant's."
                )
            spans.append((len(before), len(through)))
    return text, spans


def _render(
    tokenizer: Tokenizer, template: str, messages: list[dict], where: str, **options: bool
) -> tuple[str, Spans]:
    """Return what `apply_chat_template(tokenize=False)` renders, and the spans in generation marks if asked for."""
    from transformers.utils.chat_template_utils import render_jinja_template

    settings: dict[str, Any] = {"conversations": [messages], "chat_template": template, **options}
    try:
        rendered: Any = render_jinja_template(**(tokenizer.special_tokens_map | settings))
    except Exception as error:  # A template is a program, and fails in as many ways.
        raise InputError(f"{where} cannot be rendered by the chat template: {first_line(error)}") from error
    texts, spans = rendered
    return texts[0], spans[0] if spans else []
