"""The type in which sums and steps are formed: the widest that a device has."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**18  # elements in the widest type at once: all of a large model's would be two copies of its weights


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float that the device computes in; long inner products are added up in it.

    Example:
        >>> wide_dtype(torch.device("cpu")), wide_dtype(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def wide_dot(u: Tensor, v: Tensor) -> Tensor:
    """Return the inner product of two vectors, both (n,), added up in the widest type, as a tensor of that type.

    Example:
        >>> float(wide_dot(torch.full((2**20,), 0.5), torch.full((2**20,), 0.5))) == 2**18
        True
    """
    wide = wide_dtype(u.device)
    pieces = zip(u.split(PIECE), v.split(PIECE), strict=True)
    return torch.stack([(left.to(wide) * right.to(wide)).sum() for left, right in pieces]).sum()


def all_finite(tensor: Tensor) -> bool:
    """Return whether no element is infinite or NaN.

    A sum with such an element is infinite or NaN too, and takes a tenth of the time of asking each element. Each is
    asked only where finite elements may have made the sum too large for the type.

    Example:
        >>> all_finite(torch.full((3,), 3e38)), all_finite(torch.tensor([float("inf"), float("-inf")]))
        (True, False)
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
