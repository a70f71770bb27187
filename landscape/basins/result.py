"""What a basin is: radii along rays, and what they are measured in."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from landscape.basins.radius import Radius, median_radius
from landscape.basins.smoothing import SmoothingBound
from landscape.results import Provenance, Result
from landscape.weights.perturbation import Fidelity


@dataclasses.dataclass(frozen=True)
class Basin(Result):
    """How far from a model a height stays within a drop. `compute_basin` makes it.

    Radii are lengths of steps over the norm of the chosen weights (`weight_norm`), and infinite where the height held
    to the end of the ray, at 1.

    Attributes:
        name: The name of the model.
        data: The name of the data.
        height: The name of the height.
        unit: Its unit.
        center: Its value at the model.
        center_stderr: The standard error of that over examples; NaN where it is not known.
        drop: How far the height may fall (a loss or a divergence: rise).
        radii: Along each random ray.
        worst: Along the worst-case direction that was found; None where the gradient is zero.
        step: Along the step from the base to the model, in units of that step, the height falling from the base's; None
            without a base.
        base_value: The height at the base.
        step_norm: Length of that step.
        weight_norm: Norm of the chosen weights, also of those of one dimension, which random rays need not move.
        bound: The bound of randomized smoothing on the height after the step, or at a distance of zero without a base.
        normalize: The scale of the random rays.
        seed: The seed of the first.
        fidelity: The worst over all points.
        weight: Number of terms behind each value.
        provenance: Where the numbers come from.
    """

    kind_of_result: ClassVar[str] = "basin"

    name: str
    data: str
    height: str
    unit: str
    center: float
    center_stderr: float
    drop: float
    radii: tuple[Radius, ...]
    worst: Radius | None
    step: Radius | None
    base_value: float | None
    step_norm: float | None
    weight_norm: float
    bound: SmoothingBound | None
    normalize: str
    seed: int
    fidelity: Fidelity
    weight: float
    provenance: Provenance

    @property
    def censored(self) -> int:
        """Number of random rays along which the height held to the end."""
        return sum(radius.censored for radius in self.radii)

    @property
    def median(self) -> float:
        """Median radius over random rays."""
        return self._median[0]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the median over random rays; from 0 to infinity for fewer than six."""
        return self._median[1:]

    @property
    def _median(self) -> tuple[float, float, float]:
        return median_radius([radius.value for radius in self.radii])

    @property
    def has_left(self) -> bool | None:
        """Whether the step left the base's basin: the height had fallen before its end. None without a base."""
        return None if self.step is None else self.step.outside <= 1.0

    @property
    def steps(self) -> float | None:
        """The median radius in units of the step that fine-tuning took; None without a base."""
        return None if self.step_norm is None else self.median * self.weight_norm / self.step_norm

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of what a person wants to see first."""
        error = "" if math.isnan(self.center_stderr) else f" ± {self.center_stderr:.4f}"
        of = f" ({self.unit}, {self.weight:.0f} terms)"
        low, high = self.interval
        rows = [
            ("basin", f"{self.name} on {self.data}"),
            (self.height, f"{self.center:.4f}{error} at centre{of}, drop {self.drop:.4g}"),
            (
                "random directions",
                f"{in_words(self.median)} of |w| [{low:.3g}, {high:.3g}], {len(self.radii)} directions, "
                f"{self.censored} held to the end",
            ),
        ]
        if self.worst is not None:
            rows.append(("worst case found", f"{in_words(self.worst.value)} of |w|"))
        if self.step is not None:
            assert self.step_norm is not None
            left = "left" if self.has_left else "stayed in"
            rows.append(("along the step", f"{in_words(self.step.value)} of it: it {left} the base's basin"))
            rows.append(
                ("step", f"{self.step_norm / self.weight_norm:.3g} of |w|; the median radius is {self.steps:.3g} steps")
            )
        if self.bound is not None:
            b = self.bound
            rows.append(
                (
                    "with noise",
                    f"{b.smoothed:.4f} (sigma {b.sigma:.3g}, {b.draws} draws); at least {b.bound:.4f} after any "
                    f"step of length {b.distance:.3g}, {b.confidence:.0%}",
                )
            )
        return rows


def in_words(radius: float) -> str:
    """Return a radius as text; what is censored lies beyond the end of its ray."""
    return "beyond the end" if math.isinf(radius) else f"{radius:.3g}"
