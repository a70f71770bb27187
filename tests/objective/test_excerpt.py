"""Excerpts of token batches, on which checks of a model are made: what they keep, and that the checks still see."""

import pytest
import torch
from conftest import build_model
from hypothesis import given
from hypothesis import strategies as st

from landscape.data.tokens import IGNORED, Example, TokenData
from landscape.errors import InputError
from landscape.objective.excerpt import PADDING, TOKENS, excerpt
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters


def one_batch(lengths, prompts, seed=0, vocabulary=64):
    """A right-padded batch of random examples, of which the first tokens (`prompts`) are not supervised."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length, prompt in zip(lengths, prompts, strict=True):
        ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        examples.append(Example(tuple(ids), tuple([IGNORED] * prompt + ids[prompt:])))
    (batch,) = list(TokenData("random", tuple(examples), batch_tokens=10**6))
    return batch


@given(st.lists(st.tuples(st.integers(2, 300), st.floats(0, 1)), min_size=1, max_size=5), st.integers(8, 64))
def test_an_excerpt_is_a_part_of_each_example_around_its_first_supervised_label(drawn, tokens):
    lengths = [length for length, _ in drawn]
    batch = one_batch(lengths, [min(int(share * length), length - 1) for length, share in drawn])
    cut = excerpt(batch, tokens)
    if max(lengths) <= tokens:
        assert cut is batch
        return
    assert cut["labels"].shape == (len(batch["labels"]), tokens)
    before, after = batch["attention_mask"].sum(1).tolist(), cut["attention_mask"].sum(1).tolist()
    assert max(after) == tokens
    for row, (length, kept) in enumerate(zip(before, after, strict=True)):
        assert min(length, 4) <= kept <= length
        # no row grows longer than another that it was shorter than
        assert all(after[other] >= kept for other in range(len(after)) if before[other] >= length)
        ids, labels = batch["input_ids"][row, :length].tolist(), batch["labels"][row, :length].tolist()
        found = (cut["input_ids"][row, :kept].tolist(), cut["labels"][row, :kept].tolist())
        places = [i for i in range(length - kept + 1) if (ids[i : i + kept], labels[i : i + kept]) == found]
        assert places
        first = next(i for i in range(1, length) if labels[i] != IGNORED)
        assert any(start < first < start + kept for start in places)  # so that it is still predicted
        for key, filler in PADDING.items():
            assert (cut[key][row, kept:] == filler).all()


def test_batches_that_cannot_be_cut_come_back_as_they_are():
    batch = one_batch([60, 50], [0, 0])
    left = {key: part.flip(1) for key, part in batch.items()}  # padded on the left
    assert excerpt(left) is left
    other = batch | {"position_ids": torch.arange(60).repeat(2, 1)}
    assert excerpt(other) is other
    pair = (torch.zeros(2, 60), torch.zeros(2))
    assert excerpt(pair) is pair


def test_opening_a_loss_on_long_examples_takes_a_few_tokens_of_them():
    model = build_model("llama")
    data = [one_batch([60] * 8, [4] * 8, seed=seed) for seed in range(2)]
    seen = []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    objective = Objective(model, data)
    objective.gradient(Parameters(model))
    handle.remove()
    longest = 60 * 8  # tokens of a batch
    assert seen[-2:] == [longest] * 2  # the measurement itself is of whole examples
    assert max(seen[:-2]) == 3 * TOKENS
    # three together, one by one, and two with one; two forms of the loss on two examples; two of causality; one of
    # paths of gradients. Whole examples would take twice as many.
    assert sum(seen[:-2]) <= (3 + 3 + 2 + 4 + 4 + 1) * TOKENS


def test_padding_is_still_tried_on_excerpts_of_long_examples():
    class Shrinking(torch.nn.Module):
        """A model whose logits shrink with the padding of an example: wrong, unless there is none."""

        def __init__(self):
            super().__init__()
            self.inner = build_model("llama")
            self.config = self.inner.config

        def forward(self, input_ids, attention_mask, labels=None, **_):
            output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            return output.logits * attention_mask.float().mean(1)[:, None, None]

    with pytest.raises(InputError, match="it depends on how far examples are padded"):
        Objective(Shrinking(), [one_batch([60, 50, 40], [4, 4, 4])])
    Objective(Shrinking(), [one_batch([60, 60, 60], [4, 4, 4])])  # no padding, and no harm


def test_a_given_loss_sees_whole_examples():
    seen = set()

    def loss_fn(model, batch):
        seen.add(int(batch["attention_mask"].sum(1).max()))
        return model(input_ids=batch["input_ids"]).logits.sum(), batch["attention_mask"].sum()

    Objective(build_model("llama"), [one_batch([60, 60, 60], [4, 4, 4])], loss_fn)
    assert seen == {60}
