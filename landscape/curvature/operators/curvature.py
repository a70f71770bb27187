"""The Hessian and the Gauss-Newton matrix of an objective as symmetric linear operators, known by their products.

Four ways to a product (Pearlmutter 1994; Martens 2010; Schraudolph 2002), behind one call:

exact: Reverse over reverse: the gradient with its graph is differentiated again. Products of several vectors share one
    graph per micro-batch, and graphs are kept between calls where they fit.
forward_over_reverse: The gradient of dual numbers, where every operation has a forward derivative.
finite_difference: Central differences of gradients at two step sizes, extrapolated, with their discrepancy.
ggn: J' (d2 loss / d outputs2) J, from the graph of J'u, which is differentiated in u.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature.operators.differences import central_difference
from landscape.curvature.operators.memory import give_back_freed_memory, is_large
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.linalg.operator import SymmetricOperator, inner_products
from landscape.linalg.precision import all_finite
from landscape.objective.loss_functions import OutputLoss
from landscape.objective.objective import Objective
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import everywhere, whole
from landscape.results import from_plain, to_plain
from landscape.weights.flat import Layout, flat_length
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import EXACT, Fidelity

Parts = Sequence[Tensor | None]  # a tensor per parameter; None where it does not enter
# product of one batch's summed curvature with a vector; whether the graph will be used again
Graph = Callable[[Sequence[Tensor], bool], Parts]


class CurvatureOperator(SymmetricOperator):
    """The curvature of a weighted mean loss: products with blocks of vectors, shape (k, size).

    `opening.curvature_of` opens one, inside which the model is in the state that products need. Inside
    `distributed.shared_work` the processes split the batches, and each keeps the graphs of its own.

    Args:
        objective: The loss as a function of the weights.
        parameters: The weights in question; the others are constants.
        hvp: How products are taken: "exact", "forward_over_reverse", "finite_difference" or "ggn".
        keep_graphs: Keep the graphs of gradients between calls.

    Attributes:
        reason: Why this way of taking products was chosen, where it was chosen for the caller.
        matvecs: The number of vectors multiplied so far.
        step: The longer step of finite differences, as the last product left it.
        error: The largest discrepancy of finite differences so far, relative to the product's norm; 0 for the others.
        unverified: Why second derivatives could not be compared with differences of gradients; "" where they could,
            and where products take none.
        checking_gradients: The number of gradients, of a row or two, that the comparison took.
        fidelity: What rounding left of the steps of finite differences, at the worst.
        graph_bytes: The memory of the graph of the largest micro-batch, or of all where graphs are kept, where known.
        keeps_graphs: Whether graphs are kept.
    """

    def __init__(self, objective: Objective, parameters: Parameters, hvp: str, keep_graphs: bool = False):
        self.objective, self.parameters = objective, parameters
        self.layout = Layout(parameters)
        self.size, self.device, self.dtype = self.layout.size, self.layout.device, self.layout.dtype
        self.matvecs = 0
        self.error = 0.0
        self.reason = ""
        self.unverified = ""
        self.checking_gradients = 0
        self.fidelity = EXACT
        self.graph_bytes = 0
        self.keeps_graphs = keep_graphs
        self._tensors = list(parameters.tensors)
        self._kept: list[tuple[Graph, float]] = []
        self._versions: list[Any] = []
        self.step = 0.1 if self.dtype == torch.float32 else 0.01
        self.hvp = hvp

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of `vectors`, shape (k, size): rows of that shape, in float32 or wider."""
        vectors = vectors.to(self.device, self.dtype)
        self.matvecs += len(vectors)
        if self.hvp == "finite_difference":
            return torch.stack([self._difference(vector) for vector in vectors])
        return self._sum_over_batches(vectors)

    # Vectors of a sharded model are DTensors, whose sums are those of one process's slice until they are made whole.

    def inner(self, basis: Tensor, vector: Tensor) -> Tensor:
        """Return the inner products of the rows of `basis` with `vector`, over all slices."""
        return whole(basis @ vector) if isinstance(vector, DTensor) else inner_products(basis, vector)

    def norm(self, vector: Tensor) -> Tensor:
        """Return the Euclidean length of `vector`, over all slices."""
        return flat_length(vector)

    def combine(self, coefficients: Tensor, basis: Tensor) -> Tensor:
        """Return `coefficients @ basis`, sharded as the basis is."""
        return everywhere(coefficients, basis) @ basis

    def all_finite(self, vectors: Tensor) -> bool:
        """Return whether no element of any slice of `vectors` is infinite or NaN."""
        if not isinstance(vectors, DTensor):  # a view at a time: nothing as large as the weights is made
            return all(all_finite(view) for vector in vectors for view in self.layout.views(vector))
        return bool(whole(torch.isfinite(vectors).all()))

    # --- products from graphs -------------------------------------------------------------------------------

    def _sum_over_batches(self, vectors: Tensor) -> Tensor:
        views = [
            [part.to(t.device, t.dtype) for part, t in zip(self.layout.views(vector), self._tensors, strict=True)]
            for vector in vectors
        ]
        versions = [distributed.share(), *(t._version for t in self._tensors)]
        if versions != self._versions:  # a graph does not survive a change of the weights it was taken at
            self._kept, self._versions = [], versions

        def part(share: Share) -> tuple[float, list[Tensor]]:
            if self._kept:
                total = _Total(self.layout, vectors)
                try:
                    for graph, weight in self._kept:
                        total.add([graph(view, True) for view in views], weight)
                    return total.weight, [total.sums]
                except torch.OutOfMemoryError:
                    self._kept, self.keeps_graphs = [], False
            total = _Total(self.layout, vectors)
            self._add_fresh_products(total, views, share)
            return total.weight, [total.sums]

        weights, (total,) = distributed.summed(part)
        if sum(weights) == 0:
            raise InputError("the data has no supervised token: no curvature can be taken over it.")
        return total.div_(sum(weights))

    def _add_fresh_products(self, total: _Total, views: Sequence[Sequence[Tensor]], share: Share) -> None:
        """Add every micro-batch's products with every vector; keep the graphs where they fit."""
        keeping: list[tuple[Graph, float]] = []

        def measure(batch: Batch) -> None:
            graph, weight = self.build(batch)
            last = len(views) - 1
            # all of them before the first is added: memory may run out, and the batch be cut, at any of them
            products = [graph(view, self.keeps_graphs or i < last) for i, view in enumerate(views)]
            if self.keeps_graphs:
                keeping.append((graph, weight))
            del graph
            if large:
                give_back_freed_memory()
            total.add(products, weight)

        large, limit = is_large(self) and self.device.type == "cpu", self.objective.rows_limit
        for _ in self.objective.over_share(share, measure):
            if self.objective.rows_limit != limit:  # memory ran out on the way: there is none to keep graphs in
                keeping.clear()
                self.keeps_graphs = False
        self._kept = keeping

    def build(self, batch: Batch) -> tuple[Graph, float]:
        """Return a function that takes products of one batch (on the device already), and the batch's weight."""
        # attention in the one form that has derivatives of derivatives (pytorch#116350)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            if self.hvp == "ggn":
                return self._gauss_newton_graph(batch)
            if self.hvp == "forward_over_reverse":
                return self._dual_graph(batch)
            return self._gradient_graph(batch)

    def _gradient_graph(self, batch: Batch) -> tuple[Graph, float]:
        loss_sum, weight = self.objective.evaluate(batch)
        gradients = torch.autograd.grad(loss_sum, self._tensors, create_graph=True, allow_unused=True)
        where = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        # what made the gradients is differentiated: they themselves, as large as the weights, are not needed for it
        curved = [get_gradient_edge(gradients[i]) for i in where]
        del gradients

        def product(vector: Sequence[Tensor], again: bool) -> Parts:
            if not curved:
                return [None] * len(self._tensors)
            along = [vector[i] for i in where]
            return torch.autograd.grad(curved, self._tensors, grad_outputs=along, retain_graph=again, allow_unused=True)

        return product, float(weight)

    def _gauss_newton_graph(self, batch: Batch) -> tuple[Graph, float]:
        loss_fn = self.objective.loss_fn
        assert isinstance(loss_fn, OutputLoss)
        outputs = loss_fn.outputs(self.objective.model, batch)
        _, weight = loss_fn.of_outputs(outputs.detach(), batch)
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, self._tensors, cotangent, create_graph=True, allow_unused=True)
        used = [(i, p) for i, p in enumerate(pulled) if p is not None]

        def product(vector: Sequence[Tensor], again: bool) -> Parts:
            if not used:
                return [None] * len(self._tensors)
            # J'u is linear in u: its derivative in u, transposed, takes v to Jv
            (pushed,) = torch.autograd.grad(
                [p for _, p in used], cotangent, grad_outputs=[vector[i] for i, _ in used], retain_graph=True
            )
            bent = loss_fn.output_hessian(outputs, batch, pushed).to(outputs.dtype)
            return torch.autograd.grad(outputs, self._tensors, bent, retain_graph=again, allow_unused=True)

        return product, float(weight)

    def _dual_graph(self, batch: Batch) -> tuple[Graph, float]:
        runner = _LossOf(self.objective)
        with torch.no_grad():
            _, weight = self.objective.evaluate(batch)
        names = [f"model.{name}" for name in self.layout.names]

        def product(vector: Sequence[Tensor], _: bool) -> Parts:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(t.detach().requires_grad_(True), v)
                    for t, v in zip(self._tensors, vector, strict=True)
                ]
                replaced = dict(zip(names, duals, strict=True))
                loss_sum = torch.func.functional_call(runner, replaced, (batch,), tie_weights=True)
                gradients = torch.autograd.grad(loss_sum, duals, allow_unused=True)
                return [None if g is None else forward_ad.unpack_dual(g).tangent for g in gradients]

        return product, float(weight)

    def _difference(self, vector: Tensor) -> Tensor:
        difference = central_difference(self.objective, self.parameters, vector, self.step)
        self.step = difference.step
        self.error = max(self.error, difference.error)
        self.fidelity = self.fidelity.worse(difference.fidelity)
        return difference.product

    def learnt(self) -> dict[str, Any]:
        """Return what the products taken so far have shown of finite differences, for a journal."""
        return {"step": self.step, "error": self.error, "fidelity": self.fidelity}

    def recall(self, learnt: Mapping[str, Any]) -> None:
        """Continue from what another operator had `learnt`, which may have been to a journal since."""
        self.step, self.error = float(learnt["step"]), float(learnt["error"])
        self.fidelity = from_plain(Fidelity, to_plain(learnt["fidelity"]))


class _Total:
    """The sum of the weights and of the products of the batches so far.

    Attributes:
        weight: The sum of the weights.
    """

    def __init__(self, layout: Layout, like: Tensor):
        self._layout, self._like = layout, like
        self._sums: Tensor | None = None  # made when there is something to add, and the graph is gone
        self.weight = 0.0

    @property
    def sums(self) -> Tensor:
        """The sums of the products, shape (k, size)."""
        return torch.zeros_like(self._like) if self._sums is None else self._sums

    def add(self, products: Sequence[Parts], weight: float) -> None:
        """Add the products of one batch."""
        self._sums = self.sums
        for row, parts in zip(self._sums, products, strict=True):
            for accumulated, part in zip(self._layout.views(row), parts, strict=True):
                if part is not None:
                    accumulated += part.to(accumulated.device)
        self.weight += weight


class _LossOf(nn.Module):
    """The summed loss as a module, so that torch.func can swap the parameters under it."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.model = objective.model
        self._evaluate = objective.loss_fn

    def forward(self, batch: Batch) -> Tensor:
        return self._evaluate(self.model, batch)[0]
