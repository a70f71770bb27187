"""The type in which sums and steps are formed: the widest that a device has."""

from __future__ import annotations

import torch


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float that the device computes in; perturbations and inner products are formed in it.

    Example:
        >>> wide_dtype(torch.device("cpu")), wide_dtype(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64
