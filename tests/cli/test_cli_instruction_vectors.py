"""`landscape instruction-vectors`, `measure` and `finetune --guide` on a planted model, by the real commands."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "instruction_vectors"))
import planted

from landscape import InstructionVector, load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("planted")
    model, tokenizer = planted.trained()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.model.layers[2].self_attn.o_proj.weight.mul_(0.3)
    for name, one in (("base", model), ("tuned", tuned)):
        one.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    tasks = place / "tasks.jsonl"
    tasks.write_text("\n".join(json.dumps(record) for record in planted.tasks()))
    lines = [f"Q: {a} A: {b}" for outputs in planted.OUTPUTS.values() for a, b in zip("abcdef", outputs, strict=False)]
    (place / "old.txt").write_text(" ".join(lines * 8))
    records = [{"prompt": f"Q: {a} A:", "completion": f" {a}"} for a in planted.LETTERS]
    (place / "new.jsonl").write_text("\n".join(map(json.dumps, records)))
    return {"place": place, "tasks": tasks}


SMALL = ("--shots", "4", "--prompts", "12", "--heads", "2", "--resamples", "199", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def vector_file(folders) -> Path:
    return folders["place"] / "iv" / "instruction_vector-base-copy.json"


def test_tables_files_and_maps_of_a_base_and_a_tuned_checkpoint(run, folders, vector_file):
    place = folders["place"]
    command = ("instruction-vectors", place / "tuned", "--base", place / "base", "--tasks", folders["tasks"], *SMALL)
    code, out, err = run(*command, "-o", place / "iv")
    assert code == 0, err
    for word in ("effect of heads", "base's vector", "random vector", "few-shot lost"):
        assert word in out
    names = {path.name for path in (place / "iv").iterdir()}
    assert {"heads.png", "heads.pdf", "heads.html", "summary.json", "instruction_vector_change-tuned.json"} <= names
    summary = json.loads((place / "iv" / "summary.json").read_text())
    assert [(v["name"], v["task"]) for v in summary["vectors"]] == [
        (name, task) for name in ("base", "tuned") for task in planted.OUTPUTS
    ]
    vector = InstructionVector.load(vector_file)
    assert vector.effects.shape == (12, 3, 4)
    page = (place / "iv" / "heads.html").read_text()
    assert "<script src" not in page
    assert "next letter" in page
    assert run(*command, "-o", place / "iv")[1] == out  # kept, and not measured again
    assert vector.plot().axes


def test_measure_has_the_columns_and_correlate_does_not_take_lost_accuracy_for_a_predictor(run, folders):
    place = folders["place"]
    metric = f"instruction_vector:tasks={folders['tasks']},shots=4,prompts=12,heads=2"
    code, out, err = run(
        "measure", place / "base", place / "tuned", "--old", place / "old.txt", "--new", place / "new.jsonl",
        "--metric", metric, "--metric", "gradient_norm", "--device", "cpu", "--quiet", "-o", place / "table.csv",
    )  # fmt: skip
    assert code == 0, err
    assert "IV cosine" in out
    (row,) = pandas.read_csv(place / "table.csv").to_dict("records")
    assert 0 < row["instruction_vector_cosine"] < 1
    assert math.isfinite(row["instruction_vector_effect_lost"])
    columns = {name for name in row if "instruction_vector" in name or name.startswith("accuracy_loss_")}
    assert all(name in run("metrics", "instruction_vector")[1] for name in columns if not name.endswith(("old", "new")))
    assert row["accuracy_loss_few_shot"] == pytest.approx(
        row["accuracy_before_few_shot"] - row["accuracy_after_few_shot"]
    )
    kept = [path.name for path in (place / "table.csv.cells").iterdir() if path.name.startswith("instruction_vector-")]
    assert len(kept) == 7  # three tasks in two checkpoints, and the comparison


def test_finetuning_is_guided_by_the_file_of_the_base_and_refuses_that_of_another(run, folders, vector_file):
    place = folders["place"]
    command = ("finetune", "--data", place / "new.jsonl", "--steps", "2", "--device", "cpu", "-q")
    code, _, err = run(*command, place / "base", "--guide", vector_file, "-o", place / "guided")
    assert code == 0, err
    assert "copy of its weights" in err  # what a step costs is said
    record = json.loads((place / "guided" / "landscape.json").read_text())
    assert record["guidance"]["task"] == "copy"
    assert load_checkpoint(place / "guided", device="cpu").metadata["steps_taken"] == 2
    code, _, err = run(*command, place / "tuned", "--guide", vector_file, "-o", place / "wrong")
    assert (code, "is of another checkpoint" in err) == (2, True)


def test_bad_input_is_one_sentence_and_nothing_is_written(run, folders):
    place = folders["place"]
    base, tasks = place / "base", folders["tasks"]
    for arguments, message in (
        ((base, "--tasks", place / "task.jsonl"), "Did you mean"),
        ((base, "--tasks", "builtin:word"), "there are no in-context tasks 'builtin:word'"),
        ((base, "--tasks", tasks, "--shots", "1"), "--shots 1 must be at least 2"),
        ((base, "--tasks", tasks, "--shots", "13", "--heads", "2"), "13 examples in a prompt need at least 28"),
        ((base, "--tasks", tasks, "--layer", "9", *SMALL), "--layer 9 is none of the 3 layers"),
    ):
        code, _, err = run("instruction-vectors", *arguments, "-o", place / "none")
        assert (code, message in err.splitlines()[-1]) == (2, True), err
        assert not (place / "none").exists()
