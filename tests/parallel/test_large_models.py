"""Models larger than one device: sharded by FSDP2 over two processes, and spread by a device_map; memory.

Started as a script with the environment that torchrun sets, this file is one of two processes that hold a model
sharded, and measures it in every way below; the tests compare with one process that holds it whole. Weights are
float32: losses and gradients differ between the two by the order in which sums are taken.
"""

import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import assert_same_state, build_model, make_batches, state_of
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.checkpoints import load_checkpoint
from landscape.curvature.density import hessian_density
from landscape.curvature.eigenvalues import hessian_eigenvalues
from landscape.curvature.products import hessian_vector_product
from landscape.curvature.trace import hessian_trace
from landscape.data.tokens import Example, TokenData
from landscape.errors import InputError, MeasurementWarning
from landscape.forgetting.losses import measure_forgetting
from landscape.objective.causal import CausalLoss, supervised_hidden
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.sharpness import compute_sharpness
from landscape.surfaces.compute import compute_interpolation, compute_surface
from landscape.weights.directions import difference_direction, load_directions, random_directions, save_directions
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import inner_product, vector_digest

# untied and tied output heads
ARCHITECTURES = ("llama", "qwen3")
SMALL = ("model.layers.0.mlp.up_proj.*", "model.layers.1.self_attn.q_proj.*")  # few enough to be quick

SHARPNESS = {
    "one_step": {"metric": "worst_case", "steps": 1},
    "worst_case": {"metric": "worst_case", "steps": 3, "restarts": 2, "rho": 0.2},
    "linf_adaptive": {"metric": "worst_case", "steps": 2, "norm": "linf", "adaptive": True, "rho": 0.01},
    "average_case": {"metric": "average_case", "samples": 4},
    "average_adaptive": {"metric": "average_case", "samples": 4, "adaptive": True, "rho": 0.2},
    "average_unit": {"metric": "average_case", "samples": 4, "normalize": "unit", "rho": 0.2},
    "average_head": {"metric": "average_case", "samples": 4, "normalize": "head", "rho": 0.2},
    "gradient_norm": {"metric": "gradient_norm"},
    "adaptive_gradient_norm": {"metric": "gradient_norm", "adaptive": True},
    "critical": {"metric": "critical"},
}


def data_of():
    return make_batches(rows=3)


def text_of(seed):
    rows = [tuple(row) for row in np.random.default_rng(seed).integers(1, 300, (12, 10)).tolist()]
    return TokenData("text", tuple(Example(row, row) for row in rows))


def shard(model, layers=True):
    for layer in model.model.layers if layers else ():
        fully_shard(layer)
    fully_shard(model)
    return model


def measured(model, other):
    """Every measurement of a model, whole or sharded, as plain numbers; `other` is one to go to."""
    data = data_of()
    found = {}
    parameters = Parameters(model)
    objective = Objective(model, data)
    loss, gradient = objective.gradient(parameters)
    found["loss"] = [objective.loss().mean, loss.mean]
    found["gradient_square"] = inner_product(gradient, gradient)
    found["tensors"] = {n: (g.full_tensor() if isinstance(g, DTensor) else g).cpu() for n, g in gradient.items()}
    found["weights"] = vector_digest(parameters.values())
    for mode in ("filter", "unit", "head", "layer", "none"):
        drawn = random_directions(model, 2, normalize=mode, include_1d=True)
        found[f"directions {mode}"] = [
            torch.cat([(t.full_tensor() if isinstance(t, DTensor) else t).flatten() for t in d.tensors.values()])
            for d in drawn
        ]
        found[f"cosine {mode}"] = drawn[0].cosine(drawn[1])
    surface = compute_surface(model, data, points=3, span=0.5, run=Run(progress=False))
    found["surface"] = surface.loss
    found["fidelity"] = [surface.fidelity.norm_ratio, surface.fidelity.cosine, surface.direction_cosine]
    found["offloaded"] = compute_surface(
        model, data, points=3, span=0.5, run=Run(offload_base=True, progress=False)
    ).loss
    found["interpolation"] = compute_interpolation(
        model, other, data, points=3, span=(0.0, 1.0), run=Run(progress=False)
    ).loss
    along = [difference_direction(model, other)]
    found["difference"] = compute_surface(model, data, along, points=3, run=Run(progress=False)).loss
    tied = model.config.tie_word_embeddings  # enough to see that tied tensors are one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeasurementWarning)
        for name, options in SHARPNESS.items() if not tied else [("one_step", SHARPNESS["one_step"])]:
            found[name] = compute_sharpness(model, data, **options).value
        if tied:
            return found
        trace = hessian_trace(model, data, max_probes=4, rtol=0.5, run=Run(method="forward"))
        found["trace"] = [trace.value, *trace.samples.tolist()]
        few = hessian_trace(
            model,
            data,
            max_probes=2,
            rtol=0.5,
            run=Run(method="hutchinson", hvp="finite_difference"),
            scope=Scope(parameters=SMALL),
        )
        found["hutchinson"] = [few.value, *(layer.trace for layer in few.layers)]
        top = hessian_eigenvalues(
            model, data, scope=Scope(parameters=SMALL), run=Run(hvp="finite_difference"), rtol=1e-2, max_matvecs=8
        )
        found["top_eigenvalue"] = float(top.values[0])
    return found


def refusals(model):
    """The sentences with which things that sharded models do not have are refused."""
    data = data_of()
    tasks = {"same": text_of(0), "different": text_of(dist.get_rank())}
    asked = {
        "exact": lambda: hessian_vector_product(model, data, dict(Parameters(model).values()), run=Run(hvp="exact")),
        "ggn": lambda: compute_sharpness(model, data, metric="fisher_rao"),
        "vectors": lambda: hessian_eigenvalues(model, data, vectors=True),
        "density": lambda: hessian_density(model, data),
        "journal": lambda: hessian_eigenvalues(model, data, run=Run(hvp="finite_difference", journal="never.journal")),
        "other data": lambda: Objective(model, make_batches(seed=dist.get_rank())),
        "other data of a later task": lambda: measure_forgetting(model, model, tasks, resamples=99),
    }
    said = {}
    for name, ask in asked.items():
        try:
            ask()
        except InputError as error:
            said[name] = str(error)
    return said


def continued(model, path):
    """Measurements whose journals a kill tore in the last line, which the first process alone writes."""
    data, found = data_of(), {}
    for name, measure in {
        "surface": lambda j: compute_surface(
            model, data, points=5, span=0.5, run=Run(progress=False, journal=j)
        ).loss.tolist(),
        "trace": lambda j: hessian_trace(
            model, data, max_probes=4, rtol=9.0, run=Run(method="forward", journal=j)
        ).samples.tolist(),
        "average": lambda j: [
            compute_sharpness(model, data, metric="average_case", samples=4, run=Run(journal=j)).value
        ],
    }.items():
        journal = path.with_suffix(f".{name}")
        whole = measure(journal)
        dist.barrier()
        if dist.get_rank() == 0:
            lines = journal.read_bytes().splitlines(keepends=True)
            journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:5])
        dist.barrier()
        found[name] = {"whole": whole, "again": measure(journal)}
        dist.barrier()
        found[name]["lines"] = (len(lines), len(journal.read_bytes().splitlines())) if dist.get_rank() == 0 else None
        try:
            compute_surface(model, data, points=7, run=Run(progress=False, journal=journal))
        except InputError as error:
            found[name]["refused"] = str(error)
    try:  # the first process alone sees what is wrong with it
        compute_surface(model, data, points=3, run=Run(progress=False, journal=path.parent))
    except InputError as error:
        found["a folder"] = str(error)
    return found


def partly_sharded():
    """A model that fully_shard was called on in part."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    fully_shard(model[0])
    try:
        Parameters(model)
    except InputError as error:
        return str(error)


def odd():
    """Rows that two processes cannot share evenly, a tensor of which one holds nothing; gradients that are frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    model[0].bias.requires_grad_(False)
    torch.manual_seed(1)
    data = [(torch.randn(4, 6), torch.randn(4, 1))]
    return model, data


def measure_odd(model, data):
    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(), len(batch[0])

    surface = compute_surface(
        model, data, points=3, scope=Scope(loss_fn=loss_fn, include_1d=True), run=Run(progress=False)
    ).loss
    _, gradient = Objective(model, data, loss_fn).gradient(Parameters(model, frozen=True))
    return {
        "surface": surface,
        "frozen": inner_product({"0.bias": gradient["0.bias"]}, gradient),
        "average": compute_sharpness(model, data, metric="average_case", samples=4, scope=Scope(loss_fn=loss_fn)).value,
        "norm": compute_sharpness(model, data, metric="gradient_norm", scope=Scope(loss_fn=loss_fn)).value,
    }


def sharded_process(folder):
    """What one of two processes does: everything on sharded models; the first saves what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for architecture in ARCHITECTURES:
        model, other = (shard(build_model(architecture, seed=seed)) for seed in (0, 1))
        before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
        model(input_ids=torch.ones(1, 3, dtype=torch.long))  # leaves the outermost weights gathered
        marker = torch.full_like(next(iter(Parameters(model).tensors)), 7.0)
        next(iter(Parameters(model).tensors)).grad = marker
        model.train()
        found[architecture] = measured(model, other)
        after = Parameters(model)
        found[architecture]["intact"] = all(
            torch.equal(p.full_tensor(), before[n]) for n, p in after.values().items()
        ) and (model.training and after.tensors[0].grad is marker)
        if architecture == "llama":
            found["refusals"] = refusals(model)
            found["continued"] = continued(model, folder / "journal")
            path = folder / "directions.safetensors"
            save_directions(random_directions(model, 1), path.with_stem(f"directions{dist.get_rank()}"))
            path = path.with_stem(f"directions{dist.get_rank()}")
            read = compute_surface(
                model, data_of(), load_directions(path, model), points=3, span=0.5, run=Run(progress=False)
            )
            found["read directions"] = read.loss
    found["partly"] = partly_sharded()
    model, data = odd()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    found["odd"] = measure_odd(fully_shard(model), data)
    if dist.get_rank() == 0:
        torch.save(found, folder / "sharded.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, forks):
    folder = tmp_path_factory.mktemp("sharded")
    done = forks.run(folder, program=__file__, processes=2)
    assert done.returncode == 0, done.stderr[-6000:]
    return torch.load(folder / "sharded.pt", weights_only=False)


@pytest.fixture(scope="module")
def single():
    return {name: measured(build_model(name, seed=0), build_model(name, seed=1)) for name in ARCHITECTURES}


# --- sharded ------------------------------------------------------------------------------------------------

# A loss of 5.8 in float32 is known to about 5e-7, and rises are differences of two: both, and a few units for the order
# of sums. Differences of gradients multiply the gradients' rounding by the inverse of the step.
LOSS = {"rtol": 1e-6, "atol": 1e-6}
TOLERANCE = {"hutchinson": {"rtol": 1e-3, "atol": 1e-3}, "top_eigenvalue": {"rtol": 1e-4}, "trace": {"rtol": 1e-3}}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sharded_model_measures_as_the_whole_one(sharded, single, architecture):
    found, expected = sharded[architecture], single[architecture]
    for name in expected.keys() - {"tensors", "weights"}:
        if not name.startswith("directions"):
            np.testing.assert_allclose(found[name], expected[name], err_msg=name, **TOLERANCE.get(name, LOSS))
    assert found["weights"] == expected["weights"]  # the digest in a result's provenance
    for name, gradient in expected["tensors"].items():
        torch.testing.assert_close(found["tensors"][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_directions_of_a_sharded_model_are_those_of_the_whole_one(sharded, single, architecture):
    for mode in ("filter", "unit", "head", "layer", "none"):
        drawn = zip(
            sharded[architecture][f"directions {mode}"], single[architecture][f"directions {mode}"], strict=True
        )
        for ours, whole in drawn:  # norms over slices are sums in another order
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_sharded_model_comes_back_bit_identical(sharded):
    assert all(sharded[architecture]["intact"] for architecture in ARCHITECTURES)


@pytest.mark.slow
def test_shards_of_uneven_and_no_rows_and_frozen_ones(sharded):
    expected = measure_odd(*odd())
    for name, value in expected.items():
        np.testing.assert_allclose(sharded["odd"][name], value, rtol=1e-6, err_msg=name)
    assert expected["frozen"] > 0


@pytest.mark.slow
def test_directions_are_saved_whole_and_read_into_shards(sharded):
    model = build_model("llama")
    expected = compute_surface(
        model, data_of(), random_directions(model, 1), points=3, span=0.5, run=Run(progress=False)
    )
    np.testing.assert_allclose(sharded["read directions"], expected.loss, **LOSS)


@pytest.mark.slow
def test_what_a_sharded_model_does_not_have_is_refused_in_a_sentence(sharded):
    words = {
        "exact": "no second derivative",
        "ggn": "no second derivative",
        "vectors": "without vectors",
        "density": "not implemented",
        "journal": "in no journal",
        "other data": "different data",
        "other data of a later task": "different data",
    }
    assert sharded["refusals"].keys() == words.keys()
    for name, word in words.items():
        assert word in sharded["refusals"][name]
    assert "1.weight is whole and 0.weight is sharded" in sharded["partly"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surface", "trace", "average"])
def test_a_measurement_of_a_sharded_model_continues_from_its_journal(name, sharded):
    found = sharded["continued"][name]
    assert found["again"] == found["whole"]
    assert found["lines"][0] == found["lines"][1] >= 2  # what the kill took is measured again and written once
    assert "belongs to a run of other settings" in found["refused"]
    assert "cannot be written" in sharded["continued"]["a folder"]


# --- several devices ----------------------------------------------------------------------------------------


def spread(folder, first, second):
    where = {"model.embed_tokens": first, "model.layers.0": first, "model.rotary_emb": first}
    where |= {"model.layers.1": second, "model.norm": second, "lm_head": second}
    return load_checkpoint(folder, device_map=where).model


def check_spread(model, single):
    expected = single["llama"]
    before = state_of(model)
    data = data_of()
    loss, gradient = Objective(model, data).gradient(Parameters(model))
    np.testing.assert_allclose(loss.mean, expected["loss"][0], **LOSS)
    np.testing.assert_allclose(inner_product(gradient, gradient), expected["gradient_square"], rtol=1e-5)
    for offload in (False, True):
        surface = compute_surface(model, data, points=3, span=0.5, run=Run(offload_base=offload, progress=False))
        np.testing.assert_allclose(surface.loss, expected["surface"], **LOSS)
    for name in ("one_step", "average_adaptive", "adaptive_gradient_norm"):
        value = compute_sharpness(model, data, **SHARPNESS[name]).value
        np.testing.assert_allclose(value, expected[name], err_msg=name, **LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeasurementWarning)
        trace = hessian_trace(model, data, max_probes=4, rtol=0.5, run=Run(method="forward")).value
    np.testing.assert_allclose(trace, expected["trace"][0], rtol=1e-2)
    assert_same_state(before, state_of(model))


def test_a_model_with_a_device_map_measures_as_without(save_checkpoint_folder, single):
    check_spread(spread(save_checkpoint_folder("llama"), "cpu", "cpu"), single)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_over_two_gpus_measures_as_on_one_device(save_checkpoint_folder, single):
    check_spread(spread(save_checkpoint_folder("llama"), 0, 1), single)


def test_an_offloaded_model_has_a_loss_and_says_why_it_has_no_surface(single):
    from accelerate import cpu_offload

    model = cpu_offload(build_model("llama"), torch.device("cpu"))
    # its head has no weight outside of the forward: what was read there was memory that nobody wrote, and once in a
    # while memory that held the right logits
    form = CausalLoss.for_model(model, data_of()[0])
    assert form.at_supervised
    assert not form.linear_head
    with pytest.raises(TypeError, match="offloaded"):
        supervised_hidden(model, data_of()[0])
    np.testing.assert_allclose(Objective(model, data_of()).loss().mean, single["llama"]["loss"][0], **LOSS)
    with pytest.raises(InputError, match=r"embed_tokens.weight has no data on a device.*offloaded"):
        compute_surface(model, data_of(), points=3, run=Run(progress=False))


def test_a_device_map_of_another_word_is_refused(save_checkpoint_folder):
    with pytest.raises(InputError, match="device_map='everywhere' is none of auto"):
        load_checkpoint(save_checkpoint_folder("llama"), device_map="everywhere")


@pytest.mark.parametrize("command", ["plot", "sharpness"])
def test_two_places_for_one_model_are_refused(run, command):
    code, _, err = run(command, "anywhere", "--device", "cpu", "--device-map", "auto")
    assert code == 2
    assert err == "landscape: --device-map takes the place of --device; leave out --device cpu.\n"


# --- memory -------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made inside the block that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.known:
            storage = out.untyped_storage()
            self.alive = [held for held in self.alive if held[0]() is not None]
            self.alive.append((weakref.ref(out), storage.data_ptr(), storage.nbytes()))
            self.peak = max(self.peak, sum({place: size for _, place, size in self.alive}.values()))
        return out

    def ignoring(self, model):
        self.known = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
        return self


def many_layers(width, count, device="cpu", dtype=torch.float32):
    layers = [nn.Linear(width, width, bias=False, device=device, dtype=dtype) for _ in range(count)]
    return nn.Sequential(*layers)


def squares(model, batch):
    return model(batch[0]).square().sum(), len(batch[0])


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"normalize": "filter"}])
def test_average_sharpness_holds_one_copy_and_a_tensor(options):
    model = many_layers(64, 100)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    data = [(torch.ones(1, 64), torch.ones(1))]
    with LiveBytes().ignoring(model) as live:
        compute_sharpness(model, data, metric="average_case", samples=4, scope=Scope(loss_fn=squares), **options)
    assert 1.0 <= live.peak / weights <= 1.2  # beside the weights: the base, float64 temporaries of one tensor in 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_on_a_gpu(dtype):
    model = many_layers(1024, 400, "cuda", dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    data = [(torch.ones(1, 1024, dtype=dtype), torch.ones(1))]
    options = {"metric": "average_case", "samples": 4, "rho": 1e-3, "scope": Scope(loss_fn=squares)}

    def peak(measure):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MeasurementWarning)
            measure()
        return torch.cuda.max_memory_allocated() / weights

    assert peak(lambda: compute_sharpness(model, data, **options)) <= 2.2
    assert peak(lambda: compute_sharpness(model, data, run=Run(offload_base=True), **options)) <= 1.3
    line = {"dim": 2, "points": 3, "span": 0.01, "scope": Scope(loss_fn=squares)}
    assert peak(lambda: compute_surface(model, data, run=Run(offload_base=True), **line)) <= 1.3


LOADING = """
import resource, sys
from landscape.objective.scope import Run, Scope
from landscape.checkpoints import load_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

load_checkpoint(sys.argv[1], device="cpu")
for dtype, folder in (("bfloat16", sys.argv[2]), ("float32", sys.argv[3])):  # the larger last: the peak only grows
    before = peak()
    model = load_checkpoint(folder, device="cpu", dtype=dtype).model
    print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
    del model
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_loading_takes_the_memory_of_the_weights(tmp_path, save_checkpoint_folder):
    shape = {"hidden_size": 512, "intermediate_size": 2048, "max_position_embeddings": 64}
    for name, dtype, layers in (("half", torch.bfloat16, 12), ("full", torch.float32, 16)):
        model = build_model("llama", num_hidden_layers=layers, **shape).to(dtype)
        model.save_pretrained(tmp_path / name, max_shard_size="20MB")
    folders = [str(save_checkpoint_folder("llama")), str(tmp_path / "half"), str(tmp_path / "full")]
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *folders], capture_output=True, text=True, timeout=300, check=True
    )
    for ratio in map(float, done.stdout.split()):
        assert ratio <= 1.15


if __name__ == "__main__":
    sharded_process(Path(sys.argv[1]))
