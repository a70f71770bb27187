"""What measurements cost as parameters, tokens, grid points and processes grow: a CSV, one plot, a table.

    python benchmarks/scale.py OUT [--rounds 3] [--quick]

Llamas with random weights, equal lengths, every token supervised, float32, one thread a process. Of each: a point of
a surface, a gradient, an exact Hessian-vector product, a trace from losses alone (16 probes) and the largest
eigenvalue (10 products). Medians over rounds that alternate between the works. Seconds are of the processor;
for processes (torchrun) they are of the clock, as other work on the machine then counts too. OUT gets scale.csv,
scale.png and scale.pdf.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator
from transformers import LlamaConfig, LlamaForCausalLM

from landscape import MeasurementWarning, compute_surface, hessian_eigenvalues, hessian_trace, random_directions
from landscape.curvature.operators.opening import curvature_of
from landscape.objective.objective import Objective
from landscape.objective.scope import Run
from landscape.parallel.distributed import shared_work
from landscape.weights.parameters import Parameters

LENGTH, VOCABULARY = 128, 1024
WORKS = {  # colours: Okabe and Ito 2008
    "point": ("surface point", "#0072b2"),
    "gradient": ("gradient", "#56b4e9"),
    "product": ("Hessian-vector product", "#009e73"),
    "trace": ("trace, 16 probes of losses", "#e69f00"),
    "eigenvalue": ("top eigenvalue, 10 products", "#d55e00"),
    "surface": ("whole surface", "#0072b2"),
}
WIDTH, TOKENS = 128, 512  # where one thing grows, the others stay here
SHARED_TOKENS, SHARED_POINTS = 4096, 16  # what processes share: eight batches
GROWING = {
    "parameters": (64, 128, 256),  # by width
    "tokens": (256, 512, 1024, 2048),
    "points": (5, 9, 17, 33),
    "processes": (1, 2),
}
WORKS_OF = {"points": ("surface",), "processes": ("surface", "gradient", "product", "trace")}
FIELDS = ("growing", "parameters", "tokens", "points", "processes", "work", "seconds", "count")


def llama(width: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config).eval()


def batches_of(tokens: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(1, VOCABULARY, (tokens // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": rows, "labels": rows} for rows in ids.split(4)]


def measure(width: int, tokens: int, points: int, works: tuple[str, ...], rounds: int, clock: Callable) -> list[dict]:
    """Median seconds of each work, and how many probes or products it took."""
    model, data = llama(width), batches_of(tokens)
    objective, parameters = Objective(model, data), Parameters(model)
    line = random_directions(model, 1)

    def surface() -> int:
        compute_surface(model, data, line, points=points, span=0.5, run=Run(progress=False))
        return points

    def gradient() -> int:
        objective.gradient(parameters)
        return 1

    def product() -> int:
        operator(operator.layout.random(0, "benchmark")[None])
        return 1

    def trace() -> int:
        return hessian_trace(model, data, rtol=1e-3, max_probes=16, run=Run(method="forward")).probes

    def eigenvalue() -> int:
        return hessian_eigenvalues(model, data, rtol=1e-9, max_matvecs=10).matvecs

    runs = {"surface": surface, "point": surface, "gradient": gradient, "product": product, "trace": trace}
    runs["eigenvalue"] = eigenvalue
    taken: dict[str, list[float]] = {work: [] for work in works}
    counts = {}
    with curvature_of(objective, parameters, hvp="exact", keep_graphs=False) as operator:
        for turn in range(rounds + 1):  # the first warms up
            for work in works:
                started = clock()
                counts[work] = runs[work]()
                if turn:
                    taken[work].append(clock() - started)
    size = parameters.numel
    rows = []
    for work in works:
        seconds = statistics.median(taken[work]) / (points if work == "point" else 1)
        rows.append({"parameters": size, "tokens": tokens, "points": points, "work": work, "seconds": seconds})
        rows[-1] |= {"count": counts[work], "processes": 1}
    return rows


def as_one_of_many(works: tuple[str, ...], rounds: int) -> None:
    """What torchrun starts: the first process prints what all of them took together."""
    with shared_work():
        rows = measure(WIDTH, SHARED_TOKENS, SHARED_POINTS, works, rounds, time.perf_counter)
    if os.environ.get("RANK", "0") == "0":
        print("\nrows " + json.dumps(rows))


def in_processes(count: int, works: tuple[str, ...], rounds: int) -> list[dict]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += [__file__, "-", "--many", ",".join(works), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    said = [line for line in done.stdout.splitlines() if line.startswith("rows ")]
    if not said:
        sys.exit(f"error: {count} processes did not finish: {done.stderr[-400:]}")
    return [row | {"processes": count} for row in json.loads(said[0].removeprefix("rows "))]


def measure_all(rounds: int, quick: bool) -> list[dict]:
    usual = ("point", "gradient", "product", "trace", "eigenvalue")
    rows = []
    for growing, values in GROWING.items():
        for value in values[:2] if quick else values:
            works = WORKS_OF.get(growing, usual)
            if growing == "processes":
                found = in_processes(value, works, rounds)
            else:
                width = value if growing == "parameters" else WIDTH
                tokens = value if growing == "tokens" else TOKENS
                points = value if growing == "points" else 9
                found = measure(width, tokens, points, works, rounds, time.process_time)
            rows += [{"growing": growing, **row} for row in found]
            print(f"{growing} {value}: " + ", ".join(f"{r['work']} {r['seconds']:.3g} s" for r in found), flush=True)
    return rows


def draw(rows: list[dict]) -> plt.Figure:
    figure, panels = plt.subplots(1, len(GROWING), figsize=(11, 2.9), layout="constrained")
    for growing, panel in zip(GROWING, panels, strict=True):
        mine = [row for row in rows if row["growing"] == growing]
        for work in dict.fromkeys(row["work"] for row in mine):
            line = [(row[growing], row["seconds"]) for row in mine if row["work"] == work]
            panel.plot(*zip(*line, strict=True), "o-", color=WORKS[work][1], label=WORKS[work][0], markersize=4)
        panel.set(xscale="log", yscale="log", xlabel=growing.replace("points", "grid points"))
        ticks = sorted({row[growing] for row in mine})
        panel.set_xticks(ticks, [f"{t / 1e6:.2g}M" if t >= 1e5 else str(t) for t in ticks])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    panels[-1].set_title("(seconds of the clock)", fontsize=8)
    handles = {label: handle for p in panels for handle, label in zip(*p.get_legend_handles_labels(), strict=True)}
    handles.pop("whole surface", None)  # the colour of its points
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def markdown(rows: list[dict]) -> str:
    """For everything that grows, from its smallest to its largest: what each work took, and the ratio."""
    columns = [("point", "surface")] + [(work,) for work in ("gradient", "product", "trace", "eigenvalue")]
    titles = ["surface point (whole surface)", *(WORKS[works[0]][0] for works in columns[1:])]
    lines = [f"| grows | {' | '.join(titles)} |", "|---" * (1 + len(columns)) + "|"]
    for growing in GROWING:
        mine = [row for row in rows if row["growing"] == growing]
        least, most = (limit(row[growing] for row in mine) for limit in (min, max))
        cells = [f"{growing} {least:,} to {most:,}: {most / least:.2g}x"]
        for works in columns:
            taken = [
                row["seconds"] for end in (least, most) for row in mine if row[growing] == end and row["work"] in works
            ]
            said = (
                "{:,.0f} to {:,.0f} ms: {:.2g}x".format(*(t * 1e3 for t in taken), taken[1] / taken[0]) if taken else ""
            )
            cells.append(f"({said})" if said and growing in WORKS_OF and "surface" in works else said)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two sizes of each")
    parser.add_argument("--many", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", MeasurementWarning)  # counts are capped on purpose
    torch.set_num_threads(1)
    if options.many:
        as_one_of_many(tuple(options.many.split(",")), options.rounds)
        return
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    rows = measure_all(options.rounds, options.quick)
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "scale.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    figure = draw(rows)
    for suffix in ("png", "pdf"):
        figure.savefig(options.output / f"scale.{suffix}", dpi=200)
    print(markdown(rows))


if __name__ == "__main__":
    main()
