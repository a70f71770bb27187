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
RESAMPLING = landscape.Resampling()
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
    try:
        over_methods = landscape.correlate(table, flatness=columns, **DESIGN)
        rates = landscape.simulate_design(table, replications=replications, **DESIGN)
        alike = tuned_alike(table, columns)
    except landscape.InputError as error:
        return {"missing": str(error)}
    return {
        "table": over_methods.to_dict("records"),
        "design": rates.to_dict("records"),
        "blocks": alike.to_dict("records"),
        "at_the_end": {name: int((table[name] >= end).sum()) for name, end in ENDS.items() if name in table},
    }


def tuned_alike(
    table: pandas.DataFrame, columns: list[str], resampling: landscape.Resampling = RESAMPLING
) -> pandas.DataFrame:
    """The correlations given task and method, with intervals over the blocks of one task and seed."""
    kept = ["metric", "n", "partial", "partial_low", "partial_high"]
    return landscape.correlate(with_blocks(table), flatness=columns, resampling=resampling, **BLOCKS)[kept]


def with_blocks(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table with a column of what methods share: the task and the seed, and with them the examples."""
    return table.assign(block=table["task"] + " " + table["seed"].astype(str))


def columns_of(runs: pandas.DataFrame) -> list[str]:
    """The columns of flatness, of instruction vectors, and of what they are compared with."""
    flat = [name for name in runs if name.endswith(("_old", "_new")) and not name.startswith(("kl_", "loss_rise_"))]
    return [name for name in (*flat, *VECTORS, *RIVALS) if name in runs and "stderr" not in name]


def rivalry(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """One column of each account of forgetting: given the task, and given another account or the distance as well.

    Intervals are over methods and over the blocks of one task and seed, which methods share. Those over methods alone
    left out zero in 15% of 264 simulated tables in which nothing but blocks was shared. Those over blocks were not
    simulated here; rows of one method count there as if their method did not matter.

    The p-values that hold another account fixed are corrected for each other (Holm 1979). Two noisy measures of one
    cause each "add" to the other: what is held fixed is the other number, and not what it stands for.
    """
    names = [name for name in ACCOUNTS.values() if name in runs and runs[name].nunique() > 1]
    table = with_blocks(runs.dropna(subset=[*names, "forgetting"]))
    kept = ["metric", "n", "n_groups", "partial", "partial_low", "partial_high", "partial_p", "held_out_gain"]

    def row(name: str, *given: str) -> dict[str, Any]:
        options: dict[str, Any] = {"flatness": [name], "controls": given}
        over_methods = landscape.correlate(table, **options, **DESIGN)[kept].to_dict("records")[0]
        over_blocks = landscape.correlate(table, **options, factors=["task"], groups="block").iloc[0]
        ends = {f"blocks_{end}": float(over_blocks[f"partial_{end}"]) for end in ("low", "high")}
        return {"given": ", ".join(given), **over_methods, **ends}

    try:
        alone = [row(name) for name in names]
        added = corrected([row(*pair) for pair in itertools.permutations(names, 2)], of="partial_p")
        return [*alone, *added, *(row(name, "distance") for name in names)]
    except landscape.InputError as error:  # a table that is too small
        return [{"missing": str(error)}]


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
    lines.append("  found in 80% of such tables, if blocks did not matter: " + _smallest(smallest))
    ends = [f"{name} {count}" for name, count in of["at_the_end"].items()]
    return [*lines, f"  radii that count as the end of their ray: {', '.join(ends)}"] if ends else lines


def rivalry_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each account, alone and given another."""
    names = {column: account for account, column in ACCOUNTS.items()} | {"distance": "distance"}
    lines = []
    for each in rows:
        if "missing" in each:
            return [f"  no comparison of accounts: {each['missing']}"]
        given = f" given {names[each['given']]}" if each["given"] else ""
        p = f"corrected p {each['p_holm']:.3g}" if "p_holm" in each else f"p {each['partial_p']:.3g}"
        lines.append(
            f"    {names[each['metric']]}{given}: {_interval(each, 'partial')}, over blocks "
            f"{_ends(each['blocks_low'], each['blocks_high'])}, {p}; share of a left-out method's variance that "
            f"it explains {each['held_out_gain']:+.2f}"
        )
    return (
        ["  One number of each account, given the task; intervals over methods, and over blocks:", *lines]
        if lines
        else []
    )


def _interval(of: dict[str, Any], estimand: str) -> str:
    names = (estimand, f"{estimand}_low", f"{estimand}_high") if estimand else ("estimate", "low", "high")
    value, low, high = (of[name] for name in names)
    return "none" if math.isnan(value) else f"{value:+.2f} {_ends(low, high)}"


def _ends(low: float, high: float) -> str:
    """The ends of an interval; blocks of one seed have none."""
    return "without an interval" if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"


def _smallest(of: dict[str, float]) -> str:
    """The smallest correlation that each estimand would find, in words; above 0.9 none was tried."""
    return ", ".join(
        f"{name} none to 0.9" if math.isnan(value) else f"{name} {value:.2f}" for name, value in of.items()
    )
