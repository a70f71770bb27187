"""What pictures of curvature share, whichever library draws them: what compares, the scales, the words."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from landscape.errors import InputError
from landscape.plotting.basics import (
    Measured,
    Places,
    amount,
    clean,
    label_of,
    listing,
    number,
    places_of,
    require_same_data,
)

if TYPE_CHECKING:
    from landscape.curvature.results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate

MATRIX = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}
_MOMENT_TOLERANCE = 1e-3  # from here on `hessian_density` warns


class Curvature(Measured, Protocol):
    """What every result about the Hessian or the Gauss-Newton matrix has."""

    @property
    def curvature(self) -> str:
        """Which of the two matrices."""

    @property
    def hvp(self) -> str:
        """How Hessian-vector products were taken."""


C = TypeVar("C", bound=Curvature)


def arrange(results: Sequence[C], what: str, identity: Callable[[C], dict[str, Any]]) -> Places[C]:
    """Check that `results` fit in one figure, and find the place of each.

    Args:
        results: What to draw.
        what: What to call the results in a message, in the plural.
        identity: What results have to agree in besides the matrix, the selected parameters, the loss and the data.

    Raises:
        InputError: If there are no results, if they are not comparable, or if two have the same name and data.
    """
    if not results:
        raise InputError(f"no {what} to plot; give at least one.")
    for first, other in itertools.pairwise(results):
        pairs = zip(_identity(first, identity).items(), _identity(other, identity).values(), strict=True)
        for (aspect, a), b in pairs:
            if a != b:
                raise InputError(f"{label_of(first)} and {label_of(other)} differ in {aspect}: {a} against {b}.")
    require_same_data(results)
    return places_of(results, what)


def _identity(result: C, identity: Callable[[C], dict[str, Any]]) -> dict[str, Any]:
    settings = result.provenance.settings
    chosen = {key: _plain(settings.get(key)) for key in ("parameters", "loss")}
    return {"matrix": result.curvature, **identity(result), **chosen}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # a tuple comes back from JSON as a list


# --- spectral density ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DensityPanel:
    """The smoothed densities of one data set on common axes."""

    densities: list[SpectralDensity]
    curves: list[tuple[np.ndarray, np.ndarray]]  # of each, eigenvalues and density
    width: float  # standard deviation of the kernel, the same for all
    low: float  # of the eigenvalue axis
    high: float
    floor: float  # of the density axis
    top: float


def arrange_densities(densities: Sequence[SpectralDensity]) -> Places[SpectralDensity]:
    """`arrange` for spectral densities, which have to be of equally many eigenvalues and have finite nodes."""
    for density in densities:
        if not np.isfinite(density.nodes).all() or not np.isfinite(density.weights).all():
            raise InputError(f"the spectral density of {label_of(density)} is not finite; it cannot be drawn.")
    return arrange(densities, "spectral densities", lambda density: {"number of parameters": density.parameters})


def density_panel(densities: list[SpectralDensity]) -> DensityPanel:
    """The panel of the comparable densities of one data set.

    Its density axis ends at a hundredth of the height that one single eigenvalue reaches. A node that one probe saw may
    have less than its share, and what is lower still is no eigenvalue but the tail of the kernel.
    """
    low = min(float(density.nodes.min()) for density in densities)
    high = max(float(density.nodes.max()) for density in densities)
    width = 0.01 * (high - low)
    if width <= 1e-9 * max(abs(low), abs(high)):  # one eigenvalue up to rounding: give it room to be seen in
        width = 0.01 * max(abs(low), abs(high)) or 1.0
    curves = [density.curve(points=1024, width=width) for density in densities]
    single = 1 / (densities[0].parameters * width * math.sqrt(2 * math.pi))
    top = 2 * max(float(curve.max()) for _, curve in curves)
    return DensityPanel(densities, curves, width, low - 5 * width, high + 5 * width, 0.01 * single, top)


def extremes(density: SpectralDensity) -> np.ndarray:
    """The largest and smallest node of every probe, (2 * probes,)."""
    return np.concatenate([density.nodes.max(axis=1), density.nodes.min(axis=1)])


def density_remarks(density: SpectralDensity) -> list[str]:
    """The texts beside a line: the range of its nodes, and a warning if its moments are off."""
    remarks = [f"{number(density.nodes.min(), 4)} to {number(density.nodes.max(), 4)}"]
    if not density.moment_error <= _MOMENT_TOLERANCE:  # NaN is not good enough either
        remarks.append(f"moments off by {density.moment_error:.0e}")
    return remarks


def density_caption(places: Places[SpectralDensity], panels: dict[str, DensityPanel]) -> str:
    """Describe a figure of spectral densities to its reader."""
    shown = list(places.cells.values())
    quadrature = _by_result(shown, lambda d: f"{_count(len(d.nodes), 'probe')} of {_count(d.nodes.shape[1], 'step')}")
    widths = {data: number(panel.width, 2) for data, panel in panels.items()}
    several = [f"{width} on {clean(data)}" for data, width in widths.items()]
    lines = "; all lines of a panel share axes and kernel" if len(places.names) > 1 else ""
    sentences = [
        f"Density of the {shown[0].parameters:,} eigenvalues of the {_subject(places)}",
        f"Stochastic Lanczos quadrature, {quadrature}, smoothed with a Gaussian of standard deviation "
        f"{listing(several) if len(several) > 1 else next(iter(widths.values()))}{lines}",
        "Ticks: largest and smallest node of each probe; the range of all stands beside each name",
        "The logarithmic axis ends at a hundredth of the height of one single eigenvalue",
        *_ending(shown, "eigenvalues"),
    ]
    return ". ".join(sentences) + "."


# --- layers -------------------------------------------------------------------------------------------------


def arrange_layers(tables: Sequence[LayerCurvature]) -> Places[LayerCurvature]:
    """`arrange` for tables by layer, which have to be of the same layers."""
    for table in tables:
        if not table.layers:
            raise InputError(f"the curvature by layer of {label_of(table)} has no layer; there is nothing to draw.")
    return arrange(
        tables,
        "tables by layer",
        lambda table: {
            "layers": [clean(row.name) for row in table.layers],
            "number of parameters": [row.parameters for row in table.layers],
        },
    )


@dataclasses.dataclass(frozen=True)
class Bars:
    """One quantity of all layers of one checkpoint, in the model's order."""

    values: np.ndarray
    errors: np.ndarray  # half the length of each error bar; 0 where it is unknown
    hollow: np.ndarray  # bool, not converged


def layer_bars(table: LayerCurvature) -> tuple[Bars, Bars]:
    """The traces and the largest eigenvalues of a table, with NaN for those that are not finite."""
    fields = [(r.trace, r.trace_stderr, r.top, r.residual) for r in table.layers]
    trace, stderr, top, residual = (_finite(column) for column in zip(*fields, strict=True))
    converged = np.array([row.converged is True for row in table.layers])
    return (
        Bars(trace, np.nan_to_num(stderr), np.zeros(len(trace), dtype=bool)),
        Bars(top, np.nan_to_num(residual), ~converged),
    )


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def bar_range(bars: Sequence[Bars]) -> tuple[float, float]:
    """The range of an axis that holds all bars and error bars, and zero."""
    ends = np.concatenate([[0.0], *(np.concatenate([b.values - b.errors, b.values + b.errors]) for b in bars)])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    pad = 0.04 * (high - low) or 1.0
    return low - pad * (low < 0), high + pad * (high > 0 or low == 0)


def layers_caption(places: Places[LayerCurvature]) -> str:
    """Describe a figure of curvature by layer to its reader."""
    shown = list(places.cells.values())
    probes = _by_result(shown, lambda table: _count(table.probes, "probe"))
    sentences = [
        f"Trace and largest eigenvalue of each layer's diagonal block of the {_subject(places)}",
        f"Error bars: one standard error of the trace over {probes}; residual norm of the eigenvalue",
    ]
    missing = [
        f"{_place(table, shown)}: {', '.join(clean(row.name) for row in table.layers if not row.converged)}"
        for table in shown
        if not all(row.converged for row in table.layers)
    ]
    if missing:
        sentences.append(f"Hollow: eigenvalue not converged ({'; '.join(missing)})")
    lost = sum(int(np.isnan(bars.values).sum()) for table in shown for bars in layer_bars(table))
    if lost:
        sentences.append(f"{_count(lost, 'value')} not finite and not drawn")
    return ". ".join([*sentences, *_ending(shown, "eigenvalues")]) + "."


# --- single results -----------------------------------------------------------------------------------------


def eigenvalues_caption(result: Eigenvalues) -> str:
    """Describe a figure of eigenvalues to its reader."""
    which = {"LA": "largest", "SA": "smallest", "LM": "largest in magnitude", "BE": "both ends"}.get(result.which, "")
    sentences = [
        f"Eigenvalues ({which or clean(result.which)}) of the {_subject(places_of([result], 'results'))}",
        "Error bars: residual norms, within which a true eigenvalue lies",
    ]
    if missing := sum(done is not True for done in result.converged):
        sentences.append(f"Hollow: {missing} of {len(result.values)} not converged to {result.rtol:g}")
    sentences.append(f"{_count(result.matvecs, 'product')} ({clean(result.method)})")
    return ". ".join([*sentences, *_ending([result], "eigenvalues")]) + "."


def trace_caption(result: TraceEstimate) -> str:
    """Describe a figure of a trace to its reader."""
    weighting = f", weighted ({clean(result.weighting)})" if result.weighting else ""
    low, high = (number(end, 4) for end in result.confidence_interval)
    warning = "" if result.converged else f", not converged to {result.rtol:g}"
    sentences = [
        f"Trace of the {_subject(places_of([result], 'results'))}{weighting}: estimates of single probes",
        f"Line and band: mean {number(result.value, 4)} and {result.confidence:.0%} interval {low} to {high}{warning}",
        f"{_count(result.probes, 'probe')} ({clean(result.method)})",
    ]
    if lost := int((~np.isfinite(result.samples)).sum()):
        sentences.append(f"{_count(lost, 'probe')} not finite and not drawn")
    return ". ".join([*sentences, *_ending([result], result.weighting or "trace")]) + "."


# --- words --------------------------------------------------------------------------------------------------


def _subject(places: Places[C]) -> str:
    """The matrix, the loss it is of, and the parameters it is restricted to."""
    shown = list(places.cells.values())
    data = listing([f"{clean(d)} ({amount(places.of_data(d)[0])})" for d in places.data])
    chosen = shown[0].provenance.settings.get("parameters")
    globs = [chosen] if isinstance(chosen, str) else chosen or ()
    only = f", parameters {', '.join(clean(glob) for glob in globs)} only" if globs else ""
    return f"{MATRIX.get(shown[0].curvature, clean(shown[0].curvature))} of the loss on {data}{only}"


def _ending(shown: Sequence[C], invariance: str) -> list[str]:
    from landscape.curvature.results import INVARIANCE  # not at the top: it would import torch for every picture

    error = max(float(getattr(result, "hvp_error", 0.0)) for result in shown)
    products = _by_result(shown, lambda result: clean(result.hvp).replace("_", " "))
    return [
        f"Hessian-vector products: {products}" + (f" (relative error up to {error:.1e})" if error else ""),
        f"Invariance: {INVARIANCE[invariance]}",
        f"The weights are in {listing(list(dict.fromkeys(clean(result.provenance.dtype) for result in shown)))}",
    ]


def _by_result(shown: Sequence[C], words: Callable[[C], str]) -> str:
    """The text for all results if it is the same, otherwise the text for each."""
    texts = [words(result) for result in shown]
    if len(set(texts)) == 1:
        return texts[0]
    return ", ".join(f"{text} ({_place(result, shown)})" for text, result in zip(texts, shown, strict=True))


def _place(result: C, shown: Sequence[C]) -> str:
    several = len({other.data for other in shown}) > 1
    return clean(result.name) + (f" on {clean(result.data)}" if several else "")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
