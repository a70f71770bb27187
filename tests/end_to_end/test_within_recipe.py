"""The study within recipes: its design covers what its plan says, and its results find what was planted."""

import dataclasses
import json
import shutil
import sys
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest

import landscape

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "analyses/within_recipe.toml").read_text("utf-8"))

TINY = """
seed = 0
vocabulary = 300
metric_tokens = 200
validation_tokens = 100
outcome_examples = 10
training_examples = 40
[pairs.docs-sums]
old = "builtin:docs"
new = "sums"
max_length = 80
base_seeds = [1]
[shape]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 80
[bases]
optimizers = ["adamw", "sam"]
lrs = [1e-2]
steps = 2
batch_size = 4
rho = 0.1
[pilot]
lr = 1e-2
seed = 90
absolute = [0.05]
relative = [0.01]
wide_within = 0.02
[tuning]
lrs = [1e-3]
steps = [1, 2]
seeds = [0, 1]
batch_size = 4
alpha = 0.5
rehearsal = 0.1
[[metrics]]
column = "gradient_norm"
metric = "gradient_norm"
[surface]
planes = 2
points = 3
span = 0.5
"""


@pytest.fixture(scope="module")
def study():
    """The modules of the study: its design, its texts and its results."""
    sys.path.insert(0, str(ROOT / "analyses"))
    import within_recipe_design
    import within_recipe_results
    import within_recipe_texts

    sys.path.pop(0)
    return within_recipe_design, within_recipe_texts, within_recipe_results


def test_the_design_is_the_plans(study):
    module, _, _ = study
    bases = list(module.bases_of(SETTINGS))
    assert len(bases) == 24
    assert len({base.recipe for base in bases}) == 12
    assert len({base.name for base in bases}) == 24
    cells = Counter(cell for base in bases for cell in module.cells_of(base.recipe_number, SETTINGS))
    assert len(cells) == 45  # every learning rate, length and optimizer is measured somewhere
    assert sum(cells.values()) * 2 == 480
    for recipe in range(12):
        measured = module.cells_of(recipe, SETTINGS)
        assert len({(cell.lr, cell.steps) for cell in measured}) == len(measured) == 10
        assert {cell.optimizer for cell in measured} == set(module.OPTIMIZERS)
    halves = [list(module.measured_in(SETTINGS, half)) for half in (0, 1)]
    assert not set(halves[0]) & set(halves[1])
    for half in halves:  # the first can be read without the second: every level is in it, and cells are whole
        assert len(half) == len(set(half)) == 240
        assert Counter(cell.lr for _, cell, _ in half) == dict.fromkeys(SETTINGS["tuning"]["lrs"], 48)
        assert Counter(cell.steps for _, cell, _ in half) == dict.fromkeys(SETTINGS["tuning"]["steps"], 80)
        assert min(Counter(cell.optimizer for _, cell, _ in half).values()) >= 72
        assert set(Counter((base.recipe, cell) for base, cell, _ in half).values()) == {4}
    radii = SETTINGS["pilot"]["absolute"] + SETTINGS["pilot"]["relative"]
    assert len(radii) == 9


def test_parts_of_a_text_are_disjoint_and_large_enough(study):
    _, module, _ = study

    @dataclasses.dataclass(frozen=True)
    class Text:
        examples: tuple

        @property
        def tokens(self):
            return 10 * len(self.examples)

        def describe(self):
            return "a text"

    parts = module.parts_of(Text(tuple(range(100))), [200, 95], 40)
    assert [len(part.examples) for part in parts] == [20, 10, 40]
    assert not set(parts[0].examples) & set(parts[1].examples)
    assert not (set(parts[0].examples) | set(parts[1].examples)) & set(parts[2].examples)
    with pytest.raises(landscape.InputError, match="too short"):
        module.parts_of(Text(tuple(range(100))), [950], 40)


def runs_of(forgotten, points=6, **more):
    """Runs of one base that learned 0.1, 0.2, ... and forgot what the function says."""
    learned = np.arange(1, points + 1) / 10
    kept = [forgotten(x) for x in learned]
    return pandas.DataFrame(
        {"learned": learned, "forgetting": kept, "validation_loss": 2 - learned, "metric_old_forgetting": kept} | more
    )


def test_a_front_is_the_best_that_was_kept(study):
    """A run that another one beats in both is no member: were it one, the curve at 0.3 would be 0.9."""
    _, _, results = study
    runs = runs_of(lambda x: x**2)
    beaten = runs.iloc[[2]].assign(forgetting=0.9, metric_old_forgetting=0.9, validation_loss=1.75)
    curve = results.front(pandas.concat([runs, beaten]))
    assert curve.at(np.array([0.0, 0.3, 0.35])) == pytest.approx([0, 0.09, (0.09 + 0.16) / 2])


def test_a_difference_at_matched_learning_is_not_one_of_learning(study):
    """One method stops at less learned: over the levels that both reach, they keep the same. Means would say -0.12."""
    _, _, results = study
    first, second = (results.front(runs_of(lambda x: x**2, points)) for points in (4, 6))
    assert results.difference(first, second) == pytest.approx(0, abs=1e-12)
    worse = results.front(runs_of(lambda x: x**2 + 0.05))
    assert results.difference(worse, second) == pytest.approx(0.05)


def planted(generator):
    """Tables of 12 recipes: `sharp_old` goes with forgetting within cells, `blunt_old` only over learning rates."""
    checkpoints, runs = [], []
    for recipe in range(12):
        for base in range(2):
            name = {"pair": f"p{recipe % 3}", "recipe": f"r{recipe}", "base": f"r{recipe}-{base}"}
            name |= {"base_optimizer": ("adamw", "sam")[recipe // 3 % 2], "base_lr": recipe // 6, "base_seed": base}
            for lr in range(3):
                for _ in range(2):
                    for optimizer in ("adamw", "sam", "sam-wide"):
                        noise, learned = generator.standard_normal(2)
                        forgotten = 3 * lr + 0.5 * noise + 0.3 * learned
                        row = name | {"lr": lr, "steps": 10, "optimizer": optimizer, "learned": learned}
                        row |= {"forgetting": forgotten, "sharp_old": noise + 0.3 * generator.standard_normal()}
                        row["blunt_old"] = lr + 0.3 * generator.standard_normal()
                        for column in ("kl_old", "kl_new", "distance", "predicted_forgetting", "random"):
                            row[column] = generator.standard_normal()
                        row["displacement_curvature"] = generator.standard_normal()
                        for column in ("surface_curvature", "average_gradient", "mean_absolute_gradient"):
                            for text in ("old", "new"):
                                row |= {f"{column}_{text}": 1 + generator.random(), f"{column}_stderr_{text}": 0.01}
                        checkpoints.append(row)
            for method, optimizer in (("plain", "adamw"), ("plain", "sam"), ("plain", "sam-wide")):
                gain = 0.05 * (optimizer == "sam") * (1 + 0.1 * generator.standard_normal())
                part = runs_of(lambda x, gain=gain: x**2 - gain * x, method=method, optimizer=optimizer, rho=0.1)
                part = part.assign(lr=part.index, steps=10, tuning_seed=0, old_loss_before=3.0, new_loss_before=4.0)
                runs.append(part.assign(new_loss=4.0 - part["learned"], **name))
    return pandas.DataFrame(checkpoints), pandas.concat(runs)


@pytest.mark.slow
def test_results_find_what_was_planted(study, tmp_path):
    _, _, results = study
    checkpoints, runs = planted(np.random.default_rng(0))
    checkpoints.to_csv(tmp_path / "checkpoints.csv", index=False)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    words = results.main(tmp_path, resamples=999, replications=100)
    found = json.loads((tmp_path / "results.json").read_text())
    rows = {row["metric"]: row for row in found["P1"]["estimands"]}
    assert rows["sharp_old"]["within recipe_evidence"]
    assert not rows["blunt_old"]["within recipe_evidence"]
    assert rows["blunt_old"]["pooled_evidence"]  # which is why the pooled correlation decides nothing
    assert not rows["random"]["within recipe_evidence"]
    tuned, wide = found["P3"][:2]
    # -0.05 x over levels from 0.1 to 0.6 is -0.0175 in the mean; noise of 10% over 24 bases
    assert tuned["value"] == pytest.approx(-0.0175, abs=0.002)
    assert tuned["high"] < 0
    assert wide["value"] == pytest.approx(0, abs=1e-9)
    assert found["P3"][3]["value"] is None  # no such runs
    assert found["P4"]["learned"]["value"] == pytest.approx(0, abs=1e-9)
    assert "sharp_old" in words


@pytest.mark.slow
def test_the_study_runs_and_goes_on_where_it_was(tmp_path, forks):
    (tmp_path / "tiny.toml").write_text(TINY)
    arguments = ("--settings", tmp_path / "tiny.toml", "--output", tmp_path / "out", "--workers", "1")
    stopped = forks.run(*arguments, "--until", "0", program=ROOT / "analyses/within_recipe.py")
    assert stopped.returncode == 0, stopped.stderr
    assert not (tmp_path / "out/results.json").exists()
    done = forks.run(*arguments, program=ROOT / "analyses/within_recipe.py")
    assert done.returncode == 0, done.stderr
    runs = pandas.read_csv(tmp_path / "out/runs.csv")
    first = runs[runs["tuning_seed"] == 0]
    assert Counter(first["method"]) == {"plain": 2 * 6, "wise-ft": 2 * 4, "rehearsal": 2 * 4}
    assert (runs["forgetting"] - (runs["old_loss"] - runs["old_loss_before"])).abs().max() < 1e-9
    checkpoints = pandas.read_csv(tmp_path / "out/checkpoints.csv")
    assert {"gradient_norm_old", "gradient_norm_new", "gradient_norm_base", "surface_curvature_stderr_old"} <= set(
        checkpoints
    )
    before = (tmp_path / "out/checkpoints.csv").read_bytes()
    next((tmp_path / "out/rows/checkpoints").rglob("*.json")).unlink()
    shutil.rmtree(tmp_path / "out/checkpoints")  # rows were carried to another machine, checkpoints were not
    assert forks.run(*arguments, program=ROOT / "analyses/within_recipe.py").returncode == 0
    assert (tmp_path / "out/checkpoints.csv").read_bytes() == before
    drawn = forks.run(tmp_path / "out", tmp_path / "figure", program=ROOT / "figures/within_recipe.py")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
