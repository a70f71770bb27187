"""Work shared by processes that torchrun starts, against one process; and what is left when one of them dies.

Started as a script with the environment that torchrun sets, this file is one of the processes: it takes every
measurement below and saves what came out; the tests compare. Losses are summed in the order of the batches, and so are
the same bits for any number of processes: what is made of losses alone is compared exactly. Sums of float32 vectors are
taken in another order, which changes gradients and products by about 1e-7 of their length (rel=1e-4 below: after
several ascent steps or Lanczos iterations, on values whose other errors are 1e-3).
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, build_model, make_batches
from torch.autograd.function import once_differentiable

from landscape import (
    InputError,
    Surface,
    compute_sharpness,
    compute_surface,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    hessian_vector_product,
)
from landscape.instruction_vectors.effects import indirect_effects
from landscape.instruction_vectors.prompts import Prompt
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.parallel.distributed import Share, alone, gathered, share, shared_work, summed
from landscape.results import Journal, replacing, results_folder
from landscape.weights.attention import attention_of
from landscape.weights.parameters import Parameters

ROUNDING = 1e-4

# name of a sharpness metric -> whether it is made of losses alone
METRICS = {
    "worst_case": (False, {"rho": 0.2, "steps": 4, "restarts": 2}),
    "worst_case linf": (False, {"rho": 0.001, "norm": "linf", "steps": 2}),
    "worst_case m": (True, {"rho": 0.2, "steps": 2, "m": 1}),  # a group is one process's, gradients and all
    "average_case": (True, {"rho": 0.02, "samples": 6}),
    "gradient_norm": (False, {}),
    "fisher_rao": (False, {}),
    "relative_flatness": (False, {}),
    "critical": (False, {}),
}


def causal_sum(model, batch, through=lambda logits: logits):
    """The summed loss and its weight, by hand."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    kept = labels != -100
    return torch.nn.functional.cross_entropy(through(logits[kept]), labels[kept], reduction="sum"), kept.sum()


class Short:
    """A loss that runs out of memory above `rows` rows in the second process only."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, model, batch):
        if rank() == 1 and len(batch["labels"]) > self.rows:
            raise torch.OutOfMemoryError("no memory is left")
        return causal_sum(model, batch)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient


def bent_once(model, batch):
    """A loss that has no second derivative in the second process only."""
    return causal_sum(model, batch, OnceOnly.apply) if rank() == 1 else causal_sum(model, batch)


def rank():
    return int(os.environ.get("RANK", "0"))


def measure(folder):
    """What every process measures; of losses alone in "exact", of sums of vectors in "rounded"."""
    model, batches = build_model("llama", seed=1, num_hidden_layers=1), make_batches(rows=1)
    exact, rounded = {}, {}
    surface = compute_surface(
        model, batches, points=(4, 3), run=Run(progress=False, journal=folder / "surface.journal")
    )
    exact["surface"] = surface.loss
    exact["auto span"] = compute_surface(model, batches, dim=1, points=3, span="auto", run=Run(progress=False)).axes[0]
    exact["one batch"] = compute_surface(model, batches[:1], dim=1, points=4, run=Run(progress=False)).loss
    for name, (by_losses, options) in METRICS.items():
        found = compute_sharpness(model, batches, metric=name.split()[0], **options)
        (exact if by_losses else rounded)[name] = found.value
        exact[f"{name}: loss"] = found.loss
    rounded["one batch: gradient norm"] = compute_sharpness(model, batches[:1], metric="gradient_norm").value
    options = {"rtol": 0.5, "max_probes": 8}
    exact["trace, forward"] = hessian_trace(model, batches, run=Run(method="forward"), **options).value
    found = hessian_trace(model, batches, run=Run(method="hutchinson", journal=folder / "trace.journal"), **options)
    rounded["trace, hutchinson"], exact["trace, probes"] = found.value, found.probes
    found = hessian_eigenvalues(model, batches, k=(2, 1), which="BE", rtol=1e-2)
    rounded["eigenvalues"], exact["eigenvalues: converged"] = found.values, found.converged
    found = hessian_density(model, batches, probes=2, steps=4)
    rounded["density, moments"] = [found.moment(1)[0], found.moment(2)[0]]
    vector = torch.ones(Parameters(model).numel)
    for hvp in ("exact", "finite_difference"):
        rounded[f"product, {hvp}"] = float(hessian_vector_product(model, batches, vector, run=Run(hvp=hvp)) @ vector)
    wide = make_batches(rows=4)
    rounded["short of memory"] = compute_sharpness(
        model, wide, metric="gradient_norm", scope=Scope(loss_fn=Short(1))
    ).value
    found = hessian_eigenvalues(model, wide, rtol=1e-2, scope=Scope(loss_fn=bent_once))
    rounded["no second derivative"] = found.values
    effects, passes = effects_of_heads(model, folder)
    exact["effects of heads"] = effects
    return {"exact": exact, "rounded": rounded, "hvp": found.hvp, "passes": passes}


def effects_of_heads(model, folder):
    """The effect of each head on each of five prompts, and how many forward passes that took here."""
    attention, passes = attention_of(model), []
    outputs = torch.randn(attention.layers, attention.heads, attention.size, generator=torch.Generator().manual_seed(1))
    prompts = [Prompt(tuple(range(5, 15 + length)), 40 + length) for length in range(5)]
    counting = model.register_forward_pre_hook(lambda *_: passes.append(1))
    journal = Journal(folder / "effects.journal", {})
    effects = indirect_effects(model, attention, prompts, outputs, batch_tokens=1000, journal=journal)
    counting.remove()
    return effects, len(passes)


def refused(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def refusals(folder):
    """The sentences that bad input of one process makes in every process."""
    model, wide = build_model("llama", seed=1), make_batches(rows=4)
    said = {"memory": refused(compute_surface, model, wide, dim=1, points=3, scope=Scope(loss_fn=Short(0)))}
    said["memory, gradient"] = refused(
        compute_sharpness, model, wide, metric="gradient_norm", scope=Scope(loss_fn=Short(0))
    )
    said["weights"] = refused(Objective, build_model("llama", seed=rank()), wide)
    said["data"] = refused(Objective, model, make_batches(rows=4, seed=rank()))
    with results_folder(folder / "results", {"seed": 0}):
        pass
    said["folder"] = refused(lambda: results_folder(folder / "results", {"seed": 1}).__enter__())
    said["journal"] = refused(Journal, folder / "surface.journal", {"other": "settings"})
    return said


def main(folder):
    """What one of the processes does."""
    with shared_work():
        place = share()
        results = measure(folder) | {"share": place, "refused": refusals(folder)}
        with alone():
            results["alone"] = share()
        results["gathered"] = gathered(lambda mine: mine.rank)
        results["summed"] = summed(lambda mine: (None, [torch.full((2,), float(mine.rank))]))[1]
        with replacing(folder / "written.txt") as path:
            path.write_text(f"by {rank()}")
        results["written"] = (folder / "written.txt").read_text()
    assert share() == Share(0, 1)
    assert not torch.distributed.is_initialized()
    torch.save(results, folder / f"rank{rank()}.pt")


def torchrun(processes, *arguments):
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        *map(str, arguments),
    ]  # fmt: skip


ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory, forks):
    """Results of every process, and the folder they worked in."""
    folder = tmp_path_factory.mktemp("several")
    done = forks.run(folder, program=__file__, processes=request.param, environment={"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(request.param)], folder


@pytest.mark.slow
def test_several_processes_find_what_one_finds(one, several):
    """Compared with one process, two and three are compared with each other."""
    for found in several[0]:
        for name, value in one["exact"].items():
            assert found["exact"][name] == pytest.approx(value, rel=0, abs=0), name
        for name, value in one["rounded"].items():
            assert found["rounded"][name] == pytest.approx(value, rel=ROUNDING), name


@pytest.mark.slow
def test_every_process_holds_the_same_numbers_to_the_bit(several):
    first, *others = several[0]
    for other in others:
        for name, value in (first["exact"] | first["rounded"]).items():
            assert (other["exact"] | other["rounded"])[name] == pytest.approx(value, rel=0, abs=0), name


@pytest.mark.slow
def test_work_is_split_and_numbers_come_together(one, several):
    results, folder = several
    count = len(results)
    assert sum(found["passes"] for found in results) == one["passes"]  # each prompt in one process alone
    assert max(found["passes"] for found in results) < one["passes"]
    assert len((folder / "effects.journal").read_text().splitlines()) == 1 + 5
    for r, found in enumerate(results):
        assert found["share"] == (r, count)
        assert found["alone"] == (0, 1)
        assert found["gathered"] == list(range(count))
        assert found["summed"][0].tolist() == [sum(range(count))] * 2
        assert found["written"] == "by 0"  # and the same for those who did not write
        assert found["hvp"] == "finite_difference"  # though only one process has no second derivative
    assert len((folder / "surface.journal").read_text().splitlines()) == 1 + 4 * 3 + 1  # and the centre
    assert list(folder.glob(".written*")) == []


@pytest.mark.slow
def test_bad_input_of_one_process_is_one_sentence_in_all(several):
    said, *others = [found["refused"] for found in several[0]]
    assert all(other == said for other in others)
    expected = {
        "memory": "does not fit in memory",
        "memory, gradient": "does not fit in memory",
        "weights": "different weights",
        "data": "different data",
        "folder": "other settings",
        "journal": "other settings",
    }
    assert said.keys() == expected.keys()
    for name, words in expected.items():
        assert words in said[name]


def test_without_torchrun_the_block_is_as_if_it_were_not_there():
    with shared_work():
        assert share() == Share(0, 1)
        assert not torch.distributed.is_initialized()


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    return path


def kill_when_under_way(arguments, processes, victim, journal, points, cwd):
    """Start torchrun, kill process `victim` once `points` more are in the journal; what was printed on stderr."""
    before = len(journal.read_bytes().splitlines()) if journal.exists() else 0
    command = torchrun(processes, "-m", "landscape", *arguments)
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=cwd, stderr=subprocess.PIPE, text=True) as agent:
        until = time.monotonic() + 300
        while not journal.exists() or len(journal.read_bytes().splitlines()) < before + points:
            assert agent.poll() is None, agent.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        ranks = {}
        for child in children:
            said = dict(part.split("=", 1) for part in Path(f"/proc/{child}/environ").read_text().split("\0") if part)
            ranks[int(said["RANK"])] = int(child)
        os.kill(ranks[victim], signal.SIGKILL)
        _, stderr = agent.communicate(timeout=120)
        assert agent.returncode == 1
    return stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_run_that_loses_a_process_ends_with_one_sentence_and_continues_with_any_number(
    run, save_checkpoint_folder, texts, tmp_path
):
    checkpoint = save_checkpoint_folder("llama")
    arguments = ["plot", checkpoint, "--data", texts, "--batch-tokens", "64", "--points", "13", "--quiet"]
    code, _, stderr = run(*arguments, "-o", "whole")
    assert code == 0, stderr
    journal = tmp_path / "killed" / ".surface-llama_0.journal"
    for processes, victim in ((2, 0), (3, 2)):
        stderr = kill_when_under_way([*arguments, "-o", "killed"], processes, victim, journal, 5, tmp_path)
        said = [line for line in stderr.splitlines() if line.startswith("landscape: ")]
        said = [line for line in said if "earlier run" not in line]  # what is kept of it
        assert len(said) == 1, stderr
        assert "has ended" in said[0]
        assert not list((tmp_path / "killed").glob("surface-*.json"))
    known = len(journal.read_bytes().splitlines())
    assert 10 < known < 1 + 13 * 13
    code, _, stderr = run(*arguments, "-o", "killed")
    assert code == 0, stderr
    found, expected = (Surface.load(next((tmp_path / folder).glob("surface-*.json"))) for folder in ("killed", "whole"))
    apart = dataclasses.replace(found, provenance=expected.provenance)
    assert apart.to_dict() == expected.to_dict()
    assert found.identity() == expected.identity()


@pytest.mark.slow
def test_commands_share_work_and_the_first_process_speaks(run, save_checkpoint_folder, texts, tmp_path):
    checkpoint = save_checkpoint_folder("llama")
    metrics = ["--metric", "average_case:samples=4", "--metric", "gradient_norm"]
    arguments = ["sharpness", checkpoint, "--data", texts, "--batch-tokens", "64", *metrics, "--quiet", "--json"]
    done = subprocess.run(
        torchrun(2, "-m", "landscape", *arguments, "-o", "two"),
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "two" / "summary.json").read_text()  # printed once
    assert done.stderr.count("wrote ") == 1
    code, _, stderr = run(*arguments, "-o", "one")
    assert code == 0, stderr
    tables = [(tmp_path / folder / "sharpness.csv").read_text().splitlines() for folder in ("one", "two")]
    for mine, theirs in zip(*tables, strict=True):
        mine, theirs = mine.split(","), theirs.split(",")
        assert mine[:4] == theirs[:4]
        for a, b in zip(mine[4:-1], theirs[4:-1], strict=True):  # the last is seconds
            assert a == b or float(a) == pytest.approx(float(b), rel=ROUNDING)


@pytest.mark.slow
def test_bad_input_is_said_once_and_workers_end_with_code_2(tmp_path):
    """torchrun itself ends with 1 and prints a report of its own, in which the workers' code is."""
    done = subprocess.run(
        torchrun(2, "-m", "landscape", "plot", "nowhere", "-o", "out"),
        env=ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("landscape: ")]
    assert len(said) == 1
    assert "nowhere" in said[0]
    codes = [line.split()[2] for line in done.stderr.splitlines() if line.strip().startswith("exitcode")]
    assert set(codes) == {"2"}
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
