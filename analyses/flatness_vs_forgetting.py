"""Does flatness explain forgetting? Bases, fine-tunings, every metric and what was forgotten, in one table.

python analyses/flatness_vs_forgetting.py --output OUT [--settings TOML] [--quick] [--workers 2]

What is tested was written down first, in analyses/flatness_vs_forgetting.md; OUT/study.json names its digest, the
settings and the versions. OUT/table.csv has a row per tuned checkpoint, OUT/results.json what analyses/hypotheses.py
makes of it. Draw them with figures/flatness_vs_forgetting.py. A run that was stopped goes on where it was; a folder of
other settings is refused.

Columns end in `_old` or `_new` where they were measured at the tuned checkpoint on held-out old or new text, in `_base`
for the old text at the base, in `_sham` for the old text after the weights of half of the checkpoints were changed by a
random symmetry that leaves the function alone. `path` is the run as JSON: pairs of forgetting and new-task loss.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import resource
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import torch
from llama_symmetries import symmetries_of
from study_folder import claim, read_settings, versions, write_json
from study_measures import SURFACE, norms, sharpness, spread
from study_models import QUESTIONS, random_start, train_tokenizer, write_questions

import landscape

HYPOTHESES = Path(__file__).with_suffix(".md")
SHAM = ("norm gain, per channel", "V-O, mixing", "up-down, per unit")
SHAM_STRENGTH = 2  # factors between 1/4 and 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--quick", action="store_true", help="what the settings say under [quick]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.settings, arguments.quick)
        run(arguments.output, settings, arguments.workers)
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, settings: dict, workers: int) -> None:
    started = time.perf_counter()
    plan = {"file": HYPOTHESES.name, "sha256": hashlib.sha256(HYPOTHESES.read_bytes()).hexdigest()}
    claim(output / "study.json", settings=settings, hypotheses=plan, versions=versions())
    train_tokenizer(output / "tokenizer", settings["vocabulary"])
    write_questions(output / "data")
    bases = list(bases_of(settings))
    missing = [base for base in bases if not all(row_file(output, base, arm).exists() for arm in arms_of(settings))]
    if missing:
        print(f"{len(bases)} bases, {len(missing)} to do, {workers} processes", flush=True)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            jobs = {pool.submit(run_base, output, settings, base): base for base in missing}
            for count, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                job.result()
                spent = time.perf_counter() - started
                print(f"{jobs[job].name}: {count} of {len(missing)} bases, {spent:.0f} s", flush=True)
    rows = [json.loads(row_file(output, b, a).read_text("utf-8")) for b in bases for a in arms_of(settings)]
    table = pandas.DataFrame(rows)
    beside = output / ".table.csv"
    table.assign(path=table["path"].map(json.dumps)).to_csv(beside, index=False)
    os.replace(beside, output / "table.csv")
    import hypotheses

    results = hypotheses.test(rows, settings)
    write_json(output / "results.json", results)
    print(hypotheses.in_words(results))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\n{len(rows)} checkpoints, {time.perf_counter() - started:.0f} s, of which the processes computed "
        f"{spent.ru_utime + spent.ru_stime:.0f} s in all; {output / 'table.csv'}"
    )


# --- the design ---------------------------------------------------------------------------------------------


class Base(NamedTuple):
    optimizer: str
    lr: float
    seed: int

    @property
    def recipe(self) -> str:
        return f"{self.optimizer}-{self.lr:g}"

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.seed}"


class Arm(NamedTuple):
    """One fine-tuning of a base: `full` runs are the confirmatory ones."""

    kind: str  # "full", "half": as many gradient evaluations as AdamW takes, "lora"
    optimizer: str
    lr: float
    steps: int
    lora: int | None

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.optimizer}-{self.lr:g}"


def bases_of(settings: dict) -> Iterator[Base]:
    of = settings["bases"]
    for seed, optimizer, lr in itertools.product(of["seeds"], of["optimizers"], of["lrs"]):
        yield Base(optimizer, lr, seed)


def arms_of(settings: dict) -> list[Arm]:
    of = settings["tuning"]
    full = [Arm("full", o, lr, of["steps"], None) for o, lr in itertools.product(of["optimizers"], of["lrs"])]
    half = [Arm("half", "sam", lr, of["steps"] // 2, None) for lr in of["lrs"]]
    lora = [Arm("lora", o, of["lora_lr"], of["steps"], of["lora_rank"]) for o in of["optimizers"]]
    return full + half + (lora if of["lora_rank"] else [])


def row_file(output: Path, base: Base, arm: Arm) -> Path:
    return output / "rows" / base.name / f"{arm.name}.json"


# --- one base and its fine-tunings --------------------------------------------------------------------------


def run_base(output: Path, settings: dict, base: Base) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # what did not converge says so in the table
    folder = output / "checkpoints" / base.name
    texts = Texts(output, settings)
    shared: dict[str, Any] = {
        "seed": base.seed,
        "load_options": landscape.LoadOptions(device="cpu"),
        "progress": False,
    }
    of = settings["bases"]
    start = random_start(folder / "start", settings["shape"], base.seed, output / "tokenizer")
    origin_folder = landscape.finetune(
        start, settings["old"], folder / "base",
        optimization=landscape.Optimization(
            optimizer=base.optimizer, rho=of["rho"] if base.optimizer == "sam" else None, lr=base.lr,
            steps=of["steps"], batch_size=of["batch_size"],
        ),
        data_options=landscape.DataOptions(max_length=settings["max_length"]), **shared,
    )  # fmt: skip
    origin = landscape.load_checkpoint(origin_folder, device="cpu")
    at_base = output / "rows" / base.name / "base.json"
    if not at_base.exists():
        write_json(at_base, flatness(origin, texts.metric["old"], settings, "base"))
    of = settings["tuning"]
    for arm in arms_of(settings):
        file = row_file(output, base, arm)
        if file.exists():
            continue
        tuned = landscape.finetune(
            origin_folder, texts.training, folder / arm.name,
            optimization=landscape.Optimization(
                optimizer=arm.optimizer, rho=of["rho"] if arm.optimizer == "sam" else None, lr=arm.lr,
                steps=arm.steps, batch_size=of["batch_size"], lora=arm.lora,
            ),
            data_options=landscape.DataOptions(settings["max_length"], limit=settings["training_examples"]),
            saving=landscape.Saving(keep_trajectory=of["keep_trajectory"] if arm.kind == "full" else None), **shared,
        )  # fmt: skip
        identity = {
            "name": f"{base.name}/{arm.name}",
            "base": base.name,
            "recipe": base.recipe,
            "base_optimizer": base.optimizer,
            "base_lr": base.lr,
            "base_seed": base.seed,
            "arm": arm.kind,
            "optimizer": arm.optimizer,
            "lr": arm.lr,
            "steps": arm.steps,
            "gradient_evaluations": arm.steps * (2 if arm.optimizer == "sam" else 1),
        }
        row = identity | measure(origin, tuned, arm, texts, settings, seed_of(base.name, arm.name))
        write_json(file, row | json.loads(at_base.read_text("utf-8")))


def seed_of(*names: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:4], "big")


class Texts:
    """Training data by name; held-out old and new tokens for metrics, and others for outcomes."""

    def __init__(self, output: Path, settings: dict):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
        new_train, new_held_out = settings["new"], f"{settings['new']}@heldout"
        if settings["new"] == QUESTIONS:
            new_train, new_held_out = map(str, write_questions(output / "data"))
        self.training = new_train
        self.metric, self.outcome = {}, {}
        for name, source in (("old", f"{settings['old']}@heldout"), ("new", new_held_out)):
            data = landscape.load_data(source, tokenizer, max_length=settings["max_length"], batch_tokens=2048)
            # two stretches of the text: no example, and hardly a page, is behind both a metric and an outcome
            cut = (
                len(data.examples)
                * settings["metric_examples"]
                // (settings["metric_examples"] + settings["outcome_examples"])
            )
            parts = (
                (data.examples[:cut], settings["metric_examples"]),
                (data.examples[cut:], settings["outcome_examples"]),
            )
            self.metric[name], self.outcome[name] = (
                dataclasses.replace(data, examples=spread(examples, count)) for examples, count in parts
            )


# --- one checkpoint -----------------------------------------------------------------------------------------


def measure(origin: Any, folder: Path, arm: Arm, texts: Texts, settings: dict, seed: int) -> dict:
    tuned = landscape.load_checkpoint(folder, device="cpu")
    row = outcomes(origin, tuned, texts)
    step = landscape.compute_sharpness(tuned, texts.metric["old"], metric="displacement_curvature", base=origin)
    row["predicted_forgetting"] = step.details["predicted_rise"]
    row["displacement_curvature"] = step.value
    row["distance"], row["weight_norm"] = norms(origin.model, tuned.model)
    row["log_distance"] = math.log(row["distance"])
    row["random"] = float(np.random.default_rng(seed).standard_normal())
    if arm.kind == "half":  # an outcome beside the others, no subject of correlations
        return row | {"path": []}
    for name, data in texts.metric.items():
        row |= flatness(tuned, data, settings, name)
    if arm.kind == "full":
        row |= {"path": path_of(folder, origin, texts, row)} | sham(tuned, origin, texts, settings, seed)
    return row | ({} if "path" in row else {"path": []})


def outcomes(origin: Any, tuned: Any, texts: Texts) -> dict:
    found = landscape.measure_forgetting(origin, tuned, texts.outcome, resamples=999)
    row: dict[str, float] = {}
    for task in found.tasks:
        row |= {
            f"{task.name}_loss_before": task.loss_before,
            f"{task.name}_loss": task.loss_after,
            f"kl_{task.name}": task.kl,
            f"{task.name}_accuracy_lost": task.accuracy_loss,
        }
        if task.name == "old":
            row |= {"forgetting": task.forgetting}
            row |= dict(zip(("forgetting_low", "forgetting_high"), task.forgetting_interval, strict=True))
    return row


def flatness(checkpoint: Any, data: Any, settings: dict, suffix: str, surface: bool = True) -> dict:
    row = {f"{m['column']}_{suffix}": sharpness(checkpoint, data, m, settings["seed"]) for m in settings["metrics"]}
    if surface:
        of = settings["surface"]
        found = landscape.compute_surface(
            checkpoint,
            data,
            points=of["points"],
            span=of["span"],
            seed=settings["seed"],
            run=landscape.Run(progress=False),
        ).metrics()
        for name in SURFACE:
            row[f"{name}_{suffix}"] = getattr(found, name)
    return row


def path_of(folder: Path, origin: Any, texts: Texts, end: dict) -> list[list[float]]:
    """(forgetting, new-task loss) along the run, from the base to its end."""
    points = []
    for step in sorted((folder / "trajectory").iterdir())[1:]:  # the first is the base
        found = landscape.measure_forgetting(
            origin, landscape.load_checkpoint(step, device="cpu"), texts.outcome, resamples=99
        )
        by_name = {task.name: task for task in found.tasks}
        points.append([by_name["old"].forgetting, by_name["new"].loss_after])
    return [[0.0, end["new_loss_before"]], *points, [end["forgetting"], end["new_loss"]]]


def sham(tuned: Any, origin: Any, texts: Texts, settings: dict, seed: int) -> dict:
    """The metrics of the old text again: on half of the checkpoints after a symmetry that leaves the function alone."""
    chosen = [entry for entry in settings["metrics"] if entry.get("sham")]
    moved = seed % 2 == 0
    if moved:
        symmetries = {symmetry.name: symmetry for symmetry in symmetries_of(tuned.model)}
        start = copy.deepcopy(origin.model)
        for model in (tuned.model, start):
            for name in SHAM:
                symmetries[name].apply(model, seed, SHAM_STRENGTH)
        step = landscape.compute_sharpness(
            tuned.model, texts.metric["old"], metric="displacement_curvature", base=start
        )
    row: dict[str, Any] = {"sham": moved}
    for entry in chosen:
        row[f"{entry['column']}_sham"] = sharpness(tuned.model, texts.metric["old"], entry, settings["seed"])
    return row | ({"displacement_curvature_sham": step.value} if moved else {})


if __name__ == "__main__":
    main()
