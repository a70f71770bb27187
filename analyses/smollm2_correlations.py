"""What goes with forgetting over the checkpoints of SmolLM2: flatness, KL, instruction vectors. All of it exploratory.

Which columns stand against each other in `rivalry` was fixed before the first checkpoint was measured.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas
from smollm2_contrasts import corrected

import landscape

VECTOR = "instruction_vector"  # what the names of its columns begin with
VECTORS = tuple(f"{VECTOR}_{name}" for name in ("cosine", "heads_kept", "effect_lost"))
RIVALS = ("kl_new", "kl_chat", "distance", "predicted_forgetting", "random")
ACCOUNTS = {"flatness": "surface_curvature_old", "KL": "kl_new", "instruction vectors": f"{VECTOR}_cosine"}
DESIGN: dict[str, Any] = {"factors": ["task"], "groups": "method"}
BLOCKS: dict[str, Any] = {"factors": ["task", "method"], "groups": "block"}
ENDS = {"basin_random_old": 1.0, "basin_worst_old": 1.0, "basin_step_old": 2.0}  # where the rays of basins end


def correlations(runs: pandas.DataFrame, replications: int) -> dict[str, Any]:
    """What `landscape correlate` and `landscape design` say of the table, and why where they say nothing.

    `table` has the correlation over all checkpoints (`estimate`), given the task (`partial`), and given task and method
    (`within_partial`). The last takes seeds for independent between methods, but equal seeds draw equal examples, and
    WiSE-FT is half of AdamW's step: `blocks` has it with intervals over the blocks of one task and seed.
    """
    table = runs.dropna(subset=["forgetting"])
    columns = [name for name in columns_of(runs) if table[name].nunique() > 1]
    blocks = table.assign(block=table["task"] + " " + table["seed"].astype(str))
    try:
        found = landscape.correlate(table, flatness=columns, **DESIGN)
        rates = landscape.simulate_design(table, replications=replications, **DESIGN)
        alike = landscape.correlate(blocks, flatness=columns, **BLOCKS)
    except landscape.InputError as error:
        return {"missing": str(error)}
    return {
        "table": found.to_dict("records"),
        "design": rates.to_dict("records"),
        "blocks": alike[["metric", "n", "partial", "partial_low", "partial_high"]].to_dict("records"),
        "at_the_end": {name: int((table[name] >= end).sum()) for name, end in ENDS.items() if name in table},
    }


def columns_of(runs: pandas.DataFrame) -> list[str]:
    """The columns of flatness, of instruction vectors, and of what they are compared with."""
    flat = [name for name in runs if name.endswith(("_old", "_new")) and not name.startswith(("kl_", "loss_rise_"))]
    return [name for name in (*flat, *VECTORS, *RIVALS) if name in runs and "stderr" not in name]


def rivalry(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """One column of each account of forgetting: given the task, and given another account or the distance as well.

    The p-values that hold another account fixed are corrected for each other (Holm 1979). Two noisy measures of one
    cause each "add" to the other: what is held fixed is the other number, and not what it stands for.
    """
    names = [name for name in ACCOUNTS.values() if name in runs and runs[name].nunique() > 1]
    table = runs.dropna(subset=[*names, "forgetting"])
    kept = ["metric", "n", "n_groups", "partial", "partial_low", "partial_high", "partial_p", "held_out_gain"]

    def row(name: str, *given: str) -> dict[str, Any]:
        result = landscape.correlate(table, flatness=[name], controls=given, **DESIGN)
        return {"given": ", ".join(given), **result[kept].to_dict("records")[0]}

    try:
        alone = [row(name) for name in names]
        added = corrected([row(*pair) for pair in itertools.permutations(names, 2)], of="partial_p")
        return [*alone, *added, *(row(name, "distance") for name in names)]
    except landscape.InputError:  # too few rows
        return []


# --- words --------------------------------------------------------------------------------------------------


def correlations_in_words(of: dict[str, Any]) -> list[str]:
    """A line for each metric, then what such a table can show."""
    if "missing" in of:
        return [f"  no correlations: {of['missing']}"]
    lines = [
        "  Spearman correlations with forgetting, intervals each by itself: over all; given the task; given task and",
        "  method (intervals over the blocks of task and seed). Basins, cosine and heads kept are expected below zero.",
    ]
    for each, alike in zip(of["table"], of["blocks"], strict=True):
        numbers = [_interval(each, ""), _interval(each, "partial"), _interval(alike, "partial")]
        lines.append(f"    {each['metric']} ({each['n']:g}): {'; '.join(numbers)}")
    smallest = {
        rate["estimand"]: rate["smallest"]
        for rate in of["design"] if rate["verdict"] == "both" and rate["null"] == "nothing links them"
    }  # fmt: skip
    lines.append("  found in 80% of such tables, were blocks no matter: " + _smallest(smallest))
    ends = [f"{name} {count}" for name, count in of["at_the_end"].items()]
    return [*lines, f"  radii that count as the end of their ray: {', '.join(ends)}"] if ends else lines


def rivalry_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each account, alone and given another."""
    names = {column: account for account, column in ACCOUNTS.items()} | {"distance": "distance"}
    lines = []
    for each in rows:
        given = f" given {names[each['given']]}" if each["given"] else ""
        p = f"corrected p {each['p_holm']:.3g}" if "p_holm" in each else f"p {each['partial_p']:.3g}"
        lines.append(
            f"    {names[each['metric']]}{given}: {_interval(each, 'partial')}, {p}; "
            f"share explained of a method left out {each['held_out_gain']:+.2f}"
        )
    return ["  One number of each account, given the task, methods as groups:", *lines] if lines else []


def _interval(of: dict[str, Any], estimand: str) -> str:
    names = (estimand, f"{estimand}_low", f"{estimand}_high") if estimand else ("estimate", "low", "high")
    numbers = [of[name] for name in names]
    return "none" if math.isnan(numbers[0]) else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*numbers)


def _smallest(of: dict[str, float]) -> str:
    """The smallest correlation that each estimand would find, in words; above 0.9 none was tried."""
    return ", ".join(f"{name} {value:.2f}" if value == value else f"{name} none to 0.9" for name, value in of.items())
