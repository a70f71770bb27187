"""What a forward pass computes: no more than the bare model does, and in bfloat16 where asked, said on the result."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from landscape.objective import Objective


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def tokens(rows: int = 4, length: int = 32, prompt: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("prompt", [0, 20])
def test_a_loss_costs_no_more_than_the_bare_forward(model: LlamaForCausalLM, prompt: int) -> None:
    """Counted, not timed: matrix products of the loss against those of `model(**batch).loss`."""
    batch = tokens(prompt=prompt)
    objective = Objective(model, [batch])
    with torch.no_grad(), FlopCounterMode(display=False) as bare:
        expected = float(model(**batch).loss)
    with FlopCounterMode(display=False) as ours:
        found = objective.loss().mean
    assert found == pytest.approx(expected, rel=1e-6)
    assert ours.get_total_flops() <= bare.get_total_flops()
    if prompt:  # a vocabulary of 300 is a third of the work at 32 wide
        assert ours.get_total_flops() < 0.9 * bare.get_total_flops()
