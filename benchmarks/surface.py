"""A loss surface side by side with its peers, in one process, alternating A B A B; medians as ratios to bare forwards.

    python benchmarks/surface.py landscape-demo/adamw [--peers FOLDER] [--points 5] [--rows 16] [--rounds 3]

grid         a random plane of --points x --points on equal-length text: `model(**batch).loss` as often, ours, and
             loss-landscapes, loss-landscape-3d and Landscaper where they can be imported (--peers: a folder made with
             pip install --target; they bring versions of their own that a working environment need not have)
instruction  five points on mixed-length, partly supervised examples: against `model(**batch).loss` in data order
             on padded batches of 8, which is all that the peers offer (benchmarks/loss.py is one point of it)
--perturb    what moving the weights costs for each parameter, against a copy of them and against a forward pass
--memory     peak memory of a 3 x 3 grid above the loaded model and one forward, in processes of their own

Processor time of one thread: other work on the machine does not count, but for the caches it takes.
"""

import argparse
import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from loss import instruction_examples, plain
from transformers import LlamaConfig, LlamaForCausalLM

from landscape import MeasurementWarning, compute_surface, load_checkpoint, load_data, random_directions
from landscape.data.tokens import TokenData
from landscape.objective.scope import Run
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import excursion

warnings.simplefilter("ignore", MeasurementWarning)
PEERS = ("loss-landscapes", "loss-landscape-3d", "Landscaper")
Grid = Callable[[int], object]  # evaluates points x points losses


class Handed(torch.nn.Module):
    """A model as peers want one: its input is the index of a batch, its output the loss."""

    def __init__(self, model: torch.nn.Module, batches: list[dict]):
        super().__init__()
        self.model, self.batches = model, batches

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.model(**self.batches[int(index[0])]).loss


def bare(model: torch.nn.Module, batches: list[dict]) -> float:
    """Mean of the model's own loss; the batches are of equal weight."""
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def ours(model: torch.nn.Module, data: object, loss_fn: object = None) -> Grid:
    return lambda points: compute_surface(model, data, points=points, span=0.5, run=Run(progress=False))


def peer(name: str, model: torch.nn.Module, batches: list[dict]) -> Grid:
    """The peer's random plane with its own normalization; raises ImportError where it is not installed."""
    if name == "loss-landscapes":
        import loss_landscapes

        wrapped = loss_landscapes.model_interface.model_wrapper.SimpleModelWrapper(model)
        return lambda points: loss_landscapes.random_plane(
            wrapped, lambda at: bare(at.modules[0], batches), distance=2, steps=points, deepcopy_model=True
        )
    if name == "loss-landscape-3d":
        from loss_landscape_3d.calculator import LossLandscapeCalculator
        from loss_landscape_3d.directions import generate_random_directions

        handed = Handed(model, batches)
        loader = [(torch.tensor([i]), torch.tensor([0])) for i in range(len(batches))]
        calculator = LossLandscapeCalculator(handed, loader, lambda loss, _: loss)

        def grid(points: int) -> object:
            along = np.linspace(-0.5, 0.5, points)
            centre = {key: value.clone() for key, value in handed.state_dict().items()}
            return calculator.calculate(along, along, *generate_random_directions(handed), centre)

        return grid
    from landscaper.compute import compute_loss_landscape

    def plane(points: int) -> object:
        directions = [[torch.randn_like(p) for p in model.parameters()] for _ in range(2)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return compute_loss_landscape(model, batches, directions, bare, points, 0.5, dim=2, device="cpu")

    return plane


def available(model: torch.nn.Module, batches: list[dict]) -> dict[str, Grid]:
    found = {}
    for name in PEERS:
        try:
            found[name] = peer(name, model, batches)
        except ImportError as error:
            print(f"  {name} is left out: {error}")
    return found


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Processor seconds of each in every round, and its last result; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, object] = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            results[name] = run()
            if turn:
                seconds[name].append(time.process_time() - started)
    return seconds, results


def ratios(seconds: dict[str, list[float]], unit: str) -> dict[str, tuple[float, float, float]]:
    """Median, lowest and highest over the rounds of each one's time over that of `unit` in the same round."""
    found = {}
    for name, taken in seconds.items():
        each = sorted(a / b for a, b in zip(taken, seconds[unit], strict=True))
        found[name] = statistics.median(each), each[0], each[-1]
    return found


def grid(checkpoint: str, points: int, rows: int, rounds: int) -> None:
    loaded = load_checkpoint(checkpoint, device="cpu")
    model = loaded.model
    text = load_data("builtin:docs", loaded.tokenizer, max_length=128, limit=8 * rows, batch_tokens=128 * rows)
    full = [batch for batch in text if batch["input_ids"].shape == (rows, 128) and batch["attention_mask"].all()]
    batches = full[:1]
    if not batches:
        sys.exit(f"error: too few examples of 128 tokens for a batch of {rows}; lower --rows.")

    def forwards() -> float:
        for _ in range(points**2):
            loss = bare(model, batches)
        return loss

    runs = {"bare forwards": forwards, "ours": lambda: ours(model, batches)(points)}
    for name, run in available(model, batches).items():
        runs[name] = lambda run=run: run(points)  # type: ignore[misc]
    seconds, results = alternate(runs, rounds)
    surface = results["ours"]
    apart = abs(surface.center / results["bare forwards"] - 1)  # type: ignore[attr-defined, operator]
    size = sum(p.numel() for p in model.parameters())
    print(f"grid: {points} x {points} points, {size:,} parameters, {rows} x 128 tokens; centre equal to {apart:.0e}")
    for name, (middle, low, high) in ratios(seconds, "bare forwards").items():
        taken = statistics.median(seconds[name])
        print(f"  {name:<18} {taken:7.2f} s  {middle:.3f}x ({low:.3f} to {high:.3f})")


def llama(width: int, layers: int, vocabulary: int = 32_000) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def instruction(width: int, layers: int, rounds: int) -> None:
    model = llama(width, layers)
    examples = instruction_examples(64, 32_000)
    data = TokenData("benchmark", tuple(examples), batch_tokens=2048)
    axis = random_directions(model, 1)

    def in_order() -> list[float]:
        found = []
        with excursion(Parameters(model)) as trip:
            for x in np.linspace(-0.5, 0.5, 5):
                trip.move([(x, axis[0].tensors)])
                found.append(plain(model, examples, rows=8))
        return found

    def surface() -> list[float]:
        return compute_surface(model, data, axis, points=5, span=0.5, run=Run(progress=False)).loss.tolist()

    seconds, results = alternate({"in order": in_order, "ours": surface}, rounds)
    apart = np.abs(np.array(results["ours"]) / np.array(results["in order"]) - 1).max()
    middle, low, high = ratios(seconds, "ours")["in order"]
    print(f"instruction: {width} wide, {layers} layers, vocabulary 32 000, 64 examples, 40% supervised, 5 points")
    print(f"  {middle:.2f}x ({low:.2f} to {high:.2f}) faster than data order; values equal to {apart:.1e} relative")


def perturb(width: int, layers: int, tokens: int, rounds: int) -> None:
    model = llama(width, layers)
    parameters = Parameters(model)
    size = parameters.numel
    plane = random_directions(model, 2)
    ids = torch.randint(1, 32_000, (tokens // 128, 128), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    held = [t.detach().clone() for t in parameters.tensors]

    def copy() -> None:
        for own, kept in zip(parameters.tensors, held, strict=True):
            own.detach().copy_(kept)

    with excursion(parameters) as trip:
        move = {"step": 0.0}

        def step() -> None:
            move["step"] += 1e-3
            trip.move([(move["step"], plane[0].tensors), (-move["step"], plane[1].tensors)])

        runs = {"forward": lambda: bare(model, [batch]), "perturb": step, "copy": copy}
        seconds, _ = alternate(runs, rounds)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    nanoseconds = {name: taken / size * 1e9 for name, taken in middle.items()}
    print(f"perturbing {size / 1e6:.0f}M parameters along two directions, float32, {tokens} tokens a point:")
    print(
        "  " + ", ".join(f"{name} {middle[name]:.3f} s ({ns:.2f} ns a parameter)" for name, ns in nanoseconds.items())
    )
    print(
        f"  the copy runs at {8 / nanoseconds['copy']:.1f} GB/s; "
        f"perturbing costs {middle['perturb'] / middle['copy']:.1f} copies"
    )
    share = middle["perturb"] / (middle["perturb"] + middle["forward"])
    print(f"  {share:.1%} of a grid point here; both grow with the parameters, so the same at 1B:")
    for count in (2048, 8192, 65_536):
        forward = middle["forward"] * count / tokens
        print(f"    {count:>6} tokens a point: {middle['perturb'] / (middle['perturb'] + forward):.2%} (arithmetic)")


def peak(which: str, width: int, layers: int) -> None:
    """Print what a grid adds to the peak of this process, in copies of the weights."""
    model = llama(width, layers, vocabulary=1024)
    ids = torch.randint(1, 1024, (1, 64), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "labels": ids}]
    run = ours(model, batches) if which == "ours" else peer(which, model, batches)
    bare(model, batches)  # libraries and thread pools are in memory before the count starts
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(3)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / weights)


def memory(options: argparse.Namespace) -> None:
    print(f"peak memory of a 3 x 3 grid above the loaded model ({options.width} wide), in copies of the weights:")
    for name in ("ours", *PEERS):
        command = [sys.executable, __file__, "--peak", name, "--width", str(options.width)]
        command += ["--layers", str(options.layers), *(["--peers", str(options.peers)] if options.peers else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = f"{float(done.stdout.split()[-1]):.1f}" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
        print(f"  {name:<18} {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="landscape-demo/adamw")
    parser.add_argument("--peers", type=Path, help="a folder to import peers from")
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512, help="of the model of instruction, --perturb and --memory")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="of a forward pass of --perturb")
    parser.add_argument("--only", choices=["grid", "instruction"])
    parser.add_argument("--perturb", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", choices=["ours", *PEERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peers:
        sys.path.append(str(options.peers.resolve()))  # last: the environment's own packages come first
    if options.peak:
        peak(options.peak, options.width, options.layers)
        return
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.memory:
        memory(options)
    elif options.perturb:
        perturb(options.width, options.layers, options.tokens, options.rounds)
    else:
        if options.only in (None, "grid"):
            grid(options.checkpoint, options.points, options.rows, options.rounds)
        if options.only in (None, "instruction"):
            instruction(options.width, options.layers, options.rounds)


if __name__ == "__main__":
    main()
