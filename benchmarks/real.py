"""A real language model side by side with the peers, each cell in a process of its own: time, peak memory, error.

    python benchmarks/real.py [--model FOLDER] [--rows eigenvalue,trace] [--tools landscape,pyhessian] [--rounds 1]

line        25 points along one random direction        plane   11 x 11 points along two
eigenvalue  the one of largest magnitude, to a relative residual of 1e-2
trace       to 10%: half the 95% interval over the value, the same stopping rule for all tools
worst_case  one ascent step and the loss there          sam     one SAM step of SGD
kl          KL from the base to itself moved by 1e-3, on 4,096 tokens

"bare" is the least torch code that does the work: forwards, gradients. What a tool cannot do is said. The chat data are
8 examples of 35 supervised tokens. Peers that are not installed: pip install hessian-eigenthings==1.0.0a5
curvlinops-for-pytorch. Errors: of an eigenvalue its residual over it, measured afterwards with our product; of a trace
its half-width; of the others the distance from the first tool. Peaks are of the whole process, with Python and torch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from curvature import pyhessian as handed_to_pyhessian
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import (
    SAM,
    MeasurementWarning,
    compute_sharpness,
    compute_surface,
    hessian_eigenvalues,
    hessian_trace,
    load_checkpoint,
    load_data,
    measure_forgetting,
    random_directions,
)
from landscape.curvature.operators.opening import curvature_of
from landscape.linalg.operator import length
from landscape.linalg.sampling import sample_mean
from landscape.objective.objective import Objective
from landscape.objective.scope import Run
from landscape.weights.parameters import Parameters

TOOLS = ("landscape", "bare", "pyhessian", "eigenthings", "curvlinops")
ROWS = ("line", "plane", "eigenvalue", "trace", "worst_case", "sam", "kl")
PEERS_OF_CURVATURE = TOOLS[2:]
RHO, SPAN, RTOL, TRACE_RTOL = 0.05, 0.1, 1e-2, 0.1
STEPS = 8  # of Lanczos, for a tool that asks for their number; ours stopped after 7 or 8
CHAT = {
    "What is the capital of France?": "Paris.",
    "How many legs does a spider have?": "Eight.",
    "What colour is the sky on a clear day?": "Blue.",
    "Who wrote Hamlet?": "Shakespeare.",
    "What is two plus two?": "Four.",
    "What is the largest planet?": "Jupiter.",
    "Which gas do plants take in?": "Carbon dioxide.",
    "What do bees make?": "Honey.",
}


def chat_data(checkpoint):
    """The chat examples through the checkpoint's template; as completions where it has none."""
    template = getattr(checkpoint.tokenizer, "chat_template", None)
    records = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        if template
        else {"prompt": asked, "completion": f" {answer}"}
        for asked, answer in CHAT.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "chat.jsonl")
        path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
        return load_data(path, checkpoint.tokenizer)


class OwnLoss(torch.nn.Module):
    """A model whose output is its own loss of a batch."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> torch.Tensor:
        return self.model(**batch).loss


class GivenLoss(torch.nn.Module):
    """A loss that is the model's output; curvlinops asks how it is reduced over a batch."""

    reduction = "mean"

    def forward(self, loss: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return loss


# --- what each tool does: a function that returns a value, and where it can be had a vector ------------------


def surface(checkpoint, data, tool: str, dim: int):
    directions = random_directions(checkpoint.model, dim)
    points = {1: 25, 2: 11}[dim]
    if tool == "landscape":
        return compute_surface(checkpoint, data, directions, dim=dim, points=points, span=SPAN).loss.ravel()
    batches, tensors = list(data), dict(checkpoint.model.named_parameters())
    base = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    axis = torch.linspace(-SPAN, SPAN, points).tolist()
    losses = []
    with torch.no_grad():
        for place in np.array(np.meshgrid(*[axis] * dim, indexing="ij")).reshape(dim, -1).T:
            for name, tensor in tensors.items():
                tensor.copy_(base[name])
                for x, direction in zip(place, directions, strict=True):
                    if name in direction.tensors:
                        tensor.add_(direction.tensors[name], alpha=float(x))
            losses.append(mean_loss(checkpoint.model, batches))
    return np.array(losses)


def mean_loss(model, batches) -> float:
    sums = [(float(model(**batch).loss), int((batch["labels"][:, 1:] != -100).sum())) for batch in batches]
    return sum(loss * count for loss, count in sums) / sum(count for _, count in sums)


def products(checkpoint, data, tool: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """A peer's own product with the Hessian, of flat vectors."""
    model, batches = checkpoint.model, list(data)
    tensors = [tensor for tensor in model.parameters() if tensor.requires_grad]
    size = sum(tensor.numel() for tensor in tensors)

    def split(vector: torch.Tensor) -> list[torch.Tensor]:
        parts = vector.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def flat(parts) -> torch.Tensor:
        return torch.cat([part.detach().reshape(-1) for part in parts])

    if tool == "pyhessian":
        peer = handed_to_pyhessian(model, batches)
        return lambda vector: flat(peer.dataloader_hv_product(split(vector))[1]), size
    if tool == "eigenthings":
        from hessian_eigenthings import HessianOperator, hf_lm_loss

        return HessianOperator(model, batches, hf_lm_loss()).matvec, size
    from curvlinops import HessianLinearOperator

    linear = HessianLinearOperator(
        OwnLoss(model),
        GivenLoss(),
        tensors,
        [(batch, torch.zeros(1)) for batch in batches],
        check_deterministic=False,
        batch_size_fn=lambda batch: int((batch["labels"][:, 1:] != -100).sum()),
    )
    return lambda vector: linear @ vector, size


def eigenvalue(checkpoint, data, tool: str):
    """PyHessian and eigenthings by their own algorithms; curvlinops through scipy's eigsh, as it recommends."""
    if tool == "landscape":
        found = hessian_eigenvalues(checkpoint, data, k=1, which="LM", rtol=RTOL, run=Run(progress=False))
        return float(found.values[0]), float(found.residuals[0])
    if tool == "pyhessian":
        # its tolerance is on the change of the value: 1e-3, its default, stops at a residual of 1.5e-2 here
        values, vectors = handed_to_pyhessian(checkpoint.model, list(data)).eigenvalues(top_n=1, tol=2e-4)
        return values[0], torch.cat([part.detach().reshape(-1) for part in vectors[0]])
    if tool == "eigenthings":
        from hessian_eigenthings import HessianOperator, hf_lm_loss, lanczos

        # It takes the steps that it is told, by default 2 for one eigenvalue, whatever their residual.
        operator = HessianOperator(checkpoint.model, list(data), hf_lm_loss())
        found = lanczos(operator, k=1, max_iter=STEPS, tol=RTOL, seed=0)
        return float(found.eigenvalues[0]), found.eigenvectors.reshape(-1)
    product, size = products(checkpoint, data, tool)
    linear = LinearOperator(
        (size, size), matvec=lambda v: product(torch.from_numpy(v.astype(np.float32))).numpy(), dtype=np.float32
    )
    values, vectors = eigsh(linear, k=1, which="LM", tol=RTOL)
    return float(values[0]), torch.from_numpy(vectors[:, 0].copy())


def residual_of(checkpoint, data, value: float, vector: torch.Tensor) -> float:
    """|H v - value v| of a peer's unit vector, by our product, whose parameters have the order of their names."""
    parameters = Parameters(checkpoint.model)
    tensors = dict(checkpoint.model.named_parameters())
    parts = dict(
        zip(tensors, vector.split([tensor.numel() for tensor in tensors.values()]), strict=True)
    )  # tied weights are named once here and there
    with curvature_of(Objective(checkpoint.model, data), parameters, keep_graphs=False) as operator:
        unit = operator.layout.flat({name: parts[name].view(tensors[name].shape) for name in parameters.names})
        unit /= length(unit)
        return float(length(operator(unit[None])[0] - value * unit))


def trace(checkpoint, data, tool: str):
    if tool == "landscape":
        found = hessian_trace(checkpoint, data, rtol=TRACE_RTOL, run=Run(progress=False))
        low, high = found.confidence_interval
        return found.value, (high - low) / 2
    product, size = products(checkpoint, data, tool)

    def draw(first: int, last: int) -> np.ndarray:
        found = []
        for index in range(first, last):
            probe = torch.randint(2, (size,), generator=torch.Generator().manual_seed(index)).float().mul_(2).sub_(1)
            image = product(probe)
            pairs = zip(probe.split(2**18), image.split(2**18), strict=True)
            found.append(sum(float(left.double() @ right.double()) for left, right in pairs))
        return np.array(found)

    mean = sample_mean(draw, rtol=TRACE_RTOL)
    return mean.value, mean.half_width


def worst_case(checkpoint, data, tool: str):
    if tool == "landscape":
        found = compute_sharpness(checkpoint, data, metric="worst_case", rho=RHO, steps=1)
        return np.array([found.perturbed_loss])
    return np.array([ascended(checkpoint.model, list(data))])


def ascended(model, batches) -> float:
    tensors = list(model.parameters())
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    norm = sum(float(tensor.grad.double().square().sum()) for tensor in tensors) ** 0.5
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(tensor.grad, alpha=RHO / norm)
        return mean_loss(model, batches)


def sam(checkpoint, data, tool: str):
    model, batches = checkpoint.model, list(data)
    tensors = list(model.parameters())

    def closure() -> float:
        for tensor in tensors:
            tensor.grad = None
        total = sum(model(**batch).loss / len(batches) for batch in batches)
        total.backward()
        return float(total)

    if tool == "landscape":
        SAM(tensors, torch.optim.SGD, rho=RHO, lr=1e-3).step(closure)
    else:
        closure()
        norm = sum(float(tensor.grad.double().square().sum()) for tensor in tensors) ** 0.5
        base = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            for tensor in tensors:
                tensor.add_(tensor.grad, alpha=RHO / norm)
        closure()
        with torch.no_grad():
            for tensor, before in zip(tensors, base, strict=True):
                tensor.copy_(before).sub_(tensor.grad, alpha=1e-3)
    with torch.no_grad():
        return np.array([mean_loss(model, batches)])


def kl(checkpoint, data, tool: str):
    del data
    tokens = load_data("builtin:docs", checkpoint.tokenizer, max_length=256, limit=16)
    tuned = load_checkpoint(checkpoint.source)
    with torch.no_grad():
        for tensor in tuned.model.parameters():
            tensor.mul_(1 + 1e-3)
    if tool == "landscape":
        (task,) = measure_forgetting(checkpoint, tuned, {"docs": tokens}, resamples=99).tasks
        return np.array([task.kl])
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in tokens:
            inputs = {name: part for name, part in batch.items() if name != "labels"}
            kept = batch["labels"][:, 1:] != -100
            one, two = (
                torch.log_softmax(side.model(**inputs).logits[:, :-1][kept].float(), -1) for side in (checkpoint, tuned)
            )
            total += float((one.exp() * (one - two)).sum())
            count += int(kept.sum())
    return np.array([total / count])


WORKS: dict[str, Callable] = {
    "line": lambda *cell: surface(*cell, dim=1),
    "plane": lambda *cell: surface(*cell, dim=2),
    "eigenvalue": eigenvalue,
    "trace": trace,
    "worst_case": worst_case,
    "sam": sam,
    "kl": kl,
}


def can(row: str, tool: str) -> bool:
    """Whether a tool does that work at all."""
    if row in ("eigenvalue", "trace"):
        return tool != "bare"
    return tool not in PEERS_OF_CURVATURE


def measure_cell(row: str, tool: str, folder: str) -> dict:
    """What one process measures; the error of an eigenvalue after time and memory were read."""
    checkpoint = load_checkpoint(folder)
    data = chat_data(checkpoint)
    torch.manual_seed(0)
    started = time.perf_counter(), time.process_time()
    math = sdpa_kernel(SDPBackend.MATH) if tool in PEERS_OF_CURVATURE else warnings.catch_warnings()
    with math:  # second derivatives of attention: the peers leave that to the caller
        found = WORKS[row](checkpoint, data, tool)
    taken = {"seconds": time.perf_counter() - started[0], "cpu": time.process_time() - started[1], "peak": peak()}
    if row in ("eigenvalue", "trace"):
        value, certificate = found
        if isinstance(certificate, torch.Tensor):
            for tensor in checkpoint.model.parameters():
                tensor.grad = None
            certificate = residual_of(checkpoint, data, value, certificate)
        return taken | {"values": [value], "error": certificate / abs(value)}
    return taken | {"values": found.tolist(), "error": None}


def peak() -> float:
    """The most memory that this process held, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmHWM"))


def in_a_process(row: str, tool: str, folder: str) -> dict | str:
    """What a fresh process measured, or why it could not."""
    command = [sys.executable, "-W", "ignore", __file__, "--model", folder, "--cell", row, tool]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    said = [line for line in done.stdout.splitlines() if line.startswith("cell ")]
    if said:
        return json.loads(said[-1].removeprefix("cell "))
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return f"cannot: {last[:160]}"


def print_row(row: str, tools: list[str], folder: str, rounds: int) -> None:
    """One line for each tool. Times and memory are those over the first tool's, in A B A B medians."""
    runs: dict[str, list] = {tool: [] for tool in tools if can(row, tool)}
    for _ in range(rounds):
        for tool in runs:
            runs[tool].append(in_a_process(row, tool, folder))
    reference = None
    for tool in tools:
        if tool not in runs:
            print(f"{row:11} {tool:12} does not do this")
            continue
        good = [found for found in runs[tool] if isinstance(found, dict)]
        if not good:
            print(f"{row:11} {tool:12} {runs[tool][0]}")
            continue
        cpu, seconds, most = (statistics.median(found[name] for found in good) for name in ("cpu", "seconds", "peak"))
        reference = reference or (tool, cpu, most, good[0])
        error = good[0]["error"]
        if error is None and tool != reference[0]:
            theirs, ours = np.array(good[0]["values"]), np.array(reference[3]["values"])
            error = float(np.max(np.abs(theirs - ours) / np.abs(ours)))
        said = "-" if error is None else f"{error:.1e}"
        value = f"{good[0]['values'][0]:.6g}"
        print(
            f"{row:11} {tool:12} {cpu:8.1f} s of the processor ({cpu / reference[1]:.2f}x {reference[0]}), "
            f"{seconds:.1f} of the clock; peak {most / 1e9:.2f} GB ({most / reference[2]:.2f}x); "
            f"value {value}, error {said}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cache = Path(os.environ.get("LANDSCAPE_CACHE", Path.home() / ".cache" / "landscape"))
    parser.add_argument("--model", default=str(cache / "SmolLM2-135M-Instruct"), help="landscape fetch smollm2")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--tools", default=",".join(TOOLS), help="the first one is what the others are compared with")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", MeasurementWarning)
    if options.cell:
        print("cell " + json.dumps(measure_cell(*options.cell, options.model)))
        return
    rows, tools = options.rows.split(","), options.tools.split(",")
    unknown = [name for name in rows if name not in ROWS] + [name for name in tools if name not in TOOLS]
    if unknown:
        sys.exit(f"error: {unknown[0]} is none of {', '.join(ROWS + TOOLS)}.")
    if not Path(options.model).is_dir():
        sys.exit(f"error: there is no {options.model}; get it with `landscape fetch smollm2`, or give --model FOLDER.")
    print(f"{options.model}; load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for row in rows:
        print_row(row, tools, options.model, options.rounds)


if __name__ == "__main__":
    main()
