"""Choices that share one evaluation of their prompt: the numbers that each has alone, or each is evaluated alone."""

import logging

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, VOCABULARY, build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from landscape.data.questions import EncodedQuestion, Questions
from landscape.data.tokens import IGNORED, Example
from landscape.forgetting.paired import Pair, compare_choices, compare_examples
from landscape.forgetting.shared_prompts import SharedPrompts

# Sums of float32 log-probabilities over a few tokens, computed in another order: tiny models differ by 2e-6 at most.
# A choice that saw another one, or stood at another position, would differ by more than 1e-2.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def question_of(generator, prompt, lengths, cut=0):
    """Choices of these lengths after a prompt, of which the first lost `cut` tokens, as a long question does."""
    before = tuple(int(i) for i in generator.integers(VOCABULARY, size=prompt))
    examples = []
    for number, length in enumerate(lengths):
        choice = tuple(int(i) for i in generator.integers(VOCABULARY, size=length))
        start = before[cut if number == 0 else 0 :]
        examples.append(Example(start + choice, (IGNORED,) * len(start) + choice))
    return EncodedQuestion(tuple(examples), (), tuple(lengths), 0)


def questions_of(*questions, batch_tokens=4096):
    return Questions("quiz", tuple(q.plain[0] for q in questions), batch_tokens, questions=questions)


def several(seed=0, longest=20, batch_tokens=4096):
    generator = np.random.default_rng(seed)
    shapes = [(longest, (2, 5, 1)), (1, (3, 3)), (4, (1, 2, 2, 6)), (7, (1, 1))]
    return questions_of(*(question_of(generator, *shape) for shape in shapes), batch_tokens=batch_tokens)


def both_ways(data, before, after):
    """The table of all choices with shared prompts, and that of each choice alone."""
    choices = [question.plain for question in data.questions]
    alone = data.as_batches([choice for question in choices for choice in question])
    with torch.no_grad():
        shared = compare_choices("quiz", data, choices, Pair(before, after))
        return shared, compare_examples("quiz", alone, Pair(before, after))


def tokens_read(model, measure):
    """The number of tokens that a model reads while something is measured."""
    seen = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    try:
        measure()
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_choices_have_the_numbers_that_each_has_alone(architecture, caplog):
    before, after = build_model(architecture, 1), build_model(architecture, 2)
    with caplog.at_level(logging.INFO, logger="landscape"):
        shared, alone = both_ways(several(), before, after)
    np.testing.assert_allclose(shared, alone, **CLOSE)
    assert "whole prompt" not in caplog.text


MODEL = build_model("llama", 1)


@given(
    seed=st.integers(0, 1000),
    shapes=st.lists(
        st.tuples(st.integers(1, 24), st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 3)),
        min_size=1,
        max_size=4,
    ),
    batch_tokens=st.sampled_from([8, 40, 4096]),
)
@settings(max_examples=12, deadline=None)
def test_any_questions_in_any_batches(seed, shapes, batch_tokens):
    """Prompts of one token, prompts that are cut differently, rows that one choice fills alone."""
    generator = np.random.default_rng(seed)
    made = [question_of(generator, prompt, lengths, min(cut, prompt - 1)) for prompt, lengths, cut in shapes]
    shared, alone = both_ways(questions_of(*made, batch_tokens=batch_tokens), MODEL, MODEL)
    np.testing.assert_allclose(shared, alone, **CLOSE)


def test_a_prompt_is_read_once_for_all_of_its_choices():
    choices = question_of(np.random.default_rng(0), 60, (2, 2, 2, 2, 2, 2)).plain
    rows = list(SharedPrompts([choices]))
    assert [batch["input_ids"].shape for batch in rows] == [(1, 59 + 6 * 3)]
    data = questions_of(EncodedQuestion(choices, (), (2,) * 6, 0))
    model = build_model("llama", 1)
    both = tokens_read(model, lambda: both_ways(data, model, model))
    each = data.as_batches(choices)
    apart = tokens_read(model, lambda: compare_examples("quiz", each, Pair(model, model)))
    checks = apart - 2 * 6 * 62  # what both spend on the checks of the loss
    # beside them: two evaluations of the row, and for the check of each model the row and two choices
    assert both - apart == checks + 2 * 77 + 2 * (77 + 2 * 62)


def bloom():
    """It has no positions to be told, and takes no mask of four dimensions."""
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2))


def mamba():
    """It reads tokens in sequence, so that a branch would follow the branch before it."""
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4))


def sliding():
    """Attention that sees 8 tokens back, which a mask of ours would replace by all of the prompt."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, num_hidden_layers=2, sliding_window=8, **shape))


@pytest.mark.parametrize("build", [bloom, mamba, sliding])
def test_what_cannot_share_a_prompt_is_evaluated_with_whole_prompts_and_says_so(build, caplog):
    torch.manual_seed(0)
    model = build().eval()
    with caplog.at_level(logging.INFO, logger="landscape"):
        shared, alone = both_ways(several(), model, model)
    assert (shared == alone).all()
    assert f"quiz: every choice is evaluated with its whole prompt, because {type(model).__name__}" in caplog.text


def test_a_window_that_holds_all_examples_is_no_hindrance(caplog):
    torch.manual_seed(0)
    model = sliding().eval()
    with caplog.at_level(logging.INFO, logger="landscape"):
        shared, alone = both_ways(several(longest=3), model, model)
    assert "whole prompt" in caplog.text  # 4 + 6 tokens are more than 8
    caplog.clear()
    generator = np.random.default_rng(0)
    short = questions_of(*(question_of(generator, 4, (1, 2, 3)) for _ in range(3)))
    with caplog.at_level(logging.INFO, logger="landscape"):
        shared, alone = both_ways(short, model, model)
    assert "whole prompt" not in caplog.text
    np.testing.assert_allclose(shared, alone, **CLOSE)


def test_half_precision_shares_prompts_too():
    """The tolerance is the rounding of bfloat16, 2^-8, on sums of about 6 nats a token."""
    model = build_model("llama", 1).to(torch.bfloat16)
    shared, alone = both_ways(several(), model, model)
    np.testing.assert_allclose(shared[:, 1], alone[:, 1], rtol=2**-6, atol=2**-6 * 6)
