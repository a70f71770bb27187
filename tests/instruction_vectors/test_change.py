"""What tuning changed of instruction vectors: nothing for the same model, and what was broken for a broken one."""

from __future__ import annotations

import copy

import planted
import pytest
import torch
from conftest import build_model

from landscape import (
    InputError,
    InstructionVectorChange,
    MeasurementWarning,
    VectorOptions,
    compare_instruction_vectors,
    compute_instruction_vector,
    load_tasks,
)
from landscape.instruction_vectors.prompts import make_prompts

OPTIONS = VectorOptions(shots=planted.SHOTS, prompts=16, heads=2, layer=2)


@pytest.mark.slow
def test_a_model_against_itself_has_changed_nothing_and_without_its_heads_it_has_lost_their_effect(tmp_path):
    """Equal models give equal numbers exactly. Zeroing what the base's heads write takes all of their effect away.

    Were the heads or their means those of another model, the effect would not be 0 to rounding, 1e-6.
    """
    model, tokenizer = planted.trained()
    tasks = load_tasks(planted.tasks())
    settings = {"tokenizer": tokenizer, "options": OPTIONS, "resamples": 199}
    same = compare_instruction_vectors(model, model, tasks, **settings)
    for task in same.tasks:
        assert (task.cosine.low, task.cosine.high) == pytest.approx((1, 1), abs=1e-9)
        assert task.overlap.value == 1
        assert task.effect_lost == type(task.effect_lost)(0, 0, 0)
        assert task.few_shot.lost.value == task.zero_shot.lost.value == 0
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for layer in broken.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    change = compare_instruction_vectors(model, broken, tasks, **settings)
    for task in change.tasks:
        assert task.effect_after == pytest.approx(0, abs=1e-6)
        assert task.few_shot.lost.value > 0.2  # It no longer sees which task the examples are of.
        kinds = [(recovery.prompts, recovery.vector) for recovery in task.recoveries]
        assert kinds == [(p, v) for p in ("few-shot", "zero-shot") for v in ("base", "random", "other task")]
        for base, random, other in (task.recoveries[:3], task.recoveries[3:]):
            assert random.over_random is None
            for one in (base, other):  # means of differences are differences of means
                assert one.over_random.value == pytest.approx(one.accuracy - random.accuracy, abs=1e-12)
    # In the last layer a vector reaches the answer as a bias would: the same share of right answers without hooks.
    task = tasks["copy"]
    known = compute_instruction_vector(model, task, tokenizer=tokenizer, options=OPTIONS, resamples=199)
    again = compare_instruction_vectors(model, broken, tasks, base_vectors={"copy": known}, **settings)
    assert again.tasks == change.tasks  # vectors that are known change no number
    for wrong in ({"seed": 1}, {"options": VectorOptions(shots=planted.SHOTS, prompts=16, heads=3, layer=2)}):
        with pytest.raises(InputError, match=r"base_vectors\['copy'\] is not of"):
            compare_instruction_vectors(model, broken, tasks, base_vectors={"copy": known}, **settings | wrong)
    vector = known.vector
    by_hand = copy.deepcopy(broken)
    by_hand.model.layers[2].self_attn.o_proj.bias = torch.nn.Parameter(torch.tensor(vector, dtype=torch.float32))
    prompts = make_prompts(task, tokenizer, OPTIONS, 0)
    for index, asked in ((0, prompts.few_shot), (3, prompts.zero_shot)):
        logits = [by_hand(torch.tensor([prompt.tokens])).logits[0, -1] for prompt in asked]
        right = [int(one.argmax()) == prompt.answer for one, prompt in zip(logits, asked, strict=True)]
        assert change.tasks[0].recoveries[index].accuracy == pytest.approx(sum(right) / len(right))
    assert InstructionVectorChange.load(change.save(tmp_path / "change.json")) == change
    assert "heads in common" in str(change)


@pytest.mark.slow
def test_a_vector_that_does_nothing_in_the_base_is_no_test_of_recovery():
    """The heads of the first layer see no examples yet: their vector brings the base no answer to a bare question."""
    model, tokenizer = planted.trained()
    tasks = load_tasks(planted.tasks())
    options = VectorOptions(shots=planted.SHOTS, prompts=16, heads=2, layer=0)
    with pytest.warns(MeasurementWarning, match=r"with its vector at layer 0 than without: .* cannot be asked"):
        compare_instruction_vectors(model, model, tasks, tokenizer=tokenizer, options=options, resamples=99)


def test_models_of_other_shapes_are_refused():
    tokenizer, tasks = planted.letter_tokenizer(), load_tasks(planted.tasks())
    options = VectorOptions(shots=planted.SHOTS, prompts=16, heads=2)
    base = build_model("llama", vocabulary=30)
    other = build_model("llama", vocabulary=30, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"2 layers of 4 heads of size 8 and width 32, but .* 3 layers"):
        compare_instruction_vectors(base, other, tasks, tokenizer=tokenizer, options=options)
