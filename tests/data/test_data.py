"""Texts and records become exactly the batches that were asked for, or a sentence that says why not."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import VOCABULARY, build_model, make_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from landscape.data import corpora, sources
from landscape.data.tokens import IGNORED, Example, TokenData, check_vocabulary, load_data
from landscape.errors import InputError, MeasurementWarning

SEVERAL_KINDS = "ignore:.*holds records of .* kinds:landscape.errors.MeasurementWarning"
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "Question: what is two plus two? Answer: four"] * 4
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
UNMARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWRITING = {
    "shows the reasoning of the last turn only": UNMARKED.replace(
        "{{ m.content }}", "{% if loop.last %}thinking {% endif %}{{ m.content }}"
    ),
    "closes the last answer only": UNMARKED.replace(
        "<|end|>", "{% if loop.last or m.role == 'user' %}<|end|>{% endif %}"
    ),
    "prompts with more than a turn": UNMARKED.replace("|>{% endif", "|>four<|end|><|user|>{% endif"),
}
CHAT = [
    {"role": "user", "content": "what is two plus two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "the quick brown"},
    {"role": "assistant", "content": "fox jumps over"},
]


def byte_tokenizer(*, bos: bool = False, chat_template: str | None = None, **special: str) -> Any:
    """A byte-level BPE tokenizer, trained on two sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)
    wrapped.chat_template = chat_template
    return wrapped


def word_tokenizer(chat_template: str) -> Any:
    """A tokenizer of words, which has no token for white space."""
    words = {"[UNK]": 0, "<|user|>": 1, "<|assistant|>": 2, "hello": 3, "there": 4, "again": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|user|>", "<|assistant|>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    wrapped.chat_template = chat_template
    return wrapped


class CharacterTokenizer(PreTrainedTokenizer):
    """A slow tokenizer: one token a character, no offsets."""

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def full_tokenizer() -> Any:
    """Adds BOS by itself, knows an EOS, pads with <|end|>."""
    return byte_tokenizer(bos=True, bos_token="<s>", eos_token="</s>", pad_token="<|end|>")


@pytest.fixture(scope="module")
def chat_tokenizers() -> dict[str, Any]:
    """Both would add a BOS token to plain text; a rendered chat gets what its template says and no more."""
    templates = {"marked": MARKED, "unmarked": UNMARKED}
    return {kind: byte_tokenizer(bos=True, chat_template=template) for kind, template in templates.items()}


def write_records(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def supervised_ids(example: Example) -> list[int]:
    return [label for label in example.labels[1:] if label != IGNORED]


def supervised_text(tokenizer: Any, example: Example) -> str:
    return tokenizer.decode(supervised_ids(example), clean_up_tokenization_spaces=False)


def refusal(source: Any, tokenizer: Any, **options: Any) -> str:
    """The one sentence that `load_data` refuses with."""
    with pytest.raises(InputError) as caught:
        load_data(source, tokenizer, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# --- padding ------------------------------------------------------------------------------------------------


def test_padding_is_the_tokenizers_own_or_zero(tmp_path: Path, tokenizer: Any, full_tokenizer: Any) -> None:
    path = write_records(tmp_path / "two.jsonl", {"text": "the quick brown fox"}, {"text": "dog"})
    padded = next(iter(load_data(path, full_tokenizer)))["input_ids"]
    assert full_tokenizer.pad_token_id != 0
    assert padded[1, -1] == full_tokenizer.pad_token_id
    assert next(iter(load_data(path, tokenizer)))["input_ids"][1, -1] == 0


@pytest.mark.filterwarnings(SEVERAL_KINDS)
def test_description_is_one_line_with_the_counts(tmp_path: Path, tokenizer: Any) -> None:
    long, unsupervised = {"text": "fox " * 40}, {"prompt": "the dog", "completion": ""}
    path = write_records(tmp_path / "tasks.jsonl", long, unsupervised, {"text": "the dog"})
    data = load_data(path, tokenizer, max_length=8)
    assert (data.truncated, data.dropped, len(data.examples)) == (1, 1, 2)
    assert data.describe() == f"{path}: 2 examples, {data.tokens} supervised tokens, 1 truncated, 1 dropped"


# --- records ------------------------------------------------------------------------------------------------


def test_text_is_supervised_everywhere_but_at_position_0(tmp_path: Path, full_tokenizer: Any) -> None:
    path = write_records(tmp_path / "a.jsonl", {"text": "the quick brown fox", "id": 3})
    (example,) = load_data(path, full_tokenizer).examples
    assert list(example.input_ids) == full_tokenizer("the quick brown fox")["input_ids"]
    assert example.input_ids[0] == full_tokenizer.bos_token_id
    assert example.labels == (IGNORED, *example.input_ids[1:])
    assert supervised_text(full_tokenizer, example) == "the quick brown fox"


@settings(max_examples=30, deadline=None)
@given(prompt=st.text(), completion=st.text(min_size=1))
def test_supervised_tokens_of_a_completion_decode_to_it(
    tmp_path_factory: pytest.TempPathFactory, full_tokenizer: Any, prompt: str, completion: str
) -> None:
    record = {"prompt": prompt, "completion": completion}
    path = write_records(tmp_path_factory.mktemp("records") / "a.jsonl", record)
    (example,) = load_data(path, full_tokenizer, max_length=10_000).examples
    assert supervised_text(full_tokenizer, example) == completion
    expected = full_tokenizer(prompt)["input_ids"]
    expected += full_tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert list(example.input_ids) == expected


@pytest.mark.filterwarnings(SEVERAL_KINDS)
def test_eos_is_appended_and_supervised_only_on_request(tmp_path: Path, full_tokenizer: Any) -> None:
    path = write_records(tmp_path / "a.jsonl", {"prompt": "what?", "completion": "four"}, {"text": "the dog"})
    for example in load_data(path, full_tokenizer).examples:
        assert full_tokenizer.eos_token_id not in example.input_ids
    for example in load_data(path, full_tokenizer, append_eos=True).examples:
        assert example.input_ids[-1] == example.labels[-1] == full_tokenizer.eos_token_id
        assert example.input_ids.count(full_tokenizer.eos_token_id) == 1


def test_long_records_lose_their_end_and_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    length = len(tokenizer(text)["input_ids"])
    path = write_records(tmp_path / "a.jsonl", {"text": text})
    whole = load_data(path, tokenizer, max_length=length)
    cut = load_data(path, tokenizer, max_length=length - 1)
    assert (whole.truncated, cut.truncated) == (0, 1)
    assert cut.examples[0].input_ids == whole.examples[0].input_ids[:-1]
    assert cut.examples[0].labels == whole.examples[0].labels[:-1]


@pytest.mark.filterwarnings(SEVERAL_KINDS)
def test_an_example_whose_only_label_is_at_position_0_is_dropped(tmp_path: Path, tokenizer: Any) -> None:
    one_token, kept = {"prompt": "", "completion": "a"}, {"prompt": "a", "completion": "b"}
    path = write_records(tmp_path / "a.jsonl", one_token, kept, {"text": ""})
    data = load_data(path, tokenizer)
    assert (len(data.examples), data.dropped, data.tokens) == (1, 2, 1)


@pytest.mark.filterwarnings(SEVERAL_KINDS)
def test_messages_come_before_completions_and_these_before_text(
    tmp_path: Path, chat_tokenizers: dict[str, Any]
) -> None:
    tokenizer = chat_tokenizers["marked"]
    pair = {"prompt": "what?", "completion": "four", "text": "the dog"}
    path = write_records(tmp_path / "a.jsonl", pair, pair | {"messages": CHAT})
    first, second = load_data(path, tokenizer).examples
    assert supervised_text(tokenizer, first) == "four"
    assert supervised_text(tokenizer, second) == "four<|end|>fox jumps over<|end|>"


def test_blank_lines_crlf_and_a_byte_order_mark_do_not_matter(tmp_path: Path, tokenizer: Any) -> None:
    plain = write_records(tmp_path / "plain.jsonl", {"text": "the dog"}, {"text": "the fox"})
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes(b'\xef\xbb\xbf{"text": "the dog"}\r\n\r\n   \n{"text": "the fox"}')
    assert load_data(odd, tokenizer).digest == load_data(plain, tokenizer).digest


# --- chats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["marked", "unmarked"])
@settings(max_examples=30, deadline=None)
@given(contents=st.lists(st.text() | st.sampled_from(["four 😀", "😀", " ", "\n"]), min_size=2, max_size=5))
def test_supervised_tokens_of_a_chat_decode_to_what_the_assistant_said(
    tmp_path_factory: pytest.TempPathFactory, chat_tokenizers: dict[str, Any], kind: str, contents: list[str]
) -> None:
    tokenizer = chat_tokenizers[kind]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    path = write_records(tmp_path_factory.mktemp("chat") / "a.jsonl", {"messages": messages})
    (example,) = load_data(path, tokenizer, max_length=10_000).examples
    said = "".join(m["content"] + "<|end|>" for m in messages if m["role"] == "assistant")
    assert supervised_text(tokenizer, example) == said
    assert list(example.input_ids) == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]


def test_marked_and_unmarked_templates_supervise_the_same_tokens(
    tmp_path: Path, chat_tokenizers: dict[str, Any]
) -> None:
    path = write_records(tmp_path / "a.jsonl", {"messages": CHAT})
    marked, unmarked = (load_data(path, chat_tokenizers[kind]) for kind in ("marked", "unmarked"))
    assert marked.digest == unmarked.digest
    apply = chat_tokenizers["marked"].apply_chat_template
    mask = apply(CHAT, return_assistant_tokens_mask=True, return_dict=True)["assistant_masks"]
    (example,) = marked.examples
    assert [label != IGNORED for label in example.labels] == [bool(on) for on in mask]


def test_a_turn_that_ends_within_a_character_of_several_tokens_is_supervised_to_its_last_byte(
    tmp_path: Path,
) -> None:
    template = MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
    tokenizer = byte_tokenizer(chat_template=template)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "four 😀"}]
    path = write_records(tmp_path / "a.jsonl", {"messages": chat})
    (example,) = load_data(path, tokenizer).examples
    assert supervised_text(tokenizer, example) == "four 😀"


def test_a_turn_that_ends_in_characters_without_a_token_does_not_reach_into_the_next(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|> {% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }} {% endgeneration %}{% else %}{{ m.content }} {% endif %}{% endfor %}"
    )
    chat = [("user", "hello"), ("assistant", "there again"), ("user", "hello again"), ("assistant", "hello")]
    messages = [{"role": role, "content": content} for role, content in chat]
    (example,) = load_data(write_records(tmp_path / "a.jsonl", {"messages": messages}), tokenizer).examples
    assert tokenizer.convert_ids_to_tokens(supervised_ids(example)) == ["there", "again", "hello"]


def test_an_assistant_may_speak_first(tmp_path: Path, chat_tokenizers: dict[str, Any]) -> None:
    chat = [{"role": "assistant", "content": "the quick brown"}, {"role": "user", "content": "dog"}]
    path = write_records(tmp_path / "a.jsonl", {"messages": chat})
    for tokenizer in chat_tokenizers.values():
        (example,) = load_data(path, tokenizer).examples
        assert supervised_text(tokenizer, example) == "the quick brown<|end|>"


@pytest.mark.parametrize("template", REWRITING.values(), ids=REWRITING.keys())
def test_a_template_that_rewrites_earlier_turns_needs_marks(tmp_path: Path, template: str) -> None:
    path = write_records(tmp_path / "a.jsonl", {"text": "fox"}, {"messages": CHAT[:3]})
    message = refusal(path, byte_tokenizer(chat_template=template))
    assert "a.jsonl line 2" in message
    assert "rewrites earlier turns" in message
    assert "{% generation %}" in message


def test_a_turn_without_an_end_token_is_supervised_to_its_last_character(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "four?!"}]
    path = write_records(tmp_path / "a.jsonl", {"messages": [*chat, *chat]})
    for template in (MARKED, UNMARKED):
        tokenizer = byte_tokenizer(chat_template=template.replace("<|end|>", ""))
        (example,) = load_data(path, tokenizer).examples
        assert supervised_text(tokenizer, example) == "four?!four?!"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no (default) chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "cannot be rendered"),
        ("{{ 1 / 0 }}", "cannot be rendered by the chat template: division by zero"),
        (5, "chat template is 5, not a text"),
        ("{% if false %}{% generation %}{% endgeneration %}{% endif %}fox", "enclose nothing"),
    ],
)
def test_a_template_that_cannot_say_what_the_assistant_said_is_refused(
    tmp_path: Path, template: Any, words: str
) -> None:
    path = write_records(tmp_path / "a.jsonl", {"text": "fox"}, {"messages": CHAT})
    message = refusal(path, byte_tokenizer(chat_template=template))
    assert "a.jsonl line 2" in message
    assert words in message


def test_a_chat_needs_a_tokenizer_with_offsets_and_text_does_not(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer()
    tokenizer.chat_template = UNMARKED
    assert load_data(write_records(tmp_path / "text.jsonl", {"text": "fox"}), tokenizer).tokens == 2
    message = refusal(write_records(tmp_path / "chat.jsonl", {"messages": CHAT}), tokenizer)
    assert "chat.jsonl line 1" in message
    assert "fast tokenizer" in message


# --- running text -------------------------------------------------------------------------------------------


def test_windows_of_a_text_lose_nothing(tmp_path: Path, full_tokenizer: Any) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(CORPUS) + "\n", encoding="utf-8")
    ids = full_tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
    for max_length in (5, 7, len(ids) - 1, len(ids), len(ids) + 1):
        data = load_data(path, full_tokenizer, max_length=max_length)
        joined = [i for example in data.examples for i in example.input_ids]
        assert joined == (ids[:-1] if len(ids) % max_length == 1 else ids)
        assert {len(e.input_ids) for e in data.examples[:-1]} <= {max_length}
        assert (data.truncated, data.dropped) == (0, 0)
        assert all(e.labels == (IGNORED, *e.input_ids[1:]) for e in data.examples)


def test_long_texts_cause_no_warning_of_the_tokenizer(tmp_path: Path) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.WARNING)  # the command line, tested in this process too, silences it
    logger.addHandler(handler)
    try:
        tokenizer = byte_tokenizer(chat_template=UNMARKED)  # model_max_length is 64
        (tmp_path / "book.txt").write_text("fox " * 200, encoding="utf-8")
        chat = [{"role": "user", "content": "fox " * 200}, {"role": "assistant", "content": "dog"}]
        load_data(tmp_path / "book.txt", tokenizer)
        load_data(write_records(tmp_path / "a.jsonl", {"text": "fox " * 200}), tokenizer)
        load_data(write_records(tmp_path / "b.jsonl", {"messages": chat}), tokenizer)
        assert records == []
        tokenizer("fox " * 200)
        assert len(records) == 1  # so it would have been heard
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("name", ["docs", "code"])
def test_no_paragraph_is_in_both_parts_of_a_built_in_corpus(name: str) -> None:
    paragraphs = {}
    for part in ("train", "heldout"):
        source, pieces = corpora.builtin_corpus(f"builtin:{name}@{part}", "ignored")
        assert source == f"builtin:{name}@{part}"
        paragraphs[part] = [p.strip() for piece in pieces for p in re.split(r"\n\n+", piece) if p.strip()]
        assert len(paragraphs[part]) == len(set(paragraphs[part])) > 50
    assert set(paragraphs["train"]).isdisjoint(paragraphs["heldout"])
    total = {part: sum(map(len, found)) for part, found in paragraphs.items()}
    assert 0.03 < total["heldout"] / sum(total.values()) < 0.2
    assert sum(total.values()) > 300_000


@given(st.lists(st.text(alphabet="ab \n", max_size=40), max_size=5))
def test_pieces_are_the_documents_less_their_repetitions(documents: list[str]) -> None:
    documents = [f"{number} {document}" for number, document in enumerate(documents)]
    kept = " ".join(corpora._pieces(documents)).split()
    assert len(corpora._pieces(documents)) == len(documents)
    assert set(kept) == {word for document in documents for word in document.split()}
    assert corpora._pieces(documents + documents) == corpora._pieces(documents)


def test_pieces_end_at_blank_lines_at_about_4000_characters() -> None:
    paragraphs = [f"{i} " + "word " * 100 + "\n\n" for i in range(40)]
    pieces = corpora._pieces(["".join(paragraphs)])
    assert "".join(pieces) == "".join(paragraphs)
    assert all(3000 < len(piece) <= 4000 for piece in pieces[:-1])
    assert all(piece.endswith("\n\n") for piece in pieces)


def test_a_built_in_source_takes_its_part_from_its_suffix_or_else_the_argument(tokenizer: Any) -> None:
    held_out = load_data("builtin:docs", tokenizer, limit=5)
    assert held_out.source == "builtin:docs@heldout"
    train = load_data("builtin:docs", tokenizer, limit=5, part="train")
    assert train.source == "builtin:docs@train"
    assert load_data("builtin:docs@train", tokenizer, limit=5, part="heldout").digest == train.digest
    assert train.digest != held_out.digest


def test_built_in_code_is_python_without_its_tests(tokenizer: Any) -> None:
    data = load_data("builtin:code", tokenizer, limit=20, max_length=64)
    assert len(data.examples) == 20
    documents = corpora._standard_library()
    assert sum(map(len, documents)) > 3_000_000
    assert any("class JSONDecoder" in document for document in documents)
    assert not any("class Test_TestCase(" in document for document in documents)


# --- limit --------------------------------------------------------------------------------------------------


def limited_sources(folder: Path) -> list[str]:
    write_records(folder / "a.jsonl", *({"text": f"the fox {i}"} for i in range(50)))
    (folder / "a.txt").write_text(" ".join(f"fox {i}" for i in range(300)), encoding="utf-8")
    table = pyarrow.table({"text": [f"the dog {i}" for i in range(50)]})
    parquet.write_table(table, folder / "a.parquet")
    return [str(folder / "a.jsonl"), str(folder / "a.txt"), str(folder / "a.parquet"), "builtin:docs"]


def test_a_limit_draws_examples_in_source_order_and_by_seed_alone(tmp_path: Path, tokenizer: Any) -> None:
    for source in limited_sources(tmp_path):
        everything = load_data(source, tokenizer, max_length=16).examples
        some = load_data(source, tokenizer, max_length=16, limit=8, seed=3)
        positions = [everything.index(example) for example in some.examples]
        assert len(positions) == 8
        assert positions == sorted(set(positions))
        assert positions != list(range(8))
        again = load_data(source, tokenizer, max_length=16, limit=8, seed=3, batch_tokens=20)
        assert again.digest == some.digest
        assert load_data(source, tokenizer, max_length=16, limit=8, seed=4).digest != some.digest


def test_a_limit_beyond_the_data_takes_all_of_it(tmp_path: Path, tokenizer: Any) -> None:
    for source in limited_sources(tmp_path):
        everything = load_data(source, tokenizer, max_length=16)
        assert load_data(source, tokenizer, max_length=16, limit=10**6, seed=5).digest == everything.digest


def test_a_smaller_limit_draws_a_subset_of_the_records(tmp_path: Path, tokenizer: Any) -> None:
    source = limited_sources(tmp_path)[0]
    small, large = (set(load_data(source, tokenizer, limit=limit).examples) for limit in (5, 20))
    assert small < large


def test_records_that_are_not_drawn_are_not_read(tmp_path: Path, tokenizer: Any) -> None:
    path = write_records(tmp_path / "a.jsonl", *({"text": f"the fox {i}"} for i in range(20)), {"broken": 1})
    assert refusal(path, tokenizer).startswith(f"{path} line 21")
    drawn = [seed for seed in range(20) if 20 not in sources.choose(21, 3, seed)]
    assert len(load_data(path, tokenizer, limit=3, seed=drawn[0]).examples) == 3


# --- tables and data sets -----------------------------------------------------------------------------------

RECORDS = [
    {"text": "the dog", "prompt": None, "completion": None, "messages": None, "id": 1},
    {"text": None, "prompt": "what?", "completion": "four", "messages": None, "id": 2},
    {"text": None, "prompt": None, "completion": None, "messages": CHAT, "id": 3},
]


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_records(folder / "train.jsonl", *RECORDS)
    write_records(folder / "test.jsonl", {"text": "the fox"}, {"text": "the dog"})
    return folder


@pytest.mark.filterwarnings(SEVERAL_KINDS)
def test_parquet_reads_as_json_lines_do(tmp_path: Path, chat_tokenizers: dict[str, Any]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    lines = load_data(write_records(tmp_path / "a.jsonl", *RECORDS), chat_tokenizers["marked"])
    table = load_data(tmp_path / "a.parquet", chat_tokenizers["marked"])
    assert len(table.examples) == 3
    assert table.digest == lines.digest


@pytest.mark.filterwarnings(SEVERAL_KINDS)
def test_a_data_set_reads_as_json_lines_do(dataset_folder: Path, chat_tokenizers: dict[str, Any]) -> None:
    tokenizer = chat_tokenizers["unmarked"]
    lines = load_data(dataset_folder / "train.jsonl", tokenizer)
    folder = load_data(dataset_folder, tokenizer)
    assert folder.digest == lines.digest
    assert folder.source == f"{dataset_folder}@train"
    test = load_data(f"{dataset_folder}:default@test", tokenizer)
    assert test.digest == load_data(dataset_folder / "test.jsonl", tokenizer).digest
    assert len(load_data(f"{dataset_folder}@test[:1]", tokenizer).examples) == 1


def test_a_data_set_without_the_asked_split_is_refused(dataset_folder: Path, tokenizer: Any) -> None:
    message = refusal(f"{dataset_folder}@validation", tokenizer)
    assert f"{dataset_folder}@validation" in message
    assert "train" in message  # the library's own words say which there are


def test_a_bad_row_is_named(tmp_path: Path, tokenizer: Any) -> None:
    table = pyarrow.table({"prompt": ["what?", "why?"], "completion": ["four", None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert "a.parquet row 2 is none of" in refusal(tmp_path / "a.parquet", tokenizer)
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "b.parquet")
    assert "b.parquet row 1 has no string as 'text'" in refusal(tmp_path / "b.parquet", tokenizer)


def test_a_table_without_known_columns_is_refused_by_what_it_has(tmp_path: Path, tokenizer: Any) -> None:
    parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet", tokenizer)
    assert "a.parquet has columns question, answer" in message


def test_empty_and_damaged_parquet_files_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert "a.parquet is empty" in refusal(tmp_path / "a.parquet", tokenizer)
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    assert "b.parquet cannot be read as parquet" in refusal(tmp_path / "b.parquet", tokenizer)


def test_a_missing_package_is_named_with_the_way_to_install_it(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.write_table(pyarrow.table({"text": ["the fox"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path / "a.parquet", tmp_path, "someone/something"):
        message = refusal(source, tokenizer)
        assert str(source) in message
        assert "pip install 'landscape-lm[train]'" in message


def test_an_unreachable_hub_is_reported_at_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    started = time.monotonic()
    message = refusal("someone/something:config@test", tokenizer)
    assert time.monotonic() - started < 10
    assert "'someone/something'" in message
    assert "cannot be reached" in message


def test_offline_by_choice_a_data_set_that_is_not_cached_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert "someone/something cannot be loaded" in refusal("someone/something", tokenizer)


# --- refusals -----------------------------------------------------------------------------------------------

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "malformed": (b'{"text": "the', "not valid JSON"),
    "too deep": (b"[" * 200_000, "not valid JSON"),
    "not UTF-8": (b'{"text": "\xff"}', "not valid UTF-8"),
    "an array": (b'["text"]', "not a JSON object"),
    "a string": (b'"text"', "not a JSON object"),
    "unknown shape": (b'{"question": "a", "answer": "b"}', 'none of {"text"}'),
    "prompt alone": (b'{"prompt": "a"}', 'none of {"text"}'),
    "null text": (b'{"text": null}', 'none of {"text"}'),
    "number": (b'{"text": 3}', "no string as 'text'"),
    "list as prompt": (b'{"prompt": ["a"], "completion": "b"}', "no string as 'prompt'"),
    "number as completion": (b'{"prompt": "a", "completion": 4}', "no string as 'completion'"),
    "half a surrogate pair": (b'{"text": "a\\ud83d"}', "not valid Unicode"),
    "messages in a string": (b'{"messages": "hello"}', "not a list of objects"),
    "messages of strings": (b'{"messages": ["hello"]}', "not a list of objects"),
    "message without role": (b'{"messages": [{"content": "a"}]}', "no string as 'role'"),
    "message without content": (b'{"messages": [{"role": "assistant"}]}', "no string as 'content'"),
    "content in parts": (b'{"messages": [{"role": "user", "content": [{}]}]}', "no string as 'content'"),
    "no assistant": (b'{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn"),
    "no message": (b'{"messages": []}', "no assistant turn"),
}


@pytest.mark.parametrize("line, words", BAD_LINES.values(), ids=BAD_LINES.keys())  # noqa: PT006
def test_a_bad_line_is_named(tmp_path: Path, chat_tokenizers: dict, line: bytes, words: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b'{"text": "the fox"}\n\n' + line + b'\n{"text": "the dog"}\n')
    message = refusal(path, chat_tokenizers["marked"])
    assert f"{path} line 3 " in message
    assert words in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, tokenizer: Any, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert f"{name} is empty" in refusal(tmp_path / name, tokenizer)


def test_a_text_that_is_not_utf8_is_refused_at_its_byte(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert "a.txt is not valid UTF-8 at byte 3" in refusal(tmp_path / "a.txt", tokenizer)


def test_data_without_a_supervised_token_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = write_records(tmp_path / "a.jsonl", {"prompt": "the quick brown fox", "completion": " jumps"})
    assert load_data(path, tokenizer).tokens > 0
    assert "a.jsonl has no supervised token within max_length=3" in refusal(path, tokenizer, max_length=3)
    (tmp_path / "a.txt").write_text("the fox", encoding="utf-8")
    assert "no supervised token" in refusal(tmp_path / "a.txt", tokenizer, max_length=1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.json", "a.csv", "sub/A.JSONL"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, tokenizer: Any, name: str) -> None:
    assert f"there is no file {tmp_path / name}" in refusal(tmp_path / name, tokenizer)


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl.gz", "a"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, tokenizer: Any, name: str) -> None:
    (tmp_path / name).write_text('{"text": "a b"}', encoding="utf-8")
    assert f"{tmp_path / name} is not a .jsonl, .txt or .parquet file" in refusal(tmp_path / name, tokenizer)


@pytest.mark.parametrize("source", ["", "@train", "./nowhere", "/nowhere/at/all", "../nowhere@test"])
def test_a_path_that_is_not_there_is_refused_without_asking_a_server(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(sources, "_check_hub_answers", lambda _: pytest.fail("asked a server"))
    assert f"no file or folder {source!r}" in refusal(source, tokenizer)


@pytest.mark.parametrize("source", ["builtin:poems", "builtin:", "builtin:docs@test", "builtin:code@train@"])
def test_an_unknown_built_in_source_is_refused_with_those_there_are(tokenizer: Any, source: str) -> None:
    message = refusal(source, tokenizer)
    assert "docs and code" in message
    assert "@train and @heldout" in message


def test_an_unknown_part_is_refused(tokenizer: Any) -> None:
    assert "builtin:docs@validation" in refusal("builtin:docs", tokenizer, part="validation")


@pytest.mark.parametrize("option", ["max_length", "batch_tokens", "limit"])
@pytest.mark.parametrize("value", [0, -1])
def test_an_option_that_is_not_positive_is_refused(tokenizer: Any, option: str, value: int) -> None:
    message = refusal("builtin:docs", tokenizer, **{option: value})
    assert f"{option} must be positive, but is {value}" in message
    with pytest.raises(InputError, match="batch_tokens must be positive"):
        TokenData("memory", ()).with_batch_tokens(value)


def test_a_negative_seed_is_refused(tokenizer: Any) -> None:
    assert "seed must not be negative" in refusal("builtin:docs", tokenizer, limit=2, seed=-1)


def test_appending_an_eos_that_the_tokenizer_lacks_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = write_records(tmp_path / "a.jsonl", {"text": "the fox"})
    assert "append_eos needs an EOS token" in refusal(path, tokenizer, append_eos=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_length", 2.5), ("limit", "x"), ("batch_tokens", "x"), ("seed", None), ("seed", 1.5), ("seed", 2**128)],
)
def test_an_option_that_is_no_number_fit_for_it_is_refused(tokenizer: Any, option: str, value: Any) -> None:
    assert f"{option} must be a whole number" in refusal("builtin:docs", tokenizer, **{"limit": 2, option: value})


def test_rows_that_no_loss_depends_on_are_counted() -> None:
    """Inputs 1, 2 (second example: 1, 3); the last token of an example and what follows its last label feed nothing."""
    unlabelled = Example((1, 3, 4, 5), (IGNORED, IGNORED, 4, IGNORED))
    data = TokenData("a.jsonl", (Example((1, 2, 3), (IGNORED, 2, 3)), unlabelled))
    assert data.unseen_rows(10) == 7
    assert data.describe(10) == data.describe() + "; 7 of 10 vocabulary rows are not in it"


def test_a_row_that_is_not_seen_has_no_gradient() -> None:
    """And all others have one, in a model whose embedding is not tied."""
    examples = []
    for batch in make_batches(rows=1):
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        examples.append(Example(tuple(ids), (IGNORED, *labels[1:-3], IGNORED, IGNORED, IGNORED)))
    data = TokenData("memory", tuple(example for example in examples if example.tokens))
    model = build_model("llama")
    for batch in data:
        model(**batch).loss.backward()
    untouched = int((model.get_input_embeddings().weight.grad == 0).all(dim=1).sum())
    assert data.unseen_rows(VOCABULARY) == untouched
    assert 0 < untouched < VOCABULARY


def test_a_token_beyond_the_vocabulary_is_named() -> None:
    data = TokenData("a.jsonl", (Example((1, 2), (IGNORED, 2)), Example((3, 9, 4), (IGNORED, 9, 4))))
    check_vocabulary(data, 10, "the model")
    with pytest.raises(InputError) as caught:
        check_vocabulary(data, 9, "the model")
    for words in ("a.jsonl", "example 1", "token id 9", "the model has a vocabulary of 9"):
        assert words in str(caught.value)


# --- said, not silent ---------------------------------------------------------------------------------------


def test_records_of_two_kinds_in_one_file_are_counted_in_a_warning(tmp_path: Path, tokenizer: Any) -> None:
    text, pair = {"text": "the dog"}, {"prompt": "what?", "completion": "four", "text": None}
    path = write_records(tmp_path / "a.jsonl", text, pair, pair | {"instruction": "say"}, text, text)
    with pytest.warns(MeasurementWarning) as caught:
        data = load_data(path, tokenizer)
    assert len(data.examples) == 5
    assert str(caught[0].message) == (
        f'{path} holds records of 2 kinds, 3 of {{"text"}} and 2 of {{"prompt", "completion"}}; '
        "the loss is the mean over the tokens of all."
    )


def test_a_text_with_zero_bytes_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """Rejects UTF-16 read as UTF-8, where every other character is a NUL."""
    (tmp_path / "a.txt").write_bytes("the fox\njumps".encode("utf-16-le"))
    assert "a.txt holds a NUL character in line 1" in refusal(tmp_path / "a.txt", tokenizer)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "the \0 fox"}')
    assert "a.jsonl line 1 is not valid JSON" in refusal(tmp_path / "a.jsonl", tokenizer)
    assert "there is no file" in refusal("a\0.jsonl", tokenizer) or "cannot be read" in refusal("a\0.jsonl", tokenizer)


def test_a_list_of_records_reads_as_json_lines_do(tmp_path: Path, tokenizer: Any) -> None:
    records = [{"text": f"the dog {'jumps ' * (i % 4)}"} for i in range(20)]
    path = write_records(tmp_path / "a.jsonl", *records)
    for options in ({}, {"limit": 5, "seed": 3}, {"max_length": 12}):
        given, read = load_data(records, tokenizer, **options), load_data(path, tokenizer, **options)
        assert (given.examples, given.digest, given.truncated) == (read.examples, read.digest, read.truncated)
    assert given.source == "records"
    assert "record 2 is none of" in refusal([records[0], {"body": "x"}], tokenizer)
    assert "the list of records is empty" in refusal([], tokenizer)
    assert "record 1 is not a JSON object" in refusal([3], tokenizer)
    assert "the source of data is a int" in refusal(3, tokenizer)


def test_data_shows_itself_in_one_line(tmp_path: Path, tokenizer: Any) -> None:
    """Rejects the address of an object, and a list of all token ids."""
    path = write_records(tmp_path / "a.jsonl", {"text": "the dog"}, {"text": "the fox"})
    data = load_data(path, tokenizer)
    shown = f"TokenData('{path}', 2 examples, {data.tokens} supervised tokens, batch_tokens=4096)"
    assert repr(data) == shown
