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
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy import stats
from study_folder import plain, write_json, write_lines

import landscape

CONTRASTS = (("sam", "adamw"), ("sam-wide", "adamw"), ("lora-sam", "lora-adamw"), ("wise-ft", "adamw"),
             ("rehearsal", "adamw"))  # fmt: skip
FLATTER = CONTRASTS[:3]  # of them, those between SAM and AdamW
FLATNESS = ("surface_curvature_old", "sam_sharpness_old", "sam_sharpness_new")
EXPLORED = ("accuracy_loss", "loss_rise_docs", "loss_rise_code", "kl_chat")
VECTOR = "instruction_vector"  # what the names of its columns begin with
RIVALS = ("kl_new", "kl_chat", "distance", "predicted_forgetting", "random")
LEVEL = 0.05
AS_MUCH = -0.05  # nats: a difference in what was learned that lies above it counts as no less learning


def main(rows: Path, output: Path, replications: int = 200) -> str:
    """Compute the results, write them down, and say them in words."""
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # the notes of the tables say the same
    read = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    runs = pandas.DataFrame([row for row in read if row["kind"] == "run"])
    if runs.empty:
        raise landscape.InputError(f"{rows} has no fine-tuned checkpoint yet.")
    results = {
        "checkpoints": len(runs),
        "base": next(
            ({k: v for k, v in row.items() if "accuracy" in k} for row in read if row["kind"] == "base"), None
        ),
        "chosen": runs.groupby(["task", "method"])[["lr", "rho"]].first().reset_index().to_dict("records"),
        "forgetting": corrected([contrast(runs, *pair, "forgetting") for pair in CONTRASTS]),
        "learned": [contrast(runs, *pair, "learned") for pair in CONTRASTS],
        "flatter": corrected([contrast(runs, *pair, name) for name in FLATNESS for pair in FLATTER]),
        "explored": [
            contrast(runs, *pair, name) for name in EXPLORED for pair in (*CONTRASTS, ("lora-adamw", "adamw"))
        ],
        "recovered": recovered(runs),
        "correlations": correlations(runs, replications),
    }
    write_json(output / "results.json", plain(results))
    write_lines(output / "checkpoints.csv", runs.to_csv(index=False).splitlines())
    return in_words(results)


# --- contrasts of methods -----------------------------------------------------------------------------------


def contrast(runs: pandas.DataFrame, first: str, second: str, outcome: str) -> dict[str, Any]:
    """The mean over tasks of the difference between two methods, paired by seed, with a t interval.

    The variance of the differences is pooled within tasks: with tasks t of n_t seeds, the standard error is
    s sqrt(sum_t 1 / n_t) / number of tasks, and has sum_t (n_t - 1) degrees of freedom. It is NaN where no task has
    two seeds.
    """
    table = runs.pivot(index=["task", "seed"], columns="method", values=outcome)
    paired = table.reindex(columns=[first, second]).dropna()
    differences = (paired[first] - paired[second]).groupby("task")
    counts, freedom = differences.size(), int(differences.size().sum() - differences.ngroups)
    found: dict[str, Any] = {"first": first, "second": second, "outcome": outcome, "pairs": int(counts.sum())}
    found["by_task"] = {task: values.tolist() for task, values in differences}
    if freedom < 1:
        return found | {"difference": math.nan, "low": math.nan, "high": math.nan, "p": math.nan}
    value = float(differences.mean().mean())
    squares = differences.apply(lambda values: float(((values - values.mean()) ** 2).sum())).sum()
    error = math.sqrt(squares / freedom * float((1 / counts).sum())) / len(counts)
    reach = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    return found | {"difference": value, "low": value - reach, "high": value + reach, "p": p}


def corrected(contrasts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same contrasts with `p_holm`, corrected for their number (Holm 1979); one that is missing counts as well."""
    ps = np.nan_to_num([each["p"] for each in contrasts], nan=1.0)
    order = np.argsort(ps, kind="stable")
    rising = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1))
    holm = np.empty(len(ps))
    holm[order] = np.minimum(rising, 1)
    return [each | {"p_holm": float(p)} for each, p in zip(contrasts, holm, strict=True)]


def recovered(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """Of AdamW's checkpoints: the few-shot accuracy lost, and what the base's vector gained more than random ones."""
    if f"{VECTOR}_gained_with_base" not in runs:
        return []
    own = runs[runs["method"] == "adamw"]
    more = own[f"{VECTOR}_gained_with_base"] - own[f"{VECTOR}_gained_with_random"]
    own = own.assign(few_shot_lost=own[f"{VECTOR}_few_shot_lost"], gained_over_random=more)
    zero = own.assign(method="nothing", few_shot_lost=0.0, gained_over_random=0.0)
    both = pandas.concat([own, zero])
    return [contrast(both, "adamw", "nothing", name) for name in ("few_shot_lost", "gained_over_random")]


# --- correlations, exploratory ------------------------------------------------------------------------------


def correlations(runs: pandas.DataFrame, replications: int) -> dict[str, Any]:
    """What `landscape correlate` and `landscape design` say of the table; empty where it is too small for them."""
    ends = ("_old", "_new")
    measured = [name for name in runs if name.endswith(ends) and not name.startswith(("kl_", "loss_rise_"))]
    measured += [name for name in (f"{VECTOR}_cosine", f"{VECTOR}_heads_kept", f"{VECTOR}_effect_lost") if name in runs]
    columns = [name for name in (*measured, *RIVALS) if runs[name].nunique() > 1]
    table = runs.assign(cell=runs["task"] + " " + runs["method"]).dropna(subset=[*columns, "forgetting"])
    design: dict[str, Any] = {"factors": ["task", "method"], "groups": "cell"}
    try:
        found = landscape.correlate(table, flatness=columns, controls=["learned"], **design)
        rates = landscape.simulate_design(table, controls=["learned"], replications=replications, **design)
    except landscape.InputError as error:
        return {"missing": str(error)}
    return {"table": found.to_dict("records"), "design": rates.to_dict("records")}


# --- words --------------------------------------------------------------------------------------------------


def in_words(results: dict[str, Any]) -> str:
    lines = [f"{results['checkpoints']} checkpoints. First method minus second, mean over tasks, 95% intervals:"]
    for of, learned in zip(results["forgetting"], results["learned"], strict=True):
        lines.append(f"  {verdict(of, learned)}")
    lines.append("Is SAM flatter? First minus second, p corrected for all nine:")
    lines += [f"  {each['outcome']}: {numbers(each)}, corrected p {each['p_holm']:.3g}" for each in results["flatter"]]
    if results["recovered"]:
        lines.append("Instruction vectors of AdamW's checkpoints, shares of answers against none:")
        lines += [f"  {each['outcome']}: {numbers(each)}, p {each['p']:.3g}" for each in results["recovered"]]
    lines.append("Exploratory:")
    lines += [f"  {each['outcome']}: {numbers(each)}" for each in results["explored"]]
    if "missing" in results["correlations"]:
        lines.append(f"  correlations: {results['correlations']['missing']}")
    return "\n".join(lines)


def numbers(of: dict[str, Any]) -> str:
    title = f"{of['first']} - {of['second']}"
    if math.isnan(of["difference"]):
        return f"{title} has {of['pairs']} pairs, too few"
    return f"{title} {of['difference']:+.4g} [{of['low']:+.4g}, {of['high']:+.4g}], {of['pairs']} pairs"


def verdict(of: dict[str, Any], learned: dict[str, Any]) -> str:
    """What the plan allows to say of one contrast."""
    if math.isnan(of["difference"]):
        return f"{numbers(of)}."
    said = "no evidence of a difference in forgetting"
    if of["p_holm"] < LEVEL:
        said = "forgets more" if of["difference"] > 0 else "forgets less"
        if of["difference"] < 0:
            said += " without learning less" if learned["low"] > AS_MUCH else ", and may have learned less"
    return f"{numbers(of)}, corrected p {of['p_holm']:.3g}; learned {numbers(learned)}: {said}."


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
