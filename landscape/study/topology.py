"""The topology of surfaces and of their heights, each kept in its own file beside the surface."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.study.comparison import file_stems
from landscape.surfaces.options import check_topology_extra
from landscape.surfaces.result import Surface
from landscape.surfaces.topology import Topology, compute_topology

_log = logging.getLogger(__name__)


def topology_files(surfaces: Sequence[str], heights: Sequence[str]) -> list[str]:
    """Return the names of the files about the topology of surfaces, each with those of its persistence diagram.

    Args:
        surfaces: The names of the surfaces' files.
        heights: The heights of the surfaces beside the loss.
    """
    stems = _stems(heights).values()
    pictures = [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf", "txt", "tex")]
    return pictures + [_file(surface, stem) for stem in stems for surface in surfaces]


def _stems(heights: Sequence[str]) -> dict[str, str]:
    """The start of the names of files, for the loss and each other height."""
    names = ["loss", *heights]
    return {name: f"topology-{stem}" for name, stem in zip(names, file_stems(names), strict=True)}


def _file(surface: str, stem: str) -> str:
    """The name of the file beside that of a surface."""
    return surface.replace("surface", stem, 1)


def find_topologies(surfaces: Mapping[str, Surface], folder: Path) -> dict[str, list[Topology]]:
    """Find the topology of surfaces and of their heights, and keep each in a file. Holes leave a surface out.

    Args:
        surfaces: The surfaces by the names of their files, all with the same heights.
        folder: Where the files go.

    Returns:
        By the start of the names of the files, which says the height: one for each surface that has no holes.

    Raises:
        InputError: gudhi is not installed.
    """
    check_topology_extra()
    heights = [grid.name for grid in next(iter(surfaces.values())).heights]
    found: dict[str, list[Topology]] = {}
    for height, stem in _stems(heights).items():
        of_height = _topologies(surfaces, height)
        for file, topology in of_height.items():
            topology.save(folder / _file(file, stem))
        found[stem] = list(of_height.values())
    return found


def _topologies(surfaces: Mapping[str, Surface], height: str) -> dict[str, Topology]:
    found = {}
    for file, surface in surfaces.items():
        try:
            found[file] = compute_topology(surface, height=height)
        except InputError as error:
            _log.warning("%s of %s: %s", height, surface.name, error)
    return found


def topology_rows(
    topologies: Mapping[str, Sequence[Topology]], all_draws: Sequence[Surface] = ()
) -> list[dict[str, Any]]:
    """Return topologies as rows of numbers.

    Args:
        topologies: What `find_topologies` returned.
        all_draws: The surfaces of every draw of the directions, which tell how far one draw is from another.
    """
    return [
        {
            "checkpoint": topology.name,
            "data": topology.data,
            "height": topology.height,
            "minima": topology.minima,
            "smad": topology.smad,
            "largest_persistence": topology.pairs[0].persistence if topology.pairs else 0.0,
            "noise": topology.noise,
            "surviving": topology.surviving,
            "minima_of_draws": _minima_of_draws(topology, all_draws),
        }
        for of_height in topologies.values()
        for topology in of_height
    ]


def _minima_of_draws(topology: Topology, surfaces: Sequence[Surface]) -> list[int]:
    own = {f"{s.seed}": s for s in surfaces if (s.name, s.data) == (topology.name, topology.data)}
    return [found.minima for found in _topologies(own, topology.height).values()]
