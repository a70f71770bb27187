"""What pictures of surfaces share, whichever library draws them: order, loss scale, words."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError

if TYPE_CHECKING:  # a picture needs no more of a surface than its fields, so importing this stays cheap
    from landscape.surface import Surface

# Okabe and Ito's colours without the yellow, which is lost on white paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")


# --- names and order ----------------------------------------------------------------------------------------


def shared_label(surfaces: Sequence[Surface], axis: int) -> str:
    """The label of an axis that several surfaces share, though lines to other checkpoints have others."""
    found = list(dict.fromkeys(clean(surface.axis_labels[axis]) for surface in surfaces))
    if len(found) > 1 and surfaces[0].kind == "interpolate":
        return "position between checkpoints (0 to 1)"
    return " / ".join(found)


def marked_places(surfaces: Sequence[Surface]) -> dict[float, list[str]]:
    """The names of the checkpoints that lie at each place of a line."""
    places: dict[float, dict[str, None]] = {}
    for surface in surfaces:
        for marker in surface.markers:
            places.setdefault(marker.coordinates[0], {})[clean(marker.name)] = None
    return {place: list(names) for place, names in places.items()}


def aspect(surface: Surface) -> float:
    """Height over width of a plane: steps along both axes look equally long unless that makes a strip."""
    wide, high = (axis[-1] - axis[0] for axis in surface.axes)
    return float(np.clip(high / wide, 0.6, 1.0))


def clean(text: str) -> str:
    """`text` on one line, with what has no glyph (control characters, broken Unicode) made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shorten(text: str, limit: int) -> str:
    """`text`, its middle left out where it is longer than `limit`: names mostly differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """The surfaces of a figure by checkpoint and data set, each in order of first appearance."""

    names: list[str]
    data: list[str]
    cells: dict[tuple[str, str], Surface]  # by (name, data); what was not measured is missing
    dim: int
    log: bool

    def of_data(self, data: str) -> list[Surface]:
        """The surfaces measured on one data set, in the order of the checkpoints."""
        return [self.cells[name, data] for name in self.names if (name, data) in self.cells]


def arrange(surfaces: Sequence[Surface], log: bool = False) -> Arrangement:
    """Check that `surfaces` fit in one figure, and find the place of each.

    Raises InputError where there are none, where they are not comparable, where two claim the same place,
    where they have neither one nor two dimensions, and where `log` is asked for losses that are not positive.
    """
    if not surfaces:
        raise InputError("no surface to plot; give at least one.")
    require_comparable(surfaces)
    if not 1 <= (dim := len(surfaces[0].axes)) <= 2:
        raise InputError(f"{_label(surfaces[0])} has {dim} dimensions; only one or two can be drawn.")
    if min(len(axis) for axis in surfaces[0].axes) < 2:
        raise InputError(f"{_label(surfaces[0])} has an axis of one point; a picture needs at least two.")
    cells: dict[tuple[str, str], Surface] = {}
    for surface in surfaces:
        if (surface.name, surface.data) in cells:
            raise InputError(f"two surfaces are both {_label(surface)}; give them different names.")
        if log and len(finite := finite_losses([surface])) and finite.min() <= 0:
            raise InputError(
                f"a logarithmic scale needs losses above 0, but {_label(surface)} reaches {finite.min():.4g}."
            )
        cells[surface.name, surface.data] = surface
    names, data = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    return Arrangement(names, data, cells, dim, log)


def require_comparable(surfaces: Sequence[Surface]) -> None:
    """Raise InputError unless all `surfaces` may stand in one figure.

    They have to agree in dimension, kind, normalization, seed and grid, in what moved and in the loss; and two that
    name their data alike have to have been measured on the same data.
    """
    for first, other in itertools.pairwise(surfaces):
        for what, a, b in (
            ("dimension", len(first.axes), len(other.axes)),
            ("kind", first.kind, other.kind),
            ("normalization", first.normalize, other.normalize),
            ("seed", first.seed, other.seed),
            *((name, value, other.conventions[name]) for name, value in first.conventions.items()),
        ):
            if a != b:
                raise InputError(f"{_label(first)} and {_label(other)} differ in {what}: {a} against {b}.")
        if not all(np.array_equal(a, b) for a, b in zip(first.axes, other.axes, strict=True)):
            raise InputError(
                f"{_label(first)} and {_label(other)} differ in their axes: {_grid(first)} with "
                f"{_extent(first)} against {_grid(other)} with {_extent(other)}; measure both on one grid."
            )
    seen: dict[str, Surface] = {}
    for surface in surfaces:
        first = seen.setdefault(surface.data, surface)
        if _what_was_read(first) != _what_was_read(surface):
            raise InputError(
                f"{_label(first)} and {_label(surface)} were measured on different data "
                f"({first.weight:,.10g} and {surface.weight:,.10g} terms); use the same for both."
            )


def _what_was_read(surface: Surface) -> tuple[float, str | None]:
    """Number of loss terms, and the digest of the tokens; digests of other data change with its batches."""
    return surface.weight, (surface.provenance.data or {}).get("digest") if _of_tokens(surface) else None


def _label(surface: Surface) -> str:
    return f"'{clean(surface.name)}' on '{clean(surface.data)}'"


def _grid(surface: Surface) -> str:
    return "\N{MULTIPLICATION SIGN}".join(str(len(axis)) for axis in surface.axes) + " points"


def _extent(surface: Surface) -> str:
    spans = [f"{_number(axis[0])} to {_number(axis[-1])}" for axis in surface.axes]
    return f"{spans[0]} on both axes" if len(spans) == 2 and spans[0] == spans[1] else " and ".join(spans)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


# --- the loss scale -----------------------------------------------------------------------------------------


def finite_losses(surfaces: Iterable[Surface]) -> np.ndarray:
    """All finite losses of `surfaces`, flat."""
    losses = [surface.loss[np.isfinite(surface.loss)] for surface in surfaces]
    return np.concatenate(losses) if losses else np.empty(0)


@dataclasses.dataclass(frozen=True)
class LossScale:
    """One scale for the losses of several surfaces: a loss is drawn at the height `heights(loss)`."""

    low: float  # heights
    high: float
    levels: np.ndarray  # heights of the contours, increasing
    chosen: bool  # whether a person chose the levels
    log: bool
    empty: bool  # there is no finite loss to draw

    @property
    def name(self) -> str:
        """What to write along it."""
        return "loss (log scale)" if self.log else "loss"

    def heights(self, loss: np.ndarray | float) -> np.ndarray:
        """Where `loss` is drawn: the loss itself or its log10, NaN where it is not finite."""
        loss = np.asarray(loss, dtype=np.float64)
        drawable = np.isfinite(loss) & ((loss > 0) | (not self.log))
        heights = np.where(drawable, loss, np.nan)
        return np.log10(heights) if self.log else heights

    def losses(self, heights: Sequence[float] | np.ndarray) -> list[float]:
        """The inverse of `heights`, for an axis that is logarithmic by itself."""
        return [float(10**height if self.log else height) for height in heights]

    def ticks(self, count: int = 5) -> tuple[list[float], list[str]]:
        """Heights of round losses, about `count` of them, and their labels in units of loss."""
        if self.empty:
            return [], []
        choose = _log_ticks if self.log else round_ticks
        losses = choose(self.low, self.high, count)
        return [float(self.heights(loss)) for loss in losses], labels(losses)

    def bar_ticks(self) -> tuple[list[float], list[str]]:
        """Ticks of the colour bar: the levels where a person chose them, else round losses between them."""
        if self.chosen and len(self.levels) <= 12:
            return list(self.levels), [f"{loss:.6g}" for loss in self.losses(self.levels)]
        low, high = self.levels[0], self.levels[-1]
        inside = [(at, text) for at, text in zip(*self.ticks(6), strict=True) if low <= at <= high]
        return [at for at, _ in inside], [text for _, text in inside]


def loss_scale(surfaces: Sequence[Surface], log: bool, levels: int | Sequence[float] = 20) -> LossScale:
    """The scale that `surfaces` share; `levels` are a number of contours or the losses to draw them at.

    Raises InputError for `levels` that are neither.
    """
    finite = finite_losses(surfaces)
    empty = len(finite) == 0
    bounds = (1.0, 10.0) if empty else (float(finite.min()), float(finite.max()))
    low, high = (math.log10(bound) for bound in bounds) if log else bounds
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike up to rounding: give it room to be seen in
        pad = 0.05 * max(abs(low), 1.0 if log or low == 0 else 0.0)
        low, high = low - pad, high + pad
    if isinstance(levels, int):
        if levels < 2:
            raise InputError(f"levels={levels} is too few; give at least 2, or an increasing list of losses.")
        heights = np.linspace(low, high, levels)
    else:
        heights = np.asarray(levels, dtype=np.float64)
        is_list = heights.ndim == 1 and len(heights) >= 2 and bool(np.isfinite(heights).all())
        if not is_list or (np.diff(heights) <= 0).any():
            raise InputError(f"levels={levels!r} is neither a number nor an increasing list of losses.")
        if log:
            if heights[0] <= 0:
                raise InputError(f"levels={levels!r} do not fit a logarithmic scale; give losses above 0.")
            heights = np.log10(heights)
    return LossScale(low, high, heights, not isinstance(levels, int), log, empty)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten from `low` to `high`, nearest to `count` of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    steps = [power * factor for factor in (1, 2, 2.5, 5, 10)]
    slack = 1e-6 * (high - low)  # so that rounding does not cost the tick at an edge

    def multiples(step: float) -> list[float]:
        first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
        return [i * step for i in range(first, last + 1)]

    return min((multiples(step) for step in steps), key=lambda ticks: abs(len(ticks) - count))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round losses from 10**low to 10**high: 1-2-5 or powers of ten, round numbers within a decade."""
    if high - low < 1:
        return round_ticks(10.0**low, 10.0**high, count)
    decades = range(math.floor(low), math.ceil(high) + 1)
    step = math.ceil((high - low) / count)
    choices = [
        [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)],
        [factor * 10.0**decade for decade in decades for factor in (1, 3)],
        [10.0**decade for decade in decades if decade % step == 0],
    ]
    inside = [[t for t in ticks if low - 1e-9 <= math.log10(t) <= high + 1e-9] for ticks in choices]
    return min(inside, key=lambda ticks: abs(len(ticks) - count))


def labels(ticks: Sequence[float]) -> list[str]:
    """`ticks` as text: no more digits than tell them apart, a proper minus sign."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    steps = [b - a for a, b in itertools.pairwise(ticks)] or [largest or 1.0]
    if largest >= 1e5 or min(steps) < 1e-6 or max(steps) > 10 * min(steps):  # the last: over several decades
        texts = [f"{tick:.6g}" for tick in ticks]
    else:
        digits = next(d for d in range(9) if all(abs(t - round(t, d)) < 1e-2 * min(steps) for t in ticks))
        texts = [f"{tick:.{digits}f}" for tick in ticks]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]


# --- words --------------------------------------------------------------------------------------------------


def center_name(surface: Surface) -> str:
    """What to call the place of the unperturbed model: paths and planes start there."""
    return "origin" if surface.kind in ("interpolate", "plane") else "centre"


def center_text(surface: Surface) -> str:
    """The loss of the unperturbed model, in words."""
    place = center_name(surface)
    value = f"{surface.center:.3f}" if math.isfinite(surface.center) else "not finite"
    return f"loss at {place} {value}".replace("-", "\N{MINUS SIGN}")


def notes(surface: Surface) -> list[str]:
    """What limits the use of a surface and has to be said beside it; usually nothing."""
    found = []
    if surface.nonfinite:
        found.append(f"{surface.nonfinite} of {surface.loss.size} points not finite")
    if not surface.fidelity.faithful:
        which, value = ("norm ratio", surface.fidelity.norm_ratio)
        if not surface.fidelity.cosine >= 0.99:  # NaN is not good enough either
            which, value = ("cosine", surface.fidelity.cosine)
        found.append(f"perturbation rounded ({which} {value:.2f})")
    return found


def caption_for(surfaces: Sequence[Surface], *, log: bool = False) -> str:
    """What a reader has to know about a figure of `surfaces`. Raises InputError where they make no figure."""
    arrangement = arrange(surfaces, log)
    dim, shown = arrangement.dim, list(arrangement.cells.values())
    first = shown[0]
    data = _listing([f"{clean(d)} ({_amount(arrangement.of_data(d)[0])})" for d in arrangement.data])
    several = len(arrangement.names) > 1
    unit = " (nats per supervised token)" if all(_of_tokens(surface) for surface in shown) else ""
    sentences = [f"Loss{unit} on {data}, {_region(first)}"]

    draw = []
    if first.kind == "random" and first.seed is not None:
        own = "" if first.normalize in (None, "none") else ", normalized to its own weights"
        subject = "Each checkpoint" if several else "The checkpoint"
        draw.append(f"{subject} along {'the same' if several else 'a'} random draw{own}")
    if several or len(arrangement.data) > 1:
        colours = "" if dim == 1 else " and colour scale" if len(arrangement.data) == 1 else ""
        draw.append(f"shared axes{colours}")
    if dim == 2 and len(arrangement.data) > 1:
        draw.append("one colour scale per data set")
    if first.kind == "random" and first.seed is not None:
        draw.append(f"one draw of {'directions' if dim == 2 else 'the direction'}")
    if draw:
        sentences.append("; ".join(draw))
        sentences[-1] = sentences[-1][0].upper() + sentences[-1][1:]

    cosines = [abs(s.direction_cosine) for s in shown if s.direction_cosine is not None]
    if cosines and max(cosines) > 0.1:
        sentences.append(f"The two directions are not orthogonal (cosine up to {max(cosines):.2f})")
    if log:
        sentences.append("Logarithmic loss scale")
    if any(surface.nonfinite for surface in shown):
        sentences.append("Holes: loss not finite" if dim == 2 else "Gaps: loss not finite")
    sentences.append(f"Weights in {_listing(list(dict.fromkeys(s.provenance.dtype for s in shown)))}")
    return ". ".join(sentences) + "."


def _region(surface: Surface) -> str:
    """The grid in words, with kind, normalization and seed."""
    one = len(surface.axes) == 1
    grid = f"{_grid(surface)}, {_extent(surface)}"
    if surface.kind == "interpolate":
        return f"on the straight line between two checkpoints ({grid})"
    if surface.kind == "plane":
        return f"over the plane through the marked checkpoints ({grid}; axes are distances in parameter space)"
    normalized = "not normalized" if surface.normalize == "none" else f"{surface.normalize}-normalized"
    said = [normalized] if surface.normalize else []
    said += [f"seed {surface.seed}"] if surface.seed is not None else []
    moved = surface.conventions["parameters"]
    said += [f"only {clean(moved if isinstance(moved, str) else ', '.join(moved))} moved"] if moved else []
    said += ["1-D tensors too"] if surface.conventions["include_1d"] else []
    drawn = "random" if surface.kind == "random" else "given"
    directions = f"along one {drawn} direction" if one else f"over two {drawn} directions"
    return f"{directions} ({'; '.join([*([', '.join(said)] if said else []), grid])})"


def _of_tokens(surface: Surface) -> bool:
    """Whether the loss is a language model's; that of other models and data has units we do not know."""
    return "supervised_tokens" in (surface.provenance.data or {})


def _amount(surface: Surface) -> str:
    count = f"{surface.weight:,.10g}"
    return f"{count} supervised tokens" if _of_tokens(surface) else f"mean of {count}"


def _listing(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
