"""The one runner: what is finished stays, what is wrong is said first, and two runs give the same."""

import dataclasses
import json
import shutil
import weakref
from pathlib import Path

import pytest
from conftest import build_model

from landscape import InputError, LoadOptions, MeasurementWarning, hessian_trace, load_checkpoint, load_data
from landscape.data.questions import load_questions
from landscape.results import Provenance, digest_of
from landscape.sharpness import SHARPNESS_METRICS
from landscape.sharpness.checking import check_sharpness
from landscape.study import measurements
from landscape.study.comparison import open_comparison, with_questions
from landscape.study.halves import disjoint_halves
from landscape.study.measurements import Distance
from landscape.study.runner import Cell, Task, cells_against_base, cells_of_all, run_cells, run_tasks
from landscape.study.table import measure_checkpoints

CPU = LoadOptions(device="cpu")


@pytest.fixture
def comparison(save_checkpoint_folder, records):
    """Three checkpoints on one data set."""
    folders = [str(save_checkpoint_folder("llama", seed=seed)) for seed in (0, 1, 2)]
    return open_comparison(folders, [str(records)], load_options=CPU)


def test_default_data_are_read_as_the_checkpoint_recorded_and_questions_at_the_length_of_the_caller(
    save_checkpoint_folder, tmp_path
):
    """Texts are cut at the recorded length. A question that is longer would be refused at it, and is not."""
    question = {"question": "which?", "choices": ["one", "fox " * 20, "three"], "answer": 0}
    asked = tmp_path / "questions.jsonl"
    asked.write_text("".join(json.dumps({**question, "question": f"which? {index}"}) + "\n" for index in range(6)))
    # a copy: other tests share the folder
    folder = Path(shutil.copytree(save_checkpoint_folder("llama", seed=0), tmp_path / "llama"))
    recorded = {"source": str(asked), "limit": 4, "seed": 3, "max_length": 24}
    (folder / "landscape.json").write_text(json.dumps({"evaluated_on": recorded}))
    with pytest.warns(MeasurementWarning, match="was evaluated on"):
        opened = open_comparison([str(folder)], load_options=CPU)
    tokenizer = load_checkpoint(folder, device="cpu").tokenizer
    (tokens,) = opened.data.values()
    assert tokens.digest == load_data(asked, tokenizer, max_length=24, limit=4, seed=3).digest
    (questions,) = with_questions(opened).data.values()
    assert questions.digest == load_questions(asked, tokenizer, limit=4, seed=3).digest
    with pytest.raises(InputError, match="max_length=24 cannot hold"):
        load_questions(asked, tokenizer, max_length=24, limit=4, seed=3)


class Recorder:
    """A task's function that notes what it is called with; its numbers are those of its calls."""

    def __init__(self, failing=()):
        self.calls, self.failing = [], failing

    def __call__(self, models, tokens, journal):
        self.calls.append(tuple(model.name for model in models))
        if len(self.calls) in self.failing:
            raise InputError("this one cannot be measured.")
        digest = None if tokens is None else tokens.digest
        checkpoints = [model.describe() for model in models]
        described = checkpoints[0] if len(checkpoints) == 1 else dict(zip("abc", checkpoints, strict=False))
        provenance = Provenance({}, None, described, {"digest": digest}, "cpu", "float32", 0.0)
        return Distance(models[-1].name, models[0].name, float(len(self.calls)), 1.0, provenance)

    def task(self, **options):
        return Task("recorded", Distance, self, **options)


def test_results_come_from_memory_and_then_from_files_and_are_equal(comparison, tmp_path):
    record = Recorder()
    first = run_tasks(comparison, tmp_path, [record.task()])
    assert len(record.calls) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"recorded-llama_{i}.json" for i in (0, 1, 2)]
    again = run_tasks(comparison, tmp_path, [record.task()])
    assert len(record.calls) == 3
    assert again == first
    assert list(first["recorded"]) == [(name, "tasks") for name in comparison.names]


def test_what_is_finished_stays_and_the_next_run_continues(comparison, tmp_path):
    record = Recorder(failing=[3])
    with pytest.raises(InputError, match="cannot be measured"):
        run_tasks(comparison, tmp_path, [record.task()])
    assert len(list(tmp_path.glob("*.json"))) == 2
    results = run_tasks(comparison, tmp_path, [record.task()])
    assert record.calls[3:] == [("llama-2",)]
    assert [result.distance for result in results["recorded"].values()] == [1.0, 2.0, 4.0]


def test_every_checkpoint_is_loaded_and_checked_before_the_first_measurement(comparison, tmp_path):
    record, checked = Recorder(), []

    def check(models, tokens):
        checked.append((models[0].name, len(record.calls)))
        if models[0].name == "llama-2":
            raise InputError("the last one is wrong.")

    with pytest.raises(InputError, match="the last one"):
        run_tasks(comparison, tmp_path, [record.task(check=check)])
    assert record.calls == []
    assert not list(tmp_path.iterdir())
    run_tasks(comparison, tmp_path, [record.task(check=lambda models, tokens: checked.append((models[0].name, 0)))])
    assert {name for name, _ in checked} == set(comparison.names)
    assert all(calls == 0 for _, calls in checked)


def test_a_checkpoint_that_cannot_be_loaded_is_said_first(comparison, tmp_path, monkeypatch):
    record, load = Recorder(), type(comparison).load

    def fail_at_last(self, index):
        if index == 2:
            raise InputError("a damaged file.")
        return load(self, index)

    monkeypatch.setattr(type(comparison), "load", fail_at_last)
    with pytest.raises(InputError, match="damaged"):
        run_tasks(comparison, tmp_path, [record.task()])
    assert record.calls == []


def test_memory_holds_one_group_of_models_at_a_time(comparison, tmp_path, monkeypatch):
    alive, load, most = weakref.WeakSet(), type(comparison).load, []

    def counted(self, index):
        checkpoint = load(self, index)
        alive.add(checkpoint.model)
        most.append(len(alive))
        return checkpoint

    monkeypatch.setattr(type(comparison), "load", counted)
    run_tasks(comparison, tmp_path / "each", [Recorder().task()])
    assert max(most) == 1
    loads = len(most)
    assert loads == 2 + 3  # those of the check, whose last is the first that is measured, and one for each other
    record = Recorder()
    list(run_cells(comparison, cells_of_all(comparison, tmp_path / "all", record.task(), range(3))))
    assert record.calls == [comparison.names]
    assert max(most) == 3
    assert len(most) == loads + 3


def test_the_base_is_loaded_once_for_all_that_need_it(comparison, tmp_path, monkeypatch):
    loaded, load = [], type(comparison).load
    monkeypatch.setattr(type(comparison), "load", lambda self, index: loaded.append(index) or load(self, index))
    record = Recorder()
    cells = cells_against_base(comparison, tmp_path, record.task())
    results = dict(run_cells(comparison, [dataclasses.replace(cell, tokens=None, check_origin=None) for cell in cells]))
    assert record.calls == [("llama-0", "llama-1"), ("llama-0", "llama-2")]
    assert loaded.count(0) == 1
    assert len(results) == 2


def test_a_result_of_something_else_is_refused(comparison, tmp_path):
    run_tasks(comparison, tmp_path, [Recorder().task()])
    (tmp_path / "recorded-llama_0.json").rename(tmp_path / "kept")
    (tmp_path / "recorded-llama_1.json").rename(tmp_path / "recorded-llama_0.json")
    with pytest.raises(InputError, match=r"recorded-llama_0.json is not a result of this run \(checkpoint differ"):
        run_tasks(comparison, tmp_path, [Recorder().task()])
    (tmp_path / "kept").rename(tmp_path / "recorded-llama_0.json")
    with pytest.raises(InputError, match=r"\(grid differ"):
        run_tasks(comparison, tmp_path, [Recorder().task(differing=lambda result, digests: ["grid"])])


def test_cells_of_one_file_share_its_result(comparison, tmp_path):
    record = Recorder()
    cells = [Cell(record.task(), (index,), "", None, tmp_path / "one.json") for index in (0, 1)]
    results = dict(run_cells(comparison, cells))
    assert record.calls == [("llama-0",)]
    assert results[cells[0]] is results[cells[1]]
    results = dict(run_cells(comparison, cells))
    assert len(record.calls) == 1
    assert results[cells[0]] == results[cells[1]]


# --- the table of `measure` ---------------------------------------------------------------------------------


@pytest.fixture
def tuned(save_checkpoint_folder, tmp_path):
    """Arguments of `measure_checkpoints`: a base, two others, and data with more than ten examples in each half."""
    texts = [f"example {index} says {'abcdefghij'[index % 10] * (1 + index % 7)}" for index in range(24)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    base, *checkpoints = (save_checkpoint_folder("llama", seed=seed) for seed in (0, 1, 2))
    return base, checkpoints, str(source), str(source), tmp_path / "t.csv"


def test_an_error_in_the_fifth_cell_leaves_four_files_and_the_next_run_continues(tuned, monkeypatch):
    options = {"metrics": ["gradient_norm", ("surface", {"dim": 1, "points": 3})], "load_options": CPU}
    cells = tuned[-1].with_name("t.csv.cells")

    def full(*_, **__):
        raise InputError("one example does not fit in memory.")

    with monkeypatch.context() as patched:
        patched.setattr(measurements, "compute_surface", full)
        with pytest.raises(InputError, match="does not fit"):
            measure_checkpoints(*tuned, **options)
    stamps = {path: path.stat().st_mtime_ns for path in cells.glob("[!.]*-*.json")}
    assert sorted(path.name.rsplit("-", 1)[0] for path in stamps) == [
        "distance",
        "forgetting-new",
        "forgetting-old",
        f"gradient_norm-{digest_of({'adaptive': False})[:8]}-old",
    ]
    measure_checkpoints(*tuned, **options)
    after = {path: path.stat().st_mtime_ns for path in cells.glob("[!.]*-*.json")}
    assert len(after) == 2 * 7
    assert stamps.items() <= after.items()


def test_the_table_is_the_same_in_the_run_that_measured_and_in_the_next(tuned):
    options = {"metrics": ["gradient_norm", ("trace", {"rtol": 100.0, "max_probes": 8})], "load_options": CPU}
    first = measure_checkpoints(*tuned, **options)
    written = tuned[-1].read_bytes()
    again = measure_checkpoints(*tuned, **options)
    assert first.attrs["details"] == again.attrs["details"]
    assert first.to_csv() == again.to_csv()
    assert (first.dtypes == again.dtypes).all()
    assert tuned[-1].read_bytes() == written


WRONG = [
    ("worst_case", {"rho": -1.0}),
    ("worst_case", {"norm": "l3"}),
    ("worst_case", {"m": 0}),
    ("average_case", {"samples": 1}),
    ("average_case", {"normalize": "row"}),
    ("trace", {"rtol": 0.0}),
    ("trace", {"method": "guess"}),
    ("filter_trace", {"normalize": "row"}),
    ("top_eigenvalue", {"rtol": -1.0}),
    ("top_eigenvalue", {"curvature": "fisher"}),
    ("relative_flatness", {"layer": "absent"}),
    ("critical", {"tolerance": 0.0}),
    ("budget_radius", {"direction": "up"}),
]


@pytest.mark.parametrize(("metric", "options"), WRONG, ids=lambda value: str(value))
def test_wrong_options_are_found_before_the_first_measurement(tuned, metric, options):
    with pytest.raises(InputError):
        measure_checkpoints(*tuned, metrics=["gradient_norm", (metric, options)], load_options=CPU)
    assert not tuned[-1].with_name("t.csv.cells").exists()


def test_right_options_pass_and_nothing_is_evaluated(save_checkpoint_folder, comparison):
    base, model = (load_checkpoint(save_checkpoint_folder("llama", seed=seed), device="cpu") for seed in (0, 1))
    calls = []
    handles = [c.model.register_forward_hook(lambda *_: calls.append(1)) for c in (base, model)]
    for metric in SHARPNESS_METRICS:
        check_sharpness(model, next(iter(comparison.data.values())), metric=metric, base=base)
    for handle in handles:
        handle.remove()
    assert not calls


def test_models_are_those_of_the_same_base(tuned):
    narrow = tuned[-1].with_name("narrow")
    build_model("llama", intermediate_size=40).save_pretrained(narrow)
    load_checkpoint(tuned[0], device="cpu").tokenizer.save_pretrained(narrow)
    base, (one, _), *rest = tuned
    with pytest.raises(InputError, match="is no base of"):
        measure_checkpoints(base, [one, narrow], *rest, metrics=["gradient_norm"], load_options=CPU)
    assert not tuned[-1].with_name("t.csv.cells").exists()


def test_traces_that_an_earlier_version_kept_are_read(tuned):
    _, checkpoints, source, _, output = tuned
    options = {"metrics": [("trace", {"rtol": 100.0, "max_probes": 8})], "flatness_on": "old", "load_options": CPU}
    first = measure_checkpoints(*tuned, **options)
    for folder in checkpoints:
        checkpoint = load_checkpoint(folder, device="cpu")
        half, _ = disjoint_halves(load_data(source, checkpoint.tokenizer, max_length=128))
        (cell,) = output.with_name("t.csv.cells").glob(f"trace-*{checkpoint.digest}.json")
        cell.unlink()
        dataclasses.replace(hessian_trace(checkpoint, half, rtol=100.0, max_probes=8), data="old").save(cell)
        assert json.loads(cell.read_text())["format"] == "landscape/trace"
    again = measure_checkpoints(*tuned, **options)
    assert first.to_csv() == again.to_csv()
    timeless = [[{**row, "seconds": 0} for row in table.attrs["details"]] for table in (first, again)]
    assert timeless[0] == timeless[1]


def test_the_command_refuses_a_forgetting_of_other_data(save_checkpoint_folder, records, run, tmp_path):
    base, one, two = (save_checkpoint_folder("llama", seed=seed) for seed in (0, 1, 2))
    options = ("--data", records, "--device", "cpu", "-q", "--resamples", 99, "-o", tmp_path / "out")
    assert run("forgetting", base, one, two, *options)[0] == 0
    kept = tmp_path / "out" / "forgetting-llama_1.json"
    content = json.loads(kept.read_text())
    content["provenance"]["data"]["tasks"]["digest"] = "another"
    kept.write_text(json.dumps(content))
    code, _, err = run("forgetting", base, one, two, *options)
    assert code == 2
    assert "is not a result of this run (data differ)" in err
