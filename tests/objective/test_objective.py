"""Token-weighted loss and gradient: law 1, and equality with transformers' own loss."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, build_model, make_batches, plain_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import landscape.objective.head
from landscape.errors import InputError
from landscape.objective.causal import CausalLoss
from landscape.objective.head import linear_cross_entropy
from landscape.objective.loss_functions import loss_name, supervised_loss
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_transformers_own_weighted_by_tokens(architecture, token_batches):
    model = build_model(architecture)
    objective = Objective(model, token_batches(rows=3))
    # 1e-5: the bound; rounding of float32 logits under different padding is about 1e-7
    assert objective.loss().mean == pytest.approx(plain_loss(model, token_batches(rows=3)), rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_computed_at_supervised_positions_only(architecture, token_batches):
    model = build_model(architecture)
    objective = Objective(model, token_batches(rows=3))
    assert objective.loss_fn.at_supervised
    rows = []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, a, out: rows.append(out.shape[:-1].numel()))
    weight = objective.loss().weight
    handle.remove()
    # gemma2 caps what its head returns, so its head must run; the others' heads are run by us, a chunk at a time
    capped = architecture == "gemma2"
    assert objective.loss_fn.linear_head != capped
    assert sum(rows) == (weight if capped else 3)


@pytest.mark.parametrize("chunk", [1, 64, 2**22])
@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy_of_a_linear_head_and_its_derivatives(monkeypatch, chunk, bias):
    monkeypatch.setattr(landscape.objective.head, "_CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(9, dtype=torch.float64, requires_grad=True) if bias else None
    targets = torch.tensor([0, 8, 3, 3, 1, 5, 0])
    inputs = [t for t in (hidden, weight, offset) if t is not None]

    def plain(*inputs):
        return F.cross_entropy(F.linear(*inputs), targets, reduction="sum")

    def ours(*inputs):
        return linear_cross_entropy(inputs[0], inputs[1], inputs[2] if bias else None, targets)

    along = [torch.randn_like(t) for t in inputs]
    found = {}
    for function in (plain, ours):
        value = function(*inputs)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        second = torch.autograd.grad(first, inputs, grad_outputs=along)
        # scaled and added to other paths, as in a model
        mixed = torch.autograd.grad((function(*inputs) * 3 + hidden.pow(3).sum()), inputs, create_graph=True)
        third = torch.autograd.grad(mixed[0], hidden, grad_outputs=along[0])
        found[function] = [value, *first, *second, *third]
    # float64 rounding of sums over 9 words
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in zip(*found.values(), strict=True))


def test_a_model_whose_loss_is_not_plain_cross_entropy_falls_back_to_its_own(token_batches):
    class Penalized(type(build_model("llama"))):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if output.loss is not None:
                output.loss = output.loss + 0.25  # such as a router's balance term
            return output

    model = build_model("llama")
    plain = Objective(model, token_batches()).loss().mean
    model.__class__ = Penalized
    objective = Objective(model, token_batches())
    assert not objective.loss_fn.at_supervised
    assert objective.loss().mean == pytest.approx(plain + 0.25, rel=1e-6)


def test_a_model_that_changes_logits_across_positions_falls_back(token_batches):
    class Centered(type(build_model("llama"))):
        def forward(self, *args, labels=None, **kwargs):
            output = super().forward(*args, **kwargs)
            so_far = torch.arange(1, output.logits.shape[1] + 1)[:, None]
            output.logits = output.logits - output.logits.cumsum(1) / so_far  # mixes positions, backwards only
            if labels is not None:
                output.loss = self.loss_function(output.logits, labels, vocab_size=self.config.vocab_size)
            return output

    model = build_model("llama")
    model.__class__ = Centered
    batches = token_batches(rows=2)
    objective = Objective(model, batches)
    assert not objective.loss_fn.at_supervised
    with torch.no_grad():
        counts = [int((b["labels"][:, 1:] != -100).sum()) for b in batches]
        expected = sum(float(model(**b).loss) * n for b, n in zip(batches, counts, strict=True)) / sum(counts)
    assert objective.loss().mean == pytest.approx(expected, rel=1e-5)


@given(rows=st.integers(1, 7), seed=st.integers(0, 50))
@settings(max_examples=12, deadline=None)
def test_batching_changes_nothing(rows, seed):
    model = build_model("llama")
    parameters = Parameters(model)
    one, other = Objective(model, make_batches(rows=rows, seed=seed)), Objective(model, make_batches(rows=7, seed=seed))
    loss, gradient = one.gradient(parameters)
    expected, expected_gradient = other.gradient(parameters)
    assert loss.mean == pytest.approx(expected.mean, rel=1e-6)
    assert loss.weight == expected.weight
    for name in gradient:
        scale = float(expected_gradient[name].abs().max())
        assert torch.allclose(gradient[name], expected_gradient[name], rtol=1e-4, atol=1e-5 * scale + 1e-9), name


def test_unequal_batches_are_not_averaged_by_batch(token_batches):
    model = build_model("llama")
    batches = token_batches(rows=3)
    with torch.no_grad():
        by_batch = sum(float(model(**b).loss) for b in batches) / len(batches)
    assert abs(Objective(model, batches).loss().mean - by_batch) > 1e-3  # what peers report


def test_gradient_is_that_of_the_weighted_mean_in_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(11, 4, dtype=torch.float64), torch.randint(0, 3, (11,))
    expected = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    batches = [(inputs[:2], targets[:2]), (inputs[2:9], targets[2:9]), (inputs[9:], targets[9:])]
    loss, gradient = Objective(model, batches).gradient(Parameters(model))
    assert loss.mean == pytest.approx(float(F.cross_entropy(model(inputs), targets)), rel=1e-14)
    for found, wanted in zip(gradient.values(), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_without_influence_has_gradient_zero(token_batches):
    model = build_model("llama")
    model.unused = nn.Parameter(torch.ones(3))
    _, gradient = Objective(model, token_batches()).gradient(Parameters(model))
    assert torch.equal(gradient["unused"], torch.zeros(3))


@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([0, 2, -100, 1])),
        (nn.CrossEntropyLoss(reduction="sum"), torch.tensor([0, 2, -100, 1])),
        (F.cross_entropy, torch.tensor([0, 2, -100, 1])),
        (nn.MSELoss(), torch.randn(4, 3)),
        (F.mse_loss, torch.randn(4, 3)),
    ],
)
def test_supervised_loss_is_the_mean_over_terms_however_batched(criterion, targets):
    model = nn.Linear(5, 3)
    inputs = torch.randn(4, 5)
    whole = Objective(model, [(inputs, targets)], supervised_loss(criterion)).loss()
    parts = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(4)]
    assert Objective(model, parts, supervised_loss(criterion)).loss().mean == pytest.approx(whole.mean, rel=1e-6)
    reference = F.cross_entropy if targets.ndim == 1 else F.mse_loss
    with torch.no_grad():
        assert whole.mean == pytest.approx(float(reference(model(inputs), targets)), rel=1e-6)


@pytest.mark.parametrize(
    "criterion",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        functools.partial(F.cross_entropy, label_smoothing=0.1),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ],
)
@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3)])
def test_class_probabilities_make_one_term_each(criterion, shape):
    torch.manual_seed(0)
    outputs, targets = torch.randn(shape), torch.softmax(torch.randn(shape), 1)
    total, weight = supervised_loss(criterion)(nn.Identity(), (outputs, targets))
    assert weight == targets.numel() / 5
    assert float(total) / weight == pytest.approx(float(criterion(outputs, targets)), rel=1e-6)


def test_the_default_for_pairs_knows_class_probabilities():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(4, 5), torch.randn(8, 4), torch.softmax(torch.randn(8, 5), 1)
    with torch.no_grad():
        expected = float(F.cross_entropy(model(inputs), targets))
    assert Objective(model, [(inputs, targets)]).loss() == (pytest.approx(expected, rel=1e-6), 8)


def test_options_bound_to_a_criterion_count():
    torch.manual_seed(0)
    outputs, targets = torch.randn(8, 5), torch.tensor([0, 3, 1, 3, 2, 4, 3, 0])
    ignoring = functools.partial(functools.partial(F.cross_entropy, label_smoothing=0.1), ignore_index=3)
    total, weight = supervised_loss(ignoring)(nn.Identity(), (outputs, targets))
    assert weight == 5
    assert float(total) / weight == pytest.approx(float(ignoring(outputs, targets)), rel=1e-6)


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "class weights"),
        (functools.partial(F.cross_entropy, weight=torch.ones(3)), "class weights"),
        (nn.KLDivLoss(reduction="batchmean"), "'batchmean' does not average over terms"),
        (functools.partial(F.kl_div, reduction="batchmean"), "batchmean"),
    ],
)
def test_criteria_whose_mean_is_not_over_terms_are_refused(criterion, words):
    with pytest.raises(InputError, match=words):
        supervised_loss(criterion)


@pytest.mark.parametrize(
    ("loss_fn", "other"),
    [
        (supervised_loss(nn.CrossEntropyLoss()), supervised_loss(nn.CrossEntropyLoss(label_smoothing=0.1))),
        (supervised_loss(F.mse_loss), supervised_loss(F.l1_loss)),
        (supervised_loss(functools.partial(F.cross_entropy, ignore_index=1)), supervised_loss(F.cross_entropy)),
        (CausalLoss(True), CausalLoss(False)),
        (plain_loss, make_batches),
        (torch.dist, torch.dot),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), nn.BCEWithLogitsLoss(pos_weight=torch.zeros(2))),
    ],
)
def test_a_loss_is_told_from_another_by_its_name(loss_fn, other):
    assert loss_name(loss_fn) == loss_name(copy.copy(loss_fn))
    assert loss_name(loss_fn) != loss_name(other)
    assert " at 0x" not in loss_name(loss_fn)  # an address is another one in the next process
    assert loss_name(None) is None


def test_a_generator_is_refused_because_it_can_be_read_once(token_batches):
    model = build_model("llama")
    with pytest.raises(InputError, match="only once"):
        Objective(model, (batch for batch in token_batches()))


def test_bad_token_data_is_refused_in_words(token_batches):
    model = build_model("llama")
    batches = token_batches()
    nothing = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in batches]
    with pytest.raises(InputError, match="no supervised token"):
        Objective(model, nothing)
    beyond = [batch | {"input_ids": batch["input_ids"] + 300} for batch in batches]
    with pytest.raises(InputError, match=r"token id \d+ .* vocabulary of 320"):
        Objective(model, beyond)
    long = [{key: value.repeat(1, 20) for key, value in batch.items()} for batch in batches]
    with pytest.raises(InputError, match="longer than the model's 128 positions"):
        Objective(model, long)
    negative = [batch | {"input_ids": batch["input_ids"] - 5} for batch in batches]
    with pytest.raises(InputError, match=r"token id -\d in the data is negative"):
        Objective(model, negative)
    for label in (320, 5000, -5):
        wrong = [{key: value.clone() for key, value in batch.items()} for batch in batches]
        wrong[1]["labels"][0, 3] = label
        with pytest.raises(InputError, match=f"label {label} in the data is no token"):
            Objective(model, wrong)
        wrong[1]["labels"][0, 3], wrong[1]["labels"][0, 0] = -100, label  # the first label is never predicted
        Objective(model, wrong).loss()
    for other in ({"input_ids": batches[1]["input_ids"]}, (torch.zeros(2), torch.zeros(2))):
        with pytest.raises(InputError, match="batch 2 of the data has no 'labels'"):
            Objective(model, [batches[0], other])
    with pytest.raises(InputError, match="holds no batch"):
        Objective(model, [])
    with pytest.raises(InputError, match="pass loss_fn"):
        Objective(model, [torch.zeros(3)])


def test_a_non_finite_loss_is_returned_as_it_is(token_batches):
    model = build_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    assert torch.tensor(Objective(model, token_batches()).loss().mean).isnan()


def test_rows_without_any_supervised_token_do_no_harm(token_batches):
    model = build_model("llama")
    batches = token_batches(rows=1)
    expected = Objective(model, batches).loss()
    empty = {key: value.clone() for key, value in batches[0].items()}
    empty["labels"][:] = -100
    for at_supervised in (True, False):
        found = Objective(model, [empty, *batches], CausalLoss(at_supervised)).loss()
        assert found.mean == pytest.approx(expected.mean, rel=1e-6)


@pytest.mark.parametrize(
    "form", [CausalLoss(True, linear_head=True), CausalLoss(True), CausalLoss(False)], ids=["linear", "some", "all"]
)
def test_half_precision_logits_are_summed_in_float32(form, token_batches):
    """Rejects a softmax in bfloat16, even where its losses are summed in float64: here it is off by 1e-5 and more."""
    model = build_model("llama").to(torch.bfloat16)
    batches = token_batches(rows=3)
    total = rounded = weight = 0.0
    for batch in batches:
        with torch.no_grad():
            logits = form.outputs(model, batch)  # bfloat16, those that the loss is of
        targets = batch["labels"][:, 1:]
        targets = targets[targets != -100]
        total += float(F.cross_entropy(logits.double(), targets, reduction="sum"))
        rounded += float(F.cross_entropy(logits, targets, reduction="none").double().sum())
        weight += len(targets)
    assert abs(rounded / total - 1) > 1e-5, "the test can tell"
    assert Objective(model, batches, form).loss().mean == pytest.approx(total / weight, rel=1e-6)


def test_gradients_of_frozen_parameters_can_be_had():
    model = build_model("llama")
    expected = Objective(model, make_batches()).gradient(Parameters(model))[1]
    model.requires_grad_(False)
    found = Objective(model, make_batches()).gradient(Parameters(model, frozen=True))[1]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.requires_grad for p in model.parameters())
