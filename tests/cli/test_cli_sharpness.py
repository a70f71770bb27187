"""`landscape sharpness` end to end."""

import csv
import json
from pathlib import Path

import pytest

from landscape import Sharpness, compute_sharpness, load_checkpoint, load_data

FAST = ("--metric", "gradient_norm", "--metric", "worst_case:steps=1,rho=0.1", "--device", "cpu", "--quiet")


def test_numbers_are_those_of_the_api(run, save_checkpoint_folder, records):
    a, b = (save_checkpoint_folder("llama", seed=seed) for seed in (1, 2))
    code, out, err = run("sharpness", a, b, "--data", f"tasks={records}", *FAST, "-o", "out")
    assert code == 0, err
    rows = json.loads(Path("out/summary.json").read_text())["rows"]
    assert [(row["checkpoint"], row["metric"]) for row in rows] == [
        ("llama-1", "gradient_norm"),
        ("llama-2", "gradient_norm"),
        ("llama-1", "worst_case"),
        ("llama-2", "worst_case"),
    ]
    for folder, gradient, worst in ((a, rows[0], rows[2]), (b, rows[1], rows[3])):
        checkpoint = load_checkpoint(folder, device="cpu")
        data = load_data(records, checkpoint.tokenizer, max_length=128)
        expected = compute_sharpness(checkpoint, data, metric="gradient_norm")
        assert gradient["value"] == pytest.approx(expected.value, rel=1e-5)
        expected = compute_sharpness(checkpoint, data, steps=1, rho=0.1)
        assert worst["value"] == pytest.approx(expected.value, rel=1e-4)
        assert f"{worst['value']:.5g}" in out
    with open("out/sharpness.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["value"]) for row in table] == [row["value"] for row in rows]
    stored = Sharpness.load("out/worst_case-steps_1-rho_0.1-llama_1.json")
    assert stored.value == rows[2]["value"]
    assert stored.rho == 0.1
    assert run("sharpness", a, b, "--data", f"tasks={records}", *FAST, "-o", "out")[1] == out


def test_defaults_error_bars_and_the_account_of_forgetting(run, save_checkpoint_folder, records):
    base, tuned = (save_checkpoint_folder("gpt2", seed=seed) for seed in (1, 2))
    command = (
        "sharpness",
        tuned,
        "--base",
        base,
        "--data",
        records,
        "--limit",
        "6",
        "--device",
        "cpu",
        "-q",
        "-o",
        "out",
    )
    code, out, err = run(*command)
    assert code == 0, err
    assert run(*command)[:2] == (0, out)  # read from the files, also those measured at the base
    for said in ("worst_case (1)", "worst_case (2)", "average_case", "fisher_rao", "displacement_curvature", "+-"):
        assert said in out
    assert "unchanged by" in out


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("flatness", "flatness"),
        ("worst_case:size=1", "size"),
        ("worst_case:rho", "option=value"),
        ("worst_case:rho=-1", "rho"),
        ("worst_case:rho=big", "rho"),
        ("worst_case:adaptive=3", "adaptive"),
        ("displacement_curvature", "base"),
    ],
)
def test_bad_metrics_are_one_sentence_and_nothing_written(run, save_checkpoint_folder, records, metric, said):
    folder = save_checkpoint_folder("gpt2")
    code, _, err = run("sharpness", folder, "--data", records, "--metric", metric, "--device", "cpu", "-q", "-o", "out")
    assert code == 2
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not Path("out").exists()
