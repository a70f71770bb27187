"""AdamW and SAM, each alone, with WiSE-FT and with rehearsal: what is kept, what is learned, and the start beside it.

python analyses/optimizers.py --output OUT [--settings TOML]

The shape of Table 2 of Li et al. 2024 (arXiv 2406.04836), with the starting checkpoint as a row of its own, so that
restoring is not mistaken for improving, and with a spread over seeds. SAM is also given half the steps: as many
gradient evaluations as AdamW takes. OUT/optimizers.csv has a row per seed and method, OUT/optimizers.json the means.
Draw them with figures/optimizers.py. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas
import torch
from study_folder import claim, versions, write_json, write_lines
from study_models import random_start, train_tokenizer

import landscape

# name -> optimizer, share of the steps, what is done besides
METHODS = {
    "AdamW": ("adamw", 1.0, None),
    "SAM": ("sam", 1.0, None),
    "SAM, half the steps": ("sam", 0.5, None),
    "AdamW + WiSE-FT": ("adamw", 1.0, "merge"),
    "SAM + WiSE-FT": ("sam", 1.0, "merge"),
    "AdamW + rehearsal": ("adamw", 1.0, "rehearse"),
    "SAM + rehearsal": ("sam", 1.0, "rehearse"),
}
START = "start"
COLUMNS = ("old_loss", "old_accuracy", "new_loss", "new_accuracy", "forgetting", "kl_old", "kl_new")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    arguments = parser.parse_args()
    try:
        settings = tomllib.loads(arguments.settings.read_text(encoding="utf-8"))
        run(arguments.output, settings)
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, settings: dict) -> None:
    claim(output / "study.json", settings=settings, versions=versions())
    train_tokenizer(output / "tokenizer", settings["vocabulary"])
    rows = [row for seed in settings["seeds"] for row in run_seed(output, settings, seed)]
    table = pandas.DataFrame(rows)
    write_lines(output / "optimizers.csv", table.to_csv(index=False).splitlines())
    means = summarize(table)
    write_json(output / "optimizers.json", means)
    print(in_words(means))


def run_seed(output: Path, settings: dict, seed: int) -> list[dict]:
    """A base and what each method makes of it; a finished row is not measured again."""
    folder = output / f"seed-{seed}"
    shared: dict[str, Any] = {
        "seed": seed,
        "load_options": landscape.LoadOptions(device="cpu"),
        "progress": False,
    }
    of = settings["base"]
    start = random_start(folder / "random", settings["shape"], seed, output / "tokenizer")
    base = landscape.finetune(
        start, settings["old"], folder / "base",
        optimization=landscape.Optimization(lr=of["lr"], steps=of["steps"], batch_size=of["batch_size"]),
        data_options=landscape.DataOptions(max_length=settings["max_length"]), **shared,
    )  # fmt: skip
    rows = []
    for method in METHODS:
        row_file = folder / "rows" / f"{file_name(method)}.json"
        if not row_file.exists():
            made = tune(base, method, folder, settings, shared)
            write_json(row_file, measure(base, made, method, settings) | {"seed": seed})
            print(f"seed {seed}: {method}", flush=True)
        rows.append(json.loads(row_file.read_text("utf-8")))
    before = {name: rows[0][f"{name}_before"] for name in COLUMNS[:4]}
    zero = dict.fromkeys(COLUMNS[4:], 0.0)
    rows.insert(0, {"method": START, "gradient_evaluations": 0, "seed": seed} | before | zero)
    return [{name: value for name, value in row.items() if not name.endswith("_before")} for row in rows]


def tune(base: Path, method: str, folder: Path, settings: dict, shared: dict) -> Path:
    optimizer, share, besides = METHODS[method]
    of = settings["tuning"]
    alone = next(name for name, how in METHODS.items() if how == (optimizer, share, None))
    rehearsal = landscape.Rehearsal(settings["old"], of["rehearse_ratio"]) if besides == "rehearse" else None
    tuned = landscape.finetune(
        base, settings["new"], folder / file_name(method if rehearsal else alone),
        optimization=landscape.Optimization(
            optimizer=optimizer, rho=of["rho"] if optimizer == "sam" else None, lr=of["lr"],
            steps=int(of["steps"] * share), batch_size=of["batch_size"],
        ),
        rehearsal=rehearsal,
        data_options=landscape.DataOptions(settings["max_length"], limit=settings["training_examples"]), **shared,
    )  # fmt: skip
    if besides == "merge":
        return landscape.merge_checkpoints(base, tuned, of["alpha"], folder / file_name(method))
    return tuned


def file_name(method: str) -> str:
    return method.lower().replace(" + ", "-").replace(", ", "-").replace(" ", "-")


def measure(base: Path, made: Path, method: str, settings: dict) -> dict:
    origin, tuned = (landscape.load_checkpoint(folder, device="cpu") for folder in (base, made))
    tasks = {
        name: landscape.load_data(
            f"{settings[name]}@heldout", origin.tokenizer,
            max_length=settings["max_length"], limit=settings["outcome_examples"],
        )
        for name in ("old", "new")
    }  # fmt: skip
    found = landscape.measure_forgetting(origin, tuned, tasks, resamples=999)
    optimizer, share, _ = METHODS[method]
    steps = int(settings["tuning"]["steps"] * share)
    row: dict[str, Any] = {"method": method, "gradient_evaluations": steps * (2 if optimizer == "sam" else 1)}
    for task in found.tasks:
        row |= {
            f"{task.name}_loss": task.loss_after,
            f"{task.name}_accuracy": task.accuracy_after,
            f"{task.name}_loss_before": task.loss_before,
            f"{task.name}_accuracy_before": task.accuracy_before,
            f"kl_{task.name}": task.kl,
        }
        if task.name == "old":
            row["forgetting"] = task.forgetting
    return row


def summarize(table: pandas.DataFrame) -> list[dict]:
    """Mean and standard deviation over seeds by method; and of the difference from AdamW, paired by seed."""
    adamw = table[table["method"] == "AdamW"].set_index("seed")
    rows = []
    for method, part in table.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method, "seeds": len(part)}
        for name in COLUMNS:
            row |= {name: float(part[name].mean()), f"{name}_sd": float(part[name].std())}
            apart = part.set_index("seed")[name] - adamw[name]
            row |= {f"{name}_against_adamw": float(apart.mean()), f"{name}_against_adamw_sd": float(apart.std())}
        rows.append(row)
    return rows


def in_words(means: list[dict]) -> str:
    """A Markdown table: mean and standard deviation over seeds."""
    titles = {
        "old_loss": "old loss",
        "old_accuracy": "old accuracy",
        "new_loss": "new loss",
        "forgetting": "against start",
        "forgetting_against_adamw": "against AdamW",
    }
    lines = [f"| method | {' | '.join(titles.values())} |", "|---" * (len(titles) + 1) + "|"]
    for row in means:
        cells = []
        for name in titles:
            scale, unit = (100, "%") if name.endswith("accuracy") else (1, "")
            sign = "+" if name.startswith("forgetting") else ""
            digits = 1 if unit else 3
            cells.append(f"{row[name] * scale:{sign}.{digits}f}{unit} ± {row[name + '_sd'] * scale:.{digits}f}")
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)  # tiny models: more threads wait for one another
    main()
