"""The command line end to end: real checkpoints in, files and exit codes out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, build_model, plain_loss
from PIL import Image
from safetensors.torch import load_file, save_file

from landscape.checkpoints import load_checkpoint
from landscape.data.tokens import load_data
from landscape.surfaces.result import Surface

SMALL = ("--points", "3", "--device", "cpu")
LINE = (*SMALL, "--dim", "1")  # quicker to draw, where the picture is not the point


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_had_enough_changes_nothing(both, tmp_path, save_checkpoint_folder, records):
    """As `landscape plot ... | head -1`: all files are written, and the exit code is that of the work."""
    options = [*LINE, "--json", "-o", tmp_path / "out"]
    arguments = ["plot", save_checkpoint_folder("llama"), "--data", records, *options]
    command = [sys.executable, "-m", "landscape", *map(str, arguments)]
    errors = subprocess.STDOUT if both else subprocess.PIPE
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    process.stdout.close()  # before a line is written, so that every write fails
    err = "" if both else process.stderr.read()
    assert process.wait() == 0, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert {"surface.png", "surface.html", "summary.json"} <= set(os.listdir(tmp_path / "out"))


# --- plot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plot_measures_the_right_loss_and_writes_everything(
    architecture, run, save_checkpoint_folder, records, tokenizer
):
    a = save_checkpoint_folder(architecture, seed=1)
    b = save_checkpoint_folder(architecture, seed=2, sharded=architecture == "llama")
    code, out, err = run("plot", a, b, "--data", records, *SMALL, "-o", "out")
    assert code == 0, err
    data = load_data(records, tokenizer, max_length=128)
    summary = json.loads(open("out/summary.json").read())
    for index, seed in enumerate((1, 2)):
        expected = plain_loss(build_model(architecture, seed=seed), list(data))
        found = summary["surfaces"][index]
        assert found["loss_at_center"] == pytest.approx(expected, rel=1e-5)
        assert found["supervised_tokens"] == data.tokens
        assert f"{found['loss_at_center']:.4f}" in out
        surface = Surface.load("out/" + found["file"])
        assert surface.center == found["loss_at_center"]
        assert surface.loss.shape == (3, 3)
        assert surface.data == "tasks"
    for name, start in (("surface.png", b"\x89PNG"), ("surface.pdf", b"%PDF"), ("surface.html", b"<!")):
        assert open(f"out/{name}", "rb").read().startswith(start)
    assert not [name for name in os.listdir("out") if name.startswith(".")], "no journal is left behind"


def test_figures_are_drawn_in_the_style_that_was_asked_for(run, save_checkpoint_folder, records):
    command = ("plot", save_checkpoint_folder("llama"), "--data", records, *LINE, "-o", "out")
    code, _, err = run(*command)
    assert code == 0, err
    assert Image.open("out/surface.png").size[0] == 975  # 3.25 inches at 300 dots
    code, _, err = run(*command, "--style", "talk")  # the same measurement, drawn again
    assert code == 0, err
    assert Image.open("out/surface.png").size[0] == 960  # 6.4 inches at 150 dots
    assert open("out/surface.tex").read().startswith(r"\caption{Loss")
    code, _, err = run(*command, "--style", "poster")
    assert code == 2
    assert "--style" in err


@pytest.mark.slow
def test_the_installed_command_runs_in_a_subprocess(tmp_path, save_checkpoint_folder, records):
    a, b = save_checkpoint_folder("llama", seed=1), save_checkpoint_folder("llama", seed=2)
    command = shutil.which("landscape", path=os.path.dirname(sys.executable))
    assert command, "the package installs a command"
    done = subprocess.run(
        [command, "plot", a, b, "--data", records, *SMALL, "-o", tmp_path / "out", "--json", "--quiet"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "pt/s" not in done.stderr  # no progress bar
    assert "Traceback" not in done.stderr


def test_two_data_sets_give_a_row_of_panels_each(run, save_checkpoint_folder, records):
    a, b = save_checkpoint_folder("llama", seed=1), save_checkpoint_folder("llama", seed=2)
    both = ("--data", "old=builtin:docs", "--data", f"new={records}")
    code, _, err = run("plot", a, b, *both, *SMALL, "--limit", 4, "-o", "out")
    assert code == 0, err
    surfaces = [Surface.load(f"out/{s['file']}") for s in json.loads(open("out/summary.json").read())["surfaces"]]
    assert [(s.data) for s in surfaces] == ["old", "new", "old", "new"]
    assert len({s.name for s in surfaces}) == 2


def test_interpolation_and_plane(run, save_checkpoint_folder, records, tokenizer):
    folders = [save_checkpoint_folder("qwen3", seed=seed) for seed in (1, 2, 3)]
    expected = [
        plain_loss(build_model("qwen3", seed=seed), list(load_data(records, tokenizer, max_length=128)))
        for seed in (1, 2, 3)
    ]
    for kind, count in (("interpolate", 2), ("plane", 3)):
        code, out, err = run("plot", *folders[:count], "--kind", kind, "--data", records, *SMALL, "-o", kind)
        assert code == 0, err
        (summary,) = json.loads(open(f"{kind}/summary.json").read())["surfaces"]
        assert [m["loss"] for m in summary["markers"]] == pytest.approx(expected[:count], rel=1e-5)
        assert f"{expected[0]:.4f}" in out
    assert json.loads(open("plane/settings.json").read())["span"] == 0.25  # as folders always had it


def test_the_margin_of_a_plane_is_a_fraction_of_what_the_checkpoints_span(run, save_checkpoint_folder, records):
    folders = [save_checkpoint_folder("llama", seed=seed) for seed in (1, 2, 3)]
    code, _, err = run("plot", *folders, "--kind", "plane", "--margin", 0.5, "--data", records, *SMALL, "-o", "out")
    assert code == 0, err
    (summary,) = json.loads(open("out/summary.json").read())["surfaces"]
    surface = Surface.load("out/" + summary["file"])
    for axis, coordinates in zip(
        surface.axes, zip(*(m.coordinates for m in surface.markers), strict=True), strict=True
    ):
        extent = max(coordinates) - min(coordinates)
        assert axis[0] == pytest.approx(min(coordinates) - 0.5 * extent)
        assert axis[-1] == pytest.approx(max(coordinates) + 0.5 * extent)


@pytest.mark.parametrize("normalize", ["unit", "head", "layer", "none"])
def test_other_normalizations_and_one_dimension(normalize, run, save_checkpoint_folder, records):
    options = ("--dim", 1, "--normalize", normalize, "--span", "0.1", "--log", "--levels", "5")
    code, _, err = run("plot", save_checkpoint_folder("llama"), "--data", records, *SMALL, *options, "-o", "out")
    assert code == 0, err
    (summary,) = json.loads(open("out/summary.json").read())["surfaces"]
    surface = Surface.load("out/" + summary["file"])
    assert (surface.normalize, surface.loss.shape) == (normalize, (3,))


def test_auto_span_is_shared_by_all_checkpoints(run, save_checkpoint_folder, records):
    folders = [save_checkpoint_folder("llama", seed=seed) for seed in (1, 2)]
    code, _, err = run("plot", *folders, "--data", records, *SMALL, "--span", "auto", "--dim", 1, "-o", "out")
    assert code == 0, err
    surfaces = [Surface.load(f"out/{s['file']}") for s in json.loads(open("out/summary.json").read())["surfaces"]]
    assert np.array_equal(surfaces[0].axes[0], surfaces[1].axes[0])
    rises = [np.mean([s.loss[0], s.loss[-1]]) - s.center for s in surfaces]
    assert min(rises) >= 1.0


def test_the_same_command_again_draws_anew_without_measuring(run, save_checkpoint_folder, records):
    a = save_checkpoint_folder("llama")
    arguments = ("plot", a, "--data", records, *LINE, "-o", "out")
    assert run(*arguments)[0] == 0
    (file,) = (name for name in os.listdir("out") if name.startswith("surface-"))
    before = os.stat(f"out/{file}").st_mtime_ns
    code, _, err = run(*arguments, "--log", "--levels", "5")
    assert code == 0, err
    assert os.stat(f"out/{file}").st_mtime_ns == before


def test_batch_size_changes_nothing_but_rounding(run, save_checkpoint_folder, records):
    a = save_checkpoint_folder("llama")
    losses = []
    for budget in (1, 10**6):
        assert run("plot", a, "--data", records, *LINE, "--batch-tokens", budget, "-o", f"out{budget}")[0] == 0
        (summary,) = json.loads(open(f"out{budget}/summary.json").read())["surfaces"]
        losses.append(Surface.load(f"out{budget}/" + summary["file"]).loss)
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)


def test_without_data_it_says_what_it_measures_on(run, save_checkpoint_folder):
    code, _, err = run("plot", save_checkpoint_folder("llama"), *LINE, "--limit", 3, "-o", "out")
    assert code == 0
    assert "no --data given; measuring on builtin:docs" in err


@pytest.mark.slow
def test_a_killed_plot_continues_and_ends_with_the_same_result(forks, tmp_path, save_checkpoint_folder, records):
    a = save_checkpoint_folder("gpt2")
    arguments = ["plot", a, "--data", records, "--points", "13", "--device", "cpu", "--quiet", "--batch-tokens", "64"]
    whole = forks.run(*arguments, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    known = 0
    for target in (10, 60, 120):
        process = forks.start(*arguments, "-o", tmp_path / "killed")
        journal = None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.alive():
            journal = next((tmp_path / "killed").glob(".*.journal"), None)
            if journal and journal.read_bytes().count(b"\n") > target:
                break
            time.sleep(0.005)
        process.send(signal.SIGKILL)
        process.wait()
        assert journal is not None
        lines = journal.read_bytes().count(b"\n")
        assert lines >= known, "nothing is lost"
        known = lines
    done = forks.run(*arguments, "-o", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    (name,) = (path.name for path in (tmp_path / "whole").glob("surface-*.json"))
    assert f"{known - 1} points or probes of an earlier run are kept" in done.stderr
    one, other = Surface.load(tmp_path / "whole" / name), Surface.load(tmp_path / "killed" / name)
    assert np.array_equal(one.loss, other.loss)
    assert one.identity() == other.identity()


@pytest.mark.slow
def test_an_interrupt_says_how_to_continue(forks, tmp_path, save_checkpoint_folder, records):
    arguments = ["plot", save_checkpoint_folder("gpt2"), "--data", records, "--points", "101", "--device", "cpu"]
    process = forks.start(*arguments, "-o", tmp_path / "out")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "out").glob(".*.journal")):
        time.sleep(0.01)
    time.sleep(0.1)
    process.send(signal.SIGINT)
    ended = process.wait()
    assert ended.returncode == 130
    assert "the same command again continues" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("how", ["merge", "keep"])
def test_an_adapter_is_measured_as_asked_and_the_table_says_how(how, run, tmp_path, save_checkpoint_folder, records):
    from peft import LoraConfig, get_peft_model

    base = save_checkpoint_folder("llama", seed=1)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(build_model("llama", seed=1), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    code, out, err = run("plot", "adapter", "--adapter", how, "--data", records, *SMALL, "-o", "out")
    assert code == 0, err
    said = "merged" if how == "merge" else "kept"
    assert f"adapters: {said}" in out
    (summary,) = json.loads(open("out/summary.json").read())["surfaces"]
    assert Surface.load("out/" + summary["file"]).provenance.checkpoint["adapter"] == said


# --- bad input: one sentence, exit 2, nothing written -------------------------------------------------------


@pytest.fixture
def refused(run):
    def check(*arguments, words, folder="out"):
        code, out, err = run(*arguments, "-o", folder)
        sentences = [line for line in err.strip().splitlines() if line.startswith("landscape: ")]
        assert code == 2, err
        assert words in sentences[-1]
        assert "Traceback" not in err
        assert out == ""
        assert not os.path.exists(folder), "nothing is written"

    return check


@pytest.fixture
def damaged(tmp_path, save_checkpoint_folder):
    def copy(name="damaged", sharded=False, seed=1):
        return shutil.copytree(save_checkpoint_folder("llama", seed=seed, sharded=sharded), tmp_path / name)

    return copy


def test_a_path_that_is_no_checkpoint(refused, tmp_path, save_checkpoint_folder):
    good = save_checkpoint_folder("llama")
    (tmp_path / "empty").mkdir()
    refused("plot", good, tmp_path / "empty", *SMALL, words="is not a checkpoint")
    refused("plot", "./missing", *SMALL, words="./missing does not exist")


def test_only_pickled_weights(refused, damaged):
    folder = damaged()
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused("plot", folder, *SMALL, words="only pickled weights (pytorch_model.bin)")


def test_a_truncated_shard(refused, damaged):
    folder = damaged(sharded=True)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused("plot", folder, *SMALL, words=f"{shard.name} is truncated or damaged")


def test_a_missing_shard(refused, damaged):
    folder = damaged(sharded=True)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    refused("plot", folder, *SMALL, words=f"{shard.name} is missing")


def test_checkpoints_of_different_shape(refused, save_checkpoint_folder, records):
    a, b = save_checkpoint_folder("llama", seed=1), save_checkpoint_folder("llama", seed=1, vocabulary=330)
    words = "model.embed_tokens.weight is (320, 32) in the first and (330, 32) in the second"
    refused("plot", a, b, "--kind", "interpolate", "--data", records, *SMALL, words=words)
    c = save_checkpoint_folder("gpt2")
    refused("plot", a, c, "--kind", "interpolate", "--data", records, *SMALL, words="the models differ: ")


def test_checkpoints_that_are_stored_under_other_names_are_of_the_same_shape(run, tmp_path, save_checkpoint_folder):
    """GPT-2 as the original release stores it, without the prefix; its loss at t=1 is that of the usual file."""
    a, b = save_checkpoint_folder("gpt2", seed=1), save_checkpoint_folder("gpt2", seed=2)
    bare = shutil.copytree(b, tmp_path / "bare")
    tensors = load_file(bare / "model.safetensors")
    assert any(name.startswith("transformer.") for name in tensors)
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(renamed, bare / "model.safetensors", metadata={"format": "pt"})
    ends = []
    for index, other in enumerate((b, bare)):
        code, _, err = run("plot", a, other, "--kind", "interpolate", *LINE, "--limit", 2, "-o", f"out{index}")
        assert code == 0, err
        ends.append(json.loads(open(f"out{index}/summary.json").read())["surfaces"][0]["markers"][1]["loss"])
    assert ends[0] == ends[1]


def test_weights_that_are_not_finite(refused, damaged):
    folder = damaged()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused("plot", folder, *SMALL, words="tensor model.norm.weight has values that are not finite")


def test_a_tensor_that_would_be_random(refused, damaged, save_checkpoint_folder, records):
    folder = damaged()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = "lacks 1 tensor(s) of its architecture, the first model.layers.1.mlp.up_proj.weight"
    refused("plot", save_checkpoint_folder("llama"), folder, "--data", records, *SMALL, words=words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", "empty.jsonl is empty"),
        ("bad.jsonl", '{"text": "fine"}\n{"text": \n', "bad.jsonl line 2"),
        ("mute.jsonl", '{"prompt": "a", "completion": ""}\n', "no supervised token"),
        ("shape.jsonl", '{"question": "a"}\n', "shape.jsonl line 1"),
        ("data.csv", "a,b\n", "data.csv is not a .jsonl, .txt or .parquet file"),
    ],
)
def test_bad_data(refused, tmp_path, save_checkpoint_folder, name, content, words):
    (tmp_path / name).write_text(content)
    refused("plot", save_checkpoint_folder("llama"), "--data", tmp_path / name, *SMALL, words=words)


def test_data_that_does_not_exist(refused, save_checkpoint_folder):
    refused("plot", save_checkpoint_folder("llama"), "--data", "nowhere.jsonl", *SMALL, words="nowhere.jsonl")
    refused("plot", save_checkpoint_folder("llama"), "--data", "builtin:poems", *SMALL, words="builtin:poems")


def test_a_token_beyond_the_vocabulary(refused, tmp_path, tokenizer, records):
    build_model("llama", vocabulary=100).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    refused("plot", tmp_path / "small", "--data", records, *SMALL, words="a vocabulary of 100")


def test_checkpoints_whose_tokenizers_differ(refused, damaged, save_checkpoint_folder, records):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = damaged()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["abc abc"], vocab_size=280, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    good = save_checkpoint_folder("llama")
    refused("plot", good, folder, "--data", records, *SMALL, words="different tokenizers")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--points", "2"), "--points 2"),
        (("--points", "a"), "--points a"),
        (("--span", "-1"), "--span -1"),
        (("--span", "1,0"), "--span 1,0"),
        (("--margin", "0.5"), "use --span with --kind random"),
        (("--kind", "plane", "--span", "1"), "use --margin"),
        (("--kind", "plane", "--margin", "inf"), "--margin inf must be at least 0 and finite"),
        (("--kind", "interpolate", "--span", "1"), "--span 1 is not LOW,HIGH"),
        (("--kind", "interpolate"), "takes 2 checkpoints, got 1"),
        (("--kind", "plane"), "takes 3 checkpoints, got 1"),
        (("--kind", "interpolate", "--dim", "2"), "--dim 2"),
        (("--kind", "plane", "--normalize", "layer"), "--normalize"),
        (("--normalize", "rows"), "rows"),
        (("--levels", "3,1"), "--levels 3,1"),
        (("--limit", "0"), "limit"),
        (("--max-length", "0"), "--max-length"),
        (("--device", "abacus"), "abacus"),
        (("--dtype", "int4"), "int4"),
        (("--data", "x=builtin:docs", "--data", "x=builtin:code"), "two data sets are named x"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_options(refused, save_checkpoint_folder, options, words):
    base = [] if "--points" in options else ["--points", "3"]
    refused("plot", save_checkpoint_folder("llama"), *base, *options, words=words)


def test_an_output_folder_of_other_settings_is_left_alone(run, save_checkpoint_folder, records):
    a = save_checkpoint_folder("llama")
    assert run("plot", a, "--data", records, *SMALL, "-o", "out")[0] == 0
    before = {name: open(f"out/{name}", "rb").read() for name in os.listdir("out")}
    for options, words in ((("--seed", 1), "seed"), (("--span", 2), "span"), (("--limit", 2), "data")):
        code, _, err = run("plot", a, "--data", records, *SMALL, *options, "-o", "out")
        assert code == 2
        assert f"holds results of other settings ({words} differ)" in err
    assert {name: open(f"out/{name}", "rb").read() for name in os.listdir("out")} == before


def test_settings_that_cannot_be_drawn_are_refused_before_anything_is_measured(refused, save_checkpoint_folder):
    refused("plot", save_checkpoint_folder("llama"), *SMALL, "--log", "--levels=-1,2", words="does not go with --log")


def test_bad_input_leaves_an_empty_folder_empty(refused, run, tmp_path, damaged, records):
    folder = damaged()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(7)}, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty").mkdir()
    for options, words in (
        (("--kind", "plane"), "takes 3 checkpoints"),
        (("--data", records), "tensor model.norm.weight is stored as 7"),
    ):
        code, _, err = run("plot", folder, *SMALL, *options, "-o", "empty")
        assert code == 2
        assert words in err
        assert os.listdir("empty") == []


def test_results_of_a_checkpoint_whose_config_changed_are_not_taken_for_those_of_the_new(run, damaged, records):
    folder = damaged()
    arguments = ("plot", folder, "--data", records, *SMALL, "-o", "out")
    assert run(*arguments)[0] == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    code, _, err = run(*arguments)
    assert code == 2
    assert "holds results of other settings (checkpoints differ)" in err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--seed", 5), "seed"),
        (("--limit", 3), "data"),
        (("--span", 2), "span"),
        (("--normalize", "layer"), "normalize"),
        (("--dtype", "float64"), "dtype"),
        ((), "checkpoint"),
    ],
)
def test_a_result_from_elsewhere_is_not_taken_for_one_of_this_run(
    run, tmp_path, save_checkpoint_folder, records, option, words
):
    """Copied into a folder without settings, or in place of a result that was lost."""
    mine = shutil.copytree(save_checkpoint_folder("llama", seed=1), tmp_path / "mine")
    (tmp_path / "other").mkdir()
    theirs = shutil.copytree(save_checkpoint_folder("llama", seed=1 if option else 2), tmp_path / "other" / "mine")
    source = mine if option else theirs
    assert run("plot", source, "--data", records, *LINE, *option, "-o", "foreign")[0] == 0
    (tmp_path / "out").mkdir()
    shutil.copy("foreign/surface-mine.json", "out")
    arguments = ("plot", mine, "--data", records, *LINE, "-o", "out")
    code, _, err = run(*arguments)
    assert code == 2
    assert "holds a surface-mine.json from elsewhere" in err
    assert os.listdir("out") == ["surface-mine.json"]
    (tmp_path / "out" / "surface-mine.json").unlink()
    assert run(*arguments)[0] == 0
    shutil.copy("foreign/surface-mine.json", "out")
    code, _, err = run(*arguments)
    assert code == 2
    assert f"surface-mine.json is not a result of this run ({words} differ)" in err


def test_a_damaged_result_is_named(run, save_checkpoint_folder, records):
    arguments = ("plot", save_checkpoint_folder("llama", seed=1), "--data", records, *SMALL, "-o", "out")
    assert run(*arguments)[0] == 0
    path = "out/surface-llama_1.json"
    content = json.loads(open(path).read())
    open(path, "w").write(json.dumps(content | {"provenance": []}))
    code, _, err = run(*arguments)
    assert code == 2
    assert "surface-llama_1.json is a damaged landscape/surface file: provenance" in err


def test_names_that_make_one_file_name_or_a_too_long_one(run, tmp_path, save_checkpoint_folder, records):
    folder = shutil.copytree(save_checkpoint_folder("llama"), tmp_path / ("n" * 250))
    names = ("x y", "x_y", "Ä" * 300)
    data = [argument for name in names for argument in ("--data", f"{name}={records}")]
    code, _, err = run("plot", folder, *data, *LINE, "-o", "out")
    assert code == 0, err
    files = [summary["file"] for summary in json.loads(open("out/summary.json").read())["surfaces"]]
    assert len(set(files)) == 3
    assert [Surface.load(f"out/{file}").data for file in files] == list(names)


@pytest.mark.parametrize("source", ["n" * 5000, "n" * 300 + ".jsonl", "x=" + "n" * 5000, "nul\0.jsonl"])
def test_data_of_impossible_names(refused, save_checkpoint_folder, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("plot", save_checkpoint_folder("llama"), "--data", source, *SMALL, words="n")


def test_a_checkpoint_of_the_hub_is_named_by_its_id(run, tmp_path, monkeypatch, save_checkpoint_folder, records):
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    stored = tmp_path / "hub" / "models--acme--llama"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    shutil.copytree(save_checkpoint_folder("llama"), stored / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, err = run("plot", "acme/llama", "--data", records, *SMALL, "-o", "out")
    assert code == 0, err
    assert os.path.exists("out/surface-llama.json")
    assert commit[:8] not in out


# --- what a checkpoint says of its data ---------------------------------------------------------------------


@pytest.mark.parametrize("said", ["builtin:docs", [], {"source": 5}, {"source": ["a"]}, {"source": ""}, {}, 5], ids=str)
def test_evaluated_on_of_a_wrong_type(refused, damaged, said):
    folder = damaged()
    (folder / "landscape.json").write_text(json.dumps({"evaluated_on": said}))
    refused("plot", folder, *SMALL, words="landscape.json names no source as evaluated_on; give --data")


def test_what_a_checkpoint_was_evaluated_on_is_compared_with_what_is_read(run, refused, damaged, records, tmp_path):
    folder = damaged()
    digest = load_data(records, load_checkpoint(folder).tokenizer, max_length=128).digest
    for said, words in (
        ({"source": str(records), "digest": digest}, "was evaluated on.\n"),
        ({"source": str(records), "digest": "0" * 64}, "was evaluated on, though not on the same tokens"),
        ({"source": str(records)}, "was evaluated on.\n"),
        (None, "measuring on builtin:docs"),
    ):
        (folder / "landscape.json").write_text(json.dumps({"evaluated_on": said}))
        code, _, err = run("plot", folder, *LINE, *(() if said else ("--limit", 2)), "-o", f"out-{words[:5]}-{said}")
        assert code == 0, err
        assert words in err
    (folder / "landscape.json").write_text(json.dumps({"evaluated_on": {"source": "gone.jsonl"}}))
    refused("plot", folder, *LINE, words="damaged was evaluated on: there is no file gone.jsonl")
    shutil.copy(records, folder / "gone.jsonl")
    code, _, err = run("plot", folder, *LINE, "-o", "out")
    assert code == 0, err
    assert f"measuring on {folder / 'gone.jsonl'}" in err


def test_no_command_prints_the_help_and_an_unknown_one_is_refused(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "plot" in out
    code, _, err = run("plod")
    assert code == 2
    assert "plod" in err
    assert "Traceback" not in err


# --- finetune and demo --------------------------------------------------------------------------------------


def test_a_fine_tuned_checkpoint_can_be_plotted(run, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    common = ("--data", records, "--steps", 3, "--lr", "1e-3", "--batch-size", 4, "--device", "cpu", "-q")
    for optimizer in ("adamw", "sam"):
        code, out, err = run("finetune", base, *common, "--optimizer", optimizer, "-o", optimizer)
        assert code == 0, err
        assert "3 steps; loss on" in out
        record = json.loads(open(f"{optimizer}/landscape.json").read())
        assert record["optimizer"] == optimizer
        assert record["losses"]["evaluated_after"] < record["losses"]["evaluated_before"]
    code, _, err = run("plot", "adamw", "sam", *SMALL, "-o", "out")
    assert code == 0, err
    assert f"measuring on {records}, which adamw was evaluated on" in err
