"""Examples become batches: every one once, within the budget, with as little padding as can be."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from landscape.data.tokens import IGNORED, Example, TokenData, pad_examples


def labelled(pairs: list[tuple[int, bool]]) -> Example:
    return Example(tuple(i for i, _ in pairs), tuple(i if on else IGNORED for i, on in pairs))


label_pairs = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=2, max_size=12)
example_lists = st.lists(label_pairs.map(labelled), min_size=1, max_size=12).map(tuple)
budgets = st.integers(1, 60)


def unpadded(batch: dict[str, torch.Tensor]) -> list[Example]:
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True)
    return [Example(tuple(ids[on].tolist()), tuple(labels[on].tolist())) for ids, on, labels in rows]


@given(example_lists, budgets)
def test_batches_hold_every_example_once(examples: tuple[Example, ...], budget: int) -> None:
    data = TokenData("memory", examples, batch_tokens=budget)
    assert Counter(e for batch in data for e in unpadded(batch)) == Counter(examples)
    assert len(data) == len(list(data))


@given(example_lists, budgets)
def test_a_batch_of_several_keeps_its_budget(examples: tuple[Example, ...], budget: int) -> None:
    for batch in TokenData("memory", examples, batch_tokens=budget):
        rows, width = batch["input_ids"].shape
        assert rows * width <= budget or rows == 1


@given(example_lists, budgets)
def test_batches_come_as_they_take_memory_and_say_which_example_a_row_is(
    examples: tuple[Example, ...], budget: int
) -> None:
    data = TokenData("memory", examples, batch_tokens=budget)
    sizes = [rows * width**2 for rows, width in (batch["input_ids"].shape for batch in data)]
    assert sizes == sorted(sizes, reverse=True)
    assert [examples[index] for index in data.order] == [e for batch in data for e in unpadded(batch)]


def test_no_examples_are_no_batches() -> None:
    assert list(TokenData("memory", ())) == []


@given(st.lists(st.integers(1, 400), min_size=1, max_size=9), st.integers(1, 4000))
def test_no_other_batches_pad_less_for_their_number(lengths: list[int], budget: int) -> None:
    """Against every way to cut the sorted lengths: padded tokens, and 128 or a sixteenth of the budget a batch."""
    lengths, extra = sorted(lengths, reverse=True), max(128, budget // 16)

    def cost(parts: list[list[int]]) -> int:
        return sum(extra + len(part) * part[0] for part in parts)

    possible = []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        parts = [lengths[a:b] for a, b in itertools.pairwise([0, *ends, len(lengths)])]
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            possible.append(cost(parts))
    examples = tuple(Example((1,) * length, (IGNORED,) * length) for length in lengths)
    shapes = [batch["input_ids"].shape for batch in TokenData("memory", examples, batch_tokens=budget)]
    assert sum(extra + rows * width for rows, width in shapes) == min(possible)


@given(example_lists, budgets)
def test_digest_and_tokens_do_not_depend_on_batches(examples: tuple[Example, ...], budget: int) -> None:
    data = TokenData("memory", examples)
    other = data.with_batch_tokens(budget)
    assert (other.digest, other.tokens, other.examples) == (data.digest, data.tokens, data.examples)
    in_batches = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in other)
    assert in_batches == data.tokens


@given(example_lists, budgets)
def test_padding_carries_no_loss_and_no_attention(examples: tuple[Example, ...], budget: int) -> None:
    for batch in TokenData("memory", examples, batch_tokens=budget, padding_id=99):
        padding = batch["input_ids"] == 99  # no example has this id
        assert (batch["labels"][padding] == IGNORED).all()
        assert torch.equal(batch["attention_mask"] == 0, padding)
        assert all(t.dtype == torch.int64 and t.device.type == "cpu" for t in batch.values())
        # right padding: attention never comes back after it stopped
        assert (batch["attention_mask"].diff(dim=1) <= 0).all()


def test_digest_tells_apart_ids_labels_order_and_boundaries() -> None:
    variants = [
        (Example((1, 2, 3), (IGNORED, 2, 3)), Example((4, 5), (IGNORED, 5))),
        (Example((1, 2, 9), (IGNORED, 2, 3)), Example((4, 5), (IGNORED, 5))),
        (Example((1, 2, 3), (IGNORED, IGNORED, 3)), Example((4, 5), (IGNORED, 5))),
        (Example((4, 5), (IGNORED, 5)), Example((1, 2, 3), (IGNORED, 2, 3))),
        (Example((1, 2), (3, IGNORED)), Example((2, 3, 4), (5, IGNORED, 5))),
    ]
    assert len({TokenData("memory", variant).digest for variant in variants}) == len(variants)


def test_batches_can_be_read_again() -> None:
    data = TokenData("memory", (Example((1, 2), (IGNORED, 2)),))
    first, second = list(data), list(data)
    assert len(first) == len(second) == 1
    assert torch.equal(first[0]["input_ids"], second[0]["input_ids"])
    assert iter(data) is not data


def test_examples_are_padded_in_the_order_given() -> None:
    batch = pad_examples([Example((1, 2), (IGNORED, 2)), Example((3, 4, 5), (IGNORED, 4, 5))], padding_id=7)
    assert batch["input_ids"].tolist() == [[1, 2, 7], [3, 4, 5]]
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
