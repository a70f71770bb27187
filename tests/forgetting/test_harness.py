"""lm-evaluation-harness as a backend: local tasks, offline, and our own accuracies against its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import assert_same_state, build_model, state_of

from landscape.errors import InputError
from landscape.forgetting.harness import Score, compare_benchmarks, run_benchmarks

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: "{delimiter}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
WORDS = ["fox", "dog", "a loss that rises", "naïveté üÿß", "None", "sharp minima, flat minima", "x"]


def write_task(folder, name, delimiter=" ", count=60):
    """Questions of two to four choices of different lengths, in characters and in bytes, as data and as a task."""
    path, lines = folder / f"{name}.jsonl", []
    for i in range(count):
        end = "" if delimiter else ("\n" if i % 2 else " ")
        choices = [WORDS[(i * 3 + j * (1 + i % 5)) % len(WORDS)] for j in range(2 + i % 3)]
        lines.append(
            json.dumps({"question": f"Question {i}: {WORDS[i % 7]}?{end}", "choices": choices, "answer": i % 2})
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = folder / f"{name}.yaml"
    task.write_text(TASK.format(name=name, path=path, delimiter=delimiter))
    return path, task


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def landscape(*arguments, cwd):
    command = [sys.executable, "-m", "landscape", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ.copy(), timeout=300)


@pytest.mark.slow
def test_our_accuracies_are_those_of_lm_eval(save_checkpoint_folder, tmp_path, offline):
    """The same questions through --data and through --tasks: acc, acc_norm and their falls, two implementations."""
    base, tuned = (save_checkpoint_folder("llama", seed=seed) for seed in (4, 8))
    spaced, spaced_task = write_task(tmp_path, "spaced")
    open_ended, open_task = write_task(tmp_path, "open_ended", delimiter="")
    options = (
        "--data",
        f"spaced={spaced}",
        "--data",
        f"open_ended={open_ended}",
        "--tasks",
        f"{spaced_task},{open_task}",
    )
    done = landscape(
        "forgetting", base, tuned, *options, "--device", "cpu", "--resamples", "199", "-q", "-o", "out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "out" / "summary.json").read_text())["checkpoints"]
    theirs = {(b["task"], b["metric"]): b for b in found["benchmarks"]}
    assert len(theirs) == 4
    for asked in found["choices"]:
        ours = asked["plain"]
        for kind, metric in (("accuracy", "acc"), ("norm", "acc_norm")):
            other = theirs[asked["name"], metric]
            assert other["count"] == asked["questions"] == 60
            assert other["paired"]
            assert ours[f"{kind}_before"] == pytest.approx(other["before"], abs=1e-12)
            assert ours[f"{kind}_after"] == pytest.approx(other["after"], abs=1e-12)
            assert ours[f"{kind}_loss"] == pytest.approx(other["fall"], abs=1e-12)
            p = other["before"]
            assert other["before_stderr"] == pytest.approx((p * (1 - p) / 59) ** 0.5)
            low, high = ours[f"{kind}_interval"]
            # The score interval against the normal one of the paired standard error. Both allow for flips that were
            # not seen, the former for more: with two flips of 60 it is 1.36 times as wide. One that took the two
            # models' answers for unpaired would be three times as wide.
            normal, flips = 2 * 1.96 * other["fall_stderr"], 60**2 * other["fall_stderr"] ** 2
            assert 0.75 <= (high - low) / normal <= (1.25 if flips > 5 else 1.4)
            assert low <= ours[f"{kind}_loss"] <= high
    # per byte it would be 24 of 60, per token or with the space another number again: a wrong norm would show
    (asked,) = (asked["plain"] for asked in found["choices"] if asked["name"] == "open_ended")
    assert (asked["accuracy_before"], asked["norm_before"]) == pytest.approx((20 / 60, 23 / 60))
    assert "lm-evaluation-harness" in done.stdout
    assert "guessing" in done.stdout
    assert "Traceback" not in done.stderr


def score(task="t", metric="acc", value=0.5, stderr=0.1, up=True, samples=(), count=4, digest="d"):
    return Score(task, metric, value, stderr, up, count, samples, digest)


def test_standard_errors_are_paired_where_there_are_samples():
    before, after = score(value=0.75, samples=(1, 1, 1, 0)), score(value=0.25, samples=(1, 0, 0, 0))
    (paired,) = compare_benchmarks([before], [after])
    assert (paired.fall, paired.paired) == (0.5, True)
    assert paired.fall_stderr == pytest.approx((3 - 2**2 / 6) ** 0.5 / 6)  # 2 lost, 0 gained, half a question more each
    before, after = score(value=2.0, samples=(1.5, 2.5, 1, 3)), score(value=1.5, samples=(1.5, 1.5, 0, 3))
    (graded,) = compare_benchmarks([before], [after])
    assert graded.fall_stderr == pytest.approx((4 * 0.25 / 3 / 4) ** 0.5)  # differences 0, 1, 1, 0
    (apart,) = compare_benchmarks([score(value=3.0, stderr=0.3, up=False)], [score(value=5.0, stderr=0.4, up=False)])
    assert (apart.fall, apart.paired) == (2.0, False)
    assert apart.fall_stderr == pytest.approx(0.5)
    with pytest.raises(InputError, match="not the same tasks"):
        compare_benchmarks([before], [score(task="u")])
    with pytest.raises(InputError, match="other documents"):
        compare_benchmarks([before], [score(samples=(1, 0, 0, 0), digest="e")])


@pytest.mark.parametrize(("lost", "gained", "size"), [(0.02, 0.0, 60), (0.02, 0.02, 60), (0.1, 0.03, 40)])
def test_two_standard_errors_cover_the_fall_where_few_answers_flip(lost, gained, size):
    """In 95% or more of 2,000 tasks. The plain paired standard error, 0 where none flips, covers the first in 70%."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        before, after = [], []
        for chance in rng.random(size):
            right = chance < lost or chance > 0.5
            before.append(float(right))
            after.append(float(right and chance >= lost) or float(lost <= chance < lost + gained))
        old, new = (score(value=np.mean(own), samples=tuple(own)) for own in (before, after))
        (paired,) = compare_benchmarks([old], [new])
        covered += abs(paired.fall - (lost - gained)) <= 1.96 * paired.fall_stderr
    assert covered / 2000 >= 0.93  # 0.95 less four standard errors of the simulation


def test_a_run_leaves_the_model_as_it_was(tokenizer, tmp_path, offline):
    _, task = write_task(tmp_path, "few", count=12)
    model = build_model("llama", seed=1).train()
    before = state_of(model)
    padding = tokenizer.pad_token
    found = run_benchmarks(model, tokenizer, [str(task)], limit=5)
    assert_same_state(before, state_of(model))
    assert tokenizer.pad_token == padding
    assert {(s.metric, s.count, len(s.samples)) for s in found} == {("acc", 5, 5), ("acc_norm", 5, 5)}


def test_a_group_finds_the_tasks_beside_it(tokenizer, tmp_path, offline):
    for name in ("one", "two"):
        write_task(tmp_path, name, count=12)
    group = tmp_path / "both.yaml"
    group.write_text(
        "group: both\ntask: [one, two]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    scores = [run_benchmarks(build_model("llama", seed=seed), tokenizer, [str(group)]) for seed in (1, 2)]
    compared = {(b.task, b.metric): b for b in compare_benchmarks(*scores)}
    assert compared["both", "acc"].count == 24
    assert not compared["both", "acc"].paired
    assert compared["one", "acc"].paired
    assert compared["both", "acc"].before == pytest.approx(compared["one", "acc"].before)


def test_what_lm_eval_cannot_do_is_one_sentence(run, save_checkpoint_folder, tmp_path, offline, monkeypatch):
    base = save_checkpoint_folder("llama", seed=1)
    path, task = write_task(tmp_path, "broken")
    command = ("forgetting", base, base, "--data", path, "--resamples", "99", "-q", "-o", "out", "--tasks")
    code, _, err = run(*command, "nowhere.yaml")
    assert (code, "there is no task file nowhere.yaml" in err) == (2, True)
    task.write_text("task: [")
    code, _, err = run(*command, task)
    assert (code, "cannot load the tasks" in err) == (2, True)
    task.write_text(TASK.format(name="broken", path=tmp_path / "absent.jsonl", delimiter=" "))
    code, _, err = run(*command, task)
    assert (code, "absent.jsonl" in err) == (2, True)
    assert not os.path.exists("out")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = run(*command, task)
    assert (code, "pip install 'landscape-lm[eval]'" in err) == (2, True)
    assert len(err.strip().splitlines()) <= 3  # what is measured on, and the sentence
