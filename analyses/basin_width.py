"""Do wider models have wider basins, and does a basin's width say what fine-tuning forgets?

python analyses/basin_width.py --output OUT [--settings TOML] [--quick] [--until SECONDS]

What is tested was written down first, in analyses/basin_width.md; OUT/study.json names its digest, the settings and
the versions. OUT/bases.csv has a row per base, OUT/checkpoints.csv one per fine-tuning, OUT/results.json the verdicts.
A run that was stopped goes on where it was, and --until stops it after the base at hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from scipy import stats
from smollm2_contrasts import corrected
from study_folder import claim, kept_row, plain, read_settings, versions, write_json, write_lines
from study_measures import basin_radii, norms, spread
from study_models import random_start, train_tokenizer

import landscape

PLAN = Path(__file__).with_suffix(".md")
OLD, NEW = "builtin:docs", "builtin:code"
FACTORS = ("width", "optimizer", "lr")
RADII = ("basin_random", "basin_worst", "basin_step")
BESIDE = ("gradient_norm", "sam_sharpness", "adaptive_average", "kl_old", "kl_new", "distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--quick", action="store_true", help="what the settings say under [quick]")
    parser.add_argument("--until", type=float, default=math.inf, help="seconds after which no new base is begun")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # what is censored says so in its result
    try:
        settings = read_settings(arguments.settings, arguments.quick)
        if run(arguments.output, settings, time.time() + arguments.until):
            print(conclude(arguments.output))
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, settings: dict, deadline: float) -> bool:
    """Make and measure everything; False where the deadline came first."""
    plan = {"file": PLAN.name, "sha256": hashlib.sha256(PLAN.read_bytes()).hexdigest()}
    claim(output / "study.json", settings=settings, hypotheses=plan, versions=versions())
    train_tokenizer(output / "tokenizer", settings["vocabulary"])
    rows = output / "rows"
    for width in settings["widths"]:
        for seed in settings["seeds"]:
            if time.time() > deadline:
                return False
            base = pretrain(output, settings, width, seed, chosen_lr(output, settings, width))
            kept_row(rows / "bases" / f"{width}-{seed}.json", lambda: base_row(base, settings, width, seed))  # noqa: B023
            for optimizer, lr in ways(settings):
                name = f"{width}-{seed}-{optimizer}-{lr:g}"
                make = lambda: checkpoint_row(base, settings, (width, seed, optimizer, lr))  # noqa: E731, B023
                kept_row(rows / "checkpoints" / f"{name}.json", make)
            print(f"width {width}, seed {seed}", flush=True)
    for kind in ("bases", "checkpoints"):
        made = [json.loads(file.read_text("utf-8")) for file in sorted((rows / kind).glob("*.json"))]
        write_lines(output / f"{kind}.csv", pandas.DataFrame(made).to_csv(index=False).splitlines())
    return True


# --- models -------------------------------------------------------------------------------------------------


def ways(settings: dict) -> Iterator[tuple[str, float]]:
    """Every way to fine-tune: optimizer and learning rate."""
    for optimizer in settings["tuning"]["optimizers"]:
        for lr in settings["tuning"]["lrs"]:
            yield optimizer, lr


def shape_of(settings: dict, width: int) -> dict:
    return settings["shape"] | {
        "hidden_size": width, "intermediate_size": 5 * width // 2,
        "num_attention_heads": max(1, width // 16), "num_key_value_heads": max(1, width // 32),
    }  # fmt: skip


def pretrain(output: Path, settings: dict, width: int, seed: int, lr: float) -> Path:
    """The folder of a base; a finished run is not made again."""
    of, folder = settings["base"], output / "checkpoints" / f"{width}-{seed}"
    start = random_start(folder / "start", shape_of(settings, width), seed, output / "tokenizer")
    return landscape.finetune(
        start, OLD, folder / f"base-{lr:g}",
        optimization=landscape.Optimization(lr=lr, steps=of["steps"], batch_size=of["batch_size"]),
        data_options=landscape.DataOptions(max_length=settings["max_length"]),
        seed=seed, load_options=landscape.LoadOptions(device="cpu"), progress=False,
    )  # fmt: skip


def chosen_lr(output: Path, settings: dict, width: int) -> float:
    """The learning rate of a width, by the held-out loss of pilots."""
    of = settings["base"]
    if len(of["lrs"]) == 1:
        return of["lrs"][0]
    tried = {}
    for lr in of["lrs"]:
        name = f"{width}-{lr:g}"
        make = lambda: {"loss": pilot_loss(output, settings, width, lr)}  # noqa: E731, B023
        tried[lr] = kept_row(output / "rows" / "pilots" / f"{name}.json", make)["loss"]
    return min(tried, key=lambda lr: tried[lr])


def pilot_loss(output: Path, settings: dict, width: int, lr: float) -> float:
    base = pretrain(output, settings, width, settings["base"]["pilot_seed"], lr)
    _, outcome = texts_of(base, settings)
    made = landscape.load_checkpoint(base, device="cpu")
    return landscape.measure_forgetting(made, made, {"old": outcome["old"]}, resamples=99).tasks[0].loss_after


def texts_of(base: Path, settings: dict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Held-out text behind metrics, and other text behind outcomes, at even distances; each old and new."""
    tokenizer = landscape.load_checkpoint(base, device="cpu").tokenizer
    metric, outcome = {}, {}
    for name, source in (("old", OLD), ("new", NEW)):
        data = landscape.load_data(f"{source}@heldout", tokenizer, max_length=settings["max_length"])
        count, both = settings["metric_examples"], settings["metric_examples"] + settings["outcome_examples"]
        if both > len(data.examples):
            raise landscape.InputError(f"{data.describe()} is too short for {both} examples.")
        cut = len(data.examples) * count // both
        metric[name] = part_of(data, data.examples[:cut], count)
        outcome[name] = part_of(data, data.examples[cut:], settings["outcome_examples"])
    return metric, outcome


def part_of(data: Any, examples: tuple, count: int) -> Any:
    """So many of some examples, as data of their own."""
    return dataclasses.replace(data, examples=spread(examples, count))


# --- measurements -------------------------------------------------------------------------------------------


def base_row(base: Path, settings: dict, width: int, seed: int) -> dict[str, Any]:
    metric, outcome = texts_of(base, settings)
    made = landscape.load_checkpoint(base, device="cpu")
    row: dict[str, Any] = {"width": width, "seed": seed, "weights": sum(p.numel() for p in made.model.parameters())}
    for task in landscape.measure_forgetting(made, made, outcome, resamples=99).tasks:
        row[f"loss_{task.name}"] = task.loss_after
    for text, data in metric.items():
        row |= {f"{name}_{text}": radius for name, radius in basin_radii(made, data, settings["basin"], seed).items()}
    return row


def checkpoint_row(base: Path, settings: dict, way: tuple[int, int, str, float]) -> dict[str, Any]:
    """Fine-tune a base in one way, and measure what came of it."""
    width, seed, optimizer, lr = way
    of = settings["tuning"]
    tuned = landscape.finetune(
        base, NEW, base.parent / f"{optimizer}-{lr:g}",
        optimization=landscape.Optimization(
            optimizer=optimizer, rho=of["rho"] if optimizer == "sam" else None, lr=lr,
            steps=of["steps"], batch_size=of["batch_size"],
        ),
        data_options=landscape.DataOptions(settings["max_length"], limit=settings["training_examples"]),
        seed=seed, load_options=landscape.LoadOptions(device="cpu"), progress=False,
    )  # fmt: skip
    metric, outcome = texts_of(base, settings)
    origin, made = (landscape.load_checkpoint(folder, device="cpu") for folder in (base, tuned))
    row: dict[str, Any] = {"base": f"{width}-{seed}", "width": width, "seed": seed, "optimizer": optimizer, "lr": lr}
    losses = {task.name: task for task in landscape.measure_forgetting(origin, made, outcome, resamples=99).tasks}
    row |= {"forgetting": losses["old"].forgetting, "learned": -losses["new"].forgetting}
    for task in landscape.measure_forgetting(origin, made, metric, resamples=99).tasks:
        row[f"kl_{task.name}"] = task.kl
    row["distance"], row["weight_norm"] = norms(origin.model, made.model)
    row |= basin_radii(made, metric["old"], settings["basin"], seed, origin)
    for column, options in (
        ("gradient_norm", {"metric": "gradient_norm"}),
        ("sam_sharpness", {"metric": "worst_case", "steps": 1, "rho": 0.05}),
        ("adaptive_average", {"metric": "average_case", "adaptive": True, "rho": 0.05, "samples": 16}),
    ):
        row[column] = landscape.compute_sharpness(made, metric["old"], **options).value
    return row


# --- verdicts -----------------------------------------------------------------------------------------------


def conclude(output: Path) -> str:
    """Compute the answers to the plan's questions, write them down, and say them in words."""
    bases, checkpoints = (pandas.read_csv(output / f"{name}.csv") for name in ("bases", "checkpoints"))
    wide = {
        column: slope(np.log2(bases["width"]), bases[column] if column.startswith("loss") else np.log10(bases[column]))
        for column in ("basin_random_old", "basin_worst_old", "basin_random_new", "loss_old")
    }
    apart = sam_against_adamw(checkpoints)
    first, second = corrected([wide["basin_random_old"], apart])
    table = landscape.correlate(
        checkpoints, flatness=[*RADII, *BESIDE], factors=list(FACTORS), groups="base",
        resampling=landscape.Resampling(9999),
    )  # fmt: skip
    results = {
        "W1": first,
        "slopes": wide,
        "W2": second,
        "W3": landscape.estimand_table(table).to_dict("records"),
        "left": int((checkpoints["basin_step"] < 1).sum()),
        "lost": int((checkpoints["forgetting"] > 0.1).sum()),
        "checkpoints": len(checkpoints),
        "bases": bases.groupby("width").mean().reset_index().to_dict("records"),
    }
    write_json(output / "results.json", plain(results))
    return in_words(results)


def slope(x: np.ndarray | pandas.Series, y: np.ndarray | pandas.Series) -> dict[str, float]:
    """Slope of a straight line by least squares, with its 95% t interval and p."""
    fit = stats.linregress(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return {"value": float(fit.slope), "low": float(fit.slope) - half, "high": float(fit.slope) + half, "p": fit.pvalue}


def sam_against_adamw(checkpoints: pandas.DataFrame) -> dict[str, float]:
    """SAM minus AdamW of log10 of the radius: mean over learning rates of each base, t interval over bases."""
    logs = checkpoints.assign(log=np.log10(checkpoints["basin_random"]))
    of = logs.pivot_table(index="base", columns="optimizer", values="log", aggfunc="mean")
    values = (of["sam"] - of["adamw"]).to_numpy()
    mean, half = float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"value": mean, "low": mean - half, "high": mean + half, "p": float(stats.ttest_1samp(values, 0).pvalue)}


def in_words(results: dict) -> str:
    """The verdicts, each with its interval."""
    lines = []
    for name, what in (
        ("W1", "slope of log10 radius on log2 width"), ("W2", "SAM minus AdamW of log10 radius")
    ):  # fmt: skip
        row = results[name]
        side = "above" if row["value"] > 0 else "below"
        sign = f"evidence {side} zero" if row["p_holm"] < 0.05 else "no evidence"
        ends = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(f"{name}: {what} {row['value']:+.3f} {ends}, corrected p {row['p_holm']:.3g}: {sign}")
    lines.append("     | width | weights | loss, docs | radius, docs | worst case | radius, code |")
    lines += [
        f"     | {row['width']:.0f} | {row['weights']:,.0f} | {row['loss_old']:.3f} | {row['basin_random_old']:.4f} "
        f"| {row['basin_worst_old']:.5f} | {row['basin_random_new']:.4f} |"
        for row in results["bases"]
    ]
    lines.append("W3: with forgetting, given width, optimizer and learning rate (* evidence at a family-wise 5%):")
    known = [row for row in results["W3"] if math.isfinite(row["tuned alike"])]  # a radius may always be censored
    for row in sorted(known, key=lambda row: -abs(row["tuned alike"])):
        star = "*" if row["tuned alike_evidence"] else " "
        ends = f"[{row['tuned alike_low']:+.2f}, {row['tuned alike_high']:+.2f}]"
        lines.append(f"     {row['metric']:20s} {row['tuned alike']:+.2f}{star} {ends}; pooled {row['pooled']:+.2f}")
    left, lost, count = results["left"], results["lost"], results["checkpoints"]
    lines.append(f"{left} of {count} left the base's basin; {lost} lost more than 0.1 nats on other pages.")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)  # tiny models: more threads wait for one another
    main()
