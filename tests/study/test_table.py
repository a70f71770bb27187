"""`landscape measure` and `measure_checkpoints`: the numbers are the API's, and nothing is lost."""

import csv
import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from conftest import TEXTS, build_model
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from landscape import (
    DataOptions,
    InputError,
    LoadOptions,
    MeasurementWarning,
    Optimization,
    Resampling,
    compute_sharpness,
    compute_surface,
    correlate,
    finetune,
    hessian_trace,
    load_checkpoint,
    load_data,
    measure_forgetting,
    own_samples,
)
from landscape.data.tokens import Example, TokenData
from landscape.objective.scope import Run
from landscape.sharpness import SHARPNESS_METRICS
from landscape.study.halves import disjoint_halves
from landscape.study.table import details_path, measure_checkpoints

METRICS = (
    ("worst_case", {"steps": 1, "rho": 0.1}),
    ("worst_case", {"steps": 1, "adaptive": True, "rho": 0.5}),
    ("average_case", {"samples": 8}),
    "gradient_norm",
    ("trace", {"rtol": 100.0, "max_probes": 16}),
    "displacement_curvature",
    ("surface", {"dim": 1, "points": 5, "span": 0.5}),
)
FAST = ("gradient_norm", ("surface", {"dim": 1, "points": 3}))
FAST_OPTIONS = ("--metric", "gradient_norm", "--metric", "surface:dim=1,points=3", "--device", "cpu", "--quiet")
CPU = LoadOptions(device="cpu")
TUNING = Optimization(steps=3, lr=3e-3, batch_size=4)
READING = {"data_options": DataOptions(max_length=64), "load_options": CPU, "progress": False}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Old and new data with more than ten distinct examples in each half."""
    folder = tmp_path_factory.mktemp("sources")
    for name, start in (("old", 0), ("new", 30)):
        texts = [text[:start] + text[start + shift :] for text in TEXTS[:6] for shift in (1, 4, 9, 14)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder / "old.jsonl"), str(folder / "new.jsonl")


@pytest.fixture(scope="module")
def study(tmp_path_factory, save_checkpoint_folder, sources):
    """A base, a checkpoint tuned with SAM, a LoRA adapter, and a copy of weights that says nothing of itself."""
    folder = tmp_path_factory.mktemp("study")
    base = save_checkpoint_folder("llama", seed=1)
    sam, lora = replace(TUNING, optimizer="sam", rho=0.02), replace(TUNING, lora=2)
    finetune(base, sources[1], folder / "sam", optimization=sam, seed=5, **READING)
    finetune(base, sources[1], folder / "lora", optimization=lora, **READING)
    silent = build_model("llama", seed=1)
    with torch.no_grad():
        silent.lm_head.weight.mul_(1.05)
    silent.save_pretrained(folder / "silent")
    load_checkpoint(base, device="cpu").tokenizer.save_pretrained(folder / "silent")
    return base, folder / "sam", folder / "lora", folder / "silent"


@pytest.fixture(scope="module")
def table(study, sources, tmp_path_factory):
    """The table of all metrics, and the file that holds it."""
    base, *checkpoints = study
    output = tmp_path_factory.mktemp("table") / "t.csv"
    return measure_checkpoints(base, checkpoints, *sources, output, metrics=METRICS, load_options=CPU), output


def test_kl_on_own_samples_is_that_of_the_api_where_data_have_prompts(study, sources, tmp_path):
    """On the second half, and sampled by the base: KL on the given completions differs by more than the tolerance."""
    base, sam, *_ = study
    starts = [(text, start) for text in TEXTS[:6] for start in (0, 3, 6, 9)]
    records = [{"prompt": text[start : start + 20], "completion": text[start + 20 :]} for text, start in starts]
    chats = tmp_path / "prompts.jsonl"
    chats.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = ["gradient_norm", ("own_kl", {"max_new_tokens": 6})]
    table = measure_checkpoints(base, [sam], sources[0], str(chats), tmp_path / "t.csv", metrics=asked, **READING)
    origin, tuned = (load_checkpoint(path, device="cpu") for path in (base, sam))
    _, second = disjoint_halves(load_data(str(chats), origin.tokenizer, max_length=64))
    (expected,) = measure_forgetting(origin, tuned, {"new": own_samples(origin, second, max_new_tokens=6)}).tasks
    assert table["own_kl_new"][0] == pytest.approx(expected.kl, rel=1e-6)  # the same sums, in another order at most
    assert abs(table["kl_new"][0] - expected.kl) > 1e-3 * expected.kl
    assert not {"own_kl_old", "own_kl", "loss_after_own_kl_new"} & set(table)
    (detail,) = (row for row in table.attrs["details"] if row["column"] == "own_kl_new")
    assert detail["low"] <= expected.kl <= detail["high"]
    assert detail["tokens"] == expected.tokens
    with pytest.raises(InputError, match="neither the old nor the new data have records with a prompt"):
        measure_checkpoints(base, [sam], *sources, tmp_path / "no.csv", metrics=asked, **READING)
    asked = [("own_kl", {"max_new_tokens": 0})]
    with pytest.raises(InputError, match="max_new_tokens=0 of metric 'own_kl' must be a whole number"):
        measure_checkpoints(base, [sam], *sources, tmp_path / "no.csv", metrics=asked, **READING)
    assert not (tmp_path / "no.csv").exists()


def test_numbers_are_those_of_the_api(study, sources, table):
    (base, *checkpoints), (found, _) = study, table
    assert list(found["name"]) == ["sam", "lora", "silent"]
    origin = load_checkpoint(base, device="cpu")
    halves = [disjoint_halves(load_data(source, origin.tokenizer, max_length=128)) for source in sources]
    for (_, row), folder in zip(found.iterrows(), checkpoints, strict=True):
        tuned = load_checkpoint(folder, device="cpu")
        weights, before = dict(tuned.model.named_parameters()), dict(origin.model.named_parameters())
        distance = sum(float((w - before[n]).detach().double().square().sum()) for n, w in weights.items()) ** 0.5
        expected = {
            "distance": distance,
            "weight_norm": sum(float(w.detach().double().square().sum()) for w in weights.values()) ** 0.5,
        }
        for on, (first, second) in zip(("old", "new"), halves, strict=True):
            expected |= {
                f"worst_case-rho_0.1-adaptive_false_{on}": compute_sharpness(tuned, first, steps=1, rho=0.1).value,
                f"worst_case-rho_0.5-adaptive_true_{on}": compute_sharpness(
                    tuned, first, steps=1, rho=0.5, adaptive=True
                ).value,
                f"average_case_{on}": compute_sharpness(tuned, first, metric="average_case", samples=8).value,
                f"gradient_norm_{on}": compute_sharpness(tuned, first, metric="gradient_norm").value,
                f"trace_{on}": hessian_trace(tuned, first, rtol=100.0, max_probes=16).value,
            }
            taylor = compute_sharpness(tuned, first, metric="displacement_curvature", base=origin)
            expected[f"displacement_curvature_{on}"] = taylor.value
            expected[f"predicted_rise_{on}"] = taylor.details["predicted_rise"]
            surface = compute_surface(tuned, first, dim=1, points=5, span=0.5, run=Run(progress=False)).metrics()
            expected[f"surface_curvature_{on}"] = surface.surface_curvature
            expected[f"surface_average_gradient_{on}"] = surface.average_gradient
            (task,) = measure_forgetting(origin, tuned, {on: second}, resamples=99).tasks
            expected |= {
                f"loss_before_{on}": task.loss_before,
                f"loss_after_{on}": task.loss_after,
                f"accuracy_loss_{on}": task.accuracy_loss,
                f"kl_{on}": task.kl,
            }
            if on == "old":
                expected["forgetting"] = task.forgetting
        for column, value in expected.items():
            # the same float32 sums in the same order, through the text of a file
            assert row[column] == pytest.approx(value, rel=1e-6, abs=1e-9), (row["name"], column)
    sam, lora, silent = (row for _, row in found.iterrows())
    assert (sam["optimizer"], sam["rho"], sam["lr"], sam["seed"], sam["steps"]) == ("sam", 0.02, 3e-3, 5, 3)
    assert sam["base_digest"] == lora["base_digest"] == origin.digest
    assert lora["optimizer"] == "adamw"
    assert pandas.isna(lora["rho"])
    assert all(pandas.isna(silent[name]) for name in ("base_digest", "optimizer", "rho", "lr", "seed", "steps"))
    assert set(found["base"]) == {"llama-1"}
    assert sam["digest"] == load_checkpoint(study[1], device="cpu").digest


def test_the_table_is_for_correlate_and_details_are_apart(table):
    found, output = table
    assert not [name for name in found.columns if any(w in name for w in ("stderr", "converged", "tokens", "seconds"))]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["trace_old"]) for row in rows] == list(found["trace_old"])
    assert [row["seed"] for row in rows] == ["5", "0", ""]
    metrics = set(correlate(output, flatness=["trace_old", "distance"], resampling=Resampling(99))["metric"])
    assert metrics == {"trace_old", "distance"}
    details = pandas.read_csv(details_path(output))
    trace = details[(details["column"] == "trace_new") & (details["checkpoint"] == "lora")].iloc[0]
    assert trace["stderr"] > 0
    assert trace["low"] < trace["value"] < trace["high"]
    assert trace["options"].startswith("rtol=100.0 max_probes=16")
    assert set(details["column"]) == {name for name in found.columns if name in set(details["column"])}
    numeric = [c for c in found.columns if pandas.api.types.is_numeric_dtype(found[c])]
    assert set(numeric) - set(details["column"]) == {"rho", "lr", "seed", "steps"}


def test_halves_share_no_example_and_depend_on_content_only():
    examples = [Example((1, 2, 3 + i), (-100, 2, 3 + i)) for i in range(21)]
    doubled = TokenData("s", tuple(examples + examples[:5]))
    one, other = disjoint_halves(doubled)
    assert not set(one.examples) & set(other.examples)
    assert sorted([*one.examples, *other.examples], key=repr) == sorted(doubled.examples, key=repr)
    assert (len(set(one.examples)), len(set(other.examples))) == (11, 10)
    again, _ = disjoint_halves(TokenData("elsewhere", tuple(reversed(doubled.examples))))
    assert set(again.examples) == set(one.examples)
    with pytest.raises(InputError, match="one distinct example"):
        disjoint_halves(TokenData("s", (examples[0],) * 3))


def test_flatness_and_outcomes_are_measured_on_the_two_halves(study, sources, tmp_path):
    base, sam, *_ = study
    measure_checkpoints(base, [sam], *sources, tmp_path / "t.csv", metrics=FAST, flatness_on="new", load_options=CPU)
    tokenizer = load_checkpoint(base, device="cpu").tokenizer
    old, new = (disjoint_halves(load_data(source, tokenizer, max_length=128)) for source in sources)
    cells = {path.name.rsplit("-", 1)[0]: path for path in (tmp_path / "t.csv.cells").glob("*-*.json")}
    said = {name: json.loads(path.read_text())["provenance"]["data"] for name, path in cells.items()}
    flat = [name for name in said if name.startswith(("gradient_norm", "surface"))]
    assert len(flat) == 2
    assert all(said[name]["digest"] == new[0].digest for name in flat)
    assert said["forgetting-old"]["old"]["digest"] == old[1].digest
    assert said["forgetting-new"]["new"]["digest"] == new[1].digest
    assert "gradient_norm_old" not in pandas.read_csv(tmp_path / "t.csv").columns


def test_another_checkpoint_computes_only_what_is_new(study, sources, tmp_path):
    base, sam, lora, silent = study
    output = tmp_path / "t.csv"
    measure_checkpoints(base, [sam, silent], *sources, output, metrics=FAST, load_options=CPU)
    first = output.read_text().splitlines()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "t.csv.cells").iterdir()}
    measure_checkpoints(base, [sam, lora, silent], *sources, output, metrics=FAST, load_options=CPU)
    rows = output.read_text().splitlines()
    assert [rows[0], rows[1], rows[3]] == first
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "t.csv.cells").iterdir()}
    assert {path: stamp for path, stamp in after.items() if path in stamps} == stamps
    digest = load_checkpoint(lora, device="cpu").digest
    assert len(after) > len(stamps)
    assert all(path.stem.endswith(digest) for path in set(after) - set(stamps))
    # a folder by another path, or other weights under a known path: the digest decides
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(silent)
    found = measure_checkpoints(base, [elsewhere], *sources, output, metrics=FAST, load_options=CPU)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "t.csv.cells").iterdir()} == after
    assert found["gradient_norm_old"][0] == float(rows[3].split(",")[rows[0].split(",").index("gradient_norm_old")])


def test_one_checkpoint_twice_and_the_base_itself_are_said(study, sources, tmp_path):
    base, sam, *_ = study
    again = tmp_path / "again"
    again.symlink_to(sam)
    with pytest.warns(MeasurementWarning) as said:
        measure_checkpoints(base, [sam, again, base], *sources, tmp_path / "t.csv", metrics=FAST, load_options=CPU)
    texts = [str(warning.message) for warning in said]
    assert any(f"{again} is {sam} again" in text for text in texts), texts
    assert any(f"{base} is the base itself" in text for text in texts), texts
    assert len(texts) == 2, texts


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_table(study, sources, tmp_path, run, forks):
    base, sam, _, silent = study  # no adapter: every start would import peft
    arguments = ["measure", base, sam, silent, "--old", sources[0], "--new", sources[1], "--device", "cpu", "--quiet"]
    for text in ("gradient_norm", "surface:dim=2,points=7", "trace:rtol=100,max_probes=16"):
        arguments += ["--metric", text]
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert run(*arguments, "-o", whole)[0] == 0
    cells = tmp_path / "killed.csv.cells"
    drawn = random.Random(0)
    finished: set[str] = set()
    for goal in (0, 1, 4, 7, 11):  # of 18 cells
        process = forks.start(*arguments, "-o", killed)
        deadline = time.monotonic() + 60
        while len(list(cells.glob("[!.]*-*.json"))) < goal and process.alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(drawn.uniform(0, 0.1))
        process.send(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL
        now = {path.name for path in cells.glob("[!.]*-*.json")}
        assert finished <= now, "nothing is lost"
        finished = now
        if killed.exists():  # complete, or not there
            assert whole.read_bytes().startswith(killed.read_bytes())
    assert 11 <= len(finished) < 18
    stamps = {name: (cells / name).stat().st_mtime_ns for name in finished}
    code, _, err = run(*arguments, "-o", killed)
    assert code == 0, err
    assert {name: (cells / name).stat().st_mtime_ns for name in finished} == stamps
    assert killed.read_bytes() == whole.read_bytes()
    assert len(whole.read_text().splitlines()) == 3
    assert not list(cells.glob(".*.journal"))
    timeless = [pandas.read_csv(details_path(path)).drop(columns="seconds") for path in (killed, whole)]
    pandas.testing.assert_frame_equal(*timeless)


def test_the_command_prints_what_the_table_holds(study, sources, run):
    base, sam, lora, _ = study
    arguments = ("measure", base, sam, lora, "--old", sources[0], "--new", sources[1], *FAST_OPTIONS, "-o", "t.csv")
    code, out, err = run(*arguments)
    assert code == 0, err
    table = pandas.read_csv("t.csv")
    for _, row in table.iterrows():
        assert row["name"] in out
        assert f"{row['forgetting']:+.4f}" in out
        assert f"{row['gradient_norm_new']:.4g}" in out
    assert "one half" in " ".join(out.split())
    assert "t.details.csv" in err
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    printed = json.loads(out)
    assert [row["forgetting"] for row in printed["rows"]] == pytest.approx(list(table["forgetting"]), rel=1e-12)
    assert {"checkpoint", "column", "stderr", "converged"} <= printed["details"][0].keys()
    code, out, _ = run("measure", base, sam, "--old", "x", "--new", "y", "--metric", "help")
    assert all(name in out for name in (*SHARPNESS_METRICS, "surface"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--metric": "flat"}, "--metric flat is none of"),
        ({"--metric": "surface:size=3"}, "no option size"),
        ({"--metric": "surface:points=2"}, "points=2"),
        ({"--metric": "surface:span=auto"}, "span='auto'"),
        ({"--metric": "worst_case:rho=-1"}, "rho"),
        ({"--metric": "trace:rtol"}, "option=value"),
        ({"--old": "absent.jsonl"}, "absent.jsonl"),
        ({"base": "./absent"}, "./absent does not exist"),
        ({"checkpoint": "./absent"}, "./absent does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(study, sources, run, changed, said):
    arguments = {"base": study[0], "checkpoint": study[1], "--old": sources[0], "--new": sources[1]} | changed
    base, checkpoint = arguments.pop("base"), arguments.pop("checkpoint")
    options = [part for pair in arguments.items() for part in pair]
    code, _, err = run("measure", base, checkpoint, *options, "--device", "cpu", "-q", "-o", "sub/t.csv")
    assert code == 2
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not Path("sub").exists()


def test_what_does_not_belong_together_is_refused(study, sources, tmp_path, save_checkpoint_folder):
    base, sam, *_ = study
    output = tmp_path / "t.csv"

    def measured(*checkpoints, old=sources[0], output=output, **options):
        return measure_checkpoints(
            options.pop("base", base), checkpoints, old, sources[1], output, load_options=CPU, metrics=FAST, **options
        )

    narrow = save_checkpoint_folder("llama", seed=1, intermediate_size=40)
    with pytest.raises(InputError, match=r"is no base of .*mlp"):
        measured(narrow)
    other = tmp_path / "other"
    build_model("llama", seed=1).save_pretrained(other)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS[:2], vocab_size=300, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(other)
    with pytest.raises(InputError, match="different tokenizers"):
        measured(other)
    with pytest.raises(InputError, match="no checkpoint"):
        measured()
    with pytest.raises(InputError, match="is a folder"):
        measured(sam, output=tmp_path)
    output.write_text("mine")
    with pytest.raises(InputError, match="not made by this"):
        measured(sam)
    assert output.read_text() == "mine"
    output.unlink()
    assert not (tmp_path / "t.csv.cells").exists()

    measured(sam)
    written = output.read_bytes()
    for change, key in (({"old": sources[1]}, "data"), ({"seed": 1}, "seed"), ({"flatness_on": "old"}, "flatness_on")):
        with pytest.raises(InputError, match=rf"other settings \({key}"):
            measured(sam, **change)
    with pytest.raises(InputError, match=r"other settings \(base"):
        measured(sam, base=study[3])
    with pytest.raises(InputError, match=r"other settings \(metrics"):
        measure_checkpoints(base, [sam], *sources, output, load_options=CPU, metrics=["gradient_norm"])
    assert output.read_bytes() == written
    with pytest.warns(MeasurementWarning, match="another base"):
        measured(sam, base=study[3], output=tmp_path / "wrong.csv")
