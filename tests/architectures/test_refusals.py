"""Inputs for which a next-token loss has no meaning are refused before anything is measured, by every command."""

import json

import pytest
import torch
from conftest import VOCABULARY, build_model, make_batches, plain_loss, state_of
from conftest import assert_same_state as assert_same
from families import tiny_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from landscape import Scope, compute_sharpness, compute_surface, load_checkpoint, supervised_loss
from landscape.errors import InputError, MeasurementWarning
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 128, "pad_token_id": 0}  # fmt: skip


def other_models():
    torch.manual_seed(0)
    small_t5 = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return {
        "a masked language model": BertForMaskedLM(BertConfig(**SIZES)),
        "a sequence classifier": LlamaForSequenceClassification(LlamaConfig(**SIZES)),
        "an encoder-decoder model": T5ForConditionalGeneration(small_t5),
        "is_decoder is False": BertLMHeadModel(BertConfig(**SIZES)),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    made = {}
    for words, model in other_models().items():
        folder = tmp_path_factory.mktemp("kinds") / type(model).__name__
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[words] = folder
    return made


COMMANDS = [
    "plot {0} --points 3 --data {1}",
    "sharpness {0} --metric average_case --data {1}",
    "hessian {0} --check --data {1}",
    "forgetting {0} {0} --data {1}",
    "measure {0} {0} --new {1} --old {1}",
]


@pytest.mark.parametrize("words", ["a masked language model", "a sequence classifier", "an encoder-decoder model",
                                   "is_decoder is False"])  # fmt: skip
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_what_is_not_a_causal_model_is_refused_by_every_command(command, words, folders, records, run):
    code, _, err = run(*command.format(folders[words], records).split())
    assert code == 2, err
    err = err.strip().splitlines()[-1]
    assert words in err
    assert "causal language model" in err
    assert err.startswith("landscape: ")


def test_an_adapter_for_a_classifier_is_refused(tmp_path, save_checkpoint_folder):
    import peft

    base = save_checkpoint_folder("llama")
    adapted = peft.get_peft_model(build_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings |= {"task_type": "SEQ_CLS", "base_model_name_or_path": str(base)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="makes a sequence classifier of its base"):
        load_checkpoint(tmp_path, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_later_tokens_is_refused_and_left_as_it_was(dtype):
    model = other_models()["is_decoder is False"].to(dtype).train()
    before = state_of(model)
    with pytest.raises(InputError, match="is not a causal language model"):
        Objective(model, make_batches())
    assert_same(before, state_of(model))


def test_one_later_token_that_one_position_sees_is_enough():
    class Peeking(type(build_model("llama"))):
        """Every position sees a hundredth of the hidden state after it."""

        def forward(self, *args, labels=None, **kwargs):
            output = super().forward(*args, **kwargs)
            ahead = torch.zeros_like(output.logits)
            ahead[:, :-1] = output.logits[:, 1:]
            output.logits = output.logits + 0.01 * ahead
            if labels is not None:
                output.loss = self.loss_function(output.logits, labels, vocab_size=self.config.vocab_size)
            return output

    model = build_model("llama")
    model.__class__ = Peeking
    with pytest.raises(InputError, match="is not a causal language model"):
        Objective(model, make_batches())


def mixture(**changes):
    torch.manual_seed(0)
    # A router that is far from balanced, so that its auxiliary loss is large.
    model = MixtralForCausalLM(
        MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4, router_aux_loss_coef=0.5, **changes)
    ).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor += (2.0 if "gate.weight" in name else 0.1) * torch.randn_like(tensor)
    return model


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_the_auxiliary_loss_of_a_router_is_left_out_and_said(rows):
    plain, model = mixture(), mixture(output_router_logits=True)
    batches = make_batches(rows=rows)
    with pytest.warns(MeasurementWarning, match="auxiliary loss of the router of MixtralForCausalLM"):
        objective = Objective(model, batches)
    # Rounding of float32; with the auxiliary loss it would be 0.3 higher or more, and other in every batching.
    assert objective.loss().mean == pytest.approx(plain_loss(plain, batches), rel=1e-5)
    assert plain_loss(model, batches) > 1.02 * plain_loss(plain, batches)
    _, gradient = objective.gradient(Parameters(model))
    _, expected = Objective(plain, batches).gradient(Parameters(plain))
    for name in gradient:
        assert torch.allclose(gradient[name], expected[name], rtol=1e-4, atol=1e-6), name
    assert model.config.output_router_logits  # The model is as it was.


class Leaky(nn.Module):
    """Adds to each output something of the other examples in the batch."""

    def __init__(self, amount):
        super().__init__()
        self.linear, self.amount = nn.Linear(4, 3), amount

    def forward(self, x):
        out = self.linear(x)
        return out + self.amount * out.std(0, unbiased=False)


def pairs(rows=6):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, 4, generator=generator), torch.randint(0, 3, (rows,), generator=generator))]


def test_a_loss_that_depends_on_the_batch_is_refused():
    Objective(Leaky(0.0), pairs())
    with pytest.raises(InputError, match=r"together and .* one by one: it depends on how examples are batched"):
        Objective(Leaky(0.01), pairs())


def test_a_batch_norm_without_statistics_is_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(InputError, match=r"1 \(BatchNorm1d\) keeps no running statistics|cannot be cut"):
        Objective(model, pairs(8), loss_fn=three_at_least)


def three_at_least(model, batch):
    """A batch of one has no variance, over which torch raises; two alike stand in for it."""
    inputs, targets = (part.repeat_interleave(2, 0) for part in batch)
    total, weight = supervised_loss(nn.CrossEntropyLoss())(model, (inputs, targets))
    return total / 2, weight / 2


def test_a_mean_instead_of_a_sum_is_named():
    def mean_of_batch(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1]), 1

    data = [(torch.arange(12.0).reshape(3, 4), torch.tensor([[1.0], [5.0], [-2.0]]))]
    with pytest.raises(InputError, match=r"weight 1 together and 3 one by one, but has to return the sum"):
        compute_surface(nn.Linear(4, 1), data, dim=1, points=3, scope=Scope(loss_fn=mean_of_batch))


def test_a_loss_that_draws_random_numbers_is_named_and_the_generator_is_left_alone():
    def noisy(model, batch):
        return (model(batch[0]) * torch.rand(())).sum(), len(batch[0])

    model, data, state = nn.Linear(4, 3), pairs(), torch.get_rng_state()
    with pytest.raises(InputError, match="differs from one evaluation to the next: it draws random numbers"):
        Objective(model, data, loss_fn=noisy)
    assert torch.equal(state, torch.get_rng_state())


def test_padding_on_the_left_of_absolute_positions_is_named():
    batches = make_batches()
    for batch in batches:
        lengths = batch["attention_mask"].sum(1)
        for row, length in enumerate(lengths.tolist()):
            for key in batch:
                batch[key][row] = batch[key][row].roll(batch[key].shape[1] - length)
    with pytest.raises(InputError, match="how far examples are padded and on which side; pad them on the right"):
        Objective(build_model("gpt2"), batches)


def test_batches_of_one_example_are_compared_too():
    """A model that tells how many rows it sees; in the data every batch has one."""

    class Counting(type(build_model("llama"))):
        def forward(self, input_ids=None, **kwargs):
            output = super().forward(input_ids=input_ids, **kwargs)
            if output.loss is not None:
                output.loss = output.loss * (1 + 0.001 * len(input_ids))
            return output

    model = build_model("llama")
    model.__class__ = Counting
    with pytest.raises(InputError, match="it depends on how examples are batched"):
        Objective(model, make_batches(rows=1))


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        (nn.Linear(4, 1), torch.randn(5, 1)),
        (nn.Linear(4, 1), torch.ones(5, 1)),  # a probability of one class: the loss is always 0
        (nn.Linear(4, 3), torch.randn(5, 3)),
        (nn.Linear(4, 3), torch.randn(5)),
        (nn.Linear(4, 1), torch.zeros(5, dtype=torch.long)),
    ],
)
def test_targets_of_a_regression_name_the_loss_that_they_need(model, targets):
    data = [(torch.randn(5, 4), targets)]
    for call in (lambda: compute_surface(model, data), lambda: compute_sharpness(model, data, metric="average_case")):
        with pytest.raises(InputError, match=r"landscape\.supervised_loss\(torch\.nn\.MSELoss\(\)\)"):
            call()


def test_classes_and_their_probabilities_are_still_a_cross_entropy():
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    probabilities = torch.softmax(torch.randn(5, 3), 1)
    for targets in (torch.tensor([0, 2, 1, -100, 2]), probabilities):
        expected = nn.functional.cross_entropy(model(inputs), targets)
        assert Objective(model, [(inputs, targets)]).loss().mean == pytest.approx(float(expected.detach()), rel=1e-6)
    with pytest.raises(InputError, match="target 3 of batch 1 is none of the model's 3 classes"):
        Objective(model, [(inputs, torch.tensor([0, 2, 1, 3, 2]))])


def test_experts_in_float64(tmp_path, tokenizer, records, run):
    model = mixture()
    with pytest.raises(InputError, match=r'call model.set_experts_implementation\("eager"\) first'):
        Objective(mixture().double(), make_batches())
    model.save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    options = ["--dtype", "float64", "--top", "1", "--max-matvecs", "4", "--max-probes", "2"]
    code, _, err = run("hessian", tmp_path / "moe", "--data", records, *options)
    assert code == 0, err


def test_a_gradient_that_the_model_hides_is_refused_and_its_loss_is_not():
    class Truncated(nn.Module):
        def __init__(self, no_grad):
            super().__init__()
            self.first, self.second, self.no_grad = nn.Linear(4, 4), nn.Linear(4, 3), no_grad

        def forward(self, x):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.no_grad):
                x = self.first(x)
            return self.second(x)

    for no_grad in (False, True):
        model = Truncated(no_grad)
        objective = Objective(model, pairs())
        assert objective.loss().mean > 0
        if no_grad:
            with pytest.raises(InputError, match=r"its own code runs first under torch.no_grad\(\)"):
                objective.gradient(Parameters(model))
        else:
            objective.gradient(Parameters(model))


def test_tables_that_an_architecture_freezes_stay_frozen(tmp_path):
    tiny_model("marian").save_pretrained(tmp_path)
    names = Parameters(load_checkpoint(tmp_path, device="cpu").model).names
    assert "model.decoder.layers.0.fc1.weight" in names
    assert not any("embed_positions" in name for name in names)
