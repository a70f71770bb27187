"""The principal directions of a path through weight space, and what they leave out of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from landscape.checkpoints import Checkpoint, identify
from landscape.errors import InputError
from landscape.surfaces.result import PathFit
from landscape.weights.directions import Direction, check_same_tensors
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, inner_product


def trajectory_directions(checkpoints: Sequence[nn.Module | Checkpoint], count: int = 2) -> list[Direction]:
    """The first principal directions of the path theta_1, ..., theta_T about its end, as unit vectors.

    They are eigenvectors of the second moment sum_t d_t d_t' of the differences d_t = theta_t - theta_T, computed by
    way of the Gram matrix <d_s, d_t>. Li et al. also subtract the mean; here the plane goes through the end, so that it
    is the plane through the end that is nearest to the path. Signs are such that the point farthest from the end lies
    to the left and, along the second direction, above. All parameters count, frozen ones too. The checkpoints and
    their differences are in memory at once.

    Args:
        checkpoints: Modules or checkpoints in the order of the path, with parameters of the same names and shapes.
        count: The number of directions.

    Returns:
        The directions, in the order of what they hold of the path; their labels say how much that is.

    Raises:
        InputError: There are fewer than `count` + 1 checkpoints, a tensor differs in shape (the message names the
            first that does), or the path has fewer than `count` dimensions.

    Source:
        Li et al. 2018 (arXiv 1712.09913), section 7.

    Example:
        A path goes from (2, 0) by way of (0, 1) to the origin. Of its variance of 4 + 1 about the end, the first axis
        holds 4:

        >>> import torch
        >>> from landscape import trajectory_directions
        >>> path = [torch.nn.Linear(2, 1, bias=False) for _ in range(3)]
        >>> for model, weights in zip(path, ([2.0, 0.0], [0.0, 1.0], [0.0, 0.0])):
        ...     model.weight = torch.nn.Parameter(torch.tensor([weights]))
        >>> [direction.label for direction in trajectory_directions(path)]
        ['PC 1 (80.0%)', 'PC 2 (20.0%)']
    """
    weights = [Parameters(identify(checkpoint)[0], frozen=True).values() for checkpoint in checkpoints]
    return principal_directions(weights, path_names(checkpoints), count)[0]


def random_walk_variance(steps: int, count: int = 2) -> tuple[float, ...]:
    """The fractions of its variance about its end that the principal directions of a random walk hold.

    Of a walk in many dimensions <d_s, d_t> is proportional to min(s, t), counted from the end. As the number of steps
    grows, the first two fractions tend to 8/pi^2 = 81% and 9%. About the mean, which Antognini and Sohl-Dickstein
    take, they are 6/pi^2 = 61% and 15%.

    Args:
        steps: The number of steps of the walk, all of the same length.
        count: The number of directions.

    Source:
        Antognini and Sohl-Dickstein 2018 (arXiv 1806.08805).

    Example:
        >>> [round(fraction, 3) for fraction in random_walk_variance(1000)]
        [0.811, 0.09]
    """
    from_end = np.arange(1, steps + 1)
    values = np.linalg.eigvalsh(np.minimum.outer(from_end, from_end))[::-1]
    return tuple(float(value) for value in values[:count] / values.sum())


def principal_directions(
    weights: Sequence[Vector], names: tuple[str, ...], count: int
) -> tuple[list[Direction], np.ndarray, PathFit]:
    """The principal directions of a path about its end, see `trajectory_directions`.

    Args:
        weights: The weights of each checkpoint along the path, the end last.
        names: The name of each checkpoint.
        count: The number of directions.

    Returns:
        The directions; the coordinates of all checkpoints along them, shape (checkpoints, count), the last at the
        origin; and what the directions leave out of the path.

    Raises:
        InputError: As for `trajectory_directions`.
    """
    if len(weights) <= count:
        raise InputError(f"a path of {len(weights)} checkpoints has no {count} directions; it takes {count + 1}.")
    end = weights[-1]
    steps = []
    for earlier in weights[:-1]:
        check_same_tensors(end, earlier)
        steps.append({name: _difference(earlier[name], tensor) for name, tensor in end.items()})
    gram = np.array(
        [[inner_product(a, b) if j <= i else 0.0 for j, b in enumerate(steps)] for i, a in enumerate(steps)]
    )
    gram = np.tril(gram) + np.tril(gram, -1).T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    if values[-1] <= 1e-12 * max(values[0], 0.0):
        dimensions = int((values > 1e-12 * max(values[0], 0.0)).sum())
        raise InputError(
            f"the path has {dimensions} dimension(s), not {count}; along a line, plot it with interpolation."
        )
    fractions = values / np.trace(gram)
    coordinates = vectors * np.sqrt(values)
    signs = np.where(coordinates[np.abs(coordinates).argmax(axis=0), range(count)] > 0, 1.0, -1.0)
    signs[0] = -signs[0]  # from the left
    coordinates = np.vstack([coordinates * signs, np.zeros(count)])
    directions = []
    for k in range(count):
        coefficients = vectors[:, k] * signs[k] / np.sqrt(values[k])
        tensors = {
            name: torch.stack([step[name] * float(c) for step, c in zip(steps, coefficients, strict=True)]).sum(dim=0)
            for name in end
        }
        # short: it has to fit beside a small plot
        label = f"PC {k + 1} ({fractions[k]:.1%})"
        directions.append(Direction(tensors, "trajectory", label))
    distances = np.append(np.sqrt(np.diag(gram)), 0.0)
    residuals = np.sqrt(np.maximum(distances**2 - (coordinates**2).sum(axis=1), 0.0))
    path = PathFit(
        names=names,
        explained=tuple(map(float, fractions)),
        random_walk=random_walk_variance(len(steps), count),
        distances=tuple(map(float, distances)),
        residuals=tuple(map(float, residuals)),
    )
    return directions, coordinates, path


def _difference(tensor: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """`tensor` - `end`, in float32 or wider, where the end lies."""
    dtype = torch.promote_types(end.dtype, torch.float32)
    return tensor.to(end.device, dtype) - end.to(dtype)


def path_names(checkpoints: Sequence[nn.Module | Checkpoint]) -> tuple[str, ...]:
    """The names of the checkpoints along a path; those that come from memory are numbered."""
    return tuple(
        checkpoint.name if isinstance(checkpoint, Checkpoint) else f"point {index + 1}"
        for index, checkpoint in enumerate(checkpoints)
    )
