"""What a forward pass computes: no more than the bare model does, and in bfloat16 where asked, said on the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from landscape.curvature.products import hessian_vector_product
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.surfaces.compute import compute_interpolation, compute_plane, compute_surface, compute_trajectory
from landscape.surfaces.result import Surface


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


def test_autocast_says_what_it_did_to_the_loss(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """The deviation is that of the centre, and of the size of bfloat16: 8 bits in every product, a mean over tokens."""
    data = [tokens()]
    exact = compute_surface(model, data, dim=1, points=3, span=0.1, run=Run(progress=False))
    lowered = compute_surface(model, data, dim=1, points=3, span=0.1, run=Run(autocast="bfloat16", progress=False))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = float(model(**data[0]).loss)
    assert lowered.autocast is not None
    assert lowered.autocast.dtype == "bfloat16"
    # the model's own loss takes the logits of all positions in one product, ours of some: the order of rounding differs
    assert lowered.center == pytest.approx(expected, abs=2e-4)
    assert lowered.autocast.deviation == lowered.center - exact.center
    assert 0 < abs(lowered.autocast.deviation) < 0.02
    assert exact.autocast is None
    lowered.save(tmp_path / "lowered.json")
    assert Surface.load(tmp_path / "lowered.json").autocast == lowered.autocast
    assert any("bfloat16" in cell for _, cell in lowered.rows())


def test_weights_move_in_their_own_type_under_autocast(model: LlamaForCausalLM) -> None:
    """Steps far below half a unit of bfloat16 are taken: nothing of the weights themselves is rounded to it."""
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    surface = compute_surface(
        model, [tokens()], dim=1, points=3, span=1e-4, run=Run(autocast="bfloat16", progress=False)
    )
    assert surface.fidelity.cosine > 0.9999
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_a_callers_own_autocast_changes_nothing(model: LlamaForCausalLM) -> None:
    """torch keeps the casts of weights until the outermost autocast ends: weights that moved would not be seen."""
    data = [tokens()]
    how: dict[str, Any] = {"dim": 1, "points": 3}
    vector = {name: torch.ones_like(tensor) for name, tensor in model.named_parameters()}

    def measured() -> list[torch.Tensor]:
        losses = [compute_surface(model, data, run=Run(autocast=dtype), **how).loss for dtype in ("bfloat16", None)]
        products = [
            hessian_vector_product(model, data, vector, **way)
            for way in ({"scope": Scope(curvature="ggn")}, {"run": Run(hvp="exact")})
        ]
        return [torch.from_numpy(np.array(losses)), *(torch.cat([t.view(-1) for t in p.values()]) for p in products)]

    expected = measured()
    with torch.autocast("cpu", torch.bfloat16):
        found = measured()
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))


def test_every_kind_of_surface_takes_it(model: LlamaForCausalLM) -> None:
    torch.manual_seed(1)
    others = [LlamaForCausalLM(model.config).eval() for _ in range(2)]
    how: dict[str, Any]
    data, how = [tokens(rows=2)], {"points": 3, "run": Run(autocast="bfloat16")}
    line = compute_interpolation(model, others[0], data, **how)
    plane = compute_plane([model, *others], data, **how)
    path = compute_trajectory([*others, model], data, **how)
    deviations = {surface.autocast.deviation for surface in (line, plane, path) if surface.autocast}
    assert len(deviations) == 1  # the centre of all three is the same model
    assert next(iter(deviations)) != 0


def test_a_journal_keeps_the_centre_without_autocast(model: LlamaForCausalLM, tmp_path: Path) -> None:
    how: dict[str, Any] = {"dim": 1, "points": 3, "span": 0.1}
    run = Run(autocast="bfloat16", journal=tmp_path / "journal")
    first = compute_surface(model, [tokens()], run=run, **how)
    again = compute_surface(model, [tokens()], run=run, **how)
    assert again.autocast == first.autocast
    assert (again.loss == first.loss).all()
    with pytest.raises(InputError):  # other settings than the journal's
        compute_surface(model, [tokens()], run=Run(journal=tmp_path / "journal"), **how)


def test_float64_weights_are_refused(model: LlamaForCausalLM) -> None:
    """autocast casts no float64: the surface would say bfloat16 of what ran in float64."""
    with pytest.raises(InputError, match="float64"):
        compute_surface(model.double(), [tokens()], dim=1, points=3, run=Run(autocast="bfloat16", progress=False))


def test_another_type_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="float8"):
        compute_surface(model, [tokens()], dim=1, points=3, run=Run(autocast="float8", progress=False))


def test_the_command_says_it(run: Any, save_checkpoint_folder: Any, records: Any) -> None:
    arguments = ["plot", save_checkpoint_folder("llama"), "--data", records, "--dim", "1", "--points", "3"]
    arguments += ["--device", "cpu", "-o", "out"]
    code, out, err = run(*arguments, "--autocast", "bfloat16")
    assert code == 0, err
    assert "forward passes in bfloat16 (autocast)" in out
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["surfaces"][0]["autocast"]["deviation"] != 0
    assert run(*arguments)[0] == 2  # what the folder holds is another measurement
