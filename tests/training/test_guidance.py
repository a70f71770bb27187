"""Fine-tuning guided by an instruction vector: the term against its formula, and the same step however it is split."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from landscape import Guidance, InputError, LoadOptions, Optimization, finetune, load_checkpoint
from landscape.data.tokens import load_data, pad_examples
from landscape.training.guidance import GuidedTrainer
from landscape.training.trainer import training_arguments

ON_CPU = LoadOptions(device="cpu")


@pytest.fixture
def base(save_checkpoint_folder) -> Path:
    return save_checkpoint_folder("llama")


def guidance_of(base: Path, weight: float = 2.0) -> Guidance:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)).tolist()
    return Guidance(tuple(vector), 1, load_checkpoint(base, device="cpu").digest, "planted", weight)


def test_the_loss_is_cross_entropy_plus_the_divergence_from_the_base_with_the_vector(base, records, tmp_path):
    """By hand, without hooks: a base whose last projection has the vector as bias. 1e-5 for float32 sums.

    The divergence at the token before, or without the vector, differs by more than 1e-2.
    """
    checkpoint = load_checkpoint(base, device="cpu")
    model, guidance = checkpoint.model, guidance_of(base)
    batch = pad_examples(load_data(records, checkpoint.tokenizer).examples[:3])
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trainer = GuidedTrainer(
        tuned, training_arguments(tmp_path, use_cpu=True), guidance=guidance, base=copy.deepcopy(model)
    )
    found = trainer.compute_loss(tuned, dict(batch))
    by_hand = copy.deepcopy(model)
    by_hand.model.layers[1].self_attn.o_proj.bias = torch.nn.Parameter(torch.tensor(guidance.vector))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits, old = tuned(**inputs).logits, by_hand(**inputs).logits
    labels = batch["labels"]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    at = (labels != -100).int().argmax(1) - 1
    rows = torch.arange(len(at))
    new, old = ((x[rows, at] / 2).log_softmax(-1) for x in (logits, old))
    divergence = F.kl_div(old, new, reduction="batchmean", log_target=True)
    assert float(found) == pytest.approx(float(loss + 2 * divergence), abs=1e-5)
    assert float(divergence) > 1e-2
    assert not any(module._forward_hooks for module in trainer.guiding.modules())


@pytest.mark.parametrize(("optimizer", "lora"), [("adamw", None), ("sam", None), ("sam", 2)])
def test_a_guided_step_is_the_same_in_parts_and_moves_elsewhere_than_without(base, records, tmp_path, optimizer, lora):
    """Parts of a batch sum to it but for rounding: 2e-3 of the step that Adam makes of it. A term counted twice, or
    half, would turn the step by more.
    """

    def run(name: str, guidance: Guidance | None, accumulate: int) -> torch.Tensor:
        options = Optimization(optimizer=optimizer, lr=1e-3, steps=2, batch_size=4, accumulate=accumulate, lora=lora)
        folder = finetune(
            base, records, tmp_path / name, optimization=options, guidance=guidance, load_options=ON_CPU, progress=False
        )
        record = json.loads((folder / "landscape.json").read_text())
        assert ("guidance" in record) == (guidance is not None)
        tuned = load_checkpoint(folder, device="cpu").model
        return torch.cat([p.detach().flatten() for p in tuned.parameters()])

    whole, parts, free = run("whole", guidance_of(base), 1), run("parts", guidance_of(base), 2), run("free", None, 1)
    start = torch.cat([p.detach().flatten() for p in load_checkpoint(base, device="cpu").model.parameters()])
    step = (whole - start).norm()
    assert (whole - parts).norm() < 2e-2 * step
    assert (whole - free).norm() > 1e-1 * step


def test_a_vector_of_another_checkpoint_and_data_without_prompts_are_refused(base, records, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("words " * 200)
    other = Guidance((0.5,) * 32, 1, "of another", "planted")
    deep = Guidance((0.5,) * 32, 7, load_checkpoint(base, device="cpu").digest, "planted")
    options = {"optimization": Optimization(steps=1), "load_options": ON_CPU, "progress": False}
    for data, guidance, message in (
        (records, other, "is of another checkpoint than"),
        (records, deep, "has no layer 7"),
        (text, guidance_of(base), "has no example with a prompt"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(base, data, tmp_path / "out", guidance=guidance, **options)
    with pytest.raises(InputError, match="guide_weight=0 must be positive"):
        Guidance((0.5,), 0, "", "planted", 0)
