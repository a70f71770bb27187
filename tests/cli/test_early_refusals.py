"""Wrong input is refused before torch is imported, in the words that were typed, and with the nearest valid name."""

import json
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import quadratic_loss

import landscape
from landscape import Run, compute_surface
from landscape.curvature import eigenvalues
from landscape.curvature.operators import memory
from landscape.errors import InputError, as_typed, nearest_path, typed_as
from landscape.sharpness.checking import check_sharpness
from landscape.sharpness.options import _LEAST, _POSITIVE, _WORDS, check_options, declared_metrics
from landscape.study import effort
from landscape.study.effort import (
    WORTH_SAYING,
    Effort,
    Estimate,
    announce,
    duration,
    effort_of_defaults,
    eigenvalues_effort,
    sharpness_effort,
)
from landscape.study.request import NORMALIZATIONS
from landscape.surfaces.options import MOST_LEVELS, MOST_POINTS
from landscape.weights import filters

# Every command with several wrong inputs, and what its sentence says. `{base}` is a checkpoint, `{records}` a file.
WRONG = {
    "plot {base} --data {folder}/tsaks.jsonl": "Did you mean '{folder}/tasks.jsonl'?",
    "plot {base}x/nosuch/more": "does not exist",
    "plot {masked}": "is a masked language model, which sees the tokens around",
    "sharpness {base} {classifier} --data {records}": "{classifier} is an adapter that makes a sequence classifier",
    "plot {base} --points 1000000": "--points 1000000 makes 1,000,000,000,000 points",
    "plot {base} --levels 1e9": "--levels 1e9 asks for too many",
    "plot {base} --seed -1": "--seed -1 must be at least 0",
    "plot {base} --kind plane": "--kind plane takes 3 checkpoints, got 1",
    "plot {base} --data {records} -o {records}": "--output {records} is a file",
    "hessian {base} --max-probes 1": "--max-probes 1 must be at least 2",
    "hessian {base} --trace-rtol 0": "--trace-rtol 0.0 must be positive",
    "hessian {base} --rtol nan": "--rtol nan must be positive",
    "hessian {base} --device gpu": "--device gpu is none of",
    "sharpness {base} --metric worst_case:rho=-1": "rho=-1 of metric 'worst_case' must be positive",
    "sharpness {base} --metric worst_case:norm=l3": "norm='l3' of metric 'worst_case' is none of l2, linf",
    "sharpness {base} --metric displacement_curvature": "give --base",
    "measure {base} {base} --old {records} --new {records} --metric surface:points=501": "for 250,000 points in all",
    "forgetting {base} {base} --data {records} --tasks {folder}/tasks.yaml": "no task file {folder}/tasks.yaml",
    "forgetting {base} {base} --data {records} --tasks arc_easy,helaswag": "no task 'helaswag'; give a name it "
    "lists, or a path that ends in .yaml. Did you mean 'hellaswag'?",
    "forgetting {base} {base} --data {records} --tasks arc_eas": "Did you mean 'arc_easy'?",  # a part of a name
    "finetune {base} --data {records} -o out --batch-size 3 --accumulate 2": "--accumulate 2 equal parts",
    "finetune {base} --data {records} -o {base}": "was not made by this command; choose another --output",
    "merge {base} {base} -o out --alpha 2": "--alpha 2.0 must be from 0 to 1",
    "merge {base} {base} -o " + "x" * 300: "x cannot be used: File name too long.",
    "correlate {records}x": "Did you mean '{records}'?",
    "correlate {table} --flatness flt": "has no column 'flt'; it has name, flat, forgetting. Did you mean 'flat'?",
    "design {table} --groups name/recip": "has no column 'recip'",
    "metrics fisher_roa": "Did you mean 'fisher_rao'?",
    "fetch smolm2": "Did you mean 'smollm2'?",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory, save_checkpoint_folder, records):
    """All wrong inputs in one fresh interpreter: exit code, message, and what had been imported after each."""
    folder = tmp_path_factory.mktemp("refusals")
    table = folder / "table.csv"
    table.write_text("name,flat,forgetting\n" + "".join(f"r{i},{i},{i * i}\n" for i in range(8)))
    masked, classifier = folder / "bert", folder / "adapter"
    for of, name, config in (
        (masked, "config.json", {"architectures": ["BertForMaskedLM"], "model_type": "bert"}),
        (classifier, "adapter_config.json", {"task_type": "SEQ_CLS", "base_model_name_or_path": "base"}),
    ):
        of.mkdir()
        (of / name).write_text(json.dumps(config))
    places = {"masked": masked, "classifier": classifier}
    places |= {"base": save_checkpoint_folder("llama"), "records": records, "folder": records.parent, "table": table}
    lines = [text.format(**places) for text in WRONG]
    script = (
        "import contextlib, io, json, sys\n"
        "import landscape.cli\n"
        f"for line in {lines!r}:\n"
        "    sys.argv, err = ['landscape', *line.split()], io.StringIO()\n"
        "    with contextlib.redirect_stderr(err):\n"
        "        try:\n            landscape.cli.main()\n"
        "        except SystemExit as stop:\n            code = stop.code\n"
        "    print(json.dumps([code, err.getvalue(), 'torch' in sys.modules or 'transformers' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    return {text: (*answer, places) for text, answer in zip(WRONG, answers, strict=True)}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_input_is_refused_in_the_words_that_were_typed_before_torch_is_imported(text, refusals):
    code, message, has_torch, places = refusals[text]
    assert code == 2, message
    assert message.startswith("landscape: ")
    assert len(message.splitlines()) == 1
    assert WRONG[text].format(**places) in message
    assert not has_torch


# --- how parameters are called ------------------------------------------------------------------------------


def test_parameters_are_called_by_what_was_typed():
    assert as_typed("rtol", 0.5) == "rtol=0.5"
    with typed_as({"rtol": "--rtol", "max_probes": "--max-probes", "offload_base": "--offload-base"}):
        assert as_typed("rtol", 0.5) == "--rtol 0.5"
        assert as_typed("offload_base", True) == "--offload-base"
        with typed_as({"rtol": "--trace-rtol"}):
            assert (as_typed("rtol"), as_typed("max_probes")) == ("--trace-rtol", "--max-probes")
        assert as_typed("rtol") == "--rtol"
        with typed_as({"rtol": "rtol"}):
            assert as_typed("rtol", "x") == "rtol='x'"
    assert as_typed("rtol") == "rtol"


def test_a_warning_names_the_option_of_its_own_measurement(run, save_checkpoint_folder, records):
    options = ("--data", records, "--device", "cpu", "--limit", 4, "--top", 1)
    loose = ("--max-matvecs", 3, "--rtol", 1e-4, "--max-probes", 4, "--trace-rtol", 1e-9)
    code, _, err = run("hessian", save_checkpoint_folder("llama"), *options, *loose, "-q", "-o", "out")
    assert code == 0, err
    assert "raise --max-probes or --trace-rtol." in err
    assert "have not converged to --rtol 0.0001 after 3 matvecs; raise --max-matvecs or --rtol." in err
    assert "max_probes" not in err


def test_the_nearest_file_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("alpaca.jsonl").touch()
    assert nearest_path("alpcaa.jsonl") == " Did you mean 'alpaca.jsonl'?"
    assert nearest_path(tmp_path / "alpcaa.jsonl") == f" Did you mean '{tmp_path / 'alpaca.jsonl'}'?"
    assert nearest_path("no/such/folder") == ""


# --- metrics, known without importing them ------------------------------------------------------------------


def test_what_the_source_of_metrics_declares_is_what_is_registered():
    declared = declared_metrics()
    assert list(declared) == list(landscape.SHARPNESS_METRICS)
    for name, metric in landscape.SHARPNESS_METRICS.items():
        assert (declared[name].options, declared[name].needs_base) == (metric.options, metric.needs_base)
    assert NORMALIZATIONS == filters.NORMALIZATIONS


def test_the_values_of_every_option_have_bounds():
    inside = dict.fromkeys(_POSITIVE, 1e-06) | dict(_LEAST)
    for name, metric in declared_metrics().items():
        for option in metric.options:
            values = _WORDS.get(option, [inside[option]] if option in inside else [])
            for value in values:
                checked = check_options(name, {option: value}, known=declared_metrics(), has_base=True)
                assert checked[option] == value
            for value in (-1, 0, math.nan, math.inf, "x", True) if option in inside else ():
                with pytest.raises(InputError, match=f"{option}="):
                    check_options(name, {option: value}, known=declared_metrics(), has_base=True)


@pytest.mark.parametrize("metric", ["worst_case", "average_case", "trace", "pac_bayes"])
def test_python_refuses_the_same_values(metric, quadratic):
    option = next(option for option in declared_metrics()[metric].options if option in (*_POSITIVE, *_LEAST))
    with pytest.raises(InputError, match=f"^{option}=-1 of metric '{metric}' must be"):
        check_sharpness(quadratic, [torch.zeros(1)], metric=metric, **{option: -1})


# --- bounds and estimates -----------------------------------------------------------------------------------


def test_a_grid_and_a_picture_have_bounds_in_python_too():
    model, data = torch.nn.Linear(2, 1), [torch.zeros(1)]
    with pytest.raises(InputError, match=r"^points=1000000 makes 1,000,000,000,000 points"):
        compute_surface(model, data, points=1_000_000, run=Run())
    side = math.isqrt(MOST_POINTS)
    assert landscape.SURFACE_KINDS["random"](points=side).counts == [side, side]
    with pytest.raises(InputError, match=rf"^points='{side},{side + 1}' makes"):
        landscape.SURFACE_KINDS["random"](points=(side, side + 1))


def test_contour_lines_have_a_bound(quadratic):
    scope = landscape.Scope(loss_fn=quadratic_loss)
    surface = compute_surface(quadratic, [torch.zeros(1)], points=3, normalize="none", scope=scope, run=Run())
    for levels in (MOST_LEVELS + 1, [float(i) for i in range(MOST_LEVELS + 1)]):
        with pytest.raises(InputError, match=r"^levels="):
            surface.plot(levels=levels)


@pytest.mark.parametrize(("large", "rtol", "vectors"), [(10**9, 0.01, 23), (1, 0.01, 6), (1, 1e-4, 23)])
def test_announced_vectors_are_those_that_the_lanczos_method_holds(monkeypatch, large, rtol, vectors):
    """Rounded up to whole vectors. 23 for a large model would announce four times what it takes."""
    held = []
    monkeypatch.setattr(memory, "LARGE", large)
    monkeypatch.setattr(effort, "LARGE", large)
    monkeypatch.setattr(eigenvalues, "require_memory", lambda operator, count, *rest, show: held.append(count))
    model = torch.nn.Linear(64, 1, bias=False)
    data = [(torch.randn(80, 64), torch.zeros(80, 1))]
    scope = landscape.Scope(loss_fn=landscape.supervised_loss(torch.nn.MSELoss()))
    landscape.hessian_eigenvalues(model, data, k=2, rtol=rtol, scope=scope)
    announced = eigenvalues_effort(2, max_matvecs=50, rtol=rtol).vectors_of(64)
    assert announced == vectors == math.ceil(held[0])


def test_efforts_add_up_and_a_long_run_is_announced(caplog):
    caplog.set_level("INFO", "landscape")
    assert sharpness_effort({"steps": 20, "restarts": 3}).gradients == 62
    assert sharpness_effort({"samples": 32}).points == 52
    assert effort_of_defaults(landscape.hessian_density).products == 4 * 64
    assert effort_of_defaults(landscape.hessian_layers, times=12).products == 100 + 12 * 50
    total = Effort(points=3, vectors=2) + Effort(points=2, products=4, vectors=7)
    assert total == Effort(points=5, products=4, vectors=7)
    assert total.seconds(loss=2.0, move=1.0) == 5 * 3 + 4 * 7 * 2
    announce([Estimate(1, total, WORTH_SAYING - 1, 10, 7, 10)])
    assert caplog.messages == []
    announce([Estimate(1, total, WORTH_SAYING / 2, 10, 7, 10), Estimate(2, total, 7200, 1000, 7, 1_000_000)])
    (message,) = caplog.messages
    assert message.startswith("3 results to measure, with at most 10 points and 8 products: at most about 2.0 hours")
    assert "7.0 MB for weights and 7 vectors as large" in message
    assert [duration(s) for s in (61, 3599, 3601, 86400 * 1.4, 86400 * 1.6)] == [
        "1.0 minutes", "60.0 minutes", "1.0 hours", "33.6 hours", "1.6 days",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_long_run_says_what_it_takes_before_its_first_point(tmp_path, save_checkpoint_folder, records):
    arguments = ["plot", save_checkpoint_folder("gpt2"), "--data", records, "--points", "499", "--device", "cpu", "-q"]
    command = [sys.executable, "-m", "landscape", *map(str, arguments), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    too_late = threading.Timer(120, process.kill)
    too_late.start()
    try:
        announced = next((line for line in process.stderr if "to measure" in line), "")
        journals = [path.read_bytes().count(b"\n") for path in (tmp_path / "out").glob(".*.journal")]
        process.send_signal(signal.SIGINT)
        process.communicate()
    finally:
        too_late.cancel()
    assert "landscape: 1 result to measure, with at most 249,002 points: at most about" in announced
    assert sum(journals) <= 20, "it is said at the start"
