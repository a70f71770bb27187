"""What a run will hold in memory is counted before it starts, and refused where it cannot fit."""

import pytest
import torch
from curved import TinyTransformer, tiny_data

import landscape.curvature.operators.memory
from landscape.curvature.operators.memory import (
    MemoryEstimate,
    available_memory,
    counting_saved_bytes,
    require_memory,
    vectors_that_fit,
)
from landscape.curvature.operators.opening import curvature_of
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters


def test_saved_bytes_are_counted_once_each():
    weight = torch.ones(100, requires_grad=True)
    with counting_saved_bytes([weight]) as count:
        y = weight.exp()  # keeps its result, 400 bytes
        _ = (y * y).sum()  # keeps y, the same storage
    assert count[0] == 400


def test_fewer_vectors_are_kept_where_there_is_no_room_for_more(monkeypatch):
    model = TinyTransformer()
    with curvature_of(Objective(model, tiny_data()), Parameters(model)) as operator:
        assert vectors_that_fit(operator, 20, 3) == 20
        room = operator.graph_bytes + 10 * operator.size * 8
        monkeypatch.setattr(landscape.curvature.operators.memory, "available_memory", lambda _: room)
        assert vectors_that_fit(operator, 20, 3) == 7  # ten, and three to work with
        assert vectors_that_fit(operator, 20, 12) == 12
        with pytest.raises(InputError, match="memory"):
            require_memory(operator, 20, show=False)


def test_memory_that_does_not_fit_is_refused_with_a_way_out():
    assert available_memory(torch.device("cpu")) > 2**20
    graph = MemoryEstimate(weights=10, graph=2000, vectors=100, vectors_on_device=True, available=1000)
    with pytest.raises(InputError, match=r"lower batch_tokens, which"):
        graph.require()
    vectors = MemoryEstimate(weights=10, graph=100, vectors=2000, vectors_on_device=True, available=1000)
    with pytest.raises(InputError, match="basis_device"):
        vectors.require()
    MemoryEstimate(weights=10, graph=100, vectors=2000, vectors_on_device=False, available=1000).require()
    MemoryEstimate(weights=10, graph=100, vectors=2000, vectors_on_device=True, available=None).require()
