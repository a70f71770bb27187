"""The verdicts that analyses/within_recipe.md announces, from the tables of analyses/within_recipe.py.

python analyses/within_recipe_results.py OUT [--resamples 9999] [--replications 500]

Reads OUT/runs.csv and OUT/checkpoints.csv, writes OUT/results.json, and prints the verdicts. The tables may
be incomplete; the number of rows is part of what is printed.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from scipy import optimize, stats
from study_folder import plain, write_json
from study_measures import SURFACE

import landscape

RIVALS = ("kl_old", "kl_new", "distance", "predicted_forgetting", "displacement_curvature")
CONTROL = "random"
DESIGN: dict[str, Any] = {"factors": ["lr", "steps", "optimizer"], "groups": "recipe/base"}
LEVELS = 20  # of learning, at which fronts are compared
MATCHED = (  # name, (method, optimizer) of the first, of the second; the difference is first minus second
    ("SAM, tuned radius", ("plain", "sam"), ("plain", "adamw")),
    ("SAM, wide radius", ("plain", "sam-wide"), ("plain", "adamw")),
    ("WiSE-FT: SAM", ("wise-ft", "sam"), ("wise-ft", "adamw")),
    ("rehearsal: SAM", ("rehearsal", "sam"), ("rehearsal", "adamw")),
    ("AdamW: WiSE-FT", ("wise-ft", "adamw"), ("plain", "adamw")),
    ("AdamW: rehearsal", ("rehearsal", "adamw"), ("plain", "adamw")),
)


def main(output: Path, resamples: int = 9999, replications: int = 500) -> str:
    """Compute the results, write them down, and say them in words."""
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # the notes of the tables say the same
    runs, checkpoints = (pandas.read_csv(output / f"{name}.csv") for name in ("runs", "checkpoints"))
    results = {
        "runs": len(runs),
        "checkpoints": len(checkpoints),
        "recipes": int(checkpoints["recipe"].nunique()),
        "radii": radii(runs),
        "P1": links(checkpoints, ["learned"], resamples),
        "P2": links(checkpoints, ["learned", "kl_new"], resamples),
        "design": design(checkpoints, replications),
        "P3": [matched(runs, *comparison) for comparison in MATCHED],
        "P4": pretraining(runs),
        "planes": spread_of_planes(checkpoints),
        "variance": variance_explained(checkpoints),
    }
    write_json(output / "results.json", plain(results))
    return in_words(results)


# --- P1 and P2: flatness against forgetting -----------------------------------------------------------------


def metrics_of(checkpoints: pandas.DataFrame) -> list[str]:
    """The flatness metrics of the table, those on old text first."""
    names = [name for name in checkpoints if name.endswith(("_old", "_new")) and "stderr" not in name]
    left_out = {"kl_old", "kl_new", "metric_old"}
    flat = [name for name in names if name not in left_out]
    return sorted(flat, key=lambda name: name.endswith("_new"))


def links(checkpoints: pandas.DataFrame, controls: list[str], resamples: int) -> dict[str, Any]:
    """The three correlations of every metric, rival and control, and the words for them."""
    flat = metrics_of(checkpoints)
    rest = [name for name in (*RIVALS, CONTROL) if name not in controls]
    table = landscape.correlate(
        checkpoints, flatness=[*flat, *rest], controls=controls, resampling=landscape.Resampling(resamples), **DESIGN
    )
    verdicts = landscape.estimand_table(table)
    return {"flatness": flat, "correlations": table.to_dict("records"), "estimands": verdicts.to_dict("records")}


def design(checkpoints: pandas.DataFrame, replications: int) -> dict[str, Any]:
    """How often the verdicts of P1 err on this design, and what they find in 80% of studies."""
    rates = landscape.simulate_design(checkpoints, controls=["learned"], replications=replications, **DESIGN)
    return {"rates": rates.to_dict("records"), "shares": rates.attrs["shares"]}


def variance_explained(checkpoints: pandas.DataFrame) -> dict[str, float]:
    """Share of the variance of forgetting between levels of each setting, alone and together."""
    total = float(((checkpoints["forgetting"] - checkpoints["forgetting"].mean()) ** 2).sum())
    keys: dict[str, list[str]] = {name: [name] for name in ("pair", "recipe", "lr", "steps", "optimizer")}
    keys["lr, steps, optimizer"] = ["lr", "steps", "optimizer"]
    keys["cell"] = ["recipe", "lr", "steps", "optimizer"]
    shares = {}
    for name, columns in keys.items():
        left = checkpoints["forgetting"] - checkpoints.groupby(columns)["forgetting"].transform("mean")
        shares[name] = 1 - float((left**2).sum()) / total
    learned = checkpoints.groupby(keys["cell"])[["forgetting", "learned"]].transform(
        lambda column: column - column.mean()
    )
    shares["learned, within cells"] = float(learned.corr().iloc[0, 1] ** 2)
    return shares


def spread_of_planes(checkpoints: pandas.DataFrame) -> dict[str, float]:
    """Median relative spread of one plane, from the standard errors over planes; and that of the mean."""
    spread = {}
    for name in SURFACE:
        for text in ("old", "new"):
            relative = checkpoints[f"{name}_stderr_{text}"] / checkpoints[f"{name}_{text}"]
            spread[f"{name}_{text}"] = float(relative.median())
    return spread


# --- P3: fronts of kept against learned ---------------------------------------------------------------------


class Front(NamedTuple):
    """Forgetting as a function of what was learned, over the members of a Pareto front and the start."""

    learned: np.ndarray  # rising
    forgetting: np.ndarray  # rising with it

    def at(self, levels: np.ndarray) -> np.ndarray:
        return np.interp(levels, self.learned, self.forgetting)


def front(runs: pandas.DataFrame, start: float = 0.0, learned: str = "learned") -> Front:
    """The front of some runs of one base.

    Members are the runs that no other run beats in both validation loss and forgetting on the metric tokens. The curve
    goes through their outcomes on other tokens, made monotone by isotonic regression, from the base itself on.
    """
    losses, kept = runs["validation_loss"].to_numpy(), runs["metric_old_forgetting"].to_numpy()
    better = (losses[None] <= losses[:, None]) & (kept[None] <= kept[:, None])
    strictly = (losses[None] < losses[:, None]) | (kept[None] < kept[:, None])
    members = runs[~(better & strictly).any(axis=1)].sort_values(learned)
    members = members[members[learned] > start]
    risen = optimize.isotonic_regression(members["forgetting"].to_numpy()).x
    return Front(np.r_[start, members[learned].to_numpy()], np.r_[0.0, np.maximum(risen, 0.0)])


def difference(first: Front, second: Front) -> float:
    """First minus second, a mean over levels of learning that members of both reach; NaN where there are none."""
    if min(len(first.learned), len(second.learned)) < 2:
        return math.nan
    low, high = max(first.learned[1], second.learned[1]), min(first.learned[-1], second.learned[-1])
    if low >= high:
        return math.nan
    levels = np.linspace(low, high, LEVELS)
    return float((first.at(levels) - second.at(levels)).mean())


def fronts_of(runs: pandas.DataFrame, method: str, optimizer: str) -> dict[str, Front]:
    """The front of each base, from runs with the first fine-tuning seed."""
    chosen = runs[
        (runs["method"] == method)
        & (runs["optimizer"] == optimizer)
        & (runs["tuning_seed"] == runs["tuning_seed"].min())
    ]
    return {base: front(part) for base, part in chosen.groupby("base")}


def matched(runs: pandas.DataFrame, name: str, first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    """A difference of fronts at matched learning: by base, by pair, and over recipes."""
    one, other = fronts_of(runs, *first), fronts_of(runs, *second)
    recipe = runs.drop_duplicates("base").set_index("base")[["recipe", "pair"]]
    rows = recipe.assign(
        difference=pandas.Series({base: difference(one[base], other[base]) for base in one if base in other})
    )
    rows = rows.dropna()
    by_recipe = rows.groupby(["pair", "recipe"])["difference"].mean()
    return {
        "name": name,
        "bases": len(rows),
        "bases_below_zero": int((rows["difference"] < 0).sum()),
        "by_pair": by_recipe.groupby(level="pair").mean().to_dict(),
        **interval(by_recipe.to_numpy()),
    }


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and 95% t interval over independent values."""
    if len(values) < 2:
        return {
            "value": float(values.mean()) if len(values) else math.nan,
            "low": math.nan,
            "high": math.nan,
            "n": len(values),
        }
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    mean = float(values.mean())
    return {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def radii(runs: pandas.DataFrame) -> list[dict]:
    """The radii that the pilot chose, and how much less SAM learned with them than AdamW in the same steps."""
    plain = runs[(runs["method"] == "plain") & (runs["tuning_seed"] == runs["tuning_seed"].min())]
    key = ["base", "lr", "steps"]
    adamw = plain[plain["optimizer"] == "adamw"].set_index(key)["learned"]
    rows = []
    for (pair, optimizer), part in plain[plain["optimizer"] != "adamw"].groupby(["pair", "optimizer"]):
        less = part.set_index(key)["learned"] - adamw
        rows.append({
            "pair": pair, "optimizer": optimizer, "median": float(part["rho"].median()),
            "least": float(part["rho"].min()), "most": float(part["rho"].max()),
            "learned_difference": float(less.mean()),
        })  # fmt: skip
    return rows


# --- P4: SAM in pre-training --------------------------------------------------------------------------------


def pretraining(runs: pandas.DataFrame) -> dict[str, Any]:
    """Fronts of AdamW from bases pre-trained with SAM minus those of AdamW's bases, paired by pair, rate and seed."""
    plain = runs[
        (runs["method"] == "plain")
        & (runs["optimizer"] == "adamw")
        & (runs["tuning_seed"] == runs["tuning_seed"].min())
    ]
    plain = plain.assign(reached=-plain["new_loss"])
    of: dict[tuple, dict[str, Any]] = {}
    for (pair, lr, seed, optimizer), part in plain.groupby(["pair", "base_lr", "base_seed", "base_optimizer"]):
        start = part.iloc[0]
        of.setdefault((pair, lr, seed), {})[optimizer] = {
            "learned": front(part),
            "reached": front(part, -start["new_loss_before"], "reached"),
            "old_loss_before": start["old_loss_before"],
            "new_loss_before": start["new_loss_before"],
        }
    rows = []
    for (pair, lr, _), both in of.items():
        if set(both) == {"adamw", "sam"}:
            sam, adamw = both["sam"], both["adamw"]
            row = {name: difference(sam[name], adamw[name]) for name in ("reached", "learned")}
            row |= {name: sam[name] - adamw[name] for name in ("old_loss_before", "new_loss_before")}
            rows.append({"pair": pair, "lr": lr} | row)
    means = pandas.DataFrame(rows).groupby(["pair", "lr"]).mean()
    return {name: interval(means[name].dropna().to_numpy()) for name in means}


# --- in words -----------------------------------------------------------------------------------------------


def in_words(results: dict) -> str:
    lines = [
        f"{results['checkpoints']} measured checkpoints and {results['runs']} runs in {results['recipes']} recipes."
    ]
    lines.append("Share of the variance of forgetting between levels of")
    lines += [f"     {name:24s} {share:.1%}" for name, share in results["variance"].items()]
    within = "within recipe"
    for name, given in (("P1", "what was learned"), ("P2", "what was learned and KL on new text")):
        lines.append(f"{name}: within a recipe, tuned alike, given {given} (* evidence at a family-wise 5%):")
        rows = sorted(results[name]["estimands"], key=lambda row: -_size(row.get(within)))
        for row in rows:
            rest = "; ".join(f"{key} {_estimate(row, key)}" for key in ("tuned alike", "pooled"))
            lines.append(f"     {row['metric']:30s} {_estimate(row, within)}; {rest}")
    lines.append("How often the verdicts err on this design, and the smallest correlation found in 80% of studies:")
    for row in results["design"]["rates"]:
        lines.append(
            f"     {row['estimand']:14s} {row['verdict']:9s} {row['null']:28s} {row['false_positives']:.1%}, "
            f"smallest {row['smallest']:.2f}"
        )
    lines.append("P3: forgetting at matched learning, nats per token:")
    for row in results["P3"]:
        pairs = ", ".join(f"{pair} {value:+.4f}" for pair, value in row["by_pair"].items())
        lines.append(
            f"     {row['name']:20s} {_interval(row)}, {row['bases_below_zero']} of {row['bases']} bases below zero; "
            f"{pairs}"
        )
    lines.append("     radii: " + "; ".join(
        f"{row['pair']} {row['optimizer']} {row['median']:.3g} [{row['least']:.3g}, {row['most']:.3g}], learned "
        f"{row['learned_difference']:+.4f} against AdamW in the same steps" for row in results["radii"]
    ))  # fmt: skip
    lines.append("P4: bases pre-trained with SAM minus AdamW's, nats per token:")
    for name, title in (
        ("reached", "forgetting at equal new-task loss"), ("learned", "forgetting at equal fall of the new-task loss"),
        ("old_loss_before", "old-text loss of the base"), ("new_loss_before", "new-task loss of the base"),
    ):  # fmt: skip
        lines.append(f"     {title:46s} {_interval(results['P4'][name])}")
    lines.append("Standard error of the mean over planes, relative (median over checkpoints):")
    lines += [f"     {name:30s} {value:.1%}" for name, value in results["planes"].items()]
    return "\n".join(lines)


def _estimate(row: dict, name: str) -> str:
    """A correlation with its interval and family-wise p, starred where it is evidence; "-" where there is none."""
    value = row.get(name)
    if value is None or math.isnan(value):
        return "-"
    star = "*" if row[f"{name}_evidence"] else " "
    return f"{value:+.2f}{star} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}] p {row[f'{name}_family_p']:.3f}"


def _size(value: float | None) -> float:
    return -1.0 if value is None or math.isnan(value) else abs(value)


def _interval(row: dict) -> str:
    return f"{row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] over {row['n']}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--resamples", type=int, default=9999)
    parser.add_argument("--replications", type=int, default=500)
    arguments = parser.parse_args()
    try:
        print(main(arguments.output, arguments.resamples, arguments.replications))
    except (landscape.InputError, OSError) as error:
        sys.exit(f"error: {error}")
