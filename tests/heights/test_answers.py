"""Heights of questions: against a plain loop over the choices, on models that share prompts and on one that cannot."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, build_model
from transformers import MambaConfig, MambaForCausalLM

from landscape import InputError, Run, compute_basin, compute_interpolation, compute_surface
from landscape.data.questions import EncodedQuestion, Questions
from landscape.data.tokens import IGNORED, Example
from landscape.heights.answers import AnswerAccuracy, ChoiceLogProbability
from landscape.objective.objective import Objective

QUIET = {"run": Run(progress=False)}


def questions(seed=0, count=6, batch_tokens=4096):
    generator = np.random.default_rng(seed)
    asked = []
    for number in range(count):
        prompt = tuple(int(i) for i in generator.integers(VOCABULARY, size=3 + number))
        choices = [tuple(int(i) for i in generator.integers(VOCABULARY, size=size)) for size in (2, 1, 3)]
        examples = tuple(Example(prompt + c, (IGNORED,) * len(prompt) + c) for c in choices)
        asked.append(EncodedQuestion(examples, (), (2, 1, 3), number % 3))
    right = tuple(question.plain[question.answer] for question in asked)
    return Questions("quiz", right, batch_tokens, questions=tuple(asked))


def by_hand(model, data):
    """Accuracy and mean choice log-probability, one choice after the other, in float64."""
    right, chosen = [], []
    with torch.no_grad():
        for question in data.questions:
            scores = []
            for example in question.plain:
                log_p = model(input_ids=torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
                places = [i for i, label in enumerate(example.labels) if label != IGNORED]
                scores.append(sum(float(log_p[i - 1, example.labels[i]]) for i in places))
            right.append(int(np.argmax(scores)) == question.answer)
            chosen.append(scores[question.answer] - np.logaddexp.reduce(scores))
    return np.mean(right), np.mean(chosen), np.std(chosen, ddof=1) / np.sqrt(len(chosen))


def mamba(seed):
    """It reads tokens in sequence, so that choices cannot share a prompt."""
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
    return MambaForCausalLM(MambaConfig(**shape)).eval()


@pytest.mark.parametrize(
    "build", [lambda seed: build_model("llama", seed), lambda seed: build_model("gpt2", seed), mamba]
)
def test_answers_along_a_line_are_those_of_a_plain_loop(build):
    a, b, data = build(1), build(2), questions()
    line = compute_interpolation(a, b, data, points=3, span=(0, 1), height=("accuracy", "choice"), **QUIET)
    for model, place in ((a, 0), (b, -1)):
        accuracy, chosen, error = by_hand(model, data)
        assert line.height("accuracy").values[place] == accuracy
        assert line.height("choice").values[place] == pytest.approx(chosen, rel=1e-4)  # float32 logits
        assert line.height("choice").stderr[place] == pytest.approx(error, rel=1e-3)
        assert line.loss[place] == pytest.approx(Objective(model, data).loss().mean, rel=1e-5)
    assert line.height("accuracy").weight == 6
    assert line.height("accuracy").unit == "share of questions"  # not of tokens


def test_answers_do_not_depend_on_batches():
    model = build_model("qwen3", 3)
    one, other = (
        compute_surface(model, questions(batch_tokens=size), dim=1, points=3, height="choice", **QUIET)
        for size in (12, 4096)
    )
    assert one.height("choice").values == pytest.approx(other.height("choice").values, rel=1e-4)


def test_a_loss_that_is_not_finite_is_no_answer():
    (question, *_) = questions().questions  # its right answer is the first choice, which argmin takes of NaN
    assert AnswerAccuracy().of_choices(question, np.array([np.nan, 1.0, 2.0])) == 0
    assert AnswerAccuracy().of_choices(question, np.array([0.5, 1.0, 2.0])) == 1


def test_a_model_that_guesses_has_no_basin():
    """Three choices each: guessing has an accuracy of 1/3 and a choice log-probability of -log 3."""
    model, data = build_model("llama", 4), questions(count=9)
    assert AnswerAccuracy().guessing(data) == pytest.approx(1 / 3)
    assert ChoiceLogProbability().guessing(data) == pytest.approx(-np.log(3))
    accuracy, chosen, _ = by_hand(model, data)
    assert accuracy < 2 / 3
    assert chosen < -np.log(3) + 0.1
    options = {"directions": 1, "run": Run(progress=False)}
    for height, drop in (("accuracy", 1 / 3), ("choice", 0.1)):
        with pytest.raises(InputError, match=f"{height} of .* guessing, with .* is within the drop of"):
            compute_basin(model, data, height=height, drop=drop, **options)
    able = []  # the likeliest choice of each is the right one
    for question in data.questions:
        losses = [Objective(model, data.as_batches([choice])).loss() for choice in question.plain]
        able.append(dataclasses.replace(question, answer=int(np.argmin([loss.mean * loss.weight for loss in losses]))))
    right = tuple(question.plain[question.answer] for question in able)
    basin = compute_basin(
        model, Questions("able", right, questions=tuple(able)), height="accuracy", drop=0.6, **options
    )
    assert basin.center == 1
    with pytest.raises(InputError, match=r"within the drop of 0\.7"):
        compute_basin(model, Questions("able", right, questions=tuple(able)), height="accuracy", drop=0.7, **options)
