"""The verdicts that analyses/smollm2.md announces, from the rows of analyses/smollm2.py.

python analyses/smollm2_results.py ROWS OUT [--replications 200]

ROWS may be incomplete: a contrast takes the pairs of task and seed that are there, and says how many. Writes
OUT/results.json and OUT/checkpoints.csv, and prints the verdicts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from smollm2_contrasts import LEVEL, contrast, in_numbers, with_evidence
from smollm2_correlations import VECTOR, correlations, correlations_in_words, rivalry, rivalry_in_words
from study_folder import plain, read_settings, write_json, write_lines

import landscape

CONTRASTS = (("sam", "adamw"), ("sam-wide", "adamw"), ("lora-sam", "lora-adamw"), ("wise-ft", "adamw"),
             ("rehearsal", "adamw"))  # fmt: skip
FLATTER = CONTRASTS[:3]  # of them, those between SAM and AdamW
FLATNESS = ("surface_curvature_old", "sam_sharpness_old", "sam_sharpness_new")
# The curvature of a surface over (1 + slope^2)^(3/2) is smaller on a slope, so that the slope stands beside it.
EXPLORED = ("accuracy_loss", "loss_rise_docs", "loss_rise_code", "kl_chat", "average_gradient_old")
AS_MUCH = -0.05  # nats: a difference in what was learned that lies above it counts as no less learning
OLD = read_settings(Path(__file__).with_name("smollm2.toml"), quick=False)["old"]  # tasks by group


def main(rows: Path, output: Path, replications: int = 200) -> str:
    """Compute the results, write them down, and say them in words."""
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # the notes of the tables say the same
    read = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    runs = pandas.DataFrame([row for row in read if row["kind"] == "run"])
    if runs.empty:
        raise landscape.InputError(f"{rows} has no fine-tuned checkpoint yet.")
    runs = with_groups(runs)
    explored = [
        *((*pair, name) for name in EXPLORED for pair in (*CONTRASTS, ("lora-adamw", "adamw"))),
        *(("lora-adamw", "adamw", name) for name in ("forgetting", "learned")),
        *((*pair, name) for name in runs if name.startswith("group_forgetting_") for pair in CONTRASTS),
        *((*pair, name) for name in runs if name.startswith("answer_forgetting_") for pair in CONTRASTS),
    ]
    results = {
        "checkpoints": len(runs),
        "tasks": sorted(runs["task"].unique()),
        "diverged": [row["name"] for row in read if row["kind"] == "diverged"],
        "base": next(
            ({k: v for k, v in row.items() if "accuracy" in k} for row in read if row["kind"] == "base"), None
        ),
        "chosen": chosen([row for row in read if row["kind"] == "pilot"]),
        "level": LEVEL,
        "as_much": AS_MUCH,
        "forgetting": with_evidence([contrast(runs, *pair, "forgetting") for pair in CONTRASTS]),
        "learned": [contrast(runs, *pair, "learned") for pair in CONTRASTS],
        "flatter": with_evidence([contrast(runs, *pair, name) for name in FLATNESS for pair in FLATTER]),
        "explored": [contrast(runs, *each) for each in explored],
        "recovered": recovered(runs),
        "correlations": correlations(runs, replications),
        "rivalry": rivalry(runs),
    }
    write_json(output / "results.json", plain(results))
    write_lines(output / "checkpoints.csv", runs.to_csv(index=False).splitlines())
    return in_words(results)


def with_groups(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs with the forgetting of each group of old tasks: the mean over its tasks."""
    groups = {group: [f"answer_forgetting_{task}" for task in tasks] for group, tasks in OLD.items()}
    means = {
        f"group_forgetting_{group}": runs[columns].mean(axis=1)
        for group, columns in groups.items() if set(columns) <= set(runs)
    }  # fmt: skip
    return runs.assign(**means)


def chosen(pilot: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the pilot chose of each grid, and at which end of it, if at one."""
    grids: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in pilot:
        grids.setdefault((row["task"], row["weights"], "lr" if row["rho"] is None else "rho"), []).append(row)
    choices = []
    for (task, weights, option), grid in grids.items():
        values = sorted(row[option] for row in grid)
        best = min((row for row in grid if row["validation_loss"]), key=lambda row: row["validation_loss"])[option]
        end = "top" if best == values[-1] else "bottom" if best == values[0] else None
        choices.append({"task": task, "weights": weights, "option": option, "value": best, "of": values, "end": end})
    return choices


def recovered(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """Of AdamW's checkpoints: few-shot accuracy lost, and gained with the base's vector, alone and over random ones."""
    if f"{VECTOR}_gained_with_base" not in runs:
        return []
    own = runs[runs["method"] == "adamw"]
    gained = own[f"{VECTOR}_gained_with_base"]
    columns = {
        "few_shot_lost": own[f"{VECTOR}_few_shot_lost"],
        "gained_over_random": gained - own[f"{VECTOR}_gained_with_random"],
        "gained": gained,
    }
    zero = own.assign(method="nothing", **dict.fromkeys(columns, 0.0))
    both = pandas.concat([own.assign(**columns), zero])
    return [contrast(both, "adamw", "nothing", name) for name in columns]


# --- words --------------------------------------------------------------------------------------------------


def in_words(results: dict[str, Any]) -> str:
    """All verdicts, each no stronger than its interval."""
    lines = [f"{results['checkpoints']} checkpoints; {len(results['diverged'])} diverged, and were not measured."]
    lines += [f"Pilot: {choice_in_words(choice)}" for choice in results["chosen"]]
    tasks = " and ".join(results["tasks"])
    lines.append(f"First method minus second, mean over {tasks}; 95% intervals over seeds, each by itself:")
    for of, learned in zip(results["forgetting"], results["learned"], strict=True):
        lines.append(f"  {verdict(of, learned, results['flatter'])}")
    lines.append("Is SAM flatter? p corrected for all nine:")
    lines += [f"  {each['outcome']}: {in_numbers(each)}{corrected_p(each)}" for each in results["flatter"]]
    lines.append(
        f"Instruction vectors: {recovery(*results['recovered'])}" if results["recovered"] else "J1: not measured."
    )
    lines.append("Exploratory, nothing corrected:")
    lines += [
        f"  {each['outcome']}: {in_numbers(each)}"
        for each in results["explored"] if not each["outcome"].startswith("answer_")
    ]  # fmt: skip
    return "\n".join([*lines, *correlations_in_words(results["correlations"]), *rivalry_in_words(results["rivalry"])])


def choice_in_words(choice: dict[str, Any]) -> str:
    end = f", at the {choice['end']} of its grid" if choice["end"] else ""
    of = ", ".join(f"{value:g}" for value in choice["of"])
    return f"{choice['task']}, {choice['weights']} weights: {choice['option']} {choice['value']:g} of {of}{end}."


def corrected_p(of: dict[str, Any]) -> str:
    """The corrected p-value of the plan, and that without its pooling of the tasks' variances."""
    if math.isnan(of["p"]):
        return ""
    apart = "" if math.isnan(of["apart_p"]) else f" ({of['apart_p_holm']:.3g} where each task has its own variance)"
    return f", corrected p {of['p_holm']:.3g}{apart}"


def verdict(of: dict[str, Any], learned: dict[str, Any], flatter: Sequence[dict[str, Any]] = ()) -> str:
    """What the plan allows to say of one contrast."""
    if math.isnan(of["low"]):
        return f"{in_numbers(of)}."
    words = "no evidence of a difference in forgetting"
    if of["evidence"]:
        words = "forgets more" if of["difference"] > 0 else "forgets less"
        if of["difference"] < 0:
            words += " without learning less" if above(AS_MUCH, learned) else ", and may have learned less"
    elif of["p_holm"] < LEVEL:
        more = "more" if of["difference"] > 0 else "less"
        words = f"{words}, though by the plan's interval, in which both tasks vary alike, it forgets {more}"
    return f"{in_numbers(of)}{corrected_p(of)}; learned {in_numbers(learned)}: {words}{flatness(of, flatter)}."


def above(bound: float, of: dict[str, Any]) -> bool:
    """Whether both intervals of a contrast lie above a number."""
    return bool(of["low"] > bound and of["apart_low"] > bound)


def flatness(of: dict[str, Any], flatter: Sequence[dict[str, Any]]) -> str:
    """By which metrics SAM is flatter or sharper in a contrast; without one, the contrast says nothing about it."""
    pair = of["first"], of["second"]
    here = [each for each in flatter if (each["first"], each["second"]) == pair]
    shown = [each for each in here if each["evidence"]]
    down, up = ([each["outcome"] for each in shown if each["difference"] * sign > 0] for sign in (-1, 1))
    parts = [f"flatter by {', '.join(down)}"] if down else []
    parts += [f"sharper by {', '.join(up)}"] if up else []
    if here and not down:
        parts.append("not shown to be flatter, so that this says nothing about flatness")
    return f" ({'; '.join(parts)})" if parts else ""


def recovery(lost: dict[str, Any], over_random: dict[str, Any], gained: dict[str, Any]) -> str:
    """Whether the base's vectors bring back what was lost; it is only read where something was lost.

    The plan asks for more with the base's vectors than with random ones. Random ones take answers away, so that this
    alone is no answer that came back: something has to be gained as well.
    """
    numbers = (
        f"few-shot accuracy lost {_interval(lost)}; gained with the base's vector over random ones "
        f"{_interval(over_random)}; gained with it by itself {_interval(gained)}: "
    )
    if not above(0, lost):
        return f"{numbers}not read, as no loss was shown."
    if not above(0, over_random):
        below = over_random["high"] < 0 and over_random["apart_high"] < 0
        return numbers + ("less than with random ones." if below else "no evidence.")
    if not above(0, gained):
        return f"{numbers}less harm than random ones, and no evidence that anything came back."
    return f"{numbers}speaks for Jiang et al."


def _interval(of: dict[str, Any]) -> str:
    """A mean with the wider of its two intervals."""
    if math.isnan(of["low"]):
        return f"{of['difference']:+.3f} without an interval"
    low, high = np.nanmin([of["low"], of["apart_low"]]), np.nanmax([of["high"], of["apart_high"]])
    return f"{of['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--replications", type=int, default=200, help="simulated studies behind the design's rates")
    arguments = parser.parse_args()
    try:
        print(main(arguments.rows, arguments.output, arguments.replications))
    except (landscape.InputError, OSError) as error:
        sys.exit(f"error: {error}")
