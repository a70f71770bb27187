"""Forgetting against plain loops, planted differences and the laws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_state, build_model, make_batches, state_of

from landscape import (
    Forgetting,
    InputError,
    MeasurementWarning,
    load_checkpoint,
    load_data,
    measure_forgetting,
)
from landscape.data.tokens import Example, TokenData


def plain(model, batches):
    """Loss, accuracy and log-probabilities, token by token, one example at a time."""
    losses, right, logs = [], [], []
    for batch in batches:
        for row in range(len(batch["labels"])):
            length = int(batch["attention_mask"][row].sum())
            ids, labels = batch["input_ids"][row, :length], batch["labels"][row, 1:length]
            with torch.no_grad():
                log_p = torch.log_softmax(model(ids[None]).logits[0, :-1].double(), -1)[labels != -100]
            labels = labels[labels != -100]
            losses.append(F.nll_loss(log_p, labels, reduction="sum").item())
            right.append(int((log_p.argmax(-1) == labels).sum()))
            logs.append(log_p)
    return np.array(losses), np.array(right), logs


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_numbers_are_those_of_a_plain_loop(architecture):
    base, tuned = build_model(architecture, seed=1), build_model(architecture, seed=2)
    data = make_batches(examples=12)
    before, after = state_of(base), state_of(tuned)
    task = measure_forgetting(base, tuned, {"old": data}, resamples=999).tasks[0]
    assert_same_state(before, state_of(base))
    assert_same_state(after, state_of(tuned))
    (loss_a, right_a, logs_a), (loss_b, right_b, logs_b) = plain(base, data), plain(tuned, data)
    tokens = sum(len(p) for p in logs_a)
    assert (task.examples, task.tokens) == (12, tokens)
    # float32 logits against the same in another batch
    assert task.loss_before == pytest.approx(loss_a.sum() / tokens, rel=1e-5)
    assert task.loss_after == pytest.approx(loss_b.sum() / tokens, rel=1e-5)
    assert task.forgetting == pytest.approx((loss_b - loss_a).sum() / tokens, rel=1e-4)
    assert task.accuracy_before == pytest.approx(right_a.sum() / tokens)
    assert task.accuracy_loss == pytest.approx((right_a - right_b).sum() / tokens)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(logs_a, logs_b, strict=True)) / tokens
    assert task.kl == pytest.approx(kl, rel=1e-4)
    assert task.perplexities[0] == pytest.approx(np.exp(loss_a.sum() / tokens), rel=1e-4)
    low, high = task.forgetting_interval
    assert low <= task.forgetting <= high


def test_batches_change_nothing_and_results_reload(tmp_path):
    base, tuned = build_model("llama", seed=1), build_model("llama", seed=2)
    found = [
        measure_forgetting(base, tuned, {"old": make_batches(rows=rows, examples=12)}, resamples=199)
        for rows in (1, 12)
    ]
    one, two = (f.tasks[0] for f in found)
    assert one.forgetting == pytest.approx(two.forgetting, rel=1e-5)
    assert one.forgetting_interval == pytest.approx(two.forgetting_interval, rel=1e-4)
    assert Forgetting.load(found[0].save(tmp_path / "f.json")).to_dict() == found[0].to_dict()
    assert "forgetting" in str(found[0])


@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")  # eight examples are few
def test_an_interval_does_not_depend_on_how_examples_of_a_source_are_batched():
    generator = torch.Generator().manual_seed(0)
    lengths = (12, 80, 80, 120, 80, 10, 80, 80)  # in large batches, those of 80 come before that of 120
    rows = [torch.randint(1, 60, (length,), generator=generator).tolist() for length in lengths]
    examples = tuple(Example(tuple(ids), tuple(ids)) for ids in rows)
    base, tuned = build_model("llama", seed=1), build_model("llama", seed=2)
    one, *others = (
        measure_forgetting(base, tuned, {"old": TokenData("memory", examples, batch_tokens=budget)}, resamples=199)
        for budget in (1, 300, 1000)
    )
    for other in others:  # the same resamples of the same examples; float32 logits
        assert one.tasks[0].forgetting_interval == pytest.approx(other.tasks[0].forgetting_interval, rel=1e-4)
        assert one.tasks[0].kl_interval == pytest.approx(other.tasks[0].kl_interval, rel=1e-4)


def test_a_model_forgets_nothing_against_itself():
    model = build_model("gpt2")
    task = measure_forgetting(model, model, {"old": make_batches(examples=12)}, resamples=199).tasks[0]
    assert task.forgetting == task.accuracy_loss == 0
    assert task.forgetting_interval == (0, 0)
    assert task.kl == pytest.approx(0, abs=1e-7)


def test_the_interval_covers_the_rise_over_all_examples():
    """Small draws from many examples: the interval of each must cover the rise over all of them.

    Rejects intervals of one standard error (68%), and by their mean width, which is that of the normal interval of 30
    examples, those that are half or twice as wide.
    """
    base, tuned = build_model("llama", seed=1), build_model("llama", seed=2)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(200):
        ids = torch.randint(1, 320, (1, 6), generator=generator)
        examples.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()})

    def joined(chosen):
        return [{key: torch.cat([examples[i][key] for i in chosen]) for key in examples[0]}]

    truth = measure_forgetting(base, tuned, {"all": joined(range(200))}, resamples=99).tasks[0].forgetting
    rng = np.random.default_rng(0)
    covered, width = 0, 0.0
    for draw in range(60):
        data = joined(rng.choice(200, 30, replace=True))
        low, high = (
            measure_forgetting(base, tuned, {"some": data}, resamples=499, seed=draw).tasks[0].forgetting_interval
        )
        covered += low <= truth <= high
        width += (high - low) / 60
    with torch.no_grad():
        rises = [float(tuned(**example).loss - base(**example).loss) for example in examples]
    assert width == pytest.approx(2 * 1.96 * np.std(rises) / 30**0.5, rel=0.2)
    assert covered >= 51  # 95% of 60 is 57, with a standard deviation of 1.7


def test_what_cannot_be_measured_is_said():
    model = build_model("llama")
    with pytest.raises(InputError, match="vocabularies"):
        measure_forgetting(model, build_model("llama", vocabulary=400), {"old": make_batches(examples=12)})
    with pytest.raises(InputError, match="no task"):
        measure_forgetting(model, model, {})
    with pytest.raises(InputError, match="causal language models"):
        measure_forgetting(
            torch.nn.Linear(2, 3), torch.nn.Linear(2, 3), {"x": [(torch.zeros(4, 2), torch.zeros(4).long())]}
        )
    with pytest.warns(MeasurementWarning, match="7 examples"):
        measure_forgetting(model, model, {"old": make_batches()}, resamples=99)


# --- the command line ---------------------------------------------------------------------------------------


def test_landscape_forgetting(run, save_checkpoint_folder, records):
    base, a, b = (save_checkpoint_folder("llama", seed=seed) for seed in (1, 2, 3))
    command = ("forgetting", base, a, b, "--data", f"old={records}", "--data", "new=builtin:code", "--limit", "12")
    command += ("--device", "cpu", "--resamples", "199", "-q", "-o", "out")
    code, out, err = run(*command)
    assert code == 0, err
    summary = json.loads(Path("out/summary.json").read_text())
    assert [c["name"] for c in summary["checkpoints"]] == ["llama-2", "llama-3"]
    checkpoint = load_checkpoint(a, device="cpu")
    data = load_data(records, checkpoint.tokenizer, max_length=128, limit=12)
    expected = measure_forgetting(load_checkpoint(base, device="cpu"), checkpoint, {"old": data}, resamples=199)
    found = summary["checkpoints"][0]["tasks"][0]
    assert found["forgetting"] == pytest.approx(expected.tasks[0].forgetting, rel=1e-6)
    assert f"{found['forgetting']:+.4f}" in out
    assert run(*command)[1] == out
    code, _, err = run("forgetting", base, "--data", records)
    assert code == 2


def test_models_are_checked_on_the_first_task_and_tokens_on_each():
    base, tuned = build_model("llama", 1), build_model("llama", 2)
    drawn = np.random.default_rng(0)

    def text(name, highest):
        rows = drawn.integers(1, highest, (12, 10)).tolist()
        return TokenData(name, tuple(Example(tuple(row), tuple(row)) for row in rows))

    texts = {name: text(name, 300) for name in ("one", "two", "three")}
    passes = []
    handle = tuned.get_input_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))
    together = measure_forgetting(base, tuned, texts, resamples=99)
    once = len(passes)
    alone = [measure_forgetting(base, tuned, {name: data}, resamples=99).tasks[0] for name, data in texts.items()]
    handle.remove()
    assert list(together.tasks) == alone  # every number, and every interval
    # One pass over one batch each; all else is checks, which three calls make three times.
    assert len(passes) - once == 3 * (once - 3 + 1)
    with pytest.raises(InputError, match=r"no token of the model.s vocabulary of 320"):
        measure_forgetting(base, tuned, {**texts, "wrong": text("wrong", 100_000)}, resamples=99)


def test_a_task_that_shows_nothing_of_the_model_leaves_the_checks_to_the_next():
    """One example alone cannot show that the loss depends on which examples are together."""
    base = build_model("llama", 1)
    embeddings = base.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: output + output.mean(0, keepdim=True))
    drawn = np.random.default_rng(0)
    rows = [tuple(row) for row in drawn.integers(1, 300, (9, 10)).tolist()]
    one, many = (TokenData("text", tuple(Example(row, row) for row in part)) for part in (rows[:1], rows[1:]))
    with pytest.raises(InputError, match=r"the same 3 examples is"), pytest.warns(MeasurementWarning, match=r"1 examp"):
        measure_forgetting(base, base, {"one": one, "many": many}, resamples=99)
