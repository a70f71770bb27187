"""The first tokens of a long text: always those of the whole, and from little of it where that is shown."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from landscape.data.corpora import builtin_corpus
from landscape.data.prefixes import _LOCAL_PATTERNS, first_token_ids, token_ids
from landscape.data.tokens import load_data


def trained(model, trainer, pre_tokenizer, normalizer=None, post_processor=None):
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(builtin_corpus("builtin:docs", "heldout")[1][:12], trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<|turn of the user|>"])


def bpe(pre_tokenizer, normalizer=None, post_processor=None, alphabet=True):
    initial = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>"], initial_alphabet=initial, show_progress=False)
    return trained(
        models.BPE(unk_token=None if alphabet else "<s>"), trainer, pre_tokenizer, normalizer, post_processor
    )


def split(pattern):
    """What Llama 3 and Qwen have: a pattern, and then bytes."""
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def wordpiece():
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    ends = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    model = models.WordPiece(unk_token="[UNK]")
    return trained(model, trainer, pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(), ends)


LOCAL = {
    "GPT-2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "NFC": lambda: bpe(split(sorted(_LOCAL_PATTERNS, key=len)[-1]), normalizers.NFC()),
    "Qwen": lambda: bpe(split(sorted(_LOCAL_PATTERNS, key=len)[-2])),
    "digits": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
    "WordPiece": wordpiece,
    "Metaspace": lambda: bpe(pre_tokenizers.Metaspace(), alphabet=False),
}
NOT_LOCAL = {
    # The beginning of a text is one piece with its end.
    "no splitter": lambda: bpe(None, normalizers.Replace(" ", "\u2581"), alphabet=False),
    "unknown pattern": lambda: bpe(split(r"[^x]+|x")),
    "unknown normalizer": lambda: bpe(pre_tokenizers.ByteLevel(False), normalizers.Replace("the", "a")),
}
MADE: dict[str, PreTrainedTokenizerFast] = {}


def tokenizer_of(name):
    if name not in MADE:
        MADE[name] = (LOCAL | NOT_LOCAL)[name]()
    return MADE[name]


# Pieces that stand at the edges of what splitters decide: contractions, runs of spaces and newlines, combining marks,
# added tokens with spaces inside, digits, and words without a space.
PIECES = [
    " the", " it's", " we'", "'ll", "  ", "\n", "\n\n ", " \n \n", "\t", " 123456", " 7", "...", " (", "\u0301",
    " e\u0301", "\u00a0", "\u3042\u3044", "<|turn of the user|>", "<|turn", " of the user|>", "<s>",
    " A", " don'", "t", "x" * 40, "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("name", [*LOCAL, *NOT_LOCAL])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_first_tokens_are_those_of_the_whole_text(name, data):
    """Rejects a cut at any place: without the margin, contractions, newlines and added tokens come out differently."""
    tokenizer = tokenizer_of(name)
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    text = "".join(rng.choices(PIECES, k=rng.randint(1, 600), weights=[30] + [rng.random() * 3 for _ in PIECES[1:]]))
    count = rng.choice([1, 2, 5, 17])
    whole = token_ids(tokenizer, text)
    first = first_token_ids(tokenizer, text, count)
    assert first[:count] == whole[:count]
    assert (len(first) > count) == (len(whole) > count), "what is truncated is counted by this"


@pytest.mark.parametrize("name", LOCAL)
def test_of_a_long_text_only_the_beginning_is_tokenized(name):
    text = " ".join(builtin_corpus("builtin:docs", "heldout")[1]).replace("\n", " ")
    whole = token_ids(tokenizer_of(name), text)
    first = first_token_ids(tokenizer_of(name), text, 32)
    assert 32 < len(first) < len(whole) / 20
    assert first[:32] == whole[:32]


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_where_nothing_is_shown_the_whole_text_is_tokenized(name):
    text = " and the dog" * 4000
    assert first_token_ids(tokenizer_of(name), text, 2) == token_ids(tokenizer_of(name), text)


def test_a_class_with_a_call_of_its_own_is_not_trusted():
    class Lower(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            return super().__call__(text.swapcase(), **options)

    tokenizer = Lower(tokenizer_object=tokenizer_of("GPT-2").backend_tokenizer)
    text = " and the dog" * 4000
    assert first_token_ids(tokenizer, text, 2) == token_ids(tokenizer, text)


def test_one_line_of_megabytes_takes_no_time_and_counts_as_truncated(tmp_path):
    """4 MB took 5 s to tokenize; a bound of 1 s is far from the 0.05 s that reading them takes."""
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "the quick brown fox " * 200_000}) + "\n" + json.dumps({"text": "a dog"}))
    tokenizer = tokenizer_of("GPT-2")
    started = time.perf_counter()
    data = load_data(path, tokenizer, max_length=32)
    assert time.perf_counter() - started < 1
    assert data.truncated == 1
    assert data.examples[0].input_ids == tuple(token_ids(tokenizer, "the quick brown fox " * 40)[:32])
