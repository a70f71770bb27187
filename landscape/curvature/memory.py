"""What a long run will hold in memory, and whether it fits: said before it starts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from landscape.errors import InputError


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on `device`; on a CPU the smaller of the machine's and the cgroup's.

    None where the system does not say.
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
    """
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
    """Counts what autograd keeps for backward inside the block, each storage once, without those of `excluded`.

    The single entry of the list is the count, in bytes.
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
    """What a run adds to the weights that are loaded already, in bytes."""

    weights: int  # loaded already
    graph: int  # what the largest micro-batch keeps for its products
    vectors: int  # Krylov vectors or probes, products and accumulators
    vectors_on_device: bool
    available: int | None  # on the device; None where unknown

    @property
    def needed(self) -> int:
        """On the device, beyond the weights."""
        return self.graph + (self.vectors if self.vectors_on_device else 0)

    def describe(self) -> str:
        where = "" if self.vectors_on_device else " (on the host)"
        available = "" if self.available is None else f", of {in_bytes(self.available)} available"
        return (
            f"memory: weights {in_bytes(self.weights)} (loaded), activations {in_bytes(self.graph)}, "
            f"vectors {in_bytes(self.vectors)}{where}; {in_bytes(self.needed)} more needed{available}"
        )

    def require(self) -> None:
        """Raise InputError with what to change where it cannot fit."""
        if self.available is None or self.needed <= self.available:
            return
        if self.vectors_on_device and self.vectors > self.graph:
            cure = "keep the vectors on the host (basis_device='cpu'), or ask for fewer eigenvalues or probes"
        else:
            cure = "lower batch_tokens (--batch-tokens), which changes memory and not results"
        raise InputError(f"{self.describe()}; {cure}.")
