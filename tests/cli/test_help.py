"""What the command line says of itself: help, version, metrics, and the nearest name where one was mistyped."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import torch
import typer
from conftest import quadratic_loss

import landscape
import landscape.results
from landscape.cli.app import COMMANDS, app
from landscape.cli.metrics import describe_metrics
from landscape.cli.options import declaring, measurement, model, statistics, surfaces, training
from landscape.errors import nearest
from landscape.study import demo
from landscape.study.request import chosen_metrics

DOCS = Path(__file__).parents[2] / "docs"

NAMES = [function.__name__.replace("_", "-") for functions in COMMANDS.values() for function in functions]


def parameters_of_commands():
    """(command, parameter) for everything that the help lists."""
    root = typer.main.get_command(app)
    return [(name, parameter) for name, command in root.commands.items() for parameter in command.params]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_help_fits_the_terminal_and_lists_every_option(run, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(name, "-h")
    assert (code, err) == (0, "")
    assert run(name, "--help")[1] == out
    assert all(len(line) <= width for line in out.splitlines())
    for command, parameter in parameters_of_commands():
        if command == name:
            assert all(option in out for option in parameter.opts if option.startswith("-"))
    assert "**" not in out
    assert "`" not in out


@pytest.mark.parametrize(
    "function", [f for functions in COMMANDS.values() for f in functions], ids=lambda f: f.__name__
)
def test_every_example_of_the_help_has_a_line_of_its_own(run, monkeypatch, function):
    """Typer joins the lines of examples to a paragraph where the paragraph before them has one line alone."""
    monkeypatch.setenv("COLUMNS", "120")
    examples = re.findall(r"^ {8}(landscape .*)$", function.__doc__, flags=re.MULTILINE)
    _, out, _ = run(function.__name__.replace("_", "-"), "--help")
    shown = [line.strip() for line in out.splitlines() if line.startswith("  ")]
    assert [example for example in examples if example not in shown] == []


def test_every_help_text_is_a_sentence_and_an_option_says_the_same_everywhere():
    differing = {"--data", "--output", "--limit", "--base", "--resamples", "--tasks"}  # they do mean something else
    texts = {}
    for command, parameter in parameters_of_commands():
        assert parameter.help, (command, parameter.name)
        assert parameter.help[0].isupper(), (command, parameter.name)
        assert parameter.help.endswith("."), (command, parameter.name)
        if parameter.opts[0].startswith("--"):
            texts.setdefault(parameter.opts[0], set()).add(parameter.help)
    assert {name for name, various in texts.items() if len(various) > 1} <= differing


def test_options_are_grouped_in_panels(run):
    _, out, _ = run("plot", "-h")
    panels = [line.split("─ ")[1].split(" ─")[0] for line in out.splitlines() if line.startswith("╭")]
    assert panels == ["Arguments", "Options", "Data", "Surface", "Model", "Output"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plot", "-h"], ["plod"]], ids=" ".join)
def test_help_does_not_wait_for_torch(arguments):
    script = (
        "import sys, landscape.cli\n"
        f"sys.argv = ['landscape', *{arguments!r}]\n"
        "try:\n    landscape.cli.main()\n"
        "except SystemExit:\n    pass\n"
        "print({'torch', 'transformers', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n"), done


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("landscape m", {"metrics", "measure", "merge"}), ("landscape plot --style ", {"paper", "talk", "notebook"})],
)
def test_the_shell_completes_commands_and_choices(typed, offered):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_LANDSCAPE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "landscape"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, timeout=60, check=False)
    assert set(done.stdout.split()) == offered, done


def test_without_a_command_the_help_is_printed(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert out.strip() == run("--help")[1].strip()


def test_version(run):
    assert run("--version") == (0, f"landscape {landscape.__version__}\n", "")


def test_choices_are_those_of_the_modules_that_take_them():
    from landscape.checkpoints import loading
    from landscape.correlation.statistics import METHODS
    from landscape.curvature.operators.opening import CURVATURES, HVPS
    from landscape.curvature.trace import WEIGHTINGS
    from landscape.study.table import FLATNESS_ON
    from landscape.training.options import OPTIMIZERS
    from landscape.weights.filters import NORMALIZATIONS

    assert get_args(surfaces.NormalizationName) == NORMALIZATIONS
    assert get_args(measurement.WeightingName) == WEIGHTINGS
    assert get_args(measurement.CurvatureName) == CURVATURES
    assert get_args(measurement.HvpName) == HVPS
    assert get_args(training.OptimizerName) == OPTIMIZERS
    assert get_args(statistics.CorrelationName) == METHODS
    assert get_args(measurement.FlatnessOnName) == tuple(FLATNESS_ON)
    assert get_args(model.DeviceMapName) == loading._DEVICE_MAPS
    assert get_args(model.DtypeName) == (*loading._DTYPES, "auto")


# --- typing errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["plod"], "Did you mean 'plot'?"),
        (["plot", "a", "--spam", "1"], "Did you mean '--span'?"),
        (["plot", "a", "--kind", "palne"], "Did you mean 'plane'?"),
        (["hessian", "a", "--dtype", "flot32"], "Did you mean 'float32'?"),
        (["hessian", "a", "--weighting", "fitler"], "Did you mean 'filter'?"),
        (["hessian", "a", "--max-products", "3"], "Did you mean '--max-probes'?"),
        (["sharpness", "a", "--metric", "worst-case"], "Did you mean 'worst_case'?"),
        (["sharpness", "a", "--metric", "worst_case:roh=1"], "Did you mean 'rho'?"),
        (["measure", "a", "b", "--old", "c", "--new", "d", "--metric", "surfaces"], "Did you mean 'surface'?"),
        (["measure", "a", "b", "--old", "c", "--new", "d", "--metric", "surface:point=9"], "Did you mean 'points'?"),
        (["metrics", "fisher"], "Did you mean 'fisher_rao'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_name_gets_the_nearest_one(run, arguments, suggestion):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("landscape: ")
    assert err.endswith(f". {suggestion}\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["xyzzy"], ["plot", "a", "--xyzzy"], ["plot", "a", "--kind", "xyzzy"]])
def test_a_name_that_resembles_nothing_gets_none(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "xyzzy" in err
    assert "Did you mean" not in err


def test_nearest():
    assert nearest("fitler", ("unit", "filter")) == " Did you mean 'filter'?"
    assert nearest("fitler", ()) == ""


# --- metrics ------------------------------------------------------------------------------------------------


OF_MEASURE = ("surface", "basin", "own_kl", "instruction_vector")  # what `landscape measure` takes beside them


def test_metrics_names_everything_that_measure_takes():
    """A name that `measure` takes and `metrics` does not know would be found by nobody."""
    with pytest.raises(landscape.InputError) as refused:
        chosen_metrics(["none such"], landscape.SHARPNESS_METRICS)
    taken = str(refused.value).partition(" none of ")[2].rstrip(".").split(", ")
    assert sorted(taken) == sorted(describe_metrics())


def test_metrics_lists_all_of_them_with_their_options(run):
    code, out, err = run("metrics")
    assert (code, err) == (0, "")
    for name, metric in landscape.SHARPNESS_METRICS.items():
        assert f"\n{name}\n" in f"\n{out}"
        for option, default in metric.options.items():
            assert f"{option}={default}" in out
    for name in OF_MEASURE:
        assert f"\n{name}\n" in out


def test_metrics_explains_one_in_full(run):
    code, out, _ = run("metrics", "worst_case")
    assert code == 0
    assert "Projected gradient ascent" in out  # from its docstring
    assert landscape.SHARPNESS_METRICS["worst_case"].invariance in out
    assert "average_case" not in out


def test_metrics_as_json(run):
    listed = json.loads(run("metrics", "--json")[1])["metrics"]
    assert [metric["name"] for metric in listed] == [*landscape.SHARPNESS_METRICS, *OF_MEASURE]
    one = json.loads(run("metrics", "worst_case", "--json")[1])
    assert one in listed
    assert one["options"] == landscape.SHARPNESS_METRICS["worst_case"].options
    assert {"description", "formula", "cost", "invariance", "source", "needs_base"} <= set(one)


@pytest.mark.parametrize("command", ["sharpness", "measure"])
def test_metric_help_asks_for_no_checkpoint(run, command):
    assert run(command, "--metric", "help")[:2] == run("metrics")[:2]


# --- JSON ---------------------------------------------------------------------------------------------------


def test_finetune_and_merge_print_one_json_document(run, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    training = ("--data", records, "--steps", 1, "--batch-size", 2, "--device", "cpu", "-q")
    code, out, err = run("finetune", base, *training, "-o", "tuned", "--json")
    assert code == 0, err
    assert json.loads(out) == {"output": "tuned", **json.loads(open("tuned/landscape.json").read())}
    assert "wrote tuned" in err
    code, out, err = run("merge", base, "tuned", "-o", "merged", "--json")
    assert code == 0, err
    assert json.loads(out) == {"output": "merged", **json.loads(open("merged/landscape.json").read())}
    assert run("merge", base, "tuned", "-o", "merged")[1] == ""


def test_demo_prints_one_json_document_and_ends_with_the_page(run, monkeypatch, quadratic):
    losses = {"docs": 1.5, "code": 2.5}
    rows = [
        demo._row("base", losses, 0.0, None, {}),
        demo._row("sam", losses, 0.5, (0.25, 0.75), {("sam", "docs"): 2.0}),
    ]

    def run_demo(folder, *, seed, progress):
        print("1. A tiny Llama")
        scope = landscape.Scope(loss_fn=quadratic_loss)
        surface = landscape.compute_surface(quadratic, [torch.zeros(1)], dim=1, points=3, scope=scope)
        folder.mkdir(exist_ok=True)
        surface.save(folder / "surface.json")
        return rows

    monkeypatch.setattr("landscape.study.demo.run_demo", run_demo)
    code, out, err = run("demo", "-o", "out", "--json")
    assert code == 0
    page = str(Path("out", "report.html"))
    assert json.loads(out) == {"output": "out", "report": page, "rows": rows}
    jsonschema.validate(json.loads(out), json.loads((DOCS / "schemas" / "demo.json").read_text(encoding="utf-8")))
    assert "1. A tiny Llama" in err
    assert "AdamW and with SAM</h1>" in Path(page).read_text(encoding="utf-8")
    out = run("demo", "-o", "out")[1].splitlines()
    assert (out[0], out[-1].strip()) == ("1. A tiny Llama", page)


# --- glossary -----------------------------------------------------------------------------------------------

GLOSSARY = (DOCS / "glossary.md").read_text(encoding="utf-8")


def test_the_glossary_names_options_arguments_and_fields_that_exist():
    known = {option for _, parameter in parameters_of_commands() for option in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)`", GLOSSARY)) <= known
    for function, argument in re.findall(r"`(\w+)\((\w+)=\)`", GLOSSARY):
        assert argument in inspect.signature(getattr(landscape, function)).parameters, (function, argument)
    for name, field in re.findall(r"`(\w+)\.(\w+)`", GLOSSARY):
        owner = landscape.results.Provenance if name == "Provenance" else getattr(landscape, name)
        assert field in owner.__dataclass_fields__ or hasattr(owner, field), (name, field)


def test_every_option_that_carries_a_concept_of_measurement_is_in_the_glossary():
    measured = (declaring.MEASUREMENT, declaring.SURFACE)
    missing = {
        option
        for _, parameter in parameters_of_commands()
        if parameter.rich_help_panel in measured
        for option in parameter.opts
        if f"`{option}`" not in GLOSSARY
    }
    plain = {"--dim", "--log", "--levels", "--per-layer", "--check", "--normalize-logits"}  # the help says it all
    assert missing <= plain
