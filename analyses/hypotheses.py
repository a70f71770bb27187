"""The tests that analyses/flatness_vs_forgetting.md announces, on the rows of the study's table; and what they say."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas
from scipy import stats
from study_folder import plain

import landscape

LEVEL = 0.05
RESAMPLES = 9999  # of the confirmatory tests
EXPLORED = 1999  # of each of the hundred others
RIVALS = ("kl_old", "kl_new", "predicted_forgetting", "displacement_curvature", "distance")
NEGATIVE = ("random", "weight_norm")
SURFACE = ("surface_curvature", "average_gradient", "mean_absolute_gradient")
GIVEN = ("new_loss", "log_distance")
FACTORS = ("base_optimizer", "base_lr", "base_seed", "optimizer", "lr")


def test(rows: list[dict], settings: dict) -> dict:
    """Every result as plain JSON types, NaN as None."""
    warnings.simplefilter("ignore", landscape.MeasurementWarning)  # the notes of the tables say the same
    frame = pandas.DataFrame(rows)
    frame["tuning"] = frame["optimizer"] + frame["lr"].map(" {:g}".format)
    full = frame[frame["arm"] == "full"]
    columns = [m["column"] for m in settings["metrics"]] + list(SURFACE)
    metrics = [f"{column}_{where}" for where in ("old", "new") for column in columns]
    every = [*metrics, *RIVALS, *NEGATIVE]
    explored: dict[str, Any] = {"resampling": landscape.Resampling(EXPLORED)}
    overall = landscape.correlate(
        full, flatness=every, groups="base", controls=GIVEN, hyperparameters=FACTORS, **explored
    )
    within = landscape.correlate(full, flatness=["adaptive_average_new"], groups="base", controls=GIVEN)
    between = between_bases(full, [f"{column}_base" for column in columns])
    given_kl = landscape.correlate(full, flatness=metrics, groups="base", controls=["kl_new"], **explored)
    results: dict[str, Any] = {
        "checkpoints": len(full),
        "bases": int(full["base"].nunique()),
        "recipes": int(full["recipe"].nunique()),
        "H1": said(between, "adaptive_trace_base", "estimate", "low", "high", "p"),
        "H2": said(within, "adaptive_average_new", "partial", "partial_low", "partial_high", "partial_p"),
        "H3": sam_against_adamw(frame),
        "H4": {"metrics": given_kl.loc[given_kl["partial_q"] < LEVEL, "metric"].tolist(), "of": len(metrics)},
        "correlations": records(overall.assign(kind=overall["metric"].map(kind_of))),
        "same_recipe": records(landscape.correlate(full, flatness=every, groups="recipe", **explored)),
        "same_tuning": records(landscape.correlate(full, flatness=every, groups="tuning", **explored)),
        "between_bases": records(between),
        "given_kl": records(given_kl),
        "sham": sham(full, settings),
        "pretraining": sam_pretraining(full),
        "arms": arms(frame),
    }
    lora = frame[frame["arm"] == "lora"]
    if len(lora):
        found = landscape.correlate(lora, flatness=every, groups="base", **explored)
        results["lora"] = {"correlations": records(found), "sam_minus_adamw": paired(lora, lora)}
    return plain(results)


def kind_of(metric: str) -> str:
    """What a metric is: "rival", "control", or the text that flatness was measured on, "old" or "new"."""
    named = dict.fromkeys(RIVALS, "rival") | dict.fromkeys(NEGATIVE, "control")
    return named.get(metric, metric.rpartition("_")[2])


# --- the tests ----------------------------------------------------------------------------------------------


def between_bases(full: pandas.DataFrame, metrics: list[str]) -> pandas.DataFrame:
    """Metrics of the bases against their mean forgetting: intervals over bases, p-values within recipes."""
    bases = full.groupby("base").agg({"recipe": "first", "forgetting": "mean"} | dict.fromkeys(metrics, "first"))
    over_bases = landscape.correlate(bases, flatness=metrics)
    in_recipes = landscape.correlate(bases, flatness=metrics, groups="recipe")
    return over_bases.assign(p=in_recipes["p"], q=in_recipes["q"], within=in_recipes["within"])


def said(table: pandas.DataFrame, metric: str, value: str, low: str, high: str, p: str) -> dict:
    row = table.set_index("metric").loc[metric]
    found = {"metric": metric, "value": row[value], "low": row[low], "high": row[high], "p": row[p]}
    return found | {"held": bool(row[low] > 0 and row[p] < LEVEL)}


def sam_against_adamw(frame: pandas.DataFrame) -> dict:
    """Forgetting of SAM minus that of AdamW, a mean over learning rates for each base, in three ways to be fair."""
    full = frame[frame["arm"] == "full"]
    adamw, sam = (full[full["optimizer"] == name] for name in ("adamw", "sam"))
    results = {
        "equal steps": paired(adamw, sam),
        "equal gradient evaluations": paired(adamw, frame[frame["arm"] == "half"]),
        "equal new-task loss": at_equal_loss(adamw, sam),
    }
    fair = results["equal new-task loss"]
    return results | {"held": bool(fair["high"] < 0 and results["equal steps"]["value"] < 0)}


def paired(adamw: pandas.DataFrame, sam: pandas.DataFrame) -> dict:
    """Differences of forgetting, and of the new task's loss, between runs of one base and learning rate."""
    difference = {}
    for column in ("forgetting", "new_loss"):
        values = [
            part[part["optimizer"] == name].set_index(["base", "lr"])[column]
            for name, part in (("sam", sam), ("adamw", adamw))
        ]
        difference[column] = (values[0] - values[1]).dropna()
    found = {"new_loss_difference": float(difference["new_loss"].mean())}
    return by_base_and_rate(difference["forgetting"]) | found


def at_equal_loss(adamw: pandas.DataFrame, sam: pandas.DataFrame) -> dict:
    paths = [part.set_index(["base", "lr"])["path"] for part in (adamw, sam)]
    difference = pandas.Series({key: forgetting_at_equal_loss(paths[0][key], paths[1][key]) for key in paths[0].index})
    difference.index.names = ["base", "lr"]
    return by_base_and_rate(difference)


def by_base_and_rate(difference: pandas.Series) -> dict:
    """Of differences by base and learning rate: `mean_over_bases`, and the mean at each rate."""
    by_lr = {f"{lr:g}": float(part.mean()) for lr, part in difference.groupby(level="lr")}
    return mean_over_bases(difference.groupby(level="base").mean()) | {"by_lr": by_lr}


def sam_pretraining(full: pandas.DataFrame) -> dict | None:
    """Exploratory: mean forgetting of bases pre-trained with SAM minus those with AdamW, paired by rate and seed.

    Beside it the difference of their losses on old text: a worse base has less to forget.
    """
    key = ["base_lr", "base_seed"]
    means = full.groupby(["base_optimizer", *key])[["forgetting", "old_loss_before"]].mean()
    kinds = set(means.index.get_level_values("base_optimizer"))
    if kinds != {"adamw", "sam"}:
        return None
    apart = (means.xs("sam", level="base_optimizer") - means.xs("adamw", level="base_optimizer")).dropna()
    if len(apart) < 2:
        return None
    return mean_over_bases(apart["forgetting"]) | {"old_loss_difference": float(apart["old_loss_before"].mean())}


def forgetting_at_equal_loss(first: list, second: list) -> float:
    """Second minus first, interpolated along (forgetting, new-task loss) at the worse of the two final losses."""
    level = max(first[-1][1], second[-1][1])
    at = []
    for path in (first, second):
        forgotten, loss = np.array(path, dtype=float).T
        falling = np.minimum.accumulate(loss)  # a step up is no progress
        at.append(float(np.interp(level, falling[::-1], forgotten[::-1])))
    return at[1] - at[0]


def mean_over_bases(difference: pandas.Series) -> dict:
    """Mean, BCa interval over bases and two-sided sign-flip p-value."""
    values, generator = difference.to_numpy(), np.random.default_rng(0)
    interval = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=generator)
    flips = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    )
    low, high = interval.confidence_interval
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "p": float(flips.pvalue)} | {
        "bases": len(values),
        "bases_below_zero": int((values < 0).sum()),
    }


def sham(full: pandas.DataFrame, settings: dict) -> dict:
    """How far each metric moved under a symmetry, and what that did to its correlation with forgetting."""
    moved = full[full["sham"]]
    invariant = {entry["column"] for entry in settings["metrics"] if entry.get("invariant")}
    found = {}
    for entry in settings["metrics"]:
        column = entry["column"]
        if entry.get("sham"):
            change = (moved[f"{column}_sham"] / moved[f"{column}_old"]).to_numpy()
            table = landscape.correlate(
                full, flatness=[f"{column}_old", f"{column}_sham"], groups="base", resampling=landscape.Resampling(99)
            )
            before, after = table["estimate"]
            found[column] = moves(change, column in invariant) | {"before": before, "after": after}
    step = (moved["displacement_curvature_sham"] / moved["displacement_curvature"]).to_numpy()
    return found | {"displacement_curvature": moves(step, True)}


def moves(ratio: np.ndarray, invariant: bool) -> dict:
    return {
        "invariant": invariant,
        "median_ratio": float(np.median(ratio)),
        "largest_change": float(np.abs(ratio - 1).max()),
    }


def arms(frame: pandas.DataFrame) -> list[dict]:
    """Mean and standard deviation over bases of what each kind of run forgot and learned."""
    rows = []
    for (arm, optimizer, lr), part in frame.groupby(["arm", "optimizer", "lr"], sort=False):
        row: dict[str, Any] = {"arm": arm, "optimizer": optimizer, "lr": lr, "runs": len(part)}
        for column in ("forgetting", "new_loss", "kl_new", "distance"):
            row |= {column: float(part[column].mean()), f"{column}_sd": float(part[column].std())}
        rows.append(row)
    return rows


# --- in words -----------------------------------------------------------------------------------------------


def in_words(results: dict) -> str:
    h1, h2, h3 = results["H1"], results["H2"], results["H3"]
    lines = [
        f"{results['checkpoints']} checkpoints of {results['bases']} bases in {results['recipes']} recipes.",
        f"H1 {verdict(h1)}: {h1['metric']} against mean forgetting of a base, rho = {number(h1)}.",
        f"H2 {verdict(h2)}: {h2['metric']} within bases, given new-task loss and distance, rho = {number(h2)}.",
        f"H3 {verdict(h3)}: forgetting of SAM minus AdamW, nats per token:",
    ]
    for way in ("equal steps", "equal gradient evaluations", "equal new-task loss"):
        beside = h3[way].get("new_loss_difference")
        learned = "" if beside is None else f"; new-task loss {beside:+.4f}"
        lines.append(f"     at {way}: {number(h3[way], 4)}{learned}")
    if (early := results["pretraining"]) is not None:
        lines.append(
            f"Exploratory: forgetting of bases pre-trained with SAM minus AdamW: {number(early, 4)}; "
            f"their old-text loss {early['old_loss_difference']:+.4f}"
        )
    h4 = results["H4"]
    lines.append(
        f"H4: {len(h4['metrics'])} of {h4['of']} flatness metrics add to KL on new text (q < {LEVEL})"
        + (f": {', '.join(h4['metrics'])}." if h4["metrics"] else ".")
    )
    lines.append("Against forgetting over all checkpoints (Spearman; interval over bases; p within bases):")
    ranked = sorted(results["correlations"], key=lambda row: -abs(row["estimate"] or 0))
    for row in ranked:
        found = {"value": row["estimate"], "low": row["low"], "high": row["high"], "p": row["p"]}
        lines.append(f"     {row['metric']:32s} {number(found)}, q = {small(row['q'])}")
    lines.append("Sham symmetries on half of the checkpoints:")
    for metric, row in results["sham"].items():
        kind = "invariant" if row["invariant"] else "not invariant"
        after = "" if "after" not in row else f"; rho {row['before']:+.2f} becomes {row['after']:+.2f}"
        lines.append(
            f"     {metric:32s} {kind}, median ratio {row['median_ratio']:.4g}, largest change "
            f"{row['largest_change']:.1e}{after}"
        )
    return "\n".join(lines)


def verdict(result: dict) -> str:
    if result["held"]:
        return "held"
    fair = result.get("equal new-task loss")  # of H3, the comparison that decides: it claims a difference below 0
    claimed = result if fair is None else fair
    low, high = claimed["low"], claimed["high"]
    if low is None or high is None:
        return "not found"
    reversed_sign = high < 0 if fair is None else low > 0
    return "went the other way" if reversed_sign else "not found"


def number(found: dict, digits: int = 2) -> str:
    if found["value"] is None:
        return "not available"
    if found["low"] is None:
        return f"{found['value']:+.{digits}f}, no interval"
    value, low, high = (f"{found[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}], p = {small(found['p'])}"


def small(p: float | None) -> str:
    return "-" if p is None else f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


# --- plain --------------------------------------------------------------------------------------------------


def records(table: pandas.DataFrame) -> list[dict]:
    return table.to_dict("records")
