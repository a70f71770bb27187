"""Checkpoints: real folders, sharded and damaged; adapters; what is refused and in which words."""

import json
import shutil

import pytest
import torch
from conftest import build_model
from safetensors.torch import load_file, save_file

from landscape.checkpoints import (
    distinct_names,
    inspect_checkpoint,
    load_checkpoint,
    resolve_device,
    save_checkpoint,
)
from landscape.errors import InputError, MeasurementWarning


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copy_of(tmp_path, save_checkpoint_folder):
    """A copy of a saved checkpoint, to damage."""

    def copy(architecture="llama", **arguments):
        return shutil.copytree(save_checkpoint_folder(architecture, **arguments), tmp_path / "ckpt")

    return copy


@pytest.mark.parametrize(("architecture", "sharded"), [("llama", False), ("gpt2", True), ("qwen3", False)])
def test_a_loaded_checkpoint_has_the_saved_weights(architecture, sharded, save_checkpoint_folder):
    folder = save_checkpoint_folder(architecture, seed=3, sharded=sharded)
    assert (folder / "model.safetensors.index.json").exists() == sharded
    checkpoint = load_checkpoint(folder, device="cpu")
    wanted = build_model(architecture, seed=3).state_dict()
    found = checkpoint.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (checkpoint.dtype, checkpoint.device, checkpoint.adapter) == ("float32", "cpu", None)
    assert checkpoint.tokenizer("landscape")["input_ids"]
    assert not checkpoint.model.training


def test_the_single_file_is_read_where_an_index_lies_beside_it(copy_of, save_checkpoint_folder):
    folder = copy_of(sharded=True, seed=1)
    other = save_checkpoint_folder("llama", seed=2)
    shutil.copy(other / "model.safetensors", folder)
    checkpoint = load_checkpoint(folder, device="cpu")
    wanted = load_file(other / "model.safetensors")
    assert all(torch.equal(checkpoint.model.state_dict()[name], wanted[name]) for name in wanted)
    assert checkpoint.digest == inspect_checkpoint(other).digest


def test_the_digest_covers_what_the_config_computes_and_not_where_it_comes_from(copy_of):
    folder = copy_of()
    first = inspect_checkpoint(folder).digest
    edit(folder / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    assert inspect_checkpoint(folder).digest == first
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert inspect_checkpoint(folder).digest != first


def test_the_digest_is_that_of_the_tensors_however_they_are_sharded(save_checkpoint_folder):
    whole = inspect_checkpoint(save_checkpoint_folder("llama", seed=1))
    shards = inspect_checkpoint(save_checkpoint_folder("llama", seed=1, sharded=True))
    other = inspect_checkpoint(save_checkpoint_folder("llama", seed=2))
    assert whole.digest == shards.digest
    assert whole.digest != other.digest


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_are_loaded_in_the_type_asked_for(dtype, save_checkpoint_folder):
    checkpoint = load_checkpoint(save_checkpoint_folder("llama"), dtype=dtype, device="cpu")
    assert checkpoint.dtype == dtype
    assert {p.dtype for p in checkpoint.model.parameters()} == {getattr(torch, dtype)}


def test_saving_and_loading_gives_the_model_and_its_record(tmp_path, tokenizer):
    model = build_model("qwen3", seed=4)
    save_checkpoint(model, tokenizer, tmp_path / "made", {"optimizer": "sam"})
    checkpoint = load_checkpoint(tmp_path / "made", device="cpu")
    assert checkpoint.metadata == {"optimizer": "sam"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.model.state_dict()[name], tensor)
    with pytest.raises(InputError, match="exists already"):
        save_checkpoint(model, tokenizer, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_a_save_that_fails_leaves_nothing(tmp_path, tokenizer):
    class Failing:
        def save_pretrained(self, folder):
            (tmp_path / folder / "half").write_text("written")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(Failing(), tokenizer, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


# --- adapters -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path, save_checkpoint_folder):
    from peft import LoraConfig, get_peft_model

    base = save_checkpoint_folder("llama", seed=1)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_checkpoint(base, device="cpu").model, config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.merge_and_unload()


def test_an_adapter_is_merged_into_its_base(adapter):
    folder, merged = adapter
    checkpoint = load_checkpoint(folder, device="cpu")
    assert checkpoint.adapter == "merged"
    found, wanted = checkpoint.model.state_dict(), merged.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-6, atol=1e-7) for name in wanted)
    assert all(p.requires_grad for p in checkpoint.model.parameters())
    assert checkpoint.tokenizer("x")["input_ids"]  # the base's
    assert checkpoint.describe()["adapter"] == "merged"


def test_an_adapter_can_be_kept_apart(adapter):
    folder, _ = adapter
    checkpoint = load_checkpoint(folder, device="cpu", adapter="keep")
    assert checkpoint.adapter == "kept"
    trainable = [name for name, p in checkpoint.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_model_name_or_path": 5}, "does not name its base"),
        ({"base_model_name_or_path": ["a"]}, "does not name its base"),
        ({"base_model_name_or_path": "."}, "which is an adapter itself"),
        ({"r": "x"}, "cannot be applied to its base"),
        ({"target_modules": 5}, "cannot be applied to its base"),
        ({"peft_type": "ZZ"}, "cannot be applied to its base"),
        ({"r": 3}, r"size mismatch for \S+lora_A"),
    ],
)
def test_an_unusable_adapter_config_is_refused(adapter, monkeypatch, change, words):
    folder, _ = adapter
    monkeypatch.chdir(folder)
    edit(folder / "adapter_config.json", **change)
    with pytest.raises(InputError, match=words):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("how", ["merge", "keep"])
def test_an_adapter_that_does_not_match_is_refused_and_not_measured_at_random(adapter, how):
    folder, _ = adapter
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    first = min(name for name in weights if "q_proj.lora_A" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != first}, path)
    with pytest.raises(InputError, match=r"lacks 1 tensor\(s\), the first \S+layers.0.self_attn.q_proj.lora_A"):
        load_checkpoint(folder, device="cpu", adapter=how)
    save_file(weights | {first.replace("q_proj", "z_proj"): weights[first].clone()}, path)
    with pytest.raises(InputError, match=r"its model lacks, 1 tensor\(s\), the first \S+z_proj"):
        load_checkpoint(folder, device="cpu", adapter=how)


def test_the_digest_of_an_adapter_covers_its_config_but_not_the_place_of_its_base(adapter, tmp_path):
    folder, _ = adapter
    first = inspect_checkpoint(folder).digest
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.copytree(base, tmp_path / "moved")
    edit(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "moved"))
    assert inspect_checkpoint(folder).digest == first
    edit(folder / "adapter_config.json", lora_alpha=800)
    second = inspect_checkpoint(folder).digest
    assert second != first
    edit(tmp_path / "moved" / "config.json", rms_norm_eps=0.5)
    assert inspect_checkpoint(folder).digest != second


def test_an_adapter_beside_the_config_of_its_base_is_an_adapter_and_beside_weights_refused(adapter):
    folder, _ = adapter
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.copy(f"{base}/config.json", folder)
    assert load_checkpoint(folder, device="cpu").adapter == "merged"
    shutil.copy(f"{base}/model.safetensors", folder)
    with pytest.raises(InputError, match=r"holds a whole model and an adapter_config\.json"):
        inspect_checkpoint(folder)


def test_an_adapter_without_its_base_is_refused(adapter):
    folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(InputError, match="/nowhere/base does not exist"):
        load_checkpoint(folder)


def test_adapters_with_different_weights_have_different_digests(adapter):
    folder, _ = adapter
    first = inspect_checkpoint(folder).digest
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    assert inspect_checkpoint(folder).digest != first


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is not a checkpoint: it has no config\.json"):
        inspect_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        inspect_checkpoint(tmp_path / "file")
    with pytest.raises(InputError, match="does not exist"):
        inspect_checkpoint(tmp_path / "missing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"no model.safetensors"):
        inspect_checkpoint(tmp_path)


def test_a_name_that_is_neither_folder_nor_on_the_hub_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="nobody/nothing is not a folder here"):
        inspect_checkpoint("nobody/nothing")


def test_pickled_weights_are_refused_with_a_way_out(copy_of):
    folder = copy_of()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\).*save_pretrained"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_truncated_file_is_named(copy_of, sharded):
    folder = copy_of(sharded=sharded)
    victim = sorted(folder.glob("*.safetensors"))[-1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{victim.name} is truncated or damaged"):
        inspect_checkpoint(folder)


def test_a_file_that_is_not_safetensors_is_named(copy_of):
    folder = copy_of()
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"model.safetensors is truncated or damaged"):
        inspect_checkpoint(folder)


def test_a_missing_shard_is_named(copy_of):
    folder = copy_of(sharded=True)
    victim = sorted(folder.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(InputError, match=f"{victim.name} is missing"):
        inspect_checkpoint(folder)


def test_a_tensor_that_the_index_promises_and_the_shard_lacks_is_named(copy_of):
    folder = copy_of(sharded=True)
    victim = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(victim)
    gone = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, victim, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{victim.name} lacks tensor {gone}"):
        inspect_checkpoint(folder)


def test_an_index_that_points_outside_its_folder_is_refused(copy_of):
    folder = copy_of(sharded=True)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../secret.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="points outside its folder"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (5, "names no file"),
        (None, "names no file"),
        (["m"], "names no file"),
        ("", "names no file"),
        ("..", "points outside its folder"),
        ("n" * 400, "is missing"),
        ("nul\0", "is missing"),
        ("config.json", "is truncated or damaged"),
    ],
)
def test_a_weight_index_of_wrong_values_is_refused(copy_of, file, words):
    folder = copy_of(sharded=True)
    index = folder / "model.safetensors.index.json"
    edit(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], file))
    with pytest.raises(InputError, match=words):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("source", ["n" * 5000, "here/" + "n" * 300, "nul\0", "~nobody-of-this-name/x", ""])
def test_names_that_no_folder_can_have_are_refused(source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError):
        inspect_checkpoint(source)


def test_weights_that_overflow_the_type_asked_for_name_their_tensor(copy_of):
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_checkpoint(folder, device="cpu", dtype="bfloat16")
    with pytest.raises(InputError, match=r"tensor model\.norm\.weight has values that are not finite in float16"):
        load_checkpoint(folder, device="cpu", dtype="float16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_their_tensor(copy_of, value):
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor model.layers.1.mlp.up_proj.weight has values that are not finite"):
        inspect_checkpoint(folder)


def test_a_tensor_that_would_be_random_is_refused(copy_of):
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 tensor.*model.layers.0.mlp.up_proj.weight"):
        load_checkpoint(folder)


def test_a_tensor_of_the_wrong_shape_is_refused(copy_of):
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor model.norm.weight is stored as 7, but config.json makes it 32"):
        load_checkpoint(folder)


def test_a_stored_tensor_that_the_model_does_not_have_is_said(copy_of):
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"extra.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(MeasurementWarning, match=r"extra.weight"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-model"}'])
def test_an_unusable_config_is_refused(copy_of, content):
    folder = copy_of()
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "x"},
        {"vocab_size": -1},
        {"max_position_embeddings": -1},
        {"max_position_embeddings": 2.5},
        {"hidden_size": "x"},
        {"hidden_size": None},
        {"num_attention_heads": 0},
        {"num_hidden_layers": [1]},
        {"num_hidden_layers": -1},
        {"rope_parameters": 5},
        {"hidden_act": "zz"},
        {"dtype": "zz"},
        {"quantization_config": 5},
        {"transformers_weights": "other.safetensors"},
    ],
    ids=str,
)
def test_wrong_values_in_a_config_are_refused_in_one_sentence(copy_of, change):
    folder = copy_of()
    edit(folder / "config.json", **change)
    with pytest.raises(InputError) as refusal:
        load_checkpoint(folder, device="cpu")
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_code_of_a_tokenizer_is_not_run(copy_of, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = copy_of()
    edit(folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", None]})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Mine: pass\n")
    checkpoint = load_checkpoint(folder, device="cpu")
    with pytest.raises(InputError, match="needs code of its own, which runs only with --trust-remote-code"):
        _ = checkpoint.tokenizer
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_fails_in_use_is_refused_as_it_is_loaded(copy_of):
    folder = copy_of()
    edit(folder / "tokenizer_config.json", model_max_length=[64])  # transformers compares it with a count, in each call
    with pytest.raises(InputError, match="has no usable tokenizer"):
        _ = load_checkpoint(folder, device="cpu").tokenizer


def test_code_in_a_checkpoint_is_not_run(copy_of, tmp_path):
    folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "custom"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(InputError):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_a_tokenizer_says_so_when_it_is_needed(copy_of):
    folder = copy_of()
    for path in [*folder.glob("tokenizer*"), *folder.glob("special_tokens_map.json")]:
        path.unlink()
    checkpoint = load_checkpoint(folder)
    with pytest.raises(InputError, match="no usable tokenizer"):
        _ = checkpoint.tokenizer


def test_unknown_types_and_devices_are_refused(save_checkpoint_folder):
    folder = save_checkpoint_folder("llama")
    with pytest.raises(InputError, match="int3"):
        load_checkpoint(folder, dtype="int3")
    with pytest.raises(InputError, match="neither 'merge' nor 'keep'"):
        load_checkpoint(folder, adapter="fold")
    with pytest.raises(InputError, match="nowhere"):
        resolve_device("nowhere")


def test_checkpoints_get_names_that_tell_them_apart(copy_of, tmp_path, save_checkpoint_folder):
    source = save_checkpoint_folder("llama")
    for name in ("runs/a/final", "runs/b/final", "other"):
        shutil.copytree(source, tmp_path / name)
    files = [inspect_checkpoint(tmp_path / name) for name in ("runs/a/final", "runs/b/final", "other")]
    assert distinct_names(files[:2]) == ["a/final", "b/final"]
    assert distinct_names([files[0], files[2]]) == ["final", "other"]
    assert distinct_names([files[2], files[2]]) == ["other", "other (2)"]


def test_a_checkpoint_of_the_hub_has_its_id_as_name(tmp_path, monkeypatch, save_checkpoint_folder):
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    stored = tmp_path / "hub" / "models--acme--llama"
    (stored / "refs").mkdir(parents=True)
    for name in ("main", "v2"):
        (stored / "refs" / name).write_text(commit)
    shutil.copytree(save_checkpoint_folder("llama"), stored / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert inspect_checkpoint("acme/llama").name == "llama"
    assert inspect_checkpoint("acme/llama@v2").name == "llama@v2"
    assert inspect_checkpoint("acme/llama", revision="v2").name == "llama@v2"


def test_a_checkpoint_shows_itself_in_one_line(save_checkpoint_folder):
    """Rejects the listing of all modules, and of the shapes of all tensors."""
    folder = save_checkpoint_folder("llama", seed=1)
    checkpoint = load_checkpoint(folder, device="cpu")
    count = sum(p.numel() for p in checkpoint.model.parameters())
    assert repr(checkpoint) == f"Checkpoint('{folder}', LlamaForCausalLM, {count:,} parameters, float32 on cpu)"
