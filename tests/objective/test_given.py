"""What a caller of the Python functions gives: what simply works, and the sentence where it does not."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import build_model, plain_loss
from torch import nn

from landscape import (
    InputError,
    Run,
    Scope,
    compute_interpolation,
    compute_sharpness,
    compute_surface,
    hessian_trace,
    load_checkpoint,
    load_data,
    measure_forgetting,
    supervised_loss,
)

PAIRS = [(torch.ones(3, 2), torch.zeros(3, 1))]
QUIET = {"points": 3, "dim": 1, "run": Run()}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


@pytest.mark.parametrize("measure", [compute_surface, compute_sharpness, hessian_trace])
def test_a_path_in_place_of_a_model_is_answered_with_the_call_that_loads_it(measure, tmp_path):
    """Rejects an AttributeError about parameters of a str."""
    for path in (tmp_path / "run", str(tmp_path / "run")):
        with pytest.raises(InputError, match=r"the model is the path '.*run'; give load_checkpoint\('.*run'\)"):
            measure(path, PAIRS)
    with pytest.raises(InputError, match="the model is a dict"):
        measure({}, PAIRS)


def test_a_path_among_several_models_is_refused_too(linear):
    with pytest.raises(InputError, match=r"give load_checkpoint\('b'\)"):
        compute_interpolation(linear, "b", PAIRS)
    with pytest.raises(InputError, match=r"give load_checkpoint\('tuned'\)"):
        measure_forgetting(linear, "tuned", {"old": PAIRS})


@pytest.mark.parametrize("data", ["tasks.jsonl", {"input_ids": torch.ones(1, 3)}, torch.ones(3, 2), 7])
def test_what_holds_no_batches_is_refused(linear, data):
    words = "give load_data" if isinstance(data, str) else r"give a list of batches|not batches"
    with pytest.raises(InputError, match=words):
        compute_surface(linear, data, **QUIET)


@pytest.mark.parametrize(
    ("criterion", "right"),
    [
        (nn.MSELoss(), r"supervised_loss\(nn\.MSELoss"),
        (nn.CrossEntropyLoss, r"supervised_loss\(nn\.CrossEntropyLoss"),
        (F.mse_loss, r"supervised_loss\(mse_loss\)"),
        (functools.partial(F.cross_entropy, label_smoothing=0.1), r"supervised_loss\(cross_entropy\)"),
        ("mse", "not a function"),
    ],
)
def test_a_criterion_in_place_of_a_loss_function_is_answered_with_the_right_call(linear, criterion, right):
    with pytest.raises(InputError, match=right):
        compute_surface(linear, PAIRS, scope=Scope(loss_fn=criterion), **QUIET)


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), "returned one tensor"),
        # Two elements unpack as if they were a loss and its weight: the old code went on with them.
        (lambda model, batch: (model(batch[0]) - batch[1])[:2, 0] ** 2, "returned one tensor"),
        (lambda model, batch: ((model(batch[0]) - batch[1]) ** 2, 3), r"loss_sum of shape \(3, 1\)"),
        (lambda model, batch: float(F.mse_loss(model(batch[0]), batch[1])), "returned a float"),
    ],
)
def test_a_loss_function_has_to_return_a_sum_and_its_weight(linear, loss_fn, words):
    with pytest.raises(InputError, match=words):
        compute_surface(linear, PAIRS, scope=Scope(loss_fn=loss_fn), **QUIET)


def test_the_right_call_is_right(linear):
    surface = compute_surface(linear, PAIRS, scope=Scope(loss_fn=supervised_loss(nn.MSELoss())), **QUIET)
    assert surface.center == pytest.approx(float(F.mse_loss(linear(PAIRS[0][0]), PAIRS[0][1]).detach()), rel=1e-6)


@pytest.fixture
def rows(records):
    return [json.loads(line) for line in records.read_text().splitlines()]


def test_a_list_of_records_is_read_with_the_tokenizer_of_the_checkpoint(save_checkpoint_folder, records, rows):
    """Rejects the old refusal, and any other tokens than those of the file of the same records."""
    checkpoint = load_checkpoint(save_checkpoint_folder("llama", seed=1), device="cpu")
    from_file = compute_surface(checkpoint, load_data(records, checkpoint.tokenizer), **QUIET)
    given = compute_surface(checkpoint, rows, **QUIET)
    assert given.loss.tolist() == from_file.loss.tolist()
    assert given.provenance.data["digest"] == from_file.provenance.data["digest"]
    with pytest.raises(InputError, match=r"a module has no tokenizer.*load_data\(records, tokenizer\)"):
        compute_surface(checkpoint.model, rows, **QUIET)


def test_records_are_cut_to_the_positions_of_the_model(save_checkpoint_folder):
    checkpoint = load_checkpoint(save_checkpoint_folder("gpt2", seed=1), device="cpu")
    surface = compute_surface(checkpoint, [{"text": "a fox and a dog " * 200}], **QUIET)
    assert surface.weight == 127, "the model has 128 positions, the first of which is not predicted"


@pytest.mark.parametrize("as_tensors", [True, False])
def test_a_list_of_single_examples_makes_batches(as_tensors):
    """Rejects a mean of the examples' means: their lengths differ."""
    model = build_model("llama", seed=3)
    lists = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    examples = [{"input_ids": ids, "labels": ids} for ids in lists]
    if as_tensors:
        examples = [{key: torch.tensor(value) for key, value in example.items()} for example in examples]
    batches = [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])} for ids in lists]
    expected = plain_loss(model, [batch | {"attention_mask": torch.ones_like(batch["labels"])} for batch in batches])
    surface = compute_surface(model, examples, **QUIET)
    assert surface.center == pytest.approx(expected, rel=1e-6)  # float32 rounding; means of means differ by 1e-2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "example 2 has no 'labels'"),
        ({"labels": [5]}, "example 2 does not have as many"),
        ({"labels": [0.5, 1.0, 2.0]}, "example 2 does not have as many"),
        ({"attention_mask": [1, 1, 0]}, "example 2 is padded"),
    ],
)
def test_a_damaged_example_is_named(change, words):
    good = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    with pytest.raises(InputError, match=words):
        compute_surface(build_model("llama"), [good, good | change], **QUIET)


def test_the_tokenizer_has_to_be_one(records, save_checkpoint_folder):
    folder = save_checkpoint_folder("llama", seed=1)
    with pytest.raises(InputError, match=r"the tokenizer is the path .*give load_checkpoint\(.*\)\.tokenizer"):
        load_data(records, folder)
    with pytest.raises(InputError, match=r"the tokenizer is a Checkpoint; give its \.tokenizer"):
        load_data(records, load_checkpoint(folder, device="cpu"))
    with pytest.raises(InputError, match="is a NoneType"):
        load_data(records, None)
