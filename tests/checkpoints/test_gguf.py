"""GGUF files as checkpoints: written by llama.cpp's own package, read as the model that they were written from."""

import json

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import landscape

gguf = pytest.importorskip("gguf")
from gguf_files import write_gguf  # noqa: E402

TEXTS = ["the loss of the tuned model", "the curvature of the loss", "a model and its weights, again and again"] * 4


@pytest.fixture(scope="module")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS * 3, vocab_size=320, special_tokens=["<|end|>"], show_progress=False)
    return bpe


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
            initializer_range=0.1,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "whole.gguf", model, tokenizer)
    write_gguf(folder / "small.gguf", model, tokenizer, gguf.GGMLQuantizationType.Q8_0)
    return folder


def test_an_unquantized_file_is_the_model_it_was_written_from(folder, model, tokenizer):
    """Every weight to the last bit; rows of queries and keys in another order would change the loss."""
    loaded = landscape.load_checkpoint(folder / "whole.gguf", device="cpu")
    ours = dict(loaded.model.named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(ours[name], weight), name
    assert loaded.name == "whole.gguf"
    data = landscape.load_data(write_texts(folder), loaded.tokenizer)
    assert [example.input_ids for example in data.examples] == [tuple(tokenizer.encode(text).ids) for text in TEXTS]
    again = landscape.load_checkpoint(folder / "whole.gguf", device="cpu")
    assert again.digest == loaded.digest


def write_texts(folder):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_a_quantized_file_is_dequantized_and_says_so(folder, model):
    """Q8_0 keeps 8 bits of a block's largest weight: errors are at most 1/254 of it, and not zero."""
    loaded = landscape.load_checkpoint(folder / "small.gguf", device="cpu")
    assert loaded.describe()["dequantized_from"] == "Q8_0"
    for name, weight in model.named_parameters():
        error = (dict(loaded.model.named_parameters())[name] - weight).abs().max()
        assert error <= weight.abs().max() / 254 * 1.01
        assert error > 0 or weight.dim() == 1
    data = landscape.load_data(write_texts(folder), loaded.tokenizer)
    surface = landscape.compute_surface(loaded, data, dim=1, points=3, run=landscape.Run(progress=False))
    assert surface.provenance.checkpoint["dequantized_from"] == "Q8_0"


def test_a_dequantized_model_is_trained_and_saved_as_any_other(folder, tmp_path):
    tuned = landscape.finetune(
        folder / "small.gguf", write_texts(folder), tmp_path / "tuned",
        optimization=landscape.Optimization(steps=1, batch_size=2), progress=False,
        load_options=landscape.LoadOptions(device="cpu"),
    )  # fmt: skip
    assert "quantization_config" not in json.loads((tuned / "config.json").read_text())
    assert landscape.load_checkpoint(tuned, device="cpu").tokenizer("the loss").input_ids
    forgotten = landscape.measure_forgetting(
        landscape.load_checkpoint(folder / "small.gguf", device="cpu"),
        landscape.load_checkpoint(tuned, device="cpu"),
        {"texts": landscape.load_data(write_texts(folder), landscape.load_checkpoint(tuned, device="cpu").tokenizer)},
        resamples=99,
    )
    assert np.isfinite(forgotten.tasks[0].forgetting)


def test_an_adapter_finds_its_gguf_base(folder, tmp_path):
    pytest.importorskip("peft")
    adapter = landscape.finetune(
        folder / "small.gguf", write_texts(folder), tmp_path / "adapter",
        optimization=landscape.Optimization(steps=1, batch_size=2, lora=2), progress=False,
        load_options=landscape.LoadOptions(device="cpu"),
    )  # fmt: skip
    loaded = landscape.load_checkpoint(adapter, device="cpu")
    assert loaded.describe()["dequantized_from"] == "Q8_0"
    assert loaded.tokenizer("the loss").input_ids


@pytest.mark.parametrize("part", [4, 300, -1000], ids=["four bytes", "the header", "all but the end"])
def test_a_truncated_file_is_refused(folder, tmp_path, part):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((folder / "whole.gguf").read_bytes()[:part])
    with pytest.raises(landscape.InputError, match=r"damaged\.gguf is truncated or damaged"):
        landscape.load_checkpoint(damaged, device="cpu")


def test_other_files_of_that_name_are_refused(folder, tmp_path, model, tokenizer):
    (tmp_path / "text.gguf").write_text("no model " * 100)
    with pytest.raises(landscape.InputError, match=r"text\.gguf is truncated or damaged"):
        landscape.load_checkpoint(tmp_path / "text.gguf", device="cpu")
    write_gguf(tmp_path / "other.gguf", model, tokenizer, architecture="unheard-of")
    with pytest.raises(landscape.InputError, match=r"other\.gguf cannot be used as a model: .*unheard-of"):
        landscape.load_checkpoint(tmp_path / "other.gguf", device="cpu")
    with pytest.raises(landscape.InputError, match=r"Name the GGUF file in it, such as .*small\.gguf"):
        landscape.load_checkpoint(folder, device="cpu")
    with pytest.raises(landscape.InputError, match="a merge reads safetensors"):
        landscape.merge_checkpoints(folder / "small.gguf", folder / "whole.gguf", 0.5, tmp_path / "merged")


def test_without_the_package_the_message_says_what_to_install(folder, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(landscape.InputError, match=r"pip install 'landscape-lm\[gguf\]'"):
        landscape.load_checkpoint(folder / "whole.gguf", device="cpu")
