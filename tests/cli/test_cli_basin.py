"""`landscape basin`, `plot --height` and `measure --metric basin` by the real commands, on tiny checkpoints."""

import json
import math
import sys

import pandas
import pytest

from landscape import Basin, Surface, compute_topology
from landscape.study.request import BASIN_OPTIONS
from landscape.surfaces.topology import Topology

CPU = ("--device", "cpu", "--quiet")


@pytest.fixture
def quiz(tmp_path):
    records = [
        {"question": f"def f{i}(x): return", "choices": [" x", " None", " x + 1"], "answer": i % 3} for i in range(8)
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path / "quiz.jsonl"


@pytest.fixture
def folders(save_checkpoint_folder):
    return [str(save_checkpoint_folder("llama", seed=seed)) for seed in (1, 2)]


def test_plot_draws_answers_beside_the_loss(run, folders, quiz, tmp_path):
    command = ("plot", *folders, "--kind", "interpolate", "--points", "5", "--data", f"quiz={quiz}")
    code, out, err = run(*command, "--height", "accuracy,choice", "--topology", "--output", "plot", *CPU)
    assert code == 0, err
    assert "Minima of the grid" in out
    assert "share of questions" in out
    surface = Surface.load(next((tmp_path / "plot").glob("surface*.json")))
    assert [grid.name for grid in surface.heights] == ["accuracy", "choice"]
    rows = {row["height"]: row for row in json.loads((tmp_path / "plot" / "summary.json").read_text())["topology"]}
    assert list(rows) == ["loss", "accuracy", "choice"]
    for height, row in rows.items():
        assert (tmp_path / "plot" / f"topology-{height}.pdf").read_bytes().startswith(b"%PDF")
        topology = Topology.load(next((tmp_path / "plot").glob(f"topology-{height}*.json")))
        assert topology == compute_topology(surface, height=height)
        assert row["minima"] == topology.minima
    code, _, err = run(*command, "--height", "accuracy,choice", "--topology", "--output", "plot", *CPU)
    assert code == 0, err  # again, from its files
    page = (tmp_path / "plot" / "surface.html").read_text()
    assert "quiz: accuracy" in page
    code, _, err = run(*command, "--height", "accuracy", "--output", "plot", *CPU)
    assert code == 2  # other heights are another run
    code, _, err = run(*command, "--height", "accuracy", "--log", "--output", "other", *CPU)
    assert code == 2
    assert "--log" in err
    code, _, err = run(*command, "--height", "acuracy", "--output", "other", *CPU)
    assert code == 2
    assert "acuracy" in err


def test_the_base_beside_what_was_tuned_from_it_has_no_step(run, folders, tmp_path):
    command = ("basin", *folders, "--base", folders[0], "--data", "builtin:code", "--limit", "2", "--max-length", "16")
    code, out, err = run(*command, "--directions", "1", "--output", "both", *CPU)
    assert code == 0, err
    assert "along its own step" in out
    steps = pandas.read_csv(tmp_path / "both/basin.csv")["radius_along_step"]
    assert math.isnan(steps[0])
    assert steps[1] > 0


def test_topology_without_its_library_is_refused_before_anything_is_measured(run, folders, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gudhi", None)
    code, _, err = run("plot", folders[0], "--data", "builtin:docs", "--topology", "--output", "plot", *CPU)
    assert (code, "pip install 'landscape-lm[topology]'" in err) == (2, True)
    assert not (tmp_path / "plot").exists()


def test_basin_writes_a_row_for_each_checkpoint_and_continues(run, folders, tmp_path):
    command = (
        "basin",
        folders[1],
        "--base",
        folders[0],
        "--data",
        "builtin:code",
        "--limit",
        "4",
        "--max-length",
        "32",
    )
    command = (*command, "--directions", "6", "--drop", "0.01", "--output", "basin", *CPU)
    code, out, err = run(*command)
    assert code == 0, err
    assert "median radius" in out
    (row,) = pandas.read_csv(tmp_path / "basin" / "basin.csv").to_dict("records")
    basin = Basin.load(next((tmp_path / "basin").glob("basin-*.json")))
    assert len(basin.radii) == 6
    assert row["median_radius"] == pytest.approx(basin.median)
    assert row["step_norm"] == pytest.approx(basin.step_norm)
    assert not math.isnan(row["radius_along_step"])
    assert run(*command)[0] == 0  # read from its file


def test_a_basin_is_a_column_of_measure(run, folders, tmp_path):
    code, _, err = run(
        "measure", *folders, "--old", "builtin:docs", "--new", "builtin:code", "--limit", "24", "--max-length", "32",
        "--metric", "basin:directions=6,drop=0.01", "--output", "table.csv", *CPU,
    )  # fmt: skip
    assert code == 0, err
    table = pandas.read_csv(tmp_path / "table.csv")
    assert {"basin_old", "basin_new", "basin_worst_old", "basin_step_old"} <= set(table.columns)
    assert 0 < table["basin_old"][0] <= 1


@pytest.mark.parametrize("option", ["height=choice", "drop=0", "directions=0", "normalize=row", "radius=1"])
def test_a_wrong_option_of_the_column_is_refused_at_once(run, option):
    code, _, err = run("measure", "a", "b", "--old", "x", "--new", "y", "--metric", f"basin:{option}")
    assert code == 2
    assert option.partition("=")[0] in err
    assert set(BASIN_OPTIONS) == {"height", "drop", "directions", "normalize"}
