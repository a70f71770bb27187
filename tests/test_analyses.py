"""The analyses run from nothing, on the public API alone, and find what theory says."""

import ast
import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

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


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")
    (folder / "settings.toml").write_text(SETTINGS)
    command = [sys.executable, str(ROOT / "analyses/invariance.py"), "--output", str(folder / "out")]
    command += ["--settings", str(folder / "settings.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before = (folder / "out/invariance.csv").read_bytes()
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
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


def test_diagonal_rescalings_leave_adaptive_metrics_and_permutations_leave_norms(table):
    _, rows = table
    adaptive = ratios(rows, "worst_case", adaptive="adaptive")
    for transformation in ("V-O, diagonal", "up-down, per unit", "Q-K, per rotary pair"):
        assert float(adaptive[transformation]["ratio"]) == pytest.approx(1, abs=1e-9)
    unit = ratios(rows, "filter_trace", normalize='"unit"')
    assert float(unit["up-down, per unit"]["ratio"]) == pytest.approx(1, abs=1e-9)
    permuted = rows["MLP units permuted", "gradient_norm", "{}"]
    assert float(permuted["ratio"]) == pytest.approx(1, abs=1e-6)


def test_what_is_not_invariant_moves(table):
    _, rows = table
    gradient = {(t, o): r for (t, m, o), r in rows.items() if m == "gradient_norm"}
    moved = [abs(float(r["ratio"]) - 1) for (t, o), r in gradient.items() if "diagonal" in t and "adaptive" not in o]
    assert max(moved) > 1e-2
    rowwise = ratios(rows, "filter_trace", normalize='"filter"')
    assert abs(float(rowwise["up-down, per unit"]["ratio"]) - 1) > 1e-3


def test_the_figure_is_drawn_and_the_table_printed(table, tmp_path):
    folder, _ = table
    done = subprocess.run(
        [sys.executable, str(ROOT / "figures/invariance.py"), str(folder), str(tmp_path / "figure")],
        capture_output=True,
        text=True,
        timeout=300,
    )
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
