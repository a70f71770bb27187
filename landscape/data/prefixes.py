"""The first tokens of a long text, from no more of it than they depend on."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_CHARACTERS_PER_TOKEN = 16  # of the first attempt; a text that is no longer is tokenized as a whole
_WORDS = 64  # after a place, more than what decides whether a pre-tokenizer cuts there can span
_WORD_START = re.compile(r" (?=[A-Za-z])")  # which every normalizer below leaves as it is

# These change each character by itself, or with the combining marks after it: a text that is cut before a space is
# normalized to the beginning of what the whole is normalized to.
_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"}
# These find the places where they cut a text from left to right, and look ahead no further than to the end of a run of
# white space and the word after it.
_LOCAL_SPLITTERS = {
    *("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation", "Digits", "CharDelimiterSplit"),
}
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LOCAL_PATTERNS = {_GPT2, _GPT4.replace("DIGITS", "{1,3}"), _GPT4.replace("DIGITS", "")}  # and of Llama 3, and of Qwen


def token_ids(tokenizer: Tokenizer, text: str, **options: bool) -> list[int]:
    """Tokenize `text`, without a warning for what is longer than the model's positions: we cut it ourselves."""
    return list(tokenizer(text, verbose=False, **options)["input_ids"])


def first_token_ids(tokenizer: Tokenizer, text: str, count: int | None, **options: bool) -> list[int]:
    """Return token ids of a text of which the first `count` are right, and as many as the text has up to that.

    A longer text is cut before a space where that changes none of the first tokens. A tokenizer splits a text into
    pieces and makes tokens of each piece alone, so the tokens of pieces that end before a place P are the same for all
    texts that agree far enough beyond P for each splitter to cut alike up to P. That is granted to normalizers and
    splitters that are known to look ahead over a few words at most; with any other the whole text is tokenized.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        count: How many token ids have to be right; None for all.
        **options: Options of the tokenizer's call.

    Returns:
        The token ids of the text, or of a beginning of it; more than `count` where the text has more.
    """
    if count is None or len(text) <= _CHARACTERS_PER_TOKEN * count or not _is_local(tokenizer):
        return token_ids(tokenizer, text, **options)
    longest = max((len(token.content) for token in tokenizer.added_tokens_decoder.values()), default=0)
    size = _CHARACTERS_PER_TOKEN * count
    while 2 * size < len(text):
        start = text.rfind(" ", 0, size)
        starts = [match.start() for match in _WORD_START.finditer(text, max(0, start - size), start + 2)]
        margin = _WORDS + longest  # Each of the words is at least as long as a character of an added token.
        if len(starts) > margin:
            ids = _settled(tokenizer, text[: starts[-1]], starts[-1 - margin], count, options)
            if ids is not None:
                return ids
        size *= 2
    return token_ids(tokenizer, text, **options)


def _settled(tokenizer: Tokenizer, beginning: str, place: int, count: int, options: dict[str, Any]) -> list[int] | None:
    """Return the token ids of a beginning; None unless the pieces of the first `count` tokens end before `place`."""
    encoding = tokenizer(beginning, verbose=False, return_offsets_mapping=True, **options)
    words, ends = encoding.word_ids(), [end for _, end in encoding["offset_mapping"]]
    if len(words) <= count:
        return None
    last = words[count - 1]
    later = (i for i in range(count, len(words)) if words[i] is not None and words[i] != last)
    after = next(islice(later, 1), None)
    return list(encoding["input_ids"]) if after is not None and 0 < ends[after] <= place else None


def _is_local(tokenizer: Any) -> bool:
    """Whether a tokenizer is one whose pieces are known to depend on a few words after them at most."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    own = any(getattr(type(tokenizer), name) is not getattr(PreTrainedTokenizerFast, name) for name in _CALLS)
    backend = tokenizer.backend_tokenizer
    if own or backend.pre_tokenizer is None or getattr(backend.model, "dropout", None):
        return False
    normalizer = _parts(backend.normalizer, "normalizers")
    return all(part["type"] in _LOCAL_NORMALIZERS for part in normalizer) and all(
        _splits_locally(part) for part in _parts(backend.pre_tokenizer, "pretokenizers")
    )


_CALLS = ("__call__", "_encode_plus")  # what a class of tokenizers can replace to change the text first


def _splits_locally(part: dict[str, Any]) -> bool:
    """Whether one splitter, as its own JSON describes it, looks ahead over a few words at most."""
    if part["type"] == "Metaspace":
        return part.get("split", True) is True
    if part["type"] == "Split":
        pattern = part["pattern"]
        return pattern.get("Regex") in _LOCAL_PATTERNS or len(pattern.get("String", "")) == 1
    return part["type"] in _LOCAL_SPLITTERS


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """Return the JSON of a component of `tokenizers`, or of all components in a sequence."""
    if component is None:
        return []
    described = json.loads(component.__getstate__())
    pending, found = [described], []
    while pending:
        part = pending.pop()
        if part["type"] == "Sequence":
            pending += part[key]
        else:
            found.append(part)
    return found
