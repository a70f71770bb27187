"""Whether a product with the Hessian is the derivative of the gradient: compared with differences at many steps."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from landscape.checkpoints.loading import grouped_experts
from landscape.curvature.operators.memory import available_memory, in_bytes
from landscape.data.batches import Batch
from landscape.errors import first_line
from landscape.objective.objective import Objective
from landscape.parallel.sharding import is_sharded
from landscape.weights.flat import Layout, flat_norm
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import excursion
from landscape.weights.vectors import vector_norm

_COPY_SHARE = 0.4  # of the available memory may hold a wider copy of the model


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What differences of gradients say of a product H v.

    Attributes:
        right: True where the product was shown to be right and False where it was shown to be wrong. None where the
            differences do not agree with themselves, so that nothing was shown.
        apart: |product - difference| / |the longer of the two|, at the step where the two are closest.
        error: How far differences at two neighbouring steps are from each other, at the best, relative to their length.
        gradients: The number of gradients taken.
        dtype: The type in which the differences were taken.
        narrow: Why they were not taken in float64, where that might have decided; "" otherwise.
    """

    right: bool | None
    apart: float
    error: float
    gradients: int
    dtype: torch.dtype
    narrow: str = ""

    @property
    def words(self) -> str:
        """The comparison in words."""
        said = f"differences of gradients in {str(self.dtype).removeprefix('torch.')} are {self.apart:.1e} from Hv"
        if not self.right:
            said += f" and {self.error:.1e} from each other at the next step"
        return f"{said}, and float64 could not be asked, because {self.narrow}" if self.narrow else said


def agreement(objective: Objective, parameters: Parameters, vector: Tensor, product: Tensor) -> Agreement:
    """Compare `product` with central differences of gradients along `vector`, in a wider type where that is needed.

    A vector of many elements does not agree with another one by chance: agreement at any step shows that the product is
    right. It is shown to be wrong where differences at three neighbouring steps agree with each other ten times as well
    as with the product, and at no step come near it. Kinks and jumps (of ReLU, or of a router of experts) give
    differences that change with the step until the step is shorter than the way to the nearest of them. Rounding
    may not leave such a step in float32, but does in float64.

    Args:
        objective: The loss whose gradient is taken.
        parameters: The weights that move, in float32 or wider.
        vector: The vector v, shape (size,).
        product: The product H v, shape (size,).

    Returns:
        The verdict, with the numbers behind it.

    Source:
        The error of central differences falls with the square of the step until rounding, which grows as the step
        falls: W. Press et al. 2007, "Numerical Recipes", section 5.7.
    """
    found = _compared(objective, parameters, vector, product)
    if found.apart <= found.floor:
        return found.verdict(True)
    narrow = ""
    if found.dtype != torch.float64:
        twin = widened(objective, parameters, torch.float64)
        if isinstance(twin, str):
            narrow = twin
        else:
            wide = _compared(*twin, vector.double(), product)
            found = dataclasses.replace(wide, gradients=wide.gradients + found.gradients)
    # in float32 a great many kinks look like curvature at every step that rounding leaves, up to some size
    least = found.floor if found.dtype == torch.float64 else 0.05
    if found.apart <= max(found.floor, 3 * min(found.error, 0.01)):
        return found.verdict(True)
    verdict = found.verdict(False if found.settled and found.apart > least else None)
    return dataclasses.replace(verdict, narrow=narrow)


@dataclasses.dataclass(frozen=True)
class _Compared:
    """The numbers behind an `Agreement`; `settled` where differences agree with each other and not with the product."""

    apart: float
    error: float
    floor: float
    settled: bool
    gradients: int
    dtype: torch.dtype

    def verdict(self, right: bool | None) -> Agreement:
        return Agreement(right, self.apart, self.error, self.gradients, self.dtype)


def _compared(objective: Objective, parameters: Parameters, vector: Tensor, product: Tensor) -> _Compared:
    """Compare a product with differences in the weights' own type, at ever smaller steps until they agree."""
    dtype = Layout(parameters).dtype
    steps = _steps(parameters, dtype)
    ratio = (steps[0] / steps[1]) ** 2
    # what a right product is allowed to be off by: the rounding of its own type through a deep model
    floor = 1e-4 if product.dtype == torch.float64 else 1e-3
    product = product.to(dtype)
    aparts: list[float] = []  # from the product, at each step
    selves: list[float] = []  # from the difference at the step before
    closest, before = math.inf, None
    for slope in _slopes(objective, parameters, vector, steps):
        size = max(flat_norm(product), flat_norm(slope)) or 1.0
        aparts.append(flat_norm(slope - product) / size)
        closest = min(closest, aparts[-1])
        if before is not None:
            # in their own units: next to a product that is far too long, any two differences look alike
            selves.append(flat_norm(slope - before) / (max(flat_norm(slope), flat_norm(before)) or 1.0))
            extrapolated = (slope * ratio - before) / (ratio - 1)  # Richardson 1911
            closest = min(closest, flat_norm(extrapolated - product) / size)
        before = slope
        if closest <= floor:
            break
    triples = [(min(aparts[i : i + 3]), max(selves[i : i + 2])) for i in range(len(aparts) - 2)]
    settled = any(10 * own <= apart < 2 * closest for apart, own in triples)
    error = min((own for own in selves if math.isfinite(own)), default=closest)
    return _Compared(closest, error, floor, settled, 2 * len(aparts), dtype)


def _steps(parameters: Parameters, dtype: torch.dtype) -> list[float]:
    """Return ever smaller steps along a unit vector, in units of the weights.

    In float32 the rounding of a large model's gradient hides a small product at all steps but the longest, so its
    steps begin at 0.4. Other weights than those of a large model are too short for that.
    """
    if dtype == torch.float64:
        return [1e-2 / 8**i for i in range(8)]
    steps = [0.4 / 4**i for i in range(8)]
    return steps if vector_norm(parameters.values()) >= 40 else steps[1:]


def _slopes(objective: Objective, parameters: Parameters, vector: Tensor, steps: list[float]) -> Iterator[Tensor]:
    """Yield (g(w + h v) - g(w - h v)) |v| / 2h for the unit vector along `vector`, for each step h."""
    layout = Layout(parameters)
    norm = flat_norm(vector)
    unit = layout.named(vector.to(layout.dtype) / norm)
    with excursion(parameters) as moved:
        for h in steps:
            moved.move([(h, unit)])
            ahead = layout.flat(objective.gradient(parameters)[1])
            moved.move([(-h, unit)])
            yield ahead.sub_(layout.flat(objective.gradient(parameters)[1])).mul_(norm / (2 * h))


def widened(objective: Objective, parameters: Parameters, dtype: torch.dtype) -> tuple[Objective, Parameters] | str:
    """Return the same loss of a copy of the model in a wider type, and the same parameters of that copy.

    Returns:
        In words why there is no such copy: it does not fit in memory, cannot be made or evaluated, or does not have the
        gradient of the model (a loss function that looks at another model than the one that it is given).
    """
    model, wider = objective.model, str(dtype).removeprefix("torch.")
    if is_sharded(model) or any(tensor.is_meta for tensor in model.parameters()):
        return "the weights are sharded or offloaded"
    needed = sum(tensor.numel() for tensor in model.parameters()) * dtype.itemsize
    available = available_memory(objective.device)
    if available is None:
        return "the system does not say how much memory a copy of the model would find"
    if needed > _COPY_SHARE * available:
        return f"a {wider} copy of the model takes {in_bytes(needed)}, of {in_bytes(available)} available"
    try:
        twin: Any = copy.deepcopy(model).to(dtype)
        if dtype == torch.float64 and grouped_experts(twin):
            twin.set_experts_implementation("eager")  # torch multiplies groups up to float32 only
        wide = objective.restricted(_Widened(objective.data, dtype))
        wide.model, wide.autocast = twin, None
        selected = Parameters(twin, parameters.names)
        loss, narrow = objective.gradient(parameters)
        wide_loss, gradient = wide.gradient(selected)
    except torch.OutOfMemoryError:
        return f"memory ran out with a {wider} copy of the model"
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"a {wider} copy of the model cannot be evaluated ({first_line(error).rstrip('.')})"
    before, after = Layout(parameters).flat(narrow).to(dtype), Layout(selected).flat(gradient)
    if any(tensor.dtype.itemsize < 4 for tensor in parameters.tensors):  # whose gradient may be rounding alone
        same = abs(loss.mean - wide_loss.mean) <= 0.02 * abs(wide_loss.mean) and (bool(after.any()) or not before.any())
    else:
        same = flat_norm(before - after) <= 1e-2 * max(flat_norm(before), flat_norm(after))
    return (wide, selected) if same else f"a {wider} copy of the model has another gradient than the model"


class _Widened:
    """Batches whose floating-point tensors are in another type."""

    def __init__(self, data: object, dtype: torch.dtype):
        self._data, self._dtype = data, dtype

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._data:  # type: ignore[attr-defined]
            yield _as_type(batch, self._dtype)


def _as_type(batch: Batch, dtype: torch.dtype) -> Batch:
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: _as_type(value, dtype) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [_as_type(value, dtype) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
