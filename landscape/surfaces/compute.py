"""Surfaces for a caller who has models in hand: one function for each kind of surface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.heights.finding import AnyHeight
from landscape.objective.scope import Run, Scope
from landscape.surfaces.kind import Span
from landscape.surfaces.kinds.given import GivenSurface
from landscape.surfaces.kinds.line import LineSurface
from landscape.surfaces.kinds.plane import PlaneSurface
from landscape.surfaces.kinds.random import RandomSurface
from landscape.surfaces.kinds.trajectory import TrajectorySurface
from landscape.surfaces.measure import measure_surface
from landscape.surfaces.result import Surface
from landscape.weights.directions import Direction


def compute_surface(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    directions: Sequence[Direction] | None = None,
    *,
    dim: int = 2,
    points: int | Sequence[int] = 25,
    span: Span = 1.0,
    normalize: str = "filter",
    seed: int = 0,
    height: AnyHeight = "loss",
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """The loss on a line or plane through the model: f(x, y) = L(theta + x d_1 + y d_2).

    MeasurementWarning where losses are not finite, or rounding swallowed part of the steps. The model comes back
    bit-identical.

    Args:
        model: A module or a checkpoint.
        data: Batches, on all of which every loss is taken.
        directions: One or two directions; None draws `dim` random ones.
        dim: The number of random directions, 1 or 2.
        points: Grid points, as one number for each axis or one for all axes. The default of 25 gives smooth pictures
            of most surfaces.
        span: s for [-s, s], (low, high), or `"auto"`: where the loss has risen by 1 nat, see `auto_span`. In units of
            the directions; 1 moves every filter along a filter-normalized direction by its own norm.
        normalize: The scale of random directions, see `random_directions`.
        seed: The seed of random directions.
        height: What is measured at each point beside the loss: "accuracy", "choice", "kl", the name of a task of
            lm-evaluation-harness, a function `(model, data) -> value, weight`, or several of these in one pass over the
            points. They are in `.heights`, with standard errors over examples.
        scope: `loss_fn` has a use here, and for random directions `parameters` and `include_1d`.
        run: `journal`, `autocast` and `offload_base` have a use here. With `offload_base` the device holds the weights
            once, where it else holds two copies and the directions (in float32 or wider).

    Returns:
        The losses over the grid, with what was measured and how. `.autocast` says by how much a lower precision of
        forward passes moves the loss at the centre.

    Raises:
        InputError: An argument makes no sense, or a direction does not fit the model.

    Source:
        Li et al. 2018 (arXiv 1712.09913), section 4.

    Example:
        The loss of a single weight w is w^2. Around w = 2, along the direction 1, it is (2 + x)^2:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Direction, Run, Scope, compute_surface, supervised_loss
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 2.0)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> direction = Direction({"weight": torch.ones(1, 1)}, "given", "w")
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> surface = compute_surface(model, data, [direction], points=3, scope=scope, run=Run())
        >>> surface.axes[0], surface.loss
        (array([-1.,  0.,  1.]), array([1., 4., 9.]))
    """
    kind: RandomSurface | GivenSurface
    if directions is None:
        kind = RandomSurface(dim=dim, points=points, span=span, normalize=normalize, seed=seed)
    else:
        kind = GivenSurface(dim=len(directions), points=points, span=span, directions=directions)
    return measure_surface(kind, [model], data, height=height, scope=scope, run=run)


def compute_interpolation(
    model_a: nn.Module | Checkpoint,
    model_b: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    points: int = 25,
    span: tuple[float, float] = (-0.5, 1.5),
    height: AnyHeight = "loss",
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """The loss along the line from model a (at 0) to model b (at 1): f(t) = L((1-t) theta_a + t theta_b).

    Both ends are evaluated exactly. All parameters move, frozen ones too; buffers stay those of `model_a`, with a
    MeasurementWarning where those of `model_b` differ.

    Args:
        model_a: A module or a checkpoint.
        model_b: Another one, with parameters of the same names and shapes.
        data: Batches, on all of which every loss is taken.
        points: Grid points; 0 and 1 join the grid where it misses them and `span` holds them.
        span: (low, high) of t. The default shows the surroundings of both ends.
        height: As for `compute_surface`.
        scope: `loss_fn` has a use here.
        run: `journal` and `autocast` have a use here.

    Returns:
        A surface with one axis, and both models as its markers.

    Raises:
        InputError: An argument makes no sense, or a tensor differs in shape; the message names the first that does.

    Source:
        Goodfellow et al. 2014 (arXiv 1412.6544).

    Example:
        The loss of a single weight w is w^2. On the line from w = 1 to w = 3 it is (1 + 2 t)^2:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Run, Scope, compute_interpolation, supervised_loss
        >>> models = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
        >>> for model, weight in zip(models, (1.0, 3.0)):
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> compute_interpolation(*models, data, points=3, span=(0, 1), scope=scope, run=Run()).loss
        array([1., 4., 9.])
    """
    return measure_surface(
        LineSurface(points=points, span=span), [model_a, model_b], data, height=height, scope=scope, run=run
    )


def compute_plane(
    models: Sequence[nn.Module | Checkpoint],
    data: Iterable[Batch],
    *,
    points: int | Sequence[int] = 25,
    margin: float = 0.25,
    height: AnyHeight = "loss",
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """The loss on the plane through three models: P(x, y) = w1 + x u + y v, with u and v orthonormal.

    u and v come from Gram-Schmidt on w2 - w1 and w3 - w1, so both axes are distances in parameter space.

    Args:
        models: Three modules or checkpoints, with parameters of the same names and shapes.
        data: Batches, on all of which every loss is taken.
        points: Grid points, as one number for each axis or one for both.
        margin: The border around the three models, as a fraction of their extent along each axis.
        height: As for `compute_surface`.
        scope: `loss_fn` has a use here.
        run: `journal` and `autocast` have a use here.

    Returns:
        A surface with two axes, and the three models as its markers.

    Raises:
        InputError: There are not three models, an argument makes no sense, shapes differ, or the three models lie on a
            line.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026).

    Example:
        Three models lie at (0, 0), (3, 0) and (0, 4), and the loss of weights (a, b) is (a + b)^2:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Run, Scope, compute_plane, supervised_loss
        >>> models = [torch.nn.Linear(2, 1, bias=False) for _ in range(3)]
        >>> for model, weights in zip(models, ([0.0, 0.0], [3.0, 0.0], [0.0, 4.0])):
        ...     model.weight = torch.nn.Parameter(torch.tensor([weights]))
        >>> data = [(torch.ones(1, 2), torch.zeros(1, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> surface = compute_plane(models, data, points=3, margin=0, scope=scope, run=Run())
        >>> [(marker.coordinates, marker.loss) for marker in surface.markers]
        [((0.0, 0.0), 0.0), ((3.0, 0.0), 9.0), ((0.0, 4.0), 16.0)]
        >>> surface.loss[-1, -1]  # at (3, 4)
        np.float64(49.0)
    """
    return measure_surface(
        PlaneSurface(points=points, margin=margin), models, data, height=height, scope=scope, run=run
    )


def compute_trajectory(
    checkpoints: Sequence[nn.Module | Checkpoint],
    data: Iterable[Batch],
    *,
    points: int | Sequence[int] = 25,
    margin: float = 0.25,
    height: AnyHeight = "loss",
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """The loss on the plane of a path's first two principal directions through its end, the last of `checkpoints`.

    Axes are distances in parameter space. The plane is the one through the end that lies nearest to the path, see
    `trajectory_directions`.

    Args:
        checkpoints: At least three modules or checkpoints in the order of the path, with parameters of the same names
            and shapes.
        data: Batches, on all of which every loss is taken.
        points: Grid points, as one number for each axis or one for both.
        margin: The border around the path, as a fraction of its extent along each axis.
        height: As for `compute_surface`.
        scope: `loss_fn` has a use here.
        run: `journal` and `autocast` have a use here.

    Returns:
        A surface with two axes. Its markers are the checkpoints projected onto the plane, with the loss there; `.path`
        says how far from the plane each checkpoint lies, and what fraction of the path's variance the plane explains,
        beside what it would explain of a random walk (see `PathFit`).

    Raises:
        InputError: There are fewer than three checkpoints, an argument makes no sense, shapes differ, or the path has
            fewer than two dimensions.

    Source:
        Li et al. 2018 (arXiv 1712.09913), section 7.

    Example:
        A path goes from (2, 1) by way of (0, 1) to the origin, and the loss of weights (a, b) is (a + b)^2. A path of
        three points lies in a plane:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Run, Scope, compute_trajectory, supervised_loss
        >>> path = [torch.nn.Linear(2, 1, bias=False) for _ in range(3)]
        >>> for model, weights in zip(path, ([2.0, 1.0], [0.0, 1.0], [0.0, 0.0])):
        ...     model.weight = torch.nn.Parameter(torch.tensor([weights]))
        >>> data = [(torch.ones(1, 2), torch.zeros(1, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> surface = compute_trajectory(path, data, points=3, scope=scope, run=Run())
        >>> [round(marker.loss, 5) for marker in surface.markers]
        [9.0, 1.0, 0.0]
        >>> round(sum(surface.path.explained), 9)
        1.0
    """
    return measure_surface(
        TrajectorySurface(points=points, margin=margin), checkpoints, data, height=height, scope=scope, run=run
    )
