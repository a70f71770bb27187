"""SAM in two processes on the CPU, against one process with the doubled batch.

Started as a script with the environment that torchrun sets, this file is one of the two processes: it trains in every
way below and saves what came out; the tests compare. Weights are float32: updates agree to rounding, of sums taken in
another order.
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import build_model
from test_sam import OrderedSAM, assert_close, batches_of, examples, gradient_at_ascent, items_of, trainer_arguments
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from landscape.errors import InputError
from landscape.training.ascent import ascend
from landscape.training.sam import SAM

RHO, ROWS = 0.5, 8


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights(model):
    return torch.cat([whole(p.detach()).flatten() for p in model.parameters()]).clone()


def odd_model():
    """Rows that two processes cannot share evenly, a tensor of which one holds nothing, and one of no dimension."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 1)

        def forward(self, inputs):
            return self.outer(torch.tanh(self.inner(inputs)))

    torch.manual_seed(0)
    return Odd()


def groups_of(model):
    """Norm-only SAM's like: a group that neither moves nor counts, one of its own radius, one adaptive."""
    return [
        {"params": [model.inner.weight]},
        {"params": [model.inner.bias], "rho": 0.0},
        {"params": [model.outer.weight], "rho": 0.1},
        {"params": [model.outer.bias], "adaptive": True},
    ]


def optimize(wrapped, model, rows, params=None):
    """Three steps of momentum SGD on this process's rows; weights afterwards and the radius of each step."""
    torch.manual_seed(1)
    inputs = torch.randn(ROWS, 6)
    targets = inputs.prod(1, keepdim=True)
    sam = SAM(params or model.parameters(), torch.optim.SGD, rho=RHO, lr=0.1, momentum=0.9)
    radii, places = [], []

    def closure():
        sam.zero_grad()
        places.append(weights(model))
        loss = (wrapped(inputs[rows]) - targets[rows]).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        sam.step(closure)
        radii.append(sam.ascent.radius)
    return {"weights": weights(model), "radii": radii, "up": places[1]}


OPTIMIZED = {"plain": None, "groups": groups_of}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}


def train(folder, changes=None, count=16, **options):
    arguments = trainer_arguments(folder, **ACCUMULATED | (changes or {}))
    model = build_model("llama", seed=1)
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["labels"]), with_kwargs=True)
    trainer = OrderedSAM(model=model, args=arguments, train_dataset=examples(count), rho=RHO, **options)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": weights(trainer.model),
        "radii": [entry["sam_radius"] for entry in steps],
        "losses": [entry["loss"] for entry in steps],
        "passes": len(seen),
    }


def train_sharded(folder):
    """SAMTrainer on FSDP2. Accelerate turns it on for accelerators only: here it is told so by hand, nothing more."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    class Sharded(OrderedSAM):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            state = self.accelerator.state
            state._shared_state["distributed_type"] = DistributedType.FSDP
            state._shared_state["fsdp_plugin"] = plugin
            self.is_fsdp_enabled = True

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )
    options = {"args": trainer_arguments(folder, **ACCUMULATED), "train_dataset": examples(16), "rho": RHO}
    for ascent in ("micro", "local"):
        with pytest.raises(InputError, match="with FSDP; use 'batch'"):
            Sharded(model=build_model("llama", seed=1), ascent=ascent, **options)
    plugin.fsdp_version = 1
    with pytest.raises(InputError, match="FSDP1"):
        Sharded(model=build_model("llama", seed=1), **options)
    plugin.fsdp_version = 2
    trainer = Sharded(model=build_model("llama", seed=1), **options)
    trainer.train()
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters())
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"weights": weights(trainer.model), "radii": [entry["sam_radius"] for entry in steps]}


def bfloat16_shards():
    """The fidelity of a step that rounding swallows is that of the whole model too."""
    model = build_model("llama", seed=1).to(torch.bfloat16)
    batch = batches_of(examples(4), 4)[0]
    if dist.is_initialized():
        fully_shard(model)
    model(**batch).loss.backward()
    before = weights(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ascent = ascend(model.parameters(), 0.01)
    ascent.undo()
    assert torch.equal(weights(model), before)
    return {"fidelity": ascent.fidelity, "radius": ascent.radius, "warned": [str(w.message) for w in caught]}


def main(folder):
    """What one of the two processes does."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    results = {}
    for name, groups in OPTIMIZED.items():
        model = odd_model()
        wrapped = DistributedDataParallel(model)
        results["ddp", name] = optimize(wrapped, model, rows, groups and groups(model))
        model = odd_model()
        fully_shard(model.inner)
        fully_shard(model)
        results["fsdp", name] = optimize(model, model, rows, groups and groups(model))
    results["bfloat16"] = bfloat16_shards()
    for ascent in ("batch", "micro", "local"):
        results[ascent] = train(folder / f"{ascent}", ascent=ascent)
    results["torn epoch"] = train(folder / "torn", {"max_steps": -1, "num_train_epochs": 1}, count=20)
    results["sharded trainer"] = train_sharded(folder / "sharded")
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory, forks):
    """Results of both processes."""
    folder = tmp_path_factory.mktemp("two")
    done = forks.run(folder, program=__file__, processes=2, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("groups", OPTIMIZED)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one_with_the_doubled_batch(two, kind, groups):
    model = odd_model()
    start = weights(model)
    params = OPTIMIZED[groups] and OPTIMIZED[groups](model)
    one = optimize(model, model, slice(None), params)
    for rank in two:
        there = rank[kind, groups]
        assert there["radii"] == pytest.approx(one["radii"], rel=1e-6)
        assert_close(there["up"] - start, one["up"] - start, 1e-5)
        assert_close(there["weights"] - start, one["weights"] - start, 1e-5)
    assert torch.equal(two[0][kind, groups]["weights"], two[1][kind, groups]["weights"])
    assert two[0][kind, groups]["radii"] == two[1][kind, groups]["radii"]
    if groups == "plain":
        assert one["radii"] == pytest.approx([RHO] * 3, rel=1e-5)


@pytest.mark.slow
def test_fidelity_and_radius_are_of_the_whole_sharded_model(two):
    one = bfloat16_shards()
    assert not one["fidelity"].faithful
    for rank in two:
        there = rank["bfloat16"]
        assert there["warned"] == one["warned"]
        assert "rounded" in there["warned"][0]
        # gradients in bfloat16 differ in their last digits, and with them what rounding leaves of the step
        assert there["fidelity"].norm_ratio == pytest.approx(one["fidelity"].norm_ratio, rel=0.05)
        assert there["radius"] == pytest.approx(one["radius"], rel=0.05)
    # each process's own part has a fidelity and a radius of its own
    assert two[0]["bfloat16"]["radius"] == two[1]["bfloat16"]["radius"]
    assert two[0]["bfloat16"]["fidelity"] == two[1]["bfloat16"]["fidelity"]


START = weights(build_model("llama", seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["batch", "torn epoch", "sharded trainer"])
def test_the_trainer_in_two_processes_is_one_with_the_doubled_batch(two, case, tmp_path):
    changes, count = {"max_steps": 2}, 16
    if case == "torn epoch":  # steps of 8, 8 and 4 examples
        changes, count = {"max_steps": -1, "num_train_epochs": 1}, 20
    one = train(tmp_path, changes | {"per_device_train_batch_size": 4}, count)
    for rank in two:
        assert_close(rank[case]["weights"] - START, one["weights"] - START)
        assert rank[case]["radii"] == pytest.approx(one["radii"], rel=1e-5)
    assert one["radii"] == pytest.approx([RHO] * len(one["radii"]), rel=1e-4)
    assert torch.equal(two[0][case]["weights"], two[1][case]["weights"])
    if case != "sharded trainer":
        assert two[0][case]["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert two[0][case]["passes"] == one["passes"] == 2 * 2 * 2 + (2 if case == "torn epoch" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("ascent", ["micro", "local"])
def test_each_process_ascends_on_its_own_where_named(two, ascent):
    """Micro-batches of 2 take turns: the first goes to the first process, the second to the second."""
    batches, model = batches_of(examples(16), 2), build_model("llama", seed=1)
    for step in (batches[:4], batches[4:]):
        mine, other = [step[0], step[2]], [step[1], step[3]]
        groups = [[batch] for batch in step] if ascent == "micro" else [mine, other]
        gradient = sum(gradient_at_ascent(model, group, group, items_of(step), RHO) for group in groups)
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient.split([p.numel() for p in model.parameters()]), strict=True):
                p -= 0.1 * g.view_as(p)
    for rank in two:
        assert_close(rank[ascent]["weights"] - START, weights(model) - START)
        assert rank[ascent]["passes"] == 2 * 2 * 2
    together = two[0]["batch"]["weights"] - START
    assert float((together - (weights(model) - START)).norm() / together.norm()) > 0.01  # the test can tell


if __name__ == "__main__":
    main(Path(sys.argv[1]))
