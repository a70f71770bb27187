"""Instruction vectors, against a patch written by hand, a model with planted heads, and dense sums over heads."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import planted
import pytest
import torch
from conftest import build_model
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from landscape import InputError, InstructionVector, Run, VectorOptions, compute_instruction_vector, load_tasks
from landscape.instruction_vectors.effects import indirect_effects, top_heads
from landscape.instruction_vectors.prompts import Prompt, make_prompts
from landscape.instruction_vectors.runs import (
    answers,
    answers_with_heads_replaced,
    answers_with_vectors_added,
    head_outputs,
)
from landscape.weights.attention import attention_of

OPTIONS = VectorOptions(shots=planted.SHOTS, prompts=32, heads=3)
SHAPES = ((5, 9, 40), (5, 12, 41), (25, 9, 42))  # first token, length, answer
PROMPTS = tuple(Prompt(tuple(range(first, first + length)), answer) for first, length, answer in SHAPES)


def forward_by_hand(model: Any, tokens: list[int], layer: int, head: int, output: torch.Tensor | None) -> torch.Tensor:
    """A Llama's logits after the last token, computed without hooks or cache; one head's last output is changed."""
    config, body = model.config, model.model
    count, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    shared = count // config.num_key_value_heads
    states = body.embed_tokens(torch.tensor([tokens]))
    length = len(tokens)
    cos, sin = body.rotary_emb(states, torch.arange(length)[None])
    mask = torch.full((length, length), float("-inf")).triu(1)
    for index, block in enumerate(body.layers):
        normed = block.input_layernorm(states)
        attention = block.self_attn
        q, k, v = (
            projection(normed).view(1, length, -1, size).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        weights = torch.softmax(q @ k.transpose(2, 3) / size**0.5 + mask, dim=-1)
        mixed = (weights @ v).transpose(1, 2).clone()  # (1, length, heads, size)
        if index == layer and output is not None:
            mixed[0, -1, head] = output
        states = states + attention.o_proj(mixed.reshape(1, length, -1))
        states = states + block.mlp(block.post_attention_layernorm(states))
    return model.lm_head(body.norm(states))[0, -1]


@torch.no_grad()
def test_replacing_one_head_is_a_forward_pass_changed_by_hand():
    """Tolerance 1e-5 for float32 sums in another order; patching the head beside it would be off by 1e-3 and more."""
    model = build_model("llama")
    attention = attention_of(model)
    outputs = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    prompt = Prompt(tuple(range(10, 22)), 33)
    where = torch.eye(8, dtype=torch.bool).view(8, 2, 4)
    (found,) = answers_with_heads_replaced(model, attention, [prompt], where, outputs, batch_tokens=40)
    by_hand = []
    for layer, head in np.ndindex(2, 4):
        logits = forward_by_hand(model, list(prompt.tokens), layer, head, outputs[layer, head])
        by_hand.append(float(torch.softmax(logits, -1)[33]))
    assert found == pytest.approx(by_hand, abs=1e-5)
    assert np.ptp(found) > 1e-3
    plain = forward_by_hand(model, list(prompt.tokens), 0, 0, None)
    assert answers(model, [prompt], 100)[0, 0] == pytest.approx(float(torch.softmax(plain, -1)[33]), abs=1e-5)


ARCHITECTURES = ("llama", "gpt2", "qwen3", "gemma2")


def any_model(architecture: str) -> Any:
    if architecture == "gpt_neox":
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=128, initializer_range=0.1,
        )  # fmt: skip
        return GPTNeoXForCausalLM(config).eval()
    if architecture == "mistral":
        from transformers import MistralConfig, MistralForCausalLM

        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, sliding_window=6, initializer_range=0.1,
        )  # fmt: skip
        return MistralForCausalLM(config).eval()
    if architecture == "falcon_h1":
        from transformers import FalconH1Config, FalconH1ForCausalLM

        torch.manual_seed(0)
        config = FalconH1Config(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=48, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
            mamba_chunk_size=8, initializer_range=0.1,
        )  # fmt: skip
        return FalconH1ForCausalLM(config).eval()
    return build_model(architecture)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_neox", "mistral"])
@torch.no_grad()
def test_a_head_replaced_by_its_own_output_changes_nothing_and_by_another_it_does(architecture):
    """1e-5 for float32 sums in another order, with keys and values kept; zeros in its place are far off."""
    model = any_model(architecture)
    attention = attention_of(model)
    outputs, answered = head_outputs(model, attention, PROMPTS, batch_tokens=18)
    for index, prompt in enumerate(PROMPTS):
        every = torch.ones(1, attention.layers, attention.heads, dtype=torch.bool)
        (same,) = answers_with_heads_replaced(model, attention, [prompt], every, outputs[index], 1000)
        assert same == pytest.approx(answered[index, :1], abs=1e-5, rel=1e-4)
        (gone,) = answers_with_heads_replaced(model, attention, [prompt], every, torch.zeros_like(outputs[0]), 1000)
        assert abs(gone[0] / answered[index, 0] - 1) > 1e-3
    where = torch.eye(attention.layers * attention.heads, dtype=torch.bool).view(-1, attention.layers, attention.heads)
    together = answers_with_heads_replaced(model, attention, PROMPTS, where, outputs.mean(0), 20)
    alone = [answers_with_heads_replaced(model, attention, [one], where, outputs.mean(0), 1000)[0] for one in PROMPTS]
    assert together == pytest.approx(np.array(alone), abs=1e-5, rel=1e-4)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_neox"])
@torch.no_grad()
def test_what_all_heads_write_is_the_output_of_the_projection_without_its_bias(architecture):
    """Exact up to float32 sums; leaving out one head would be off by its share, about 10%."""
    model = any_model(architecture)
    attention = attention_of(model)
    outputs, _ = head_outputs(model, attention, PROMPTS, 1000)
    for layer, projection in enumerate(attention.projections):
        whole = projection(outputs[:, layer].flatten(1))
        bias = getattr(projection, "bias", None)
        whole = whole if bias is None else whole - bias
        written = attention.written(outputs, [(layer, head) for head in range(attention.heads)])
        torch.testing.assert_close(written, whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_adding_the_written_vector_is_adding_it_to_the_residual_stream():
    """A Llama without hooks, whose bias of one projection is the vector, adds it too; 1e-5 for float32 sums."""
    model = build_model("llama")
    attention = attention_of(model)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))
    found = answers(model, PROMPTS, 18, lambda: attention.adding(1, vector))
    other = copy.deepcopy(model)  # In the last layer, only what is added at the last token reaches its answer.
    other.model.layers[1].self_attn.o_proj.bias = torch.nn.Parameter(vector)
    assert found == pytest.approx(answers(other, PROMPTS, 18), abs=1e-5)
    assert abs(found - answers(model, PROMPTS, 18)).max() > 1e-3


@pytest.mark.parametrize("batch_tokens", [9, 18, 36, 1000])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_neox", "mistral", "falcon_h1"])
@torch.no_grad()
def test_vectors_added_with_kept_keys_answer_as_in_whole_passes(architecture, batch_tokens):
    """1e-5 for float32 sums in another order. A vector that is not added, or another row's, is off by 5e-4 and more.

    Two prompts of one length pass together. Falcon-H1 keeps states beside keys, which have to follow their prompt.
    """
    model = any_model(architecture)
    attention = attention_of(model)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    found = answers_with_vectors_added(model, attention, 1, PROMPTS, vectors, batch_tokens)
    assert found.shape == (len(PROMPTS), 3, 2)
    for index, vector in enumerate(vectors):
        whole = answers(model, PROMPTS, 18, lambda v=vector: attention.adding(1, v))
        assert found[:, index] == pytest.approx(whole, abs=1e-5, rel=1e-4)
    assert np.ptp(found[:, :, 0], axis=1).min() > 5e-4
    one = Prompt(PROMPTS[0].tokens[-1:], PROMPTS[0].answer)  # nothing comes before its last token
    alone = answers_with_vectors_added(model, attention, 1, [one], vectors[:1], 18)
    assert alone[:, 0] == pytest.approx(answers(model, [one], 18, lambda: attention.adding(1, vectors[0])), abs=1e-5)


@pytest.fixture(scope="module")
def planted_model():
    model, tokenizer = planted.trained()
    return model, tokenizer, load_tasks(planted.tasks())


@pytest.mark.slow
def test_found_heads_move_the_answer_and_as_many_others_do_not(planted_model):
    """Over three tasks: the heads that were found act, more than ten random draws of others, on other questions.

    Were heads chosen by chance, the two means would be the same up to their spread, and half of such tests would fail.
    """
    model, tokenizer, tasks = planted_model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vectors = [compute_instruction_vector(model, task, tokenizer=tokenizer, options=OPTIONS) for task in tasks.values()]
    found, others = (sum(getattr(v, kind).value for v in vectors) / 3 for kind in ("joint_effect", "random_effect"))
    assert found > 0.05
    assert found > others + 0.05
    steered = sum(v.steered.value - v.zero_shot.value for v in vectors) / 3
    assert steered > 0.1  # Of the vector alone, added to prompts that do not say which task it is.
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_result_and_results_are_read_back(planted_model, tmp_path, monkeypatch):
    model, tokenizer, tasks = planted_model
    measure = {"tokenizer": tokenizer, "options": OPTIONS}
    whole = compute_instruction_vector(model, tasks["copy"], **measure)
    calls = []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return answers_with_heads_replaced(*arguments)

    journal = tmp_path / "copy.journal"
    monkeypatch.setattr("landscape.instruction_vectors.effects.answers_with_heads_replaced", dies)
    with pytest.raises(KeyboardInterrupt):
        compute_instruction_vector(model, tasks["copy"], **measure, run=Run(journal=journal))
    again = compute_instruction_vector(model, tasks["copy"], **measure, run=Run(journal=journal))
    assert len(calls) == 6 + OPTIONS.prompts - 5  # Five prompts were finished and are not measured again.
    assert again == whole
    assert InstructionVector.load(whole.save(tmp_path / "vector.json")) == whole
    assert "few-shot accuracy" in str(whole)
    with pytest.raises(InputError, match="other settings"):
        compute_instruction_vector(model, tasks["permutation"], **measure, run=Run(journal=journal))


def test_questions_and_answers_that_models_are_judged_on_are_in_no_prompt_that_heads_are_chosen_on():
    tokenizer, tasks = planted.letter_tokenizer(), load_tasks(planted.tasks())
    made = make_prompts(tasks["copy"], tokenizer, OPTIONS, seed=3)
    asked = {prompt.tokens[-2] for prompt in made.few_shot}
    assert len(made.few_shot) == len(asked) == len(made.zero_shot) == 13
    assert not asked & {token for prompt in made.clean for token in prompt.tokens}
    for clean, shuffled in zip(made.clean, made.shuffled, strict=True):
        assert clean.answer == shuffled.answer
        assert clean.tokens[0::3] == shuffled.tokens[0::3]  # the same inputs in the same order
        answers_of = [set(prompt.tokens[2::3]) for prompt in (clean, shuffled)]
        assert answers_of[0] == answers_of[1]
        kept = [a == b for a, b in zip(clean.tokens[2::3], shuffled.tokens[2::3], strict=True)]
        assert not any(kept)


def test_bad_input_is_refused_in_a_sentence():
    model, tokenizer = build_model("llama", vocabulary=30), planted.letter_tokenizer()
    tasks = load_tasks(planted.tasks())
    short = load_tasks([{"task": "t", "input": a, "output": b} for a, b in ("ab", "bc", "cd")])["t"]
    long = load_tasks([{"task": "t", "input": a, "output": f"{a} {a}"} for a in planted.LETTERS])["t"]
    for task, message in (
        (short, "3 pairs whose answer is one token; 4 examples in a prompt need at least 20"),
        (long, "0 pairs whose answer is one token \\(26 more have answers of several tokens\\)"),
        (tasks["copy"], "is right in \\d+ of 32 prompts of task copy"),
        ("capitals", "the task is a str; give one of those that load_tasks"),
    ):
        with pytest.raises(InputError, match=message):
            compute_instruction_vector(model, task, tokenizer=tokenizer, options=OPTIONS)
    with pytest.raises(InputError, match="has not the attention layout"):
        attention_of(_mamba())
    with pytest.raises(InputError, match="layer=2 is none of the 2 layers"):
        compute_instruction_vector(model, tasks["copy"], tokenizer=tokenizer, options=VectorOptions(4, 24, 2, 2))
    with pytest.raises(InputError, match="record 1 has no text 'output'"):
        load_tasks([{"task": "t", "input": "a"}])
    with pytest.raises(InputError, match=r"has no task 'capitels'.* Did you mean 'capitals'"):
        load_tasks("builtin:words:capitels")


def _mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=30, hidden_size=8, state_size=4, num_hidden_layers=1))


def test_effects_do_not_depend_on_how_rows_are_batched():
    """Rows of a batch are separate but for rounding, 1e-6; one row shifted by one would be off by 1e-4 and more."""
    model = build_model("llama")
    attention = attention_of(model)
    outputs = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    one, many = (
        indirect_effects(model, attention, PROMPTS, outputs, batch_tokens=batch_tokens) for batch_tokens in (1, 1000)
    )
    assert one == pytest.approx(many, abs=1e-6)
    assert len(top_heads(one, 3)) == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_half_precision_finds_the_effects_and_the_vector_of_float32_up_to_its_rounding(architecture):
    """bfloat16 keeps 8 bits: a few percent of the largest effect, and a cosine above 0.999 for vectors over all heads.

    Effects of the heads in another order, or of float32 means that the model cannot take, would be off by their size.
    """
    whole = build_model(architecture)
    half = copy.deepcopy(whole).bfloat16()
    found = []
    for model in (whole, half):
        attention = attention_of(model)
        outputs, _ = head_outputs(model, attention, PROMPTS, 1000)
        mean = outputs.mean(0)
        effects = indirect_effects(model, attention, PROMPTS, -mean, batch_tokens=1000)
        vector = attention.written(mean, list(np.ndindex(attention.layers, attention.heads))).float()
        steered = answers(model, PROMPTS, 1000, lambda a=attention, v=vector: a.adding(1, v))
        found.append((effects, vector, steered[:, 0]))
    (effects, vector, steered), (rounded, half_vector, half_steered) = found
    assert abs(rounded - effects).max() < 0.05 * abs(effects).max()
    assert np.corrcoef(rounded.ravel(), effects.ravel())[0, 1] > 0.99
    assert float(torch.nn.functional.cosine_similarity(vector, half_vector, dim=0)) > 0.999
    assert half_steered == pytest.approx(steered, rel=0.05)
    plain = answers(whole, PROMPTS, 1000)[:, 0]
    assert abs(steered / plain - 1).max() > 0.1  # so that a vector which is not added is seen
