"""`landscape hessian` and `landscape plot --kind eigen` end to end."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VOCABULARY
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

from landscape import Eigenvalues, SpectralDensity, Surface, hessian_eigenvalues, load_checkpoint, load_data
from landscape.curvature.results import LayerCurvature, TraceEstimate

SMALL = ("--device", "cpu", "--top", "2", "--rtol", "1e-2", "--trace-rtol", "0.5", "--max-probes", "64", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_hessian_measures_what_the_api_measures(architecture, run, save_checkpoint_folder, records):
    a, b = (save_checkpoint_folder(architecture, seed=seed) for seed in (1, 2))
    code, out, err = run("hessian", a, b, "--data", records, *SMALL, "--rtol", "1e-4", "-o", "out")
    assert code == 0, err
    rows = json.loads(Path("out/summary.json").read_text())["rows"]
    for row, folder in zip(rows, (a, b), strict=True):
        checkpoint = load_checkpoint(folder, device="cpu")
        data = load_data(records, checkpoint.tokenizer, max_length=128)
        expected = hessian_eigenvalues(checkpoint, data, k=2, rtol=1e-5)
        assert row["eigenvalues"][:2] == pytest.approx(expected.values, rel=1e-4)
        assert f"{row['eigenvalues'][0]:.5g}" in out
        low, high = row["trace"]["confidence_interval"]
        assert low <= row["trace"]["value"] <= high
        stem = row["checkpoint"].replace("-", "_")
        found = Eigenvalues.load(f"out/eigenvalues-{stem}.json")
        assert found.ratio == row["lowest_over_highest"] < 0
        assert found.weight == data.tokens
        assert TraceEstimate.load(f"out/trace-{stem}.json").value == row["trace"]["value"]


@pytest.mark.slow
def test_everything_at_once_and_again_from_its_files(run, save_checkpoint_folder, records):
    command = (
        "hessian", save_checkpoint_folder("llama", seed=1), "--data", f"tasks={records}", "--limit", "6", *SMALL,
        "--per-layer", "--density", "--weighting", "filter", "--weighting", "adaptive", "-o", "out",
    )  # fmt: skip
    code, out, err = run(*command)
    assert code == 0, err
    for said in ("filter trace", "adaptive trace", "model.layers.1", "lm_head", "standard errors from the trace"):
        assert said in out
    folder = Path("out")
    assert len(LayerCurvature.load(next(folder.glob("layers-*.json"))).layers) == 5
    assert SpectralDensity.load(next(folder.glob("density-*.json"))).nodes.shape == (4, 64)
    for name, start in (("density.png", b"\x89PNG"), ("density.pdf", b"%PDF"), ("density.html", b"<!")):
        assert (folder / name).read_bytes().startswith(start)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-*.json")}
    code, again, _ = run(*command)
    assert code == 0
    assert again == out
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*-*.json")} == before


def test_a_check_alone_is_quick_and_measures_nothing(run, save_checkpoint_folder, records):
    folder = save_checkpoint_folder("llama", seed=1)
    code, out, err = run("hessian", folder, "--data", records, *SMALL, "--check")
    assert code == 0, err
    for check in ("symmetry", "step halving", "head products", "head trace"):
        assert f"{check:<13}" in out
    assert "ok" in out
    assert "FAILED" not in out
    kept = {path.name.split("-")[0] for path in Path("landscape-check").glob("*.json")}
    assert kept == {"check", "settings.json", "summary.json"}
    (row,) = json.loads(Path("landscape-check/summary.json").read_text())["rows"]
    assert row["checks_passed"] is True
    assert row["checks"]["step halving"]["passed"] is True
    code, _, err = run("hessian", folder, "--data", records, *SMALL, "--check", "--density", "-o", "out")
    assert code == 2
    assert "--density" in err


def _relu_folder(architecture, tokenizer, folder, **changes):
    """A checkpoint of OPT or Mixtral, whose losses have kinks or jumps."""
    torch.manual_seed(0)
    size = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"max_position_embeddings": 128, "eos_token_id": 0, "bos_token_id": None}
    if architecture == "opt":
        config = OPTConfig(**size, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0, init_std=0.3, pad_token_id=0)
        model = OPTForCausalLM(config)
    else:
        model = MixtralForCausalLM(
            MixtralConfig(
                **size, intermediate_size=24, num_key_value_heads=2, num_local_experts=4, initializer_range=0.2
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["opt", "mixtral"])
def test_kinks_and_jumps_fail_no_check(architecture, run, tokenizer, records, tmp_path):
    """Differences at one long step are off by more than the product itself for OPT; the product is right."""
    folder = _relu_folder(architecture, tokenizer, tmp_path / architecture)
    code, out, err = run("hessian", folder, "--data", records, *SMALL, "--check", "-o", "out")
    assert code == 0, err
    assert "FAILED" not in out


def test_a_tied_head_has_no_closed_form_and_no_such_check(run, save_checkpoint_folder, records):
    code, out, err = run("hessian", save_checkpoint_folder("gpt2"), "--data", records, *SMALL, "--check", "-o", "out")
    assert code == 0, err
    assert "symmetry" in out
    assert "head trace" not in out


def test_json_goes_to_stdout_alone(run, save_checkpoint_folder, records):
    options = ("--basis-device", "cpu", "--max-matvecs", "50", "--json")
    code, out, _ = run("hessian", save_checkpoint_folder("gpt2"), "--data", records, *SMALL, *options, "-o", "out")
    assert code == 0
    (row,) = json.loads(out)["rows"]
    assert row["data"] == "tasks"
    assert 3 <= row["matvecs"] <= 50


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--top", "0"), "--top"),
        (("--parameters", "nothing.*"), "nothing.*"),
        (("--rtol", "0"), "rtol"),
        (("--basis-device", "abacus"), "abacus"),
        (("--trace-rtol", "-1"), "rtol"),
        (("--curvature", "fisher"), "fisher"),
        (("--curvature", "ggn", "--hvp", "finite_difference"), "finite_difference"),
        (("--data", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(run, save_checkpoint_folder, records, options, said):
    data = () if "--data" in options else ("--data", records)
    code, _, err = run("hessian", save_checkpoint_folder("llama"), *data, *SMALL, *options, "-o", "out")
    assert code == 2
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not Path("out").exists()


def test_other_settings_and_foreign_files_are_refused(run, save_checkpoint_folder, records):
    folder = save_checkpoint_folder("gpt2")
    command = ("hessian", folder, "--data", records, *SMALL, "-o", "out")
    assert run(*command)[0] == 0
    code, _, err = run(*command, "--seed", "5")
    assert code == 2
    assert "other settings" in err
    other = save_checkpoint_folder("gpt2", seed=7)
    assert run("hessian", other, "--data", records, *SMALL, "-o", "other")[0] == 0
    (ours,), (theirs,) = Path("out").glob("eigenvalues-*"), Path("other").glob("eigenvalues-*")
    shutil.copy(theirs, ours)
    code, _, err = run(*command)
    assert code == 2
    assert "not a result of this run" in err


def test_unconverged_numbers_are_starred(run, save_checkpoint_folder, records):
    options = ("--rtol", "1e-9", "--max-matvecs", "4")
    code, out, err = run("hessian", save_checkpoint_folder("llama"), "--data", records, *SMALL, *options, "-o", "out")
    assert code == 0
    assert "warning" in err
    assert "not converged" in err
    assert ")*" in out


@pytest.mark.slow
def test_a_killed_run_continues(forks, save_checkpoint_folder, records, tmp_path, run):
    a, b = (save_checkpoint_folder("llama", seed=seed) for seed in (1, 2))
    arguments = ["hessian", a, b, "--data", records, *SMALL, "--trace-rtol", "0.3", "--max-probes", "160"]
    process = forks.start(*arguments, "-o", tmp_path / "killed")
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("eigenvalues-*.json")) and time.time() < deadline:
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/summary.json").exists()
    assert run(*arguments, "-o", "killed")[0] == 0
    assert run(*arguments, "-o", "whole")[0] == 0
    killed, whole = (json.loads((tmp_path / name / "summary.json").read_text())["rows"] for name in ("killed", "whole"))
    for left, right in zip(killed, whole, strict=True):
        assert left["eigenvalues"] == pytest.approx(right["eigenvalues"], rel=1e-6)
        assert left["trace"]["value"] == pytest.approx(right["trace"]["value"], rel=1e-6)


@pytest.mark.slow
def test_surfaces_along_eigenvectors(run, save_checkpoint_folder, records):
    a, b = (save_checkpoint_folder("llama", seed=seed) for seed in (1, 2))
    command = ("plot", a, b, "--data", records, "--kind", "eigen", "--points", "5", "--span", "0.02", "-q", "-o", "out")
    code, _, err = run(*command)
    assert code == 0, err
    for name, folder in (("llama_1", a), ("llama_2", b)):
        surface = Surface.load(f"out/surface-{name}.json")
        checkpoint = load_checkpoint(folder, device="cpu")
        data = load_data(records, checkpoint.tokenizer, max_length=128)
        expected = hessian_eigenvalues(checkpoint, data, k=(1, 1), which="BE", rtol=1e-4).values
        h = surface.axes[0][4] - surface.axes[0][2]
        along = [surface.loss[:, 2], surface.loss[2, :]]
        second = [(line[0] - 2 * line[2] + line[4]) / h**2 for line in along]
        # float32 losses of about 6 over h^2 = 4e-4, and a fourth derivative
        assert np.allclose(second, expected, rtol=0.05, atol=0.05)
        assert f"{expected[0]:.4g}" in surface.axis_labels[0]
        assert (Path("out") / f"eigenvectors-{name}.safetensors").exists()
    Path("out/surface-llama_2.json").unlink()
    assert run(*command)[0] == 0
    assert Surface.load("out/surface-llama_2.json").axis_labels == surface.axis_labels
