"""What is known of a Ritz pair beyond the products that found it: residuals in a wider type, and what is not known."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operators.agreement import widened
from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.errors import MeasurementWarning
from landscape.linalg.lanczos import RitzPairs

_UNEVEN = 1.37  # of no power of two, so that a vector this much longer is rounded differently


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How far values may be from true eigenvalues, and whether that met the tolerance.

    Attributes:
        residuals: |H y - value y| for the unit Ritz vectors y, with the errors of products, shape (k,).
        converged: Whether each is at most rtol * |value|. None where that cannot be shown.
        error: The largest error of products that was measured, relative to a value.
        matvecs: The number of further products taken.
    """

    residuals: np.ndarray
    converged: tuple[bool | None, ...]
    error: float
    matvecs: int


def needs_wider(operator: CurvatureOperator, rtol: float) -> bool:
    """Return whether rounding of the weights' type could hide in residuals that are to be below `rtol`."""
    narrowest = min((tensor.dtype for tensor in operator.parameters.tensors), key=lambda dtype: dtype.itemsize)
    return narrowest.itemsize < 4 or rtol < 100 * torch.finfo(narrowest).eps


def certificate(operator: CurvatureOperator, pairs: RitzPairs, rtol: float) -> Certificate:
    """Return the residuals of Ritz pairs and whether they met `rtol`.

    A residual that comes out of products in half precision says how well the products fit each other, and not how well
    they fit the Hessian: rounding moves eigenvalues by about a percent. There, and where `rtol` comes near the rounding
    of float32, residuals are measured with one more product for each pair, of a copy of the model in a wider type. A
    residual in that type is a certificate whatever rounding did to the vector. Where no copy can be had, a
    MeasurementWarning says why; the residual is then widened by what another rounding of the vector changes, and
    whether it met the tolerance is unknown.

    Args:
        operator: The operator that the pairs are of, still open.
        pairs: The pairs, with vectors where `needs_wider` says so.
        rtol: The relative tolerance.

    Returns:
        The certificate.
    """
    size = np.abs(pairs.values)
    # a finite difference's error is part of what separates H v from value v
    residuals = pairs.residuals + operator.error * size
    met = pairs.converged & (operator.error <= rtol)
    error, matvecs, known = operator.error, 0, not operator.unverified
    if pairs.vectors is not None and needs_wider(operator, rtol):
        wide = _wider(operator)
        vectors = pairs.vectors.to(operator.device)
        if not isinstance(wide, str):
            images, spread = wide(vectors), wide.error * size
            matvecs = len(vectors)
        else:
            warnings.warn(
                f"residuals are measured in the weights' own type, because {wide}: rounding may hide in them.",
                MeasurementWarning,
                stacklevel=4,
            )
            images, again = operator(torch.cat([vectors, _UNEVEN * vectors])).chunk(2)
            spread = _lengths(images - again / _UNEVEN)
            matvecs, known = 2 * len(vectors), False
        values = torch.from_numpy(np.asarray(pairs.values, dtype=np.float64)).to(images)
        measured = _lengths(images - values[:, None] * vectors.to(images)) / _lengths(vectors) + spread
        error = max(error, float(np.max((measured - residuals) / np.where(size > 0, size, 1.0))))
        residuals, met = measured, measured <= rtol * size
    converged = tuple(bool(is_met) if known else None for is_met in met)
    return Certificate(residuals.astype(np.float64), converged, error, matvecs)


def _wider(operator: CurvatureOperator) -> CurvatureOperator | str:
    """Return the same curvature of a copy of the model in a wider type, or in words why there is none."""
    half = any(tensor.dtype.itemsize < 4 for tensor in operator.parameters.tensors)
    twin = widened(operator.objective, operator.parameters, torch.float32 if half else torch.float64)
    if isinstance(twin, str):
        return twin
    return CurvatureOperator(*twin, operator.hvp)


def _lengths(vectors: Tensor) -> np.ndarray:
    return torch.linalg.vector_norm(vectors.double(), dim=1).cpu().numpy()
