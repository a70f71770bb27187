"""The verdicts that analyses/instruction_vectors.md announces, from the rows of analyses/instruction_vectors.py.

python analyses/instruction_vectors_results.py ROWS OUT

ROWS may be incomplete: a method counts where all of its lists are there. Writes OUT/results.json and prints tables and
verdicts as Markdown.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas
from scipy import stats
from smollm2_contrasts import corrected
from study_folder import plain, write_json

import landscape

METHODS = ("adamw", "sam", "lora", "guided")
LEVEL = 0.05
SHARE = 0.25  # of what AdamW lost: a smaller effect counts as none that explains forgetting
LESS = 0.05  # nats: guided training that learned less than AdamW by more than this only stayed nearer to the base


def main(rows: Path, output: Path) -> str:
    """Compute the results, write them down, and say them in words."""
    read = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    base = pandas.DataFrame([row for row in read if row["kind"] == "base"])
    tuned = pandas.DataFrame([row for row in read if row["kind"] == "tuned"])
    if tuned.empty:
        raise landscape.InputError(f"{rows} has no tuned checkpoint yet.")
    control = pandas.DataFrame([row for row in read if row["kind"] == "control"])
    results = results_of(tuned, len(base), control)
    write_json(output / "results.json", plain(results))
    return "\n".join([*base_table(base), "", *method_table(tuned), "", *in_words(results)])


def results_of(tuned: pandas.DataFrame, lists: int, control: pandas.DataFrame) -> dict[str, Any]:
    """Every question of the plan, at the last rate that there is; `control` has the base against itself."""
    rate = "high" if "high" in set(tuned["rate"]) else "first"
    own = tuned[tuned["rate"] == rate]
    columns = {method: of.set_index("list") for method, of in own.groupby("method") if len(of) == lists}
    lost = {method: of["few_shot_lost"] for method, of in columns.items()}
    more = {
        method: of["few_shot_gained_with_base"] - of["few_shot_gained_with_random"] for method, of in columns.items()
    }
    looks = [look("lost", method, lost.get(method)) for method in METHODS]
    looks += [look("brought back", method, more.get(method)) for method in METHODS]
    both = lost["guided"] - lost["adamw"] if {"guided", "adamw"} <= set(lost) else None
    looks.append(look("guided - adamw", "guided", both))
    explored = [
        look(name, method, of[first] - of[second])
        for method, of in columns.items()
        for name, first, second in (
            ("base's vector - other list's, few-shot", "few_shot_gained_with_base", "few_shot_gained_with_other_task"),
            ("base's vector - random, zero-shot", "zero_shot_gained_with_base", "zero_shot_gained_with_random"),
        )
    ]
    explored += [
        look(f"{method} - adamw, few-shot lost", method, lost[method] - lost["adamw"])
        for method in ("sam", "lora")
        if {method, "adamw"} <= set(lost)
    ]
    gained = {method: of["few_shot_gained_with_base"] for method, of in columns.items()}
    if len(control) == lists:
        gained["base"] = control.set_index("list")["few_shot_gained_with_base"]
    beyond = {method: gained[method] - gained["base"] if "base" in gained else None for method in columns}
    kept = None if both is None else both + SHARE * lost["adamw"]
    cells = pandas.concat(columns.values()) if columns else own
    return {
        "rate": rate,
        "learned": {method: float(of["learned"].iloc[0]) for method, of in columns.items()},
        "looks": corrected(looks),
        "gained": [
            look("gained with the base's vector, few-shot", method, values) for method, values in gained.items()
        ],
        "beyond the base": [
            look("gained with the base's vector, few-shot, more than in the base itself", method, values)
            for method, values in beyond.items()
        ],
        "beyond a quarter": [
            look("gained with the base's vector, few-shot, more than a quarter of what was lost", method, values)
            for method, values in ((method, gained[method] - SHARE * lost[method]) for method in columns)
        ],
        "less than a quarter kept": look("guided - adamw, above minus a quarter of AdamW's loss", "guided", kept),
        "explored": explored,
        "cosine with lost": float(cells["cosine"].corr(cells["few_shot_lost"], method="spearman")),
        "cells": len(cells),
    }


def look(question: str, method: str, values: pandas.Series | None) -> dict[str, Any]:
    """The mean over lists with its t interval; NaN where the rows are not there yet."""
    found: dict[str, Any] = {"question": question, "method": method}
    if values is None or len(values) < 2:
        return found | {"difference": math.nan, "low": math.nan, "high": math.nan, "p": math.nan}
    if values.std() < 1e-9:  # as where every list lost one question: such a spread says nothing of other lists
        return found | {"difference": float(values.mean()), "low": -math.inf, "high": math.inf, "p": 1.0}
    test = stats.ttest_1samp(values, 0)
    low, high = map(float, test.confidence_interval(1 - LEVEL))
    return found | {"difference": float(values.mean()), "low": low, "high": high, "p": float(test.pvalue)}


# --- words --------------------------------------------------------------------------------------------------


def base_table(base: pandas.DataFrame) -> list[str]:
    lines = [
        "| list | questions | few-shot | zero-shot | with vector | effect of ten heads | of ten others | heads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in base.to_dict("records"):
        cells = [f"{row[name]:.0%}" for name in ("few_shot", "zero_shot", "steered")]
        cells += [ends(row, name, "+.2f") for name in ("joint_effect", "random_effect")]
        cells.append(", ".join(f"{layer}.{head}" for layer, head in row["heads"][:5]))
        lines.append(f"| {row['list']} | {row['questions']} | {' | '.join(cells)} |")
    return lines


def method_table(tuned: pandas.DataFrame) -> list[str]:
    """One row for each checkpoint and list, with intervals over prompts."""
    lines = [
        "| method | list | cosine | heads kept (again, chance) | effect lost | few-shot lost | zero-shot lost "
        "| gained with base's vector | random | other list's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in tuned.to_dict("records"):
        cells = [
            ends(row, "cosine", ".2f"),
            f"{row['overlap']:.0%} ({row['overlap_again']:.0%}, {row['overlap_random']:.0%})",
            ends(row, "effect_lost", "+.2f"),
        ]
        names = (
            "few_shot_lost",
            "zero_shot_lost",
            *(f"few_shot_gained_with_{v}" for v in ("base", "random", "other_task")),
        )
        cells += [ends(row, name, "+.0%") for name in names]
        method = row["method"] if row["rate"] == "first" else f"{row['method']} ({row['rate']} rate)"
        lines.append(f"| {method} | {row['list']} | {' | '.join(cells)} |")
    return lines


def ends(row: dict, name: str, kind: str) -> str:
    return f"{row[name]:{kind}} [{row[f'{name}_low']:{kind}}, {row[f'{name}_high']:{kind}}]"


def in_words(results: dict[str, Any]) -> list[str]:
    lines = [
        f"Learning rate: the {results['rate']} one. Means over lists with 95% t intervals over lists; p by Holm.",
        "",
    ]
    lines += [f"- {each['question']}, {each['method']}: {numbers(each)}" for each in results["looks"]]
    learned = ", ".join(f"{method} {value:.3f}" for method, value in results["learned"].items())
    lines += [f"- learned, nats per token: {learned}", "", f"**Brought back?** {recovery_verdict(results)}", ""]
    lines += [f"**Does guided training forget less?** {guided_verdict(results)}", "", "Explored, not corrected:", ""]
    lines += [
        f"- {each['question']}, {each['method']}: {numbers(each)}"
        for each in (
            *results["gained"],
            *results["beyond the base"],
            *results["beyond a quarter"],
            *results["explored"],
        )
    ]
    words = f"- Spearman correlation of cosine with few-shot accuracy lost: {results['cosine with lost']:+.2f}"
    return [*lines, f"{words} over {results['cells']} cells, which depend on each other, so it has no interval"]


def numbers(of: dict[str, Any]) -> str:
    if math.isnan(of["difference"]):
        return "not finished"
    if math.isinf(of["low"]):
        return f"{of['difference']:+.1%} in every list, without an interval"
    holm = f", corrected p {of['p_holm']:.3g}" if "p_holm" in of else ""
    return f"{of['difference']:+.1%} [{of['low']:+.1%}, {of['high']:+.1%}]{holm}"


def is_shown(of: dict[str, Any]) -> bool:
    """Whether a mean over lists is above zero, by its interval and its corrected p."""
    return of["p_holm"] < LEVEL and of["low"] > 0


def recovery_verdict(results: dict[str, Any]) -> str:
    """What the rows say for or against lost answers being brought back by the base's vectors.

    Stricter than the plan in three places, after a referee's reading: "for" also needs that the vector gains more than
    in the base, which lost nothing; "against" needs that what it gains itself lies below a quarter of the loss, as a
    difference in each list; and a loss that is not shown is not called none.
    """
    lost, back = ([each for each in results["looks"] if each["question"] == q] for q in ("lost", "brought back"))
    gained, beyond, quarter = (
        {each["method"]: each for each in results[name]} for name in ("gained", "beyond the base", "beyond a quarter")
    )
    words = []
    for first, second in zip(lost, back, strict=True):
        method = first["method"]
        if math.isnan(first["p"]):
            said = "not finished"
        elif not is_shown(first):
            said = f"its loss is not shown (corrected p {first['p_holm']:.2g}), so nothing follows"
        elif quarter[method]["high"] < 0:
            said = "against: the base's vector brings back less than a quarter of what was lost"
        elif not is_shown(second) or gained[method]["low"] <= 0:
            said = "undecided"
        elif math.isnan(beyond[method]["p"]):
            said = "undecided until the base is compared with itself"
        elif beyond[method]["low"] <= 0:
            said = "undecided: answers come back, but it is not shown that the base, which lost nothing, gains fewer"
        else:
            said = "for: the base's vector brings answers back, more than random ones and more than in the base"
        words.append(f"{method}: {said}")
    return "; ".join(words) + "."


def guided_verdict(results: dict[str, Any]) -> str:
    """What the rows say for or against guided training forgetting less than AdamW."""
    between = results["looks"][-1]
    if math.isnan(between["p"]):
        return "Not finished."
    less = results["learned"]["adamw"] - results["learned"]["guided"]
    lost = next(each for each in results["looks"] if each["method"] == "adamw")
    if between["p_holm"] < LEVEL and between["high"] < 0:
        return "For." if less <= LESS else f"It forgets less, and learned {less:.3f} nats less: not for."
    if between["p_holm"] < LEVEL and between["low"] > 0:
        return "Against: it forgets more."
    if not is_shown(lost):
        return f"Undecided: AdamW's own loss is not shown (corrected p {lost['p_holm']:.2g})."
    if results["less than a quarter kept"]["low"] > 0:
        return "Against: what it keeps is less than a quarter of what AdamW loses."
    return "Undecided."


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(main(*map(Path, sys.argv[1:])))
    except (landscape.InputError, OSError) as error:
        sys.exit(f"error: {error}")
