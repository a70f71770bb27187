"""One- and two-dimensional slices of the loss: random planes, interpolation, the plane through three checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning
from landscape.objective.loss_functions import loss_name
from landscape.objective.scope import Run, Scope
from landscape.results import digest_of
from landscape.surfaces.grid import ends, grid_axis, per_axis, with_points
from landscape.surfaces.result import Marker, Surface
from landscape.surfaces.sweep import Place, sweeping
from landscape.weights.directions import Direction, check_directions, check_same_tensors, random_directions
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, inner_product, vector_digest, vector_norm, wide_dtype

Span = float | tuple[float, float] | Literal["auto"]


# --- the three kinds of surface -----------------------------------------------------------------------------


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
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """Loss on a line or plane through the model: f(x, y) = L(theta + x d_1 + y d_2) (Li et al. 2018, sec. 4).

    directions  one or two; default: `dim` random directions, see `random_directions` for `normalize`, `seed`,
                `parameters` and `include_1d`, which say nothing of directions given
    points      per axis, or one number for each axis
    span        s for [-s, s], (low, high), or "auto": where the loss has risen by 1 nat, see `auto_span`;
                in units of the direction (1 perturbs every filter by its own norm)
    offload_base  keep the exact copy of the weights, and random directions, on the host: the device then holds the
                weights once, where it else holds two copies and the directions (in float32 or wider)
    autocast    "bfloat16": forward passes in that type, of weights that stay and move in theirs; `.autocast` then says
                by how much that moves the loss at the centre
    journal     a file that keeps finished points; a killed run started again with it continues

    Raises InputError for wrong arguments and for directions that do not fit the model, MeasurementWarning where losses
    are not finite or rounding swallowed part of the steps. The model comes back bit-identical.
    """
    scope.only("compute_surface", "parameters", "loss_fn", "include_1d")
    run.only("compute_surface", "journal", "offload_base", "autocast")
    module, name, described = identify(model)
    everything = Parameters(module, frozen=True)
    parameters = scope.parameters
    globs = parameters if parameters is None or isinstance(parameters, str) else list(parameters)
    given: dict[str, Any] = {"parameters": globs, "include_1d": scope.include_1d}
    if directions is None:
        if dim not in (1, 2):
            raise InputError(f"dim={dim}; a surface has 1 or 2 dimensions.")
        directions = random_directions(
            module,
            dim,
            normalize=normalize,
            seed=seed,
            parameters=parameters,
            include_1d=scope.include_1d,
            on_host=run.offload_base,
        )
        kind = "random"
    else:
        if len(directions) not in (1, 2):
            raise InputError(f"{len(directions)} directions given; a surface takes 1 or 2.")
        kind = directions[0].kind if len({d.kind for d in directions}) == 1 else "given"
        given = _said_of(directions)
    check_directions(directions, everything)
    vectors = [d.tensors for d in directions]
    counts = per_axis(points, len(directions))
    fixed = None if isinstance(span, str) and span == "auto" else ends(span)

    def place(x: Sequence[float]) -> Place:
        return 1.0, list(zip(x, vectors, strict=True))

    settings = {"kind": kind, "points": counts, "span": list(fixed) if fixed else "auto", **given}
    settings |= {
        "normalize": directions[0].normalize,
        "seed": directions[0].seed,
        "loss": loss_name(scope.loss_fn),
        "autocast": run.autocast,
    }
    moved = {"moved": digest_of([sorted(d.tensors) for d in directions])}  # what is drawn hangs on what is trainable
    with sweeping(
        module,
        data,
        place,
        everything,
        loss_fn=scope.loss_fn,
        autocast=run.autocast,
        settings=settings | moved,
        journal=run.journal,
        offload_base=run.offload_base,
    ) as sweep:
        low, high = fixed or ends(sweep.distance_of_rise(len(directions)))
        axes = tuple(grid_axis(low, high, count) for count in counts)
        loss = sweep.over(axes, f"{name} {kind}", run.progress)
        center = sweep.loss_at((0.0,) * len(axes))
        lowered = sweep.autocast(center)
    return Surface(
        name=name,
        data=str(getattr(data, "source", "data")),
        kind=kind,
        axes=axes,
        axis_labels=tuple(d.label for d in directions),
        loss=loss,
        center=center,
        markers=(),
        normalize=directions[0].normalize,
        seed=directions[0].seed,
        direction_cosine=directions[0].cosine(directions[1]) if len(directions) == 2 else None,
        fidelity=sweep.checked_fidelity(),
        autocast=lowered,
        weight=sweep.weight,
        provenance=sweep.provenance(settings, directions[0].seed, described),
    )


def _said_of(directions: Sequence[Direction]) -> dict[str, Any]:
    """What identifies directions that were given, and which tensors they move."""
    return {
        "directions": [{"label": d.label, "digest": vector_digest(d.tensors)} for d in directions],
        "tensors": digest_of([sorted(d.tensors) for d in directions]),
    }


def compute_interpolation(
    model_a: nn.Module | Checkpoint,
    model_b: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    points: int = 25,
    span: tuple[float, float] = (-0.5, 1.5),
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """Loss along the line from a (at 0) to b (at 1): f(t) = L((1-t) theta_a + t theta_b) (Goodfellow et al. 2014).

    Both ends are evaluated exactly: 0 and 1 join the grid where `points` misses them and `span` holds them. All
    parameters move, also frozen ones; buffers stay those of `model_a`. Raises InputError for wrong arguments, and
    naming the first tensor that differs in shape.
    """
    if np.ndim(span) == 0:
        raise InputError(f"span={span!r} is no pair (low, high); model a lies at 0 and model b at 1.")
    scope.only("compute_interpolation", "loss_fn")
    run.only("compute_interpolation", "journal", "autocast")
    (low, high), counts = ends(span), per_axis(points, 1)
    module_a, name_a, said_a = identify(model_a)
    module_b, name_b, said_b = identify(model_b)
    if module_a is module_b:
        raise InputError("the two models are the same object; a line needs two.")
    parameters = Parameters(module_a, frozen=True)
    other = Parameters(module_b, frozen=True).values()
    check_same_tensors(parameters.values(), other)
    _warn_of_buffers(module_a, module_b)
    name_a, name_b = (name_a, name_b) if name_a != name_b else (f"{name_a} (a)", f"{name_b} (b)")

    def place(x: Sequence[float]) -> Place:
        return 1.0 - x[0], [(x[0], other)]

    settings = {
        "kind": "interpolate",
        "points": counts,
        "span": [low, high],
        "loss": loss_name(scope.loss_fn),
        "autocast": run.autocast,
    }
    with sweeping(
        module_a,
        data,
        place,
        parameters,
        loss_fn=scope.loss_fn,
        autocast=run.autocast,
        settings=settings,
        others=[other],
        journal=run.journal,
    ) as sweep:
        axis = with_points(grid_axis(low, high, *counts), (0.0, 1.0))
        loss = sweep.over((axis,), f"{name_a} to {name_b}", run.progress)
        endpoints = [Marker(name, (t,), sweep.loss_at((t,))) for name, t in ((name_a, 0.0), (name_b, 1.0))]
        lowered = sweep.autocast(endpoints[0].loss)
    return Surface(
        name=f"{name_a} to {name_b}",
        data=str(getattr(data, "source", "data")),
        kind="interpolate",
        axes=(axis,),
        axis_labels=(f"{name_a} (0) to {name_b} (1)",),
        loss=loss,
        center=endpoints[0].loss,
        markers=tuple(endpoints),
        normalize=None,
        seed=None,
        direction_cosine=None,
        fidelity=sweep.checked_fidelity(),
        autocast=lowered,
        weight=sweep.weight,
        provenance=sweep.provenance(
            settings, None, _said_of_models({"a": said_a, "b": said_b}, [parameters.values(), other])
        ),
    )


def compute_plane(
    models: Sequence[nn.Module | Checkpoint],
    data: Iterable[Batch],
    *,
    points: int | Sequence[int] = 25,
    margin: float = 0.25,
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """Loss on the plane through three checkpoints, P(x, y) = w1 + x u + y v (Garipov et al. 2018, 1802.10026).

    u and v are orthonormal (Gram-Schmidt on w2 - w1 and w3 - w1), so both axes are distances in parameter space.
    The grid spans the three checkpoints and `margin` of their extent around them. Raises InputError where the
    number of models is not three, shapes differ, or the three lie on a line.
    """
    if len(models) != 3:
        raise InputError(f"a plane takes three checkpoints, got {len(models)}.")
    scope.only("compute_plane", "loss_fn")
    run.only("compute_plane", "journal", "autocast")
    if not 0 <= margin < np.inf:
        raise InputError(f"margin={margin} is no fraction of the checkpoints' extent; it must be at least 0.")
    modules, names, said = zip(*(identify(model) for model in models), strict=True)
    if len({id(module) for module in modules}) < 3:
        raise InputError("two of the models are the same object; a plane needs three.")
    parameters = Parameters(modules[0], frozen=True)
    first = parameters.values()
    second, third = (Parameters(module, frozen=True).values() for module in modules[1:])
    for other in (second, third):
        check_same_tensors(first, other)
    corners, coefficients = _plane(first, second, third)

    def place(x: Sequence[float]) -> Place:
        b, c = coefficients(*x)
        return 1.0 - b - c, [(b, second), (c, third)]

    counts = per_axis(points, 2)
    settings = {
        "kind": "plane",
        "points": counts,
        "margin": margin,
        "loss": loss_name(scope.loss_fn),
        "autocast": run.autocast,
    }
    others = [second, third]
    with sweeping(
        modules[0],
        data,
        place,
        parameters,
        loss_fn=scope.loss_fn,
        autocast=run.autocast,
        settings=settings,
        others=others,
        journal=run.journal,
    ) as sweep:
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        border = margin * (high - low)
        bounds = zip(low - border, high + border, counts, strict=True)
        axes = tuple(grid_axis(float(lo), float(hi), count) for lo, hi, count in bounds)
        loss = sweep.over(axes, "plane", run.progress)
        markers = [Marker(name, corner, sweep.loss_at(corner)) for name, corner in zip(names, corners, strict=True)]
        lowered = sweep.autocast(markers[0].loss)
    return Surface(
        name=", ".join(names),
        data=str(getattr(data, "source", "data")),
        kind="plane",
        axes=axes,
        axis_labels=(f"towards {names[1]}", f"towards {names[2]}"),
        loss=loss,
        center=markers[0].loss,
        markers=tuple(markers),
        normalize=None,
        seed=None,
        direction_cosine=0.0,
        fidelity=sweep.checked_fidelity(),
        autocast=lowered,
        weight=sweep.weight,
        provenance=sweep.provenance(
            settings, None, _said_of_models(dict(zip("abc", said, strict=True)), [first, second, third])
        ),
    )


def _said_of_models(said: Mapping[str, dict | None], weights: Sequence[Vector]) -> dict[str, dict]:
    """Provenance of each model; the weights' digest stands in for one that came from memory."""
    return {name: d or {"weights": vector_digest(w)} for (name, d), w in zip(said.items(), weights, strict=True)}


def _warn_of_buffers(a: nn.Module, b: nn.Module) -> None:
    theirs = dict(b.named_buffers())
    for name, buffer in a.named_buffers():
        other = theirs.get(name)
        if other is None or other.shape != buffer.shape or not bool((other.to(buffer.device) == buffer).all()):
            warnings.warn(
                f"buffer {name} differs between the two models; the line uses that of the first, so its end "
                "need not be the second model.",
                MeasurementWarning,
                stacklevel=3,
            )
            return


def _plane(
    first: Vector, second: Vector, third: Vector
) -> tuple[list[tuple[float, float]], Callable[[float, float], tuple[float, float]]]:
    """Coordinates of three points in their plane, and the map from coordinates to weights of `second` and `third`."""
    origin = {name: tensor.to(wide_dtype(tensor.device)) for name, tensor in first.items()}
    u, w = ({name: point[name].to(start) - start for name, start in origin.items()} for point in (second, third))
    length = vector_norm(u)
    if length == 0:
        raise InputError("the first two checkpoints are equal; a plane needs three points.")
    along = inner_product(w, u) / length**2
    v = {name: w[name] - along * u[name] for name in first}
    height = vector_norm(v)
    if height <= 1e-6 * vector_norm(w):
        raise InputError("the three checkpoints lie on one line; plot them with interpolation.")

    def coefficients(x: float, y: float) -> tuple[float, float]:
        return x / length - along * (y / height), y / height

    return [(0.0, 0.0), (length, 0.0), (along * length, height)], coefficients


# --- spans ---------------------------------------------------------------------------------------------------


def auto_span(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    directions: Sequence[Direction],
    *,
    rise: float = 1.0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> float:
    """The distance s at which the loss, averaged over +s and -s along each direction, is `rise` nats above the centre.

    `autocast` and `offload_base` as for `compute_surface`.

    Found by doubling or halving from 0.25 and bisection to 5%; a loss that is not finite counts as risen.
    MeasurementWarning, and the last distance tried, where no rise is found within 2**8. Raises InputError for
    directions that do not fit the model.
    """
    scope.only("auto_span", "loss_fn")
    run.only("auto_span", "offload_base", "autocast")
    module, _, _ = identify(model)
    everything = Parameters(module, frozen=True)
    check_directions(directions, everything)
    vectors = [d.tensors for d in directions]

    def place(x: Sequence[float]) -> Place:
        return 1.0, list(zip(x, vectors, strict=True))

    how: dict[str, Any] = {"loss_fn": scope.loss_fn, "autocast": run.autocast, "offload_base": run.offload_base}
    with sweeping(module, data, place, everything, **how) as sweep:
        return sweep.distance_of_rise(len(directions), rise)
