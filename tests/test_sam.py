"""SAM against its formula, the base optimizer, and the weights it must bring back."""

import pytest
import torch
from conftest import Quadratic, build_model, make_batches
from torch import nn
from transformers import Trainer, TrainingArguments

from landscape.errors import InputError, MeasurementWarning
from landscape.sam import SAM, SAMTrainer, ascend


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
    # SCIENCE (b) 2: A = diag(1,2,3,4), w - center = 1, rho = 0.5: L(w + eps) - L(w) = 3.1552794542
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


def test_wrong_use_is_refused_in_words(quadratic):
    with pytest.raises(InputError, match="rho=-1"):
        SAM(quadratic.parameters(), torch.optim.SGD, rho=-1, lr=0.1)
    for rho in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"rho={rho}"):
            SAM([{"params": quadratic.parameters(), "rho": rho}], torch.optim.SGD, lr=0.1)
    with pytest.raises(InputError, match="two gradients"):
        SAM(quadratic.parameters(), torch.optim.SGD, lr=0.1).step()


def trainer_arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 4,
        "report_to": "none",
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "disable_tqdm": True, "save_strategy": "no", "seed": 3,
    }  # fmt: skip
    return TrainingArguments(**defaults | changes)


def examples():
    batch = make_batches(rows=7)[0]
    return [{key: value[row] for key, value in batch.items()} for row in range(7)]


def test_the_trainer_takes_the_steps_of_the_optimizer(tmp_path):
    from torch.utils.data import SequentialSampler

    class InOrder(SAMTrainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    model, twin = build_model("llama", seed=1), build_model("llama", seed=1)
    arguments = trainer_arguments(tmp_path, max_grad_norm=0.0, weight_decay=0.0)
    InOrder(model=model, args=arguments, train_dataset=examples(), rho=0.1).train()
    sam = SAM(twin.parameters(), torch.optim.AdamW, rho=0.1, lr=1e-2, weight_decay=0.0)
    for rows in (slice(0, 4), slice(4, 7)):
        batch = {key: value[rows] for key, value in make_batches(rows=7)[0].items()}
        count = (batch["labels"] != -100).sum()

        def closure(batch=batch, count=count):
            sam.zero_grad()
            loss = twin(**batch, num_items_in_batch=count).loss
            loss.backward()
            return loss

        sam.step(closure)
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        # Adam's first steps are lr * sign(g): where g is rounding noise the two may differ by a little of lr
        assert torch.allclose(a, b, atol=1e-4), name


def test_the_trainer_runs_two_passes_a_step_and_plain_training_differs(tmp_path):
    model, twin = build_model("llama", seed=1), build_model("llama", seed=1)
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    SAMTrainer(model=model, args=trainer_arguments(tmp_path), train_dataset=examples(), rho=0.5).train()
    handle.remove()
    assert len(passes) == 4
    Trainer(model=twin, args=trainer_arguments(tmp_path), train_dataset=examples()).train()
    assert not torch.equal(flat(model), flat(twin))


def test_the_trainer_refuses_what_it_would_do_wrong(tmp_path):
    def trainer(changes=None, **options):
        arguments = trainer_arguments(tmp_path, **changes or {})
        return SAMTrainer(model=build_model("llama"), args=arguments, train_dataset=examples(), **options)

    with pytest.raises(InputError, match="rho=-1"):
        trainer(rho=-1)
    with pytest.raises(InputError, match="ascent='whole' is none of batch, micro, local"):
        trainer(ascent="whole")
    with pytest.raises(InputError, match="lomo, which steps inside backward"):
        trainer({"optim": "lomo"})
