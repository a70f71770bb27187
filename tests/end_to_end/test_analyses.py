"""The analyses run from nothing, on the public API alone, and find what theory says."""

import ast
import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

ROOT = Path(__file__).parents[2]

SETTINGS = """
seed = 0
strength = 3
dtype = "float64"
max_length = 24
limit = 3
[tiny]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 2
initializer_range = 0.2
steps = 5
tuning_steps = 2
[[metrics]]
metric = "gradient_norm"
[[metrics]]
metric = "gradient_norm"
adaptive = true
[[metrics]]
metric = "worst_case"
rho = 0.1
adaptive = true
steps = 1
[[metrics]]
metric = "fisher_rao"
details = ["w'Hw"]
[[metrics]]
metric = "filter_trace"
normalize = "unit"
rtol = 9.0
max_probes = 16
method = "hutchinson"
[[metrics]]
metric = "filter_trace"
normalize = "filter"
rtol = 9.0
max_probes = 16
method = "hutchinson"
[[metrics]]
metric = "displacement_curvature"
"""


@pytest.fixture(scope="session")
def run_script(forks):
    """Runs a script of the repository in a process of its own."""
    return lambda path, *arguments: forks.run(*arguments, program=ROOT / path)


@pytest.fixture(scope="module")
def table(tmp_path_factory, run_script):
    folder = tmp_path_factory.mktemp("invariance")
    (folder / "settings.toml").write_text(SETTINGS)
    command = ("analyses/invariance.py", "--output", folder / "out", "--settings", folder / "settings.toml")
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    before = (folder / "out/invariance.csv").read_bytes()
    assert run_script(*command).returncode == 0
    assert (folder / "out/invariance.csv").read_bytes() == before
    with open(folder / "out/invariance.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return folder / "out", {(r["transformation"], r["metric"], r["options"]): r for r in rows}


def ratios(rows, metric, **options):
    """Ratio by transformation, of the rows of one metric whose options contain these words."""
    return {
        transformation: row
        for (transformation, name, said), row in rows.items()
        if name == metric and all(str(word) in said for word in options.values()) and transformation != "none"
    }


@pytest.mark.slow
def test_the_function_stays_and_invariant_metrics_with_it(table):
    _, rows = table
    for metric in ("fisher_rao", "fisher_rao: w'Hw", "displacement_curvature"):
        found = ratios(rows, metric)
        assert len(found) >= 8
        for transformation, row in found.items():
            if "residual" in transformation:
                continue  # exact only up to the epsilon of RMSNorm
            # a float64 Llama still computes its norms and softmax in float32: factors are powers of two, so these
            # cancel, but for mixing and permutations, whose sums run in another order
            assert float(row["function_error"]) < 1e-5, transformation
            assert float(row["ratio"]) == pytest.approx(1, abs=1e-5), (metric, transformation)


@pytest.mark.slow
def test_diagonal_rescalings_leave_adaptive_metrics_and_permutations_leave_norms(table):
    _, rows = table
    adaptive = ratios(rows, "worst_case", adaptive="adaptive")
    for transformation in ("V-O, diagonal", "up-down, per unit", "Q-K, per rotary pair"):
        assert float(adaptive[transformation]["ratio"]) == pytest.approx(1, abs=1e-9)
    unit = ratios(rows, "filter_trace", normalize='"unit"')
    assert float(unit["up-down, per unit"]["ratio"]) == pytest.approx(1, abs=1e-9)
    permuted = rows["MLP units permuted", "gradient_norm", "{}"]
    assert float(permuted["ratio"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_what_is_not_invariant_moves(table):
    _, rows = table
    gradient = {(t, o): r for (t, m, o), r in rows.items() if m == "gradient_norm"}
    moved = [abs(float(r["ratio"]) - 1) for (t, o), r in gradient.items() if "diagonal" in t and "adaptive" not in o]
    assert max(moved) > 1e-2
    rowwise = ratios(rows, "filter_trace", normalize='"filter"')
    assert abs(float(rowwise["up-down, per unit"]["ratio"]) - 1) > 1e-3


@pytest.mark.slow
def test_the_figure_is_drawn_and_the_table_printed(table, tmp_path, run_script):
    folder, _ = table
    done = run_script("figures/invariance.py", folder, tmp_path / "figure")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert "| fisher rao | 1 |" in done.stdout


@pytest.mark.parametrize("path", [*ROOT.glob("analyses/*.py"), *ROOT.glob("figures/*.py")], ids=lambda p: p.name)
def test_studies_use_the_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("landscape."), f"{path.name} imports {node.module}"
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "landscape" or alias.name == "landscape" for alias in node.names)


# --- flatness against forgetting ----------------------------------------------------------------------------

STUDY = """
old = "builtin:docs"
new = "questions"
seed = 0
vocabulary = 300
max_length = 80
training_examples = 40
metric_examples = 4
outcome_examples = 8
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
seeds = [0]
steps = 3
batch_size = 4
rho = 0.1
[tuning]
optimizers = ["adamw", "sam"]
lrs = [1e-2]
steps = 4
batch_size = 4
rho = 0.1
keep_trajectory = 2
lora_rank = 0
lora_lr = 1e-2
[[metrics]]
column = "adaptive_average"
metric = "average_case"
adaptive = true
samples = 4
sham = true
[[metrics]]
column = "adaptive_trace"
metric = "adaptive_trace"
rtol = 9.0
max_probes = 16
[[metrics]]
column = "fisher_rao"
metric = "fisher_rao"
sham = true
invariant = true
[surface]
points = 3
span = 0.5
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory, run_script):
    folder = tmp_path_factory.mktemp("study")
    (folder / "settings.toml").write_text(STUDY)
    arguments = ("--settings", folder / "settings.toml", "--output", folder / "out", "--workers", "1")
    done = run_script("analyses/flatness_vs_forgetting.py", *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "out", arguments, done.stdout


@pytest.mark.slow
def test_a_study_has_a_row_for_each_fine_tuning_and_goes_on_to_the_same_table(study, run_script):
    folder, arguments, _ = study
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["base"], row["arm"], row["optimizer"]) for row in rows] == [
        (base, arm, optimizer)
        for base in ("adamw-0.01-0", "sam-0.01-0")
        for arm, optimizer in (("full", "adamw"), ("full", "sam"), ("half", "sam"))
    ]
    for row in rows:
        assert float(row["forgetting"]) == pytest.approx(
            float(row["old_loss"]) - float(row["old_loss_before"]), abs=1e-9
        )
    before = (folder / "table.csv").read_bytes()
    (folder / "rows/sam-0.01-0/full-sam-0.01.json").unlink()
    shutil.rmtree(folder / "checkpoints/sam-0.01-0/full-sam-0.01")
    assert run_script("analyses/flatness_vs_forgetting.py", *arguments).returncode == 0
    assert (folder / "table.csv").read_bytes() == before


@pytest.mark.slow
def test_a_symmetry_moves_no_invariant_metric_of_the_study(study):
    folder, _, _ = study
    with open(folder / "table.csv", newline="") as file:
        moved = [row for row in csv.DictReader(file) if row["sham"] == "True"]
    assert moved  # of two bases' four full runs; which ones is fixed by their names
    for row in moved:
        assert float(row["fisher_rao_sham"]) == pytest.approx(float(row["fisher_rao_old"]), rel=1e-4)  # fp32
        assert float(row["adaptive_average_sham"]) != pytest.approx(float(row["adaptive_average_old"]), rel=1e-3)


@pytest.mark.slow
def test_other_hypotheses_or_settings_are_another_study(study, tmp_path, run_script):
    folder, _, said = study
    assert "H3" in said
    (tmp_path / "other.toml").write_text(STUDY.replace("steps = 4", "steps = 5"))
    done = run_script("analyses/flatness_vs_forgetting.py", "--settings", tmp_path / "other.toml", "--output", folder)
    assert done.returncode == 1
    assert "other settings" in done.stderr
    assert "Traceback" not in done.stderr
    drawn = run_script("figures/flatness_vs_forgetting.py", folder, tmp_path / "figure")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def planted(generator, *, sam=-0.1, slower=0.0):
    """Rows of 12 bases: SAM forgets 0.1 less at equal progress; `flat` explains the rest of the forgetting."""
    rows = []
    for base in range(12):
        recipe = base % 2
        for arm, optimizer in (("full", "adamw"), ("full", "sam"), ("half", "sam")):
            for lr in (1e-3, 1e-2):
                flat = float(generator.standard_normal())
                forgotten = 1 - 0.2 * recipe + 0.05 * flat + sam * (optimizer == "sam") + 10 * lr
                end = 2.0 + slower * (optimizer == "sam")
                row = {"base": f"b{base}", "recipe": f"r{recipe}", "arm": arm, "optimizer": optimizer, "lr": lr}
                row |= {
                    "base_optimizer": ("adamw", "sam")[recipe],
                    "old_loss_before": 2.0,
                    "base_lr": 1e-3,
                    "base_seed": base // 2,
                    "sham": bool(base % 3),
                }
                row |= {"forgetting": forgotten, "new_loss": end, "log_distance": float(generator.standard_normal())}
                row |= {"path": [[0.0, 3.0], [forgotten, end]]}
                for where in ("old", "new", "base"):
                    for name in ("adaptive_trace", "adaptive_average"):
                        row[f"{name}_{where}"] = flat if where == "new" else float(generator.standard_normal())
                    for name in ("surface_curvature", "average_gradient", "mean_absolute_gradient"):
                        row[f"{name}_{where}"] = float(generator.standard_normal())
                for name in ("kl_old", "kl_new", "predicted_forgetting", "displacement_curvature", "distance"):
                    row[name] = float(generator.standard_normal())
                row |= {"random": float(generator.standard_normal()), "weight_norm": 1.0 + base}
                row["displacement_curvature_sham"] = row["displacement_curvature"]
                rows.append(row)
    return rows


@pytest.fixture(scope="module")
def hypotheses():
    sys.path.insert(0, str(ROOT / "analyses"))
    import hypotheses as module

    sys.path.pop(0)
    module.EXPLORED, module.RESAMPLES = 99, 999
    return module


TWO_METRICS = {"metrics": [{"column": "adaptive_trace"}, {"column": "adaptive_average"}]}


@pytest.mark.slow
def test_hypotheses_find_what_was_planted(hypotheses):
    found = hypotheses.test(planted(np.random.default_rng(0)), TWO_METRICS)
    for way in ("equal steps", "equal gradient evaluations", "equal new-task loss"):
        # noise of `flat`: 0.05 sqrt(2) over 24 pairs is 0.014; the bound is three of it
        assert found["H3"][way]["value"] == pytest.approx(-0.1, abs=0.045), way
    assert found["H3"]["held"]
    assert found["H2"]["held"]
    assert found["H2"]["value"] > 0
    assert found["pretraining"]["high"] < -0.1  # of -0.2, noise 0.05 sqrt(2 / 8)
    assert not found["H1"]["held"]  # nothing of the base explains anything
    assert found["checkpoints"] == 48
    assert hypotheses.in_words(found).startswith("48 checkpoints of 12 bases in 2 recipes.")


def test_a_verdict_of_the_other_way_needs_the_other_sign(hypotheses):
    """An interval on the claimed side whose p-value is too large is no finding, of either sign."""
    positive = {"value": 0.3, "low": 0.01, "high": 0.5, "held": False}
    negative = {"value": -0.3, "low": -0.5, "high": -0.01, "held": False}
    assert hypotheses.verdict(positive) == "not found"
    assert hypotheses.verdict(negative) == "went the other way"
    assert hypotheses.verdict(positive | {"held": True}) == "held"
    # H3 claims a difference below zero
    assert hypotheses.verdict({"held": False, "equal new-task loss": negative}) == "not found"
    assert hypotheses.verdict({"held": False, "equal new-task loss": positive}) == "went the other way"
    assert hypotheses.verdict(dict.fromkeys(("value", "low", "high")) | {"held": False}) == "not found"


def test_sam_that_only_learned_less_is_no_better_at_equal_loss(hypotheses):
    """Forgetting grows in proportion to progress, and SAM made half of it: less forgotten, at no better rate."""
    rows = planted(np.random.default_rng(1), sam=0.0)
    for row in rows:
        share = 0.5 if row["optimizer"] == "sam" else 1.0
        row["forgetting"], row["new_loss"] = share * 1.0, 3.0 - share
        row["path"] = [[0.0, 3.0], [row["forgetting"] + 1e-6 * row["random"], row["new_loss"]]]
    found = hypotheses.sam_against_adamw(pandas.DataFrame(rows))
    assert found["equal steps"]["value"] == pytest.approx(-0.5)
    assert found["equal new-task loss"]["value"] == pytest.approx(0, abs=1e-5)
    assert not found["held"]


# --- optimizers ---------------------------------------------------------------------------------------------

OPTIMIZERS = """
old = "builtin:docs"
new = "builtin:code"
seeds = [0, 1]
vocabulary = 300
max_length = 24
training_examples = 20
outcome_examples = 10
[shape]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 24
[base]
lr = 1e-2
steps = 2
batch_size = 4
[tuning]
lr = 1e-2
steps = 2
batch_size = 4
rho = 0.1
alpha = 0.5
rehearse_ratio = 0.2
"""


@pytest.mark.slow
def test_the_table_of_optimizers_has_the_start_and_differences_paired_by_seed(tmp_path, run_script):
    (tmp_path / "settings.toml").write_text(OPTIMIZERS)
    arguments = ("--settings", tmp_path / "settings.toml", "--output", tmp_path / "out")
    done = run_script("analyses/optimizers.py", *arguments)
    assert done.returncode == 0, done.stderr
    table = pandas.read_csv(tmp_path / "out/optimizers.csv")
    assert list(table["method"].unique())[:2] == ["start", "AdamW"]
    assert len(table) == 2 * 8
    start = table[table["method"] == "start"].set_index("seed")
    for _, row in table.iterrows():
        assert row["forgetting"] == pytest.approx(row["old_loss"] - start["old_loss"][row["seed"]], abs=1e-9)
    assert "| SAM + rehearsal |" in done.stdout
    again = run_script("analyses/optimizers.py", *arguments)
    assert again.returncode == 0
    assert again.stdout.endswith(done.stdout[done.stdout.index("| method") :])
    drawn = run_script("figures/optimizers.py", tmp_path / "out")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "out/optimizers.png").read_bytes().startswith(b"\x89PNG")
