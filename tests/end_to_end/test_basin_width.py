"""The study of basins of growing width: its verdicts find what was planted, and its rows are the API's numbers."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas
import pytest

import landscape

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "analyses/basin_width.toml").read_text("utf-8"))
WIDTHS = SETTINGS["widths"]


@pytest.fixture(scope="module")
def study():
    """The module of the study."""
    sys.path.insert(0, str(ROOT / "analyses"))
    import basin_width

    sys.path.pop(0)
    return basin_width


def planted(study, folder, slope, sam):
    """Tables in which log10 of the radius rises with log2 of the width and is `sam` higher with SAM.

    Forgetting falls with the random radius of a checkpoint and with nothing else, beside noise.
    """
    random = np.random.default_rng(0)
    bases, checkpoints = [], []
    for width in WIDTHS:
        for seed in range(3):
            of_base = -1.5 + slope * np.log2(width) + random.normal(0, 0.05)
            row = {"width": width, "seed": seed, "weights": width**2, "loss_old": 5 - 0.2 * np.log2(width)}
            radii = {"basin_random_old": 10**of_base, "basin_worst_old": 0.01, "basin_random_new": 10**of_base}
            bases.append(row | radii | {"basin_worst_old": 0.01 * random.uniform(0.9, 1.1)})
            for optimizer in ("adamw", "sam"):
                for lr in SETTINGS["tuning"]["lrs"]:
                    log = of_base + sam * (optimizer == "sam") + random.normal(0, 0.03)
                    row = {"base": f"{width}-{seed}", "width": width, "seed": seed, "optimizer": optimizer, "lr": lr}
                    row |= {name: random.normal() for name in study.BESIDE}
                    row |= {
                        "basin_random": 10**log,
                        "basin_worst": random.uniform(),
                        "basin_step": random.uniform(0.5, 2),
                    }
                    checkpoints.append(row | {"forgetting": -log + 0.05 * (lr > 1e-3) + random.normal(0, 0.005)})
    for name, rows in (("bases", bases), ("checkpoints", checkpoints)):
        pandas.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def test_verdicts_find_what_was_planted_and_nothing_where_nothing_was(study, tmp_path):
    """Noise of 0.05 over 12 bases gives the slope a standard error near 0.013: 0.1 is seven of them, and 0 is none."""
    planted(study, tmp_path, slope=0.1, sam=0.1)
    said = study.conclude(tmp_path)
    first, second = (line for line in said.splitlines() if line.startswith(("W1", "W2")))
    assert first.endswith("evidence above zero")
    assert second.endswith("evidence above zero")
    assert "basin_random         -" in said
    (of_radius,) = (line for line in said.splitlines() if "basin_random " in line)
    assert "*" in of_radius
    planted(study, tmp_path, slope=0.0, sam=0.0)
    said = study.conclude(tmp_path)
    assert [line.rpartition(": ")[2] for line in said.splitlines() if line.startswith(("W1", "W2"))] == [
        "no evidence"
    ] * 2
    assert [row["p_holm"] for row in study.corrected([{"p": 0.04}, {"p": 0.01}])] == [0.04, 0.02]
    assert [row["p_holm"] for row in study.corrected([{"p": 0.03}, {"p": 0.02}])] == [
        0.04,
        0.04,
    ]  # a larger p is never corrected to less than a smaller one


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")
def test_rows_are_the_numbers_of_the_api(study, tmp_path):
    settings = SETTINGS | SETTINGS["quick"]
    settings["base"] = SETTINGS["base"] | {"lrs": [4e-3], "steps": 2}
    settings["tuning"] = SETTINGS["tuning"] | {"lrs": [2e-3], "steps": 2}
    settings["basin"] = {"drop": 0.01, "directions": 2, "examples": 2}
    study.train_tokenizer(tmp_path / "tokenizer", settings["vocabulary"])
    base = study.pretrain(tmp_path, settings, 16, 0, 4e-3)
    row = study.checkpoint_row(base, settings, (16, 0, "sam", 2e-3))
    origin, tuned = (landscape.load_checkpoint(folder, device="cpu") for folder in (base, base.parent / "sam-0.002"))
    metric, outcome = study.texts_of(base, settings)
    assert len(metric["old"].examples) == settings["metric_examples"]
    assert not {e.input_ids for e in metric["old"].examples} & {e.input_ids for e in outcome["old"].examples}
    (lost,) = landscape.measure_forgetting(origin, tuned, {"old": outcome["old"]}, resamples=99).tasks
    assert row["forgetting"] == pytest.approx(lost.forgetting, abs=1e-9)
    norm = landscape.compute_sharpness(tuned, metric["old"], metric="gradient_norm").value
    assert row["gradient_norm"] == pytest.approx(norm, rel=1e-6)
    assert 0 < row["basin_worst"] <= row["basin_random"] <= 1
    assert {"basin_step", *study.BESIDE} <= set(row)
    kept = study.kept_row(tmp_path / "rows" / "one.json", lambda: row)
    assert study.kept_row(tmp_path / "rows" / "one.json", dict) == kept  # a finished row is not made again
