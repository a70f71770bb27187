"""The report of a folder with results of every command, of real models, in a real browser.

Each test of words compares them with the numbers of the results that are in the files, read by the result's own class.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from browser import CHROMIUM, Elements, browse, told, with_script
from made_surfaces import LINE, bowl, curve, surface_of, wide_bowl
from markupsafe import escape
from typer.testing import CliRunner

from landscape import Basin, HeightGrid, Resampling, Surface, correlate, report_html, write_report
from landscape.basins.radius import Radius
from landscape.cli.app import app
from landscape.errors import InputError
from landscape.forgetting.losses import Forgetting, TaskForgetting
from landscape.instruction_vectors.changed import AccuracyChange, InstructionVectorChange, Recovery, TaskChange
from landscape.instruction_vectors.result import Estimate, InstructionVector
from landscape.plotting.basins.interactive import held_curve
from landscape.plotting.forgetting.interactive import pareto_front
from landscape.plotting.page import Cell, Section, Table, page_html
from landscape.plotting.surfaces.interactive_profiles import profile_bands
from landscape.report.chapters.correlations import _sentence
from landscape.results import Provenance
from landscape.surfaces.topology import Topology
from landscape.weights.perturbation import Fidelity

SCRIPT = "<script>alert(1)</script>"
ORIGIN = Provenance(settings={}, seed=0, checkpoint=None, data=None, device="cpu", dtype="float32", seconds=1.0)


def call(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture(scope="module")
def everything(tmp_path_factory, save_checkpoint_folder) -> Path:
    """A folder with what every command writes; one of the checkpoints is called SCRIPT."""
    work = tmp_path_factory.mktemp("work")
    records = work / "tasks.jsonl"
    lines = [json.dumps({"prompt": f"{i} times {i} is", "completion": f" {i * i}, of course."}) for i in range(28)]
    records.write_text("\n".join(lines))
    for seed, name in enumerate(("base", "adamw", "strange")):
        shutil.copytree(save_checkpoint_folder("llama", seed=seed), work / name)
    base, *tuned = (work / name for name in ("base", "adamw", "strange"))
    folder = work / "results"
    common = ("--device", "cpu", "--limit", "28", "--max-length", "24", "--quiet")
    data = ("--data", f"tasks={records}", *common)
    call("plot", *tuned, "--points", 5, "-o", folder / "plane", *data)
    call("plot", *tuned, "--points", 5, "--dim", 1, "--draws", 3, "-o", folder / "line", *data)
    metrics = ("--metric", "gradient_norm", "--metric", "average_case:samples=4")
    questions = work / "quiz.jsonl"
    asked = [{"question": f"{i} times {i} is", "choices": [f" {i * i}", " 7"], "answer": 0} for i in range(3, 9)]
    questions.write_text("\n".join(map(json.dumps, asked)))
    quiz = ("--data", f"quiz={questions}", "--device", "cpu", "--quiet")
    call("plot", *tuned, "--points", 3, "--height", "accuracy", "--topology", "-o", folder / "quiz", *quiz)
    call("basin", *tuned, "--base", base, "--directions", 6, "--drop", 0.01, "-o", folder / "basin", *data)
    call("sharpness", *tuned, *metrics, "-o", folder / "sharpness", *data)
    effort = ("--top", 2, "--rtol", 0.1, "--trace-rtol", 5, "--max-probes", 8)
    call("hessian", *tuned, *effort, "--density", "-o", folder / "hessian", *data)
    call("forgetting", base, *tuned, "--resamples", 99, "-o", folder / "forgetting", *data)
    halves = ("--old", records, "--new", records, "--metric", "gradient_norm")
    call("measure", base, *tuned, *halves, "-o", folder / "table.csv", *common)
    table = study()
    table.to_csv(folder / "study.csv", index=False)
    design = ("--groups", "base", "--factor", "optimizer")
    flatness = ("--flatness", "trace", "--flatness", "noise", "--resamples", 199)
    call("correlate", folder / "study.csv", *design, *flatness, "-o", folder / "correlate")
    (folder / "design.json").write_text(call("design", folder / "study.csv", *design, "--replications", 100, "--json"))
    for path in [*folder.rglob("*.json"), *folder.rglob("*.csv")]:
        path.write_text(path.read_text().replace("strange", SCRIPT))
    return folder


def study() -> pandas.DataFrame:
    rng = np.random.default_rng(0)
    table = pandas.DataFrame({"checkpoint": [f"run-{i}" for i in range(24)], "optimizer": ["adamw", "sam"] * 12})
    table["base"] = np.arange(24) // 4
    table["trace"] = rng.normal(size=24)
    table["noise"] = rng.normal(size=24)
    table["forgetting"] = table["trace"] + 0.1 * rng.normal(size=24)
    return table


# --- the whole page -----------------------------------------------------------------------------------------


def test_every_command_has_its_section_and_nothing_is_left_out(everything):
    report = report_html(everything)
    assert report.problems == ()
    assert report.sections == (
        "Forgetting",
        "Loss surfaces along random directions (line)",
        "Loss surfaces along random directions (plane)",
        "Loss surfaces along random directions (quiz)",
        "Capabilities along random directions",
        "Topology: minima and saddles",
        "Basins: how far a capability holds",
        "Sharpness",
        "Curvature: eigenvalues and traces",
        "Spectral density",
        "Measurements of 2 checkpoints (table.csv)",
        "Flatness against forgetting",
        "What the design of the table can show",
    )
    assert Elements(report.html).tags.count("script") == report.html.count('type="application/json"') + 2
    assert str(escape(SCRIPT)) in report.html
    assert f">{SCRIPT}" not in report.html
    assert len(report.html) < 15e6


def test_the_page_says_the_same_each_time_and_the_command_writes_it(everything, tmp_path):
    out = call("report", everything, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == report_html(everything).html
    assert SCRIPT in out  # a terminal runs no script
    document = json.loads(call("report", everything, "-o", tmp_path / "report.html", "--json"))
    assert document["output"] == str(tmp_path / "report.html")
    assert document["summary"] == list(report_html(everything).summary)


def test_numbers_of_the_tables_are_those_of_the_files(everything):
    page = report_html(everything).html
    values = {float(value) for value in re.findall(r'data-value="([^"]+)"', page)}
    for path in (everything / "forgetting").glob("forgetting*.json"):
        (task,) = Forgetting.load(path).tasks
        assert {task.forgetting, task.loss_before, task.loss_after, task.kl} <= values
    sharpness = pandas.read_csv(everything / "sharpness" / "sharpness.csv")
    assert set(sharpness["value"]) <= values
    for row in pandas.read_csv(everything / "basin" / "basin.csv").to_dict("records"):
        assert {row["center"], row["median_radius"], row["worst_radius"], row["median_in_steps"]} <= values
    for path in (everything / "quiz").glob("topology-loss-*.json"):
        assert {Topology.load(path).lowest_value, Topology.load(path).smad} <= values
    for path in (everything / "quiz").glob("surface-*.json"):
        (grid,) = Surface.load(path).heights
        assert {grid.center, grid.values.min(), grid.values.max(), np.nanmax(grid.stderr)} <= values
    table = pandas.read_csv(everything / "table.csv")
    assert set(table["forgetting"]) | set(table["distance"]) <= values


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found")
def test_browser_draws_all_plots_locks_cameras_and_sorts_tables(everything, tmp_path):
    """Rejects a plot that fails or is never drawn, a scene that turns alone, and a sort by text ("10" before "9")."""
    script = """
    setTimeout(async () => {
      const plots = [...document.querySelectorAll(".plot")];
      const until = async drawn => { for (let i = 0; i < 50 && !drawn(); i++) await pause(100); };
      let drawn = 0;
      for (const plot of plots) {
        const shown = () => plot.dataset.drawn && plot.querySelector("canvas, path") !== null;
        await until(shown);
        drawn += Boolean(shown());
      }
      told.append(`drawn ${drawn} of ${plots.length}; `);
      const section = plots.find(plot => plot.dataset.turns !== undefined).closest("section");
      const scenes = [...section.querySelectorAll(".plot[data-turns]")]; // those of another section turn apart
      await until(() => scenes.every(plot => plot.dataset.drawn));
      const eyes = () => scenes.map(plot => { const e = plot._fullLayout.scene.camera.eye; return [e.x, e.y, e.z]; });
      await Plotly.relayout(scenes[1], {"scene.camera.eye": {x: 2, y: 1, z: 0.5}});
      await pause(300);
      told.append(`eyes ${eyes().join(" ")}; `);
      scenes[0].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
      await pause(300);
      const [one, other] = eyes();
      told.append(`turned ${Math.abs(one[0] - 2) > 0.1 && String(one) === String(other)}; `);
      let sorted = 0, columns = 0;
      for (const table of document.querySelectorAll("table"))
        for (const heading of table.querySelectorAll("th:has(button)")) {
          const numbers = () => [...table.tBodies[0].rows].map(row => row.cells[heading.cellIndex].dataset.value)
            .filter(value => value !== undefined && value !== "nan").map(Number);
          if (numbers().length < 2) continue;
          const order = [...numbers()].sort((a, b) => a - b), button = heading.querySelector("button");
          button.click();
          const rises = String(numbers()) === String(order) && heading.getAttribute("aria-sort") === "ascending";
          button.click();
          const falls = String(numbers()) === String(order.reverse());
          columns += 1;
          sorted += rises && falls;
        }
      told.append(`sorted ${sorted === columns && columns > 20}; `);
      const before = getComputedStyle(document.documentElement).backgroundColor;
      document.getElementById("theme").click();
      await pause(300);
      const after = getComputedStyle(document.documentElement).backgroundColor;
      told.append(`grounds ${before} ${after}; `);
    }, 500);"""
    dom = browse(with_script(report_html(everything).html, script), tmp_path, 30_000, height=14_000)
    said = told(dom)
    assert "ERROR" not in said
    drawn, count = map(int, re.match(r"drawn (\d+) of (\d+)", said).groups())
    assert drawn == count >= 8
    assert "eyes 2,1,0.5 2,1,0.5; turned true; sorted true; grounds rgb(255, 255, 255) rgb(22, 24, 28)" in said


# --- what the summary says ----------------------------------------------------------------------------------


def forgetting_of(name: str, rise: float, low: float, high: float) -> Forgetting:
    task = TaskForgetting(
        "old", 20, 400, 2.0, 2.0 + rise, rise, (low, high), 0.5, 0.4, 0.1, (0.0, 0.2), 0.3, (0.2, 0.4)
    )
    return Forgetting(name, "base", (task,), confidence=0.95, resamples=99, provenance=ORIGIN)


def test_forgetting_is_said_where_its_interval_leaves_out_zero_alone(tmp_path):
    for name, interval in {"a": (0.3, 0.1, 0.5), "b": (0.3, -0.1, 0.7), "c": (-0.3, -0.5, -0.1)}.items():
        forgetting_of(name, *interval).save(tmp_path / f"{name}.json")
    said = "\n".join(report_html(tmp_path).summary)
    assert "a lost on old: its loss is +0.3 [+0.1, +0.5] nats" in said
    assert "b shows no change on old" in said
    assert "c got better on old" in said


def test_many_checkpoints_are_counted_and_not_listed(tmp_path):
    for index in range(9):
        forgetting_of(f"c{index}", 0.3, 0.1 - 0.04 * index, 0.5).save(tmp_path / f"{index}.json")
    assert "Of 9 checkpoints, 3 lost on old, 0 got better, and of 6 no change" in report_html(tmp_path).summary[0]


def vector_change_of(name: str, lost: Estimate, gained: Estimate, over_random: Estimate) -> InstructionVectorChange:
    sure, half = Estimate(0.9, 0.8, 1.0), AccuracyChange(0.9, 0.9 - lost.value, lost)
    recoveries = tuple(
        Recovery("few-shot", v, 0.8, gained, None if v == "random" else over_random)
        for v in ("base", "random", "other task")
    )
    task = TaskChange("plurals", sure, sure, sure, 0.9, 0.1, 0.5, 0.4, lost, half, half, recoveries)
    return InstructionVectorChange(name, "base", (task,), 0.95, 99, ORIGIN)


def test_instruction_vectors_have_maps_and_sentences_within_their_intervals(tmp_path):
    sure, effects = Estimate(0.9, 0.8, 1.0), np.random.default_rng(0).normal(size=(6, 2, 4))
    shares = dict.fromkeys(("few_shot", "zero_shot", "steered", "joint_effect", "random_effect"), sure)
    for name in ("base", SCRIPT):
        vector = InstructionVector(
            name, "plurals", ((1, 2), (0, 3)), np.ones(8), 1, effects,
            confidence=0.95, questions=9, left_out=0, provenance=ORIGIN, **shares,
        )  # fmt: skip
        vector.save(tmp_path / f"vector-{len(name)}.json")
    some, none = Estimate(0.2, 0.1, 0.3), Estimate(0.2, -0.1, 0.5)
    for name, *estimates in (
        ("a", some, some, some), ("b", some, none, some), ("c", none, some, some), ("d", some, some, none)
    ):  # fmt: skip
        vector_change_of(name, *estimates).save(tmp_path / f"{name}.json")
    page = report_html(tmp_path)
    said = "\n".join(page.summary)
    assert "a lost few-shot accuracy against base on 1 of 1 in-context tasks" in said
    assert "on 1 of these the base's vector brought back more of it than random ones" in said.split("b lost")[0]
    assert "on 0 of these the base's vector" in said.split("b lost")[1]
    assert "c lost few-shot accuracy against base on 0 of 1" in said
    assert "on 0 of these the base's vector" in said.split("d lost")[1]  # random vectors may have done as well
    assert "1.2, 0.3" in page.html
    assert SCRIPT not in page.html


def test_one_draw_is_said_to_be_no_evidence_and_several_give_the_difference(tmp_path):
    for name, f in {"a": bowl, "b": wide_bowl}.items():
        surface_of(f, name=name).save(tmp_path / f"{name}.json")
    assert "no evidence" in report_html(tmp_path).summary[0]
    for seed in range(4, 7):
        for name, f in {"a": bowl, "b": wide_bowl}.items():
            surface_of(f, name=name, seed=seed).save(tmp_path / f"{name}-{seed}.json")
    (said,) = report_html(tmp_path).summary
    assert "the surface of b curves" in said or "b shows no difference" in said
    assert re.search(r"Over \d draws on docs", said)


def with_accuracy(surface: Surface, error: float) -> Surface:
    """The surface with an accuracy beside the loss, every point of which has one standard error."""
    values = np.clip(1 - surface.loss / surface.loss.max(), 0, 1)
    center = float(values[3, 2])
    grid = HeightGrid("accuracy", "share", True, values, np.full(values.shape, error), center, error, (), 60.0)
    return dataclasses.replace(surface, heights=(grid,))


def test_heights_have_their_own_section_and_their_errors_in_words(tmp_path):
    """Rejects accuracies among the losses, and an accuracy said without its error."""
    for name, f in {"a": bowl, "b": wide_bowl}.items():
        with_accuracy(surface_of(f, name=name), 0.06).save(tmp_path / f"{name}.json")
    report = report_html(tmp_path)
    assert report.sections == ("Loss surfaces along random directions", "Capabilities along random directions")
    (said,) = [sentence for sentence in report.summary if sentence.startswith("accuracy on docs")]
    assert said.count("± 0.06") == 2
    assert "a point has a standard error of up to 0.06" in said
    losses, heights = report.html.split('<section id="section-2">')
    assert "accuracy" not in losses.split("</section>")[1]
    assert heights.split("</section>")[0].count(" data-turns ") == 2


def test_minima_are_those_of_the_grid_and_are_weighed_against_the_noise(tmp_path):
    pytest.importorskip("gudhi")
    from landscape import compute_topology

    wavy = surface_of(lambda x, y: np.cos(7 * x) + y**2, name="wavy")
    compute_topology(wavy).save(tmp_path / "loss.json")
    assert "how many of them noise has made is not known" in report_html(tmp_path).summary[0]
    found = compute_topology(wavy, noise=9.0)
    found.save(tmp_path / "loss.json")
    assert len(found.pairs) > 0
    said = report_html(tmp_path).summary[0]
    assert f"wavy {found.minima}" in said
    assert f"of the {len(found.pairs)} saddles between them, 0 are above the noise" in said


def basin_of(name: str, radii: list[float]) -> Basin:
    rays = tuple(Radius(1.0 if np.isinf(radius) else radius, radius) for radius in radii)
    return Basin(
        name, "quiz", "accuracy", "share", 0.6, 0.05, 0.1, rays, None, Radius(0.5, 0.5), 0.7, 2.0, 10.0, None,
        "filter", 0, Fidelity(1.0, 1.0), 60.0, ORIGIN,
    )  # fmt: skip


def test_basins_are_told_apart_by_their_intervals_alone(tmp_path):
    """Rejects a verdict by the medians, which differ in both cases."""
    small, large = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15], [0.12, 0.13, 0.2, 0.3, 0.4, np.inf]
    for name, radii in {"a": small, "b": large}.items():
        basin_of(name, radii).save(tmp_path / f"{name}.json")
    said = report_html(tmp_path).summary
    assert "a 0.125 [0.1, 0.15], b 0.25 [0.12, ∞]; no two of the intervals lie apart" in said[0]
    assert "left the base's basin of accuracy on quiz (drop 0.1) for 2 of 2 checkpoints" in said[1]
    basin_of("b", [9 * radius for radius in small]).save(tmp_path / "b.json")
    assert "; the intervals lie apart" in report_html(tmp_path).summary[0]


def test_of_several_basins_the_extremes_are_not_told_apart(tmp_path):
    """Three of one spread, of which two lie apart as extremes do; rejects a verdict of intervals that hold for one."""
    for name, factor in {"a": 1, "b": 1.3, "c": 1.7}.items():
        basin_of(name, [factor * r for r in (0.1, 0.11, 0.12, 0.13, 0.14, 0.15)]).save(tmp_path / f"{name}.json")
    said = report_html(tmp_path).summary[0]
    assert "c 0.212 [0.17, 0.255]" in said
    assert "apart" not in said


def test_the_curve_of_a_basin_counts_the_directions_beyond_each_step():
    radii = [0.3, 0.1, np.inf, 0.3]
    steps, shares = held_curve(radii)
    for step in (0.05, 0.2, 0.35, 0.9):
        shown = shares[steps <= step][-1] if (steps <= step).any() else 1.0
        assert shown == np.mean([radius > step for radius in radii])


def test_a_correlation_speaks_within_its_estimand():
    """Rejects a summary that says of runs tuned alike what holds of all runs together."""
    rng = np.random.default_rng(1)
    table = pandas.DataFrame({"lr": [1, 2] * 30, "base": np.arange(60) // 4})
    table["trace"] = 10 * table["lr"] + rng.normal(size=60)  # the learning rate alone links the two
    table["forgetting"] = 10 * table["lr"] + rng.normal(size=60)
    result = correlate(
        table, flatness=["trace"], factors=["lr"], groups="base", resampling=Resampling(resamples=999, seed=0)
    )
    from landscape import estimand_table

    verdicts = estimand_table(result)
    pooled, alike = (_sentence(verdicts, label, result.attrs) for label in ("pooled", "tuned alike"))
    assert pooled.startswith("Over all runs together (pooled): more forgetting goes with larger trace")
    assert alike == "Among runs that agree in lr (tuned alike): no link of trace with forgetting is shown."


# --- parts --------------------------------------------------------------------------------------------------


def test_a_band_is_students_interval_of_the_mean():
    """Against scipy's own interval, to rounding; with a normal quantile it would be 2.2 times narrower."""
    from scipy import stats

    losses = np.random.default_rng(0).normal(size=(3, 5))
    mean, half = profile_bands(losses)
    expected = [stats.ttest_1samp(column, 0).confidence_interval(0.95) for column in losses.T]
    assert np.allclose(mean - half, [ends.low for ends in expected], rtol=1e-12)
    assert np.allclose(mean + half, [ends.high for ends in expected], rtol=1e-12)
    assert np.isnan(profile_bands(np.array([[1.0, np.inf], [2.0, 1.0]]))[0]).tolist() == [False, True]


@pytest.mark.parametrize("seed", range(5))
def test_the_pareto_front_is_what_no_other_point_beats(seed):
    costs = np.random.default_rng(seed).integers(0, 6, (20, 2)).astype(float)  # with ties and repeated points
    costs[3] = np.nan
    beaten = [
        any(all(b <= a for a, b in zip(one, other, strict=True)) and any(other < one) for other in costs)
        for one in costs
    ]
    assert pareto_front(costs).tolist() == [not b and np.isfinite(c).all() for b, c in zip(beaten, costs, strict=True)]


def test_an_error_bar_ends_where_its_interval_does():
    table = Table(["x"], [[Cell("a", 1.0, 0.0, 2.0)], [Cell("b", 3.0, 2.0, 4.0)], [Cell("c")]])
    page = page_html("t", [Section("", tables=[table])])
    ends = [tuple(map(float, ends)) for ends in re.findall(r'<path d="M([\d.]+) 5H([\d.]+)', page)]
    assert ends == [(4.0, 55.0), (55.0, 106.0)]  # of 110 pixels with 4 at each end


def test_no_other_script_than_the_pages_own_would_run():
    import base64
    import hashlib

    page = page_html("t", [Section("", tables=[Table(["x"], [["y"]])])])
    allowed = re.search(r"script-src ([^;]+);", page)[1].split()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert allowed == [f"'sha256-{digest}'" for digest in digests]


# --- what cannot be shown -----------------------------------------------------------------------------------


def test_a_folder_without_results_is_refused_and_damaged_files_are_named(tmp_path, run):
    with pytest.raises(InputError, match="holds no results to show"):
        report_html(tmp_path)
    (tmp_path / "broken.json").write_text('{"format": "landscape/surface", "format_version": 1}')
    (tmp_path / "newer.json").write_text('{"format": "landscape/unheard-of", "format_version": 1}')
    surface_of(curve, LINE).save(tmp_path / "whole.json")
    problems = report_html(tmp_path).problems
    assert any("broken.json is a damaged landscape/surface file" in problem for problem in problems)
    assert any("landscape/unheard-of" in problem for problem in problems)
    assert all(f"Not shown: {problem}" in report_html(tmp_path).summary for problem in problems)
    code, _, err = run("report", tmp_path / "nothing")
    assert (code, "does not exist" in err) == (2, True)


def test_other_files_are_neither_read_nor_replaced(tmp_path):
    surface_of(curve, LINE).save(tmp_path / "surface.json")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "tokenizer.json").write_text('{"format": "landscape/surface"}')
    assert report_html(tmp_path).problems == ()
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(InputError, match="is not a report"):
        write_report(tmp_path, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    for _ in range(2):
        write_report(tmp_path, tmp_path / "report.html")


def test_surfaces_that_do_not_compare_stand_apart(tmp_path):
    first = surface_of(curve, LINE)
    first.save(tmp_path / "a.json")
    dataclasses.replace(first, name="b", axes=(np.linspace(-2, 2, 11),)).save(tmp_path / "b.json")
    report = report_html(tmp_path)
    assert len(report.sections) == 2
    assert report.problems == ()


def test_the_report_needs_no_torch_to_refuse(tmp_path):
    import subprocess

    code = "import sys; sys.argv = ['landscape', 'report', 'nothing-here']\n"
    code += "from landscape.cli import main\ntry: main()\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["2", "False"]
