"""Real parts, built on the spot: tiny models and tokenizers saved with save_pretrained; nothing is downloaded."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings

# Before torch is imported, and for the commands the tests start: on tiny tensors a second thread only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forks
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from landscape.cli import main

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "A function may return any object; without a return statement it returns None.",
    "Sharp minima, flat minima: the landscape says where the model has landed.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "If the loss rises steeply in every direction, the minimum is called sharp.",
    "Seven small models were saved to disk and read again.",
] * 3
VOCABULARY = 320


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests among processes (`pytest -n 2`) so that a fixture of a module is made once.

    A file with such a fixture runs in one process, and so do all tests of instruction vectors, for which a model is
    trained; every other test goes to whichever process is free. (Marks of the name xdist_group would say it for each
    test, but pytest-xdist 3.8 does not see them under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if "instruction_vectors" in nodeid:
                return "instruction_vectors"
            return file if has_module_fixture(config.rootpath / file) else nodeid

    return ByModuleFixture(config, log)


@functools.cache
def has_module_fixture(file: Path) -> bool:
    return 'scope="module"' in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests where several processes share the work, so that they end together."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=VOCABULARY, special_tokens=["<|end|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def build_model(architecture: str, seed: int = 0, vocabulary: int = VOCABULARY, **changes: Any) -> Any:
    """A tiny causal language model of a real architecture, with weights large enough that its loss is curved."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "initializer_range": 0.1,
    }
    torch.manual_seed(seed)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape | {"tie_word_embeddings": False} | changes)).eval()
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1,
            bos_token_id=0, eos_token_id=0, **changes,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape | {"tie_word_embeddings": True, "head_dim": 8} | changes)).eval()
    if architecture == "gemma2":
        special = {"head_dim": 8, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
        return Gemma2ForCausalLM(Gemma2Config(**shape | special | changes)).eval()
    raise ValueError(architecture)


ARCHITECTURES = ("llama", "gpt2", "qwen3", "gemma2")


@pytest.fixture(scope="session")
def save_checkpoint_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[..., Path]:
    """Build and save a model with its tokenizer, once per session for each set of arguments."""
    made: dict[str, Path] = {}

    def save(architecture: str, seed: int = 0, sharded: bool = False, **changes: Any) -> Path:
        key = json.dumps([architecture, seed, sharded, changes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / f"{architecture}-{seed}"
            size = "60KB" if sharded else "5GB"
            build_model(architecture, seed, **changes).save_pretrained(folder, max_shard_size=size)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return save


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt and completion records of mixed length, as a .jsonl file."""
    path = tmp_path_factory.mktemp("data") / "tasks.jsonl"
    lines = []
    for index, text in enumerate(TEXTS):
        cut = 5 + 3 * (index % 7)
        lines.append(json.dumps({"prompt": text[:cut], "completion": text[cut : cut + 20 + 5 * (index % 5)]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_batches(rows: int = 3, examples: int = 7, seed: int = 0, vocabulary: int = VOCABULARY) -> list[dict]:
    """Random examples of different lengths as padded batches of `rows` rows, the same examples whatever `rows` is."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for index in range(examples):
        length = 4 + 3 * index
        ids = torch.randint(1, vocabulary, (length,), generator=generator)
        labels = ids.clone()
        labels[: 1 + index % 3] = -100
        sequences.append((ids, labels))
    batches = []
    for start in range(0, examples, rows):
        group = sequences[start : start + rows]
        width = max(len(ids) for ids, _ in group)
        batch = {
            "input_ids": torch.zeros(len(group), width, dtype=torch.long),
            "attention_mask": torch.zeros(len(group), width, dtype=torch.long),
            "labels": torch.full((len(group), width), -100),
        }
        for row, (ids, labels) in enumerate(group):
            batch["input_ids"][row, : len(ids)] = ids
            batch["attention_mask"][row, : len(ids)] = 1
            batch["labels"][row, : len(ids)] = labels
        batches.append(batch)
    return batches


def plain_loss(model, batches):
    """Mean over all supervised tokens from transformers' own loss, one example at a time."""
    total = weight = 0.0
    for batch in batches:
        for row in range(len(batch["labels"])):
            length = int(batch["attention_mask"][row].sum())
            one = {key: value[row : row + 1, :length] for key, value in batch.items()}
            count = int((one["labels"][:, 1:] != -100).sum())
            with torch.no_grad():
                total += float(model(**one).loss) * count
            weight += count
    return total / weight


@pytest.fixture
def token_batches() -> Callable[..., list[dict[str, torch.Tensor]]]:
    return make_batches


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., tuple]:
    """The command line in this process: exit code, stdout, stderr. Results go below tmp_path / "out"."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["landscape", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        with warnings.catch_warnings():
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Programs in processes of their own, without their imports: see `forked`."""
    started = Forks()
    yield started
    started.close()


class Quadratic(nn.Module):
    """L(theta) = 1/2 (theta - center)' A (theta - center), float64; theta in two tensors to have several filters."""

    def __init__(self, matrix: torch.Tensor, center: torch.Tensor, start: torch.Tensor):
        super().__init__()
        self.matrix, self.center = matrix.double(), center.double()
        half = len(start) // 2
        self.first = nn.Parameter(start[:half].double().reshape(1, -1))
        self.second = nn.Parameter(start[half:].double().reshape(1, -1))

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        offset = torch.cat([self.first.flatten(), self.second.flatten()]) - self.center
        return 0.5 * offset @ self.matrix @ offset


def quadratic_loss(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The same value for every term, so that the mean over any batches is the quadratic itself."""
    return model(batch) * len(batch), len(batch)


@pytest.fixture
def quadratic() -> Quadratic:
    matrix = torch.tensor([[2.0, 0.3, 0.0, 0.1], [0.3, 1.5, 0.2, 0.0], [0.0, 0.2, 3.0, -0.4], [0.1, 0.0, -0.4, -1.0]])
    return Quadratic(matrix, torch.tensor([0.1, -0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, -1.0, 0.5]))


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything law 2 promises to bring back, copied."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()},
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("weights", "buffers"):
        assert before[key].keys() == after[key].keys()
        for name in before[key]:
            assert torch.equal(before[key][name], after[key][name]), name
    assert before["training"] == after["training"]
    assert before["requires_grad"] == after["requires_grad"]
    for a, b in zip(before["gradients"], after["gradients"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert torch.equal(before["random"], after["random"])
