"""The one function that measures a surface, of whichever kind."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.heights.finding import AnyHeight, find_heights
from landscape.heights.height import Height
from landscape.objective.given import batches_of
from landscape.objective.identity import journal_of, provenance_of
from landscape.objective.loss_functions import loss_name
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.results import Journal
from landscape.surfaces.kind import SurfaceKind
from landscape.surfaces.points.geometry import Member
from landscape.surfaces.points.span import axes_to_rise
from landscape.surfaces.points.sweep import Sweep, sweeping
from landscape.surfaces.result import HeightGrid, Marker, Surface


def measure_surface(
    kind: SurfaceKind,
    models: Sequence[nn.Module | Checkpoint],
    data: Iterable[Batch],
    *,
    height: AnyHeight = "loss",
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """The loss over the grid of a surface of any kind.

    The points, each from the exact weights at the origin, are evaluated on all of the data. MeasurementWarning where
    losses are not finite, or rounding swallowed part of the steps. The models come back bit-identical.

    Args:
        kind: The kind and its settings, such as `SURFACE_KINDS["plane"](points=11)`.
        models: The models or checkpoints that the surface is of, as many as the kind takes.
        data: Batches, on which every loss is taken.
        height: What is measured at each point beside the loss, as `compute_surface` takes it.
        scope: What is measured. `loss_fn` has a use for all kinds, the other options for some.
        run: How it is run. `journal` and `autocast` have a use for all kinds, the other options for some.

    Raises:
        InputError: The kind takes another number of models or has no use for an option, or the models have no surface
            of the kind.

    Example:
        The loss of a single weight w is w^2. On the line from w = 1 to w = 3 it is (1 + 2 t)^2:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import SURFACE_KINDS, Run, Scope, measure_surface, supervised_loss
        >>> models = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
        >>> for model, weight in zip(models, (1.0, 3.0)):
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> line = SURFACE_KINDS["interpolate"](points=3, span=(0, 1))
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> measure_surface(line, models, data, scope=scope, run=Run()).loss
        array([1., 4., 9.])
    """
    scope.only(f"a surface of kind {kind.name}", *kind.scope_options)
    run.only(f"a surface of kind {kind.name}", *kind.run_options)
    kind.check_count(len(models))
    if kind.is_of_each() and len(models) != 1:
        raise InputError(f"one surface of kind {kind.name} is of one model, got {len(models)}.")
    members = [Member(model) for model in models]
    data = batches_of(data, models[kind.origin])
    geometry = kind.geometry(members, data, scope, run)
    origin = members[kind.origin]
    loss = loss_name(scope.loss_fn)
    heights = find_heights(height, data)
    settings: dict[str, Any] = {
        **kind.settings(),
        "kind": geometry.kind,
        **geometry.settings,
        "loss": loss,
        "autocast": run.autocast,
    }
    if heights:
        settings["heights"] = [height.identity() for height in heights]
    named = [members[index].description for index in kind.named_checkpoints(len(members))]
    described = named[0] if len(named) == 1 else dict(zip(string.ascii_lowercase, named, strict=False))

    def open_journal(objective: Objective) -> Journal:
        assert run.journal is not None
        identity = {"settings": {**settings, **geometry.journal_settings}, "others": geometry.other_digests()}
        return journal_of(run.journal, objective, origin.parameters, loss, identity, weights=origin.digest)

    with sweeping(
        origin.parameters,
        data,
        geometry.place,
        loss_fn=scope.loss_fn,
        run=run,
        open_journal=None if run.journal is None else open_journal,
        heights=heights,
        model=models[kind.origin],
    ) as sweep:
        axes = geometry.axes or axes_to_rise(sweep, kind.counts)
        losses = sweep.over(axes, geometry.title, run.progress)
        markers = tuple(Marker(name, place, sweep.loss_at(place)) for name, place in geometry.markers)
        center = sweep.loss_at((0.0,) * len(axes))
        lowered = sweep.autocast(center)
        grids = tuple(_grid_of(height, sweep, axes, [marker.coordinates for marker in markers]) for height in heights)
    return Surface(
        name=geometry.name,
        data=str(getattr(data, "source", "data")),
        kind=geometry.kind,
        axes=axes,
        axis_labels=geometry.axis_labels,
        loss=losses,
        center=center,
        markers=markers,
        normalize=geometry.normalize,
        seed=geometry.seed,
        direction_cosine=geometry.direction_cosine,
        fidelity=sweep.checked_fidelity(),
        autocast=lowered,
        weight=sweep.weight,
        provenance=provenance_of(sweep.objective, settings, geometry.seed, described, sweep.seconds),
        path=geometry.path,
        heights=grids,
    )


def _grid_of(
    height: Height, sweep: Sweep, axes: Sequence[np.ndarray], markers: Sequence[tuple[float, ...]]
) -> HeightGrid:
    """Collect a height from a sweep that has been over the grid."""
    shape = tuple(len(axis) for axis in axes)
    readings = [sweep.reading_at(place, height.name) for place in product(*axes)]
    center = sweep.reading_at((0.0,) * len(axes), height.name)
    return HeightGrid(
        name=height.name,
        unit=height.unit,
        higher_is_better=height.higher_is_better,
        values=np.array([reading.value for reading in readings]).reshape(shape),
        stderr=np.array([reading.stderr for reading in readings]).reshape(shape),
        center=center.value,
        center_stderr=center.stderr,
        markers=tuple(sweep.reading_at(place, height.name).value for place in markers),
        weight=center.weight,
    )
