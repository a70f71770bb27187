"""KL on a model's own samples, against the sum over all that it might say."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import assert_same_state, state_of
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from landscape import InputError, load_checkpoint, load_data, measure_forgetting, own_samples
from landscape.data.tokens import Example, TokenData

WORDS, PROMPT = 5, (1, 2)


def llama(seed, **changes):
    torch.manual_seed(seed)
    shape = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlamaConfig(
        **shape, num_hidden_layers=1, initializer_range=0.8, max_position_embeddings=16, bos_token_id=None,
        eos_token_id=None, pad_token_id=None, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def given(*completions, prompt=PROMPT):
    return TokenData("given", tuple(Example((*prompt, *c), (*[-100] * len(prompt), *c)) for c in completions))


def at_seeds(base, count, **options):
    """Completions of one prompt at many seeds, which are independent."""
    examples = [own_samples(base, given((3,)), seed=seed, **options).examples[0] for seed in range(count)]
    return TokenData("at seeds", tuple(examples))


@torch.no_grad()
def of_all_answers(base, tuned, length):
    """The share of each answer of a length among all that the base says, and the mean KL at its tokens."""
    shares, divergences = {}, {}
    for answer in itertools.product(range(WORDS), repeat=length):
        ids = torch.tensor([[*PROMPT, *answer]])
        p, q = (torch.log_softmax(m(ids).logits[0, len(PROMPT) - 1 : -1].double(), -1) for m in (base, tuned))
        shares[answer] = float(p[range(length), list(answer)].sum().exp())
        divergences[answer] = float((p.exp() * (p - q)).sum(-1).mean())
    return shares, divergences


def test_the_divergence_is_that_of_all_answers():
    """Enumerated: 125 answers. 300 samples have a standard error of about 2% here, and 5 of them are allowed.

    Rejects the divergence on given answers (all of them, evenly), and samples at another temperature or of the top few.
    """
    base, tuned = llama(0), llama(1)
    shares, divergences = of_all_answers(base, tuned, 3)
    truth = sum(share * divergences[answer] for answer, share in shares.items())
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    data = at_seeds(base, 300, max_new_tokens=3)
    (task,) = measure_forgetting(base, tuned, {"own": data}, resamples=999).tasks
    assert task.tokens == 900
    low, high = task.kl_interval
    stderr = (high - low) / 4
    assert stderr < 0.05 * truth
    assert task.kl == pytest.approx(truth, abs=5 * stderr)
    evenly = sum(divergences.values()) / len(divergences)
    (on_given,) = measure_forgetting(base, tuned, {"given": given(*divergences)}, resamples=99).tasks
    assert on_given.kl == pytest.approx(evenly, rel=1e-5)
    assert abs(evenly - truth) > 10 * stderr, "the test can tell"
    likeliest = max(shares, key=shares.get)
    said = [example.input_ids[len(PROMPT) :] for example in data.examples]
    expected = 300 * shares[likeliest]
    assert said.count(likeliest) == pytest.approx(expected, abs=5 * expected**0.5)
    assert len(set(said)) > 10, "the two likeliest tokens at each place make 8"


def test_samples_depend_on_the_seed_and_the_prompt_alone():
    base = llama(0)
    base.generation_config.top_k, base.generation_config.repetition_penalty = 1, 5.0  # the checkpoint's own settings
    before, state = state_of(base), torch.get_rng_state()
    one, two = given((3,)), given((4,), prompt=(2, 0, 1))
    both = TokenData("both", two.examples + one.examples)
    alone = own_samples(base, one, max_new_tokens=6).examples
    assert own_samples(base, both, max_new_tokens=6).examples[1:] == alone
    assert own_samples(base, one, max_new_tokens=6, seed=1).examples != alone
    assert_same_state(before, state_of(base))
    assert torch.equal(state, torch.get_rng_state())
    greedy = {own_samples(base, one, max_new_tokens=6, seed=s).examples for s in range(5)}
    assert len(greedy) > 1, "the checkpoint's top_k=1 would say the same each time"


def test_the_settings_of_a_checkpoint_change_no_sample():
    """First tokens of 400 seeds against the softmax of the logits, within 4 standard errors of each share.

    `generate` takes what it is not given from the model: with min_p=0.9 the likeliest token was said always, a token of
    suppress_tokens never, and num_beams was a ValueError.
    """
    base = llama(0)
    with torch.no_grad():
        shares = torch.softmax(base(torch.tensor([PROMPT])).logits[0, -1].double(), -1)
    likeliest = int(shares.argmax())
    settings = base.generation_config
    settings.min_p, settings.num_beams, settings.num_return_sequences = 0.9, 3, 2
    settings.suppress_tokens, settings.repetition_penalty = [likeliest], 5.0
    said = [example.input_ids[len(PROMPT)] for example in at_seeds(base, 400, max_new_tokens=1).examples]
    for token, share in enumerate(shares.tolist()):
        assert said.count(token) == pytest.approx(400 * share, abs=4 * (400 * share * (1 - share)) ** 0.5)
    assert base.generation_config is settings
    base.forward = None  # an error on the way
    with pytest.raises(TypeError):
        own_samples(base, given((3,)))
    assert base.generation_config is settings


def test_a_peft_model_gets_its_settings_back():
    """A PeftModel hands its settings to the model in it; rejects emptied settings afterwards, and ones that leak."""
    base = llama(0)
    base.generation_config.min_p = 1.0
    plain = own_samples(base, given((3,)), max_new_tokens=6).examples
    wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))  # B is zero
    assert own_samples(wrapped, given((3,)), max_new_tokens=6).examples == plain
    assert base.generation_config.min_p == wrapped.generation_config.min_p == 1.0


def test_answers_end_where_the_model_ends_them():
    base = llama(0)
    base.generation_config.eos_token_id = [4]
    answers = at_seeds(base, 40, max_new_tokens=8).examples
    completions = [example.input_ids[len(PROMPT) :] for example in answers]
    assert {len(c) for c in completions} - {8}, "some end early"
    for example, said in zip(answers, completions, strict=True):
        assert 4 not in said[:-1]
        assert len(said) == 8 or said[-1] == 4
        assert example.labels == (-100, -100, *said)


def test_what_cannot_be_sampled_is_refused():
    base = llama(0)
    with pytest.raises(InputError, match=r"example 1 of text has no prompt"):
        own_samples(base, TokenData("text", (Example((1, 2), (-100, 2)),)))
    with pytest.raises(InputError, match="cannot generate"):
        own_samples(torch.nn.Linear(2, 2), given((3,)))
    with pytest.raises(InputError, match="16 positions"):
        own_samples(base, given((3,), prompt=(1,) * 16))
    with pytest.raises(InputError, match="at least 1"):
        own_samples(base, given((3,)), max_new_tokens=0)


def test_landscape_forgetting_with_own_samples(run, save_checkpoint_folder):
    """The command adds NAME.own, which is what Python samples; text without prompts gets none, and alone is refused."""
    base, tuned = (save_checkpoint_folder("llama", seed=seed) for seed in (1, 2))
    records = [{"prompt": f"what is {i} and {i}?", "completion": f" it is {2 * i}."} for i in range(12)]
    Path("sums.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    command = ("forgetting", base, tuned, "--data", "new=sums.jsonl", "--data", "old=builtin:docs", "--limit", 12)
    command += ("--device", "cpu", "--resamples", 99, "-q", "--own-samples", "-o", "out")
    code, out, err = run(*command)
    assert code == 0, err
    assert "new.own" in out
    (checkpoint,) = json.loads(Path("out/summary.json").read_text())["checkpoints"]
    found = {task["name"]: task for task in checkpoint["tasks"]}
    assert list(found) == ["new", "old", "new.own"]
    origin = load_checkpoint(base, device="cpu")
    data = own_samples(origin, load_data("sums.jsonl", origin.tokenizer, max_length=128, limit=12))
    after = load_checkpoint(tuned, device="cpu")
    (expected,) = measure_forgetting(origin, after, {"own": data}, resamples=99).tasks
    assert found["new.own"]["examples"] == expected.examples == 12
    assert found["new.own"]["kl"] == pytest.approx(expected.kl, rel=1e-6)
    assert run(*command)[1] == out
    twice = ("--data", "new=sums.jsonl", "--data", "new.own=builtin:docs")
    code, _, err = run("forgetting", base, tuned, *twice, "--limit", 12, "--own-samples", "-o", "no")
    assert code == 2
    assert "new.own" in err, "a data set of that name would be lost without a word"
    assert "another name" in err
    code, _, err = run("forgetting", base, tuned, "--data", "builtin:docs", "--limit", 4, "--own-samples", "-o", "no")
    assert code == 2
    assert "--own-samples" in err
    assert "prompt" in err
    assert not Path("no").exists()
