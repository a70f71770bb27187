"""SAM against its formula, the base optimizer, and the weights it must bring back."""

import math
import warnings

import pytest
import torch
from conftest import VOCABULARY, Quadratic, build_model, make_batches
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from landscape.errors import InputError, MeasurementWarning
from landscape.training.ascent import ascend
from landscape.training.sam import SAM
from landscape.training.sam_trainer import SAMTrainer


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def closure_of(model, optimizer, count=None):
    def closure():
        optimizer.zero_grad()
        loss = model(None)
        loss.backward()
        if count is not None:
            count.append(flat(model).clone())
        return loss

    return closure


def test_a_step_on_a_quadratic_is_the_formula(quadratic):
    w, a, center = flat(quadratic), quadratic.matrix, quadratic.center
    rho, lr, places = 0.3, 0.1, []
    optimizer = SAM(quadratic.parameters(), torch.optim.SGD, rho=rho, lr=lr)
    loss = optimizer.step(closure_of(quadratic, optimizer, places))
    gradient = a @ (w - center)
    up = w + rho * gradient / gradient.norm()
    assert len(places) == 2  # exactly two gradients, at w and at w + eps
    assert torch.equal(places[0], w)
    assert torch.allclose(places[1], up, rtol=1e-14)
    assert torch.allclose(flat(quadratic), w - lr * a @ (up - center), rtol=1e-14)
    assert float(loss.detach()) == pytest.approx(float(0.5 * (w - center) @ a @ (w - center)))
    assert optimizer.ascent.radius == pytest.approx(rho, rel=1e-14)


def test_an_adaptive_step_is_the_formula(quadratic):
    w, a, center = flat(quadratic), quadratic.matrix, quadratic.center
    places = []
    optimizer = SAM(quadratic.parameters(), torch.optim.SGD, rho=0.3, adaptive=True, lr=0.1)
    optimizer.step(closure_of(quadratic, optimizer, places))
    gradient = a @ (w - center)
    scaled = w.abs() * gradient
    assert torch.allclose(places[1], w + 0.3 * w.abs() * scaled / scaled.norm(), rtol=1e-13)


@pytest.mark.parametrize("adaptive", [False, True])
def test_groups_of_one_rho_are_the_whole_model(quadratic, adaptive):
    twin, together, apart = Quadratic(quadratic.matrix, quadratic.center, flat(quadratic)), [], []
    one = SAM(quadratic.parameters(), torch.optim.SGD, rho=0.3, adaptive=adaptive, lr=0.1)
    groups = [{"params": [twin.first], "rho": 0.3}, {"params": [twin.second], "adaptive": adaptive}]
    two = SAM(groups, torch.optim.SGD, rho=0.3, adaptive=adaptive, lr=0.1)
    one.step(closure_of(quadratic, one, together))
    two.step(closure_of(twin, two, apart))
    assert torch.equal(together[1], apart[1])
    assert torch.equal(flat(quadratic), flat(twin))


def test_each_group_has_its_own_radius_and_kind(quadratic):
    w, places = flat(quadratic), []
    groups = [{"params": [quadratic.first], "rho": 9.0}, {"params": [quadratic.second], "adaptive": True}]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.1, lr=0.1)
    optimizer.step(closure_of(quadratic, optimizer, places))
    gradient = quadratic.matrix @ (w - quadratic.center)
    scale = torch.cat([torch.ones(2).double(), w[2:].abs()])
    rho = torch.tensor([9.0, 9.0, 0.1, 0.1], dtype=torch.float64)
    step = rho * scale**2 * gradient / (scale * gradient).norm()
    assert torch.allclose(places[1], w + step, rtol=1e-13, atol=0)
    assert optimizer.ascent.radius == pytest.approx(float(step.norm()), rel=1e-12)


def test_a_group_without_radius_neither_moves_nor_counts(quadratic):
    w, places = flat(quadratic), []
    groups = [{"params": [quadratic.first], "rho": 0.0}, {"params": [quadratic.second]}]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.3, lr=0.1)
    optimizer.step(closure_of(quadratic, optimizer, places))
    gradient = (quadratic.matrix @ (w - quadratic.center))[2:]
    assert torch.equal(places[1][:2], w[:2])
    assert torch.allclose(places[1][2:], w[2:] + 0.3 * gradient / gradient.norm(), rtol=1e-14, atol=0)


def test_a_radius_changed_on_the_way_holds_for_the_next_step(quadratic):
    optimizer = SAM(quadratic.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    optimizer.param_groups[0]["rho"] = 0.02  # as a schedule does
    optimizer.step(closure_of(quadratic, optimizer))
    assert optimizer.ascent.radius == pytest.approx(0.02, rel=1e-14)


def test_closed_form_of_one_step_sharpness():
    # By hand: A = diag(1,2,3,4), w - center = 1, rho = 0.5: L(w + eps) - L(w) = 3.1552794542
    model = Quadratic(torch.diag(torch.tensor([1.0, 2, 3, 4])), torch.zeros(4), torch.ones(4))
    before = model(None)
    before.backward()
    ascent = ascend(model.parameters(), 0.5)
    assert float(model(None).detach() - before.detach()) == pytest.approx(3.1552794542, abs=1e-10)
    ascent.undo()
    assert torch.equal(flat(model), torch.ones(4).double())


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_rho_zero_is_the_base_optimizer_exactly(base):
    torch.manual_seed(0)
    one, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(20, 5)
    sam, plain = SAM(one.parameters(), base, rho=0, lr=0.1), base(other.parameters(), lr=0.1)
    for _ in range(5):

        def closure():
            sam.zero_grad()
            loss = one(inputs).square().mean()
            loss.backward()
            return loss

        sam.step(closure)
        plain.zero_grad()
        other(inputs).square().mean().backward()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_two_step_use_equals_closure_use(quadratic):
    twin = Quadratic(quadratic.matrix, quadratic.center, flat(quadratic))
    sam = SAM(quadratic.parameters(), torch.optim.AdamW, rho=0.2, lr=0.05)
    other = SAM(twin.parameters(), torch.optim.AdamW, rho=0.2, lr=0.05)
    for _ in range(3):
        sam.step(closure_of(quadratic, sam))
        twin(None).backward()
        other.first_step()
        other.zero_grad()
        twin(None).backward()
        other.second_step()
        other.zero_grad()
    assert torch.equal(flat(quadratic), flat(twin))


def test_the_radius_is_that_of_the_whole_model_not_of_each_tensor():
    model = build_model("llama")
    model(**make_batches()[0]).loss.backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ascent = ascend(model.parameters(), 0.05)
    moved = sum(float((p.detach().double() - before[n]).square().sum()) for n, p in model.named_parameters()) ** 0.5
    assert moved == pytest.approx(0.05, rel=1e-4)  # float32 weights
    assert ascent.radius == pytest.approx(moved, rel=1e-9)
    ascent.undo()
    assert all(torch.equal(p.detach(), before[n]) for n, p in model.named_parameters())


def test_a_gradient_of_zero_moves_nothing():
    model = nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = flat(model)
    assert ascend(model.parameters(), 1.0).radius == 0
    assert torch.equal(flat(model), before)


def test_an_interrupted_step_leaves_the_weights_where_they_were(quadratic):
    optimizer = SAM(quadratic.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    before, calls = flat(quadratic), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = quadratic(None)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(flat(quadratic), before)


def test_a_step_that_bfloat16_swallows_warns():
    model = build_model("llama").to(torch.bfloat16)
    model(**make_batches()[0]).loss.backward()
    with pytest.warns(MeasurementWarning, match="rounded"):
        ascent = ascend(model.parameters(), 0.01)
    assert not ascent.fidelity.faithful
    ascent.undo()


def test_state_round_trip_continues_the_same_run(quadratic, tmp_path):
    twin = Quadratic(quadratic.matrix, quadratic.center, flat(quadratic))
    sam = SAM(quadratic.parameters(), torch.optim.AdamW, rho=0.2, lr=0.05)
    for _ in range(3):
        sam.step(closure_of(quadratic, sam))
    twin.load_state_dict(quadratic.state_dict())
    other = SAM(twin.parameters(), torch.optim.AdamW, rho=0.2, lr=0.05)
    torch.save(sam.state_dict(), tmp_path / "state")  # loading without a file would share tensors, as torch's own do
    other.load_state_dict(torch.load(tmp_path / "state"))
    for _ in range(3):
        sam.step(closure_of(quadratic, sam))
        other.step(closure_of(twin, other))
    assert torch.equal(flat(quadratic), flat(twin))


def test_a_state_of_the_base_optimizer_alone_is_taken_over(quadratic):
    twin = Quadratic(quadratic.matrix, quadratic.center, flat(quadratic))
    plain = torch.optim.AdamW(quadratic.parameters(), lr=0.05)
    quadratic(None).backward()
    plain.step()
    sam = SAM(twin.parameters(), torch.optim.AdamW, rho=0.2, lr=0.01)
    sam.load_state_dict(plain.state_dict())
    (group,) = sam.param_groups
    assert (group["rho"], group["adaptive"], group["lr"]) == (0.2, False, 0.05)
    assert len(sam.state) == 2
    sam.step(closure_of(twin, sam))
    assert sam.ascent.radius == pytest.approx(0.2)


def test_one_copy_of_the_weights_that_moved_and_none_between_steps(quadratic):
    groups = [{"params": [quadratic.first], "rho": 0.0}, {"params": [quadratic.second]}]
    sam = SAM(groups, torch.optim.SGD, rho=0.2, lr=0.05)
    before = flat(quadratic)
    quadratic(None).backward()
    sam.first_step()
    assert sum(copy.numel() for _, copy in sam.ascent.weights) == quadratic.second.numel()
    with pytest.raises(InputError, match="first step already"):
        sam.first_step()
    sam.restore()
    assert torch.equal(flat(quadratic), before)
    assert sam.ascent.weights == []
    assert sam.ascent.radius == pytest.approx(0.2)


@pytest.mark.parametrize("adaptive", [False, True])
def test_tensors_of_any_shape_and_layout_move_by_the_formula(adaptive):
    torch.manual_seed(0)
    shapes = [(), (0, 3), (300, 501), (70_000,)]  # the last two take more than one piece
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    parameters.append(nn.Parameter(torch.randn(40, 2000, dtype=torch.float64).T))  # not contiguous
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64)
    scales = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
    norm = math.sqrt(sum(float((s * p.grad).square().sum()) for s, p in zip(scales, parameters, strict=True)))
    wanted = [p.detach() + 0.1 * s**2 * p.grad / norm for s, p in zip(scales, parameters, strict=True)]
    before = [p.detach().clone() for p in parameters]
    ascent = ascend(parameters, 0.1, adaptive)
    for parameter, place in zip(parameters, wanted, strict=True):
        assert torch.allclose(parameter, place, rtol=1e-12, atol=1e-15)
    ascent.undo()
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_a_gradient_that_is_not_finite_moves_nothing_and_says_so():
    model = nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.inf)
    before = flat(model)
    assert math.isnan(ascend(model.parameters(), 1.0).radius)
    assert torch.equal(flat(model), before)


def test_where_warnings_are_errors_the_weights_are_back():
    model = build_model("llama").to(torch.bfloat16)
    model(**make_batches()[0]).loss.backward()
    before = flat(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MeasurementWarning):
            ascend(model.parameters(), 0.01)
    assert torch.equal(flat(model), before)


def test_the_ascent_of_scaled_gradients_is_the_same(quadratic):
    twin, places = Quadratic(quadratic.matrix, quadratic.center, flat(quadratic)), []
    for model, scale in ((quadratic, 1.0), (twin, 65536.0)):
        (model(None) * scale).backward()
        ascend(model.parameters(), 0.3)
        places.append(flat(model))
    assert torch.allclose(*places, rtol=1e-14)


def test_a_learning_rate_scheduler_sees_the_steps(quadratic):
    sam = SAM(quadratic.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(sam, 0.5, 1.0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quadratic(None).backward()
        sam.first_step()
        sam.zero_grad()
        quadratic(None).backward()
        sam.second_step()
        scheduler.step()
    assert sam.base_optimizer.param_groups[0]["lr"] == pytest.approx(0.075)


def test_wrong_use_is_refused_in_words(quadratic):
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        ascend(embedding.parameters(), 0.1)
    with pytest.raises(InputError, match="after its first_step"):
        SAM(quadratic.parameters(), torch.optim.SGD, lr=0.1).second_step()
    with pytest.raises(InputError, match="rho=-1"):
        SAM(quadratic.parameters(), torch.optim.SGD, rho=-1, lr=0.1)
    for rho in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"rho={rho}"):
            SAM([{"params": quadratic.parameters(), "rho": rho}], torch.optim.SGD, lr=0.1)
    with pytest.raises(InputError, match="two gradients"):
        SAM(quadratic.parameters(), torch.optim.SGD, lr=0.1).step()


class InOrder:
    """Trains on the examples in their order, so that a test knows which make up a batch."""

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class OrderedSAM(InOrder, SAMTrainer):
    pass


class Ordered(InOrder, Trainer):
    pass


def trainer_arguments(folder, **changes):
    # gradient descent: differences of gradients stay as small as they are, while Adam's first steps have its sign
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 4,
        "report_to": "none", "logging_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0,
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "disable_tqdm": True, "save_strategy": "no", "seed": 3,
    }  # fmt: skip
    return TrainingArguments(**defaults | changes)


def examples(count=7):
    (batch,) = make_batches(rows=count, examples=count)  # no two have the same number of supervised tokens
    return [{key: value[row] for key, value in batch.items()} for row in range(count)]


def trained(folder, kind=OrderedSAM, *, count=8, architecture="llama", changes=None, model=None, **options):
    """A trainer that has trained a model of seed 1 on `count` examples."""
    model = model or build_model(architecture, seed=1)
    arguments = trainer_arguments(folder, **changes or {})
    trainer = kind(model=model, args=arguments, train_dataset=examples(count), **options)
    trainer.train()
    return trainer


def batches_of(rows, size):
    return [
        {key: torch.stack([row[key] for row in rows[start : start + size]]) for key in rows[0]}
        for start in range(0, len(rows), size)
    ]


def gradient_at_ascent(model, ascent_batches, descent_batches, items, rho, adaptive=False):
    """Gradient of the descent batches' loss at w + eps of the ascent batches; by autograd alone, w left in place."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(batches):
        loss = sum(model(**batch, num_items_in_batch=items).loss for batch in batches)
        return torch.autograd.grad(loss, parameters)

    first, before = gradient(ascent_batches), [p.detach().clone() for p in parameters]
    scales = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
    norm = math.sqrt(sum(float((s * g).double().square().sum()) for s, g in zip(scales, first, strict=True)))
    with torch.no_grad():
        for p, s, g in zip(parameters, scales, first, strict=True):
            p += rho * s**2 * g / norm
    second = gradient(descent_batches)
    with torch.no_grad():
        for p, b in zip(parameters, before, strict=True):
            p.copy_(b)
    return torch.cat([g.flatten() for g in second])


def items_of(batches):
    return sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)


def assert_close(update, wanted, tolerance=1e-4):
    """Updates in float32: their relative distance is that of sums taken in another order, at weights near 1."""
    assert float((update - wanted).norm() / wanted.norm()) < tolerance


START = flat(build_model("llama", seed=1))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("ascent", ["batch", "micro", "local"])
def test_the_trainer_takes_the_gradient_that_it_names(tmp_path, ascent, adaptive):
    changes = {"max_steps": 1, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, changes=changes, rho=0.5, ascent=ascent, adaptive=adaptive)
    model, batches = build_model("llama", seed=1), batches_of(examples(8), 4)
    groups = [[batch] for batch in batches] if ascent == "micro" else [batches]
    wanted = sum(gradient_at_ascent(model, group, group, items_of(batches), 0.5, adaptive) for group in groups)
    assert_close(flat(trainer.model) - START, -0.1 * wanted)
    other = [batches] if ascent == "micro" else [[batch] for batch in batches]
    unwanted = sum(gradient_at_ascent(model, group, group, items_of(batches), 0.5, adaptive) for group in other)
    assert float((wanted - unwanted).norm() / wanted.norm()) > 0.01  # so that the test can tell them apart


@pytest.mark.parametrize("ascent", ["batch", "micro"])
def test_the_ascent_of_normalization_layers_alone_is_written_out(tmp_path, ascent):
    """|g| is that of the norms, all weights train; rejects |g| of the whole model, and a step of the norms alone."""
    changes = {"max_steps": 1, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, changes=changes, rho=0.5, ascent=ascent, only_norms=True)
    model, batches = build_model("llama", seed=1), batches_of(examples(8), 4)
    names = [name for name, _ in model.named_parameters() if "norm" in name]
    assert len(names) == 2 * model.config.num_hidden_layers + 1
    wanted = sum(
        gradient_of_variant(model, group, items_of(batches), 0.5, names=names)
        for group in ([[batch] for batch in batches] if ascent == "micro" else [batches])
    )
    assert_close(flat(trainer.model) - START, -0.1 * wanted)
    assert trainer.ascent.radius == pytest.approx(0.5, rel=1e-4)
    whole = gradient_at_ascent(model, batches, batches, items_of(batches), 0.5)
    assert float((wanted - whole).norm() / whole.norm()) > 0.01, "the test can tell"


@pytest.mark.parametrize("ascent", ["batch", "micro"])
def test_functional_sam_keeps_the_derivative_in_the_logits(tmp_path, ascent):
    """J(w + eps)' dL/dF(w) by autograd, each factor on its own; rejects SAM, which takes both at w + eps."""
    changes = {"max_steps": 1, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, changes=changes, rho=0.5, ascent=ascent, functional=True)
    model, batches = build_model("llama", seed=1), batches_of(examples(8), 4)
    groups = [[batch] for batch in batches] if ascent == "micro" else [batches]
    wanted = sum(gradient_of_variant(model, group, items_of(batches), 0.5, functional=True) for group in groups)
    assert_close(flat(trainer.model) - START, -0.1 * wanted)
    sam = gradient_at_ascent(model, batches, batches, items_of(batches), 0.5)
    assert float((wanted - sam).norm() / sam.norm()) > 0.01, "the test can tell"


def test_functional_sam_refuses_mixed_precision_by_name(tmp_path):
    """accelerate returns a float32 copy of the logits; rejects the message that the loss would not be of the logits."""
    arguments = trainer_arguments(tmp_path, bf16=True)
    with pytest.raises(InputError, match=r"mixed precision.*bf16"):
        SAMTrainer(model=build_model("llama"), args=arguments, train_dataset=examples(4), functional=True)
    SAMTrainer(model=build_model("llama"), args=arguments, train_dataset=examples(4))  # SAM itself may


def test_functional_sam_refuses_the_auxiliary_loss_of_a_router(tmp_path):
    """Its gradient at w + eps would be left out without a word; without that loss the same model is trained."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2, "max_position_embeddings": 64}
    model = MixtralForCausalLM(MixtralConfig(**shape, output_router_logits=True))
    with pytest.raises(InputError, match="output_router_logits"):
        trained(tmp_path, model=model, functional=True)
    model.config.output_router_logits = False
    assert trained(tmp_path, model=model, functional=True).state.global_step == 2


class Returning(nn.Module):
    """A model that returns what `form` makes of the outputs of another."""

    def __init__(self, form):
        super().__init__()
        self.inner, self.form = build_model("llama", seed=1), form

    def forward(self, input_ids=None, labels=None, attention_mask=None):
        return self.form(self.inner(input_ids=input_ids, labels=labels, attention_mask=attention_mask))


@pytest.mark.parametrize(
    "form",
    [
        lambda out: type(out)(loss=out.loss),
        lambda out: {"loss": out.loss},
        lambda out: (out.loss, out.logits),
        lambda out: type(out)(loss=out.loss, logits=out.logits.detach()),
    ],
    ids=["no logits", "a dict", "a tuple", "logits without a graph"],
)
def test_functional_sam_without_logits_is_refused_in_a_sentence(tmp_path, form):
    with pytest.raises(InputError, match="returns its logits"):
        trained(tmp_path, model=Returning(form), functional=True)


def test_functional_sam_finds_the_logits_in_a_dict(tmp_path):
    """Rejects an AttributeError of a plain dict; the weights are those that the output of transformers gives."""
    plain = trained(tmp_path, model=Returning(lambda out: {"loss": out.loss, "logits": out.logits}), functional=True)
    output = trained(tmp_path, model=Returning(lambda out: out), functional=True)
    assert torch.equal(flat(plain.model), flat(output.model))


def gradient_of_variant(model, batches, items, rho, names=None, functional=False):
    """The gradient of two variants of SAM: `names` alone move, or the derivative in the logits is that at w."""
    named = dict(model.named_parameters())
    moving = names or list(named)
    outputs = [model(**batch, num_items_in_batch=items) for batch in batches]
    slopes = [torch.autograd.grad(out.loss, out.logits, retain_graph=True)[0] for out in outputs]
    first = torch.autograd.grad(sum(out.loss for out in outputs), [named[name] for name in moving])
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in first))
    moved = dict(named)
    for name, gradient in zip(moving, first, strict=True):
        moved[name] = named[name] + rho * gradient / norm
    total = 0
    for batch, slope in zip(batches, slopes, strict=True):
        out = torch.func.functional_call(model, moved, kwargs={**batch, "num_items_in_batch": items})
        total = total + ((out.logits * slope).sum() if functional else out.loss)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(named.values()))])


@pytest.mark.slow
@pytest.mark.parametrize("count", [32, 40])  # 40: the epoch ends with an accumulation of 2 and a batch of 8
def test_accumulation_of_4_by_8_is_a_batch_of_32(tmp_path, count):
    epoch = {"max_steps": -1, "num_train_epochs": 2}  # shuffled by the Trainer's own sampler
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    whole = {"per_device_train_batch_size": 32}
    one = trained(tmp_path, SAMTrainer, count=count, changes=epoch | parts, rho=0.5)
    other = trained(tmp_path, SAMTrainer, count=count, changes=epoch | whole, rho=0.5)
    assert one.state.global_step == other.state.global_step == 2 * math.ceil(count / 32)
    assert_close(flat(one.model) - START, flat(other.model) - START)
    for a, b in zip(one.state.log_history[:-1], other.state.log_history[:-1], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["sam_radius"] == pytest.approx(0.5, rel=1e-4)  # rounding of float32 weights


def test_gradients_of_an_accumulation_that_the_data_cut_short_are_carried_on(tmp_path):
    """Data of unknown length may end inside an accumulation; the Trainer carries those gradients on, and so do we."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(examples(6))

    def run(kind, **options):
        arguments = trainer_arguments(tmp_path, max_steps=2, gradient_accumulation_steps=2, **batches)
        trainer = kind(model=build_model("llama", seed=1), args=arguments, train_dataset=Stream(), **options)
        trainer.train()
        return flat(trainer.model) - START

    batches = {"per_device_train_batch_size": 2}
    plain, near, at_w = run(Trainer), run(SAMTrainer, rho=1e-4), run(SAMTrainer, rho=0)
    assert torch.equal(at_w, plain)
    assert_close(near, plain, 0.01)  # a carried gradient is more than a tenth of the whole


def test_the_trainer_runs_two_passes_a_micro_batch_and_plain_training_differs(tmp_path):
    model, forwards, backwards = build_model("llama", seed=1), [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    model.lm_head.register_full_backward_hook(lambda *_: backwards.append(1))
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    sam = trained(tmp_path, model=model, changes=changes, rho=0.5)
    assert len(forwards) == len(backwards) == 2 * 4
    plain = trained(tmp_path, Ordered, changes=changes)
    assert not torch.equal(flat(sam.model), flat(plain.model))
    assert sam.state.total_flos == 2 * plain.state.total_flos


@pytest.mark.parametrize("ascent", ["batch", "micro", "local"])
def test_rho_zero_is_the_trainer_exactly(tmp_path, ascent):
    changes = {
        "optim": "adamw_torch", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
        "max_grad_norm": 1.0,
    }  # fmt: skip
    sam = trained(tmp_path, SAMTrainer, architecture="gpt2", changes=changes, rho=0, ascent=ascent)
    plain = trained(tmp_path, Trainer, architecture="gpt2", changes=changes)
    assert torch.equal(flat(sam.model), flat(plain.model))


def test_both_passes_of_a_micro_batch_draw_the_same_dropout(tmp_path):
    model, masks = build_model("gpt2", seed=1), []
    model.transformer.drop.register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    trained(tmp_path, model=model, count=4, changes=changes, rho=0.1)
    one, two, one_again, two_again = masks
    assert one.any()
    assert torch.equal(one, one_again)
    assert torch.equal(two, two_again)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("ascent", ["batch", "micro"])
def test_resuming_is_as_if_never_interrupted(tmp_path, ascent):
    changes = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1, "optim": "adamw_torch", "learning_rate": 1e-3,
    }  # fmt: skip  # checkpoint-3 is in the middle of the second epoch; gpt2 has dropout
    whole = trained(tmp_path, SAMTrainer, count=4, architecture="gpt2", changes=changes, rho=0.1, ascent=ascent)
    arguments = trainer_arguments(tmp_path, **changes)
    model = build_model("gpt2", seed=1)
    again = SAMTrainer(model=model, args=arguments, train_dataset=examples(4), rho=0.1, ascent=ascent)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(flat(model), flat(whole.model))


def test_clipping_acts_on_the_second_gradient(tmp_path):
    changes = {"max_grad_norm": 1e-2, "max_steps": 1, "learning_rate": 1.0}
    trainer = trained(tmp_path, count=4, changes=changes, rho=0.5)
    batches = batches_of(examples(4), 4)
    second = gradient_at_ascent(build_model("llama", seed=1), batches, batches, items_of(batches), 0.5)
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(float(second.norm()), rel=1e-4)
    assert_close(flat(trainer.model) - START, -1e-2 * second / second.norm())


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("ascent", ["batch", "micro"])
def test_the_weights_come_back_bit_for_bit(tmp_path, changes, ascent):
    still = {"learning_rate": 0.0, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, changes=changes | still, rho=0.5, ascent=ascent)
    assert torch.equal(flat(trainer.model), START)
    assert trainer.ascent.radius == pytest.approx(0.5, rel=1e-4)  # float32 weights, also under bf16 autocast


def test_gradient_checkpointing_changes_nothing(tmp_path):
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    one = trained(tmp_path, architecture="gpt2", changes=changes, rho=0.5)  # gpt2 has dropout
    other = trained(tmp_path, architecture="gpt2", changes=changes | {"gradient_checkpointing": True}, rho=0.5)
    assert_close(flat(other.model), flat(one.model), 1e-6)


def test_bfloat16_weights_are_caught(tmp_path):
    with pytest.warns(MeasurementWarning, match="rounded"):
        trained(tmp_path, model=build_model("llama", seed=1).to(torch.bfloat16), rho=0.01)


def test_scaled_gradients_of_float16_and_an_overflow(tmp_path):
    """Accelerate makes a scaler on a GPU only; here it is put in by hand, the rest of the way is its own."""
    changes = {"max_steps": 3}
    plain = trained(tmp_path, changes=changes, rho=0.5, count=4)
    arguments = trainer_arguments(tmp_path, **changes | {"max_steps": 4})
    model = build_model("llama", seed=1)
    trainer = OrderedSAM(model=model, args=arguments, train_dataset=examples(4), rho=0.5)
    # above float32's largest gradient: the first step overflows, is skipped, and the scale falls to what holds
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-111)
    trainer.train()
    radii = [entry["sam_radius"] for entry in trainer.state.log_history[:-1]]
    assert math.isnan(radii[0])
    assert radii[1:] == pytest.approx([0.5] * 3, rel=1e-4)
    assert_close(flat(model) - START, flat(plain.model) - START)


def test_an_error_in_the_second_pass_leaves_the_weights_where_they_were(tmp_path):
    model, passes = build_model("llama", seed=1), []

    def dying(*_):
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt

    model.register_forward_hook(dying)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, model=model, changes={"gradient_accumulation_steps": 2}, rho=0.5)
    assert torch.equal(flat(model), START)


def test_only_adapters_train(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(build_model("llama", seed=1), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 2}
    trainer = trained(tmp_path, model=model, changes=changes, rho=0.1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert trainer.ascent.radius == pytest.approx(0.1, rel=1e-4)


def test_the_trainer_refuses_what_it_would_do_wrong(tmp_path):
    def refused(changes=None, **options):
        arguments = trainer_arguments(tmp_path, **changes or {})
        return SAMTrainer(model=build_model("llama"), args=arguments, train_dataset=examples(), **options)

    with pytest.raises(InputError, match="rho=-1"):
        refused(rho=-1)
    with pytest.raises(InputError, match="ascent='whole' is none of batch, micro, local"):
        refused(ascent="whole")
    with pytest.raises(InputError, match="lomo, which steps inside backward"):
        refused({"optim": "lomo"})
