"""What a long run will hold in memory, and whether that fits: checked before the run starts."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from landscape.errors import InputError, as_typed
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import own_part

if TYPE_CHECKING:
    from landscape.curvature.operators.curvature import CurvatureOperator

WORKING_VECTORS = 3  # beside those a method keeps: the vector that is multiplied, a product, what it is summed from
LARGE = 50_000_000  # weights, from which on memory comes before time: 20 Lanczos vectors would be 4 GB
_LARGE_GRAPH = 1.25  # times the memory of the weights, which the graph of a micro-batch of a large model may take


def is_large(operator: CurvatureOperator) -> bool:
    """Return whether products of an operator are taken in little memory rather than in little time."""
    return operator.layout.own_size >= LARGE


def rows_that_fit(operator: CurvatureOperator, bytes_of_row: int) -> int | None:
    """Return how many rows a micro-batch may have whose graph takes so many bytes a row; None for any number.

    More rows than that would save little time: a large model reads and writes all its weights once for every piece,
    which is a fifth of the time of a product of two rows of 44 tokens of a model of 135 million weights.
    """
    if not is_large(operator):
        return None
    weights = operator.layout.own_size * operator.dtype.itemsize
    return max(1, int(_LARGE_GRAPH * weights / max(bytes_of_row, 1)))


def give_back_freed_memory() -> None:
    """Hand to the system what the C library keeps of freed memory, which otherwise counts as the process's own.

    What a graph frees lies in small pieces between what lives on, and is not used again for tensors as large as the
    weights. Elsewhere than with glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on `device`; None where the system does not report them.

    On a CPU this is the smaller of what the machine and what the process's control group have left.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if not limits:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(limits), 0) if limits else None


def in_bytes(count: float) -> str:
    """Return a number of bytes with its unit.

    Example:
        >>> in_bytes(3_430_000), in_bytes(80e9)
        ('3.4 MB', '80.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextlib.contextmanager
def counting_saved_bytes(excluded: Iterable[Tensor]) -> Iterator[list[int]]:
    """Count the bytes that autograd keeps for backward inside the block, each storage once.

    Args:
        excluded: Tensors whose storage does not count, such as the weights.

    Yields:
        A list whose single entry is the count.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    count = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            count[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """What a run adds to the weights that are loaded already, in bytes.

    Attributes:
        weights: The weights, which are loaded already.
        graph: What the largest micro-batch keeps for its products.
        vectors: Krylov vectors or probes, their products and what those are summed in.
        vectors_on_device: Whether the vectors are on the device of the weights.
        available: What the device has left; None where that is unknown.
    """

    weights: int
    graph: int
    vectors: int
    vectors_on_device: bool
    available: int | None

    @property
    def needed(self) -> int:
        """The bytes needed on the device, beyond the weights."""
        return self.graph + (self.vectors if self.vectors_on_device else 0)

    def describe(self) -> str:
        """Return the estimate as a line of text."""
        where = "" if self.vectors_on_device else " (on the host)"
        available = "" if self.available is None else f", of {in_bytes(self.available)} available"
        return (
            f"memory: weights {in_bytes(self.weights)} (loaded), activations {in_bytes(self.graph)}, "
            f"vectors {in_bytes(self.vectors)}{where}; {in_bytes(self.needed)} more needed{available}"
        )

    def require(self) -> None:
        """Raise InputError, with what to change, where the run cannot fit."""
        if self.available is None or self.needed <= self.available:
            return
        if self.vectors_on_device and self.vectors > self.graph:
            on_host = as_typed("basis_device", "cpu")
            cure = f"keep the vectors on the host ({on_host}), or ask for fewer eigenvalues or probes"
        else:
            cure = f"lower {as_typed('batch_tokens')}, which changes memory and not results"
        raise InputError(f"{self.describe()}; {cure}.")


def vectors_that_fit(
    operator: CurvatureOperator, wanted: int, least: int, basis_device: str | None = None, share: float = 1.0
) -> int:
    """Return how many of the `wanted` vectors there is room for, and not fewer than `least`.

    Args:
        operator: The operator, after its trial.
        wanted: The number of vectors that a method would keep.
        least: The number of vectors without which it cannot work. Fewer vectors cost more products.
        basis_device: The device that keeps them; None for the operator's.
        share: The memory of one over that of a vector of the operator's type.
    """
    home = torch.device(basis_device) if basis_device is not None else operator.device

    def fitting(_: Share) -> int:
        available = available_memory(home)
        if available is None:
            return min(wanted, operator.size)
        taken = operator.graph_bytes if home.type == operator.device.type else 0
        room = (available - taken) / (operator.layout.own_size * operator.dtype.itemsize) - WORKING_VECTORS
        return min(max(least, min(wanted, int(room / share))), operator.size)

    return min(distributed.gathered(fitting))


def fits(operator: CurvatureOperator, vectors: int) -> bool:
    """Return whether there is room for so many vectors beside the graph; as far as is known, in all processes."""
    return vectors_that_fit(operator, vectors, 0) == min(vectors, operator.size)


def require_memory(operator: CurvatureOperator, vectors: float, basis_device: str | None = None, *, show: bool) -> None:
    """Raise InputError where the run cannot fit in memory.

    Args:
        operator: The operator, after its trial.
        vectors: The number of vectors that the run holds.
        basis_device: The device that keeps them; None for the operator's.
        show: Print the estimate on standard error.
    """
    host = basis_device is not None and torch.device(basis_device).type != operator.device.type
    estimate = MemoryEstimate(
        weights=sum(own_part(p).numel() * p.element_size() for p in operator.objective.model.parameters()),
        graph=operator.graph_bytes,
        vectors=int(vectors * operator.layout.own_size * operator.dtype.itemsize),
        vectors_on_device=not host,
        available=available_memory(operator.device),
    )
    if show:
        tqdm.write(f"{estimate.describe()}; products: {operator.hvp} {operator.reason}".rstrip(), file=sys.stderr)
    distributed.gathered(lambda _: estimate.require())
