"""Does flatness explain forgetting within a recipe? The second study: its runs, its tables, its verdicts.

python analyses/within_recipe.py --output OUT [--settings TOML] [--quick] [--workers 2] [--until SECONDS]

What is tested was written down first, in analyses/within_recipe.md; OUT/study.json names its digest, the settings and
the versions. `pilot` tunes SAM's radius, `runs` fine-tunes every base in every way, `metrics` measures the flatness of
half of the checkpoints and `other metrics` that of the rest, `fronts` adds WiSE-FT and rehearsal. A run that was
stopped goes on where it was, and --until stops it after the base or checkpoint at hand.

OUT/radii.csv has a row per radius tried, OUT/runs.csv one per fine-tuning, OUT/checkpoints.csv one per
measured checkpoint; analyses/within_recipe_results.py makes OUT/results.json and the verdicts of them, and
figures/within_recipe.py the figures.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import torch
import transformers
from study_folder import claim, kept_row, read_settings, versions
from study_measures import norms, planes, sharpness
from study_models import random_start, train_tokenizer, write_questions, write_sums
from within_recipe_design import Base, Cell, all_cells, bases_of, cells_of, measured_in
from within_recipe_texts import Texts, read_texts

import landscape

PLAN = Path(__file__).with_suffix(".md")
PARTS = ("pilot", "runs", "metrics", "fronts", "other metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--quick", action="store_true", help="what the settings say under [quick]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--until", type=float, default=math.inf, help="seconds after which no new work is begun")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.settings, arguments.quick)
        deadline = time.time() + arguments.until
        if run(arguments.output, settings, arguments.workers, deadline):
            import within_recipe_results

            print(within_recipe_results.main(arguments.output))
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, settings: dict, workers: int, deadline: float) -> bool:
    """Do all parts and write the tables; False where the deadline came first."""
    plan = {"file": PLAN.name, "sha256": hashlib.sha256(PLAN.read_bytes()).hexdigest()}
    claim(output / "study.json", settings=settings, hypotheses=plan, versions=versions())
    train_tokenizer(output / "tokenizer", settings["vocabulary"])
    write_questions(output / "data")
    write_sums(output / "data")
    bases = list(bases_of(settings))
    jobs: dict[str, list[tuple[Callable, tuple]]] = {
        "pilot": [(tune_radius, (name,)) for name in settings["pairs"]],
        "runs": [(fine_tune, (base,)) for base in bases],
        "metrics": [(measure_cell, of) for of in measured_in(settings, 0)],
        "fronts": [(extend_fronts, (base,)) for base in bases],
        "other metrics": [(measure_cell, of) for of in measured_in(settings, 1)],
    }
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for part in PARTS:  # each needs what the one before it made
            started, done = time.perf_counter(), 0
            waiting = [pool.submit(work, job, output, settings, deadline, *of) for job, of in jobs[part]]
            for future in concurrent.futures.as_completed(waiting):
                done += future.result()
                spent = time.perf_counter() - started
                print(f"{part}: {done} of {len(waiting)}, {spent:.0f} s", flush=True)
            write_tables(output)
            if done < len(waiting):
                return False
    return True


def work(job: Callable, output: Path, settings: dict, deadline: float, *of: Any) -> bool:
    """One job in a process of its own thread; False where the deadline came before its end."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # what did not converge says so in its result
    try:
        job(Place(output, settings, deadline), *of)
    except DeadlineError:
        return False
    return True


class DeadlineError(Exception):
    """The time that --until gave is over."""


class Place(NamedTuple):
    """Where the study is, what its settings are, and when it has to stop."""

    output: Path
    settings: dict
    deadline: float

    def row(self, kind: str, name: str, make: Callable[[], dict]) -> dict:
        """The row of this name, made now if it is not there yet."""
        file = self.output / "rows" / kind / f"{name}.json"
        if not file.exists() and time.time() > self.deadline:
            raise DeadlineError
        return kept_row(file, make)


def write_tables(output: Path) -> None:
    """A CSV of the rows that are there, of each kind."""
    for kind in ("radii", "runs", "checkpoints"):
        rows = [json.loads(file.read_text("utf-8")) for file in sorted((output / "rows" / kind).rglob("*.json"))]
        if rows:
            beside = output / f".{kind}.csv"
            pandas.DataFrame(rows).to_csv(beside, index=False)
            os.replace(beside, output / f"{kind}.csv")


def texts_of(place: Place, pair: str) -> Texts:
    return read_texts(place.output, json.dumps(place.settings), pair)


# --- training -----------------------------------------------------------------------------------------------


def pretrain(place: Place, pair: str, name: str, optimizer: str, lr: float, seed: int) -> Path:
    """The folder of a base, from a random start of its own."""
    of, folder = place.settings["bases"], place.output / "checkpoints" / name
    start = random_start(folder / "start", place.settings["shape"], seed, place.output / "tokenizer")
    return landscape.finetune(
        start, place.settings["pairs"][pair]["old"], folder / "base",
        optimization=landscape.Optimization(
            optimizer=optimizer, rho=of["rho"] if optimizer == "sam" else None, lr=lr,
            steps=of["steps"], batch_size=of["batch_size"],
        ),
        data_options=landscape.DataOptions(max_length=place.settings["pairs"][pair]["max_length"]),
        seed=seed, load_options=landscape.LoadOptions(device="cpu"), progress=False,
    )  # fmt: skip


def tune(place: Place, base: Path, pair: str, name: str, cell: Cell, rho: float | None, seed: int, **more: Any) -> Path:
    """The folder of a fine-tuned base; a finished run is not made again."""
    of = place.settings["tuning"]
    return landscape.finetune(
        base, texts_of(place, pair).training, base.parent / name,
        optimization=landscape.Optimization(
            optimizer="adamw" if cell.optimizer == "adamw" else "sam", rho=rho, lr=cell.lr,
            steps=cell.steps, batch_size=of["batch_size"],
        ),
        data_options=landscape.DataOptions(
            place.settings["pairs"][pair]["max_length"], limit=place.settings["training_examples"]
        ),
        seed=seed, load_options=landscape.LoadOptions(device="cpu"), progress=False, **more,
    )  # fmt: skip


def weight_norm(folder: Path) -> float:
    model = landscape.load_checkpoint(folder, device="cpu").model
    return norms(model, model)[1]


# --- pilot: the radius of SAM -------------------------------------------------------------------------------


def tune_radius(place: Place, pair: str) -> None:
    """Fine-tune the pilot base of a pair with every radius, learning rate and length."""
    of, name = place.settings["pilot"], f"{pair}/pilot"
    base = pretrain(place, pair, name, "adamw", of["lr"], of["seed"])
    norm = weight_norm(base)
    radii = [("absolute", value, value) for value in of["absolute"]]
    radii += [("relative", value, value * norm) for value in of["relative"]]
    for cell in all_cells(place.settings, ("sam",)):
        for kind, value, rho in radii:
            row_name = f"{pair}/{cell.name}-{kind}-{value:g}"
            place.row("radii", row_name, lambda: radius_row(place, base, pair, cell, kind, value, rho))  # noqa: B023


def radius_row(place: Place, base: Path, pair: str, cell: Cell, kind: str, value: float, rho: float) -> dict:
    tuned = tune(place, base, pair, f"{cell.name}-{kind}-{value:g}", cell, rho, place.settings["tuning"]["seeds"][0])
    row = {"pair": pair, "lr": cell.lr, "steps": cell.steps, "kind": kind, "value": value, "rho": rho}
    row |= outcomes(base, tuned, texts_of(place, pair))
    shutil.rmtree(tuned)
    return row


def radius_of(place: Place, base: Path, pair: str, cell: Cell) -> dict[str, Any]:
    """The radius for a cell, as the pilot chose it: {"rho", "rho_kind", "rho_value"}; None for AdamW."""
    if cell.optimizer == "adamw":
        return {"rho": None, "rho_kind": None, "rho_value": None}
    files = (place.output / "rows" / "radii" / pair).glob(f"{Cell('sam', cell.lr, cell.steps).name}-*.json")
    tried = sorted((json.loads(file.read_text("utf-8")) for file in files), key=lambda row: row["rho"])
    losses = np.array([row["validation_loss"] for row in tried])
    chosen = int(np.argmin(losses))
    if cell.optimizer == "sam-wide":
        widest = int(np.flatnonzero(losses <= losses.min() + place.settings["pilot"]["wide_within"])[-1])
        chosen = widest if widest > chosen else min(chosen + 1, len(tried) - 1)
    kind, value = tried[chosen]["kind"], tried[chosen]["value"]
    rho = value if kind == "absolute" else value * weight_norm(base)
    return {"rho": rho, "rho_kind": kind, "rho_value": value}


# --- runs: what each fine-tuning kept and learned -----------------------------------------------------------


def fine_tune(place: Place, base: Base) -> None:
    """Every cell with the first fine-tuning seed, and the measured cells with the others."""
    folder = pretrain(place, base.pair, base.name, base.optimizer, base.lr, base.seed)
    first, *others = place.settings["tuning"]["seeds"]
    wanted = [(cell, first) for cell in all_cells(place.settings)]
    wanted += [(cell, seed) for seed in others for cell in cells_of(base.recipe_number, place.settings)]
    for cell, seed in wanted:
        place.row("runs", run_name(base, cell, seed), lambda: plain_run(place, folder, base, cell, seed))  # noqa: B023


def run_name(base: Base, cell: Cell, seed: int, method: str = "plain") -> str:
    return f"{base.name}/{method}-{cell.name}-{seed}"


def plain_run(place: Place, folder: Path, base: Base, cell: Cell, seed: int) -> dict:
    radius, tuned = radius_of(place, folder, base.pair, cell), tuned_base(place, folder, base, cell, seed)
    row = identity(base, cell, seed, "plain") | radius | outcomes(folder, tuned, texts_of(place, base.pair))
    measured = cell in cells_of(base.recipe_number, place.settings)
    if not measured and not (seed == place.settings["tuning"]["seeds"][0] and cell.optimizer != "sam-wide"):
        shutil.rmtree(tuned)
    return row


def tuned_base(place: Place, folder: Path, base: Base, cell: Cell, seed: int) -> Path:
    """The folder of a base tuned without a remedy; made again where only its row was kept."""
    rho = radius_of(place, folder, base.pair, cell)["rho"]
    return tune(place, folder, base.pair, f"{cell.name}-{seed}", cell, rho, seed)


def identity(base: Base, cell: Cell, seed: int, method: str) -> dict[str, Any]:
    return {
        "name": run_name(base, cell, seed, method),
        "pair": base.pair,
        "recipe": base.recipe,
        "base": base.name,
        "base_optimizer": base.optimizer,
        "base_lr": base.lr,
        "base_seed": base.seed,
        "method": method,
        "optimizer": cell.optimizer,
        "lr": cell.lr,
        "steps": cell.steps,
        "tuning_seed": seed,
        "gradient_evaluations": cell.steps * (1 if cell.optimizer == "adamw" else 2),
    }


def outcomes(base: Path, tuned: Path, texts: Texts) -> dict[str, float]:
    """Losses before and after on the tokens of the outcome, and those by which radii and fronts are chosen."""
    origin, made = (landscape.load_checkpoint(folder, device="cpu") for folder in (base, tuned))
    tasks = texts.outcome | {"validation": texts.validation, "metric_old": texts.metric["old"]}
    found = {task.name: task for task in landscape.measure_forgetting(origin, made, tasks, resamples=99).tasks}
    return {
        "forgetting": found["old"].forgetting,
        "learned": -found["new"].forgetting,
        "old_loss_before": found["old"].loss_before,
        "old_loss": found["old"].loss_after,
        "new_loss_before": found["new"].loss_before,
        "new_loss": found["new"].loss_after,
        "old_accuracy_lost": found["old"].accuracy_loss,
        "validation_loss": found["validation"].loss_after,
        "metric_old_forgetting": found["metric_old"].forgetting,
    }


# --- fronts: remedies beside the optimizers -----------------------------------------------------------------


def extend_fronts(place: Place, base: Base) -> None:
    """WiSE-FT of AdamW's and SAM's runs; on the first base of a recipe, both with rehearsal."""
    folder = pretrain(place, base.pair, base.name, base.optimizer, base.lr, base.seed)
    seed = place.settings["tuning"]["seeds"][0]
    first_base = base.seed == place.settings["pairs"][base.pair]["base_seeds"][0]
    for method, made in (("wise-ft", merged_run), ("rehearsal", rehearsed_run)):
        if method == "rehearsal" and not first_base:
            continue
        for cell in all_cells(place.settings, ("adamw", "sam")):
            name = run_name(base, cell, seed, method)
            place.row("runs", name, lambda: made(place, folder, base, cell, seed))  # noqa: B023


def merged_run(place: Place, folder: Path, base: Base, cell: Cell, seed: int) -> dict:
    tuned, alpha = tuned_base(place, folder, base, cell, seed), place.settings["tuning"]["alpha"]
    merged = landscape.merge_checkpoints(folder, tuned, alpha, folder.parent / f"wise-ft-{cell.name}-{seed}")
    return finished(place, folder, merged, base, cell, seed, "wise-ft")


def rehearsed_run(place: Place, folder: Path, base: Base, cell: Cell, seed: int) -> dict:
    rho = radius_of(place, folder, base.pair, cell)["rho"]
    rehearsal = landscape.Rehearsal(place.settings["pairs"][base.pair]["old"], place.settings["tuning"]["rehearsal"])
    name = f"rehearsal-{cell.name}-{seed}"
    tuned = tune(place, folder, base.pair, name, cell, rho, seed, rehearsal=rehearsal)
    return finished(place, folder, tuned, base, cell, seed, "rehearsal")


def finished(place: Place, folder: Path, made: Path, base: Base, cell: Cell, seed: int, method: str) -> dict[str, Any]:
    """The row of a checkpoint that is not needed again."""
    radius = radius_of(place, folder, base.pair, cell)
    row = identity(base, cell, seed, method) | radius | outcomes(folder, made, texts_of(place, base.pair))
    shutil.rmtree(made)
    return row


# --- metrics: the flatness of the measured checkpoints ------------------------------------------------------


def measure_cell(place: Place, base: Base, cell: Cell, seed: int) -> None:
    """The row of one measured checkpoint, with the metrics of its base beside it."""
    folder = pretrain(place, base.pair, base.name, base.optimizer, base.lr, base.seed)
    place.row("bases", base.name, lambda: base_row(place, folder, base))
    name = run_name(base, cell, seed)
    place.row("checkpoints", name, lambda: checkpoint_row(place, folder, base, cell, seed))


def base_row(place: Place, folder: Path, base: Base) -> dict:
    origin = landscape.load_checkpoint(folder, device="cpu")
    return flatness(origin, texts_of(place, base.pair).metric["old"], place.settings, "base")


def checkpoint_row(place: Place, folder: Path, base: Base, cell: Cell, seed: int) -> dict:
    texts = texts_of(place, base.pair)
    origin = landscape.load_checkpoint(folder, device="cpu")
    tuned = landscape.load_checkpoint(tuned_base(place, folder, base, cell, seed), device="cpu")
    row = place.row("runs", run_name(base, cell, seed), dict)
    for task in landscape.measure_forgetting(origin, tuned, texts.metric, resamples=99).tasks:
        row[f"kl_{task.name}"] = task.kl
    step = landscape.compute_sharpness(tuned, texts.metric["old"], metric="displacement_curvature", base=origin)
    row["predicted_forgetting"] = step.details["predicted_rise"]
    row["displacement_curvature"] = step.value
    row["distance"], row["weight_norm"] = norms(origin.model, tuned.model)
    drawn = hashlib.sha256(row["name"].encode()).digest()[:4]
    row["random"] = float(np.random.default_rng(int.from_bytes(drawn, "big")).standard_normal())
    for name, data in texts.metric.items():
        row |= flatness(tuned, data, place.settings, name)
    return row | place.row("bases", base.name, dict)


def flatness(checkpoint: Any, data: Any, settings: dict, suffix: str) -> dict[str, float]:
    seed = settings["seed"]
    row = {m["column"]: sharpness(checkpoint, data, m, seed) for m in settings["metrics"]}
    row |= planes(checkpoint, data, settings["surface"], seed)
    return {f"{name}_{suffix}": value for name, value in row.items()}


if __name__ == "__main__":
    main()
