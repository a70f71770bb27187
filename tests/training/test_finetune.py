"""Fine-tuning runs: what they write, and that an interrupted one continues to the same weights."""

import itertools
import json
import math
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file

from landscape.checkpoints import LoadOptions, load_checkpoint
from landscape.data.tokens import DataOptions, load_data
from landscape.errors import InputError, MeasurementWarning
from landscape.study.comparison import open_comparison
from landscape.training.finetuning import finetune
from landscape.training.options import Optimization, Rehearsal, Saving
from landscape.training.trainer import training_arguments

COMMON = {"steps": 6, "lr": 1e-3, "batch_size": 4, "max_length": 64, "device": "cpu"}
GROUPS = {"optimization": Optimization, "data_options": DataOptions, "load_options": LoadOptions, "saving": Saving}


def tune(base, data, output, seed=0, rehearsal=None, **options):
    """`finetune` with the fields of its groups of options written flat."""
    groups = {
        name: group(**{field.name: options.pop(field.name) for field in fields(group) if field.name in options})
        for name, group in GROUPS.items()
    }
    assert not options
    return finetune(base, data, output, rehearsal=rehearsal, seed=seed, progress=False, **groups)


def weights(folder):
    return load_file(folder / "model.safetensors")


def record_of(folder):
    return json.loads((folder / "landscape.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_an_interrupted_run_continues_to_the_same_weights(
    optimizer, tmp_path, save_checkpoint_folder, records, monkeypatch
):
    base = save_checkpoint_folder("llama", seed=1)
    arguments = COMMON | {"optimizer": optimizer, "save_every": 2}
    whole = tune(base, str(records), tmp_path / "whole", **arguments)

    from transformers import Trainer

    steps, original = [], Trainer.training_step

    def dying(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == (10 if optimizer == "sam" else 5):  # in the fifth step: the fourth was saved
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        tune(base, str(records), tmp_path / "cut", **arguments)
    assert not (tmp_path / "cut").exists()
    assert (tmp_path / "cut.training" / "checkpoint-4").exists()
    # a checkpoint that the kill tore is passed over
    torn = tmp_path / "cut.training" / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    continued = tune(base, str(records), tmp_path / "cut", **arguments)
    one, other = weights(whole), weights(continued)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert record_of(whole)["losses"] == record_of(continued)["losses"]
    assert not (tmp_path / "cut.training").exists()


def test_the_record_says_how_it_was_made(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("gpt2", seed=1)
    folder = tune(base, str(records), tmp_path / "tuned", optimizer="sam", rho=0.02, seed=5, **COMMON)
    record = record_of(folder)
    assert record["base"]["digest"] == load_checkpoint(base, device="cpu").digest
    assert (record["optimizer"], record["rho"], record["seed"], record["steps_taken"]) == ("sam", 0.02, 5, 6)
    assert record["data"]["source"] == str(records)
    assert record["versions"]["torch"]
    assert record["losses"]["evaluated_after"] < record["losses"]["evaluated_before"]
    assert load_checkpoint(folder, device="cpu").metadata == record


def test_a_built_in_corpus_is_trained_on_one_part_and_evaluated_on_the_other(tmp_path, save_checkpoint_folder):
    base = save_checkpoint_folder("llama", seed=1)
    folder = tune(base, "builtin:docs", tmp_path / "tuned", limit=20, **COMMON | {"steps": 1})
    record = record_of(folder)
    assert record["data"]["source"] == "builtin:docs@train"
    assert record["evaluated_on"]["source"] == "builtin:docs@heldout"
    read_again(record["evaluated_on"], load_checkpoint(base, device="cpu").tokenizer)


@pytest.mark.parametrize(
    ("count", "batch", "limit", "held_out"), [(700, 860, 64, True), (700, 859, 16, True), (100, 4, 16, False)]
)
def test_a_run_is_evaluated_on_few_examples_that_are_held_out_where_enough_are_left(
    tmp_path, save_checkpoint_folder, count, batch, limit, held_out
):
    """64 of 700 are less than a tenth and are not trained on; 16 of 100 leave too little. A short run takes 16."""
    base = save_checkpoint_folder("llama", seed=1)
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({"text": f"number {index} of them"}) + "\n" for index in range(count)))
    record = record_of(tune(base, str(records), tmp_path / "tuned", **COMMON | {"steps": 1, "batch_size": batch}))
    evaluated = record["evaluated_on"]
    assert (evaluated["limit"], evaluated["held_out"]) == (limit, held_out)
    read_again(evaluated, load_checkpoint(base, device="cpu").tokenizer)
    of_training = "" if held_out else ", and which are not held out from training: .*"
    words = f"was evaluated on{of_training}\\.$"  # and not: though not on the same tokens
    with pytest.warns(MeasurementWarning, match=words):
        (tokens,) = open_comparison([str(tmp_path / "tuned")], load_options=LoadOptions(device="cpu")).data.values()
    assert tokens.digest == evaluated["digest"]
    tokenizer = load_checkpoint(base, device="cpu").tokenizer
    whole, few = (load_data(records, tokenizer, max_length=64, limit=kept, seed=0) for kept in (None, limit))
    assert len(set(whole.examples)) == count  # no two are alike, so that tokens say what is left out
    assert record["data"]["supervised_tokens"] == whole.tokens - (few.tokens if held_out else 0)


def read_again(evaluated_on, tokenizer):
    """What the record says is enough to read the same tokens."""
    options = {key: evaluated_on[key] for key in ("max_length", "limit", "seed")}
    assert load_data(evaluated_on["source"], tokenizer, **options).digest == evaluated_on["digest"]


def test_the_record_finds_its_data_from_anywhere(tmp_path, save_checkpoint_folder, records, monkeypatch):
    base = save_checkpoint_folder("llama", seed=1)
    monkeypatch.chdir(records.parent)
    options = COMMON | {"steps": 1, "max_length": 8, "limit": 5, "seed": 3}
    evaluated_on = record_of(tune(base, records.name, tmp_path / "tuned", **options))["evaluated_on"]
    assert evaluated_on["source"] == str(records)
    assert (evaluated_on["max_length"], evaluated_on["limit"], evaluated_on["seed"]) == (8, 16, 0)
    monkeypatch.chdir(tmp_path)
    read_again(evaluated_on, load_checkpoint(base, device="cpu").tokenizer)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder, record: record.pop("losses"),
        lambda folder, record: record.update(losses=5),
        lambda folder, record: record["losses"].pop("evaluated_after"),
        lambda folder, record: record.update(steps_taken="six"),
        lambda folder, record: (folder / "model.safetensors").unlink(),
        lambda folder, record: (folder / "tokenizer.json").unlink(),
        lambda folder, record: (folder / "config.json").write_text("{"),
    ],
)
def test_a_finished_folder_that_is_not_whole_is_said(damage, tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    folder = tune(base, str(records), tmp_path / "tuned", **COMMON | {"steps": 1})
    record = record_of(folder)
    damage(folder, record)
    (folder / "landscape.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="tuned"):
        tune(base, str(records), tmp_path / "tuned", **COMMON | {"steps": 1})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 1e30}, r"the loss of step \d is (nan|inf); lower lr"),
        ({"lr": 1e30, "steps": 2}, "diverged: the loss after the last step|diverged: .* is not finite after the last"),
        ({"optimizer": "sam", "rho": 1e30}, "diverged: .*; lower lr or rho"),
    ],
)
@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")  # of a step to where nothing is finite
def test_a_run_that_diverges_writes_nothing(arguments, words, tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    with pytest.raises(InputError, match=words):
        tune(base, str(records), tmp_path / "out", **COMMON | {"save_every": 1} | arguments)
    assert list(tmp_path.iterdir()) == []
    tune(base, str(records), tmp_path / "out", **COMMON)  # the corrected command is not refused


def test_a_result_that_cannot_be_saved_is_not_lost(tmp_path, save_checkpoint_folder, records, monkeypatch):
    base, out = save_checkpoint_folder("llama", seed=1), tmp_path / "out"

    def appears(self, *args, **kwargs):
        out.mkdir(exist_ok=True)  # somebody else made it while the run was on its way
        return original(self, *args, **kwargs)

    from transformers import Trainer

    original = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", appears)
    with pytest.raises(InputError, match="exists already"):
        tune(base, str(records), out, **COMMON)
    monkeypatch.undo()
    out.rmdir()
    assert (tmp_path / "out.training" / "checkpoint-6").exists()
    whole = tune(base, str(records), tmp_path / "whole", **COMMON)
    continued = tune(base, str(records), out, **COMMON)
    assert all(torch.equal(tensor, weights(continued)[name]) for name, tensor in weights(whole).items())
    for key in ("losses", "steps_taken"):
        assert record_of(whole)[key] == record_of(continued)[key]


def test_the_batch_is_as_large_as_asked_for_whatever_the_number_of_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = training_arguments(tmp_path, per_device_train_batch_size=6)
    assert arguments.train_batch_size == 6
    assert arguments.n_gpu == 1  # of more, the Trainer makes a DataParallel


def test_another_device_than_the_first_is_refused(tmp_path, save_checkpoint_folder, records):
    for device in ("meta", "cpu:1", "cuda:1"):
        with pytest.raises(InputError, match=f"device.*{device}"):
            tune(save_checkpoint_folder("llama"), str(records), tmp_path / "out", **COMMON | {"device": device})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loading", [{"dtype": "bfloat16"}, {"adapter": "keep"}, {"device_map": "auto"}])
def test_a_model_is_not_trained_in_a_way_other_than_it_says(loading, tmp_path, save_checkpoint_folder, records):
    with pytest.raises(InputError, match="leave dtype, device_map and adapter"):
        tune(save_checkpoint_folder("llama"), str(records), tmp_path / "out", **COMMON | loading)
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides_the_order_of_examples(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    runs = [tune(base, str(records), tmp_path / f"run{i}", seed=seed, **COMMON) for i, seed in enumerate((1, 1, 2))]
    first, again, other = (weights(folder)["model.norm.weight"] for folder in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_finished_run_is_not_made_again_and_not_overwritten(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    folder = tune(base, str(records), tmp_path / "tuned", **COMMON)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert tune(base, str(records), tmp_path / "tuned", **COMMON) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"not made by this run \(lr differ\)"):
        tune(base, str(records), tmp_path / "tuned", **COMMON | {"lr": 1e-2})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": "lion"}, "lion"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"steps": 0}, "steps=0"),
        ({"rho": -0.1, "optimizer": "sam"}, "rho=-0.1"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not a whole number"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"lr": math.inf}, "lr=inf must be positive and finite"),
        ({"lr": math.nan}, "lr=nan"),
        ({"epochs": math.inf, "steps": None}, "epochs=inf"),
        ({"rho": math.inf, "optimizer": "sam"}, "rho=inf"),
        ({"rho": math.nan, "optimizer": "sam"}, "rho=nan"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    arguments, words, tmp_path, save_checkpoint_folder, records
):
    with pytest.raises(InputError, match=words):
        tune(save_checkpoint_folder("llama"), str(records), tmp_path / "out", **COMMON | arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batch_size", "parts"), [(4, 2), (6, 3)])
def test_a_batch_in_parts_gives_the_same_weights(batch_size, parts, tmp_path, save_checkpoint_folder, records):
    """To rounding of AdamW steps: float32 gradients summed in another order, divided by their own root mean square.

    18 examples: with batches of 4 the last step of an epoch has half a batch, one of its two parts.
    """
    base = save_checkpoint_folder("llama", seed=1)
    options = COMMON | {"batch_size": batch_size}
    whole = weights(tune(base, str(records), tmp_path / "whole", **options))
    split = weights(tune(base, str(records), tmp_path / "split", accumulate=parts, **options))
    before = load_file(base / "model.safetensors")
    step = max(float((whole[name] - before[name]).abs().max()) for name in whole)
    worst = max(float((whole[name] - split[name]).abs().mean()) for name in whole)
    assert step > 1e-3
    assert worst < 1e-2 * step


@pytest.mark.slow
def test_every_optimizer_is_another_and_without_radius_adamw(tmp_path, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    options = COMMON | {"steps": 2}
    found = {
        name: tune(base, str(records), tmp_path / f"{name}-{rho}", optimizer=name, rho=rho, **options)
        for name, rho in (("adamw", None), ("sam", 0.5), ("asam", 0.5), ("sam-on", 0.5), ("functional-sam", 0.5))
    }
    norms = {name: weights(folder)["model.norm.weight"] for name, folder in found.items()}
    for one, other in itertools.combinations(norms, 2):
        assert not torch.equal(norms[one], norms[other]), (one, other)
    for name in ("asam", "functional-sam"):
        zero = tune(base, str(records), tmp_path / f"{name} zero", optimizer=name, rho=0.0, **options)
        assert torch.equal(weights(zero)["model.norm.weight"], norms["adamw"])
    assert [record_of(found[name])["rho"] for name in found] == [None, 0.5, 0.5, 0.5, 0.5]
    with pytest.raises(InputError, match=r"sam-on.*lora"):
        tune(base, str(records), tmp_path / "none", optimizer="sam-on", lora=2, **options)
    default = tune(base, str(records), tmp_path / "default", optimizer="asam", **options | {"steps": 1})
    assert record_of(default)["rho"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_trains_an_adapter_alone_and_continues_when_killed(
    architecture, tmp_path, save_checkpoint_folder, records, monkeypatch
):
    base = save_checkpoint_folder(architecture, seed=1)
    options = COMMON | {"lora": 2, "save_every": 2, "lr": 1e-2, "optimizer": "sam"}
    folder = tune(base, str(records), tmp_path / "whole", **options)
    adapter = load_file(folder / "adapter_model.safetensors")
    assert all("lora_" in name and "lm_head" not in name for name in adapter)
    assert {len(t) for name, t in adapter.items() if "lora_A" in name} == {2}
    assert any(t.abs().max() > 0 for name, t in adapter.items() if "lora_B" in name)
    assert not (folder / "model.safetensors").exists()
    checkpoint = load_checkpoint(folder, device="cpu", adapter="keep")
    assert checkpoint.files.base.digest == load_checkpoint(base, device="cpu").digest
    frozen = {n.replace(".base_layer", "").removeprefix("base_model.model."): p for n, p in
              checkpoint.model.named_parameters() if "lora_" not in n}  # fmt: skip
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(frozen[name], tensor), name
    losses = record_of(folder)["losses"]
    assert losses["evaluated_after"] < losses["evaluated_before"]

    from transformers import Trainer

    original, steps = Trainer.training_step, []

    def dying(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 10:  # in the fifth step: the fourth was saved
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        tune(base, str(records), tmp_path / "cut", **options)
    monkeypatch.undo()
    continued = load_file(tune(base, str(records), tmp_path / "cut", **options) / "adapter_model.safetensors")
    assert all(torch.equal(tensor, continued[name]) for name, tensor in adapter.items())
    with pytest.raises(InputError, match="is an adapter; merge it"):
        tune(folder, str(records), tmp_path / "more", **options)
    assert tune(base, str(records), tmp_path / "cut", **options) == tmp_path / "cut"


def test_rehearsal_mixes_in_its_share_of_old_examples(tmp_path, save_checkpoint_folder, records, monkeypatch):
    import landscape.training.finetuning as module

    seen, original = [], module.make_trainer
    monkeypatch.setattr(
        module, "make_trainer", lambda m, examples, *a, **k: seen.append(examples) or original(m, examples, *a, **k)
    )
    base = save_checkpoint_folder("llama", seed=1)
    options = COMMON | {"steps": 2, "limit": 12, "max_length": 16}
    plain = tune(base, str(records), tmp_path / "plain", **options)
    mixed = tune(base, str(records), tmp_path / "mixed", rehearsal=Rehearsal("builtin:docs", 0.25), **options)
    assert [len(examples) for examples in seen] == [12, 16]  # 4 of 16 are a quarter
    assert seen[1][:12] == seen[0]
    record = record_of(mixed)
    assert record["rehearse"]["source"] == "builtin:docs@train"
    assert record["rehearse"]["ratio"] == 0.25
    assert record["rehearse"]["digest"]
    assert record["data"]["digest"] == record_of(plain)["data"]["digest"]
    assert not torch.equal(weights(plain)["model.norm.weight"], weights(mixed)["model.norm.weight"])
    again = tune(base, str(records), tmp_path / "again", rehearsal=Rehearsal("builtin:docs", 0.25), **options)
    assert seen[2] == seen[1]
    assert torch.equal(weights(again)["model.norm.weight"], weights(mixed)["model.norm.weight"])
    with pytest.raises(InputError, match=r"ratio=0.9 .* takes 108 old ones, but .* gives 16"):
        tune(base, str(records), tmp_path / "x", rehearsal=Rehearsal(str(records), 0.9), **options)


@pytest.mark.slow
def test_the_kept_path_runs_from_the_base_in_even_steps_and_survives_a_kill(
    tmp_path, save_checkpoint_folder, records, monkeypatch
):
    base = save_checkpoint_folder("llama", seed=1)
    options = COMMON | {"keep_trajectory": 3, "save_every": 4}
    whole = tune(base, str(records), tmp_path / "whole", **options)
    names = ["step-000000", "step-000002", "step-000004"]
    assert sorted(path.name for path in (whole / "trajectory").iterdir()) == names
    start, before = weights(whole / "trajectory" / names[0]), load_file(base / "model.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    plain = tune(base, str(records), tmp_path / "plain", **COMMON)
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(whole).items())

    import landscape.training.finetuning as module

    original = module._finish

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_finish", killed)  # between the result and the handing over of the path
    with pytest.raises(KeyboardInterrupt):
        tune(base, str(records), tmp_path / "cut", **options)
    monkeypatch.setattr(module, "_finish", original)
    cut = tune(base, str(records), tmp_path / "cut", **options)
    assert not (tmp_path / "cut.training").exists()
    for name in names:
        one, other = (weights(folder / "trajectory" / name) for folder in (whole, cut))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
        assert record_of(cut / "trajectory" / name)["step"] == int(name[-6:])
    with pytest.raises(InputError, match="keep_trajectory=7 checkpoints of a run of 6 steps"):
        tune(base, str(records), tmp_path / "many", **options | {"keep_trajectory": 7})
    assert not list(tmp_path.glob("many*"))


def test_the_command_passes_everything_on_and_refuses_what_does_not_go_together(
    run, tmp_path, save_checkpoint_folder, records
):
    base = save_checkpoint_folder("llama", seed=1)
    common = ("finetune", base, "--data", records, "-o", "out", "--steps", 2, "--lr", 1e-3, "--max-length", 32, "-q")
    for more, words in (
        (("--rho", 0.1), "--rho"),
        (("--rehearse-ratio", 0.1), "rehearse names none"),
        (("--batch-size", 4, "--accumulate", 3), "does not divide"),
        (("--rehearse", records, "--rehearse-ratio", 1), "between 0 and 1"),
        (("--lora", 0), "--lora 0 must be at least 1"),
    ):
        code, _, err = run(*common, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    assert list(tmp_path.iterdir()) == []
    more = ("--optimizer", "asam", "--rho", 0.2, "--batch-size", 4, "--lora", 3, "--rehearse", records)
    code, out, err = run(*common, *more, "--rehearse-ratio", 0.5, "--keep-trajectory", 2)
    assert code == 0, err
    record = record_of(tmp_path / "out")
    assert (record["optimizer"], record["rho"], record["lora"]) == ("asam", 0.2, 3)
    assert (record["rehearse"]["ratio"], record["keep_trajectory"]) == (0.5, 2)
    assert "2 steps" in out
    code, out, err = run("plot", "out", "--dim", 1, "--points", 3, "--data", records, "-o", "plot", "-q")
    assert code == 0, err
    code, out, err = run("merge", base, "out", "--alpha", 0.5, "-o", "merged")
    assert code == 0, err
