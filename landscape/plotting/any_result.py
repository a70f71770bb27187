"""The picture of a result of any kind, for `result.plot()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.plotting.curvature.figures import plot_density, plot_eigenvalues, plot_layers, plot_trace
from landscape.plotting.instruction_vectors.figures import plot_instruction_vectors
from landscape.plotting.surfaces.figures import plot_surfaces
from landscape.plotting.surfaces.persistence import plot_persistence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By name, not by type: knowing the types would import the numerics, and with them torch.
_PICTURES: dict[str, Callable[..., Figure]] = {
    "surface": lambda surface, **options: plot_surfaces([surface], **options),
    "topology": lambda topology, **options: plot_persistence([topology], **options),
    "density": lambda density, **options: plot_density([density], **options),
    "layers": lambda table, **options: plot_layers([table], **options),
    "instruction_vector": lambda vector, **options: plot_instruction_vectors([vector], **options),
    "eigenvalues": plot_eigenvalues,
    "trace": plot_trace,
}


def plot(result: Any, **options: Any) -> Figure:
    """Draw any result that has a picture.

    Args:
        result: A surface, spectral density, table by layer, instruction vector, eigenvalues or trace.
        **options: Those of the plot function for that kind of result, such as `caption`.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: If there is no picture of such a result.
    """
    draw = _PICTURES.get(getattr(result, "kind_of_result", ""))
    if draw is None:
        raise InputError(f"there is no picture of a {type(result).__name__}.")
    return draw(result, **options)
