"""The Hessian and the Gauss-Newton matrix of an objective as symmetric linear operators, known by their products.

Four ways to a product (Pearlmutter 1994; Martens 2010; Schraudolph 2002), behind one call:

exact                 reverse over reverse: the gradient with its graph, differentiated again. Products of several
                      vectors share one graph per micro-batch; graphs are kept between calls where they fit.
forward_over_reverse  the gradient of dual numbers; where every operation has a forward derivative.
finite_difference     central differences of gradients at two step sizes, extrapolated, with their discrepancy.
ggn                   J' (d2 loss / d outputs2) J, from the graph of J'u, differentiated in u.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from landscape.differences import central_difference
from landscape.errors import InputError, MeasurementWarning, first_line
from landscape.losses import Batch, OutputLoss
from landscape.memory import MemoryEstimate, available_memory, counting_saved_bytes
from landscape.objective import Objective, on_device, rows_of, take_rows
from landscape.parameters import EXACT, Parameters, preserved
from landscape.vectors import Layout

HVPS = ("auto", "exact", "forward_over_reverse", "finite_difference")
CURVATURES = ("hessian", "ggn")
_KEPT_SHARE = 0.4  # of the available memory may hold kept graphs

Parts = Sequence[Tensor | None]  # a tensor per parameter; None where it does not enter
# product of one batch's summed curvature with a vector; whether the graph will be used again
Graph = Callable[[Sequence[Tensor], bool], Parts]


class CurvatureOperator:
    """The curvature of a weighted mean loss: products with blocks of vectors, shape (k, size). See `curvature_of`.

    hvp       how products are taken: "exact", "forward_over_reverse", "finite_difference" or "ggn"
    reason    why, where it was chosen for the caller
    products  vectors multiplied so far
    error     the largest discrepancy of finite differences so far, relative to the product's norm; 0 for the others
    """

    def __init__(self, objective: Objective, parameters: Parameters, curvature: str, hvp: str, keep_graphs: bool):
        self.objective, self.parameters = objective, parameters
        self.layout = Layout(parameters)
        self.size, self.device, self.dtype = self.layout.size, self.layout.device, self.layout.dtype
        self.products = 0
        self.error = 0.0
        self.reason = ""
        self.fidelity = EXACT
        self.graph_bytes = 0  # of the largest micro-batch, or of all where graphs are kept; from a probe
        self.keeps_graphs = keep_graphs
        self._tensors = list(parameters.tensors)
        self._kept: list[tuple[Graph, float]] = []
        self._step = 0.1 if self.dtype == torch.float32 else 0.01
        self.hvp = self._choose(curvature, hvp)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products with the rows of `vectors`, shape (k, size): rows of the same shape, in float32 or wider."""
        vectors = vectors.to(self.device, self.dtype)
        self.products += len(vectors)
        if self.hvp == "finite_difference":
            return torch.stack([self._difference(vector) for vector in vectors])
        return self._sum_over_batches(vectors)

    # --- products from graphs -------------------------------------------------------------------------------

    def _sum_over_batches(self, vectors: Tensor) -> Tensor:
        views = [
            [part.to(t.device, t.dtype) for part, t in zip(self.layout.views(vector), self._tensors, strict=True)]
            for vector in vectors
        ]
        if self._kept:
            try:
                return self._weighted_mean(vectors, (([g(v, True) for v in views], w) for g, w in self._kept))
            except torch.OutOfMemoryError:
                self._kept, self.keeps_graphs = [], False
        return self._weighted_mean(vectors, self._fresh_products(views))

    def _weighted_mean(self, like: Tensor, products: Iterable[tuple[list[Parts], float]]) -> Tensor:
        total, weight = torch.zeros_like(like), 0.0
        for parts_of_vectors, batch_weight in products:
            for row, parts in zip(total, parts_of_vectors, strict=True):
                for accumulated, part in zip(self.layout.views(row), parts, strict=True):
                    if part is not None:
                        accumulated += part.to(accumulated.device)
            weight += batch_weight
        if weight == 0:
            raise InputError("the data has no supervised token: no curvature can be taken over it.")
        return total.div_(weight)

    def _fresh_products(self, views: Sequence[Sequence[Tensor]]) -> Iterator[tuple[list[Parts], float]]:
        """Every micro-batch's products with every vector, and its weight; keeps the graphs where they fit."""
        keeping: list[tuple[Graph, float]] = []

        def measure(batch: Batch) -> tuple[list[Parts], float]:
            graph, weight = self._build(batch)
            last = len(views) - 1
            found = [graph(view, self.keeps_graphs or i < last) for i, view in enumerate(views)]
            if self.keeps_graphs:
                keeping.append((graph, weight))
            return found, weight

        limit = self.objective.rows_limit
        for found in self.objective.over_batches(measure):
            yield found
            if self.objective.rows_limit != limit:  # memory ran out on the way: there is none to keep graphs in
                keeping.clear()
                self.keeps_graphs = False
        self._kept = keeping

    def _build(self, batch: Batch) -> tuple[Graph, float]:
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
        curved = [g for g in gradients if g is not None and g.requires_grad]
        where = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]

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
        found = central_difference(self.objective, self.parameters, vector, self._step)
        self._step = found.step
        self.error = max(self.error, found.error)
        self.fidelity = self.fidelity.worse(found.fidelity)
        return found.product

    # --- choosing -------------------------------------------------------------------------------------------

    def _choose(self, curvature: str, hvp: str) -> str:
        compiled = any(hasattr(module, "_orig_mod") for module in self.objective.model.modules())
        if curvature == "ggn":
            if not isinstance(self.objective.loss_fn, OutputLoss):
                raise InputError(
                    "curvature='ggn' needs to know the model's outputs: use the default loss, "
                    "supervised_loss(criterion), or a loss_fn with outputs() and output_hessian()."
                )
            if hvp not in ("auto", "exact"):
                raise InputError(f"hvp={hvp!r} has no Gauss-Newton products; leave it at 'auto'.")
            self.hvp = "ggn"
            return self._tried()
        if hvp == "finite_difference":
            return hvp
        if compiled:
            sentence = "a compiled module has no trustworthy second derivative (pytorch#91469)"
            if hvp != "auto":
                raise InputError(f"{sentence}; use hvp='finite_difference', or the module before torch.compile.")
            self.reason = sentence
            return "finite_difference"
        self.hvp = "exact" if hvp == "auto" else hvp
        try:
            return self._tried()
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if hvp != "auto":
                raise InputError(f"hvp={hvp!r} does not work for this model: {first_line(error)}") from error
            self.reason = f"exact products do not work for this model: {first_line(error)}"
            return "finite_difference"

    def _tried(self) -> str:
        """Take a product over one row: counts the memory a graph holds, and says whether products can be had."""
        row, rows, batches = _longest_row(self.objective)
        vector = self.layout.random(0, "probe")
        views = [v.to(t.device, t.dtype) for v, t in zip(self.layout.views(vector), self._tensors, strict=True)]
        with counting_saved_bytes(self.objective.model.parameters()) as count:
            graph, weight = self._build(row)
            parts = graph(views, False)
        single = Objective(self.objective.model, [row], self.objective.loss_fn)
        if self.hvp == "ggn":
            self._check_outputs(row)
        elif weight > 0:
            product = self._weighted_mean(vector[None], [([parts], weight)])[0]
            self._check_against_differences(single, vector, product)
        self.graph_bytes = count[0] * rows
        available = available_memory(self.device)
        self.keeps_graphs &= (
            self.hvp in ("exact", "ggn")
            and available is not None
            and self.graph_bytes * batches <= _KEPT_SHARE * available
        )
        if self.keeps_graphs:
            self.graph_bytes = int(self.graph_bytes * batches)
        return self.hvp

    def _check_outputs(self, row: Batch) -> None:
        loss_fn = self.objective.loss_fn
        assert isinstance(loss_fn, OutputLoss)
        with torch.no_grad():
            whole, _ = self.objective.evaluate(row)
            part, _ = loss_fn.of_outputs(loss_fn.outputs(self.objective.model, row), row)
        if not torch.isclose(whole, part.to(whole), rtol=1e-2, equal_nan=True):
            raise InputError(
                "curvature='ggn': the model's loss is not the cross-entropy of its logits alone; pass loss_fn."
            )

    def _check_against_differences(self, single: Objective, vector: Tensor, product: Tensor) -> None:
        """Raise RuntimeError where double backward gives something that is not the derivative of the gradient.

        Custom functions with a backward that autograd cannot see through do that in silence.
        """
        if any(t.dtype.itemsize < 4 for t in self._tensors):
            return  # half precision has no difference to compare with
        difference = central_difference(single, self.parameters, vector, self._step)
        sizes = torch.linalg.vector_norm(product), torch.linalg.vector_norm(difference.product)
        apart = float(torch.linalg.vector_norm(product - difference.product))
        if difference.error < 0.05 and apart > 0.2 * float(max(sizes)):
            raise RuntimeError("second derivatives disagree with differences of gradients")


def _longest_row(objective: Objective) -> tuple[Batch, int, float]:
    """One row of the batch with most elements; how many rows that has; and all batches' elements over that one's."""
    largest, total, most = None, 0, -1
    for batch in objective.data:
        elements = _elements(batch)
        total += elements
        if elements > most:
            largest, most = batch, elements
    batch = on_device(largest, objective.device)
    rows = rows_of(batch)
    if rows is None:
        return batch, 1, total / max(most, 1)
    return take_rows(batch, slice(0, 1), rows), rows, total / max(most, 1)


class _LossOf(nn.Module):
    """The summed loss as a module, so that torch.func can swap the parameters under it."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.model = objective.model
        self._evaluate = objective.loss_fn

    def forward(self, batch: Batch) -> Tensor:
        return self._evaluate(self.model, batch)[0]


def _elements(batch: Batch) -> int:
    if isinstance(batch, Tensor):
        return batch.numel()
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return max((_elements(part) for part in parts), default=0)


@contextlib.contextmanager
def curvature_of(
    objective: Objective,
    parameters: Parameters,
    *,
    curvature: str = "hessian",
    hvp: str = "auto",
    keep_graphs: bool = True,
) -> Iterator[CurvatureOperator]:
    """The Hessian (or, with curvature="ggn", the Gauss-Newton matrix) of `objective` in `parameters`.

    hvp  "exact", "forward_over_reverse", "finite_difference", or "auto": exact where a trial on one row works and
         agrees with differences of gradients, else finite differences

    keep_graphs  keep the gradients' graphs between calls where all of them fit in 40% of the free memory: a product
                 from a kept graph costs 1.9 gradients, from a fresh one 3.1

    Inside the block the model is in evaluation mode and only `parameters` take gradients; afterwards it is bit for
    bit what it was. Warns where weights are in half precision: products then carry errors of a percent.

    Raises InputError for unknown names, and for ways that the model or the loss does not allow.
    """
    if hvp not in HVPS:
        raise InputError(f"hvp={hvp!r} is none of {', '.join(HVPS)}.")
    if curvature not in CURVATURES:
        raise InputError(f"curvature={curvature!r} is none of {', '.join(CURVATURES)}.")
    model = objective.model
    with preserved(model):
        chosen = {id(tensor) for tensor in parameters.tensors}
        for tensor in model.parameters():
            tensor.requires_grad_(id(tensor) in chosen)
        operator = CurvatureOperator(objective, parameters, curvature, hvp, keep_graphs)
        half = {str(t.dtype).removeprefix("torch.") for t in parameters.tensors if t.dtype.itemsize < 4}
        if half:
            warnings.warn(
                f"products with {', '.join(sorted(half))} weights carry errors of about a percent; load the model in "
                "float32.",
                MeasurementWarning,
                stacklevel=3,
            )
        yield operator
        if not operator.fidelity.faithful:
            warnings.warn(
                f"rounding to the weights' type changed the steps of finite differences (worst cosine "
                f"{operator.fidelity.cosine:.4f}); load the model in float32.",
                MeasurementWarning,
                stacklevel=3,
            )


@dataclasses.dataclass(frozen=True)
class Scaled:
    """D A D for a diagonal D: its trace is the trace of A weighted by D squared."""

    operator: CurvatureOperator
    scale: Tensor  # (size,)

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    def __call__(self, vectors: Tensor) -> Tensor:
        return self.operator(vectors * self.scale) * self.scale


def require_memory(operator: CurvatureOperator, vectors: int, basis_device: str | None = None, *, told: bool) -> None:
    """Say what the run will hold (with `told`) and refuse it where that cannot fit."""
    host = basis_device is not None and torch.device(basis_device).type != operator.device.type
    estimate = MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in operator.objective.model.parameters()),
        graph=operator.graph_bytes,
        vectors=vectors * operator.size * operator.dtype.itemsize,
        vectors_on_device=not host,
        available=available_memory(operator.device),
    )
    if told:
        tqdm.write(f"{estimate.describe()}; products: {operator.hvp} {operator.reason}".rstrip(), file=sys.stderr)
    estimate.require()
