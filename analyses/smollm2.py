"""What does a real language model forget, and does flatness say so? SmolLM2-135M-Instruct on two new tasks.

python analyses/smollm2.py --output OUT --rows FILE [--settings TOML] [--quick] [--workers 2] [--until SECONDS]

The plan was written down first, in analyses/smollm2.md. The unit of work is one fine-tuning: the checkpoint is made,
measured in every way, its row is written, and it is deleted, because machines are lost and checkpoints of 540 MB cannot
be committed. FILE (JSON, one row a line) is read first, so that nothing in it is computed again, and gets every row
that is finished. A fine-tuning that was stopped starts again; --until begins no new one after so many seconds.

What `landscape fetch` has not put into its cache yet is fetched. analyses/smollm2_results.py makes the verdicts, and
figures/smollm2.py the figure.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
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
import torch
import transformers
from smollm2_texts import Texts, all_tasks, old_questions, read_texts, records_file, split_task
from smollm2_vectors import base_vectors, vectors_changed
from study_folder import claim, kept_row, plain, read_settings, versions, write_json, write_lines
from study_measures import QUIET, basin_radii, norms, planes, sharpness

import landscape

PLAN = Path(__file__).with_suffix(".md")
BASE = "base"  # the row of the model before tuning
MERGED = "wise-ft"  # a checkpoint that is made of the one of "adamw"


class Method(NamedTuple):
    """One way to fine-tune."""

    weights: str = "full"  # or "lora"
    radius: str | None = None  # of SAM: the pilot's, or a "wide" one
    rehearses: bool = False


METHODS = {
    "adamw": Method(),
    "sam": Method(radius="pilot"),
    "sam-wide": Method(radius="wide"),
    "rehearsal": Method(rehearses=True),
    "lora-adamw": Method("lora"),
    "lora-sam": Method("lora", radius="pilot"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="the rows that are finished, and where they are kept")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--quick", action="store_true", help="what the settings say under [quick]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--until", type=float, default=math.inf, help="seconds after which no new work is begun")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.settings, arguments.quick)
        if run(arguments.output, arguments.rows, settings, arguments.workers, time.time() + arguments.until):
            import smollm2_results

            print(smollm2_results.main(arguments.rows, arguments.output))
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, rows: Path, settings: dict, workers: int, deadline: float) -> bool:
    """Do what is missing in `rows`; False where the deadline came first."""
    base = landscape.fetch(settings["model"])
    bigbench = landscape.fetch(f"bigbench:{','.join(all_tasks(settings))}")
    place = Place(output, settings, base, bigbench, identity(settings, base))
    plan = {"file": PLAN.name, "sha256": hashlib.sha256(PLAN.read_bytes()).hexdigest()}
    claim(output / "study.json", identity=place.identity, hypotheses=plan, versions=versions())
    take_over(place, rows)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for part, units in units_of(settings).items():  # each needs what the one before it found
            started, done = time.perf_counter(), 0
            waiting = [pool.submit(work, unit, place, deadline) for unit in units]
            for future in concurrent.futures.as_completed(waiting):
                done += future.result()
                hand_over(place, rows)
                spent = time.perf_counter() - started
                print(f"{part}: {done} of {len(waiting)}, {spent:.0f} s", flush=True)
            if done < len(waiting):
                return False
    return True


# --- rows ---------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the study is, and what it is of."""

    output: Path
    settings: dict
    base: Path
    bigbench: Path
    identity: str

    def row(self, name: str, make: Callable[[], dict]) -> dict:
        """The row of this name, made now if it is not there yet."""

        def timed() -> dict:
            clock = time.process_time(), time.perf_counter()
            row = make()
            spent = {"cpu_seconds": time.process_time() - clock[0], "seconds": time.perf_counter() - clock[1]}
            return plain({"name": name, "identity": self.identity, **row, **spent})

        return kept_row(self.file_of(name), timed)

    def file_of(self, name: str) -> Path:
        return self.output / "rows" / f"{name}.json"

    @property
    def data(self) -> Path:
        return self.output / "data"


def identity(settings: dict, base: Path) -> str:
    """What rows must agree in to stand in one table: the model, and all settings but which units there are."""
    shared = {name: value for name, value in settings.items() if name != "design"}
    hashed = hashlib.sha256(json.dumps(shared, sort_keys=True).encode())
    with (base / "model.safetensors").open("rb") as weights:
        hashed.update(hashlib.file_digest(weights, "sha256").digest())
    return hashed.hexdigest()[:16]


def take_over(place: Place, rows: Path) -> None:
    """Put the rows that are finished where the study looks for them. Raises InputError where they are of another."""
    for line in rows.read_text("utf-8").splitlines() if rows.exists() else ():
        row = json.loads(line)
        if row["identity"] != place.identity:
            raise landscape.InputError(f"{rows} has rows of other settings or another model; choose another --rows.")
        if not place.file_of(row["name"]).exists():
            write_json(place.file_of(row["name"]), row)


def hand_over(place: Place, rows: Path) -> None:
    """Write all finished rows to one file, one a line."""
    files = sorted((place.output / "rows").rglob("[!.]*.json"))
    write_lines(rows, (json.dumps(json.loads(file.read_text("utf-8"))) for file in files))


# --- units --------------------------------------------------------------------------------------------------


def units_of(settings: dict) -> dict[str, list[Callable[[Place], None]]]:
    """The units of each part of the study; of the runs, first all of the first seed."""
    pilot = settings["pilot"]
    tried = [(task, weights) for task in settings["tasks"] for weights in ("full", "lora")]
    lrs = [functools.partial(try_lr, *of, lr) for of in tried for lr in pilot["lrs"][of[1]]]
    radii = [functools.partial(try_radius, *of, rho) for of in tried for rho in pilot["radii"][of[1]]]
    runs = [
        functools.partial(measure_run, task, method, seed)
        for seed in settings["design"]["seeds"]
        for method in settings["design"]["methods"]
        for task in settings["tasks"]
    ]
    return {"base and learning rates": [measure_base, *lrs], "radii": radii, "runs": runs}


def work(unit: Callable[[Place], None], place: Place, deadline: float) -> bool:
    """One unit in a process of one thread; False where the deadline came before it began."""
    if time.time() > deadline:
        return False
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # few probes and planes, as the plan says
    unit(place)
    return True


@functools.cache
def base_of(folder: Path) -> landscape.Checkpoint:
    """The model before tuning, loaded once in a process; every measurement gives it back as it was."""
    return landscape.load_checkpoint(folder, device="cpu")


def tune(place: Place, name: str, task: str, method: Method, lr: float, rho: float | None, seed: int) -> Path | None:
    """The folder of a fine-tuned checkpoint; None where the run diverged."""
    of = place.settings["tuning"]
    old = records_file(place.bigbench, place.settings["other"]["rehearsal"], chat=True)
    training = split_task(place.data, place.bigbench, task, place.settings)["training"]
    try:
        return landscape.finetune(
            place.base, training, place.output / "checkpoints" / name,
            optimization=landscape.Optimization(
                optimizer="adamw" if rho is None else "sam", rho=rho, lr=lr, steps=of["steps"],
                batch_size=of["batch_size"], lora=of["lora"] if method.weights == "lora" else None,
            ),
            rehearsal=landscape.Rehearsal(old, of["rehearsal"]) if method.rehearses else None,
            data_options=landscape.DataOptions(
                place.settings["max_length"], batch_tokens=place.settings["batch_tokens"],
                limit=place.settings["training_questions"],
            ),
            seed=seed, load_options=landscape.LoadOptions(device="cpu"), progress=False,
        )  # fmt: skip
    except landscape.InputError as error:
        if "diverged" not in str(error):
            raise
        return None


# --- pilot: learning rates and radii ------------------------------------------------------------------------


def try_lr(task: str, weights: str, lr: float, place: Place) -> None:
    place.row(f"pilot/{task}/{weights}-lr-{lr:g}", lambda: pilot_row(place, task, weights, lr, None))


def try_radius(task: str, weights: str, rho: float, place: Place) -> None:
    lr = chosen(place, task, weights)["lr"]
    place.row(f"pilot/{task}/{weights}-rho-{rho:g}", lambda: pilot_row(place, task, weights, lr, rho))


def pilot_row(place: Place, task: str, weights: str, lr: float, rho: float | None) -> dict:
    """The validation loss after one try; none where the run diverged."""
    row: dict[str, Any] = {"kind": "pilot", "task": task, "weights": weights, "lr": lr, "rho": rho}
    name = f"pilot-{task}-{weights}-{lr:g}-{rho}"
    tuned = tune(place, name, task, Method(weights), lr, rho, place.settings["pilot"]["seed"])
    if tuned is None:
        return row | {"validation_loss": math.nan}
    validation = texts_of(place, task).validation
    after = landscape.load_checkpoint(tuned, device="cpu")
    (result,) = landscape.measure_forgetting(base_of(place.base), after, {"new": validation}, resamples=99).tasks
    shutil.rmtree(tuned)
    return row | {"validation_loss": result.loss_after, "validation_loss_base": result.loss_before}


def chosen(place: Place, task: str, weights: str) -> dict[str, float]:
    """What the pilot chose for a task: {"lr"}, and {"rho"} where radii were tried."""
    found = {}
    for name in ("lr", "rho"):
        files = place.file_of(f"pilot/{task}/x").parent.glob(f"{weights}-{name}-*.json")
        tried = [row for row in (json.loads(file.read_text("utf-8")) for file in files) if row["validation_loss"]]
        if tried:
            found[name] = min(tried, key=lambda row: row["validation_loss"])[name]
    return found


# --- the base, and the runs ---------------------------------------------------------------------------------


def measure_base(place: Place) -> None:
    place.row(BASE, lambda: base_row(place))


def base_row(place: Place) -> dict:
    """The base's answers in both formats, with the format that it does better in, and its flatness."""
    base, row = base_of(place.base), {"kind": BASE}
    for name in ("chat", "plain"):
        questions = old_questions(place.bigbench, base.tokenizer, place.settings, name)
        result = landscape.measure_forgetting(base, base, questions, resamples=99)
        for answers in result.choices:
            row[f"accuracy_{name}_{answers.name}"] = answers.plain.accuracy_before
            row[f"chance_{answers.name}"] = answers.chance
        row[f"accuracy_{name}"] = float(np.mean([answers.plain.accuracy_before for answers in result.choices]))
    row["prompt_format"] = "chat" if row["accuracy_chat"] >= row["accuracy_plain"] else "plain"
    for task in place.settings["tasks"]:
        metric = texts_of(place, task).metric
        row |= {f"{name}_{task}": value for name, value in flatness(place, base, {"new": metric["new"]}).items()}
    for name, vector in base_vectors(place.output / "vectors", base, place.settings).items():
        row |= {f"few_shot_{name}": vector.few_shot.value, f"effect_of_heads_{name}": vector.joint_effect.value}
    return row | flatness(place, base, {"old": metric["old"]})


def measure_run(task: str, method: str, seed: int, place: Place) -> None:
    """Fine-tune, measure, write the row and delete; of AdamW's checkpoint the one merged with the base as well.

    A run that diverged has a row of the kind "diverged", without a measurement.
    """
    names = {each: f"runs/{task}/{each}-{seed}" for each in ([method, MERGED] if method == "adamw" else [method])}
    if all(place.file_of(name).exists() for name in names.values()):
        return
    how, found = METHODS[method], chosen(place, task, METHODS[method].weights)
    rho = {None: None, "pilot": found["rho"], "wide": found["rho"] * place.settings["tuning"]["wide"]}[how.radius]
    started = time.process_time()
    tuned = tune(place, f"{task}-{method}-{seed}", task, how, found["lr"], rho, seed)
    row: dict[str, Any] = {"kind": "run", "task": task, "seed": seed, "lr": found["lr"], "rho": rho}
    row["tuning_cpu_seconds"] = time.process_time() - started
    if tuned is None:
        for each, name in names.items():
            place.row(name, functools.partial(dict, row, kind="diverged", method=each))
        return
    place.row(names[method], lambda: row | {"method": method} | measured(place, task, tuned, names[method]))
    if method == "adamw":
        alpha, beside = place.settings["tuning"]["alpha"], tuned.with_name(f"{task}-{MERGED}-{seed}")
        merged = landscape.merge_checkpoints(place.base, tuned, alpha, beside)
        place.row(names[MERGED], lambda: row | {"method": MERGED} | measured(place, task, merged, names[MERGED]))
        shutil.rmtree(merged)
    shutil.rmtree(tuned)


def texts_of(place: Place, task: str) -> Texts:
    """The data of a new task, with the questions in the format that was chosen for the base, once in a process."""
    file = place.file_of(BASE)
    prompt_format = json.loads(file.read_text("utf-8"))["prompt_format"] if file.exists() else "plain"
    return _texts_of(place.data, place.bigbench, place.base, json.dumps(place.settings), task, prompt_format)


@functools.cache
def _texts_of(data: Path, bigbench: Path, base: Path, settings: str, task: str, prompt_format: str) -> Texts:
    return read_texts(data, bigbench, base_of(base).tokenizer, json.loads(settings), task, prompt_format)


def measured(place: Place, task: str, tuned: Path, name: str) -> dict[str, Any]:
    """Everything that is measured of one checkpoint."""
    base, after, texts = base_of(place.base), landscape.load_checkpoint(tuned, device="cpu"), texts_of(place, task)
    row: dict[str, Any] = {}
    result = landscape.measure_forgetting(base, after, texts.outcome, resamples=99)
    answered = {answers.name: answers.plain for answers in result.choices}
    for task_result in result.tasks:
        if task_result.name in answered:
            answers = answered[task_result.name]
            row[f"answer_forgetting_{task_result.name}"] = answers.forgetting
            row[f"accuracy_loss_{task_result.name}"] = answers.accuracy_loss
            row[f"norm_accuracy_loss_{task_result.name}"] = answers.norm_loss
        else:
            row[f"loss_rise_{task_result.name}"] = task_result.forgetting
        row[f"kl_{task_result.name}"] = task_result.kl
    row["forgetting"] = float(np.mean([answers.forgetting for answers in answered.values()]))
    row["accuracy_loss"] = float(np.mean([answers.accuracy_loss for answers in answered.values()]))
    row["learned"] = -row["loss_rise_new"]
    row["predicted_forgetting"] = second_order_rise(base, after, texts.metric["old"])
    row["distance"], row["weight_norm"] = norms(base.model, after.model)
    drawn = hashlib.sha256(name.encode()).digest()[:4]
    row["random"] = float(np.random.default_rng(int.from_bytes(drawn, "big")).standard_normal())
    row |= vectors_changed(place.output / "vectors", base, after, place.settings)
    radii = basin_radii(after, texts.metric["old"], place.settings["basin"], place.settings["seed"], base)
    row |= {f"{radius}_old": value for radius, value in radii.items()}
    return row | flatness(place, after, texts.metric)


def second_order_rise(base: Any, after: Any, data: Any) -> float:
    """The rise of the loss that the parabola through three points of the step foretells at its end.

    With the loss f(t) at base + t (after - base), it is f'(0) + f''(0) / 2 by central differences of h = 1/2. The exact
    product with the Hessian takes ten times as long.
    """
    line = landscape.compute_interpolation(base, after, data, points=3, span=(-0.5, 0.5), run=QUIET)
    back, start, forth = map(float, line.loss)
    return 3 * forth + back - 4 * start


def flatness(place: Place, checkpoint: Any, texts: dict[str, Any]) -> dict[str, float]:
    """Every flatness metric on the texts that it is for."""
    seed, row = place.settings["seed"], {}
    for text, data in texts.items():
        metrics = [entry for entry in place.settings["metrics"] if text in entry["on"]]
        here = {entry["column"]: sharpness(checkpoint, data, entry, seed) for entry in metrics}
        if text in place.settings["surface"]["on"]:
            here |= planes(checkpoint, data, place.settings["surface"], seed)
        row |= {f"{name}_{text}": value for name, value in here.items()}
    return row


if __name__ == "__main__":
    main()
