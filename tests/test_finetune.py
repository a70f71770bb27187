"""Fine-tuning runs: what they write, and that an interrupted one continues to the same weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from landscape.checkpoints import load_checkpoint
from landscape.errors import InputError
from landscape.finetune import finetune

COMMON = {"steps": 6, "lr": 1e-3, "batch_size": 4, "max_length": 64, "device": "cpu", "progress": False}


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_an_interrupted_run_continues_to_the_same_weights(
    optimizer, tmp_path, save_checkpoint_folder, records, monkeypatch
):
    base = save_checkpoint_folder("llama", seed=1)
    arguments = COMMON | {"optimizer": optimizer, "save_every": 2}
    whole = finetune(base, str(records), tmp_path / "whole", **arguments)

    from transformers import Trainer

    steps, original = [], Trainer.training_step

    def dying(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == (10 if optimizer == "sam" else 5):  # in the fifth step: the fourth was saved
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune(base, str(records), tmp_path / "cut", **arguments)
    assert not (tmp_path / "cut").exists()
    assert (tmp_path / "cut.training" / "checkpoint-4").exists()
    # a checkpoint that the kill tore is passed over
    torn = tmp_path / "cut.training" / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    continued = finetune(base, str(records), tmp_path / "cut", **arguments)
    one, other = weights(whole), weights(continued)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "cut.training").exists()


def test_the_record_says_how_it_was_made(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("gpt2", seed=1)
    folder = finetune(base, str(records), tmp_path / "tuned", optimizer="sam", rho=0.02, seed=5, **COMMON)
    record = json.loads((folder / "landscape.json").read_text())
    assert record["base"]["digest"] == load_checkpoint(base, device="cpu").digest
    assert (record["optimizer"], record["rho"], record["seed"], record["steps_taken"]) == ("sam", 0.02, 5, 6)
    assert record["data"]["source"] == str(records)
    assert record["versions"]["torch"]
    assert record["losses"]["evaluated_after"] < record["losses"]["evaluated_before"]
    assert load_checkpoint(folder, device="cpu").metadata == record


def test_a_built_in_corpus_is_trained_on_one_part_and_evaluated_on_the_other(tmp_path, save_checkpoint_folder):
    base = save_checkpoint_folder("llama", seed=1)
    folder = finetune(base, "builtin:docs", tmp_path / "tuned", limit=20, **COMMON | {"steps": 1})
    record = json.loads((folder / "landscape.json").read_text())
    assert record["data"]["source"] == "builtin:docs@train"
    assert record["evaluated_on"]["source"] == "builtin:docs@heldout"


def test_the_seed_decides_the_order_of_examples(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    runs = [finetune(base, str(records), tmp_path / f"run{i}", seed=seed, **COMMON) for i, seed in enumerate((1, 1, 2))]
    first, again, other = (weights(folder)["model.norm.weight"] for folder in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_finished_run_is_not_made_again_and_not_overwritten(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    folder = finetune(base, str(records), tmp_path / "tuned", **COMMON)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert finetune(base, str(records), tmp_path / "tuned", **COMMON) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"not made by this run \(lr differ\)"):
        finetune(base, str(records), tmp_path / "tuned", **COMMON | {"lr": 1e-2})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": "lion"}, "lion"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"steps": 0}, "steps=0"),
        ({"rho": -0.1, "optimizer": "sam"}, "rho=-0.1"),
        ({"batch_size": -1}, "batch_size=-1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    arguments, words, tmp_path, save_checkpoint_folder, records
):
    with pytest.raises(InputError, match=words):
        finetune(save_checkpoint_folder("llama"), str(records), tmp_path / "out", **COMMON | arguments)
    assert list(tmp_path.iterdir()) == []
