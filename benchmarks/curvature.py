"""Curvature side by side with PyHessian and ARPACK on one checkpoint, in one process, alternating; medians as ratios.

    python benchmarks/curvature.py landscape-demo/adamw [--rounds 3] [--memory] [--low-rank]

products   an exact Hessian-vector product (fresh; eight sharing a graph; from a kept graph) and a central difference,
           over the cost of one gradient of the same data
top 5      ours to a certified rtol of 1e-3; PyHessian's power iteration at its default tolerance; ARPACK (eigsh,
           ncv=20, tol 1e-3) on fresh products; errors against ours at rtol 1e-6
trace      ours to a 5% half-width of the 95% interval; the same rule with a fresh product for every probe;
           PyHessian at its default tolerance, and where it stopped
--memory   peak memory of one product at a vocabulary of 32 000, in processes of their own
--gpu 1b|7b on a GPU: top eigenvalue and trace of a Llama of that shape with random weights, with peak memory
--low-rank the spread of Hutchinson, Hutch++ and XTrace, and the products that each takes to a precision (one batch)
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from pyhessian import hessian as PyHessian
from scipy.sparse.linalg import LinearOperator, eigsh
from transformers import LlamaConfig, LlamaForCausalLM

from landscape import MeasurementWarning, hessian_eigenvalues, hessian_trace, load_checkpoint, load_data
from landscape.curvature.operators.opening import curvature_of
from landscape.data.tokens import TokenData
from landscape.linalg.deflation import Deflation
from landscape.linalg.sampling import sample_mean
from landscape.objective.objective import Objective
from landscape.objective.scope import Run
from landscape.weights.parameters import Parameters

warnings.simplefilter("ignore", MeasurementWarning)


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, object]]:
    """Median seconds and last result of each, A B A B; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, object] = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            results[name] = run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}, results


class Handed(torch.nn.Module):
    """A model as PyHessian wants one: its input is the index of a batch, repeated once per supervised token."""

    def __init__(self, model: torch.nn.Module, batches: list[dict]):
        super().__init__()
        self.model, self.batches = model, batches

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.model(**self.batches[int(index[0])]).loss


def pyhessian(model: torch.nn.Module, batches: list[dict]) -> PyHessian:
    """PyHessian on the plain loss of the model, weighted by tokens; eager attention stands in for what it cannot do."""
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    loader = [(torch.full((count,), i), torch.zeros(1)) for i, count in enumerate(counts)]
    return PyHessian(Handed(model, batches), lambda loss, _: loss, dataloader=loader, cuda=False)


def products(model: torch.nn.Module, data: TokenData, rounds: int) -> None:
    objective, parameters = Objective(model, data), Parameters(model)

    def measure(runs: dict[str, Callable[[], object]], per: dict[str, int]) -> str:
        seconds, _ = alternate({"gradient": lambda: objective.gradient(parameters), **runs}, rounds)
        unit = seconds.pop("gradient")
        return ", ".join(f"{name} {taken / per.get(name, 1) / unit:.2f}" for name, taken in seconds.items())

    with curvature_of(objective, parameters, hvp="exact", keep_graphs=False) as fresh:
        vectors = torch.stack([fresh.layout.random(i, "benchmark") for i in range(8)])
        runs = {"fresh": lambda: fresh(vectors[:1]), "eight on one graph": lambda: fresh(vectors)}
        print("products, in gradients: " + measure(runs, {"eight on one graph": 8}), end=", ")
    # differences move the weights, and a kept graph does not survive that: so not in turn with the others
    with curvature_of(objective, parameters, hvp="exact") as kept:
        print(measure({"kept graph": lambda: kept(vectors[:1])}, {}), end=", ")
    with curvature_of(objective, parameters, hvp="finite_difference") as differences:
        print(measure({"differences at two steps": lambda: differences(vectors[:1])}, {}))
        print(f"differences are good to {differences.error:.1e}")


def eigenvalues(model: torch.nn.Module, data: TokenData, rounds: int) -> None:
    reference = hessian_eigenvalues(model, data, k=5, rtol=1e-6)
    batches = list(data)

    def ours() -> tuple[np.ndarray, int]:
        found = hessian_eigenvalues(model, data, k=5, rtol=1e-3)
        assert all(found.converged)
        return found.values, found.matvecs

    def theirs() -> tuple[np.ndarray, int]:
        torch.manual_seed(0)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            peer = pyhessian(model, batches)
            count, own = [0], peer.dataloader_hv_product

            def counted(v: list[torch.Tensor]) -> tuple:
                count[0] += 1
                return own(v)

            peer.dataloader_hv_product = counted
            values, _ = peer.eigenvalues(top_n=5)
        model.zero_grad()
        return np.array(values), count[0]

    def arpack() -> tuple[np.ndarray, int]:
        count = [0]
        with curvature_of(Objective(model, data), Parameters(model), hvp="exact", keep_graphs=False) as operator:

            def product(v: np.ndarray) -> np.ndarray:
                count[0] += 1
                return operator(torch.from_numpy(v.astype(np.float32))[None])[0].numpy()

            linear = LinearOperator((operator.size,) * 2, matvec=product, dtype=np.float32)
            start = operator.layout.random(0, "lanczos").numpy()
            found = eigsh(linear, 5, which="LA", tol=1e-3, ncv=20, v0=start, return_eigenvectors=False)
        return np.sort(found)[::-1], count[0]

    seconds, results = alternate({"ours": ours, "PyHessian": theirs, "ARPACK": arpack}, rounds)
    print("top 5: " + " ".join(f"{v:.5g}" for v in reference.values))
    for name, (values, count) in results.items():  # type: ignore[misc]
        error = np.abs(values / reference.values - 1).max()
        ratio = seconds[name] / seconds["PyHessian"]
        print(
            f"  {name:<10} {seconds[name]:7.2f} s ({ratio:.2f}x PyHessian), {count} products, worst error {error:.1e}"
        )


def trace(model: torch.nn.Module, data: TokenData, rounds: int) -> None:
    batches = list(data)

    def fresh() -> tuple[float, float, int]:
        with curvature_of(Objective(model, data), Parameters(model), hvp="exact", keep_graphs=False) as operator:

            def draw(start: int, stop: int) -> np.ndarray:
                probes = [operator.layout.random(0, f"probe {i}", rademacher=True) for i in range(start, stop)]
                return np.array([float(p @ operator(p[None])[0]) for p in probes])

            mean = sample_mean(draw, rtol=0.05)
        return mean.value, mean.half_width, mean.samples

    def with_method(method: str) -> tuple[float, float, int]:
        found = hessian_trace(model, data, rtol=0.05, run=Run(method=method))
        low, high = found.confidence_interval
        return found.value, (high - low) / 2, found.probes

    def theirs() -> tuple[float, float, int]:
        torch.manual_seed(0)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            values = pyhessian(model, batches).trace()
        model.zero_grad()
        return float(np.mean(values)), float("nan"), len(values)

    runs = {
        "fresh HVPs": fresh,
        "forward": lambda: with_method("forward"),
        "hutchinson": lambda: with_method("hutchinson"),
        "PyHessian": theirs,
    }
    seconds, results = alternate(runs, rounds)
    print("trace to 5%:")
    for name, (value, half, probes) in results.items():  # type: ignore[misc]
        ratio = seconds[name] / seconds["fresh HVPs"]
        print(
            f"  {name:<10} {seconds[name]:7.2f} s ({ratio:.2f}x fresh), {value:.1f} +- {half:.1f} from {probes} probes"
        )


def xtrace(probes: torch.Tensor, products: torch.Tensor, operator: Callable) -> np.ndarray:
    """The samples of XTrace (Epperly, Tropp and Webber 2024) from k probes and their products: 2 k products in all."""
    turned, triangle = torch.linalg.qr(products.double().T)
    core = turned.T @ operator(turned.T.float()).double().T
    inside = turned.T @ probes.double().T
    left_out = torch.linalg.inv(triangle).T
    left_out = left_out / torch.linalg.norm(left_out, dim=0)
    samples = []
    for i, s in enumerate(left_out.T):
        c = inside[:, i] - s * (s @ inside[:, i])
        rest = probes[i].double() @ products[i].double() - 2 * c @ triangle[:, i] + c @ core @ c
        samples.append(float(core.trace() - s @ core @ s + rest))
    return np.array(samples)


def low_rank(model: torch.nn.Module, data: TokenData, rounds: int = 32) -> None:
    """The spread of a probe without and with deflation, and what a trace then takes, on one batch.

    To a half-width it takes 2 k products for a basis of k vectors, and (1.96 spread / rtol)^2 for probes, at least 16.
    """
    first = [next(iter(data))]
    for curvature in ("hessian", "ggn"):
        with curvature_of(Objective(model, first), Parameters(model), curvature=curvature) as operator:

            def signs(count: int, stream: str) -> torch.Tensor:
                return torch.stack([operator.layout.random(0, f"{stream} {i}", rademacher=True) for i in range(count)])

            probes, rest = signs(64, "sketch"), signs(rounds, "rest")
            products = torch.cat([operator(part) for part in probes.split(8)])
            found = {"Hutchinson": (0, np.concatenate([(z * operator(z)).sum(1).numpy() for z in rest.split(8)]))}
            for k in (16, 64):
                deflation = Deflation(operator, k, lambda u, w: np.array([float(u.double() @ w.double())]))
                deflation.add(products[:k])
                deflation.capture()
                found[f"Hutch++, {k}"] = (2 * k, np.concatenate([deflation.samples(z)[:, 0] for z in rest.split(8)]))
            found["XTrace, 16"] = (0, xtrace(probes[:16], products[:16], operator))
        print(f"trace of the {curvature}, one batch:")
        for name, (before, samples) in found.items():
            spread = float(samples.std(ddof=1) / abs(samples.mean()))
            each = 2 if name.startswith("XTrace") else 1
            probes_to = {rtol: max(16, (1.96 * spread / rtol) ** 2) for rtol in RTOLS}
            takes = ", ".join(f"{before + each * count:.0f} to {rtol:.0%}" for rtol, count in probes_to.items())
            print(f"  {name:<12} {samples.mean():.1f}, spread of a probe {spread:.2f}, products {takes}")


RTOLS = (0.2, 0.05, 0.01)


def instruction_batch(rows: int, length: int, vocabulary: int, supervised: float) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : int((1 - supervised) * length)] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def peak_of_one_product(which: str, supervised: float) -> None:
    """Print the bytes that one product adds to the peak of this process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    batch = instruction_batch(8, 128, 32_000, supervised)
    parameters = Parameters(model)
    with torch.no_grad():
        model(**batch)  # libraries and thread pools are in memory before the count starts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if which == "ours":
        with curvature_of(Objective(model, [batch]), parameters, hvp="exact", keep_graphs=False) as operator:
            operator(operator.layout.random(0, "benchmark")[None])
    else:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            peer = pyhessian(model, [batch])
            peer.dataloader_hv_product([torch.randn_like(p) for p in parameters.tensors])
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def memory() -> None:
    print("peak memory of one product, 8 x 128 tokens, vocabulary 32 000, above the loaded model and one forward:")
    for supervised in (0.4, 1.0):
        peaks = {}
        for which in ("ours", "PyHessian"):
            command = [sys.executable, __file__, "--peak", which, "--supervised", str(supervised)]
            peaks[which] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        ratio = peaks["ours"] / peaks["PyHessian"]
        print(f"  {supervised:.0%} supervised: " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in peaks.items()), end="")
        print(f": {ratio:.2f}x")


SHAPES = {  # hidden, intermediate, layers, heads, key-value heads (Llama 3.2 1B, Llama 2 7B)
    "1b": (2048, 8192, 16, 32, 8),
    "7b": (4096, 11008, 32, 32, 32),
}


def on_gpu(shape: str, tokens: int = 8192, length: int = 512) -> None:
    """Top eigenvalue and trace of random weights in float32, with peak memory; says what did not fit."""
    if not torch.cuda.is_available():
        sys.exit("--gpu needs a CUDA device; there is none here.")
    hidden, intermediate, layers, heads, kv = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=length,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    weights = sum(p.numel() for p in model.parameters())
    data = [
        {key: value.cuda() for key, value in instruction_batch(1, length, 32_000, 1.0).items()}
        for _ in range(tokens // length)
    ]
    print(f"{shape}: {weights / 1e9:.2f}B parameters, {tokens} tokens, {torch.cuda.get_device_name()}")

    def timed(name: str, run: Callable[[], object]) -> None:
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        try:
            said = run()
        except (torch.OutOfMemoryError, ValueError) as error:
            said = f"did not fit: {str(error).splitlines()[0]}"
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"  {name}: {said}; {time.perf_counter() - started:.1f} s, peak {peak:.1f} GiB")

    def top(hvp: str, basis_device: str | None) -> str:
        found = hessian_eigenvalues(model, data, rtol=1e-2, max_matvecs=60, run=Run(hvp=hvp, basis_device=basis_device))
        return f"{found.values[0]:.4g} +- {found.residuals[0]:.1g} in {found.matvecs} {found.hvp} products"

    def total(method: str) -> str:
        found = hessian_trace(model, data, rtol=0.1, max_probes=200, run=Run(method=method))
        return f"{found.value:.4g} in {found.confidence_interval} from {found.probes} probes"

    timed("gradient", lambda: f"{Objective(model, data).gradient(Parameters(model))[0].mean:.4f}")
    timed("top 1, exact", lambda: top("exact", None))
    timed("top 1, exact, vectors on the host", lambda: top("exact", "cpu"))
    timed("top 1, differences, vectors on the host", lambda: top("finite_difference", "cpu"))
    timed("trace, forward", lambda: total("forward"))
    timed("trace, hutchinson", lambda: total("hutchinson"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="landscape-demo/adamw")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["products", "eigenvalues", "trace"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--low-rank", action="store_true")
    parser.add_argument("--gpu", choices=list(SHAPES))
    parser.add_argument("--peak", choices=["ours", "PyHessian"], help=argparse.SUPPRESS)
    parser.add_argument("--supervised", type=float, default=0.4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak_of_one_product(options.peak, options.supervised)
        return
    if options.gpu:
        on_gpu(options.gpu)
        return
    if options.memory:
        memory()
        return
    checkpoint = load_checkpoint(options.checkpoint)
    data = load_data("builtin:docs", checkpoint.tokenizer, max_length=128, limit=64, batch_tokens=2048)
    print(f"{checkpoint.name}: {sum(p.numel() for p in checkpoint.model.parameters()):,} parameters, {data.describe()}")
    if options.low_rank:
        low_rank(checkpoint.model, data)
        return
    for name, run in (("products", products), ("eigenvalues", eigenvalues), ("trace", trace)):
        if options.only in (None, name):
            run(checkpoint.model, data, options.rounds)


if __name__ == "__main__":
    main()
